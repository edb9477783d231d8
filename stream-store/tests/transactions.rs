//! Transactions against a model, under crashes at every step, on disks that fail, with old segments, and in the way of
//! retention: committed readers see all of a transaction or nothing, in order, and never what was not committed.

#![expect(clippy::unwrap_used, reason = "test helpers panic like tests; clippy exempts only test functions")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Buf;
use proptest::prelude::*;
use tempfile::TempDir;
use weir_stream_store::clock::{ManualClock, SystemClock};
use weir_stream_store::disk::{Disk, RealDisk};
use weir_stream_store::frame::FrameHeader;
use weir_stream_store::{RecordBlock, RecordBlockBuilder, Store, StoreConfig};
use weir_types::ids::{Epoch, PartitionId, ProducerId, TransactionId, TransactionNumber};
use weir_types::store::{
    Durability, Isolation, ProducerStamp, Retention, StreamOptions, TransactionSpec, TransactionState,
};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Result};

const LEASE_MS: u64 = 10_000;

fn name() -> StreamName {
    "s/t".parse().unwrap()
}

fn config(dir: &Path) -> StoreConfig {
    // Maintenance happens when a test asks for it.
    StoreConfig { segment_bytes: 4096, maintenance_interval_ms: 3_600_000, ..StoreConfig::at(dir) }
}

fn id(id: &str) -> TransactionId {
    TransactionId::new(id).unwrap()
}

fn producer(name: &str) -> ProducerId {
    ProducerId::new(name).unwrap()
}

fn spec(transaction: &str, of: &str, epoch: u64) -> TransactionSpec {
    TransactionSpec { id: id(transaction), producer: producer(of), epoch: Epoch(epoch), lease_ms: LEASE_MS }
}

fn block(value: &str) -> RecordBlock {
    let mut builder = RecordBlockBuilder::default();
    builder.push(None, value.as_bytes(), None).unwrap();
    builder.finish()
}

fn cut(offsets: &[(u32, u64)]) -> StreamCut {
    StreamCut(offsets.iter().map(|(p, offset)| (PartitionId(*p), Offset(*offset))).collect())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A stream of two partitions, and a producer's sequence numbers.
struct Stream {
    store: Store,
    sequences: BTreeMap<(String, u64, u32), u64>,
}

impl Stream {
    async fn create(store: Store) -> Self {
        store.create_stream(&name(), StreamOptions::new(2), true).await.unwrap();
        Self { store, sequences: BTreeMap::new() }
    }

    async fn open(dir: &Path) -> Self {
        Self::create(Store::open(config(dir)).unwrap()).await
    }

    async fn begin(&self, transaction: &str, of: &str, epoch: u64) -> TransactionNumber {
        self.store.begin_transaction(&name(), spec(transaction, of, epoch)).await.unwrap().number
    }

    async fn append(
        &mut self,
        of: (&str, u64),
        transaction: Option<TransactionNumber>,
        partition: u32,
        value: &str,
    ) -> Result<Offset> {
        let sequence = self.sequences.entry((of.0.to_owned(), of.1, partition)).or_default();
        let stamp = ProducerStamp { producer: producer(of.0), epoch: Epoch(of.1), sequence: *sequence, transaction };
        let appended = self.store.append(&name(), PartitionId(partition), block(value), Some(stamp)).await?;
        *sequence += 1;
        Ok(appended.base_offset)
    }

    async fn plain(&self, partition: u32, value: &str) {
        self.store.append(&name(), PartitionId(partition), block(value), None).await.unwrap();
    }

    async fn prepare(&self, transaction: &str) -> Result<()> {
        self.store.prepare_transaction(&name(), id(transaction), StreamCut::default()).await
    }

    async fn commit(&self, transaction: &str) -> Result<()> {
        self.store.commit_transactions(&name(), vec![id(transaction)]).await
    }

    async fn abort(&self, transaction: &str) -> Result<()> {
        self.store.abort_transactions(&name(), vec![id(transaction)], "by hand").await
    }

    fn state(&self, transaction: &str) -> Option<TransactionState> {
        let all = self.store.transactions(&name()).unwrap();
        all.into_iter().find(|info| info.spec.id == id(transaction)).map(|info| info.state)
    }

    async fn read(&self, partition: u32, isolation: Isolation) -> Vec<String> {
        read(&self.store, partition, isolation).await
    }

    async fn committed(&self) -> [Vec<String>; 2] {
        [self.read(0, Isolation::Committed).await, self.read(1, Isolation::Committed).await]
    }
}

/// Everything that readers of this isolation get; what is left out must be named.
async fn read(store: &Store, partition: u32, isolation: Isolation) -> Vec<String> {
    let mut values = Vec::new();
    let (mut next, mut previous) = (Offset(0), None);
    loop {
        let frames =
            store.read(&name(), PartitionId(partition), next, 300, isolation, previous.as_ref()).await.unwrap();
        if frames.next == next {
            assert!(frames.bytes.is_empty() && frames.end == next, "{frames:?} at {next}");
            return values;
        }
        let mut bytes = frames.bytes.clone();
        let mut skipped = frames.skipped.iter();
        while next < frames.next {
            match FrameHeader::parse_frame(&bytes) {
                Ok(header) if header.base_offset == next => {
                    let block = header.block(&bytes);
                    if header.record_count > 0 {
                        let text = |record: weir_stream_store::Record<'_>| String::from_utf8(record.value.to_vec());
                        values.extend(block.records().unwrap().iter().map(|record| text(record).unwrap()));
                    }
                    next = header.end_offset();
                    bytes.advance(header.frame_len());
                }
                _ => {
                    let range = skipped.next().unwrap();
                    assert_eq!(range.start, next);
                    next = range.end;
                }
            }
        }
        previous = Some(frames);
    }
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// What a process that is killed leaves: everything written, nothing that closing would have added.
fn copy_as_killed(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_as_killed(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn killed(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    copy_as_killed(dir, copy.path());
    copy
}

fn partition_dir(dir: &Path, partition: u32) -> PathBuf {
    dir.join(format!("streams/s/t/p-0000{partition}"))
}

fn files(dir: &Path, partition: u32, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(partition_dir(dir, partition)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

#[test]
fn committed_readers_see_all_of_a_transaction_or_nothing_and_in_order() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        stream.plain(0, "a").await;
        let one = stream.begin("one", "p", 1).await;
        let two = stream.begin("two", "q", 1).await;
        for (partition, value) in [(0, "b"), (1, "c")] {
            stream.append(("p", 1), Some(one), partition, value).await.unwrap();
        }
        stream.append(("q", 1), Some(two), 0, "x").await.unwrap();
        stream.plain(0, "d").await;
        stream.append(("p", 1), Some(one), 0, "e").await.unwrap();

        assert_eq!(stream.committed().await, [strings(&["a"]), strings(&[])]);
        assert_eq!(stream.read(0, Isolation::Uncommitted).await, strings(&["a", "b", "x", "d", "e"]));
        let info = stream.store.describe_stream(&name()).unwrap();
        assert_eq!(info.readable_ends(Isolation::Committed), cut(&[(0, 1), (1, 0)]));
        assert_eq!(info.ends(), cut(&[(0, 5), (1, 1)]));

        assert_eq!(stream.commit("one").await.unwrap_err().code, Code::FailedPrecondition, "not prepared");
        stream.prepare("one").await.unwrap();
        let late = stream.append(("p", 1), Some(one), 1, "late").await.unwrap_err();
        assert_eq!(late.code, Code::FailedPrecondition);
        assert_eq!(stream.committed().await, [strings(&["a"]), strings(&[])]);

        let mut tail = stream.store.watch_tail(&name()).unwrap();
        tail.mark_unchanged();
        stream.commit("one").await.unwrap();
        assert!(tail.has_changed().unwrap(), "readers that wait are told");
        // What is not decided holds back what comes after it.
        assert_eq!(stream.committed().await, [strings(&["a", "b"]), strings(&["c"])]);
        stream.abort("two").await.unwrap();
        assert_eq!(stream.committed().await, [strings(&["a", "b", "d", "e"]), strings(&["c"])]);
        assert_eq!(stream.read(0, Isolation::Uncommitted).await, strings(&["a", "b", "x", "d", "e"]));

        // Decisions are for good, may be repeated, and are remembered until that is acknowledged.
        stream.commit("one").await.unwrap();
        stream.abort("two").await.unwrap();
        assert_eq!(stream.abort("one").await.unwrap_err().code, Code::FailedPrecondition);
        let lost = stream.commit("two").await.unwrap_err();
        assert_eq!(lost.message, "transaction two was aborted: by hand");
        let again = stream.store.begin_transaction(&name(), spec("one", "p", 1)).await.unwrap_err();
        assert_eq!(again.code, Code::AlreadyExists);
        stream.store.acknowledge_transactions(&name(), vec![id("one"), id("two")]).await.unwrap();
        assert_eq!(stream.store.transactions(&name()).unwrap(), []);
        assert_eq!(stream.commit("one").await.unwrap_err().code, Code::NotFound);
        stream.abort("unheard-of").await.unwrap();
    });
}

/// The files of one moment.
struct Image {
    dir: TempDir,
}

#[test]
fn a_kill_between_any_two_writes_of_any_step_loses_nothing_and_doubles_nothing() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        let mut images = Vec::new();
        let mut take = |dir: &Path| images.push(Image { dir: killed(dir) });
        take(dir.path());
        let number = stream.begin("t", "p", 1).await;
        take(dir.path());
        stream.append(("p", 1), Some(number), 0, "a").await.unwrap();
        stream.append(("p", 1), Some(number), 1, "b").await.unwrap();
        take(dir.path());
        stream.prepare("t").await.unwrap();
        take(dir.path());
        stream.commit("t").await.unwrap();
        take(dir.path());
        drop(stream);

        // The ledger of one step with each partition's log as of that step or the next: the markers come after the
        // decision, in one partition, in the other, in both.
        for step in 0..images.len() {
            for (first, second) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                let at = |extra: usize| (step + extra).min(images.len() - 1);
                let mixed = killed(images[step].dir.path());
                for (partition, from) in [(0, at(first)), (1, at(second))] {
                    let target = partition_dir(mixed.path(), partition);
                    fs::remove_dir_all(&target).unwrap();
                    fs::create_dir_all(&target).unwrap();
                    copy_as_killed(&partition_dir(images[from].dir.path(), partition), &target);
                }
                // Records are written after the transaction is in the ledger, markers after the decision.
                let decision = |step: usize| step == 4;
                if at(first).max(at(second)) > step && (step == 0 || decision(step + 1)) {
                    continue;
                }
                let stream = Stream::open(mixed.path()).await;
                let place = format!("step {step}, logs of {} and {}", at(first), at(second));
                let (expected, state) = match step {
                    0 => ([vec![], vec![]], None),
                    1 | 2 => ([vec![], vec![]], Some(TransactionState::Open)),
                    3 => ([vec![], vec![]], Some(TransactionState::Prepared)),
                    _ => ([strings(&["a"]), strings(&["b"])], Some(TransactionState::Committed)),
                };
                assert_eq!(stream.committed().await, expected, "{place}");
                assert_eq!(stream.state("t"), state, "{place}");
            }
        }
        // The decision without any marker, and with one: the ledger of the last step over the logs before it.
        for marked in [None, Some(0), Some(1)] {
            let mixed = killed(images[4].dir.path());
            for partition in [0, 1].into_iter().filter(|partition| Some(*partition) != marked) {
                let target = partition_dir(mixed.path(), partition);
                fs::remove_dir_all(&target).unwrap();
                fs::create_dir_all(&target).unwrap();
                copy_as_killed(&partition_dir(images[3].dir.path(), partition), &target);
            }
            let stream = Stream::open(mixed.path()).await;
            assert_eq!(stream.committed().await, [strings(&["a"]), strings(&["b"])], "{marked:?}");
            stream.commit("t").await.unwrap();
            stream.store.acknowledge_transactions(&name(), vec![id("t")]).await.unwrap();
            drop(stream);
            assert_eq!(Stream::open(mixed.path()).await.committed().await, [strings(&["a"]), strings(&["b"])]);
        }
    });
}

#[test]
fn a_marker_torn_at_any_byte_is_written_again() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        for (transaction, value) in [("kept", "a"), ("gone", "x")] {
            let number = stream.begin(transaction, "p", 1).await;
            stream.append(("p", 1), Some(number), 0, value).await.unwrap();
            stream.prepare(transaction).await.unwrap();
        }
        let before = fs::metadata(&files(dir.path(), 0, "log")[0]).unwrap().len();
        stream.abort("gone").await.unwrap();
        stream.commit("kept").await.unwrap();
        let image = killed(dir.path());
        let whole = fs::read(&files(image.path(), 0, "log")[0]).unwrap();
        for len in before as usize..whole.len() {
            let torn = killed(image.path());
            fs::write(&files(torn.path(), 0, "log")[0], &whole[..len]).unwrap();
            let stream = Stream::open(torn.path()).await;
            assert_eq!(stream.committed().await, [strings(&["a"]), strings(&[])], "cut at {len}");
            assert_eq!(stream.read(0, Isolation::Uncommitted).await, strings(&["a", "x"]));
        }
    });
}

#[test]
fn leases_end_open_transactions_only_and_stand_still_while_the_store_does() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::new(Millis(1_000_000)));
        let config = StoreConfig { maintenance_interval_ms: 5_000, ..config(dir.path()) };
        // Rounds of maintenance that the store makes by itself find the clock where it was.
        let open = || Store::open_with(config.clone(), clock.clone(), Arc::new(RealDisk)).unwrap();
        let stream = Stream::create(open()).await;
        for (transaction, of) in [("idle", "p"), ("renewed", "q"), ("prepared", "r")] {
            stream.begin(transaction, of, 1).await;
        }
        stream.prepare("prepared").await.unwrap();
        stream.store.maintain().await.unwrap();
        clock.advance(LEASE_MS);
        stream.store.renew_transaction(&name(), id("renewed")).await.unwrap();
        stream.store.maintain().await.unwrap();
        assert_eq!(stream.state("idle"), Some(TransactionState::Open), "the lease is just not over");
        clock.advance(1);
        stream.store.maintain().await.unwrap();
        let reason = "its lease ran out".to_owned();
        assert_eq!(stream.state("idle"), Some(TransactionState::Aborted { reason }));
        assert_eq!(stream.state("renewed"), Some(TransactionState::Open));
        assert_eq!(stream.state("prepared"), Some(TransactionState::Prepared));
        let error = stream.store.renew_transaction(&name(), id("idle")).await.unwrap_err();
        assert_eq!(error.message, "transaction idle was aborted: its lease ran out");

        // The store is down for a day; then there is a full lease.
        drop(stream);
        clock.advance(86_400_000);
        let stream = Stream { store: open(), sequences: BTreeMap::new() };
        stream.store.maintain().await.unwrap();
        clock.advance(LEASE_MS);
        stream.store.maintain().await.unwrap();
        assert_eq!(stream.state("renewed"), Some(TransactionState::Open));
        // The machine sleeps for a day, the store with it.
        clock.advance(86_400_000);
        stream.store.maintain().await.unwrap();
        assert_eq!(stream.state("renewed"), Some(TransactionState::Open));
        clock.advance(5_000);
        stream.store.maintain().await.unwrap();
        assert!(stream.state("renewed").unwrap().is_decided());
        assert_eq!(stream.state("prepared"), Some(TransactionState::Prepared));
    });
}

#[test]
fn a_fence_aborts_what_older_incarnations_have_open_and_leaves_what_they_prepared() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        let open = stream.begin("open", "job.sink.0", 1).await;
        let prepared = stream.begin("prepared", "job.sink.1", 1).await;
        let other = stream.begin("other", "job.sink2.0", 1).await;
        for (of, number, value) in
            [("job.sink.0", open, "x"), ("job.sink.1", prepared, "a"), ("job.sink2.0", other, "b")]
        {
            stream.append((of, 1), Some(number), 0, value).await.unwrap();
        }
        stream.prepare("prepared").await.unwrap();
        stream.store.fence(&name(), producer("job.sink"), Epoch(2)).await.unwrap();
        let reason = "a newer incarnation of its producer began".to_owned();
        assert_eq!(stream.state("open"), Some(TransactionState::Aborted { reason }));
        assert_eq!(stream.state("prepared"), Some(TransactionState::Prepared));
        assert_eq!(stream.state("other"), Some(TransactionState::Open));
        // The zombie can do nothing any more.
        for error in [
            stream.append(("job.sink.0", 1), Some(open), 0, "y").await.unwrap_err(),
            stream.store.begin_transaction(&name(), spec("late", "job.sink.0", 1)).await.unwrap_err(),
        ] {
            assert_eq!(error.code, Code::Fenced);
        }
        assert!(stream.prepare("open").await.is_err());
        stream.commit("prepared").await.unwrap();
        // A transaction takes records of its own producer only.
        let foreign = stream.append(("job.sink.9", 2), Some(other), 0, "z").await.unwrap_err();
        assert_eq!(foreign.code, Code::Fenced);
        stream.prepare("other").await.unwrap();
        stream.commit("other").await.unwrap();
        assert_eq!(stream.committed().await[0], strings(&["a", "b"]));
    });
}

#[test]
fn what_a_transaction_may_yet_commit_is_neither_truncated_nor_deleted() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = Store::open(config(dir.path())).unwrap();
        let retention = Retention { max_bytes: Some(1), max_age_ms: None };
        store.create_stream(&name(), StreamOptions { retention, ..StreamOptions::new(2) }, false).await.unwrap();
        let mut stream = Stream { store, sequences: BTreeMap::new() };
        let fill = "f".repeat(3000);
        stream.plain(0, &fill).await;
        stream.plain(0, &fill).await;
        let number = stream.begin("t", "p", 1).await;
        stream.append(("p", 1), Some(number), 0, "a").await.unwrap();
        for _ in 0..6 {
            stream.plain(0, &fill).await;
        }
        stream.store.maintain().await.unwrap();
        let head =
            |stream: &Stream| stream.store.describe_stream(&name()).unwrap().heads().get(PartitionId(0)).unwrap();
        assert_eq!(head(&stream), Offset(2), "as far as whole segments go");
        let error = stream.store.truncate(&name(), cut(&[(0, 3)]), true).await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.message.contains("transaction t "), "{error}");
        assert_eq!(stream.store.delete_stream(&name(), false).await.unwrap_err().code, Code::FailedPrecondition);
        stream.prepare("t").await.unwrap();
        stream.commit("t").await.unwrap();
        stream.store.truncate(&name(), cut(&[(0, 3)]), false).await.unwrap();
        stream.store.maintain().await.unwrap();
        assert!(head(&stream) > Offset(3));
        stream.store.delete_stream(&name(), false).await.unwrap();
    });
}

#[test]
fn segments_of_the_first_version_stay_readable_and_get_no_transactions() {
    runtime().block_on(async {
        for records in [0, 3] {
            let dir = TempDir::new().unwrap();
            let stream = Stream::open(dir.path()).await;
            for i in 0..records {
                stream.plain(0, &format!("old-{i}")).await;
            }
            drop(stream);
            // As the first version had written them: another number in the header, an index that knows no transactions.
            for partition in [0, 1] {
                files(dir.path(), partition, "index").iter().for_each(|path| fs::remove_file(path).unwrap());
                let log = &files(dir.path(), partition, "log")[0];
                let mut bytes = fs::read(log).unwrap();
                bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
                let crc = crc32c::crc32c(&bytes[..28]);
                bytes[28..32].copy_from_slice(&crc.to_le_bytes());
                fs::write(log, bytes).unwrap();
            }
            let mut stream = Stream::open(dir.path()).await;
            stream.plain(0, "plain").await;
            assert_eq!(files(dir.path(), 0, "log").len(), 1, "plain records go on in it");
            let number = stream.begin("t", "p", 1).await;
            stream.append(("p", 1), Some(number), 0, "a").await.unwrap();
            stream.append(("p", 1), Some(number), 1, "b").await.unwrap();
            stream.prepare("t").await.unwrap();
            stream.commit("t").await.unwrap();
            assert_eq!(files(dir.path(), 0, "log").len(), 2);
            let version = |path: &Path| fs::read(path).unwrap()[8];
            assert_eq!(version(&files(dir.path(), 0, "log")[0]), 1);
            assert_eq!(version(&files(dir.path(), 0, "log")[1]), 2);
            assert_eq!(version(&files(dir.path(), 1, "log")[0]), 2, "an empty one is made anew");
            let mut expected: Vec<String> = (0..records).map(|i| format!("old-{i}")).collect();
            expected.extend(strings(&["plain", "a"]));
            for _ in 0..2 {
                assert_eq!(stream.committed().await, [expected.clone(), strings(&["b"])]);
                drop(stream);
                stream = Stream::open(dir.path()).await;
            }
        }
    });
}

/// A disk that can be full, and that counts nothing.
#[derive(Default)]
struct FullDisk {
    full: AtomicBool,
    fail_sync: AtomicBool,
}

impl Disk for FullDisk {
    fn write_all_at(&self, file: &File, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        RealDisk.write_all_at(file, slices, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if self.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk lost it"));
        }
        RealDisk.sync(file)
    }
}

#[test]
fn a_disk_that_fails_while_markers_are_written_changes_no_decision() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let disk = Arc::new(FullDisk::default());
        let store = Store::open_with(config(dir.path()), Arc::new(SystemClock), disk.clone()).unwrap();
        let options = StreamOptions { durability: Durability::Os, ..StreamOptions::new(2) };
        store.create_stream(&name(), options, false).await.unwrap();
        let mut stream = Stream { store, sequences: BTreeMap::new() };
        let number = stream.begin("t", "p", 1).await;
        stream.append(("p", 1), Some(number), 0, "a").await.unwrap();
        stream.append(("p", 1), Some(number), 1, "b").await.unwrap();

        // What is prepared is durable, also where appends are not fsynced.
        disk.fail_sync.store(true, Ordering::SeqCst);
        let image = killed(dir.path());
        assert_eq!(stream.prepare("t").await.unwrap_err().code, Code::Io);
        assert_eq!(stream.state("t"), Some(TransactionState::Open));
        disk.fail_sync.store(false, Ordering::SeqCst);
        drop(stream);

        let store = Store::open_with(config(image.path()), Arc::new(SystemClock), disk.clone()).unwrap();
        let stream = Stream { store, sequences: BTreeMap::new() };
        let ends = cut(&[(0, 1), (1, 2)]);
        let lost = stream.store.prepare_transaction(&name(), id("t"), ends).await.unwrap_err();
        assert_eq!(lost.message, "records of transaction t are missing");
        assert_eq!(stream.state("t"), Some(TransactionState::Open));
        stream.store.prepare_transaction(&name(), id("t"), cut(&[(0, 1), (1, 1)])).await.unwrap();
        disk.full.store(true, Ordering::SeqCst);
        assert_eq!(stream.commit("t").await.unwrap_err().code, Code::ResourceExhausted);
        assert_eq!(stream.state("t"), Some(TransactionState::Committed));
        assert_eq!(stream.abort("t").await.unwrap_err().code, Code::FailedPrecondition);
        let early = stream.store.acknowledge_transactions(&name(), vec![id("t")]).await.unwrap_err();
        assert_eq!(early.code, Code::ResourceExhausted, "no outcome is forgotten before the log has it");
        disk.full.store(false, Ordering::SeqCst);
        stream.store.maintain().await.unwrap();
        assert_eq!(stream.committed().await, [strings(&["a"]), strings(&["b"])]);
        stream.store.acknowledge_transactions(&name(), vec![id("t")]).await.unwrap();
    });
}

/// A step of the model.
#[derive(Clone, Debug)]
enum Op {
    Begin(usize),
    Append { slot: usize, partition: u32, values: u8 },
    Plain(u32),
    Prepare(usize),
    Commit(usize),
    Abort(usize),
    Acknowledge(usize),
    Fence,
    Maintain,
    Reopen { kill: bool, lose_indexes: bool },
}

const SLOTS: usize = 3;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0..SLOTS).prop_map(Op::Begin),
        8 => (0..SLOTS, 0..2u32, 1..4u8).prop_map(|(slot, partition, values)| Op::Append { slot, partition, values }),
        3 => (0..2u32).prop_map(Op::Plain),
        3 => (0..SLOTS).prop_map(Op::Prepare),
        3 => (0..SLOTS).prop_map(Op::Commit),
        2 => (0..SLOTS).prop_map(Op::Abort),
        1 => (0..SLOTS).prop_map(Op::Acknowledge),
        1 => Just(Op::Fence),
        1 => Just(Op::Maintain),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(kill, lose_indexes)| Op::Reopen { kill, lose_indexes }),
    ];
    proptest::collection::vec(op, 1..60)
}

/// What the store should think of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Open(TransactionNumber),
    Prepared,
    Committed,
    Aborted,
}

/// Each record with the transaction that it belongs to.
type Log = Vec<(String, Option<usize>)>;

#[derive(Default)]
struct Model {
    logs: [Log; 2],
    /// All transactions there ever were: state, and whether the outcome was acknowledged.
    transactions: Vec<(Expected, bool)>,
    /// The latest of each slot.
    latest: [Option<usize>; SLOTS],
    epoch: u64,
    written: u64,
}

impl Model {
    fn of(&self, slot: usize) -> Option<(usize, Expected)> {
        self.latest[slot].map(|index| (index, self.transactions[index].0))
    }

    fn committed(&self, partition: usize) -> Vec<String> {
        let decided = |(_, owner): &&(String, Option<usize>)| {
            owner.is_none_or(|index| matches!(self.transactions[index].0, Expected::Committed | Expected::Aborted))
        };
        let shown = |(_, owner): &&(String, Option<usize>)| {
            owner.is_none_or(|index| self.transactions[index].0 == Expected::Committed)
        };
        self.logs[partition].iter().take_while(decided).filter(shown).map(|(value, _)| value.clone()).collect()
    }

    async fn apply(&mut self, stream: &mut Stream, op: Op) {
        match op {
            Op::Begin(slot) => {
                if self.of(slot).is_some_and(|(_, state)| matches!(state, Expected::Open(_))) {
                    return;
                }
                let index = self.transactions.len();
                let number = stream.begin(&format!("t{index}"), &format!("job.{slot}"), self.epoch).await;
                self.transactions.push((Expected::Open(number), false));
                self.latest[slot] = Some(index);
            }
            Op::Append { slot, partition, values } => {
                let Some((index, state)) = self.of(slot) else { return };
                for _ in 0..values {
                    let value = format!("v{}", self.written);
                    let of = format!("job.{slot}");
                    if let Expected::Open(number) = state {
                        stream.append((&of, self.epoch), Some(number), partition, &value).await.unwrap();
                        self.logs[partition as usize].push((value, Some(index)));
                        self.written += 1;
                    }
                }
            }
            Op::Plain(partition) => {
                let value = format!("v{}", self.written);
                stream.plain(partition, &value).await;
                self.logs[partition as usize].push((value, None));
                self.written += 1;
            }
            Op::Prepare(slot) => {
                let Some((index, state)) = self.of(slot).filter(|(index, _)| !self.transactions[*index].1) else {
                    return;
                };
                let prepared = stream.prepare(&format!("t{index}")).await;
                assert_eq!(prepared.is_ok(), state != Expected::Aborted);
                if matches!(state, Expected::Open(_)) {
                    self.transactions[index].0 = Expected::Prepared;
                }
            }
            Op::Commit(slot) => {
                let Some((index, state)) = self.of(slot) else { return };
                let acknowledged = self.transactions[index].1;
                let committed = stream.commit(&format!("t{index}")).await;
                let may = matches!(state, Expected::Prepared | Expected::Committed) && !acknowledged;
                assert_eq!(committed.is_ok(), may, "{state:?}");
                if may {
                    self.transactions[index].0 = Expected::Committed;
                }
            }
            Op::Abort(slot) => {
                let Some((index, state)) = self.of(slot) else { return };
                let aborted = stream.abort(&format!("t{index}")).await;
                assert_eq!(aborted.is_ok(), state != Expected::Committed || self.transactions[index].1);
                if matches!(state, Expected::Open(_) | Expected::Prepared) {
                    self.transactions[index].0 = Expected::Aborted;
                }
            }
            Op::Acknowledge(slot) => {
                let Some((index, state)) = self.of(slot) else { return };
                let ids = vec![id(&format!("t{index}"))];
                let acknowledged = stream.store.acknowledge_transactions(&name(), ids).await;
                let may = matches!(state, Expected::Committed | Expected::Aborted);
                assert_eq!(acknowledged.is_ok(), may, "{state:?}");
                self.transactions[index].1 |= may;
            }
            Op::Fence => {
                self.epoch += 1;
                stream.store.fence(&name(), producer("job"), Epoch(self.epoch)).await.unwrap();
                for (state, _) in &mut self.transactions {
                    if matches!(state, Expected::Open(_)) {
                        *state = Expected::Aborted;
                    }
                }
            }
            Op::Maintain => stream.store.maintain().await.unwrap(),
            Op::Reopen { .. } => unreachable!("the caller opens stores"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_history_shows_readers_what_the_model_says(ops in ops()) {
        runtime().block_on(async {
            let mut dir = TempDir::new().unwrap();
            let mut stream = Stream::open(dir.path()).await;
            let mut model = Model::default();
            for op in ops {
                match op {
                    Op::Reopen { kill, lose_indexes } => {
                        let copy = kill.then(|| killed(dir.path()));
                        let sequences = std::mem::take(&mut stream.sequences);
                        drop(stream);
                        dir = copy.unwrap_or(dir);
                        for partition in [0, 1].into_iter().filter(|_| lose_indexes) {
                            files(dir.path(), partition, "index").iter().for_each(|path| fs::remove_file(path).unwrap());
                        }
                        stream = Stream { sequences, ..Stream::open(dir.path()).await };
                    }
                    op => model.apply(&mut stream, op).await,
                }
                for partition in 0..2 {
                    let all: Vec<_> = model.logs[partition].iter().map(|(value, _)| value.clone()).collect();
                    assert_eq!(stream.read(partition as u32, Isolation::Uncommitted).await, all);
                    assert_eq!(stream.read(partition as u32, Isolation::Committed).await, model.committed(partition));
                }
            }
        });
    }
}
