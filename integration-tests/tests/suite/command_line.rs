//! What the command line shows is what there is.

use serde_json::{Value, json};
use weir_integration_tests::cluster::Cluster;

const EVENTS: u64 = 50_000;

/// Auctions of a bounded generator, into a stream of Arrow rows.
fn auctions() -> String {
    format!(
        "CREATE TABLE events (event_type INT, auction ROW<id BIGINT, category BIGINT>)
         WITH ('connector' = 'nexmark', 'events.num' = '{EVENTS}', 'splits' = '2');
         CREATE TABLE auctions (id BIGINT, name STRING, even BOOLEAN)
         WITH ('connector' = 'stream-store', 'stream' = 'test/auctions', 'format' = 'arrow', 'sink.partitions' = '2');
         INSERT INTO auctions SELECT auction.id, CONCAT('a', CAST(auction.id AS STRING)), MOD(auction.id, 2) = 0
         FROM events WHERE event_type = 1;"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_still_tells_what_it_did_and_its_arrow_rows_are_read_as_json() {
    let cluster = Cluster::start(2, 1);
    let script = cluster.write("auctions.sql", &auctions());
    let ended = cluster.weir_json(&["run", "-p", "2", &script]);
    assert_eq!(ended["state"], "FINISHED");
    // Of 50 events 3 are auctions.
    let expected = EVENTS * 3 / 50;
    let detail = cluster.weir_json(&["job", "show", "auctions"]);
    assert_eq!(detail["rows_out"], expected, "{detail:#}");
    let subtasks = detail["chains"].as_array().expect("chains").iter().flat_map(|chain| chain["subtasks"].as_array());
    let states: Vec<&Value> = subtasks.flatten().map(|subtask| &subtask["state"]).collect();
    assert!(!states.is_empty() && states.iter().all(|state| *state == "FINISHED"), "{detail:#}");

    let read = cluster.weir(&["stream", "read", "test/auctions"]);
    assert_eq!(read.code, 0, "{}", read.stderr);
    let mut ids: Vec<i64> = Vec::new();
    for line in read.stdout.lines() {
        let row: Value = serde_json::from_str(line).expect("a JSON line");
        let id = row["id"].as_i64().expect("an id");
        assert_eq!(row, json!({"id": id, "name": format!("a{id}"), "even": id % 2 == 0}));
        ids.push(id);
    }
    ids.sort_unstable();
    let expected: Vec<i64> = (1_000..).take(usize::try_from(expected).expect("a count")).collect();
    assert_eq!(ids, expected);
    let read = cluster.weir(&["stream", "read", "test/auctions", "--partition", "1", "--limit", "1", "--json"]);
    let place: Value = serde_json::from_str(&read.stdout).expect("one JSON line");
    assert_eq!((&place["partition"], &place["offset"]), (&json!(1), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_read_with_their_keys_and_lines_that_are_no_objects_are_refused() {
    let cluster = Cluster::start(0, 1);
    let good = cluster.write("good.jsonl", "{\"user\":\"ann\",\"n\":1}\n{\"user\":7,\"n\":2}\n");
    let ran = cluster.weir(&["stream", "append", "test/in", &good, "--create", "1", "--key", "user"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let read = cluster.weir(&["stream", "read", "test/in", "--json"]);
    let rows: Vec<Value> = read.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let row = |offset: u64, key: &str, value: Value| json!({"partition": 0, "offset": offset, "key": key, "event_time_ms": null, "value": value});
    assert_eq!(rows, [row(0, "ann", json!({"user": "ann", "n": 1})), row(1, "7", json!({"user": 7, "n": 2}))]);
    for line in ["[1, 2]", "\"text\"", "{\"a\":"] {
        let bad = cluster.write("bad.jsonl", &format!("{{\"n\":3}}\n{line}\n"));
        for arguments in [&["stream", "append", "test/in", &bad][..], &["stream", "append", "test/in", &bad, "-k", "n"]]
        {
            let ran = cluster.weir(arguments);
            assert_eq!(ran.code, 5, "{line}: {}", ran.stderr);
            assert!(ran.stderr.starts_with("error[MALFORMED_RECORD]: line 2 is not a JSON object"), "{}", ran.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_is_reported_once_it_has_ended() {
    let cluster = Cluster::start(1, 1);
    let ran = cluster.weir(&["stream", "create", "test/in"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let script = cluster.write(
        "copy.sql",
        "CREATE TABLE a (n INT) WITH ('connector' = 'stream-store', 'stream' = 'test/in');
         CREATE TABLE b (n INT) WITH ('connector' = 'blackhole');
         INSERT INTO b SELECT n FROM a;",
    );
    cluster.weir_json(&["run", "-d", &script]);
    assert_eq!(cluster.weir_json(&["cancel", "copy"])["state"], "CANCELLED");
}
