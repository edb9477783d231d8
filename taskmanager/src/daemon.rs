//! The `weir-taskmanager` process: its threads, its listeners, and what runs on them.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use weir_connectors::Connectors;
use weir_dataflow::ConnectorFactory;
use weir_dataflow::grants::SnapshotGrants;
use weir_dataflow::memory::MemoryBudget;
use weir_service::Shutdown;
use weir_service::http::Readiness;
use weir_types::ids::{ClusterId, TaskManagerId};
use weir_types::{Error, Result};

use crate::agent::{Agent, Identity};
use crate::attempt::Host;
use crate::config::{Args, Config, PROGRAM};
use crate::exchange::DataPlane;
use crate::slots::Slots;
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;

/// Threads for control and network: never more, so that computing keeps the cores.
const CONTROL_WORKERS: usize = 1;
/// Events and reports of subtasks that may wait for the control loop.
const EVENTS_MAX: usize = 1024;

/// What a TaskManager listens on.
#[derive(Debug)]
pub struct Listeners {
    /// For other TaskManagers.
    pub exchange: TcpListener,
    /// For health and metrics.
    pub http: TcpListener,
}

/// Runs the process until it is asked to end.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn start(args: &Args) -> Result<()> {
    let Some(config) = weir_service::config::load::<Config>(PROGRAM, &args.service, &args.overrides())? else {
        return Ok(());
    };
    weir_service::log::init(PROGRAM.name, &config.log)?;
    let files = files_runtime()?;
    let control = weir_service::runtime::build("control", CONTROL_WORKERS)?;
    let result = control.block_on(async {
        let shutdown = Shutdown::on_signals(&args.service)?;
        let exchange = weir_service::net::bind("exchange.address", &config.exchange.address).await?;
        let http = weir_service::net::bind("http.address", &config.http.address).await?;
        args.service.announce(&[("exchange", &exchange), ("http", &http)])?;
        let listeners = Listeners { exchange, http };
        run(listeners, config, Arc::new(Connectors), files.handle().clone(), shutdown).await
    });
    // What still reads or writes a file is of no use any more: nobody waits for it.
    files.shutdown_background();
    control.shutdown_background();
    result
}

/// The thread for snapshot files: one that schedules, one that reads and writes.
fn files_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .thread_name("files")
        .enable_all()
        .build()
        .map_err(|error| Error::io("could not start the files runtime", &error))
}

/// Registers with the JobManager and runs what it deploys, until `shutdown` is requested. Snapshot files are written and
/// read on `files`.
///
/// # Errors
/// If threads cannot be started, or a listener fails.
pub async fn run(
    listeners: Listeners,
    config: Config,
    connectors: Arc<dyn ConnectorFactory>,
    files: Handle,
    shutdown: Shutdown,
) -> Result<()> {
    let local = |listener: &TcpListener| {
        listener.local_addr().map_err(|error| Error::io("could not read a listener's own address", &error))
    };
    let id = match &config.id {
        Some(id) => TaskManagerId::new(id.clone())?,
        None => TaskManagerId::new(format!("tm-{:.8}", uuid::Uuid::new_v4().simple()))?,
    };
    let identity = Identity {
        id: id.clone(),
        data_address: config.exchange.advertise(local(&listeners.exchange)?)?,
        http_address: local(&listeners.http)?.to_string(),
        slots: config.slots,
    };
    tracing::info!(%id, slots = config.slots, memory_budget = %config.memory_budget, "task manager started");
    let memory = MemoryBudget::new(config.memory_budget.0);
    let io = Handle::current();
    let data_plane = Arc::new(DataPlane::new(id.clone(), config.exchange.settings(), memory.clone(), io.clone()));
    let telemetry = Telemetry::new(memory.clone(), config.slots);
    let readiness = Readiness::new();
    // Exchanges and metrics outlive the control loop, which stops subtasks in order.
    let servers = Shutdown::new();
    let http = weir_service::http::serve(listeners.http, telemetry.routes(), readiness.clone(), servers.clone());
    let http = tokio::spawn(http);
    let (plane, token) = (data_plane.clone(), servers.token().clone());
    let exchanges = tokio::spawn(async move { plane.serve(listeners.exchange, token).await });

    let (event_sender, events) = mpsc::channel(EVENTS_MAX);
    let (report_sender, reports) = mpsc::channel(EVENTS_MAX);
    let grants = SnapshotGrants::new();
    let host = Host {
        id,
        slots: Slots::new(config.slots)?,
        data_plane,
        memory,
        connectors,
        io,
        files,
        grants: grants.clone(),
        channel_bytes: config.exchange.channel_bytes.as_usize(),
        events: event_sender,
        reports: report_sender,
    };
    let agent = Agent {
        identity,
        cluster: config.cluster_id.map(ClusterId::new).transpose()?,
        config: config.jobmanager,
        stop_timeout: config.stop_timeout.0,
        tasks: Tasks::new(host),
        grants,
        events,
        reports,
        readiness,
        telemetry,
        unsent: std::collections::VecDeque::new(),
        refused: None,
    };
    let failed = supervise(agent, exchanges, http, &shutdown, &servers).await;
    failed.map_or(Ok(()), Err)
}

/// Runs the control loop; a listener that fails ends it. Returns what failed first.
async fn supervise(
    agent: Agent,
    mut exchanges: tokio::task::JoinHandle<Result<()>>,
    mut http: tokio::task::JoinHandle<Result<()>>,
    shutdown: &Shutdown,
    servers: &Shutdown,
) -> Option<Error> {
    let stop = shutdown.child();
    let control = agent.run(stop.clone());
    tokio::pin!(control);
    let mut failed = None;
    let (mut exchanges_ended, mut http_ended) = (false, false);
    loop {
        tokio::select! {
            () = &mut control => break,
            ended = &mut exchanges, if !exchanges_ended => {
                exchanges_ended = true;
                failed = failed.or(failure("exchange", ended));
            }
            ended = &mut http, if !http_ended => {
                http_ended = true;
                failed = failed.or(failure("http", ended));
            }
        }
        stop.request();
    }
    servers.request();
    if !http_ended {
        failed = failed.or(http.await.map_or_else(|error| failure("http", Err(error)), Result::err));
    }
    if !exchanges_ended {
        // Peers may hold their connections open: they are not waited for.
        exchanges.abort();
    }
    failed
}

fn failure(server: &str, ended: Result<Result<()>, tokio::task::JoinError>) -> Option<Error> {
    match ended {
        Ok(Ok(())) => Some(Error::internal(format!("the {server} server ended by itself"))),
        Ok(Err(error)) => Some(error),
        Err(error) => Some(Error::internal(format!("the {server} server failed")).with_detail(error.to_string())),
    }
}
