//! Weir's stream store: partitioned, durable streams and the reader groups that read them.
//!
//! As a library it is embedded ([`Store`]); [`server`] puts it behind gRPC and [`client`] talks to that. Records travel
//! and lie in [`RecordBlock`]s, which are built with [`RecordBlockBuilder`] or, for streams of Arrow rows, with
//! [`arrow_block`]. Nothing that was acknowledged is lost, and nothing is ever skipped silently.

pub mod arrow_block;
pub mod block;
pub mod client;
pub mod clock;
mod committer;
pub mod config;
pub mod disk;
mod fences;
pub mod frame;
#[doc(hidden)] // The pure state machine of reader groups, for the simulation; it is no part of the library's promises.
pub mod group;
mod partition;
mod producers;
mod retention;
mod segment;
pub mod server;
mod sidecar;
mod store;
mod store_groups;
mod store_transactions;
mod stream;
mod terms;
mod transactions;

pub use block::{MAX_BLOCK_BYTES, Record, RecordBlock, RecordBlockBuilder, Records};
pub use config::StoreConfig;
pub use store::{Frames, Store};
