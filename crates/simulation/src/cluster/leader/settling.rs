//! What earlier leaders and failed snapshots left: it is completed, aborted, swept or collected.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use weir_coordination::checkpoint::{self, Contents, Reservation, Trigger, short};
use weir_coordination::metadata::{Command, Completion, JobRecord, Reply, SnapshotEntry, State};
use weir_coordination::scheduler::{self, Recovered};
use weir_state::manifest::{
    AbortMarker, AbortOutcome, abort_manifest, delete_manifest, delete_snapshot, encoded_bytes, read_manifest,
};
use weir_types::control::{CancelAttempt, SnapshotOutcome, SubtaskStatus, ToTaskManager, WritersStopped};
use weir_types::group::{CheckpointOwner, GroupCheckpointState};
use weir_types::ids::{Attempt, ClusterId, JobId, PinHolder, SnapshotId, TaskManagerId};
use weir_types::job::JobState;
use weir_types::snapshot::{SnapshotKind, SnapshotState, SourcePositions};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::{Event, Leader, Step, Then, call_found};
use crate::cluster::store::Call;
use crate::cluster::world::World;

/// After which time what failed is tried again.
const RETRY_MS: u64 = 200;
/// How long those who write a failed snapshot have to confirm that they stopped.
const WRITERS_TIMEOUT_MS: u64 = 1_500;

/// A failed snapshot whose files are to be removed.
pub(super) struct Sweep {
    entry: SnapshotEntry,
    outcome: SnapshotOutcome,
    writers: BTreeSet<TaskManagerId>,
    /// When it is swept, whoever has not confirmed; none: it is being swept.
    at: Option<Millis>,
}

impl Leader {
    /// Begins to take over, with the first command of the reign.
    pub(super) fn recover(&mut self) {
        let cluster = ClusterId::new("sim").unwrap();
        self.commit(Command::Found { cluster, defaults: Default::default() }, Then::Recovered);
    }

    /// Goes on with what earlier leaders left: jobs in the attempts that run, and whatever was in flight.
    pub(super) fn take_over(&mut self, world: &mut World) {
        let unswept: Vec<SnapshotEntry> = self.state(world, |state| state.unswept().cloned().collect());
        unswept.into_iter().for_each(|entry| self.begin_sweep(world, entry));
        self.resume_jobs(world);
        self.end_left_snapshots(world);
        for entry in self.entries(world, SnapshotState::Deleting) {
            self.remove_snapshot(world, entry.id);
        }
        for job in self.state(world, |state| state.jobs_with_duties().cloned().collect::<Vec<_>>()) {
            self.discharge(world, &job);
        }
    }

    fn entries(&self, world: &World, wanted: SnapshotState) -> Vec<SnapshotEntry> {
        self.state(world, |state| state.snapshots.values().filter(|entry| entry.state == wanted).cloned().collect())
    }

    /// Ends what was under way and is no running job's.
    fn end_left_snapshots(&mut self, world: &mut World) {
        for entry in self.entries(world, SnapshotState::Queued) {
            if !self.jobs.contains_key(&entry.job) {
                let failure = Error::unavailable("the JobManager ended while the snapshot waited for its turn");
                let (snapshot, nonce) = (entry.id, entry.nonce);
                self.commit(Command::Abort { snapshot: snapshot.clone(), nonce, failure }, Then::Settled(snapshot));
            }
        }
        for entry in self.entries(world, SnapshotState::InProgress) {
            if !self.jobs.contains_key(&entry.job) {
                self.settle(world, &entry.id);
            }
        }
    }

    /// Finds out for a job's coordinator how the snapshot that it was taking has ended.
    pub(super) fn settle_for(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId) {
        world.seen("a leader finds a snapshot in flight");
        let Some(entry) = self.entry(world, &snapshot) else {
            return;
        };
        let found = Rc::new(RefCell::new(None));
        let (step, job) = (mark(entry, &found), job.clone());
        self.work(world, vec![step], move |marked| {
            let found = marked.map(|()| found.borrow().clone().map(Box::new));
            Event::Step(job, checkpoint::Event::Settled(snapshot, found))
        });
    }

    fn settle(&mut self, world: &mut World, snapshot: &SnapshotId) {
        self.unsettled.insert(snapshot.clone(), None);
        let Some(entry) = self.entry(world, snapshot) else {
            return;
        };
        let found = Rc::new(RefCell::new(None));
        let (step, snapshot) = (mark(entry, &found), snapshot.clone());
        self.work(world, vec![step], move |marked| {
            let found = marked.map(|()| found.borrow().clone());
            Event::Settled { snapshot, found }
        });
    }

    pub(super) fn settle_due(&mut self, world: &mut World, now: Millis) {
        let due = self.unsettled.iter().filter(|(_, at)| at.is_some_and(|at| at <= now));
        let due: Vec<SnapshotId> = due.map(|(snapshot, _)| snapshot.clone()).collect();
        for snapshot in due {
            self.settle(world, &snapshot);
        }
    }

    pub(super) fn on_settled(&mut self, world: &mut World, snapshot: SnapshotId, found: Result<Option<Contents>>) {
        let Some(entry) = self.entry(world, &snapshot) else {
            return;
        };
        if self.dies(world, "settle") {
            return;
        }
        match settlement(&entry, found) {
            Ok(command) => self.commit(command, Then::Settled(snapshot)),
            Err(_) => {
                let again = self.now(world).plus(RETRY_MS);
                self.unsettled.insert(snapshot, Some(again));
            }
        }
    }

    pub(super) fn on_settlement_committed(&mut self, world: &mut World, snapshot: &SnapshotId, reply: Reply) {
        self.unsettled.remove(snapshot);
        let Some(entry) = self.entry(world, snapshot) else {
            return;
        };
        if let Ok(applied) = reply {
            applied.retired.into_iter().for_each(|retired| self.remove_snapshot(world, retired));
        }
        match entry.failure {
            None => {
                world.seen("a leader completes what another one published");
                self.keep_positions(world, &entry.job, snapshot);
            }
            Some(_) => {
                world.seen("a leader aborts what another one left");
                self.begin_sweep(world, entry.clone());
                self.remind_writers(world);
            }
        }
    }

    pub(super) fn resume_jobs(&mut self, world: &mut World) {
        let mut jobs: Vec<(Millis, JobId)> =
            self.state(world, |state| state.jobs.values().map(|job| (job.submitted_at, job.id.clone())).collect());
        jobs.sort();
        for (_, job) in jobs {
            self.resume_job(world, &job);
        }
        self.recovered = true;
    }

    /// Goes on with a job that has not ended: with the attempt that runs, if it does, and with its snapshot in flight.
    fn resume_job(&mut self, world: &mut World, job: &JobId) {
        let found = self.state(world, |state| {
            // One that only waits for its output to be committed has nothing left to run.
            let goes_on = |job: &&JobRecord| !job.state.is_terminal() && job.output.ending.is_none();
            let record = state.jobs.get(job).filter(goes_on)?;
            let recovered = Recovered {
                state: record.state,
                attempt: record.attempt,
                parallelism: record.graph.options.parallelism,
                placements: record.placements.clone(),
                stopped: record.stopped_by.is_some(),
                failures: record.failures.total,
                failed_at: record.failures.newest.iter().map(|failure| failure.at).collect(),
            };
            let under_way =
                |entry: &&SnapshotEntry| matches!(entry.state, SnapshotState::Queued | SnapshotState::InProgress);
            Some((recovered, state.snapshots_of(job).into_iter().find(under_way).cloned()))
        });
        let Some((recovered, in_flight)) = found else {
            return;
        };
        let (state, stopped) = (recovered.state, recovered.stopped);
        self.enter_job(world, job, Some(recovered));
        if matches!(state, JobState::Running | JobState::Stopping) {
            self.coordinate(world, job, checkpoint::Event::Resuming);
        }
        let stops = in_flight.as_ref().is_some_and(|entry| matches!(entry.trigger, Trigger::Stop(_)));
        if state == JobState::Stopping && !stopped && !stops {
            self.schedule(world, scheduler::Event::StopAbandoned(job.clone()));
        }
        if let Some(entry) = in_flight {
            self.coordinate(world, job, found_in(&entry));
        }
    }

    /// Tells a TaskManager how the newest snapshots of what it runs have ended: perhaps nobody has lived to say so.
    pub(super) fn repeat_outcomes(&mut self, world: &mut World, to: &TaskManagerId, statuses: &[SubtaskStatus]) {
        let attempts: BTreeSet<(JobId, Attempt)> =
            statuses.iter().map(|status| (status.subtask.job.clone(), status.subtask.attempt)).collect();
        for (job, attempt) in attempts {
            for entry in self.state(world, |state| newest_outcomes(state, &job, attempt)) {
                let SnapshotEntry { id, barrier, failure, .. } = entry;
                let (term, job) = (self.term, job.clone());
                let outcome = SnapshotOutcome { term, job, attempt, barrier, snapshot: id, failure };
                self.send(world, to, ToTaskManager::SnapshotOutcome(outcome));
            }
        }
    }

    /// The TaskManagers of an attempt, if it is the job's newest.
    pub(super) fn placed_on(&self, world: &World, job: &JobId, attempt: Attempt) -> BTreeSet<TaskManagerId> {
        self.state(world, |state| {
            let record = state.jobs.get(job).filter(|record| record.attempt == attempt);
            let placements = record.into_iter().flat_map(|record| &record.placements);
            placements.map(|placement| placement.task_manager.clone()).collect()
        })
    }

    /// Sweeps a snapshot that failed, as soon as nobody writes it any more.
    pub(super) fn begin_sweep(&mut self, world: &mut World, entry: SnapshotEntry) {
        let snapshot = entry.id.clone();
        if self.sweeps.contains_key(&snapshot) {
            return;
        }
        let outcome = SnapshotOutcome {
            term: self.term,
            job: entry.job.clone(),
            attempt: entry.attempt,
            barrier: entry.barrier,
            snapshot: snapshot.clone(),
            failure: entry.failure.clone(),
        };
        let writers = self.placed_on(world, &entry.job, entry.attempt);
        let at = Some(self.now(world).plus(WRITERS_TIMEOUT_MS));
        self.sweeps.insert(snapshot.clone(), Sweep { entry, outcome, writers, at });
        self.sweep_if_stopped(world, &snapshot);
    }

    fn remind_writers(&mut self, world: &mut World) {
        for task_manager in self.sessions.keys().cloned().collect::<Vec<_>>() {
            self.remind_writer(world, &task_manager);
        }
    }

    /// Tells a TaskManager that is back of the snapshots which it may still be writing.
    pub(super) fn remind_writer(&mut self, world: &mut World, task_manager: &TaskManagerId) {
        let reminders = self.sweeps.values().filter(|sweep| sweep.writers.contains(task_manager));
        for outcome in reminders.map(|sweep| sweep.outcome.clone()).collect::<Vec<_>>() {
            self.send(world, task_manager, ToTaskManager::SnapshotOutcome(outcome));
        }
    }

    pub(super) fn on_writers_stopped(&mut self, world: &mut World, from: &TaskManagerId, stopped: &WritersStopped) {
        if self.sweeps.get_mut(&stopped.snapshot).is_some_and(|sweep| sweep.writers.remove(from)) {
            self.sweep_if_stopped(world, &stopped.snapshot);
        }
    }

    fn sweep_if_stopped(&mut self, world: &mut World, snapshot: &SnapshotId) {
        if self.sweeps.get(snapshot).is_some_and(|sweep| sweep.writers.is_empty() && sweep.at.is_some()) {
            self.sweep(world, snapshot);
        }
    }

    pub(super) fn sweep_due(&mut self, world: &mut World, now: Millis) {
        let due = self.sweeps.iter().filter(|(_, sweep)| sweep.at.is_some_and(|at| at <= now));
        let due: Vec<SnapshotId> = due.map(|(snapshot, _)| snapshot.clone()).collect();
        due.iter().for_each(|snapshot| self.sweep(world, snapshot));
    }

    fn sweep(&mut self, world: &mut World, snapshot: &SnapshotId) {
        let Some(sweep) = self.sweeps.get_mut(snapshot) else {
            return;
        };
        sweep.at = None;
        if !std::mem::take(&mut sweep.writers).is_empty() {
            world.seen("a snapshot is swept although a writer has not confirmed");
        }
        let steps = removal(&sweep.entry);
        let snapshot = snapshot.clone();
        self.work(world, steps, move |result| Event::Swept { snapshot, result });
    }

    pub(super) fn on_swept(&mut self, world: &mut World, snapshot: &SnapshotId, result: Result<()>) {
        let again = self.now(world).plus(RETRY_MS);
        let Some(sweep) = self.sweeps.get_mut(snapshot) else {
            return;
        };
        match result {
            Ok(()) => {
                self.sweeps.remove(snapshot);
                self.commit(Command::Swept { snapshot: snapshot.clone() }, Then::Nothing);
            }
            Err(_) => sweep.at = Some(again),
        }
    }

    /// Lets go of what an ended job held in the store.
    pub(super) fn release_job(&mut self, world: &mut World, job: &JobId) {
        let Some(record) = self.record(world, job) else {
            return;
        };
        // TaskManagers remember how subtasks have ended until they are told that this has been committed.
        let cancel = CancelAttempt { term: self.term, job: job.clone(), attempt: record.attempt };
        let placed: BTreeSet<TaskManagerId> = record.placements.iter().map(|at| at.task_manager.clone()).collect();
        for task_manager in placed {
            self.send(world, &task_manager, ToTaskManager::Cancel(cancel.clone()));
        }
        let group = record.sources[0].group.clone().unwrap();
        let delete = call_found(self.reign, Call::DeleteGroup(group.name, job.clone()));
        let unpin = call_found(self.reign, Call::Unpin(group.stream, PinHolder::new(job.as_str()).unwrap()));
        self.spawn(world, vec![delete, unpin]);
    }

    /// Looks for what nobody needs: it is listed first, and judged afterwards by what the log knows.
    pub(super) fn collect(&mut self, world: &mut World) {
        if world.store.down {
            return;
        }
        let (groups, pins) = (world.store.groups(), world.store.pins.keys().cloned().collect::<Vec<_>>());
        let directories: Vec<String> = world.storage.sizes().into_keys().collect();
        let reign = self.reign;
        let mut steps: Vec<Step> = Vec::new();
        self.state(world, |state| {
            let kept = |id: &SnapshotId| state.snapshots.get(id).is_some_and(|e| e.state != SnapshotState::Failed);
            let ended = |job: &JobId| state.jobs.get(job).is_some_and(|job| job.state.is_terminal());
            let ours = |id: &str| id.split('-').nth(1).is_some_and(|of| state.jobs.keys().any(|job| short(job) == of));
            for group in groups {
                let Some(job) = group.mode.job().filter(|job| state.jobs.contains_key(*job)).cloned() else {
                    continue;
                };
                if ended(&job) {
                    steps.push(call_found(reign, Call::DeleteGroup(group.name, job)));
                    continue;
                }
                for checkpoint in group.checkpoints {
                    let savepoint = state.snapshots.get(&checkpoint.id).is_some_and(|entry| {
                        entry.kind == SnapshotKind::Savepoint && entry.state == SnapshotState::Completed
                    });
                    if checkpoint.owner != CheckpointOwner::Job(job.clone()) || (kept(&checkpoint.id) && !savepoint) {
                        continue;
                    }
                    let (name, id, job) = (group.name.clone(), checkpoint.id, job.clone());
                    let end = match checkpoint.state {
                        GroupCheckpointState::Outstanding => Call::Cancel(name, id, job),
                        GroupCheckpointState::Completed => Call::Release(name, id, job),
                        _ => continue,
                    };
                    steps.push(Box::new(move |world: &mut World| world.call_store(reign.member, end).or(Ok(()))));
                }
            }
            for (stream, holder) in pins {
                let snapshot = SnapshotId::new(holder.as_str()).ok().filter(|_| ours(holder.as_str()));
                let of_ended = JobId::new(holder.as_str()).is_ok_and(|job| ended(&job));
                if of_ended || snapshot.is_some_and(|snapshot| !kept(&snapshot)) {
                    steps.push(call_found(reign, Call::Unpin(stream, holder)));
                }
            }
            for directory in directories {
                let known = state.snapshots.values().any(|entry| {
                    entry.directory == directory && (entry.state != SnapshotState::Failed || entry.charged_bytes > 0)
                });
                if !known {
                    steps.push(Box::new(move |world: &mut World| {
                        delete_snapshot(&world.storage.open(&directory)).map(drop)
                    }));
                }
            }
        });
        self.spawn(world, steps);
    }
}

/// The newest completed snapshot of an attempt, and the newest failed one if that came later, in their order.
fn newest_outcomes(state: &State, job: &JobId, attempt: Attempt) -> Vec<SnapshotEntry> {
    let of_attempt: Vec<_> = state.snapshots_of(job).into_iter().filter(|entry| entry.attempt == attempt).collect();
    let newest = |failed: bool| {
        let ended = |entry: &&&SnapshotEntry| match entry.state {
            SnapshotState::Completed | SnapshotState::Deleting => !failed,
            SnapshotState::Failed => failed,
            SnapshotState::Queued | SnapshotState::InProgress => false,
        };
        of_attempt.iter().rev().find(ended).copied()
    };
    let completed = newest(false);
    let failed = newest(true).filter(|failed| completed.is_none_or(|completed| completed.barrier < failed.barrier));
    completed.into_iter().chain(failed).cloned().collect()
}

/// What a job's new coordinator is told of a snapshot that is under way.
fn found_in(entry: &SnapshotEntry) -> checkpoint::Event {
    let reservation = Reservation {
        snapshot: entry.id.clone(),
        barrier: entry.barrier,
        kind: entry.kind,
        trigger: entry.trigger,
        attempt: entry.attempt,
        request: None,
        directory: entry.directory.clone(),
        deadline_ms: entry.deadline.0,
        triggered_at_ms: entry.triggered_at.0,
        subtasks: entry.subtasks,
    };
    match entry.state {
        SnapshotState::Queued => checkpoint::Event::FoundQueued(reservation),
        _ => checkpoint::Event::FoundInFlight(reservation),
    }
}

/// How a snapshot that an earlier leader left ends, by what was found in its manifest's place.
fn settlement(entry: &SnapshotEntry, found: Result<Option<Contents>>) -> Result<Command> {
    let (snapshot, nonce) = (entry.id.clone(), entry.nonce.clone());
    match found {
        Ok(Some(contents)) => Ok(Command::Complete(Box::new(Completion { snapshot, nonce, contents }))),
        Err(error) if error.code != Code::AlreadyExists => Err(error),
        Ok(None) | Err(_) => {
            let failure = Error::unavailable("the JobManager ended while the snapshot was in flight");
            Ok(Command::Abort { snapshot, nonce, failure })
        }
    }
}

/// Makes sure that no manifest of this reservation appears, unless one is there: then what it holds is `found`.
pub(super) fn mark(entry: SnapshotEntry, found: &Rc<RefCell<Option<Contents>>>) -> Step {
    let found = found.clone();
    Box::new(move |world: &mut World| {
        let marker = AbortMarker { snapshot: entry.id, nonce: entry.nonce, reason: "left".to_owned() };
        *found.borrow_mut() = match abort_manifest(&world.storage.open(&entry.directory), &marker)? {
            AbortOutcome::Aborted => None,
            AbortOutcome::Published(manifest) => {
                let manifest_bytes = encoded_bytes(&manifest)?;
                let mut contents = Contents { manifest_bytes, ..Contents::of(manifest.operators) };
                for operator in contents.operators.iter().filter(|operator| !operator.splits.is_empty()) {
                    match contents.sources.iter_mut().find(|source| source.uid == operator.uid) {
                        Some(source) => source.splits.extend(operator.splits.iter().cloned()),
                        None => contents
                            .sources
                            .push(SourcePositions { uid: operator.uid.clone(), splits: operator.splits.clone() }),
                    }
                }
                Some(contents)
            }
        };
        Ok(())
    })
}

/// Removes a snapshot: first its manifest, then its files. A directory that another snapshot has taken stays as it is.
pub(super) fn removal(entry: &SnapshotEntry) -> Vec<Step> {
    if entry.state == SnapshotState::Deleting && entry.failure.is_some() {
        return Vec::new();
    }
    let (first, second, nonce) = (entry.directory.clone(), entry.directory.clone(), entry.nonce.clone());
    let others = Rc::new(RefCell::new(false));
    let seen = others.clone();
    let manifest: Step = Box::new(move |world: &mut World| {
        let store = world.storage.open(&first);
        *seen.borrow_mut() = read_manifest(&store).is_ok_and(|manifest| manifest.nonce != nonce);
        if *seen.borrow() { Ok(()) } else { delete_manifest(&store) }
    });
    let files: Step =
        Box::new(
            move |world: &mut World| {
                if *others.borrow() { Ok(()) } else { delete_snapshot(&world.storage.open(&second)).map(drop) }
            },
        );
    vec![manifest, files]
}
