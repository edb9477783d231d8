//! What is used at each quota level, and by what.

use std::collections::BTreeSet;

use weir_types::ids::JobId;
use weir_types::quota::{QuotaDimension, QuotaExceeded, QuotaLevel, QuotaLimits};
use weir_types::time::Millis;

use super::{Account, JobRecord, SharedRecord, SnapshotEntry, State};

/// What a level uses, beside what it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The level.
    pub level: QuotaLevel,
    /// The limits in force.
    pub limits: QuotaLimits,
    /// Those among them that were set for this very level.
    pub set: QuotaLimits,
    /// Savepoints, those under way and those being deleted included.
    pub savepoints: u64,
    /// Completed checkpoints.
    pub retained_checkpoints: u64,
    /// Bytes charged: on storage, or granted to what is under way.
    pub bytes: u64,
    /// Those among them in files that checkpoints of one job share.
    pub shared_bytes: u64,
    /// Bytes that savepoints have to leave for the checkpoints of running jobs.
    pub checkpoint_reserve: u64,
    /// Snapshots under way.
    pub in_flight: u64,
    /// Snapshots that wait for their turn.
    pub queued: u64,
    /// When the newest savepoint was admitted.
    pub last_savepoint_at: Option<Millis>,
    /// When the oldest completed savepoint was admitted.
    pub oldest_savepoint_at: Option<Millis>,
}

impl Usage {
    /// What is used of one dimension, in its unit; for the two that measure time: since the last savepoint, and the age of
    /// the oldest. None: there is no savepoint.
    pub fn used(&self, dimension: QuotaDimension, now: Millis) -> Option<u64> {
        match dimension {
            QuotaDimension::Savepoints => Some(self.savepoints),
            QuotaDimension::RetainedCheckpoints => Some(self.retained_checkpoints),
            QuotaDimension::Bytes => Some(self.bytes),
            QuotaDimension::InFlight => Some(self.in_flight),
            QuotaDimension::MinimumInterval => self.last_savepoint_at.map(|at| now.since(at)),
            QuotaDimension::Age => self.oldest_savepoint_at.map(|at| now.since(at)),
        }
    }
}

impl State {
    /// What a level uses.
    pub fn usage(&self, level: &QuotaLevel) -> Usage {
        let sums = self.snapshots.at_level(level);
        Usage {
            level: level.clone(),
            limits: self.quotas.limits(level),
            set: self.quotas.set.get(level).copied().unwrap_or_default(),
            savepoints: sums.map_or(0, |sums| sums.savepoints.len() as u64),
            retained_checkpoints: sums.map_or(0, |sums| sums.checkpoints),
            bytes: self.bytes_at(level),
            shared_bytes: saturated(self.shared_bytes_at(level)),
            checkpoint_reserve: self.checkpoint_reserve(level),
            in_flight: sums.map_or(0, |sums| sums.in_flight.len() as u64),
            queued: sums.map_or(0, |sums| sums.queued),
            last_savepoint_at: sums.and_then(|sums| sums.savepoints.last()).map(|(at, _)| *at),
            oldest_savepoint_at: self.oldest_savepoint(level),
        }
    }

    /// Every level that is used, or for which limits are set; the cluster always.
    pub fn quota_levels(&self) -> BTreeSet<QuotaLevel> {
        let live = self.jobs.values().filter(|job| !job.state.is_terminal());
        let of_jobs = live.flat_map(|job| QuotaLevel::of(&job.namespace, &job.owner, &job.name));
        let used = self.snapshots.levels().cloned().chain(of_jobs);
        used.chain(self.quotas.set.keys().cloned()).chain([QuotaLevel::Cluster]).collect()
    }

    /// What takes most of a level's bytes: at most `max` snapshots, the largest first.
    pub fn consumers(&self, level: &QuotaLevel, max: usize) -> Vec<&SnapshotEntry> {
        let covered = |entry: &&SnapshotEntry| entry.falls_under(level);
        let mut entries: Vec<_> = self.snapshots.values().filter(|e| e.charged_bytes > 0).filter(covered).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.charged_bytes));
        entries.truncate(max);
        entries
    }

    /// Which limits a level would exceed already if these were set; none: if those that are set were taken away.
    pub fn would_exceed(&self, now: Millis, level: &QuotaLevel, limits: Option<QuotaLimits>) -> Vec<QuotaExceeded> {
        let (limits, usage) = (limits.unwrap_or_default().or(self.quotas.defaults.of(level)), self.usage(level));
        let exceeded = |dimension: QuotaDimension| {
            let (limit, used) = (limits.get(dimension)?, usage.used(dimension, now)?);
            let over = used > limit && dimension != QuotaDimension::MinimumInterval;
            over.then(|| QuotaExceeded { level: level.clone(), dimension, limit, used, requested: 0 })
        };
        QuotaDimension::ALL.into_iter().filter_map(exceeded).collect()
    }

    /// Bytes that deleting a snapshot would free: its own, and those of the files that only it refers to.
    pub fn exclusive_bytes(&self, entry: &SnapshotEntry) -> u64 {
        entry.charged_bytes.saturating_add(self.shared.exclusive_bytes(&entry.job, &entry.id))
    }

    /// Snapshots that have failed and whose files are still charged: nobody has made sure yet that they are gone.
    pub fn unswept(&self) -> impl Iterator<Item = &SnapshotEntry> {
        self.snapshots.values().filter(|entry| entry.is_unswept())
    }

    /// Bytes charged at a level: by its snapshots, and by what its jobs' checkpoints share.
    pub(super) fn bytes_at(&self, level: &QuotaLevel) -> u64 {
        let own = self.snapshots.at_level(level).map_or(0, |sums| sums.bytes);
        saturated(own + self.shared_bytes_at(level))
    }

    fn shared_bytes_at(&self, level: &QuotaLevel) -> u128 {
        let charged = |(job, bytes, owed): (&JobId, u128, bool)| {
            let Some(record) = self.jobs.get(job) else { return 0 };
            // Checkpoints are claimed only of jobs that have ended.
            let ended = record.state.is_terminal();
            let claimed = ended && self.snapshots_of(job).iter().any(|entry| entry.claim.is_some());
            match owed || claimed {
                false if level.covers(&record.namespace, &record.owner, &record.name) => bytes,
                false => 0,
                true => {
                    let files = self.shared.of_job(job).filter(|(_, file)| self.is_charged_at(level, record, file));
                    files.map(|(_, file)| u128::from(file.bytes)).sum()
                }
            }
        };
        self.shared.jobs().map(charged).sum()
    }

    /// Whether a shared file of a job is charged at a level: whether something that refers to it falls under that, or did
    /// as the last of all.
    fn is_charged_at(&self, level: &QuotaLevel, job: &JobRecord, file: &SharedRecord) -> bool {
        match &file.owed_by {
            Some(Account { owner, namespace, job_name }) => level.covers(namespace, owner, job_name),
            None if file.referrers.is_empty() => level.covers(&job.namespace, &job.owner, &job.name),
            None => {
                let referrers = file.referrers.iter().filter_map(|snapshot| self.snapshots.get(snapshot));
                referrers.into_iter().any(|entry| entry.falls_under(level))
            }
        }
    }

    /// What a level would be charged more if it were charged for this snapshot, too.
    pub(super) fn bytes_moving_to(&self, level: &QuotaLevel, entry: &SnapshotEntry) -> u64 {
        let job = self.jobs.get(&entry.job);
        let files = self.shared.of_job(&entry.job).filter(|(_, file)| {
            file.referrers.contains(&entry.id) && !job.is_some_and(|job| self.is_charged_at(level, job, file))
        });
        files.fold(entry.charged_bytes, |sum, (_, file)| sum.saturating_add(file.bytes))
    }
}

fn saturated(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
