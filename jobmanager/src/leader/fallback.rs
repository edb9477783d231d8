//! Falling back: what a job goes on from when its newest snapshot proves damaged, or its sources no longer hold what the
//! snapshot goes on from.
//!
//! Invariants: a snapshot is entered as damaged only if this process has seen the damage itself, so that one TaskManager
//! that does not reach the storage condemns nothing; and the next attempt is not prepared before that is committed.

use weir_coordination::metadata::{Command, PassedOver, Recovery, RecoveryPoint, Reply};
use weir_coordination::scheduler;
use weir_types::control::SubtaskStatus;
use weir_types::deployment::SubtaskState;
use weir_types::error::Facts;
use weir_types::ids::{Attempt, JobId, SnapshotId};
use weir_types::snapshot::Verifier;
use weir_types::{Error, Result};

use super::{Leader, Then};
use crate::event::{Event, Unprepared};
use crate::storage;

/// Attempts in a row that may fail to read state which this process reads without finding damage. After that the job fails:
/// nothing that it does by itself would change anything.
const UNCONFIRMED_MAX: u32 = 3;

/// What the newest attempt of a job starts from, and what is thought of it.
#[derive(Debug, Default)]
pub(super) struct Start {
    /// The snapshot; none: it starts without state, or waits to be prepared.
    pub(super) point: Option<RecoveryPoint>,
    /// Which snapshot is being looked at, or is being entered as damaged or cut off. The next attempt waits for that.
    pub(super) suspected: Option<SnapshotId>,
    /// Attempts in a row that could not read what is whole as seen from here.
    pub(super) unconfirmed: u32,
}

impl Leader {
    /// What the next attempt of a job starts from.
    ///
    /// # Errors
    /// `UNRESTORABLE` if nothing is left that it could start from.
    pub(super) fn next_start(&self, job: &JobId) -> Result<Option<RecoveryPoint>> {
        self.state(|state| match state.jobs.get(job).map(|record| state.recovery(record)) {
            None | Some(Recovery::Nothing) => Ok(None),
            Some(Recovery::From(point)) => Ok(Some(point)),
            Some(Recovery::Lost(error)) => Err(error),
        })
    }

    /// Says what an attempt starts from, and what it does not start from.
    pub(super) fn note_start(&self, job: &JobId, attempt: Attempt, point: Option<&RecoveryPoint>) {
        let Some(RecoveryPoint { directory, snapshot, passed_over, .. }) = point else {
            return tracing::info!(%job, %attempt, "attempt starts without state");
        };
        match snapshot {
            Some(snapshot) => {
                tracing::info!(%job, %attempt, %snapshot, directory, "attempt starts from a snapshot");
            }
            None => tracing::info!(%job, %attempt, directory, "attempt starts from a directory"),
        }
        for PassedOver { snapshot: passed, reason } in passed_over {
            let to = snapshot.as_ref().map_or(directory.as_str(), SnapshotId::as_str);
            tracing::warn!(%job, %attempt, snapshot = passed, reason, to, "passed over: the job falls back");
            if let Some(snapshot) = snapshot {
                tracing::warn!(%job, %attempt, %snapshot, instead_of = passed, reason, "the job falls back to it");
            }
        }
        if !passed_over.is_empty() {
            metrics::counter!("weir_job_fallbacks_total").increment(1);
        }
    }

    /// An attempt could not be prepared.
    pub(super) fn on_unprepared(&mut self, job: JobId, attempt: Attempt, unprepared: Unprepared) {
        let point = self.jobs.get(&job).and_then(|live| live.start.point.clone());
        let (command, error) = match (unprepared, point) {
            (Unprepared::Failed(error), _) => return self.schedule(scheduler::Event::Broken(job, attempt, error)),
            (Unprepared::Damaged(error) | Unprepared::CutOff(error), None) => {
                return self.schedule(scheduler::Event::Broken(job, attempt, error));
            }
            (Unprepared::Damaged(error), Some(point)) => {
                let Some(snapshot) = point.snapshot.clone() else {
                    let lost = point.lost(&job, error);
                    return self.schedule(scheduler::Event::Broken(job, attempt, lost));
                };
                (damaged(snapshot, error.clone()), error)
            }
            (Unprepared::CutOff(error), Some(point)) => {
                let Some(snapshot) = point.snapshot.clone() else {
                    let lost = point.lost(&job, error);
                    return self.schedule(scheduler::Event::Broken(job, attempt, lost));
                };
                let reason = error.detail.as_ref().map_or_else(|| error.message.clone(), Clone::clone);
                (Command::CutOff { snapshot, reason }, error)
            }
        };
        self.condemn(&job, command);
        self.schedule(scheduler::Event::Broken(job, attempt, unreadable(error)));
    }

    /// A subtask has failed. If it could not read its state, the snapshot is looked at, and the next attempt waits for that;
    /// if there is nothing to look at, the failure is one like any other.
    pub(super) fn suspect(&mut self, status: &mut SubtaskStatus) {
        let SubtaskState::Failed(error) = &mut status.state else { return };
        let Some(Facts::StateUnreadable { directory, operator }) = error.facts.as_deref() else { return };
        let (job, attempt) = (&status.subtask.job, status.subtask.attempt);
        let is_newest = self.scheduler.attempt(job) == Some(attempt);
        let Some(live) = self.jobs.get_mut(job).filter(|_| is_newest) else { return };
        let Some(point) = live.start.point.clone().filter(|point| point.directory == *directory) else { return };
        let Some(snapshot) = point.snapshot.clone() else {
            // Nobody keeps a record of that directory.
            *error = point.lost(job, error.clone());
            return;
        };
        if live.start.unconfirmed >= UNCONFIRMED_MAX {
            error.facts = None;
            return;
        }
        if live.start.suspected.is_some() {
            return;
        }
        let Some(entry) = self.entry(&snapshot) else { return };
        if let Some(live) = self.jobs.get_mut(job) {
            live.start.suspected = Some(snapshot.clone());
        }
        tracing::warn!(%job, %attempt, %snapshot, code = %error.code, %error, "could not be read; looking at it");
        let (job, operator) = (job.clone(), operator.clone());
        self.work(async move {
            let found = storage::look_for_damage(entry, operator).await;
            Event::Suspected { job, snapshot, found }
        });
    }

    /// A snapshot that a TaskManager could not read was looked at.
    pub(super) fn on_suspected(&mut self, job: &JobId, snapshot: SnapshotId, found: Result<Option<Error>>) {
        match found {
            Ok(Some(error)) => return self.condemn(job, damaged(snapshot, error)),
            Ok(None) => {
                tracing::warn!(%job, %snapshot, "what a TaskManager could not read is whole as seen from here");
                if let Some(live) = self.jobs.get_mut(job) {
                    live.start.unconfirmed += 1;
                }
            }
            Err(error) => tracing::warn!(%job, %snapshot, code = %error.code, %error, "could not be looked at"),
        }
        self.absolve(job);
    }

    /// Somebody has forced a truncation past what a snapshot goes on from.
    pub(super) fn on_cut_off(&mut self, job: &JobId, snapshot: SnapshotId, reason: String) {
        // It may have been told more than once.
        if self.entry(&snapshot).is_some_and(|entry| entry.unrestorable.is_none()) {
            self.condemn(job, Command::CutOff { snapshot, reason });
        }
    }

    fn condemn(&mut self, job: &JobId, command: Command) {
        let snapshot = match &command {
            Command::Verified { snapshot, damage, .. } => {
                let error = damage.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::error!(%job, %snapshot, step = "damaged", error, "damaged: it will not be restored");
                snapshot.clone()
            }
            Command::CutOff { snapshot, reason } => {
                tracing::error!(%job, %snapshot, step = "cut off", reason, "cut off: it will not be restored");
                snapshot.clone()
            }
            _ => return,
        };
        if let Some(live) = self.jobs.get_mut(job) {
            live.start.suspected = Some(snapshot);
        }
        metrics::counter!("weir_snapshots_condemned_total").increment(1);
        self.commit(command, Then::Condemned(job.clone()));
    }

    pub(super) fn on_condemned(&mut self, job: &JobId, reply: Reply) {
        if let Err(error) = reply {
            tracing::warn!(%job, code = %error.code, %error, "a change no longer applied");
        }
        self.absolve(job);
    }

    /// Lets the next attempt begin.
    fn absolve(&mut self, job: &JobId) {
        if let Some(live) = self.jobs.get_mut(job) {
            live.start.suspected = None;
        }
        self.touch(job);
        self.start_pending(job);
    }
}

fn damaged(snapshot: SnapshotId, error: Error) -> Command {
    Command::Verified { snapshot, by: Verifier::Restore, findings: 1, damage: Some(error) }
}

/// Another attempt may start from something else.
fn unreadable(error: Error) -> Error {
    error.with_facts(Facts::StateUnreadable { directory: String::new(), operator: None })
}
