//! Taking over: what a new JobManager makes of a job that an earlier one has left behind.
//!
//! Subtasks run on without a JobManager. What TaskManagers say when they register is matched with the attempt and the
//! placements that were committed: an attempt of which nothing is missing is adopted, and no subtask notices. The log says
//! how far the earlier JobManager had come, and the registrations say the rest:
//!
//! | It ended | Committed | Registered | What follows |
//! | --- | --- | --- | --- |
//! | before an attempt was committed | `CREATED`, `RESTARTING` | nothing newer | an attempt, as ever |
//! | before, or while, it deployed the attempt | `STARTING` | not all of it | broken at once, restart |
//! | before all subtasks ran, or before that was committed | `STARTING` | all of it | adopted; `RUNNING` when all run |
//! | while the job ran | `RUNNING` | all of it | adopted |
//! | while the job ran | `RUNNING` | one of them failed | as if it had failed now |
//! | while a TaskManager died too | `RUNNING` | not all of it, in time | as if that were lost now |
//! | before it told drained sources to end, or some of them | `RUNNING` | all drained | adopted; all are told again |
//! | before the end was committed | `RUNNING` | all finished | `FINISHED` |
//! | before it told an attempt to stop, or some of it | `RESTARTING` | some of it | cancelled again, then an attempt |
//! | before it told a cancelled job to stop, or some of it | `CANCELLING` | some of it | cancelled again, then `CANCELLED` |
//! | before a stop's savepoint was complete | `STOPPING` | all of it | adopted; the coordinator ends the stop |
//! | after it was complete | `STOPPING` | running | adopted; sources end when they hear of it: `STOPPED` |
//! | after it was complete, the attempt broken | any other | some of it | cancelled again, then `STOPPED` |
//! | after the job had ended | ended | some of it | cancelled |
//!
//! Invariant: nothing of a later attempt is deployed before what an earlier one may have left has registered, or the time to
//! do so is over.

use std::collections::BTreeMap;

use weir_types::Error;
use weir_types::control::SubtaskStatus;
use weir_types::deployment::Placement;
use weir_types::ids::{Attempt, SubtaskId, TaskManagerId};
use weir_types::job::{JobChange, JobState};
use weir_types::time::Millis;

use super::{Cause, Execution, Progress};
use crate::checkpoint::SubtaskKey;
use crate::scheduler::{Action, Config, Recovered};

/// An attempt of an earlier JobManager that has not been taken over yet.
#[derive(Debug)]
pub(super) struct Adoption {
    /// Subtasks that have not registered, and where they are.
    missing: BTreeMap<SubtaskKey, TaskManagerId>,
    /// When what is missing is lost.
    until: Millis,
}

impl Execution {
    /// Goes on where an earlier JobManager has ended.
    pub(super) fn recover(&mut self, now: Millis, config: Config, recovered: Recovered, out: &mut Vec<Action>) {
        let Recovered { state, attempt, placements, stopped, .. } = recovered;
        let until = now.plus(config.recovery_wait_ms);
        (self.state, self.attempt, self.stopped) = (state, attempt, stopped);
        self.deployed = true;
        self.placements = placements;
        let runs = match state {
            JobState::Starting | JobState::Running => !stopped,
            JobState::Stopping => true,
            _ => false,
        };
        if runs && !self.placements.is_empty() {
            let key = |placement: &Placement| (placement.chain, placement.index);
            self.subtasks = self.placements.iter().map(|p| (key(p), Progress::Starting)).collect();
            let missing = self.placements.iter().map(|p| (key(p), p.task_manager.clone())).collect();
            self.adoption = Some(Adoption { missing, until });
            return;
        }
        let left = self.placements.iter().map(|placement| (self.subtask_of(placement), placement.task_manager.clone()));
        self.ending = left.collect();
        self.given_up_at = Some(until);
        if runs {
            self.change(JobChange::Restart, None, out);
        }
        self.ended(out);
    }

    /// A TaskManager has registered, and these are all subtasks of the job that it has. Returns the attempt that it has to
    /// stop, with any lower one.
    pub(in crate::scheduler) fn registered(
        &mut self,
        now: Millis,
        config: Config,
        id: &TaskManagerId,
        statuses: Vec<SubtaskStatus>,
        out: &mut Vec<Action>,
    ) -> Option<Attempt> {
        let lives: Vec<SubtaskId> =
            statuses.iter().filter(|status| !status.state.is_terminal()).map(|status| status.subtask.clone()).collect();
        if self.placements.is_empty() || !self.ending.is_empty() {
            // Whatever of it there is has to end before the next attempt begins.
            if !lives.is_empty() {
                let at = now.plus(config.cancel_timeout_ms);
                self.given_up_at = Some(self.given_up_at.map_or(at, |given_up_at| given_up_at.max(at)));
            }
            self.ending.extend(lives.iter().map(|subtask| (subtask.clone(), id.clone())));
            self.only_these_end_on(id, &lives, out);
            return statuses.iter().map(|status| status.subtask.attempt).max();
        }
        let (counted, stray): (Vec<_>, Vec<_>) =
            statuses.into_iter().partition(|status| self.is_placed(&status.subtask, id));
        let mut unnamed: Vec<SubtaskId> = self.placed_on(id).collect();
        unnamed.retain(|subtask| counted.iter().all(|status| status.subtask != *subtask));
        for status in counted {
            if let Some(adoption) = &mut self.adoption {
                adoption.missing.remove(&(status.subtask.chain, status.subtask.index));
            }
            self.status(now, config, status, out);
        }
        if let Some(subtask) = unnamed.first().filter(|_| self.deployed) {
            // It never came there, or went with the process that was there before: nothing is to be waited for.
            let error = Error::unavailable(format!("TaskManager {id} does not run subtask {subtask}"));
            let cause = Cause { subtask: None, task_manager: Some(id.clone()), error };
            self.broken(now, config, cause, out);
            self.only_these_end_on(id, &lives, out);
        } else if self.adoption.as_ref().is_some_and(|adoption| adoption.missing.is_empty()) {
            self.adopted(now, out);
        }
        stray.iter().map(|status| status.subtask.attempt).max()
    }

    /// Nothing of the attempt is missing: it goes on.
    fn adopted(&mut self, now: Millis, out: &mut Vec<Action>) {
        self.adoption = None;
        out.push(Action::Adopted(self.id(), self.attempt));
        if self.state != JobState::Starting {
            // For longer, but nobody knows for how long.
            self.running_since = Some(now);
        }
        // After the savepoint of a stop no more snapshots are taken.
        if matches!(self.state, JobState::Running | JobState::Stopping) && !self.stopped {
            out.push(Action::AttemptRunning(self.id(), self.attempt));
        }
        self.advanced(now, out);
    }

    /// What has not registered in time is lost.
    pub(super) fn adoption_due(&mut self, now: Millis, config: Config, out: &mut Vec<Action>) {
        let Some(Adoption { missing, .. }) = self.adoption.take_if(|adoption| adoption.until <= now) else { return };
        let mut lost: Vec<TaskManagerId> = missing.into_values().collect();
        lost.sort_unstable();
        lost.dedup();
        let names: Vec<&str> = lost.iter().map(TaskManagerId::as_str).collect();
        let error = Error::unavailable(format!("TaskManager {} was lost", names.join(", ")))
            .with_detail(format!("it did not register within {} ms of a new JobManager", config.recovery_wait_ms));
        let cause = Cause { subtask: None, task_manager: lost.first().cloned(), error };
        self.broken(now, config, cause, out);
        self.ending.retain(|_, on| !lost.contains(on));
        self.ended(out);
    }

    /// When [`Execution::adoption_due`] has something to do.
    pub(super) fn adoption_until(&self) -> Option<Millis> {
        self.adoption.as_ref().map(|adoption| adoption.until)
    }

    /// How many subtasks of the attempt have not registered yet.
    pub(super) fn unregistered(&self) -> usize {
        self.adoption.as_ref().map_or(0, |adoption| adoption.missing.len())
    }

    /// Whether the subtask has not registered yet.
    pub(super) fn is_unregistered(&self, subtask: SubtaskKey) -> bool {
        self.adoption.as_ref().is_some_and(|adoption| adoption.missing.contains_key(&subtask))
    }

    /// Of what has to end on a TaskManager, only these have not ended yet.
    fn only_these_end_on(&mut self, id: &TaskManagerId, lives: &[SubtaskId], out: &mut Vec<Action>) {
        self.ending.retain(|subtask, on| on != id || lives.contains(subtask));
        self.ended(out);
    }

    fn is_placed(&self, subtask: &SubtaskId, on: &TaskManagerId) -> bool {
        self.placed_on(on).any(|placed| placed == *subtask)
    }

    fn placed_on<'a>(&'a self, id: &'a TaskManagerId) -> impl Iterator<Item = SubtaskId> + 'a {
        let here = self.placements.iter().filter(move |placement| placement.task_manager == *id);
        here.map(|placement| self.subtask_of(placement))
    }
}
