//! One job as it runs: its newest attempt, the state of each subtask, and what follows when something breaks.

use std::collections::{BTreeMap, BTreeSet};

use weir_types::Error;
use weir_types::control::SubtaskStatus;
use weir_types::deployment::{Placement, SubtaskState};
use weir_types::ids::{Attempt, ChainId, JobId, Parallelism, SubtaskId, TaskManagerId};
use weir_types::job::{JobChange, JobState};
use weir_types::time::Millis;

use super::{Action, Config, JobPlan, is_fatal, is_unreadable_state};
use crate::checkpoint::SubtaskKey;

/// State of a subtask of the newest attempt; they only advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Starting,
    Running,
    Drained,
    Finished,
}

/// Restart delays do not grow beyond this, and an attempt that lived as long was not short-lived.
const RESTART_DELAY_MAX_MS: u64 = 10_000;

#[derive(Debug)]
pub(super) struct Execution {
    plan: JobPlan,
    order: u64,
    state: JobState,
    attempt: Attempt,
    restarts: u32,
    /// When the attempt was decided.
    began_at: Millis,
    /// Attempts in a row that broke of themselves soon after they began.
    short_lived: u32,
    /// The end of the restart's delay, or of the wait for TaskManagers after a recovery; zero: not waiting for time.
    not_before: Millis,
    /// TaskManagers that a recovered job still waits for; with the last of them the wait is over.
    awaited: Option<BTreeSet<TaskManagerId>>,
    /// Where the attempt runs; empty when nothing runs.
    placements: Vec<Placement>,
    subtasks: BTreeMap<SubtaskKey, Progress>,
    /// Cancelled subtasks, of this attempt or lower ones, that have not ended yet.
    ending: BTreeMap<SubtaskId, TaskManagerId>,
    given_up_at: Option<Millis>,
    /// TaskManagers know of the attempt.
    deployed: bool,
    finish_sent: bool,
    /// A stop's savepoint is complete.
    stopped: bool,
}

impl Execution {
    pub(super) fn new(now: Millis, config: Config, order: u64, mut plan: JobPlan, out: &mut Vec<Action>) -> Self {
        let recovered = plan.recovered.take();
        let mut execution = Self {
            plan,
            order,
            state: JobState::Created,
            attempt: Attempt(0),
            restarts: 0,
            began_at: Millis(0),
            short_lived: 0,
            not_before: Millis(0),
            awaited: None,
            placements: Vec::new(),
            subtasks: BTreeMap::new(),
            ending: BTreeMap::new(),
            given_up_at: None,
            deployed: false,
            finish_sent: false,
            stopped: false,
        };
        let Some(recovered) = recovered else { return execution };
        execution.state = recovered.state;
        execution.attempt = recovered.attempt;
        execution.stopped = recovered.stopped;
        match recovered.state {
            JobState::Cancelling => execution.change(JobChange::EndCancelled, None, out),
            state if recovered.stopped && !state.is_terminal() => execution.change(JobChange::EndStopped, None, out),
            JobState::Starting | JobState::Running | JobState::Stopping | JobState::Restarting => {
                execution.change(JobChange::Restart, None, out);
                execution.not_before = now.plus(config.recovery_wait_ms);
                execution.awaited = Some(recovered.task_managers);
            }
            _ => {}
        }
        execution
    }

    pub(super) fn id(&self) -> JobId {
        self.plan.job.clone()
    }

    pub(super) fn order(&self) -> u64 {
        self.order
    }

    pub(super) fn state(&self) -> JobState {
        self.state
    }

    pub(super) fn attempt(&self) -> Attempt {
        self.attempt
    }

    pub(super) fn chains(&self) -> &[(ChainId, Parallelism)] {
        &self.plan.chains
    }

    pub(super) fn task_managers(&self) -> BTreeSet<TaskManagerId> {
        self.placements.iter().map(|placement| placement.task_manager.clone()).collect()
    }

    pub(super) fn subtask_state(&self, subtask: &SubtaskId) -> Option<&'static str> {
        if self.ending.contains_key(subtask) {
            return Some("CANCELLING");
        }
        let progress =
            self.subtasks.get(&(subtask.chain, subtask.index)).filter(|_| subtask.attempt == self.attempt)?;
        Some(match progress {
            Progress::Starting => "STARTING",
            Progress::Running => "RUNNING",
            Progress::Drained => "DRAINED",
            Progress::Finished => "FINISHED",
        })
    }

    /// Slots that it occupies.
    pub(super) fn slots(&self) -> impl Iterator<Item = (TaskManagerId, u32)> + '_ {
        self.placements.iter().map(|placement| (placement.task_manager.clone(), placement.slot))
    }

    /// Whether nothing is left to decide.
    pub(super) fn is_over(&self) -> bool {
        self.state.is_terminal() && self.ending.is_empty()
    }

    /// Whether it may be deployed now, given slots.
    pub(super) fn ready(&self, now: Millis) -> bool {
        matches!(self.state, JobState::Created | JobState::Restarting)
            && self.ending.is_empty()
            && !self.stopped
            && (self.not_before <= now || self.awaited.as_ref().is_some_and(BTreeSet::is_empty))
    }

    pub(super) fn waiting_for(&self, now: Millis, free: usize, total: usize) -> Vec<String> {
        if !matches!(self.state, JobState::Created | JobState::Restarting) {
            return Vec::new();
        }
        let needed = self.plan.chains.iter().map(|(_, parallelism)| parallelism.get()).max().unwrap_or(0) as usize;
        let mut waits = Vec::new();
        if !self.ending.is_empty() {
            waits.push(format!("{} subtasks of attempt {} to end", self.ending.len(), self.attempt));
        }
        match &self.awaited {
            _ if self.not_before <= now => {}
            Some(awaited) => waits.push(format!("{} TaskManagers to register again", awaited.len())),
            None => waits.push(format!("the restart delay, {} ms more", self.not_before.since(now))),
        }
        if needed > free {
            waits.push(format!("{needed} slots: {free} of {total} are free"));
        }
        waits
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        let waits = matches!(self.state, JobState::Created | JobState::Restarting) && self.not_before > Millis(0);
        let deploy = if waits { Some(self.not_before) } else { None };
        [deploy, self.given_up_at].into_iter().flatten().min()
    }

    pub(super) fn deploy(&mut self, now: Millis, placements: Vec<Placement>, out: &mut Vec<Action>) {
        let Some(state) = self.state.next(JobChange::Deploy) else { return };
        self.began_at = now;
        self.state = state;
        self.attempt = self.attempt.next();
        self.subtasks = placements.iter().map(|p| ((p.chain, p.index), Progress::Starting)).collect();
        self.placements.clone_from(&placements);
        self.deployed = false;
        self.finish_sent = false;
        self.awaited = None;
        self.not_before = Millis(0);
        // Committing the attempt also commits this change.
        out.push(Action::StartAttempt(self.id(), self.attempt, placements));
    }

    pub(super) fn status(&mut self, now: Millis, config: Config, status: SubtaskStatus, out: &mut Vec<Action>) {
        let SubtaskStatus { subtask, state } = status;
        if self.ending.contains_key(&subtask) {
            if state.is_terminal() {
                self.ending.remove(&subtask);
                self.ended(out);
            }
            return;
        }
        if subtask.attempt != self.attempt || self.placements.is_empty() {
            return;
        }
        let Some(progress) = self.subtasks.get_mut(&(subtask.chain, subtask.index)) else { return };
        let reached = match state {
            SubtaskState::Starting => Progress::Starting,
            SubtaskState::Running => Progress::Running,
            SubtaskState::Drained => Progress::Drained,
            SubtaskState::Finished => Progress::Finished,
            SubtaskState::Failed(error) => {
                // This one has ended; the others have to.
                *progress = Progress::Finished;
                return self.broken(now, config, error, out);
            }
            SubtaskState::Cancelled => {
                *progress = Progress::Finished;
                let error = Error::internal(format!("subtask {subtask} was cancelled without a command"));
                return self.broken(now, config, error, out);
            }
        };
        *progress = reached.max(*progress);
        self.advanced(out);
    }

    /// A subtask of the running attempt has advanced: perhaps the job has, too.
    fn advanced(&mut self, out: &mut Vec<Action>) {
        let least = self.subtasks.values().min().copied().unwrap_or(Progress::Finished);
        if self.state == JobState::Starting && least >= Progress::Running {
            self.change(JobChange::Run, None, out);
            out.push(Action::AttemptRunning(self.id(), self.attempt));
        }
        let sources = &self.plan.sources;
        let drained = self.subtasks.iter().all(|((chain, _), at)| !sources.contains(chain) || *at >= Progress::Drained);
        if drained && !self.finish_sent && !self.stopped && least >= Progress::Running && least < Progress::Finished {
            self.finish_sent = true;
            out.push(Action::FinishAttempt(self.id(), self.attempt));
        }
        // While a stop is under way, its savepoint decides how the job has ended.
        if least == Progress::Finished && (self.state != JobState::Stopping || self.stopped) {
            let change = if self.stopped { JobChange::EndStopped } else { JobChange::Finish };
            let error = Error::new(weir_types::Code::FailedPrecondition, format!("job {} has ended", self.plan.job));
            out.push(Action::AttemptEnded(self.id(), self.attempt, error));
            self.placements.clear();
            self.change(change, None, out);
        }
    }

    /// The attempt is being deployed, and may have to be cancelled from now on.
    pub(super) fn deployed(&mut self) {
        self.deployed = true;
    }

    /// The attempt cannot go on.
    pub(super) fn broken(&mut self, now: Millis, config: Config, error: Error, out: &mut Vec<Action>) {
        if self.placements.is_empty() || !self.ending.is_empty() || self.state == JobState::Cancelling {
            return;
        }
        out.push(Action::AttemptEnded(self.id(), self.attempt, error.clone()));
        self.cancel_attempt(now, config, out);
        let exhausted = self.plan.restart_attempts_max.is_some_and(|max| self.restarts >= max);
        if self.stopped {
            // The savepoint is complete, and that was what the job still had to do.
        } else if !is_unreadable_state(&error) && (exhausted || is_fatal(&error)) {
            self.change(JobChange::Fail, Some(error), out);
        } else {
            self.restarts += 1;
            self.not_before = now.plus(self.next_delay(now, &error));
            self.change(JobChange::Restart, Some(error), out);
        }
        self.ended(out);
    }

    /// The attempt cannot go on, as somebody wanted: the next one begins at once, and does not count as a restart.
    pub(super) fn resume(&mut self, now: Millis, config: Config, error: Error, out: &mut Vec<Action>) {
        if self.placements.is_empty() || !self.ending.is_empty() || self.state == JobState::Cancelling || self.stopped {
            return;
        }
        out.push(Action::AttemptEnded(self.id(), self.attempt, error.clone()));
        self.cancel_attempt(now, config, out);
        self.change(JobChange::Restart, Some(error), out);
        self.ended(out);
    }

    /// How long to wait before the next attempt: longer and longer while attempts break of themselves one after the
    /// other. A peer that is gone says nothing about the next attempt.
    fn next_delay(&mut self, now: Millis, error: &Error) -> u64 {
        let delay = self.plan.restart_delay_ms;
        if error.code.is_retryable() || now.since(self.began_at) >= RESTART_DELAY_MAX_MS {
            self.short_lived = 0;
            return delay;
        }
        let doubled = delay.saturating_mul(1 << self.short_lived.min(16));
        self.short_lived += 1;
        doubled.min(RESTART_DELAY_MAX_MS.max(delay))
    }

    pub(super) fn cancel(&mut self, now: Millis, config: Config, out: &mut Vec<Action>) {
        if self.state.next(JobChange::Cancel).is_none() {
            return;
        }
        self.change(JobChange::Cancel, None, out);
        if !self.placements.is_empty() && self.ending.is_empty() {
            let error = Error::new(weir_types::Code::Cancelled, format!("job {} was cancelled", self.plan.job));
            out.push(Action::AttemptEnded(self.id(), self.attempt, error));
            self.cancel_attempt(now, config, out);
        }
        self.ended(out);
    }

    fn cancel_attempt(&mut self, now: Millis, config: Config, out: &mut Vec<Action>) {
        if !self.deployed {
            return;
        }
        let task_managers = self.task_managers().into_iter().collect();
        out.push(Action::CancelAttempt(self.id(), self.attempt, task_managers));
        for placement in &self.placements {
            let key = (placement.chain, placement.index);
            if self.subtasks.get(&key).is_some_and(|progress| *progress < Progress::Finished) {
                let subtask = SubtaskId {
                    job: self.plan.job.clone(),
                    chain: placement.chain,
                    index: placement.index,
                    attempt: self.attempt,
                };
                self.ending.insert(subtask, placement.task_manager.clone());
            }
        }
        self.given_up_at = Some(now.plus(config.cancel_timeout_ms));
    }

    /// If everything that was cancelled has ended: the slots are free, and a job that was to end has.
    fn ended(&mut self, out: &mut Vec<Action>) {
        if !self.ending.is_empty() {
            return;
        }
        self.given_up_at = None;
        self.placements.clear();
        match self.state {
            JobState::Cancelling => self.change(JobChange::EndCancelled, None, out),
            _ if self.stopped => self.change(JobChange::EndStopped, None, out),
            _ => {}
        }
    }

    pub(super) fn tick(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.given_up_at.is_some_and(|at| at <= now) {
            self.ending.clear();
            self.ended(out);
        }
        if self.not_before <= now {
            self.not_before = Millis(0);
            self.awaited = None;
        }
    }

    pub(super) fn task_manager_lost(
        &mut self,
        now: Millis,
        config: Config,
        id: &TaskManagerId,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        if !self.ending.is_empty() {
            self.ending.retain(|_, on| on != id);
            self.ended(out);
        } else if self.placements.iter().any(|placement| placement.task_manager == *id) {
            self.broken(now, config, error.clone(), out);
            // Nothing runs there any more, so nothing has to end there.
            self.ending.retain(|_, on| on != id);
            self.ended(out);
        }
    }

    pub(super) fn task_manager_joined(&mut self, id: &TaskManagerId) {
        if let Some(awaited) = &mut self.awaited {
            awaited.remove(id);
        }
    }

    /// A TaskManager that has just joined runs a subtask of the job; it is being cancelled. The next attempt waits for
    /// it; one that runs already does not: whatever is in `ending` ends together with what is placed.
    pub(super) fn left_over(&mut self, now: Millis, config: Config, subtask: SubtaskId, on: &TaskManagerId) {
        if self.placements.is_empty() || !self.ending.is_empty() {
            self.ending.insert(subtask, on.clone());
            self.given_up_at = Some(now.plus(config.cancel_timeout_ms));
        }
    }

    pub(super) fn stop_abandoned(&mut self, out: &mut Vec<Action>) {
        if self.state == JobState::Stopping {
            self.change(JobChange::Run, None, out);
            self.advanced(out);
        }
    }

    pub(super) fn stop_completed(&mut self, now: Millis, config: Config, out: &mut Vec<Action>) {
        self.stopped = true;
        // The attempt that the savepoint was taken of ends by itself; a later one must not go on.
        if self.state != JobState::Stopping && !self.placements.is_empty() && self.ending.is_empty() {
            let error = Error::new(weir_types::Code::Cancelled, format!("job {} has been stopped", self.plan.job));
            out.push(Action::AttemptEnded(self.id(), self.attempt, error));
            self.cancel_attempt(now, config, out);
            // Nothing has to end if it was not deployed yet.
            self.ended(out);
        } else if self.placements.is_empty() {
            self.ended(out);
        } else if self.ending.is_empty() {
            self.advanced(out);
        }
    }

    pub(super) fn change(&mut self, change: JobChange, failure: Option<Error>, out: &mut Vec<Action>) {
        if let Some(state) = self.state.next(change) {
            self.state = state;
            out.push(Action::ChangeJob(self.id(), change, failure));
        }
    }
}
