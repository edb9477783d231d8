//! Quota levels, dimensions, and the one refusal that every interface reports alike.

use std::fmt;

use serde::{Deserialize, Serialize};

/// At which level a limit applies; limits of all levels apply together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "level", content = "name", rename_all = "snake_case")]
pub enum QuotaLevel {
    /// The whole cluster.
    Cluster,
    /// One namespace.
    Namespace(String),
    /// One owner.
    Owner(String),
    /// One job.
    Job(String),
}

impl fmt::Display for QuotaLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuotaLevel::Cluster => f.write_str("cluster"),
            QuotaLevel::Namespace(name) => write!(f, "namespace {name}"),
            QuotaLevel::Owner(name) => write!(f, "owner {name}"),
            QuotaLevel::Job(name) => write!(f, "job {name}"),
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaDimension {
    /// Number of savepoints kept.
    Savepoints,
    /// Number of checkpoints retained.
    RetainedCheckpoints,
    /// Bytes on storage.
    Bytes,
    /// Snapshots under way.
    InFlight,
    /// Least milliseconds between two savepoints.
    MinimumInterval,
    /// Greatest age of a savepoint in milliseconds.
    Age,
}

impl QuotaDimension {
    /// The name users see.
    pub fn as_str(self) -> &'static str {
        match self {
            QuotaDimension::Savepoints => "savepoints",
            QuotaDimension::RetainedCheckpoints => "retained_checkpoints",
            QuotaDimension::Bytes => "bytes",
            QuotaDimension::InFlight => "in_flight",
            QuotaDimension::MinimumInterval => "minimum_interval",
            QuotaDimension::Age => "age",
        }
    }
}

/// A quota's refusal: `used + requested` would exceed `limit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaExceeded {
    /// Where the limit applies.
    pub level: QuotaLevel,
    /// What is limited.
    pub dimension: QuotaDimension,
    /// The limit, in the dimension's unit.
    pub limit: u64,
    /// What is in use already.
    pub used: u64,
    /// What was asked for on top.
    pub requested: u64,
}
