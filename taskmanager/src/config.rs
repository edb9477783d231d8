//! What a TaskManager can be told, by file, environment and flags.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weir_service::log::LogConfig;
use weir_service::units::{ByteSize, TimeSpan};
use weir_service::{Overrides, Program, ServiceArgs};
use weir_types::ids::{ClusterId, TaskManagerId};
use weir_types::{Error, Result};

use crate::exchange;

/// The program as configuration and logs know it.
pub const PROGRAM: Program = Program { name: "weir-taskmanager", env_prefix: "WEIR_TASKMANAGER_" };

/// More slots than any machine has cores for; each is a thread.
const SLOTS_MAX: u32 = 1024;
/// A channel that sends further ahead than this wastes memory.
const WINDOW_MAX: ByteSize = ByteSize::mib(64);

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this TaskManager, which no other of the cluster may have; by default it makes one up.
    pub id: Option<String>,
    /// The cluster to join; by default whatever cluster the JobManager belongs to.
    pub cluster_id: Option<String>,
    /// How many subtasks of one operator chain may run here side by side; each slot has a compute thread.
    pub slots: u32,
    /// What state and channels may hold; a subtask that needs more fails with an error that names the operator. Snapshots may
    /// use what of it is left while they are written; one that needs more is declined, and the job goes on.
    pub memory_budget: ByteSize,
    /// How long running subtasks may take to stop when the process is asked to end.
    pub stop_timeout: TimeSpan,
    /// The JobManager.
    pub jobmanager: JobManagerConfig,
    /// Exchanges with other TaskManagers.
    pub exchange: ExchangeConfig,
    /// Health and metrics.
    pub http: HttpConfig,
    /// The process's own log.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: None,
            cluster_id: None,
            slots: 2,
            memory_budget: ByteSize::mib(1024),
            stop_timeout: TimeSpan::secs(5),
            jobmanager: JobManagerConfig::default(),
            exchange: ExchangeConfig::default(),
            http: HttpConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// Where the JobManager is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobManagerConfig {
    /// `host:port` of JobManagers: of all, or of some that know the others. All are asked which of them leads.
    pub addresses: Vec<String>,
    /// How long connecting and registering may take.
    pub connect_timeout: TimeSpan,
    /// Waiting time after the first failure to connect; it doubles from then on …
    pub retry_delay: TimeSpan,
    /// … up to this.
    pub retry_delay_max: TimeSpan,
}

impl Default for JobManagerConfig {
    fn default() -> Self {
        Self {
            addresses: vec!["127.0.0.1:6123".to_owned()],
            connect_timeout: TimeSpan::secs(5),
            retry_delay: TimeSpan::ms(50),
            retry_delay_max: TimeSpan::ms(250),
        }
    }
}

/// Exchanges with other TaskManagers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExchangeConfig {
    /// `host:port` to listen on for other TaskManagers; port 0 takes any that is free.
    pub address: String,
    /// What other TaskManagers connect to, if that differs from `address`: a host behind a translated network. Port 0
    /// stands for the port listened on.
    pub advertised_address: Option<String>,
    /// What a channel between two subtasks may hold; a batch may begin while any of it is left.
    pub channel_bytes: ByteSize,
    /// What a channel to another TaskManager may send ahead of its receiver.
    pub window: ByteSize,
    /// How long a channel that arrives waits for its subtask to be deployed here.
    pub deploy_timeout: TimeSpan,
    /// How long connecting to another TaskManager may take.
    pub connect_timeout: TimeSpan,
}

impl Default for ExchangeConfig {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".to_owned(),
            advertised_address: None,
            channel_bytes: ByteSize::mib(1),
            window: ByteSize::mib(2),
            deploy_timeout: TimeSpan::secs(30),
            connect_timeout: TimeSpan::secs(5),
        }
    }
}

impl ExchangeConfig {
    /// The bounds of the data plane.
    pub fn settings(&self) -> exchange::Settings {
        let Self { window, deploy_timeout, connect_timeout, .. } = self;
        exchange::Settings {
            window_bytes: window.0,
            deploy_timeout: deploy_timeout.0,
            connect_timeout: connect_timeout.0,
        }
    }

    /// What other TaskManagers are told to connect to, given what is listened on.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if that would be an address that stands for all of this machine's.
    pub fn advertise(&self, bound: std::net::SocketAddr) -> Result<String> {
        match &self.advertised_address {
            None if bound.ip().is_unspecified() => {
                Err(Error::invalid(format!("other TaskManagers cannot connect to {bound}"))
                    .with_hint("Set exchange.advertised_address to HOST:PORT as the other machines reach this one."))
            }
            None => Ok(bound.to_string()),
            Some(address) => match address.rsplit_once(':') {
                Some((host, "0")) => Ok(format!("{host}:{}", bound.port())),
                Some(_) => Ok(address.clone()),
                None => Err(Error::invalid(format!("exchange.advertised_address {address:?} is not HOST:PORT"))),
            },
        }
    }
}

/// Health and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// `host:port`; port 0 takes any that is free.
    pub address: String,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:0".to_owned() }
    }
}

impl weir_service::config::Config for Config {
    fn validate(&self) -> Result<()> {
        self.id.as_ref().map(|id| TaskManagerId::new(id.clone())).transpose()?;
        self.cluster_id.as_ref().map(|id| ClusterId::new(id.clone())).transpose()?;
        if !(1..=SLOTS_MAX).contains(&self.slots) {
            return Err(Error::invalid(format!("slots must be between 1 and {SLOTS_MAX}")));
        }
        if self.jobmanager.addresses.is_empty() {
            return Err(Error::invalid("jobmanager.addresses is empty")
                .with_hint("Name at least one JobManager, for example --jobmanager 127.0.0.1:6123."));
        }
        if self.exchange.window.0 == 0 || self.exchange.window > WINDOW_MAX || self.exchange.channel_bytes.0 == 0 {
            let message = format!("exchange.window must be between 1 and {WINDOW_MAX}, exchange.channel_bytes above 0");
            return Err(Error::invalid(message));
        }
        if self.jobmanager.retry_delay.0 < Duration::from_millis(1) {
            return Err(Error::invalid("jobmanager.retry_delay must be at least 1ms"));
        }
        Ok(())
    }
}

/// Weir's TaskManager: runs subtasks of jobs in its slots
#[derive(Debug, clap::Parser)]
#[command(name = "weir-taskmanager", version)]
pub struct Args {
    /// A JobManager's address; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub jobmanager: Vec<String>,
    /// Listen for other TaskManagers on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Serve health and metrics (HTTP) on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// Number of slots
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Name of this TaskManager; no other of the cluster may have it
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Write the log to a file in this directory instead of to stderr
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// What every Weir server takes.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    /// What the flags set.
    pub fn overrides(&self) -> Overrides {
        let addresses = (!self.jobmanager.is_empty()).then(|| format!("{:?}", self.jobmanager));
        let log_file = self.log_dir.as_ref().and(self.id.as_ref()).map(|id| format!("{id}.log"));
        Overrides::new()
            .set("jobmanager.addresses", addresses)
            .set("exchange.address", self.listen.as_ref())
            .set("http.address", self.http_listen.as_ref())
            .set("slots", self.slots)
            .set("id", self.id.as_ref())
            .set("log.dir", self.log_dir.as_ref().map(|dir| dir.display().to_string()))
            .set("log.file", log_file)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use weir_service::config::{Config as _, load, render};

    use super::*;

    #[test]
    fn flags_reach_the_configuration() {
        let line = "x --jobmanager a:1 --jobmanager b:2 --listen h:3 --http-listen h:4 --slots 7 --id 1 --log-dir /l";
        let args = Args::parse_from(line.split_whitespace());
        let config: Config = load(PROGRAM, &args.service, &args.overrides()).unwrap().unwrap();
        assert_eq!(config.jobmanager.addresses, ["a:1", "b:2"]);
        assert_eq!((config.exchange.address.as_str(), config.http.address.as_str()), ("h:3", "h:4"));
        assert_eq!((config.slots, config.id.as_deref()), (7, Some("1")));
        assert_eq!((config.log.dir, config.log.file.as_deref()), (Some(PathBuf::from("/l")), Some("1.log")));
    }

    #[test]
    fn mistakes_are_refused() {
        let wrong: [fn(&mut Config); 4] = [
            |config| config.slots = 0,
            |config| config.id = Some("../x".to_owned()),
            |config| config.jobmanager.addresses.clear(),
            |config| config.exchange.window = ByteSize(0),
        ];
        for change in wrong {
            let mut config = Config::default();
            assert!(config.validate().is_ok());
            change(&mut config);
            assert!(config.validate().is_err(), "{}", render(&config).unwrap());
        }
    }

    #[test]
    fn an_address_for_all_interfaces_is_not_advertised() {
        let any: std::net::SocketAddr = "0.0.0.0:4000".parse().unwrap();
        let mut config = ExchangeConfig::default();
        assert_eq!(config.advertise("127.0.0.1:4000".parse().unwrap()).unwrap(), "127.0.0.1:4000");
        assert!(config.advertise(any).is_err());
        config.advertised_address = Some("tm-1.example:0".to_owned());
        assert_eq!(config.advertise(any).unwrap(), "tm-1.example:4000");
    }
}
