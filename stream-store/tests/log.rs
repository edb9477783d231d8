//! The log under damage: torn writes, flipped bits, full disks, failed fsyncs, restarts, retention.

#![expect(clippy::unwrap_used, reason = "test helpers panic like tests; clippy exempts only test functions")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Buf;
use proptest::prelude::*;
use tempfile::TempDir;
use weir_stream_store::clock::{Clock, ManualClock, SystemClock};
use weir_stream_store::disk::{Disk, RealDisk};
use weir_stream_store::frame::FrameHeader;
use weir_stream_store::{RecordBlock, RecordBlockBuilder, Store, StoreConfig};
use weir_types::error::Facts;
use weir_types::ids::{Epoch, PartitionId, PinHolder, ProducerId};
use weir_types::store::{Durability, Isolation, ProducerStamp, Retention, StreamOptions};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Result};

const P0: PartitionId = PartitionId(0);

fn name() -> StreamName {
    "s/t".parse().unwrap()
}

fn config(dir: &Path) -> StoreConfig {
    // Maintenance happens when a test asks for it.
    StoreConfig { segment_bytes: 4096, maintenance_interval_ms: 3_600_000, ..StoreConfig::at(dir) }
}

fn block(values: &[String]) -> RecordBlock {
    let mut builder = RecordBlockBuilder::default();
    for value in values {
        builder.push(Some(b"k"), value.as_bytes(), Some(7)).unwrap();
    }
    builder.finish()
}

fn cut(offset: u64) -> StreamCut {
    StreamCut(BTreeMap::from([(P0, Offset(offset))]))
}

async fn append(store: &Store, from: u64, count: u64) -> Result<Offset> {
    let values: Vec<String> = (from..from + count).map(|i| format!("value-{i}")).collect();
    Ok(store.append(&name(), P0, block(&values), None).await?.base_offset)
}

async fn filled(dir: &Path, blocks: u64) -> Store {
    let store = Store::open(config(dir)).unwrap();
    store.create_stream(&name(), StreamOptions::new(1), true).await.unwrap();
    for i in 0..blocks {
        assert_eq!(append(&store, i * 3, 3).await.unwrap(), Offset(i * 3));
    }
    store
}

/// Reads everything from `from` on; the values, and the error that ended it, if one did.
async fn read(store: &Store, from: u64) -> (Vec<String>, Option<weir_types::Error>) {
    let mut values = Vec::new();
    let (mut next, mut previous) = (Offset(from), None);
    loop {
        let frames = match store.read(&name(), P0, next, 1000, Isolation::Uncommitted, previous.as_ref()).await {
            Ok(frames) if frames.bytes.is_empty() => return (values, None),
            Ok(frames) => frames,
            Err(error) => return (values, Some(error)),
        };
        let mut bytes = frames.bytes.clone();
        while !bytes.is_empty() {
            let header = FrameHeader::parse_frame(&bytes).unwrap();
            let skip = next.0.saturating_sub(header.base_offset.0) as usize;
            let block = header.block(&bytes);
            let records = block.records().unwrap().iter().skip(skip);
            values.extend(records.map(|record| String::from_utf8(record.value.to_vec()).unwrap()));
            next = header.end_offset();
            bytes.advance(header.frame_len());
        }
        assert_eq!(next, frames.next);
        previous = Some(frames);
    }
}

fn values(from: u64, to: u64) -> Vec<String> {
    (from..to).map(|i| format!("value-{i}")).collect()
}

fn partition_dir(dir: &Path) -> PathBuf {
    dir.join("streams/s/t/p-00000")
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(partition_dir(dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_write_torn_at_any_byte_of_the_last_frame_loses_that_frame_only() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = filled(dir.path(), 3).await;
        let killed = TempDir::new().unwrap();
        copy_as_killed(dir.path(), killed.path());
        drop(store);
        let log = files(killed.path(), "log").pop().unwrap();
        let whole = fs::read(&log).unwrap();
        let last = whole.len() - (whole.len() - 32) / 3;
        for len in last..whole.len() {
            fs::write(&log, &whole[..len]).unwrap();
            let store = Store::open(config(killed.path())).unwrap();
            assert_eq!(read(&store, 0).await, (values(0, 6), None), "cut at {len}");
            assert_eq!(append(&store, 6, 1).await.unwrap(), Offset(6));
            assert_eq!(read(&store, 5).await, (values(5, 7), None));
            drop(store);
            files(killed.path(), "index").iter().for_each(|path| fs::remove_file(path).unwrap());
        }
    });
}

#[test]
fn a_torn_write_is_cut_off_whatever_lies_in_the_pages_that_did_not_make_it() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = filled(dir.path(), 2).await;
        let killed = TempDir::new().unwrap();
        copy_as_killed(dir.path(), killed.path());
        drop(store);
        let log = files(killed.path(), "log").pop().unwrap();
        let mut bytes = fs::read(&log).unwrap();
        let last = bytes.len() - (bytes.len() - 32) / 2;
        // The length had grown, the data had not arrived.
        bytes[last + 40..].fill(0);
        fs::write(&log, bytes).unwrap();
        let store = Store::open(config(killed.path())).unwrap();
        assert_eq!(read(&store, 0).await, (values(0, 3), None));
        assert_eq!(fs::metadata(&log).unwrap().len(), last as u64);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_is_reported_by_file_and_place_and_never_read_over(
        at in any::<proptest::sample::Index>(),
        bit in 0u8..8,
        indexed: bool,
    ) {
        runtime().block_on(async {
            let dir = TempDir::new().unwrap();
            let store = filled(dir.path(), 60).await;
            drop(store);
            let logs = files(dir.path(), "log");
            assert!(logs.len() >= 3, "several segments");
            if !indexed {
                files(dir.path(), "index").iter().for_each(|path| fs::remove_file(path).unwrap());
            }
            // Any byte of any frame of a segment that is not the last.
            let log = &logs[logs.len() - 2];
            let mut bytes = fs::read(log).unwrap();
            let position = 32 + at.index(bytes.len() - 32);
            bytes[position] ^= 1 << bit;
            fs::write(log, bytes).unwrap();

            let store = Store::open(config(dir.path())).unwrap();
            let (read_values, error) = read(&store, 0).await;
            let error = error.expect("the damage is noticed");
            assert_eq!(error.code, Code::Corrupt);
            assert!(error.message.contains(log.file_name().unwrap().to_str().unwrap()), "{error}");
            let named: u64 = error.message.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(named <= position as u64 && position as u64 - named < 300, "{named} for {position}");
            assert_eq!(read_values, values(0, read_values.len() as u64));
            // What lies behind stays readable by whoever asks for it, and the log goes on.
            let end = store.describe_stream(&name()).unwrap().ends().get(P0).unwrap().0;
            assert_eq!(end, 180);
            assert_eq!(append(&store, 180, 1).await.unwrap(), Offset(180));
            assert_eq!(read(&store, 179).await, (values(179, 181), None));
        });
    }
}

#[test]
fn damage_in_the_middle_of_the_newest_segment_is_not_taken_for_a_torn_write() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = filled(dir.path(), 4).await;
        drop(store);
        files(dir.path(), "index").iter().for_each(|path| fs::remove_file(path).unwrap());
        let log = files(dir.path(), "log").pop().unwrap();
        let mut bytes = fs::read(&log).unwrap();
        let len = bytes.len();
        bytes[len / 2] ^= 1;
        fs::write(&log, bytes).unwrap();
        let store = Store::open(config(dir.path())).unwrap();
        let (before, error) = read(&store, 0).await;
        assert_eq!((before.len() % 3, error.unwrap().code), (0, Code::Corrupt));
        assert!(before.len() < 12);
        assert_eq!(append(&store, 0, 1).await.unwrap_err().code, Code::Corrupt);
        assert!(store.describe_stream(&name()).unwrap().partitions[0].fault.is_some());
        assert_eq!(fs::metadata(&log).unwrap().len(), len as u64, "nothing is cut off");
    });
}

#[test]
fn a_log_shorter_than_what_had_been_synced_is_damage_and_its_offsets_are_not_given_out_again() {
    runtime().block_on(async {
        // Within a record, between records, within the header; of the only segment and of the newest of several.
        for (blocks, keep) in [(4, 300), (4, 32), (4, 5), (60, 40), (60, 0)] {
            let dir = TempDir::new().unwrap();
            drop(filled(dir.path(), blocks).await);
            let log = files(dir.path(), "log").pop().unwrap();
            OpenOptions::new().write(true).open(&log).unwrap().set_len(keep).unwrap();
            // The damage is found by every start, also after somebody has truncated up to it.
            for truncates in [false, true, false] {
                let store = Store::open(config(dir.path())).unwrap();
                let info = &store.describe_stream(&name()).unwrap().partitions[0];
                let (head, end) = (info.head.0, info.end.0);
                assert!(end < blocks * 3 && info.fault.is_some(), "{keep}: {info:?}");
                let (before, error) = read(&store, head).await;
                assert_eq!(before, values(head, end));
                let error = error.unwrap();
                assert_eq!(error.code, Code::Corrupt);
                assert!(error.message.contains(log.to_str().unwrap()), "{error}");
                assert_eq!(append(&store, 0, 1).await.unwrap_err().code, Code::Corrupt);
                if truncates {
                    store.truncate(&name(), cut(end), false).await.unwrap();
                }
            }
        }
    });
}

#[test]
fn lost_or_damaged_index_files_are_rebuilt() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        drop(filled(dir.path(), 60).await);
        let indexes = files(dir.path(), "index");
        fs::remove_file(&indexes[0]).unwrap();
        fs::write(&indexes[1], b"nonsense").unwrap();
        let store = Store::open(config(dir.path())).unwrap();
        assert_eq!(read(&store, 0).await, (values(0, 180), None));
        for from in [1, 40, 77, 178] {
            assert_eq!(read(&store, from).await, (values(from, 180), None));
        }
        assert_eq!(files(dir.path(), "index"), indexes);
    });
}

#[test]
fn producers_are_remembered_across_restarts_with_and_without_index_files() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = filled(dir.path(), 0).await;
        let stamp = |sequence| ProducerStamp {
            producer: ProducerId::new("p").unwrap(),
            epoch: Epoch(4),
            sequence,
            transaction: None,
        };
        let send = async |store: &Store, sequence: u64| {
            store.append(&name(), P0, block(&[format!("value-{sequence}")]), Some(stamp(sequence))).await
        };
        for sequence in 0..40 {
            assert_eq!(send(&store, sequence).await.unwrap().base_offset, Offset(sequence));
        }
        drop(store);
        for lose_indexes in [false, true] {
            if lose_indexes {
                files(dir.path(), "index").iter().for_each(|path| fs::remove_file(path).unwrap());
            }
            let store = Store::open(config(dir.path())).unwrap();
            let again = send(&store, 39).await.unwrap();
            assert_eq!((again.base_offset, again.duplicate), (Offset(39), true));
            let gap = send(&store, 41).await.unwrap_err();
            assert_eq!(gap.facts.as_deref(), Some(&Facts::SequenceGap { expected: 40 }));
            drop(store);
        }
        let store = Store::open(config(dir.path())).unwrap();
        assert_eq!(send(&store, 40).await.unwrap().base_offset, Offset(40));
        assert_eq!(read(&store, 0).await, (values(0, 41), None));
    });
}

/// A disk that misbehaves on demand, and counts.
#[derive(Default)]
struct FaultyDisk {
    /// Bytes until it is full; 0 means never.
    full_after: AtomicU64,
    fail_sync: AtomicBool,
    syncs: AtomicUsize,
    hold: parking_lot::Mutex<()>,
}

impl Disk for FaultyDisk {
    fn write_all_at(&self, file: &File, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()> {
        let _held = self.hold.lock();
        let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let left = self.full_after.load(Ordering::SeqCst);
        if left > 0 && len >= left {
            // As much as fits is written, as a real file system does it.
            let half: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).take(left as usize / 2).collect();
            RealDisk.write_all_at(file, &mut [IoSlice::new(&half)], position)?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        RealDisk.write_all_at(file, slices, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk lost it"));
        }
        RealDisk.sync(file)
    }
}

async fn on_faulty_disk(dir: &Path, durability: Durability) -> (Store, Arc<FaultyDisk>) {
    let disk = Arc::new(FaultyDisk::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Store::open_with(config(dir), clock, Arc::clone(&disk) as Arc<dyn Disk>).unwrap();
    let options = StreamOptions { durability, ..StreamOptions::new(1) };
    store.create_stream(&name(), options, true).await.unwrap();
    (store, disk)
}

#[test]
fn a_full_disk_refuses_appends_and_the_log_goes_on_when_there_is_space() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let (store, disk) = on_faulty_disk(dir.path(), Durability::Fsync).await;
        append(&store, 0, 3).await.unwrap();
        disk.full_after.store(60, Ordering::SeqCst);
        let stamp =
            ProducerStamp { producer: ProducerId::new("p").unwrap(), epoch: Epoch(0), sequence: 0, transaction: None };
        let refused = store.append(&name(), P0, block(&values(3, 6)), Some(stamp.clone())).await.unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted);
        assert_eq!(read(&store, 0).await, (values(0, 3), None));
        disk.full_after.store(0, Ordering::SeqCst);
        // The refused block was not recorded as the producer's: it is taken now.
        let appended = store.append(&name(), P0, block(&values(3, 6)), Some(stamp)).await.unwrap();
        assert_eq!((appended.base_offset, appended.duplicate), (Offset(3), false));
        drop(store);
        let store = Store::open(config(dir.path())).unwrap();
        assert_eq!(read(&store, 0).await, (values(0, 6), None));
    });
}

#[test]
fn a_failed_fsync_is_never_followed_by_success() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let (store, disk) = on_faulty_disk(dir.path(), Durability::Fsync).await;
        append(&store, 0, 3).await.unwrap();
        disk.fail_sync.store(true, Ordering::SeqCst);
        assert_eq!(append(&store, 3, 3).await.unwrap_err().code, Code::Io);
        disk.fail_sync.store(false, Ordering::SeqCst);
        assert_eq!(append(&store, 3, 3).await.unwrap_err().code, Code::Io);
        assert_eq!(read(&store, 0).await, (values(0, 3), None));
        drop(store);
        let store = Store::open(config(dir.path())).unwrap();
        assert_eq!(read(&store, 0).await, (values(0, 3), None));
        assert_eq!(append(&store, 3, 1).await.unwrap(), Offset(3));
    });
}

#[test]
fn appends_that_wait_together_are_synced_together() {
    let runtime = runtime();
    let dir = TempDir::new().unwrap();
    let (store, disk) = runtime.block_on(on_faulty_disk(dir.path(), Durability::Fsync));
    let held = disk.hold.lock();
    let submit = async {
        let mut answers = Vec::new();
        for i in 0..20 {
            answers.push(store.submit(&name(), P0, block(&values(i, i + 1)), None).await.unwrap());
        }
        answers
    };
    let answers = runtime.block_on(submit);
    let before = disk.syncs.load(Ordering::SeqCst);
    drop(held);
    runtime.block_on(async {
        for (i, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap().unwrap().base_offset, Offset(i as u64));
        }
        // The first may have been taken alone; the others were queued behind it.
        let syncs = disk.syncs.load(Ordering::SeqCst) - before;
        assert!((1..=2).contains(&syncs), "{syncs} syncs for 20 appends");
        assert_eq!(read(&store, 0).await, (values(0, 20), None));
    });
}

#[test]
fn os_durability_leaves_syncing_to_the_background() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let (store, disk) = on_faulty_disk(dir.path(), Durability::Os).await;
        let before = disk.syncs.load(Ordering::SeqCst);
        append(&store, 0, 3).await.unwrap();
        assert_eq!(disk.syncs.load(Ordering::SeqCst), before);
        assert_eq!(read(&store, 0).await, (values(0, 3), None));
        store.maintain().await.unwrap();
        assert_eq!(disk.syncs.load(Ordering::SeqCst), before + 1);
    });
}

#[test]
fn retention_by_size_and_age_deletes_whole_segments_up_to_a_pin() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::new(Millis(1_000_000)));
        let store =
            Store::open_with(config(dir.path()), Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(RealDisk)).unwrap();
        let retention = Retention { max_bytes: Some(9_000), max_age_ms: Some(10_000) };
        let options = StreamOptions { retention, ..StreamOptions::new(1) };
        store.create_stream(&name(), options, false).await.unwrap();
        for i in 0..120 {
            append(&store, i * 3, 3).await.unwrap();
        }
        let before = store.describe_stream(&name()).unwrap().partitions[0].clone();
        assert!(before.bytes > 15_000, "{before:?}");
        let holder = PinHolder::new("chk-1").unwrap();
        store.pin(&name(), holder.clone(), cut(50)).await.unwrap();
        store.maintain().await.unwrap();
        let pinned = store.describe_stream(&name()).unwrap().partitions[0].clone();
        assert!(pinned.head.0 <= 50, "{pinned:?}");
        assert_eq!(read(&store, 50).await, (values(50, 360), None));

        store.unpin(&name(), holder).await.unwrap();
        store.maintain().await.unwrap();
        let by_size = store.describe_stream(&name()).unwrap().partitions[0].clone();
        assert!(by_size.bytes <= 9_000 && by_size.head.0 > 50, "{by_size:?}");
        let (_, error) = read(&store, 0).await;
        assert_eq!(error.unwrap().facts.as_deref(), Some(&Facts::OffsetTruncated { head: by_size.head }));

        clock.advance(10_001);
        store.maintain().await.unwrap();
        let by_age = store.describe_stream(&name()).unwrap().partitions[0].clone();
        assert_eq!((by_age.head, by_age.end), (Offset(360), Offset(360)));
        assert_eq!(append(&store, 360, 1).await.unwrap(), Offset(360));
        drop(store);
        let store = Store::open(config(dir.path())).unwrap();
        assert_eq!(read(&store, 360).await, (values(360, 361), None));
        assert_eq!(store.describe_stream(&name()).unwrap().heads(), cut(360));
    });
}

#[test]
fn truncation_is_durable_and_exact_to_the_record() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = filled(dir.path(), 60).await;
        store.truncate(&name(), cut(100), false).await.unwrap();
        drop(store);
        let store = Store::open(config(dir.path())).unwrap();
        assert_eq!(store.describe_stream(&name()).unwrap().heads(), cut(100));
        assert_eq!(read(&store, 99).await.1.unwrap().code, Code::OffsetTruncated);
        assert_eq!(read(&store, 100).await, (values(100, 180), None));
        let beyond = store.truncate(&name(), cut(181), false).await.unwrap_err();
        assert_eq!(beyond.code, Code::InvalidArgument);
    });
}

#[test]
fn a_half_created_segment_does_no_harm() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        drop(filled(dir.path(), 5).await);
        let path = partition_dir(dir.path()).join("00000000000000000015.log");
        OpenOptions::new().create_new(true).write(true).open(&path).unwrap().set_len(10).unwrap();
        let store = Store::open(config(dir.path())).unwrap();
        assert!(!path.exists());
        assert_eq!(append(&store, 15, 1).await.unwrap(), Offset(15));
        assert_eq!(read(&store, 0).await, (values(0, 16), None));
    });
}

#[test]
fn a_data_directory_has_one_store() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let store = filled(dir.path(), 1).await;
        assert_eq!(Store::open(config(dir.path())).err().unwrap().code, Code::FailedPrecondition);
        store.close().await.unwrap();
        assert_eq!(append(&store, 0, 1).await.unwrap_err().code, Code::Unavailable);
    });
}
