//! The shell of a leading JobManager: carries out what the production coordinator, scheduler and metadata decide, as the
//! real one does, with every wait and every failure drawn from the seed.
//!
//! Commits run one at a time. Work beside the loop is a list of steps, each of which takes effect at some later time, or
//! fails before or after its effect; what comes of it is told to the reign that asked, if that still lasts.

mod attempts;
mod settling;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use weir_coordination::checkpoint::{self, Config, Coordinator, Trigger};
use weir_coordination::liveness::Liveness;
use weir_coordination::metadata::{Applied, Command, Reply, State};
use weir_coordination::scheduler::{self, JobPlan, Recovered, Scheduler, SlotsOf};
use weir_proto::convert::metadata::{decode_reply, encode_command};
use weir_replication::Status;
use weir_replication::stepwise::Request;
use weir_types::control::{FromTaskManager, Registered, Registration, ToTaskManager};
use weir_types::deployment::Placement;
use weir_types::ids::{Attempt, ClusterId, JobId, RequestId, SnapshotId, SubtaskId, TaskManagerId, Term};
use weir_types::job::JobState;
use weir_types::output::Settlement;
use weir_types::snapshot::{Annotations, SnapshotKind};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::store::Call;
use super::world::{Planted, World};
use attempts::Prepared;
use settling::Sweep;
use snapshots::{Account, Draft};

/// How often TaskManagers and leaders send each other signs of life.
pub(super) const HEARTBEAT_MS: u64 = 80;
/// After how much silence either side gives up.
pub(super) const SILENCE_MS: u64 = 400;
/// How often garbage is looked for.
const COLLECT_MS: u64 = 1_000;
/// Where checkpoints and savepoints go.
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const SAVEPOINTS: &str = "savepoints";

/// Which leader: a later one has another number, on the same member too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reign {
    pub(super) member: u64,
    pub(super) process: u64,
    pub(super) number: u64,
}

/// What follows a commit.
pub(super) enum Then {
    Nothing,
    /// Everything that had to be committed before jobs go on is.
    Recovered,
    Submitted(JobId),
    Deploy(JobId, Attempt, Vec<Placement>, Box<Prepared>),
    Reserved(JobId, SnapshotId),
    Completed(JobId, SnapshotId),
    Aborted(JobId, SnapshotId),
    Marked(SnapshotId),
    Granted(SnapshotId, SubtaskId, TaskManagerId, u64),
    ManifestGranted(Box<Draft>),
    Settled(SnapshotId),
    Discharged(JobId),
}

/// What comes to the leader's loop.
pub(super) enum Event {
    Registered { registration: Registration, session: u64 },
    Message { from: TaskManagerId, session: u64, message: FromTaskManager },
    Closed { task_manager: TaskManagerId, session: u64 },
    Step(JobId, checkpoint::Event),
    Prepared { job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Result<Prepared> },
    Drafted { job: JobId, snapshot: SnapshotId, draft: Result<Box<Draft>> },
    Kept(SnapshotId),
    Settled { snapshot: SnapshotId, found: Result<Option<checkpoint::Contents>> },
    Swept { snapshot: SnapshotId, result: Result<()> },
    Removed { snapshot: SnapshotId, result: Result<()> },
    OutputSettled { job: JobId, duty: Settlement, settled: Result<()> },
    RolledBack { job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Result<Box<Prepared>> },
}

/// What only the leader knows of a job that has not ended.
struct LiveJob {
    coordinator: Coordinator,
    pending_start: Option<(Attempt, Vec<Placement>)>,
    pending_finish: Option<Attempt>,
}

/// Answers to a proposal, and what it was.
type Committing = (oneshot::Receiver<weir_replication::Result<bytes::Bytes>>, Then);

pub(super) struct Leader {
    pub(super) reign: Reign,
    pub(super) term: Term,
    /// It was killed, or the log is not its any more: it does nothing from now on.
    pub(super) over: bool,
    commits: VecDeque<(Command, Then)>,
    committing: Option<Committing>,
    scheduler: Scheduler,
    liveness: Liveness,
    sessions: BTreeMap<TaskManagerId, u64>,
    heartbeat_at: Millis,
    collect_at: Millis,
    jobs: BTreeMap<JobId, LiveJob>,
    keeping: BTreeSet<SnapshotId>,
    removing: BTreeSet<SnapshotId>,
    removals: BTreeMap<SnapshotId, Millis>,
    /// Whether the jobs that were found have been resumed.
    pub(super) recovered: bool,
    /// Snapshots that an earlier leader left in flight, with the time of the next try; none: one is under way.
    unsettled: BTreeMap<SnapshotId, Option<Millis>>,
    /// Jobs whose output is being settled, or when that is tried again.
    duties: BTreeMap<JobId, Option<Millis>>,
    sweeps: BTreeMap<SnapshotId, Sweep>,
    accounts: BTreeMap<SnapshotId, Account>,
    /// Attempts that are to grow once the checkpoint that was asked for is there.
    growing: BTreeMap<RequestId, (JobId, Attempt)>,
    /// Work under way.
    pub(super) working: usize,
}

impl Leader {
    /// Begins to lead.
    pub(super) fn new(world: &mut World, reign: Reign, term: Term) -> Self {
        let now = world.clock(reign.member);
        let config = scheduler::Config {
            cancel_timeout_ms: 600,
            recovery_wait_ms: SILENCE_MS + 6 * HEARTBEAT_MS,
            resource_wait_ms: 300,
            resource_stabilization_ms: 200,
        };
        let mut leader = Self {
            reign,
            term,
            over: false,
            commits: VecDeque::new(),
            committing: None,
            scheduler: Scheduler::new(config),
            liveness: Liveness::new(SILENCE_MS),
            sessions: BTreeMap::new(),
            heartbeat_at: now,
            collect_at: now.plus(COLLECT_MS),
            jobs: BTreeMap::new(),
            keeping: BTreeSet::new(),
            removing: BTreeSet::new(),
            removals: BTreeMap::new(),
            recovered: false,
            unsettled: BTreeMap::new(),
            duties: BTreeMap::new(),
            sweeps: BTreeMap::new(),
            accounts: BTreeMap::new(),
            growing: BTreeMap::new(),
            working: 0,
        };
        leader.recover();
        leader
    }

    /// Reads the replicated state.
    fn state<R>(&self, world: &World, read: impl FnOnce(&State) -> R) -> R {
        let machine = world.places[&self.reign.member].running.as_ref().map(|running| running.machine.clone());
        read(&machine.unwrap().read().state)
    }

    fn now(&self, world: &World) -> Millis {
        world.clock(self.reign.member)
    }

    fn commit(&mut self, command: Command, then: Then) {
        self.commits.push_back((command, then));
    }

    /// Whether it leads, as far as its log knows.
    pub(super) fn lasts(&self, status: &Status) -> bool {
        status.serving && self.term == status.term && !self.over
    }

    /// One turn of the loop: what was committed, and what is due.
    pub(super) fn turn(&mut self, world: &mut World) {
        self.take_commit(world);
        if !self.over {
            self.on_time(world);
        }
        self.start_commit(world);
    }

    fn start_commit(&mut self, world: &mut World) {
        if self.over || self.committing.is_some() {
            return;
        }
        let Some((command, then)) = self.commits.pop_front() else {
            return;
        };
        let data = encode_command(self.now(world), &command);
        let (reply, answer) = oneshot::channel();
        let Some(running) = world.places.get_mut(&self.reign.member).and_then(|place| place.running.as_mut()) else {
            return;
        };
        running.ask(Request::Propose { data: data.into(), reply });
        self.committing = Some((answer, then));
    }

    fn take_commit(&mut self, world: &mut World) {
        let Some((answer, _)) = &mut self.committing else {
            return;
        };
        let outcome = answer.try_recv();
        if matches!(outcome, Err(TryRecvError::Empty)) {
            return;
        }
        let Some((_, then)) = self.committing.take() else {
            return;
        };
        match outcome {
            Ok(Ok(reply)) => {
                let reply = decode_reply(&reply);
                let admitted = reply.as_ref().map(|applied| applied.admitted.clone()).unwrap_or_default();
                self.follow(world, then, reply);
                for snapshot in admitted {
                    self.on_admitted(world, snapshot);
                }
            }
            // Somebody else leads, or nobody can: what was asked for is for the next one to find.
            _ => self.over = true,
        }
    }

    fn follow(&mut self, world: &mut World, then: Then, reply: Reply) {
        match then {
            Then::Nothing => {
                if let Ok(applied) = reply {
                    self.after_change(world, applied);
                }
            }
            Then::Recovered => self.take_over(world),
            Then::Submitted(job) => {
                if reply.is_ok() {
                    self.enter_job(world, &job, None);
                }
            }
            Then::Deploy(job, attempt, placements, prepared) => {
                self.on_attempt_committed(world, job, attempt, placements, *prepared, reply);
            }
            Then::Reserved(job, snapshot) => self.on_reserved(world, &job, snapshot, reply),
            Then::Completed(job, snapshot) => self.on_completed(world, &job, snapshot, reply),
            Then::Aborted(job, snapshot) => self.coordinate(world, &job, checkpoint::Event::Aborted(snapshot)),
            Then::Marked(snapshot) => {
                if reply.is_ok() {
                    self.remove_snapshot(world, snapshot);
                }
            }
            Then::Granted(snapshot, subtask, from, bytes) => {
                self.on_granted(world, snapshot, subtask, from, bytes, reply)
            }
            Then::ManifestGranted(draft) => self.publish_draft(world, *draft, reply),
            Then::Settled(snapshot) => self.on_settlement_committed(world, &snapshot, reply),
            Then::Discharged(job) => self.on_discharged(world, &job, reply),
        }
    }

    /// Takes an event.
    pub(super) fn on_event(&mut self, world: &mut World, event: Event) {
        if self.over {
            return;
        }
        match event {
            Event::Registered { registration, session } => self.open_session(world, registration, session),
            Event::Message { from, session, message } => self.on_message(world, from, session, message),
            Event::Closed { task_manager, session } => {
                self.close_session(world, &task_manager, Some(session), "its connection broke");
            }
            Event::Step(job, event) => self.coordinate(world, &job, event),
            Event::Prepared { job, attempt, placements, prepared } => {
                self.on_prepared(world, job, attempt, placements, prepared);
            }
            Event::Drafted { job, snapshot, draft } => self.on_drafted(world, &job, snapshot, draft),
            Event::Kept(snapshot) => {
                self.keeping.remove(&snapshot);
                self.remove_snapshot(world, snapshot);
            }
            Event::Settled { snapshot, found } => self.on_settled(world, snapshot, found),
            Event::Swept { snapshot, result } => self.on_swept(world, &snapshot, result),
            Event::Removed { snapshot, result } => self.on_removed(world, snapshot, result),
            Event::OutputSettled { job, duty, settled } => self.on_output_settled(world, job, duty, settled),
            Event::RolledBack { job, attempt, placements, prepared } => match prepared {
                Ok(prepared) => self.deploy(world, job, attempt, placements, *prepared),
                Err(error) => self.schedule(world, scheduler::Event::Broken(job, attempt, error)),
            },
        }
    }

    /// Whatever is due.
    fn on_time(&mut self, world: &mut World) {
        let now = self.now(world);
        if self.heartbeat_at <= now {
            self.heartbeat_at = now.plus(HEARTBEAT_MS);
            for task_manager in self.sessions.keys().cloned().collect::<Vec<_>>() {
                self.send(world, &task_manager, ToTaskManager::Heartbeat(self.term));
            }
        }
        for lost in self.liveness.expire(now) {
            world.seen("a silent TaskManager is given up");
            self.close_session(world, &lost, None, "it was silent");
        }
        if self.scheduler.next_deadline().is_some_and(|at| at <= now) {
            self.schedule(world, scheduler::Event::Tick);
        }
        let due = |job: &LiveJob| job.coordinator.next_deadline().is_some_and(|at| at <= now);
        let due: Vec<JobId> = self.jobs.iter().filter(|(_, job)| due(job)).map(|(id, _)| id.clone()).collect();
        for job in due {
            self.coordinate(world, &job, checkpoint::Event::Tick);
        }
        self.settle_due(world, now);
        self.sweep_due(world, now);
        self.discharge_due(world, now);
        let again: Vec<_> = self.removals.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for snapshot in again {
            self.remove_snapshot(world, snapshot);
        }
        if self.collect_at <= now && self.recovered {
            self.collect_at = now.plus(COLLECT_MS);
            self.collect(world);
        }
    }

    /// Nothing is under way or due beside what happens periodically.
    pub(super) fn is_idle(&self) -> bool {
        self.recovered
            && self.commits.is_empty()
            && self.committing.is_none()
            && self.working == 0
            && self.unsettled.is_empty()
            && self.duties.is_empty()
            && self.sweeps.is_empty()
            && self.removals.is_empty()
    }

    /// What is under way, for people.
    pub(super) fn describe(&self) -> String {
        let jobs = self.jobs.iter().map(|(job, live)| {
            let in_flight = live.coordinator.in_flight().map(|(reservation, _)| &reservation.snapshot);
            format!(
                "{job} {:?} in flight {in_flight:?} pending {}",
                self.scheduler.state(job),
                live.pending_start.is_some()
            )
        });
        let (unsettled, sweeps): (Vec<_>, Vec<_>) = (self.unsettled.keys().collect(), self.sweeps.keys().collect());
        let (duties, removals) = (self.duties.keys().collect::<Vec<_>>(), self.removals.keys().collect::<Vec<_>>());
        format!(
            "{} commits {} working {} unsettled {unsettled:?} sweeps {sweeps:?} duties {duties:?} removals {removals:?}",
            jobs.collect::<Vec<_>>().join("; "),
            self.commits.len() + usize::from(self.committing.is_some()),
            self.working,
        )
    }

    /// Takes a job that the metadata knows into the live state.
    fn enter_job(&mut self, world: &mut World, job: &JobId, recovered: Option<Recovered>) {
        if self.jobs.contains_key(job) {
            return;
        }
        let found = self.state(world, |state| {
            let record = state.jobs.get(job)?;
            let plan = JobPlan::new(job.clone(), &record.graph, record.parallelism_wanted, recovered);
            Some((record.last_barrier, record.graph.options.clone(), plan))
        });
        let Some((last_barrier, options, plan)) = found else {
            return;
        };
        let config = Config::new(&options, CHECKPOINTS.to_owned(), SAVEPOINTS.to_owned());
        let coordinator = Coordinator::new(job.clone(), config, last_barrier);
        self.jobs.insert(job.clone(), LiveJob { coordinator, pending_start: None, pending_finish: None });
        self.schedule(world, scheduler::Event::Submitted(plan));
    }

    fn drop_if_ended(&mut self, world: &World, job: &JobId) {
        let ended = self.state(world, |state| state.jobs.get(job).is_none_or(|job| job.state.is_terminal()));
        if ended && self.jobs.get(job).is_some_and(|live| live.coordinator.in_flight().is_none()) {
            self.jobs.remove(job);
        }
    }

    /// What follows from whatever was applied.
    fn after_change(&mut self, world: &mut World, applied: Applied) {
        for snapshot in applied.retired {
            self.remove_snapshot(world, snapshot);
        }
        let Some(job) = applied.job else { return };
        self.discharge(world, &job);
        if self.state(world, |state| state.jobs.get(&job).is_some_and(|job| job.state.is_terminal())) {
            self.release_job(world, &job);
            self.drop_if_ended(world, &job);
        }
    }

    // --- what users ask for ---------------------------------------------------------------------------------------

    /// A user submits a job; again, if it was not heard of.
    pub(super) fn submit(&mut self, world: &World, job: &JobId) {
        let new = world.jobs[job].new_job(&world.store);
        self.commit(Command::CreateJob(Box::new(new)), Then::Submitted(job.clone()));
    }

    /// A user wants a snapshot, or the job stopped with one.
    pub(super) fn want(&mut self, world: &mut World, job: &JobId, id: RequestId, kind: SnapshotKind, trigger: Trigger) {
        if matches!(trigger, Trigger::Stop(_)) {
            if self.job_state(world, job) != Some(JobState::Running) {
                return;
            }
            self.schedule(world, scheduler::Event::Stop(job.clone()));
        }
        let request = checkpoint::Request {
            id,
            kind,
            trigger,
            directory: None,
            timeout_ms: None,
            owner: String::new(),
            annotations: Annotations::default(),
            evict: false,
        };
        self.coordinate(world, job, checkpoint::Event::Requested(request));
    }

    /// A user wants a job gone.
    pub(super) fn cancel(&mut self, world: &mut World, job: &JobId) {
        self.schedule(world, scheduler::Event::Cancel(job.clone()));
    }

    /// A user wants a snapshot under way given up.
    pub(super) fn cancel_snapshot(&mut self, world: &mut World, job: &JobId) {
        let in_flight = self.jobs.get(job).and_then(|live| live.coordinator.in_flight());
        let snapshot = in_flight.map(|(reservation, _)| reservation.snapshot.clone());
        if let Some(snapshot) = snapshot.filter(|snapshot| self.jobs[job].coordinator.can_cancel(snapshot)) {
            world.seen("a user cancels a snapshot");
            self.coordinate(world, job, checkpoint::Event::Cancelled(snapshot));
        }
    }

    /// A user wants a snapshot deleted.
    pub(super) fn delete(&mut self, snapshot: SnapshotId, request: RequestId) {
        let by = weir_coordination::metadata::Deleter::User("ann".to_owned());
        let request = Some(request);
        let command = Command::MarkDeleted { snapshot: snapshot.clone(), request, force: false, by };
        self.commit(command, Then::Marked(snapshot));
    }

    /// The operator sets a limit, or takes all away.
    pub(super) fn set_quota(&mut self, limits: Option<weir_types::quota::QuotaLimits>) {
        let level = weir_types::quota::QuotaLevel::Cluster;
        self.commit(Command::SetQuota { request: None, level, limits }, Then::Nothing);
    }

    /// A job's state as the log knows it.
    pub(super) fn job_state(&self, world: &World, job: &JobId) -> Option<JobState> {
        self.state(world, |state| state.jobs.get(job).map(|job| job.state))
    }

    // --- sessions -------------------------------------------------------------------------------------------------

    fn open_session(&mut self, world: &mut World, registration: Registration, session: u64) {
        let task_manager = registration.task_manager.clone();
        self.close_session(world, &task_manager, None, "it has registered again");
        let (id, slots) = (task_manager.clone(), registration.slots);
        let slots = SlotsOf { id, slots, data_address: registration.data_address.clone() };
        let statuses = registration.running.clone();
        if !statuses.is_empty() {
            world.seen("a TaskManager registers with what it runs");
        }
        self.sessions.insert(task_manager.clone(), session);
        self.liveness.watch(self.now(world), task_manager.clone());
        let registered = Registered {
            cluster: ClusterId::new("sim").unwrap(),
            term: self.term,
            heartbeat_interval_ms: HEARTBEAT_MS,
            heartbeat_timeout_ms: SILENCE_MS,
        };
        self.send(world, &task_manager, ToTaskManager::Registered(registered));
        self.repeat_outcomes(world, &task_manager, &statuses);
        self.remind_writer(world, &task_manager);
        self.schedule(world, scheduler::Event::TaskManagerJoined(slots, statuses));
    }

    fn close_session(&mut self, world: &mut World, id: &TaskManagerId, session: Option<u64>, reason: &str) {
        if self.sessions.get(id).is_none_or(|open| session.is_some_and(|session| session != *open)) {
            return;
        }
        world.note(|| format!("leader loses {id}: {reason}"));
        self.sessions.remove(id);
        self.liveness.forget(id);
        let error = Error::unavailable(format!("TaskManager {id} was lost")).with_detail(reason.to_owned());
        self.schedule(world, scheduler::Event::TaskManagerLost(id.clone(), error));
    }

    fn on_message(&mut self, world: &mut World, from: TaskManagerId, session: u64, message: FromTaskManager) {
        if self.sessions.get(&from) != Some(&session) {
            return;
        }
        self.liveness.heard(self.now(world), &from);
        match message {
            FromTaskManager::Register(_) | FromTaskManager::Heartbeat(_) => {}
            FromTaskManager::Status(status) => self.schedule(world, scheduler::Event::Status(status)),
            FromTaskManager::SnapshotAcked(ack) => {
                let job = ack.subtask.job.clone();
                self.coordinate(world, &job, checkpoint::Event::Acked(ack));
            }
            FromTaskManager::SnapshotDeclined(declined) => {
                let job = declined.subtask.job.clone();
                self.coordinate(world, &job, checkpoint::Event::Declined(declined));
            }
            FromTaskManager::GrantWanted(request) => self.on_grant_wanted(world, from, request),
            FromTaskManager::WritersStopped(stopped) => self.on_writers_stopped(world, &from, &stopped),
        }
    }

    fn send(&mut self, world: &mut World, to: &TaskManagerId, message: ToTaskManager) {
        if let Some(session) = self.sessions.get(to) {
            world.send_down(*session, message);
        }
    }

    // --- work beside the loop -------------------------------------------------------------------------------------

    /// Runs steps one after the other, as long as they succeed; `end` makes an event of how they went.
    fn work(&mut self, world: &mut World, steps: Vec<Step>, end: impl FnOnce(Result<()>) -> Event + 'static) {
        self.working += 1;
        let reign = self.reign;
        run(
            world,
            reign,
            steps.into(),
            Box::new(move |world, result| {
                let event = end(result);
                world.tell_leader(reign, true, event);
            }),
        );
    }

    /// As [`Leader::work`], for work nobody waits for.
    fn spawn(&mut self, world: &mut World, steps: Vec<Step>) {
        run(world, self.reign, steps.into(), Box::new(|_, _| {}));
    }
}

/// One step of work.
pub(super) type Step = Box<dyn FnOnce(&mut World) -> Result<()>>;
type End = Box<dyn FnOnce(&mut World, Result<()>)>;

fn run(world: &mut World, reign: Reign, mut steps: VecDeque<Step>, end: End) {
    let delay = world.work_delay();
    world.after(delay, move |world| {
        if !world.is_process_alive(reign) {
            return;
        }
        // Whoever is deposed drops its work, but for a request that is under way.
        if !world.reigns(reign) && world.random.chance(500) {
            return;
        }
        match steps.pop_front() {
            None => end(world, Ok(())),
            Some(step) => match world.try_step(step) {
                Ok(()) => run(world, reign, steps, end),
                Err(error) => end(world, Err(error)),
            },
        }
    });
}

/// A call to the store, as a step.
pub(super) fn call(reign: Reign, call: Call) -> Step {
    Box::new(move |world: &mut World| world.call_store(reign.member, call))
}

/// A call whose object may be gone.
pub(super) fn call_found(reign: Reign, call: Call) -> Step {
    Box::new(move |world: &mut World| found(world.call_store(reign.member, call)))
}

/// What is not there any more is no error.
fn found(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.code != Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a bug is planted.
fn planted(world: &World, what: Planted) -> bool {
    world.planted == what
}
