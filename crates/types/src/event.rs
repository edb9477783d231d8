//! What processes say about snapshots in their logs, as data.

use serde::{Deserialize, Serialize};

/// One line of a process's log that is about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEvent {
    /// When, in microseconds since the epoch by the process's own clock.
    pub at_us: u64,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`.
    pub level: String,
    /// What happened.
    pub message: String,
    /// The facts that belong to it, in the order in which they were logged; the snapshot's id is left out.
    pub fields: Vec<(String, String)>,
}

impl LogEvent {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// What one process remembers of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recollection {
    /// The process's clock as it answers, in microseconds since the epoch.
    pub now_us: u64,
    /// Nothing that was said since then is missing.
    pub complete_since_us: u64,
    /// In the order in which it was said.
    pub events: Vec<LogEvent>,
}
