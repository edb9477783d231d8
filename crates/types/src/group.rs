//! Reader groups of the stream store as they are described to clients, members and the JobManager.
//!
//! A group reads one stream. In a **free** group readers join and leave, and the store divides the partitions among
//! them. A **managed** group belongs to one job, whose JobManager assigns the partitions, once per attempt.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use crate::stream::{StreamCut, StreamName};

/// Who divides the partitions among the readers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum GroupMode {
    /// The store; readers come and go, with leases.
    #[default]
    Free,
    /// The JobManager of this job; everybody else is refused with `GROUP_IN_USE`.
    Managed {
        /// The job.
        job: JobId,
    },
}

impl GroupMode {
    /// The job that the group belongs to, if any.
    pub fn job(&self) -> Option<&JobId> {
        match self {
            GroupMode::Free => None,
            GroupMode::Managed { job } => Some(job),
        }
    }
}

impl fmt::Display for GroupMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupMode::Free => f.write_str("free"),
            GroupMode::Managed { job } => write!(f, "job {job}"),
        }
    }
}

/// The limits of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupLimits {
    /// Checkpoints that may be under way at once. In a managed group one of these places is kept for the job.
    pub max_outstanding_checkpoints: u32,
    /// Checkpoints, completed and not yet released, that may be kept at once.
    pub max_retained_checkpoints: u32,
    /// How long a reader of a free group owns its partitions without a sign of life.
    pub lease_ms: u64,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self { max_outstanding_checkpoints: 3, max_retained_checkpoints: 64, lease_ms: 10_000 }
    }
}

/// Where a new group begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "start", content = "cut", rename_all = "snake_case")]
pub enum GroupStart {
    /// At the head of every partition.
    #[default]
    Earliest,
    /// At the end of every partition, as of now.
    Latest,
    /// At this cut; partitions that it leaves out begin at their head.
    Cut(StreamCut),
}

/// What a group is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// Its name, unique in the store.
    pub name: GroupName,
    /// The stream that it reads.
    pub stream: StreamName,
    /// Who assigns partitions.
    pub mode: GroupMode,
    /// Its limits.
    pub limits: GroupLimits,
    /// Where it begins.
    pub start: GroupStart,
}

/// Who asked for a group checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "owner", content = "name", rename_all = "snake_case")]
pub enum CheckpointOwner {
    /// The job that the managed group belongs to.
    Job(JobId),
    /// A user, by any name.
    User(String),
}

impl fmt::Display for CheckpointOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointOwner::Job(job) => write!(f, "job {job}"),
            CheckpointOwner::User(name) => write!(f, "user {name}"),
        }
    }
}

/// Life of a group checkpoint; the last three are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupCheckpointState {
    /// Offsets are still missing.
    Outstanding,
    /// Every partition has an offset; kept until released.
    Completed,
    /// Its deadline passed first.
    Expired,
    /// It was cancelled, or the group was reset or reassigned under it.
    Cancelled,
    /// It had completed and was released.
    Released,
}

impl fmt::Display for GroupCheckpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupCheckpointState::Outstanding => "OUTSTANDING",
            GroupCheckpointState::Completed => "COMPLETED",
            GroupCheckpointState::Expired => "EXPIRED",
            GroupCheckpointState::Cancelled => "CANCELLED",
            GroupCheckpointState::Released => "RELEASED",
        })
    }
}

/// A named checkpoint of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCheckpoint {
    /// Its name: a snapshot's id, or what a user chose.
    pub id: SnapshotId,
    /// Who asked for it.
    pub owner: CheckpointOwner,
    /// When, in milliseconds since the epoch.
    pub started_at_ms: u64,
    /// When the store drops it if it has not completed.
    pub deadline_ms: u64,
    /// How far it is.
    pub state: GroupCheckpointState,
    /// The offsets known so far; all of them once completed.
    pub offsets: StreamCut,
    /// The partitions whose offset is missing.
    pub missing: Vec<PartitionId>,
}

/// A reader of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name.
    pub reader: ReaderId,
    /// Its registration; in a managed group, the attempt's number.
    pub epoch: Epoch,
    /// When its lease ends; readers of managed groups have none.
    pub lease_until_ms: Option<u64>,
    /// What it owns.
    pub partitions: Vec<PartitionId>,
}

/// A group as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: GroupName,
    /// The stream that it reads.
    pub stream: StreamName,
    /// Who assigns partitions.
    pub mode: GroupMode,
    /// Its limits.
    pub limits: GroupLimits,
    /// Grows with every change.
    pub version: u64,
    /// Managed groups: the attempt that partitions are assigned for.
    pub attempt: Option<Attempt>,
    /// Its readers.
    pub members: Vec<MemberInfo>,
    /// Partitions that nobody owns.
    pub unowned: Vec<PartitionId>,
    /// The position of every partition: where a reader without anything newer begins.
    pub positions: StreamCut,
    /// Its checkpoints in the order in which they were started, with the last few that ended without being kept.
    pub checkpoints: Vec<GroupCheckpoint>,
}

/// What one reader has to know. Views are whole, not differences, so that only the latest one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The reader's registration; a different one than its own means that the reader is fenced.
    pub epoch: Epoch,
    /// Grows with every change of the group.
    pub version: u64,
    /// The partitions it owns, each with the group's position in it.
    pub owned: StreamCut,
    /// Those of them that it should stop reading and release, with its position in each.
    pub revoking: Vec<PartitionId>,
    /// Outstanding checkpoints that wait for this reader, in order.
    pub checkpoints: Vec<SnapshotId>,
}

/// Who acts on a group: a reader under its registration, or the job that owns the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "actor", rename_all = "snake_case")]
pub enum GroupActor {
    /// A reader, with the epoch that joining (or, in a managed group, the attempt's assignment) gave it.
    Reader {
        /// Its name.
        reader: ReaderId,
        /// Its registration.
        epoch: Epoch,
    },
    /// The JobManager of a managed group, for all partitions.
    Job {
        /// The job.
        job: JobId,
        /// The attempt in whose name it acts; a lower one than the group's is fenced.
        attempt: Attempt,
    },
}

/// Where a group is reset to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", content = "value", rename_all = "snake_case")]
pub enum ResetTarget {
    /// These offsets; partitions left out stay where they are.
    Cut(StreamCut),
    /// The offsets of a completed checkpoint of this group.
    Checkpoint(SnapshotId),
}
