//! The control plane: what TaskManagers say, and every part of what they are told but deployments.
//!
//! A message that lacks a part which its sender must set becomes `INVALID_ARGUMENT`, never a default value.

use weir_types::control::{
    CancelAttempt, FinishAttempt, FromTaskManager, Registered, Registration, SnapshotDeclined, SnapshotOutcome,
    SubtaskProgress, SubtaskStatus, TriggerBarrier,
};
use weir_types::deployment::SubtaskState;
use weir_types::ids::{
    Attempt, BarrierId, ChainId, ClusterId, JobId, SnapshotId, SubtaskId, SubtaskIndex, TaskManagerId, Term,
};
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{
    Barrier, OperatorSnapshot, Segments, SnapshotKind, SnapshotTimings, SplitPosition, StateBlock, StateFile, StopMode,
    SubtaskSnapshot,
};
use weir_types::{Error, Result};

use super::{all, required};
use crate::pb::control::v1 as pb;

impl From<&SubtaskId> for pb::SubtaskId {
    fn from(id: &SubtaskId) -> Self {
        let SubtaskId { job, chain, index, attempt } = id;
        Self { job: job.to_string(), chain: chain.0, index: index.0, attempt: attempt.0 }
    }
}

impl TryFrom<pb::SubtaskId> for SubtaskId {
    type Error = Error;

    fn try_from(id: pb::SubtaskId) -> Result<Self> {
        let pb::SubtaskId { job, chain, index, attempt } = id;
        Ok(Self { job: JobId::new(job)?, chain: ChainId(chain), index: SubtaskIndex(index), attempt: Attempt(attempt) })
    }
}

impl From<&SubtaskStatus> for pb::SubtaskStatus {
    fn from(status: &SubtaskStatus) -> Self {
        use pb::subtask_status::State;
        let SubtaskStatus { subtask, state } = status;
        let (state, error) = match state {
            SubtaskState::Starting => (State::Starting, None),
            SubtaskState::Running => (State::Running, None),
            SubtaskState::Drained => (State::Drained, None),
            SubtaskState::Finished => (State::Finished, None),
            SubtaskState::Failed(error) => (State::Failed, Some(error.into())),
            SubtaskState::Cancelled => (State::Cancelled, None),
        };
        Self { subtask: Some(subtask.into()), state: state.into(), error }
    }
}

impl TryFrom<pb::SubtaskStatus> for SubtaskStatus {
    type Error = Error;

    fn try_from(status: pb::SubtaskStatus) -> Result<Self> {
        use pb::subtask_status::State;
        let wire_state = status.state();
        let pb::SubtaskStatus { subtask, state: _, error } = status;
        let state = match wire_state {
            State::Starting => SubtaskState::Starting,
            State::Running => SubtaskState::Running,
            State::Drained => SubtaskState::Drained,
            State::Finished => SubtaskState::Finished,
            State::Failed => SubtaskState::Failed(required("error of a failed subtask", error)?.into()),
            State::Cancelled => SubtaskState::Cancelled,
            State::Unspecified => return Err(Error::invalid("subtask status without a state")),
        };
        Ok(Self { subtask: required("subtask", subtask)?.try_into()?, state })
    }
}

impl From<&SubtaskProgress> for pb::SubtaskProgress {
    fn from(progress: &SubtaskProgress) -> Self {
        let SubtaskProgress { subtask, rows_in, rows_out, late_rows, watermark_ms, state_bytes } = progress;
        Self {
            subtask: Some(subtask.into()),
            rows_in: *rows_in,
            rows_out: *rows_out,
            late_rows: *late_rows,
            watermark_ms: *watermark_ms,
            state_bytes: *state_bytes,
        }
    }
}

impl TryFrom<pb::SubtaskProgress> for SubtaskProgress {
    type Error = Error;

    fn try_from(progress: pb::SubtaskProgress) -> Result<Self> {
        let pb::SubtaskProgress { subtask, rows_in, rows_out, late_rows, watermark_ms, state_bytes } = progress;
        let subtask = required("subtask", subtask)?.try_into()?;
        Ok(Self { subtask, rows_in, rows_out, late_rows, watermark_ms, state_bytes })
    }
}

impl From<&Registration> for pb::Register {
    fn from(registration: &Registration) -> Self {
        let Registration { cluster, task_manager, data_address, http_address, slots, process_id, running } =
            registration;
        Self {
            cluster_id: cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            task_manager_id: task_manager.to_string(),
            data_address: data_address.clone(),
            http_address: http_address.clone(),
            slots: *slots,
            process_id: *process_id,
            running: running.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Register> for Registration {
    type Error = Error;

    fn try_from(register: pb::Register) -> Result<Self> {
        let pb::Register { cluster_id, task_manager_id, data_address, http_address, slots, process_id, running } =
            register;
        Ok(Self {
            cluster: if cluster_id.is_empty() { None } else { Some(ClusterId::new(cluster_id)?) },
            task_manager: TaskManagerId::new(task_manager_id)?,
            data_address,
            http_address,
            slots,
            process_id,
            running: all(running)?,
        })
    }
}

impl From<&Registered> for pb::Registered {
    fn from(registered: &Registered) -> Self {
        let Registered { cluster, term, heartbeat_interval_ms, heartbeat_timeout_ms } = registered;
        Self {
            cluster_id: cluster.to_string(),
            term: term.0,
            heartbeat_interval_ms: *heartbeat_interval_ms,
            heartbeat_timeout_ms: *heartbeat_timeout_ms,
        }
    }
}

impl TryFrom<pb::Registered> for Registered {
    type Error = Error;

    fn try_from(registered: pb::Registered) -> Result<Self> {
        let pb::Registered { cluster_id, term, heartbeat_interval_ms, heartbeat_timeout_ms } = registered;
        Ok(Self { cluster: ClusterId::new(cluster_id)?, term: Term(term), heartbeat_interval_ms, heartbeat_timeout_ms })
    }
}

impl From<&SplitPosition> for pb::SplitPosition {
    fn from(position: &SplitPosition) -> Self {
        let SplitPosition { split, offset, watermark_ms, finished, end } = position;
        Self { split: split.clone(), offset: *offset, watermark_ms: *watermark_ms, finished: *finished, end: *end }
    }
}

impl From<pb::SplitPosition> for SplitPosition {
    fn from(position: pb::SplitPosition) -> Self {
        let pb::SplitPosition { split, offset, watermark_ms, finished, end } = position;
        Self { split, offset, watermark_ms, finished, end }
    }
}

impl From<&StateBlock> for pb::StateBlock {
    fn from(block: &StateBlock) -> Self {
        let StateBlock { offset, bytes, rows, hashes, crc32c } = block;
        Self {
            offset: *offset,
            bytes: *bytes,
            rows: *rows,
            first_hash: hashes.start(),
            last_hash: hashes.end(),
            crc32c: *crc32c,
        }
    }
}

impl TryFrom<pb::StateBlock> for StateBlock {
    type Error = Error;

    fn try_from(block: pb::StateBlock) -> Result<Self> {
        let pb::StateBlock { offset, bytes, rows, first_hash, last_hash, crc32c } = block;
        Ok(Self { offset, bytes, rows, hashes: KeyRange::new(first_hash, last_hash)?, crc32c })
    }
}

impl From<&StateFile> for pb::StateFile {
    fn from(file: &StateFile) -> Self {
        let StateFile { path, table, bytes, rows, crc32c, deletes, segments, live_from, blocks } = file;
        Self {
            path: path.clone(),
            table: table.clone(),
            bytes: *bytes,
            rows: *rows,
            crc32c: *crc32c,
            deletes: *deletes,
            segments: segments.map(|Segments { first, last }| pb::Segments { first, last }),
            live_from: *live_from,
            blocks: blocks.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::StateFile> for StateFile {
    type Error = Error;

    fn try_from(file: pb::StateFile) -> Result<Self> {
        let pb::StateFile { path, table, bytes, rows, crc32c, blocks, deletes, segments, live_from } = file;
        let segments = segments.map(|pb::Segments { first, last }| Segments { first, last });
        Ok(Self { path, table, bytes, rows, crc32c, deletes, segments, live_from, blocks: all(blocks)? })
    }
}

impl From<&OperatorSnapshot> for pb::OperatorSnapshot {
    fn from(snapshot: &OperatorSnapshot) -> Self {
        let OperatorSnapshot { uid, watermark_ms, files, splits, prepared } = snapshot;
        Self {
            uid: uid.clone(),
            watermark_ms: *watermark_ms,
            files: files.iter().map(Into::into).collect(),
            splits: splits.iter().map(Into::into).collect(),
            prepared: prepared.clone().map(Into::into),
        }
    }
}

impl TryFrom<pb::OperatorSnapshot> for OperatorSnapshot {
    type Error = Error;

    fn try_from(snapshot: pb::OperatorSnapshot) -> Result<Self> {
        let pb::OperatorSnapshot { uid, watermark_ms, files, splits, prepared } = snapshot;
        Ok(Self {
            uid,
            watermark_ms,
            files: all(files)?,
            splits: splits.into_iter().map(Into::into).collect(),
            prepared: prepared.map(Into::into),
        })
    }
}

impl From<&CancelAttempt> for pb::CancelAttempt {
    fn from(cancel: &CancelAttempt) -> Self {
        let CancelAttempt { term, job, attempt } = cancel;
        Self { term: term.0, job: job.to_string(), attempt: attempt.0 }
    }
}

impl TryFrom<pb::CancelAttempt> for CancelAttempt {
    type Error = Error;

    fn try_from(cancel: pb::CancelAttempt) -> Result<Self> {
        let pb::CancelAttempt { term, job, attempt } = cancel;
        Ok(Self { term: Term(term), job: JobId::new(job)?, attempt: Attempt(attempt) })
    }
}

impl From<&FinishAttempt> for pb::FinishAttempt {
    fn from(finish: &FinishAttempt) -> Self {
        let FinishAttempt { term, job, attempt } = finish;
        Self { term: term.0, job: job.to_string(), attempt: attempt.0 }
    }
}

impl TryFrom<pb::FinishAttempt> for FinishAttempt {
    type Error = Error;

    fn try_from(finish: pb::FinishAttempt) -> Result<Self> {
        let pb::FinishAttempt { term, job, attempt } = finish;
        Ok(Self { term: Term(term), job: JobId::new(job)?, attempt: Attempt(attempt) })
    }
}

impl From<&Barrier> for pb::Barrier {
    fn from(barrier: &Barrier) -> Self {
        use pb::barrier::Stop;
        let Barrier { id, snapshot, kind, triggered_at_ms, stop, directory, base } = barrier;
        let stop = match stop {
            StopMode::Continue => Stop::Continue,
            StopMode::Suspend => Stop::Suspend,
            StopMode::Drain => Stop::Drain,
        };
        Self {
            id: id.0,
            snapshot: snapshot.to_string(),
            savepoint: *kind == SnapshotKind::Savepoint,
            triggered_at_ms: *triggered_at_ms,
            stop: stop.into(),
            directory: directory.clone(),
            base: base.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::Barrier> for Barrier {
    type Error = Error;

    fn try_from(barrier: pb::Barrier) -> Result<Self> {
        use pb::barrier::Stop;
        let pb::Barrier { id, snapshot, savepoint, triggered_at_ms, stop, directory, base } = barrier;
        let stop = match Stop::try_from(stop) {
            Ok(Stop::Continue) => StopMode::Continue,
            Ok(Stop::Suspend) => StopMode::Suspend,
            Ok(Stop::Drain) => StopMode::Drain,
            Err(_) => return Err(Error::invalid(format!("barrier {id} has the unknown stop mode {stop}"))),
        };
        Ok(Self {
            id: BarrierId(id),
            snapshot: SnapshotId::new(snapshot)?,
            kind: if savepoint { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint },
            triggered_at_ms,
            stop,
            directory,
            base: if base.is_empty() { None } else { Some(SnapshotId::new(base)?) },
        })
    }
}

impl From<&TriggerBarrier> for pb::TriggerBarrier {
    fn from(trigger: &TriggerBarrier) -> Self {
        let TriggerBarrier { term, job, attempt, barrier } = trigger;
        Self { term: term.0, job: job.to_string(), attempt: attempt.0, barrier: Some(barrier.into()) }
    }
}

impl TryFrom<pb::TriggerBarrier> for TriggerBarrier {
    type Error = Error;

    fn try_from(trigger: pb::TriggerBarrier) -> Result<Self> {
        let pb::TriggerBarrier { term, job, attempt, barrier } = trigger;
        Ok(Self {
            term: Term(term),
            job: JobId::new(job)?,
            attempt: Attempt(attempt),
            barrier: required("barrier", barrier)?.try_into()?,
        })
    }
}

impl From<&SnapshotOutcome> for pb::SnapshotOutcome {
    fn from(outcome: &SnapshotOutcome) -> Self {
        let SnapshotOutcome { term, job, attempt, barrier, snapshot, failure } = outcome;
        Self {
            term: term.0,
            job: job.to_string(),
            attempt: attempt.0,
            barrier: barrier.0,
            snapshot: snapshot.to_string(),
            failure: failure.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<pb::SnapshotOutcome> for SnapshotOutcome {
    type Error = Error;

    fn try_from(outcome: pb::SnapshotOutcome) -> Result<Self> {
        let pb::SnapshotOutcome { term, job, attempt, barrier, snapshot, failure } = outcome;
        Ok(Self {
            term: Term(term),
            job: JobId::new(job)?,
            attempt: Attempt(attempt),
            barrier: BarrierId(barrier),
            snapshot: SnapshotId::new(snapshot)?,
            failure: failure.map(Into::into),
        })
    }
}

impl From<&SnapshotDeclined> for pb::SnapshotDeclined {
    fn from(declined: &SnapshotDeclined) -> Self {
        let SnapshotDeclined { subtask, barrier, snapshot, error } = declined;
        Self {
            subtask: Some(subtask.into()),
            barrier: barrier.0,
            snapshot: snapshot.to_string(),
            error: Some(error.into()),
        }
    }
}

impl TryFrom<pb::SnapshotDeclined> for SnapshotDeclined {
    type Error = Error;

    fn try_from(declined: pb::SnapshotDeclined) -> Result<Self> {
        let pb::SnapshotDeclined { subtask, barrier, snapshot, error } = declined;
        Ok(Self {
            subtask: required("subtask", subtask)?.try_into()?,
            barrier: BarrierId(barrier),
            snapshot: SnapshotId::new(snapshot)?,
            error: required("error", error)?.into(),
        })
    }
}

impl From<&SnapshotTimings> for pb::SnapshotTimings {
    fn from(timings: &SnapshotTimings) -> Self {
        let SnapshotTimings { start_delay_us, alignment_us, sync_us, async_us } = *timings;
        Self { start_delay_us, alignment_us, sync_us, async_us }
    }
}

impl From<pb::SnapshotTimings> for SnapshotTimings {
    fn from(timings: pb::SnapshotTimings) -> Self {
        let pb::SnapshotTimings { start_delay_us, alignment_us, sync_us, async_us } = timings;
        Self { start_delay_us, alignment_us, sync_us, async_us }
    }
}

impl From<&SubtaskSnapshot> for pb::SubtaskSnapshot {
    fn from(snapshot: &SubtaskSnapshot) -> Self {
        let SubtaskSnapshot { subtask, barrier, snapshot, operators, timings } = snapshot;
        Self {
            subtask: Some(subtask.into()),
            barrier: barrier.0,
            snapshot: snapshot.to_string(),
            operators: operators.iter().map(Into::into).collect(),
            timings: Some(timings.into()),
        }
    }
}

impl TryFrom<pb::SubtaskSnapshot> for SubtaskSnapshot {
    type Error = Error;

    fn try_from(snapshot: pb::SubtaskSnapshot) -> Result<Self> {
        let pb::SubtaskSnapshot { subtask, barrier, snapshot, operators, timings } = snapshot;
        Ok(Self {
            subtask: required("subtask", subtask)?.try_into()?,
            barrier: BarrierId(barrier),
            snapshot: SnapshotId::new(snapshot)?,
            operators: all(operators)?,
            timings: timings.map(Into::into).unwrap_or_default(),
        })
    }
}

impl From<&FromTaskManager> for pb::TaskManagerMessage {
    fn from(message: &FromTaskManager) -> Self {
        use pb::task_manager_message::Message;
        let message = match message {
            FromTaskManager::Register(registration) => Message::Register(registration.into()),
            FromTaskManager::Heartbeat(progress) => {
                Message::Heartbeat(pb::Heartbeat { term: 0, progress: progress.iter().map(Into::into).collect() })
            }
            FromTaskManager::Status(status) => Message::Status(status.into()),
            FromTaskManager::SnapshotAcked(snapshot) => Message::SnapshotAck(snapshot.into()),
            FromTaskManager::SnapshotDeclined(declined) => Message::SnapshotDeclined(declined.into()),
            FromTaskManager::GrantWanted(request) => Message::GrantWanted(request.into()),
            FromTaskManager::WritersStopped(stopped) => Message::WritersStopped(stopped.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::TaskManagerMessage> for FromTaskManager {
    type Error = Error;

    fn try_from(message: pb::TaskManagerMessage) -> Result<Self> {
        use pb::task_manager_message::Message;
        Ok(match required("message", message.message)? {
            Message::Register(register) => Self::Register(register.try_into()?),
            Message::Heartbeat(pb::Heartbeat { term: _, progress }) => Self::Heartbeat(all(progress)?),
            Message::Status(status) => Self::Status(status.try_into()?),
            Message::SnapshotAck(snapshot) => Self::SnapshotAcked(snapshot.try_into()?),
            Message::SnapshotDeclined(declined) => Self::SnapshotDeclined(declined.try_into()?),
            Message::GrantWanted(request) => Self::GrantWanted(request.try_into()?),
            Message::WritersStopped(stopped) => Self::WritersStopped(stopped.try_into()?),
        })
    }
}

#[cfg(test)]
mod tests;
