//! What may be proposed to the replicated state, and what comes back.

use weir_types::annotations::AnnotationChange;
use weir_types::deployment::{Placement, SplitAssignment};
use weir_types::graph::JobGraph;
use weir_types::ids::{Attempt, BarrierId, ClusterId, JobId, Nonce, Parallelism, RequestId, SnapshotId};
use weir_types::job::{JobChange, JobFailure};
use weir_types::output::Settlement;
use weir_types::quota::{QuotaDefaults, QuotaLevel, QuotaLimits};
use weir_types::retention::RetentionPolicy;
use weir_types::snapshot::{Annotations, SnapshotKind, Verifier};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::{Deleter, Import, PassedOver, RestoreRecord, SourceRecord};
use crate::checkpoint::{Contents, Trigger};

/// One change of the replicated state.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Names the cluster, once, and sets the limits of the leader's configuration.
    Found {
        /// The id, if it has none yet.
        cluster: ClusterId,
        /// The limits from now on, where none are set.
        defaults: Box<QuotaDefaults>,
    },
    /// Accepts a job.
    CreateJob(Box<NewJob>),
    /// Decides where an attempt runs, before it is deployed.
    StartAttempt(StartAttempt),
    /// Changes a job's state.
    ChangeJob {
        /// The job.
        job: JobId,
        /// What happened to it.
        change: JobChange,
        /// Why, if something broke.
        failure: Option<Box<JobFailure>>,
    },
    /// Runs a job at another parallelism from its next attempt on.
    Rescale {
        /// The client's name for the request.
        request: Option<RequestId>,
        /// The job.
        job: JobId,
        /// Its parallelism, given slots.
        parallelism: Parallelism,
    },
    /// What was decided about a job's output has been carried out.
    Discharged {
        /// The job.
        job: JobId,
        /// What was carried out.
        duty: Settlement,
    },
    /// Sets the limits of a level.
    SetQuota {
        /// The client's name for the request.
        request: Option<RequestId>,
        /// The level.
        level: QuotaLevel,
        /// Its limits from now on; a dimension without one has the default. None: those that were set are taken away.
        limits: Option<QuotaLimits>,
    },
    /// Admits a snapshot, lets it wait, or enters its refusal into the catalogue.
    Reserve(Box<Reserve>),
    /// Admits a savepoint of another cluster, or lets it wait.
    Import(Box<Import>),
    /// Lets a snapshot under way write more.
    Grant {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The reservation's.
        nonce: Nonce,
        /// What it may write in total, from now on.
        bytes: u64,
    },
    /// The only commit point of a snapshot.
    Complete(Box<Completion>),
    /// Ends a reservation without a snapshot. What it was charged stays charged until it is swept.
    Abort {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The reservation's.
        nonce: Nonce,
        /// Why.
        failure: Error,
    },
    /// Whoever wrote files of a failed snapshot has stopped or was given up, and the files are gone.
    Swept {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Makes a savepoint unreferencable for ever.
    MarkDeleted {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The client's name for the request.
        request: Option<RequestId>,
        /// Even if it is pinned, or the last good one of its job.
        force: bool,
        /// On whose behalf.
        by: Deleter,
    },
    /// All of its files are gone, and so is the entry.
    Deleted {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Shared files that nothing refers to any more are gone.
    Released {
        /// The job.
        job: JobId,
        /// Their names.
        names: Vec<String>,
    },
    /// Changes what people say about a snapshot.
    Annotate {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The client's name for the request.
        request: Option<RequestId>,
        /// What is different.
        change: AnnotationChange,
    },
    /// Sets the retention policy of a level, or removes it.
    SetPolicy {
        /// A job or a namespace.
        level: QuotaLevel,
        /// The client's name for the request.
        request: Option<RequestId>,
        /// The policy; none: there is none any more.
        policy: Option<RetentionPolicy>,
        /// Who sets it; may be empty.
        by: String,
    },
    /// Marks for deletion what no policy keeps any more.
    EnforcePolicies,
    /// A completed snapshot was compared with its checksums.
    Verified {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What made somebody look.
        by: Verifier,
        /// How much was found wrong.
        findings: u64,
        /// The first of it.
        damage: Option<Error>,
    },
    /// A stream no longer holds what a completed snapshot goes on from.
    CutOff {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What was lost and how, in words.
        reason: String,
    },
}

/// A planned job.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    /// The client's name for the request.
    pub request: Option<RequestId>,
    /// Its id.
    pub id: JobId,
    /// For people.
    pub name: String,
    /// The script.
    pub sql: String,
    /// Who submits it.
    pub owner: String,
    /// Where its quotas apply.
    pub namespace: String,
    /// What it does.
    pub graph: JobGraph,
    /// The plan as `EXPLAIN` shows it.
    pub plan: String,
    /// Its sources with their splits.
    pub sources: Vec<SourceRecord>,
    /// Whose state it starts with.
    pub restore: Option<RestoreRecord>,
    /// It may write again what is committed already: now, and whenever it falls back.
    pub allow_duplicates: bool,
}

/// Where an attempt runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartAttempt {
    /// The job.
    pub job: JobId,
    /// Newer than any before.
    pub attempt: Attempt,
    /// Who runs what.
    pub placements: Vec<Placement>,
    /// Who reads what.
    pub splits: Vec<SplitAssignment>,
    /// Id or directory of the snapshot that it starts from.
    pub from: Option<String>,
    /// Newer snapshots that cannot be restored.
    pub passed_over: Vec<PassedOver>,
    /// Its parallelism; none: that of the attempt before.
    pub parallelism: Option<Parallelism>,
}

/// Asks for a snapshot's admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// The client's name for the request; none: periodic.
    pub request: Option<RequestId>,
    /// Its id.
    pub snapshot: SnapshotId,
    /// The job.
    pub job: JobId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// Why it is taken.
    pub trigger: Trigger,
    /// Its place in the job's order.
    pub barrier: BarrierId,
    /// The attempt it is taken of.
    pub attempt: Attempt,
    /// Drawn by the leader.
    pub nonce: Nonce,
    /// Where its files go.
    pub directory: String,
    /// When it is aborted.
    pub deadline: Millis,
    /// Whose it is; empty: the job's owner's.
    pub owner: String,
    /// What people say about it.
    pub annotations: Annotations,
    /// Hash of the job graph that runs, as 16 hex digits.
    pub plan_hash: String,
    /// How many subtasks have to acknowledge.
    pub subtasks: u32,
    /// Where a limit would refuse it, the oldest savepoints that nobody needs make room.
    pub evict: bool,
    /// What it will probably write: charged with the admission.
    pub estimate_bytes: u64,
}

/// A snapshot whose manifest is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The reservation's.
    pub nonce: Nonce,
    /// What it holds; the operators' files are listed in the manifest only.
    pub contents: Contents,
}

/// What an applied command brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The job that was created or changed.
    pub job: Option<JobId>,
    /// The snapshot that was reserved or marked.
    pub snapshot: Option<SnapshotId>,
    /// Snapshots that are marked for deletion because of it.
    pub retired: Vec<SnapshotId>,
    /// The snapshot that was to be reserved waits for its turn.
    pub queued: bool,
    /// Snapshots that waited and whose turn has come: they are under way now, or have failed because another limit refused
    /// them.
    pub admitted: Vec<SnapshotId>,
    /// Shared files of the job that nothing refers to any more: to be deleted, and then released.
    pub unreferenced: Vec<String>,
}

/// The answer to a command.
pub type Reply = Result<Applied>;
