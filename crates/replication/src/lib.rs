//! Replicated state: a raft group that runs a state machine. The only user of raft-rs, which no type in here shows.
//!
//! What is proposed is durable on a majority before it is applied, and applied once, in the same order on every member.
//! A group of one member, which elects itself at start, keeps the same promises with one disk; adding members later
//! changes nothing for its users.
//!
//! Start reading at [`Node::start`]; `member.rs` is what runs, `ready.rs` owns the order of persisting, sending and
//! applying, `wal.rs` what a damaged log means. `weir-simulation` runs whole groups of the very same members on a network
//! and on disks that misbehave.

mod disk;
mod driver;
mod error;
mod files;
mod logger;
mod machine;
mod member;
mod membership;
mod node;
mod ready;
mod store;
mod transfer;
mod wal;
mod wire;

pub use error::{Error, Result};
pub use machine::{Alone, Command, StateMachine, Transport};
pub use node::{Config, MemberChange, MemberStatus, Node, NodeId, Role, Status};

/// A member without its thread, and what it asks of a file system: whoever drives it decides when what happens. What
/// [`Node`] runs, the simulation runs as well.
pub mod stepwise {
    pub use crate::files::{Files, OpenFile};
    pub use crate::member::{Member, Reply, Request, Shared};
}
