//! A member of a group: how to start it, and the handle through which the rest of the process uses it.

use std::fmt;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};
use weir_types::ids::Term;
use weir_types::{Error as UserError, Result as UserResult};

use crate::driver;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::machine::{StateMachine, Transport};
use crate::member::{Member, Request, Shared};

/// Requests that wait for the node's thread; beyond this, callers wait.
const QUEUE_MAX: usize = 4096;
/// Largest proposal.
const PROPOSAL_BYTES_MAX: usize = 16 << 20;

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NonZeroU64);

impl NodeId {
    /// Member number `id`; there is no member 0.
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a member behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub id: NodeId,
    /// The founders of the group, this member among them, the same on each; only a new directory looks at them. A member
    /// that is to be added to an existing group starts with none.
    pub founders: Vec<NodeId>,
    /// The unit of the next two.
    pub tick: Duration,
    /// The leader sends heartbeats this often.
    pub heartbeat_ticks: usize,
    /// Without a leader's heartbeat for one to two times this, a member stands for election.
    pub election_ticks: usize,
    /// Without the random part of that time, so that a run can be repeated; members then need different ones.
    pub fixed_election_ticks: bool,
    /// The log is replaced by a snapshot when it has grown by this many entries,
    pub compact_entries: u64,
    /// or by this many bytes.
    pub compact_bytes: u64,
    /// Entries kept before the snapshot for members that lag a little.
    pub trailing_entries: u64,
    /// Snapshots go to other members in parts of this size.
    pub chunk_bytes: usize,
}

impl Config {
    /// The defaults for a member of a group founded by `founders`.
    pub fn new(id: NodeId, founders: Vec<NodeId>) -> Self {
        Self {
            id,
            founders,
            // Without a leader for 0.6 to 1.2 s, a member stands for election: soon enough for people not to notice, and long
            // enough for a leader on a busy machine to say in time that it is there.
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 12,
            fixed_election_ticks: false,
            compact_entries: 20_000,
            compact_bytes: 8 << 20,
            trailing_entries: 1_000,
            chunk_bytes: 512 << 10,
        }
    }
}

/// A member's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// What a member knows about its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its part.
    pub role: Role,
    /// The term.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// It leads and has applied everything committed before its term: decisions may be taken on its state.
    pub serving: bool,
    /// Set when the node has stopped, with the failure unless it was asked to.
    pub stopped: Option<std::result::Result<(), UserError>>,
}

/// A change of the group's membership, one member at a time. What is so already succeeds, so that changes may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Adds a member: first it learns, then it votes.
    Add(NodeId),
    /// Removes a member.
    Remove(NodeId),
}

/// One member of a group, as another one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Which one.
    pub id: NodeId,
    /// It has a vote; otherwise it learns.
    pub votes: bool,
    /// It leads.
    pub leads: bool,
    /// It has answered lately. Only the leader knows.
    pub active: Option<bool>,
    /// How many entries of the log it has not confirmed. Only the leader knows.
    pub lag: Option<u64>,
}

/// A running member. Clones share it; it stops when [`Node::stop`] is called or the last clone is dropped.
///
/// The state machine is owned by the node's thread, which alone changes it, under a lock that it holds for one batch of
/// commands at a time; everybody else reads it through [`Node::read`].
pub struct Node<M> {
    machine: Arc<RwLock<M>>,
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
}

impl<M> Clone for Node<M> {
    fn clone(&self) -> Self {
        Self { machine: self.machine.clone(), requests: self.requests.clone(), status: self.status.clone() }
    }
}

impl<M: StateMachine> Node<M> {
    /// Starts a member on its directory: restores the newest snapshot, reads the log, and joins the group. The only
    /// member of a group elects itself at once.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if another process uses the directory, `CORRUPT` naming a damaged file, `IO`,
    /// `INVALID_ARGUMENT` for a configuration that raft refuses.
    pub fn start(config: Config, dir: &Path, machine: M, transport: impl Transport) -> UserResult<Self> {
        if !config.founders.is_empty() && !config.founders.contains(&config.id) {
            return Err(UserError::invalid(format!(
                "raft member {} is not among the founders of its group",
                config.id
            )));
        }
        let files = Box::new(Directory::open(dir)?);
        let (member, shared) = Member::open(&config, files, machine, Box::new(transport))?;
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("raft".to_owned())
            .spawn(move || driver::run(member, queue, config.tick))
            .map_err(|error| UserError::io("could not start the raft thread", &error))?;
        let Shared { machine, status } = shared;
        Ok(Self { machine, requests, status })
    }

    /// Proposes a command and returns what applying it returned: it is durable then.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::OutcomeUnknown`] it may yet be applied.
    pub async fn propose(&self, data: impl Into<Bytes>) -> Result<Bytes> {
        let data = data.into();
        if data.len() > PROPOSAL_BYTES_MAX {
            return Err(Error::TooLarge { bytes: data.len(), bytes_max: PROPOSAL_BYTES_MAX });
        }
        self.ask(|reply| Request::Propose { data, reply }).await?
    }

    /// Returns once this node's state holds everything that was committed, by anybody, before the call, and this node
    /// was still the leader then.
    ///
    /// # Errors
    /// [`Error::NotLeader`] or [`Error::Stopped`].
    pub async fn barrier(&self) -> Result<()> {
        self.ask(|reply| Request::Barrier { reply }).await?
    }

    /// Reads the state as it is here and now; on a follower or a deposed leader it may be old. `read` must be short:
    /// nothing is applied meanwhile.
    pub fn read<R>(&self, read: impl FnOnce(&M) -> R) -> R {
        read(&self.machine.read())
    }

    /// Reads the state after a [`Node::barrier`]: linearizable.
    ///
    /// # Errors
    /// As [`Node::barrier`].
    pub async fn read_committed<R>(&self, read: impl FnOnce(&M) -> R) -> Result<R> {
        self.barrier().await?;
        Ok(self.read(read))
    }

    /// Adds or removes a member and returns once the change is applied here. A member to add is already running, with
    /// no founders and an empty directory; it is given its vote when it has caught up.
    ///
    /// # Errors
    /// As [`Node::propose`]; [`Error::ChangeRefused`] while another change is under way, for a member that does not catch
    /// up (it stays without a vote, and is added again or removed), and for the last one that votes. A leader that is to
    /// be removed makes another one lead and answers [`Error::NotLeader`].
    pub async fn change_members(&self, change: MemberChange) -> Result<()> {
        self.ask(|reply| Request::ChangeMembers { change, reply }).await?.map(drop)
    }

    /// The members of the group, as this node knows them.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn members(&self) -> Result<Vec<MemberStatus>> {
        self.ask(|reply| Request::Members { reply }).await
    }

    /// Hands over a message that another member's [`Transport`] sent. When the node is busy the message is dropped,
    /// which raft makes up for.
    pub fn step(&self, message: Bytes) {
        if self.requests.try_send(Request::Step { message }).is_err() {
            tracing::debug!("dropped a raft message: the node is busy or has stopped");
        }
    }

    /// What this node knows about its group; changes wake whoever awaits them.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Returns once this node leads and serves, with its term.
    ///
    /// # Errors
    /// [`Error::Stopped`] if it stops first.
    pub async fn serving(&self) -> Result<Term> {
        let mut status = self.status();
        let reached = status.wait_for(|status| status.serving || status.stopped.is_some()).await;
        match reached {
            Ok(status) if status.serving => Ok(status.term),
            _ => Err(Error::Stopped),
        }
    }

    /// Stops the node and returns once its directory is free for another one. A leader first makes another member lead,
    /// if one answers within an election timeout, so that nobody waits for one. Proposals under way end in
    /// [`Error::OutcomeUnknown`].
    pub async fn stop(&self) {
        // It may have stopped by itself already; either way its end is in the status.
        let _asked = self.requests.send(Request::Stop).await;
        let mut status = self.status();
        let _stopped = status.wait_for(|status| status.stopped.is_some()).await;
    }

    async fn ask<R>(&self, request: impl FnOnce(oneshot::Sender<R>) -> Request) -> Result<R> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::OutcomeUnknown)
    }
}
