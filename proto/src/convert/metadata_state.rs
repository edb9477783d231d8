//! The whole replicated state, as the raft log's snapshots hold it.

use prost::Message;
use weir_coordination::metadata::{Answered, JobRecord, NewJob, Quotas, Requests, Reserve, SnapshotEntry, State};
use weir_types::ids::{Attempt, BarrierId, ClusterId, Parallelism, RequestId, SnapshotId};
use weir_types::job::{JobChange, JobState};
use weir_types::snapshot::SnapshotState;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::metadata::{Answer, VERSION, check_version, decode, nonempty, optional};
use super::metadata_output::{output_from_pb, output_to_pb};
use super::metadata_quota::{quota_defaults, quotas_from_pb, quotas_to_pb, shared_from_pb, shared_to_pb};
use super::{all, failure, required};
use crate::pb::client::v1 as client;
use crate::pb::metadata::v1 as pb;

/// The whole state.
pub fn encode_state(state: &State) -> Vec<u8> {
    let State { cluster, quotas, jobs, snapshots, shared, requests, retention } = state;
    let request = |(id, answered): (&RequestId, &Answered)| pb::Request {
        id: id.to_string(),
        sequence: answered.sequence,
        reply: Some((&answered.reply).into()),
    };
    pb::State {
        version: VERSION,
        cluster: optional(cluster.as_ref()),
        limits: None,
        jobs: jobs.values().map(Into::into).collect(),
        snapshots: snapshots.values().map(Into::into).collect(),
        requests: requests.iter().map(request).collect(),
        next_request: requests.next_sequence(),
        quota_defaults: Some((&quotas.defaults).into()),
        quotas: quotas_to_pb(quotas),
        shared: shared_to_pb(shared),
        retention: Some(retention.into()),
    }
    .encode_to_vec()
}

/// The state that was encoded.
///
/// # Errors
/// `UNSUPPORTED` for another version, `CORRUPT` for bytes that are no state.
pub fn decode_state(bytes: &[u8]) -> Result<State> {
    let pb::State {
        version,
        cluster,
        limits,
        jobs,
        snapshots,
        requests,
        next_request,
        quota_defaults: defaults,
        quotas,
        shared,
        retention,
    } = decode("state", bytes)?;
    check_version(version)?;
    let jobs: Vec<JobRecord> = all(jobs)?;
    let snapshots: Vec<SnapshotEntry> = all(snapshots)?;
    let request = |request: pb::Request| -> Result<_> {
        let pb::Request { id, sequence, reply } = request;
        let reply = Answer::try_from(required("reply", reply)?)?.0;
        Ok((RequestId::new(id)?, Answered { sequence, reply }))
    };
    Ok(State {
        cluster: nonempty(cluster).map(ClusterId::new).transpose()?,
        quotas: Quotas { defaults: quota_defaults(defaults, limits), set: quotas_from_pb(quotas)? },
        jobs: jobs.into_iter().map(|job| (job.id.clone(), job)).collect(),
        snapshots: snapshots.into_iter().collect(),
        shared: shared_from_pb(shared)?,
        requests: Requests::new(requests.into_iter().map(request).collect::<Result<Vec<_>>>()?, next_request),
        retention: retention.unwrap_or_default().try_into()?,
    })
}

impl From<&JobRecord> for pb::Job {
    fn from(job: &JobRecord) -> Self {
        let JobRecord {
            id,
            name,
            sql,
            owner,
            namespace,
            graph,
            parallelism_wanted,
            plan,
            sources,
            state,
            attempt,
            restarts,
            submitted_at,
            started_at,
            ended_at,
            failures,
            restore,
            placements,
            splits,
            last_barrier,
            stopped_by,
            took_snapshot,
            fallback,
            output,
            allow_duplicates,
        } = job;
        Self {
            new_job: Some(pb::NewJob {
                request: String::new(),
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
            }),
            state: client::JobState::from(*state).into(),
            attempt: attempt.0,
            restarts: *restarts,
            submitted_at_ms: submitted_at.0,
            started_at_ms: started_at.map(|at| at.0),
            ended_at_ms: ended_at.map(|at| at.0),
            failure: None,
            placements: placements.iter().map(Into::into).collect(),
            splits: splits.iter().map(Into::into).collect(),
            last_barrier: last_barrier.0,
            stopped_by: optional(stopped_by.as_ref()),
            took_snapshot: *took_snapshot,
            fallback: fallback.as_ref().map(Into::into),
            failures: failures.newest.iter().map(Into::into).collect(),
            failures_total: failures.total,
            parallelism_wanted: parallelism_wanted.get(),
            output: output_to_pb(*output),
        }
    }
}

impl TryFrom<pb::Job> for JobRecord {
    type Error = Error;

    fn try_from(job: pb::Job) -> Result<Self> {
        let state = JobState::try_from(job.state())?;
        let pb::Job {
            new_job,
            state: _,
            attempt,
            restarts,
            submitted_at_ms,
            started_at_ms,
            ended_at_ms,
            failure,
            placements,
            splits,
            last_barrier,
            stopped_by,
            took_snapshot,
            fallback,
            failures,
            failures_total,
            parallelism_wanted,
            output,
        } = job;
        let NewJob { request: _, id, name, sql, owner, namespace, graph, plan, sources, restore, allow_duplicates } =
            required("job", new_job)?.try_into()?;
        let older = failure.map(|error| {
            let at = Millis(ended_at_ms.or(started_at_ms).unwrap_or(submitted_at_ms));
            let change = if state == JobState::Failed { JobChange::Fail } else { JobChange::Restart };
            failure::of_older_build(at, Attempt(attempt), change, error.into())
        });
        Ok(Self {
            id,
            name,
            sql,
            owner,
            namespace,
            parallelism_wanted: Parallelism::new(parallelism_wanted).unwrap_or(graph.options.parallelism),
            graph,
            plan,
            sources,
            state,
            attempt: Attempt(attempt),
            restarts,
            submitted_at: Millis(submitted_at_ms),
            started_at: started_at_ms.map(Millis),
            ended_at: ended_at_ms.map(Millis),
            failures: failure::failures_from_pb(failures, failures_total, older)?,
            restore,
            placements: all(placements)?,
            splits: all(splits)?,
            last_barrier: BarrierId(last_barrier),
            stopped_by: nonempty(stopped_by).map(SnapshotId::new).transpose()?,
            took_snapshot,
            fallback: fallback.map(Into::into),
            output: output_from_pb(output)?,
            allow_duplicates,
        })
    }
}

impl From<&SnapshotEntry> for pb::SnapshotEntry {
    fn from(entry: &SnapshotEntry) -> Self {
        let SnapshotEntry {
            id,
            kind,
            job,
            job_name,
            owner,
            namespace,
            annotations,
            state,
            trigger,
            barrier,
            attempt,
            nonce,
            directory,
            triggered_at,
            started_at,
            deadline,
            ended_at,
            charged_bytes,
            estimate_bytes,
            bytes,
            written_bytes,
            rows,
            parallelism,
            failure,
            restored_from,
            shares,
            sources,
            subtasks,
            plan_hash,
            verified,
            unrestorable,
            deletion,
            claim,
            origin,
            failures,
            first_failed_at,
        } = entry;
        let reservation = Reserve {
            request: None,
            snapshot: id.clone(),
            job: job.clone(),
            kind: *kind,
            trigger: *trigger,
            barrier: *barrier,
            attempt: *attempt,
            nonce: nonce.clone(),
            directory: directory.clone(),
            deadline: *deadline,
            owner: owner.clone(),
            annotations: annotations.clone(),
            plan_hash: plan_hash.clone(),
            subtasks: *subtasks,
            evict: false,
            estimate_bytes: *estimate_bytes,
        };
        let state = match state {
            SnapshotState::Queued => pb::SnapshotState::Queued,
            SnapshotState::InProgress => pb::SnapshotState::InProgress,
            SnapshotState::Completed => pb::SnapshotState::Completed,
            SnapshotState::Failed => pb::SnapshotState::Failed,
            SnapshotState::Deleting => pb::SnapshotState::Deleting,
        };
        Self {
            reservation: Some((&reservation).into()),
            state: state.into(),
            job_name: job_name.clone(),
            namespace: namespace.clone(),
            triggered_at_ms: triggered_at.0,
            ended_at_ms: ended_at.map(|at| at.0),
            bytes: *bytes,
            rows: *rows,
            parallelism: parallelism.get(),
            failure: failure.as_ref().map(Into::into),
            restored_from: restored_from.clone(),
            shares: shares.iter().map(Into::into).collect(),
            sources: sources.iter().map(Into::into).collect(),
            failures: *failures,
            first_failed_at_ms: first_failed_at.map(|at| at.0),
            started_at_ms: started_at.map(|at| at.0),
            charged_bytes: *charged_bytes,
            verified: verified.as_ref().map(Into::into),
            unrestorable: unrestorable.clone(),
            written_bytes: *written_bytes,
            deletion: deletion.as_ref().map(Into::into),
            claim: claim.as_ref().map(Into::into),
            origin: origin.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<pb::SnapshotEntry> for SnapshotEntry {
    type Error = Error;

    fn try_from(entry: pb::SnapshotEntry) -> Result<Self> {
        let state = match entry.state() {
            pb::SnapshotState::Queued => SnapshotState::Queued,
            pb::SnapshotState::InProgress => SnapshotState::InProgress,
            pb::SnapshotState::Completed => SnapshotState::Completed,
            pb::SnapshotState::Failed => SnapshotState::Failed,
            pb::SnapshotState::Deleting => SnapshotState::Deleting,
            pb::SnapshotState::Unspecified => return Err(Error::invalid("snapshot without a state")),
        };
        let pb::SnapshotEntry {
            reservation,
            state: _,
            job_name,
            namespace,
            triggered_at_ms,
            ended_at_ms,
            bytes,
            rows,
            parallelism,
            failure,
            restored_from,
            shares,
            sources,
            failures,
            first_failed_at_ms,
            started_at_ms,
            charged_bytes,
            verified,
            unrestorable,
            written_bytes,
            deletion,
            claim,
            origin,
        } = entry;
        let Reserve {
            request: _,
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
            evict: _,
            estimate_bytes,
        } = required("reservation", reservation)?.try_into()?;
        Ok(Self {
            id: snapshot,
            kind,
            job,
            job_name,
            owner,
            namespace,
            annotations,
            state,
            trigger,
            barrier,
            attempt,
            nonce,
            directory,
            triggered_at: Millis(triggered_at_ms),
            started_at: started_at_ms.map(Millis),
            deadline,
            ended_at: ended_at_ms.map(Millis),
            charged_bytes,
            estimate_bytes,
            bytes,
            written_bytes,
            rows,
            parallelism: Parallelism::new(parallelism)?,
            failure: failure.map(Into::into),
            restored_from,
            shares: shares.into_iter().map(Into::into).collect(),
            sources: sources.into_iter().map(Into::into).collect(),
            subtasks,
            plan_hash,
            verified: verified.map(Into::into),
            unrestorable,
            deletion: deletion.map(TryInto::try_into).transpose()?,
            claim: claim.map(TryInto::try_into).transpose()?,
            origin: origin.map(TryInto::try_into).transpose()?,
            failures,
            first_failed_at: first_failed_at_ms.map(Millis),
        })
    }
}
