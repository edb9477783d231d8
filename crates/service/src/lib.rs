//! What every Weir binary needs around its own work: configuration, logs, shutdown, listening, health and metrics, and
//! errors on stderr. Nothing in here knows what the process is for.
//!
//! A `main.rs` has the same few steps everywhere:
//!
//! ```ignore
//! fn main() -> ExitCode {
//!     report::exit(start(Args::parse()))
//! }
//!
//! fn start(args: Args) -> Result<()> {
//!     let Some(config) = config::load::<Config>(PROGRAM, &args.service, &args.overrides())? else {
//!         return Ok(()); // --print-config
//!     };
//!     log::init(PROGRAM.name, &config.log)?;
//!     let runtime = runtime::build("control", 1)?;
//!     runtime.block_on(async {
//!         let shutdown = Shutdown::on_signals(&args.service)?;
//!         let rpc = net::bind("rpc.address", &config.rpc.address).await?;
//!         args.service.announce(&[("rpc", &rpc)])?;
//!         run(rpc, config, shutdown).await
//!     })
//! }
//! ```

pub mod config;
pub mod events;
pub mod failpoint;
pub mod http;
pub mod log;
pub mod metrics;
pub mod net;
pub mod report;
pub mod runtime;
pub mod shutdown;
pub mod units;

mod recall;
mod rotate;

pub use config::{Overrides, Program, ServiceArgs};
pub use shutdown::Shutdown;
