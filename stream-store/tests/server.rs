//! Server and client over a real socket: appends, tailing, bounded reads, restarts.

#![expect(clippy::unwrap_used, reason = "test helpers panic like tests; clippy exempts only test functions")]

mod support;

use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use weir_stream_store::client::{Producer, ProducerOptions, ReadBlock, Reader, ReaderOptions, StoreClient};
use weir_stream_store::{RecordBlock, RecordBlockBuilder};
use weir_types::Code;
use weir_types::error::Facts;
use weir_types::ids::{ClusterId, Epoch, PartitionId, PinHolder, ProducerId, Term};
use weir_types::store::{Pin, PinHold, ProducerStamp, StreamOptions};
use weir_types::stream::{Offset, StreamCut, StreamName};

use support::Server;

fn name() -> StreamName {
    "shop/clicks".parse().unwrap()
}

fn block(values: &[&str]) -> RecordBlock {
    let mut builder = RecordBlockBuilder::default();
    for value in values {
        builder.push(None, value.as_bytes(), None).unwrap();
    }
    builder.finish()
}

fn cut(offsets: &[(u32, u64)]) -> StreamCut {
    StreamCut(offsets.iter().map(|(p, offset)| (PartitionId(*p), Offset(*offset))).collect())
}

fn values(block: &ReadBlock) -> Vec<String> {
    block.records().unwrap().map(|record| String::from_utf8(record.value.to_vec()).unwrap()).collect()
}

async fn read_all(client: &StoreClient, from: StreamCut, until: StreamCut) -> Vec<(PartitionId, u64, String)> {
    let options = ReaderOptions { until: Some(until), ..ReaderOptions::default() };
    let mut reader = Reader::open(client, &name(), from, options);
    let mut read = Vec::new();
    while let Some(block) = reader.next().await.unwrap() {
        for (index, value) in values(&block).into_iter().enumerate() {
            read.push((block.partition, block.first.0 + index as u64, value));
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_pushed_what_is_appended() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(2), false).await.unwrap();
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0), (1, 0)]), ReaderOptions::default());
    for round in 0..3u64 {
        let appended = client.append(&name(), PartitionId(1), &block(&["a", "b"]), None).await.unwrap();
        assert_eq!(appended.base_offset, Offset(round * 2));
        let read = reader.next().await.unwrap().unwrap();
        assert_eq!((read.partition, read.first, read.end), (PartitionId(1), Offset(round * 2), Offset(round * 2 + 2)));
        assert_eq!(values(&read), ["a", "b"]);
    }
    assert_eq!(reader.positions(), cut(&[(0, 0), (1, 6)]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_read_begins_and_ends_within_blocks() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    for values in [["0", "1", "2"], ["3", "4", "5"]] {
        client.append(&name(), PartitionId(0), &block(&values), None).await.unwrap();
    }
    let read = read_all(&client, cut(&[(0, 1)]), cut(&[(0, 4)])).await;
    let expected: Vec<_> = (1..4).map(|i| (PartitionId(0), i, i.to_string())).collect();
    assert_eq!(read, expected);
    assert_eq!(read_all(&client, cut(&[(0, 2)]), cut(&[(0, 2)])).await, []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_read_leaves_alone_whatever_blocks_come_behind_its_end() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    for i in 0..10 {
        client.append(&name(), PartitionId(0), &block(&[&i.to_string()]), None).await.unwrap();
    }
    let read = read_all(&client, cut(&[(0, 1)]), cut(&[(0, 4)])).await;
    let expected: Vec<_> = (1..4).map(|i| (PartitionId(0), i, i.to_string())).collect();
    assert_eq!(read, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_store_costs_a_pause_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(3), false).await.unwrap();
    let options = ProducerOptions { block_bytes: 2048, linger: Duration::from_millis(1), ..Default::default() };
    let mut producer = Producer::open(&client, &name(), options).await.unwrap();
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0), (1, 0), (2, 0)]), ReaderOptions::default());

    const RECORDS: u64 = 30_000;
    let reading = tokio::spawn(async move {
        let mut read = Vec::new();
        while (read.len() as u64) < RECORDS {
            let block = reader.next().await.unwrap().unwrap();
            read.extend(values(&block).into_iter().map(|value| value.parse::<u64>().unwrap()));
        }
        (read, reader.positions())
    });
    for i in 0..RECORDS {
        producer.send(Some(&(i % 100).to_le_bytes()), i.to_string().as_bytes(), None).await.unwrap();
        if i % 10_000 == 5_000 {
            let address = server.stop().await;
            server = Server::start_on(dir.path(), address).await;
        }
    }
    let ends = producer.flush().await.unwrap();
    let (mut read, positions) = reading.await.unwrap();
    assert_eq!(positions, ends);
    read.sort_unstable();
    assert_eq!(read, (0..RECORDS).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stamped_block_sent_twice_is_there_once() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    let stamp = |epoch, sequence| ProducerStamp {
        producer: ProducerId::new("p").unwrap(),
        epoch: Epoch(epoch),
        sequence,
        transaction: None,
    };
    let append = async |epoch, sequence| {
        client.append(&name(), PartitionId(0), &block(&["x"]), Some(&stamp(epoch, sequence))).await
    };
    let first = append(1, 0).await.unwrap();
    assert!(!first.duplicate);
    let again = append(1, 0).await.unwrap();
    assert_eq!((again.base_offset, again.duplicate), (first.base_offset, true));
    let gap = append(1, 2).await.unwrap_err();
    assert_eq!((gap.code, gap.facts.as_deref()), (Code::SequenceGap, Some(&Facts::SequenceGap { expected: 1 })));
    assert_eq!(append(0, 0).await.unwrap_err().code, Code::Fenced);
    assert_eq!(client.describe_stream(&name()).await.unwrap().ends(), cut(&[(0, 1)]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opened_producer_has_fenced_its_family_in_every_partition_before_its_first_block() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(3), false).await.unwrap();
    let append = async |client: &StoreClient, producer: &str, epoch, sequence, partition| {
        let stamp = ProducerStamp {
            producer: ProducerId::new(producer).unwrap(),
            epoch: Epoch(epoch),
            sequence,
            transaction: None,
        };
        client.append(&name(), PartitionId(partition), &block(&["x"]), Some(&stamp)).await.map_err(|error| error.code)
    };
    let open = async |client: &StoreClient, epoch| {
        let options = ProducerOptions {
            id: Some(ProducerId::new("job.sink.0").unwrap()),
            epoch: Epoch(epoch),
            family: Some(ProducerId::new("job.sink").unwrap()),
            ..ProducerOptions::default()
        };
        Producer::open(client, &name(), options).await
    };
    append(&client, "job.sink.0", 1, 0, 0).await.unwrap();
    append(&client, "job.sink.3", 1, 0, 1).await.unwrap();
    drop(open(&client, 2).await.unwrap());
    let refuses = async |client: &StoreClient| {
        for partition in 0..3 {
            // Subtask 3 has no successor; it goes on from its last block, or repeats it.
            for (producer, sequence) in [("job.sink.0", 0), ("job.sink.3", 0), ("job.sink.3", 1)] {
                assert_eq!(append(client, producer, 1, sequence, partition).await, Err(Code::Fenced));
            }
        }
    };
    refuses(&client).await;
    assert_eq!(client.describe_stream(&name()).await.unwrap().ends(), cut(&[(0, 1), (1, 1), (2, 0)]));
    server.stop().await;

    let server = Server::start(dir.path()).await;
    let client = server.client();
    refuses(&client).await;
    assert_eq!(open(&client, 1).await.map(drop).unwrap_err().code, Code::Fenced);
    append(&client, "job.sink2.0", 1, 0, 0).await.unwrap();
    let mut newer = open(&client, 2).await.unwrap();
    newer.send_to(PartitionId(2), None, b"y", None).await.unwrap();
    assert_eq!(newer.flush().await.unwrap(), cut(&[(2, 1)]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncation_stops_at_a_pin_and_readers_below_the_head_are_told() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    client.append(&name(), PartitionId(0), &block(&["0", "1", "2", "3"]), None).await.unwrap();
    let holder = PinHolder::new("sp-1").unwrap();
    client.pin(&name(), &holder, &cut(&[(0, 1)])).await.unwrap();
    let [(held, hold)] = &client.holds(&name()).await.unwrap()[..] else { panic!("there is one pin") };
    let stored = client.describe_stream(&name()).await.unwrap().partitions[0].bytes;
    assert_eq!((&held.holder, *hold), (&holder, PinHold { records: 3, bytes: stored }), "segments go as a whole");
    let refused = client.truncate(&name(), &cut(&[(0, 2)]), false).await.unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("sp-1"), "{refused}");
    assert_eq!(client.truncate(&name(), &cut(&[(0, 1)]), false).await.unwrap().heads, cut(&[(0, 1)]));
    assert_eq!(client.broken_pins().await.unwrap(), []);
    let forced = client.truncate(&name(), &cut(&[(0, 2)]), true).await.unwrap();
    let [broken] = &forced.overrun[..] else { panic!("one pin was in the way: {forced:?}") };
    assert_eq!((&broken.holder, &broken.cut, broken.holds()), (&holder, &cut(&[(0, 1)]), false));
    assert_eq!(client.broken_pins().await.unwrap(), [(name(), broken.clone())]);
    assert_eq!(client.holds(&name()).await.unwrap(), [(broken.clone(), PinHold::default())]);
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0)]), ReaderOptions::default());
    let error = reader.next().await.unwrap_err();
    assert_eq!(error.code, Code::OffsetTruncated);
    assert_eq!(error.facts.as_deref(), Some(&Facts::OffsetTruncated { head: Offset(2) }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_pin_holds_nothing_and_is_remembered_until_its_holder_drops_or_moves_it() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    client.append(&name(), PartitionId(0), &block(&["0", "1", "2", "3"]), None).await.unwrap();
    let [first, second] = ["sp-1", "sp-2"].map(|holder| PinHolder::new(holder).unwrap());
    for holder in [&first, &second] {
        client.pin(&name(), holder, &cut(&[(0, 0)])).await.unwrap();
    }
    client.truncate(&name(), &cut(&[(0, 2)]), true).await.unwrap();
    server.stop().await;

    let server = Server::start(dir.path()).await;
    let client = server.client();
    let holders = |broken: Vec<(StreamName, Pin)>| broken.into_iter().map(|(_, pin)| pin.holder).collect::<Vec<_>>();
    assert_eq!(holders(client.broken_pins().await.unwrap()), [first.clone(), second.clone()]);
    assert_eq!(client.truncate(&name(), &cut(&[(0, 3)]), false).await.unwrap().overrun, [], "they hold nothing");
    // What is pinned anew holds again; what was lost cannot be pinned.
    assert_eq!(client.pin(&name(), &first, &cut(&[(0, 1)])).await.unwrap_err().code, Code::OffsetTruncated);
    assert!(client.pin(&name(), &first, &cut(&[(0, 3)])).await.unwrap().holds());
    assert_eq!(client.truncate(&name(), &cut(&[(0, 4)]), false).await.unwrap_err().code, Code::FailedPrecondition);
    assert_eq!(holders(client.broken_pins().await.unwrap()), std::slice::from_ref(&second));
    client.unpin(&name(), &second).await.unwrap();
    assert_eq!(client.broken_pins().await.unwrap(), []);
    // Nor does a broken pin keep a stream from being deleted.
    client.truncate(&name(), &cut(&[(0, 4)]), true).await.unwrap();
    client.delete_stream(&name(), false).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = StoreClient::connect(&address).unwrap();
    assert_eq!(client.describe_stream(&name()).await.unwrap_err().code, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_ends_its_readers() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    client.append(&name(), PartitionId(0), &block(&["x"]), None).await.unwrap();
    let mut reader = Reader::open(&client, &name(), cut(&[(0, 0)]), ReaderOptions::default());
    assert!(reader.next().await.unwrap().is_some());
    client.delete_stream(&name(), false).await.unwrap();
    assert_eq!(reader.next().await.unwrap_err().code, Code::NotFound);
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    assert_eq!(client.describe_stream(&name()).await.unwrap().ends(), cut(&[(0, 0)]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_without_keys_take_turns_also_where_blocks_never_fill() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(3), false).await.unwrap();
    let mut producer = Producer::open(&client, &name(), ProducerOptions::default()).await.unwrap();
    for i in 0..9 {
        producer.send(None, i.to_string().as_bytes(), None).await.unwrap();
        producer.flush().await.unwrap();
    }
    let info = client.describe_stream(&name()).await.unwrap();
    assert_eq!(info.ends(), cut(&[(0, 3), (1, 3), (2, 3)]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_a_leader_are_refused_once_a_later_one_has_given_any() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(dir.path()).await;
    let client = server.client();
    client.create_stream(&name(), &StreamOptions::new(1), false).await.unwrap();
    let (ours, theirs) = (ClusterId::new("ours").unwrap(), ClusterId::new("theirs").unwrap());
    let holder = PinHolder::new("snapshot").unwrap();
    for _ in 0..2 {
        let client = server.client();
        let leader = |cluster, term| client.leading(cluster, Term(term)).unwrap();
        leader(&ours, 4).pin(&name(), &holder, &cut(&[(0, 0)])).await.unwrap();
        for term in 1..4 {
            let deposed = leader(&ours, term);
            assert_eq!(deposed.unpin(&name(), &holder).await.unwrap_err().code, Code::Fenced);
            assert_eq!(deposed.list_groups(None).await.unwrap_err().code, Code::Fenced);
        }
        // Another cluster's leader, and whoever leads nothing, are not concerned.
        leader(&theirs, 1).unpin(&name(), &PinHolder::new("other").unwrap()).await.unwrap();
        assert_eq!(client.pins(&name()).await.unwrap().len(), 1);
        // What is known of terms outlives the store.
        server.stop().await;
        server = Server::start(dir.path()).await;
    }
}
