//! What a group replicates, and how its members reach each other: the two traits that users of this crate implement.

use bytes::Bytes;
use weir_types::Result;
use weir_types::ids::Term;

use crate::node::NodeId;

/// One committed command.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Its place in the log; grows, with gaps.
    pub index: u64,
    /// The term it was proposed in.
    pub term: Term,
    /// What was proposed.
    pub data: &'a [u8],
}

/// The replicated state. It lives in memory; the log and its snapshots are what is durable.
///
/// Every member applies the same commands in the same order, so `apply` must depend on nothing else: no clock, no
/// randomness, no I/O, no iteration order of hash maps. It cannot fail: what a command asks in vain is part of its result.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies a command and returns the result that its proposer gets.
    fn apply(&mut self, command: Command<'_>) -> Bytes;

    /// The whole state, in a versioned encoding.
    fn snapshot(&self) -> Bytes;

    /// Replaces the state by an earlier snapshot's.
    ///
    /// # Errors
    /// `CORRUPT` for bytes that are not a snapshot of this state machine; the node stops.
    fn restore(&mut self, snapshot: &[u8]) -> Result<()>;
}

/// Sends messages to other members; the receiving side hands them to [`Node::step`](crate::Node::step).
///
/// Messages are opaque, may be lost, doubled and reordered, and must come from a member of the same cluster. `send`
/// must not block: it queues within bounds, or drops.
pub trait Transport: Send + 'static {
    /// Sends `message` to a member, sooner or later or never.
    fn send(&self, to: NodeId, message: Bytes);
}

/// The transport of a group with one member: there is nobody to send to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Transport for Alone {
    fn send(&self, to: NodeId, _message: Bytes) {
        tracing::warn!(%to, "dropped a raft message: this node has no transport");
    }
}
