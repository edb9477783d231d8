//! Reader groups on the wire.

use weir_types::group::{
    CheckpointOwner, GroupActor, GroupCheckpoint, GroupCheckpointState, GroupInfo, GroupLimits, GroupMode, GroupSpec,
    GroupStart, MemberInfo, MemberView, ResetTarget,
};
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::{Error, Result};

use super::store::{cut_from_pb, cut_to_pb, missing};
use crate::pb::store::v1 as pb;

fn partitions_to_pb(partitions: &[PartitionId]) -> Vec<u32> {
    partitions.iter().map(|partition| partition.0).collect()
}

fn partitions_from_pb(partitions: Vec<u32>) -> Vec<PartitionId> {
    partitions.into_iter().map(PartitionId).collect()
}

fn mode_to_pb(mode: &GroupMode) -> Option<String> {
    mode.job().map(ToString::to_string)
}

fn mode_from_pb(job: Option<String>) -> Result<GroupMode> {
    Ok(match job {
        None => GroupMode::Free,
        Some(job) => GroupMode::Managed { job: JobId::new(job)? },
    })
}

impl From<&GroupLimits> for pb::GroupLimits {
    fn from(limits: &GroupLimits) -> Self {
        let GroupLimits { max_outstanding_checkpoints, max_retained_checkpoints, lease_ms } = *limits;
        Self { max_outstanding_checkpoints, max_retained_checkpoints, lease_ms }
    }
}

impl From<pb::GroupLimits> for GroupLimits {
    fn from(limits: pb::GroupLimits) -> Self {
        let pb::GroupLimits { max_outstanding_checkpoints, max_retained_checkpoints, lease_ms } = limits;
        Self { max_outstanding_checkpoints, max_retained_checkpoints, lease_ms }
    }
}

impl From<&GroupSpec> for pb::GroupSpec {
    fn from(spec: &GroupSpec) -> Self {
        use pb::group_start::Kind;
        let GroupSpec { name, stream, mode, limits, start } = spec;
        let kind = match start {
            GroupStart::Earliest => Kind::Earliest(pb::Empty {}),
            GroupStart::Latest => Kind::Latest(pb::Empty {}),
            GroupStart::Cut(cut) => Kind::Cut(pb::StreamCut { offsets: cut_to_pb(cut) }),
        };
        Self {
            name: name.to_string(),
            stream: stream.to_string(),
            job: mode_to_pb(mode),
            limits: Some(limits.into()),
            start: Some(pb::GroupStart { kind: Some(kind) }),
        }
    }
}

impl TryFrom<pb::GroupSpec> for GroupSpec {
    type Error = Error;

    fn try_from(spec: pb::GroupSpec) -> Result<Self> {
        use pb::group_start::Kind;
        let pb::GroupSpec { name, stream, job, limits, start } = spec;
        Ok(Self {
            name: GroupName::new(name)?,
            stream: stream.parse()?,
            mode: mode_from_pb(job)?,
            limits: limits.map_or_else(GroupLimits::default, Into::into),
            start: match start.and_then(|start| start.kind) {
                None | Some(Kind::Earliest(pb::Empty {})) => GroupStart::Earliest,
                Some(Kind::Latest(pb::Empty {})) => GroupStart::Latest,
                Some(Kind::Cut(pb::StreamCut { offsets })) => GroupStart::Cut(cut_from_pb(offsets)),
            },
        })
    }
}

impl From<&CheckpointOwner> for pb::CheckpointOwner {
    fn from(owner: &CheckpointOwner) -> Self {
        use pb::checkpoint_owner::Kind;
        Self {
            kind: Some(match owner {
                CheckpointOwner::Job(job) => Kind::Job(job.to_string()),
                CheckpointOwner::User(name) => Kind::User(name.clone()),
            }),
        }
    }
}

impl TryFrom<pb::CheckpointOwner> for CheckpointOwner {
    type Error = Error;

    fn try_from(owner: pb::CheckpointOwner) -> Result<Self> {
        use pb::checkpoint_owner::Kind;
        match owner.kind.ok_or_else(|| missing("owner"))? {
            Kind::Job(job) => Ok(CheckpointOwner::Job(JobId::new(job)?)),
            Kind::User(name) => Ok(CheckpointOwner::User(name)),
        }
    }
}

fn state_to_pb(state: GroupCheckpointState) -> pb::GroupCheckpointState {
    match state {
        GroupCheckpointState::Outstanding => pb::GroupCheckpointState::Outstanding,
        GroupCheckpointState::Completed => pb::GroupCheckpointState::Completed,
        GroupCheckpointState::Expired => pb::GroupCheckpointState::Expired,
        GroupCheckpointState::Cancelled => pb::GroupCheckpointState::Cancelled,
        GroupCheckpointState::Released => pb::GroupCheckpointState::Released,
    }
}

fn state_from_pb(state: i32) -> Result<GroupCheckpointState> {
    match pb::GroupCheckpointState::try_from(state) {
        Ok(pb::GroupCheckpointState::Outstanding) => Ok(GroupCheckpointState::Outstanding),
        Ok(pb::GroupCheckpointState::Completed) => Ok(GroupCheckpointState::Completed),
        Ok(pb::GroupCheckpointState::Expired) => Ok(GroupCheckpointState::Expired),
        Ok(pb::GroupCheckpointState::Cancelled) => Ok(GroupCheckpointState::Cancelled),
        Ok(pb::GroupCheckpointState::Released) => Ok(GroupCheckpointState::Released),
        Err(_) => Err(Error::invalid(format!("group checkpoint state {state} is unknown to this build"))),
    }
}

impl From<&GroupCheckpoint> for pb::GroupCheckpoint {
    fn from(checkpoint: &GroupCheckpoint) -> Self {
        let GroupCheckpoint { id, owner, started_at_ms, deadline_ms, state, offsets, missing } = checkpoint;
        Self {
            id: id.to_string(),
            owner: Some(owner.into()),
            started_at_ms: *started_at_ms,
            deadline_ms: *deadline_ms,
            state: state_to_pb(*state).into(),
            offsets: cut_to_pb(offsets),
            missing: partitions_to_pb(missing),
        }
    }
}

impl TryFrom<pb::GroupCheckpoint> for GroupCheckpoint {
    type Error = Error;

    fn try_from(checkpoint: pb::GroupCheckpoint) -> Result<Self> {
        let pb::GroupCheckpoint { id, owner, started_at_ms, deadline_ms, state, offsets, missing: lacking } =
            checkpoint;
        Ok(Self {
            id: SnapshotId::new(id)?,
            owner: owner.ok_or_else(|| missing("owner"))?.try_into()?,
            started_at_ms,
            deadline_ms,
            state: state_from_pb(state)?,
            offsets: cut_from_pb(offsets),
            missing: partitions_from_pb(lacking),
        })
    }
}

impl From<&MemberInfo> for pb::MemberInfo {
    fn from(member: &MemberInfo) -> Self {
        let MemberInfo { reader, epoch, lease_until_ms, partitions } = member;
        Self {
            reader: reader.to_string(),
            epoch: epoch.0,
            lease_until_ms: *lease_until_ms,
            partitions: partitions_to_pb(partitions),
        }
    }
}

impl TryFrom<pb::MemberInfo> for MemberInfo {
    type Error = Error;

    fn try_from(member: pb::MemberInfo) -> Result<Self> {
        let pb::MemberInfo { reader, epoch, lease_until_ms, partitions } = member;
        Ok(Self {
            reader: ReaderId::new(reader)?,
            epoch: Epoch(epoch),
            lease_until_ms,
            partitions: partitions_from_pb(partitions),
        })
    }
}

impl From<&GroupInfo> for pb::GroupInfo {
    fn from(info: &GroupInfo) -> Self {
        let GroupInfo { name, stream, mode, limits, version, attempt, members, unowned, positions, checkpoints } = info;
        Self {
            name: name.to_string(),
            stream: stream.to_string(),
            job: mode_to_pb(mode),
            limits: Some(limits.into()),
            version: *version,
            attempt: attempt.map(|attempt| attempt.0),
            members: members.iter().map(Into::into).collect(),
            unowned: partitions_to_pb(unowned),
            positions: cut_to_pb(positions),
            checkpoints: checkpoints.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::GroupInfo> for GroupInfo {
    type Error = Error;

    fn try_from(info: pb::GroupInfo) -> Result<Self> {
        let pb::GroupInfo { name, stream, job, limits, version, attempt, members, unowned, positions, checkpoints } =
            info;
        Ok(Self {
            name: GroupName::new(name)?,
            stream: stream.parse()?,
            mode: mode_from_pb(job)?,
            limits: limits.ok_or_else(|| missing("limits"))?.into(),
            version,
            attempt: attempt.map(Attempt),
            members: members.into_iter().map(MemberInfo::try_from).collect::<Result<_>>()?,
            unowned: partitions_from_pb(unowned),
            positions: cut_from_pb(positions),
            checkpoints: checkpoints.into_iter().map(GroupCheckpoint::try_from).collect::<Result<_>>()?,
        })
    }
}

impl From<&MemberView> for pb::MemberView {
    fn from(view: &MemberView) -> Self {
        let MemberView { epoch, version, owned, revoking, checkpoints } = view;
        Self {
            epoch: epoch.0,
            version: *version,
            owned: cut_to_pb(owned),
            revoking: partitions_to_pb(revoking),
            checkpoints: checkpoints.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<pb::MemberView> for MemberView {
    type Error = Error;

    fn try_from(view: pb::MemberView) -> Result<Self> {
        let pb::MemberView { epoch, version, owned, revoking, checkpoints } = view;
        Ok(Self {
            epoch: Epoch(epoch),
            version,
            owned: cut_from_pb(owned),
            revoking: partitions_from_pb(revoking),
            checkpoints: checkpoints.into_iter().map(SnapshotId::new).collect::<Result<_>>()?,
        })
    }
}

impl From<&GroupActor> for pb::Actor {
    fn from(actor: &GroupActor) -> Self {
        use pb::actor::Kind;
        Self {
            kind: Some(match actor {
                GroupActor::Reader { reader, epoch } => {
                    Kind::Reader(pb::ReaderActor { reader: reader.to_string(), epoch: epoch.0 })
                }
                GroupActor::Job { job, attempt } => {
                    Kind::Job(pb::JobActor { job: job.to_string(), attempt: attempt.0 })
                }
            }),
        }
    }
}

impl TryFrom<pb::Actor> for GroupActor {
    type Error = Error;

    fn try_from(actor: pb::Actor) -> Result<Self> {
        use pb::actor::Kind;
        Ok(match actor.kind.ok_or_else(|| missing("actor"))? {
            Kind::Reader(pb::ReaderActor { reader, epoch }) => {
                GroupActor::Reader { reader: ReaderId::new(reader)?, epoch: Epoch(epoch) }
            }
            Kind::Job(pb::JobActor { job, attempt }) => {
                GroupActor::Job { job: JobId::new(job)?, attempt: Attempt(attempt) }
            }
        })
    }
}

impl From<&ResetTarget> for pb::reset_request::To {
    fn from(target: &ResetTarget) -> Self {
        match target {
            ResetTarget::Cut(cut) => Self::Cut(pb::StreamCut { offsets: cut_to_pb(cut) }),
            ResetTarget::Checkpoint(id) => Self::Checkpoint(id.to_string()),
        }
    }
}

impl TryFrom<pb::reset_request::To> for ResetTarget {
    type Error = Error;

    fn try_from(to: pb::reset_request::To) -> Result<Self> {
        Ok(match to {
            pb::reset_request::To::Cut(pb::StreamCut { offsets }) => ResetTarget::Cut(cut_from_pb(offsets)),
            pb::reset_request::To::Checkpoint(id) => ResetTarget::Checkpoint(SnapshotId::new(id)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weir_types::stream::{Offset, StreamCut};

    use super::*;

    fn cut() -> StreamCut {
        StreamCut(BTreeMap::from([(PartitionId(0), Offset(4)), (PartitionId(1), Offset(6))]))
    }

    #[test]
    fn a_spec_survives_the_wire() {
        let mode = GroupMode::Managed { job: JobId::new("ab12").unwrap() };
        for (mode, start) in [
            (GroupMode::Free, GroupStart::Earliest),
            (mode.clone(), GroupStart::Latest),
            (mode, GroupStart::Cut(cut())),
        ] {
            let spec = GroupSpec {
                name: GroupName::new("g").unwrap(),
                stream: "a/b".parse().unwrap(),
                mode,
                limits: GroupLimits { max_outstanding_checkpoints: 4, ..GroupLimits::default() },
                start,
            };
            assert_eq!(GroupSpec::try_from(pb::GroupSpec::from(&spec)).unwrap(), spec);
        }
    }

    #[test]
    fn a_group_and_a_view_survive_the_wire() {
        let states = [
            GroupCheckpointState::Outstanding,
            GroupCheckpointState::Completed,
            GroupCheckpointState::Expired,
            GroupCheckpointState::Cancelled,
            GroupCheckpointState::Released,
        ];
        let checkpoint = |(i, state): (usize, GroupCheckpointState)| GroupCheckpoint {
            id: SnapshotId::new(format!("chk-{i}")).unwrap(),
            owner: CheckpointOwner::User("ann".to_owned()),
            started_at_ms: 1,
            deadline_ms: 2,
            state,
            offsets: cut(),
            missing: vec![PartitionId(2)],
        };
        let info = GroupInfo {
            name: GroupName::new("g").unwrap(),
            stream: "a/b".parse().unwrap(),
            mode: GroupMode::Managed { job: JobId::new("ab12").unwrap() },
            limits: GroupLimits::default(),
            version: 9,
            attempt: Some(Attempt(3)),
            members: vec![MemberInfo {
                reader: ReaderId::new("r").unwrap(),
                epoch: Epoch(3),
                lease_until_ms: Some(5),
                partitions: vec![PartitionId(1)],
            }],
            unowned: vec![PartitionId(0)],
            positions: cut(),
            checkpoints: states.into_iter().enumerate().map(checkpoint).collect(),
        };
        assert_eq!(GroupInfo::try_from(pb::GroupInfo::from(&info)).unwrap(), info);

        let view = MemberView {
            epoch: Epoch(3),
            version: 4,
            owned: cut(),
            revoking: vec![PartitionId(1)],
            checkpoints: vec![SnapshotId::new("chk-1").unwrap()],
        };
        assert_eq!(MemberView::try_from(pb::MemberView::from(&view)).unwrap(), view);
    }

    #[test]
    fn actors_and_targets_survive_the_wire() {
        let reader = GroupActor::Reader { reader: ReaderId::new("r").unwrap(), epoch: Epoch(7) };
        let job = GroupActor::Job { job: JobId::new("ab").unwrap(), attempt: Attempt(2) };
        for actor in [reader, job] {
            assert_eq!(GroupActor::try_from(pb::Actor::from(&actor)).unwrap(), actor);
        }
        for target in [ResetTarget::Cut(cut()), ResetTarget::Checkpoint(SnapshotId::new("chk-1").unwrap())] {
            assert_eq!(ResetTarget::try_from(pb::reset_request::To::from(&target)).unwrap(), target);
        }
    }
}
