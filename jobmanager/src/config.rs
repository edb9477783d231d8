//! The JobManager's configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
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

/// The JobManagers of a cluster, which form a raft group: one, three or five. Alone by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// This JobManager's number, which no other of the cluster has or ever had.
    pub member: u64,
    /// All JobManagers that found the cluster, this one among them, the same on each: `1=host:port`. Only a new data
    /// directory looks at who they are; afterwards members are added and removed by `weir cluster members`.
    pub members: Vec<String>,
    /// Found nothing: wait to be added to a cluster that exists.
    pub join: bool,
    /// Where other JobManagers, clients and TaskManagers reach this one; by default its entry in `members`, else the address
    /// that it listens on.
    pub address: Option<String>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { member: 1, members: Vec::new(), join: false, address: None }
    }
}

impl ClusterConfig {
    /// The addresses in `members`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no `ID=HOST:PORT`, or comes twice.
    pub fn addresses(&self) -> Result<BTreeMap<u64, String>> {
        let mut addresses = BTreeMap::new();
        for member in &self.members {
            let parsed = member.split_once('=').and_then(|(id, address)| {
                let id = id.trim().parse::<u64>().ok().filter(|id| *id > 0)?;
                let address = address.trim();
                let (host, port) = address.rsplit_once(':')?;
                (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| (id, address.to_owned()))
            });
            let fresh = parsed.is_some_and(|(id, address)| addresses.insert(id, address).is_none());
            if !fresh {
                return Err(Error::invalid(format!("cluster.members has {member:?}"))
                    .with_hint("Write each member once, as ID=HOST:PORT."));
            }
        }
        Ok(addresses)
    }

    /// Where others reach this JobManager, given what it listens on.
    ///
    /// # Errors
    /// As [`ClusterConfig::addresses`]; `INVALID_ARGUMENT` if others would be told an address that stands for all of a
    /// machine's: each would reach itself by it.
    pub fn advertise(&self, bound: SocketAddr) -> Result<String> {
        let listed = self.addresses()?;
        let named = self.address.clone().or_else(|| listed.get(&self.member).cloned());
        match named {
            Some(address) => Ok(address),
            None if bound.ip().is_unspecified() && (self.join || !listed.is_empty()) => {
                Err(Error::invalid(format!("other JobManagers cannot connect to {bound}"))
                    .with_hint("Set cluster.address to HOST:PORT as the other machines reach this one."))
            }
            None => Ok(bound.to_string()),
        }
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

/// How jobs that lack slots are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulingConfig {
    /// How long a job with a minimum parallelism waits for missing slots before it begins with fewer subtasks, in
    /// milliseconds.
    pub resource_wait_ms: u64,
    /// How long slots must have been there before such a job is restarted to use them, in milliseconds.
    pub resource_stabilization_ms: u64,
}

impl Default for SchedulingConfig {
    fn default() -> Self {
        Self { resource_wait_ms: 3_000, resource_stabilization_ms: 10_000 }
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
    /// gRPC, for clients, TaskManagers and other JobManagers.
    pub rpc: RpcConfig,
    /// The other JobManagers.
    pub cluster: ClusterConfig,
    /// HTTP: health, metrics, REST.
    pub http: HttpConfig,
    /// The stream store, `host:port`.
    pub store_address: String,
    /// How TaskManagers are watched.
    pub heartbeat: HeartbeatConfig,
    /// Slots.
    pub scheduling: SchedulingConfig,
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
            cluster: ClusterConfig::default(),
            http: HttpConfig::default(),
            store_address: "127.0.0.1:7400".to_owned(),
            heartbeat: HeartbeatConfig::default(),
            scheduling: SchedulingConfig::default(),
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
        let ClusterConfig { member, join, .. } = &self.cluster;
        let members = self.cluster.addresses()?;
        if *member == 0 {
            return Err(Error::invalid("cluster.member is 0").with_hint("Members are numbered from 1."));
        }
        if !join && !members.is_empty() && !members.contains_key(member) {
            return Err(Error::invalid(format!("cluster.members lacks this JobManager, {member}")));
        }
        if !join && !members.is_empty() && ![1, 3, 5].contains(&members.len()) {
            return Err(Error::invalid(format!("cluster.members has {} members", members.len()))
                .with_hint("Found a cluster with one, three or five: an even number bears no more losses."));
        }
        if (*join || members.len() > 1) && self.snapshots.checkpoint_dir.is_none() {
            return Err(Error::invalid("several JobManagers need snapshots.checkpoint_dir")
                .with_hint("Name a directory that all JobManagers and TaskManagers reach, with --checkpoint-root."));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_one_three_or_five_founders_this_one_among_them_and_a_shared_directory() {
        use weir_service::config::Config as _;
        let with = |member: u64, members: &[&str], join: bool, shared: bool| {
            let members = members.iter().map(|member| (*member).to_owned()).collect();
            let cluster = ClusterConfig { member, members, join, address: None };
            let checkpoint_dir = shared.then(|| PathBuf::from("/shared"));
            let snapshots = SnapshotConfig { checkpoint_dir, ..SnapshotConfig::default() };
            Config { cluster, snapshots, ..Config::default() }.validate()
        };
        let three = ["1=a:1", "2=b:2", "3=[::1]:3"];
        with(2, &three, false, true).unwrap();
        with(1, &[], false, false).unwrap();
        with(4, &three[..2], true, true).unwrap();
        for (member, members, join, shared) in [
            (0, &three[..], false, true),
            (4, &three[..], false, true),
            (1, &three[..2], false, true),
            (1, &three[..], false, false),
            (1, &["1=a:1", "1=b:1", "2=c:1"][..], false, true),
            (1, &["1=a"][..], false, true),
            (1, &["a:1"][..], false, true),
            (4, &[][..], true, false),
        ] {
            let refused = with(member, members, join, shared).unwrap_err();
            assert_eq!(refused.code, weir_types::Code::InvalidArgument, "{member} {members:?}");
        }
    }

    #[test]
    fn others_are_told_an_address_that_leads_here_and_never_one_that_stands_for_all() {
        let listed = ["1=a:1", "2=b:2", "3=c:3"].map(str::to_owned).to_vec();
        let cluster = |member, members: &[String], join, address: Option<&str>| ClusterConfig {
            member,
            members: members.to_vec(),
            join,
            address: address.map(str::to_owned),
        };
        let (all, one): (SocketAddr, SocketAddr) = ("0.0.0.0:7300".parse().unwrap(), "10.0.0.1:7300".parse().unwrap());
        assert_eq!(cluster(2, &listed, false, Some("x:9")).advertise(all).unwrap(), "x:9");
        assert_eq!(cluster(2, &listed, false, None).advertise(all).unwrap(), "b:2");
        assert_eq!(cluster(4, &listed, true, None).advertise(one).unwrap(), "10.0.0.1:7300");
        assert_eq!(cluster(1, &[], false, None).advertise(all).unwrap(), "0.0.0.0:7300", "alone, nobody asks");
        for lost in [cluster(4, &listed, true, None), cluster(4, &[], true, None)] {
            let refused = lost.advertise(all).unwrap_err();
            assert_eq!(refused.message, "other JobManagers cannot connect to 0.0.0.0:7300");
        }
    }
}
