//! Admission: whether a snapshot may be taken. Every refusal is the one typed `QUOTA_EXCEEDED`, wherever it shows.

use weir_types::error::Facts;
use weir_types::quota::{QuotaDimension, QuotaExceeded, QuotaLevel};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::{Code, Error, Result};

use super::{Reserve, State};

/// Limits at the level of the cluster; none: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Savepoints kept at the same time, those under way included.
    pub savepoints_max: Option<u64>,
    /// Snapshots under way at the same time.
    pub in_flight_max: Option<u64>,
}

impl State {
    /// Whether the limits leave room for a snapshot.
    pub(super) fn admit(&self, reserve: &Reserve) -> Result<()> {
        let count = |wanted: &dyn Fn(&super::SnapshotEntry) -> bool| {
            self.snapshots.values().filter(|entry| wanted(entry)).count() as u64
        };
        let in_flight = count(&|entry| entry.state == SnapshotState::InProgress);
        check(QuotaDimension::InFlight, self.limits.in_flight_max, in_flight)?;
        if reserve.kind == SnapshotKind::Savepoint {
            // One that is being deleted still has its files.
            let kept = count(&|entry| entry.kind == SnapshotKind::Savepoint && entry.state != SnapshotState::Failed);
            check(QuotaDimension::Savepoints, self.limits.savepoints_max, kept)?;
        }
        Ok(())
    }
}

fn check(dimension: QuotaDimension, limit: Option<u64>, used: u64) -> Result<()> {
    let Some(limit) = limit.filter(|limit| used + 1 > *limit) else { return Ok(()) };
    let facts = QuotaExceeded { level: QuotaLevel::Cluster, dimension, limit, used, requested: 1 };
    let error = Error::new(Code::QuotaExceeded, format!("the cluster's limit of {} is reached", dimension.as_str()))
        .with_detail(format!("limit {limit}, used {used}, requested 1"))
        .with_facts(Facts::QuotaExceeded(facts));
    Err(match dimension {
        QuotaDimension::Savepoints => error.with_hint("Delete a savepoint with `weir savepoint -d PATH`."),
        _ => error.with_hint("Try again when other snapshots have ended; `weir snapshots list` shows them."),
    })
}
