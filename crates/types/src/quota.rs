//! Quota levels, dimensions and limits, and the one refusal that every interface reports alike.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Facts, Result};
use crate::ids::check_name;

/// The owner and the namespace of whatever does not name one.
const DEFAULT_NAME: &str = "default";

/// `name`, or `default` if it is empty: the one place where owners and namespaces get their default.
pub fn or_default(name: String) -> String {
    if name.is_empty() { DEFAULT_NAME.to_owned() } else { name }
}

/// Refuses owners that a level could not name: an owner is 1 to 128 letters, digits or `. _ - @ +`.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn check_owner(owner: &str) -> Result<()> {
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+');
    if owner.is_empty() || owner.len() > 128 || !owner.chars().all(legal) {
        return Err(Error::invalid(format!("{owner:?} is not a valid owner"))
            .with_hint("Use 1 to 128 letters, digits, '.', '_', '-', '@' or '+'."));
    }
    Ok(())
}

/// Refuses namespaces that a level could not name.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn check_namespace(namespace: &str) -> Result<()> {
    check_name("namespace", namespace)
}

/// At which level a limit applies; limits of all levels apply together.
///
/// Written `cluster`, `namespace:NAME`, `owner:NAME` and `job:NAMESPACE/NAME`; `job:NAME` means the default namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum QuotaLevel {
    /// The whole cluster.
    Cluster,
    /// One namespace.
    Namespace(String),
    /// One owner.
    Owner(String),
    /// One job, by name rather than by id: the level outlives its single runs.
    Job {
        /// The job's namespace.
        namespace: String,
        /// The job's name.
        name: String,
    },
}

impl QuotaLevel {
    /// The levels that apply to something of this namespace, owner and job name, from the widest to the narrowest.
    pub fn of(namespace: &str, owner: &str, job_name: &str) -> [Self; 4] {
        [
            Self::Cluster,
            Self::Namespace(namespace.to_owned()),
            Self::Owner(owner.to_owned()),
            Self::Job { namespace: namespace.to_owned(), name: job_name.to_owned() },
        ]
    }

    /// The namespace that the level lies in; none for levels that span several.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Cluster | Self::Owner(_) => None,
            Self::Namespace(namespace) | Self::Job { namespace, .. } => Some(namespace),
        }
    }

    /// The level that a user of this namespace means: `job:NAME` is a job of it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the text is no level.
    pub fn parse_in(namespace: Option<&str>, text: &str) -> Result<Self> {
        match (namespace, text.strip_prefix("job:")) {
            (Some(namespace), Some(name)) if !name.contains('/') => format!("job:{namespace}/{name}").parse(),
            _ => text.parse(),
        }
    }

    /// Whether something of this namespace, owner and job name falls under the level.
    pub fn covers(&self, namespace: &str, owner: &str, job_name: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespace(name) => name == namespace,
            Self::Owner(name) => name == owner,
            Self::Job { namespace: of, name } => of == namespace && name == job_name,
        }
    }
}

impl fmt::Display for QuotaLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Namespace(name) => write!(f, "namespace:{name}"),
            Self::Owner(name) => write!(f, "owner:{name}"),
            Self::Job { namespace, name } => write!(f, "job:{namespace}/{name}"),
        }
    }
}

impl FromStr for QuotaLevel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |detail: String| {
            Error::invalid(format!("{text:?} is not a quota level"))
                .with_detail(detail)
                .with_hint("Write `cluster`, `namespace:NAME`, `owner:NAME`, `job:NAMESPACE/NAME` or `job:NAME`.")
        };
        match text.split_once(':') {
            None if text == "cluster" => Ok(Self::Cluster),
            Some(("namespace", name)) => {
                check_namespace(name).map_err(|error| wrong(error.message))?;
                Ok(Self::Namespace(name.to_owned()))
            }
            Some(("owner", name)) => {
                check_owner(name).map_err(|error| wrong(error.message))?;
                Ok(Self::Owner(name.to_owned()))
            }
            Some(("job", job)) => {
                let (namespace, name) = job.split_once('/').unwrap_or((DEFAULT_NAME, job));
                check_namespace(namespace).map_err(|error| wrong(error.message))?;
                if name.is_empty() || name.chars().any(char::is_control) {
                    return Err(wrong("it lacks a job's name".to_owned()));
                }
                Ok(Self::Job { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(wrong("there is no such kind of level".to_owned())),
        }
    }
}

impl TryFrom<String> for QuotaLevel {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<QuotaLevel> for String {
    fn from(level: QuotaLevel) -> Self {
        level.to_string()
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
    /// Every dimension, in the order of tables.
    pub const ALL: [QuotaDimension; 6] = [
        QuotaDimension::Savepoints,
        QuotaDimension::RetainedCheckpoints,
        QuotaDimension::Bytes,
        QuotaDimension::InFlight,
        QuotaDimension::MinimumInterval,
        QuotaDimension::Age,
    ];

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

/// Limits of one level; none: no limit, or that of the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaLimits {
    /// Savepoints kept at the same time, those under way and those being deleted included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub savepoints: Option<u64>,
    /// Completed checkpoints kept at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_checkpoints: Option<u64>,
    /// Bytes on storage, those granted to snapshots under way included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Snapshots under way at the same time; more of them wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Least milliseconds from one savepoint to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_interval_ms: Option<u64>,
    /// While there are savepoints older than this, in milliseconds, no new one is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

impl QuotaLimits {
    /// The largest value: set at a level, it lifts a default.
    pub const UNLIMITED: u64 = u64::MAX;

    /// The limit of one dimension.
    pub fn get(&self, dimension: QuotaDimension) -> Option<u64> {
        match dimension {
            QuotaDimension::Savepoints => self.savepoints,
            QuotaDimension::RetainedCheckpoints => self.retained_checkpoints,
            QuotaDimension::Bytes => self.bytes,
            QuotaDimension::InFlight => self.in_flight,
            QuotaDimension::MinimumInterval => self.minimum_interval_ms,
            QuotaDimension::Age => self.age_ms,
        }
    }

    /// These limits, and those of `other` where these have none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            savepoints: self.savepoints.or(other.savepoints),
            retained_checkpoints: self.retained_checkpoints.or(other.retained_checkpoints),
            bytes: self.bytes.or(other.bytes),
            in_flight: self.in_flight.or(other.in_flight),
            minimum_interval_ms: self.minimum_interval_ms.or(other.minimum_interval_ms),
            age_ms: self.age_ms.or(other.age_ms),
        }
    }
}

/// Limits that apply where none are set: to the cluster, and to each single namespace, owner and job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaDefaults {
    /// Of the cluster.
    pub cluster: QuotaLimits,
    /// Of each namespace.
    pub namespace: QuotaLimits,
    /// Of each owner.
    pub owner: QuotaLimits,
    /// Of each job.
    pub job: QuotaLimits,
}

impl QuotaDefaults {
    /// The limits of a level for which none are set.
    pub fn of(&self, level: &QuotaLevel) -> QuotaLimits {
        match level {
            QuotaLevel::Cluster => self.cluster,
            QuotaLevel::Namespace(_) => self.namespace,
            QuotaLevel::Owner(_) => self.owner,
            QuotaLevel::Job { .. } => self.job,
        }
    }
}

/// A quota's refusal: `used + requested` would exceed `limit`. For `minimum_interval`, `used` is the time since the last
/// savepoint, which the limit exceeds; for `age`, it is the age of the oldest savepoint; nothing is requested then.
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

impl QuotaExceeded {
    /// The refusal as everybody sees it.
    pub fn into_error(self) -> Error {
        let Self { level, dimension, limit, used, requested } = &self;
        Error::new(Code::QuotaExceeded, format!("{level} has reached its limit of {}", dimension.as_str()))
            .with_detail(format!("limit {limit}, used {used}, requested {requested}"))
            .with_facts(Facts::QuotaExceeded(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_printed_as_they_are_parsed() {
        for text in ["cluster", "namespace:web", "owner:ada@example.org", "job:web/top pages/by hour"] {
            assert_eq!(text.parse::<QuotaLevel>().unwrap().to_string(), text);
        }
        assert_eq!("job:clicks".parse::<QuotaLevel>().unwrap().to_string(), "job:default/clicks");
        let level = QuotaLevel::Job { namespace: "web".into(), name: "clicks".into() };
        assert_eq!(serde_json::to_string(&level).unwrap(), "\"job:web/clicks\"");
        assert_eq!(serde_json::from_str::<QuotaLevel>("\"job:web/clicks\"").unwrap(), level);
    }

    #[test]
    fn hostile_levels_are_refused() {
        let levels =
            ["", "clusters", "cluster:x", "namespace:", "namespace:../../x", "owner:a b", "owner:", "job:", "job:a/"];
        for text in levels.into_iter().chain(["job:../x/y", "job:a/b\nc", "disk:sda"]) {
            assert_eq!(text.parse::<QuotaLevel>().unwrap_err().code, Code::InvalidArgument, "{text:?}");
        }
    }

    #[test]
    fn a_level_covers_what_lists_it() {
        for level in QuotaLevel::of("web", "ada", "clicks") {
            assert!(level.covers("web", "ada", "clicks"), "{level}");
            assert_eq!(level.covers("other", "bob", "clicks"), level == QuotaLevel::Cluster, "{level}");
        }
    }

    #[test]
    fn what_is_set_goes_before_defaults() {
        let set = QuotaLimits { savepoints: Some(3), ..QuotaLimits::default() };
        let default = QuotaLimits { savepoints: Some(1), bytes: Some(9), ..QuotaLimits::default() };
        assert_eq!(set.or(default), QuotaLimits { savepoints: Some(3), bytes: Some(9), ..QuotaLimits::default() });
    }
}
