//! Savepoints: taken, resumed at other parallelisms, copied, damaged, disposed of.

use std::path::Path;

use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::client_client::ClientClient;
use weir_types::group::GroupLimits;

use crate::support::{append, drain, has_read, read, readings, rows_covered, submit, totals_script};

/// Runs over the first half at one parallelism, stops with a savepoint, and resumes on the rest at another.
async fn resumes_exactly(before: &str, after: &str) {
    let cluster = Cluster::start(2, 2);
    let rows = readings(0, 12_000);
    append(&cluster, "test/in", &rows[..6_000]);
    let job = submit(&cluster, &totals_script("1 s"), &["-p", before]);
    has_read(&cluster, &job, 6_000).await;
    let savepoint = cluster.weir_json(&["stop", "--savepoint-path", &cluster.path("mine"), &job]);
    assert_eq!(rows_covered(&savepoint), 6_000);
    append(&cluster, "test/in", &rows[6_000..]);
    let directory = savepoint["directory"].as_str().expect("a directory");
    let resumed = submit(&cluster, &totals_script("1 s"), &["-p", after, "-s", directory]);
    has_read(&cluster, &resumed, 6_000).await;
    drain(&cluster, &resumed).await;
    let written = read(&cluster, "test/out");
    let expected = tumble(&rows, "sensor", "at", "reading", 1000);
    assert_eq!(written.len(), expected.len(), "a window was written twice");
    assert_eq!(fold(&written, "sensor"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_resumes_at_a_larger_parallelism() {
    resumes_exactly("1", "4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_resumes_at_a_smaller_parallelism() {
    resumes_exactly("3", "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_of_a_job_that_was_submitted_a_moment_ago_waits_until_it_runs() {
    let mut cluster = Cluster::start(0, 0);
    append(&cluster, "test/in", &readings(0, 10));
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "2"]);
    let mut savepoint = cluster.weir_in_background(&["savepoint", &job]);
    cluster.add_task_manager("tm-1", 2);
    assert!(savepoint.wait().expect("a child of this process").success());
    let next = submit(&cluster, &totals_script("1 h").replace("test/out", "test/other"), &[]);
    cluster.weir_json(&["cancel", &job]);
    assert_eq!(cluster.weir_json(&["stop", &next])["state"], "COMPLETED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_taken_while_the_job_goes_on_can_be_moved_and_resumed() {
    let cluster = Cluster::start(1, 2);
    let rows = readings(0, 4_000);
    append(&cluster, "test/in", &rows);
    let job = submit(&cluster, &totals_script("1 s"), &["-p", "2"]);
    has_read(&cluster, &job, 4_000).await;
    let savepoint = cluster.weir_json(&["savepoint", &job, &cluster.path("mine")]);
    cluster.weir_json(&["cancel", &job]);
    let moved = cluster.path("moved");
    std::fs::rename(savepoint["directory"].as_str().expect("a directory"), &moved).expect("a movable directory");
    let resumed = submit(&cluster, &totals_script("1 s"), &["-s", &moved]);
    has_read(&cluster, &resumed, 0).await;
    drain(&cluster, &resumed).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disposed_savepoint_is_gone_from_the_list_and_from_disk() {
    let cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 1_000));
    // A periodic checkpoint would take the savepoint's place as what the job restarts from.
    let job = submit(&cluster, &totals_script("1 h"), &[]);
    has_read(&cluster, &job, 1_000).await;
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    let (id, directory) = (savepoint["id"].as_str().expect("an id"), savepoint["directory"].as_str().expect("a path"));
    assert!(Path::new(directory).is_dir());
    let needed = cluster.weir(&["savepoint", "-d", id]);
    assert_eq!(needed.code, 8, "the job would restart from its newest snapshot: {}", needed.stderr);
    assert!(needed.stderr.contains(&job), "the holder is named: {}", needed.stderr);
    assert!(Path::new(directory).is_dir());
    cluster.weir_json(&["checkpoint", &job]);
    let disposed = cluster.weir_json(&["savepoint", "-d", id]);
    assert_eq!(disposed["bytes_freed"], savepoint["bytes"]);
    assert!(!Path::new(directory).exists());
    assert_eq!(cluster.weir_json(&["snapshots", "list", "--savepoints"]), serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_are_held_by_their_pins_and_as_many_are_kept_as_anybody_wants() {
    let cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 500));
    let job = submit(&cluster, &totals_script("1 h"), &[]);
    has_read(&cluster, &job, 500).await;
    let mut client = ClientClient::connect(format!("http://{}", cluster.address("jobmanager"))).await.expect("an API");
    let mut taken = Vec::new();
    for _ in 0..=GroupLimits::default().max_retained_checkpoints {
        let request = pb::TriggerSnapshotRequest { job: job.clone(), savepoint: true, ..Default::default() };
        let savepoint = client.trigger_snapshot(request).await.expect("a savepoint").into_inner();
        assert_eq!(savepoint.state, "COMPLETED");
        taken.push(savepoint.id);
    }
    // The first one's pin still holds its cut.
    append(&cluster, "test/in", &readings(500, 500));
    has_read(&cluster, &job, 1_000).await;
    let last = cluster.weir_json(&["checkpoint", &job]);
    let split = last["sources"].as_array().expect("sources").iter().find(|source| source["split"] == "p-0");
    let before = format!("0={}", split.expect("partition 0")["offset"]);
    let refused = cluster.weir(&["stream", "truncate", "test/in", "--before", &before]);
    assert_eq!(refused.code, 8, "{}", refused.stderr);
    assert!(refused.stderr.contains(&taken[0]), "the holder is named: {}", refused.stderr);
}
