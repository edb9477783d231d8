//! The catalogue of snapshots, and what it adds up to per job and per quota level, so that admission never has to look
//! through all of it.
//!
//! Invariant: the sums always follow the entries: an entry changes only through [`Catalogue::insert`],
//! [`Catalogue::get_mut`] and [`Catalogue::remove`]. The sums are derived and never persisted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use weir_types::ids::{BarrierId, JobId, SnapshotId};
use weir_types::quota::QuotaLevel;
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;

use super::SnapshotEntry;

/// Snapshots in the order of their barriers.
pub(super) type ByBarrier = BTreeSet<(BarrierId, SnapshotId)>;

/// All entries by id; it reads like the map that it is.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    entries: BTreeMap<SnapshotId, SnapshotEntry>,
    index: Index,
}

/// What the entries add up to.
#[derive(Clone, Debug, Default)]
struct Index {
    jobs: BTreeMap<JobId, JobSums>,
    levels: BTreeMap<QuotaLevel, LevelSums>,
    queued: BTreeSet<SnapshotId>,
}

/// The snapshots of one job.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct JobSums {
    /// All of them.
    pub(super) all: ByBarrier,
    /// Those that are complete, of either kind.
    pub(super) completed: ByBarrier,
    /// The checkpoints among them.
    pub(super) checkpoints: ByBarrier,
    /// Those under way.
    pub(super) in_flight: BTreeSet<SnapshotId>,
}

/// The snapshots of one quota level.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LevelSums {
    /// Savepoints that count, by the time of their admission: those under way, complete, or being deleted for another
    /// reason than that somebody has their place.
    pub(super) savepoints: BTreeSet<(Millis, SnapshotId)>,
    /// Completed checkpoints.
    pub(super) checkpoints: u64,
    /// Those under way.
    pub(super) in_flight: BTreeSet<SnapshotId>,
    /// Those that wait for their turn.
    pub(super) queued: u64,
    /// Bytes charged to the entries; files that several of them share come on top.
    pub(super) bytes: u128,
}

/// An entry that is being changed; the sums follow when it is let go.
pub(super) struct EntryMut<'a> {
    entry: &'a mut SnapshotEntry,
    index: &'a mut Index,
}

impl Catalogue {
    /// Enters a snapshot, in place of one with the same id.
    pub(super) fn insert(&mut self, entry: SnapshotEntry) {
        self.remove(&entry.id.clone());
        self.index.count(&entry, true);
        self.entries.insert(entry.id.clone(), entry);
    }

    /// An entry to change.
    pub(super) fn get_mut(&mut self, snapshot: &SnapshotId) -> Option<EntryMut<'_>> {
        let entry = self.entries.get_mut(snapshot)?;
        self.index.count(entry, false);
        Some(EntryMut { entry, index: &mut self.index })
    }

    /// Strikes an entry out.
    pub(super) fn remove(&mut self, snapshot: &SnapshotId) -> Option<SnapshotEntry> {
        let entry = self.entries.remove(snapshot)?;
        self.index.count(&entry, false);
        Some(entry)
    }

    /// What a job's entries add up to; none: it has none.
    pub(super) fn of_job(&self, job: &JobId) -> Option<&JobSums> {
        self.index.jobs.get(job)
    }

    /// What a level's entries add up to; none: it has none.
    pub(super) fn at_level(&self, level: &QuotaLevel) -> Option<&LevelSums> {
        self.index.levels.get(level)
    }

    /// Every level that an entry falls under.
    pub(super) fn levels(&self) -> impl Iterator<Item = &QuotaLevel> {
        self.index.levels.keys()
    }

    /// Those that wait for their turn, in no order that matters.
    pub(super) fn queued(&self) -> impl Iterator<Item = &SnapshotEntry> {
        self.index.queued.iter().filter_map(|id| self.entries.get(id))
    }
}

impl Deref for Catalogue {
    type Target = BTreeMap<SnapshotId, SnapshotEntry>;

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl PartialEq for Catalogue {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl FromIterator<SnapshotEntry> for Catalogue {
    fn from_iter<I: IntoIterator<Item = SnapshotEntry>>(entries: I) -> Self {
        let mut catalogue = Self::default();
        entries.into_iter().for_each(|entry| catalogue.insert(entry));
        catalogue
    }
}

impl Deref for EntryMut<'_> {
    type Target = SnapshotEntry;

    fn deref(&self) -> &SnapshotEntry {
        self.entry
    }
}

impl DerefMut for EntryMut<'_> {
    fn deref_mut(&mut self) -> &mut SnapshotEntry {
        self.entry
    }
}

impl Drop for EntryMut<'_> {
    fn drop(&mut self) {
        self.index.count(self.entry, true);
    }
}

impl Index {
    /// Adds an entry to all sums, or takes it out again.
    fn count(&mut self, entry: &SnapshotEntry, add: bool) {
        let (completed, savepoint) = (entry.state == SnapshotState::Completed, entry.kind == SnapshotKind::Savepoint);
        let (queued, in_flight) = (entry.state == SnapshotState::Queued, entry.state == SnapshotState::InProgress);
        let key = || (entry.barrier, entry.id.clone());
        put(&mut self.queued, queued, add, || entry.id.clone());
        let job = self.jobs.entry(entry.job.clone()).or_default();
        put(&mut job.all, true, add, key);
        put(&mut job.completed, completed, add, key);
        put(&mut job.checkpoints, completed && !savepoint, add, key);
        put(&mut job.in_flight, in_flight, add, || entry.id.clone());
        if *job == JobSums::default() {
            self.jobs.remove(&entry.job);
        }
        let uncounted = matches!(entry.state, SnapshotState::Queued | SnapshotState::Failed);
        let counts = savepoint && !uncounted && !entry.is_evicted();
        let one = |wanted: bool| u64::from(wanted);
        for level in entry.levels() {
            let sums = self.levels.entry(level.clone()).or_default();
            put(&mut sums.savepoints, counts, add, || (entry.admitted_at(), entry.id.clone()));
            put(&mut sums.in_flight, in_flight, add, || entry.id.clone());
            let (checkpoints, bytes) = (one(completed && !savepoint), u128::from(entry.charged_bytes));
            if add {
                sums.checkpoints += checkpoints;
                sums.queued += one(queued);
                sums.bytes += bytes;
            } else {
                sums.checkpoints -= checkpoints;
                sums.queued -= one(queued);
                sums.bytes -= bytes;
            }
            if *sums == LevelSums::default() {
                self.levels.remove(&level);
            }
        }
    }
}

/// Adds to a set what belongs in it, or takes it out again.
fn put<T: Ord>(set: &mut BTreeSet<T>, belongs: bool, add: bool, key: impl FnOnce() -> T) {
    match (belongs, add) {
        (false, _) => {}
        (true, true) => {
            set.insert(key());
        }
        (true, false) => {
            set.remove(&key());
        }
    }
}
