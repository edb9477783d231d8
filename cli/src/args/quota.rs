//! `weir quota …`.

use std::str::FromStr;

use clap::{ArgGroup, Args as ClapArgs, Subcommand};
use weir_service::units::{ByteSize, TimeSpan};
use weir_types::Error;
use weir_types::quota::{QuotaDimension, QuotaLimits};

use crate::identity::{NamespaceArgs, ScopeArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Set limits of a level; what is already there stays, only new snapshots are refused
    Set(SetArgs),
    /// Show the limits of a level, how much of each is used, and what uses it
    Show {
        /// `cluster`, `namespace:NAME`, `owner:NAME`, `job:NAMESPACE/NAME` or `job:NAME`
        level: String,
        #[command(flatten)]
        namespace: NamespaceArgs,
    },
    /// List all levels that are used or limited; with a namespace, those that lie in it
    List(ScopeArgs),
}

#[derive(Debug, ClapArgs)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["savepoints", "retained_checkpoints", "bytes", "in_flight", "minimum_interval", "age", "unset", "remove"]))]
pub(crate) struct SetArgs {
    /// `cluster`, `namespace:NAME`, `owner:NAME`, `job:NAMESPACE/NAME` or `job:NAME`
    pub level: String,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Savepoints that may be kept, or `unlimited`
    #[arg(long, value_name = "N")]
    pub savepoints: Option<Limit<u64>>,
    /// Completed checkpoints that may be kept, or `unlimited`
    #[arg(long, value_name = "N")]
    pub retained_checkpoints: Option<Limit<u64>>,
    /// Bytes of all snapshots, for example `10GiB`, or `unlimited`
    #[arg(long, value_name = "SIZE")]
    pub bytes: Option<Limit<ByteSize>>,
    /// Snapshots that may be under way at the same time; more wait for their turn
    #[arg(long, value_name = "N")]
    pub in_flight: Option<Limit<u64>>,
    /// Least time from one savepoint to the next, for example `10min`
    #[arg(long, value_name = "DURATION")]
    pub minimum_interval: Option<Limit<TimeSpan>>,
    /// While a savepoint is older than this, no new one is taken, for example `30d`
    #[arg(long, value_name = "DURATION")]
    pub age: Option<Limit<TimeSpan>>,
    /// Take this limit away, so that the default applies again; may be repeated
    #[arg(long, value_name = "DIMENSION", value_parser = dimension)]
    pub unset: Vec<QuotaDimension>,
    /// Take all limits of the level away
    #[arg(long, conflicts_with_all =
        ["savepoints", "retained_checkpoints", "bytes", "in_flight", "minimum_interval", "age", "unset"])]
    pub remove: bool,
    /// Change nothing; say what would already exceed the limits
    #[arg(long)]
    pub dry_run: bool,
}

impl SetArgs {
    /// The limits that are given.
    pub(crate) fn limits(&self) -> QuotaLimits {
        let ms = |span: TimeSpan| u64::try_from(span.0.as_millis()).unwrap_or(QuotaLimits::UNLIMITED);
        QuotaLimits {
            savepoints: self.savepoints.map(|limit| limit.in_units(|count| count)),
            retained_checkpoints: self.retained_checkpoints.map(|limit| limit.in_units(|count| count)),
            bytes: self.bytes.map(|limit| limit.in_units(|size| size.0)),
            in_flight: self.in_flight.map(|limit| limit.in_units(|count| count)),
            minimum_interval_ms: self.minimum_interval.map(|limit| limit.in_units(ms)),
            age_ms: self.age.map(|limit| limit.in_units(ms)),
        }
    }
}

/// A limit, or none against any default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit<T> {
    Of(T),
    Unlimited,
}

impl<T> Limit<T> {
    fn in_units(self, units: impl Fn(T) -> u64) -> u64 {
        match self {
            Self::Of(limit) => units(limit),
            Self::Unlimited => QuotaLimits::UNLIMITED,
        }
    }
}

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "unlimited" { Ok(Self::Unlimited) } else { text.parse().map(Self::Of) }
    }
}

fn dimension(text: &str) -> Result<QuotaDimension, Error> {
    let wanted = text.replace('-', "_");
    let found = QuotaDimension::ALL.into_iter().find(|dimension| dimension.as_str() == wanted);
    found.ok_or_else(|| {
        let all: Vec<_> = QuotaDimension::ALL.iter().map(|dimension| dimension.as_str().replace('_', "-")).collect();
        Error::invalid(format!("{text:?} is not a dimension: there are {}", all.join(", ")))
    })
}
