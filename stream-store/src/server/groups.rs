//! The `Groups` service: messages into commands of the store's groups and back, and pushed views.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weir_proto::convert::store::cut_from_pb;
use weir_proto::pb::store::v1 as pb;
use weir_proto::pb::store::v1::groups_server::Groups;
use weir_types::group::GroupActor;
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::stream::{StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::Context;
use super::streams::status;
use crate::group::Group;

pub(crate) struct GroupsService(pub(crate) Context);

type Pushed<T> = ReceiverStream<Result<T, Status>>;
type States = watch::Receiver<Option<Arc<Group>>>;

fn group_name(name: String) -> Result<GroupName, Status> {
    GroupName::new(name).map_err(status)
}

fn job(job: Option<String>) -> Result<Option<JobId>, Status> {
    job.map(JobId::new).transpose().map_err(status)
}

fn snapshot(id: String) -> Result<SnapshotId, Status> {
    SnapshotId::new(id).map_err(status)
}

fn actor(by: Option<pb::Actor>) -> Result<GroupActor, Status> {
    by.ok_or_else(|| Error::invalid("the request does not say who acts")).and_then(TryInto::try_into).map_err(status)
}

/// A reader's message, checked.
struct Member {
    group: GroupName,
    reader: ReaderId,
    epoch: Epoch,
    positions: StreamCut,
}

fn member(request: Request<pb::MemberPositions>) -> Result<Member, Status> {
    let pb::MemberPositions { group, reader, epoch, positions } = request.into_inner();
    Ok(Member {
        group: group_name(group)?,
        reader: ReaderId::new(reader).map_err(status)?,
        epoch: Epoch(epoch),
        positions: cut_from_pb(positions),
    })
}

/// One message per state, from the present one on, until `describe` refuses or the group is gone. A slow client misses
/// states in between, never the latest.
fn push<T: Send + 'static>(
    mut states: States,
    stopping: CancellationToken,
    describe: impl Fn(&Group) -> Result<T> + Send + 'static,
) -> Pushed<T> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let current = states.borrow_and_update().clone();
            let described = match current {
                Some(group) => describe(&group),
                None => Err(Error::not_found("the reader group has been deleted")),
            };
            let is_over = described.is_err();
            if sender.send(described.map_err(status)).await.is_err() || is_over {
                return;
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
                () = stopping.cancelled() => {
                    let _ = sender.send(Err(status(Error::unavailable("the store is shutting down")))).await;
                    return;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

#[tonic::async_trait]
impl Groups for GroupsService {
    type WatchMemberStream = Pushed<pb::MemberView>;
    type WatchGroupStream = Pushed<pb::GroupInfo>;

    async fn create_group(&self, request: Request<pb::GroupSpec>) -> Result<Response<pb::GroupInfo>, Status> {
        let spec = request.into_inner().try_into().map_err(status)?;
        let info = self.0.store.create_group(spec).await.map_err(status)?;
        Ok(Response::new((&info).into()))
    }

    async fn delete_group(&self, request: Request<pb::DeleteGroupRequest>) -> Result<Response<pb::Empty>, Status> {
        let pb::DeleteGroupRequest { group, job: owner, force } = request.into_inner();
        self.0.store.delete_group(&group_name(group)?, job(owner)?, force).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn list_groups(
        &self,
        request: Request<pb::ListGroupsRequest>,
    ) -> Result<Response<pb::ListGroupsReply>, Status> {
        let stream = request.into_inner().stream.map(|name| name.parse::<StreamName>()).transpose().map_err(status)?;
        let groups = self.0.store.list_groups(stream.as_ref());
        Ok(Response::new(pb::ListGroupsReply { groups: groups.iter().map(Into::into).collect() }))
    }

    async fn describe_group(&self, request: Request<pb::GroupRef>) -> Result<Response<pb::GroupInfo>, Status> {
        let info = self.0.store.describe_group(&group_name(request.into_inner().group)?).map_err(status)?;
        Ok(Response::new((&info).into()))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::MemberView>, Status> {
        let pb::JoinRequest { group, reader } = request.into_inner();
        let reader = ReaderId::new(reader).map_err(status)?;
        let view = self.0.store.join_group(&group_name(group)?, reader).await.map_err(status)?;
        Ok(Response::new((&view).into()))
    }

    async fn leave(&self, request: Request<pb::MemberPositions>) -> Result<Response<pb::Empty>, Status> {
        let Member { group, reader, epoch, positions } = member(request)?;
        self.0.store.leave_group(&group, reader, epoch, positions).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn heartbeat(&self, request: Request<pb::MemberPositions>) -> Result<Response<pb::MemberView>, Status> {
        let Member { group, reader, epoch, positions } = member(request)?;
        let view = self.0.store.heartbeat(&group, reader, epoch, positions).await.map_err(status)?;
        Ok(Response::new((&view).into()))
    }

    async fn release_partitions(
        &self,
        request: Request<pb::MemberPositions>,
    ) -> Result<Response<pb::MemberView>, Status> {
        let Member { group, reader, epoch, positions } = member(request)?;
        let view = self.0.store.release_partitions(&group, reader, epoch, positions).await.map_err(status)?;
        Ok(Response::new((&view).into()))
    }

    async fn assign(&self, request: Request<pb::AssignRequest>) -> Result<Response<pb::GroupInfo>, Status> {
        let pb::AssignRequest { group, job, attempt, owners, rewinds } = request.into_inner();
        let job = JobId::new(job).map_err(status)?;
        let owner = |(reader, list): (String, pb::PartitionList)| {
            Ok((ReaderId::new(reader)?, list.partitions.into_iter().map(PartitionId).collect()))
        };
        let owners = owners.into_iter().map(owner).collect::<Result<BTreeMap<_, _>>>().map_err(status)?;
        let (group, rewinds) = (group_name(group)?, cut_from_pb(rewinds));
        let info = self.0.store.assign(&group, job, Attempt(attempt), owners, rewinds).await.map_err(status)?;
        Ok(Response::new((&info).into()))
    }

    async fn start_checkpoint(
        &self,
        request: Request<pb::StartCheckpointRequest>,
    ) -> Result<Response<pb::GroupCheckpoint>, Status> {
        let pb::StartCheckpointRequest { group, id, owner, deadline_ms, supersedes } = request.into_inner();
        let owner = owner.ok_or_else(|| status(Error::invalid("the checkpoint has no owner")))?;
        let owner = owner.try_into().map_err(status)?;
        let supersedes = supersedes.into_iter().map(snapshot).collect::<Result<_, _>>()?;
        let (group, id) = (group_name(group)?, snapshot(id)?);
        let started = self.0.store.start_checkpoint(&group, id, owner, Millis(deadline_ms), supersedes);
        Ok(Response::new((&started.await.map_err(status)?).into()))
    }

    async fn ack_checkpoint(
        &self,
        request: Request<pb::AckCheckpointRequest>,
    ) -> Result<Response<pb::GroupCheckpoint>, Status> {
        let pb::AckCheckpointRequest { group, id, by, offsets } = request.into_inner();
        let (group, id, by) = (group_name(group)?, snapshot(id)?, actor(by)?);
        let acked = self.0.store.ack_checkpoint(&group, id, by, cut_from_pb(offsets)).await.map_err(status)?;
        Ok(Response::new((&acked).into()))
    }

    async fn cancel_checkpoint(
        &self,
        request: Request<pb::EndCheckpointRequest>,
    ) -> Result<Response<pb::GroupCheckpoint>, Status> {
        let pb::EndCheckpointRequest { group, id, job: owner } = request.into_inner();
        let (group, id, owner) = (group_name(group)?, snapshot(id)?, job(owner)?);
        let ended = self.0.store.cancel_checkpoint(&group, id, owner).await.map_err(status)?;
        Ok(Response::new((&ended).into()))
    }

    async fn release_checkpoint(
        &self,
        request: Request<pb::EndCheckpointRequest>,
    ) -> Result<Response<pb::GroupCheckpoint>, Status> {
        let pb::EndCheckpointRequest { group, id, job: owner } = request.into_inner();
        let (group, id, owner) = (group_name(group)?, snapshot(id)?, job(owner)?);
        let ended = self.0.store.release_checkpoint(&group, id, owner).await.map_err(status)?;
        Ok(Response::new((&ended).into()))
    }

    async fn commit_positions(
        &self,
        request: Request<pb::CommitPositionsRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        let pb::CommitPositionsRequest { group, by, positions } = request.into_inner();
        let (group, by) = (group_name(group)?, actor(by)?);
        self.0.store.commit_positions(&group, by, cut_from_pb(positions)).await.map_err(status)?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn note_refusal(&self, request: Request<pb::RefusalNote>) -> Result<Response<pb::Empty>, Status> {
        let pb::RefusalNote { snapshot: id, job, reason } = request.into_inner();
        let (snapshot, job) = (snapshot(id)?, JobId::new(job).map_err(status)?);
        tracing::info!(%snapshot, %job, reason, "snapshot refused, no group was asked");
        Ok(Response::new(pb::Empty {}))
    }

    async fn reset(&self, request: Request<pb::ResetRequest>) -> Result<Response<pb::GroupInfo>, Status> {
        let pb::ResetRequest { group, job: owner, to } = request.into_inner();
        let to = to.ok_or_else(|| status(Error::invalid("the request does not say where to reset to")))?;
        let target = to.try_into().map_err(status)?;
        let info = self.0.store.reset_group(&group_name(group)?, job(owner)?, target).await.map_err(status)?;
        Ok(Response::new((&info).into()))
    }

    async fn watch_member(
        &self,
        request: Request<pb::WatchMemberRequest>,
    ) -> Result<Response<Self::WatchMemberStream>, Status> {
        let pb::WatchMemberRequest { group, reader, epoch } = request.into_inner();
        let (group, reader) = (group_name(group)?, ReaderId::new(reader).map_err(status)?);
        let states = self.0.store.inner.groups.watch(&group).map_err(status)?;
        let describe = move |group: &Group| {
            let view = group.view(&reader)?;
            if view.epoch.0 != epoch {
                return Err(Error::fenced(format!("reader {reader} was replaced"))
                    .with_detail(format!("its epoch is {}, not {epoch}", view.epoch)));
            }
            Ok((&view).into())
        };
        Ok(Response::new(push(states, self.0.stopping.clone(), describe)))
    }

    async fn watch_group(&self, request: Request<pb::GroupRef>) -> Result<Response<Self::WatchGroupStream>, Status> {
        let group = group_name(request.into_inner().group)?;
        let states = self.0.store.inner.groups.watch(&group).map_err(status)?;
        let describe = |group: &Group| Ok((&group.info()).into());
        Ok(Response::new(push(states, self.0.stopping.clone(), describe)))
    }
}
