//! What several tests of governed snapshots share: small clusters, jobs without checkpoints of their own, and waiting until
//! what is charged is what lies on storage.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weir_integration_tests::cluster::{Cluster, DEADLINE};

use crate::support::{append, has_read, readings, submit, totals_script};

/// How often to look at what nobody pushes.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A job over all TaskManagers without periodic checkpoints.
pub(crate) async fn running_job(cluster: &Cluster, parallelism: &str) -> String {
    append(cluster, "test/in", &readings(0, 2_000));
    let job = submit(cluster, &totals_script("1 h"), &["-p", parallelism]);
    has_read(cluster, &job, 2_000).await;
    job
}

/// A cluster that does not wait long for writers that are gone.
pub(crate) fn cluster(task_managers: u32, slots: u32) -> Cluster {
    Cluster::start_with(task_managers, slots, &["snapshots.writers_timeout_ms=500"])
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

pub(crate) fn on_storage(cluster: &Cluster) -> u64 {
    ["checkpoints", "savepoints"].iter().map(|root| bytes_below(Path::new(&cluster.path(root)))).sum()
}

/// Used bytes and snapshots in flight.
pub(crate) fn used(cluster: &Cluster) -> (u64, u64) {
    let quota = cluster.weir_json(&["quota", "show", "cluster"]);
    let used = |dimension: &str| quota["dimensions"][dimension]["used"].as_u64().expect("a number");
    (used("bytes"), used("in_flight"))
}

/// Waits until nothing is under way and usage is what lies on storage, byte for byte.
pub(crate) async fn settles(cluster: &Cluster) -> u64 {
    let settled = async {
        loop {
            let (before, (bytes, in_flight), after) = (on_storage(cluster), used(cluster), on_storage(cluster));
            if in_flight == 0 && bytes == before && before == after {
                return bytes;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    let settled = tokio::time::timeout(DEADLINE, settled).await;
    if settled.is_err() {
        eprintln!("{} bytes on storage, used: {:?}", on_storage(cluster), used(cluster));
    }
    settled.expect("usage is what lies on storage")
}

fn log(cluster: &Cluster, node: &str) -> String {
    std::fs::read_to_string(cluster.path(&format!("log/{node}.log"))).unwrap_or_default()
}

/// Waits until all of these nodes have written `text` into their logs.
pub(crate) async fn logged(cluster: &Cluster, nodes: &[&str], text: &str) {
    let all = async {
        while !nodes.iter().all(|node| log(cluster, node).contains(text)) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    if tokio::time::timeout(DEADLINE, all).await.is_err() {
        let missing: Vec<_> = nodes.iter().filter(|node| !log(cluster, node).contains(text)).collect();
        assert!(missing.is_empty(), "{text} is not in the logs of {missing:?}");
    }
}

/// Snapshots as the catalogue lists them.
pub(crate) fn listed(cluster: &Cluster) -> Vec<Value> {
    cluster.weir_json(&["snapshots", "list"]).as_array().expect("a list").clone()
}

/// Waits until a snapshot of this state is listed; the snapshot.
pub(crate) async fn listed_as(cluster: &Cluster, state: &str) -> Value {
    let found = async {
        loop {
            if let Some(found) = listed(cluster).into_iter().find(|snapshot| snapshot["state"] == state) {
                return found;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, found).await;
    if found.is_err() {
        eprintln!("{:?}", listed(cluster));
    }
    found.expect("one is in this state")
}
