//! Making room: a savepoint that is asked for with eviction takes the place of the oldest ones that nobody needs.
//!
//! Invariant: it is one decision. Either as many are marked as the limits want and the savepoint is admitted, or none is.

use weir_types::error::Facts;
use weir_types::ids::SnapshotId;
use weir_types::quota::{QuotaDimension, QuotaExceeded};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::deletion::{Care, Deleter};
use super::{SnapshotEntry, State};

impl State {
    /// Marks the oldest savepoints that nobody needs, at whichever level refuses, until the limits leave room for `entry`.
    ///
    /// # Errors
    /// The first refusal that deleting cannot help: then nothing is marked.
    pub(super) fn make_room(&mut self, now: Millis, entry: &SnapshotEntry) -> Result<Vec<SnapshotId>> {
        let mut evicted = Vec::new();
        loop {
            let Err(refusal) = self.check_limits(now, entry, &evicted) else { return Ok(evicted) };
            let Some(oldest) = self.oldest_evictable(entry, &refusal) else {
                evicted.iter().for_each(|snapshot| self.unmark(snapshot));
                return Err(refusal);
            };
            self.mark(now, &oldest, Deleter::Eviction(entry.id.clone()));
            evicted.push(oldest);
        }
    }

    /// The oldest savepoint of the level that refuses which may go without asking anybody.
    fn oldest_evictable(&self, entry: &SnapshotEntry, refusal: &Error) -> Option<SnapshotId> {
        let Some(Facts::QuotaExceeded(QuotaExceeded { level, dimension, .. })) = refusal.facts.as_deref() else {
            return None;
        };
        let helps = matches!(dimension, QuotaDimension::Savepoints | QuotaDimension::Bytes | QuotaDimension::Age);
        if !helps || entry.kind != SnapshotKind::Savepoint {
            return None;
        }
        let savepoints = self.snapshots.at_level(level)?.savepoints.iter();
        let mut savepoints = savepoints.filter_map(|(_, id)| self.snapshots.get(id));
        let evictable = |entry: &&SnapshotEntry| {
            entry.state == SnapshotState::Completed && self.check_deletable(entry, Care::Automatic).is_ok()
        };
        savepoints.find(evictable).map(|entry| entry.id.clone())
    }

    fn unmark(&mut self, snapshot: &SnapshotId) {
        if let Some(mut entry) = self.snapshots.get_mut(snapshot) {
            entry.state = SnapshotState::Completed;
            entry.deletion = None;
        }
    }
}

impl SnapshotEntry {
    /// Whether it has lost its place to another savepoint, and is only waiting for its files to go.
    pub(super) fn is_evicted(&self) -> bool {
        self.deletion.as_ref().is_some_and(|deletion| matches!(deletion.by, Deleter::Eviction(_)))
    }
}

#[cfg(test)]
mod tests {
    use weir_types::Code;
    use weir_types::annotations::AnnotationChange;
    use weir_types::quota::QuotaLimits;

    use super::super::fixture::{ask, reserve, run, savepoint, take};
    use super::super::{Command, State};
    use super::*;
    use crate::checkpoint::Trigger;

    fn limit(state: &mut State, level: &str, limits: QuotaLimits) {
        let command = Command::SetQuota { request: None, level: level.parse().unwrap(), limits: Some(limits) };
        state.apply(Millis(1), command).unwrap();
    }

    fn pin(state: &mut State, snapshot: SnapshotId) {
        let change = AnnotationChange { pinned: Some(true), ..AnnotationChange::default() };
        state.apply(Millis(1), Command::Annotate { snapshot, request: None, change }).unwrap();
    }

    #[test]
    fn the_oldest_that_nobody_needs_goes_and_its_place_is_taken_at_once() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        (1..=3).for_each(|number| drop(take(&mut state, number, 1, number)));
        pin(&mut state, savepoint(1, 1));
        limit(&mut state, "namespace:default", QuotaLimits { savepoints: Some(3), ..QuotaLimits::default() });
        let refused = ask(&mut state, 4, 1, 4, false).unwrap_err();
        assert_eq!(refused.code, Code::QuotaExceeded);
        let applied = ask(&mut state, 5, 1, 5, true).unwrap();
        assert_eq!(applied.retired, [savepoint(1, 2)], "1 is pinned");
        assert_eq!(state.snapshots[&savepoint(1, 2)].state, SnapshotState::Deleting);
        // The place is taken: 3 is what the job would restart from, and nothing else can go.
        let refused = ask(&mut state, 6, 1, 6, true).unwrap_err();
        assert_eq!(refused.code, Code::QuotaExceeded);
        state.apply(Millis(7), Command::Deleted { snapshot: savepoint(1, 2) }).unwrap();
        let record = state.retention.deleted.back().unwrap();
        assert_eq!(record.deletion.by, Deleter::Eviction(savepoint(1, 5)));
    }

    #[test]
    fn as_many_go_as_the_bytes_want_or_none() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        (1..=4).for_each(|number| drop(take(&mut state, number, 1, number)));
        let bytes = |bytes| QuotaLimits { bytes: Some(bytes), ..QuotaLimits::default() };
        // Four of 10 bytes each are there, a fifth is expected to have 10, and so is the job's next checkpoint.
        limit(&mut state, "cluster", bytes(40));
        let applied = ask(&mut state, 5, 1, 5, true).unwrap();
        assert_eq!(applied.retired, [savepoint(1, 1), savepoint(1, 2)]);

        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        (1..=4).for_each(|number| drop(take(&mut state, number, 1, number)));
        limit(&mut state, "cluster", bytes(15));
        let refused = ask(&mut state, 5, 1, 5, true).unwrap_err();
        assert_eq!(refused.code, Code::QuotaExceeded);
        let complete = |entry: &&SnapshotEntry| entry.state == SnapshotState::Completed && entry.deletion.is_none();
        assert_eq!(state.snapshots.values().filter(complete).count(), 4, "nothing went in vain");
    }

    #[test]
    fn nothing_goes_for_a_limit_that_deleting_does_not_help() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        (1..=3).for_each(|number| drop(take(&mut state, number, 1, number)));
        let minimum = QuotaLimits { minimum_interval_ms: Some(1_000), ..QuotaLimits::default() };
        limit(&mut state, "cluster", minimum);
        assert_eq!(ask(&mut state, 4, 1, 4, true).unwrap_err().code, Code::QuotaExceeded);
        limit(&mut state, "cluster", QuotaLimits { in_flight: Some(1), ..QuotaLimits::default() });
        reserve(&mut state, 5, 1, 5, Trigger::User);
        let applied = ask(&mut state, 6, 1, 6, true).unwrap();
        assert!(applied.queued && applied.retired.is_empty());
    }
}
