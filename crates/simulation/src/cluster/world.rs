//! Everything there is, in virtual time: members, TaskManagers, the store, the storage, connections, users, and what goes
//! wrong, all decided by one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use weir_replication::Role;
use weir_types::deployment::SubtaskState;
use weir_types::graph::JobOptions;
use weir_types::ids::{Attempt, JobId, Parallelism, RequestId, SnapshotId, SubtaskId, TaskManagerId};
use weir_types::restart::{Backoff, RestartStrategy};
use weir_types::stream::StreamName;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::connections::Session;
use super::jobs::JobSpec;
use super::leader::{Event, Leader, Reign};
use super::members::{History, Place};
use super::storage::Storage;
use super::store::{Partition, Record, Store};
use super::subtask::Element;
use super::task_manager::TaskManager;
use super::troubles::{Troubles, bad_network};
use crate::network::{Network, Weather};
use crate::random::Random;

/// What a tick of the world is.
pub(super) const TICK_MS: u64 = 20;
/// How long things go wrong.
const TROUBLED_MS: u64 = 4_000;
/// When virtual time begins.
const EPOCH_MS: u64 = 1_000_000;

/// What is broken on purpose, in the fakes or in the shell, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Planted {
    #[default]
    Nothing,
    /// Exchanges do not tell attempts apart.
    SkippedFence,
    /// Subtasks are told of a completion before it is committed.
    EarlyNotify,
    /// The files of failed snapshots stay.
    LostCompensation,
    /// A snapshot is aborted although its manifest may still appear.
    AbortWithoutMarker,
    /// A file is acknowledged before it is synced.
    UnsyncedAck,
    /// Files are written before their bytes are granted.
    IgnoredGrant,
    /// A snapshot under way holds nothing in the streams.
    SkippedPin,
}

type Deed = Box<dyn FnOnce(&mut World)>;
/// Job, attempt, and the subtasks that send and receive.
type ChannelKey = (JobId, Attempt, u32, u32);

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) now: u64,
    pub(super) planted: Planted,
    pub(super) troubles: Troubles,
    pub(super) troubled: bool,
    queue: BTreeMap<(u64, u64), Deed>,
    pub(super) numbers: u64,
    pub(super) history: Arc<Mutex<History>>,
    pub(super) network: Network,
    pub(super) places: BTreeMap<u64, Place>,
    pub(super) store: Store,
    pub(super) storage: Storage,
    pub(super) managers: BTreeMap<TaskManagerId, TaskManager>,
    /// Of each TaskManager.
    slots: u32,
    pub(super) sessions: BTreeMap<u64, Session>,
    channels: BTreeMap<ChannelKey, std::collections::VecDeque<Element>>,
    pub(super) jobs: BTreeMap<JobId, JobSpec>,
    /// Jobs that their users have cancelled.
    pub(super) cancelled: BTreeSet<JobId>,
    pub(super) reached: BTreeMap<&'static str, u64>,
    pub(super) trace: Option<Arc<Mutex<Vec<String>>>>,
}

impl World {
    pub(super) fn new(seed: u64, planted: Planted, trace: Option<Arc<Mutex<Vec<String>>>>) -> Self {
        let mut random = Random::new(seed);
        let (network, troubles) = (bad_network(&mut random), Troubles::new(&mut random));
        let mut world = Self {
            seed,
            random,
            now: 0,
            planted,
            troubles,
            troubled: true,
            queue: BTreeMap::new(),
            numbers: 0,
            history: Arc::default(),
            network,
            places: BTreeMap::new(),
            store: Store::default(),
            storage: Storage::default(),
            managers: BTreeMap::new(),
            slots: 1,
            sessions: BTreeMap::new(),
            channels: BTreeMap::new(),
            jobs: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            reached: BTreeMap::new(),
            trace,
        };
        let members = world.random.pick(&[1, 3, 3]);
        world.found(members);
        let jobs = world.random.pick(&[1, 1, 2]);
        (1..=jobs).for_each(|number| world.add_job(number));
        world.slots = world.random.pick(&[1, 2]);
        // There are slots for all jobs, though sometimes only just.
        (0..5 - world.slots).for_each(|_| world.start_manager());
        world
    }

    fn add_job(&mut self, number: u32) {
        let id = JobId::new(format!("{number:08}aaaa")).unwrap();
        let stream = StreamName::new("in", format!("s{number}")).unwrap();
        let partitions = (0..self.random.pick(&[1, 2, 3])).map(|_| Partition::default()).collect();
        self.store.streams.insert(stream.clone(), partitions);
        let options = JobOptions {
            checkpoint_interval_ms: self.random.pick(&[Some(200), Some(400), None]),
            checkpoint_timeout_ms: self.random.pick(&[400, 1_200]),
            checkpoints_retained: self.random.pick(&[1, 2]),
            parallelism_min: self.random.pick(&[None, Some(Parallelism::ONE)]),
            checkpoint_failures_tolerated: self.random.pick(&[None, None, Some(2)]),
            restart: RestartStrategy::ExponentialDelay(Backoff { initial_ms: 40, max_ms: 300, ..Backoff::default() }),
            ..JobOptions::default()
        };
        let (parallelism, transactional) = (self.random.pick(&[1, 2]), self.random.chance(700));
        self.jobs.insert(id.clone(), JobSpec { id, stream, parallelism, transactional, options });
    }

    pub(super) fn start_manager(&mut self) {
        let id = TaskManagerId::new(format!("tm{}", self.next_number())).unwrap();
        self.managers.insert(id.clone(), TaskManager::new(id, self.slots));
    }

    // --- time -----------------------------------------------------------------------------------------------------

    /// Does something later.
    pub(super) fn after(&mut self, delay_ms: u64, deed: impl FnOnce(&mut World) + 'static) {
        self.at(self.now + delay_ms, deed);
    }

    pub(super) fn at(&mut self, at: u64, deed: impl FnOnce(&mut World) + 'static) {
        let number = self.next_number();
        self.queue.insert((at, number), Box::new(deed));
    }

    /// The clock of a member; 0 is the store's.
    pub(super) fn clock(&self, member: u64) -> Millis {
        let skew_ms = self.places.get(&member).map_or(0, |place| place.skew_ms);
        Millis(EPOCH_MS + self.now + skew_ms)
    }

    /// How long a step of work takes.
    pub(super) fn work_delay(&mut self) -> u64 {
        let max = if self.troubled { self.troubles.delay_max_ms } else { TICK_MS };
        self.random.below(max + 1)
    }

    /// A number that was never given out before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// One tick of everything.
    pub(super) fn step(&mut self) {
        self.now += TICK_MS;
        self.step_members();
        self.step_leaders();
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
            entry.remove()(self);
        }
        for id in self.managers.keys().cloned().collect::<Vec<_>>() {
            self.connect(&id);
            self.with_manager(&id, TaskManager::tick);
        }
        if !self.store.down {
            let now = self.clock(0);
            self.store.tick(now);
        }
        self.append_input();
        self.judge();
    }

    /// Runs until everything has healed and ended.
    pub(super) fn run(&mut self) {
        while self.now < TROUBLED_MS {
            self.trouble();
            self.step();
        }
        self.heal();
        self.end_jobs();
        self.judge_end();
    }

    // --- leaders --------------------------------------------------------------------------------------------------

    fn step_leaders(&mut self) {
        for member in self.member_ids() {
            let Some(running) = self.places.get_mut(&member).and_then(|place| place.running.as_mut()) else { continue };
            let status = running.status();
            if running.leader.as_ref().is_some_and(|leader| !leader.lasts(&status)) {
                let leader = running.leader.take();
                let reign = leader.map(|leader| leader.reign);
                self.note(|| format!("member {member} leads no longer"));
                self.seen("a leader is deposed");
                reign.into_iter().for_each(|reign| self.break_sessions_of(reign));
                continue;
            }
            if status.role == Role::Leader && status.serving && running.leader.is_none() {
                let process = running.process;
                let reign = Reign { member, process, number: self.next_number() };
                self.note(|| format!("member {member} leads in term {}", status.term));
                self.seen("a leader begins");
                let leader = Leader::new(self, reign, status.term);
                if let Some(running) = self.places.get_mut(&member).and_then(|place| place.running.as_mut()) {
                    running.leader = Some(Box::new(leader));
                }
            }
            self.with_leader(member, Leader::turn);
        }
    }

    fn with_leader<R>(&mut self, member: u64, act: impl FnOnce(&mut Leader, &mut World) -> R) -> Option<R> {
        let mut leader = self.places.get_mut(&member)?.running.as_mut()?.leader.take()?;
        let result = act(leader.as_mut(), self);
        if let Some(running) = self.places.get_mut(&member).and_then(|place| place.running.as_mut()) {
            running.leader = Some(leader);
        }
        Some(result)
    }

    /// Whether this reign lasts.
    pub(super) fn reigns(&self, reign: Reign) -> bool {
        let running = self.places.get(&reign.member).and_then(|place| place.running.as_ref());
        running.and_then(|running| running.leader.as_ref()).is_some_and(|leader| leader.reign == reign && !leader.over)
    }

    pub(super) fn is_process_alive(&self, reign: Reign) -> bool {
        let running = self.places.get(&reign.member).and_then(|place| place.running.as_ref());
        running.is_some_and(|running| running.process == reign.process)
    }

    /// Tells a leader something, if its reign lasts.
    pub(super) fn tell_leader(&mut self, reign: Reign, of_work: bool, event: Event) {
        if self.reigns(reign) {
            self.with_leader(reign.member, |leader, world| {
                leader.working -= usize::from(of_work);
                leader.on_event(world, event);
            });
        }
    }

    /// Somebody who leads and has taken over.
    pub(super) fn any_leader(&self) -> Option<u64> {
        let leads = |place: &Place| {
            let leader = place.running.as_ref().and_then(|running| running.leader.as_ref());
            leader.is_some_and(|leader| leader.recovered && !leader.over)
        };
        self.places.iter().find(|(_, place)| leads(place)).map(|(id, _)| *id)
    }

    /// Asks whoever leads for something.
    pub(super) fn ask_leader<R>(&mut self, ask: impl FnOnce(&mut Leader, &mut World) -> R) -> Option<R> {
        let member = self.any_leader()?;
        self.with_leader(member, ask)
    }

    pub(super) fn kill_member_soon(&mut self, reign: Reign) {
        self.after(0, move |world| {
            if world.is_process_alive(reign) {
                world.crash_member(reign.member);
                world.break_sessions_of(reign);
            }
        });
    }

    // --- TaskManagers ---------------------------------------------------------------------------------------------

    /// Lets a TaskManager do something, if it is alive.
    pub(super) fn with_manager(&mut self, id: &TaskManagerId, act: impl FnOnce(&mut TaskManager, &mut World)) {
        if let Some(mut manager) = self.managers.remove(id) {
            act(&mut manager, self);
            self.managers.insert(id.clone(), manager);
        }
    }

    pub(super) fn kill_manager_soon(&mut self, id: &TaskManagerId) {
        let id = id.clone();
        self.after(0, move |world| world.crash_manager(&id));
    }

    /// A machine dies, and another one takes its place.
    pub(super) fn crash_manager(&mut self, id: &TaskManagerId) {
        let Some(dead) = self.managers.remove(id) else { return };
        self.note(|| format!("{id} crashes"));
        self.seen("a TaskManager crashes");
        self.storage.crash(&id.to_string());
        if let Some(session) = dead.session {
            // Some crashes nobody is told of: silence says it.
            match self.random.chance(700) {
                true => self.break_session(session),
                false => drop(self.sessions.remove(&session)),
            }
        }
        for (job, attempt) in dead.runs() {
            self.break_exchanges(&job, attempt);
        }
        let back = self.random.below(600);
        self.after(back, World::start_manager);
    }

    /// Some of those who exchanged records with somebody who is gone notice by themselves.
    fn break_exchanges(&mut self, job: &JobId, attempt: Attempt) {
        for id in self.managers.keys().cloned().collect::<Vec<_>>() {
            let (job, delay) = (job.clone(), self.work_delay());
            if self.random.chance(500) {
                self.after(delay, move |world| world.fail_subtask(&id, Some((job, attempt))));
            }
        }
    }

    pub(super) fn fail_subtask(&mut self, manager: &TaskManagerId, of: Option<(JobId, Attempt)>) {
        self.with_manager(manager, |manager, world| {
            let subtask = manager.any_subtask();
            let is_of =
                |id: &SubtaskId| of.as_ref().is_none_or(|(job, attempt)| id.job == *job && id.attempt == *attempt);
            if let Some(id) = subtask.filter(is_of) {
                world.seen("a subtask fails");
                let error = Error::unavailable("a peer is gone");
                manager.end(world, &id, SubtaskState::Failed(error));
            }
        });
    }

    /// Sends along a channel of an attempt.
    pub(super) fn emit(&mut self, from: &SubtaskId, to: u32, element: Element) {
        let key = self.channel(from, from.index.0, to);
        self.channels.entry(key).or_default().push_back(element);
    }

    /// The next element of a channel of an attempt.
    pub(super) fn receive(&mut self, to: &SubtaskId, from: u32) -> Option<Element> {
        let key = self.channel(to, from, to.index.0);
        self.channels.get_mut(&key)?.pop_front()
    }

    fn channel(&self, of: &SubtaskId, from: u32, to: u32) -> ChannelKey {
        let attempt = if self.planted == Planted::SkippedFence { Attempt(0) } else { of.attempt };
        (of.job.clone(), attempt, from, to)
    }

    fn append_input(&mut self) {
        let streams: Vec<StreamName> = self.store.streams.keys().cloned().collect();
        for stream in streams {
            if self.troubled && self.random.chance(400) {
                let (value, key) = (self.next_number(), self.random.below(7) as u32);
                let partitions = self.store.streams.get_mut(&stream).unwrap();
                let partition = self.random.below(partitions.len() as u64) as usize;
                partitions[partition].records.push(Record { key, value });
            }
            if self.random.chance(20) {
                self.store.truncate(&stream);
            }
        }
    }

    pub(super) fn resume_store(&mut self) {
        let now = self.clock(0);
        self.store.resume(now);
    }

    /// Whether a process dies at this point of the protocol; that it came here is noted.
    pub(super) fn strikes(&mut self, step: &'static str) -> bool {
        let strikes = self.troubled && self.random.chance(self.troubles.strike);
        if strikes {
            self.note(|| format!("killed before: {step}"));
            self.seen(step);
        }
        strikes
    }

    /// Something worth testing has happened.
    pub(super) fn seen(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// Says what happens, if anybody listens.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.lock().push(format!("{:>6} {}", self.now, what()));
        }
    }

    /// A user's request for a snapshot has ended.
    pub(super) fn answered(&mut self, request: &RequestId, result: &Result<SnapshotId>) {
        if let Ok(snapshot) = result {
            let complete = self.history.lock().completed.contains(snapshot);
            assert!(complete, "a user is told that {snapshot} is complete, which the log does not say");
        }
        self.note(|| format!("answer to {request}: {result:?}"));
    }

    /// The attempts that run anywhere.
    pub(super) fn live_attempts(&self) -> BTreeSet<(JobId, Attempt)> {
        self.managers.values().flat_map(TaskManager::runs).collect()
    }

    pub(super) fn heal_everything(&mut self) {
        self.troubled = false;
        self.network.heal();
        self.network.weather = Weather::default();
        self.resume_store();
        self.sessions.values_mut().for_each(|session| session.stalled_until = 0);
        self.managers.values_mut().for_each(|manager| manager.paused_until = 0);
    }
}
