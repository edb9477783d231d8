//! The embedded store: streams and reader groups under one locked directory.
//!
//! Every method may be called from any task or thread at any time; what touches the disk runs on threads made for that.
//! Whatever a method has reported as done survives a crash, as far as the stream's durability promises.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};
use weir_types::ids::{Epoch, PartitionId, PinHolder, ProducerId};
use weir_types::store::{Appended, Isolation, Pin, PinHold, ProducerStamp, StreamInfo, StreamOptions, TruncateReport};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Code, Error, Result};

use crate::block::RecordBlock;
use crate::clock::{Clock, SystemClock};
use crate::committer::Committers;
use crate::config::StoreConfig;
use crate::disk::{Disk, RealDisk, create_dir, lock_dir, remove, sync_dir};
use crate::group::Groups;
use crate::partition::{Cursor, Slice};
use crate::stream::{StreamState, check_options};
use crate::terms::Terms;

/// A store; cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: Arc<StoreConfig>,
    pub(crate) clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    streams: RwLock<BTreeMap<StreamName, Arc<StreamState>>>,
    /// Held while streams are made or deleted.
    catalogue: Mutex<()>,
    pub(crate) groups: Groups,
    terms: Terms,
    committers: Committers,
    maintenance: Maintenance,
    closed: AtomicBool,
    _lock: File,
}

/// Runs `work` where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::internal("a task of the store failed").with_detail(error.to_string())))
}

/// What a read of one partition found: whole frames as stored, see `docs/stream-store.md`.
#[derive(Clone, Debug)]
pub struct Frames {
    /// The frames; empty at the end of the partition, or if all was skipped. The first one holds the offset asked for, not always first.
    pub bytes: Bytes,
    /// Committed isolation only: offsets that are left out because they were aborted, in order.
    pub skipped: Vec<Range<Offset>>,
    /// The offset behind all that; where the read began if there was nothing.
    pub next: Offset,
    /// The partition's end; with committed isolation, how far such readers get.
    pub end: Offset,
    pub(crate) cursor: Option<Cursor>,
}

impl Store {
    /// Opens the store in `config.data_dir`, making it if need be.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for settings that cannot work, `FAILED_PRECONDITION` if another store has the directory, and
    /// I/O errors. Damaged partitions do not keep the store from opening; whoever uses them gets the error.
    pub fn open(config: StoreConfig) -> Result<Self> {
        Self::open_with(config, Arc::new(SystemClock), Arc::new(RealDisk))
    }

    /// As [`Store::open`], with a clock and a disk of the caller's.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(config: StoreConfig, clock: Arc<dyn Clock>, disk: Arc<dyn Disk>) -> Result<Self> {
        config.validate()?;
        let root = config.data_dir.clone();
        create_dir(&root)?;
        let lock = lock_dir(&root)?;
        for dir in ["streams", "groups", "trash"] {
            create_dir(&root.join(dir))?;
        }
        empty_trash(&root)?;
        let config = Arc::new(config);
        let streams = open_streams(&config, &disk)?;
        streams.values().for_each(|stream| stream.resume_transactions(clock.now()));
        info!(data_dir = %root.display(), streams = streams.len(), "store opened");
        let inner = Arc::new(Inner {
            groups: Groups::open(root.join("groups"), clock.now())?,
            terms: Terms::open(&root)?,
            committers: Committers::start(&config, &clock)?,
            config,
            clock,
            disk,
            streams: RwLock::new(streams),
            catalogue: Mutex::new(()),
            maintenance: Maintenance::default(),
            closed: AtomicBool::new(false),
            _lock: lock,
        });
        inner.start_maintenance()?;
        Ok(Self { inner })
    }

    /// Which leaders may give commands.
    pub(crate) fn terms(&self) -> &Terms {
        &self.inner.terms
    }

    /// Finishes what is queued and makes everything durable. Later appends are refused.
    ///
    /// # Errors
    /// The first sync that failed.
    pub async fn close(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.close()).await
    }

    /// Makes a stream. With `if_not_exists`, one that was made with the same options is fine.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, `INVALID_ARGUMENT` for impossible options, I/O errors.
    pub async fn create_stream(
        &self,
        name: &StreamName,
        options: StreamOptions,
        if_not_exists: bool,
    ) -> Result<StreamInfo> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || inner.create_stream(&name, options, if_not_exists)).await
    }

    /// Deletes a stream with everything in it, its reader groups included.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` if pins or groups hold it and `force` is not given; I/O errors.
    pub async fn delete_stream(&self, name: &StreamName, force: bool) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || inner.delete_stream(&name, force)).await
    }

    /// All streams, or those of one scope, by name.
    pub fn list_streams(&self, scope: Option<&str>) -> Vec<StreamInfo> {
        let streams = self.inner.streams.read();
        let wanted = streams.values().filter(|stream| scope.is_none_or(|scope| stream.name.scope() == scope));
        wanted.map(|stream| stream.info()).collect()
    }

    /// One stream.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn describe_stream(&self, name: &StreamName) -> Result<StreamInfo> {
        Ok(self.inner.stream(name)?.info())
    }

    /// Queues a block for a partition. The returned receiver resolves when the block is durable, or to why it is not.
    /// Blocks of one partition are appended in the order of these calls.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID_ARGUMENT` for a block of another format, `UNAVAILABLE` when the store is closing.
    pub async fn submit(
        &self,
        name: &StreamName,
        partition: PartitionId,
        block: RecordBlock,
        producer: Option<ProducerStamp>,
    ) -> Result<oneshot::Receiver<Result<Appended>>> {
        let stream = self.inner.stream(name)?;
        let target = Arc::clone(stream.partition(partition)?);
        stream.check_block(&block)?;
        self.inner.committers.submit(target, partition.0 as usize, block, producer).await
    }

    /// Appends a block and waits until it is durable.
    ///
    /// # Errors
    /// As [`Store::submit`]; `SEQUENCE_GAP` and `FENCED` for stamped blocks; `RESOURCE_EXHAUSTED` if the disk is full.
    pub async fn append(
        &self,
        name: &StreamName,
        partition: PartitionId,
        block: RecordBlock,
        producer: Option<ProducerStamp>,
    ) -> Result<Appended> {
        let answer = self.submit(name, partition, block, producer).await?;
        answer.await.unwrap_or_else(|_| Err(Error::unavailable("the store was closed before the append was durable")))
    }

    /// Reads stored frames of one partition from `from` on: about `max_bytes`, at least one frame if there is one.
    /// Pass what the previous read returned as `previous` and it need not search; with the same isolation.
    ///
    /// # Errors
    /// `OFFSET_TRUNCATED`, `CORRUPT`, `NOT_FOUND`, `INVALID_ARGUMENT` for an offset behind the end.
    pub async fn read(
        &self,
        name: &StreamName,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
        isolation: Isolation,
        previous: Option<&Frames>,
    ) -> Result<Frames> {
        let target = Arc::clone(self.inner.stream(name)?.partition(partition)?);
        let cursor = previous.and_then(|frames| frames.cursor);
        blocking(move || {
            let Slice { frames, skipped, next, end, cursor } = target.read(from, cursor, max_bytes, isolation)?;
            Ok(Frames { bytes: frames, skipped, next, end, cursor })
        })
        .await
    }

    /// Changes whenever something is appended to the stream, and when it is deleted.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn watch_tail(&self, name: &StreamName) -> Result<watch::Receiver<u64>> {
        Ok(self.inner.stream(name)?.tail.subscribe())
    }

    /// Makes everything before `cut` unreadable and frees whole segments.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` naming the holders of pins in the way, unless `force` is given: then the report has them.
    pub async fn truncate(&self, name: &StreamName, cut: StreamCut, force: bool) -> Result<TruncateReport> {
        let stream = self.inner.stream(name)?;
        let now = self.inner.clock.now();
        blocking(move || stream.truncate(&cut, force, now)).await
    }

    /// Fences off lower epochs: once this has returned, no partition of the stream takes appends of them any more, from
    /// the producer of that name or one whose name begins with it and a dot, and the transactions that they had open
    /// are aborted; prepared ones stay. Survives restarts.
    ///
    /// # Errors
    /// `FENCED` if a higher epoch was fenced for, `NOT_FOUND` for the stream; I/O errors.
    pub async fn fence(&self, name: &StreamName, producer: ProducerId, epoch: Epoch) -> Result<()> {
        let stream = self.inner.stream(name)?;
        let now = self.inner.clock.now();
        blocking(move || stream.fence(&producer, epoch, now)).await
    }

    /// Holds the stream at `cut` until [`Store::unpin`]; a holder has one pin per stream, which this moves.
    ///
    /// # Errors
    /// `OFFSET_TRUNCATED` if the cut lies before the head, `INVALID_ARGUMENT` if behind the end.
    pub async fn pin(&self, name: &StreamName, holder: PinHolder, cut: StreamCut) -> Result<Pin> {
        let stream = self.inner.stream(name)?;
        let now = self.inner.clock.now();
        blocking(move || stream.pin(holder, cut, now)).await
    }

    /// Drops the holder's pin, if it has one.
    ///
    /// # Errors
    /// `NOT_FOUND` for the stream; I/O errors.
    pub async fn unpin(&self, name: &StreamName, holder: PinHolder) -> Result<()> {
        let stream = self.inner.stream(name)?;
        blocking(move || stream.unpin(&holder)).await
    }

    /// The stream's pins, by holder.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn pins(&self, name: &StreamName) -> Result<Vec<Pin>> {
        Ok(self.inner.stream(name)?.pins())
    }

    /// The stream's pins, by holder, with what each keeps from being deleted.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn holds(&self, name: &StreamName) -> Result<Vec<(Pin, PinHold)>> {
        let stream = self.inner.stream(name)?;
        let pins = stream.pins().into_iter();
        Ok(pins.map(|pin| (pin.clone(), stream.held_by(&pin))).collect())
    }

    /// Pins of all streams that forced truncations have passed and whose holders have not dropped them.
    pub fn broken_pins(&self) -> Vec<(StreamName, Pin)> {
        let streams = self.inner.streams.read();
        let broken = |stream: &Arc<StreamState>| {
            let name = stream.name.clone();
            stream.pins().into_iter().filter(|pin| !pin.holds()).map(move |pin| (name.clone(), pin))
        };
        streams.values().flat_map(broken).collect()
    }

    /// Looks at retention, background syncs and leases now instead of at the next interval.
    ///
    /// # Errors
    /// The first thing that failed; the rest was looked at nevertheless.
    pub async fn maintain(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.maintain()).await
    }

    /// The settings the store was opened with.
    pub fn config(&self) -> &StoreConfig {
        &self.inner.config
    }
}

impl Inner {
    pub(crate) fn stream(&self, name: &StreamName) -> Result<Arc<StreamState>> {
        let found = self.streams.read().get(name).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!("stream {name} does not exist"))
                .with_hint("`weir stream list` shows all of them; `weir stream create` makes one.")
        })
    }

    fn stream_dir(&self, name: &StreamName) -> PathBuf {
        self.config.data_dir.join("streams").join(name.scope()).join(name.stream())
    }

    fn create_stream(&self, name: &StreamName, options: StreamOptions, if_not_exists: bool) -> Result<StreamInfo> {
        let _held = self.catalogue.lock();
        check_options(&options)?;
        if let Ok(existing) = self.stream(name) {
            if if_not_exists && existing.options == options {
                return Ok(existing.info());
            }
            let detail = match existing.options == options {
                true => "it was made with the same options",
                false => "it was made with other options",
            };
            return Err(Error::new(Code::AlreadyExists, format!("stream {name} exists already")).with_detail(detail));
        }
        let dir = self.stream_dir(name);
        let unfinished = self.config.data_dir.join("trash").join(format!("new-{}-{}", name.scope(), name.stream()));
        remove(&unfinished)?;
        create_dir(&unfinished)?;
        StreamState::create(&unfinished, name, &options, self.clock.now(), &self.config, &self.disk)?;
        let scope = dir.parent().unwrap_or(&self.config.data_dir);
        create_dir(scope)?;
        rename(&unfinished, &dir)?;
        let stream = Arc::new(StreamState::open(&dir, &self.config, &self.disk)?);
        let info = stream.info();
        self.streams.write().insert(name.clone(), stream);
        info!(stream = %name, partitions = options.partitions, "stream created");
        Ok(info)
    }

    fn delete_stream(&self, name: &StreamName, force: bool) -> Result<()> {
        let _held = self.catalogue.lock();
        let stream = self.stream(name)?;
        if let Some(pin) = stream.pins().iter().find(|pin| pin.holds()).filter(|_| !force) {
            warn!(stream = %name, holder = %pin.holder, "deletion refused: pinned");
            let what = format!("stream {name} is pinned by {}", pin.holder);
            return Err(Error::new(Code::FailedPrecondition, what)
                .with_hint("Delete those snapshots or pins first, or force it."));
        }
        if let Some(transaction) = stream.pending_transaction().filter(|_| !force) {
            let what = format!("stream {name} has a transaction that is not decided, {transaction}");
            return Err(Error::new(Code::FailedPrecondition, what)
                .with_hint("`weir stream transactions` lists and aborts them; or force it."));
        }
        let groups = self.groups.list(Some(name));
        if let Some(group) = groups.first().filter(|_| !force) {
            let what = format!("stream {name} is read by reader group {}", group.name);
            return Err(Error::new(Code::FailedPrecondition, what)
                .with_hint("Delete its reader groups first, or force it to delete them as well."));
        }
        for group in &groups {
            self.groups.delete(&group.name, None, true)?;
        }
        let trash = self.config.data_dir.join("trash").join(format!("{}-{}", name.scope(), name.stream()));
        remove(&trash)?;
        rename(&stream.dir, &trash)?;
        stream.mark_deleted();
        self.streams.write().remove(name);
        info!(stream = %name, "stream deleted");
        remove(&trash)
    }

    fn maintain(&self) -> Result<()> {
        let now = self.clock.now();
        let streams: Vec<_> = self.streams.read().values().cloned().collect();
        let mut outcome = self.groups.tick(now);
        let partitions = streams.iter().flat_map(|stream| stream.open_partitions());
        metrics::gauge!("weir_store_bytes").set(partitions.map(|partition| partition.bytes()).sum::<u64>() as f64);
        metrics::gauge!("weir_store_streams").set(streams.len() as f64);
        let undecided = streams.iter().map(|stream| stream.undecided_transactions()).sum::<usize>();
        metrics::gauge!("weir_store_undecided_transactions").set(undecided as f64);
        for stream in streams {
            let partitions = stream.open_partitions().map(|partition| partition.maintain());
            let transactions = stream.maintain_transactions(now, self.config.maintenance_interval_ms);
            for result in partitions.chain([stream.retain(now), transactions]) {
                outcome = outcome.and(result.inspect_err(|error| warn!(stream = %stream.name, %error, "maintenance")));
            }
        }
        outcome
    }

    fn start_maintenance(self: &Arc<Self>) -> Result<()> {
        let weak = Arc::downgrade(self);
        let interval = Duration::from_millis(self.config.maintenance_interval_ms);
        let shared = Arc::clone(&self.maintenance.stop);
        let run = move || {
            loop {
                let (stopped, signal) = &*shared;
                let mut stopped = stopped.lock();
                if !*stopped {
                    signal.wait_for(&mut stopped, interval);
                }
                let Some(inner) = weak.upgrade().filter(|_| !*stopped) else { return };
                drop(stopped);
                // Whatever fails has been logged, and is tried again at the next interval.
                let _ = inner.maintain();
            }
        };
        let thread = std::thread::Builder::new()
            .name("maintenance".to_owned())
            .spawn(run)
            .map_err(|error| Error::io("the maintenance thread could not be started", &error))?;
        *self.maintenance.thread.lock() = Some(thread);
        Ok(())
    }

    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.maintenance.stop();
        self.committers.stop();
        let streams: Vec<_> = self.streams.read().values().cloned().collect();
        let mut outcome = Ok(());
        for partition in streams.iter().flat_map(|stream| stream.open_partitions()) {
            outcome = outcome.and(partition.close());
        }
        info!(data_dir = %self.config.data_dir.display(), "store closed");
        outcome
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            error!(%error, "store could not be closed cleanly");
        }
    }
}

/// The thread that looks after retention and syncs.
#[derive(Default)]
struct Maintenance {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Maintenance {
    fn stop(&self) {
        let (stopped, signal) = &*self.stop;
        *stopped.lock() = true;
        signal.notify_all();
        let thread = self.thread.lock().take();
        // The last handle may be dropped on the thread itself, which then ends by itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            error!("the maintenance thread had panicked");
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .map_err(|error| Error::io(format!("{} could not be moved to {}", from.display(), to.display()), &error))?;
    for dir in [from.parent(), to.parent()].into_iter().flatten() {
        sync_dir(dir)?;
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    listed.map_err(|error| Error::io(format!("{} could not be listed", dir.display()), &error))
}

/// What a crash left half made or half deleted.
fn empty_trash(root: &Path) -> Result<()> {
    entries(&root.join("trash"))?.iter().try_for_each(|path| remove(path))
}

fn open_streams(config: &Arc<StoreConfig>, disk: &Arc<dyn Disk>) -> Result<BTreeMap<StreamName, Arc<StreamState>>> {
    let mut streams = BTreeMap::new();
    for scope in entries(&config.data_dir.join("streams"))? {
        for dir in entries(&scope)? {
            let stream = StreamState::open(&dir, config, disk)?;
            streams.insert(stream.name.clone(), Arc::new(stream));
        }
    }
    Ok(streams)
}
