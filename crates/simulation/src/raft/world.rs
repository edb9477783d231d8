//! A group of members, their disks and network, clients, and whatever goes wrong, all decided by one seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};

use super::clients::Clients;
use super::ledger::{History, Ledger};
use crate::disk::Disk;
use crate::network::{Network, Weather};
use crate::random::Random;
use weir_replication::Result;
use weir_replication::stepwise::{Member, Request, Shared};
use weir_replication::{Config, MemberChange, NodeId, Role, Status};

/// How long things go wrong.
const TROUBLED_TICKS: u64 = 160;
/// How long the group may then take to be whole.
const QUIET_TICKS: u64 = 1_500;
/// So many times a message may cause another one within one tick.
const ROUNDS_MAX: usize = 8;
/// Ticks of a member's clock to every 8 of the world's.
const PACES: [u64; 5] = [8, 8, 8, 7, 6];
/// Ids of members that are added have these numbers.
const ADDED: [u64; 2] = [6, 7];

/// What is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Planted {
    #[default]
    Nothing,
    /// Disks do not sync.
    SkippedSync,
    /// Clients read what is there, without asking whether the leader still leads.
    ReadWithoutBarrier,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Two runs with the same digest applied the same in the same order.
    pub(super) digest: u64,
    /// Writes that were acknowledged.
    pub(super) acknowledged: usize,
    /// Leaders, one a term.
    pub(super) leaders: usize,
    /// Snapshots restored, from other members and at starts.
    pub(super) restored: usize,
    /// Crashes.
    pub(super) crashes: usize,
    /// Members added and removed.
    pub(super) changes: usize,
}

/// What happens, in thousandths a tick.
struct Troubles {
    crash: u64,
    part: u64,
    heal: u64,
    stop: u64,
    change: u64,
}

/// A member that runs.
pub(super) struct Running {
    member: Member<Ledger>,
    pub(super) machine: Arc<RwLock<Ledger>>,
    pub(super) status: watch::Receiver<Status>,
    inbox: Vec<Request>,
    /// One of [`PACES`].
    pace: u64,
}

impl Running {
    /// Gives it something to do in its next batch.
    pub(super) fn ask(&mut self, request: Request) {
        self.inbox.push(request);
    }
}

struct Place {
    disk: Disk,
    founders: Vec<NodeId>,
    running: Option<Running>,
}

/// Everything there is.
pub(super) struct World {
    random: Random,
    now: u64,
    seed: u64,
    history: Arc<Mutex<History>>,
    network: Network,
    places: BTreeMap<u64, Place>,
    leaders: BTreeMap<u64, u64>,
    clients: Clients,
    troubles: Troubles,
    change: Option<oneshot::Receiver<Result<bytes::Bytes>>>,
    planted: Planted,
    crashes: usize,
    changes: usize,
}

impl World {
    pub(super) fn new(seed: u64, planted: Planted) -> Self {
        let mut random = Random::new(seed);
        let count = random.pick(&[1, 3, 3, 3, 5]);
        let founders: Vec<NodeId> = (1..=count).filter_map(NodeId::new).collect();
        let mut network = Network::default();
        network.weather = Weather {
            lost: random.pick(&[0, 0, 20, 150]),
            doubled: random.pick(&[0, 50, 300]),
            delay_max: random.pick(&[0, 1, 3, 8]),
        };
        let mut troubles = Troubles {
            crash: random.pick(&[0, 10, 30, 80]),
            part: random.pick(&[0, 10, 40]),
            heal: random.pick(&[20, 60]),
            stop: random.pick(&[0, 10]),
            change: random.pick(&[0, 0, 30]),
        };
        if planted == Planted::ReadWithoutBarrier {
            // Partitions, so that there often are leaders that others have replaced.
            network.weather = Weather::default();
            troubles = Troubles { crash: 0, part: 60, heal: 30, stop: 0, change: 0 };
        }
        let mut world = Self {
            random,
            now: 0,
            seed,
            history: Arc::default(),
            network,
            places: BTreeMap::new(),
            leaders: BTreeMap::new(),
            clients: Clients::new(planted == Planted::ReadWithoutBarrier),
            troubles,
            change: None,
            planted,
            crashes: 0,
            changes: 0,
        };
        founders.iter().for_each(|founder| world.add(founder.get(), founders.clone()));
        world
    }

    /// Runs until the group is whole again after all troubles; panics if it broke a promise.
    pub(super) fn run(mut self) -> Outcome {
        while self.now < TROUBLED_TICKS {
            self.trouble();
            self.clients.act(&mut self.random, &mut running(&mut self.places));
            self.step();
        }
        self.network.heal();
        self.network.weather = Weather::default();
        self.clients.stop_asking();
        let last = self.clients.last_write();
        let whole_by = self.now + QUIET_TICKS;
        while !self.is_whole(last) {
            assert!(self.now < whole_by, "the group did not recover: {}", self.describe());
            self.start_all();
            self.clients.act(&mut self.random, &mut running(&mut self.places));
            self.step();
        }
        let history = self.history.lock();
        let acknowledged = self.clients.check(&history.order);
        Outcome {
            digest: history.digest,
            acknowledged,
            leaders: self.leaders.len(),
            restored: history.restored,
            crashes: self.crashes,
            changes: self.changes,
        }
    }

    /// One tick of the world.
    fn step(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.network.collect(self.now, &mut self.random);
            let arrived = self.network.arrived(self.now);
            for (to, message) in &arrived {
                if let Some(running) = self.places.get_mut(to).and_then(|place| place.running.as_mut()) {
                    running.ask(Request::Step { message: message.clone() });
                }
            }
            let mut idle = arrived.is_empty();
            for id in self.ids() {
                idle &= !self.work(id);
            }
            if idle {
                break;
            }
        }
        for id in self.ids() {
            let Some(running) = self.places.get_mut(&id).and_then(|place| place.running.as_mut()) else { continue };
            // Clocks change their pace now and then: with fixed timeouts, members might else stand for election together
            // for ever, which those with random ones do not.
            if self.random.chance(20) {
                running.pace = self.random.pick(&PACES);
            }
            if (self.now + id) % 8 < running.pace {
                running.member.tick();
            }
            self.work_now(id);
        }
        self.clients.hear(&mut running(&mut self.places));
        if let Some(change) = &mut self.change {
            let answer = change.try_recv();
            self.changes += usize::from(matches!(answer, Ok(Ok(_))));
            if !matches!(answer, Err(TryRecvError::Empty)) {
                self.change = None;
            }
        }
        self.now += 1;
    }

    /// Lets a member do what was asked of it; false if that is nothing.
    fn work(&mut self, id: u64) -> bool {
        let waits = self.places.get(&id).and_then(|place| place.running.as_ref()).is_some_and(|r| !r.inbox.is_empty());
        if waits {
            self.work_now(id);
        }
        waits
    }

    fn work_now(&mut self, id: u64) {
        let Some(running) = self.places.get_mut(&id).and_then(|place| place.running.as_mut()) else { return };
        running.member.on_requests(std::mem::take(&mut running.inbox).into_iter());
        if running.member.work().is_err() {
            // Its disk failed: that is how the machine crashes between two steps of the disk.
            return self.crash(id);
        }
        let status = running.status.borrow().clone();
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term.0).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", status.term);
        }
        if running.member.may_stop() {
            self.end(id);
        }
    }

    fn trouble(&mut self) {
        let ids = self.ids();
        let id = self.random.pick(&ids);
        if self.random.chance(self.troubles.crash) {
            match self.random.chance(500) {
                true => self.crash(id),
                // In the middle of whatever it does next.
                false => self.places[&id].disk.fail_after(self.random.below(12)),
            }
        }
        if self.random.chance(self.troubles.stop) {
            let asked = self.places.get_mut(&id).and_then(|place| place.running.as_mut());
            asked.into_iter().for_each(|running| running.ask(Request::Stop));
        }
        for id in ids.iter().copied() {
            if self.places[&id].running.is_none() && self.random.chance(100) {
                self.start(id);
            }
        }
        if self.random.chance(self.troubles.part) {
            let these: Vec<u64> = ids.iter().copied().filter(|_| self.random.chance(400)).collect();
            let one_way = self.random.chance(300);
            self.network.heal();
            self.network.part(&these, &ids, one_way);
        }
        if self.random.chance(self.troubles.heal) {
            self.network.heal();
        }
        if self.change.is_none() && self.random.chance(self.troubles.change) {
            self.change_members();
        }
    }

    fn change_members(&mut self) {
        let fresh = ADDED.into_iter().find(|id| !self.places.contains_key(id));
        let change = match fresh {
            Some(id) if self.random.chance(600) => {
                self.add(id, Vec::new());
                NodeId::new(id).map(MemberChange::Add)
            }
            _ => {
                let ids = self.ids();
                let id = NodeId::new(self.random.pick(&ids));
                let add = self.random.chance(300) && id.is_some_and(|id| ADDED.contains(&id.get()));
                id.map(|id| if add { MemberChange::Add(id) } else { MemberChange::Remove(id) })
            }
        };
        let leader = running(&mut self.places).into_values().find(|running| running.status.borrow().serving);
        if let (Some(leader), Some(change)) = (leader, change) {
            let (reply, answer) = oneshot::channel();
            leader.ask(Request::ChangeMembers { change, reply });
            self.change = Some(answer);
        }
    }

    fn add(&mut self, id: u64, founders: Vec<NodeId>) {
        let disk = match self.planted {
            Planted::SkippedSync => Disk::ignoring_sync(),
            _ => Disk::default(),
        };
        self.places.insert(id, Place { disk, founders, running: None });
        self.start(id);
    }

    fn start(&mut self, id: u64) {
        let (Some(place), Some(node)) = (self.places.get_mut(&id), NodeId::new(id)) else { return };
        let config = Config {
            // Different for each, and different in other seeds: members draw no random numbers of their own.
            election_ticks: 8 + 2 * ((id * (1 + self.seed % 6) + self.seed) % 7) as usize,
            fixed_election_ticks: true,
            heartbeat_ticks: 2,
            compact_entries: 10 + self.seed % 40,
            trailing_entries: self.seed % 12,
            chunk_bytes: 64,
            ..Config::new(node, place.founders.clone())
        };
        let machine = Ledger::new(id, self.history.clone());
        let opened = Member::open(&config, Box::new(place.disk.clone()), machine, self.network.link(id));
        // Its disk may fail while it starts, but what a crash leaves is never taken for damage.
        match opened {
            Ok((member, Shared { machine, status })) => {
                let pace = self.random.pick(&PACES);
                place.running = Some(Running { member, machine, status, inbox: Vec::new(), pace });
            }
            Err(error) => {
                let io = error.code == weir_types::Code::Io;
                assert!(io, "member {id} does not start after a crash: {error} {:?}", error.detail);
                place.disk.crash(&mut self.random);
            }
        }
    }

    fn start_all(&mut self) {
        for id in self.ids() {
            if self.places[&id].running.is_none() {
                self.start(id);
            }
        }
    }

    fn crash(&mut self, id: u64) {
        if let Some(place) = self.places.get_mut(&id) {
            place.running = None;
            place.disk.crash(&mut self.random);
            self.crashes += 1;
        }
    }

    /// Ends a member without a crash.
    fn end(&mut self, id: u64) {
        if let Some(place) = self.places.get_mut(&id) {
            place.running = None;
        }
    }

    /// Whether all members have applied everything, `last` included.
    fn is_whole(&mut self, last: u32) -> bool {
        let Some((leader, members)) = self.places.values().find_map(|place| {
            let running = place.running.as_ref().filter(|running| running.status.borrow().serving)?;
            Some((running.machine.read().len(), running.member.members()))
        }) else {
            return false;
        };
        let everywhere = members.iter().all(|member| {
            let running = self.places.get(&member.id.get()).and_then(|place| place.running.as_ref());
            running.is_some_and(|running| {
                let ledger = running.machine.read();
                ledger.len() == leader && ledger.operations().contains(&last)
            })
        });
        everywhere && self.clients.are_idle()
    }

    fn ids(&self) -> Vec<u64> {
        self.places.keys().copied().collect()
    }

    fn describe(&self) -> String {
        let places = self.places.iter().map(|(id, place)| {
            let state = place.running.as_ref().map(|running| {
                (running.status.borrow().clone(), running.machine.read().len(), running.member.members())
            });
            format!("{id}: {state:?}")
        });
        places.collect::<Vec<_>>().join("\n")
    }
}

/// The members that run.
fn running(places: &mut BTreeMap<u64, Place>) -> BTreeMap<u64, &mut Running> {
    places.iter_mut().filter_map(|(id, place)| Some((*id, place.running.as_mut()?))).collect()
}
