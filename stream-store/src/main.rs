//! weir-store: the stream store's server.

use std::process::ExitCode;

use clap::Parser;
use weir_stream_store::server::daemon::{Args, start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir_service::report::exit(start(&Args::parse()))
}
