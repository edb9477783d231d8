//! How a harness runs: whatever way it ends, the clusters that it has started are stopped and their directories removed.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

/// Threads: those that wait for processes to start must not hold up those that read what running ones write.
const WORKERS: usize = 4;
/// As a shell says that Ctrl-C ended a program.
const INTERRUPTED: u8 = 130;

/// Runs `work` to its end, or until the harness is interrupted or terminated. What it holds is dropped in any case.
pub fn run(work: impl Future<Output = Result<()>> + Send + 'static) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let outcome = runtime.context("could not start the runtime").and_then(|runtime| {
        runtime.block_on(async {
            let mut work = tokio::spawn(work);
            let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                ended = &mut work => return Ok(Some(ended?)),
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            eprintln!("interrupted: stopping the cluster");
            work.abort();
            // However it ends, it has let go of everything by then.
            let _ended = work.await;
            Ok(None)
        })
    });
    match outcome {
        Ok(Some(Ok(()))) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::from(INTERRUPTED),
        Ok(Some(Err(error))) | Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads what [`write_results`] has written.
///
/// # Errors
/// If the file cannot be read, or holds something else.
pub fn read_results<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no results file of this harness", path.display()))
}

/// Writes the runs of a harness to a file.
///
/// # Errors
/// If the file cannot be written.
pub fn write_results<T: Serialize>(path: &Path, runs: &[T]) -> Result<()> {
    let text = serde_json::to_string_pretty(runs)? + "\n";
    std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}
