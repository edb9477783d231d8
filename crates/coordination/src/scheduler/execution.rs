//! One job as it runs: its newest attempt, the state of each subtask, and what follows when something breaks.

mod adoption;

use std::collections::{BTreeMap, BTreeSet};

use weir_types::Error;
use weir_types::control::SubtaskStatus;
use weir_types::deployment::{Placement, SubtaskState};
use weir_types::ids::{Attempt, ChainId, JobId, Parallelism, SubtaskId, TaskManagerId};
use weir_types::job::{Followed, JobChange, JobFailure, JobState};
use weir_types::time::Millis;

use super::restart::{Broke, Restarts, Verdict};
use super::scaling::Scaling;
use super::{Action, Config, JobPlan, is_fatal, is_unreadable_state};
use crate::checkpoint::SubtaskKey;
use adoption::Adoption;

/// State of a subtask of the newest attempt; they only advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Starting,
    Running,
    Drained,
    Finished,
}

/// How long a job waits for the next attempt after one that could not read its state, if its strategy would not restart it.
const UNREADABLE_DELAY_MS: u64 = 100;

/// Why an attempt breaks, and where.
#[derive(Debug)]
pub(super) struct Cause {
    subtask: Option<SubtaskKey>,
    task_manager: Option<TaskManagerId>,
    error: Error,
}

impl Cause {
    /// Not by a subtask.
    pub(super) fn outside(error: Error) -> Self {
        Self { subtask: None, task_manager: None, error }
    }
}

#[derive(Debug)]
pub(super) struct Execution {
    plan: JobPlan,
    order: u64,
    state: JobState,
    attempt: Attempt,
    /// When it may restart, and how often.
    restarts: Restarts,
    /// With how many subtasks it runs.
    scaling: Scaling,
    /// Since when all subtasks of the attempt run.
    running_since: Option<Millis>,
    /// The end of the restart's delay; zero: not waiting for time.
    not_before: Millis,
    /// The attempt is that of an earlier JobManager, and has not been taken over yet.
    adoption: Option<Adoption>,
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
        let (failures, failed_at) =
            recovered.as_ref().map(|was| (was.failures, was.failed_at.clone())).unwrap_or_default();
        let current = recovered.as_ref().map_or(plan.parallelism, |was| was.parallelism);
        let mut execution = Self {
            scaling: Scaling::new(plan.chains.clone(), plan.parallelism, plan.parallelism_min, current),
            restarts: Restarts::new(&plan.job, plan.restart.clone(), failures, failed_at),
            plan,
            order,
            state: JobState::Created,
            attempt: Attempt(0),
            running_since: None,
            not_before: Millis(0),
            adoption: None,
            placements: Vec::new(),
            subtasks: BTreeMap::new(),
            ending: BTreeMap::new(),
            given_up_at: None,
            deployed: false,
            finish_sent: false,
            stopped: false,
        };
        if let Some(recovered) = recovered {
            execution.recover(now, config, recovered, out);
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

    pub(super) fn parallelism(&self) -> Parallelism {
        self.scaling.current()
    }

    pub(super) fn chains_at(&self, parallelism: Parallelism) -> Vec<(ChainId, Parallelism)> {
        self.scaling.chains_at(parallelism)
    }

    /// With how many subtasks it is deployed now; none: it waits for slots.
    pub(super) fn fit(&mut self, now: Millis, config: Config, free: usize) -> Option<Parallelism> {
        self.scaling.fit(now, free, config.resource_wait_ms)
    }

    pub(super) fn waits_to_be_deployed(&self) -> bool {
        matches!(self.state, JobState::Created | JobState::Restarting)
    }

    pub(super) fn task_managers(&self) -> BTreeSet<TaskManagerId> {
        self.placements.iter().map(|placement| placement.task_manager.clone()).collect()
    }

    pub(super) fn subtask_state(&self, subtask: &SubtaskId) -> Option<&'static str> {
        if self.ending.contains_key(subtask) {
            return Some("CANCELLING");
        }
        let key = (subtask.chain, subtask.index);
        let progress = self.subtasks.get(&key).filter(|_| subtask.attempt == self.attempt)?;
        Some(match progress {
            _ if self.is_unregistered(key) => "UNKNOWN",
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
            && self.not_before <= now
    }

    pub(super) fn waiting_for(&self, now: Millis, free: usize, total: usize) -> Vec<String> {
        if self.unregistered() > 0 {
            return vec![format!("{} subtasks of attempt {} to register again", self.unregistered(), self.attempt)];
        }
        if !self.waits_to_be_deployed() {
            return Vec::new();
        }
        let needed = self.scaling.slots_wanted();
        let mut waits = Vec::new();
        if !self.ending.is_empty() {
            waits.push(format!("{} subtasks of attempt {} to end", self.ending.len(), self.attempt));
        }
        if self.not_before > now {
            waits.push(format!("the restart delay, {} ms more", self.not_before.since(now)));
        }
        if needed > free {
            waits.push(format!("{needed} slots: {free} of {total} are free"));
            if let Some(ms) = self.scaling.waits_ms(now) {
                waits.push(format!("{ms} ms more before it begins with fewer subtasks"));
            }
        }
        waits
    }

    pub(super) fn next_deadline(&self, config: Config) -> Option<Millis> {
        let waits = self.waits_to_be_deployed() && self.not_before > Millis(0);
        let deploy = if waits { Some(self.not_before) } else { None };
        // A shortage of slots counts once nothing else is missing.
        let scaling = self.scaling.next_deadline(config.resource_stabilization_ms);
        let scaling = scaling.filter(|_| !waits && self.ending.is_empty());
        [deploy, self.given_up_at, self.adoption_until(), scaling].into_iter().flatten().min()
    }

    pub(super) fn deploy(&mut self, parallelism: Parallelism, placements: Vec<Placement>, out: &mut Vec<Action>) {
        let Some(state) = self.state.next(JobChange::Deploy) else { return };
        self.running_since = None;
        self.scaling.started(parallelism);
        self.state = state;
        self.attempt = self.attempt.next();
        self.subtasks = placements.iter().map(|p| ((p.chain, p.index), Progress::Starting)).collect();
        self.placements.clone_from(&placements);
        self.deployed = false;
        self.finish_sent = false;
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
                return self.broken(now, config, self.broke(&subtask, error), out);
            }
            SubtaskState::Cancelled => {
                *progress = Progress::Finished;
                let error = match self.adoption {
                    Some(_) => Error::unavailable(format!("subtask {subtask} was cancelled by an earlier JobManager")),
                    // A TaskManager does that when it is asked to end.
                    None => Error::unavailable(format!("subtask {subtask} was cancelled without a command"))
                        .with_detail("its TaskManager is shutting down"),
                };
                return self.broken(now, config, self.broke(&subtask, error), out);
            }
        };
        *progress = reached.max(*progress);
        self.advanced(now, out);
    }

    /// A subtask of the newest attempt broke.
    fn broke(&self, subtask: &SubtaskId, error: Error) -> Cause {
        let (chain, index) = (subtask.chain, subtask.index);
        let on = self.placements.iter().find(|placement| placement.chain == chain && placement.index == index);
        Cause { subtask: Some((chain, index)), task_manager: on.map(|on| on.task_manager.clone()), error }
    }

    /// A subtask of the running attempt has advanced: perhaps the job has, too.
    fn advanced(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.adoption.is_some() {
            return;
        }
        let least = self.subtasks.values().min().copied().unwrap_or(Progress::Finished);
        if self.state == JobState::Starting && least >= Progress::Running {
            self.running_since = Some(now);
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
    pub(super) fn broken(&mut self, now: Millis, config: Config, cause: Cause, out: &mut Vec<Action>) {
        if self.placements.is_empty() || !self.ending.is_empty() || self.state == JobState::Cancelling {
            return;
        }
        out.push(Action::AttemptEnded(self.id(), self.attempt, cause.error.clone()));
        self.cancel_attempt(now, config, out);
        if self.stopped {
            // The savepoint is complete, and that was what the job still had to do.
            return self.ended(out);
        }
        let broke = Broke {
            at: now,
            attempt: self.attempt,
            ran_since: self.running_since,
            by_peer: cause.error.code.is_retryable(),
        };
        let verdict = self.restarts.failed(broke);
        // Where state cannot be read, each restart has one snapshot less to try.
        let delay_ms = match verdict {
            Verdict::After { delay_ms } if is_unreadable_state(&cause.error) || !is_fatal(&cause.error) => {
                Some(delay_ms)
            }
            Verdict::GiveUp if is_unreadable_state(&cause.error) => Some(UNREADABLE_DELAY_MS),
            _ => None,
        };
        match delay_ms {
            Some(delay_ms) => self.restart(now, delay_ms, cause, out),
            None => {
                let failure = self.failure(now, cause, Followed::Fail);
                self.change(JobChange::Fail, Some(failure), out);
            }
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
        self.restart(now, 0, Cause::outside(error), out);
        self.ended(out);
    }

    fn restart(&mut self, now: Millis, delay_ms: u64, cause: Cause, out: &mut Vec<Action>) {
        self.not_before = if delay_ms > 0 { now.plus(delay_ms) } else { Millis(0) };
        let failure = self.failure(now, cause, Followed::Restart { delay_ms });
        self.change(JobChange::Restart, Some(failure), out);
    }

    fn failure(&self, at: Millis, cause: Cause, followed: Followed) -> JobFailure {
        let Cause { subtask, task_manager, error } = cause;
        JobFailure { at, attempt: self.attempt, subtask, task_manager, error, followed }
    }

    /// The next attempt begins at once with another parallelism, which is no failure. A job that does not run takes it with
    /// the attempt that comes anyway.
    pub(super) fn rescale(&mut self, now: Millis, config: Config, to: Option<Parallelism>, out: &mut Vec<Action>) {
        if let Some(to) = to {
            self.scaling.want(to);
        }
        self.scaling.did_not_grow();
        let runs = matches!(self.state, JobState::Starting | JobState::Running) && self.ending.is_empty();
        if !runs || self.placements.is_empty() || self.stopped || self.scaling.is_as_wanted() {
            return;
        }
        let error = Error::new(weir_types::Code::Cancelled, format!("job {} is rescaled", self.plan.job));
        out.push(Action::AttemptEnded(self.id(), self.attempt, error));
        self.cancel_attempt(now, config, out);
        self.scaling.restarts();
        self.change(JobChange::Restart, None, out);
        self.ended(out);
    }

    /// Asks for more subtasks if there has been room for them among `free` slots; how many of these it is about to use.
    pub(super) fn grow(&mut self, now: Millis, config: Config, free: usize, out: &mut Vec<Action>) -> usize {
        let settled = self.state == JobState::Running && self.adoption.is_none();
        if !settled || self.scaling.is_as_wanted() {
            self.scaling.has_no_room();
            return 0;
        }
        let own = self.slots().collect::<BTreeSet<_>>().len();
        if self.scaling.grows(now, own + free, config.resource_stabilization_ms) {
            out.push(Action::Grow(self.id(), self.attempt));
        }
        self.scaling.slots_wanted().saturating_sub(own)
    }

    /// What the next attempt is to start from is there: it begins, unless the slots are gone again.
    pub(super) fn grow_into(&mut self, now: Millis, config: Config, slots: usize, out: &mut Vec<Action>) {
        if self.scaling.differs_in(slots) {
            self.rescale(now, config, None, out);
        }
        self.scaling.did_not_grow();
    }

    pub(super) fn did_not_grow(&mut self) {
        self.scaling.did_not_grow();
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
        self.adoption = None;
        if !self.deployed {
            return;
        }
        let task_managers = self.task_managers().into_iter().collect();
        out.push(Action::CancelAttempt(self.id(), self.attempt, task_managers));
        for placement in &self.placements {
            let key = (placement.chain, placement.index);
            if self.subtasks.get(&key).is_some_and(|progress| *progress < Progress::Finished) {
                self.ending.insert(self.subtask_of(placement), placement.task_manager.clone());
            }
        }
        self.given_up_at = Some(now.plus(config.cancel_timeout_ms));
    }

    /// A subtask of the newest attempt.
    fn subtask_of(&self, placement: &Placement) -> SubtaskId {
        let Placement { chain, index, .. } = *placement;
        SubtaskId { job: self.plan.job.clone(), chain, index, attempt: self.attempt }
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

    pub(super) fn tick(&mut self, now: Millis, config: Config, out: &mut Vec<Action>) {
        self.adoption_due(now, config, out);
        if self.given_up_at.is_some_and(|at| at <= now) {
            self.ending.clear();
            self.ended(out);
        }
        if self.not_before <= now {
            self.not_before = Millis(0);
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
            let cause = Cause { subtask: None, task_manager: Some(id.clone()), error: error.clone() };
            self.broken(now, config, cause, out);
            // Nothing runs there any more, so nothing has to end there.
            self.ending.retain(|_, on| on != id);
            self.ended(out);
        }
    }

    pub(super) fn stop_abandoned(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.state == JobState::Stopping {
            self.change(JobChange::Run, None, out);
            self.advanced(now, out);
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
            self.advanced(now, out);
        }
    }

    pub(super) fn change(&mut self, change: JobChange, failure: Option<JobFailure>, out: &mut Vec<Action>) {
        if let Some(state) = self.state.next(change) {
            self.state = state;
            out.push(Action::ChangeJob(self.id(), change, failure.map(Box::new)));
        }
    }
}
