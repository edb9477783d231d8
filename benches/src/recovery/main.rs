//! The recovery harness: processes of real clusters are killed under a running job, and what that costs is measured from
//! outside: by reading the job's output as any consumer does, and by asking the JobManagers as any client does.
//!
//! Prints medians, and writes every run to a JSON file. Build with `--release` first.

mod commands;
mod feed;
mod job;
mod losses;
mod output;
mod report;
mod sinks;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use futures::FutureExt;
use weir_benches::harness;

use job::Load;
use report::Run;

/// Kill processes of local clusters under load, and measure how they recover.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; all by default
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Runs of each scenario
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Keys in the state of the job whose processes are killed
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Rows a second that flow into it
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Milliseconds between its checkpoints
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..))]
    checkpoint_interval_ms: u64,
    /// Commands before JobManagers are started again
    #[arg(long, default_value_t = 100_000)]
    commands: u64,
    /// Rows written in each run of the sinks
    #[arg(long, default_value_t = 20_000_000)]
    rows: u64,
    /// Write all runs to this file, after every scenario
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scenario {
    /// A TaskManager is killed, and another one has a free slot
    TaskManagerStandby,
    /// A TaskManager is killed, and started again at once
    TaskManager,
    /// The leader of three JobManagers is killed
    Leader,
    /// The only JobManager is killed, and started again at once
    Jobmanager,
    /// One JobManager is started after many commands
    Commands,
    /// Three JobManagers are started after many commands
    CommandsGroup,
    /// A job writes JSON to the store, plain and exactly once
    SinkJson,
    /// A job writes Arrow batches to the store, plain and exactly once
    SinkArrow,
}

fn main() -> ExitCode {
    harness::run(measure(Args::parse()))
}

async fn measure(args: Args) -> Result<()> {
    let scenarios = if args.scenario.is_empty() { Scenario::value_variants() } else { &args.scenario };
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    println!("{}", report::header());
    for scenario in scenarios {
        let name = scenario.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        // The clusters' fixture panics where a test would fail; its own clean-up has run by then.
        let outcome = AssertUnwindSafe(Box::pin(run(*scenario, &name, &args))).catch_unwind().await;
        match outcome.unwrap_or_else(|_| bail!("see above")) {
            Ok(runs) => {
                print!("{}", report::rows(&runs));
                all.extend(runs);
            }
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(name);
            }
        }
        if let Some(path) = &args.output {
            harness::write_results(path, &all)?;
        }
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

async fn run(scenario: Scenario, name: &str, args: &Args) -> Result<Vec<Run>> {
    let checkpoint_interval = Duration::from_millis(args.checkpoint_interval_ms);
    let (runs, load) = (args.runs, Load { keys: args.keys, rate: args.rate, checkpoint_interval });
    match scenario {
        Scenario::TaskManagerStandby => losses::task_manager(name, true, runs, load).await,
        Scenario::TaskManager => losses::task_manager(name, false, runs, load).await,
        Scenario::Leader => losses::leader(name, 3, runs, load).await,
        Scenario::Jobmanager => losses::leader(name, 1, runs, load).await,
        Scenario::Commands => commands::commands(name, 1, runs, args.commands).await,
        Scenario::CommandsGroup => commands::commands(name, 3, runs, args.commands).await,
        Scenario::SinkJson => sinks::sinks(name, "json", runs, args.rows).await,
        Scenario::SinkArrow => sinks::sinks(name, "arrow", runs, args.rows).await,
    }
}
