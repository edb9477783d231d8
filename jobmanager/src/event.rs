//! Everything that can happen to the leader, in one closed enum; see [`crate::leader`] for what follows from it.

use tokio::sync::{mpsc, oneshot, watch};
use weir_coordination::checkpoint;
use weir_coordination::metadata::NewJob;
use weir_proto::pb::client::v1 as pb;
use weir_types::Result;
use weir_types::control::{FromTaskManager, Registration, ToTaskManager};
use weir_types::deployment::{Placement, Restore, SplitAssignment};
use weir_types::ids::{Attempt, JobId, RequestId, SnapshotId, TaskManagerId};

/// Events that may wait for the leader; beyond this, whoever brings one waits.
pub(crate) const QUEUE_MAX: usize = 4096;
/// Messages that may wait for a TaskManager; one that takes no more is lost.
pub(crate) const SESSION_QUEUE_MAX: usize = 1024;

/// Tells sessions of one TaskManager apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId(pub(crate) u64);

/// How a request is answered.
pub(crate) type Answer<T> = oneshot::Sender<Result<T>>;

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A TaskManager registers.
    SessionOpened { registration: Registration, outbound: mpsc::Sender<ToTaskManager>, accepted: Answer<SessionId> },
    /// A TaskManager says something.
    SessionMessage { task_manager: TaskManagerId, session: SessionId, message: FromTaskManager },
    /// A session is broken.
    SessionClosed { task_manager: TaskManagerId, session: SessionId, reason: String },
    /// A client wants something.
    Request(Request),
    /// A script was planned and its sources were looked at.
    Planned { request: RequestId, answer: Answer<pb::SubmitReply>, planned: Result<Box<NewJob>> },
    /// All that an attempt needs was read.
    Prepared { job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Result<Prepared> },
    /// A step of a snapshot is done.
    Step { job: JobId, event: checkpoint::Event },
    /// The reader groups and pins have followed a completed snapshot, as far as they could.
    Kept(SnapshotId),
    /// A snapshot's files are gone, or could not be removed.
    Removed { snapshot: SnapshotId, result: Result<()> },
}

/// What an attempt starts with.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) splits: Vec<SplitAssignment>,
    pub(crate) restore: Option<Restore>,
}

/// What clients want.
#[derive(Debug)]
pub(crate) enum Request {
    Status(Answer<pb::ClusterStatusReply>),
    Submit(Box<pb::SubmitRequest>, Answer<pb::SubmitReply>),
    Jobs(pb::ListJobsRequest, Answer<pb::ListJobsReply>),
    Job(String, Answer<pb::JobDetail>),
    /// Subscribes to changes of a job; the number only says that something has changed.
    Watch(String, Answer<(JobId, watch::Receiver<u64>)>),
    Cancel(String, Answer<pb::JobDetail>),
    Trigger(pb::TriggerSnapshotRequest, Answer<pb::Snapshot>),
    Stop(pb::StopJobRequest, Answer<pb::Snapshot>),
    Snapshots(pb::ListSnapshotsRequest, Answer<pb::ListSnapshotsReply>),
    Snapshot(String, Answer<pb::Snapshot>),
    Delete(pb::SnapshotRequest, Answer<pb::DeleteSnapshotReply>),
}
