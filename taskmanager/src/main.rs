//! weir-taskmanager: runs subtasks of jobs.

use std::process::ExitCode;

use clap::Parser;
use weir_taskmanager::{Args, start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir_service::report::exit(start(&Args::parse()))
}
