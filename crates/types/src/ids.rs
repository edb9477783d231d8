//! Typed ids. A signature never takes a bare integer or string where one of these is meant.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// One to 128 characters out of `A–Z a–z 0–9 . _ -`, not starting with a dot, so that it is safe as a file name.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// `INVALID_ARGUMENT` if it is empty, too long or holds other characters.
            pub fn new(name: impl Into<String>) -> Result<Self> {
                let name = name.into();
                check_name($what, &name)?;
                Ok(Self(name))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

/// Refuses names that would be unsafe as a file name or unreadable in a table.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what was wrong.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(legal) {
        return Err(Error::invalid(format!("{name:?} is not a valid {what}"))
            .with_hint("Use 1 to 128 letters, digits, '.', '_' or '-', not starting with a dot."));
    }
    Ok(())
}

name_id!(
    /// The cluster: everything with another cluster id belongs to somebody else and is never touched.
    ClusterId,
    "cluster id"
);
name_id!(
    /// A job, for its whole life: attempts and restarts keep it. 32 hex digits, as in Flink.
    JobId,
    "job id"
);
name_id!(
    /// A TaskManager process; a restarted process is a new TaskManager.
    TaskManagerId,
    "TaskManager id"
);
name_id!(
    /// A snapshot: `chk-…` for a checkpoint, `sp-…` for a savepoint. The correlation id in every log line.
    SnapshotId,
    "snapshot id"
);
name_id!(
    /// A client's name for one request, so that a retry is recognised and never applied twice.
    RequestId,
    "request id"
);
name_id!(
    /// A reader group of the stream store.
    GroupName,
    "reader group name"
);
name_id!(
    /// A reader within a reader group.
    ReaderId,
    "reader id"
);
name_id!(
    /// An idempotent producer: sequence numbers of one producer id only grow, per partition.
    ProducerId,
    "producer id"
);
name_id!(
    /// A transaction of one stream, named by whoever began it.
    TransactionId,
    "transaction id"
);
name_id!(
    /// Who holds a pin on a stream: a snapshot's id, or a name that a user chose.
    PinHolder,
    "pin holder"
);

number_id!(
    /// How often a job has been deployed; commands of a lower attempt are refused.
    Attempt(u32)
);
number_id!(
    /// A leader's term (raft): commands of a lower term are refused.
    Term(u64)
);
number_id!(
    /// A reader's registration in its group: an older epoch is fenced.
    Epoch(u64)
);
number_id!(
    /// Number of a snapshot within its job, from 1: barriers carry it, and they only grow.
    BarrierId(u64)
);
number_id!(
    /// An operator within one job graph.
    OperatorId(u32)
);
number_id!(
    /// An operator chain (a vertex of the job graph as deployed): the chain's head operator's number.
    ChainId(u32)
);
number_id!(
    /// Ordinal of a parallel subtask of a chain, from 0.
    SubtaskIndex(u32)
);
number_id!(
    /// A partition of a stream, from 0.
    PartitionId(u32)
);
number_id!(
    /// A transaction as the log of its stream knows it: given out once, never again.
    TransactionNumber(u64)
);

/// What a snapshot's nonce proves: that a manifest was written under this very reservation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(pub String);

/// How many subtasks run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parallelism(pub NonZeroU32);

impl Parallelism {
    /// One subtask.
    pub const ONE: Self = Self(NonZeroU32::MIN);

    /// Parallelism from a number that may be zero.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for zero.
    pub fn new(value: u32) -> Result<Self> {
        NonZeroU32::new(value).map(Self).ok_or_else(|| Error::invalid("parallelism must be at least 1"))
    }

    /// As a plain number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Parallelism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stable name for an operator's state across plans: a hash of the canonical, pre-optimiser form, as 16 hex digits,
/// or a user's hint.
pub type OperatorUid = String;

/// One subtask of one attempt of a job: the unit that is deployed, acknowledges barriers and fails.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubtaskId {
    /// The job.
    pub job: JobId,
    /// The chain that runs.
    pub chain: ChainId,
    /// Which of its parallel copies.
    pub index: SubtaskIndex,
    /// Of which deployment.
    pub attempt: Attempt,
}

impl fmt::Display for SubtaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}#{}", self.job, self.chain, self.index, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in ["", "..", "../../x", "a/b", "a b", "ä", &"x".repeat(129), ".hidden"] {
            let error = SnapshotId::new(name).unwrap_err();
            assert_eq!(error.code, crate::Code::InvalidArgument, "{name:?}");
        }
        assert_eq!(SnapshotId::new("sp-1a.b_c").unwrap().as_str(), "sp-1a.b_c");
    }

    #[test]
    fn names_are_checked_when_deserialised() {
        assert!(serde_json::from_str::<JobId>("\"../x\"").is_err());
        assert_eq!(serde_json::from_str::<JobId>("\"ab\"").unwrap(), JobId::new("ab").unwrap());
    }
}
