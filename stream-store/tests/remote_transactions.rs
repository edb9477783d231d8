//! Transactions over a real socket: readers are told of decisions, resume across what was aborted, and a restart of the
//! store interrupts nobody.

#![expect(clippy::unwrap_used, reason = "test helpers panic like tests; clippy exempts only test functions")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use tempfile::TempDir;
use weir_stream_store::client::{LiveTransaction, Producer, ProducerOptions, Reader, ReaderOptions, StoreClient};
use weir_types::ids::{Epoch, PartitionId, ProducerId, TransactionId};
use weir_types::store::{Isolation, StreamOptions, TransactionSpec, TransactionState};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Code, Result};

use support::Server;

fn name() -> StreamName {
    "shop/orders".parse().unwrap()
}

fn id(id: &str) -> TransactionId {
    TransactionId::new(id).unwrap()
}

fn cut(offsets: &[(u32, u64)]) -> StreamCut {
    StreamCut(offsets.iter().map(|(p, offset)| (PartitionId(*p), Offset(*offset))).collect())
}

/// A producer that writes transactions.
struct Writer {
    client: StoreClient,
    producer: Producer,
    id: ProducerId,
}

impl Writer {
    async fn open(client: &StoreClient, id: &str) -> Self {
        let id = ProducerId::new(id).unwrap();
        let options = ProducerOptions { id: Some(id.clone()), epoch: Epoch(1), ..ProducerOptions::default() };
        let producer = Producer::open(client, &name(), options).await.unwrap();
        Self { client: client.clone(), producer, id }
    }

    async fn begin(&mut self, transaction: &str) -> LiveTransaction {
        let spec = TransactionSpec { id: id(transaction), producer: self.id.clone(), epoch: Epoch(1), lease_ms: 1_000 };
        let live = LiveTransaction::begin(&self.client, &name(), &spec).await.unwrap();
        self.producer.enter_transaction(Some(live.number())).await.unwrap();
        live
    }

    async fn send(&mut self, partition: u32, values: &[&str]) {
        for value in values {
            self.producer.send_to(PartitionId(partition), None, value.as_bytes(), None).await.unwrap();
            // Every value is a block of its own.
            self.producer.flush().await.unwrap();
        }
    }

    async fn prepare(&mut self, live: LiveTransaction) {
        let ends = self.producer.flush().await.unwrap();
        self.client.prepare_transaction(&name(), live.id(), &ends, None).await.unwrap();
    }
}

async fn collect(client: &StoreClient, from: StreamCut, until: StreamCut, isolation: Isolation) -> Vec<(u64, String)> {
    let options = ReaderOptions { until: Some(until.clone()), isolation, ..ReaderOptions::default() };
    let mut reader = Reader::open(client, &name(), from, options);
    let mut read = Vec::new();
    while let Some(block) = reader.next().await.unwrap() {
        for (offset, record) in (block.first.0..).zip(block.records().unwrap()) {
            read.push((offset, String::from_utf8(record.value.to_vec()).unwrap()));
        }
    }
    assert_eq!(reader.positions(), until);
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_waits_is_pushed_a_transaction_when_it_is_committed() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(2), false).await.unwrap();
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0), (1, 0)]), ReaderOptions::default());
    let mut writer = Writer::open(&client, "w").await;
    let live = writer.begin("t").await;
    writer.send(0, &["a", "b"]).await;
    writer.send(1, &["c"]).await;
    // Nothing comes, however long one waits; that much can be seen in a moment.
    assert!(tokio::time::timeout(Duration::from_millis(50), reader.next()).await.is_err());
    let number = live.number();
    writer.prepare(live).await;
    let late = writer.producer.send_to(PartitionId(0), None, b"late", None).await;
    assert!(late.is_ok());
    assert_eq!(writer.producer.flush().await.unwrap_err().code, Code::FailedPrecondition);
    client.commit_transactions(&name(), &[id("t")]).await.unwrap();
    let mut values = Vec::new();
    while values.len() < 3 {
        let block = reader.next().await.unwrap().unwrap();
        values.extend(block.records().unwrap().map(|record| String::from_utf8(record.value.to_vec()).unwrap()));
    }
    values.sort();
    assert_eq!(values, ["a", "b", "c"]);
    let known = client.transactions(&name()).await.unwrap();
    assert_eq!((known[0].number, &known[0].state), (number, &TransactionState::Committed));
    client.acknowledge_transactions(&name(), &[id("t")]).await.unwrap();
    assert_eq!(client.transactions(&name()).await.unwrap(), []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounded_reads_from_every_offset_leave_out_what_was_aborted_and_end() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    let (mut kept, mut gone, mut plain) = (
        Writer::open(&client, "kept").await,
        Writer::open(&client, "gone").await,
        Writer::open(&client, "plain").await,
    );
    let good = kept.begin("good").await;
    let bad = gone.begin("bad").await;
    gone.send(0, &["x0", "x1"]).await;
    kept.send(0, &["k2"]).await;
    gone.send(0, &["x3"]).await;
    plain.send(0, &["p4"]).await;
    kept.send(0, &["k5"]).await;
    gone.send(0, &["x6", "x7"]).await;
    kept.prepare(good).await;
    gone.prepare(bad).await;
    client.commit_transactions(&name(), &[id("good")]).await.unwrap();
    client.abort_transactions(&name(), &[id("bad")], "for a test").await.unwrap();
    let committed = [(2, "k2"), (4, "p4"), (5, "k5")];
    let all = [(0, "x0"), (1, "x1"), (2, "k2"), (3, "x3"), (4, "p4"), (5, "k5"), (6, "x6"), (7, "x7")];
    let between = |values: &[(u64, &str)], from: u64, until: u64| {
        let inside = values.iter().filter(|(offset, _)| (from..until).contains(offset));
        inside.map(|(offset, value)| (*offset, (*value).to_owned())).collect::<Vec<_>>()
    };
    for from in 0..8 {
        for until in from..=8 {
            let (start, end) = (cut(&[(0, from)]), cut(&[(0, until)]));
            let read = collect(&client, start.clone(), end.clone(), Isolation::Committed).await;
            assert_eq!(read, between(&committed, from, until), "{from}..{until}");
            let read = collect(&client, start, end, Isolation::Uncommitted).await;
            assert_eq!(read, between(&all, from, until), "{from}..{until}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_store_interrupts_neither_writers_nor_readers_of_transactions() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    let mut writer = Writer::open(&client, "w").await;
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0)]), ReaderOptions::default());
    let live = writer.begin("t").await;
    writer.send(0, &["a"]).await;
    let address = server.stop().await;
    writer.producer.send_to(PartitionId(0), None, b"b", None).await.unwrap();
    let server = Server::start_on(dir.path(), address).await;
    let ends = writer.producer.flush().await.unwrap();
    assert_eq!(ends, cut(&[(0, 2)]));
    writer.prepare(live).await;
    let address = server.stop().await;
    let server = Server::start_on(dir.path(), address).await;
    client.wait_ready(Duration::from_secs(30)).await.unwrap();
    client.commit_transactions(&name(), &[id("t")]).await.unwrap();
    let mut values = Vec::new();
    while values.len() < 2 {
        let block = reader.next().await.unwrap().unwrap();
        values.extend(block.records().unwrap().map(|record| String::from_utf8(record.value.to_vec()).unwrap()));
    }
    assert_eq!(values, ["a", "b"]);
    server.stop().await;
}

/// Repeats a step until the store is back and has answered it.
async fn insist<T, F: Future<Output = Result<T>>>(mut step: impl FnMut() -> F) -> T {
    loop {
        match step().await {
            Err(error) if error.code.is_retryable() => tokio::time::sleep(Duration::from_millis(5)).await,
            answered => return answered.unwrap(),
        }
    }
}

const TRANSACTIONS: u32 = 30;
const RECORDS: u32 = 4;

/// Writes transactions over both partitions and commits those that `commits` says; the others are aborted.
async fn write_transactions(client: StoreClient, writer: u32, commits: impl Fn(u32) -> bool) {
    let stream = name();
    let producer = ProducerId::new(format!("writer.{writer}")).unwrap();
    let options = ProducerOptions { id: Some(producer.clone()), epoch: Epoch(1), ..ProducerOptions::default() };
    let mut writing = insist(|| Producer::open(&client, &stream, options.clone())).await;
    for number in 0..TRANSACTIONS {
        let ids = [id(&format!("t-{writer}-{number}"))];
        let spec =
            TransactionSpec { id: ids[0].clone(), producer: producer.clone(), epoch: Epoch(1), lease_ms: 60_000 };
        let live = insist(|| LiveTransaction::begin(&client, &stream, &spec)).await;
        writing.enter_transaction(Some(live.number())).await.unwrap();
        for record in 0..RECORDS {
            let value = format!("{writer}-{number}-{record}");
            writing.send_to(PartitionId(record % 2), None, value.as_bytes(), None).await.unwrap();
        }
        let ends = writing.flush().await.unwrap();
        insist(|| client.prepare_transaction(&stream, live.id(), &ends, None)).await;
        if commits(number) {
            insist(|| client.commit_transactions(&stream, &ids)).await;
        } else {
            insist(|| client.abort_transactions(&stream, &ids, "for a test")).await;
        }
        insist(|| client.acknowledge_transactions(&stream, &ids)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_side_by_side_and_restarts_of_the_store_show_readers_each_committed_record_once() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(2), false).await.unwrap();
    let commits = |writer: u32| move |number: u32| !(number + writer).is_multiple_of(3);
    let writers: Vec<_> =
        (0..3).map(|writer| tokio::spawn(write_transactions(server.client(), writer, commits(writer)))).collect();
    let mut expected = BTreeSet::new();
    for writer in 0..3 {
        for number in (0..TRANSACTIONS).filter(|number| commits(writer)(*number)) {
            expected.extend((0..RECORDS).map(|record| format!("{writer}-{number}-{record}")));
        }
    }
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0), (1, 0)]), ReaderOptions::default());
    let mut seen = BTreeSet::new();
    // Of every writer and partition: records come in the order in which they were sent.
    let mut latest: BTreeMap<(u32, PartitionId), (u32, u32)> = BTreeMap::new();
    let restarts_at = [expected.len() / 4, expected.len() / 2];
    let mut restarts = restarts_at.iter().peekable();
    while seen.len() < expected.len() {
        let block = reader.next().await.unwrap().unwrap();
        for record in block.records().unwrap() {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            let numbers: Vec<u32> = value.split('-').map(|number| number.parse().unwrap()).collect();
            let place = (numbers[1], numbers[2]);
            let before = latest.insert((numbers[0], block.partition), place);
            assert!(before.is_none_or(|before| before < place), "{value} after {before:?}");
            assert!(expected.contains(&value) && seen.insert(value.clone()), "{value}");
        }
        if restarts.next_if(|at| seen.len() >= **at).is_some() {
            let address = server.stop().await;
            server = Server::start_on(dir.path(), address).await;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(client.transactions(&name()).await.unwrap(), []);
    // Whoever reads it again later sees the same.
    let info = client.describe_stream(&name()).await.unwrap();
    assert_eq!(info.readable_ends(Isolation::Committed), info.ends());
    let again = collect(&client, info.heads(), info.ends(), Isolation::Committed).await;
    assert_eq!(again.len(), expected.len());
    assert_eq!(again.into_iter().map(|(_, value)| value).collect::<BTreeSet<_>>(), expected);
    server.stop().await;
}
