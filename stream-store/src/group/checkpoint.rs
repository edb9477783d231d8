//! A group's named checkpoints, in the order in which they were started.
//!
//! A checkpoint completes when every partition has an offset, and never without. It ends once: completed and later
//! released, expired, or cancelled. The last few that have ended stay on record, so that a late caller learns what
//! became of them and a repeated start does not begin a second one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weir_types::error::Facts;
use weir_types::group::{CheckpointOwner, GroupCheckpoint, GroupCheckpointState, GroupLimits};
use weir_types::ids::{JobId, PartitionId, SnapshotId};
use weir_types::stream::{Offset, StreamCut};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

/// Ended checkpoints kept on record.
const ENDED_KEPT: usize = 16;

/// A checkpoint to begin.
#[derive(Clone, Debug)]
pub struct Start {
    pub id: SnapshotId,
    pub owner: CheckpointOwner,
    pub deadline: Millis,
    /// Retained checkpoints that will be released when this one completes: they do not count against the limit.
    pub supersedes: Vec<SnapshotId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    id: SnapshotId,
    owner: CheckpointOwner,
    started_at: Millis,
    deadline: Millis,
    state: GroupCheckpointState,
    partitions: BTreeSet<PartitionId>,
    offsets: BTreeMap<PartitionId, Offset>,
}

impl Checkpoint {
    fn is_outstanding(&self) -> bool {
        self.state == GroupCheckpointState::Outstanding
    }

    fn complete_if_whole(&mut self) {
        if self.is_outstanding() && self.offsets.len() == self.partitions.len() {
            self.state = GroupCheckpointState::Completed;
        }
    }

    fn describe(&self) -> GroupCheckpoint {
        GroupCheckpoint {
            id: self.id.clone(),
            owner: self.owner.clone(),
            started_at_ms: self.started_at.0,
            deadline_ms: self.deadline.0,
            state: self.state,
            offsets: StreamCut(self.offsets.clone()),
            missing: self.partitions.iter().filter(|p| !self.offsets.contains_key(p)).copied().collect(),
        }
    }
}

/// All of a group's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoints {
    list: Vec<Checkpoint>,
}

impl Checkpoints {
    pub(super) fn any_outstanding(&self) -> bool {
        self.list.iter().any(Checkpoint::is_outstanding)
    }

    pub(super) fn describe(&self) -> Vec<GroupCheckpoint> {
        self.list.iter().map(Checkpoint::describe).collect()
    }

    /// Outstanding checkpoints that lack an offset of one of these partitions, in order.
    pub(super) fn waiting_for<'a>(&self, partitions: impl Iterator<Item = &'a PartitionId> + Clone) -> Vec<SnapshotId> {
        let waits = |checkpoint: &&Checkpoint| {
            checkpoint.is_outstanding() && partitions.clone().any(|p| !checkpoint.offsets.contains_key(p))
        };
        self.list.iter().filter(waits).map(|checkpoint| checkpoint.id.clone()).collect()
    }

    pub(super) fn start(
        &mut self,
        now: Millis,
        start: Start,
        limits: &GroupLimits,
        is_managed: bool,
        partitions: BTreeSet<PartitionId>,
        known: BTreeMap<PartitionId, Offset>,
    ) -> Result<GroupCheckpoint> {
        let Start { id, owner, deadline, supersedes } = start;
        if let Some(existing) = self.list.iter().find(|checkpoint| checkpoint.id == id) {
            if existing.owner != owner {
                return Err(Error::new(Code::AlreadyExists, format!("checkpoint {id} belongs to {}", existing.owner)));
            }
            return Ok(existing.describe());
        }
        if deadline <= now {
            return Err(Error::new(Code::Timeout, format!("the deadline of checkpoint {id} has passed already")));
        }
        self.check_outstanding(&id, &owner, limits, is_managed)?;
        self.check_retained(&id, limits, &supersedes)?;
        let mut checkpoint = Checkpoint {
            id,
            owner,
            started_at: now,
            deadline,
            state: GroupCheckpointState::Outstanding,
            partitions,
            offsets: known,
        };
        checkpoint.complete_if_whole();
        let described = checkpoint.describe();
        self.list.push(checkpoint);
        Ok(described)
    }

    /// One place is kept for the job that a managed group belongs to.
    fn check_outstanding(
        &self,
        id: &SnapshotId,
        owner: &CheckpointOwner,
        limits: &GroupLimits,
        is_managed: bool,
    ) -> Result<()> {
        let is_users = |owner: &CheckpointOwner| matches!(owner, CheckpointOwner::User(_));
        let outstanding = || self.list.iter().filter(|checkpoint| checkpoint.is_outstanding());
        let users = || outstanding().filter(|checkpoint| is_users(&checkpoint.owner));
        let limit = limits.max_outstanding_checkpoints;
        let for_users = limit.saturating_sub(1);
        let (blockers, limit): (Vec<&Checkpoint>, u32) = match is_managed && is_users(owner) {
            true if users().count() >= for_users as usize => (users().collect(), for_users),
            _ if outstanding().count() >= limit as usize => (outstanding().collect(), limit),
            _ => return Ok(()),
        };
        Err(refusal(id, "outstanding", limit, &blockers))
    }

    fn check_retained(&self, id: &SnapshotId, limits: &GroupLimits, supersedes: &[SnapshotId]) -> Result<()> {
        let counts = |checkpoint: &&Checkpoint| match checkpoint.state {
            GroupCheckpointState::Completed => !supersedes.contains(&checkpoint.id),
            GroupCheckpointState::Outstanding => true,
            _ => false,
        };
        let blockers: Vec<&Checkpoint> = self.list.iter().filter(counts).collect();
        if blockers.len() < limits.max_retained_checkpoints as usize {
            return Ok(());
        }
        Err(refusal(id, "retained", limits.max_retained_checkpoints, &blockers))
    }

    pub(super) fn ack(&mut self, id: &SnapshotId, offsets: &StreamCut) -> Result<GroupCheckpoint> {
        let checkpoint = self.find(id)?;
        match checkpoint.state {
            GroupCheckpointState::Outstanding => {}
            // A repetition of what has completed it.
            GroupCheckpointState::Completed | GroupCheckpointState::Released
                if offsets.0.iter().all(|(p, offset)| checkpoint.offsets.get(p) == Some(offset)) =>
            {
                return Ok(checkpoint.describe());
            }
            state => {
                return Err(Error::fenced(format!("checkpoint {id} takes no more offsets"))
                    .with_detail(format!("it is {state}")));
            }
        }
        for (partition, offset) in &offsets.0 {
            // The first answer counts: a repetition says the same, and seeded offsets are where the next owner begins.
            checkpoint.offsets.entry(*partition).or_insert(*offset);
        }
        checkpoint.complete_if_whole();
        Ok(checkpoint.describe())
    }

    /// A partition has lost its owner: its position stands in every checkpoint that waits for it.
    pub(super) fn seed(&mut self, partition: PartitionId, position: Offset) {
        for checkpoint in self.list.iter_mut().filter(|checkpoint| checkpoint.is_outstanding()) {
            checkpoint.offsets.entry(partition).or_insert(position);
            checkpoint.complete_if_whole();
        }
    }

    pub(super) fn cancel(&mut self, id: &SnapshotId, job: Option<&JobId>) -> Result<GroupCheckpoint> {
        let checkpoint = self.find_for(id, job)?;
        match checkpoint.state {
            GroupCheckpointState::Outstanding => checkpoint.state = GroupCheckpointState::Cancelled,
            GroupCheckpointState::Cancelled | GroupCheckpointState::Expired => {}
            state => {
                return Err(Error::new(Code::FailedPrecondition, format!("checkpoint {id} cannot be cancelled"))
                    .with_detail(format!("it is {state}"))
                    .with_hint("Release a completed checkpoint instead."));
            }
        }
        let described = checkpoint.describe();
        self.forget_old();
        Ok(described)
    }

    pub(super) fn release(&mut self, id: &SnapshotId, job: Option<&JobId>) -> Result<GroupCheckpoint> {
        let checkpoint = self.find_for(id, job)?;
        match checkpoint.state {
            GroupCheckpointState::Outstanding => {
                return Err(Error::new(Code::FailedPrecondition, format!("checkpoint {id} has not completed"))
                    .with_hint("Cancel it instead."));
            }
            GroupCheckpointState::Completed => checkpoint.state = GroupCheckpointState::Released,
            _ => {}
        }
        let described = checkpoint.describe();
        self.forget_old();
        Ok(described)
    }

    pub(super) fn cancel_all_of(&mut self, job: &JobId) {
        let owned = |checkpoint: &&mut Checkpoint| checkpoint.owner == CheckpointOwner::Job(job.clone());
        self.end(GroupCheckpointState::Cancelled, owned);
    }

    pub(super) fn cancel_outstanding(&mut self) {
        self.end(GroupCheckpointState::Cancelled, |_| true);
    }

    pub(super) fn expire(&mut self, now: Millis) {
        self.end(GroupCheckpointState::Expired, |checkpoint| checkpoint.deadline <= now);
    }

    fn end(&mut self, state: GroupCheckpointState, which: impl Fn(&&mut Checkpoint) -> bool) {
        for checkpoint in self.list.iter_mut().filter(|checkpoint| checkpoint.is_outstanding()).filter(which) {
            checkpoint.state = state;
        }
        self.forget_old();
    }

    fn forget_old(&mut self) {
        let has_ended = |checkpoint: &Checkpoint| {
            !matches!(checkpoint.state, GroupCheckpointState::Outstanding | GroupCheckpointState::Completed)
        };
        let mut surplus =
            self.list.iter().filter(|checkpoint| has_ended(checkpoint)).count().saturating_sub(ENDED_KEPT);
        self.list.retain(|checkpoint| {
            let goes = surplus > 0 && has_ended(checkpoint);
            surplus -= usize::from(goes);
            !goes
        });
    }

    pub(super) fn cut(&self, id: &SnapshotId) -> Result<StreamCut> {
        let checkpoint = self.list.iter().find(|checkpoint| checkpoint.id == *id).ok_or_else(|| unknown(id))?;
        match checkpoint.state {
            GroupCheckpointState::Completed => Ok(StreamCut(checkpoint.offsets.clone())),
            state => Err(Error::new(Code::FailedPrecondition, format!("checkpoint {id} is {state}"))
                .with_hint("Only a completed checkpoint that is still kept has positions to go back to.")),
        }
    }

    fn find(&mut self, id: &SnapshotId) -> Result<&mut Checkpoint> {
        self.list.iter_mut().find(|checkpoint| checkpoint.id == *id).ok_or_else(|| unknown(id))
    }

    /// As [`Checkpoints::find`], for somebody who wants to end it: a job's are the job's business.
    fn find_for(&mut self, id: &SnapshotId, job: Option<&JobId>) -> Result<&mut Checkpoint> {
        let checkpoint = self.find(id)?;
        match &checkpoint.owner {
            CheckpointOwner::Job(owner) if job != Some(owner) => {
                Err(Error::new(Code::GroupInUse, format!("checkpoint {id} belongs to job {owner}"))
                    .with_hint("Delete the job's snapshot instead."))
            }
            _ => Ok(checkpoint),
        }
    }
}

fn unknown(id: &SnapshotId) -> Error {
    Error::not_found(format!("checkpoint {id} does not exist in this reader group"))
}

fn refusal(id: &SnapshotId, what: &str, limit: u32, blockers: &[&Checkpoint]) -> Error {
    let blockers: Vec<String> = blockers.iter().map(|checkpoint| checkpoint.id.to_string()).collect();
    Error::new(Code::GroupLimitExceeded, format!("checkpoint {id} would exceed the limit of {limit} {what} ones"))
        .with_detail(format!("in the way: {}", blockers.join(", ")))
        .with_hint("Cancel or release one of those, or wait for it.")
        .with_facts(Facts::GroupLimit { limit, blockers })
}
