//! Whose a snapshot is: restores that hold it, claims that take it over, and JobManagers that end in between.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::job_in_state;
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, drain, has_read, read, readings, submit, totals_script};

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().expect("a text")
}

/// Runs over `rows` as `ann`, and stops with a savepoint.
async fn stopped(cluster: &Cluster, rows: &[Value]) -> Value {
    append(cluster, "test/in", rows);
    let job = submit(cluster, &totals_script("1 h"), &["--owner", "ann"]);
    has_read(cluster, &job, rows.len() as u64).await;
    cluster.weir_json(&["stop", &job])
}

/// Savepoints and bytes that a quota level is charged.
fn charged(cluster: &Cluster, level: &str) -> (u64, u64) {
    let quota = cluster.weir_json(&["quota", "show", level]);
    let used = |dimension: &str| quota["dimensions"][dimension]["used"].as_u64().expect("a number");
    (used("savepoints"), used("bytes"))
}

/// Waits until the catalogue knows a snapshot no more.
async fn gone(cluster: &Cluster, snapshot: &str) {
    let gone = async {
        while cluster.weir(&["snapshots", "show", snapshot]).code != 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("a snapshot that goes");
}

/// Waits until the catalogue knows no checkpoint any more.
async fn no_checkpoint(cluster: &Cluster) {
    let none = async {
        loop {
            let listed = cluster.weir_json(&["snapshots", "list"]);
            if listed.as_array().expect("a list").iter().all(|snapshot| snapshot["kind"] != "checkpoint") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, none).await.expect("checkpoints that go");
}

/// The lines of a snapshot's description that say who needs it and whose it is.
fn holders(cluster: &Cluster, snapshot: &str) -> Vec<String> {
    let ran = cluster.weir(&["snapshots", "show", snapshot]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
        .lines()
        .filter(|line| line.starts_with("Held") || line.starts_with("Claimed"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_holds_its_snapshot_until_its_first_checkpoint_and_then_never_needs_it() {
    let mut cluster = Cluster::start(1, 1);
    let rows = readings(0, 4_000);
    let savepoint = stopped(&cluster, &rows[..2_000]).await;
    append(&cluster, "test/in", &rows[2_000..]);
    let id = text(&savepoint, "id");
    let job = submit(&cluster, &totals_script("1 h"), &["-s", id]);
    let holder = format!("job {job} was restored from it and has no snapshot of its own yet");
    assert_eq!(holders(&cluster, id), [format!("Held: {holder}")]);
    let refused = cluster.weir(&["snapshots", "delete", "--force", id]);
    let expected = format!(
        "error[FAILED_PRECONDITION]: snapshot {id} is still needed\n  detail: {holder}\n  \
         hint: Take another snapshot of that job, or end it, and try again.\n"
    );
    assert_eq!((refused.code, refused.stderr), (8, expected));
    let file = cluster.write("job.sql", &totals_script("1 h"));
    let claimed = cluster.weir(&["run", "-d", "-s", id, "--claim-mode", "claim", &file]);
    let line = format!("error[FAILED_PRECONDITION]: snapshot {id} is still needed, and cannot be claimed");
    assert_eq!((claimed.code, claimed.stderr.lines().next()), (8, Some(&*line)));
    has_read(&cluster, &job, 2_000).await;
    cluster.weir_json(&["checkpoint", &job]);
    assert_eq!(holders(&cluster, id), [""; 0]);
    cluster.weir_json(&["snapshots", "delete", "--force", id]);
    assert!(!Path::new(text(&savepoint, "directory")).exists());
    // What the job restarts from is all its own.
    cluster.kill("tm-1");
    cluster.restart("tm-1");
    has_read(&cluster, &job, 0).await;
    drain(&cluster, &job).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_snapshot_is_its_jobs_and_goes_with_the_first_checkpoint() {
    let cluster = Cluster::start(1, 2);
    let rows = readings(0, 4_000);
    let savepoint = stopped(&cluster, &rows[..2_000]).await;
    append(&cluster, "test/in", &rows[2_000..]);
    let (id, bytes) = (text(&savepoint, "id"), savepoint["bytes"].as_u64().expect("bytes"));
    assert_eq!(charged(&cluster, "owner:ann"), (1, bytes));
    let file = cluster.write("job.sql", &totals_script("1 h"));
    let plan = cluster.weir(&["run", "-s", id, "--plan", "--claim-mode", "claim", "--owner", "bob", &file]);
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    let cells: Vec<Vec<&str>> = plan.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let moved = bytes.to_string();
    for expected in [
        &["Claim", "mode:", "claim"][..],
        &["QUOTA", "DIMENSION", "LIMIT", "USED", "AT", "ONCE", "FIRST", "CHECKPOINT"],
        &["owner:bob", "savepoints", "-", "0", "1", "0"],
        &["owner:bob", "bytes", "-", "0", &moved, &moved],
        &["The", "restore", "would", "be", "accepted."],
    ] {
        assert!(cells.iter().any(|cells| cells == expected), "{expected:?} in {}", plan.stdout);
    }
    assert_eq!(charged(&cluster, "owner:ann"), (1, bytes), "a plan changes nothing");

    // Flink's option in the script does what the flag does.
    let script = format!("SET 'execution.state-recovery.claim-mode' = 'CLAIM';\n{}", totals_script("1 h"));
    let job = submit(&cluster, &script, &["-s", id, "--owner", "bob"]);
    assert_eq!((charged(&cluster, "owner:ann"), charged(&cluster, "owner:bob")), ((0, 0), (1, bytes)));
    let shown = cluster.weir_json(&["snapshots", "show", id]);
    assert_eq!((&shown["owner"], &shown["claim"]["job"]), (&json!("bob"), &json!(job)));
    let lines = holders(&cluster, id);
    assert!(lines[0].starts_with(&format!("Claimed by job {job} (job) at ")), "{lines:?}");
    let deleted = cluster.weir(&["snapshots", "delete", "--force", id]);
    let expected = format!(
        "error[FAILED_PRECONDITION]: snapshot {id} belongs to job {job}, which has claimed it\n  \
         hint: That job deletes it once its checkpoints supersede it, or when it ends.\n"
    );
    assert_eq!((deleted.code, deleted.stderr), (8, expected));
    let again = cluster.weir(&["run", "-d", "-s", id, "--claim-mode", "claim", &file]);
    let expected = format!(
        "error[FAILED_PRECONDITION]: snapshot {id} is claimed already\n  detail: job {job} owns it\n  \
         hint: Restore with --claim-mode no-claim, or from another snapshot.\n"
    );
    assert_eq!((again.code, again.stderr), (8, expected));
    has_read(&cluster, &job, 2_000).await;
    assert!(Path::new(text(&savepoint, "directory")).exists());
    cluster.weir_json(&["checkpoint", &job]);
    gone(&cluster, id).await;
    assert!(!Path::new(text(&savepoint, "directory")).exists());
    assert_eq!(charged(&cluster, "owner:bob").0, 0);
    drain(&cluster, &job).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_a_quota_leaves_no_room_for_is_refused_and_moves_nothing() {
    let cluster = Cluster::start(1, 1);
    let savepoint = stopped(&cluster, &readings(0, 1_000)).await;
    let (id, before) = (text(&savepoint, "id"), charged(&cluster, "owner:ann"));
    assert_eq!(cluster.weir(&["quota", "set", "owner:bob", "--savepoints", "0"]).code, 0);
    let file = cluster.write("job.sql", &totals_script("1 h"));
    let claim = ["-s", id, "--claim-mode", "claim", "--owner", "bob"];
    let run = |how: &str| cluster.weir(&["run", how].iter().chain(&claim).copied().chain([&*file]).collect::<Vec<_>>());
    let (planned, refused) = (run("--plan"), run("-d"));
    let expected = "error[QUOTA_EXCEEDED]: owner:bob has reached its limit of savepoints
  detail: limit 0, used 0, requested 1
  hint: Delete snapshots there, or restore with --claim-mode no-claim: then nothing moves.
";
    assert_eq!((planned.code, planned.stderr.as_str()), (12, expected));
    assert_eq!((refused.code, refused.stderr.as_str()), (12, expected));
    assert!(planned.stdout.ends_with("\nThe restore would be refused.\n"), "{}", planned.stdout);
    assert_eq!((charged(&cluster, "owner:ann"), charged(&cluster, "owner:bob")), (before, (0, 0)));
    assert_eq!(holders(&cluster, id), [""; 0]);

    // Neither what the catalogue does not know, nor modes that there are not.
    let copy = cluster.path("copy");
    std::fs::rename(text(&savepoint, "directory"), &copy).expect("a movable directory");
    let stranger = cluster.weir(&["run", "-d", "-s", &copy, "--claim-mode", "claim", &file]);
    let expected = format!(
        "error[FAILED_PRECONDITION]: \"{copy}\" is not in the catalogue, and cannot be claimed\n  \
         hint: Import it with `weir snapshots import`, or restore with --claim-mode no-claim.\n"
    );
    assert_eq!((stranger.code, stranger.stderr), (8, expected));
    let legacy = cluster.weir(&["run", "-d", "-s", &copy, "--claim-mode", "legacy", &file]);
    assert_eq!(legacy.code, 2, "{}", legacy.stderr);
    assert!(legacy.stderr.ends_with("hint: It takes 'NO_CLAIM' or 'CLAIM'.\n"), "{}", legacy.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_of_a_claim_ends_it() {
    let mut cluster = Cluster::start(1, 1);
    let rows = readings(0, 3_000);
    let mut savepoint = stopped(&cluster, &rows[..2_000]).await;
    append(&cluster, "test/in", &rows[2_000..]);
    for step in ["job.accepted", "retire.mark", "delete.manifest", "delete.files", "delete.pins", "delete.entry"] {
        let id = text(&savepoint, "id").to_owned();
        let reached = cluster.path(step);
        // Removing what the job before has left would reach the fail point too early.
        no_checkpoint(&cluster).await;
        cluster.terminate("jobmanager");
        cluster.restart_with("jobmanager", &[("WEIR_FAIL_POINT", format!("{step}={reached}"))]);
        let file = cluster.write("job.sql", &totals_script("1 h"));
        let run = ["run", "-d", "-s", &id, "--claim-mode", "claim", "--owner", "bob", &file];
        if step == "job.accepted" {
            assert_ne!(cluster.weir(&run).code, 0, "the JobManager ended before it answered");
        } else {
            let job = cluster.weir_json(&run)["id"].as_str().expect("an id").to_owned();
            has_read(&cluster, &job, 0).await;
            // Whether this is answered depends on how far the JobManager gets.
            cluster.weir(&["checkpoint", &job]);
        }
        cluster.ended("jobmanager");
        assert_eq!(std::fs::read_to_string(&reached).expect(step), step, "it was reached");
        cluster.restart("jobmanager");
        let jobs = cluster.weir_json(&["list"]);
        let job = text(&jobs[0], "id");
        job_in_state(&cluster, job, JobState::Running).await;
        if step == "job.accepted" {
            assert_eq!(cluster.weir_json(&["snapshots", "show", &id])["claim"]["job"], job);
            cluster.weir_json(&["checkpoint", job]);
        }
        gone(&cluster, &id).await;
        assert!(!Path::new(text(&savepoint, "directory")).exists(), "{step}");
        assert_eq!(charged(&cluster, "owner:ann"), (0, 0), "{step}");
        assert_eq!(charged(&cluster, "owner:bob").0, 0, "{step}");
        let garbage = cluster.weir_json(&["snapshots", "gc", "--dry-run", "--older-than", "0s"]);
        let left = garbage.as_array().expect("a list").iter().filter(|found| text(found, "name").contains(&id));
        assert_eq!(left.count(), 0, "{step}: no file and no pin is left: {garbage:#}");
        savepoint = cluster.weir_json(&["stop", job]);
    }
    let last = submit(&cluster, &totals_script("1 h"), &["-s", text(&savepoint, "id")]);
    drain(&cluster, &last).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}
