//! What runs while hosts fail: a windowed aggregate that is fed in steps, and a client that takes savepoints, labels them
//! and changes quotas.

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_integration_tests::cluster::Ran;
use weir_integration_tests::hosts::Hosts;
use weir_integration_tests::workload::{PARTITIONS, lines, readings, rows_covered, totals_script};

/// Rows that are appended at a time.
const ROWS: u64 = 1_000;
/// How long a healed cluster may take until its job has gone on and a checkpoint covers all of its input.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Exit codes that a request may end with while hosts fail: what it asked may be asked again.
const EXCUSED: [i32; 5] = [8, 16, 17, 18, 22];

/// The work, and what has been acknowledged of it.
pub(crate) struct Work {
    /// The job.
    pub(crate) job: String,
    /// All rows that the job is to read.
    pub(crate) rows: Vec<Value>,
    /// Ids of savepoints that the cluster has said are there.
    pub(crate) savepoints: Vec<String>,
    /// The last limit that the cluster has accepted, and one that it may have accepted since.
    pub(crate) limit: (Option<u64>, Option<u64>),
    asked: u64,
}

impl Work {
    /// Submits the job, which has read its first rows when this returns.
    pub(crate) async fn start(hosts: &Hosts) -> Self {
        let mut work =
            Self { job: String::new(), rows: Vec::new(), savepoints: Vec::new(), limit: (None, None), asked: 0 };
        work.feed(hosts).await;
        let exactly_once = "'sink.partitions' = '2', 'sink.delivery-guarantee' = 'exactly-once'";
        let script = totals_script("500 ms").replace("'sink.partitions' = '2'", exactly_once);
        let script = hosts.write("job.sql", &script);
        let submitted = hosts.weir_json(&["run", "-d", "-p", "2", &script]).await;
        work.job = submitted["id"].as_str().expect("a job id").to_owned();
        work.goes_on(hosts).await;
        work
    }

    /// Appends the next rows; waits for the store, if it is away.
    pub(crate) async fn feed(&mut self, hosts: &Hosts) {
        let next = readings(self.rows.len() as u64, ROWS);
        let file = hosts.write("rows.jsonl", &lines(&next));
        let deadline = Instant::now() + RECOVERY_MAX;
        loop {
            let ran =
                hosts.weir(&["stream", "append", "test/in", &file, "--create", PARTITIONS, "--key", "sensor"]).await;
            // The store did not answer at all, so that nothing has been appended.
            if ran.code == 17 && ran.stderr.contains("no stream store answers") && Instant::now() < deadline {
                continue;
            }
            assert_eq!(ran.code, 0, "rows are appended: {}", ran.stderr);
            break;
        }
        self.rows.extend(next);
    }

    /// Asks for a savepoint, labels it, and sets a limit; whatever the cluster acknowledges must hold afterwards.
    pub(crate) async fn ask(&mut self, hosts: &Hosts) {
        self.asked += 1;
        let name = format!("asked-{}", self.asked);
        let ran = hosts.weir(&["--json", "savepoint", &self.job, "--name", &name]).await;
        if let Some(taken) = acknowledged(&ran) {
            let id = taken["id"].as_str().expect("an id").to_owned();
            hosts.weir(&["snapshots", "label", &id, &format!("asked={}", self.asked)]).await;
            self.savepoints.push(id);
        }
        let limit = 1_000 + self.asked;
        let ran = hosts.weir(&["quota", "set", "cluster", "--savepoints", &limit.to_string()]).await;
        self.limit = match ran.code {
            0 => (Some(limit), None),
            code => {
                assert!(EXCUSED.contains(&code), "{}", ran.stderr);
                (self.limit.0, Some(limit))
            }
        };
    }

    /// Waits until the job runs and a checkpoint covers all rows; how long that took.
    pub(crate) async fn goes_on(&self, hosts: &Hosts) -> Duration {
        let begun = Instant::now();
        loop {
            // It fails while the job restarts.
            let ran = hosts.weir(&["--json", "checkpoint", &self.job]).await;
            if acknowledged(&ran).is_some_and(|checkpoint| rows_covered(&checkpoint) == self.rows.len() as u64) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < RECOVERY_MAX, "the job does not go on: {} {}", ran.stdout, ran.stderr);
        }
    }
}

/// What a command printed that has been done; none, if it failed for a reason that is excused.
fn acknowledged(ran: &Ran) -> Option<Value> {
    if ran.code == 0 {
        return Some(serde_json::from_str(&ran.stdout).expect("JSON"));
    }
    assert!(EXCUSED.contains(&ran.code), "exit code {}: {}", ran.code, ran.stderr);
    None
}
