//! One subtask: an operator chain with its inputs and outputs, and the task loop that drives it.
//!
//! Invariants: everything that happens to the chain passes through one queue of [`Work`], in the order of the inputs; a
//! step is taken only when there is room downstream; control messages are never kept waiting by data for longer than a
//! step. A failed snapshot is declined and never ends the subtask.
//!
//! How a subtask ends:
//! - A source subtask that has read all of its splits sends the maximum watermark, reports [`SubtaskEvent::Drained`] and
//!   stays: its channels remain open and it answers barriers with its final positions, so that snapshots go on while
//!   other subtasks still read. On [`Control::Finish`] it ends its channels.
//! - After the barrier of a stop, sources emit nothing until [`Control::Outcome`] says how the snapshot ended. If it
//!   completed they end. If it failed, a suspended source reads on; a drained one fails, as its windows have fired.
//! - Every other subtask ends when all of its inputs have. Only the maximum watermark fires what is left, and only a
//!   source sends it, so the end of input alone fires nothing.

mod build;
mod lineage;
mod run;
mod snapshot;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use weir_types::control::SnapshotDeclined;
use weir_types::deployment::ChannelId;
use weir_types::ids::{BarrierId, SubtaskId};
use weir_types::snapshot::{Barrier, SubtaskSnapshot};
use weir_types::{Error, Result};

use crate::ConnectorFactory;
use crate::chain::OperatorChain;
use crate::channel::{ChannelReceiver, ChannelSender};
use crate::element::{Batch, Watermark};
use crate::exchange::BatchLimits;
use crate::gate::{AlignedBarrier, InputGate};
use crate::grants::SnapshotGrants;
use crate::memory::MemoryBudget;
use crate::metrics::SubtaskMetrics;
use crate::plan::SubtaskPlan;
use crate::reader::SourceReader;
use snapshot::Snapshots;

/// What a subtask is told.
#[derive(Clone, Debug)]
pub enum Control {
    /// Let a barrier in. Only sources heed it: to all others it comes with the data.
    Trigger(Barrier),
    /// A snapshot has ended.
    Outcome {
        /// Its barrier.
        barrier: BarrierId,
        /// Why it failed; none: it completed.
        failure: Option<Error>,
    },
    /// Every source subtask of the attempt is drained: end.
    Finish,
    /// Stop at once.
    Cancel,
}

/// What a subtask reports while it runs.
#[derive(Clone, Debug, PartialEq)]
pub enum SubtaskEvent {
    /// A source subtask has nothing more to read; see the module's documentation.
    Drained(SubtaskId),
    /// The subtask's part of a snapshot is durable.
    SnapshotAcked(SubtaskSnapshot),
    /// The subtask takes no part in a snapshot.
    SnapshotDeclined(SnapshotDeclined),
}

/// How a subtask ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All inputs have ended and all output is durable.
    Finished,
    /// It was told to stop.
    Cancelled,
}

/// What a subtask is built from.
pub struct SubtaskContext<'a> {
    /// What to run.
    pub plan: SubtaskPlan,
    /// Builds its connectors.
    pub factory: &'a dyn ConnectorFactory,
    /// One receiver for each of the plan's inputs.
    pub inputs: Vec<(ChannelId, ChannelReceiver)>,
    /// One sender for each of the plan's outputs.
    pub outputs: Vec<(ChannelId, ChannelSender)>,
    /// What it is told.
    pub control: mpsc::Receiver<Control>,
    /// What it reports.
    pub events: mpsc::Sender<SubtaskEvent>,
    /// Where connectors run network and file work.
    pub io: Handle,
    /// Where snapshot files are written and read.
    pub files: Handle,
    /// What snapshots may write.
    pub grants: Arc<SnapshotGrants>,
    /// Its counters.
    pub metrics: Arc<SubtaskMetrics>,
    /// The TaskManager's memory.
    pub memory: Arc<MemoryBudget>,
}

/// A subtask that is ready to run. Not `Send`: it is built and run on the compute thread of its slot.
pub struct Subtask {
    id: SubtaskId,
    input: Input,
    chain: OperatorChain,
    limits: BatchLimits,
    control: mpsc::Receiver<Control>,
    snapshots: Snapshots,
    metrics: Arc<SubtaskMetrics>,
    work: VecDeque<Work>,
    triggers: VecDeque<Barrier>,
    phase: Phase,
    rows_in: u64,
}

/// Where a chain's rows come from.
enum Input {
    Gate(InputGate),
    Source(SourceReader),
}

/// What is to be done to the chain, in order.
#[derive(Debug)]
pub enum Work {
    /// Rows to process.
    Rows(Batch),
    /// Small batches to process as one.
    Join(Vec<Batch>),
    /// Event time to advance.
    Watermark(Watermark),
    /// No rows come for now.
    Idle,
    /// A snapshot to take.
    Barrier(AlignedBarrier),
    /// A snapshot that the subtask takes no part in.
    Decline(Barrier, Error),
    /// The source is read to its end.
    Drained,
    /// Nothing follows.
    End,
}

/// Whether a source may be read.
#[derive(Debug)]
enum Phase {
    /// Yes, if it has not ended.
    Reading,
    /// Not before the outcome of this stop is known.
    Stopping(Barrier),
    /// No more.
    Ending,
}

impl Subtask {
    /// Which subtask.
    pub fn id(&self) -> &SubtaskId {
        &self.id
    }

    /// Builds the chain, its connectors and its exchanges, and takes back state.
    ///
    /// # Errors
    /// If a connector refuses its options, an expression does not decode, channels are missing, or state is damaged.
    pub async fn build(context: SubtaskContext<'_>) -> Result<Self> {
        build::build(context).await
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod window_tests;
