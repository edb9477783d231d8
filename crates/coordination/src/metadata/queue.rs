//! The queue of snapshots that wait for a limit on how many may be under way: checkpoints first, then round robin over
//! jobs.

use std::collections::BTreeMap;

use weir_types::Error;
use weir_types::ids::{JobId, SnapshotId};
use weir_types::quota::{QuotaDimension, QuotaExceeded};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;

use super::{SnapshotEntry, State};

impl State {
    /// The snapshots that wait, in the order in which they will be admitted as far as places allow.
    pub fn queue(&self) -> Vec<&SnapshotEntry> {
        let mut waiting: Vec<&SnapshotEntry> = self.snapshots.queued().collect();
        let own_order =
            |entry: &SnapshotEntry| (entry.kind == SnapshotKind::Savepoint, entry.barrier, entry.id.clone());
        waiting.sort_by_key(|entry| own_order(entry));
        // The first of each job comes in the first round, the second in the second; within a round, whose job was served
        // longest ago.
        let mut rounds: BTreeMap<&JobId, (usize, Option<Millis>)> = BTreeMap::new();
        let mut order: Vec<_> = waiting
            .into_iter()
            .map(|entry| {
                let (round, served) = rounds.entry(&entry.job).or_insert_with(|| (0, self.last_served(&entry.job)));
                *round += 1;
                let savepoint = entry.kind == SnapshotKind::Savepoint;
                ((savepoint, *round, *served, entry.triggered_at, &entry.id), entry)
            })
            .collect();
        order.sort_by_key(|(key, _)| *key);
        order.into_iter().map(|(_, entry)| entry).collect()
    }

    /// A snapshot's place in the queue, from 1; none: it does not wait.
    pub fn queue_position(&self, snapshot: &SnapshotId) -> Option<usize> {
        self.queue().iter().position(|entry| entry.id == *snapshot).map(|place| place + 1)
    }

    /// The limit that keeps a snapshot waiting; none: it does not wait.
    pub fn waits_for(&self, snapshot: &SnapshotId) -> Option<QuotaExceeded> {
        let entry = self.snapshots.get(snapshot).filter(|entry| entry.state == SnapshotState::Queued)?;
        self.full_level(entry)
    }

    /// The first level at which no more snapshots may be under way.
    pub(super) fn full_level(&self, entry: &SnapshotEntry) -> Option<QuotaExceeded> {
        entry.levels().into_iter().find_map(|level| {
            let limit = self.quotas.limits(&level).in_flight?;
            let used = self.snapshots.at_level(&level).map_or(0, |sums| sums.in_flight.len() as u64);
            let dimension = QuotaDimension::InFlight;
            (used >= limit).then_some(QuotaExceeded { level, dimension, limit, used, requested: 1 })
        })
    }

    /// Admits whoever's turn has come; fails those that another limit refuses by now. Returns both.
    pub(super) fn admit_queued(&mut self, now: Millis) -> Vec<SnapshotId> {
        let mut moved = Vec::new();
        let waiting: Vec<SnapshotId> = self.queue().into_iter().map(|entry| entry.id.clone()).collect();
        for id in waiting {
            let Some(entry) = self.snapshots.get(&id) else { continue };
            if self.full_level(entry).is_some() {
                continue;
            }
            match self.check_running(entry).and_then(|()| self.check_limits(now, entry, &[])) {
                Ok(()) => self.begin(now, &id),
                Err(error) => self.fail(now, &id, error),
            }
            moved.push(id);
        }
        moved
    }

    /// Charges a snapshot that has been found admissible.
    pub(super) fn begin(&mut self, now: Millis, snapshot: &SnapshotId) {
        if let Some(mut entry) = self.snapshots.get_mut(snapshot) {
            entry.state = SnapshotState::InProgress;
            entry.started_at = Some(now);
            entry.charged_bytes = entry.estimate_bytes;
        }
    }

    /// Whether the attempt that a snapshot is taken of still counts.
    pub(super) fn check_running(&self, entry: &SnapshotEntry) -> Result<(), Error> {
        if entry.origin.is_some() {
            return Ok(());
        }
        let over = self.jobs.get(&entry.job).is_none_or(|job| job.state.is_terminal() || job.attempt != entry.attempt);
        if over {
            return Err(Error::fenced(format!("attempt {} of job {} is over", entry.attempt, entry.job)));
        }
        Ok(())
    }

    /// When a snapshot of the job was last admitted; none: never.
    fn last_served(&self, job: &JobId) -> Option<Millis> {
        let all = &self.snapshots.of_job(job)?.all;
        all.iter().filter_map(|(_, id)| self.snapshots.get(id)?.started_at).max()
    }
}
