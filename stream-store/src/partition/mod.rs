//! One partition: its segments, its one writer, and what readers see of it.
//!
//! Readers see a record only once it is as durable as the stream promises. Offsets are given out in the order of the
//! log and without gaps. After a failed fsync nothing is appended any more until the partition is opened again:
//! what the disk holds is unknown then.

mod append;
mod decisions;
mod open;
mod read;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::{info, warn};
use weir_types::ids::{PartitionId, TransactionNumber};
use weir_types::store::{Durability, Isolation, PartitionInfo};
use weir_types::stream::{Offset, StreamName};
use weir_types::time::Millis;
use weir_types::{Error, Result};

pub(crate) use append::AppendJob;
pub(crate) use decisions::{Decisions, Extent};
pub(crate) use read::{Cursor, Slice};

use crate::config::StoreConfig;
use crate::disk::{Disk, remove, replace_file, sync_dir};
use crate::fences::Fences;
use crate::producers::Producers;
use crate::segment::{self, index_path, log_path};
use crate::sidecar::{Sidecar, SparseIndex, Summary};
use crate::transactions::Transactions;

/// What a partition needs to know of its surroundings.
#[derive(Clone)]
pub(crate) struct PartitionSetup {
    pub(crate) stream: StreamName,
    pub(crate) id: PartitionId,
    pub(crate) dir: PathBuf,
    pub(crate) durability: Durability,
    pub(crate) config: Arc<StoreConfig>,
    pub(crate) disk: Arc<dyn Disk>,
    /// Bumped whenever a partition of the stream grows.
    pub(crate) tail: watch::Sender<u64>,
    /// The stream's.
    pub(crate) fences: Arc<Fences>,
    /// The stream's.
    pub(crate) transactions: Arc<Transactions>,
}

pub(crate) struct Partition {
    setup: PartitionSetup,
    writer: Mutex<Writer>,
    view: RwLock<View>,
}

/// What only the writer knows: the end of the log, durable or not.
struct Writer {
    file: Arc<File>,
    base: Offset,
    /// Of the segment's format.
    version: u32,
    position: u64,
    next: Offset,
    producers: Producers,
    /// Bytes before here were fsynced.
    synced: u64,
    /// Bytes before here are covered by the sidecar.
    covered: u64,
}

/// What readers see.
struct View {
    sealed: VecDeque<Summary>,
    active: Summary,
    active_file: Arc<File>,
    active_index: SparseIndex,
    head: Offset,
    /// As of the active segment's end.
    decisions: Decisions,
    /// Why nothing can be appended.
    append_fault: Option<Error>,
    /// From which offset on nothing can be read, and why.
    read_fault: Option<(Offset, Error)>,
}

impl Partition {
    pub(crate) fn id(&self) -> PartitionId {
        self.setup.id
    }

    /// Waits until the appends that are under way have come to their end.
    pub(crate) fn settle(&self) {
        drop(self.writer.lock());
    }

    /// As [`Partition::settle`]; what is in the log is durable then, whatever the stream's options say.
    pub(crate) fn settle_durably(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if let Some(fault) = &self.view.read().append_fault {
            return Err(fault.clone());
        }
        self.sync(&mut writer)
    }

    pub(crate) fn head(&self) -> Offset {
        self.view.read().head
    }

    pub(crate) fn end(&self) -> Offset {
        self.view.read().active.end
    }

    /// How far readers of this isolation get.
    pub(crate) fn readable_end(&self, isolation: Isolation) -> Offset {
        let view = self.view.read();
        match isolation {
            Isolation::Committed => view.decisions.stable_end(view.active.end),
            Isolation::Uncommitted => view.active.end,
        }
    }

    /// The transactions that are not decided here, and whether damage may hide that some of them are.
    pub(crate) fn undecided(&self) -> (BTreeMap<TransactionNumber, Extent>, bool) {
        let view = self.view.read();
        (view.decisions.undecided.clone(), view.decisions.has_gaps)
    }

    pub(crate) fn info(&self) -> PartitionInfo {
        let view = self.view.read();
        let segments = view.sealed.iter().chain([&view.active]);
        PartitionInfo {
            partition: self.setup.id,
            head: view.head,
            end: view.active.end,
            stable_end: view.decisions.stable_end(view.active.end),
            bytes: segments.clone().map(|segment| segment.len).sum(),
            segments: view.sealed.len() as u32 + 1,
            max_event_time_ms: segments.filter_map(|segment| segment.max_event_time_ms).max(),
            fault: view.append_fault.as_ref().map(ToString::to_string),
        }
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        let view = self.view.read();
        view.sealed.iter().chain([&view.active]).map(|segment| segment.len).sum()
    }

    /// Records from an offset on, and the bytes of the segments that they are in.
    pub(crate) fn held_from(&self, offset: Offset) -> (u64, u64) {
        let view = self.view.read();
        let segments = view.sealed.iter().chain([&view.active]).filter(|segment| segment.end > offset);
        let records = view.active.end.0.saturating_sub(offset.max(view.head).0);
        (records, segments.map(|segment| segment.len).sum())
    }

    /// The closed segments, oldest first, for retention to judge.
    pub(crate) fn sealed(&self) -> Vec<Summary> {
        self.view.read().sealed.iter().copied().collect()
    }

    pub(crate) fn active(&self) -> Summary {
        self.view.read().active
    }

    /// Makes everything before `offset` unreadable, for good, and deletes the segments that lie wholly before it.
    pub(crate) fn truncate(&self, offset: Offset) -> Result<Offset> {
        let mut writer = self.writer.lock();
        let (head, end) = (self.head(), self.end());
        if offset <= head {
            return Ok(head);
        }
        if offset > end {
            return Err(Error::invalid(format!("offset {offset} lies behind the end of the partition, {end}")));
        }
        // The new head is durable before anything that lies before it goes.
        replace_file(&head_path(&self.setup.dir), offset.0.to_string().as_bytes())?;
        {
            let mut view = self.view.write();
            view.head = offset;
            view.decisions.forget_before(offset);
        }
        if offset == end && self.may_roll(&writer) {
            self.roll(&mut writer)?;
        }
        let dropped: Vec<Summary> = {
            let mut view = self.view.write();
            let gone = view.sealed.iter().take_while(|segment| segment.end <= offset).count();
            view.sealed.drain(..gone).collect()
        };
        for segment in &dropped {
            remove(&log_path(&self.setup.dir, segment.base))?;
            remove(&index_path(&self.setup.dir, segment.base))?;
        }
        if !dropped.is_empty() {
            sync_dir(&self.setup.dir)?;
        }
        let Self { setup, .. } = self;
        info!(stream = %setup.stream, partition = %setup.id, head = %offset, segments = dropped.len(), "truncated");
        Ok(offset)
    }

    /// Closes the active segment if its last append is older than `before`, so that retention can take it whole.
    pub(crate) fn roll_if_older(&self, before: Millis) -> Result<()> {
        let mut writer = self.writer.lock();
        if self.may_roll(&writer) && self.view.read().active.last_append < before {
            self.roll(&mut writer)?;
        }
        Ok(())
    }

    /// Background work: syncs what `os` durability left in the cache, and brings the sidecar up to date now and then.
    pub(crate) fn maintain(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if self.view.read().append_fault.is_some() {
            return Ok(());
        }
        self.sync(&mut writer)?;
        if writer.position >= writer.covered + self.setup.config.segment_bytes / 8 {
            self.cover(&mut writer);
        }
        Ok(())
    }

    /// Syncs everything and writes the sidecar, so that the next open has nothing to walk.
    pub(crate) fn close(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if self.view.read().append_fault.is_some() {
            return Ok(());
        }
        self.sync(&mut writer)?;
        if writer.position > writer.covered {
            self.cover(&mut writer);
        }
        Ok(())
    }

    fn sync(&self, writer: &mut Writer) -> Result<()> {
        if writer.synced == writer.position {
            return Ok(());
        }
        let begin = Instant::now();
        match self.setup.disk.sync(&writer.file) {
            Ok(()) => {
                metrics::histogram!("weir_store_sync_seconds").record(begin.elapsed());
                writer.synced = writer.position;
                Ok(())
            }
            Err(error) => {
                let path = log_path(&self.setup.dir, writer.base);
                let error = Error::io(format!("{} could not be synced", path.display()), &error)
                    .with_hint("The partition takes no appends until the store is restarted; check the disk first.");
                self.poison(error.clone());
                // What failed to reach the disk must not be found in the cache when the partition is opened again; what
                // readers have seen (with `os` durability that is more than was synced) stays.
                let seen = self.view.read().active.len;
                if let Err(error) = writer.file.set_len(seen) {
                    warn!(file = %path.display(), %error, "unsynced tail could not be cut off");
                }
                Err(error)
            }
        }
    }

    fn poison(&self, error: Error) {
        let Self { setup, .. } = self;
        tracing::error!(stream = %setup.stream, partition = %setup.id, %error, "partition takes no more appends");
        self.view.write().append_fault = Some(error);
    }

    /// Writes the sidecar of the active segment. Losing it costs time at the next open only.
    fn cover(&self, writer: &mut Writer) {
        let (summary, index, decisions) = {
            let view = self.view.read();
            (view.active, view.active_index.clone(), view.decisions.clone())
        };
        writer.producers.forget_beyond(self.setup.config.max_producers_per_partition);
        let sidecar = Sidecar { summary, index, producers: writer.producers.clone(), decisions };
        match sidecar.write(&index_path(&self.setup.dir, writer.base)) {
            Ok(()) => writer.covered = summary.len,
            Err(error) => warn!(%error, "index file could not be written"),
        }
    }

    /// A damaged segment stays the active one: what was found wrong with it would be forgotten behind a new one.
    fn may_roll(&self, writer: &Writer) -> bool {
        writer.next > writer.base && self.view.read().append_fault.is_none()
    }

    /// Closes the active segment and begins the next.
    fn roll(&self, writer: &mut Writer) -> Result<()> {
        let Self { setup, .. } = self;
        self.sync(writer)?;
        self.cover(writer);
        let file = Arc::new(segment::create(&*setup.disk, &setup.dir, setup.id, writer.next)?);
        let mut view = self.view.write();
        let sealed = view.active;
        view.sealed.push_back(sealed);
        view.active = Summary {
            base: writer.next,
            end: writer.next,
            len: segment::FILE_HEADER_LEN,
            max_event_time_ms: None,
            last_append: sealed.last_append,
        };
        view.active_file = Arc::clone(&file);
        view.active_index = SparseIndex::default();
        writer.file = file;
        writer.base = writer.next;
        writer.version = segment::FILE_VERSION;
        writer.position = segment::FILE_HEADER_LEN;
        writer.synced = writer.position;
        writer.covered = 0;
        Ok(())
    }

    /// Goes on in a segment of the newest format, as records of transactions need it.
    fn modernise(&self, writer: &mut Writer) -> Result<()> {
        if writer.next > writer.base {
            return self.roll(writer);
        }
        // An empty segment is made anew under its name.
        let Self { setup, .. } = self;
        let file = Arc::new(segment::create(&*setup.disk, &setup.dir, setup.id, writer.base)?);
        self.view.write().active_file = Arc::clone(&file);
        writer.file = file;
        writer.version = segment::FILE_VERSION;
        Ok(())
    }
}

/// Where the head is kept: a decimal number.
fn head_path(dir: &Path) -> PathBuf {
    dir.join("head")
}
