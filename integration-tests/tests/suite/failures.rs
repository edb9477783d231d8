//! kill −9 of each role while a job runs: the folded output equals the batch computation.

use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::{checkpoint_after, job_until};
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::{JobDetail, JobState, Snapshot};

use crate::support::{append, drain, read, readings, submit, totals_script};

const ROWS: u64 = 30_000;

/// Runs the job over the first half, lets `fault` happen after a checkpoint, and goes on with the rest.
async fn survives(fault: impl AsyncFnOnce(&mut Cluster)) {
    let mut cluster = Cluster::start(2, 2);
    let rows = readings(0, ROWS);
    let (first, rest) = rows.split_at(rows.len() / 2);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("100 ms"), &["-p", "2"]);
    checkpoint_after(&cluster, &job, 0).await;
    fault(&mut cluster).await;
    append(&cluster, "test/in", rest);
    // The positions of a checkpoint say what was read, whatever was restarted meanwhile.
    job_until(&cluster, &job, "a checkpoint at the end of the input", |detail| {
        is_running(detail)
            && detail.recent_snapshots.iter().any(|snapshot| {
                snapshot.state == "COMPLETED"
                    && snapshot.sources.iter().map(|source| source.offset).sum::<u64>() == ROWS
            })
    })
    .await;
    drain(&cluster, &job).await;
    let written = read(&cluster, "test/out");
    assert_eq!(fold(&written, "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

fn is_running(detail: &JobDetail) -> bool {
    detail.summary.as_ref().is_some_and(|job| job.state() == JobState::Running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_task_manager_costs_a_restart_on_the_remaining_slots() {
    survives(async |cluster| cluster.kill("tm-1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_slots_and_goes_on_when_a_new_task_manager_joins() {
    survives(async |cluster| {
        cluster.kill("tm-1");
        cluster.kill("tm-2");
        cluster.add_task_manager("tm-3", 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_store_comes_back_and_nothing_is_lost() {
    survives(async |cluster| {
        cluster.kill("store");
        cluster.restart("store");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_costs_a_pause_and_neither_an_attempt_nor_a_row() {
    let mut cluster = Cluster::start(2, 2);
    let rows = readings(0, ROWS);
    let (first, rest) = rows.split_at(rows.len() / 2);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("100 ms"), &["-p", "2"]);
    let before = checkpoint_after(&cluster, &job, 0).await;
    cluster.kill("store");
    // Down for long enough that several checkpoints are given up for it, which the job survives.
    let completed = |detail: &JobDetail| detail.recent_snapshots.iter().map(|s| s.triggered_at_ms).max().unwrap_or(0);
    let killed_after = completed(&before);
    job_until(&cluster, &job, "failed checkpoints", |detail| {
        let failed = |s: &&Snapshot| s.state == "FAILED" && s.triggered_at_ms > killed_after;
        detail.recent_snapshots.iter().filter(failed).map(|s| u64::from(s.failures.max(1))).sum::<u64>() >= 3
    })
    .await;
    cluster.restart("store");
    append(&cluster, "test/in", rest);
    let after = job_until(&cluster, &job, "a checkpoint at the end of the input", |detail| {
        is_running(detail)
            && detail.recent_snapshots.iter().any(|snapshot| {
                snapshot.state == "COMPLETED"
                    && snapshot.sources.iter().map(|source| source.offset).sum::<u64>() == ROWS
            })
    })
    .await;
    let attempt = |detail: &JobDetail| detail.summary.as_ref().map(|job| job.attempt);
    assert_eq!(attempt(&after), attempt(&before), "nothing was restarted");
    drain(&cluster, &job).await;
    let written = read(&cluster, "test/out");
    let expected = tumble(&rows, "sensor", "at", "reading", 1000);
    assert_eq!((fold(&written, "sensor"), written.len()), (expected.clone(), expected.len()), "each window once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_jobmanager_comes_back_with_its_jobs() {
    survives(async |cluster| {
        cluster.kill("jobmanager");
        cluster.restart("jobmanager");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_at_once_comes_back() {
    survives(async |cluster| {
        for name in ["tm-1", "tm-2", "jobmanager", "store"] {
            cluster.kill(name);
        }
        for name in ["store", "jobmanager", "tm-1", "tm-2"] {
            cluster.restart(name);
        }
    })
    .await;
}
