//! Every step of a transaction by itself: what it does, what a crash within it leaves, and what stands in its way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use weir_stream_store::clock::{ManualClock, SystemClock};
use weir_stream_store::disk::{Disk, RealDisk};
use weir_stream_store::{Store, StoreConfig};
use weir_types::Code;
use weir_types::ids::{Epoch, PartitionId};
use weir_types::store::{Durability, Isolation, Retention, StreamOptions, TransactionState};
use weir_types::stream::Offset;
use weir_types::time::Millis;

use crate::fixture::{
    LEASE_MS, Stream, config, copy_as_killed, cut, files, id, killed, name, partition_dir, producer, runtime, spec,
    strings,
};

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
        let lost = stream.store.prepare_transaction(&name(), id("t"), ends, None).await.unwrap_err();
        assert_eq!(lost.message, "records of transaction t are missing");
        assert_eq!(stream.state("t"), Some(TransactionState::Open));
        stream.store.prepare_transaction(&name(), id("t"), cut(&[(0, 1), (1, 1)]), None).await.unwrap();
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
