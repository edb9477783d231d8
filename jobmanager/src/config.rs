//! The JobManager's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_service::log::LogConfig;
use weir_service::units::{ByteSize, TimeSpan};
use weir_types::quota::{QuotaDefaults, QuotaLimits};
use weir_types::{Error, Result};

/// Where the JobManager listens for clients and TaskManagers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpcConfig {
    /// `host:port`; port 0 takes any that is free.
    pub address: String,
}

impl Default for RpcConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:7300".to_owned() }
    }
}

/// Where the JobManager listens for HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// `host:port`; port 0 takes any that is free.
    pub address: String,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:7301".to_owned() }
    }
}

/// How TaskManagers are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// How often both sides send heartbeats, in milliseconds.
    pub interval_ms: u64,
    /// After how many milliseconds of silence the other side is given up.
    pub timeout_ms: u64,
    /// How long cancelled subtasks may take to end, in milliseconds.
    pub cancel_timeout_ms: u64,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self { interval_ms: 1_000, timeout_ms: 5_000, cancel_timeout_ms: 10_000 }
    }
}

/// Where snapshots go, and what becomes of those that fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// Checkpoints go to `<dir>/<job>/<snapshot>`; TaskManagers must reach it under the same name. By default
    /// `checkpoints` in the data directory.
    pub checkpoint_dir: Option<PathBuf>,
    /// Savepoints go here unless the user names a directory; by default `savepoints` beside the checkpoints.
    pub savepoint_dir: Option<PathBuf>,
    /// How long TaskManagers may take to let go of a snapshot that has failed, in milliseconds; then its files are removed
    /// whatever they say.
    pub writers_timeout_ms: u64,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { checkpoint_dir: None, savepoint_dir: None, writers_timeout_ms: 10_000 }
    }
}

/// Limits on snapshots; none: no limit. Sizes and times are written with their units: `10GiB`, `30d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Savepoints that may be kept.
    pub savepoints: Option<u64>,
    /// Completed checkpoints that may be kept.
    pub retained_checkpoints: Option<u64>,
    /// Bytes of all snapshots.
    pub bytes: Option<ByteSize>,
    /// Snapshots that may be under way at the same time; more wait for their turn.
    pub in_flight: Option<u64>,
    /// Least time from one savepoint to the next.
    pub minimum_interval: Option<TimeSpan>,
    /// While a savepoint is older than this, no new one is taken.
    pub age: Option<TimeSpan>,
}

impl From<LimitsConfig> for QuotaLimits {
    fn from(config: LimitsConfig) -> Self {
        let ms = |span: TimeSpan| u64::try_from(span.0.as_millis()).unwrap_or(Self::UNLIMITED);
        Self {
            savepoints: config.savepoints,
            retained_checkpoints: config.retained_checkpoints,
            bytes: config.bytes.map(|size| size.0),
            in_flight: config.in_flight,
            minimum_interval_ms: config.minimum_interval.map(ms),
            age_ms: config.age.map(ms),
        }
    }
}

/// Quotas that apply where `weir quota set` has set none. Limits of all levels apply together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaConfig {
    /// Of the whole cluster.
    pub cluster: LimitsConfig,
    /// Of each namespace.
    pub namespace: LimitsConfig,
    /// Of each owner.
    pub owner: LimitsConfig,
    /// Of each job.
    pub job: LimitsConfig,
}

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the metadata lies.
    pub data_dir: PathBuf,
    /// gRPC, for clients and TaskManagers.
    pub rpc: RpcConfig,
    /// HTTP: health, metrics, REST.
    pub http: HttpConfig,
    /// The stream store, `host:port`.
    pub store_address: String,
    /// How TaskManagers are watched.
    pub heartbeat: HeartbeatConfig,
    /// Snapshots.
    pub snapshots: SnapshotConfig,
    /// Limits on snapshots, where none are set.
    pub quotas: QuotaConfig,
    /// The process's own log.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("weir-jobmanager-data"),
            rpc: RpcConfig::default(),
            http: HttpConfig::default(),
            store_address: "127.0.0.1:7400".to_owned(),
            heartbeat: HeartbeatConfig::default(),
            snapshots: SnapshotConfig::default(),
            quotas: QuotaConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl weir_service::config::Config for Config {
    fn validate(&self) -> Result<()> {
        let HeartbeatConfig { interval_ms, timeout_ms, .. } = self.heartbeat;
        if interval_ms == 0 || timeout_ms < 2 * interval_ms {
            return Err(Error::invalid(format!(
                "heartbeat.timeout_ms is {timeout_ms}, but must be at least twice heartbeat.interval_ms, {interval_ms}"
            )));
        }
        Ok(())
    }
}

impl Config {
    /// The limits that apply where none are set.
    pub fn quota_defaults(&self) -> QuotaDefaults {
        let QuotaConfig { cluster, namespace, owner, job } = self.quotas;
        QuotaDefaults { cluster: cluster.into(), namespace: namespace.into(), owner: owner.into(), job: job.into() }
    }

    /// The directories of checkpoints and savepoints, absolute, so that other processes understand them.
    ///
    /// # Errors
    /// `IO` if the working directory is gone.
    pub fn snapshot_roots(&self) -> Result<(String, String)> {
        let checkpoints = self.snapshots.checkpoint_dir.clone().unwrap_or_else(|| self.data_dir.join("checkpoints"));
        let checkpoints = absolute(&checkpoints)?;
        let savepoints = match &self.snapshots.savepoint_dir {
            Some(savepoints) => absolute(savepoints)?,
            None => checkpoints.with_file_name("savepoints"),
        };
        Ok((checkpoints.display().to_string(), savepoints.display().to_string()))
    }
}

fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(format!("could not resolve {}", path.display()), &error))
}
