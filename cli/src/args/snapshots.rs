//! `weir snapshots …`, and what is said about a savepoint as it is taken.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum, ValueHint};
use weir_service::units::TimeSpan;

use super::inside::{ExportArgs, InspectArgs, QueryArgs};
use crate::identity::{NamespaceArgs, OwnerArgs, ScopeArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// List checkpoints and savepoints, failed and refused ones too
    List(ListArgs),
    /// Give up one that is under way or waits for its turn; its files are deleted, its job goes on. An import that is still
    /// being looked at is named by the directory that it is looked at in
    Cancel(SnapshotArgs),
    /// Show one with all that is known of it
    Show {
        #[command(flatten)]
        snapshot: SnapshotArgs,
        /// Print the script of its job only
        #[arg(long)]
        query: bool,
    },
    /// Set labels (KEY=VALUE) and remove labels (KEY-)
    Label {
        #[command(flatten)]
        snapshot: SnapshotArgs,
        /// `KEY=VALUE` sets a label, `KEY-` removes it
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<String>,
    },
    /// Say something about a snapshot
    Note {
        #[command(flatten)]
        snapshot: SnapshotArgs,
        /// The note; empty: none
        text: String,
    },
    /// Give a snapshot another name
    Rename {
        #[command(flatten)]
        snapshot: SnapshotArgs,
        /// The name; empty: none
        name: String,
    },
    /// Keep a snapshot whatever policies say
    Pin(SnapshotArgs),
    /// Let go of a pinned snapshot
    Unpin(SnapshotArgs),
    /// Say what became of one and why: what every node said about it, in one timeline; also of one that is gone, by its id
    Explain(SnapshotArgs),
    /// Copy a savepoint of another cluster into this one
    Import(ImportArgs),
    /// Delete snapshots and their files
    Delete(DeleteArgs),
    /// Find and remove what nobody needs any more: leftovers of failed snapshots, orphaned files, stray pins
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Leave directories alone that changed later than so long ago; default: 10min
        #[arg(long, value_name = "DURATION")]
        older_than: Option<TimeSpan>,
    },
    /// See what is in one: operators, tables, rows, skew, watermarks, source positions
    Inspect(InspectArgs),
    /// Run SQL over the state in one, on its files alone
    Query(QueryArgs),
    /// Compare two: rows added, removed and changed per table, source progress
    Diff {
        /// The earlier one: id, unique prefix of an id, name, or directory
        from: String,
        /// The later one
        to: String,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
    /// Write state tables of one as CSV, JSON lines or Parquet
    Export(ExportArgs),
    /// Read every byte of one and compare it with the checksums in its manifest: a directory is read here and needs no
    /// cluster, anything else by the JobManager, which enters the outcome into the catalogue
    Verify(SnapshotArgs),
}

/// A snapshot that is meant.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct SnapshotArgs {
    /// Id, unique prefix of an id, name, or directory
    pub snapshot: String,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportArgs {
    /// The savepoint's directory, where the JobManager sees it; it stays as it is
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: PathBuf,
    /// Name for people
    #[arg(long)]
    pub name: Option<String>,
    /// A sentence for people
    #[arg(long)]
    pub note: Option<String>,
    /// A label to select by; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Keep it whatever policies say
    #[arg(long)]
    pub pin: bool,
    #[command(flatten)]
    pub owner: OwnerArgs,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Give up after this long, reading and waiting included; default: 1h
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<TimeSpan>,
    /// Name of this request: given again, it finds what the first one has imported, and imports nothing
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeleteArgs {
    /// Ids, unique prefixes of ids, names, or directories
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// Even if it is pinned, or the last good one of its job
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub owner: OwnerArgs,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ListArgs {
    /// Of this job only: id, unique prefix of an id, or name
    #[arg(long)]
    pub job: Option<String>,
    /// Savepoints only
    #[arg(long, conflicts_with = "checkpoints")]
    pub savepoints: bool,
    /// Checkpoints only
    #[arg(long)]
    pub checkpoints: bool,
    /// In this state only: queued, in-progress, completed, damaged, unrestorable, failed, deleting; may be repeated
    #[arg(long, value_name = "STATE")]
    pub state: Vec<String>,
    /// Failed and refused ones only
    #[arg(long, conflicts_with = "state")]
    pub failed: bool,
    /// Of this owner only
    #[arg(long)]
    pub owner: Option<String>,
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// With this label only; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Triggered since then: a time in UTC, or how long ago
    #[arg(long, value_name = "TIME|DURATION")]
    pub since: Option<String>,
    /// Triggered before then: a time in UTC, or how long ago
    #[arg(long, value_name = "TIME|DURATION")]
    pub until: Option<String>,
    /// In this order, ascending
    #[arg(long, value_enum, default_value = "time")]
    pub sort: Sort,
    /// In descending order
    #[arg(long)]
    pub reverse: bool,
    /// Only the last so many of the order: the newest, the largest
    #[arg(short = 'n', long)]
    pub limit: Option<u32>,
    /// What users and policies have deleted, instead
    #[arg(long, conflicts_with_all = ["savepoints", "checkpoints", "state", "failed", "owner", "label", "since", "until", "sort", "reverse", "limit"])]
    pub deleted: bool,
}

/// What snapshots are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    Time,
    Bytes,
    Exclusive,
    Duration,
    Rows,
    Job,
    Name,
}

/// What is said about a savepoint as it is taken, and what may go for it.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct AnnotationArgs {
    /// Name for people
    #[arg(long)]
    pub name: Option<String>,
    /// A sentence for people
    #[arg(long)]
    pub note: Option<String>,
    /// A label to select by; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Keep it whatever policies say
    #[arg(long)]
    pub pin: bool,
    /// Where a quota would refuse it, delete the oldest savepoints that nobody needs to make room
    #[arg(long)]
    pub evict_oldest: bool,
}
