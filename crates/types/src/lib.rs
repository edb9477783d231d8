//! The vocabulary of Weir: typed ids, key ranges, stream cuts, errors, job graphs, connector descriptors, and the
//! snapshot and quota types. No I/O, no clock, no randomness: every other crate may depend on this one.

pub mod annotations;
pub mod changelog;
pub mod connector;
pub mod control;
pub mod deployment;
pub mod error;
pub mod event;
pub mod graph;
pub mod group;
pub mod ids;
pub mod job;
pub mod key_range;
pub mod options;
pub mod output;
pub mod quota;
pub mod restart;
pub mod restore;
pub mod retention;
pub mod snapshot;
pub mod splits;
pub mod store;
pub mod stream;
pub mod time;

pub use error::{Code, Error, Result};
