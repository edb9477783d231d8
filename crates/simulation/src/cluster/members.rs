//! JobManagers as members of the raft group: the production member and log, and the production metadata behind it.
//!
//! Judged here: all members give the same answers in the same order, and a reservation ends once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use weir_coordination::metadata::{Command, SnapshotEntry, State};
use weir_proto::convert::metadata::{decode_command, encode_reply};
use weir_proto::convert::metadata_state::{decode_state, encode_state};
use weir_replication::stepwise::{Member, Request, Shared};
use weir_replication::{Config, NodeId, StateMachine, Status};
use weir_types::ids::{BarrierId, JobId, SnapshotId};
use weir_types::quota::QuotaLevel;
use weir_types::snapshot::SourcePositions;

use super::leader::Leader;
use super::world::{TICK_MS, World};
use crate::disk::Disk;

/// World ticks to a tick of raft.
const RAFT_TICKS: u64 = 3;
/// So many times a message may cause another one within one tick.
const ROUNDS_MAX: usize = 4;

/// What all members have agreed on so far.
#[derive(Default)]
pub(super) struct History {
    /// By index: a digest of the answer.
    answers: BTreeMap<u64, u64>,
    /// Whether each reservation, by snapshot and nonce, ended as complete.
    ended: BTreeMap<(SnapshotId, String), bool>,
    pub(super) completed: BTreeSet<SnapshotId>,
    pub(super) aborted: BTreeSet<SnapshotId>,
    /// Snapshots whose files are gone for good as far as the log knows: what is written there later is a stray.
    pub(super) cleaned: BTreeSet<SnapshotId>,
    /// Completed since somebody looked.
    pub(super) fresh: Vec<SnapshotEntry>,
    /// By job: the newest snapshot that ever completed, and its cut.
    pub(super) cuts: BTreeMap<JobId, (BarrierId, Vec<SourcePositions>)>,
    /// Bytes charged to the cluster.
    pub(super) charged: u64,
    pub(super) digest: u64,
}

impl History {
    fn take(&mut self, index: u64, answer: u64) -> bool {
        if let Some(known) = self.answers.get(&index) {
            assert_eq!(*known, answer, "members disagree about the answer at {index}");
            return false;
        }
        self.answers.insert(index, answer);
        self.digest = (self.digest.rotate_left(5) ^ answer).wrapping_mul(0x517c_c1b7_2722_0a95);
        true
    }

    fn end(&mut self, snapshot: &SnapshotId, nonce: String, complete: bool) {
        let before = self.ended.insert((snapshot.clone(), nonce), complete);
        assert!(before.is_none_or(|before| before == complete), "the reservation of {snapshot} ended twice");
        let ended = if complete { &mut self.completed } else { &mut self.aborted };
        ended.insert(snapshot.clone());
    }

    fn note_cut(&mut self, entry: SnapshotEntry) {
        let cut = self.cuts.entry(entry.job.clone()).or_default();
        if entry.barrier >= cut.0 {
            *cut = (entry.barrier, entry.sources.clone());
        }
        self.fresh.push(entry);
    }
}

/// The replicated state of one member.
pub(super) struct Machine {
    pub(super) state: State,
    history: Arc<Mutex<History>>,
}

impl StateMachine for Machine {
    fn apply(&mut self, command: weir_replication::Command<'_>) -> Bytes {
        let (now, decoded) = decode_command(command.data).unwrap();
        let ends = match &decoded {
            Command::Complete(completion) => Some((completion.snapshot.clone(), completion.nonce.0.clone(), true)),
            Command::Abort { snapshot, nonce, .. } => Some((snapshot.clone(), nonce.0.clone(), false)),
            _ => None,
        };
        let cleans = match &decoded {
            Command::Swept { snapshot } | Command::Deleted { snapshot } => Some(snapshot.clone()),
            _ => None,
        };
        let reply = self.state.apply(now, decoded);
        let bytes = encode_reply(&reply);
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let mut history = self.history.lock();
        if history.take(command.index, hasher.finish()) {
            if let Some((snapshot, nonce, complete)) = ends.filter(|_| reply.is_ok()) {
                let first = complete && !history.completed.contains(&snapshot);
                history.end(&snapshot, nonce, complete);
                let entry = self.state.snapshots.get(&snapshot).filter(|_| first);
                entry.into_iter().for_each(|entry| history.note_cut(entry.clone()));
            }
            history.cleaned.extend(cleans);
            history.charged = self.state.usage(&QuotaLevel::Cluster).bytes;
        }
        bytes.into()
    }

    fn snapshot(&self) -> Bytes {
        encode_state(&self.state).into()
    }

    fn restore(&mut self, snapshot: &[u8]) -> weir_types::Result<()> {
        self.state = decode_state(snapshot)?;
        Ok(())
    }
}

/// A member that runs.
pub(super) struct Running {
    member: Member<Machine>,
    pub(super) machine: Arc<RwLock<Machine>>,
    status: watch::Receiver<Status>,
    inbox: Vec<Request>,
    /// Of 8 ticks, so many count.
    pace: u64,
    /// Tells this process from those before.
    pub(super) process: u64,
    pub(super) leader: Option<Box<Leader>>,
}

/// Where a member runs, or ran.
pub(super) struct Place {
    disk: Disk,
    pub(super) running: Option<Running>,
    /// How far its clock is ahead.
    pub(super) skew_ms: u64,
}

impl Running {
    pub(super) fn ask(&mut self, request: Request) {
        self.inbox.push(request);
    }

    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

impl World {
    /// Makes a group of so many members.
    pub(super) fn found(&mut self, members: u64) {
        for id in 1..=members {
            let skew_ms = self.random.pick(&[0, 0, 40, 700]);
            self.places.insert(id, Place { disk: Disk::default(), running: None, skew_ms });
        }
        (1..=members).for_each(|id| self.start_member(id));
    }

    /// Starts a member that does not run.
    pub(super) fn start_member(&mut self, id: u64) {
        let founders: Vec<NodeId> = self.places.keys().copied().filter_map(NodeId::new).collect();
        let Some(node) = NodeId::new(id) else { return };
        let config = Config {
            election_ticks: 6 + 2 * ((id * (1 + self.seed % 6) + self.seed) % 5) as usize,
            fixed_election_ticks: true,
            heartbeat_ticks: 2,
            compact_entries: 40 + self.seed % 100,
            trailing_entries: self.seed % 20,
            chunk_bytes: 4096,
            ..Config::new(node, founders)
        };
        let machine = Machine { state: State::default(), history: self.history.clone() };
        let link = self.network.link(id);
        let process = self.next_number();
        let pace = self.random.pick(&[8, 8, 8, 7, 6]);
        let Some(place) = self.places.get_mut(&id) else { return };
        match Member::open(&config, Box::new(place.disk.clone()), machine, link) {
            Ok((member, Shared { machine, status })) => {
                let inbox = Vec::new();
                place.running = Some(Running { member, machine, status, inbox, pace, process, leader: None });
            }
            Err(error) => {
                let io = error.code == weir_types::Code::Io;
                assert!(io, "member {id} does not start after a crash: {error} {:?}", error.detail);
                place.disk.crash(&mut self.random);
            }
        }
    }

    /// The machine of a member dies.
    pub(super) fn crash_member(&mut self, id: u64) {
        self.note(|| format!("member {id} crashes"));
        self.seen("a JobManager crashes");
        let skew_ms = self.random.pick(&[0, 0, 40, 700]);
        let Some(place) = self.places.get_mut(&id) else { return };
        place.running = None;
        place.disk.crash(&mut self.random);
        place.skew_ms = skew_ms;
    }

    /// Lets the disk of a member fail in the middle of something.
    pub(super) fn break_disk(&mut self, id: u64) {
        let after = self.random.below(12);
        self.places[&id].disk.fail_after(after);
    }

    /// One tick of all members: messages, clocks, disks.
    pub(super) fn step_members(&mut self) {
        let tick = self.now / TICK_MS;
        for round in 0..ROUNDS_MAX {
            self.network.collect(tick, &mut self.random);
            let arrived = self.network.arrived(tick);
            for (to, message) in &arrived {
                if let Some(running) = self.places.get_mut(to).and_then(|place| place.running.as_mut()) {
                    running.ask(Request::Step { message: message.clone() });
                }
            }
            let mut idle = arrived.is_empty();
            for id in self.member_ids() {
                idle &= !self.work_member(id, round == 0);
            }
            if idle {
                break;
            }
        }
    }

    /// Lets a member do what was asked of it; false if that is nothing.
    fn work_member(&mut self, id: u64, ticks: bool) -> bool {
        let tick = self.now / TICK_MS + id;
        let Some(running) = self.places.get_mut(&id).and_then(|place| place.running.as_mut()) else { return false };
        let due = ticks && tick.is_multiple_of(RAFT_TICKS) && (tick / RAFT_TICKS) % 8 < running.pace;
        if running.inbox.is_empty() && !due {
            return false;
        }
        running.member.on_requests(std::mem::take(&mut running.inbox).into_iter());
        if due {
            running.member.tick();
        }
        if running.member.work().is_err() {
            // Its disk failed: that is how the machine crashes between two steps of the disk.
            self.crash_member(id);
        }
        true
    }

    pub(super) fn member_ids(&self) -> Vec<u64> {
        self.places.keys().copied().collect()
    }
}
