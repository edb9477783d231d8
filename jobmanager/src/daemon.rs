//! The `weir-jobmanager` process: its command line, and what runs in it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use weir_replication::{Config as RaftConfig, Node, NodeId, Role, Status};
use weir_service::http::Readiness;
use weir_service::{Overrides, Program, ServiceArgs, Shutdown};
use weir_stream_store::client::StoreClient;
use weir_types::ids::Term;
use weir_types::{Error, Result};

use crate::config::{ClusterConfig, Config};
use crate::door::{Doorkeeper, door};
use crate::leader::Leader;
use crate::members::{self, AddressBook, Streams};
use crate::metadata::Machine;
use crate::planning::Planner;
use crate::{http, rpc};

/// The program as configuration and logs know it.
pub const PROGRAM: Program = Program { name: "weir-jobmanager", env_prefix: "WEIR_JOBMANAGER_" };

/// Threads for calls and for the leader's loop; planning and files have threads of their own.
const WORKERS: usize = 2;

/// How long file work may go on when the process ends: storage that does not answer keeps nobody alive.
const FILES_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a leader whose log refuses it may take to learn that it is deposed; otherwise its log has failed.
const DEPOSED_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// The number of this JobManager among those of its cluster
    #[arg(long, value_name = "N")]
    pub member: Option<u64>,
    /// A JobManager that founds the cluster, with its number; repeated for each, this one included
    #[arg(long = "cluster-member", value_name = "N=HOST:PORT")]
    pub members: Vec<String>,
    /// Found no cluster, but wait to be added to one by `weir cluster members add`
    #[arg(long)]
    pub join: bool,
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
        let members = (!self.members.is_empty()).then(|| format!("{:?}", self.members));
        Overrides::new()
            .set("cluster.member", self.member)
            .set("cluster.members", members)
            .set("cluster.join", self.join.then_some(true))
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
    let (keeper, door) = door();
    let rest = http::router(door.clone());
    let rest = tokio::spawn(weir_service::http::serve(http, rest, readiness.clone(), shutdown.clone()));
    let served = async {
        let (node, book) = join_group(&rpc, &config)?;
        let members = members::Service::new(node.clone(), book.clone());
        let planner = Planner::new();
        let server = tokio::spawn(rpc::serve(rpc, door, planner.clone(), members, shutdown.clone()));
        let mut governor = Governor { config, node: node.clone(), book, planner, keeper, readiness };
        let governed = governor.govern(&shutdown).await;
        shutdown.request();
        // Nobody waits for a leader here any more.
        drop(governor);
        // Another member leads by the time this returns, if there is one; its messages still come in meanwhile.
        node.stop().await;
        governed.and(joined(server.await, "the gRPC server failed"))
    }
    .await;
    shutdown.request();
    served.and(joined(rest.await, "the HTTP server failed"))
}

/// Starts this member of the raft group.
fn join_group(rpc: &TcpListener, config: &Config) -> Result<(Node<Machine>, AddressBook)> {
    let directory = config.data_dir.join("metadata");
    std::fs::create_dir_all(&directory)
        .map_err(|error| Error::io(format!("could not create {}", directory.display()), &error))?;
    let ClusterConfig { member, join, .. } = &config.cluster;
    let mut addresses = config.cluster.addresses()?;
    let founders = match (join, addresses.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![*member],
        (false, false) => addresses.keys().copied().collect(),
    };
    let bound = rpc.local_addr().map_err(|error| Error::io("could not look at rpc.address", &error))?;
    addresses.insert(*member, config.cluster.advertise(bound)?);
    let book = AddressBook::open(&directory, addresses)?;
    let id = NodeId::new(*member).ok_or_else(|| Error::invalid("cluster.member is 0"))?;
    let raft = RaftConfig::new(id, founders.into_iter().filter_map(NodeId::new).collect());
    let streams = Streams::new(id, book.clone(), tokio::runtime::Handle::current());
    let node = Node::start(raft, &directory, Machine::default(), streams)?;
    Ok((node, book))
}

/// Leads whenever this member of the group is to, and says who does otherwise.
struct Governor {
    config: Config,
    node: Node<Machine>,
    book: AddressBook,
    planner: Planner,
    keeper: Doorkeeper,
    readiness: Readiness,
}

impl Governor {
    async fn govern(&mut self, shutdown: &Shutdown) -> Result<()> {
        let mut status = self.node.status();
        loop {
            let now = status.borrow_and_update().clone();
            if let Some(stopped) = now.stopped {
                return stopped;
            }
            if now.serving {
                self.reign(now.term, shutdown).await?;
            } else {
                match now.leader.filter(|_| now.role == Role::Follower) {
                    Some(leader) => {
                        self.keeper.refer(self.book.address(leader));
                        self.readiness.set_ready();
                    }
                    None => self.keeper.close(),
                }
            }
            tokio::select! {
                biased;
                // What it was about to do, the next one does.
                () = shutdown.requested() => return Ok(()),
                _ = status.wait_for(|status| !same(&now, status)) => {}
            }
        }
    }

    /// Leads in `term`, as long as this member does and `shutdown` is not requested.
    async fn reign(&self, term: Term, shutdown: &Shutdown) -> Result<()> {
        let reign = shutdown.child();
        let mut status = self.node.status();
        let led = tokio::select! {
            biased;
            led = self.lead(term, reign.clone()) => led,
            () = shutdown.requested() => Ok(()),
            _ = deposed(&mut status, term) => Ok(()),
        };
        reign.request();
        self.keeper.close();
        // A leader that is deposed hears of that from its log first.
        if led.is_err() && tokio::time::timeout(DEPOSED_TIMEOUT, deposed(&mut status, term)).await.is_err() {
            return led;
        }
        tracing::info!(%term, "the reign is over");
        Ok(())
    }

    async fn lead(&self, term: Term, reign: Shutdown) -> Result<()> {
        let (events, inbox) = tokio::sync::mpsc::channel(crate::event::QUEUE_MAX);
        let store = StoreClient::connect(&self.config.store_address)?;
        let (node, planner) = (self.node.clone(), self.planner.clone());
        let recovering =
            Leader::recover(self.config.clone(), term, node, store, events.clone(), planner, reign.clone());
        let leader = recovering.await?;
        let (collector, pin_watch) = (leader.collector(), leader.pin_watch());
        let cleaning = reign.clone();
        tokio::spawn(async move {
            tokio::select! {
                // They may wait for a store that does not answer; nothing they do needs to be finished.
                () = cleaning.requested() => {}
                ((), ()) = async { tokio::join!(collector.run(cleaning.clone()), pin_watch.run(cleaning.clone())) } => {}
            }
        });
        self.keeper.open(events, self.node.clone());
        self.readiness.set_ready();
        leader.lead(inbox, reign).await
    }
}

/// Whether nothing has changed that decides what this JobManager does.
fn same(before: &Status, now: &Status) -> bool {
    let serving = |status: &Status| status.serving.then_some(status.term);
    before.stopped == now.stopped
        && serving(before) == serving(now)
        && before.role == now.role
        && before.leader == now.leader
}

/// Returns when this member does not lead in `term` any more.
async fn deposed(status: &mut watch::Receiver<Status>, term: Term) {
    let _ended = status.wait_for(|status| !status.serving || status.term != term).await;
}

fn joined(result: std::result::Result<Result<()>, tokio::task::JoinError>, what: &str) -> Result<()> {
    result.unwrap_or_else(|error| Err(Error::internal(what).with_detail(error.to_string())))
}
