//! Reader groups over gRPC, and watching them.

use std::collections::BTreeMap;

use tonic::Streaming;
use weir_proto::convert::store::cut_to_pb;
use weir_proto::from_status;
use weir_proto::pb::store::v1 as pb;
use weir_proto::pb::store::v1::groups_client::GroupsClient;
use weir_types::group::{CheckpointOwner, GroupActor, GroupCheckpoint, GroupInfo, GroupSpec, MemberView, ResetTarget};
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::stream::{StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::{Calls, StoreClient, call};

/// Pushes a reader's view: at once, and after every change. Ends with an error: `FENCED` when the registration is over,
/// `UNAVAILABLE` when the store was lost (watch again then; views are whole, nothing is missed).
#[derive(Debug)]
pub struct MemberWatch(Streaming<pb::MemberView>);

impl MemberWatch {
    /// The next view. May be cancelled without losing anything.
    ///
    /// # Errors
    /// `FENCED`, `NOT_FOUND` when the group was deleted, `UNAVAILABLE`.
    pub async fn next(&mut self) -> Result<MemberView> {
        next(&mut self.0).await?.try_into()
    }
}

/// Pushes a group: at once, and after every change.
#[derive(Debug)]
pub struct GroupWatch(Streaming<pb::GroupInfo>);

impl GroupWatch {
    /// The group as it stands now. May be cancelled without losing anything.
    ///
    /// # Errors
    /// `NOT_FOUND` when the group was deleted, `UNAVAILABLE`.
    pub async fn next(&mut self) -> Result<GroupInfo> {
        next(&mut self.0).await?.try_into()
    }
}

async fn next<T>(pushed: &mut Streaming<T>) -> Result<T> {
    let message = pushed.message().await.map_err(|status| from_status(&status))?;
    message.ok_or_else(|| Error::unavailable("the store ended the watch"))
}

/// Reader groups.
///
/// **Free readers** join, heartbeat well within the lease (a third of it), release what their view says is `revoking`,
/// acknowledge the `checkpoints` of their view with their positions, and leave. **A job** creates a managed group,
/// assigns partitions once per attempt, starts and acknowledges checkpoints, commits positions when a snapshot has
/// completed, and releases what was superseded.
impl StoreClient {
    fn groups(&self) -> GroupsClient<Calls> {
        GroupsClient::with_interceptor(self.channel.clone(), self.authority.clone())
    }

    /// Makes a group. If there is one of this name for the same stream and, if managed, the same job, it is returned
    /// as it stands: its limits and positions stay.
    ///
    /// # Errors
    /// `GROUP_IN_USE` if it belongs to another job, `ALREADY_EXISTS`, `NOT_FOUND` for the stream, `OFFSET_TRUNCATED`
    /// for a start before the head.
    pub async fn create_group(&self, spec: &GroupSpec) -> Result<GroupInfo> {
        call(self.groups().create_group(pb::GroupSpec::from(spec))).await?.try_into()
    }

    /// Deletes a group. Pins on the stream stay.
    ///
    /// # Errors
    /// `NOT_FOUND`; unless forced, `GROUP_IN_USE` if it belongs to another job than `job`, and `FAILED_PRECONDITION`
    /// if it has readers.
    pub async fn delete_group(&self, group: &GroupName, job: Option<&JobId>, force: bool) -> Result<()> {
        let request = pb::DeleteGroupRequest { group: group.to_string(), job: job.map(ToString::to_string), force };
        call(self.groups().delete_group(request)).await.map(drop)
    }

    /// All groups, or those that read one stream.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub async fn list_groups(&self, stream: Option<&StreamName>) -> Result<Vec<GroupInfo>> {
        let request = pb::ListGroupsRequest { stream: stream.map(ToString::to_string) };
        let reply = call(self.groups().list_groups(request)).await?;
        reply.groups.into_iter().map(TryInto::try_into).collect()
    }

    /// One group.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn describe_group(&self, group: &GroupName) -> Result<GroupInfo> {
        call(self.groups().describe_group(pb::GroupRef { group: group.to_string() })).await?.try_into()
    }

    /// A free reader joins; an older registration of the same name is fenced. The view's epoch goes with every further
    /// command. Partitions may follow later, when others have released theirs: watch.
    ///
    /// # Errors
    /// `GROUP_IN_USE` for a job's group, `NOT_FOUND`.
    pub async fn join_group(&self, group: &GroupName, reader: &ReaderId) -> Result<MemberView> {
        let request = pb::JoinRequest { group: group.to_string(), reader: reader.to_string() };
        call(self.groups().join(request)).await?.try_into()
    }

    /// A free reader leaves, with its positions in the partitions that it owns.
    ///
    /// # Errors
    /// `FENCED` if it is not a member under this epoch.
    pub async fn leave_group(
        &self,
        group: &GroupName,
        reader: &ReaderId,
        epoch: Epoch,
        positions: &StreamCut,
    ) -> Result<()> {
        call(self.groups().leave(member(group, reader, epoch, positions))).await.map(drop)
    }

    /// A free reader renews its lease and reports positions in partitions that it owns; they become durable.
    ///
    /// # Errors
    /// `FENCED`: the lease has expired, or somebody else has joined under the name. Join again.
    pub async fn heartbeat(
        &self,
        group: &GroupName,
        reader: &ReaderId,
        epoch: Epoch,
        positions: &StreamCut,
    ) -> Result<MemberView> {
        call(self.groups().heartbeat(member(group, reader, epoch, positions))).await?.try_into()
    }

    /// A free reader gives partitions back: those of `positions`, at these positions.
    ///
    /// # Errors
    /// `FENCED`.
    pub async fn release_partitions(
        &self,
        group: &GroupName,
        reader: &ReaderId,
        epoch: Epoch,
        positions: &StreamCut,
    ) -> Result<MemberView> {
        call(self.groups().release_partitions(member(group, reader, epoch, positions))).await?.try_into()
    }

    /// The job divides its group's partitions among its readers, for a new attempt, and sets the positions of
    /// `rewinds`. Readers of the attempt have its number as their epoch. Outstanding checkpoints of the job are
    /// cancelled: offsets of two attempts do not make one. The same call again (a lost answer) changes nothing.
    ///
    /// # Errors
    /// `FENCED` for an attempt that is not newer, `GROUP_IN_USE`, `OFFSET_TRUNCATED` for a rewind before the head.
    pub async fn assign_partitions(
        &self,
        group: &GroupName,
        job: &JobId,
        attempt: Attempt,
        owners: &BTreeMap<ReaderId, Vec<PartitionId>>,
        rewinds: &StreamCut,
    ) -> Result<GroupInfo> {
        let owner = |(reader, partitions): (&ReaderId, &Vec<PartitionId>)| {
            let partitions = partitions.iter().map(|partition| partition.0).collect();
            (reader.to_string(), pb::PartitionList { partitions })
        };
        let request = pb::AssignRequest {
            group: group.to_string(),
            job: job.to_string(),
            attempt: attempt.0,
            owners: owners.iter().map(owner).collect(),
            rewinds: cut_to_pb(rewinds),
        };
        call(self.groups().assign(request)).await?.try_into()
    }

    /// Starts a checkpoint, or returns the one that has this id, whatever has become of it. Partitions without an owner
    /// get their position at once. `deadline` is absolute; at it, the store drops the checkpoint if it has not
    /// completed. `supersedes` are retained checkpoints that will be released once this one has completed: they do not
    /// count against the limit of retained ones.
    ///
    /// # Errors
    /// `GROUP_LIMIT_EXCEEDED` with the blockers as facts, `GROUP_IN_USE`, `TIMEOUT` for a deadline in the past.
    pub async fn start_checkpoint(
        &self,
        group: &GroupName,
        id: &SnapshotId,
        owner: &CheckpointOwner,
        deadline: Millis,
        supersedes: &[SnapshotId],
    ) -> Result<GroupCheckpoint> {
        let request = pb::StartCheckpointRequest {
            group: group.to_string(),
            id: id.to_string(),
            owner: Some(owner.into()),
            deadline_ms: deadline.0,
            supersedes: supersedes.iter().map(ToString::to_string).collect(),
        };
        call(self.groups().start_checkpoint(request)).await?.try_into()
    }

    /// Gives a checkpoint the offsets of partitions: a reader those it owns, the job any. It completes when all have
    /// one. Repetitions are fine.
    ///
    /// # Errors
    /// `FENCED` for an older epoch or attempt, and once the checkpoint has ended without completing; `NOT_FOUND`.
    pub async fn ack_checkpoint(
        &self,
        group: &GroupName,
        id: &SnapshotId,
        by: &GroupActor,
        offsets: &StreamCut,
    ) -> Result<GroupCheckpoint> {
        let request = pb::AckCheckpointRequest {
            group: group.to_string(),
            id: id.to_string(),
            by: Some(by.into()),
            offsets: cut_to_pb(offsets),
        };
        call(self.groups().ack_checkpoint(request)).await?.try_into()
    }

    /// Drops an outstanding checkpoint; one that has been dropped already is fine. A job's needs its `job`.
    ///
    /// # Errors
    /// `NOT_FOUND`, `GROUP_IN_USE`, `FAILED_PRECONDITION` if it has completed.
    pub async fn cancel_checkpoint(
        &self,
        group: &GroupName,
        id: &SnapshotId,
        job: Option<&JobId>,
    ) -> Result<GroupCheckpoint> {
        call(self.groups().cancel_checkpoint(end(group, id, job))).await?.try_into()
    }

    /// No longer keeps a completed checkpoint; one that has ended otherwise is fine. A job's needs its `job`.
    ///
    /// # Errors
    /// `NOT_FOUND`, `GROUP_IN_USE`, `FAILED_PRECONDITION` if it is outstanding.
    pub async fn release_checkpoint(
        &self,
        group: &GroupName,
        id: &SnapshotId,
        job: Option<&JobId>,
    ) -> Result<GroupCheckpoint> {
        call(self.groups().release_checkpoint(end(group, id, job))).await?.try_into()
    }

    /// Sets positions: a reader those of its partitions, the job any. A job does this when a snapshot has completed.
    ///
    /// # Errors
    /// `FENCED`, `GROUP_IN_USE`, `INVALID_ARGUMENT` for positions behind the end.
    pub async fn commit_positions(&self, group: &GroupName, by: &GroupActor, positions: &StreamCut) -> Result<()> {
        let request = pb::CommitPositionsRequest {
            group: group.to_string(),
            by: Some(by.into()),
            positions: cut_to_pb(positions),
        };
        call(self.groups().commit_positions(request)).await.map(drop)
    }

    /// Has the store's log say that a snapshot was refused before any group was asked.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub async fn note_refusal(&self, snapshot: &SnapshotId, job: &JobId, reason: String) -> Result<()> {
        let note = pb::RefusalNote { snapshot: snapshot.to_string(), job: job.to_string(), reason };
        call(self.groups().note_refusal(note)).await.map(drop)
    }

    /// Sets the positions of a group to a cut or to one of its checkpoints, which is validated against the stream's
    /// head and end first. Fences all readers and cancels what is outstanding.
    ///
    /// # Errors
    /// `OFFSET_TRUNCATED`, `INVALID_ARGUMENT`, `NOT_FOUND`, `GROUP_IN_USE` for a managed group without its `job`.
    pub async fn reset_group(&self, group: &GroupName, job: Option<&JobId>, target: &ResetTarget) -> Result<GroupInfo> {
        let request =
            pb::ResetRequest { group: group.to_string(), job: job.map(ToString::to_string), to: Some(target.into()) };
        call(self.groups().reset(request)).await?.try_into()
    }

    /// Watches what a reader has to know.
    ///
    /// # Errors
    /// `NOT_FOUND` for the group.
    pub async fn watch_member(&self, group: &GroupName, reader: &ReaderId, epoch: Epoch) -> Result<MemberWatch> {
        let request = pb::WatchMemberRequest { group: group.to_string(), reader: reader.to_string(), epoch: epoch.0 };
        call(self.groups().watch_member(request)).await.map(MemberWatch)
    }

    /// Watches a group.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn watch_group(&self, group: &GroupName) -> Result<GroupWatch> {
        call(self.groups().watch_group(pb::GroupRef { group: group.to_string() })).await.map(GroupWatch)
    }
}

fn member(group: &GroupName, reader: &ReaderId, epoch: Epoch, positions: &StreamCut) -> pb::MemberPositions {
    pb::MemberPositions {
        group: group.to_string(),
        reader: reader.to_string(),
        epoch: epoch.0,
        positions: cut_to_pb(positions),
    }
}

fn end(group: &GroupName, id: &SnapshotId, job: Option<&JobId>) -> pb::EndCheckpointRequest {
    pb::EndCheckpointRequest { group: group.to_string(), id: id.to_string(), job: job.map(ToString::to_string) }
}
