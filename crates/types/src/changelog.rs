//! Which changes a stream of rows may hold.

use std::fmt;

use crate::connector::{ConnectorKind, DEBEZIUM_JSON};
use crate::graph::{ConnectorSpec, GroupAggregateSpec};

/// The changes other than inserts that a stream may hold. Displays as in Flink's plans: `[I,UB,UA,D]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Changelog {
    /// `-U`: the old version of a row that changes.
    pub update_before: bool,
    /// `+U`: its new version.
    pub update_after: bool,
    /// `-D`
    pub delete: bool,
}

impl Changelog {
    /// Nothing but inserts.
    pub const INSERTS: Self = Self { update_before: false, update_after: false, delete: false };

    /// Whether there are inserts only.
    pub fn is_inserts(self) -> bool {
        self == Self::INSERTS
    }

    /// What either of two streams may hold.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            update_before: self.update_before || other.update_before,
            update_after: self.update_after || other.update_after,
            delete: self.delete || other.delete,
        }
    }
}

/// Which changes a table takes when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Inserts only.
    Inserts,
    /// All, and what a row was before an update is of no use to it.
    AllButUpdateBefore,
    /// All.
    All,
}

impl ConnectorSpec {
    /// The changes that a table of this connector takes.
    pub fn takes(&self) -> Takes {
        match self.kind {
            ConnectorKind::StreamStore | ConnectorKind::Filesystem if self.has_change_format() => Takes::All,
            ConnectorKind::Print => Takes::All,
            ConnectorKind::Blackhole => Takes::AllButUpdateBefore,
            ConnectorKind::StreamStore | ConnectorKind::Filesystem | ConnectorKind::Nexmark => Takes::Inserts,
        }
    }

    /// Whether its format tells updates and deletes from inserts.
    pub fn has_change_format(&self) -> bool {
        self.options.get("format").is_some_and(|format| format == DEBEZIUM_JSON)
    }
}

impl GroupAggregateSpec {
    /// What it emits.
    pub fn changelog(&self) -> Changelog {
        // Without aggregates there is nothing that could change about a group.
        let updates = !self.aggregates.is_empty();
        Changelog { update_before: updates && self.update_before, update_after: updates, delete: self.retracting }
    }
}

impl fmt::Display for Changelog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[I")?;
        for (present, name) in [(self.update_before, ",UB"), (self.update_after, ",UA"), (self.delete, ",D")] {
            f.write_str(if present { name } else { "" })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_tell_their_changes_as_flink_does() {
        let upsert = Changelog { update_after: true, ..Changelog::INSERTS };
        let deletes = Changelog { delete: true, ..Changelog::INSERTS };
        assert_eq!(Changelog::INSERTS.to_string(), "[I]");
        assert_eq!(upsert.or(deletes).to_string(), "[I,UA,D]");
        let group = |aggregates, retracting, update_before| GroupAggregateSpec {
            keys: vec![0],
            aggregates,
            retracting,
            update_before,
        };
        let count = crate::graph::AggregateSpec {
            function: crate::graph::AggregateFunction::Count,
            argument: None,
            distinct: false,
            filter: None,
        };
        assert_eq!(group(vec![count.clone()], false, true).changelog().to_string(), "[I,UB,UA]");
        assert_eq!(group(vec![count], true, false).changelog().to_string(), "[I,UA,D]");
        assert_eq!(group(vec![], true, true).changelog().to_string(), "[I,D]");
        assert_eq!(group(vec![], false, true).changelog(), Changelog::INSERTS);
    }
}
