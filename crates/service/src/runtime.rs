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

/// Lets other threads go first where cores are short: `niceness` is added to the present thread's, which has that of its
/// process until then. Where priorities are not to be had, nothing changes but for a warning.
pub fn yield_cores(niceness: i32) {
    // On Linux this is the priority of the thread that calls, not of the process.
    if let Err(error) = rustix::process::nice(niceness) {
        tracing::warn!(niceness, %error, "could not lower a thread's priority");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn a_thread_that_yields_leaves_the_priority_of_others_alone() {
        let before = getpriority_process(None).unwrap();
        let yielding = std::thread::spawn(|| {
            yield_cores(3);
            getpriority_process(None).unwrap()
        });
        assert_eq!(yielding.join().unwrap(), (before + 3).min(19));
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
