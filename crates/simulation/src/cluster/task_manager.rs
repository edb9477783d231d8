//! A fake TaskManager: obeys commands by the production rules for terms and attempts, runs subtasks, writes files and
//! acknowledges. It goes on without a leader, and what it could not say is said to the next one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weir_types::control::{
    CancelAttempt, FinishAttempt, FromTaskManager, Grant, GrantRequest, Registration, SnapshotDeclined,
    SnapshotOutcome, SubtaskStatus, ToTaskManager, TriggerBarrier, WritersStopped,
};
use weir_types::deployment::{Deployment, SubtaskState};
use weir_types::ids::{Attempt, BarrierId, ChainId, JobId, SnapshotId, SubtaskId, SubtaskIndex, TaskManagerId, Term};
use weir_types::snapshot::{Barrier, OperatorSnapshot, SnapshotTimings, StateFile, SubtaskSnapshot};
use weir_types::{Code, Error};

use super::leader::{HEARTBEAT_MS, SILENCE_MS};
use super::subtask::{Outcome, Part, Role, Subtask, Sums};
use super::world::{Planted, World};

/// Messages kept for the next session.
const UNSENT_MAX: usize = 256;

/// A process.
pub(super) struct TaskManager {
    pub(super) id: TaskManagerId,
    pub(super) slots: u32,
    term: Term,
    fences: BTreeMap<JobId, Attempt>,
    attempts: BTreeMap<JobId, Running>,
    waiting: BTreeMap<JobId, Box<Deployment>>,
    pub(super) session: Option<u64>,
    pub(super) connecting: bool,
    pub(super) heard_at: u64,
    heartbeat_at: u64,
    /// It stands still until then.
    pub(super) paused_until: u64,
    pub(super) unsent: VecDeque<FromTaskManager>,
    /// Files being written, by snapshot.
    writes: BTreeMap<(SnapshotId, SubtaskId), Write>,
    /// How subtasks have ended of attempts that no leader has let go.
    over: BTreeMap<(JobId, Attempt), Vec<SubtaskStatus>>,
    /// Snapshots that have failed: nobody here begins to write one.
    failed: BTreeSet<SnapshotId>,
}

struct Running {
    attempt: Attempt,
    cancelled: bool,
    subtasks: BTreeMap<SubtaskId, Subtask>,
}

/// A file on its way.
struct Write {
    barrier: Barrier,
    sums: Sums,
    prepared: bool,
    bytes: Vec<u8>,
    granted: bool,
    file: Option<String>,
}

impl TaskManager {
    pub(super) fn new(id: TaskManagerId, slots: u32) -> Self {
        Self {
            id,
            slots,
            term: Term(0),
            fences: BTreeMap::new(),
            attempts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            session: None,
            connecting: false,
            heard_at: 0,
            heartbeat_at: 0,
            paused_until: 0,
            unsent: VecDeque::new(),
            writes: BTreeMap::new(),
            over: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// How it introduces itself.
    pub(super) fn registration(&self) -> Registration {
        let subtasks = self.attempts.values().flat_map(|running| running.subtasks.values());
        let here = subtasks.map(|task| SubtaskStatus { subtask: task.id.clone(), state: task.state.clone() });
        let waiting = self.waiting.values().flat_map(|waiting| self.placed_here(waiting));
        let waiting = waiting.map(|subtask| SubtaskStatus { subtask, state: SubtaskState::Starting });
        let over = self.over.values().flatten().cloned();
        Registration {
            cluster: None,
            task_manager: self.id.clone(),
            data_address: self.id.to_string(),
            http_address: String::new(),
            slots: self.slots,
            process_id: 1,
            running: here.chain(waiting).chain(over).collect(),
        }
    }

    fn placed_here(&self, deployment: &Deployment) -> Vec<SubtaskId> {
        let here = deployment.placements.iter().filter(|placement| placement.task_manager == self.id);
        let (job, attempt) = (&deployment.job, deployment.attempt);
        here.map(|at| SubtaskId { job: job.clone(), chain: at.chain, index: at.index, attempt }).collect()
    }

    fn say(&mut self, message: FromTaskManager) {
        self.unsent.push_back(message);
        if self.unsent.len() > UNSENT_MAX {
            self.unsent.pop_front();
        }
    }

    fn say_status(&mut self, subtask: SubtaskId, state: SubtaskState) {
        self.say(FromTaskManager::Status(SubtaskStatus { subtask, state }));
    }

    /// Refuses a leader whose term is over.
    pub(super) fn enter_term(&mut self, term: Term) -> bool {
        let counts = term >= self.term;
        self.term = self.term.max(term);
        counts
    }

    /// Carries out a command.
    pub(super) fn on_command(&mut self, world: &mut World, command: ToTaskManager) {
        let term = match &command {
            ToTaskManager::Registered(registered) => registered.term,
            ToTaskManager::Deploy(deployment) => deployment.term,
            ToTaskManager::Cancel(CancelAttempt { term, .. })
            | ToTaskManager::Trigger(TriggerBarrier { term, .. })
            | ToTaskManager::Finish(FinishAttempt { term, .. })
            | ToTaskManager::SnapshotOutcome(SnapshotOutcome { term, .. })
            | ToTaskManager::Grant(Grant { term, .. })
            | ToTaskManager::Heartbeat(term) => *term,
        };
        if !self.enter_term(term) {
            world.seen("a command of an old term is refused");
            return;
        }
        match command {
            ToTaskManager::Registered(_) | ToTaskManager::Heartbeat(_) => {}
            ToTaskManager::Deploy(deployment) => self.deploy(world, deployment),
            ToTaskManager::Cancel(cancel) => self.cancel(world, &cancel.job, cancel.attempt),
            ToTaskManager::Trigger(trigger) => self.trigger(&trigger.job, trigger.attempt, trigger.barrier),
            ToTaskManager::Finish(finish) => self.finish(world, &finish.job, finish.attempt),
            ToTaskManager::SnapshotOutcome(outcome) => self.outcome(world, outcome),
            ToTaskManager::Grant(grant) => {
                let key = (grant.snapshot, grant.subtask);
                let Some(write) = self.writes.get_mut(&key).filter(|write| !write.granted) else { return };
                if grant.bytes >= write.bytes.len() as u64 {
                    write.granted = true;
                    self.proceed(world, key);
                }
            }
        }
    }

    fn deploy(&mut self, world: &mut World, deployment: Box<Deployment>) {
        let (job, attempt) = (deployment.job.clone(), deployment.attempt);
        let known = self.attempts.get(&job).is_some_and(|running| running.attempt == attempt)
            || self.waiting.get(&job).is_some_and(|waiting| waiting.attempt == attempt);
        if known {
            return;
        }
        if self.fences.get(&job).is_some_and(|fence| attempt <= *fence) {
            world.seen("a deployment of an attempt that is over is refused");
            for subtask in self.placed_here(&deployment) {
                self.say_status(subtask, SubtaskState::Failed(Error::fenced("the attempt is over")));
            }
            return;
        }
        self.fences.insert(job.clone(), attempt);
        self.over.retain(|(of, _), _| *of != job);
        if let Some(replaced) = self.waiting.insert(job.clone(), deployment) {
            for subtask in self.placed_here(&replaced) {
                self.say_status(subtask, SubtaskState::Cancelled);
            }
        }
        self.stop_running(world, &job);
        self.start_waiting(world, &job);
    }

    fn start_waiting(&mut self, world: &mut World, job: &JobId) {
        if self.attempts.get(job).is_some_and(|running| !running.subtasks.is_empty()) {
            return;
        }
        let Some(deployment) = self.waiting.remove(job) else { return };
        let transactional = world.jobs[job].transactional;
        let mut subtasks = BTreeMap::new();
        for id in self.placed_here(&deployment) {
            self.say_status(id.clone(), SubtaskState::Starting);
            subtasks.insert(id.clone(), Subtask::new(id.clone(), &deployment, transactional));
            let (delay, manager, restore) = (world.work_delay(), self.id.clone(), deployment.restore.clone());
            world.after(delay, move |world| {
                world.with_manager(&manager, |manager, world| manager.start(world, &id, restore.as_ref()));
            });
        }
        self.attempts.insert(job.clone(), Running { attempt: deployment.attempt, cancelled: false, subtasks });
    }

    /// A subtask has connected and loads its state.
    fn start(&mut self, world: &mut World, id: &SubtaskId, restore: Option<&weir_types::deployment::Restore>) {
        let Some(task) = self.attempts.get_mut(&id.job).and_then(|running| running.subtasks.get_mut(id)) else {
            return;
        };
        if let (Role::Sink(sink), Some(restore)) = (&mut task.role, restore) {
            for file in restore.operators.iter().flat_map(|operator| &operator.files) {
                let Some(bytes) = world.storage.read(&restore.directory, &file.path) else {
                    // Fatal for a job, unless the attempt is over already.
                    let error = Error::not_found(format!("{}/{} is gone", restore.directory, file.path));
                    return self.end(world, id, SubtaskState::Failed(error));
                };
                let all: Sums = serde_json::from_slice(&bytes).unwrap();
                sink.sums.extend(all.into_iter().filter(|(key, _)| key % task.parallelism == id.index.0));
            }
        }
        task.state = SubtaskState::Running;
        self.say_status(id.clone(), SubtaskState::Running);
    }

    fn stop_running(&mut self, world: &mut World, job: &JobId) {
        let Some(running) = self.attempts.get_mut(job).filter(|running| !running.cancelled) else { return };
        running.cancelled = true;
        for id in running.subtasks.keys().cloned().collect::<Vec<_>>() {
            // Until then it goes on as if nothing had happened.
            let (delay, manager) = (world.work_delay(), self.id.clone());
            world.after(delay, move |world| {
                world.with_manager(&manager, |manager, world| manager.end(world, &id, SubtaskState::Cancelled));
            });
        }
    }

    /// A subtask has ended.
    pub(super) fn end(&mut self, world: &mut World, id: &SubtaskId, state: SubtaskState) {
        let Some(running) = self.attempts.get_mut(&id.job) else { return };
        if running.subtasks.remove(id).is_none() {
            return;
        }
        // What breaks off because the attempt is cancelled has not failed.
        let state = match state {
            SubtaskState::Failed(_) if running.cancelled => SubtaskState::Cancelled,
            state => state,
        };
        if !running.cancelled {
            let status = SubtaskStatus { subtask: id.clone(), state: state.clone() };
            self.over.entry((id.job.clone(), id.attempt)).or_default().push(status);
        }
        if running.subtasks.is_empty() {
            self.attempts.remove(&id.job);
        }
        for key in self.writes.keys().filter(|(_, of)| of == id).cloned().collect::<Vec<_>>() {
            self.give_up(world, &key);
        }
        self.say_status(id.clone(), state);
        self.start_waiting(world, &id.job);
    }

    fn cancel(&mut self, world: &mut World, job: &JobId, attempt: Attempt) {
        let fence = self.fences.entry(job.clone()).or_insert(attempt);
        *fence = attempt.max(*fence);
        self.over.retain(|(of, over), _| of != job || *over > attempt);
        if self.waiting.get(job).is_some_and(|waiting| waiting.attempt <= attempt)
            && let Some(waiting) = self.waiting.remove(job)
        {
            for subtask in self.placed_here(&waiting) {
                self.say_status(subtask, SubtaskState::Cancelled);
            }
        }
        if self.attempts.get(job).is_some_and(|running| running.attempt <= attempt) {
            self.stop_running(world, job);
        }
    }

    fn trigger(&mut self, job: &JobId, attempt: Attempt, barrier: Barrier) {
        let Some(running) = self.attempts.get_mut(job).filter(|running| running.attempt == attempt) else {
            let subtask = SubtaskId { job: job.clone(), chain: ChainId(0), index: SubtaskIndex(0), attempt };
            let error = Error::new(Code::FailedPrecondition, "the attempt does not run here");
            let (snapshot, barrier) = (barrier.snapshot, barrier.id);
            return self.say(FromTaskManager::SnapshotDeclined(SnapshotDeclined { subtask, barrier, snapshot, error }));
        };
        for task in running.subtasks.values_mut() {
            if let Role::Source(source) = &mut task.role {
                source.barriers.push_back(barrier.clone());
            }
        }
    }

    fn finish(&mut self, world: &mut World, job: &JobId, attempt: Attempt) {
        let Some(running) = self.attempts.get_mut(job).filter(|running| running.attempt == attempt) else { return };
        for task in running.subtasks.values_mut() {
            if let Role::Source(source) = &mut task.role {
                source.end(world, &task.id, task.parallelism);
            }
        }
    }

    fn outcome(&mut self, world: &mut World, outcome: SnapshotOutcome) {
        let SnapshotOutcome { job, attempt, barrier, snapshot, failure, .. } = outcome;
        if failure.is_none() {
            let complete = world.history.lock().completed.contains(&snapshot);
            assert!(complete, "{} is told that {snapshot} is complete, which the log does not say", self.id);
        }
        if let Some(running) = self.attempts.get_mut(&job).filter(|running| running.attempt == attempt) {
            for task in running.subtasks.values_mut() {
                let Role::Sink(sink) = &mut task.role else { continue };
                match &failure {
                    None => sink.committed(barrier),
                    Some(_) => sink.forget(barrier),
                }
            }
        }
        if failure.is_some() {
            for key in self.writes.keys().filter(|(of, _)| *of == snapshot).cloned().collect::<Vec<_>>() {
                self.give_up(world, &key);
            }
            self.failed.insert(snapshot.clone());
            self.say(FromTaskManager::WritersStopped(WritersStopped { job, attempt, snapshot }));
        }
    }

    /// Stops writing a file and deletes what there is of it.
    fn give_up(&mut self, world: &mut World, key: &(SnapshotId, SubtaskId)) {
        let Some(write) = self.writes.remove(key) else { return };
        if let Some(file) = &write.file {
            world.seen("a TaskManager gives up a file");
            world.storage.delete(&write.barrier.directory, file);
        }
        let task = self.attempts.get_mut(&key.1.job).and_then(|running| running.subtasks.get_mut(&key.1));
        if let Some(Subtask { role: Role::Sink(sink), .. }) = task {
            sink.writing -= 1;
        }
    }

    /// One tick: every subtask may do something.
    pub(super) fn tick(&mut self, world: &mut World) {
        if world.now < self.paused_until {
            return;
        }
        let ids: Vec<SubtaskId> = self.attempts.values().flat_map(|running| running.subtasks.keys().cloned()).collect();
        for id in ids {
            if world.random.chance(300) {
                continue;
            }
            let Some(task) = self.attempts.get_mut(&id.job).and_then(|running| running.subtasks.get_mut(&id)) else {
                continue;
            };
            if task.state != SubtaskState::Running {
                continue;
            }
            match task.step(world) {
                Outcome::Nothing => {}
                Outcome::Finished => self.end(world, &id, SubtaskState::Finished),
                Outcome::Failed(error) => self.end(world, &id, SubtaskState::Failed(error)),
                Outcome::Frozen(barrier, part) => self.frozen(world, id, barrier, part),
            }
        }
        if self.session.is_some() {
            if self.heartbeat_at <= world.now {
                self.heartbeat_at = world.now + HEARTBEAT_MS;
                self.say(FromTaskManager::Heartbeat(Vec::new()));
            }
            if world.now > self.heard_at + SILENCE_MS {
                world.seen("a TaskManager gives up a silent leader");
                self.session = None;
            }
        }
        if let Some(session) = self.session {
            for message in self.unsent.drain(..) {
                world.send_up(session, message);
            }
        }
    }

    /// A barrier has passed a subtask.
    fn frozen(&mut self, world: &mut World, id: SubtaskId, barrier: Barrier, part: Part) {
        match part {
            Part::Positions(splits) => {
                let operator = OperatorSnapshot {
                    uid: "source".to_owned(),
                    watermark_ms: i64::MIN,
                    files: Vec::new(),
                    splits,
                    prepared: None,
                };
                let stops = barrier.stop != weir_types::snapshot::StopMode::Continue;
                self.ack(id.clone(), &barrier, operator);
                if stops {
                    self.end(world, &id, SubtaskState::Finished);
                }
            }
            Part::State { .. } if self.failed.contains(&barrier.snapshot) => {}
            Part::State { sums, prepared } => {
                let mut bytes = serde_json::to_vec(&sums).unwrap();
                // It grows with what was read, so that what was estimated does not suffice for ever.
                let read: u64 = sums.values().map(|(count, _)| count).sum();
                bytes.resize(bytes.len() + 24 * read as usize, b' ');
                let granted = world.planted == Planted::IgnoredGrant;
                if granted {
                    // Far more than was reserved.
                    bytes.resize(bytes.len() + 16_384, b' ');
                }
                let needed = bytes.len() as u64;
                let key = (barrier.snapshot.clone(), id.clone());
                let task = self.attempts.get_mut(&id.job).and_then(|running| running.subtasks.get_mut(&id));
                if let Some(Subtask { role: Role::Sink(sink), .. }) = task {
                    sink.writing += 1;
                }
                self.writes.insert(key.clone(), Write { barrier, sums, prepared, bytes, granted, file: None });
                match granted {
                    true => self.proceed(world, key),
                    false => {
                        let (snapshot, subtask) = key;
                        let request = GrantRequest { subtask, snapshot, bytes: needed, needed };
                        self.say(FromTaskManager::GrantWanted(request));
                    }
                }
            }
        }
    }

    /// The next step of a file: written, synced, acknowledged.
    fn proceed(&mut self, world: &mut World, key: (SnapshotId, SubtaskId)) {
        let (delay, manager) = (world.work_delay(), self.id.clone());
        world.after(delay, move |world| {
            world.with_manager(&manager, |manager, world| manager.write(world, key));
        });
    }

    fn write(&mut self, world: &mut World, key: (SnapshotId, SubtaskId)) {
        let Some(write) = self.writes.get_mut(&key) else { return };
        let directory = write.barrier.directory.clone();
        let writer = self.id.to_string();
        match write.file.clone() {
            None => {
                if world.strikes("write file") {
                    return world.kill_manager_soon(&self.id);
                }
                let SubtaskId { chain, index, attempt, .. } = &key.1;
                let file = format!("{chain}-{index}-{attempt}.state.arrow");
                world.storage.make(&directory);
                if world.storage.write(&directory, &file, write.bytes.clone(), &writer).is_err() {
                    return self.decline(world, key);
                }
                write.file = Some(file);
                self.proceed(world, key);
            }
            Some(file) => {
                if world.strikes("sync file") {
                    return world.kill_manager_soon(&self.id);
                }
                if world.planted != Planted::UnsyncedAck && world.storage.sync(&directory, &file).is_err() {
                    return self.decline(world, key);
                }
                if world.strikes("acknowledge") {
                    return world.kill_manager_soon(&self.id);
                }
                self.acknowledge(key, &file);
            }
        }
    }

    fn acknowledge(&mut self, key: (SnapshotId, SubtaskId), file: &str) {
        let Some(write) = self.writes.remove(&key) else { return };
        let task = self.attempts.get_mut(&key.1.job).and_then(|running| running.subtasks.get_mut(&key.1));
        if let Some(Subtask { role: Role::Sink(sink), .. }) = task {
            sink.writing -= 1;
        }
        let file = StateFile {
            path: file.to_owned(),
            table: "sums".to_owned(),
            bytes: write.bytes.len() as u64,
            rows: write.sums.len() as u64,
            ..StateFile::default()
        };
        let operator = OperatorSnapshot {
            uid: "sink".to_owned(),
            watermark_ms: i64::MIN,
            files: vec![file],
            splits: Vec::new(),
            prepared: write.prepared.then(Vec::new),
        };
        self.ack(key.1, &write.barrier, operator);
    }

    fn decline(&mut self, world: &mut World, key: (SnapshotId, SubtaskId)) {
        let barrier = self.writes.get(&key).map_or(BarrierId(0), |write| write.barrier.id);
        self.give_up(world, &key);
        let (snapshot, subtask) = key;
        let error = Error::new(Code::Io, "the file could not be written");
        self.say(FromTaskManager::SnapshotDeclined(SnapshotDeclined { subtask, barrier, snapshot, error }));
    }

    fn ack(&mut self, subtask: SubtaskId, barrier: &Barrier, operator: OperatorSnapshot) {
        self.say(FromTaskManager::SnapshotAcked(SubtaskSnapshot {
            subtask,
            barrier: barrier.id,
            snapshot: barrier.snapshot.clone(),
            operators: vec![operator],
            timings: SnapshotTimings::default(),
        }));
    }

    /// A random subtask, if any runs here.
    pub(super) fn any_subtask(&self) -> Option<SubtaskId> {
        self.attempts.values().flat_map(|running| running.subtasks.keys()).next().cloned()
    }

    /// Attempts that run here.
    pub(super) fn runs(&self) -> BTreeSet<(JobId, Attempt)> {
        self.attempts.iter().map(|(job, running)| (job.clone(), running.attempt)).collect()
    }
}
