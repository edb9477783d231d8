//! The contract of an operator within a chain.
//!
//! Operators are synchronous and never block: a chain passes batches on by function calls, and its task loop waits for
//! room downstream between calls. An operator with much to emit at once (a window that fires) emits it in steps.

use weir_state::memory::Memory;
use weir_state::{FrozenTable, RestoredOperator, Since};
use weir_types::Result;
use weir_types::graph::Output;

use crate::element::{Batch, Watermark};

/// Where an operator's results go: the next operators of the chain and the exchanges.
pub trait Collector {
    /// Passes rows on.
    ///
    /// # Errors
    /// Whatever an operator further down the chain returns; the subtask fails with it.
    fn emit(&mut self, output: Output, batch: Batch) -> Result<()>;
}

/// Whether [`Operator::advance`] has more to emit for the same watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again after there is room downstream.
    More,
    /// All was emitted; the watermark may be passed on.
    Done,
}

/// What an operator hands over in the synchronous part of a snapshot. Cheap: pages are shared, not copied.
#[derive(Debug, Default)]
pub struct Frozen {
    /// State tables as of the barrier.
    pub tables: Vec<FrozenTable>,
}

/// An operator of a chain.
pub trait Operator {
    /// Takes back state, before anything else; called only if the job was restored from a snapshot that holds some.
    ///
    /// # Errors
    /// `CORRUPT` or `FAILED_PRECONDITION` if the state does not fit.
    fn restore(&mut self, state: RestoredOperator) -> Result<()>;

    /// Processes rows.
    ///
    /// # Errors
    /// For a failure of the job: an evaluation error, a null event time.
    fn process(&mut self, batch: Batch, out: &mut dyn Collector) -> Result<()>;

    /// Advances event time to `watermark`: fires at most about one batch of results per call.
    ///
    /// # Errors
    /// As [`Operator::process`].
    fn advance(&mut self, watermark: Watermark, out: &mut dyn Collector) -> Result<Progress>;

    /// The synchronous part of a snapshot. Tables tell what has changed `since`, where that is known; pages that only the
    /// snapshot still holds are counted in `memory`.
    ///
    /// # Errors
    /// `INTERNAL`; the snapshot is declined, the job goes on, and the next freeze is since the start.
    fn freeze(&mut self, since: Since, memory: &Memory) -> Result<Frozen>;

    /// Bytes of state held.
    fn state_bytes(&self) -> u64 {
        0
    }

    /// Rows that came behind the watermark so far.
    fn late_rows(&self) -> u64 {
        0
    }
}
