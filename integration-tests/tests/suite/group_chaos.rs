//! Any one of three JobManagers is killed or ended at any time, again and again, while clients submit jobs, take, label and
//! delete savepoints and change quotas. Afterwards nothing that was promised is lost, nothing is there twice, nothing is left
//! over, and what the jobs have written is exact.
//!
//! `WEIR_CHAOS_SEED` chooses another sequence, `WEIR_CHAOS_SECONDS` how long it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::job_in_state;
use weir_integration_tests::oracle::{fold, tumble};
use weir_integration_tests::random::Random;
use weir_proto::pb::client::v1::JobState;

use crate::chaos::ends_exactly;
use crate::group_clients::{Client, Savepoints};
use crate::high_availability::asked;
use crate::membership::all_follow;
use crate::support::{append, read, readings, submit, totals_script};
use crate::usage::{LOOK_INTERVAL, settles};

/// How long JobManagers are killed, unless the environment says otherwise.
const SECONDS: u64 = 10;
/// Rows that are appended before each loss.
const ROWS_PER_LOSS: u64 = 500;
/// Rows of the jobs that clients submit.
const SMALL_ROWS: u64 = 400;
/// Members lag a little while commands are under way.
const LAG_MAX: u64 = 50;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// A job over what `test/small` holds now, which ends by itself.
fn small_script(name: &str) -> String {
    let bounded = "'stream' = 'test/small', 'scan.bounded.mode' = 'latest'";
    totals_script("1 s").replace("'stream' = 'test/in'", bounded).replace("test/out", &format!("test/{name}"))
}

/// The clients at work.
struct Clients {
    savepoints: Vec<JoinHandle<Savepoints>>,
    quotas: Vec<JoinHandle<BTreeMap<String, u64>>>,
    jobs: JoinHandle<BTreeMap<String, String>>,
}

impl Clients {
    fn start(cluster: &Cluster, job: &str, seed: u64, until: Instant) -> Self {
        let client = |name: &str, number: u64| Client::new(cluster, name, seed.wrapping_mul(31) + number, until);
        let savepoints =
            [("ann", 1), ("bob", 2)].map(|(name, number)| client(name, number).keep_savepoints(job.to_owned()));
        let quotas = [("cyd", 3), ("dan", 4)].map(|(name, number)| client(name, number).set_quotas());
        Self {
            savepoints: savepoints.into_iter().map(tokio::spawn).collect(),
            quotas: quotas.into_iter().map(tokio::spawn).collect(),
            jobs: tokio::spawn(client("eve", 5).run_jobs(small_script)),
        }
    }
}

/// Kills JobManagers, or asks them to end, one at a time; all rows appended meanwhile.
fn lose_jobmanagers(cluster: &mut Cluster, random: &mut Random, until: Instant) -> Vec<Value> {
    let mut rows = Vec::new();
    while Instant::now() < until {
        let more = readings(rows.len() as u64, ROWS_PER_LOSS);
        append(cluster, "test/in", &more);
        rows.extend(more);
        let victim = format!("jobmanager-{}", 1 + random.below(3));
        let gently = random.below(4) == 0;
        println!("{} {victim}", if gently { "end" } else { "kill" });
        match gently {
            true => assert_eq!(cluster.terminate(&victim), Some(0), "{victim}"),
            false => cluster.kill(&victim),
        }
        // Sometimes it is away for long enough to miss something, sometimes not.
        std::thread::sleep(Duration::from_millis(random.below(600)));
        cluster.restart(&victim);
        all_follow(cluster, 3, LAG_MAX);
    }
    rows
}

fn ids(listed: &Value) -> Vec<String> {
    let listed = listed.as_array().expect("a list").iter();
    listed.map(|entry| entry["id"].as_str().expect("an id").to_owned()).collect()
}

/// What clients were promised of savepoints is so: each is there once, with its label, or gone for good, and no others are.
async fn savepoints_are_as_promised(cluster: &Cluster, job: &str, promised: &[Savepoints]) {
    let complete = asked(cluster, &["snapshots", "list", "--savepoints", "--state", "completed"]);
    let mut listed = ids(&complete);
    listed.sort();
    let kept: BTreeMap<&String, &Option<String>> = promised.iter().flat_map(|promised| &promised.kept).collect();
    assert!(listed.iter().eq(kept.keys().copied()), "listed: {listed:#?}, promised: {promised:#?}");
    for entry in complete.as_array().expect("a list") {
        let label = entry["labels"]["value"].as_str().map(str::to_owned);
        assert_eq!(&label, kept[&entry["id"].as_str().expect("an id").to_owned()], "{entry:#}");
    }
    let mut removed = ids(&asked(cluster, &["snapshots", "list", "--deleted"]));
    removed.retain(|id| id.starts_with("sp-"));
    removed.sort();
    let deleted: BTreeSet<&String> = promised.iter().flat_map(|promised| &promised.deleted).collect();
    assert!(removed.iter().eq(deleted), "deleted: {removed:#?}, promised: {promised:#?}");

    // Whoever asks once more hears the same.
    let mut again = Client::new(cluster, "again", 1, Instant::now());
    for (request, answer) in promised.iter().flat_map(|promised| &promised.requests) {
        let answered = again.savepoint(job, request).await;
        match answer {
            Ok(id) if deleted_by_anybody(promised, id) => {}
            Ok(id) => assert_eq!(&answered.expect("a savepoint").id, id, "{request}"),
            Err(code) => assert_eq!(answered.expect_err("it failed").code, *code, "{request}"),
        }
    }
}

fn deleted_by_anybody(promised: &[Savepoints], id: &str) -> bool {
    promised.iter().any(|promised| promised.deleted.contains(id))
}

/// Every job that was accepted is there once, and no others are; what they wrote is what a batch program computes.
fn jobs_are_as_promised(cluster: &Cluster, job: &str, promised: &BTreeMap<String, String>, rows: &[Value]) {
    let mut listed = ids(&asked(cluster, &["list", "--all"]));
    listed.sort();
    let accepted: BTreeSet<&str> = promised.values().map(String::as_str).chain([job]).collect();
    assert!(listed.iter().eq(accepted), "{listed:#?}, promised: {promised:#?} and {job}");
    let expected = tumble(rows, "sensor", "at", "reading", 1000);
    for name in promised.keys() {
        assert_eq!(fold(&read(cluster, &format!("test/{name}")), "sensor"), expected, "{name}");
    }
}

/// Waits until there is nothing that nobody needs.
async fn there_is_no_garbage(cluster: &Cluster) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let garbage = asked(cluster, &["snapshots", "gc", "--dry-run", "--older-than", "0s"]);
        if garbage == json!([]) {
            return;
        }
        assert!(Instant::now() < deadline, "{garbage:#}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_jobmanager_may_go_at_any_time_while_clients_are_promised_things() {
    let seed = from_environment("WEIR_CHAOS_SEED").unwrap_or(1);
    println!("seed {seed}");
    let duration = Duration::from_secs(from_environment("WEIR_CHAOS_SECONDS").unwrap_or(SECONDS));
    let mut cluster = Cluster::start_group_with(3, 2, 2, &["snapshots.writers_timeout_ms=500"]);
    let small = readings(0, SMALL_ROWS);
    append(&cluster, "test/small", &small);
    append(&cluster, "test/in", &[]);
    let job = submit(&cluster, &totals_script("1 s"), &["-p", "2"]);
    job_in_state(&cluster, &job, JobState::Running).await;

    let until = Instant::now() + duration;
    let clients = Clients::start(&cluster, &job, seed, until);
    let mut random = Random::new(seed);
    let (mut cluster, rows) = tokio::task::spawn_blocking(move || {
        let rows = lose_jobmanagers(&mut cluster, &mut random, until);
        (cluster, rows)
    })
    .await
    .expect("no failure");
    let mut savepoints = Vec::new();
    for client in clients.savepoints {
        savepoints.push(client.await.expect("no failure"));
    }
    let mut quotas = BTreeMap::new();
    for client in clients.quotas {
        quotas.extend(client.await.expect("no failure"));
    }
    let jobs = clients.jobs.await.expect("no failure");
    println!(
        "{} savepoints, {} levels, {} jobs",
        savepoints.iter().map(|it| it.requests.len()).sum::<usize>(),
        quotas.len(),
        jobs.len()
    );

    // Everybody has it on disk.
    for number in 1..=3 {
        cluster.kill(&format!("jobmanager-{number}"));
    }
    for number in 1..=3 {
        cluster.restart(&format!("jobmanager-{number}"));
    }
    jobs_are_as_promised(&cluster, &job, &jobs, &small);
    savepoints_are_as_promised(&cluster, &job, &savepoints).await;
    for (level, limit) in &quotas {
        let shown = asked(&cluster, &["quota", "show", level]);
        assert_eq!(shown["dimensions"]["savepoints"]["limit"], json!(limit), "{level}: {shown:#}");
    }
    ends_exactly(&cluster, &job, &rows).await;
    settles(&cluster).await;
    there_is_no_garbage(&cluster).await;
}
