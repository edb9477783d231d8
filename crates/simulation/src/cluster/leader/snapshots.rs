//! Carries out what the coordinators of snapshots decide.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use weir_coordination::checkpoint::{Action, Contents, Event as Step, Marked, Reservation};
use weir_coordination::metadata::{Applied, Command, Completion, JobRecord, Reply, Reserve, SnapshotEntry};
use weir_coordination::scheduler;
use weir_state::manifest::{Manifest, encoded_bytes, publish_manifest};
use weir_types::control::{Grant, GrantRequest, SnapshotOutcome, ToTaskManager, TriggerBarrier};
use weir_types::group::GroupActor;
use weir_types::ids::{BarrierId, ClusterId, JobId, Nonce, PinHolder, SnapshotId, SubtaskId, TaskManagerId};
use weir_types::output::Settlement;
use weir_types::snapshot::{Barrier, SnapshotKind, SnapshotState, SourcePositions, SplitPosition};
use weir_types::splits;
use weir_types::stream::{Offset, StreamCut};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::settling::mark;
use super::{Event, Leader, Then, call, call_found, planted};
use crate::cluster::store::Call;
use crate::cluster::world::{Planted, World};

/// The least that is reserved.
const RESERVATION_BYTES_MIN: u64 = 2_048;
/// The store drops a group checkpoint this long after its snapshot's deadline.
const DEADLINE_SLACK_MS: u64 = 1_000;

/// A manifest that is to be published.
pub(in crate::cluster) struct Draft {
    job: JobId,
    snapshot: SnapshotId,
    directory: String,
    manifest: Manifest,
    bytes: u64,
    written: u64,
}

/// What a snapshot in flight may write.
pub(super) struct Account {
    nonce: Nonce,
    charged: u64,
    given: BTreeMap<SubtaskId, u64>,
    manifest: u64,
}

impl Leader {
    /// Lets a job's coordinator decide, and carries out what it says.
    pub(super) fn coordinate(&mut self, world: &mut World, job: &JobId, event: Step) {
        let now = self.now(world);
        world.note(|| format!("{job}: {}", brief(&event)));
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        for action in live.coordinator.on_event(now, event) {
            if self.dies(world, step_of(&action)) {
                return;
            }
            self.act(world, job, action);
        }
        self.start_pending(world, job);
        self.finish_pending(world, job);
        self.drop_if_ended(world, job);
    }

    /// Whether the process is killed right before this; every step is reached, and dies at times.
    pub(super) fn dies(&mut self, world: &mut World, step: &'static str) -> bool {
        if self.over {
            return true;
        }
        if world.strikes(step) {
            world.kill_member_soon(self.reign);
            self.over = true;
        }
        self.over
    }

    fn act(&mut self, world: &mut World, job: &JobId, action: Action) {
        match action {
            Action::Settle(snapshot) => self.settle_for(world, job, snapshot),
            Action::Reserve(reservation) => self.reserve(world, job, reservation),
            Action::StartGroups(snapshot) => self.start_groups(world, job, snapshot),
            Action::SendBarriers(barrier) => self.send_barriers(world, job, barrier),
            Action::Publish(snapshot, contents) => self.publish(world, job, snapshot, *contents),
            Action::PersistComplete(snapshot, contents) => self.persist_complete(world, job, snapshot, *contents),
            Action::MarkAborted(snapshot) => self.mark_aborted(world, job, snapshot),
            Action::PersistAbort(snapshot, failure) => {
                let Some(nonce) = self.entry(world, &snapshot).map(|entry| entry.nonce) else {
                    return;
                };
                self.accounts.remove(&snapshot);
                let then = Then::Aborted(job.clone(), snapshot.clone());
                self.commit(Command::Abort { snapshot, nonce, failure }, then);
            }
            Action::NotifyComplete(snapshot, barrier) => {
                self.notify(world, job, snapshot.clone(), barrier, None);
                self.keep_positions(world, job, &snapshot);
            }
            Action::NotifyAborted(snapshot, barrier, error) => self.notify(world, job, snapshot, barrier, Some(error)),
            Action::ReleaseGroups(snapshot) => self.release_groups(world, job, &snapshot),
            Action::Sweep(snapshot) => {
                if let Some(entry) = self.entry(world, &snapshot).filter(|_| !planted(world, Planted::LostCompensation))
                {
                    self.begin_sweep(world, entry);
                }
            }
            Action::Answer(request, result) => {
                world.answered(&request, &result);
                if let Some((job, attempt)) = self.growing.remove(&request) {
                    let grows = result.is_ok();
                    let next = if grows { scheduler::Event::Grow } else { scheduler::Event::NotGrown };
                    self.schedule(world, next(job, attempt));
                }
            }
            Action::RestartJob(error) => {
                if let Some(attempt) = self.scheduler.attempt(job) {
                    self.schedule(world, scheduler::Event::Broken(job.clone(), attempt, error));
                }
            }
            Action::ResumeJob(error) => {
                if let Some(attempt) = self.scheduler.attempt(job) {
                    self.schedule(world, scheduler::Event::Resumed(job.clone(), attempt, error));
                }
            }
            Action::AbandonStop => self.schedule(world, scheduler::Event::StopAbandoned(job.clone())),
        }
    }

    pub(super) fn record(&self, world: &World, job: &JobId) -> Option<JobRecord> {
        self.state(world, |state| state.jobs.get(job).cloned())
    }

    pub(super) fn entry(&self, world: &World, snapshot: &SnapshotId) -> Option<SnapshotEntry> {
        self.state(world, |state| state.snapshots.get(snapshot).cloned())
    }

    fn reserve(&mut self, world: &mut World, job: &JobId, reservation: Reservation) {
        let Reservation {
            snapshot, barrier, kind, trigger, attempt, request, directory, deadline_ms, subtasks, ..
        } = reservation;
        let estimate_bytes = self.state(world, |state| state.estimate(job, kind)).max(RESERVATION_BYTES_MIN);
        let reserve = Reserve {
            request: request.map(|request| request.id),
            snapshot: snapshot.clone(),
            job: job.clone(),
            kind,
            trigger,
            barrier,
            attempt,
            nonce: Nonce(format!("n{}", world.next_number())),
            directory,
            deadline: Millis(deadline_ms),
            owner: String::new(),
            annotations: Default::default(),
            plan_hash: String::new(),
            subtasks,
            evict: false,
            estimate_bytes,
        };
        self.commit(Command::Reserve(Box::new(reserve)), Then::Reserved(job.clone(), snapshot));
    }

    pub(super) fn on_reserved(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId, reply: Reply) {
        match reply {
            Ok(Applied { queued: true, .. }) => {
                world.seen("a snapshot waits for its turn");
                self.coordinate(world, job, Step::Queued(snapshot));
            }
            Ok(_) => self.coordinate(world, job, Step::Reserved(snapshot, Ok(()))),
            Err(error) => {
                world.seen("a reservation is refused");
                self.coordinate(world, job, Step::Reserved(snapshot, Err(error)));
            }
        }
    }

    /// The turn of a snapshot that waited has come.
    pub(super) fn on_admitted(&mut self, world: &mut World, snapshot: SnapshotId) {
        let Some(entry) = self.entry(world, &snapshot) else {
            return;
        };
        let result = match entry.failure {
            Some(failure) if entry.state == SnapshotState::Failed => Err(failure),
            _ => Ok(()),
        };
        self.coordinate(world, &entry.job, Step::Reserved(snapshot, result));
    }

    fn start_groups(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId) {
        let superseded = self.state(world, |state| state.superseded_by_next(job));
        let (Some(record), Some(entry)) = (self.record(world, job), self.entry(world, &snapshot)) else {
            return;
        };
        let group = record.sources[0].group.clone().unwrap();
        let deadline = entry.deadline.plus(DEADLINE_SLACK_MS);
        let start = Call::StartCheckpoint(group.name.clone(), snapshot.clone(), job.clone(), deadline, superseded);
        let (holder, member) = (PinHolder::new(snapshot.as_str()).unwrap(), self.reign.member);
        let pin: super::Step = Box::new(move |world: &mut World| {
            if planted(world, Planted::SkippedPin) {
                return Ok(());
            }
            let info = world.store.group(&group.name).ok_or_else(|| Error::not_found("no group"))?;
            let mut positions = info.positions;
            for (partition, at) in &mut positions.0 {
                let head = world.store.streams[&group.stream][partition.0 as usize].head;
                *at = Offset(at.0.max(head));
            }
            world.call_store(member, Call::Pin(group.stream, holder, positions))
        });
        let steps = vec![call(self.reign, start), pin];
        let job = job.clone();
        self.work(world, steps, move |started| Event::Step(job, Step::GroupsStarted(snapshot, started)));
    }

    fn send_barriers(&mut self, world: &mut World, job: &JobId, barrier: Barrier) {
        let Some(attempt) = self.scheduler.attempt(job) else {
            return;
        };
        if let Some(entry) = self.entry(world, &barrier.snapshot) {
            let account =
                Account { nonce: entry.nonce, charged: entry.charged_bytes, given: BTreeMap::new(), manifest: 0 };
            self.accounts.insert(entry.id, account);
        }
        let trigger = TriggerBarrier { term: self.term, job: job.clone(), attempt, barrier };
        for task_manager in self.scheduler.task_managers_of(job) {
            self.send(world, &task_manager, ToTaskManager::Trigger(trigger.clone()));
        }
    }

    fn publish(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId, contents: Contents) {
        let (Some(record), Some(entry)) = (self.record(world, job), self.entry(world, &snapshot)) else {
            return;
        };
        let group = record.sources[0].group.clone().unwrap();
        let by = GroupActor::Job { job: job.clone(), attempt: entry.attempt };
        let ack = Call::Ack(group.name, snapshot.clone(), by, cut(&contents.sources));
        let written = contents.written_bytes(&snapshot);
        let manifest = manifest(&record, &entry, contents);
        let bytes = encoded_bytes(&manifest).unwrap();
        let draft = Draft {
            job: job.clone(),
            snapshot: snapshot.clone(),
            directory: entry.directory,
            manifest,
            bytes,
            written,
        };
        let job = job.clone();
        let steps = vec![call(self.reign, ack)];
        self.work(world, steps, move |acked| Event::Drafted { job, snapshot, draft: acked.map(|()| Box::new(draft)) });
    }

    pub(super) fn on_drafted(
        &mut self,
        world: &mut World,
        job: &JobId,
        snapshot: SnapshotId,
        draft: Result<Box<Draft>>,
    ) {
        let draft = match draft {
            Ok(draft) => draft,
            Err(error) => {
                return self.coordinate(world, job, Step::Published(snapshot, Err(error)));
            }
        };
        if !self.is_publishing(job, &snapshot) {
            return;
        }
        let Some(account) = self.accounts.get_mut(&snapshot) else {
            return;
        };
        account.manifest = draft.bytes;
        let total = draft.written + draft.bytes;
        if total <= account.charged {
            return self.publish_draft(world, *draft, Ok(Applied::default()));
        }
        let nonce = account.nonce.clone();
        self.commit(Command::Grant { snapshot, nonce, bytes: total }, Then::ManifestGranted(draft));
    }

    fn is_publishing(&self, job: &JobId, snapshot: &SnapshotId) -> bool {
        self.jobs.get(job).is_some_and(|live| live.coordinator.is_publishing(snapshot))
    }

    pub(super) fn publish_draft(&mut self, world: &mut World, draft: Draft, granted: Reply) {
        let Draft { job, snapshot, directory, manifest, .. } = draft;
        if let Err(error) = granted {
            return self.coordinate(world, &job, Step::Published(snapshot, Err(error)));
        }
        if !self.is_publishing(&job, &snapshot) {
            return;
        }
        let published = snapshot.clone();
        let step: super::Step = Box::new(move |world: &mut World| {
            let result = publish_manifest(&world.storage.open(&directory), &manifest);
            world.judge_manifest(&published, &result);
            result
        });
        self.work(world, vec![step], move |result| Event::Step(job, Step::Published(snapshot, result)));
    }

    fn persist_complete(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId, mut contents: Contents) {
        let Some(entry) = self.entry(world, &snapshot) else {
            return;
        };
        // One that an earlier leader has published says itself how long it is.
        let account = self.accounts.remove(&snapshot);
        contents.manifest_bytes = account.map_or(contents.manifest_bytes, |account| account.manifest);
        if planted(world, Planted::EarlyNotify) {
            self.notify(world, job, snapshot.clone(), entry.barrier, None);
        }
        let completion = Completion { snapshot: snapshot.clone(), nonce: entry.nonce, contents };
        self.commit(Command::Complete(Box::new(completion)), Then::Completed(job.clone(), snapshot));
    }

    fn mark_aborted(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId) {
        let Some(entry) = self.entry(world, &snapshot) else {
            return;
        };
        let job = job.clone();
        let found = Rc::new(RefCell::new(None));
        let steps = if planted(world, Planted::AbortWithoutMarker) { Vec::new() } else { vec![mark(entry, &found)] };
        self.work(world, steps, move |marked| {
            let published = found.borrow().is_some();
            let marked = marked.map(|()| if published { Marked::Published } else { Marked::Aborted });
            Event::Step(job, Step::Marked(snapshot, marked))
        });
    }

    pub(super) fn on_completed(&mut self, world: &mut World, job: &JobId, snapshot: SnapshotId, reply: Reply) {
        let result = reply.map(|applied| {
            if self.state(world, |state| state.jobs.get(job).is_some_and(|job| job.stopped_by.is_some())) {
                self.schedule(world, scheduler::Event::StopCompleted(job.clone()));
            }
            self.after_change(world, applied);
        });
        self.coordinate(world, job, Step::Completed(snapshot, result));
    }

    /// The reader group, the pins and the sinks follow a completed snapshot.
    pub(super) fn keep_positions(&mut self, world: &mut World, job: &JobId, snapshot: &SnapshotId) {
        let (Some(record), Some(entry)) = (self.record(world, job), self.entry(world, snapshot)) else {
            return;
        };
        self.keeping.insert(snapshot.clone());
        let (reign, id) = (self.reign, snapshot.clone());
        let group = record.sources[0].group.clone().unwrap();
        let holder = PinHolder::new(snapshot.as_str()).unwrap();
        let to_read = cut_to_read(&entry.sources);
        let mut steps: Vec<super::Step> = Vec::new();
        if to_read.0.is_empty() {
            steps.push(call_found(reign, Call::Unpin(group.stream.clone(), holder)));
        } else {
            steps.push(call(reign, Call::Pin(group.stream.clone(), holder, to_read)));
        }
        let start = PinHolder::new(job.as_str()).unwrap();
        steps.push(call_found(reign, Call::Unpin(group.stream.clone(), start)));
        if entry.kind == SnapshotKind::Savepoint {
            let release = Call::Release(group.name.clone(), id.clone(), job.clone());
            // It goes on whatever comes of it.
            steps.push(Box::new(move |world: &mut World| world.call_store(reign.member, release).or(Ok(()))));
        }
        let by = GroupActor::Job { job: job.clone(), attempt: entry.attempt };
        let commit = Call::Commit(group.name, by, cut(&entry.sources));
        steps.push(Box::new(move |world: &mut World| match world.call_store(reign.member, commit) {
            Err(error) if matches!(error.code, Code::Fenced | Code::NotFound) => Ok(()),
            other => other,
        }));
        self.work(world, steps, move |_| Event::Kept(id));
    }

    /// Carries out what is due of a job's output, unless that is under way.
    pub(super) fn discharge(&mut self, world: &mut World, job: &JobId) {
        if self.duties.get(job).is_some_and(Option::is_none) {
            return;
        }
        let Some(duty) = self.state(world, |state| state.jobs.get(job)?.output.duty) else {
            self.duties.remove(job);
            return;
        };
        if self.dies(world, "settle output") {
            return;
        }
        self.duties.insert(job.clone(), None);
        let (settle, job) = (call(self.reign, Call::Settle(job.clone(), duty)), job.clone());
        self.work(world, vec![settle], move |settled| Event::OutputSettled { job, duty, settled });
    }

    pub(super) fn on_output_settled(&mut self, world: &World, job: JobId, duty: Settlement, settled: Result<()>) {
        match settled {
            Ok(()) => self.commit(Command::Discharged { job: job.clone(), duty }, Then::Discharged(job)),
            Err(_) => {
                let again = self.now(world).plus(200);
                self.duties.insert(job, Some(again));
            }
        }
    }

    pub(super) fn on_discharged(&mut self, world: &mut World, job: &JobId, reply: Reply) {
        self.duties.remove(job);
        if let Ok(applied) = reply {
            self.after_change(world, applied);
        }
        self.discharge(world, job);
    }

    pub(super) fn discharge_due(&mut self, world: &mut World, now: Millis) {
        let due = self.duties.iter().filter(|(_, at)| at.is_some_and(|at| at <= now));
        for job in due.map(|(job, _)| job.clone()).collect::<Vec<_>>() {
            self.discharge(world, &job);
        }
    }

    fn release_groups(&mut self, world: &mut World, job: &JobId, snapshot: &SnapshotId) {
        let Some(record) = self.record(world, job) else {
            return;
        };
        let group = record.sources[0].group.clone().unwrap();
        let (reign, job, id) = (self.reign, job.clone(), snapshot.clone());
        let holder = PinHolder::new(snapshot.as_str()).unwrap();
        let (stream, name) = (group.stream, group.name);
        let cancel: super::Step = Box::new(move |world: &mut World| {
            match world.call_store(reign.member, Call::Cancel(name.clone(), id.clone(), job.clone())) {
                Err(error) if error.code == Code::FailedPrecondition => {
                    world.call_store(reign.member, Call::Release(name, id, job)).or(Ok(()))
                }
                _ => Ok(()),
            }
        });
        self.spawn(world, vec![cancel, call_found(reign, Call::Unpin(stream, holder))]);
    }

    pub(super) fn notify(
        &mut self,
        world: &mut World,
        job: &JobId,
        snapshot: SnapshotId,
        barrier: BarrierId,
        failure: Option<Error>,
    ) {
        let Some(attempt) = self.entry(world, &snapshot).map(|entry| entry.attempt) else {
            return;
        };
        let outcome = SnapshotOutcome { term: self.term, job: job.clone(), attempt, barrier, snapshot, failure };
        for task_manager in self.placed_on(world, job, attempt) {
            self.send(world, &task_manager, ToTaskManager::SnapshotOutcome(outcome.clone()));
        }
    }

    pub(super) fn on_grant_wanted(&mut self, world: &mut World, from: TaskManagerId, request: GrantRequest) {
        let GrantRequest { subtask, snapshot, bytes, .. } = request;
        let of_attempt = self.entry(world, &snapshot).is_some_and(|entry| entry.attempt == subtask.attempt);
        let Some(account) = self.accounts.get_mut(&snapshot).filter(|_| of_attempt) else {
            return self.remind_writer(world, &from);
        };
        let others: u64 = account.given.iter().filter(|(other, _)| **other != subtask).map(|(_, given)| given).sum();
        let total = others + bytes;
        if total <= account.charged {
            return self.on_granted(world, snapshot, subtask, from, bytes, Ok(Applied::default()));
        }
        let nonce = account.nonce.clone();
        let then = Then::Granted(snapshot.clone(), subtask, from, bytes);
        self.commit(Command::Grant { snapshot, nonce, bytes: total }, then);
    }

    pub(super) fn on_granted(
        &mut self,
        world: &mut World,
        snapshot: SnapshotId,
        subtask: SubtaskId,
        from: TaskManagerId,
        bytes: u64,
        reply: Reply,
    ) {
        let charged = self.entry(world, &snapshot).map_or(0, |entry| entry.charged_bytes);
        let Some(account) = self.accounts.get_mut(&snapshot) else {
            return;
        };
        if let Err(error) = reply {
            world.seen("a grant is refused");
            return self.coordinate(world, &subtask.job.clone(), Step::OutOfRoom(snapshot, error));
        }
        account.charged = charged;
        let others: u64 = account.given.iter().filter(|(other, _)| **other != subtask).map(|(_, given)| given).sum();
        if others + bytes > charged {
            // Somebody else was given it meanwhile.
            let request = GrantRequest { subtask, snapshot, bytes, needed: bytes };
            return self.on_grant_wanted(world, from, request);
        }
        account.given.insert(subtask.clone(), bytes);
        let grant = Grant { term: self.term, subtask, snapshot, bytes };
        self.send(world, &from, ToTaskManager::Grant(grant));
    }

    /// Removes a snapshot that is marked: manifest, files, pins, then its entry.
    pub(super) fn remove_snapshot(&mut self, world: &mut World, snapshot: SnapshotId) {
        self.removals.remove(&snapshot);
        if self.keeping.contains(&snapshot) || self.removing.contains(&snapshot) {
            return;
        }
        let deleting = |entry: &SnapshotEntry| entry.state == SnapshotState::Deleting;
        let Some(entry) = self.entry(world, &snapshot).filter(deleting) else {
            return;
        };
        let Some(record) = self.record(world, &entry.job) else {
            return;
        };
        self.removing.insert(snapshot.clone());
        let group = record.sources[0].group.clone().unwrap();
        let holder = PinHolder::new(snapshot.as_str()).unwrap();
        let reign = self.reign;
        let mut steps = super::settling::removal(&entry);
        let release = Call::Release(group.name, snapshot.clone(), entry.job);
        steps.push(Box::new(move |world: &mut World| world.call_store(reign.member, release).or(Ok(()))));
        steps.push(call_found(reign, Call::Unpin(group.stream, holder)));
        self.work(world, steps, move |result| Event::Removed { snapshot, result });
    }

    pub(super) fn on_removed(&mut self, world: &mut World, snapshot: SnapshotId, result: Result<()>) {
        self.removing.remove(&snapshot);
        match result {
            Ok(()) if self.dies(world, "delete entry") => {}
            Ok(()) => self.commit(Command::Deleted { snapshot }, Then::Nothing),
            Err(_) => {
                let again = self.now(world).plus(200);
                self.removals.insert(snapshot, again);
            }
        }
    }
}

/// The manifest of a snapshot.
fn manifest(record: &JobRecord, entry: &SnapshotEntry, contents: Contents) -> Manifest {
    Manifest {
        cluster: ClusterId::new("sim").unwrap(),
        job: record.id.clone(),
        job_name: record.name.clone(),
        snapshot: entry.id.clone(),
        kind: entry.kind,
        barrier: entry.barrier,
        nonce: entry.nonce.clone(),
        created_at: entry.triggered_at,
        parallelism: entry.parallelism,
        graph_hash: String::new(),
        query: None,
        operators: contents.operators,
    }
}

fn cut(sources: &[SourcePositions]) -> StreamCut {
    cut_of(sources.iter().flat_map(|source| &source.splits))
}

fn cut_to_read(sources: &[SourcePositions]) -> StreamCut {
    cut_of(sources.iter().flat_map(|source| &source.splits).filter(|split| !split.finished))
}

fn cut_of<'a>(splits: impl Iterator<Item = &'a SplitPosition>) -> StreamCut {
    let position = |at: &SplitPosition| (splits::parse_partition(&at.split).unwrap(), Offset(at.offset));
    StreamCut(splits.map(position).collect())
}

/// What an action is called among the points at which a leader is killed.
fn step_of(action: &Action) -> &'static str {
    match action {
        Action::Settle(_) => "settle",
        Action::Reserve(_) => "reserve",
        Action::StartGroups(_) => "start groups",
        Action::SendBarriers(_) => "send barriers",
        Action::Publish(..) => "publish",
        Action::PersistComplete(..) => "complete",
        Action::MarkAborted(_) => "mark aborted",
        Action::PersistAbort(..) => "abort",
        Action::NotifyComplete(..) => "notify complete",
        Action::NotifyAborted(..) => "notify aborted",
        Action::ReleaseGroups(_) => "release groups",
        Action::Sweep(_) => "sweep",
        Action::Answer(..) => "answer",
        Action::RestartJob(_) => "restart job",
        Action::ResumeJob(_) => "resume job",
        Action::AbandonStop => "abandon stop",
    }
}

fn brief(event: &Step) -> String {
    match event {
        Step::Acked(ack) => format!("acked {} by {}", ack.snapshot, ack.subtask),
        Step::Started(attempt) => format!("started attempt {}", attempt.attempt),
        other => format!("{other:?}"),
    }
}
