//! What flows between operators. Order within one channel is kept; nothing is said across channels.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use weir_types::snapshot::Barrier;

/// The change that a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowOp {
    /// `+I`
    Insert = 0,
    /// `-U`: the old version of a row that changes.
    UpdateBefore = 1,
    /// `+U`: its new version.
    UpdateAfter = 2,
    /// `-D`
    Delete = 3,
}

/// Rows with the change that each stands for.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The rows; never empty.
    pub rows: RecordBatch,
    /// One [`RowOp`] per row as its number; none: all of them are inserts.
    pub ops: Option<ScalarBuffer<u8>>,
}

impl Batch {
    /// Rows that are all inserts.
    pub fn inserts(rows: RecordBatch) -> Self {
        Self { rows, ops: None }
    }
}

/// Event time in milliseconds since the epoch: no row at or before it is expected any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermark(pub i64);

impl Watermark {
    /// Before the first watermark.
    pub const MIN: Self = Self(i64::MIN);
    /// The end of a bounded input: every timer fires.
    pub const MAX: Self = Self(i64::MAX);
}

/// One thing in a channel.
#[derive(Clone, Debug)]
pub enum Element {
    /// Rows.
    Batch(Batch),
    /// Event time has advanced; an idle channel becomes active again.
    Watermark(Watermark),
    /// The channel brings no rows for now: its watermark is left out of the minimum.
    Idle,
    /// A snapshot's barrier.
    Barrier(Barrier),
    /// Nothing follows.
    EndOfInput,
}
