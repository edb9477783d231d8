//! Sources and sinks against a store that runs in the test.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use weir_dataflow::source::SourceEvent;
use weir_stream_store::client::{Producer, ProducerOptions, StoreClient};
use weir_stream_store::{Store, StoreConfig, server};
use weir_types::connector::ConnectorKind;
use weir_types::ids::{BarrierId, Epoch, PartitionId, ProducerId, TransactionId};
use weir_types::output::END_OF_INPUT;
use weir_types::snapshot::SplitPosition;
use weir_types::store::{FamilyDecision, Isolation, StreamOptions, TransactionSpec};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Code, splits};

use crate::testing::{Table, barrier, batch};

struct TestStore {
    address: String,
    client: StoreClient,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<weir_types::Result<()>>,
    _directory: tempfile::TempDir,
}

impl TestStore {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let store = Store::open(StoreConfig::at(directory.path())).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(server::serve(listener, store, async move {
            let _ = stopped.await;
        }));
        let client = StoreClient::connect(&address).unwrap();
        client.wait_ready(Duration::from_secs(10)).await.unwrap();
        Self { address, client, stop: Some(stop), served, _directory: directory }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }

    async fn fill(&self, stream: &StreamName, partitions: u32, records: &[(u32, Option<&str>, &str, Option<i64>)]) {
        self.client.create_stream(stream, &StreamOptions::new(partitions), true).await.unwrap();
        let mut producer = Producer::open(&self.client, stream, ProducerOptions::default()).await.unwrap();
        for (partition, key, value, time) in records {
            producer.send_to(PartitionId(*partition), key.map(str::as_bytes), value.as_bytes(), *time).await.unwrap();
        }
        producer.flush().await.unwrap();
    }

    /// All partitions from their heads to their ends as of now.
    async fn splits(&self, stream: &StreamName) -> Vec<SplitPosition> {
        let info = self.client.describe_stream(stream).await.unwrap();
        info.partitions.iter().map(|p| splits::stream_partition(p.partition, p.head, Some(p.end))).collect()
    }
}

fn stream() -> StreamName {
    "test/events".parse().unwrap()
}

fn schema() -> Schema {
    Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("s", DataType::Utf8, true)])
}

fn table(store: &TestStore, options: &[(&str, &str)]) -> Table {
    let options: Vec<_> = [("stream", "test/events")].iter().chain(options).copied().collect();
    Table::new(ConnectorKind::StreamStore, &options, schema()).at(&store.address)
}

fn ids(rows: &RecordBatch) -> Vec<i64> {
    rows["id"].as_primitive::<Int64Type>().values().to_vec()
}

fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringArray = ids.clone().map(|id| (id % 3 != 0).then(|| format!("row {id}"))).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(ids.collect::<Int64Array>()), Arc::new(texts)];
    RecordBatch::try_new(Arc::new(schema()), columns).unwrap()
}

#[tokio::test]
async fn a_bounded_read_ends_at_the_pinned_ends_from_every_position() {
    let store = TestStore::start().await;
    let texts: Vec<String> = (0..40).map(|id| format!("{{\"id\":{id}}}")).collect();
    let records: Vec<_> = (0..40).map(|id| (id % 2, None, texts[id as usize].as_str(), None)).collect();
    store.fill(&stream(), 3, &records).await;
    let splits = store.splits(&stream()).await;
    // What comes later does not belong to the bounded read.
    store.fill(&stream(), 3, &[(0, None, "{\"id\":1000}", None), (2, None, "{\"id\":1001}", None)]).await;
    let table = table(&store, &[]);
    for start in 0..=20_u64 {
        let mut splits = splits.clone();
        splits[0].offset = start;
        let read = table.read(splits, 7).await.unwrap();
        for partition in 0..2_usize {
            let found: Vec<i64> = read
                .batches
                .iter()
                .filter(|(split, ..)| *split == partition)
                .flat_map(|(_, rows, _)| ids(rows))
                .collect();
            let first = if partition == 0 { start as i64 * 2 } else { 1 };
            assert_eq!(found, (first..40).step_by(2).collect::<Vec<_>>(), "partition {partition} from {start}");
        }
        let mut finished = read.finished;
        finished.sort_unstable();
        assert_eq!(finished, [0, 1, 2]);
    }
    store.stop().await;
}

#[tokio::test]
async fn a_source_reads_committed_records_with_their_offsets_and_ends_where_aborted_ones_do() {
    let store = TestStore::start().await;
    store.fill(&stream(), 1, &[]).await;
    let spec = |name: &str| TransactionSpec {
        id: TransactionId::new(name).unwrap(),
        producer: ProducerId::new(name).unwrap(),
        epoch: Epoch(0),
        lease_ms: 60_000,
    };
    let mut writers = Vec::new();
    for name in ["kept", "gone"] {
        let info = store.client.begin_transaction(&stream(), &spec(name)).await.unwrap();
        let options = ProducerOptions { id: Some(spec(name).producer), ..ProducerOptions::default() };
        let mut producer = Producer::open(&store.client, &stream(), options).await.unwrap();
        producer.enter_transaction(Some(info.number)).await.unwrap();
        writers.push(producer);
    }
    for (writer, id) in [(0, 0), (1, 1), (1, 2), (0, 3), (0, 4), (1, 5)] {
        let value = format!("{{\"id\":{id}}}");
        writers[writer].send_to(PartitionId(0), None, value.as_bytes(), None).await.unwrap();
        writers[writer].flush().await.unwrap();
    }
    let kept = [spec("kept").id];
    store.client.prepare_transaction(&stream(), &kept[0], &StreamCut::default(), None).await.unwrap();
    store.client.commit_transactions(&stream(), &kept).await.unwrap();
    store.client.abort_transactions(&stream(), &[spec("gone").id], "for a test").await.unwrap();
    let mut table = table(&store, &[]);
    table.schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("offset", DataType::Int64, false),
    ]));
    let table = table.with_metadata(&[(1, "offset")]);
    for batch_rows in [1, 100] {
        let read = table.read(store.splits(&stream()).await, batch_rows).await.unwrap();
        let column = |name: &str| {
            let values = |rows: &RecordBatch| rows[name].as_primitive::<Int64Type>().values().to_vec();
            read.batches.iter().flat_map(|(_, rows, _)| values(rows)).collect::<Vec<_>>()
        };
        assert_eq!((column("id"), column("offset")), (vec![0, 3, 4], vec![0, 3, 4]));
        assert_eq!(read.finished, [0]);
    }
    let uncommitted = self::table(&store, &[("scan.isolation", "uncommitted")]);
    let read = uncommitted.read(store.splits(&stream()).await, 100).await.unwrap();
    assert_eq!(read.batches.iter().flat_map(|(_, rows, _)| ids(rows)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    store.stop().await;
}

#[tokio::test]
async fn metadata_columns_tell_where_records_come_from() {
    let store = TestStore::start().await;
    let records = [
        (1, Some("a"), "{\"id\":1}", Some(1_000)),
        (1, None, "nonsense", Some(2_000)),
        (1, Some("ä"), "{\"id\":3}", None),
    ];
    store.fill(&stream(), 2, &records).await;
    let mut table = table(&store, &[("json.ignore-parse-errors", "true")]);
    let ltz = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    table.schema = Arc::new(Schema::new(vec![
        Field::new("partition", DataType::Int32, false),
        Field::new("id", DataType::Int64, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("ts", ltz, true),
        Field::new("key", DataType::Utf8, true),
    ]));
    let table = table.with_metadata(&[(0, "partition"), (2, "offset"), (3, "timestamp"), (4, "key")]);
    let read = table.read(store.splits(&stream()).await, 100).await.unwrap();
    let rows = read.rows(&table.schema);
    assert_eq!(ids(&rows), [1, 3]);
    assert_eq!(rows["partition"].as_primitive::<Int32Type>().values(), &[1, 1]);
    assert_eq!(rows["offset"].as_primitive::<Int64Type>().values(), &[0, 2]);
    let times = rows["ts"].as_primitive::<TimestampMillisecondType>();
    assert_eq!(times.iter().collect::<Vec<_>>(), [Some(1_000), None]);
    assert_eq!(rows["key"].as_string::<i32>().iter().collect::<Vec<_>>(), [Some("a"), Some("ä")]);
    assert_eq!(read.batches[0].2, 3, "skipped records count for the position");
    store.stop().await;
}

#[tokio::test]
async fn malformed_records_are_named_by_partition_and_offset() {
    let store = TestStore::start().await;
    let records = [(0, None, "{\"id\":1}", None), (0, None, "{\"id\":1}", None), (0, None, "{\"id\":null}", None)];
    store.fill(&stream(), 1, &records).await;
    let mut splits = store.splits(&stream()).await;
    splits[0].offset = 1;
    let error = table(&store, &[]).read(splits, 100).await.unwrap_err();
    let message = "the record at offset 2 of partition 0 of test/events does not decode";
    assert_eq!((error.code, error.message.as_str()), (Code::MalformedRecord, message));
    store.stop().await;
}

#[tokio::test]
async fn truncated_and_missing_streams_fail_with_a_hint() {
    let store = TestStore::start().await;
    let missing = table(&store, &[]).read(vec![splits::stream_partition(PartitionId(0), Offset(0), None)], 1).await;
    let error = missing.unwrap_err();
    assert_eq!(
        (error.code, error.hint.as_deref()),
        (Code::NotFound, Some("Create it with `weir stream create test/events`."))
    );
    store.fill(&stream(), 1, &[(0, None, "{\"id\":1}", None), (0, None, "{\"id\":2}", None)]).await;
    let cut = StreamCut([(PartitionId(0), Offset(1))].into());
    store.client.truncate(&stream(), &cut, false).await.unwrap();
    let from_the_start = vec![splits::stream_partition(PartitionId(0), Offset(0), None)];
    let error = table(&store, &[]).read(from_the_start, 1).await.unwrap_err();
    assert_eq!(error.code, Code::OffsetTruncated);
    assert!(error.hint.unwrap().contains("scan.startup.mode"));
    store.stop().await;
}

#[tokio::test]
async fn an_unbounded_read_goes_on_with_what_is_appended() {
    let store = TestStore::start().await;
    store.fill(&stream(), 1, &[(0, None, "{\"id\":1}", None)]).await;
    let table = table(&store, &[]);
    let mut source = table.source(vec![splits::stream_partition(PartitionId(0), Offset(0), None)], 10).unwrap();
    for id in 1..4 {
        let SourceEvent::Rows { rows, next_offset, .. } = source.next().await.unwrap() else { panic!("unbounded") };
        assert_eq!((ids(&rows), next_offset), (vec![id], id as u64));
        assert!(futures::poll!(source.next()).is_pending(), "nothing more is there");
        let text = format!("{{\"id\":{}}}", id + 1);
        store.fill(&stream(), 1, &[(0, None, &text, None)]).await;
    }
    drop(source);
    store.stop().await;
}

#[tokio::test]
async fn a_subtask_without_splits_ends_at_once() {
    let table = Table::new(ConnectorKind::StreamStore, &[("stream", "a/b")], schema()).at("127.0.0.1:1");
    let read = table.read(Vec::new(), 10).await.unwrap();
    assert_eq!((read.batches.len(), read.finished.len()), (0, 0));
}

#[tokio::test]
async fn json_rows_are_durable_at_the_barrier_and_read_back() {
    let store = TestStore::start().await;
    let table = table(&store, &[("sink.partitions", "3"), ("key.fields", "id")]);
    let mut sink = table.sink(1, 0).unwrap();
    for start in (0..1000).step_by(100) {
        sink.ready().await.unwrap();
        sink.write(&batch(rows(start..start + 100))).unwrap();
    }
    assert_eq!(sink.prepare(&barrier(1)).unwrap().await.unwrap(), None);
    let info = store.client.describe_stream(&stream()).await.unwrap();
    assert_eq!(info.options.partitions, 3);
    assert_eq!(info.partitions.iter().map(|p| p.end.0).sum::<u64>(), 1000);
    assert!(info.partitions.iter().all(|p| p.end.0 > 200), "keys spread over the partitions");
    let read = table.read(store.splits(&stream()).await, 64).await.unwrap();
    let found = read.rows(&table.schema);
    let order = arrow::compute::sort_to_indices(&found["id"], None, None).unwrap();
    assert_eq!(arrow::compute::take_record_batch(&found, &order).unwrap(), rows(0..1000));
    sink.finish().await.unwrap();
    store.stop().await;
}

#[tokio::test]
async fn equal_keys_go_to_one_partition_with_their_event_time() {
    let store = TestStore::start().await;
    let mut table = table(&store, &[("sink.partitions", "4"), ("key.fields", "s")]);
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    table.schema = Arc::new(Schema::new(vec![
        Field::new("s", DataType::Utf8, true),
        Field::new("ts", time.clone(), true),
        Field::new("id", DataType::Int64, false),
    ]));
    let table = table.with_metadata(&[(1, "timestamp")]);
    let mut sink = table.sink(1, 0).unwrap();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..40).map(|id| format!("key {}", id % 4)))),
        Arc::new(TimestampMillisecondArray::from_iter((0..40).map(|id| (id > 0).then_some(id)))),
        Arc::new(Int64Array::from_iter_values(0..40)),
    ];
    sink.write(&batch(RecordBatch::try_new(Arc::clone(&table.schema), columns).unwrap())).unwrap();
    sink.finish().await.unwrap();
    let mut read = self::table(&store, &[]);
    read.schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("key", DataType::Utf8, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
    ]));
    let read = read.with_metadata(&[(1, "key"), (2, "timestamp")]);
    let found = read.read(store.splits(&stream()).await, 100).await.unwrap();
    let mut partitions_of = std::collections::BTreeMap::new();
    let mut seen = 0;
    for (partition, rows, _) in &found.batches {
        let times = rows["ts"].as_primitive::<TimestampMillisecondType>();
        for (row, id) in ids(rows).into_iter().enumerate() {
            assert_eq!(rows["key"].as_string::<i32>().value(row), format!("key {}", id % 4));
            assert_eq!(times.is_valid(row).then(|| times.value(row)), (id > 0).then_some(id));
            assert_eq!(partitions_of.entry(id % 4).or_insert(*partition), partition);
            seen += 1;
        }
    }
    assert_eq!(seen, 40);
    store.stop().await;
}

#[tokio::test]
async fn arrow_rows_are_stored_by_column_and_read_with_projection() {
    let store = TestStore::start().await;
    let table = table(&store, &[("format", "arrow"), ("sink.partitions", "2"), ("key.fields", "id")]);
    let mut sink = table.sink(1, 0).unwrap();
    sink.write(&batch(rows(0..500))).unwrap();
    sink.write(&batch(rows(500..600))).unwrap();
    sink.finish().await.unwrap();
    let splits = store.splits(&stream()).await;
    assert!(splits.iter().all(|split| split.end.unwrap() > 200));
    let read = table.read(splits.clone(), 64).await.unwrap();
    assert!(read.batches.iter().all(|(_, rows, _)| rows.num_rows() <= 64));
    let found = read.rows(&table.schema);
    let order = arrow::compute::sort_to_indices(&found["id"], None, None).unwrap();
    assert_eq!(arrow::compute::take_record_batch(&found, &order).unwrap(), rows(0..600));
    let mut projected = table.clone();
    projected.schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true)]));
    let found = projected.read(splits.clone(), 100).await.unwrap();
    assert_eq!(found.rows(&projected.schema).num_rows(), 600);
    let mut wrong = table.clone();
    wrong.schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Int64, true)]));
    let error = wrong.read(splits, 100).await.unwrap_err();
    assert_eq!(error.message, "column 's' of stream test/events has another type");
    store.stop().await;
}

#[tokio::test]
async fn an_older_attempt_is_fenced_by_a_newer_one() {
    let store = TestStore::start().await;
    let table = table(&store, &[]);
    // The newer attempt has one subtask only, and no rows yet.
    let mut olds = [table.sink(1, 0).unwrap(), table.sink(1, 1).unwrap()];
    for (row, old) in (0..).zip(&mut olds) {
        old.write(&batch(rows(row..row + 1))).unwrap();
        old.prepare(&barrier(1)).unwrap().await.unwrap();
    }
    let mut new = table.sink(2, 0).unwrap();
    new.ready().await.unwrap();
    for old in &mut olds {
        old.write(&batch(rows(2..3))).unwrap();
        assert_eq!(old.prepare(&barrier(2)).unwrap().await.unwrap_err().code, Code::Fenced);
    }
    let read = table.read(store.splits(&stream()).await, 10).await.unwrap();
    assert_eq!(ids(&read.rows(&table.schema)), [0, 1]);
    store.stop().await;
}

/// What the JobManager does when a snapshot is complete, or before an attempt begins; how many it commits and aborts.
async fn decide(store: &TestStore, commit: (u64, BarrierId), below: Option<u64>) -> (u64, u64) {
    let family = ProducerId::new("job0.sink_1__").unwrap();
    let commit = Some((Epoch(commit.0), commit.1.0));
    let decision = FamilyDecision { family, commit, below: below.map(Epoch) };
    let decided = store.client.decide_family(&stream(), &decision).await.unwrap();
    (decided.committed, decided.aborted)
}

/// What committed readers get.
async fn committed(store: &TestStore, table: &Table) -> Vec<i64> {
    let info = store.client.describe_stream(&stream()).await.unwrap();
    let ends = info.readable_ends(Isolation::Committed);
    let splits = ends.0.iter().map(|(partition, end)| splits::stream_partition(*partition, Offset(0), Some(*end)));
    let mut found = ids(&table.read(splits.collect(), 10).await.unwrap().rows(&table.schema));
    found.sort_unstable();
    found
}

#[tokio::test]
async fn exactly_once_rows_are_shown_when_a_snapshot_that_covers_them_is_committed() {
    let store = TestStore::start().await;
    for format in ["json", "arrow"] {
        let table =
            table(&store, &[("sink.delivery-guarantee", "exactly-once"), ("format", format), ("sink.partitions", "2")]);
        let mut sinks = [table.sink(1, 0).unwrap(), table.sink(1, 1).unwrap()];
        for (number, sink) in (0_i64..).zip(&mut sinks) {
            sink.write(&batch(rows(number * 10..number * 10 + 10))).unwrap();
            let prepared = sink.prepare(&barrier(1)).unwrap().await.unwrap();
            let handle = String::from_utf8(prepared.unwrap()).unwrap();
            assert!(handle.contains(&format!("\"producer\":\"job0.sink_1__.{number}\"")), "{handle}");
        }
        assert_eq!(committed(&store, &table).await, Vec::<i64>::new());
        assert_eq!(decide(&store, (1, BarrierId(1)), None).await, (2, 0));
        assert_eq!(committed(&store, &table).await, (0..20).collect::<Vec<_>>());
        for (number, sink) in (0_i64..).zip(&mut sinks) {
            sink.write(&batch(rows(100 + number..101 + number))).unwrap();
        }
        let [one, other] = &mut sinks;
        one.committed(BarrierId(1));
        // A snapshot that failed leaves what was prepared to the next one, though nothing new is there.
        for at in [2, 3] {
            assert!(one.prepare(&barrier(at)).unwrap().await.unwrap().is_some());
        }
        assert_eq!(decide(&store, (1, BarrierId(3)), None).await, (1, 0));
        one.committed(BarrierId(3));
        assert_eq!(one.prepare(&barrier(4)).unwrap().await.unwrap(), None, "nothing is undecided");
        other.finish().await.unwrap();
        assert_eq!(decide(&store, (1, END_OF_INPUT), Some(2)).await, (1, 0));
        assert_eq!(committed(&store, &table).await, (0..20).chain([100, 101]).collect::<Vec<_>>());
        assert_eq!(store.client.transactions(&stream()).await.unwrap(), [], "nothing is left to be remembered");
        drop(sinks);
        store.client.delete_stream(&stream(), true).await.unwrap();
    }
    store.stop().await;
}

#[tokio::test]
async fn a_new_attempt_gives_up_what_the_old_one_had_prepared_beyond_its_snapshot() {
    let store = TestStore::start().await;
    let table = table(&store, &[("sink.delivery-guarantee", "exactly-once")]);
    let mut old = table.sink(1, 0).unwrap();
    for at in 1..=3_i64 {
        old.write(&batch(rows(at..at + 1))).unwrap();
        old.prepare(&barrier(at as u64)).unwrap().await.unwrap();
    }
    old.write(&batch(rows(4..5))).unwrap();
    old.ready().await.unwrap();
    assert_eq!(decide(&store, (1, BarrierId(2)), Some(2)).await.0, 2);
    let mut new = table.sink(2, 0).unwrap();
    new.write(&batch(rows(3..5))).unwrap();
    new.prepare(&barrier(4)).unwrap().await.unwrap();
    // Its output may have found out by itself already.
    let fenced = match old.write(&batch(rows(5..6))) {
        Ok(()) => old.prepare(&barrier(4)).unwrap().await.unwrap_err(),
        Err(fenced) => fenced,
    };
    assert!(matches!(fenced.code, Code::Fenced | Code::FailedPrecondition), "{fenced}");
    assert_eq!(decide(&store, (2, BarrierId(4)), None).await, (1, 0));
    assert_eq!(committed(&store, &table).await, [1, 2, 3, 4]);
    store.stop().await;
}

#[tokio::test]
async fn a_sink_without_rows_makes_its_stream_all_the_same() {
    let store = TestStore::start().await;
    let mut sink = table(&store, &[("sink.partitions", "5")]).sink(1, 0).unwrap();
    sink.finish().await.unwrap();
    assert_eq!(store.client.describe_stream(&stream()).await.unwrap().options.partitions, 5);
    store.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_a_pause() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let table = Table::new(ConnectorKind::StreamStore, &[("stream", "test/events")], schema()).at(&address.to_string());
    let mut sink = table.sink(1, 0).unwrap();
    sink.write(&batch(rows(0..10))).unwrap();
    let mut prepared = sink.prepare(&barrier(1)).unwrap();
    assert!(futures::poll!(&mut prepared).is_pending());
    let mut source =
        table.source(vec![splits::stream_partition(PartitionId(0), Offset(0), Some(Offset(10)))], 100).unwrap();
    let store = Store::open(StoreConfig::at(directory.path())).unwrap();
    store.create_stream(&stream(), StreamOptions::new(1), false).await.unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(server::serve(listener, store, async move {
        let _ = stopped.await;
    }));
    prepared.await.unwrap();
    let SourceEvent::Rows { rows: read, next_offset: 10, .. } = source.next().await.unwrap() else {
        panic!("expected all rows at once");
    };
    assert_eq!(read, rows(0..10));
    stop.send(()).unwrap();
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_of_another_format_is_refused() {
    let store = TestStore::start().await;
    store.fill(&stream(), 1, &[(0, None, "{\"id\":1}", None)]).await;
    let arrow = table(&store, &[("format", "arrow")]);
    let error = arrow.read(store.splits(&stream()).await, 10).await.unwrap_err();
    assert_eq!(error.to_string(), "INVALID_ARGUMENT: stream test/events holds bytes records");
    let mut sink = arrow.sink(1, 0).unwrap();
    assert_eq!(sink.finish().await.unwrap_err(), error);
    assert_eq!(sink.write(&batch(rows(0..1))).unwrap_err(), error);
    store.stop().await;
}
