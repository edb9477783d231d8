//! `weir cluster stop`: TaskManagers first, the store last; politely, then by force.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use weir_types::{Error, Result};

use crate::cluster::file::{ClusterFile, Process};

/// How long a process may take to shut down before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// What became of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It had ended before.
    NotRunning,
    /// It shut down.
    Gracefully,
    /// It had to be killed.
    Killed,
}

impl Stopped {
    /// For people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Stopped::NotRunning => "was not running",
            Stopped::Gracefully => "stopped",
            Stopped::Killed => "killed: it did not stop in time",
        }
    }
}

/// Stops the cluster of `dir`; returns what became of each process.
///
/// # Errors
/// `NOT_FOUND` if there is no cluster.
pub(crate) async fn stop(dir: &Path) -> Result<Vec<(String, Stopped)>> {
    let Some(file) = ClusterFile::read(dir)? else {
        return Err(Error::not_found(format!("no cluster was started in {}", dir.display()))
            .with_hint("Name the cluster's directory with --dir."));
    };
    let stopped = stop_processes(&file.processes).await;
    ClusterFile::remove(dir)?;
    Ok(stopped)
}

/// Stops processes in the reverse order of their start: all TaskManagers together, then the JobManager, then the store.
pub(crate) async fn stop_processes(processes: &[Process]) -> Vec<(String, Stopped)> {
    let mut outcome = Vec::with_capacity(processes.len());
    let (servers, task_managers) = processes.split_at(processes.len().min(2));
    for group in std::iter::once(task_managers).chain(servers.chunks(1).rev()) {
        let running: Vec<bool> = group.iter().map(|process| process.id.is_running()).collect();
        for process in group {
            process.id.signal(Signal::TERM);
        }
        let deadline = Instant::now() + GRACE;
        for (process, was_running) in group.iter().zip(running) {
            let graceful = process.id.ended(deadline).await;
            if !graceful {
                process.id.signal(Signal::KILL);
                process.id.ended(Instant::now() + GRACE).await;
            }
            let stopped = match (was_running, graceful) {
                (false, _) => Stopped::NotRunning,
                (true, true) => Stopped::Gracefully,
                (true, false) => Stopped::Killed,
            };
            outcome.push((process.name.clone(), stopped));
        }
    }
    outcome
}
