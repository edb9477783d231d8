//! Checkpoints and savepoints as the catalogue knows them, and the positions of sources that they hold.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{BarrierId, OperatorUid, SnapshotId, SubtaskId};
use crate::key_range::KeyRange;
use crate::time::Millis;

/// Who asked for a snapshot, and who owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// Taken by the system, retained and deleted by it.
    Checkpoint,
    /// Taken by a user, owned by them, self-contained and relocatable.
    Savepoint,
}

impl SnapshotKind {
    /// The id prefix: `chk` or `sp`.
    pub fn prefix(self) -> &'static str {
        match self {
            SnapshotKind::Checkpoint => "chk",
            SnapshotKind::Savepoint => "sp",
        }
    }
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotKind::Checkpoint => "checkpoint",
            SnapshotKind::Savepoint => "savepoint",
        })
    }
}

/// Life of a snapshot. Terminal states absorb: nothing leaves `Failed` or `Deleted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Admitted but for a limit on snapshots in flight: waits for its turn, and charges nothing but its place.
    Queued,
    /// Reserved; barriers may be under way.
    InProgress,
    /// Durable and restorable.
    Completed,
    /// Refused or aborted.
    Failed,
    /// Marked for deletion; files may still be there.
    Deleting,
}

impl SnapshotState {
    /// As users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotState::Queued => "QUEUED",
            SnapshotState::InProgress => "IN_PROGRESS",
            SnapshotState::Completed => "COMPLETED",
            SnapshotState::Failed => "FAILED",
            SnapshotState::Deleting => "DELETING",
        }
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What people say about a snapshot; all of it may be changed at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotations {
    /// Name for people.
    pub name: Option<String>,
    /// A sentence for people.
    pub note: Option<String>,
    /// Keys and values to select by.
    pub labels: BTreeMap<String, String>,
    /// Whoever pinned it wants it kept: neither a retention policy nor an unforced delete takes it.
    pub pinned: bool,
}

/// The outcome of comparing a snapshot with its checksums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// When it ended.
    pub at: Millis,
    /// What made somebody look.
    pub by: Verifier,
    /// How much was found wrong; a restore looks no further than the first.
    pub findings: u64,
    /// The first damage found; none: it is whole.
    pub damage: Option<Error>,
}

/// What made somebody compare a snapshot with its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verifier {
    /// Somebody asked for it: every byte was read.
    Request,
    /// A job could not be restored from it: what it had stumbled upon was read again.
    Restore,
}

impl Verifier {
    /// `request` or `restore`.
    pub fn as_str(self) -> &'static str {
        match self {
            Verifier::Request => "request",
            Verifier::Restore => "restore",
        }
    }
}

/// A barrier as it travels with the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// Position in the job's order of snapshots.
    pub id: BarrierId,
    /// The snapshot it belongs to.
    pub snapshot: SnapshotId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// When the JobManager triggered it, in milliseconds since the epoch; a subtask's start delay counts from here.
    pub triggered_at_ms: u64,
    /// Sources end after this barrier: a stop with savepoint.
    pub stop: StopMode,
    /// Directory that receives the snapshot's files; it travels along, so that every subtask that sees the barrier
    /// knows it.
    pub directory: String,
    /// The completed checkpoint of this job whose files a checkpoint may build on; none: everything is written anew. It is
    /// also the notice that this one has completed, and that those between it and this barrier have not.
    pub base: Option<SnapshotId>,
}

/// Whether the job goes on after a barrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// It goes on.
    #[default]
    Continue,
    /// Sources emit nothing more; open windows stay in the snapshot and are not fired.
    Suspend,
    /// Before the barrier, sources emit the maximum watermark, so that every window fires.
    Drain,
}

/// Where one split of a source stands: a partition of a stream, a file, a share of a generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitPosition {
    /// The split's stable name within its source, see [`crate::splits`]: `p-0`, `file-…`, `split-3-of-8`.
    pub split: String,
    /// The next record to read, counted from the split's beginning.
    pub offset: u64,
    /// Where a bounded split ends: the first record that does not belong to it, pinned when the job is created. None: the
    /// split has no end, or ends where its file does.
    pub end: Option<u64>,
    /// The largest watermark the split had reached, in milliseconds since the epoch; `i64::MIN` before the first.
    pub watermark_ms: i64,
    /// Nothing follows: a bounded split that has been read to its end.
    pub finished: bool,
}

/// The positions of all splits of one source operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePositions {
    /// The source operator.
    pub uid: OperatorUid,
    /// Every split, the unowned and finished ones too.
    pub splits: Vec<SplitPosition>,
}

/// How long the parts of one subtask's snapshot took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTimings {
    /// From the trigger on the JobManager to the first barrier at the subtask.
    pub start_delay_us: u64,
    /// From the first barrier to the last.
    pub alignment_us: u64,
    /// The synchronous part: nothing was processed meanwhile.
    pub sync_us: u64,
    /// The asynchronous part: writing files and flushing sinks.
    pub async_us: u64,
}

/// One immutable file of a snapshot: rows of one state table, sorted by key hash, in blocks.
///
/// Of one subtask and table, the files stand in the order in which they were written: a row in a later one replaces the row
/// of the same key and map key in an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    /// Path relative to the snapshot's directory: a plain name, or `../shared/` with a plain name for a file that other
    /// checkpoints of the job may refer to as well. Written once, under a name no other attempt uses.
    pub path: String,
    /// The operator's state table.
    pub table: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Number of rows.
    pub rows: u64,
    /// CRC32C of the whole file.
    pub crc32c: u32,
    /// The rows are tombstones: keys and map keys that earlier files may have and that are gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deletes: bool,
    /// First and last segment in it, of a table that is dropped by segments (the slices of windows).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// Rows of lower segments have gone since the file was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_from: Option<i64>,
    /// The blocks, in file order and so in order of key hash.
    pub blocks: Vec<StateBlock>,
}

/// The segments of a file, by their order; both are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments {
    /// The lowest.
    pub first: i64,
    /// The highest.
    pub last: i64,
}

/// A file that several checkpoints of a job may refer to. It goes with the last of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SharedFile {
    /// Its name in the job's directory of shared files.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// What the paths of shared files begin with, seen from a snapshot's directory.
pub const SHARED_PREFIX: &str = "../shared/";
/// Between the id of the snapshot that wrote a shared file and the rest of its name; no id holds it.
const WRITER_END: char = '+';

impl SharedFile {
    /// Whether this snapshot wrote it, and not one before.
    pub fn is_written_by(&self, snapshot: &SnapshotId) -> bool {
        shared_file_writer(&self.name).is_some_and(|writer| writer == snapshot.as_str())
    }
}

impl StateFile {
    /// The file's name in the job's directory of shared files, if it is one.
    pub fn shared_name(&self) -> Option<&str> {
        self.path.strip_prefix(SHARED_PREFIX)
    }

    /// Whether this snapshot wrote it, and not one before.
    pub fn is_written_by(&self, snapshot: &SnapshotId) -> bool {
        self.shared_name().is_none_or(|name| shared_file_writer(name).is_some_and(|writer| writer == snapshot.as_str()))
    }
}

/// The path of a shared file that a snapshot writes, up to what tells its files apart.
pub fn shared_path(snapshot: &SnapshotId, rest: &str) -> String {
    format!("{SHARED_PREFIX}{snapshot}{WRITER_END}{rest}")
}

/// The id of the snapshot that wrote a shared file, by the file's name.
pub fn shared_file_writer(name: &str) -> Option<&str> {
    name.split_once(WRITER_END).map(|(writer, _)| writer)
}

/// One Arrow IPC record batch within a [`StateFile`]; a rescaled restore reads only the blocks it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateBlock {
    /// Where the block starts in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Number of rows.
    pub rows: u64,
    /// First and last key hash in the block.
    pub hashes: KeyRange,
    /// CRC32C of the block's bytes.
    pub crc32c: u32,
}

/// What one subtask contributes to a snapshot for one operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorSnapshot {
    /// The operator.
    pub uid: OperatorUid,
    /// The operator's event time at the barrier; equal on all of its subtasks. `i64::MIN` before the first watermark.
    pub watermark_ms: i64,
    /// Keyed state.
    pub files: Vec<StateFile>,
    /// For a source: the positions of the splits that this subtask owns.
    pub splits: Vec<SplitPosition>,
    /// For a sink: that it has prepared output which this snapshot's completion commits. What the bytes say is for people.
    pub prepared: Option<Vec<u8>>,
}

/// A subtask's acknowledgement: all of it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubtaskSnapshot {
    /// Who acknowledges.
    pub subtask: SubtaskId,
    /// Which barrier.
    pub barrier: BarrierId,
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Its operators that have anything to say.
    pub operators: Vec<OperatorSnapshot>,
    /// How long it took.
    pub timings: SnapshotTimings,
}
