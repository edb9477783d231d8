//! A member of a group without its thread: it takes batches of requests and ticks, and does what follows from them. All of
//! it is deterministic, so that the simulation runs the very code that the thread runs.
//!
//! Everything that arrived while the disk was busy becomes one batch, so that many proposals share one sync.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{RawNode, SnapshotStatus, StateRole};
use tokio::sync::{oneshot, watch};
use weir_types::ids::Term;
use weir_types::{Error as UserError, Result as UserResult};

use crate::error::{Error, Result};
use crate::files::Files;
use crate::logger::logger;
use crate::machine::{StateMachine, Transport};
use crate::membership::Joining;
use crate::node::{Config, MemberChange, MemberStatus, NodeId, Role, Status};
use crate::store::{Compaction, Store};
use crate::transfer::Transfers;
use crate::wire::Frame;

/// Marks a proposed entry; the entry with which raft starts a term carries no context and no data.
pub(crate) const PROPOSED: &[u8] = &[1];
/// Proposals that no majority has yet, in bytes; beyond this, further ones are refused.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// The answer to a proposal.
pub type Reply = oneshot::Sender<Result<Bytes>>;

/// What a member is asked to do.
pub enum Request {
    /// Let a command be committed; answered with what applying it returned.
    Propose {
        /// The command.
        data: Bytes,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Make sure that it still leads, and has applied everything that was committed before.
    Barrier {
        /// Where the answer goes.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Add or remove a member.
    ChangeMembers {
        /// Which.
        change: MemberChange,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Say who the members are.
    Members {
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<MemberStatus>>,
    },
    /// Take a message of another member.
    Step {
        /// As it came from the transport.
        message: Bytes,
    },
    /// Hand the leadership over, and stop.
    Stop,
}

/// A proposal in the log whose outcome somebody awaits.
pub(crate) struct Pending {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) reply: Reply,
}

/// Barriers on their way: asked for, then sent to raft under a number, then confirmed at an index to be applied.
#[derive(Default)]
pub(crate) struct Barriers {
    pub(crate) asked: Vec<oneshot::Sender<Result<()>>>,
    pub(crate) sent: VecDeque<(u64, Vec<oneshot::Sender<Result<()>>>)>,
    pub(crate) confirmed: Vec<(u64, Vec<oneshot::Sender<Result<()>>>)>,
    pub(crate) next: u64,
}

/// What a running member shares with the handles that others hold.
pub struct Shared<M> {
    /// The state that commands are applied to.
    pub machine: Arc<RwLock<M>>,
    /// The member's part in its group.
    pub status: watch::Receiver<Status>,
}

/// A member.
pub struct Member<M> {
    pub(crate) raft: RawNode<Store>,
    pub(crate) machine: Arc<RwLock<M>>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) compaction: Compaction,
    /// In the order of their indices.
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) barriers: Barriers,
    pub(crate) transfers: Transfers,
    /// A member that is being added.
    pub(crate) joining: Option<Joining>,
    /// Set once it is asked to stop: for so many more ticks it tries to hand over its leadership.
    stopping: Option<usize>,
    pub(crate) election_ticks: usize,
    /// The last entry applied.
    pub(crate) applied: u64,
    /// The term of the last entry applied.
    pub(crate) applied_term: u64,
}

impl<M: StateMachine> Member<M> {
    /// Opens a member's files, restores the newest snapshot, and reads the log.
    ///
    /// # Errors
    /// `CORRUPT` naming a damaged file, `IO`, `INVALID_ARGUMENT` for a configuration that raft refuses.
    pub fn open(
        config: &Config,
        files: Box<dyn Files>,
        mut machine: M,
        transport: Box<dyn Transport>,
    ) -> UserResult<(Self, Shared<M>)> {
        let voters = config.founders.iter().map(|id| id.get()).collect();
        let (store, snapshot) = Store::open(files, voters, || machine.snapshot())?;
        if let Some(snapshot) = &snapshot {
            machine.restore(&snapshot.data)?;
        }
        let raft = RawNode::new(&raft_config(config, &store), store, &logger())
            .map_err(|error| UserError::invalid("raft refused its configuration").with_detail(error.to_string()))?;
        let machine = Arc::new(RwLock::new(machine));
        let (status, watching) = watch::channel(Status {
            role: Role::Follower,
            term: Term(raft.raft.term),
            leader: None,
            serving: false,
            stopped: None,
        });
        let shared = Shared { machine: machine.clone(), status: watching };
        let applied = raft.store().snapshot_index();
        let mut member = Self {
            raft,
            machine,
            transport,
            status,
            compaction: Compaction {
                entries_max: config.compact_entries.max(1),
                bytes_max: config.compact_bytes.max(1),
                entries_kept: config.trailing_entries,
            },
            pending: VecDeque::new(),
            barriers: Barriers::default(),
            transfers: Transfers::new(config.chunk_bytes),
            joining: None,
            stopping: None,
            election_ticks: config.election_ticks,
            applied,
            applied_term: 0,
        };
        if member.is_alone() {
            member.raft.campaign().map_err(|error| broken("could not stand for election", &error))?;
        }
        Ok((member, shared))
    }

    /// Does everything that can be done without another request or tick.
    ///
    /// # Errors
    /// If the disk fails: the member ends.
    pub fn work(&mut self) -> UserResult<()> {
        loop {
            while self.raft.has_ready() {
                self.on_ready()?;
            }
            self.issue_barriers();
            self.promote_who_has_caught_up();
            if !self.raft.has_ready() {
                break;
            }
        }
        if self.raft.raft.state != StateRole::Leader {
            self.transfers.stop();
        }
        self.flush_transfers();
        self.compact_if_due()?;
        self.publish();
        Ok(())
    }

    /// Takes note that time has passed.
    pub fn tick(&mut self) {
        self.raft.tick();
        for failed in self.transfers.on_tick() {
            self.raft.report_snapshot(failed, SnapshotStatus::Failure);
        }
        self.tick_joining();
        if let Some(ticks) = &mut self.stopping {
            *ticks = ticks.saturating_sub(1);
        }
    }

    /// Whether it was asked to stop and leaves nobody without a leader by doing so, as far as that is in its hands.
    pub fn may_stop(&self) -> bool {
        self.stopping.is_some_and(|ticks| ticks == 0 || self.raft.raft.state != StateRole::Leader)
    }

    /// Takes a batch of requests.
    pub fn on_requests(&mut self, requests: impl Iterator<Item = Request>) {
        let (mut entries, mut replies) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Propose { data, reply } => {
                    entries.push(Entry { data, context: Bytes::from_static(PROPOSED), ..Entry::default() });
                    replies.push(reply);
                }
                Request::ChangeMembers { change, reply } => {
                    self.propose(std::mem::take(&mut entries), std::mem::take(&mut replies));
                    self.change_members(change, reply);
                }
                Request::Barrier { reply } => self.barriers.asked.push(reply),
                Request::Members { reply } => answer(reply, self.members()),
                Request::Step { message } => self.on_message(message),
                Request::Stop => self.hand_over(),
            }
        }
        self.propose(entries, replies);
    }

    /// Stops as soon as another member leads, or none can be made to. Until then raft refuses proposals.
    fn hand_over(&mut self) {
        let successor = self.successor();
        if let Some(successor) = successor {
            tracing::info!(successor, "handing over the leadership");
            self.raft.transfer_leader(successor);
        }
        self.stopping.get_or_insert(if successor.is_some() { self.election_ticks } else { 0 });
    }

    /// Who would lead best in this leader's place: a voter that answers, the one that has most.
    pub(crate) fn successor(&self) -> Option<u64> {
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let voters = self.raft.store().conf().voters.iter().filter(|voter| **voter != raft.id);
        voters
            .filter_map(|voter| raft.prs().get(*voter).map(|progress| (progress, *voter)))
            .filter(|(progress, _)| progress.recent_active)
            .max_by_key(|(progress, voter)| (progress.matched, *voter))
            .map(|(_, voter)| voter)
    }

    /// Appends entries to the leader's log and remembers who awaits which.
    fn propose(&mut self, entries: Vec<Entry>, replies: Vec<Reply>) {
        if entries.is_empty() {
            return;
        }
        if self.raft.raft.state != StateRole::Leader {
            let error = self.not_leader();
            for reply in replies {
                answer(reply, Err(error.clone()));
            }
            return;
        }
        let mut message = Message { from: self.raft.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        match self.raft.raft.step(message) {
            Ok(()) => self.remember(replies),
            Err(_) => {
                let error = self.not_leader();
                for reply in replies {
                    answer(reply, Err(error.clone()));
                }
            }
        }
    }

    /// The last entries of the log are those that `replies` await.
    pub(crate) fn remember(&mut self, replies: Vec<Reply>) {
        let (last, term) = (self.raft.raft.raft_log.last_index(), self.raft.raft.term);
        let first = last + 1 - replies.len() as u64;
        self.pending.extend((first..).zip(replies).map(|(index, reply)| Pending { index, term, reply }));
    }

    fn on_message(&mut self, bytes: Bytes) {
        let (length, id) = (bytes.len(), self.raft.raft.id);
        match Frame::decode(bytes) {
            Some(Frame::Raft(message)) => self.on_raft_message(&message),
            Some(Frame::Chunk { transfer, to, total, offset, data }) if to == id => {
                if let Some(message) = self.transfers.on_chunk(transfer, id, total, offset, &data) {
                    self.on_raft_message(&message);
                }
            }
            Some(Frame::Received { transfer, by, bytes }) => {
                if self.transfers.on_received(transfer, by, bytes) {
                    self.raft.report_snapshot(by, SnapshotStatus::Finish);
                }
            }
            Some(Frame::Chunk { .. }) => tracing::warn!("dropped a part of a snapshot for another member"),
            None => tracing::warn!(bytes = length, "dropped a message of no known version"),
        }
    }

    fn on_raft_message(&mut self, bytes: &[u8]) {
        let message = match Message::parse_from_bytes(bytes) {
            Ok(message) if message.to == self.raft.raft.id => message,
            Ok(message) => {
                tracing::warn!(from = message.from, to = message.to, "dropped a raft message for another member");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, bytes = bytes.len(), "dropped a raft message that does not parse");
                return;
            }
        };
        if let Err(error) = self.raft.step(message) {
            tracing::debug!(%error, "raft refused a message");
        }
    }

    /// Asks raft to confirm the leadership for all barriers asked for since the last time.
    fn issue_barriers(&mut self) {
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader {
            let error = self.not_leader();
            let Barriers { asked, sent, confirmed, next: _ } = &mut self.barriers;
            let unconfirmed = sent.drain(..).flat_map(|(_, replies)| replies);
            let unapplied = confirmed.drain(..).flat_map(|(_, replies)| replies);
            for reply in asked.drain(..).chain(unconfirmed).chain(unapplied) {
                answer(reply, Err(error.clone()));
            }
        } else if !self.barriers.asked.is_empty() && raft.commit_to_current_term() {
            // Before that raft would drop the request: a new leader does not know what is committed.
            let number = self.barriers.next;
            self.barriers.next += 1;
            let replies = std::mem::take(&mut self.barriers.asked);
            self.barriers.sent.push_back((number, replies));
            self.raft.read_index(number.to_le_bytes().to_vec());
        }
    }

    fn compact_if_due(&mut self) -> UserResult<()> {
        if !self.raft.store().is_due(&self.compaction, self.applied) {
            return Ok(());
        }
        let data = self.machine.read().snapshot();
        let (index, bytes, log_bytes) = (self.applied, data.len(), self.raft.store().log_bytes());
        let commit = self.raft.raft.raft_log.committed;
        let compaction = self.compaction;
        self.raft.mut_store().compact(index, commit, data, &compaction)?;
        tracing::debug!(index, bytes, log_bytes, "replaced the raft log by a snapshot");
        Ok(())
    }

    fn publish(&mut self) {
        let raft = &self.raft.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower => Role::Follower,
        };
        let now = Status {
            role,
            term: Term(raft.term),
            leader: NodeId::new(raft.leader_id),
            // Having applied an entry of its own term, a leader has applied everything before it.
            serving: role == Role::Leader && self.applied_term == raft.term,
            stopped: None,
        };
        metrics::gauge!("weir_raft_term").set(raft.term as f64);
        metrics::gauge!("weir_raft_applied_index").set(self.applied as f64);
        metrics::gauge!("weir_raft_log_bytes").set(self.raft.store().log_bytes() as f64);
        self.status.send_if_modified(|status| {
            if *status == now {
                return false;
            }
            tracing::info!(role = ?now.role, term = %now.term, leader = ?now.leader.map(NodeId::get), serving = now.serving, "raft status");
            *status = now;
            true
        });
    }

    fn is_alone(&self) -> bool {
        self.raft.store().conf().voters == [self.raft.raft.id]
    }

    pub(crate) fn not_leader(&self) -> Error {
        let raft = &self.raft.raft;
        Error::NotLeader { leader: NodeId::new(raft.leader_id).filter(|leader| leader.get() != raft.id) }
    }
}

/// Whether an entry is one that somebody proposed, rather than the empty one a term starts with.
pub(crate) fn is_proposed(entry: &Entry) -> bool {
    entry.get_entry_type() == EntryType::EntryNormal && entry.context.as_ref() == PROPOSED
}

/// Answers somebody who may have stopped waiting.
pub(crate) fn answer<R>(reply: oneshot::Sender<R>, result: R) {
    let _gone = reply.send(result);
}

pub(crate) fn broken(message: &str, error: &raft::Error) -> UserError {
    UserError::internal(message).with_detail(error.to_string())
}

fn raft_config(config: &Config, store: &Store) -> raft::Config {
    let (min_election_tick, max_election_tick) = match config.fixed_election_ticks {
        true => (config.election_ticks, config.election_ticks + 1),
        false => (0, 0),
    };
    raft::Config {
        id: config.id.get(),
        election_tick: config.election_ticks,
        min_election_tick,
        max_election_tick,
        heartbeat_tick: config.heartbeat_ticks,
        applied: store.snapshot_index(),
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        max_committed_size_per_ready: 16 << 20,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        check_quorum: true,
        pre_vote: true,
        // A read asks a majority who leads. A lease would save that round and rest on clocks, which nothing here does.
        read_only_option: raft::ReadOnlyOption::Safe,
        ..raft::Config::default()
    }
}
