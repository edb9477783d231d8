//! Names and positions of the stream store: scopes, streams, partitions, offsets, stream cuts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{PartitionId, check_name};

/// Position of a record within a partition, from 0 and without gaps: the number of records before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// This offset moved on by `records`.
    #[must_use]
    pub fn plus(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stream by its full name, `scope/stream`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName {
    scope: String,
    stream: String,
}

impl StreamName {
    /// A checked name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if either part is not a valid name.
    pub fn new(scope: impl Into<String>, stream: impl Into<String>) -> Result<Self> {
        let (scope, stream) = (scope.into(), stream.into());
        check_name("scope name", &scope)?;
        check_name("stream name", &stream)?;
        Ok(Self { scope, stream })
    }

    /// The scope.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The stream's name within its scope.
    pub fn stream(&self) -> &str {
        &self.stream
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.scope, self.stream)
    }
}

/// Parses `scope/stream`; a name without a slash lies in scope `default`.
impl FromStr for StreamName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name.split_once('/') {
            Some((scope, stream)) => Self::new(scope, stream),
            None => Self::new("default", name),
        }
    }
}

impl TryFrom<String> for StreamName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> String {
        name.to_string()
    }
}

/// A position in every partition of one stream: the next offset to read in each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamCut(pub BTreeMap<PartitionId, Offset>);

impl StreamCut {
    /// The offset in one partition, if the cut has it.
    pub fn get(&self, partition: PartitionId) -> Option<Offset> {
        self.0.get(&partition).copied()
    }

    /// Whether every partition of this cut is at or after its place in `other`.
    pub fn is_at_or_after(&self, other: &Self) -> bool {
        other.0.iter().all(|(partition, offset)| self.get(*partition).is_some_and(|mine| mine >= *offset))
    }
}

/// `0=17, 1=4`: partitions and offsets.
impl fmt::Display for StreamCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (partition, offset)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{partition}={offset}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_scope_lie_in_the_default_scope() {
        assert_eq!("clicks".parse::<StreamName>().unwrap().to_string(), "default/clicks");
        assert_eq!("a/b".parse::<StreamName>().unwrap(), StreamName::new("a", "b").unwrap());
        assert!("a/b/c".parse::<StreamName>().is_err());
        assert!("../x".parse::<StreamName>().is_err());
    }
}
