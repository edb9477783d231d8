//! The replicated state and its commands: what is persisted in the raft log and its snapshots.
//!
//! Encodings are versioned. A version that this build does not know is refused, never read as something else.

use prost::Message;
use weir_coordination::checkpoint::{Contents, SubtaskShare, Trigger};
use weir_coordination::metadata::{
    Applied, Command, Completion, NewJob, ReaderGroup, Reply, Reserve, RestoreRecord, SourceRecord, StartAttempt,
};
use weir_types::ids::{
    Attempt, BarrierId, ChainId, ClusterId, GroupName, JobId, Nonce, Parallelism, RequestId, SnapshotId, SubtaskIndex,
};
use weir_types::job::JobChange;
use weir_types::restore::ClaimMode;
use weir_types::snapshot::{Annotations, SnapshotKind, SourcePositions, StopMode};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::metadata_quota::quota_defaults;
use super::{all, catalogue, failure, required};
use crate::pb::metadata::v1 as pb;

/// The version of commands and of the state that this build writes.
pub const VERSION: u32 = 1;

/// A command as it is proposed.
pub fn encode_command(now: Millis, command: &Command) -> Vec<u8> {
    use pb::command::Command as Wire;
    let wire = match command {
        Command::Found { cluster, defaults } => Wire::Found(pb::Found {
            cluster: cluster.to_string(),
            limits: None,
            defaults: Some(defaults.as_ref().into()),
        }),
        Command::SetQuota { request, level, limits } => Wire::SetQuota(pb::SetQuota {
            request: optional(request.as_ref()),
            level: level.to_string(),
            limits: limits.as_ref().map(Into::into),
        }),
        Command::Grant { snapshot, nonce, bytes } => {
            Wire::Grant(pb::Grant { snapshot: snapshot.to_string(), nonce: nonce.0.clone(), bytes: *bytes })
        }
        Command::Swept { snapshot } => Wire::Swept(pb::Swept { snapshot: snapshot.to_string() }),
        Command::Released { job, names } => Wire::Released(pb::Released { job: job.to_string(), names: names.clone() }),
        Command::CreateJob(job) => Wire::CreateJob(job.as_ref().into()),
        Command::StartAttempt(start) => Wire::StartAttempt(start.into()),
        Command::ChangeJob { job, change, failure } => Wire::ChangeJob(pb::ChangeJob {
            job: job.to_string(),
            change: change_to_pb(*change).into(),
            failure: None,
            cause: failure.as_deref().map(Into::into),
        }),
        Command::Rescale { request, job, parallelism } => Wire::Rescale(pb::Rescale {
            request: optional(request.as_ref()),
            job: job.to_string(),
            parallelism: parallelism.get(),
        }),
        Command::Discharged { job, duty } => {
            Wire::Discharged(pb::Discharged { job: job.to_string(), duty: Some((*duty).into()) })
        }
        Command::Reserve(reserve) => Wire::Reserve(reserve.as_ref().into()),
        Command::Import(import) => Wire::Import(import.as_ref().into()),
        Command::Complete(completion) => Wire::Complete(completion.as_ref().into()),
        Command::Abort { snapshot, nonce, failure } => Wire::Abort(pb::Abort {
            snapshot: snapshot.to_string(),
            nonce: nonce.0.clone(),
            failure: Some(failure.into()),
        }),
        Command::MarkDeleted { snapshot, request, force, by } => Wire::MarkDeleted(pb::MarkDeleted {
            request: optional(request.as_ref()),
            snapshot: snapshot.to_string(),
            force: *force,
            by: Some(by.into()),
        }),
        Command::Deleted { snapshot } => Wire::Deleted(pb::Deleted { snapshot: snapshot.to_string() }),
        Command::Annotate { snapshot, request, change } => {
            Wire::Annotate(catalogue::annotate_to_pb(snapshot, request.as_ref(), change))
        }
        Command::SetPolicy { level, request, policy, by } => Wire::SetPolicy(pb::SetPolicy {
            request: optional(request.as_ref()),
            level: level.to_string(),
            policy: policy.as_ref().map(Into::into),
            by: by.clone(),
        }),
        Command::EnforcePolicies => Wire::EnforcePolicies(pb::EnforcePolicies {}),
        Command::Verified { snapshot, by, findings, damage } => Wire::Verified(pb::Verified {
            snapshot: snapshot.to_string(),
            by: pb::Verifier::from(*by).into(),
            findings: *findings,
            damage: damage.as_ref().map(Into::into),
        }),
        Command::CutOff { snapshot, reason } => {
            Wire::CutOff(pb::CutOff { snapshot: snapshot.to_string(), reason: reason.clone() })
        }
    };
    pb::Command { version: VERSION, now_ms: now.0, command: Some(wire) }.encode_to_vec()
}

/// A command as it was proposed, with the proposer's time.
///
/// # Errors
/// `UNSUPPORTED` for another version, `CORRUPT` for bytes that are no command.
pub fn decode_command(bytes: &[u8]) -> Result<(Millis, Command)> {
    use pb::command::Command as Wire;
    let pb::Command { version, now_ms, command } = decode("command", bytes)?;
    check_version(version)?;
    let command = match required("command", command)? {
        Wire::Found(pb::Found { cluster, limits, defaults }) => {
            Command::Found { cluster: ClusterId::new(cluster)?, defaults: Box::new(quota_defaults(defaults, limits)) }
        }
        Wire::SetQuota(pb::SetQuota { request, level, limits }) => Command::SetQuota {
            request: request_from_pb(request)?,
            level: level.parse()?,
            limits: limits.map(Into::into),
        },
        Wire::Grant(pb::Grant { snapshot, nonce, bytes }) => {
            Command::Grant { snapshot: SnapshotId::new(snapshot)?, nonce: Nonce(nonce), bytes }
        }
        Wire::Swept(pb::Swept { snapshot }) => Command::Swept { snapshot: SnapshotId::new(snapshot)? },
        Wire::Released(pb::Released { job, names }) => Command::Released { job: JobId::new(job)?, names },
        Wire::CreateJob(job) => Command::CreateJob(Box::new(job.try_into()?)),
        Wire::StartAttempt(start) => Command::StartAttempt(start.try_into()?),
        Wire::ChangeJob(pb::ChangeJob { job, change, failure, cause }) => {
            let change = change_from_pb(change)?;
            let older = failure.map(|error| failure::of_older_build(Millis(now_ms), Attempt(0), change, error.into()));
            let failure = cause.map(TryInto::try_into).transpose()?.or(older).map(Box::new);
            Command::ChangeJob { job: JobId::new(job)?, change, failure }
        }
        Wire::Rescale(pb::Rescale { request, job, parallelism }) => Command::Rescale {
            request: request_from_pb(request)?,
            job: JobId::new(job)?,
            parallelism: Parallelism::new(parallelism)?,
        },
        Wire::Discharged(pb::Discharged { job, duty }) => {
            Command::Discharged { job: JobId::new(job)?, duty: required("duty", duty)?.into() }
        }
        Wire::Reserve(reserve) => Command::Reserve(Box::new(reserve.try_into()?)),
        Wire::Import(import) => Command::Import(Box::new(import.try_into()?)),
        Wire::Complete(complete) => Command::Complete(Box::new(complete.try_into()?)),
        Wire::Abort(pb::Abort { snapshot, nonce, failure }) => Command::Abort {
            snapshot: SnapshotId::new(snapshot)?,
            nonce: Nonce(nonce),
            failure: required("failure", failure)?.into(),
        },
        Wire::MarkDeleted(pb::MarkDeleted { request, snapshot, force, by }) => Command::MarkDeleted {
            snapshot: SnapshotId::new(snapshot)?,
            request: request_from_pb(request)?,
            force,
            by: by.unwrap_or_default().try_into()?,
        },
        Wire::Deleted(pb::Deleted { snapshot }) => Command::Deleted { snapshot: SnapshotId::new(snapshot)? },
        Wire::Annotate(annotate) => {
            let (snapshot, request, change) = catalogue::annotate_from_pb(annotate)?;
            Command::Annotate { snapshot, request, change }
        }
        Wire::SetPolicy(pb::SetPolicy { request, level, policy, by }) => Command::SetPolicy {
            level: level.parse()?,
            request: request_from_pb(request)?,
            policy: policy.map(Into::into),
            by,
        },
        Wire::EnforcePolicies(pb::EnforcePolicies {}) => Command::EnforcePolicies,
        Wire::Verified(verified) => {
            let by = verified.by().into();
            let pb::Verified { snapshot, by: _, findings, damage } = verified;
            Command::Verified { snapshot: SnapshotId::new(snapshot)?, by, findings, damage: damage.map(Into::into) }
        }
        Wire::CutOff(pb::CutOff { snapshot, reason }) => {
            Command::CutOff { snapshot: SnapshotId::new(snapshot)?, reason }
        }
    };
    Ok((Millis(now_ms), command))
}

/// An answer as it comes back from the log.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    pb::Reply::from(reply).encode_to_vec()
}

/// The answer to a command.
///
/// # Errors
/// `CORRUPT` for bytes that are no answer, or the error that was answered.
pub fn decode_reply(bytes: &[u8]) -> Reply {
    decode::<pb::Reply>("reply", bytes)?.try_into().and_then(|reply: Answer| reply.0)
}

/// Either kind of answer, so that it can be told from one that does not convert.
pub(super) struct Answer(pub(super) Reply);

impl From<&Reply> for pb::Reply {
    fn from(reply: &Reply) -> Self {
        match reply {
            Err(error) => Self { refused: Some(error.into()), ..Self::default() },
            Ok(Applied { job, snapshot, retired, queued, admitted, unreferenced }) => Self {
                refused: None,
                job: optional(job.as_ref()),
                snapshot: optional(snapshot.as_ref()),
                retired: retired.iter().map(ToString::to_string).collect(),
                queued: *queued,
                admitted: admitted.iter().map(ToString::to_string).collect(),
                unreferenced: unreferenced.clone(),
            },
        }
    }
}

impl TryFrom<pb::Reply> for Answer {
    type Error = Error;

    fn try_from(reply: pb::Reply) -> Result<Self> {
        let pb::Reply { refused, job, snapshot, retired, queued, admitted, unreferenced } = reply;
        if let Some(error) = refused {
            return Ok(Self(Err(error.into())));
        }
        Ok(Self(Ok(Applied {
            job: nonempty(job).map(JobId::new).transpose()?,
            snapshot: nonempty(snapshot).map(SnapshotId::new).transpose()?,
            retired: retired.into_iter().map(SnapshotId::new).collect::<Result<_>>()?,
            queued,
            admitted: admitted.into_iter().map(SnapshotId::new).collect::<Result<_>>()?,
            unreferenced,
        })))
    }
}

impl From<&NewJob> for pb::NewJob {
    fn from(job: &NewJob) -> Self {
        let NewJob { request, id, name, sql, owner, namespace, graph, plan, sources, restore, allow_duplicates } = job;
        Self {
            request: optional(request.as_ref()),
            id: id.to_string(),
            name: name.clone(),
            sql: sql.clone(),
            owner: owner.clone(),
            namespace: namespace.clone(),
            graph: Some(graph.into()),
            plan: plan.clone(),
            sources: sources.iter().map(Into::into).collect(),
            restore: restore.as_ref().map(Into::into),
            allow_duplicates: *allow_duplicates,
        }
    }
}

impl TryFrom<pb::NewJob> for NewJob {
    type Error = Error;

    fn try_from(job: pb::NewJob) -> Result<Self> {
        let pb::NewJob { request, id, name, sql, owner, namespace, graph, plan, sources, restore, allow_duplicates } =
            job;
        Ok(Self {
            request: request_from_pb(request)?,
            id: JobId::new(id)?,
            name,
            sql,
            owner,
            namespace,
            graph: required("job graph", graph)?.try_into()?,
            plan,
            sources: all(sources)?,
            restore: restore.map(TryInto::try_into).transpose()?,
            allow_duplicates,
        })
    }
}

impl From<&SourceRecord> for pb::Source {
    fn from(source: &SourceRecord) -> Self {
        let SourceRecord { uid, table, chain, parallelism, group, splits } = source;
        Self {
            uid: uid.clone(),
            table: table.clone(),
            chain: chain.0,
            parallelism: parallelism.get(),
            group: group
                .as_ref()
                .map(|group| pb::ReaderGroup { name: group.name.to_string(), stream: group.stream.to_string() }),
            splits: splits.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Source> for SourceRecord {
    type Error = Error;

    fn try_from(source: pb::Source) -> Result<Self> {
        let pb::Source { uid, table, chain, parallelism, group, splits } = source;
        let group = group.map(|pb::ReaderGroup { name, stream }| -> Result<_> {
            Ok(ReaderGroup { name: GroupName::new(name)?, stream: stream.parse()? })
        });
        Ok(Self {
            uid,
            table,
            chain: ChainId(chain),
            parallelism: Parallelism::new(parallelism)?,
            group: group.transpose()?,
            splits: splits.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<&RestoreRecord> for pb::RestoreFrom {
    fn from(restore: &RestoreRecord) -> Self {
        let RestoreRecord { directory, snapshot, allow_non_restored_state, claim } = restore;
        Self {
            directory: directory.clone(),
            snapshot: optional(snapshot.as_ref()),
            allow_non_restored_state: *allow_non_restored_state,
            claim: *claim == ClaimMode::Claim,
        }
    }
}

impl TryFrom<pb::RestoreFrom> for RestoreRecord {
    type Error = Error;

    fn try_from(restore: pb::RestoreFrom) -> Result<Self> {
        let pb::RestoreFrom { directory, snapshot, allow_non_restored_state, claim } = restore;
        let snapshot = nonempty(snapshot).map(SnapshotId::new).transpose()?;
        let claim = if claim { ClaimMode::Claim } else { ClaimMode::NoClaim };
        Ok(Self { directory, snapshot, allow_non_restored_state, claim })
    }
}

impl From<&StartAttempt> for pb::StartAttempt {
    fn from(start: &StartAttempt) -> Self {
        let StartAttempt { job, attempt, placements, splits, from, passed_over, parallelism } = start;
        Self {
            from: from.clone().unwrap_or_default(),
            passed_over: passed_over.iter().map(Into::into).collect(),
            parallelism: parallelism.map_or(0, Parallelism::get),
            job: job.to_string(),
            attempt: attempt.0,
            placements: placements.iter().map(Into::into).collect(),
            splits: splits.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::StartAttempt> for StartAttempt {
    type Error = Error;

    fn try_from(start: pb::StartAttempt) -> Result<Self> {
        let pb::StartAttempt { job, attempt, placements, splits, from, passed_over, parallelism } = start;
        Ok(Self {
            from: nonempty(from),
            passed_over: passed_over.into_iter().map(Into::into).collect(),
            parallelism: Parallelism::new(parallelism).ok(),
            job: JobId::new(job)?,
            attempt: Attempt(attempt),
            placements: all(placements)?,
            splits: all(splits)?,
        })
    }
}

impl From<&Reserve> for pb::Reserve {
    fn from(reserve: &Reserve) -> Self {
        let Reserve {
            request,
            snapshot,
            job,
            kind,
            trigger,
            barrier,
            attempt,
            nonce,
            directory,
            deadline,
            owner,
            annotations,
            plan_hash,
            subtasks,
            evict,
            estimate_bytes,
        } = reserve;
        let Annotations { name, note, labels, pinned } = annotations.clone();
        Self {
            request: optional(request.as_ref()),
            snapshot: snapshot.to_string(),
            job: job.to_string(),
            savepoint: *kind == SnapshotKind::Savepoint,
            trigger: trigger_to_pb(*trigger).into(),
            barrier: barrier.0,
            attempt: attempt.0,
            nonce: nonce.0.clone(),
            directory: directory.clone(),
            deadline_ms: deadline.0,
            owner: owner.clone(),
            name,
            note,
            labels: labels.into_iter().collect(),
            pinned,
            plan_hash: plan_hash.clone(),
            subtasks: *subtasks,
            evict: *evict,
            estimate_bytes: *estimate_bytes,
        }
    }
}

impl TryFrom<pb::Reserve> for Reserve {
    type Error = Error;

    fn try_from(reserve: pb::Reserve) -> Result<Self> {
        let pb::Reserve {
            request,
            snapshot,
            job,
            savepoint,
            trigger,
            barrier,
            attempt,
            nonce,
            directory,
            deadline_ms,
            owner,
            name,
            note,
            labels,
            pinned,
            plan_hash,
            subtasks,
            evict,
            estimate_bytes,
        } = reserve;
        Ok(Self {
            request: request_from_pb(request)?,
            snapshot: SnapshotId::new(snapshot)?,
            job: JobId::new(job)?,
            kind: if savepoint { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint },
            trigger: trigger_from_pb(trigger)?,
            barrier: BarrierId(barrier),
            attempt: Attempt(attempt),
            nonce: Nonce(nonce),
            directory,
            deadline: Millis(deadline_ms),
            owner,
            annotations: Annotations { name, note, labels: labels.into_iter().collect(), pinned },
            plan_hash,
            subtasks,
            evict,
            estimate_bytes,
        })
    }
}

impl From<&Completion> for pb::Complete {
    fn from(completion: &Completion) -> Self {
        let Completion { snapshot, nonce, contents } = completion;
        let Contents { operators: _, sources, shares, bytes, rows, manifest_bytes, has_output, shared } = contents;
        Self {
            snapshot: snapshot.to_string(),
            nonce: nonce.0.clone(),
            bytes: *bytes,
            rows: *rows,
            shares: shares.iter().map(Into::into).collect(),
            sources: sources.iter().map(Into::into).collect(),
            manifest_bytes: *manifest_bytes,
            shared: shared.iter().map(Into::into).collect(),
            has_output: *has_output,
        }
    }
}

impl TryFrom<pb::Complete> for Completion {
    type Error = Error;

    fn try_from(complete: pb::Complete) -> Result<Self> {
        let pb::Complete { snapshot, nonce, bytes, rows, shares, sources, manifest_bytes, shared, has_output } =
            complete;
        let contents = Contents {
            operators: Vec::new(),
            sources: sources.into_iter().map(Into::into).collect(),
            shares: shares.into_iter().map(Into::into).collect(),
            bytes,
            rows,
            manifest_bytes,
            has_output,
            shared: shared.into_iter().map(Into::into).collect(),
        };
        Ok(Self { snapshot: SnapshotId::new(snapshot)?, nonce: Nonce(nonce), contents })
    }
}

impl From<&SubtaskShare> for pb::Share {
    fn from(share: &SubtaskShare) -> Self {
        let SubtaskShare { chain, index, timings, bytes } = share;
        Self { chain: chain.0, index: index.0, timings: Some(timings.into()), bytes: *bytes }
    }
}

impl From<pb::Share> for SubtaskShare {
    fn from(share: pb::Share) -> Self {
        let pb::Share { chain, index, timings, bytes } = share;
        let timings = timings.map(Into::into).unwrap_or_default();
        Self { chain: ChainId(chain), index: SubtaskIndex(index), timings, bytes }
    }
}

impl From<&SourcePositions> for pb::SourcePositions {
    fn from(positions: &SourcePositions) -> Self {
        let SourcePositions { uid, splits } = positions;
        Self { uid: uid.clone(), splits: splits.iter().map(Into::into).collect() }
    }
}

impl From<pb::SourcePositions> for SourcePositions {
    fn from(positions: pb::SourcePositions) -> Self {
        let pb::SourcePositions { uid, splits } = positions;
        Self { uid, splits: splits.into_iter().map(Into::into).collect() }
    }
}

fn trigger_to_pb(trigger: Trigger) -> pb::Trigger {
    match trigger {
        Trigger::Periodic => pb::Trigger::Periodic,
        Trigger::Scheduled => pb::Trigger::Scheduled,
        Trigger::Import => pb::Trigger::Import,
        Trigger::Rescale => pb::Trigger::Rescale,
        Trigger::User | Trigger::Stop(StopMode::Continue) => pb::Trigger::User,
        Trigger::Stop(StopMode::Suspend) => pb::Trigger::Suspend,
        Trigger::Stop(StopMode::Drain) => pb::Trigger::Drain,
    }
}

fn trigger_from_pb(trigger: i32) -> Result<Trigger> {
    Ok(match pb::Trigger::try_from(trigger) {
        Ok(pb::Trigger::Periodic) => Trigger::Periodic,
        Ok(pb::Trigger::Scheduled) => Trigger::Scheduled,
        Ok(pb::Trigger::Import) => Trigger::Import,
        Ok(pb::Trigger::Rescale) => Trigger::Rescale,
        Ok(pb::Trigger::User) => Trigger::User,
        Ok(pb::Trigger::Suspend) => Trigger::Stop(StopMode::Suspend),
        Ok(pb::Trigger::Drain) => Trigger::Stop(StopMode::Drain),
        Ok(pb::Trigger::Unspecified) | Err(_) => return Err(Error::invalid(format!("unknown trigger {trigger}"))),
    })
}

pub(super) fn change_to_pb(change: JobChange) -> pb::JobChange {
    match change {
        JobChange::Deploy => pb::JobChange::Deploy,
        JobChange::Run => pb::JobChange::Run,
        JobChange::Restart => pb::JobChange::Restart,
        JobChange::Stop => pb::JobChange::Stop,
        JobChange::Cancel => pb::JobChange::Cancel,
        JobChange::Finish => pb::JobChange::Finish,
        JobChange::EndStopped => pb::JobChange::EndStopped,
        JobChange::EndCancelled => pb::JobChange::EndCancelled,
        JobChange::Fail => pb::JobChange::Fail,
    }
}

pub(super) fn change_from_pb(change: i32) -> Result<JobChange> {
    Ok(match pb::JobChange::try_from(change) {
        Ok(pb::JobChange::Deploy) => JobChange::Deploy,
        Ok(pb::JobChange::Run) => JobChange::Run,
        Ok(pb::JobChange::Restart) => JobChange::Restart,
        Ok(pb::JobChange::Stop) => JobChange::Stop,
        Ok(pb::JobChange::Cancel) => JobChange::Cancel,
        Ok(pb::JobChange::Finish) => JobChange::Finish,
        Ok(pb::JobChange::EndStopped) => JobChange::EndStopped,
        Ok(pb::JobChange::EndCancelled) => JobChange::EndCancelled,
        Ok(pb::JobChange::Fail) => JobChange::Fail,
        Ok(pb::JobChange::Unspecified) | Err(_) => return Err(Error::invalid(format!("unknown change {change}"))),
    })
}

pub(super) fn check_version(version: u32) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, format!("metadata of version {version} cannot be read by this build"))
        .with_detail(format!("it reads version {VERSION}"))
        .with_hint("Start the JobManager of the version that wrote it."))
}

pub(super) fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M> {
    M::decode(bytes)
        .map_err(|error| Error::new(Code::Corrupt, format!("not a metadata {what}")).with_detail(error.to_string()))
}

pub(super) fn optional<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

pub(super) fn nonempty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

pub(super) fn request_from_pb(request: String) -> Result<Option<RequestId>> {
    nonempty(request).map(RequestId::new).transpose()
}
