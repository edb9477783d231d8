//! The real, out-of-order commit history, where it is present: changed files per repository and week.

use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::oracle::{fold, tumble};

use crate::support::{drain, has_read, read, submit};

const WEEK_MS: i64 = 7 * 24 * 3600 * 1000;

const SCRIPT: &str = "
CREATE TABLE late (repo STRING, authored_at TIMESTAMP(3))
WITH ('connector' = 'stream-store', 'stream' = 'test/late', 'format' = 'json');
CREATE TABLE commits (repo STRING, author STRING, dir STRING, ext STRING, authored_at TIMESTAMP(3),
    WATERMARK FOR authored_at AS authored_at - INTERVAL '30' DAY)
WITH ('connector' = 'stream-store', 'stream' = 'test/commits', 'format' = 'json', 'late-rows.table' = 'late');
CREATE TABLE weekly (repo STRING, window_start TIMESTAMP(3), n BIGINT)
WITH ('connector' = 'stream-store', 'stream' = 'test/weekly', 'format' = 'json');
INSERT INTO weekly SELECT repo, window_start, COUNT(*)
FROM TABLE(TUMBLE(TABLE commits, DESCRIPTOR(authored_at), INTERVAL '7' DAY))
GROUP BY repo, window_start, window_end;";

/// The file, in `../shared/data` beside the checkout.
fn file() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/commits.jsonl.gz");
    root.is_file().then_some(root)
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_per_repository_and_week_equal_the_batch_computation_less_the_late_rows() {
    let Some(path) = file() else {
        eprintln!("skipped: the real data is not present");
        return;
    };
    let mut text = String::new();
    let compressed = std::fs::File::open(&path).expect("a readable file");
    flate2::read::GzDecoder::new(compressed).read_to_string(&mut text).expect("gzip");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();

    let cluster = Cluster::start(2, 1);
    let path = path.to_str().expect("UTF-8");
    let ran = cluster.weir(&["stream", "append", "test/commits", path, "--create", "4", "--key", "repo"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let job = submit(&cluster, SCRIPT, &["-p", "2"]);
    has_read(&cluster, &job, rows.len() as u64).await;
    drain(&cluster, &job).await;

    let late = read(&cluster, "test/late");
    assert!(!late.is_empty(), "months-old commits are behind a watermark of 30 days");
    let mut expected = tumble(&rows, "repo", "authored_at", "none", WEEK_MS);
    for (window, (n, _)) in tumble(&late, "repo", "authored_at", "none", WEEK_MS) {
        expected.get_mut(&window).expect("late rows are input rows").0 -= n;
    }
    expected.retain(|_, (n, _)| *n > 0);
    let written = read(&cluster, "test/weekly");
    assert_eq!(written.len(), expected.len(), "a window was written twice");
    assert_eq!(fold(&written, "repo"), expected);
}
