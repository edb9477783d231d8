//! Replicated state: a raft group that runs a state machine. The only user of raft-rs, which no type in here shows.
//!
//! What is proposed is durable on a majority before it is applied, and applied once, in the same order on every member.
//! A group of one member, which elects itself at start, keeps the same promises with one disk; adding members later
//! changes nothing for its users.
//!
//! Start reading at [`Node::start`]; `ready.rs` owns the order of persisting, sending and applying, `wal.rs` what a
//! damaged log means.

mod disk;
mod driver;
mod error;
mod logger;
mod machine;
mod node;
mod ready;
mod store;
mod wal;

pub use error::{Error, Result};
pub use machine::{Alone, Command, StateMachine, Transport};
pub use node::{Config, MemberChange, Node, NodeId, Role, Status};
