//! A stream of two partitions, who writes to it, and what its readers see.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Buf;
use tempfile::TempDir;
use weir_stream_store::frame::FrameHeader;
use weir_stream_store::{RecordBlock, RecordBlockBuilder, Store, StoreConfig};
use weir_types::Result;
use weir_types::ids::{Epoch, PartitionId, ProducerId, TransactionId, TransactionNumber};
use weir_types::store::{FamilyDecision, Isolation, ProducerStamp, StreamOptions, TransactionSpec, TransactionState};
use weir_types::stream::{Offset, StreamCut, StreamName};

pub(crate) const LEASE_MS: u64 = 10_000;

pub(crate) fn name() -> StreamName {
    "s/t".parse().unwrap()
}

pub(crate) fn config(dir: &Path) -> StoreConfig {
    // Maintenance happens when a test asks for it.
    StoreConfig { segment_bytes: 4096, maintenance_interval_ms: 3_600_000, ..StoreConfig::at(dir) }
}

pub(crate) fn id(id: &str) -> TransactionId {
    TransactionId::new(id).unwrap()
}

pub(crate) fn producer(name: &str) -> ProducerId {
    ProducerId::new(name).unwrap()
}

pub(crate) fn spec(transaction: &str, of: &str, epoch: u64) -> TransactionSpec {
    TransactionSpec { id: id(transaction), producer: producer(of), epoch: Epoch(epoch), lease_ms: LEASE_MS }
}

pub(crate) fn block(value: &str) -> RecordBlock {
    let mut builder = RecordBlockBuilder::default();
    builder.push(None, value.as_bytes(), None).unwrap();
    builder.finish()
}

pub(crate) fn cut(offsets: &[(u32, u64)]) -> StreamCut {
    StreamCut(offsets.iter().map(|(p, offset)| (PartitionId(*p), Offset(*offset))).collect())
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A stream of two partitions, and a producer's sequence numbers.
pub(crate) struct Stream {
    pub(crate) store: Store,
    pub(crate) sequences: BTreeMap<(String, u64, u32), u64>,
}

impl Stream {
    pub(crate) async fn create(store: Store) -> Self {
        store.create_stream(&name(), StreamOptions::new(2), true).await.unwrap();
        Self { store, sequences: BTreeMap::new() }
    }

    pub(crate) async fn open(dir: &Path) -> Self {
        Self::create(Store::open(config(dir)).unwrap()).await
    }

    pub(crate) async fn begin(&self, transaction: &str, of: &str, epoch: u64) -> TransactionNumber {
        self.store.begin_transaction(&name(), spec(transaction, of, epoch)).await.unwrap().number
    }

    pub(crate) async fn append(
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

    pub(crate) async fn plain(&self, partition: u32, value: &str) {
        self.store.append(&name(), PartitionId(partition), block(value), None).await.unwrap();
    }

    pub(crate) async fn prepare(&self, transaction: &str) -> Result<()> {
        self.store.prepare_transaction(&name(), id(transaction), StreamCut::default(), None).await
    }

    pub(crate) async fn prepare_under(&self, transaction: &str, mark: u64) -> Result<()> {
        self.store.prepare_transaction(&name(), id(transaction), StreamCut::default(), Some(mark)).await
    }

    /// How many were committed and how many aborted.
    pub(crate) async fn decide(
        &self,
        family: &str,
        commit: Option<(u64, u64)>,
        below: Option<u64>,
    ) -> Result<(u64, u64)> {
        let commit = commit.map(|(epoch, mark)| (Epoch(epoch), mark));
        let decision = FamilyDecision { family: producer(family), commit, below: below.map(Epoch) };
        let decided = self.store.decide_family(&name(), decision).await?;
        Ok((decided.committed, decided.aborted))
    }

    pub(crate) async fn commit(&self, transaction: &str) -> Result<()> {
        self.store.commit_transactions(&name(), vec![id(transaction)]).await
    }

    pub(crate) async fn abort(&self, transaction: &str) -> Result<()> {
        self.store.abort_transactions(&name(), vec![id(transaction)], "by hand").await
    }

    pub(crate) fn state(&self, transaction: &str) -> Option<TransactionState> {
        let all = self.store.transactions(&name()).unwrap();
        all.into_iter().find(|info| info.spec.id == id(transaction)).map(|info| info.state)
    }

    pub(crate) async fn read(&self, partition: u32, isolation: Isolation) -> Vec<String> {
        read(&self.store, partition, isolation).await
    }

    pub(crate) async fn committed(&self) -> [Vec<String>; 2] {
        [self.read(0, Isolation::Committed).await, self.read(1, Isolation::Committed).await]
    }
}

/// Everything that readers of this isolation get; what is left out must be named.
pub(crate) async fn read(store: &Store, partition: u32, isolation: Isolation) -> Vec<String> {
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

pub(crate) fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// What a process that is killed leaves: everything written, nothing that closing would have added.
pub(crate) fn copy_as_killed(from: &Path, to: &Path) {
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

pub(crate) fn killed(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    copy_as_killed(dir, copy.path());
    copy
}

pub(crate) fn partition_dir(dir: &Path, partition: u32) -> PathBuf {
    dir.join(format!("streams/s/t/p-0000{partition}"))
}

pub(crate) fn files(dir: &Path, partition: u32, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(partition_dir(dir, partition)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}
