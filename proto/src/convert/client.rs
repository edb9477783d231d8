//! The client API: job states, and the catalogue as clients see it.

use weir_coordination::metadata::{Fallback, PassedOver, SnapshotEntry};
use weir_types::job::JobState;
use weir_types::quota::QuotaLimits;
use weir_types::snapshot::SnapshotKind;
use weir_types::{Error, Result};

use crate::pb::client::v1 as pb;

impl From<QuotaLimits> for pb::QuotaLimits {
    fn from(limits: QuotaLimits) -> Self {
        let QuotaLimits { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms } = limits;
        Self { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms }
    }
}

impl From<pb::QuotaLimits> for QuotaLimits {
    fn from(limits: pb::QuotaLimits) -> Self {
        let pb::QuotaLimits { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms } =
            limits;
        Self { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms }
    }
}

impl From<JobState> for pb::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Created => Self::Created,
            JobState::Starting => Self::Starting,
            JobState::Running => Self::Running,
            JobState::Restarting => Self::Restarting,
            JobState::Stopping => Self::Stopping,
            JobState::Cancelling => Self::Cancelling,
            JobState::Finished => Self::Finished,
            JobState::Stopped => Self::Stopped,
            JobState::Cancelled => Self::Cancelled,
            JobState::Failed => Self::Failed,
        }
    }
}

impl TryFrom<pb::JobState> for JobState {
    type Error = Error;

    fn try_from(state: pb::JobState) -> Result<Self> {
        Ok(match state {
            pb::JobState::Unspecified => return Err(Error::invalid("job without a state")),
            pb::JobState::Created => Self::Created,
            pb::JobState::Starting => Self::Starting,
            pb::JobState::Running => Self::Running,
            pb::JobState::Restarting => Self::Restarting,
            pb::JobState::Stopping => Self::Stopping,
            pb::JobState::Cancelling => Self::Cancelling,
            pb::JobState::Finished => Self::Finished,
            pb::JobState::Stopped => Self::Stopped,
            pb::JobState::Cancelled => Self::Cancelled,
            pb::JobState::Failed => Self::Failed,
        })
    }
}

/// The catalogue's entry for clients. How far one in flight is, its place in the queue, its script and its holders, its
/// caller fills in.
impl From<&SnapshotEntry> for pb::Snapshot {
    fn from(entry: &SnapshotEntry) -> Self {
        let source = |source: &weir_types::snapshot::SourcePositions| {
            let uid = source.uid.clone();
            let cut = move |split: &weir_types::snapshot::SplitPosition| pb::SourceCut {
                uid: uid.clone(),
                split: split.split.clone(),
                offset: split.offset,
                finished: split.finished,
            };
            source.splits.iter().map(cut).collect::<Vec<_>>()
        };
        let timings = |share: &weir_coordination::checkpoint::SubtaskShare| pb::SubtaskTimings {
            chain: share.chain.0,
            index: share.index.0,
            start_delay_us: share.timings.start_delay_us,
            alignment_us: share.timings.alignment_us,
            sync_us: share.timings.sync_us,
            async_us: share.timings.async_us,
            bytes: share.bytes,
        };
        Self {
            id: entry.id.to_string(),
            savepoint: entry.kind == SnapshotKind::Savepoint,
            job: entry.taken_of().to_string(),
            job_name: entry.job_name.clone(),
            owner: entry.owner.clone(),
            namespace: entry.namespace.clone(),
            state: entry.status().to_owned(),
            triggered_at_ms: entry.triggered_at.0,
            ended_at_ms: entry.ended_at.map_or(0, |at| at.0),
            directory: entry.directory.clone(),
            bytes: entry.bytes,
            rows: entry.rows,
            parallelism: entry.parallelism.get(),
            failure: entry.failure.as_ref().map(Into::into),
            trigger: entry.trigger.as_str().to_owned(),
            restored_from: entry.restored_from.clone().unwrap_or_default(),
            timings: entry.shares.iter().map(timings).collect(),
            sources: entry.sources.iter().flat_map(source).collect(),
            subtasks_acknowledged: entry.shares.len() as u32,
            subtasks_total: entry.subtasks,
            name: entry.annotations.name.clone().unwrap_or_default(),
            failures: entry.failures,
            first_failed_at_ms: entry.first_failed_at.map_or(0, |at| at.0),
            barrier: entry.barrier.0,
            queue_position: 0,
            note: entry.annotations.note.clone().unwrap_or_default(),
            labels: entry.annotations.labels.clone(),
            pinned: entry.annotations.pinned,
            started_at_ms: entry.started_at.map_or(0, |at| at.0),
            exclusive_bytes: entry.charged_bytes,
            plan_hash: entry.plan_hash.clone(),
            query: None,
            verified_at_ms: entry.verified.as_ref().map_or(0, |verified| verified.at.0),
            damage: entry.verified.as_ref().and_then(|verified| verified.damage.as_ref()).map(Into::into),
            unrestorable: entry.unrestorable.clone().unwrap_or_default(),
            deletion: entry.deletion.as_ref().map(Into::into),
            holders: Vec::new(),
            evicted: Vec::new(),
            claim: entry.claim.as_ref().map(Into::into),
            verified_by: entry.verified.as_ref().map(|verified| verified.by.as_str().to_owned()).unwrap_or_default(),
            findings: entry.verified.as_ref().map_or(0, |verified| verified.findings),
            origin: entry.origin.as_ref().map(Into::into),
        }
    }
}

impl From<&Fallback> for pb::Fallback {
    fn from(fallback: &Fallback) -> Self {
        let Fallback { at, attempt, to, passed_over } = fallback;
        let passed =
            |passed: &PassedOver| pb::PassedOver { snapshot: passed.snapshot.clone(), reason: passed.reason.clone() };
        Self { at_ms: at.0, attempt: attempt.0, to: to.clone(), passed_over: passed_over.iter().map(passed).collect() }
    }
}
