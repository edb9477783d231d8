//! Output that is decided together with snapshots: which sinks take part, where their output goes, how what they prepare
//! is named, and what is decided about it.
//!
//! A sink prepares at a barrier, and what it prepares bears the attempt and the barrier's number. A decision names no
//! single transaction: it commits whatever an attempt has prepared up to a barrier, and gives up what older attempts have
//! left. So it is as large for a thousand subtasks as for one, may be repeated, and needs nobody who still knows them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::connector::ConnectorKind;
use crate::graph::{ConnectorSpec, JobGraph, OperatorSpec, SinkSpec};
use crate::ids::{Attempt, BarrierId, JobId, OperatorUid};
use crate::stream::StreamName;
use crate::{Error, Result};

/// The number that is prepared under at the end of all input: behind every barrier.
pub const END_OF_INPUT: BarrierId = BarrierId(u64::MAX);

/// The option that chooses what a sink guarantees.
pub const DELIVERY_GUARANTEE: &str = "sink.delivery-guarantee";

/// Its value for output that is committed with snapshots.
pub const EXACTLY_ONCE: &str = "exactly-once";

/// Its value for output that is visible at once, and written again after a failure.
pub const AT_LEAST_ONCE: &str = "at-least-once";

/// Characters of a uid that go into a name.
const UID_LENGTH_MAX: usize = 64;

/// What an attempt has prepared at a barrier and at those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitMark {
    /// The attempt.
    pub attempt: Attempt,
    /// The last barrier, or [`END_OF_INPUT`].
    pub barrier: BarrierId,
}

/// What is to become of a job's output. Carrying it out again changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settlement {
    /// Commits this.
    pub commit: Option<CommitMark>,
    /// Then fences attempts below this one off, and gives up what they have left undecided.
    pub below: Option<Attempt>,
}

/// Where a sink's output goes: what tells one sink's output from another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// To a stream.
    Stream(StreamName),
    /// To files of a directory.
    Directory(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Stream(stream) => write!(f, "stream {stream}"),
            Place::Directory(directory) => write!(f, "directory {directory}"),
        }
    }
}

/// A sink whose output is committed with snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedSink {
    /// The operator.
    pub uid: OperatorUid,
    /// Where its output goes.
    pub place: Place,
}

impl CommittedSink {
    /// The sinks of a graph whose output is committed with snapshots.
    pub fn of(graph: &JobGraph) -> Vec<Self> {
        let sink = |uid: &Option<OperatorUid>, spec: &OperatorSpec| match spec {
            OperatorSpec::Sink(spec) if spec.is_exactly_once() => {
                // A place that makes no sense fails the sink before it writes anything.
                Some(Self { uid: uid.clone()?, place: spec.connector.place().ok()? })
            }
            _ => None,
        };
        graph.operators.iter().filter_map(|operator| sink(&operator.uid, &operator.spec)).collect()
    }
}

impl SinkSpec {
    /// Whether its output is committed with snapshots. Files always are: they appear at checkpoints anyway. A stream is
    /// written for readers who wait, so that it is for its user to choose to have rows late, but once.
    pub fn is_exactly_once(&self) -> bool {
        match self.connector.kind {
            ConnectorKind::Filesystem => true,
            ConnectorKind::StreamStore => self.connector.text(DELIVERY_GUARANTEE) == Some(EXACTLY_ONCE),
            ConnectorKind::Nexmark | ConnectorKind::Print | ConnectorKind::Blackhole => false,
        }
    }
}

impl ConnectorSpec {
    /// Where a table's rows are.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it does not say so, or is nowhere.
    pub fn place(&self) -> Result<Place> {
        match self.kind {
            ConnectorKind::StreamStore => Ok(Place::Stream(self.required("stream")?.parse()?)),
            ConnectorKind::Filesystem => Ok(Place::Directory(self.path()?.to_owned())),
            kind => Err(Error::invalid(format!("connector '{kind}' keeps no rows"))),
        }
    }

    /// The file or directory of a table of files; Flink's scripts write it as a URI.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` without one.
    pub fn path(&self) -> Result<&str> {
        let path = self.required("path")?;
        Ok(path.strip_prefix("file://").unwrap_or(path))
    }
}

/// A uid as part of a name: users' hints may hold characters that file names and ids may not.
pub fn name_of(uid: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '_' };
    uid.chars().take(UID_LENGTH_MAX).map(legal).collect()
}

/// What the names of all of a sink's producers begin with, in every attempt: `JOB.UID`.
pub fn producer_family(job: &JobId, uid: &str) -> String {
    format!("{job}.{}", name_of(uid))
}

/// What the names of all of a sink's files begin with, in every attempt: `JOB-UID`.
pub fn file_family(job: &JobId, uid: &str) -> String {
    format!("{job}-{}", name_of(uid))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sink(kind: ConnectorKind, options: &[(&str, &str)]) -> SinkSpec {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        SinkSpec {
            table: "t".to_owned(),
            connector: ConnectorSpec { kind, options },
            metadata: BTreeMap::new(),
            primary_key: Vec::new(),
        }
    }

    #[test]
    fn files_are_committed_always_and_streams_on_request() {
        let stream =
            |guarantee| sink(ConnectorKind::StreamStore, &[("stream", "a/b"), (DELIVERY_GUARANTEE, guarantee)]);
        assert!(stream(EXACTLY_ONCE).is_exactly_once());
        assert!(!stream(AT_LEAST_ONCE).is_exactly_once());
        assert!(!sink(ConnectorKind::StreamStore, &[("stream", "a/b")]).is_exactly_once());
        assert!(sink(ConnectorKind::Filesystem, &[("path", "/x")]).is_exactly_once());
        assert!(!sink(ConnectorKind::Blackhole, &[]).is_exactly_once());
    }

    #[test]
    fn the_same_place_is_the_same_however_it_is_written() {
        let file = |path| sink(ConnectorKind::Filesystem, &[("path", path)]).connector.place().unwrap();
        assert_eq!(file("file:///x/y"), file("/x/y"));
        assert_eq!(file("/x/y").to_string(), "directory /x/y");
        let stream = |name| sink(ConnectorKind::StreamStore, &[("stream", name)]).connector.place().unwrap();
        assert_eq!(stream("default/b"), stream("b"));
        assert!(sink(ConnectorKind::Filesystem, &[]).connector.place().is_err());
    }

    #[test]
    fn names_hold_what_names_may() {
        let job = JobId::new("job0").unwrap();
        assert_eq!(producer_family(&job, "sink/1 ä"), "job0.sink_1__");
        assert_eq!(file_family(&job, "0123456789abcdef"), "job0-0123456789abcdef");
    }
}
