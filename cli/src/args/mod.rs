//! The command line, in Flink's manner where Flink has the command.

pub(crate) mod inside;
pub(crate) mod policy;
pub(crate) mod quota;
pub(crate) mod snapshots;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use policy::PolicyCommand;
use quota::QuotaCommand;
use snapshots::{AnnotationArgs, SnapshotsCommand};

use crate::identity::{NamespaceArgs, OwnerArgs, ScopeArgs};

/// A small distributed stream engine whose snapshots are governed.
#[derive(Debug, Parser)]
#[command(name = "weir", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Global {
    /// Address of the JobManager, or of several of one cluster, with commas; default: the local cluster's in --dir, else
    /// 127.0.0.1:6123
    #[arg(long, global = true, env = "WEIR_JOBMANAGER", value_name = "HOST:PORT")]
    pub jobmanager: Option<String>,
    /// Address of the stream store; default: the one of the local cluster in --dir, else 127.0.0.1:6124
    #[arg(long, global = true, env = "WEIR_STORE", value_name = "HOST:PORT")]
    pub store: Option<String>,
    /// Directory of the local cluster: its data, logs and process list
    #[arg(long, global = true, env = "WEIR_DIR", default_value = "weir-cluster", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Read who asks, and in which namespace, from this file; default: weir/config.toml in $XDG_CONFIG_HOME or ~/.config
    #[arg(long, global = true, env = "WEIR_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON for programs instead of tables for people
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start, stop and look at a local cluster of separate processes
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Submit a SQL script as one job
    Run(RunArgs),
    /// Show how a script would run, without running it
    Explain {
        /// The script; `-` for standard input
        script: PathBuf,
        #[command(flatten)]
        plan: PlanArgs,
    },
    /// List jobs
    List {
        /// Running and restarting jobs only
        #[arg(short, long)]
        running: bool,
        /// Scheduled jobs only: accepted, but not running yet
        #[arg(short, long)]
        scheduled: bool,
        /// Ended jobs too; the default lists those that have not ended
        #[arg(short, long)]
        all: bool,
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Look at one job
    #[command(subcommand)]
    Job(JobCommand),
    /// Take a savepoint of a running job, or dispose of one with -d
    Savepoint {
        /// The job: id, unique prefix of an id, or name
        #[arg(required_unless_present = "dispose")]
        job: Option<String>,
        /// Parent directory for the savepoint
        #[arg(value_hint = ValueHint::DirPath)]
        directory: Option<PathBuf>,
        /// Dispose of the savepoint with this id or path
        #[arg(short = 'd', long, value_name = "PATH", conflicts_with_all = ["job", "directory"])]
        dispose: Option<String>,
        /// With -d: even if it is pinned, or the last good one of its job
        #[arg(long, requires = "dispose")]
        force: bool,
        #[command(flatten)]
        annotations: AnnotationArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a checkpoint of a running job now
    Checkpoint {
        /// The job: id, unique prefix of an id, or name
        job: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a savepoint and stop the job
    Stop {
        /// Parent directory for the savepoint
        #[arg(short = 'p', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        savepoint_path: Option<PathBuf>,
        /// Send the maximum watermark first, so that every open window fires
        #[arg(short = 'd', long)]
        drain: bool,
        /// The job: id, unique prefix of an id, or name
        job: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Run a job at another parallelism: it takes a checkpoint and goes on from that
    Rescale {
        /// The job: id, unique prefix of an id, or name
        job: String,
        /// Its parallelism from now on
        #[arg(short, long)]
        parallelism: u32,
        /// Return as soon as the job restarts
        #[arg(short, long)]
        detached: bool,
        /// Name of this request: given again, it is carried out once
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
    /// Stop a job at once, without a savepoint
    Cancel {
        /// The job: id, unique prefix of an id, or name
        job: String,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
    /// Look at checkpoints and savepoints, annotate them, delete them
    #[command(subcommand)]
    Snapshots(SnapshotsCommand),
    /// Retention policies: which savepoints are kept, and when they are taken by themselves
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Look at quotas on snapshots, and set them
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Streams of the stream store
    #[command(subcommand)]
    Stream(StreamCommand),
    /// Reader groups of the stream store
    #[command(subcommand)]
    Group(GroupCommand),
    /// Ask servers whether they can do their work, as health checks do; fails unless all can
    Ready {
        /// Their HTTP addresses
        #[arg(required = true, value_name = "HOST:PORT")]
        addresses: Vec<String>,
        /// Wait so long for them
        #[arg(long, value_name = "TIME", default_value = "0s")]
        wait: weir_service::units::TimeSpan,
    },
    /// See a job run, be stopped with a savepoint and resumed at another parallelism, with its result verified
    Quickstart(QuickstartArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Start one stream store, one JobManager or several, and some TaskManagers
    Start(StartArgs),
    /// Stop the cluster in --dir
    Stop,
    /// Show the cluster's processes and slots
    Status,
    /// Look at the cluster's JobManagers, add and remove some
    #[command(subcommand)]
    Members(MembersCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// List the JobManagers
    List,
    /// Add a JobManager that was started with --join
    Add {
        /// Its number, which no other has or ever had, and its address
        #[arg(value_name = "N=HOST:PORT")]
        member: String,
    },
    /// Remove a JobManager; its process may be stopped afterwards
    Remove {
        /// Its number
        #[arg(value_name = "N")]
        member: u64,
    },
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct StartArgs {
    /// Number of JobManagers: one, three or five; one leads, and another one goes on if it is lost
    #[arg(long, default_value_t = 1, value_parser = group_size)]
    pub jobmanagers: u32,
    /// Number of TaskManagers
    #[arg(short = 't', long, default_value_t = 2)]
    pub taskmanagers: u32,
    /// Slots of each TaskManager
    #[arg(long, default_value_t = 2)]
    pub slots: u32,
    /// Port of the JobManager's API; the store and the HTTP pages take the following ones. 0: any free ports
    #[arg(long, default_value_t = 6123)]
    pub port: u16,
    /// Stop the cluster when this command's parent dies
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

fn group_size(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|size| [1, 3, 5].contains(size)).ok_or_else(|| "write 1, 3 or 5".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The script; `-` for standard input
    pub script: PathBuf,
    /// Return as soon as the job is accepted
    #[arg(short, long)]
    pub detached: bool,
    /// Start from this savepoint or checkpoint: its id or its directory
    #[arg(short = 's', long, value_name = "SNAPSHOT")]
    pub from_savepoint: Option<String>,
    /// Drop state of the snapshot that no operator of the script takes
    #[arg(short = 'n', long)]
    pub allow_non_restored_state: bool,
    /// Let the job write again what is committed already to the same stream or directory: now, and whenever it falls back
    #[arg(long)]
    pub allow_duplicates: bool,
    /// Whose the snapshot is afterwards: its own (no-claim), or the job's, which deletes it once it is superseded (claim);
    /// stronger than the script's execution.state-recovery.claim-mode
    #[arg(long, alias = "claimMode", value_name = "claim|no-claim", requires = "from_savepoint")]
    pub claim_mode: Option<String>,
    /// Only show what the restore would do; fails as the restore itself would
    #[arg(long = "plan", requires = "from_savepoint", conflicts_with = "detached")]
    pub only_plan: bool,
    #[command(flatten)]
    pub plan: PlanArgs,
}

#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct PlanArgs {
    /// Parallelism of the job; stronger than the script's SET
    #[arg(short, long)]
    pub parallelism: Option<u32>,
    /// With how few subtasks the job may run while slots are missing; by default it waits for slots
    #[arg(long, value_name = "N")]
    pub min_parallelism: Option<u32>,
    /// Name of the job; default: the script's pipeline.name, else its file name
    #[arg(long)]
    pub name: Option<String>,
    /// A job option as in SET, stronger than the script's; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub owner: OwnerArgs,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct WaitArgs {
    /// Give up on the snapshot after this long, its time in queues included, for example `90s`
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<weir_service::units::TimeSpan>,
    /// Name of this request: given again, it finds what the first one has started, and starts nothing
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    #[command(flatten)]
    pub owner: OwnerArgs,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show a job with its chains, subtasks and newest snapshots
    Show {
        /// The job: id, unique prefix of an id, or name
        job: String,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// Create a stream
    Create {
        /// `scope/stream`
        stream: String,
        /// Number of partitions
        #[arg(short, long, default_value_t = 1)]
        partitions: u32,
        /// Delete old records once a partition holds more than this, for example `1GiB`
        #[arg(long, value_name = "SIZE")]
        retention_bytes: Option<weir_service::units::ByteSize>,
        /// Delete records older than this, for example `7d`
        #[arg(long, value_name = "DURATION")]
        retention_time: Option<weir_service::units::TimeSpan>,
        /// Acknowledge before records are fsynced
        #[arg(long)]
        no_fsync: bool,
        /// Succeed if the stream exists already with the same options
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List streams
    List,
    /// Show a stream's partitions
    Describe {
        /// `scope/stream`
        stream: String,
    },
    /// List who needs a stream's records: from where on, and how much that keeps from being deleted
    Pins {
        /// `scope/stream`
        stream: String,
    },
    /// Append records, one a line, from a file or standard input
    Append(AppendArgs),
    /// Print records
    Read(ReadArgs),
    /// List transactions, or abort one
    #[command(subcommand)]
    Transactions(TransactionCommand),
    /// Delete the oldest records
    Truncate {
        /// `scope/stream`
        stream: String,
        /// Partition and the offset before which records go, `P=OFFSET`; may be repeated
        #[arg(long = "before", value_name = "P=OFFSET", required = true)]
        before: Vec<String>,
        /// Even where a snapshot still needs the records
        #[arg(long)]
        force: bool,
    },
    /// Delete a stream and all its records
    Delete {
        /// `scope/stream`
        stream: String,
        /// Even if snapshots, reader groups or transactions need it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TransactionCommand {
    /// List a stream's transactions that are not over, and how the latest ended
    List {
        /// `scope/stream`
        stream: String,
    },
    /// Abort open or prepared transactions: committed readers will never see their records
    Abort {
        /// `scope/stream`
        stream: String,
        /// The transactions
        #[arg(required = true)]
        transactions: Vec<String>,
        /// Even prepared ones, which a job may be about to commit: it fails then, for its output is lost
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AppendArgs {
    /// `scope/stream`
    pub stream: String,
    /// The file, gzip if it ends in .gz; default: standard input
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// JSON field whose text becomes the record's key, which picks the partition
    #[arg(short, long, value_name = "FIELD")]
    pub key: Option<String>,
    /// Create the stream with so many partitions if it does not exist
    #[arg(short, long, value_name = "PARTITIONS")]
    pub create: Option<u32>,
    /// Take lines as they are, without checking that they are JSON objects
    #[arg(long, conflicts_with = "key")]
    pub raw: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReadArgs {
    /// `scope/stream`
    pub stream: String,
    /// One partition only
    #[arg(short, long)]
    pub partition: Option<u32>,
    /// From this offset on; default: the oldest record
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// At most so many records
    #[arg(short = 'n', long)]
    pub limit: Option<u64>,
    /// Wait for new records after the last one
    #[arg(short, long)]
    pub follow: bool,
    /// `committed` leaves out aborted records and waits for transactions to be decided; `uncommitted` shows everything
    #[arg(long, value_name = "ISOLATION", default_value_t)]
    pub isolation: weir_types::store::Isolation,
    /// Print partition and offset before each record
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List reader groups
    List,
    /// Show a group's members, positions and checkpoints
    Describe {
        /// Name of the group
        group: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QuickstartArgs {
    /// Keep cluster data and logs in this directory instead of a temporary one
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub keep: Option<PathBuf>,
    /// Events to generate
    #[arg(long, default_value_t = 200_000, conflicts_with = "input")]
    pub events: u64,
    /// JSON-lines file (gzip if it ends in .gz) to load instead of generated events; needs --script
    #[arg(long, value_name = "FILE", requires = "script", value_hint = ValueHint::FilePath)]
    pub input: Option<PathBuf>,
    /// Script to run on --input: it reads the stream `quickstart/input` and writes one stream, `quickstart/output`
    #[arg(long, value_name = "FILE", requires = "input", value_hint = ValueHint::FilePath)]
    pub script: Option<PathBuf>,
    /// JSON field of the input that picks the partition
    #[arg(long, value_name = "FIELD", requires = "input")]
    pub key: Option<String>,
}
