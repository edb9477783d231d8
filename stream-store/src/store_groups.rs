//! Reader groups of the embedded store: what needs the streams as well as the groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_types::group::{
    CheckpointOwner, GroupActor, GroupCheckpoint, GroupInfo, GroupSpec, GroupStart, MemberView, ResetTarget,
};
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::stream::{StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use crate::group::{Command, Group, Reply, Start};
use crate::store::{Inner, Store, blocking};

impl Inner {
    fn apply(&self, name: &GroupName, command: Command) -> Result<(Reply, Arc<Group>)> {
        self.groups.apply(name, self.clock.now(), command)
    }

    fn create_group(&self, spec: GroupSpec) -> Result<GroupInfo> {
        let stream = self.stream(&spec.stream)?;
        let info = stream.info();
        let positions = match &spec.start {
            GroupStart::Earliest => info.heads(),
            GroupStart::Latest => info.ends(),
            GroupStart::Cut(cut) => {
                stream.check_cut(cut)?;
                let mut positions = info.heads();
                positions.0.extend(&cut.0);
                positions
            }
        };
        self.groups.create(spec, positions)
    }

    /// Refuses positions that do not exist yet.
    fn check_known(&self, name: &GroupName, positions: &StreamCut) -> Result<()> {
        let stream = self.stream(self.groups.get(name)?.stream())?;
        for (partition, offset) in &positions.0 {
            let end = stream.partition(*partition)?.end();
            if *offset > end {
                return Err(Error::invalid(format!("partition {partition} ends at {end}, before {offset}")));
            }
        }
        Ok(())
    }

    fn reset_group(&self, name: &GroupName, job: Option<JobId>, target: ResetTarget) -> Result<GroupInfo> {
        let group = self.groups.get(name)?;
        let positions = match target {
            ResetTarget::Cut(cut) => cut,
            ResetTarget::Checkpoint(id) => group.checkpoint_cut(&id)?,
        };
        self.stream(group.stream())?.check_cut(&positions)?;
        let (_, group) = self.apply(name, Command::Reset { job, positions })?;
        Ok(group.info())
    }
}

fn view(reply: Reply) -> Result<MemberView> {
    match reply {
        Reply::View(view) => Ok(view),
        _ => Err(Error::internal("a reader's command was not answered with its view")),
    }
}

fn checkpoint(reply: Reply) -> Result<GroupCheckpoint> {
    match reply {
        Reply::Checkpoint(checkpoint) => Ok(checkpoint),
        _ => Err(Error::internal("a checkpoint's command was not answered with the checkpoint")),
    }
}

/// Reader groups. All commands are described at [`crate::client::StoreClient`], whose methods these are.
impl Store {
    async fn command(&self, name: &GroupName, command: Command) -> Result<(Reply, Arc<Group>)> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || inner.apply(&name, command)).await
    }

    /// Makes a group; the one there is if it is for the same stream and job.
    ///
    /// # Errors
    /// `GROUP_IN_USE`, `ALREADY_EXISTS`, `NOT_FOUND` for the stream, `OFFSET_TRUNCATED` for a start before the head.
    pub async fn create_group(&self, spec: GroupSpec) -> Result<GroupInfo> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.create_group(spec)).await
    }

    /// Deletes a group. Pins stay.
    ///
    /// # Errors
    /// `NOT_FOUND`; unless forced, `GROUP_IN_USE` for another job's and `FAILED_PRECONDITION` if it has readers.
    pub async fn delete_group(&self, name: &GroupName, job: Option<JobId>, force: bool) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || inner.groups.delete(&name, job.as_ref(), force)).await
    }

    /// All groups, or those of one stream.
    pub fn list_groups(&self, stream: Option<&StreamName>) -> Vec<GroupInfo> {
        self.inner.groups.list(stream)
    }

    /// One group.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn describe_group(&self, name: &GroupName) -> Result<GroupInfo> {
        Ok(self.inner.groups.get(name)?.info())
    }

    /// A free reader joins.
    ///
    /// # Errors
    /// `GROUP_IN_USE` for a job's group.
    pub async fn join_group(&self, name: &GroupName, reader: ReaderId) -> Result<MemberView> {
        view(self.command(name, Command::Join { reader }).await?.0)
    }

    /// A free reader leaves.
    ///
    /// # Errors
    /// `FENCED` if it is not a member under this epoch.
    pub async fn leave_group(
        &self,
        name: &GroupName,
        reader: ReaderId,
        epoch: Epoch,
        positions: StreamCut,
    ) -> Result<()> {
        self.command(name, Command::Leave { reader, epoch, positions }).await.map(drop)
    }

    /// A free reader renews its lease and reports positions.
    ///
    /// # Errors
    /// `FENCED`.
    pub async fn heartbeat(
        &self,
        name: &GroupName,
        reader: ReaderId,
        epoch: Epoch,
        positions: StreamCut,
    ) -> Result<MemberView> {
        view(self.command(name, Command::Heartbeat { reader, epoch, positions }).await?.0)
    }

    /// A free reader gives partitions back at these positions.
    ///
    /// # Errors
    /// `FENCED`.
    pub async fn release_partitions(
        &self,
        name: &GroupName,
        reader: ReaderId,
        epoch: Epoch,
        positions: StreamCut,
    ) -> Result<MemberView> {
        view(self.command(name, Command::Release { reader, epoch, positions }).await?.0)
    }

    /// The job assigns partitions for an attempt.
    ///
    /// # Errors
    /// `GROUP_IN_USE`, `FENCED`, `OFFSET_TRUNCATED` for a rewind before the head.
    pub async fn assign(
        &self,
        name: &GroupName,
        job: JobId,
        attempt: Attempt,
        owners: BTreeMap<ReaderId, Vec<PartitionId>>,
        rewinds: StreamCut,
    ) -> Result<GroupInfo> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || {
            let stream = inner.stream(inner.groups.get(&name)?.stream())?;
            stream.check_cut(&rewinds)?;
            let (_, group) = inner.apply(&name, Command::Assign { job, attempt, owners, rewinds })?;
            Ok(group.info())
        })
        .await
    }

    /// Starts a checkpoint, or returns the one that has this id.
    ///
    /// # Errors
    /// `GROUP_LIMIT_EXCEEDED` with the blockers, `GROUP_IN_USE`, `TIMEOUT` for a deadline in the past.
    pub async fn start_checkpoint(
        &self,
        name: &GroupName,
        id: SnapshotId,
        owner: CheckpointOwner,
        deadline: Millis,
        supersedes: Vec<SnapshotId>,
    ) -> Result<GroupCheckpoint> {
        let start = Start { id, owner, deadline, supersedes };
        checkpoint(self.command(name, Command::StartCheckpoint(start)).await?.0)
    }

    /// Gives a checkpoint offsets.
    ///
    /// # Errors
    /// `FENCED`, `NOT_FOUND`, `INVALID_ARGUMENT` for offsets behind the end.
    pub async fn ack_checkpoint(
        &self,
        name: &GroupName,
        id: SnapshotId,
        by: GroupActor,
        offsets: StreamCut,
    ) -> Result<GroupCheckpoint> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || {
            inner.check_known(&name, &offsets)?;
            checkpoint(inner.apply(&name, Command::Ack { id, by, offsets })?.0)
        })
        .await
    }

    /// Drops an outstanding checkpoint.
    ///
    /// # Errors
    /// `NOT_FOUND`, `GROUP_IN_USE` for a job's, `FAILED_PRECONDITION` for a completed one.
    pub async fn cancel_checkpoint(
        &self,
        name: &GroupName,
        id: SnapshotId,
        job: Option<JobId>,
    ) -> Result<GroupCheckpoint> {
        checkpoint(self.command(name, Command::Cancel { id, job }).await?.0)
    }

    /// No longer keeps a completed checkpoint.
    ///
    /// # Errors
    /// `NOT_FOUND`, `GROUP_IN_USE` for a job's, `FAILED_PRECONDITION` for an outstanding one.
    pub async fn release_checkpoint(
        &self,
        name: &GroupName,
        id: SnapshotId,
        job: Option<JobId>,
    ) -> Result<GroupCheckpoint> {
        checkpoint(self.command(name, Command::ReleaseCheckpoint { id, job }).await?.0)
    }

    /// Sets positions.
    ///
    /// # Errors
    /// `FENCED`, `GROUP_IN_USE`, `INVALID_ARGUMENT` for positions behind the end.
    pub async fn commit_positions(&self, name: &GroupName, by: GroupActor, positions: StreamCut) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || {
            inner.check_known(&name, &positions)?;
            inner.apply(&name, Command::Commit { by, positions }).map(drop)
        })
        .await
    }

    /// Sets the group back (or forward) and fences its readers.
    ///
    /// # Errors
    /// `OFFSET_TRUNCATED`, `INVALID_ARGUMENT` for offsets behind the end, `GROUP_IN_USE`, `NOT_FOUND`.
    pub async fn reset_group(&self, name: &GroupName, job: Option<JobId>, target: ResetTarget) -> Result<GroupInfo> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || inner.reset_group(&name, job, target)).await
    }
}
