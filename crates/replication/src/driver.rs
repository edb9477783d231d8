//! The node's thread: one loop that turns requests, messages and ticks into steps of raft. Everything that arrived
//! while the disk was busy becomes one batch, so that many proposals share one sync.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType};
use raft::{RawNode, StateRole};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use weir_types::ids::Term;
use weir_types::{Error as UserError, Result as UserResult};

use crate::error::{Error, Result};
use crate::machine::{StateMachine, Transport};
use crate::node::{MemberChange, NodeId, Role, Status};
use crate::store::{Compaction, Store};

/// Requests taken into one batch.
const BATCH_MAX: usize = 1024;
/// Marks a proposed entry; the entry with which raft starts a term carries no context and no data.
const PROPOSED: &[u8] = &[1];

/// The answer to a proposal.
pub(crate) type Reply = oneshot::Sender<Result<Bytes>>;

/// What the node's thread is asked to do.
pub(crate) enum Request {
    Propose { data: Bytes, reply: Reply },
    Barrier { reply: oneshot::Sender<Result<()>> },
    ChangeMembers { change: MemberChange, reply: Reply },
    Step { message: Bytes },
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

/// The node's thread.
pub(crate) struct Driver<M> {
    pub(crate) raft: RawNode<Store>,
    pub(crate) machine: Arc<RwLock<M>>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) compaction: Compaction,
    /// In the order of their indices.
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) barriers: Barriers,
    /// The last entry applied.
    pub(crate) applied: u64,
    /// The term of the last entry applied.
    pub(crate) applied_term: u64,
}

impl<M: StateMachine> Driver<M> {
    pub(crate) fn new(
        raft: RawNode<Store>,
        machine: Arc<RwLock<M>>,
        transport: Box<dyn Transport>,
        status: watch::Sender<Status>,
        compaction: Compaction,
    ) -> Self {
        let applied = raft.store().snapshot_index();
        Self {
            raft,
            machine,
            transport,
            status,
            compaction,
            pending: VecDeque::new(),
            barriers: Barriers::default(),
            applied,
            applied_term: 0,
        }
    }

    /// Runs until asked to stop, all handles are gone, or the disk fails.
    pub(crate) fn run(self, queue: mpsc::Receiver<Request>, tick: Duration) {
        // Says so even if raft panics on an invariant; in a normal end, the real outcome is there first.
        let last_word = LastWord(self.status.clone());
        let ended = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            // The driver is dropped at the end of the loop: its directory is free before anybody hears of the end.
            Ok(runtime) => runtime.block_on(self.serve(queue, tick)),
            Err(error) => Err(UserError::io("could not start the raft thread's timer", &error)),
        };
        if let Err(error) = &ended {
            tracing::error!(%error, "raft node failed");
        }
        last_word.say(ended);
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<Request>, tick: Duration) -> UserResult<()> {
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.is_alone() {
            self.raft.campaign().map_err(|error| broken("could not stand for election", &error))?;
        }
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            while self.raft.has_ready() {
                self.on_ready()?;
            }
            self.issue_barriers();
            if self.raft.has_ready() {
                continue;
            }
            self.compact_if_due()?;
            self.publish();
            tokio::select! {
                received = queue.recv_many(&mut batch, BATCH_MAX) => {
                    if received == 0 || !self.on_requests(batch.drain(..)) {
                        return Ok(());
                    }
                }
                _ = ticks.tick() => {
                    self.raft.tick();
                }
            }
        }
    }

    /// Takes a batch of requests; false if one of them is to stop.
    fn on_requests(&mut self, requests: impl Iterator<Item = Request>) -> bool {
        let (mut entries, mut replies, mut go_on) = (Vec::new(), Vec::new(), true);
        for request in requests {
            match request {
                Request::Propose { data, reply } => {
                    entries.push(Entry { data, context: Bytes::from_static(PROPOSED), ..Entry::default() });
                    replies.push(reply);
                }
                Request::ChangeMembers { change, reply } => {
                    self.propose(std::mem::take(&mut entries), std::mem::take(&mut replies));
                    self.propose_change(change, reply);
                }
                Request::Barrier { reply } => self.barriers.asked.push(reply),
                Request::Step { message } => self.on_message(&message),
                Request::Stop => go_on = false,
            }
        }
        self.propose(entries, replies);
        go_on
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

    fn propose_change(&mut self, change: MemberChange, reply: Reply) {
        if self.raft.raft.state != StateRole::Leader {
            answer(reply, Err(self.not_leader()));
            return;
        }
        // Raft would turn a change into an empty entry, and report success, while another one is not applied yet.
        if self.raft.raft.has_pending_conf() {
            answer(reply, Err(Error::ChangeRefused("another one is under way".to_owned())));
            return;
        }
        let (kind, member) = match change {
            MemberChange::Add(member) => (ConfChangeType::AddNode, member),
            MemberChange::Remove(member) => (ConfChangeType::RemoveNode, member),
        };
        let mut conf_change = ConfChange { node_id: member.get(), ..ConfChange::default() };
        conf_change.set_change_type(kind);
        match self.raft.propose_conf_change(PROPOSED.to_vec(), conf_change) {
            Ok(()) => self.remember(vec![reply]),
            Err(error) => answer(reply, Err(Error::ChangeRefused(error.to_string()))),
        }
    }

    /// The last entries of the log are those that `replies` await.
    fn remember(&mut self, replies: Vec<Reply>) {
        let (last, term) = (self.raft.raft.raft_log.last_index(), self.raft.raft.term);
        let first = last + 1 - replies.len() as u64;
        self.pending.extend((first..).zip(replies).map(|(index, reply)| Pending { index, term, reply }));
    }

    fn on_message(&mut self, bytes: &[u8]) {
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

/// Sets the final status, at the latest when the thread unwinds.
struct LastWord(watch::Sender<Status>);

impl LastWord {
    fn say(&self, ended: UserResult<()>) {
        self.0.send_modify(|status| {
            status.serving = false;
            status.stopped.get_or_insert(ended);
        });
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        self.say(Err(UserError::internal("the raft thread panicked")));
    }
}
