//! `weir snapshots explain`: one timeline of what every node said, with the reason first.

use serde_json::{Value, json};
use weir_integration_tests::cluster::Cluster;
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::client_client::ClientClient;

use crate::support::{append, has_read, readings, submit, totals_script};

/// A job over both TaskManagers whose periodic checkpoints stay out of the way.
async fn running_job(cluster: &Cluster) -> String {
    append(cluster, "test/in", &readings(0, 2_000));
    let job = submit(cluster, &totals_script("1 h"), &["-p", "2"]);
    has_read(cluster, &job, 2_000).await;
    job
}

fn texts<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().expect("a list").iter().map(|value| value[field].as_str().expect("a text")).collect()
}

/// Messages of one node, in order.
fn said<'a>(explanation: &'a Value, node: &str) -> Vec<&'a str> {
    let timeline = explanation["timeline"].as_array().expect("a timeline");
    let of_node = timeline.iter().filter(|event| event["node"] == node);
    of_node.map(|event| event["message"].as_str().expect("a message")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_savepoint_is_told_from_its_reservation_to_its_end_by_every_node() {
    let mut cluster = Cluster::start(2, 1);
    let job = running_job(&cluster).await;
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    let id = savepoint["id"].as_str().expect("an id");
    let explained = cluster.weir_json(&["snapshots", "explain", id]);
    let took = savepoint["ended_at_ms"].as_u64().expect("a time") - savepoint["triggered_at_ms"].as_u64().expect("one");
    assert_eq!(explained["summary"], format!("savepoint {id} completed in {took} ms"));
    assert_eq!(
        texts(&explained["steps"], "name")[..7],
        ["reserving", "reserved", "reader groups", "barriers sent", "acknowledged", "published", "completed"]
    );
    assert_eq!(texts(&explained["nodes"], "name"), ["jobmanager", "tm-1", "tm-2", "store"]);
    for node in explained["nodes"].as_array().expect("nodes") {
        assert_eq!(node["failure"], Value::Null, "{node}");
        assert!(node["events"].as_u64().expect("a count") > 0, "{node}");
    }
    for node in ["tm-1", "tm-2"] {
        let said = said(&explained, node);
        for message in ["barrier triggered", "frozen", "snapshot written", "snapshot acknowledged"] {
            assert!(said.contains(&message), "{node} said {said:?}");
        }
    }
    assert!(said(&explained, "store").contains(&"pinned"), "{explained:#}");
    let times: Vec<u64> = explained["timeline"]
        .as_array()
        .expect("a timeline")
        .iter()
        .map(|event| event["at_us"].as_u64().expect("a time"))
        .collect();
    assert!(times.is_sorted(), "{times:?}");

    let text = cluster.weir(&["snapshots", "explain", id]).stdout;
    assert_eq!(text.lines().next(), Some(format!("savepoint {id} completed in {took} ms").as_str()));

    // What it has said before a restart, the JobManager finds in its log.
    cluster.kill("jobmanager");
    cluster.restart("jobmanager");
    let again = cluster.weir_json(&["snapshots", "explain", id]);
    assert_eq!(again["summary"], explained["summary"]);
    assert_eq!(texts(&again["steps"], "name")[..4], ["reserving", "barriers sent", "acknowledged", "completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_that_timed_out_names_who_had_not_acknowledged_and_who_does_not_answer() {
    let cluster = Cluster::start(2, 1);
    let job = running_job(&cluster).await;
    let detail = cluster.weir_json(&["job", "show", &job]);
    cluster.freeze("tm-2");
    let ran = cluster.weir(&["savepoint", &job, "--timeout", "700ms"]);
    assert_eq!(ran.code, 16, "{}", ran.stderr);
    let id = format!("sp-{}-1", &job[..8]);
    let explained = cluster.weir_json(&["snapshots", "explain", &id]);
    cluster.thaw("tm-2");

    let failure = &explained["snapshot"]["failure"];
    assert_eq!(failure["code"], "TIMEOUT", "{explained:#}");
    let mut frozen = Vec::new();
    for chain in detail["chains"].as_array().expect("chains") {
        for subtask in chain["subtasks"].as_array().expect("subtasks") {
            if subtask["task_manager"] == "tm-2" {
                frozen.push(format!("{}/{}", chain["id"], subtask["index"]));
            }
        }
    }
    let named = failure["detail"].as_str().expect("a detail").split_once("missing: ").expect("names").1;
    for subtask in &frozen {
        assert!(named.split(", ").any(|missing| missing == subtask), "{subtask} is not among {named}");
    }
    let summary = explained["summary"].as_str().expect("a summary");
    assert!(summary.starts_with(&format!("savepoint {id} failed after ")), "{summary}");
    assert!(summary.ends_with(&format!("({})", failure["detail"].as_str().expect("a detail"))), "{summary}");
    let silent: Vec<&Value> =
        explained["nodes"].as_array().expect("nodes").iter().filter(|node| !node["failure"].is_null()).collect();
    assert_eq!(silent.len(), 1, "{silent:?}");
    assert_eq!((&silent[0]["name"], &silent[0]["failure"]["code"]), (&json!("tm-2"), &json!("TIMEOUT")));
    // The other one waited for barriers that never came, and was told so.
    assert!(said(&explained, "tm-1").contains(&"snapshot failed"), "{explained:#}");
    assert!(explained["hints"].as_array().is_some_and(|hints| !hints.is_empty()), "{explained:#}");
    assert_eq!(texts(&explained["steps"], "name")[..4], ["reserving", "reserved", "reader groups", "barriers sent"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_savepoint_is_still_explained_and_an_unknown_one_is_not_found() {
    let cluster = Cluster::start(1, 2);
    let job = running_job(&cluster).await;
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    let id = savepoint["id"].as_str().expect("an id");
    cluster.weir_json(&["checkpoint", &job]);
    let deleted = delete(&cluster, id).await;
    assert_eq!(deleted.snapshot.map(|snapshot| snapshot.id), Some(id.to_owned()));
    let text = cluster.weir(&["snapshots", "explain", id]);
    let first = text.stdout.lines().next();
    assert_eq!(
        first,
        Some(format!("snapshot {id} is no longer in the catalogue: it was deleted").as_str()),
        "{}",
        text.stderr
    );
    let unknown = cluster.weir(&["snapshots", "explain", "sp-00000000-7"]);
    assert_eq!(unknown.code, 6);
    assert_eq!(
        unknown.stderr,
        "error[NOT_FOUND]: snapshot sp-00000000-7 is not in the catalogue, and no log mentions it\n  hint: `weir snapshots list` shows all of them.\n"
    );
    let hostile = cluster.weir(&["snapshots", "explain", "../../x"]);
    assert_eq!(hostile.code, 2, "{}", hostile.stderr);
}

async fn delete(cluster: &Cluster, snapshot: &str) -> pb::DeleteSnapshotReply {
    let address = format!("http://{}", cluster.address("jobmanager"));
    let mut client = ClientClient::connect(address).await.expect("a JobManager");
    let request = pb::DeleteSnapshotRequest { snapshot: snapshot.to_owned(), ..Default::default() };
    client.delete_snapshot(request).await.expect("a deletion").into_inner()
}
