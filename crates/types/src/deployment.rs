//! One attempt of a job as it is sent to a TaskManager: who runs what where, and from which state.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::graph::JobGraph;
use crate::ids::{Attempt, ChainId, JobId, OperatorUid, SubtaskIndex, TaskManagerId, Term};
use crate::snapshot::{OperatorSnapshot, SplitPosition};

/// What one TaskManager needs to run its share of an attempt. Sent once per TaskManager and attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// The leader's term; a lower one than seen before is refused.
    pub term: Term,
    /// The job.
    pub job: JobId,
    /// Which deployment of it; a lower one than seen before is refused, a higher one replaces the running attempt.
    pub attempt: Attempt,
    /// The job graph.
    pub graph: JobGraph,
    /// All subtasks of the attempt, on every TaskManager.
    pub placements: Vec<Placement>,
    /// Which splits each source subtask reads, and from where.
    pub splits: Vec<SplitAssignment>,
    /// State to start from; none: empty.
    pub restore: Option<Restore>,
    /// Directory under which snapshot directories lie: `<root>/<job>/<snapshot>`; a savepoint names its own.
    pub checkpoint_root: String,
    /// Address of the stream store.
    pub store_address: String,
}

/// Where a subtask runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The chain.
    pub chain: ChainId,
    /// Which subtask of it.
    pub index: SubtaskIndex,
    /// On which TaskManager …
    pub task_manager: TaskManagerId,
    /// … in which of its slots: one subtask of every chain shares a slot …
    pub slot: u32,
    /// … reachable for exchanges at this address (`host:port`).
    pub data_address: String,
}

/// A split of a source, given to one of its subtasks for the attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitAssignment {
    /// The source operator.
    pub uid: OperatorUid,
    /// The subtask that reads it.
    pub index: SubtaskIndex,
    /// The split, and where to go on.
    pub position: SplitPosition,
}

/// State that an attempt starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Directory of the snapshot; the files' paths are relative to it.
    pub directory: String,
    /// For each operator, what every subtask contributed; a subtask loads the blocks that overlap its key range.
    pub operators: Vec<OperatorSnapshot>,
}

/// One channel of an exchange between two subtasks of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelId {
    /// The job.
    pub job: JobId,
    /// The attempt that both subtasks belong to.
    pub attempt: Attempt,
    /// The edge, by its position in the job graph's list.
    pub edge: u32,
    /// The subtask that sends, of the chain that holds the edge's `from` operator.
    pub from: SubtaskIndex,
    /// The subtask that receives, of the chain that holds the edge's `to` operator.
    pub to: SubtaskIndex,
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, attempt, edge, from, to } = self;
        write!(f, "{job}#{attempt} edge {edge} {from}→{to}")
    }
}

/// Life of a subtask on its TaskManager. `Finished`, `Failed` and `Cancelled` absorb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubtaskState {
    /// Restoring state, connecting exchanges.
    Starting,
    /// Processing.
    Running,
    /// A source subtask has read all of its splits to their ends and has sent the maximum watermark. It stays, with its
    /// channels open, and answers barriers with its final positions, so that snapshots of the others go on. When every
    /// source subtask of the attempt is in this state, the JobManager sends `FinishAttempt`: then all of them end, and
    /// everything behind them.
    Drained,
    /// All inputs ended and all output is durable.
    Finished,
    /// Broken; the job restarts.
    Failed(Error),
    /// Stopped on command.
    Cancelled,
}

impl SubtaskState {
    /// Whether nothing follows.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Finished | Self::Failed(_) | Self::Cancelled)
    }
}
