//! The TaskManager: runs subtasks of jobs in its slots, and moves their data to other TaskManagers.
//!
//! - [`agent`]: the session with the JobManager and the one loop through which everything passes;
//! - [`tasks`]: which attempts run, and what commands count;
//! - [`attempt`] and [`slots`]: how subtasks are started, and on which threads they run;
//! - [`exchange`]: the data plane.
//!
//! Invariant: computing happens on the slots' threads and nowhere else, so that it never delays a heartbeat.

mod agent;
mod attempt;
mod config;
mod daemon;
pub mod exchange;
mod fences;
mod loads;
mod session;
mod slots;
mod tasks;
mod telemetry;

pub use config::{Args, Config, ExchangeConfig, HttpConfig, JobManagerConfig, PROGRAM};
pub use daemon::{Listeners, run, start};

#[cfg(test)]
mod tests;
