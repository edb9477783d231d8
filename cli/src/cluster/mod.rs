//! A local cluster of separate processes: one stream store, one JobManager, some TaskManagers, all in one directory.
//!
//! Invariant: a process is signalled only after it was recognised as the one that was started (same id and same start
//! time), so a reused process id never hits a stranger.

pub(crate) mod file;
pub(crate) mod process;
pub(crate) mod start;
pub(crate) mod stop;
