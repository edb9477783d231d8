//! What the stream store tells about streams, and what it is told: options, partitions, pins, producer stamps.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{Epoch, PartitionId, PinHolder, ProducerId, TransactionId, TransactionNumber};
use crate::stream::{Offset, StreamCut, StreamName};

/// How the records of a stream are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordFormat {
    /// Bytes with an optional key and event time.
    #[default]
    Bytes,
    /// Arrow record batches of the stream's schema; a record is a row.
    Arrow,
}

impl fmt::Display for RecordFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordFormat::Bytes => "bytes",
            RecordFormat::Arrow => "arrow",
        })
    }
}

impl FromStr for RecordFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "bytes" => Ok(RecordFormat::Bytes),
            "arrow" => Ok(RecordFormat::Arrow),
            _ => Err(Error::invalid(format!("{name:?} is not a record format")).with_hint("Use 'bytes' or 'arrow'.")),
        }
    }
}

/// What an acknowledged append survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A power failure: the record was fsynced.
    #[default]
    Fsync,
    /// A crash of the store's process, but not of the machine: the record is in the operating system's cache and is
    /// synced in the background.
    Os,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Fsync => "fsync",
            Durability::Os => "os",
        })
    }
}

impl FromStr for Durability {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "fsync" => Ok(Durability::Fsync),
            "os" => Ok(Durability::Os),
            _ => Err(Error::invalid(format!("{name:?} is not a durability")).with_hint("Use 'fsync' or 'os'.")),
        }
    }
}

/// What a partition keeps at most; whole segments go, oldest first, and never past a pin. `None` keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Retention {
    /// Bytes per partition.
    pub max_bytes: Option<u64>,
    /// Milliseconds since a segment's last append.
    pub max_age_ms: Option<u64>,
}

/// How a stream is made; fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Number of partitions, at least one.
    pub partitions: u32,
    /// How its records are stored.
    #[serde(default)]
    pub format: RecordFormat,
    /// What acknowledged appends survive.
    #[serde(default)]
    pub durability: Durability,
    /// What is kept.
    #[serde(default)]
    pub retention: Retention,
    /// With [`RecordFormat::Arrow`]: the schema as an encapsulated Arrow IPC schema message.
    #[serde(default)]
    pub arrow_schema: Option<Vec<u8>>,
}

impl StreamOptions {
    /// Bytes records, fsynced, kept for ever, over `partitions` partitions.
    pub fn new(partitions: u32) -> Self {
        Self {
            partitions,
            format: RecordFormat::Bytes,
            durability: Durability::Fsync,
            retention: Retention::default(),
            arrow_schema: None,
        }
    }
}

/// One partition as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Which one.
    pub partition: PartitionId,
    /// The oldest offset that can be read.
    pub head: Offset,
    /// The offset that the next record will get; everything below it is durable as the stream's options promise.
    pub end: Offset,
    /// How far committed readers get: the first record of a transaction that is not decided yet, or the end.
    pub stable_end: Offset,
    /// Bytes on disk.
    pub bytes: u64,
    /// Segment files.
    pub segments: u32,
    /// The greatest event time of any record kept, in milliseconds since the epoch.
    pub max_event_time_ms: Option<i64>,
    /// Why the partition takes no appends, if it does not: damage found, or a failed fsync.
    pub fault: Option<String>,
}

/// A stream as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Its full name.
    pub name: StreamName,
    /// How it was made.
    pub options: StreamOptions,
    /// When, in milliseconds since the epoch.
    pub created_at_ms: u64,
    /// Its partitions, in order.
    pub partitions: Vec<PartitionInfo>,
}

impl StreamInfo {
    /// The oldest readable offset of every partition.
    pub fn heads(&self) -> StreamCut {
        StreamCut(self.partitions.iter().map(|p| (p.partition, p.head)).collect())
    }

    /// The end of every partition: a read from the heads up to this cut is bounded.
    pub fn ends(&self) -> StreamCut {
        StreamCut(self.partitions.iter().map(|p| (p.partition, p.end)).collect())
    }

    /// How far readers of this isolation get as of now: a read up to this cut waits for nothing.
    pub fn readable_ends(&self, isolation: Isolation) -> StreamCut {
        match isolation {
            Isolation::Committed => StreamCut(self.partitions.iter().map(|p| (p.partition, p.stable_end)).collect()),
            Isolation::Uncommitted => self.ends(),
        }
    }
}

/// A named hold on a stream: nothing at or behind its cut is truncated, unless somebody forces it. Pins outlive reader
/// groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Who holds it; one pin per holder and stream.
    pub holder: PinHolder,
    /// From where on the stream must stay readable.
    pub cut: StreamCut,
    /// Since when, in milliseconds since the epoch.
    pub created_at_ms: u64,
    /// When a forced truncation passed it, in milliseconds since the epoch: it holds nothing any more, and is remembered
    /// for its holder. None: it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken_at_ms: Option<u64>,
}

impl Pin {
    /// Whether it still holds.
    pub fn holds(&self) -> bool {
        self.broken_at_ms.is_none()
    }
}

/// What a pin keeps from being deleted, from its cut to the end of the stream; nothing if it is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinHold {
    /// Records.
    pub records: u64,
    /// Bytes on disk of the segments that they are in: a segment is deleted as a whole.
    pub bytes: u64,
}

/// What a truncation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruncateReport {
    /// The oldest readable offset of every partition, now.
    pub heads: StreamCut,
    /// Forced truncation only: the pins that can no longer be honoured. They stay, as broken ones, until their holders drop
    /// them.
    pub overrun: Vec<Pin>,
}

/// What a reader is shown of transactions. Records outside of transactions count as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nothing but committed records, in order: reading waits at the first record of a transaction that is not decided.
    #[default]
    Committed,
    /// Everything that is in the log, aborted records too.
    Uncommitted,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Committed => "committed",
            Isolation::Uncommitted => "uncommitted",
        })
    }
}

impl FromStr for Isolation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "committed" => Ok(Isolation::Committed),
            "uncommitted" => Ok(Isolation::Uncommitted),
            _ => {
                Err(Error::invalid(format!("{name:?} is not an isolation"))
                    .with_hint("Use 'committed' or 'uncommitted'."))
            }
        }
    }
}

/// Where a transaction stands. The last two are for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionState {
    /// It takes appends, until its lease runs out.
    Open,
    /// Its records are durable; it waits for a decision, for ever if need be.
    Prepared,
    /// Its records are part of the stream.
    Committed,
    /// Committed readers never see its records.
    Aborted {
        /// Who or what ended it.
        reason: String,
    },
}

impl TransactionState {
    /// Whether it is committed or aborted.
    pub fn is_decided(&self) -> bool {
        matches!(self, TransactionState::Committed | TransactionState::Aborted { .. })
    }
}

impl fmt::Display for TransactionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransactionState::Open => "open",
            TransactionState::Prepared => "prepared",
            TransactionState::Committed => "committed",
            TransactionState::Aborted { .. } => "aborted",
        })
    }
}

/// What a transaction is begun with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionSpec {
    /// Its name; unique among the stream's transactions that are known.
    pub id: TransactionId,
    /// The only producer that may append to it, subject to the stream's fences.
    pub producer: ProducerId,
    /// The producer's incarnation.
    pub epoch: Epoch,
    /// An open transaction is aborted when it has not been renewed for so many milliseconds.
    pub lease_ms: u64,
}

/// A decision about all transactions of a family of producers at once: those of the producer of that name, and of all whose
/// names begin with it and a dot. It names no transaction, and deciding again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyDecision {
    /// What the producers' names begin with.
    pub family: ProducerId,
    /// Commits what producers of this epoch have prepared under this mark or a lower one.
    pub commit: Option<(Epoch, u64)>,
    /// Then fences lower epochs off, and aborts all that they have left open or prepared.
    pub below: Option<Epoch>,
}

/// What came of a decision about a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyDecided {
    /// Transactions that it has committed.
    pub committed: u64,
    /// Transactions that it has aborted.
    pub aborted: u64,
}

/// A transaction as it stands. It spans any number of partitions of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionInfo {
    /// What it was begun with.
    pub spec: TransactionSpec,
    /// What appends to it are marked with.
    pub number: TransactionNumber,
    /// Where it stands.
    pub state: TransactionState,
    /// What it was prepared under, if its producer gave a mark.
    pub mark: Option<u64>,
    /// Since when, in milliseconds since the epoch.
    pub began_at_ms: u64,
    /// Its first offset in every partition that it has appended to, until it is decided there.
    pub begins: StreamCut,
}

/// Marks an append of an idempotent producer. Sequence numbers count blocks per partition, from 0 in each epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerStamp {
    /// Which producer.
    pub producer: ProducerId,
    /// Its incarnation: a partition refuses lower epochs than it has seen.
    pub epoch: Epoch,
    /// The block's number.
    pub sequence: u64,
    /// The transaction that the block belongs to, if it does to one.
    pub transaction: Option<TransactionNumber>,
}

/// Where an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// The offset of the block's first record.
    pub base_offset: Offset,
    /// The same block had been appended before; this is where.
    pub duplicate: bool,
}
