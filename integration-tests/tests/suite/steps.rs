//! A JobManager that is killed between any two steps of a snapshot: nothing is lost, doubled or leaked, whoever asked for the
//! snapshot finds out what became of it, and the job runs on as if nothing had been.

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::job_in_state;
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, drain, goes_on, has_read, read, readings, runs_after, submit, totals_script};
use crate::usage::{self, LOOK_INTERVAL, listed_as, settles};

/// Rows that are there before the first step, and that each step adds.
const ROWS: u64 = 1_000;

/// A job over two TaskManagers, its input so far, and the JobManager that ends at fail points.
struct Steps {
    cluster: Cluster,
    job: String,
    rows: Vec<Value>,
    /// The attempt that runs: the death of a JobManager starts none.
    attempt: u32,
}

impl Steps {
    async fn start() -> Self {
        let cluster = usage::cluster(2, 1);
        let rows = readings(0, ROWS);
        append(&cluster, "test/in", &rows);
        let job = submit(&cluster, &totals_script("1 h"), &["-p", "2"]);
        has_read(&cluster, &job, ROWS).await;
        Self { cluster, job, rows, attempt: 1 }
    }

    /// Waits until the JobManager that has come back knows that the attempt runs on.
    async fn goes_on(&self) {
        goes_on(&self.cluster, &self.job, self.attempt).await;
    }

    /// Restarts the JobManager so that it ends at the fail point `step`; the file that proves it.
    async fn arm(&mut self, step: &str) -> String {
        let proof = self.cluster.path(step);
        self.cluster.terminate("jobmanager");
        self.cluster.restart_with("jobmanager", &[("WEIR_FAIL_POINT", format!("{step}={proof}"))]);
        self.goes_on().await;
        let more = readings(self.rows.len() as u64, ROWS);
        append(&self.cluster, "test/in", &more);
        self.rows.extend(more);
        proof
    }

    /// Waits for the end of the JobManager at the fail point, and starts it again without one.
    fn killed_at(&mut self, step: &str, proof: &str) {
        self.cluster.ended("jobmanager");
        assert_eq!(std::fs::read_to_string(proof).expect(step), step, "it was reached");
        self.cluster.restart("jobmanager");
    }

    /// The snapshot that was asked for under this request id, once it has ended.
    async fn outcome(&self, request: &str) -> Value {
        // Whoever asks again for it waits for its end; what that is, the catalogue says.
        let again = self.cluster.weir(&["savepoint", &self.job, "--request-id", request]);
        let all = self.cluster.weir_json(&["snapshots", "list", "--savepoints", "-n", "1"]);
        let snapshot = all[0].clone();
        assert_eq!(again.code == 0, snapshot["state"] == "COMPLETED", "{}: {snapshot:#}", again.stderr);
        snapshot
    }

    /// Waits until usage is what lies on storage, and nothing of a snapshot that failed is left in the store.
    async fn leaks_nothing(&self, step: &str, snapshot: &Value) {
        self.goes_on().await;
        settles(&self.cluster).await;
        let id = snapshot["id"].as_str().expect("an id");
        let clean = async {
            while self.is_garbage(id) || (snapshot["state"] == "FAILED" && self.is_in_a_group(id)) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        let clean = tokio::time::timeout(DEADLINE, clean).await;
        assert!(clean.is_ok(), "{step}: a file, a group checkpoint or a pin of {id} is left");
    }

    /// Whether files or pins are left of a snapshot that nobody needs.
    fn is_garbage(&self, snapshot: &str) -> bool {
        let garbage = self.cluster.weir_json(&["snapshots", "gc", "--dry-run", "--older-than", "0s"]);
        let mut found = garbage.as_array().expect("a list").iter();
        found.any(|found| found["name"].as_str().expect("a name").contains(snapshot))
    }

    /// Whether a reader group keeps a checkpoint of this name, or waits for one.
    fn is_in_a_group(&self, snapshot: &str) -> bool {
        let groups = self.cluster.weir_json(&["group", "list"]);
        let mut names = groups.as_array().expect("a list").iter().map(|group| group["name"].as_str().expect("a name"));
        names.any(|name| {
            let group = self.cluster.weir_json(&["group", "describe", name]);
            let mut checkpoints = group["checkpoints"].as_array().expect("a list").iter();
            checkpoints.any(|checkpoint| {
                let state = checkpoint["state"].as_str().expect("a state").to_ascii_uppercase();
                checkpoint["id"] == snapshot && ["OUTSTANDING", "COMPLETED"].contains(&&*state)
            })
        })
    }

    /// What the job has written in the end is what a batch program computes.
    async fn ends_exactly(self) {
        drain(&self.cluster, &self.job).await;
        let written = fold(&read(&self.cluster, "test/out"), "sensor");
        assert_eq!(written, tumble(&self.rows, "sensor", "at", "reading", 1000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_of_a_savepoint_ends_it_one_way() {
    let mut steps = Steps::start().await;
    for (step, state) in [
        ("snapshot.reserved", "FAILED"),
        ("snapshot.groups", "FAILED"),
        ("snapshot.barriers", "FAILED"),
        ("snapshot.acknowledged", "FAILED"),
        ("snapshot.published", "COMPLETED"),
        ("snapshot.completed", "COMPLETED"),
        ("snapshot.kept", "COMPLETED"),
    ] {
        let proof = steps.arm(step).await;
        let mut asked = steps.cluster.weir_in_background(&["savepoint", &steps.job, "--request-id", step]);
        steps.killed_at(step, &proof);
        asked.wait().expect("a child");
        let snapshot = steps.outcome(step).await;
        assert_eq!(snapshot["state"], state, "{step}: {snapshot:#}");
        if state == "FAILED" {
            let why = "the JobManager ended while the snapshot was in flight";
            assert_eq!(snapshot["failure"]["message"], why, "{step}");
        }
        steps.leaks_nothing(step, &snapshot).await;
    }
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_of_an_abort_ends_it() {
    let mut steps = Steps::start().await;
    for (step, code) in [("snapshot.marked", "UNAVAILABLE"), ("snapshot.aborted", "CANCELLED")] {
        let proof = steps.arm(step).await;
        steps.cluster.freeze("tm-2");
        let mut asked = steps.cluster.weir_in_background(&["savepoint", &steps.job, "--request-id", step]);
        let snapshot = listed_as(&steps.cluster, "IN_PROGRESS").await;
        let id = snapshot["id"].as_str().expect("an id");
        steps.cluster.weir(&["snapshots", "cancel", id]);
        steps.cluster.thaw("tm-2");
        steps.killed_at(step, &proof);
        asked.wait().expect("a child");
        let snapshot = steps.outcome(step).await;
        assert_eq!((&snapshot["id"], &snapshot["failure"]["code"]), (&json!(id), &json!(code)), "{step}");
        steps.leaks_nothing(step, &snapshot).await;
    }
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_whose_jobmanager_is_killed_before_its_savepoint_is_published_is_given_up_and_the_job_goes_on() {
    let mut steps = Steps::start().await;
    for step in ["snapshot.reserved", "snapshot.groups", "snapshot.barriers", "snapshot.acknowledged"] {
        let proof = steps.arm(step).await;
        let stop = ["stop", &steps.job.clone(), "--request-id", step];
        let mut asked = steps.cluster.weir_in_background(&stop);
        steps.killed_at(step, &proof);
        asked.wait().expect("a child");
        let again = steps.cluster.weir(&stop);
        assert_eq!(again.code, 17, "{step}: {}", again.stderr);
        let snapshot = steps.outcome(step).await;
        assert_eq!(snapshot["state"], "FAILED", "{step}: {snapshot:#}");
        steps.leaks_nothing(step, &snapshot).await;
        // Sources that had stopped at the barrier read on.
        let rows = steps.rows.len() as u64;
        has_read(&steps.cluster, &steps.job, rows).await;
    }
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_asked_for_again_after_its_jobmanager_was_killed_finds_its_savepoint() {
    for (step, state) in [("snapshot.published", JobState::Stopped), ("snapshot.completed", JobState::Stopped)] {
        let mut steps = Steps::start().await;
        let proof = steps.arm(step).await;
        has_read(&steps.cluster, &steps.job, 1).await;
        let stop = ["stop", &steps.job.clone(), "--request-id", "mine"];
        let mut asked = steps.cluster.weir_in_background(&stop);
        steps.killed_at(step, &proof);
        asked.wait().expect("a child");
        let found = steps.cluster.weir_json(&stop);
        assert_eq!(found["state"], "COMPLETED", "{step}: {found:#}");
        job_in_state(&steps.cluster, &steps.job, state).await;
        let again = steps.cluster.weir_json(&stop);
        assert_eq!((&again["id"], &again["directory"]), (&found["id"], &found["directory"]), "{step}");
        settles(&steps.cluster).await;
        let restored = ["-p", "1", "-s", found["directory"].as_str().expect("a directory")];
        steps.job = submit(&steps.cluster, &totals_script("1 h"), &restored);
        steps.ends_exactly().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_cannot_be_written_keeps_a_recovered_snapshot_from_being_aborted() {
    let mut steps = Steps::start().await;
    let parent = steps.cluster.path("mine");
    steps.cluster.freeze("tm-2");
    let mut asked = steps.cluster.weir_in_background(&["savepoint", &steps.job, &parent, "--request-id", "mine"]);
    let snapshot = listed_as(&steps.cluster, "IN_PROGRESS").await;
    steps.cluster.kill("jobmanager");
    asked.wait().expect("a child");
    // Nothing can be put into the savepoint's directory, or found there.
    for name in ["tm-1", "tm-2"] {
        steps.cluster.kill(name);
    }
    let _not_there_yet = std::fs::remove_dir_all(&parent);
    std::fs::write(&parent, "a file").expect("a writable directory");
    steps.cluster.restart("jobmanager");
    let unknown = "it is not known whether a snapshot that an earlier JobManager left is complete";
    usage::logged(&steps.cluster, &["jobmanager"], unknown).await;
    let waiting = listed_as(&steps.cluster, "IN_PROGRESS").await;
    assert_eq!(waiting["id"], snapshot["id"]);
    std::fs::remove_file(&parent).expect("a removable file");
    let failed = listed_as(&steps.cluster, "FAILED").await;
    assert_eq!((&failed["id"], &failed["failure"]["code"]), (&snapshot["id"], &json!("UNAVAILABLE")));
    for name in ["tm-1", "tm-2"] {
        steps.cluster.restart(name);
    }
    // What ran on the TaskManagers that were killed has started anew.
    steps.attempt += 1;
    runs_after(&steps.cluster, &steps.job, 1).await;
    steps.leaks_nothing("marker", &failed).await;
    steps.ends_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_job_runs_its_stored_graph_and_is_not_planned_again() {
    let mut cluster = Cluster::start(0, 1);
    let rows = readings(0, 2 * ROWS);
    append(&cluster, "test/in", &rows[..ROWS as usize]);
    // Planned again, the job would end where the stream ends by then.
    let bounded = "'stream' = 'test/in', 'scan.bounded.mode' = 'latest'";
    let job = submit(&cluster, &totals_script("1 h").replace("'stream' = 'test/in'", bounded), &["-p", "1"]);
    let planned = cluster.weir_json(&["job", "show", &job])["plan"].clone();
    cluster.kill("jobmanager");
    append(&cluster, "test/in", &rows[ROWS as usize..]);
    cluster.restart("jobmanager");
    assert_eq!(cluster.weir_json(&["job", "show", &job])["plan"], planned);
    cluster.add_task_manager("tm-1", 1);
    job_in_state(&cluster, &job, JobState::Finished).await;
    assert_eq!(cluster.weir_json(&["job", "show", &job])["rows_in"], ROWS);
    let written = read(&cluster, "test/out");
    let expected = tumble(&rows[..ROWS as usize], "sensor", "at", "reading", 1000);
    assert_eq!((written.len(), fold(&written, "sensor")), (expected.len(), expected));
}
