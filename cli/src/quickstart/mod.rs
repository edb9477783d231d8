//! `weir quickstart`: one job's life on a local cluster of separate processes, with its result verified.
//!
//! The job starts on the first half of the input, is stopped with a savepoint, and is resumed at another parallelism on
//! the rest. Then its output must equal a batch computation over the input less the late rows. Whatever happens, nothing
//! is left running: the processes end with this one even when it is killed.

mod batch;
mod builtin;
mod check;
mod input;
mod story;

use std::path::PathBuf;

use weir_types::{Error, Result};

use crate::args::{Global, QuickstartArgs, StartArgs};
use crate::cluster::{start, stop};
use crate::output;

use input::Input;
use story::Story;

/// TaskManagers of the cluster.
const TASK_MANAGERS: u32 = 2;
/// Slots of each.
const SLOTS: u32 = 2;

/// Runs the quickstart.
///
/// # Errors
/// Whatever went wrong, a result that differs from the batch computation included; the cluster is stopped in any case.
pub(crate) async fn run(global: &Global, args: QuickstartArgs) -> Result<()> {
    let input = Input::open(&args)?;
    let (dir, temporary) = directory(args.keep.as_ref())?;
    let start_args =
        StartArgs { jobmanagers: 1, taskmanagers: TASK_MANAGERS, slots: SLOTS, port: 0, exit_with_parent: true };
    let begun = std::time::Instant::now();
    let cluster = start::start(&dir, &start_args).await?;
    say(&format!(
        "Started a cluster of {} processes in {:.0?}: 1 store, 1 JobManager, {TASK_MANAGERS} TaskManagers with {SLOTS} slots each",
        cluster.processes.len(),
        begun.elapsed()
    ))?;
    let told = tokio::select! {
        told = Story::begin(&cluster, &input).await_told() => told,
        _ = tokio::signal::ctrl_c() => Err(Error::new(weir_types::Code::Cancelled, "interrupted")),
    };
    stop::stop(&dir).await?;
    if let Some(temporary) = temporary {
        if told.is_err() {
            let kept = temporary.keep();
            say(&format!("Cluster stopped; its logs are in {}", kept.join("log").display()))?;
        } else {
            say("Cluster stopped; nothing is left running")?;
        }
    } else {
        say(&format!("Cluster stopped; its data and logs are in {}", dir.display()))?;
    }
    let verdict = told?;
    if global.json { output::print_json(&verdict) } else { Ok(()) }
}

fn directory(keep: Option<&PathBuf>) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = keep {
        return Ok((dir.clone(), None));
    }
    let temporary = tempfile::Builder::new().prefix("weir-quickstart-").tempdir();
    let temporary = temporary.map_err(|error| Error::io("could not create a temporary directory", &error))?;
    Ok((temporary.path().to_owned(), Some(temporary)))
}

/// Tells the user one step; on stderr, so that `--json` on stdout stays clean.
fn say(text: &str) -> Result<()> {
    eprintln!("{text}");
    Ok(())
}
