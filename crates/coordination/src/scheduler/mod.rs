//! Which subtask runs where, and what becomes of a job whose subtasks break.
//!
//! [`Scheduler`] takes events and returns actions. Invariants: a slot runs the subtasks of one attempt; an attempt is
//! deployed only after everything of the one before has ended, was lost, or has been given up; a job that has ended, or
//! whose stop is complete, is never deployed again. A new JobManager stops nothing that may go on: see
//! [`execution::adoption`].

mod execution;
mod restart;
mod scaling;
mod slots;

use std::collections::{BTreeMap, BTreeSet};

use weir_types::control::SubtaskStatus;
use weir_types::deployment::{Placement, SplitAssignment};
use weir_types::error::Facts;
use weir_types::graph::JobGraph;
use weir_types::ids::{Attempt, ChainId, JobId, OperatorUid, Parallelism, SubtaskId, SubtaskIndex, TaskManagerId};
use weir_types::job::{JobChange, JobFailure, JobState};
use weir_types::restart::RestartStrategy;
use weir_types::snapshot::SplitPosition;
use weir_types::time::Millis;
use weir_types::{Code, Error};

use execution::{Cause, Execution};
pub use slots::{Slots, SlotsOf};

/// How patient the scheduler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// After which time cancelled subtasks that say nothing are given up.
    pub cancel_timeout_ms: u64,
    /// How long TaskManagers may take to register with a new JobManager; what they run is lost then.
    pub recovery_wait_ms: u64,
    /// How long a job waits for slots before it begins with fewer subtasks, if it may.
    pub resource_wait_ms: u64,
    /// How long slots must have been there before a job with too few subtasks is restarted to use them.
    pub resource_stabilization_ms: u64,
}

/// What the scheduler must know of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPlan {
    /// The job.
    pub job: JobId,
    /// Its chains, and the most subtasks that each may have; none: as many as the job's parallelism.
    pub chains: Vec<(ChainId, Option<Parallelism>)>,
    /// The parallelism that it is to have.
    pub parallelism: Parallelism,
    /// With how few subtasks it may run while slots are missing; none: it waits for slots.
    pub parallelism_min: Option<Parallelism>,
    /// Those that are headed by a source.
    pub sources: BTreeSet<ChainId>,
    /// Whether and when it is restarted.
    pub restart: RestartStrategy,
    /// Where it stood when an earlier JobManager ended; none: it is new.
    pub recovered: Option<Recovered>,
}

/// A job as an earlier JobManager left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its state.
    pub state: JobState,
    /// Its newest attempt.
    pub attempt: Attempt,
    /// That one's parallelism.
    pub parallelism: Parallelism,
    /// Where that runs, or ran.
    pub placements: Vec<Placement>,
    /// Whether a stop's savepoint is complete.
    pub stopped: bool,
    /// How often it has failed.
    pub failures: u32,
    /// When it failed, as far as that is remembered; oldest first.
    pub failed_at: Vec<Millis>,
}

impl JobPlan {
    /// The plan of a job graph, at a parallelism that need not be the one that it has now.
    pub fn new(job: JobId, graph: &JobGraph, parallelism: Parallelism, recovered: Option<Recovered>) -> Self {
        let chains = graph.chains();
        Self {
            job,
            chains: chains.iter().map(|chain| (chain.id, graph.parallelism_max(&chain.operators))).collect(),
            parallelism,
            parallelism_min: graph.options.parallelism_min,
            sources: chains
                .iter()
                .filter(|chain| chain.operators.first().is_some_and(|head| graph.inputs(*head).next().is_none()))
                .map(|chain| chain.id)
                .collect(),
            restart: graph.options.restart.clone(),
            recovered,
        }
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A TaskManager is there. It has these subtasks and no others, those that ended while nobody heard of it included.
    TaskManagerJoined(SlotsOf, Vec<SubtaskStatus>),
    /// A TaskManager is gone.
    TaskManagerLost(TaskManagerId, Error),
    /// A job was accepted, or recovered.
    Submitted(JobPlan),
    /// The attempt was committed and is being deployed.
    Deployed(JobId, Attempt),
    /// A subtask has changed its state.
    Status(SubtaskStatus),
    /// An attempt cannot go on, for a reason outside of its subtasks.
    Broken(JobId, Attempt, Error),
    /// The attempt has come to an end that somebody wanted, and the job goes on with another one: no failure of it.
    Resumed(JobId, Attempt, Error),
    /// The job is to have another parallelism, and has a snapshot from which its next attempt, with that, begins now.
    Rescale(JobId, Parallelism),
    /// The snapshot that [`Action::Grow`] asks for is there: the next attempt begins now, with as many subtasks as there are
    /// slots for.
    Grow(JobId, Attempt),
    /// There is no such snapshot: growing is tried again after a while.
    NotGrown(JobId, Attempt),
    /// The user wants the job gone.
    Cancel(JobId),
    /// A stop with savepoint begins.
    Stop(JobId),
    /// The stop was given up; the job runs on.
    StopAbandoned(JobId),
    /// The stop's savepoint is complete: whatever happens, the job never restarts.
    StopCompleted(JobId),
    /// Time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Commit and deploy an attempt; failure to do so is reported as [`Event::Broken`].
    StartAttempt(JobId, Attempt, Vec<Placement>),
    /// Tell TaskManagers to stop an attempt and any lower one.
    CancelAttempt(JobId, Attempt, Vec<TaskManagerId>),
    /// Every source subtask is drained: let the attempt end.
    FinishAttempt(JobId, Attempt),
    /// Commit a change of the job's state.
    ChangeJob(JobId, JobChange, Option<Box<JobFailure>>),
    /// There have been slots for more of the subtasks that the job lacks, or it has more than it should: take a checkpoint, so
    /// that little is processed again, and answer with [`Event::Grow`] or [`Event::NotGrown`].
    Grow(JobId, Attempt),
    /// All of an attempt that an earlier JobManager had started has registered: it goes on.
    Adopted(JobId, Attempt),
    /// All subtasks of the attempt run.
    AttemptRunning(JobId, Attempt),
    /// The attempt is over.
    AttemptEnded(JobId, Attempt, Error),
}

/// Decides about all jobs and slots.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    slots: Slots,
    jobs: BTreeMap<JobId, Execution>,
    /// In which order jobs that wait are served.
    next_order: u64,
}

impl Scheduler {
    /// Nobody is there yet.
    pub fn new(config: Config) -> Self {
        Self { config, slots: Slots::default(), jobs: BTreeMap::new(), next_order: 0 }
    }

    /// Takes an event and says what is to be done, in this order.
    pub fn on_event(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::TaskManagerJoined(slots, running) => self.joined(now, slots, running, &mut out),
            Event::TaskManagerLost(id, error) => {
                self.slots.remove(&id);
                for execution in self.jobs.values_mut() {
                    execution.task_manager_lost(now, self.config, &id, &error, &mut out);
                }
            }
            Event::Submitted(plan) => {
                let order = self.next_order;
                self.next_order += 1;
                let job = plan.job.clone();
                let execution = Execution::new(now, self.config, order, plan, &mut out);
                self.jobs.insert(job, execution);
            }
            Event::Deployed(job, attempt) => {
                if let Some(execution) = self.jobs.get_mut(&job).filter(|execution| execution.attempt() == attempt) {
                    execution.deployed();
                }
            }
            Event::Status(status) => {
                if let Some(execution) = self.jobs.get_mut(&status.subtask.job) {
                    execution.status(now, self.config, status, &mut out);
                }
            }
            Event::Broken(job, attempt, error) => {
                if let Some(execution) = self.jobs.get_mut(&job).filter(|execution| execution.attempt() == attempt) {
                    execution.broken(now, self.config, Cause::outside(error), &mut out);
                }
            }
            Event::Resumed(job, attempt, error) => {
                if let Some(execution) = self.jobs.get_mut(&job).filter(|execution| execution.attempt() == attempt) {
                    execution.resume(now, self.config, error, &mut out);
                }
            }
            Event::Rescale(job, parallelism) => {
                self.with(&job, |execution, config| execution.rescale(now, config, Some(parallelism), &mut out));
            }
            Event::Grow(job, attempt) => {
                let slots = self.slots_within_reach(&job);
                if let Some(execution) = self.jobs.get_mut(&job).filter(|execution| execution.attempt() == attempt) {
                    execution.grow_into(now, self.config, slots, &mut out);
                }
            }
            Event::NotGrown(job, attempt) => {
                if let Some(execution) = self.jobs.get_mut(&job).filter(|execution| execution.attempt() == attempt) {
                    execution.did_not_grow();
                }
            }
            Event::Cancel(job) => self.with(&job, |execution, config| execution.cancel(now, config, &mut out)),
            Event::Stop(job) => self.with(&job, |execution, _| execution.change(JobChange::Stop, None, &mut out)),
            Event::StopAbandoned(job) => self.with(&job, |execution, _| execution.stop_abandoned(now, &mut out)),
            Event::StopCompleted(job) => {
                self.with(&job, |execution, config| execution.stop_completed(now, config, &mut out))
            }
            Event::Tick => {
                for execution in self.jobs.values_mut() {
                    execution.tick(now, self.config, &mut out);
                }
            }
        }
        self.jobs.retain(|_, execution| !execution.is_over());
        self.deploy(now, &mut out);
        self.grow(now, &mut out);
        out
    }

    /// When [`Event::Tick`] may next change anything.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.jobs.values().filter_map(|execution| execution.next_deadline(self.config)).min()
    }

    /// The state of a job that has not ended.
    pub fn state(&self, job: &JobId) -> Option<JobState> {
        self.jobs.get(job).map(Execution::state)
    }

    /// The newest attempt of a job that has not ended.
    pub fn attempt(&self, job: &JobId) -> Option<Attempt> {
        self.jobs.get(job).map(Execution::attempt)
    }

    /// The parallelism of a job's newest attempt.
    pub fn parallelism(&self, job: &JobId) -> Option<Parallelism> {
        self.jobs.get(job).map(Execution::parallelism)
    }

    /// How many slots a job has or could have: its own and the free ones.
    pub fn slots_within_reach(&self, job: &JobId) -> usize {
        let own = self.jobs.get(job).map_or(0, |execution| execution.slots().collect::<BTreeSet<_>>().len());
        own + self.slots.count_free(&self.occupied())
    }

    /// The TaskManagers that a job's attempt runs on.
    pub fn task_managers_of(&self, job: &JobId) -> BTreeSet<TaskManagerId> {
        self.jobs.get(job).map(Execution::task_managers).unwrap_or_default()
    }

    /// The state of one subtask of the newest attempt, in words.
    pub fn subtask_state(&self, subtask: &SubtaskId) -> Option<&'static str> {
        self.jobs.get(&subtask.job)?.subtask_state(subtask)
    }

    /// Why a job does not run, in words; empty if it does.
    pub fn waiting_for(&self, now: Millis, job: &JobId) -> Vec<String> {
        let Some(execution) = self.jobs.get(job) else { return Vec::new() };
        let free = self.slots.count_free(&self.occupied());
        execution.waiting_for(now, free, self.slots.total())
    }

    /// Slots of one TaskManager that run nothing.
    pub fn slots_free(&self, task_manager: &TaskManagerId) -> u32 {
        self.slots.free(&self.occupied()).get(task_manager).map_or(0, |slots| slots.len() as u32)
    }

    fn with(&mut self, job: &JobId, act: impl FnOnce(&mut Execution, Config)) {
        if let Some(execution) = self.jobs.get_mut(job) {
            act(execution, self.config);
        }
    }

    fn joined(&mut self, now: Millis, slots: SlotsOf, has: Vec<SubtaskStatus>, out: &mut Vec<Action>) {
        let task_manager = slots.id.clone();
        self.slots.insert(slots);
        let mut of_jobs: BTreeMap<JobId, Vec<SubtaskStatus>> = BTreeMap::new();
        for status in has {
            of_jobs.entry(status.subtask.job.clone()).or_default().push(status);
        }
        let stop = |job, attempt| Action::CancelAttempt(job, attempt, vec![task_manager.clone()]);
        for (job, execution) in &mut self.jobs {
            let statuses = of_jobs.remove(job).unwrap_or_default();
            let stray = execution.registered(now, self.config, &task_manager, statuses, out);
            out.extend(stray.map(|attempt| stop(job.clone(), attempt)));
        }
        // Jobs that have ended, and those that nobody knows.
        for (job, statuses) in of_jobs {
            let stray = statuses.iter().map(|status| status.subtask.attempt).max();
            out.extend(stray.map(|attempt| stop(job, attempt)));
        }
    }

    fn occupied(&self) -> BTreeSet<(TaskManagerId, u32)> {
        self.jobs.values().flat_map(Execution::slots).collect()
    }

    fn deploy(&mut self, now: Millis, out: &mut Vec<Action>) {
        let mut waiting: Vec<_> =
            self.jobs.values().filter(|job| job.ready(now)).map(|job| (job.order(), job.id())).collect();
        waiting.sort_unstable();
        for (_, job) in waiting {
            let occupied = self.occupied();
            let free = self.slots.count_free(&occupied);
            let Some(execution) = self.jobs.get_mut(&job) else { continue };
            let Some(parallelism) = execution.fit(now, self.config, free) else { continue };
            if let Some(placements) = self.slots.place(&occupied, &execution.chains_at(parallelism)) {
                execution.deploy(parallelism, placements, out);
            }
        }
    }

    /// Lets jobs that have fewer subtasks than they should use slots that nobody waits for.
    fn grow(&mut self, now: Millis, out: &mut Vec<Action>) {
        let wanting = self.jobs.values().any(Execution::waits_to_be_deployed);
        let mut free = self.slots.count_free(&self.occupied());
        let mut jobs: Vec<_> = self.jobs.values_mut().collect();
        jobs.sort_unstable_by_key(|job| job.order());
        for execution in jobs {
            // What one job grows into is not there for the next one.
            let usable = if wanting { 0 } else { free };
            free = free.saturating_sub(execution.grow(now, self.config, usable, out));
        }
    }
}

/// Deals the splits of a source out to its subtasks, evenly: split i goes to subtask `i % parallelism`.
pub fn assign_splits(
    uid: &OperatorUid,
    parallelism: Parallelism,
    splits: impl IntoIterator<Item = SplitPosition>,
) -> Vec<SplitAssignment> {
    let owner = |index: usize| SubtaskIndex((index % parallelism.get() as usize) as u32);
    let assign = |(index, position)| SplitAssignment { uid: uid.clone(), index: owner(index), position };
    splits.into_iter().enumerate().map(assign).collect()
}

/// Whether the same attempt would fail the same way again, so that a restart only repeats it.
fn is_fatal(error: &Error) -> bool {
    matches!(
        error.code,
        Code::InvalidArgument
            | Code::InvalidSql
            | Code::Unsupported
            | Code::MalformedRecord
            | Code::NotFound
            | Code::OffsetTruncated
            | Code::Corrupt
            | Code::Unrestorable
            | Code::DuplicateOutput
    )
}

/// Whether an attempt could not read what it was to start from: the next one may start from something else, and fails if
/// there is nothing else.
fn is_unreadable_state(error: &Error) -> bool {
    matches!(error.facts.as_deref(), Some(Facts::StateUnreadable { .. }))
}
