//! Admission: whether a snapshot may be taken, and how far it may grow. Every refusal is the one typed `QUOTA_EXCEEDED`,
//! wherever it shows.
//!
//! Invariants: limits of all levels apply together; a snapshot is charged at all of its levels or at none; a limit counts
//! when something is admitted or granted, and lowering it takes nothing away.

use std::collections::BTreeMap;

use weir_types::ids::{JobId, Nonce, SnapshotId};
use weir_types::quota::{QuotaDefaults, QuotaDimension, QuotaExceeded, QuotaLevel, QuotaLimits};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::deletion::Care;
use super::{Applied, JobRecord, Reply, SnapshotEntry, State};

/// Savepoints that a hint names.
const NAMED_MAX: usize = 3;

/// The limits in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Where nothing else is set: from the leader's configuration.
    pub defaults: QuotaDefaults,
    /// What was set at run time; it goes before the defaults, dimension by dimension.
    pub set: BTreeMap<QuotaLevel, QuotaLimits>,
}

impl Quotas {
    /// The limits of a level.
    pub fn limits(&self, level: &QuotaLevel) -> QuotaLimits {
        self.set.get(level).copied().unwrap_or_default().or(self.defaults.of(level))
    }
}

/// Which savepoints a hint names.
#[derive(Clone, Copy)]
enum Naming {
    /// The oldest first.
    Oldest,
    /// Those admitted before this, the oldest first.
    OlderThan(Millis),
    /// The largest first.
    Largest,
}

impl State {
    /// Sets the limits of a level, or takes those that were set away.
    pub(super) fn set_quota(&mut self, level: QuotaLevel, limits: Option<QuotaLimits>) -> Reply {
        match limits.filter(|limits| *limits != QuotaLimits::default()) {
            Some(limits) => self.quotas.set.insert(level, limits),
            None => self.quotas.set.remove(&level),
        };
        Ok(Applied::default())
    }

    /// Raises what a snapshot is charged to `bytes` in total.
    pub(super) fn grant(&mut self, snapshot: &SnapshotId, nonce: &Nonce, bytes: u64) -> Reply {
        let entry = self.reservation(snapshot, nonce)?;
        match entry.state {
            SnapshotState::InProgress => {}
            SnapshotState::Queued => {
                let message = format!("snapshot {snapshot} is not admitted yet");
                return Err(Error::new(Code::FailedPrecondition, message));
            }
            SnapshotState::Completed | SnapshotState::Failed | SnapshotState::Deleting => {
                return Err(Error::fenced(format!("snapshot {snapshot} has ended")));
            }
        }
        let more = bytes.saturating_sub(entry.charged_bytes);
        if more > 0 {
            for level in entry.levels() {
                self.check_bytes(&level, entry.kind, 0, more)?;
            }
            if let Some(mut entry) = self.snapshots.get_mut(snapshot) {
                entry.charged_bytes = bytes;
            }
        }
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// Whether the limits leave room for a snapshot that is not charged yet, once those that were `evicted` for it are gone;
    /// waiting would not help where they do not.
    pub(super) fn check_limits(&self, now: Millis, entry: &SnapshotEntry, evicted: &[SnapshotId]) -> Result<()> {
        for level in entry.levels() {
            let limits = self.quotas.limits(&level);
            if limits.in_flight == Some(0) {
                let dimension = QuotaDimension::InFlight;
                let facts = QuotaExceeded { level, dimension, limit: 0, used: 0, requested: 1 };
                return Err(facts
                    .into_error()
                    .with_hint("Raise the limit with `weir quota set`: none may be taken now."));
            }
            match entry.kind {
                SnapshotKind::Savepoint => self.check_savepoint(now, &level, &limits)?,
                SnapshotKind::Checkpoint => self.check_retained(&level, &limits, &entry.job)?,
            }
            let evicted = evicted.iter().filter_map(|id| self.snapshots.get(id));
            let evicted = evicted.filter(|entry| entry.falls_under(&level));
            let freed = evicted.fold(0, |sum: u64, entry| sum.saturating_add(entry.charged_bytes));
            self.check_bytes(&level, entry.kind, freed, entry.estimate_bytes)?;
        }
        Ok(())
    }

    /// Bytes that savepoints must leave at a level: per running job that takes checkpoints, the unused part of one further
    /// checkpoint, written whole: the first of the next attempt is.
    pub fn checkpoint_reserve(&self, level: &QuotaLevel) -> u64 {
        let jobs = self.jobs.values().filter(|job| !job.state.is_terminal());
        let jobs = jobs.filter(|job| level.covers(&job.namespace, &job.owner, &job.name));
        jobs.fold(0, |sum: u64, job| {
            let in_flight = self.snapshots.of_job(&job.id).into_iter().flat_map(|sums| &sums.in_flight);
            let granted = in_flight
                .filter_map(|id| self.snapshots.get(id))
                .filter(|entry| entry.kind == SnapshotKind::Checkpoint)
                .fold(0, |sum: u64, entry| sum.saturating_add(entry.charged_bytes));
            sum.saturating_add(self.next_whole(job).saturating_sub(granted))
        })
    }

    /// What a checkpoint that builds on none would write: all that the job's newest snapshot holds, and as much more as it has
    /// grown by since the one before. Nothing if the job takes no checkpoints.
    fn next_whole(&self, job: &JobRecord) -> u64 {
        let Some(sums) = self.snapshots.of_job(&job.id) else {
            return self.restored_bytes(&job.id).unwrap_or_default();
        };
        if job.graph.options.checkpoint_interval_ms.is_none() && sums.checkpoints.is_empty() {
            return 0;
        }
        let newest = sums.completed.last().and_then(|(_, id)| self.snapshots.get(id));
        let Some(newest) = newest else { return self.restored_bytes(&job.id).unwrap_or_default() };
        let growth = match newest.written_bytes < newest.bytes {
            // What it wrote is what had changed; at most that much is new.
            true => newest.written_bytes,
            // What it was expected to write is what the one before it held, if there was one.
            false if newest.estimate_bytes == 0 => 0,
            false => newest.bytes.saturating_sub(newest.estimate_bytes),
        };
        newest.bytes.saturating_add(growth)
    }

    /// Bytes of the snapshot that a job was restored from, if the catalogue has it.
    fn restored_bytes(&self, job: &JobId) -> Option<u64> {
        let restore = self.jobs.get(job)?.restore.as_ref()?;
        Some(self.snapshots.get(restore.snapshot.as_ref()?)?.bytes)
    }

    /// What a job's next snapshot will probably write: as much as the last one of its kind. A savepoint holds all of the
    /// state, whoever wrote it, and so does a checkpoint that has none to build on.
    pub fn estimate(&self, job: &JobId, kind: SnapshotKind) -> u64 {
        let last = |of: &super::catalogue::ByBarrier| of.last().and_then(|(_, id)| self.snapshots.get(id));
        let sums = self.snapshots.of_job(job);
        let own = match kind {
            SnapshotKind::Checkpoint => {
                let is_base = |entry: &SnapshotEntry| self.base_of_next(job).as_ref() == Some(&entry.id);
                let last = sums.and_then(|sums| last(&sums.checkpoints));
                last.map(|entry| if is_base(entry) { entry.written_bytes } else { entry.bytes })
            }
            SnapshotKind::Savepoint => sums.and_then(|sums| last(&sums.completed)).map(|entry| entry.bytes),
        };
        own.or_else(|| self.restored_bytes(job)).unwrap_or_default()
    }

    fn check_savepoint(&self, now: Millis, level: &QuotaLevel, limits: &QuotaLimits) -> Result<()> {
        let Some(sums) = self.snapshots.at_level(level) else {
            return check(level, QuotaDimension::Savepoints, limits.savepoints, 0, 1)
                .map_err(|error| self.name_deletable(error, level, Naming::Oldest));
        };
        check(level, QuotaDimension::Savepoints, limits.savepoints, sums.savepoints.len() as u64, 1)
            .map_err(|error| self.name_deletable(error, level, Naming::Oldest))?;
        if let (Some(limit), Some((last, _))) = (limits.minimum_interval_ms, sums.savepoints.last())
            && now.since(*last) < limit
            && limit != QuotaLimits::UNLIMITED
        {
            let (level, dimension, used) = (level.clone(), QuotaDimension::MinimumInterval, now.since(*last));
            let hint = format!("Try again in {} ms.", limit - used);
            let facts = QuotaExceeded { level, dimension, limit, used, requested: 0 };
            return Err(facts.into_error().with_hint(hint));
        }
        if let (Some(limit), Some(oldest)) = (limits.age_ms, self.oldest_savepoint(level))
            && now.since(oldest) > limit
        {
            let (at, dimension, used) = (level.clone(), QuotaDimension::Age, now.since(oldest));
            let error = QuotaExceeded { level: at, dimension, limit, used, requested: 0 }.into_error();
            let since = Millis(now.0.saturating_sub(limit));
            return Err(self.name_deletable(error, level, Naming::OlderThan(since)));
        }
        Ok(())
    }

    /// When the oldest completed savepoint of a level was admitted.
    pub(super) fn oldest_savepoint(&self, level: &QuotaLevel) -> Option<Millis> {
        let savepoints = &self.snapshots.at_level(level)?.savepoints;
        let complete = |id: &SnapshotId| self.snapshots.get(id).is_some_and(|e| e.state == SnapshotState::Completed);
        savepoints.iter().find(|(_, id)| complete(id)).map(|(at, _)| *at)
    }

    /// Counts what will be there when all that is under way has completed and retired what it supersedes.
    fn check_retained(&self, level: &QuotaLevel, limits: &QuotaLimits, job: &JobId) -> Result<()> {
        let Some(limit) = limits.retained_checkpoints else { return Ok(()) };
        let sums = self.snapshots.at_level(level);
        let checkpoint = |id: &&SnapshotId| {
            self.snapshots.get(*id).filter(|entry| entry.kind == SnapshotKind::Checkpoint).map(|entry| &entry.job)
        };
        let others: Vec<&JobId> =
            sums.iter().flat_map(|sums| &sums.in_flight).filter_map(|id| checkpoint(&id)).collect();
        let retired: usize = others
            .iter()
            .copied()
            .chain(Some(job).filter(|job| !others.contains(job)))
            .map(|job| {
                let superseded = self.superseded_by_next(job).into_iter();
                superseded.filter(|id| checkpoint(&id).is_some() && !self.is_needed_by_others(id, job)).count()
            })
            .sum();
        let kept = sums.map_or(0, |sums| sums.checkpoints) + others.len() as u64;
        let used = kept.saturating_sub(retired as u64);
        check(level, QuotaDimension::RetainedCheckpoints, Some(limit), used, 1).map_err(|error| {
            error.with_hint("Raise the limit with `weir quota set`, or lower execution.checkpointing.num-retained.")
        })
    }

    fn check_bytes(&self, level: &QuotaLevel, kind: SnapshotKind, freed: u64, requested: u64) -> Result<()> {
        let Some(limit) = self.quotas.limits(level).bytes else { return Ok(()) };
        let reserve = match kind {
            SnapshotKind::Checkpoint => 0,
            SnapshotKind::Savepoint => self.checkpoint_reserve(level),
        };
        let used = self.bytes_at(level).saturating_sub(freed);
        check(level, QuotaDimension::Bytes, Some(limit.saturating_sub(reserve)), used, requested).map_err(|error| {
            let error = match (&error.detail, reserve) {
                (Some(detail), 1..) => {
                    let detail = format!("{detail}: {limit} less {reserve} that running jobs need for a checkpoint");
                    error.with_detail(detail)
                }
                _ => error,
            };
            self.name_deletable(error, level, Naming::Largest)
        })
    }

    /// Says which savepoints of a level could be deleted to make room.
    fn name_deletable(&self, error: Error, level: &QuotaLevel, naming: Naming) -> Error {
        let savepoints = self.snapshots.at_level(level).into_iter().flat_map(|sums| &sums.savepoints);
        let complete = savepoints
            .filter_map(|(_, id)| self.snapshots.get(id))
            .filter(|entry| entry.state == SnapshotState::Completed);
        let mut candidates: Vec<&SnapshotEntry> = complete.collect();
        match naming {
            Naming::Oldest => {}
            Naming::OlderThan(since) => candidates.retain(|entry| entry.admitted_at() < since),
            Naming::Largest => candidates.sort_by_key(|entry| std::cmp::Reverse(entry.charged_bytes)),
        }
        let deletable = candidates.into_iter().filter(|entry| self.check_deletable(entry, Care::Asked).is_ok());
        let named: Vec<&str> = deletable.take(NAMED_MAX).map(|entry| entry.id.as_str()).collect();
        if named.is_empty() {
            return error.with_hint(format!(
                "No savepoint of {level} can be deleted now; raise the limit with `weir quota set`."
            ));
        }
        error.with_hint(format!(
            "Delete what is no longer needed with `weir snapshots delete`, for example {}.",
            named.join(", ")
        ))
    }
}

fn check(level: &QuotaLevel, dimension: QuotaDimension, limit: Option<u64>, used: u64, requested: u64) -> Result<()> {
    match limit {
        Some(limit) if used.saturating_add(requested) > limit => {
            Err(QuotaExceeded { level: level.clone(), dimension, limit, used, requested }.into_error())
        }
        _ => Ok(()),
    }
}
