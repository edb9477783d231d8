//! Three JobManagers: any one of them may be lost, and what was promised stays.

use std::time::Instant;

use serde_json::Value;
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::job_in_state;
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, read, readings, rows_covered, submit, totals_script};

/// Rows appended at a time.
const ROWS: u64 = 2_000;

/// Runs `weir --json` until it succeeds: on a loaded machine, a leader may be lost at any time.
pub(crate) fn asked(cluster: &Cluster, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = std::iter::once("--json").chain(arguments.iter().copied()).collect();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let ran = cluster.weir(&arguments);
        if ran.code == 0 {
            return serde_json::from_str(&ran.stdout).expect("JSON");
        }
        assert!(Instant::now() < deadline, "weir {arguments:?}: {}", ran.stderr);
    }
}

pub(crate) fn members(cluster: &Cluster) -> Vec<Value> {
    asked(cluster, &["cluster", "members", "list"]).as_array().expect("a list").clone()
}

/// The process that leads.
pub(crate) fn leader(cluster: &Cluster) -> String {
    let members = members(cluster);
    let leader = members.iter().find(|member| member["leads"] == true).expect("a leader");
    format!("jobmanager-{}", leader["id"])
}

/// Waits until all three members follow without a gap.
fn is_whole(cluster: &Cluster) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let members = members(cluster);
        if members.len() == 3 && members.iter().all(|member| member["active"] == true && member["lag"] == 0) {
            return;
        }
        assert!(Instant::now() < deadline, "{members:#?}");
    }
}

/// Takes checkpoints until one covers all rows; then drains the job and compares its output with the batch computation.
async fn ends_exactly(cluster: &Cluster, job: &str, rows: &[Value]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        job_in_state(cluster, job, JobState::Running).await;
        let ran = cluster.weir(&["--json", "checkpoint", job]);
        let taken: Option<Value> = serde_json::from_str(&ran.stdout).ok().filter(|_| ran.code == 0);
        if taken.is_some_and(|checkpoint| rows_covered(&checkpoint) == rows.len() as u64) {
            break;
        }
        assert!(Instant::now() < deadline, "no checkpoint covers the input: {}", ran.stderr);
    }
    let stopped = Instant::now() + DEADLINE;
    // One that was stopped while its leader was lost is stopped all the same.
    while !matches!(cluster.weir(&["stop", "--drain", job]).code, 0 | 8) {
        assert!(Instant::now() < stopped, "the job is not stopped");
    }
    job_in_state(cluster, job, JobState::Stopped).await;
    assert_eq!(fold(&read(cluster, "test/out"), "sensor"), tumble(rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_the_leading_jobmanager_is_killed_and_another_when_it_is_asked_to_end() {
    let mut cluster = Cluster::start_group(3, 2, 2);
    let rows = readings(0, 3 * ROWS);
    let (first, rest) = rows.split_at(ROWS as usize);
    let (second, third) = rest.split_at(ROWS as usize);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("1 s"), &["-p", "2"]);
    job_in_state(&cluster, &job, JobState::Running).await;
    asked(&cluster, &["checkpoint", &job]);

    let killed = leader(&cluster);
    cluster.kill(&killed);
    append(&cluster, "test/in", second);
    job_in_state(&cluster, &job, JobState::Running).await;
    assert_ne!(leader(&cluster), killed);
    cluster.restart(&killed);
    is_whole(&cluster);

    let asked = leader(&cluster);
    assert_eq!(cluster.terminate(&asked), Some(0));
    assert_ne!(leader(&cluster), asked);
    append(&cluster, "test/in", third);
    cluster.restart(&asked);
    is_whole(&cluster);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobmanagers_killed_in_turn_lose_and_double_nothing_that_was_promised() {
    let mut cluster = Cluster::start_group(3, 1, 2);
    let rows = readings(0, ROWS);
    append(&cluster, "test/in", &rows);
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "1"]);
    job_in_state(&cluster, &job, JobState::Running).await;
    let mut savepoints = Vec::new();
    for round in 1..=4_u64 {
        job_in_state(&cluster, &job, JobState::Running).await;
        let name = format!("round-{round}");
        savepoints.push(asked(&cluster, &["savepoint", &job, "--name", &name])["id"].clone());
        // The leader every other time, else one in turn.
        let victim = if round % 2 == 0 { leader(&cluster) } else { format!("jobmanager-{}", 1 + round % 3) };
        cluster.kill(&victim);
        let limit = (100 + round).to_string();
        asked(&cluster, &["quota", "set", "cluster", "--savepoints", &limit]);
        cluster.restart(&victim);
        is_whole(&cluster);
        let quotas = asked(&cluster, &["quota", "show", "cluster"]).to_string();
        assert!(quotas.contains(&limit), "{quotas}");
    }
    let listed = asked(&cluster, &["snapshots", "list", "--savepoints"]);
    let listed = listed.as_array().expect("a list");
    for promised in &savepoints {
        let found: Vec<&Value> = listed.iter().filter(|entry| entry["id"] == *promised).collect();
        assert_eq!(found.len(), 1, "{promised} in {listed:#?}");
        assert_eq!(found[0]["state"], "COMPLETED", "{}", found[0]);
    }
    let jobs = asked(&cluster, &["list", "--all"]);
    assert_eq!(jobs.as_array().expect("a list").len(), 1, "{jobs}");
    ends_exactly(&cluster, &job, &rows).await;
}
