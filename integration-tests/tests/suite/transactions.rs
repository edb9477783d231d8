//! Transactions of a stream through real processes: what readers are shown, across a kill of the store, and what the
//! command line says and does about them.

use std::time::Duration;

use serde_json::json;
use weir_integration_tests::cluster::Cluster;
use weir_stream_store::client::{LiveTransaction, Producer, ProducerOptions, StoreClient};
use weir_types::ids::{Epoch, ProducerId, TransactionId};
use weir_types::store::{StreamOptions, TransactionSpec};
use weir_types::stream::{StreamCut, StreamName};

fn id(id: &str) -> TransactionId {
    TransactionId::new(id).expect("a name")
}

async fn write(client: &StoreClient, stream: &StreamName, transaction: &str, value: &str) {
    let producer = ProducerId::new(format!("p-{transaction}")).expect("a name");
    let spec = TransactionSpec { id: id(transaction), producer: producer.clone(), epoch: Epoch(0), lease_ms: 600_000 };
    let info = client.begin_transaction(stream, &spec).await.expect("begun");
    let options = ProducerOptions { id: Some(producer), ..ProducerOptions::default() };
    let mut producer = Producer::open(client, stream, options).await.expect("open");
    producer.enter_transaction(Some(info.number)).await.expect("entered");
    producer.send(None, value.as_bytes(), None).await.expect("sent");
    producer.flush().await.expect("durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_outlive_a_kill_of_the_store_and_are_listed_and_aborted_by_hand() {
    let mut cluster = Cluster::start(0, 1);
    let client = StoreClient::connect(&cluster.address("store")).expect("an address");
    let stream: StreamName = "test/tx".parse().expect("a name");
    client.create_stream(&stream, &StreamOptions::new(1), false).await.expect("created");
    for (transaction, value) in [("committed", "a"), ("prepared", "b"), ("open", "c")] {
        write(&client, &stream, transaction, value).await;
    }
    for prepared in ["committed", "prepared"] {
        client.prepare_transaction(&stream, &id(prepared), &StreamCut::default(), None).await.expect("prepared");
    }
    client.commit_transactions(&stream, &[id("committed")]).await.expect("committed");

    cluster.kill("store");
    cluster.restart("store");
    let client = StoreClient::connect(&cluster.address("store")).expect("an address");
    client.wait_ready(Duration::from_secs(60)).await.expect("the store is back");
    let read = |isolation: &str| {
        let read = cluster.weir(&["stream", "read", "test/tx", "--isolation", isolation]);
        assert_eq!(read.code, 0, "{}", read.stderr);
        read.stdout
    };
    assert_eq!((read("committed").as_str(), read("uncommitted").as_str()), ("a\n", "a\nb\nc\n"));
    let list = || {
        let all = cluster.weir_json(&["stream", "transactions", "list", "test/tx"]);
        let all = all.as_array().expect("a list").iter();
        all.map(|info| json!([info["spec"]["id"], info["state"]])).collect::<Vec<_>>()
    };
    let before = [json!(["committed", "committed"]), json!(["prepared", "prepared"]), json!(["open", "open"])];
    assert_eq!(list(), before);

    let refused = cluster.weir(&["stream", "transactions", "abort", "test/tx", "open", "prepared"]);
    assert!(
        refused.stderr.starts_with("error[FAILED_PRECONDITION]: transaction prepared is prepared"),
        "{}",
        refused.stderr
    );
    assert_eq!(list(), before, "all or none");
    let unknown = cluster.weir(&["stream", "transactions", "abort", "test/tx", "other"]);
    assert!(unknown.stderr.starts_with("error[NOT_FOUND]"), "{}", unknown.stderr);
    let aborted = cluster.weir(&["stream", "transactions", "abort", "test/tx", "open"]);
    assert_eq!((aborted.code, aborted.stdout.as_str()), (0, "transaction open aborted\n"), "{}", aborted.stderr);
    client.commit_transactions(&stream, &[id("prepared")]).await.expect("committed");
    assert_eq!(read("committed"), "a\nb\n");
    let by_hand = json!(["open", {"aborted": {"reason": "by hand"}}]);
    assert_eq!(list(), [json!(["committed", "committed"]), json!(["prepared", "committed"]), by_hand]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_outlives_an_outage_that_is_longer_than_its_lease() {
    let (lease, outage) = (Duration::from_secs(4), Duration::from_secs(6));
    let mut cluster = Cluster::start(0, 1);
    let client = StoreClient::connect(&cluster.address("store")).expect("an address");
    let stream: StreamName = "test/tx".parse().expect("a name");
    client.create_stream(&stream, &StreamOptions::new(1), false).await.expect("created");
    let name = ProducerId::new("p").expect("a name");
    let lease_ms = lease.as_millis() as u64;
    let spec = TransactionSpec { id: id("long"), producer: name.clone(), epoch: Epoch(0), lease_ms };
    let transaction = LiveTransaction::begin(&client, &stream, &spec).await.expect("begun");
    let options = ProducerOptions { id: Some(name), ..ProducerOptions::default() };
    let mut producer = Producer::open(&client, &stream, options).await.expect("open");
    producer.enter_transaction(Some(transaction.number())).await.expect("entered");
    producer.send(None, b"before", None).await.expect("sent");
    producer.flush().await.expect("durable");

    cluster.kill("store");
    producer.send(None, b"meanwhile", None).await.expect("sent");
    tokio::time::sleep(outage).await;
    cluster.restart("store");
    client.wait_ready(Duration::from_secs(60)).await.expect("the store is back");

    let ends = producer.flush().await.expect("durable");
    client.prepare_transaction(&stream, transaction.id(), &ends, None).await.expect("prepared");
    client.commit_transactions(&stream, &[id("long")]).await.expect("committed");
    let read = cluster.weir(&["stream", "read", "test/tx"]);
    assert_eq!((read.code, read.stdout.as_str()), (0, "before\nmeanwhile\n"), "{}", read.stderr);
}
