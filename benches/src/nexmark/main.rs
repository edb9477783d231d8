//! The Nexmark harness: whole jobs on clusters of real processes, fresh for every run.
//!
//! Prints, per query, the medians of events, seconds, events per second, CPU seconds of the TaskManagers and peak memory
//! of each process, and writes every run to a JSON file that `--compare` reads. Build with `--release` first.

mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use weir_benches::harness;

use run::{Measured, Setting};

/// Run Nexmark queries on local clusters and measure them.
#[derive(Debug, Parser)]
struct Args {
    /// Queries, by the names of the files in benches/nexmark
    #[arg(default_values = ["q0", "q1", "q2", "tumble"])]
    queries: Vec<String>,
    /// Events of each run
    #[arg(long, default_value_t = 20_000_000)]
    events: u64,
    /// Events a second of event time
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Parallelism, over as many TaskManagers of one slot
    #[arg(long, default_value_t = 2)]
    parallelism: u32,
    /// Runs of each query, after one to warm up
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Generate every column, whether the query reads it or not
    #[arg(long)]
    no_push_down: bool,
    /// Write all runs to this file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print ratios to an earlier results file
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

fn main() -> ExitCode {
    harness::run(measure(Args::parse()))
}

async fn measure(args: Args) -> Result<()> {
    let setting =
        Setting { events: args.events, rate: args.rate, parallelism: args.parallelism, push_down: !args.no_push_down };
    let earlier: Vec<Measured> = match &args.compare {
        Some(path) => harness::read_results(path)?,
        None => Vec::new(),
    };
    let mut all = Vec::new();
    println!("{}", run::header());
    for query in &args.queries {
        let mut runs = Vec::new();
        for number in 0..=args.runs {
            let measured = run::run(query, &setting).await.with_context(|| format!("query {query}"))?;
            if number > 0 {
                runs.push(measured);
            }
        }
        let before: Vec<Measured> = earlier.iter().filter(|run| run.query == *query).cloned().collect();
        println!("{}", run::row(&runs, &before));
        all.extend(runs);
    }
    args.output.as_deref().map_or(Ok(()), |path| harness::write_results(path, &all))
}
