//! One stream: its partitions, its pins, and the files that describe it.
//!
//! `stream.json` says how it was made and never changes; `pins.json`, `fences.json` and `transactions.json` are
//! replaced whole. A stream exists once its directory has got its name, which happens after everything in it is
//! durable, and is gone once that name is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::field::{DisplayValue, display};
use tracing::{error, info, warn};
use weir_types::error::Facts;
use weir_types::ids::{Epoch, PartitionId, PinHolder, ProducerId};
use weir_types::snapshot::SnapshotKind;
use weir_types::store::{PartitionInfo, Pin, PinHold, RecordFormat, StreamInfo, StreamOptions, TruncateReport};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use crate::arrow_block::decode_schema;
use crate::block::RecordBlock;
use crate::config::StoreConfig;
use crate::disk::{Disk, read_file, replace_file};
use crate::fences::Fences;
use crate::partition::{Partition, PartitionSetup};
use crate::segment::corrupt;
use crate::transactions::Transactions;

/// No stream has more partitions.
pub(crate) const MAX_PARTITIONS: u32 = 1024;
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct StreamFile {
    version: u32,
    name: StreamName,
    created_at_ms: u64,
    options: StreamOptions,
}

#[derive(Serialize, Deserialize)]
struct PinsFile {
    version: u32,
    pins: Vec<Pin>,
}

pub(crate) struct StreamState {
    pub(crate) name: StreamName,
    pub(crate) options: StreamOptions,
    created_at: Millis,
    pub(crate) dir: PathBuf,
    schema: Option<SchemaRef>,
    /// A partition that could not be opened is its error.
    partitions: Vec<Result<Arc<Partition>>>,
    /// Bumped whenever a partition grows, and when the stream is deleted.
    pub(crate) tail: watch::Sender<u64>,
    deleted: AtomicBool,
    /// Held during truncation too, so that no pin is made behind its back.
    pins: Mutex<BTreeMap<PinHolder, Pin>>,
    pub(crate) fences: Arc<Fences>,
    pub(crate) transactions: Arc<Transactions>,
    retention_is_held: AtomicBool,
}

fn partition_dir(dir: &Path, partition: u32) -> PathBuf {
    dir.join(format!("p-{partition:05}"))
}

pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| Error::internal("metadata could not be encoded").with_detail(error.to_string()))
}

pub(crate) fn from_json<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(Code::Corrupt, format!("{} is damaged", path.display())).with_detail(error.to_string())
    })
}

/// Refuses options that no stream can have.
pub(crate) fn check_options(options: &StreamOptions) -> Result<()> {
    if !(1..=MAX_PARTITIONS).contains(&options.partitions) {
        return Err(Error::invalid(format!("a stream cannot have {} partitions", options.partitions))
            .with_hint(format!("Choose 1 to {MAX_PARTITIONS}.")));
    }
    match (options.format, &options.arrow_schema) {
        (RecordFormat::Arrow, Some(schema)) => decode_schema(schema).map(drop),
        (RecordFormat::Arrow, None) => Err(Error::invalid("a stream of Arrow rows needs a schema")),
        (RecordFormat::Bytes, None) => Ok(()),
        (RecordFormat::Bytes, Some(_)) => Err(Error::invalid("a stream of bytes records has no Arrow schema")),
    }
}

impl StreamState {
    /// Writes a new stream's files into `dir`, which has not got its final name yet.
    pub(crate) fn create(
        dir: &Path,
        name: &StreamName,
        options: &StreamOptions,
        now: Millis,
        config: &Arc<StoreConfig>,
        disk: &Arc<dyn Disk>,
    ) -> Result<()> {
        let (tail, _) = watch::channel(0);
        let fences = Fences::open(dir, config.max_producers_per_partition)?;
        let transactions = Transactions::open(dir)?;
        let surroundings = Surroundings {
            dir,
            name,
            options,
            config,
            disk,
            tail: &tail,
            fences: &fences,
            transactions: &transactions,
        };
        for partition in 0..options.partitions {
            surroundings.of(partition).create()?;
        }
        let file = StreamFile { version: VERSION, name: name.clone(), created_at_ms: now.0, options: options.clone() };
        replace_file(&dir.join("stream.json"), &to_json(&file)?)
    }

    pub(crate) fn open(dir: &Path, config: &Arc<StoreConfig>, disk: &Arc<dyn Disk>) -> Result<Self> {
        let path = dir.join("stream.json");
        let bytes = read_file(&path)?.ok_or_else(|| corrupt(&path, 0, "the file is missing"))?;
        let StreamFile { version, name, created_at_ms, options } = from_json(&path, &bytes)?;
        if version != VERSION {
            return Err(corrupt(&path, 0, "the file is of a version unknown to this build"));
        }
        let schema = options.arrow_schema.as_deref().map(decode_schema).transpose()?;
        let path = dir.join("pins.json");
        let pins = match read_file(&path)? {
            None => BTreeMap::new(),
            Some(bytes) => {
                let PinsFile { version: _, pins } = from_json(&path, &bytes)?;
                pins.into_iter().map(|pin| (pin.holder.clone(), pin)).collect()
            }
        };
        let (tail, _) = watch::channel(0);
        let fences = Fences::open(dir, config.max_producers_per_partition)?;
        let transactions = Transactions::open(dir)?;
        let surroundings = Surroundings {
            dir,
            name: &name,
            options: &options,
            config,
            disk,
            tail: &tail,
            fences: &fences,
            transactions: &transactions,
        };
        let open = |partition| {
            let opened = surroundings.of(partition).open().map(Arc::new);
            opened.inspect_err(|error| error!(stream = %name, partition, %error, "partition could not be opened"))
        };
        Ok(Self {
            partitions: (0..options.partitions).map(open).collect(),
            name,
            options,
            created_at: Millis(created_at_ms),
            dir: dir.to_owned(),
            schema,
            tail,
            deleted: AtomicBool::new(false),
            pins: Mutex::new(pins),
            fences,
            transactions,
            retention_is_held: AtomicBool::new(false),
        })
    }

    pub(crate) fn partition(&self, partition: PartitionId) -> Result<&Arc<Partition>> {
        if self.deleted.load(Ordering::Acquire) {
            return Err(Error::not_found(format!("stream {} has been deleted", self.name)));
        }
        match self.partitions.get(partition.0 as usize) {
            Some(Ok(partition)) => Ok(partition),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::not_found(format!("stream {} has no partition {partition}", self.name))
                .with_detail(format!("it has {} partitions, from 0", self.partitions.len()))),
        }
    }

    /// The partitions that could be opened.
    pub(crate) fn open_partitions(&self) -> impl Iterator<Item = &Arc<Partition>> {
        self.partitions.iter().filter_map(|partition| partition.as_ref().ok())
    }

    /// Refuses a block that does not belong into this stream.
    pub(crate) fn check_block(&self, block: &RecordBlock) -> Result<()> {
        if block.format() != self.options.format {
            return Err(Error::invalid(format!(
                "stream {} holds {} records, the block {} records",
                self.name,
                self.options.format,
                block.format()
            )));
        }
        self.schema.as_ref().map_or(Ok(()), |schema| crate::arrow_block::check_rows(block, schema))
    }

    pub(crate) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
        self.tail.send_modify(|growth| *growth += 1);
    }

    pub(crate) fn info(&self) -> StreamInfo {
        let describe = |(index, partition): (usize, &Result<Arc<Partition>>)| match partition {
            Ok(partition) => partition.info(),
            Err(error) => PartitionInfo {
                partition: PartitionId(index as u32),
                head: Offset(0),
                end: Offset(0),
                stable_end: Offset(0),
                bytes: 0,
                segments: 0,
                max_event_time_ms: None,
                fault: Some(error.to_string()),
            },
        };
        StreamInfo {
            name: self.name.clone(),
            options: self.options.clone(),
            created_at_ms: self.created_at.0,
            partitions: self.partitions.iter().enumerate().map(describe).collect(),
        }
    }

    /// Refuses a cut that names missing partitions, truncated offsets, or offsets that do not exist yet.
    pub(crate) fn check_cut(&self, cut: &StreamCut) -> Result<()> {
        for (id, offset) in &cut.0 {
            let partition = self.partition(*id)?;
            let (head, end) = (partition.head(), partition.end());
            if *offset < head {
                return Err(Error::new(
                    Code::OffsetTruncated,
                    format!("partition {id} begins at {head}, not {offset}"),
                )
                .with_detail(format!("stream {}", self.name))
                .with_facts(Facts::OffsetTruncated { head }));
            }
            if *offset > end {
                return Err(Error::invalid(format!("partition {id} ends at {end}, before {offset}"))
                    .with_detail(format!("stream {}", self.name)));
            }
        }
        Ok(())
    }

    pub(crate) fn pins(&self) -> Vec<Pin> {
        self.pins.lock().values().cloned().collect()
    }

    /// What a pin keeps from being deleted: records, and the bytes of the segments that they are in.
    pub(crate) fn held_by(&self, pin: &Pin) -> PinHold {
        let cut = pin.cut.0.iter().filter(|_| pin.holds());
        let held = cut.filter_map(|(id, offset)| Some(self.partition(*id).ok()?.held_from(*offset)));
        held.fold(PinHold::default(), |sum, (records, bytes)| PinHold {
            records: sum.records + records,
            bytes: sum.bytes + bytes,
        })
    }

    /// Makes a pin, or moves the holder's.
    pub(crate) fn pin(&self, holder: PinHolder, cut: StreamCut, now: Millis) -> Result<Pin> {
        let mut pins = self.pins.lock();
        self.check_cut(&cut)?;
        if cut.0.is_empty() {
            return Err(Error::invalid("a pin needs the offset of at least one partition"));
        }
        let created_at_ms = pins.get(&holder).map_or(now.0, |pin| pin.created_at_ms);
        let pin = Pin { holder: holder.clone(), cut, created_at_ms, broken_at_ms: None };
        let mut changed = pins.clone();
        changed.insert(holder, pin.clone());
        self.write_pins(&changed)?;
        *pins = changed;
        info!(stream = %self.name, holder = %pin.holder, snapshot = about(&pin.holder), cut = %pin.cut, "pinned");
        Ok(pin)
    }

    /// Drops a pin; none of that holder is fine.
    pub(crate) fn unpin(&self, holder: &PinHolder) -> Result<()> {
        let mut pins = self.pins.lock();
        let mut changed = pins.clone();
        if changed.remove(holder).is_some() {
            self.write_pins(&changed)?;
            *pins = changed;
            info!(stream = %self.name, %holder, snapshot = about(holder), "unpinned");
        }
        Ok(())
    }

    /// Refuses appends of lower epochs of the producers that `name` covers, from the return of this call on, and aborts
    /// the transactions that they have open.
    pub(crate) fn fence(&self, name: &ProducerId, epoch: Epoch, now: Millis) -> Result<()> {
        self.fences.raise(name, epoch, now)?;
        // Appends that were let in before are in the log, or have failed, when this returns.
        self.open_partitions().for_each(|partition| partition.settle());
        self.abort_fenced(name, epoch, now)
    }

    fn write_pins(&self, pins: &BTreeMap<PinHolder, Pin>) -> Result<()> {
        let file = PinsFile { version: VERSION, pins: pins.values().cloned().collect() };
        replace_file(&self.dir.join("pins.json"), &to_json(&file)?)
    }

    /// Truncates to `cut`, unless pins are in the way and `force` is not given. Those that are passed are remembered as
    /// broken, durably and before anything is truncated.
    pub(crate) fn truncate(&self, cut: &StreamCut, force: bool, now: Millis) -> Result<TruncateReport> {
        let mut pins = self.pins.lock();
        for (id, offset) in &cut.0 {
            let partition = self.partition(*id)?;
            let end = partition.end();
            if *offset > end {
                return Err(Error::invalid(format!("partition {id} ends at {end}, before {offset}")));
            }
            if let Some((transaction, first)) = self.undecided_before(partition, *offset) {
                let what = format!("transaction {transaction} has records before offset {offset} and is not decided");
                return Err(Error::new(Code::FailedPrecondition, what)
                    .with_detail(format!("in partition {id} they begin at {first}"))
                    .with_hint(
                        "Truncate to there, or end the transaction: `weir stream transactions` lists and aborts.",
                    ));
            }
        }
        let overruns = |pin: &Pin| cut.0.iter().any(|(id, offset)| pin.cut.get(*id).is_some_and(|held| held < *offset));
        let mut overrun: Vec<Pin> = pins.values().filter(|pin| pin.holds() && overruns(pin)).cloned().collect();
        if let Some(first) = overrun.first().filter(|_| !force) {
            for Pin { holder, .. } in &overrun {
                warn!(stream = %self.name, %cut, %holder, snapshot = about(holder), "truncation refused: pinned");
            }
            let holders: Vec<_> = overrun.iter().map(|pin| pin.holder.as_str()).collect();
            let what = format!("stream {} is pinned by {} before this cut", self.name, first.holder);
            return Err(Error::new(Code::FailedPrecondition, what)
                .with_detail(format!("pins in the way: {}", holders.join(", ")))
                .with_hint("Delete those snapshots or pins first, or force it and lose the ability to restore them."));
        }
        if !overrun.is_empty() {
            let mut changed = pins.clone();
            for pin in &mut overrun {
                pin.broken_at_ms = Some(now.0);
                changed.insert(pin.holder.clone(), pin.clone());
            }
            self.write_pins(&changed)?;
            *pins = changed;
            for Pin { holder, .. } in &overrun {
                warn!(stream = %self.name, %cut, %holder, snapshot = about(holder), "pin broken by a forced truncation");
            }
        }
        for (id, offset) in &cut.0 {
            self.partition(*id)?.truncate(*offset)?;
        }
        let heads = self.open_partitions().map(|partition| (partition.id(), partition.head())).collect();
        Ok(TruncateReport { heads: StreamCut(heads), overrun })
    }

    /// Deletes whole segments that retention no longer keeps and that no pin holds.
    pub(crate) fn retain(&self, now: Millis) -> Result<()> {
        let retention = self.options.retention;
        if retention.max_bytes.is_none() && retention.max_age_ms.is_none() {
            return Ok(());
        }
        let pins = self.pins.lock();
        let mut held_by = None;
        for partition in self.open_partitions() {
            let target = crate::retention::target(partition, retention, now)?;
            let pins = pins.values().filter(|pin| pin.holds());
            let holder = pins.filter_map(|pin| Some((pin.cut.get(partition.id())?, &pin.holder))).min();
            let allowed = match holder {
                Some((offset, holder)) if offset < target => {
                    held_by = Some(holder.clone());
                    crate::retention::segment_floor(partition, offset)
                }
                _ => target,
            };
            // What a transaction may yet commit is not deleted; it will be decided, so that no one need be told.
            let allowed = match self.undecided_before(partition, allowed) {
                Some((_, first)) => crate::retention::segment_floor(partition, first),
                None => allowed,
            };
            partition.truncate(allowed)?;
        }
        let was_held = self.retention_is_held.swap(held_by.is_some(), Ordering::Relaxed);
        if let Some(holder) = held_by.filter(|_| !was_held) {
            warn!(stream = %self.name, %holder, snapshot = about(&holder), "retention is held up by a pin");
        }
        Ok(())
    }
}

/// The holder as a log line's `snapshot`, if it is one.
fn about(holder: &PinHolder) -> Option<DisplayValue<&PinHolder>> {
    let is_snapshot = [SnapshotKind::Checkpoint, SnapshotKind::Savepoint]
        .iter()
        .any(|kind| holder.as_str().strip_prefix(kind.prefix()).is_some_and(|rest| rest.starts_with('-')));
    is_snapshot.then(|| display(holder))
}

/// What the partitions of a stream have in common.
struct Surroundings<'a> {
    dir: &'a Path,
    name: &'a StreamName,
    options: &'a StreamOptions,
    config: &'a Arc<StoreConfig>,
    disk: &'a Arc<dyn Disk>,
    tail: &'a watch::Sender<u64>,
    fences: &'a Arc<Fences>,
    transactions: &'a Arc<Transactions>,
}

impl Surroundings<'_> {
    fn of(&self, partition: u32) -> PartitionSetup {
        PartitionSetup {
            stream: self.name.clone(),
            id: PartitionId(partition),
            dir: partition_dir(self.dir, partition),
            durability: self.options.durability,
            config: Arc::clone(self.config),
            disk: Arc::clone(self.disk),
            tail: self.tail.clone(),
            fences: Arc::clone(self.fences),
            transactions: Arc::clone(self.transactions),
        }
    }
}
