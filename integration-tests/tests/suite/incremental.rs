//! Incremental checkpoints: what they take follows what has changed, they are restored at any parallelism, read by every
//! command, and nothing of them is left.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{job_in_state, job_until};
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::chaos::leaves_nothing;
use crate::support::{append, drain, growing_script, has_read, of_sensors, read, rows_covered, submit};
use crate::usage::settles;

/// Takes a checkpoint; what it has written.
fn checkpoint(cluster: &Cluster, job: &str) -> (Value, u64) {
    let taken = cluster.weir_json(&["checkpoint", job]);
    let subtasks = taken["timings"].as_array().expect("timings");
    let written = subtasks.iter().map(|subtask| subtask["bytes"].as_u64().expect("bytes")).sum();
    (taken, written)
}

/// The files that a checkpoint's manifest names, by their paths.
fn files(checkpoint: &Value) -> BTreeSet<String> {
    let path = Path::new(checkpoint["directory"].as_str().expect("a directory")).join("manifest.json");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(path).expect("a manifest")).expect("a manifest is JSON");
    let operators = manifest["content"]["manifest"]["operators"].as_array().expect("operators");
    let files = operators.iter().flat_map(|operator| operator["files"].as_array().expect("files"));
    files.map(|file| file["path"].as_str().expect("a path").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_checkpoint_follow_what_has_changed() {
    let cluster = Cluster::start(2, 1);
    let mut rows = of_sensors(0..20_000);
    append(&cluster, "test/in", &rows);
    let job = submit(&cluster, &growing_script(), &["-p", "2"]);
    has_read(&cluster, &job, 20_000).await;
    let (whole, whole_bytes) = checkpoint(&cluster, &job);
    // It is gone as soon as the next one is complete; its files are not.
    let whole = files(&whole);
    let changed = of_sensors(0..200);
    append(&cluster, "test/in", &changed);
    rows.extend(changed);
    has_read(&cluster, &job, 20_200).await;
    let (increment, increment_bytes) = checkpoint(&cluster, &job);
    assert!(increment_bytes * 8 < whole_bytes, "{increment_bytes} of {whole_bytes}");
    assert!(whole.iter().all(|path| path.starts_with("../shared/")), "{whole:?}");
    assert!(files(&increment).is_superset(&whole), "{:?} {whole:?}", files(&increment));
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    assert!(files(&savepoint).iter().all(|path| !path.contains('/')), "{:?}", files(&savepoint));
    assert!(savepoint["bytes"].as_u64().expect("bytes") * 2 > whole_bytes);
    settles(&cluster).await;

    // Every command reads the merged view, which is that of the savepoint.
    let id = increment["id"].as_str().expect("an id");
    let query = "SELECT COUNT(*) AS k, SUM(count) AS n, SUM(sum_reading) AS total FROM groups";
    let ask =
        |snapshot: &Value| cluster.weir_json(&["snapshots", "query", snapshot["id"].as_str().expect("an id"), query]);
    let total: u64 = rows.iter().map(|row| row["reading"].as_u64().expect("a number")).sum();
    assert_eq!(ask(&increment), serde_json::json!([{"k": 20_000, "n": 20_200, "total": total}]));
    assert_eq!(ask(&savepoint), ask(&increment));
    let directory = increment["directory"].as_str().expect("a directory");
    let inspected = cluster.weir_json(&["snapshots", "inspect", directory]);
    let tables = inspected["operators"].as_array().expect("operators").iter().flat_map(|it| it["tables"].as_array());
    let rows_inside: u64 = tables.flatten().map(|table| table["rows"].as_u64().expect("rows")).sum();
    assert_eq!(rows_inside, 20_000);
    let diff = cluster.weir_json(&["snapshots", "diff", id, savepoint["id"].as_str().expect("an id")]);
    let counts = ["added", "removed", "changed", "unchanged"].map(|name| diff["tables"][0][name].as_u64());
    assert_eq!(counts, [0, 0, 0, 20_000].map(Some), "{diff:#}");
    let to = cluster.path("");
    let exported = cluster.weir_json(&["snapshots", "export", directory, "--format", "parquet", "-o", &to]);
    assert_eq!(exported[0]["rows"], 20_000);
    assert_eq!(cluster.weir(&["snapshots", "verify", id]).code, 0);

    drain(&cluster, &job).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 86_400_000));
    leaves_nothing(&cluster).await;
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_killed_between_incremental_checkpoints_and_rescaled_from_one_gives_the_exact_result() {
    let mut cluster = Cluster::start(3, 1);
    let rows = of_sensors((0..30_000).map(|row| row % 3_000));
    let mut given = 0;
    let mut give = |cluster: &Cluster, rows_more: usize| {
        append(cluster, "test/in", &rows[given..given + rows_more]);
        given += rows_more;
        given
    };
    give(&cluster, 6_000);
    let job = submit(&cluster, &growing_script(), &["-p", "2"]);
    let mut last = Value::Null;
    for victim in ["tm-1", "jobmanager", "tm-2"] {
        for more in [300, 600, 100] {
            let covered = give(&cluster, more) as u64;
            last = covering(&cluster, &job, covered).await;
        }
        assert!(files(&last).len() > 2, "runs of several checkpoints: {:?}", files(&last));
        give(&cluster, 500);
        cluster.kill(victim);
        cluster.restart(victim);
    }
    let covered = give(&cluster, 200) as u64;
    covering(&cluster, &job, covered).await;
    give(&cluster, 100);
    let increment = covering(&cluster, &job, covered + 100).await;
    // What a job leaves that fails is restored by another one, with other key ranges.
    let rescaled = submit(
        &cluster,
        &growing_script().replace("'test/out'", "'test/rescaled'"),
        &["-p", "1", "-s", increment["id"].as_str().expect("an id")],
    );
    has_read(&cluster, &rescaled, 0).await;
    cluster.weir_json(&["cancel", &job]);
    job_in_state(&cluster, &job, JobState::Cancelled).await;
    append(&cluster, "test/in", &rows[(covered + 100) as usize..]);
    covering(&cluster, &rescaled, rows.len() as u64).await;
    drain(&cluster, &rescaled).await;
    let written = fold(&read(&cluster, "test/rescaled"), "sensor");
    assert_eq!(written, tumble(&rows, "sensor", "at", "reading", 86_400_000));
    leaves_nothing(&cluster).await;
    settles(&cluster).await;
}

/// Takes checkpoints until one covers so many rows; that one.
async fn covering(cluster: &Cluster, job: &str, rows: u64) -> Value {
    let taken = async {
        loop {
            job_until(cluster, job, "running", |detail| {
                detail.summary.as_ref().is_some_and(|job| job.state() == JobState::Running)
            })
            .await;
            // It fails if the job restarts meanwhile.
            let ran = cluster.weir(&["--json", "checkpoint", job]);
            let taken = serde_json::from_str::<Value>(&ran.stdout).ok().filter(|_| ran.code == 0);
            if let Some(taken) = taken.filter(|taken| rows_covered(taken) == rows) {
                return taken;
            }
        }
    };
    tokio::time::timeout(DEADLINE, taken).await.expect("a checkpoint covers the input")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_while_shared_files_are_deleted_and_released_leaks_nothing() {
    let mut cluster = Cluster::start_with(1, 1, &["snapshots.writers_timeout_ms=500"]);
    append(&cluster, "test/in", &of_sensors(0..500));
    let job = submit(&cluster, &growing_script(), &["-p", "1"]);
    covering(&cluster, &job, 500).await;
    let mut rows = 500;
    for step in ["delete.entry", "delete.shared"] {
        settles(&cluster).await;
        let reached = cluster.path(step);
        cluster.terminate("jobmanager");
        cluster.restart_with("jobmanager", &[("WEIR_FAIL_POINT", format!("{step}={reached}"))]);
        // All rows change, so that the files of the checkpoint before are nobody's as soon as this one is complete.
        append(&cluster, "test/in", &of_sensors(0..500));
        rows += 500;
        has_read(&cluster, &job, 0).await;
        // Whether one is answered depends on how far the JobManager gets.
        let deadline = Instant::now() + DEADLINE;
        while !Path::new(&reached).exists() {
            cluster.weir(&["checkpoint", &job]);
            assert!(Instant::now() < deadline, "{step} is not reached");
        }
        cluster.ended("jobmanager");
        assert_eq!(std::fs::read_to_string(&reached).expect(step), step, "it was reached");
        cluster.restart("jobmanager");
        covering(&cluster, &job, rows).await;
        settles(&cluster).await;
    }
    cluster.weir_json(&["cancel", &job]);
    job_in_state(&cluster, &job, JobState::Cancelled).await;
    leaves_nothing(&cluster).await;
    assert_eq!(settles(&cluster).await, 0);
}
