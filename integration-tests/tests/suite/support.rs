//! Input and scripts that several tests use.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::{job_in_state, job_until};
pub(crate) use weir_integration_tests::workload::{PARTITIONS, lines, readings, rows_covered, totals_script};
use weir_proto::pb::client::v1::{JobDetail, JobState};

/// A reading of each of these sensors, all of them on one day.
pub(crate) fn of_sensors(sensors: impl Iterator<Item = u64>) -> Vec<Value> {
    let reading =
        |sensor| json!({"sensor": format!("s{sensor}"), "reading": sensor % 100, "at": "2026-01-01T00:00:00.000Z"});
    sensors.map(reading).collect()
}

/// The same as [`totals_script`] for each day: state grows with the sensors, and a reading changes little of it.
pub(crate) fn growing_script() -> String {
    totals_script("1 h").replace("INTERVAL '1' SECOND)", "INTERVAL '1' DAY)")
}

/// Appends rows to a stream through the command line, creating it if need be.
pub(crate) fn append(cluster: &Cluster, stream: &str, rows: &[Value]) {
    let file = cluster.write("rows.jsonl", &lines(rows));
    let ran = cluster.weir(&["stream", "append", stream, &file, "--create", PARTITIONS, "--key", "sensor"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

/// All records of a stream, as JSON.
pub(crate) fn read(cluster: &Cluster, stream: &str) -> Vec<Value> {
    let ran = cluster.weir(&["stream", "read", stream]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
}

/// Submits a script; the job's id.
pub(crate) fn submit(cluster: &Cluster, script: &str, arguments: &[&str]) -> String {
    let file = cluster.write("job.sql", script);
    let all: Vec<&str> = ["run", "-d"].iter().chain(arguments).copied().chain([file.as_str()]).collect();
    cluster.weir_json(&all)["id"].as_str().expect("a job id").to_owned()
}

/// Waits until the job runs and has read `rows` rows in its present attempt.
pub(crate) async fn has_read(cluster: &Cluster, job: &str, rows: u64) {
    job_until(cluster, job, &format!("{rows} rows read"), |detail| {
        detail.rows_in >= rows && detail.summary.as_ref().is_some_and(|job| job.state() == JobState::Running)
    })
    .await;
}

/// Waits until the job runs, in this very attempt, and the JobManager that leads has heard from all of its subtasks.
pub(crate) async fn goes_on(cluster: &Cluster, job: &str, attempt: u32) -> JobDetail {
    let detail = job_until(cluster, job, "adopted", |detail| {
        let summary = detail.summary.as_ref();
        let newer = summary.is_some_and(|job| job.attempt != attempt);
        let runs = summary.is_some_and(|job| job.state() == JobState::Running) && detail.waiting_for.is_empty();
        newer || runs
    })
    .await;
    assert_eq!(detail.summary.as_ref().map(|job| job.attempt), Some(attempt), "it was restarted: {detail:#?}");
    detail
}

/// Waits until the job runs in an attempt that is newer than `before`; that attempt.
pub(crate) async fn runs_after(cluster: &Cluster, job: &str, before: u32) -> u32 {
    let detail = job_until(cluster, job, &format!("running in an attempt after {before}"), |detail| {
        let summary = detail.summary.as_ref();
        summary.is_some_and(|job| job.state() == JobState::Running && job.attempt > before)
    })
    .await;
    detail.summary.map_or(0, |job| job.attempt)
}

/// Drains and stops the job, as soon as it runs.
pub(crate) async fn drain(cluster: &Cluster, job: &str) -> Value {
    job_in_state(cluster, job, JobState::Running).await;
    let savepoint = cluster.weir_json(&["stop", "--drain", job]);
    job_in_state(cluster, job, JobState::Stopped).await;
    savepoint
}

/// Copies a snapshot's directory, whose files all lie in it.
pub(crate) fn copy(from: &str, to: &str) {
    std::fs::create_dir(to).expect("a directory");
    for file in std::fs::read_dir(from).expect("a directory").flatten() {
        std::fs::copy(file.path(), Path::new(to).join(file.file_name())).expect("a copy");
    }
}

/// The manifest of a snapshot.
pub(crate) fn manifest_of(snapshot: &Value) -> PathBuf {
    Path::new(snapshot["directory"].as_str().expect("a directory")).join("manifest.json")
}

/// The state files of a snapshot that another one does not share.
pub(crate) fn own_files(cluster: &Cluster, snapshot: &Value, without: Option<&Value>) -> Vec<PathBuf> {
    let files = |snapshot: &Value| -> Vec<PathBuf> {
        let directory = snapshot["directory"].as_str().expect("a directory");
        let files = cluster.weir_json(&["snapshots", "query", directory, "SELECT path FROM snapshot.files"]);
        let paths = files.as_array().expect("rows").iter().map(|row| row["path"].as_str().expect("a path").to_owned());
        paths.map(|path| std::fs::canonicalize(Path::new(directory).join(path)).expect("a state file")).collect()
    };
    let shared = without.map(files).unwrap_or_default();
    let own: Vec<PathBuf> = files(snapshot).into_iter().filter(|file| !shared.contains(file)).collect();
    assert!(!own.is_empty(), "the snapshot has no file of its own");
    own
}

/// The value of a metric without labels; none, if it has not been recorded.
pub(crate) async fn metric(cluster: &Cluster, process: &str, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(cluster.http_address(process)).await.expect("a listener");
    let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("a connection");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("a page");
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// What may happen to files.
pub(crate) mod damage {
    use std::path::Path;

    /// Flips a bit in the middle; the file's name.
    pub(crate) fn flip(file: &Path) -> String {
        let mut bytes = std::fs::read(file).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).expect("a writable file");
        file.file_name().expect("a name").to_str().expect("UTF-8").to_owned()
    }

    /// Leaves only the first half.
    pub(crate) fn tear(file: &Path) {
        let bytes = std::fs::read(file).expect("a file");
        std::fs::write(file, &bytes[..bytes.len() / 2]).expect("a writable file");
    }

    /// Takes the last byte away.
    pub(crate) fn cut(file: &Path) {
        let bytes = std::fs::read(file).expect("a file");
        std::fs::write(file, &bytes[..bytes.len() - 1]).expect("a writable file");
    }
}
