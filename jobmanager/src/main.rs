//! weir-jobmanager: the JobManager's server.

use std::process::ExitCode;

use clap::Parser;
use weir_jobmanager::daemon::{Args, start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir_service::report::exit(start(&Args::parse()))
}
