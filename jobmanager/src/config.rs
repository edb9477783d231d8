//! The JobManager's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_service::log::LogConfig;
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

/// Where snapshots go, and how many there may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// Checkpoints go to `<dir>/<job>/<snapshot>`; TaskManagers must reach it under the same name. By default
    /// `checkpoints` in the data directory.
    pub checkpoint_dir: Option<PathBuf>,
    /// Savepoints go here unless the user names a directory; by default `savepoints` beside the checkpoints.
    pub savepoint_dir: Option<PathBuf>,
    /// Savepoints that may be kept in the cluster; none: no limit.
    pub savepoints_max: Option<u64>,
    /// Snapshots that may be under way in the cluster at the same time; none: no limit.
    pub in_flight_max: Option<u64>,
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
