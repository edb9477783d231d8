//! The `weir-jobmanager` process: its command line, and what runs in it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use weir_replication::{Alone, Config as RaftConfig, Node, NodeId};
use weir_service::http::Readiness;
use weir_service::{Overrides, Program, ServiceArgs, Shutdown};
use weir_stream_store::client::StoreClient;
use weir_types::{Error, Result};

use crate::config::Config;
use crate::leader::Leader;
use crate::metadata::Machine;
use crate::{http, rpc};

/// The program as configuration and logs know it.
pub const PROGRAM: Program = Program { name: "weir-jobmanager", env_prefix: "WEIR_JOBMANAGER_" };

/// Threads for calls and for the leader's loop; planning and files have threads of their own.
const WORKERS: usize = 2;

/// How long file work may go on when the process ends: storage that does not answer keeps nobody alive.
const FILES_TIMEOUT: Duration = Duration::from_secs(2);

/// Weir's JobManager: jobs, snapshots and TaskManagers
#[derive(Debug, clap::Parser)]
#[command(name = "weir-jobmanager", version)]
pub struct Args {
    /// Keep all metadata in this directory
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Serve clients and TaskManagers (gRPC) on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Serve health, metrics and REST (HTTP) on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// The stream store's address
    #[arg(long, value_name = "HOST:PORT")]
    pub store: Option<String>,
    /// Keep checkpoints below this directory, which every TaskManager must reach
    #[arg(long, value_name = "DIR")]
    pub checkpoint_root: Option<PathBuf>,
    /// Keep savepoints below this directory unless their users name another
    #[arg(long, value_name = "DIR")]
    pub savepoint_root: Option<PathBuf>,
    /// Write the log to a file in this directory instead of to stderr
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// What every Weir server takes.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    fn overrides(&self) -> Overrides {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        Overrides::new()
            .set("data_dir", path(&self.data_dir))
            .set("rpc.address", self.listen.as_ref())
            .set("http.address", self.http_listen.as_ref())
            .set("store_address", self.store.as_ref())
            .set("snapshots.checkpoint_dir", path(&self.checkpoint_root))
            .set("snapshots.savepoint_dir", path(&self.savepoint_root))
            .set("log.dir", path(&self.log_dir))
    }
}

/// Runs the process until it is asked to end.
///
/// # Errors
/// Whatever keeps it from starting, or from going on.
pub fn start(args: &Args) -> Result<()> {
    let Some(config) = weir_service::config::load::<Config>(PROGRAM, &args.service, &args.overrides())? else {
        return Ok(());
    };
    weir_service::log::init(PROGRAM.name, &config.log)?;
    let runtime = weir_service::runtime::build("jobmanager", WORKERS)?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::on_signals(&args.service)?;
        let rpc = weir_service::net::bind("rpc.address", &config.rpc.address).await?;
        let http = weir_service::net::bind("http.address", &config.http.address).await?;
        args.service.announce(&[("rpc", &rpc), ("http", &http)])?;
        Box::pin(run(rpc, http, config, shutdown)).await
    });
    runtime.shutdown_timeout(FILES_TIMEOUT);
    ended
}

/// Recovers the metadata and serves it on `rpc` and `http` until `shutdown` is requested.
///
/// # Errors
/// If the metadata cannot be opened, or the log fails.
pub async fn run(rpc: TcpListener, http: TcpListener, config: Config, shutdown: Shutdown) -> Result<()> {
    let readiness = Readiness::new();
    let (events, inbox) = tokio::sync::mpsc::channel(crate::event::QUEUE_MAX);
    let rest = http::router(events.clone());
    let rest = tokio::spawn(weir_service::http::serve(http, rest, readiness.clone(), shutdown.clone()));
    let led = async {
        let member = NodeId::new(1).ok_or_else(|| Error::internal("there is no raft member 0"))?;
        let directory = config.data_dir.join("metadata");
        std::fs::create_dir_all(&directory)
            .map_err(|error| Error::io(format!("could not create {}", directory.display()), &error))?;
        let raft = RaftConfig::new(member, vec![member]);
        let node = Node::start(raft, &directory, Machine::default(), Alone)?;
        let recovering = async {
            let term = node.serving().await?;
            let store = StoreClient::connect(&config.store_address)?;
            Leader::recover(config, term, node.clone(), store, events.clone()).await
        };
        let leader = tokio::select! {
            biased;
            // What it was about to do, the next one does.
            () = shutdown.requested() => {
                node.stop().await;
                return Ok(());
            }
            leader = recovering => leader?,
        };
        let planner = leader.planner();
        let collecting = tokio::spawn(leader.collector().run(shutdown.clone()));
        let watching = tokio::spawn(leader.pin_watch().run(shutdown.clone()));
        let server = tokio::spawn(rpc::serve(rpc, events, planner, shutdown.clone()));
        readiness.set_ready();
        let led = leader.lead(inbox, shutdown.clone()).await;
        shutdown.request();
        // They may wait for a store that does not answer; nothing they do needs to be finished.
        collecting.abort();
        watching.abort();
        let served = joined(server.await, "the gRPC server failed");
        node.stop().await;
        led.and(served)
    }
    .await;
    shutdown.request();
    led.and(joined(rest.await, "the HTTP server failed"))
}

fn joined(result: std::result::Result<Result<()>, tokio::task::JoinError>, what: &str) -> Result<()> {
    result.unwrap_or_else(|error| Err(Error::internal(what).with_detail(error.to_string())))
}
