//! `weir`: jobs, snapshots, streams and groups of a cluster, and a local cluster to try them on.

mod args;
mod cluster;
mod commands;
mod connect;
mod output;
mod quickstart;
mod time;

use std::process::ExitCode;

use clap::Parser;
use weir_service::report;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let result = weir_service::runtime::build("cli", 1).and_then(|runtime| runtime.block_on(commands::run(args)));
    report::exit(result)
}
