//! Each limit as its users meet it: what is refused, what is said about it, and that the job goes on.

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::job_until;
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, has_read, readings, submit, totals_script};
use crate::usage::{cluster, listed, listed_as, logged, running_job, settles};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

fn set(cluster: &Cluster, limits: &[&str]) {
    let arguments: Vec<&str> = ["quota", "set"].iter().chain(limits).copied().collect();
    let ran = cluster.weir(&arguments);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

/// What a command that a limit refuses prints.
fn refused(cluster: &Cluster, arguments: &[&str]) -> String {
    let ran = cluster.weir(arguments);
    assert_eq!(ran.code, 12, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    ran.stderr
}

/// The attempt that a job runs.
fn attempt(cluster: &Cluster, job: &str) -> u64 {
    let job = &cluster.weir_json(&["job", "show", job])["job"];
    assert_eq!(job["state"], "RUNNING", "{job:#}");
    job["attempt"].as_u64().expect("a number")
}

/// The cells of a table's row, without those that depend on the time.
fn cells(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_alike_by_list_show_explain_and_the_logs_of_every_node() {
    let cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    set(&cluster, &["namespace:default", "--savepoints", "0"]);
    let error = refused(&cluster, &["savepoint", &job]);
    let refusal = "namespace:default has reached its limit of savepoints";
    let (detail, hint) = (
        "limit 0, used 0, requested 1",
        "No savepoint of namespace:default can be deleted now; raise the limit with `weir quota set`.",
    );
    assert_eq!(error, format!("error[QUOTA_EXCEEDED]: {refusal}\n  detail: {detail}\n  hint: {hint}\n"));

    let id = format!("sp-{}-1", &job[..8]);
    let nodes = ["jobmanager", "tm-1", "tm-2", "store"];
    logged(&cluster, &nodes, &id).await;
    logged(&cluster, &nodes, refusal).await;
    let reason = format!("QUOTA_EXCEEDED: {refusal} ({detail})");
    let table = cluster.weir(&["snapshots", "list"]).stdout;
    let row = cells(table.lines().nth(1).expect("a row"));
    assert_eq!((row[0], row[4], *row.last().expect("remarks")), (&*id, "FAILED", &*reason), "{table}");
    let shown = cluster.weir(&["snapshots", "show", &id]).stdout;
    assert!(shown.contains(&error), "{shown}");
    let facts = json!({
        "type": "quota_exceeded", "level": "namespace:default", "dimension": "savepoints",
        "limit": 0, "used": 0, "requested": 1,
    });
    for json in [cluster.weir_json(&["snapshots", "show", &id]), listed(&cluster)[0].clone()] {
        assert_eq!((&json["failure"]["code"], &json["failure"]["facts"]), (&json!("QUOTA_EXCEEDED"), &facts));
    }

    let explained = cluster.weir(&["snapshots", "explain", &id]).stdout;
    let mut lines = explained.lines();
    assert_eq!(lines.next(), Some(&*format!("savepoint {id} was refused: {reason}")));
    assert_eq!(lines.next(), Some(&*format!("- {hint}")));
    let explained = cluster.weir_json(&["snapshots", "explain", &id]);
    let timeline = explained["timeline"].as_array().expect("a timeline");
    for (node, said) in
        [("jobmanager", "snapshot refused"), ("tm-1", "snapshot failed"), ("tm-2", "snapshot failed"), ("store", "")]
    {
        let about = |event: &&Value| event["node"] == node && text(event, "message").contains(said);
        let error = timeline.iter().find(about).map(|event| event.to_string()).unwrap_or_default();
        assert!(error.contains(refusal), "{node} says why: {explained:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_lowered_during_an_upload_ends_the_snapshot_and_not_the_job() {
    let cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    cluster.freeze("tm-2");
    let mut asked = cluster.weir_in_background(&["savepoint", &job, "--request-id", "mine"]);
    let snapshot = listed_as(&cluster, "IN_PROGRESS").await;
    // It is below what is charged already: what was granted may be written, and nothing more.
    set(&cluster, &["owner:default", "--bytes", "1KiB"]);
    cluster.thaw("tm-2");
    assert_eq!(asked.wait().expect("a child").code(), Some(12));
    let failed = listed_as(&cluster, "FAILED").await;
    assert_eq!(failed["id"], snapshot["id"]);
    let facts = &failed["failure"]["facts"];
    assert_eq!((&facts["level"], &facts["dimension"]), (&json!("owner:default"), &json!("bytes")));
    assert_eq!(facts["limit"], 1024);
    assert_eq!(settles(&cluster).await, 0, "all of its files are gone");
    assert_eq!(attempt(&cluster, &job), 1, "the job has not noticed");
    set(&cluster, &["owner:default", "--remove"]);
    assert_eq!(cluster.weir(&["savepoint", &job]).code, 0);
    assert!(settles(&cluster).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_keep_their_distance_and_old_ones_keep_new_ones_out() {
    let cluster = cluster(1, 1);
    let job = running_job(&cluster, "1").await;
    let level = ["job:default/job", "--minimum-interval", "1h"];
    set(&cluster, &level);
    let first = cluster.weir_json(&["savepoint", &job]);
    let error = refused(&cluster, &["savepoint", &job]);
    let mut lines = error.lines();
    let line = "error[QUOTA_EXCEEDED]: job:default/job has reached its limit of minimum_interval";
    assert_eq!(lines.next(), Some(line));
    assert!(lines.next().is_some_and(|detail| detail.starts_with("  detail: limit 3600000, used ")), "{error}");
    cluster.weir_json(&["checkpoint", &job]);
    set(&cluster, &["job:default/job", "--unset", "minimum-interval", "--age", "1ms"]);

    let error = refused(&cluster, &["savepoint", &job]);
    let mut lines = error.lines();
    assert_eq!(lines.next(), Some("error[QUOTA_EXCEEDED]: job:default/job has reached its limit of age"));
    assert!(lines.next().is_some_and(|detail| detail.starts_with("  detail: limit 1, used ")), "{error}");
    assert!(error.contains(text(&first, "id")), "the hint names what could go: {error}");
    let deleted = cluster.weir(&["snapshots", "delete", text(&first, "id"), "--force"]);
    assert_eq!(deleted.code, 0, "the job would restart from its checkpoint: {}", deleted.stderr);
    assert_eq!(cluster.weir(&["savepoint", &job]).code, 0);
    assert_eq!(attempt(&cluster, &job), 1);
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_checkpoints_are_limited_after_those_that_a_new_one_supersedes() {
    let cluster = cluster(1, 1);
    let job = running_job(&cluster, "1").await;
    set(&cluster, &["cluster", "--retained-checkpoints", "0"]);
    let error = refused(&cluster, &["checkpoint", &job]);
    let line = "error[QUOTA_EXCEEDED]: cluster has reached its limit of retained_checkpoints\n  \
                detail: limit 0, used 0, requested 1\n";
    assert!(error.starts_with(line), "{error}");
    set(&cluster, &["cluster", "--retained-checkpoints", "1"]);
    for _ in 0..3 {
        cluster.weir_json(&["checkpoint", &job]);
    }
    settles(&cluster).await;
    let usage = cluster.weir_json(&["quota", "show", "cluster"]);
    assert_eq!(usage["dimensions"]["retained_checkpoints"]["used"], 1);

    let tried = cluster.weir(&["quota", "set", "cluster", "--retained-checkpoints", "0", "--dry-run"]);
    let last = tried.stdout.lines().last();
    assert_eq!(last, Some("cluster would already exceed its limit of retained_checkpoints: 1 of 0"));
    let list = cluster.weir(&["quota", "list"]).stdout;
    let lines: Vec<Vec<&str>> = list.lines().map(cells).collect();
    assert_eq!(lines[0], ["LEVEL", "DIMENSION", "USED", "LIMIT", "%", "FROM"]);
    assert_eq!(lines[1], ["cluster", "retained_checkpoints", "1", "1", "100", "set"]);
    let levels: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
    for level in ["cluster", "namespace:default", "owner:default", "job:default/job"] {
        assert!(levels.contains(&level), "{list}");
    }
    assert_eq!(attempt(&cluster, &job), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_checkpoint_is_no_failure_of_a_job_that_tolerates_none() {
    let cluster = cluster(2, 1);
    append(&cluster, "test/in", &readings(0, 2_000));
    let tolerates_none = "SET 'execution.checkpointing.tolerable-failed-checkpoints' = '0';";
    let job = submit(&cluster, &format!("{tolerates_none}{}", totals_script("1 h")), &["-p", "2"]);
    has_read(&cluster, &job, 2_000).await;
    cluster.freeze("tm-2");
    let mut asked = cluster.weir_in_background(&["checkpoint", &job]);
    let snapshot = listed_as(&cluster, "IN_PROGRESS").await;
    assert_eq!(cluster.weir(&["snapshots", "cancel", text(&snapshot, "id")]).code, 0);
    assert_eq!(asked.wait().expect("a child").code(), Some(18), "the code of CANCELLED");
    cluster.thaw("tm-2");
    settles(&cluster).await;
    assert_eq!(attempt(&cluster, &job), 1, "it was not restarted");

    // A checkpoint that fails of itself is one.
    cluster.freeze("tm-2");
    assert_eq!(cluster.weir(&["checkpoint", &job, "--timeout", "300ms"]).code, 16, "the code of TIMEOUT");
    cluster.thaw("tm-2");
    job_until(&cluster, &job, "a new attempt", |detail| {
        detail.summary.as_ref().is_some_and(|job| job.attempt > 1 && job.state() == JobState::Running)
    })
    .await;
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_keeps_more_checkpoints_than_a_reader_group_keeps_for_users() {
    let cluster = cluster(1, 1);
    append(&cluster, "test/in", &readings(0, 1_000));
    submit(&cluster, &totals_script("10 ms"), &["--set", "execution.checkpointing.num-retained=66"]);
    let retained = async {
        loop {
            let quota = cluster.weir_json(&["quota", "show", "cluster"]);
            if quota["dimensions"]["retained_checkpoints"]["used"] == 66 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, retained).await.expect("as many as it was told to keep");
    assert_eq!(cluster.weir_json(&["snapshots", "list", "--failed"]), json!([]));
}
