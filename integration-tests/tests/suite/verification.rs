//! Verifying snapshots of the catalogue: the same report as on the files alone, and entered where everybody sees it.

use std::path::Path;

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, Ran};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, copy, damage, has_read, own_files, readings, submit, totals_script};
use weir_integration_tests::jobs::job_in_state;

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().expect("a text")
}

/// What a command printed, without what names the place that was read.
fn outcome(ran: &Ran) -> (i32, &str, &str) {
    (ran.code, &ran.stdout, &ran.stderr)
}

/// A job that has read 2,000 rows, with a savepoint and a checkpoint after it.
async fn savepoint_and_checkpoint(cluster: &Cluster) -> (String, Value, Value) {
    append(cluster, "test/in", &readings(0, 2_000));
    let job = submit(cluster, &totals_script("1 h"), &["-p", "2"]);
    has_read(cluster, &job, 2_000).await;
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    let checkpoint = cluster.weir_json(&["checkpoint", &job]);
    (job, savepoint, checkpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_verified_like_its_directory_and_the_outcome_outlives_the_jobmanager() {
    let mut cluster = Cluster::start(1, 2);
    let (job, savepoint, checkpoint) = savepoint_and_checkpoint(&cluster).await;
    for snapshot in [&savepoint, &checkpoint] {
        let (id, directory) = (text(snapshot, "id"), text(snapshot, "directory"));
        assert_eq!(cluster.weir_json(&["snapshots", "show", id])["verified"], Value::Null);
        let there = cluster.weir(&["snapshots", "verify", id]);
        let here = cluster.weir(&["snapshots", "verify", directory]);
        assert_eq!(outcome(&there), outcome(&here));
        assert_eq!((there.code, there.stderr.as_str()), (0, ""));
        let first = format!("{} {id}: 2 of 2 files whole, ", text(snapshot, "kind"));
        assert!(there.stdout.starts_with(&first), "{}", there.stdout);
        let json = cluster.weir_json(&["snapshots", "verify", id]);
        assert_eq!(json, cluster.weir_json(&["snapshots", "verify", directory]));
        assert_eq!((&json["whole"], &json["damage"]), (&json!(true), &json!([])));
    }
    let id = text(&savepoint, "id");
    let verified = cluster.weir_json(&["snapshots", "show", id])["verified"].clone();
    let at = verified["at_ms"].as_u64().expect("a time");
    assert!(at >= savepoint["ended_at_ms"].as_u64().expect("a time"));
    assert_eq!(verified, json!({"at_ms": at, "by": "request", "findings": 0, "damage": null}));
    let shown = cluster.weir(&["snapshots", "show", id]).stdout;
    assert!(shown.lines().any(|line| line.starts_with("Verified ") && line.ends_with(": whole")), "{shown}");
    cluster.kill("jobmanager");
    cluster.restart("jobmanager");
    assert_eq!(cluster.weir_json(&["snapshots", "show", id])["verified"], verified);
    // The last verified savepoint of a job takes force, although a newer one is there.
    job_in_state(&cluster, &job, JobState::Running).await;
    cluster.weir_json(&["snapshots", "verify", text(&savepoint, "id")]);
    let newer = cluster.weir_json(&["stop", &job]);
    let refused = cluster.weir(&["snapshots", "delete", id]);
    assert_eq!(refused.code, 8, "{}", refused.stderr);
    let line = format!("error[FAILED_PRECONDITION]: snapshot {id} is the last verified one of job {job}");
    assert_eq!(refused.stderr.lines().next(), Some(line.as_str()));
    cluster.weir_json(&["snapshots", "verify", text(&newer, "id")]);
    assert_eq!(cluster.weir(&["snapshots", "delete", id]).code, 0, "another one is verified now");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_entered_shown_everywhere_and_refuses_a_restore() {
    let cluster = Cluster::start(1, 2);
    let (job, savepoint, checkpoint) = savepoint_and_checkpoint(&cluster).await;
    let (id, directory) = (text(&savepoint, "id"), text(&savepoint, "directory"));
    let whole = cluster.path("whole");
    copy(directory, &whole);
    let file = damage::flip(&own_files(&cluster, &savepoint, None)[0]);
    let there = cluster.weir(&["snapshots", "verify", id]);
    let here = cluster.weir(&["snapshots", "verify", directory]);
    assert_eq!(outcome(&there), outcome(&here));
    assert_eq!(there.code, 19);
    assert!(there.stdout.contains(&file) && there.stdout.contains("CORRUPT"), "{}", there.stdout);
    let line = format!("error[CORRUPT]: snapshot {id} is damaged: 1 finding");
    assert_eq!(there.stderr.lines().next(), Some(line.as_str()));

    let shown = cluster.weir_json(&["snapshots", "show", id]);
    assert_eq!((&shown["state"], &shown["verified"]["by"]), (&json!("DAMAGED"), &json!("request")));
    assert_eq!((&shown["verified"]["findings"], &shown["verified"]["damage"]["code"]), (&json!(1), &json!("CORRUPT")));
    let listed = cluster.weir_json(&["snapshots", "list", "--state", "damaged"]);
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["id"]), (Some(1), &json!(id)));
    let others = cluster.weir_json(&["snapshots", "list", "--state", "completed"]);
    assert_eq!((others.as_array().map(Vec::len), &others[0]["id"]), (Some(1), &checkpoint["id"]));
    let people = cluster.weir(&["snapshots", "show", id]).stdout;
    assert!(people.contains("DAMAGED") && people.contains("\nFound damaged "), "{people}");
    let explained = cluster.weir_json(&["snapshots", "explain", id]);
    assert!(text(&explained, "summary").contains("; it is damaged: CORRUPT: "), "{explained:#}");

    let script = cluster.write("job.sql", &totals_script("1 h"));
    let refused = cluster.weir(&["run", "-d", "-s", id, &script]);
    assert_eq!(refused.code, 21, "{}", refused.stderr);
    let line = format!("error[UNRESTORABLE]: snapshot {id} is DAMAGED and cannot be restored");
    assert_eq!(refused.stderr.lines().next(), Some(line.as_str()));
    let planned = cluster.weir(&["run", "-s", id, "--plan", &script]);
    assert_eq!((planned.code, planned.stderr), (21, refused.stderr), "the plan is refused as the restore is");

    // Without its manifest there is nothing to compare with, and that is entered as well.
    let manifest = Path::new(directory).join("manifest.json");
    std::fs::remove_file(&manifest).expect("a manifest");
    let there = cluster.weir(&["snapshots", "verify", id]);
    assert_eq!(outcome(&there), outcome(&cluster.weir(&["snapshots", "verify", directory])));
    assert_eq!(there.code, 6, "{}", there.stderr);
    let shown = cluster.weir_json(&["snapshots", "show", id]);
    assert_eq!((&shown["state"], &shown["verified"]["damage"]["code"]), (&json!("DAMAGED"), &json!("NOT_FOUND")));

    // Put back as it was, it is whole again.
    for entry in std::fs::read_dir(&whole).expect("a directory").flatten() {
        std::fs::copy(entry.path(), Path::new(directory).join(entry.file_name())).expect("a copy");
    }
    assert_eq!(cluster.weir(&["snapshots", "verify", id]).code, 0);
    assert_eq!(cluster.weir_json(&["snapshots", "show", id])["state"], "COMPLETED");
    assert_eq!(cluster.weir(&["run", "-s", id, "--plan", &script]).code, 0);

    // A manifest of another snapshot in its place is found out.
    std::fs::copy(Path::new(text(&checkpoint, "directory")).join("manifest.json"), &manifest).expect("a copy");
    let foreign = cluster.weir(&["snapshots", "verify", id]);
    assert_eq!(foreign.code, 19, "{}", foreign.stderr);
    assert!(foreign.stderr.contains(&format!("does not hold snapshot {id}")), "{}", foreign.stderr);

    for (unknown, code) in [("sp-nothing", 6), ("../../x", 6)] {
        assert_eq!(cluster.weir(&["snapshots", "verify", unknown]).code, code, "{unknown}");
    }
    // What is damaged is of no use to its job, and may go.
    assert_eq!(cluster.weir(&["snapshots", "delete", id]).code, 0);
    assert_eq!(cluster.weir_json(&["job", "show", &job])["job"]["state"], "RUNNING");
}
