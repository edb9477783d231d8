//! A reader group as a pure state machine: commands in, replies out, time as an argument.
//!
//! Invariants, whatever the order of commands: a partition is owned by one reader or by none; while a checkpoint is
//! outstanding no partition gets a new owner in a group of free readers; a command in the name of an older epoch or
//! attempt changes nothing. The shell makes a new state durable before it answers or shows it to anybody.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weir_types::group::{GroupActor, GroupInfo, GroupLimits, GroupMode, MemberInfo, MemberView};
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::checkpoint::{Checkpoints, Start};

/// What a group is told.
#[derive(Clone, Debug)]
pub enum Command {
    /// A free reader comes, or comes again: an older registration of the same name is fenced.
    Join { reader: ReaderId },
    /// A free reader goes, leaving its positions.
    Leave { reader: ReaderId, epoch: Epoch, positions: StreamCut },
    /// A free reader is alive.
    Heartbeat { reader: ReaderId, epoch: Epoch, positions: StreamCut },
    /// A free reader gives back partitions that it was asked for.
    Release { reader: ReaderId, epoch: Epoch, positions: StreamCut },
    /// The job divides the partitions for an attempt, rewinding some.
    Assign { job: JobId, attempt: Attempt, owners: BTreeMap<ReaderId, Vec<PartitionId>>, rewinds: StreamCut },
    /// A checkpoint begins; the same id again returns the one there is.
    StartCheckpoint(Start),
    /// Offsets for a checkpoint.
    Ack { id: SnapshotId, by: GroupActor, offsets: StreamCut },
    /// An outstanding checkpoint is dropped.
    Cancel { id: SnapshotId, job: Option<JobId> },
    /// A completed checkpoint is no longer kept.
    ReleaseCheckpoint { id: SnapshotId, job: Option<JobId> },
    /// Positions without a sign of life: the job, or a reader of a managed group.
    Commit { by: GroupActor, positions: StreamCut },
    /// All positions are set; every reader is fenced. The shell has checked the offsets against the stream.
    Reset { job: Option<JobId>, positions: StreamCut },
    /// Time has passed.
    Tick,
}

/// What a command is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// To a reader: what it has to know.
    View(MemberView),
    /// About a checkpoint.
    Checkpoint(weir_types::group::GroupCheckpoint),
}

/// A reader as the group knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) epoch: Epoch,
    /// Free readers only.
    pub(super) lease_until: Option<Millis>,
}

/// Who has a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ownership {
    pub(super) reader: ReaderId,
    /// The reader has been asked to give it back.
    pub(super) revoking: bool,
}

/// The group's whole state; what is durable is exactly this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub(super) name: GroupName,
    pub(super) stream: StreamName,
    pub(super) mode: GroupMode,
    pub(super) limits: GroupLimits,
    pub(super) version: u64,
    pub(super) next_epoch: Epoch,
    pub(super) assignment: Option<Assignment>,
    pub(super) members: BTreeMap<ReaderId, Member>,
    pub(super) owners: BTreeMap<PartitionId, Ownership>,
    /// One for every partition of the stream.
    pub(super) positions: BTreeMap<PartitionId, Offset>,
    pub(super) checkpoints: Checkpoints,
}

/// The latest assignment of a managed group, to recognise its repetition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Assignment {
    pub(super) attempt: Attempt,
    owners: BTreeMap<ReaderId, Vec<PartitionId>>,
    rewinds: StreamCut,
}

impl Group {
    /// A new group at `positions`, which has every partition of the stream.
    pub fn new(
        name: GroupName,
        stream: StreamName,
        mode: GroupMode,
        limits: GroupLimits,
        positions: StreamCut,
    ) -> Self {
        Self {
            name,
            stream,
            mode,
            limits,
            version: 1,
            next_epoch: Epoch(1),
            assignment: None,
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            positions: positions.0,
            checkpoints: Checkpoints::default(),
        }
    }

    /// Applies a command. On an error the state is as it was.
    pub fn apply(&mut self, now: Millis, command: Command) -> Result<Reply> {
        let mut next = self.clone();
        let reply = next.step(now, command)?;
        next.rebalance();
        let reply = match reply {
            // Joining or giving back may have changed what the reader owns.
            Reply::View(view) => Reply::View(next.view_of(view.epoch).unwrap_or(view)),
            reply => reply,
        };
        if next.without_leases() != self.without_leases() {
            next.version = self.version + 1;
        }
        *self = next;
        Ok(match reply {
            Reply::View(view) => Reply::View(MemberView { version: self.version, ..view }),
            reply => reply,
        })
    }

    /// Leases are renewed all the time; they are neither a change to tell nor worth a write.
    fn without_leases(&self) -> Self {
        let mut group = self.clone();
        group.members.values_mut().for_each(|member| member.lease_until = member.lease_until.map(|_| Millis(0)));
        group
    }

    fn step(&mut self, now: Millis, command: Command) -> Result<Reply> {
        match command {
            Command::Join { reader } => self.join(now, reader),
            Command::Leave { reader, epoch, positions } => {
                self.member(&reader, epoch)?;
                self.commit_owned(&reader, &positions)?;
                self.remove_member(&reader);
                Ok(Reply::Done)
            }
            Command::Heartbeat { reader, epoch, positions } => {
                self.member(&reader, epoch)?;
                self.commit_owned(&reader, &positions)?;
                self.renew(now, &reader);
                self.view(&reader).map(Reply::View)
            }
            Command::Release { reader, epoch, positions } => {
                self.member(&reader, epoch)?;
                self.commit_owned(&reader, &positions)?;
                for partition in positions.0.keys() {
                    self.disown(*partition);
                }
                self.renew(now, &reader);
                self.view(&reader).map(Reply::View)
            }
            Command::Assign { job, attempt, owners, rewinds } => self.assign(&job, attempt, owners, rewinds),
            Command::StartCheckpoint(start) => self.start_checkpoint(now, start).map(Reply::Checkpoint),
            Command::Ack { id, by, offsets } => self.ack(&id, &by, &offsets).map(Reply::Checkpoint),
            Command::Cancel { id, job } => self.checkpoints.cancel(&id, job.as_ref()).map(Reply::Checkpoint),
            Command::ReleaseCheckpoint { id, job } => {
                self.checkpoints.release(&id, job.as_ref()).map(Reply::Checkpoint)
            }
            Command::Commit { by, positions } => self.commit(&by, &positions).map(|()| Reply::Done),
            Command::Reset { job, positions } => self.reset(job.as_ref(), &positions).map(|()| Reply::Done),
            Command::Tick => {
                self.tick(now);
                Ok(Reply::Done)
            }
        }
    }

    fn join(&mut self, now: Millis, reader: ReaderId) -> Result<Reply> {
        if let GroupMode::Managed { job } = &self.mode {
            return Err(Error::new(Code::GroupInUse, format!("reader group {} belongs to job {job}", self.name))
                .with_hint("Create a group of your own to read the stream beside it."));
        }
        // What an earlier registration of this name had is up for division again, from its last positions.
        self.remove_member(&reader);
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        let lease_until = Some(now.plus(self.limits.lease_ms));
        self.members.insert(reader.clone(), Member { epoch, lease_until });
        self.view(&reader).map(Reply::View)
    }

    /// The member with this name, if `epoch` is its registration.
    pub(super) fn member(&self, reader: &ReaderId, epoch: Epoch) -> Result<&Member> {
        match self.members.get(reader) {
            Some(member) if member.epoch == epoch => Ok(member),
            Some(member) => Err(Error::fenced(format!("reader {reader} of group {} was replaced", self.name))
                .with_detail(format!("its epoch is {}, this command has {epoch}", member.epoch))
                .with_hint("Join the group again.")),
            None => Err(Error::fenced(format!("reader {reader} is not in group {} any more", self.name))
                .with_detail("its lease expired, it left, or the group was reset")
                .with_hint("Join the group again.")),
        }
    }

    fn renew(&mut self, now: Millis, reader: &ReaderId) {
        let until = now.plus(self.limits.lease_ms);
        if let Some(lease) = self.members.get_mut(reader).and_then(|member| member.lease_until.as_mut()) {
            *lease = until;
        }
    }

    pub(super) fn owned_by(&self, reader: &ReaderId) -> impl Iterator<Item = PartitionId> {
        self.owners.iter().filter(move |(_, owner)| owner.reader == *reader).map(|(partition, _)| *partition)
    }

    /// Takes over the positions of a reader, all of which must be its partitions.
    fn commit_owned(&mut self, reader: &ReaderId, positions: &StreamCut) -> Result<()> {
        for partition in positions.0.keys() {
            if self.owners.get(partition).is_none_or(|owner| owner.reader != *reader) {
                return Err(Error::fenced(format!("reader {reader} does not own partition {partition}")));
            }
        }
        self.positions.extend(&positions.0);
        Ok(())
    }

    /// Removes a reader. Its partitions stay at their positions, which also are their offsets in checkpoints that wait
    /// for it: whoever reads them next begins there.
    fn remove_member(&mut self, reader: &ReaderId) {
        let owned: Vec<_> = self.owned_by(reader).collect();
        for partition in owned {
            self.disown(partition);
        }
        self.members.remove(reader);
    }

    fn disown(&mut self, partition: PartitionId) {
        if self.owners.remove(&partition).is_some()
            && let Some(position) = self.positions.get(&partition)
        {
            self.checkpoints.seed(partition, *position);
        }
    }

    fn check_job(&self, job: &JobId, attempt: Option<Attempt>) -> Result<()> {
        match &self.mode {
            GroupMode::Managed { job: owner } if owner == job => {}
            GroupMode::Managed { job: owner } => {
                return Err(Error::new(Code::GroupInUse, format!("reader group {} belongs to job {owner}", self.name))
                    .with_hint("Give the new job a reader group of its own."));
            }
            GroupMode::Free => {
                return Err(Error::new(
                    Code::FailedPrecondition,
                    format!("reader group {} has free readers", self.name),
                )
                .with_hint("A job needs a managed group of its own."));
            }
        }
        let current = self.assignment.as_ref().map(|assignment| assignment.attempt);
        if let (Some(attempt), Some(current)) = (attempt, current)
            && attempt < current
        {
            return Err(Error::fenced(format!("attempt {attempt} of job {job} was replaced by attempt {current}")));
        }
        Ok(())
    }

    fn assign(
        &mut self,
        job: &JobId,
        attempt: Attempt,
        owners: BTreeMap<ReaderId, Vec<PartitionId>>,
        rewinds: StreamCut,
    ) -> Result<Reply> {
        self.check_job(job, Some(attempt))?;
        let assignment = Assignment { attempt, owners, rewinds };
        if let Some(current) = self.assignment.as_ref().filter(|current| current.attempt == attempt) {
            // The same once more, because the answer was lost, must not rewind what has been read since.
            return match *current == assignment {
                true => Ok(Reply::Done),
                false => Err(Error::fenced(format!("attempt {attempt} of job {job} has been assigned already"))),
            };
        }
        self.check_partitions(assignment.rewinds.0.keys())?;
        self.check_partitions(assignment.owners.values().flatten())?;
        let mut divided = BTreeMap::new();
        for (reader, partitions) in &assignment.owners {
            for partition in partitions {
                let ownership = Ownership { reader: reader.clone(), revoking: false };
                if divided.insert(*partition, ownership).is_some() {
                    return Err(Error::invalid(format!("partition {partition} is assigned twice")));
                }
            }
        }
        // Offsets of the old attempt and the new one do not make a checkpoint together.
        self.checkpoints.cancel_all_of(job);
        let epoch = Epoch(u64::from(attempt.0));
        let readers = assignment.owners.keys().cloned();
        self.members = readers.map(|reader| (reader, Member { epoch, lease_until: None })).collect();
        self.owners = divided;
        self.positions.extend(&assignment.rewinds.0);
        self.assignment = Some(assignment);
        let unowned = self.positions.iter().filter(|(partition, _)| !self.owners.contains_key(partition));
        for (partition, position) in unowned {
            self.checkpoints.seed(*partition, *position);
        }
        Ok(Reply::Done)
    }

    fn check_partitions<'a>(&self, partitions: impl IntoIterator<Item = &'a PartitionId>) -> Result<()> {
        match partitions.into_iter().find(|partition| !self.positions.contains_key(partition)) {
            None => Ok(()),
            Some(partition) => Err(Error::not_found(format!("stream {} has no partition {partition}", self.stream))),
        }
    }

    /// Refuses an actor who is not, or no longer, in charge of `partitions`.
    fn check_actor(&self, by: &GroupActor, partitions: &StreamCut) -> Result<()> {
        self.check_partitions(partitions.0.keys())?;
        match by {
            GroupActor::Job { job, attempt } => self.check_job(job, Some(*attempt)),
            GroupActor::Reader { reader, epoch } => {
                self.member(reader, *epoch)?;
                let owned: BTreeSet<_> = self.owned_by(reader).collect();
                match partitions.0.keys().find(|partition| !owned.contains(partition)) {
                    None => Ok(()),
                    Some(other) => Err(Error::fenced(format!("reader {reader} does not own partition {other}"))),
                }
            }
        }
    }

    fn start_checkpoint(&mut self, now: Millis, start: Start) -> Result<weir_types::group::GroupCheckpoint> {
        if let weir_types::group::CheckpointOwner::Job(job) = &start.owner {
            self.check_job(job, None)?;
        }
        let is_managed = self.mode.job().is_some();
        let unowned = self.positions.iter().filter(|(partition, _)| !self.owners.contains_key(partition));
        let known = unowned.map(|(partition, position)| (*partition, *position)).collect();
        let partitions = self.positions.keys().copied().collect();
        self.checkpoints.start(now, start, &self.limits, is_managed, partitions, known)
    }

    fn ack(
        &mut self,
        id: &SnapshotId,
        by: &GroupActor,
        offsets: &StreamCut,
    ) -> Result<weir_types::group::GroupCheckpoint> {
        self.check_actor(by, offsets)?;
        let acked = self.checkpoints.ack(id, offsets)?;
        // A free reader has dealt with all that lies before its offset. A job's positions move when its snapshot has
        // completed, not here: until then it may have to read from them again.
        if self.mode.job().is_none() {
            self.positions.extend(&offsets.0);
        }
        Ok(acked)
    }

    fn commit(&mut self, by: &GroupActor, positions: &StreamCut) -> Result<()> {
        self.check_actor(by, positions)?;
        self.positions.extend(&positions.0);
        Ok(())
    }

    fn reset(&mut self, job: Option<&JobId>, positions: &StreamCut) -> Result<()> {
        if let GroupMode::Managed { job: owner } = &self.mode
            && job != Some(owner)
        {
            return Err(Error::new(Code::GroupInUse, format!("reader group {} belongs to job {owner}", self.name))
                .with_hint("Stop the job and start it from another position instead."));
        }
        self.check_partitions(positions.0.keys())?;
        self.checkpoints.cancel_outstanding();
        self.members.clear();
        self.owners.clear();
        self.positions.extend(&positions.0);
        Ok(())
    }

    fn tick(&mut self, now: Millis) {
        self.checkpoints.expire(now);
        let is_over = |member: &Member| member.lease_until.is_some_and(|until| until < now);
        let dead: Vec<_> =
            self.members.iter().filter(|(_, member)| is_over(member)).map(|(id, _)| id.clone()).collect();
        for reader in dead {
            self.remove_member(&reader);
        }
    }

    /// The store was down, and time did not count: everybody gets a full lease.
    pub fn resume(&mut self, now: Millis) {
        let until = now.plus(self.limits.lease_ms);
        for lease in self.members.values_mut().filter_map(|member| member.lease_until.as_mut()) {
            *lease = until;
        }
    }

    /// What the reader has to know.
    ///
    /// # Errors
    /// `FENCED` if it is not a member.
    pub(crate) fn view(&self, reader: &ReaderId) -> Result<MemberView> {
        let Some(member) = self.members.get(reader) else {
            return Err(Error::fenced(format!("reader {reader} is not in group {} any more", self.name))
                .with_hint("Join the group again."));
        };
        let owned: BTreeMap<_, _> = self
            .owned_by(reader)
            .map(|partition| (partition, self.positions.get(&partition).copied().unwrap_or_default()))
            .collect();
        let revoking = self.owners.iter().filter(|(_, owner)| owner.reader == *reader && owner.revoking);
        Ok(MemberView {
            epoch: member.epoch,
            version: self.version,
            revoking: revoking.map(|(partition, _)| *partition).collect(),
            checkpoints: self.checkpoints.waiting_for(owned.keys()),
            owned: StreamCut(owned),
        })
    }

    fn view_of(&self, epoch: Epoch) -> Option<MemberView> {
        let reader = self.members.iter().find(|(_, member)| member.epoch == epoch && member.lease_until.is_some());
        reader.and_then(|(reader, _)| self.view(reader).ok())
    }

    pub(crate) fn stream(&self) -> &StreamName {
        &self.stream
    }

    pub(crate) fn mode(&self) -> &GroupMode {
        &self.mode
    }

    /// Grows with every change but leases.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// The positions of a completed checkpoint.
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` if it has not completed or is not kept any more.
    pub(crate) fn checkpoint_cut(&self, id: &SnapshotId) -> Result<StreamCut> {
        self.checkpoints.cut(id)
    }

    pub fn info(&self) -> GroupInfo {
        let member = |(reader, member): (&ReaderId, &Member)| MemberInfo {
            reader: reader.clone(),
            epoch: member.epoch,
            lease_until_ms: member.lease_until.map(|until| until.0),
            partitions: self.owned_by(reader).collect(),
        };
        GroupInfo {
            name: self.name.clone(),
            stream: self.stream.clone(),
            mode: self.mode.clone(),
            limits: self.limits,
            version: self.version,
            attempt: self.assignment.as_ref().map(|assignment| assignment.attempt),
            members: self.members.iter().map(member).collect(),
            unowned: self.positions.keys().filter(|p| !self.owners.contains_key(p)).copied().collect(),
            positions: StreamCut(self.positions.clone()),
            checkpoints: self.checkpoints.describe(),
        }
    }
}
