//! Streams that were deleted by force although snapshots go on from them, and snapshots that prove damaged while their
//! restore is planned: what keeps them from being restored is in the catalogue from then on.

use std::time::Duration;

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::job_in_state;
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, damage, has_read, manifest_of, readings, submit, totals_script};

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().expect("a text")
}

/// Runs over 1,000 readings.
async fn running(cluster: &Cluster) -> String {
    append(cluster, "test/in", &readings(0, 1_000));
    let job = submit(cluster, &totals_script("1 h"), &[]);
    has_read(cluster, &job, 1_000).await;
    job
}

/// Waits until `look` sees it; what it saw.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.unwrap_or_else(|_| panic!("not {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_deleted_stream_is_refused_with_that_reason_and_marked() {
    let cluster = Cluster::start(1, 1);
    let job = running(&cluster).await;
    let savepoint = cluster.weir_json(&["stop", &job]);
    job_in_state(&cluster, &job, JobState::Stopped).await;
    let id = text(&savepoint, "id");
    let held = cluster.weir(&["stream", "delete", "test/in"]);
    let line = format!("error[FAILED_PRECONDITION]: stream test/in is pinned by {id}");
    assert_eq!((held.code, held.stderr.lines().next()), (8, Some(&*line)));
    assert_eq!(cluster.weir(&["stream", "delete", "test/in", "--force"]).code, 0);

    let script = cluster.write("job.sql", &totals_script("1 h"));
    let refused = cluster.weir(&["run", "-d", "-s", id, &script]);
    let expected = format!(
        "error[UNRESTORABLE]: snapshot {id} is UNRESTORABLE and cannot be restored\n  \
         detail: stream test/in does not exist any more\n  \
         hint: Restore another one: `weir snapshots list` shows them and how they are.\n"
    );
    assert_eq!((refused.code, &refused.stderr), (21, &expected));
    let planned = cluster.weir(&["run", "-s", id, "--plan", &script]);
    assert_eq!((planned.code, &planned.stderr), (21, &expected));
    let shown = cluster.weir_json(&["snapshots", "show", id]);
    assert_eq!(
        (text(&shown, "state"), text(&shown, "unrestorable")),
        ("UNRESTORABLE", "stream test/in does not exist any more")
    );
    // A stream of that name is not the one that was read.
    append(&cluster, "test/in", &readings(0, 2_000));
    assert_eq!(cluster.weir(&["run", "-d", "-s", id, &script]).code, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_by_force_is_noticed_without_a_restore_and_nothing_recovers_from_it() {
    let mut cluster = Cluster::start(1, 1);
    let job = running(&cluster).await;
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    let id = text(&savepoint, "id");
    cluster.kill("tm-1");
    assert_eq!(cluster.weir(&["stream", "delete", "test/in", "--force"]).code, 0);
    until("marked", || {
        let marked = cluster.weir_json(&["snapshots", "list", "--state", "unrestorable"]);
        (marked[0]["id"] == json!(id)).then_some(())
    })
    .await;
    cluster.restart("tm-1");
    let failed = until("failed", || {
        let shown = cluster.weir_json(&["job", "show", &job]);
        (shown["job"]["state"] == "FAILED").then_some(shown)
    })
    .await;
    assert_eq!(failed["job"]["failure"]["code"], "UNRESTORABLE", "{failed:#}");
    let detail = text(&failed["job"]["failure"], "detail");
    assert_eq!(detail, format!("{id}: stream test/in does not exist any more"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_planning_a_restore_meets_is_entered_and_refuses_it() {
    let cluster = Cluster::start(1, 1);
    let job = running(&cluster).await;
    let savepoint = cluster.weir_json(&["stop", &job]);
    job_in_state(&cluster, &job, JobState::Stopped).await;
    let id = text(&savepoint, "id");
    damage::tear(&manifest_of(&savepoint));
    let script = cluster.write("job.sql", &totals_script("1 h"));
    let planned = cluster.weir(&["run", "-s", id, "--plan", &script]);
    let line = format!("error[UNRESTORABLE]: snapshot {id} is DAMAGED and cannot be restored");
    assert_eq!((planned.code, planned.stderr.lines().next()), (21, Some(&*line)));
    assert!(planned.stderr.contains("detail: it is damaged: CORRUPT: "), "{}", planned.stderr);
    let shown = cluster.weir_json(&["snapshots", "show", id]);
    assert_eq!((text(&shown, "state"), &shown["verified"]["by"]), ("DAMAGED", &json!("restore")));
    let refused = cluster.weir(&["run", "-d", "-s", id, &script]);
    assert_eq!((refused.code, refused.stderr), (21, planned.stderr), "it is known from now on");
}
