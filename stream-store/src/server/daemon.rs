//! The `weir-store` process: its configuration and command line, and what runs in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use weir_service::http::Readiness;
use weir_service::log::LogConfig;
use weir_service::{Overrides, Program, ServiceArgs, Shutdown};
use weir_types::Result;

use super::serve;
use crate::config::StoreConfig;
use crate::store::{Store, blocking};

/// The program as configuration and logs know it.
pub const PROGRAM: Program = Program { name: "weir-store", env_prefix: "WEIR_STORE_" };

/// Threads that handle calls; file work has threads of its own.
const WORKERS: usize = 2;

/// Where the store listens for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpcConfig {
    /// `host:port`; port 0 takes any that is free.
    pub address: String,
}

impl Default for RpcConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:7400".to_owned() }
    }
}

/// Where the store listens for HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// `host:port`; port 0 takes any that is free.
    pub address: String,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:7401".to_owned() }
    }
}

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// gRPC, for clients.
    pub rpc: RpcConfig,
    /// HTTP: health and metrics.
    pub http: HttpConfig,
    /// The process's own log.
    pub log: LogConfig,
    /// The data: where and how.
    pub storage: StoreConfig,
}

impl weir_service::config::Config for Config {
    fn validate(&self) -> Result<()> {
        self.storage.validate()
    }
}

/// Weir's stream store: partitioned, durable streams and reader groups
#[derive(Debug, clap::Parser)]
#[command(name = "weir-store", version)]
pub struct Args {
    /// Keep all data in this directory
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Serve clients (gRPC) on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Serve health and metrics (HTTP) on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
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
            .set("storage.data_dir", path(&self.data_dir))
            .set("rpc.address", self.listen.as_ref())
            .set("http.address", self.http_listen.as_ref())
            .set("log.dir", path(&self.log_dir))
    }
}

/// Runs the process until it is asked to end.
///
/// # Errors
/// Whatever keeps it from starting or from closing cleanly.
pub fn start(args: &Args) -> Result<()> {
    let Some(config) = weir_service::config::load::<Config>(PROGRAM, &args.service, &args.overrides())? else {
        return Ok(());
    };
    weir_service::log::init(PROGRAM.name, &config.log)?;
    weir_service::runtime::build("store", WORKERS)?.block_on(async {
        let shutdown = Shutdown::on_signals(&args.service)?;
        let rpc = weir_service::net::bind("rpc.address", &config.rpc.address).await?;
        let http = weir_service::net::bind("http.address", &config.http.address).await?;
        args.service.announce(&[("rpc", &rpc), ("http", &http)])?;
        run(rpc, http, config, shutdown).await
    })
}

/// Opens the store and serves it on `rpc`, and health and metrics on `http`, until `shutdown` is requested.
///
/// # Errors
/// As [`Store::open`] and [`serve`].
pub async fn run(rpc: TcpListener, http: TcpListener, config: Config, shutdown: Shutdown) -> Result<()> {
    let readiness = Readiness::new();
    let health = weir_service::http::serve(http, Default::default(), readiness.clone(), shutdown.clone());
    let health = tokio::spawn(health);
    let served = async {
        let store = blocking(move || Store::open(config.storage)).await?;
        readiness.set_ready();
        serve(rpc, store, shutdown.requested()).await
    }
    .await;
    shutdown.request();
    let health = health.await.unwrap_or_else(|error| {
        Err(weir_types::Error::internal("the HTTP server failed").with_detail(error.to_string()))
    });
    served.and(health)
}
