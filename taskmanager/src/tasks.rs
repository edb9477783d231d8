//! Which attempts run here. Commands and events go in, messages for the JobManager come out; nothing here waits.
//!
//! Invariants: at most one attempt of a job runs at a time; a higher one starts when the last subtask of the lower one is
//! gone. Commands of a lower term and deployments of an attempt that is over are refused, with an answer where the
//! protocol has one. A terminal state absorbs whatever comes after it, and is remembered until a JobManager lets the attempt
//! go: one that takes over hears of what ended while nobody led.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_dataflow::metrics::SubtaskMetrics;
use weir_dataflow::subtask::{Control, Outcome, SubtaskEvent};
use weir_service::failpoint;
use weir_types::control::{
    CancelAttempt, FinishAttempt, FromTaskManager, Grant, SnapshotDeclined, SnapshotOutcome, SubtaskProgress,
    SubtaskStatus, ToTaskManager, TriggerBarrier,
};
use weir_types::deployment::{Deployment, SubtaskState};
use weir_types::ids::{Attempt, BarrierId, ChainId, JobId, SubtaskId, SubtaskIndex, Term};
use weir_types::snapshot::Barrier;
use weir_types::{Code, Error, Result};

use crate::attempt::{Host, Launched, TaskEvent};
use crate::fences::Fences;
use crate::loads::{Load, Loads};

/// Attempts that are over and that no JobManager has let go; beyond it the oldest are forgotten, and their jobs restart if a
/// new JobManager should still have to know.
const OVER_MAX: usize = 256;

/// The attempts that run here.
pub(crate) struct Tasks {
    host: Host,
    term: Term,
    fences: Fences,
    attempts: BTreeMap<JobId, Running>,
    /// Deployments that wait for a lower attempt to be gone.
    waiting: BTreeMap<JobId, Box<Deployment>>,
    /// Attempts that are over, oldest first.
    over: VecDeque<(JobId, Attempt)>,
}

/// One attempt's subtasks on this TaskManager.
struct Running {
    attempt: Attempt,
    subtasks: BTreeMap<SubtaskId, Task>,
    cancelled: CancellationToken,
    /// Of the snapshot in flight.
    loads: Option<Loads>,
}

/// One subtask.
pub(crate) struct Task {
    /// As last reported.
    pub(crate) state: SubtaskState,
    /// Its counters.
    pub(crate) metrics: Arc<SubtaskMetrics>,
    /// The names of its operators.
    pub(crate) name: String,
    control: Option<mpsc::Sender<Control>>,
    is_source: bool,
}

impl Running {
    fn is_over(&self) -> bool {
        self.subtasks.values().all(|task| task.state.is_terminal())
    }

    fn cancel(&mut self) {
        self.cancelled.cancel();
        // A subtask whose control channel closes stops as if told to.
        self.subtasks.values_mut().for_each(|task| task.control = None);
    }
}

impl Tasks {
    pub(crate) fn new(host: Host) -> Self {
        Self {
            host,
            term: Term(0),
            fences: Fences::default(),
            attempts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            over: VecDeque::new(),
        }
    }

    /// Refuses a JobManager whose term is over.
    pub(crate) fn enter_term(&mut self, term: Term) -> Result<()> {
        if term < self.term {
            return Err(Error::fenced(format!("the JobManager's term {term} is over"))
                .with_detail(format!("a JobManager of term {} has given commands since", self.term)));
        }
        self.term = term;
        Ok(())
    }

    /// Carries out a command; what it has to say at once is returned.
    pub(crate) fn on_command(&mut self, command: ToTaskManager) -> Vec<FromTaskManager> {
        match command {
            ToTaskManager::Deploy(deployment) => self.deploy(deployment),
            ToTaskManager::Cancel(CancelAttempt { term, job, attempt }) => {
                if self.commands(term, "cancel", &job) {
                    self.cancel(&job, attempt)
                } else {
                    Vec::new()
                }
            }
            ToTaskManager::Trigger(TriggerBarrier { term, job, attempt, barrier }) => {
                if self.commands(term, "trigger", &job) { self.trigger(&job, attempt, &barrier) } else { Vec::new() }
            }
            ToTaskManager::Grant(Grant { term, subtask, snapshot, bytes }) => {
                if self.commands(term, "grant", &subtask.job) {
                    tracing::debug!(%subtask, %snapshot, bytes, "granted");
                    self.host.grants.grant(&subtask, &snapshot, bytes);
                }
                Vec::new()
            }
            ToTaskManager::Finish(FinishAttempt { term, job, attempt }) => {
                if self.commands(term, "finish", &job) {
                    self.tell(&job, attempt, &Control::Finish, |_| true);
                }
                Vec::new()
            }
            ToTaskManager::SnapshotOutcome(outcome) => {
                self.outcome(outcome);
                Vec::new()
            }
            ToTaskManager::Heartbeat(term) => {
                self.commands(term, "heartbeat", &"");
                Vec::new()
            }
            ToTaskManager::Registered(_) => {
                tracing::warn!("registered twice in one session");
                Vec::new()
            }
        }
    }

    /// Whether a command of this term counts.
    fn commands(&mut self, term: Term, command: &str, job: &dyn std::fmt::Display) -> bool {
        match self.enter_term(term) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(command, %job, %error, "command refused");
                false
            }
        }
    }

    fn deploy(&mut self, deployment: Box<Deployment>) -> Vec<FromTaskManager> {
        let Deployment { term, ref job, attempt, .. } = *deployment;
        if self.attempts.get(job).is_some_and(|running| running.attempt == attempt)
            || self.waiting.get(job).is_some_and(|waiting| waiting.attempt == attempt)
        {
            tracing::info!(%job, %attempt, "attempt deployed again, ignored");
            return Vec::new();
        }
        if let Err(error) = self.enter_term(term).and_then(|()| self.fences.raise_to_new(job, attempt)) {
            tracing::warn!(%job, %attempt, %error, "deployment refused");
            return self.failed(&deployment, &error);
        }
        // From here on, exchanges refuse the attempts below.
        self.host.data_plane.begin(job, attempt);
        let job = job.clone();
        let replaced = self.waiting.insert(job.clone(), deployment);
        let mut messages = replaced.map_or_else(Vec::new, |replaced| self.cancelled(&replaced));
        if let Some(running) = self.attempts.get_mut(&job) {
            tracing::info!(%job, old = %running.attempt, new = %attempt, "attempt replaced");
            running.cancel();
        }
        messages.extend(self.start_waiting(&job));
        messages
    }

    /// Starts the job's waiting deployment if nothing of an earlier attempt is left.
    fn start_waiting(&mut self, job: &JobId) -> Vec<FromTaskManager> {
        if self.attempts.get(job).is_some_and(|running| !running.is_over()) {
            return Vec::new();
        }
        let Some(deployment) = self.waiting.remove(job) else { return Vec::new() };
        self.forget(job);
        let cancelled = CancellationToken::new();
        match self.host.launch(&deployment, &cancelled) {
            Ok(launched) => {
                let subtasks: BTreeMap<_, _> = launched.into_iter().map(|(id, task)| (id, Task::from(task))).collect();
                let attempt = deployment.attempt;
                tracing::info!(%job, %attempt, subtasks = subtasks.len(), "attempt deployed");
                let messages = subtasks.iter().map(|(id, task)| status(id, &task.state)).collect();
                self.attempts.insert(job.clone(), Running { attempt, subtasks, cancelled, loads: None });
                messages
            }
            Err(error) => {
                cancelled.cancel();
                tracing::warn!(%job, attempt = %deployment.attempt, %error, "deployment failed");
                self.host.data_plane.end(job, deployment.attempt);
                self.failed(&deployment, &error)
            }
        }
    }

    fn failed(&self, deployment: &Deployment, error: &Error) -> Vec<FromTaskManager> {
        let failed = SubtaskState::Failed(error.clone());
        self.placed_here(deployment).map(|id| status(&id, &failed)).collect()
    }

    fn cancelled(&self, deployment: &Deployment) -> Vec<FromTaskManager> {
        self.placed_here(deployment).map(|id| status(&id, &SubtaskState::Cancelled)).collect()
    }

    fn placed_here<'a>(&'a self, deployment: &'a Deployment) -> impl Iterator<Item = SubtaskId> + 'a {
        let here = deployment.placements.iter().filter(|placement| placement.task_manager == self.host.id);
        here.map(|placement| SubtaskId {
            job: deployment.job.clone(),
            chain: placement.chain,
            index: placement.index,
            attempt: deployment.attempt,
        })
    }

    fn cancel(&mut self, job: &JobId, attempt: Attempt) -> Vec<FromTaskManager> {
        // Refused below only if something newer runs, which this command does not mean.
        let _newer_runs = self.fences.raise(job, attempt);
        let waiting = match self.waiting.get(job) {
            Some(waiting) if waiting.attempt <= attempt => self.waiting.remove(job),
            _ => None,
        };
        if let Some(running) = self.attempts.get_mut(job).filter(|running| running.attempt <= attempt) {
            tracing::info!(%job, attempt = %running.attempt, "attempt cancelled");
            running.cancel();
        }
        // What has not started ends at once, and whoever cancels it waits to hear so.
        waiting.map_or_else(Vec::new, |waiting| {
            tracing::info!(%job, attempt = %waiting.attempt, "attempt cancelled before it started");
            self.host.data_plane.end(job, waiting.attempt);
            self.cancelled(&waiting)
        })
    }

    fn trigger(&mut self, job: &JobId, attempt: Attempt, barrier: &Barrier) -> Vec<FromTaskManager> {
        tracing::debug!(%job, %attempt, snapshot = %barrier.snapshot, barrier = %barrier.id, "barrier triggered");
        if let Err(error) = self.runs_here(job, attempt) {
            tracing::warn!(%job, %attempt, snapshot = %barrier.snapshot, %error, "snapshot declined");
            // In the name of the attempt: which subtasks it should have here is not known.
            let subtask = SubtaskId { job: job.clone(), chain: ChainId(0), index: SubtaskIndex(0), attempt };
            let (barrier, snapshot) = (barrier.id, barrier.snapshot.clone());
            return vec![FromTaskManager::SnapshotDeclined(SnapshotDeclined { subtask, barrier, snapshot, error })];
        }
        if let Some(running) = self.attempts.get_mut(job) {
            let alive = running.subtasks.iter().filter(|(_, task)| !task.state.is_terminal());
            let alive = alive.map(|(id, task)| (id.clone(), Arc::clone(&task.metrics)));
            running.loads = Some(Loads::begin(barrier.id, alive));
        }
        let deaf = self.tell(job, attempt, &Control::Trigger(barrier.clone()), |task| task.is_source);
        let declined = deaf.into_iter().map(|(subtask, error)| {
            tracing::warn!(%subtask, snapshot = %barrier.snapshot, %error, "snapshot declined");
            let (barrier, snapshot) = (barrier.id, barrier.snapshot.clone());
            FromTaskManager::SnapshotDeclined(SnapshotDeclined { subtask, barrier, snapshot, error })
        });
        declined.collect()
    }

    /// Refuses what is meant for an attempt that does not run here.
    fn runs_here(&self, job: &JobId, attempt: Attempt) -> Result<()> {
        if self.attempts.get(job).is_some_and(|running| running.attempt == attempt) {
            return Ok(());
        }
        self.fences.check(job, attempt)?;
        Err(Error::new(Code::FailedPrecondition, format!("attempt {attempt} of job {job} does not run here"))
            .with_detail("it has not started yet, or it has ended"))
    }

    fn outcome(&mut self, outcome: SnapshotOutcome) {
        let SnapshotOutcome { term, job, attempt, barrier, snapshot, failure } = outcome;
        if !self.commands(term, "outcome", &job) {
            return;
        }
        match &failure {
            None => tracing::info!(%job, %attempt, %snapshot, "snapshot completed"),
            Some(error) => tracing::warn!(%job, %attempt, %snapshot, code = %error.code, %error, "snapshot failed"),
        }
        if let Some(running) = self.attempts.get_mut(&job).filter(|running| running.attempt == attempt) {
            let loads = running.loads.take_if(|loads| loads.barrier == barrier);
            for (subtask, load) in loads.iter().flat_map(Loads::rest).filter(|_| failure.is_some()) {
                let Load { busy_percent, backpressured_percent } = load;
                let name = running.subtasks.get(subtask).map(|task| task.name.as_str()).unwrap_or_default();
                tracing::warn!(%snapshot, %subtask, name, busy_percent, backpressured_percent, "had not acknowledged");
            }
        }
        // Writers that wait for a grant are woken before their subtasks hear of it.
        self.host.grants.end(&job, attempt, barrier, &snapshot, failure.clone());
        self.tell(&job, attempt, &Control::Outcome { barrier, failure }, |_| true);
    }

    /// Tells the attempt's subtasks something; returns those that could not be told.
    fn tell(
        &mut self,
        job: &JobId,
        attempt: Attempt,
        control: &Control,
        concerns: impl Fn(&Task) -> bool,
    ) -> Vec<(SubtaskId, Error)> {
        let Some(running) = self.attempts.get(job).filter(|running| running.attempt == attempt) else {
            tracing::debug!(%job, %attempt, ?control, "no such attempt here");
            return Vec::new();
        };
        let mut deaf = Vec::new();
        for (id, task) in running.subtasks.iter().filter(|(_, task)| concerns(task)) {
            let told = task.control.as_ref().map(|inbox| inbox.try_send(control.clone()));
            match told {
                Some(Ok(())) => {}
                Some(Err(mpsc::error::TrySendError::Full(_))) => {
                    let error = Error::new(Code::ResourceExhausted, format!("subtask {id} does not take its messages"));
                    tracing::warn!(subtask = %id, ?control, "subtask does not take its messages");
                    deaf.push((id.clone(), error));
                }
                Some(Err(mpsc::error::TrySendError::Closed(_))) | None => {
                    let error = Error::new(Code::FailedPrecondition, format!("subtask {id} has ended"));
                    deaf.push((id.clone(), error));
                }
            }
        }
        deaf
    }

    /// Takes note of what happened to a subtask.
    pub(crate) fn on_event(&mut self, event: TaskEvent) -> Vec<FromTaskManager> {
        let (id, state) = match event {
            TaskEvent::Running(id) => (id, SubtaskState::Running),
            TaskEvent::Ended(id, outcome) => {
                let state = match outcome {
                    Ok(Outcome::Finished) => {
                        // Its output is durable, and nobody knows.
                        failpoint::reach("subtask.finished");
                        SubtaskState::Finished
                    }
                    Ok(Outcome::Cancelled) => SubtaskState::Cancelled,
                    Err(error) => SubtaskState::Failed(error),
                };
                (id, state)
            }
        };
        let mut messages = self.change(&id, state);
        messages.extend(self.start_waiting(&id.job));
        messages
    }

    /// Passes on what a subtask reports.
    pub(crate) fn on_report(&mut self, report: SubtaskEvent) -> Vec<FromTaskManager> {
        match report {
            SubtaskEvent::Drained(id) => self.change(&id, SubtaskState::Drained),
            SubtaskEvent::SnapshotAcked(snapshot) => {
                metrics::counter!("weir_taskmanager_snapshots_acknowledged_total").increment(1);
                let load = self.load_of(&snapshot.subtask, snapshot.barrier);
                tracing::debug!(subtask = %snapshot.subtask, snapshot = %snapshot.snapshot,
                    busy_percent = load.map(|load| load.busy_percent),
                    backpressured_percent = load.map(|load| load.backpressured_percent), "snapshot acknowledged");
                if snapshot.operators.iter().any(|operator| operator.prepared.is_some()) {
                    // Prepared, and nobody knows.
                    failpoint::reach("sink.prepared");
                }
                vec![FromTaskManager::SnapshotAcked(snapshot)]
            }
            SubtaskEvent::SnapshotDeclined(declined) => {
                metrics::counter!("weir_taskmanager_snapshots_declined_total").increment(1);
                vec![FromTaskManager::SnapshotDeclined(declined)]
            }
        }
    }

    fn load_of(&mut self, subtask: &SubtaskId, barrier: BarrierId) -> Option<Load> {
        let running = self.attempts.get_mut(&subtask.job).filter(|running| running.attempt == subtask.attempt)?;
        running.loads.as_mut().filter(|loads| loads.barrier == barrier)?.take(subtask)
    }

    fn change(&mut self, id: &SubtaskId, state: SubtaskState) -> Vec<FromTaskManager> {
        let running = self.attempts.get_mut(&id.job).filter(|running| running.attempt == id.attempt);
        let Some(running) = running else { return Vec::new() };
        let Some(task) = running.subtasks.get_mut(id) else { return Vec::new() };
        if rank(&state) <= rank(&task.state) {
            return Vec::new();
        }
        // What breaks off because the attempt is cancelled has not failed.
        task.state = match state {
            SubtaskState::Failed(_) if running.cancelled.is_cancelled() => SubtaskState::Cancelled,
            state => state,
        };
        let changed = status(id, &task.state);
        if !task.state.is_terminal() {
            return vec![changed];
        }
        task.control = None;
        match &task.state {
            SubtaskState::Failed(error) => {
                metrics::counter!("weir_taskmanager_subtask_failures_total").increment(1);
                tracing::warn!(subtask = %id, name = task.name, %error, "subtask failed");
            }
            state => tracing::info!(subtask = %id, ?state, "subtask ended"),
        }
        // Its last counters, before the state that ends them.
        let messages = vec![FromTaskManager::Heartbeat(vec![task.metrics.progress(id.clone())]), changed];
        if running.is_over() {
            self.host.data_plane.end(&id.job, id.attempt);
            self.over.push_back((id.job.clone(), id.attempt));
        }
        messages
    }

    /// Counters of every subtask that has not ended.
    pub(crate) fn progress(&self) -> Vec<SubtaskProgress> {
        let live = self.subtasks().filter(|(_, task)| !task.state.is_terminal());
        live.map(|(id, task)| task.metrics.progress(id.clone())).collect()
    }

    /// Every subtask with its state: ended ones too until [`Tasks::forget_ended`], and those that wait to be started. A
    /// JobManager that takes over matches this with what was committed.
    pub(crate) fn statuses(&self) -> Vec<SubtaskStatus> {
        let here = self.subtasks().map(|(id, task)| SubtaskStatus { subtask: id.clone(), state: task.state.clone() });
        let waiting = self.waiting.values().flat_map(|waiting| self.placed_here(waiting));
        let waiting = waiting.map(|subtask| SubtaskStatus { subtask, state: SubtaskState::Starting });
        here.chain(waiting).collect()
    }

    /// Every subtask.
    pub(crate) fn subtasks(&self) -> impl Iterator<Item = (&SubtaskId, &Task)> {
        self.attempts.values().flat_map(|running| &running.subtasks)
    }

    /// Whether an attempt is over that nobody needs to know of any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.over.len() > OVER_MAX || self.over.iter().any(|over| !self.is_remembered(over))
    }

    /// Forgets attempts that are over and that the JobManager has let go.
    pub(crate) fn forget_ended(&mut self) {
        let mut over = std::mem::take(&mut self.over);
        let excess = over.len().saturating_sub(OVER_MAX);
        let forgotten: Vec<_> = over.drain(..excess).collect();
        over.retain(|over| self.is_remembered(over));
        self.over = over;
        for (job, attempt) in &forgotten {
            self.attempts.retain(|id, running| id != job || running.attempt != *attempt);
        }
        self.attempts.retain(|_, running| !running.is_over() || !running.cancelled.is_cancelled());
        self.host.grants.retain_jobs(|job| self.attempts.contains_key(job) || self.waiting.contains_key(job));
    }

    /// Whether an attempt that is over is still there, and was not cancelled.
    fn is_remembered(&self, (job, attempt): &(JobId, Attempt)) -> bool {
        let running = self.attempts.get(job).filter(|running| running.attempt == *attempt);
        running.is_some_and(|running| !running.cancelled.is_cancelled())
    }

    fn forget(&mut self, job: &JobId) {
        self.attempts.remove(job);
    }

    /// Stops everything; nothing new starts.
    pub(crate) fn cancel_all(&mut self) {
        self.waiting.clear();
        self.attempts.values_mut().for_each(Running::cancel);
    }

    /// Whether nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.attempts.values().all(Running::is_over)
    }
}

impl From<Launched> for Task {
    fn from(launched: Launched) -> Self {
        let Launched { control, metrics, is_source, name } = launched;
        Self { state: SubtaskState::Starting, metrics, name, control: Some(control), is_source }
    }
}

/// States only rise; all terminal ones stand at the top.
fn rank(state: &SubtaskState) -> u8 {
    match state {
        SubtaskState::Starting => 0,
        SubtaskState::Running => 1,
        SubtaskState::Drained => 2,
        SubtaskState::Finished | SubtaskState::Failed(_) | SubtaskState::Cancelled => 3,
    }
}

fn status(subtask: &SubtaskId, state: &SubtaskState) -> FromTaskManager {
    FromTaskManager::Status(SubtaskStatus { subtask: subtask.clone(), state: state.clone() })
}
