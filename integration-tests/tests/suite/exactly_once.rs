//! Output that is committed with snapshots: whoever is killed, and wherever in the protocol, committed readers see exactly
//! what a batch program computes. Rows are compared one by one: nothing is folded, and nothing may be there twice.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{checkpoint_after, job_in_state, job_until};
use weir_integration_tests::oracle::{Windows, fold, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, drain, goes_on, has_read, read, readings, submit, totals_script};
use crate::usage;

/// Rows that are there before the first step, and that each step adds.
const ROWS: u64 = 1_000;

/// The totals, exactly once.
fn exact_script(checkpoint_interval: &str) -> String {
    let plain = "'sink.partitions' = '2'";
    let script = totals_script(checkpoint_interval);
    assert!(script.contains(plain));
    script.replace(plain, "'sink.partitions' = '2', 'sink.delivery-guarantee' = 'exactly-once'")
}

/// The windows of these rows, each of which must be there once.
fn each_once(rows: &[Value]) -> Windows {
    let windows = fold(rows, "sensor");
    assert_eq!(windows.len(), rows.len(), "a window was written twice");
    windows
}

fn expected(rows: &[Value]) -> Windows {
    tumble(rows, "sensor", "at", "reading", 1000)
}

/// A job whose processes end at fail points, and its input so far.
struct Steps {
    cluster: Cluster,
    job: String,
    rows: Vec<Value>,
    /// The newest attempt that was seen running.
    attempt: u32,
}

impl Steps {
    async fn start(checkpoint_interval: &str) -> Self {
        let cluster = usage::cluster(2, 1);
        let rows = readings(0, ROWS);
        append(&cluster, "test/in", &rows);
        let job = submit(&cluster, &exact_script(checkpoint_interval), &["-p", "2"]);
        has_read(&cluster, &job, ROWS).await;
        Self { cluster, job, rows, attempt: 1 }
    }

    /// Waits until a newer attempt runs.
    async fn runs_again(&mut self) {
        let before = self.attempt;
        let detail = job_until(&self.cluster, &self.job, "a newer attempt", |detail| {
            let summary = detail.summary.as_ref();
            summary.is_some_and(|job| job.state() == JobState::Running && job.attempt > before)
        })
        .await;
        self.attempt = detail.summary.map_or(before, |job| job.attempt);
    }

    /// Restarts a process so that it ends at the fail point `step`; the file that proves it.
    fn arm(&mut self, process: &str, step: &str) -> String {
        let proof = self.cluster.path(step);
        self.cluster.terminate(process);
        self.cluster.restart_with(process, &[("WEIR_FAIL_POINT", format!("{step}={proof}"))]);
        proof
    }

    /// Waits for the end of a process at the fail point, and starts it again without one.
    fn killed_at(&mut self, process: &str, step: &str, proof: &str) {
        self.cluster.ended(process);
        assert_eq!(std::fs::read_to_string(proof).expect(step), step, "it was reached");
        self.cluster.restart(process);
    }

    fn append_more(&mut self) {
        let more = readings(self.rows.len() as u64, ROWS);
        append(&self.cluster, "test/in", &more);
        self.rows.extend(more);
    }

    /// What is committed is a part of what is expected, and nothing of it is there twice.
    fn check(&self, step: &str) -> usize {
        let committed = each_once(&read(&self.cluster, "test/out"));
        let expected = expected(&self.rows);
        for (window, totals) in &committed {
            assert_eq!(expected.get(window), Some(totals), "{step}: {window:?}");
        }
        committed.len()
    }

    async fn ends_exactly(self) {
        drain(&self.cluster, &self.job).await;
        assert_eq!(each_once(&read(&self.cluster, "test/out")), expected(&self.rows));
        nothing_undecided(&self.cluster);
    }
}

/// Nobody has left a transaction behind.
fn nothing_undecided(cluster: &Cluster) {
    let left = cluster.weir_json(&["stream", "transactions", "list", "test/out"]);
    let undecided = left.as_array().expect("a list").iter().filter(|info| info["state"].is_string());
    assert_eq!(undecided.count(), 0, "{left:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_commits_once_what_was_completed() {
    let mut steps = Steps::start("1 h").await;
    let mut committed = 0;
    for (step, completes) in [
        ("snapshot.barriers", false),
        ("snapshot.acknowledged", false),
        ("snapshot.published", true),
        ("snapshot.completed", true),
        ("output.due", true),
        ("output.settled", true),
        ("output.discharged", true),
    ] {
        let proof = steps.arm("jobmanager", step);
        goes_on(&steps.cluster, &steps.job, steps.attempt).await;
        steps.append_more();
        has_read(&steps.cluster, &steps.job, steps.rows.len() as u64).await;
        let mut asked = steps.cluster.weir_in_background(&["savepoint", &steps.job]);
        steps.killed_at("jobmanager", step, &proof);
        asked.wait().expect("a child");
        goes_on(&steps.cluster, &steps.job, steps.attempt).await;
        if completes {
            let shown = async {
                while steps.check(step) == committed {
                    tokio::time::sleep(usage::LOOK_INTERVAL).await;
                }
            };
            tokio::time::timeout(DEADLINE, shown).await.expect(step);
            committed = steps.check(step);
        }
        assert_eq!(steps.check(step), committed, "{step}");
    }
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_while_it_rolls_back_does_so_again() {
    let mut steps = Steps::start("1 h").await;
    steps.cluster.weir_json(&["savepoint", &steps.job]);
    steps.append_more();
    has_read(&steps.cluster, &steps.job, 2 * ROWS).await;
    let proof = steps.arm("jobmanager", "output.rollback");
    goes_on(&steps.cluster, &steps.job, steps.attempt).await;
    steps.cluster.kill("tm-1");
    steps.cluster.restart("tm-1");
    steps.killed_at("jobmanager", "output.rollback", &proof);
    steps.runs_again().await;
    assert!(steps.check("output.rollback") > 0);
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_manager_or_store_killed_with_prepared_output_costs_and_doubles_nothing() {
    let mut steps = Steps::start("1 h").await;
    for (process, step) in [("tm-1", "sink.prepared"), ("store", "store.prepared"), ("store", "store.decided")] {
        // A savepoint of the step before may still be under way: the process may end as soon as it is there.
        steps.append_more();
        let proof = steps.arm(process, step);
        if process == "tm-1" {
            steps.runs_again().await;
        }
        let asked = async {
            // One that comes before there is output completes, and the next one is asked for.
            while !Path::new(&proof).exists() {
                let mut asked = steps.cluster.weir_in_background(&["savepoint", &steps.job]);
                while !Path::new(&proof).exists() && asked.try_wait().expect("a child").is_none() {
                    tokio::time::sleep(usage::LOOK_INTERVAL).await;
                }
                let _ended = asked.kill();
                asked.wait().expect("a child");
            }
        };
        tokio::time::timeout(DEADLINE, asked).await.expect(step);
        steps.killed_at(process, step, &proof);
        if process == "tm-1" {
            steps.runs_again().await;
        }
        steps.check(step);
    }
    job_in_state(&steps.cluster, &steps.job, JobState::Running).await;
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_killed_in_turn_under_periodic_checkpoints_and_a_store_that_is_away_for_long() {
    let mut steps = Steps::start("200 ms").await;
    for process in ["tm-1", "jobmanager", "tm-2", "store"] {
        steps.append_more();
        steps.cluster.kill(process);
        if process == "store" {
            // Long enough for checkpoints to be asked for, and to fail.
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        steps.cluster.restart(process);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        checkpoint_after(&steps.cluster, &steps.job, now.as_millis() as u64).await;
        steps.check(process);
    }
    steps.ends_exactly().await;
}

/// A bounded job over one input with a stream and a directory behind it, without checkpoints.
fn bounded_script(cluster: &Cluster) -> String {
    let bounded = "'stream' = 'test/in', 'scan.bounded.mode' = 'latest'";
    let script = exact_script("1 h").replace("'stream' = 'test/in'", bounded);
    let files = format!(
        "CREATE TABLE files (sensor STRING, reading BIGINT) \
         WITH ('connector' = 'filesystem', 'format' = 'json', 'path' = '{}');\n\
         INSERT INTO totals",
        cluster.path("out")
    );
    let script = script.replace("INSERT INTO totals", &files);
    format!("{script}\nINSERT INTO files SELECT sensor, reading FROM readings;")
}

/// The rows of all files that are visible.
fn files(cluster: &Cluster) -> Vec<Value> {
    let Ok(entries) = std::fs::read_dir(cluster.path("out")) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").path());
    let visible = names.filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
    let text: String = visible.map(|path| std::fs::read_to_string(path).expect("a file")).collect();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
}

fn sorted(rows: &[Value]) -> Vec<String> {
    let mut texts: Vec<String> = rows.iter().map(|row| format!("{} {}", row["sensor"], row["reading"])).collect();
    texts.sort();
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_job_ends_finished_with_all_of_its_output_whoever_is_killed_at_its_end() {
    for (process, step) in [
        ("", ""),
        ("tm-1", "subtask.finished"),
        ("jobmanager", "output.due"),
        ("jobmanager", "output.settled"),
        ("jobmanager", "output.discharged"),
    ] {
        let mut cluster = Cluster::start(2, 1);
        let rows = readings(0, 2 * ROWS);
        append(&cluster, "test/in", &rows);
        let proof = cluster.path("proof");
        if !process.is_empty() {
            cluster.terminate(process);
            cluster.restart_with(process, &[("WEIR_FAIL_POINT", format!("{step}={proof}"))]);
        }
        let job = submit(&cluster, &bounded_script(&cluster), &["-p", "2"]);
        if !process.is_empty() {
            cluster.ended(process);
            assert_eq!(std::fs::read_to_string(&proof).expect(step), step, "it was reached");
            cluster.restart(process);
        }
        job_in_state(&cluster, &job, JobState::Finished).await;
        assert_eq!(each_once(&read(&cluster, "test/out")), expected(&rows), "{step}");
        assert_eq!(sorted(&files(&cluster)), sorted(&rows), "{step}");
        nothing_undecided(&cluster);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_job_goes_on_with_another_parallelism_and_repeats_its_output_only_if_it_may() {
    let mut steps = Steps::start("1 h").await;
    let early = steps.cluster.weir_json(&["savepoint", &steps.job]);
    steps.append_more();
    has_read(&steps.cluster, &steps.job, 2 * ROWS).await;
    let savepoint = steps.cluster.weir_json(&["stop", &steps.job]);
    job_in_state(&steps.cluster, &steps.job, JobState::Stopped).await;
    let stopped_at = steps.check("stopped");
    nothing_undecided(&steps.cluster);
    let script = steps.cluster.write("again.sql", &exact_script("1 h"));
    let from = |snapshot: &Value| snapshot["id"].as_str().expect("an id").to_owned();
    let run = |steps: &Steps, from: &str, more: &[&str]| {
        let all: Vec<&str> = ["run", "-d", "-p", "1", "-s", from].iter().chain(more).copied().collect();
        steps.cluster.weir(&[all.as_slice(), &[script.as_str()]].concat())
    };
    let refused = run(&steps, &from(&early), &[]);
    assert_eq!(refused.code, 23, "{}", refused.stderr);
    assert!(refused.stderr.starts_with("error[DUPLICATE_OUTPUT]"), "{}", refused.stderr);
    let planned = steps.cluster.weir(&["run", "--plan", "-p", "1", "-s", &from(&early), &script]);
    assert_eq!(planned.code, 23, "the plan says so too: {}", planned.stderr);

    steps.job = submit(&steps.cluster, &exact_script("1 h"), &["-p", "1", "-s", &from(&savepoint)]);
    steps.append_more();
    has_read(&steps.cluster, &steps.job, ROWS).await;
    let (job, rows) = (steps.job.clone(), steps.rows.clone());
    drain(&steps.cluster, &job).await;
    assert_eq!(each_once(&read(&steps.cluster, "test/out")), expected(&rows));
    assert!(stopped_at < expected(&rows).len());

    // Another job has gone on from there, and has written.
    assert_eq!(run(&steps, &from(&savepoint), &[]).code, 23);
    let allowed = run(&steps, &from(&savepoint), &["--allow-duplicates"]);
    assert_eq!(allowed.code, 0, "{}", allowed.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_leaves_nothing_that_readers_wait_for() {
    let steps = Steps::start("1 h").await;
    steps.cluster.weir_json(&["savepoint", &steps.job]);
    let committed = steps.check("savepoint");
    steps.cluster.weir_json(&["cancel", &steps.job]);
    job_in_state(&steps.cluster, &steps.job, JobState::Cancelled).await;
    usage::logged(&steps.cluster, &["store"], "transactions of a family decided").await;
    assert_eq!(steps.check("cancelled"), committed);
}
