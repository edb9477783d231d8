//! Small tokio runtimes with explicit thread counts: several Weir processes share few cores.

use tokio::runtime::{Builder, Runtime};
use weir_types::{Error, Result};

/// Threads that `spawn_blocking` may use at most; file work that needs more has threads of its own.
const BLOCKING_THREADS_MAX: usize = 8;

/// A runtime with `workers` worker threads (at least one), named after what it does.
///
/// # Errors
/// `IO` if the threads cannot be started.
pub fn build(name: &str, workers: usize) -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(workers.max(1))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| Error::io(format!("could not start the {name} runtime"), &error))
}
