//! What JobManager and TaskManagers say to each other. Everything that changes a job names term and attempt, so that a
//! message from the past can be told from one that counts.

use crate::deployment::{Deployment, SubtaskState};
use crate::error::Error;
use crate::ids::{Attempt, BarrierId, ClusterId, JobId, SnapshotId, SubtaskId, TaskManagerId, Term};
use crate::snapshot::{Barrier, SubtaskSnapshot};

/// From a TaskManager to the JobManager. The first message of a session is always [`FromTaskManager::Register`].
#[derive(Clone, Debug, PartialEq)]
pub enum FromTaskManager {
    /// Opens the session.
    Register(Registration),
    /// Still alive.
    Heartbeat(Vec<SubtaskProgress>),
    /// A subtask has changed its state.
    Status(SubtaskStatus),
    /// A subtask's part of a snapshot is durable.
    SnapshotAcked(SubtaskSnapshot),
    /// A subtask cannot take part in a snapshot; the job goes on.
    SnapshotDeclined(SnapshotDeclined),
    /// A subtask wants to write more for a snapshot than it may.
    GrantWanted(GrantRequest),
    /// Nobody here writes a snapshot any more that was given up.
    WritersStopped(WritersStopped),
}

/// From the JobManager to a TaskManager. The first message of a session is always [`ToTaskManager::Registered`].
#[derive(Clone, Debug, PartialEq)]
pub enum ToTaskManager {
    /// Answers the registration.
    Registered(Registered),
    /// Start the TaskManager's share of an attempt.
    Deploy(Box<Deployment>),
    /// Stop an attempt, and any lower one.
    Cancel(CancelAttempt),
    /// Let a barrier into the sources.
    Trigger(TriggerBarrier),
    /// Every source subtask of the attempt is drained: end.
    Finish(FinishAttempt),
    /// A snapshot has ended.
    SnapshotOutcome(SnapshotOutcome),
    /// A subtask may write more for a snapshot.
    Grant(Grant),
    /// Still alive, in this term.
    Heartbeat(Term),
}

/// A TaskManager introduces itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The cluster it means; none: whatever cluster answers.
    pub cluster: Option<ClusterId>,
    /// Itself.
    pub task_manager: TaskManagerId,
    /// `host:port` for exchanges.
    pub data_address: String,
    /// `host:port` of its metrics.
    pub http_address: String,
    /// How many slots it has.
    pub slots: u32,
    /// For people who look for the process.
    pub process_id: u32,
    /// Subtasks that it runs already, after a lost connection.
    pub running: Vec<SubtaskStatus>,
}

/// The JobManager takes a TaskManager in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader's term.
    pub term: Term,
    /// How often both sides send heartbeats.
    pub heartbeat_interval_ms: u64,
    /// After what silence either side gives the session up.
    pub heartbeat_timeout_ms: u64,
}

/// A subtask and the state it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubtaskStatus {
    /// Which.
    pub subtask: SubtaskId,
    /// Its state.
    pub state: SubtaskState,
}

/// Counters of a subtask since it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubtaskProgress {
    /// Which.
    pub subtask: SubtaskId,
    /// Rows that came in: for a source, those it read.
    pub rows_in: u64,
    /// Rows that went out: for a sink, those it wrote.
    pub rows_out: u64,
    /// Rows that came behind the watermark.
    pub late_rows: u64,
    /// Its event time; `i64::MIN` before the first watermark.
    pub watermark_ms: i64,
    /// State in memory.
    pub state_bytes: u64,
}

/// Stop an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelAttempt {
    /// The leader's term.
    pub term: Term,
    /// The job.
    pub job: JobId,
    /// This attempt and any lower one.
    pub attempt: Attempt,
}

/// Let a barrier into the sources of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerBarrier {
    /// The leader's term.
    pub term: Term,
    /// The job.
    pub job: JobId,
    /// The attempt that is meant.
    pub attempt: Attempt,
    /// The barrier.
    pub barrier: Barrier,
}

/// Every source subtask of an attempt is drained: they end now, and with them everything behind them. No barrier is
/// triggered afterwards; a snapshot still in flight is declined by the sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishAttempt {
    /// The leader's term.
    pub term: Term,
    /// The job.
    pub job: JobId,
    /// The attempt that is meant.
    pub attempt: Attempt,
}

/// A snapshot has ended, one way or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOutcome {
    /// The leader's term.
    pub term: Term,
    /// The job.
    pub job: JobId,
    /// The attempt that is meant.
    pub attempt: Attempt,
    /// The snapshot's barrier.
    pub barrier: BarrierId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Why it failed; none: it completed.
    pub failure: Option<Error>,
}

/// A subtask cannot take part in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotDeclined {
    /// Who declines.
    pub subtask: SubtaskId,
    /// The snapshot's barrier.
    pub barrier: BarrierId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Why.
    pub error: Error,
}

/// A subtask wants to write more for a snapshot than it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// Who wants to write.
    pub subtask: SubtaskId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What it will have written for the snapshot in total, if it may: a repeated request asks for nothing more.
    pub bytes: u64,
    /// Of which so much, in total, it cannot do without; the rest spares it the next request.
    pub needed: u64,
}

/// A subtask may write more for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The leader's term.
    pub term: Term,
    /// Who may write.
    pub subtask: SubtaskId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What it may write for the snapshot in total.
    pub bytes: u64,
}

/// Answers the [`SnapshotOutcome`] of a snapshot that failed: on this TaskManager nobody writes it any more, nobody will, and
/// what was not acknowledged is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritersStopped {
    /// The job.
    pub job: JobId,
    /// The attempt that is meant.
    pub attempt: Attempt,
    /// The snapshot.
    pub snapshot: SnapshotId,
}
