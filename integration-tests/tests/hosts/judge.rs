//! The judgement after all faults: results are exact, what was acknowledged is there, snapshots can be restored, and
//! nothing is left that nobody needs.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use weir_integration_tests::cluster::DEADLINE;
use weir_integration_tests::hosts::Hosts;
use weir_integration_tests::oracle::{fold, tumble};

use crate::work::Work;

/// Judges a cluster whose hosts are all well again.
///
/// # Panics
/// If anything is not as it should be.
pub(crate) async fn judge(hosts: &Hosts, work: &Work) {
    acknowledged_savepoints_are_there(hosts, work).await;
    acknowledged_quotas_hold(hosts, work).await;
    let last = drain(hosts, &work.job).await;
    let written = read(hosts, "test/out").await;
    let (folded, expected) = (fold(&written, "sensor"), tumble(&work.rows, "sensor", "at", "reading", 1000));
    assert_eq!(folded, expected);
    assert_eq!(written.len(), expected.len(), "a result was committed twice");
    every_snapshot_is_whole(hosts).await;
    one_is_restored(hosts, &last).await;
    nothing_is_left(hosts).await;
}

async fn snapshots(hosts: &Hosts) -> Vec<Value> {
    hosts.weir_json(&["snapshots", "list"]).await.as_array().expect("a list").clone()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

async fn acknowledged_savepoints_are_there(hosts: &Hosts, work: &Work) {
    let listed = snapshots(hosts).await;
    for id in &work.savepoints {
        let found: Vec<&Value> = listed.iter().filter(|entry| text(entry, "id") == id).collect();
        assert_eq!(found.len(), 1, "{id} in {listed:#?}");
        assert_eq!(text(found[0], "state"), "COMPLETED", "{}", found[0]);
    }
}

async fn acknowledged_quotas_hold(hosts: &Hosts, work: &Work) {
    let quota = hosts.weir_json(&["quota", "show", "cluster"]).await;
    let limit = quota["dimensions"]["savepoints"]["limit"].as_u64();
    let (accepted, perhaps) = work.limit;
    assert!(limit == accepted || (perhaps.is_some() && limit == perhaps), "{limit:?}, not {:?}", work.limit);
}

/// A job's state.
async fn state(hosts: &Hosts, job: &str) -> String {
    text(&hosts.weir_json(&["job", "show", job]).await["job"], "state").to_owned()
}

/// Drains the job, which stops; its last savepoint.
async fn drain(hosts: &Hosts, job: &str) -> Value {
    let savepoint = hosts.weir_json(&["stop", "--drain", job]).await;
    let deadline = Instant::now() + DEADLINE;
    while state(hosts, job).await != "STOPPED" {
        assert!(Instant::now() < deadline, "the job does not stop");
    }
    savepoint
}

/// All committed records of a stream.
async fn read(hosts: &Hosts, stream: &str) -> Vec<Value> {
    let ran = hosts.weir(&["stream", "read", stream]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
}

async fn every_snapshot_is_whole(hosts: &Hosts) {
    for entry in snapshots(hosts).await {
        if text(&entry, "state") == "COMPLETED" {
            let verified = hosts.weir_json(&["snapshots", "verify", text(&entry, "id")]).await;
            assert_eq!(verified["whole"], true, "{verified}");
        }
    }
}

/// Restores a savepoint as another job, which runs, and is cancelled.
async fn one_is_restored(hosts: &Hosts, savepoint: &Value) {
    let restored = hosts.weir_json(&["run", "-d", "-p", "3", "-s", text(savepoint, "id"), "/files/job.sql"]).await;
    let job = text(&restored, "id");
    let deadline = Instant::now() + DEADLINE;
    while state(hosts, job).await != "RUNNING" {
        assert!(Instant::now() < deadline, "the restored job does not run");
    }
    hosts.weir_json(&["cancel", job]).await;
    while state(hosts, job).await != "CANCELLED" {
        assert!(Instant::now() < deadline, "the restored job is not cancelled");
    }
}

/// Waits until usage is what lies on storage and nothing is orphaned: cleaning up goes on after the end of jobs.
async fn nothing_is_left(hosts: &Hosts) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = left_over(hosts).await;
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left over: {left:#?}");
    }
}

async fn left_over(hosts: &Hosts) -> Vec<String> {
    let mut left = Vec::new();
    let before = bytes_below(&hosts.snapshots());
    let quota = hosts.weir_json(&["quota", "show", "cluster"]).await;
    let used = |dimension: &str| quota["dimensions"][dimension]["used"].as_u64().expect("a number");
    if used("in_flight") != 0 {
        left.push(format!("{} snapshots in flight", used("in_flight")));
    }
    if used("bytes") != before {
        left.push(format!("{} bytes charged for {before} on storage", used("bytes")));
    }
    let garbage = hosts.weir_json(&["snapshots", "gc", "--dry-run", "--older-than", "0s"]).await;
    left.extend(garbage.as_array().expect("a list").iter().map(|orphan| format!("orphan {orphan}")));
    let groups = hosts.weir_json(&["group", "list"]).await;
    left.extend(groups.as_array().expect("a list").iter().map(|group| format!("group {}", group["name"])));
    let transactions = hosts.weir_json(&["stream", "transactions", "list", "test/out"]).await;
    left.extend(transactions.as_array().expect("a list").iter().map(|it| format!("transaction {it}")));
    left
}

/// Bytes of all files below a directory.
fn bytes_below(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
