//! The catalogue's part of the state: reservations, completion, abortion, retirement, deletion.

use weir_types::ids::{JobId, Nonce, SnapshotId};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error};

use super::command::{Applied, Completion, Reply, Reserve};
use super::{SnapshotEntry, State};
use crate::checkpoint::Trigger;

/// Failed attempts that are remembered per job; repeated ones count as one.
const FAILED_PER_JOB_MAX: usize = 20;

impl State {
    pub(super) fn reserve(&mut self, now: Millis, reserve: Reserve) -> Reply {
        let refusal = self.admit(&reserve).err();
        if self.snapshots.contains_key(&reserve.snapshot) {
            return Err(Error::new(Code::AlreadyExists, format!("snapshot {} exists already", reserve.snapshot)));
        }
        let Some(job) = self.jobs.get_mut(&reserve.job) else {
            return Err(Error::not_found(format!("job {} does not exist", reserve.job)));
        };
        if job.state.is_terminal() || job.attempt != reserve.attempt {
            return Err(Error::fenced(format!("attempt {} of job {} is over", reserve.attempt, job.id)));
        }
        job.last_barrier = job.last_barrier.max(reserve.barrier);
        let entry = SnapshotEntry {
            id: reserve.snapshot.clone(),
            kind: reserve.kind,
            job: job.id.clone(),
            job_name: job.name.clone(),
            owner: if reserve.owner.is_empty() { job.owner.clone() } else { reserve.owner },
            namespace: job.namespace.clone(),
            name: reserve.name,
            state: SnapshotState::InProgress,
            trigger: reserve.trigger,
            barrier: reserve.barrier,
            attempt: reserve.attempt,
            nonce: reserve.nonce,
            directory: reserve.directory,
            triggered_at: now,
            deadline: reserve.deadline,
            ended_at: None,
            bytes: 0,
            rows: 0,
            parallelism: job.graph.options.parallelism,
            failure: None,
            restored_from: job.restore.as_ref().map(|restore| match &restore.snapshot {
                Some(id) => id.to_string(),
                None => restore.directory.clone(),
            }),
            shares: Vec::new(),
            sources: Vec::new(),
            subtasks: reserve.subtasks,
            failures: 0,
            first_failed_at: None,
        };
        let id = entry.id.clone();
        self.snapshots.insert(id.clone(), entry);
        match refusal {
            None => Ok(Applied { snapshot: Some(id), ..Applied::default() }),
            Some(error) => {
                self.fail(now, &id, error.clone());
                Err(error)
            }
        }
    }

    pub(super) fn complete(&mut self, now: Millis, completion: Completion) -> Reply {
        let Completion { snapshot, nonce, contents } = completion;
        let entry = self.reservation(&snapshot, &nonce)?;
        match entry.state {
            SnapshotState::InProgress => {}
            // A repeated proposal.
            SnapshotState::Completed | SnapshotState::Deleting => {
                return Ok(Applied { snapshot: Some(snapshot), ..Applied::default() });
            }
            SnapshotState::Failed => return Err(Error::fenced(format!("snapshot {snapshot} was aborted"))),
        }
        entry.state = SnapshotState::Completed;
        entry.ended_at = Some(now);
        entry.bytes = contents.bytes;
        entry.rows = contents.rows;
        entry.shares = contents.shares;
        entry.sources = contents.sources;
        let (job, stops) = (entry.job.clone(), matches!(entry.trigger, Trigger::Stop(_)));
        let mut retained = 0;
        if let Some(record) = self.jobs.get_mut(&job) {
            if stops {
                record.stopped_by = Some(snapshot.clone());
            }
            if !record.state.is_terminal() {
                retained = record.graph.options.checkpoints_retained.max(1) as usize;
            }
        }
        let retired = self.retire(&job, retained);
        Ok(Applied { job: Some(job), snapshot: Some(snapshot), retired })
    }

    pub(super) fn abort(&mut self, now: Millis, snapshot: &SnapshotId, nonce: &Nonce, failure: Error) -> Reply {
        let entry = self.reservation(snapshot, nonce)?;
        match entry.state {
            SnapshotState::InProgress => self.fail(now, snapshot, failure),
            SnapshotState::Failed => {}
            SnapshotState::Completed | SnapshotState::Deleting => {
                return Err(Error::new(Code::FailedPrecondition, format!("snapshot {snapshot} is complete")));
            }
        }
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    pub(super) fn mark_deleted(&mut self, snapshot: &SnapshotId) -> Reply {
        let refused = |what: String| Error::new(Code::FailedPrecondition, what);
        let holders = self.holders(snapshot);
        let entry = self
            .snapshots
            .get_mut(snapshot)
            .ok_or_else(|| Error::not_found(format!("snapshot {snapshot} is not in the catalogue")))?;
        match (entry.state, entry.kind) {
            (SnapshotState::Deleting, _) => {}
            (SnapshotState::InProgress, _) => return Err(refused(format!("snapshot {snapshot} is still under way"))),
            (SnapshotState::Completed, SnapshotKind::Checkpoint)
                if self.jobs.get(&entry.job).is_some_and(|job| !job.state.is_terminal()) =>
            {
                return Err(refused(format!("{snapshot} is a checkpoint: its job retires it"))
                    .with_hint("Set execution.checkpointing.num-retained for how many are kept."));
            }
            (SnapshotState::Completed, _) if !holders.is_empty() => {
                return Err(refused(format!("snapshot {snapshot} is still needed"))
                    .with_detail(holders.join("; "))
                    .with_hint("Take another snapshot of that job, or end it, and try again."));
            }
            (SnapshotState::Completed | SnapshotState::Failed, _) => entry.state = SnapshotState::Deleting,
        }
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// Marks the checkpoints of a job that are superseded: all but the newest `retained`, and but what somebody needs.
    pub(super) fn retire(&mut self, job: &JobId, retained: usize) -> Vec<SnapshotId> {
        let superseded: Vec<SnapshotId> = self
            .snapshots_of(job)
            .into_iter()
            .rev()
            .filter(|entry| entry.kind == SnapshotKind::Checkpoint && entry.state == SnapshotState::Completed)
            .skip(retained)
            .map(|entry| entry.id.clone())
            .filter(|id| self.holders(id).is_empty())
            .collect();
        for id in &superseded {
            if let Some(entry) = self.snapshots.get_mut(id) {
                entry.state = SnapshotState::Deleting;
            }
        }
        superseded
    }

    /// The checkpoints that the completion of one more will retire.
    pub fn superseded_by_next(&self, job: &JobId) -> Vec<SnapshotId> {
        let retained = self.jobs.get(job).map_or(1, |job| job.graph.options.checkpoints_retained.max(1)) as usize;
        let completed = self.snapshots_of(job).into_iter().rev();
        completed
            .filter(|entry| entry.kind == SnapshotKind::Checkpoint && entry.state == SnapshotState::Completed)
            .skip(retained - 1)
            .map(|entry| entry.id.clone())
            .collect()
    }

    /// The entry of a reservation, by its nonce.
    fn reservation(&mut self, snapshot: &SnapshotId, nonce: &Nonce) -> Result<&mut SnapshotEntry, Error> {
        let entry = self
            .snapshots
            .get_mut(snapshot)
            .ok_or_else(|| Error::not_found(format!("snapshot {snapshot} is not in the catalogue")))?;
        if entry.nonce != *nonce {
            return Err(Error::fenced(format!("snapshot {snapshot} was reserved by somebody else")));
        }
        Ok(entry)
    }

    /// Ends an entry as failed. A periodic checkpoint that fails like the one before it replaces that one.
    fn fail(&mut self, now: Millis, snapshot: &SnapshotId, failure: Error) {
        let Some(entry) = self.snapshots.get_mut(snapshot) else { return };
        entry.state = SnapshotState::Failed;
        entry.ended_at = Some(now);
        entry.failures = 1;
        entry.first_failed_at = Some(entry.triggered_at);
        let (job, code, periodic) = (entry.job.clone(), failure.code, entry.trigger == Trigger::Periodic);
        entry.failure = Some(failure);
        let entries = self.snapshots_of(&job);
        let before = entries.iter().rev().skip_while(|entry| entry.id != *snapshot).nth(1);
        let same = before.filter(|before| {
            periodic
                && before.trigger == Trigger::Periodic
                && before.state == SnapshotState::Failed
                && before.failure.as_ref().is_some_and(|failure| failure.code == code)
        });
        let same = same.map(|before| (before.id.clone(), before.failures, before.first_failed_at));
        let failed: Vec<_> = entries.iter().filter(|entry| entry.state == SnapshotState::Failed).collect();
        let oldest =
            (failed.len() > FAILED_PER_JOB_MAX).then(|| failed.first().map(|entry| entry.id.clone())).flatten();
        if let Some((before, failures, first)) = same {
            self.snapshots.remove(&before);
            if let Some(entry) = self.snapshots.get_mut(snapshot) {
                entry.failures += failures;
                entry.first_failed_at = first.or(entry.first_failed_at);
            }
        } else if let Some(oldest) = oldest {
            self.snapshots.remove(&oldest);
        }
    }
}
