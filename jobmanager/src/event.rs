//! Everything that can happen to the leader, in one closed enum; see [`crate::leader`] for what follows from it.

use tokio::sync::{mpsc, oneshot, watch};
use weir_coordination::checkpoint::{self, Contents};
use weir_coordination::metadata::{Command, NewJob};
use weir_proto::pb::client::v1 as pb;
use weir_state::manifest::Manifest;
use weir_state::verify::Report;
use weir_types::control::{FromTaskManager, Registration, ToTaskManager};
use weir_types::deployment::{Placement, Restore, SplitAssignment};
use weir_types::ids::{Attempt, JobId, RequestId, SnapshotId, TaskManagerId};
use weir_types::output::Settlement;
use weir_types::{Error, Result};

use crate::import::Examined;

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
    /// A restore was planned that is only shown.
    RestorePlanned {
        snapshot: Option<SnapshotId>,
        planned: Result<pb::PlanRestoreReply, Unprepared>,
        to: Answer<pb::PlanRestoreReply>,
    },
    /// A restore cannot be planned.
    Unrestorable { snapshot: Option<SnapshotId>, why: Unprepared, refused: RefusedRestore },
    /// All that an attempt needs was read.
    Prepared { job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Result<Prepared, Unprepared> },
    /// A decision about a job's output was carried out, or could not be.
    OutputSettled { job: JobId, duty: Settlement, settled: Result<()> },
    /// What older attempts have left is settled, or could not be: a new one may be deployed.
    RolledBack { job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Result<Box<Prepared>> },
    /// A step of a snapshot is done.
    Step { job: JobId, event: checkpoint::Event },
    /// The reader groups and pins have followed a completed snapshot, as far as they could.
    Kept(SnapshotId),
    /// A snapshot's directory was looked at before it is marked for deletion.
    Deletable { snapshot: SnapshotId, command: Result<Box<Command>>, to: Answer<pb::DeleteSnapshotReply> },
    /// The manifest of a snapshot whose files are all durable, or why there is none.
    Drafted { job: JobId, snapshot: SnapshotId, draft: Result<Box<Draft>> },
    /// Whether the manifest of a snapshot that an earlier JobManager left is there; if not, it cannot appear any more.
    Settled { snapshot: SnapshotId, found: Result<Option<Contents>> },
    /// A savepoint that is to be imported was read, or is none.
    Examined { request: RequestId, wanted: Box<pb::ImportSnapshotRequest>, examined: Result<Box<Examined>> },
    /// An import's files are there, or could not be copied.
    Copied { snapshot: SnapshotId, copied: Result<Contents> },
    /// What a failed snapshot had left is gone, or could not be removed.
    Swept { snapshot: SnapshotId, result: Result<()> },
    /// A snapshot's files are gone, or could not be removed.
    Removed { snapshot: SnapshotId, result: Result<()> },
    /// What a TaskManager could not read of a snapshot was read here: the damage that was found, if there is any.
    Suspected { job: JobId, snapshot: SnapshotId, found: Result<Option<Error>> },
    /// A stream no longer holds what a completed snapshot goes on from.
    CutOff { job: JobId, snapshot: SnapshotId, reason: String },
    /// Every byte of a snapshot was read, or there is no manifest to compare it with.
    Verified { snapshot: SnapshotId, report: Result<Box<Report>> },
    /// Shared files that nothing refers to are gone, or could not be deleted.
    SharedDeleted { job: JobId, names: Vec<String>, deleted: Result<()> },
}

/// A manifest that is to be published.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) job: JobId,
    pub(crate) snapshot: SnapshotId,
    pub(crate) directory: String,
    pub(crate) manifest: Manifest,
    /// Bytes of all files that this snapshot has written.
    pub(crate) written: u64,
    /// Bytes of the manifest.
    pub(crate) bytes: u64,
}

/// What an attempt starts with.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) splits: Vec<SplitAssignment>,
    pub(crate) restore: Option<Restore>,
}

/// Why an attempt cannot start.
#[derive(Debug)]
pub(crate) enum Unprepared {
    /// The manifest of its snapshot is damaged or missing.
    Damaged(Error),
    /// A stream no longer holds what its snapshot goes on from.
    CutOff(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Unprepared {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Who is told that a snapshot cannot be restored.
#[derive(Debug)]
pub(crate) enum RefusedRestore {
    /// Who wanted to see the plan.
    Plan(Answer<pb::PlanRestoreReply>),
    /// Who submitted a job.
    Submission(RequestId, Answer<pb::SubmitReply>),
}

/// What clients want.
#[derive(Debug)]
pub(crate) enum Request {
    Status(Answer<pb::ClusterStatusReply>),
    Submit(Box<pb::SubmitRequest>, Answer<pb::SubmitReply>),
    PlanRestore(Box<pb::SubmitRequest>, Answer<pb::PlanRestoreReply>),
    Jobs(pb::ListJobsRequest, Answer<pb::ListJobsReply>),
    Job(pb::JobRequest, Answer<pb::JobDetail>),
    /// Subscribes to changes of a job; the number only says that something has changed.
    Watch(pb::JobRequest, Answer<(JobId, watch::Receiver<u64>)>),
    Cancel(pb::JobRequest, Answer<pb::JobDetail>),
    Trigger(pb::TriggerSnapshotRequest, Answer<pb::Snapshot>),
    Stop(pb::StopJobRequest, Answer<pb::Snapshot>),
    Rescale(pb::RescaleJobRequest, Answer<pb::RescaleJobReply>),
    Snapshots(pb::ListSnapshotsRequest, Answer<pb::ListSnapshotsReply>),
    Snapshot(pb::SnapshotRequest, Answer<pb::Snapshot>),
    CancelSnapshot(pb::SnapshotRequest, Answer<pb::Snapshot>),
    Progress(String, Answer<pb::SnapshotProgress>),
    SetQuota(pb::SetQuotaRequest, Answer<pb::SetQuotaReply>),
    Quotas(pb::ListQuotasRequest, Answer<pb::ListQuotasReply>),
    Explain(pb::SnapshotRequest, Answer<pb::SnapshotExplanation>),
    Verify(pb::SnapshotRequest, Answer<pb::VerifySnapshotReply>),
    Delete(pb::DeleteSnapshotRequest, Answer<pb::DeleteSnapshotReply>),
    Import(pb::ImportSnapshotRequest, Answer<pb::Snapshot>),
    Annotate(pb::AnnotateSnapshotRequest, Answer<pb::Snapshot>),
    Deleted(pb::ListDeletedRequest, Answer<pb::ListDeletedReply>),
    Collect(pb::CollectGarbageRequest, Answer<pb::CollectGarbageReply>),
    SetPolicy(pb::SetPolicyRequest, Answer<pb::Policy>),
    RemovePolicy(pb::RemovePolicyRequest, Answer<pb::Policy>),
    Policies(pb::ListPoliciesRequest, Answer<pb::ListPoliciesReply>),
}
