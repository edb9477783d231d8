//! The JobManager: clients' requests, scheduling, the coordination of snapshots, and the metadata behind them.
//!
//! Everything that decides is in `weir-coordination`, pure. Here is the shell: one loop ([`leader`]) turns whatever
//! happens into events, carries out the actions that come back, and reports how they went as further events. Handlers of
//! RPCs only turn requests into events. What must survive is committed through the metadata log before it shows.

pub mod config;
pub mod daemon;

mod door;
mod event;
mod explain;
mod extents;
mod gc;
mod http;
mod identity;
mod import;
mod leader;
mod members;
mod metadata;
mod output;
mod pins;
mod planning;
mod restore;
mod rpc;
mod schedule;
mod sources;
mod stoppable;
mod storage;
