//! The catalogue's part of the state: reservations, completion, abortion, retirement, deletion.

use weir_types::ids::{JobId, Nonce, SnapshotId};
use weir_types::output::CommitMark;
use weir_types::quota::check_owner;
use weir_types::snapshot::{SnapshotKind, SnapshotState, Verification, Verifier};
use weir_types::time::Millis;
use weir_types::{Code, Error};

use super::command::{Applied, Completion, Reply, Reserve};
use super::deletion::no_snapshot;
use super::{JobRecord, SnapshotEntry, State};
use crate::checkpoint::Trigger;

/// Failed attempts that are remembered per job, of those that somebody asked for and of the others each; repeated ones
/// count as one.
const FAILED_PER_JOB_MAX: usize = 20;

impl State {
    pub(super) fn reserve(&mut self, now: Millis, reserve: Reserve) -> Reply {
        if let Some(entry) = self.snapshots.get(&reserve.snapshot) {
            return reserved_before(entry, &reserve.nonce);
        }
        let Some(job) = self.jobs.get_mut(&reserve.job) else {
            return Err(Error::not_found(format!("job {} does not exist", reserve.job)));
        };
        if job.state.is_terminal() || job.attempt != reserve.attempt {
            return Err(Error::fenced(format!("attempt {} of job {} is over", reserve.attempt, job.id)));
        }
        let evict = reserve.evict;
        // A checkpoint is the job's, whoever asks for it.
        let asked = Some(reserve.owner).filter(|owner| !owner.is_empty() && reserve.kind == SnapshotKind::Savepoint);
        let owner = asked.unwrap_or_else(|| job.owner.clone());
        check_owner(&owner)?;
        job.last_barrier = job.last_barrier.max(reserve.barrier);
        if reserve.trigger == Trigger::Scheduled {
            self.retention.scheduled.insert(reserve.job.clone(), now);
        }
        let entry = SnapshotEntry {
            id: reserve.snapshot.clone(),
            kind: reserve.kind,
            job: job.id.clone(),
            job_name: job.name.clone(),
            owner,
            namespace: job.namespace.clone(),
            annotations: reserve.annotations,
            state: SnapshotState::Queued,
            trigger: reserve.trigger,
            barrier: reserve.barrier,
            attempt: reserve.attempt,
            nonce: reserve.nonce,
            directory: reserve.directory,
            triggered_at: now,
            started_at: None,
            deadline: reserve.deadline,
            ended_at: None,
            charged_bytes: 0,
            estimate_bytes: reserve.estimate_bytes,
            bytes: 0,
            written_bytes: 0,
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
            plan_hash: reserve.plan_hash,
            verified: None,
            unrestorable: None,
            deletion: None,
            claim: None,
            origin: None,
            failures: 0,
            first_failed_at: None,
        };
        let id = entry.id.clone();
        let room =
            if evict { self.make_room(now, &entry) } else { self.check_limits(now, &entry, &[]).map(|()| Vec::new()) };
        let queued = self.full_level(&entry).is_some();
        self.snapshots.insert(entry);
        match room {
            Ok(evicted) => {
                if !queued {
                    self.begin(now, &id);
                }
                Ok(Applied { snapshot: Some(id), queued, retired: evicted, ..Applied::default() })
            }
            Err(error) => {
                self.fail(now, &id, error.clone());
                Err(error)
            }
        }
    }

    pub(super) fn complete(&mut self, now: Millis, completion: Completion) -> Reply {
        let Completion { snapshot, nonce, contents } = completion;
        let entry = self.reservation(&snapshot, &nonce)?;
        let (job, stops) = (entry.job.clone(), matches!(entry.trigger, Trigger::Stop(_)));
        match entry.state {
            SnapshotState::InProgress => {}
            SnapshotState::Queued => return Err(Error::fenced(format!("snapshot {snapshot} was never admitted"))),
            // A repeated proposal.
            SnapshotState::Completed | SnapshotState::Deleting => {
                return Ok(Applied { snapshot: Some(snapshot), ..Applied::default() });
            }
            SnapshotState::Failed => return Err(Error::fenced(format!("snapshot {snapshot} was aborted"))),
        }
        let mark = CommitMark { attempt: entry.attempt, barrier: entry.barrier };
        if contents.has_output {
            self.check_output(entry)?;
        }
        self.shared.check(&job, &snapshot, &contents.shared)?;
        self.shared.refer(&job, &snapshot, &contents.shared);
        if let Some(mut entry) = self.snapshots.get_mut(&snapshot) {
            entry.state = SnapshotState::Completed;
            entry.ended_at = Some(now);
            entry.bytes = contents.total_bytes();
            entry.written_bytes = contents.written_bytes(&snapshot);
            entry.charged_bytes = contents.own_bytes();
            entry.rows = contents.rows;
            entry.shares = contents.shares;
            entry.sources = contents.sources;
            // Every byte of it was read before it was copied.
            entry.verified = entry.origin.is_some().then_some(Verification {
                at: now,
                by: Verifier::Request,
                findings: 0,
                damage: None,
            });
        }
        if contents.has_output {
            self.commit_output(&job, mark);
        }
        let mut retained = 0;
        if let Some(record) = self.jobs.get_mut(&job) {
            if stops {
                record.stopped_by = Some(snapshot.clone());
            }
            record.took_snapshot = true;
            if !record.state.is_terminal() {
                retained = record.checkpoints_retained();
            }
        }
        let mut retired = self.retire(now, &job, retained);
        retired.extend(self.let_go(now, &job));
        Ok(Applied { job: Some(job), snapshot: Some(snapshot), retired, ..Applied::default() })
    }

    pub(super) fn abort(&mut self, now: Millis, snapshot: &SnapshotId, nonce: &Nonce, failure: Error) -> Reply {
        match self.reservation(snapshot, nonce)?.state {
            SnapshotState::Queued | SnapshotState::InProgress => self.fail(now, snapshot, failure),
            SnapshotState::Failed => {}
            SnapshotState::Completed | SnapshotState::Deleting => {
                return Err(Error::new(Code::FailedPrecondition, format!("snapshot {snapshot} is complete")));
            }
        }
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// Releases what a failed snapshot is charged.
    pub(super) fn swept(&mut self, snapshot: &SnapshotId) -> Applied {
        let unswept = self.snapshots.get_mut(snapshot).filter(|entry| entry.state == SnapshotState::Failed);
        let job = unswept.map(|mut entry| {
            entry.charged_bytes = 0;
            (entry.job.clone(), entry.origin.is_some())
        });
        match job {
            Some((_, true)) => self.forget_failed_imports(),
            Some((job, false)) => self.forget_failed(&job),
            None => {}
        }
        Applied { snapshot: Some(snapshot.clone()), ..Applied::default() }
    }

    /// What the completion of one more checkpoint will retire.
    pub fn superseded_by_next(&self, job: &JobId) -> Vec<SnapshotId> {
        let retained = self.jobs.get(job).map_or(1, JobRecord::checkpoints_retained);
        self.superseded(job, retained - 1)
    }

    /// The checkpoint that the next one of a job may build on: its newest complete one, if that is of the attempt that runs,
    /// and not known to be damaged. It is there until the next one is complete.
    pub fn base_of_next(&self, job: &JobId) -> Option<SnapshotId> {
        let record = self.jobs.get(job).filter(|job| job.graph.options.checkpoints_incremental)?;
        let (_, newest) = self.snapshots.of_job(job)?.checkpoints.last()?;
        let entry = self.snapshots.get(newest)?;
        let damaged = entry.verified.as_ref().is_some_and(|verified| verified.damage.is_some());
        (entry.attempt == record.attempt && !damaged).then(|| newest.clone())
    }

    /// The entry of a reservation, by its nonce.
    pub(super) fn reservation(&self, snapshot: &SnapshotId, nonce: &Nonce) -> Result<&SnapshotEntry, Error> {
        let entry = self.snapshots.get(snapshot).ok_or_else(|| no_snapshot(snapshot))?;
        if entry.nonce != *nonce {
            return Err(Error::fenced(format!("snapshot {snapshot} was reserved by somebody else")));
        }
        Ok(entry)
    }

    /// Ends an entry as failed. What it was charged stays so until it is swept.
    pub(super) fn fail(&mut self, now: Millis, snapshot: &SnapshotId, failure: Error) {
        let Some(mut entry) = self.snapshots.get_mut(snapshot) else { return };
        entry.state = SnapshotState::Failed;
        entry.ended_at = Some(now);
        entry.failures = 1;
        entry.first_failed_at = Some(entry.triggered_at);
        entry.failure = Some(failure);
        let (job, imported) = (entry.job.clone(), entry.origin.is_some());
        drop(entry);
        if imported {
            self.forget_failed_imports();
        } else {
            self.forget_failed(&job);
        }
    }

    /// A failure that nobody asked for and that is like the one before it stands for both, and the oldest failures are
    /// forgotten, but none that was asked for because of others; and no entry goes while its files may still be there.
    fn forget_failed(&mut self, job: &JobId) {
        let entries = self.snapshots_of(job);
        let code = |entry: &SnapshotEntry| entry.failure.as_ref().map(|failure| failure.code);
        let automatic = |entry: &SnapshotEntry| entry.is_over() && entry.trigger.is_automatic();
        let alike = entries.windows(2).filter(|pair| {
            automatic(pair[0])
                && pair[1].state == SnapshotState::Failed
                && pair[0].trigger == pair[1].trigger
                && code(pair[0]) == code(pair[1])
        });
        let alike: Vec<_> = alike.map(|pair| (pair[0].id.clone(), pair[1].id.clone())).collect();
        let merged = |entry: &SnapshotEntry| alike.iter().any(|(before, _)| *before == entry.id);
        let mut forgotten = Vec::new();
        for asked in [true, false] {
            let over = entries.iter().filter(|entry| entry.is_over() && !merged(entry));
            let over: Vec<_> = over.filter(|entry| entry.trigger.is_automatic() != asked).collect();
            let excess = over.len().saturating_sub(FAILED_PER_JOB_MAX);
            forgotten.extend(over[..excess].iter().map(|entry| entry.id.clone()));
        }
        for (before, after) in alike {
            let Some(before) = self.snapshots.remove(&before) else { continue };
            if let Some(mut entry) = self.snapshots.get_mut(&after) {
                entry.failures += before.failures;
                entry.first_failed_at = before.first_failed_at.or(entry.first_failed_at);
            }
        }
        for oldest in forgotten {
            self.snapshots.remove(&oldest);
        }
    }
}

/// Answers a repeated proposal as the first one was answered.
pub(super) fn reserved_before(entry: &SnapshotEntry, nonce: &Nonce) -> Reply {
    if entry.nonce != *nonce {
        return Err(Error::new(Code::AlreadyExists, format!("snapshot {} exists already", entry.id)));
    }
    match (&entry.state, &entry.failure) {
        (SnapshotState::Failed, Some(failure)) => Err(failure.clone()),
        (state, _) => {
            let queued = *state == SnapshotState::Queued;
            Ok(Applied { snapshot: Some(entry.id.clone()), queued, ..Applied::default() })
        }
    }
}
