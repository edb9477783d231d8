//! Who needs a snapshot, and whose it is: jobs that would restart from it, restores in progress, claims.
//!
//! Invariants: a restore holds its snapshot from the log entry that creates the job until that job has a snapshot of its
//! own, or ends. A claim is part of that entry: snapshot and charges are the job's from then on, at all levels or not at all.
//! What anybody holds is neither claimed nor deleted, and nothing is claimed by two jobs that run.

use weir_types::ids::{JobId, SnapshotId};
use weir_types::job::JobState;
use weir_types::quota::{QuotaDimension, QuotaLevel};
use weir_types::restore::{ClaimMode, QuotaNeed};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::deletion::{Deleter, no_snapshot};
use super::{Account, JobRecord, RestoreRecord, SnapshotEntry, State};

/// A snapshot's new owner: a job that was restored from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// Its name: what it claimed is charged under this.
    pub job_name: String,
    /// When.
    pub at: Millis,
}

/// Why a job needs a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It is the job's recovery point.
    Restart,
    /// The job was restored from it, and has nothing else yet.
    Restore,
}

impl SnapshotEntry {
    /// The name of the job that it is charged to: that of its own, or of the one that has claimed it.
    pub fn charged_job_name(&self) -> &str {
        self.claim.as_ref().map_or(&self.job_name, |claim| &claim.job_name)
    }

    /// The levels that it is charged to.
    pub fn levels(&self) -> [QuotaLevel; 4] {
        QuotaLevel::of(&self.namespace, &self.owner, self.charged_job_name())
    }

    /// Whom it is charged to, if somebody has claimed it.
    pub(super) fn account(&self) -> Option<Account> {
        let Claim { job_name, .. } = self.claim.as_ref()?;
        let (owner, namespace, job_name) = (self.owner.clone(), self.namespace.clone(), job_name.clone());
        Some(Account { owner, namespace, job_name })
    }

    /// Whether it is charged to this level.
    pub(super) fn falls_under(&self, level: &QuotaLevel) -> bool {
        level.covers(&self.namespace, &self.owner, self.charged_job_name())
    }
}

impl State {
    /// Who needs a snapshot, in words; empty: nobody.
    pub fn holders(&self, snapshot: &SnapshotId) -> Vec<String> {
        let holder = |(job, need): (&JobRecord, Need)| match need {
            Need::Restart => format!("job {} would restart from it", job.id),
            Need::Restore => format!("job {} was restored from it and has no snapshot of its own yet", job.id),
        };
        self.needs(snapshot).into_iter().map(holder).collect()
    }

    /// Whether a job other than this one needs a snapshot.
    pub(super) fn is_needed_by_others(&self, snapshot: &SnapshotId, job: &JobId) -> bool {
        self.needs(snapshot).into_iter().any(|(needing, _)| needing.id != *job)
    }

    fn needs(&self, snapshot: &SnapshotId) -> Vec<(&JobRecord, Need)> {
        let running = |job: &&JobRecord| !job.state.is_terminal();
        let own = self.snapshots.get(snapshot).and_then(|entry| self.jobs.get(&entry.job)).filter(running);
        let own = own.filter(|job| self.recovery_point(&job.id).is_some_and(|entry| entry.id == *snapshot));
        let restores = |job: &&JobRecord| {
            job.restore.as_ref().is_some_and(|restore| restore.snapshot.as_ref() == Some(snapshot))
                && self.recovery_point(&job.id).is_none()
                && self.snapshots.get(snapshot).is_some_and(|entry| entry.fault().is_none())
        };
        let restored = self.jobs.values().filter(running).filter(restores);
        own.map(|job| (job, Need::Restart)).into_iter().chain(restored.map(|job| (job, Need::Restore))).collect()
    }

    /// The job that has claimed a snapshot and has not ended. When a job has failed, what it had claimed is whoever's its
    /// levels say, as are its checkpoints.
    pub fn claimant(&self, entry: &SnapshotEntry) -> Option<&JobRecord> {
        let job = self.jobs.get(&entry.claim.as_ref()?.job)?;
        (!job.state.is_terminal()).then_some(job)
    }

    /// What a job deletes by itself when it is superseded: its checkpoints, the newest first, and then what it has claimed.
    pub(super) fn retirable<'a>(&'a self, job: &'a JobId) -> impl Iterator<Item = SnapshotId> + 'a {
        let checkpoints = self.snapshots.of_job(job).into_iter().flat_map(|sums| sums.checkpoints.iter().rev());
        let claimed = self.jobs.get(job).and_then(|job| job.restore.as_ref()?.snapshot.as_ref());
        let claimed = claimed.and_then(|snapshot| self.snapshots.get(snapshot)).filter(|entry| {
            entry.state == SnapshotState::Completed && entry.claim.as_ref().is_some_and(|claim| claim.job == *job)
        });
        checkpoints.map(|(_, id)| id.clone()).chain(claimed.map(|entry| entry.id.clone()))
    }

    /// Marks what a job owns and what is superseded: all but the newest `retained`, and but what somebody needs.
    pub(super) fn retire(&mut self, now: Millis, job: &JobId, retained: usize) -> Vec<SnapshotId> {
        let mut superseded = self.superseded(job, retained);
        superseded.retain(|id| self.needs(id).is_empty());
        for id in &superseded {
            self.mark(now, id, Deleter::System);
        }
        superseded
    }

    /// A job has a snapshot of its own, or has ended: it holds no longer what it was restored from, and what another job
    /// owns of that and would have deleted meanwhile goes now.
    pub(super) fn let_go(&mut self, now: Millis, job: &JobId) -> Vec<SnapshotId> {
        let restored = self.jobs.get(job).and_then(|job| job.restore.as_ref()?.snapshot.as_ref());
        let Some(entry) = restored.and_then(|snapshot| self.snapshots.get(snapshot)) else { return Vec::new() };
        let owner = match (&entry.claim, entry.kind) {
            (Some(claim), _) => &claim.job,
            (None, SnapshotKind::Checkpoint) => &entry.job,
            (None, SnapshotKind::Savepoint) => return Vec::new(),
        };
        match self.jobs.get(owner).filter(|owner| owner.id != *job) {
            Some(owner) if owner.state == JobState::Failed => Vec::new(),
            Some(owner) => {
                let retained = if owner.state.is_terminal() { 0 } else { owner.checkpoints_retained() };
                let owner = owner.id.clone();
                self.retire(now, &owner, retained)
            }
            None => Vec::new(),
        }
    }

    /// Whether a job may be restored from a snapshot in this mode, quotas left aside.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION`, naming who holds it.
    pub fn check_restore(&self, restore: &RestoreRecord) -> Result<()> {
        let refused = |what: String| Error::new(Code::FailedPrecondition, what);
        let Some(id) = &restore.snapshot else {
            if restore.claim == ClaimMode::NoClaim {
                return Ok(());
            }
            return Err(refused(format!("{:?} is not in the catalogue, and cannot be claimed", restore.directory))
                .with_hint("Import it with `weir snapshots import`, or restore with --claim-mode no-claim."));
        };
        let entry = self.snapshots.get(id).ok_or_else(|| no_snapshot(id))?;
        if entry.state != SnapshotState::Completed {
            return Err(refused(format!("snapshot {id} cannot be restored any more"))
                .with_detail(format!("it is {}", entry.state)));
        }
        entry.check_restorable()?;
        if restore.claim == ClaimMode::NoClaim {
            return Ok(());
        }
        if let Some(job) = self.claimant(entry) {
            return Err(refused(format!("snapshot {id} is claimed already"))
                .with_detail(format!("job {} owns it", job.id))
                .with_hint("Restore with --claim-mode no-claim, or from another snapshot."));
        }
        let own_runs = self.jobs.get(&entry.job).is_some_and(|job| !job.state.is_terminal());
        if entry.kind == SnapshotKind::Checkpoint && own_runs {
            return Err(refused(format!("{id} is a checkpoint of a job that runs, and cannot be claimed"))
                .with_detail(format!("job {} owns it", entry.job))
                .with_hint("Restore with --claim-mode no-claim, or end that job first."));
        }
        let holders = self.holders(id);
        if !holders.is_empty() {
            return Err(refused(format!("snapshot {id} is still needed, and cannot be claimed"))
                .with_detail(holders.join("; "))
                .with_hint("Restore with --claim-mode no-claim, or take another snapshot of that job first."));
        }
        if entry.annotations.pinned {
            return Err(refused(format!("snapshot {id} is pinned, and cannot be claimed"))
                .with_hint(format!("`weir snapshots unpin {id}` lets go of it.")));
        }
        Ok(())
    }

    /// What a restore takes from the quotas of the new job's `levels`: at once, if it claims, what these levels are not
    /// charged yet; later its first checkpoint, of `bytes` bytes. Only limits that there are, and what moves.
    pub fn restore_needs(
        &self,
        now: Millis,
        restore: &RestoreRecord,
        levels: &[QuotaLevel],
        bytes: u64,
    ) -> Vec<QuotaNeed> {
        let entry = restore.snapshot.as_ref().and_then(|snapshot| self.snapshots.get(snapshot));
        let claimed = entry.filter(|_| restore.claim == ClaimMode::Claim);
        let mut needs = Vec::new();
        for level in levels {
            let (usage, limits) = (self.usage(level), self.quotas.limits(level));
            let moved = claimed.filter(|entry| !entry.falls_under(level));
            let one_if = |kind| u64::from(moved.is_some_and(|entry| entry.kind == kind));
            let is_savepoint = moved.is_some_and(|entry| entry.kind == SnapshotKind::Savepoint);
            // Savepoints leave running jobs room for a checkpoint.
            let reserve = if is_savepoint { usage.checkpoint_reserve } else { 0 };
            let age = moved.filter(|_| is_savepoint).map_or(0, |entry| now.since(entry.admitted_at()));
            let mut need = |dimension, limit: Option<u64>, used, at_once, first_checkpoint| {
                if (limit.is_some() && (at_once > 0 || first_checkpoint > 0))
                    || (at_once > 0 && dimension != QuotaDimension::Age)
                {
                    needs.push(QuotaNeed { level: level.clone(), dimension, limit, used, at_once, first_checkpoint });
                }
            };
            need(QuotaDimension::Savepoints, limits.savepoints, usage.savepoints, one_if(SnapshotKind::Savepoint), 0);
            let (limit, used) = (limits.retained_checkpoints, usage.retained_checkpoints);
            need(QuotaDimension::RetainedCheckpoints, limit, used, one_if(SnapshotKind::Checkpoint), 1);
            let (limit, moved) = (limits.bytes, moved.map_or(0, |entry| self.bytes_moving_to(level, entry)));
            need(QuotaDimension::Bytes, limit.map(|limit| limit.saturating_sub(reserve)), usage.bytes, moved, bytes);
            need(QuotaDimension::Age, limits.age_ms, 0, age, 0);
        }
        needs
    }

    /// Makes a snapshot a new job's own. Nothing has changed if it is refused.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED` if the job's levels have no room for it. Whether it may be claimed has been checked.
    pub(super) fn claim(
        &mut self,
        now: Millis,
        restore: &RestoreRecord,
        claim: Claim,
        owner: &str,
        namespace: &str,
    ) -> Result<()> {
        let Some(snapshot) = &restore.snapshot else { return Ok(()) };
        let levels = QuotaLevel::of(namespace, owner, &claim.job_name);
        let needs = self.restore_needs(now, restore, &levels, 0);
        needs.iter().find_map(crate::restore::over_quota).map_or(Ok(()), Err)?;
        if let Some(mut entry) = self.snapshots.get_mut(snapshot) {
            (entry.owner, entry.namespace) = (owner.to_owned(), namespace.to_owned());
            entry.claim = Some(claim);
        }
        Ok(())
    }
}
