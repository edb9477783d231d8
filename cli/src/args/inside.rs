//! `weir snapshots …`: the commands that look into a snapshot's files.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum, ValueHint};
use weir_service::units::ByteSize;

use super::snapshots::SnapshotArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub snapshot: SnapshotArgs,
    /// Count rows in so many equal ranges of key hashes; default: the job's parallelism, which gives rows per subtask
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub ranges: Option<u32>,
    /// Name so many of the keys with the most rows
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub heaviest: usize,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    pub snapshot: SnapshotArgs,
    /// The query: tables are operator.table, or just the table's name if one operator has it, or in the schema `snapshot`
    #[arg(required_unless_present = "tables")]
    pub sql: Option<String>,
    /// List the tables that can be queried, with their columns
    #[arg(long, conflicts_with = "sql")]
    pub tables: bool,
    /// Another snapshot to query with it, `SNAPSHOT=NAME`: its tables are NAME.operator.table; may be repeated
    #[arg(long = "and", value_name = "SNAPSHOT=NAME")]
    pub others: Vec<String>,
    /// Print comma-separated values instead of a table
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Memory for sorts, joins and aggregates; beyond it they use temporary files
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub memory: ByteSize,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub snapshot: SnapshotArgs,
    /// The table, operator.table or just its name; may be repeated; default: all
    #[arg(short, long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// What to write
    #[arg(short, long, value_enum)]
    pub format: ExportFormat,
    /// A file that does not exist yet, `-` for standard output, or a directory for one file per table
    #[arg(short, long, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Comma-separated values with a header
    Csv,
    /// One JSON object a line
    Jsonl,
    /// Parquet
    Parquet,
}
