//! `weir policy …`.

use clap::{Args as ClapArgs, Subcommand};
use weir_service::units::TimeSpan;

use crate::identity::{NamespaceArgs, OwnerArgs, ScopeArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Set the retention policy of a job or of a namespace, in place of the one it had
    Set(SetArgs),
    /// Show one policy, and when its savepoints are due
    Show {
        /// `job:NAMESPACE/NAME`, `job:NAME` or `namespace:NAME`
        level: String,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
    /// List policies
    List(ScopeArgs),
    /// Remove a policy; nothing is deleted or taken because of it any more
    Remove {
        /// `job:NAMESPACE/NAME`, `job:NAME` or `namespace:NAME`
        level: String,
        #[command(flatten)]
        owner: OwnerArgs,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SetArgs {
    /// `job:NAMESPACE/NAME`, `job:NAME` or `namespace:NAME`; a job's own policy takes the place of its namespace's
    pub level: String,
    /// Keep the newest so many savepoints of each job
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep savepoints for so long after they completed, for example `7d`
    #[arg(long, value_name = "DURATION")]
    pub keep_for: Option<TimeSpan>,
    /// Keep savepoints that bear this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub keep_label: Vec<String>,
    /// Take a savepoint of each running job so often, for example `6h`
    #[arg(long, value_name = "DURATION", conflicts_with = "cron")]
    pub every: Option<TimeSpan>,
    /// Take a savepoint of each running job when this cron expression says so, in UTC, for example `0 3 * * *`
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: Option<String>,
    #[command(flatten)]
    pub owner: OwnerArgs,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
}
