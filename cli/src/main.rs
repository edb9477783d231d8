//! `weir`: jobs, snapshots, streams and groups of a cluster, and a local cluster to try them on.

mod args;
mod cluster;
mod commands;
mod connect;
mod identity;
mod output;
mod quickstart;
mod time;

use std::error::Error as _;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use weir_service::report;
use weir_types::Error;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let result = weir_service::runtime::build("cli", 1).and_then(|runtime| runtime.block_on(commands::run(args)));
    report::exit(result)
}

/// What is wrong with the command line, or its help. A value that does not parse says why and how, as people write it.
fn usage(error: &clap::Error) -> ExitCode {
    let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<Error>()) else { error.exit() };
    let rendered = error.render();
    let text = if std::io::stderr().is_terminal() { rendered.ansi().to_string() } else { rendered.to_string() };
    eprint!("{}", text.replace(&cause.to_string(), &cause.message));
    if let Some(hint) = &cause.hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(2)
}
