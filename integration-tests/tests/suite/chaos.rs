//! Kills at random moments, frozen processes, orderly ends: results stay exact, and nothing stays behind.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{checkpoint_after, job_in_state, job_until};
use weir_integration_tests::oracle::{fold, tumble};
use weir_integration_tests::random::Random;
use weir_proto::pb::client::v1::{JobDetail, JobState};
use weir_stream_store::client::StoreClient;
use weir_types::group::GroupCheckpointState;

use crate::support::{
    append, drain, goes_on, has_read, read, readings, rows_covered, runs_after, submit, totals_script,
};

/// Kills per run of the random test.
const KILLS: u64 = 6;
/// Rows that are appended before each of them.
const ROWS_PER_STEP: u64 = 3_000;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as u64
}

fn is_running(detail: &JobDetail) -> bool {
    detail.summary.as_ref().is_some_and(|job| job.state() == JobState::Running)
}

fn attempt(detail: &JobDetail) -> u32 {
    detail.summary.as_ref().map_or(0, |job| job.attempt)
}

/// Takes checkpoints until one covers all of the input; then drains the job, and compares what it wrote with the batch
/// computation.
pub(crate) async fn ends_exactly(cluster: &Cluster, job: &str, rows: &[Value]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        job_in_state(cluster, job, JobState::Running).await;
        // It fails if the job restarts meanwhile.
        let ran = cluster.weir(&["--json", "checkpoint", job]);
        let taken: Option<Value> = serde_json::from_str(&ran.stdout).ok().filter(|_| ran.code == 0);
        if taken.is_some_and(|checkpoint| rows_covered(&checkpoint) == rows.len() as u64) {
            break;
        }
        assert!(Instant::now() < deadline, "no checkpoint covers the input: {}", ran.stderr);
    }
    drain(cluster, job).await;
    assert_eq!(fold(&read(cluster, "test/out"), "sensor"), tumble(rows, "sensor", "at", "reading", 1000));
    leaves_nothing(cluster).await;
}

/// What of ended jobs is still there that only running ones need, in words. Savepoints keep their pins and files.
async fn left_over(cluster: &Cluster, store: &StoreClient) -> Vec<String> {
    let mut left = Vec::new();
    let snapshots = cluster.weir_json(&["snapshots", "list"]);
    let mut kept = BTreeSet::new();
    for snapshot in snapshots.as_array().expect("a list") {
        let (id, state) = (snapshot["id"].as_str().expect("an id"), snapshot["state"].as_str().expect("a state"));
        match (state, id.starts_with("sp-")) {
            ("COMPLETED", true) => drop(kept.insert(id.to_owned())),
            ("FAILED", _) => {
                if Path::new(snapshot["directory"].as_str().expect("a directory")).exists() {
                    left.push(format!("files of {id}, which has failed"));
                }
            }
            _ => left.push(format!("{id} is {state}")),
        }
    }
    for group in cluster.weir_json(&["group", "list"]).as_array().expect("a list") {
        left.push(format!("group {}", group["name"]));
    }
    let pins = store.pins(&"test/in".parse().expect("a name")).await.expect("pins");
    let pins: BTreeSet<String> = pins.iter().map(|pin| pin.holder.to_string()).collect();
    if pins != kept {
        left.push(format!("pins {pins:?} for the savepoints {kept:?}"));
    }
    let checkpoints = std::fs::read_dir(cluster.path("checkpoints")).into_iter().flatten().flatten();
    left.extend(checkpoints.map(|entry| entry.path().display().to_string()));
    left
}

/// Waits until nothing is left of jobs that have ended; cleaning up goes on after their end.
pub(crate) async fn leaves_nothing(cluster: &Cluster) {
    let store = StoreClient::connect(&cluster.address("store")).expect("an address");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = left_over(cluster, &store).await;
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left over: {left:#?}");
    }
}

/// Kills random processes at random moments, several within one job's life, sometimes while it still recovers.
async fn survives_kills(seed: u64) {
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start(3, 2);
    let rows = readings(0, ROWS_PER_STEP * (KILLS + 1));
    let (first, mut rest) = rows.split_at(ROWS_PER_STEP as usize);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("100 ms"), &["-p", "2"]);
    for _ in 0..KILLS {
        let (next, after) = rest.split_at(ROWS_PER_STEP as usize);
        rest = after;
        append(&cluster, "test/in", next);
        let since = now_ms();
        let moment = random.below(4);
        let seen = match moment {
            0 => None,
            1 => Some(job_in_state(&cluster, &job, JobState::Running).await),
            2 => Some(checkpoint_after(&cluster, &job, since).await),
            _ => {
                let in_flight = |detail: &JobDetail| {
                    is_running(detail) && detail.recent_snapshots.iter().any(|s| s.triggered_at_ms > since)
                };
                Some(job_until(&cluster, &job, "a checkpoint triggered", in_flight).await)
            }
        };
        let victim = ["tm-1", "tm-2", "tm-3", "jobmanager", "store"][random.below(5) as usize];
        let killed = Instant::now();
        cluster.kill(victim);
        cluster.restart(victim);
        if let Some(before) = seen.filter(|_| random.below(2) == 0) {
            // The death of the store or the JobManager restarts nobody, nor does that of a TaskManager that runs nothing.
            let ran_there =
                before.chains.iter().flat_map(|chain| &chain.subtasks).any(|task| task.task_manager_id == victim);
            if ran_there {
                runs_after(&cluster, &job, attempt(&before)).await;
            }
            let running_ms = killed.elapsed().as_millis();
            checkpoint_after(&cluster, &job, now_ms()).await;
            let checkpoint_ms = killed.elapsed().as_millis();
            println!("kill {victim}: running after {running_ms} ms, next checkpoint after {checkpoint_ms} ms");
        } else {
            println!("kill {victim} at moment {moment}");
        }
    }
    append(&cluster, "test/in", rest);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_leave_the_result_exact() {
    let seed = std::env::var("WEIR_CHAOS_SEED").ok().map(|seed| seed.parse().expect("a number"));
    survives_kills(seed.unwrap_or(1)).await;
}

/// A cluster of three TaskManagers with a job on tm-1 and tm-2 that has read everything, and `rows` of which the second
/// half is not appended yet. Spare slots are on tm-3.
async fn half_way() -> (Cluster, String, Vec<Value>) {
    let cluster = Cluster::start(3, 1);
    let rows = readings(0, 8_000);
    append(&cluster, "test/in", &rows[..4_000]);
    // No periodic checkpoints: one in flight would hold up the snapshots that tests start.
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "2"]);
    has_read(&cluster, &job, 4_000).await;
    cluster.weir_json(&["checkpoint", &job]);
    (cluster, job, rows)
}

/// Freezes a TaskManager of the job, so that a savepoint cannot complete, and starts one; the TaskManager's name.
async fn savepoint_in_flight(cluster: &Cluster, job: &str) -> (String, std::process::Child) {
    let detail = job_in_state(cluster, job, JobState::Running).await;
    let victim = detail.chains[0].subtasks[0].task_manager_id.clone();
    cluster.freeze(&victim);
    let savepoint = cluster.weir_in_background(&["savepoint", job]);
    // The other TaskManager's source has its barrier.
    job_until(cluster, job, "a savepoint in flight", |detail| {
        let mut snapshots = detail.recent_snapshots.iter();
        snapshots.any(|it| it.savepoint && it.state == "IN_PROGRESS" && it.subtasks_acknowledged > 0)
    })
    .await;
    (victim, savepoint)
}

fn savepoints(cluster: &Cluster) -> Vec<(String, Option<String>)> {
    let listed = cluster.weir_json(&["snapshots", "list", "--savepoints"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let listed = listed.as_array().expect("a list").iter();
    listed.map(|entry| (text(&entry["state"]).expect("a state"), text(&entry["failure"]["code"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_manager_killed_during_a_savepoint_fails_it_and_the_job_goes_on() {
    let (mut cluster, job, rows) = half_way().await;
    let (victim, mut savepoint) = savepoint_in_flight(&cluster, &job).await;
    cluster.kill(&victim);
    let code = savepoint.wait().expect("a child of this process").code();
    assert_eq!(code, Some(17), "the savepoint fails as its TaskManager did: UNAVAILABLE");
    append(&cluster, "test/in", &rows[4_000..]);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_during_a_savepoint_aborts_it_and_leaves_nothing_outstanding() {
    let (mut cluster, job, rows) = half_way().await;
    let (victim, mut savepoint) = savepoint_in_flight(&cluster, &job).await;
    let before = attempt(&job_in_state(&cluster, &job, JobState::Running).await);
    cluster.kill("jobmanager");
    assert!(!savepoint.wait().expect("a child of this process").success());
    cluster.restart("jobmanager");
    cluster.thaw(&victim);
    goes_on(&cluster, &job, before).await;
    let listed = savepoints(&cluster);
    assert_eq!(listed, [("FAILED".to_owned(), Some("UNAVAILABLE".to_owned()))]);
    let store = StoreClient::connect(&cluster.address("store")).expect("an address");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let groups = store.list_groups(None).await.expect("groups");
        let outstanding = groups.iter().flat_map(|group| &group.checkpoints).filter(|checkpoint| {
            checkpoint.state == GroupCheckpointState::Outstanding && checkpoint.id.as_str().starts_with("sp-")
        });
        if outstanding.count() == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "a group checkpoint is outstanding: {groups:?}");
    }
    append(&cluster, "test/in", &rows[4_000..]);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_killed_during_a_savepoint_comes_back_and_the_savepoint_completes() {
    let (mut cluster, job, rows) = half_way().await;
    let (victim, mut savepoint) = savepoint_in_flight(&cluster, &job).await;
    cluster.kill("store");
    cluster.restart("store");
    cluster.thaw(&victim);
    assert!(savepoint.wait().expect("a child of this process").success());
    assert_eq!(savepoints(&cluster), [("COMPLETED".to_owned(), None)]);
    append(&cluster, "test/in", &rows[4_000..]);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_while_the_store_is_down_leaves_nothing_in_it() {
    let (mut cluster, job, _) = half_way().await;
    cluster.kill("store");
    cluster.weir_json(&["cancel", &job]);
    job_in_state(&cluster, &job, JobState::Cancelled).await;
    cluster.restart("store");
    leaves_nothing(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_task_manager_is_replaced_and_fenced_when_it_goes_on() {
    let (cluster, job, rows) = half_way().await;
    let detail = job_in_state(&cluster, &job, JobState::Running).await;
    let victim = detail.chains[0].subtasks[0].task_manager_id.clone();
    cluster.freeze(&victim);
    runs_after(&cluster, &job, attempt(&detail)).await;
    cluster.thaw(&victim);
    append(&cluster, "test/in", &rows[4_000..]);
    ends_exactly(&cluster, &job, &rows).await;
}

/// SIGTERM; the process ends in order, and soon.
fn ends_in_order(cluster: &mut Cluster, name: &str) {
    let asked = Instant::now();
    assert_eq!(cluster.terminate(name), Some(0), "{name}");
    assert!(asked.elapsed() < Duration::from_secs(8), "{name} took {:?} to end", asked.elapsed());
    println!("{name} ended in {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_ends_in_order_on_sigterm_and_the_job_survives() {
    let (mut cluster, job, rows) = half_way().await;
    let detail = job_in_state(&cluster, &job, JobState::Running).await;
    let victim = detail.chains[0].subtasks[0].task_manager_id.clone();
    ends_in_order(&mut cluster, &victim);
    let before = runs_after(&cluster, &job, attempt(&detail)).await;
    ends_in_order(&mut cluster, "jobmanager");
    cluster.restart("jobmanager");
    goes_on(&cluster, &job, before).await;
    ends_in_order(&mut cluster, "store");
    cluster.restart("store");
    append(&cluster, "test/in", &rows[4_000..]);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_is_stopped_and_started_and_its_job_goes_on() {
    let (mut cluster, job, rows) = half_way().await;
    for name in ["jobmanager", "tm-1", "tm-2", "tm-3", "store"] {
        ends_in_order(&mut cluster, name);
    }
    for name in ["tm-1", "tm-2", "tm-3", "jobmanager", "store"] {
        cluster.restart(name);
    }
    append(&cluster, "test/in", &rows[4_000..]);
    ends_exactly(&cluster, &job, &rows).await;
}
