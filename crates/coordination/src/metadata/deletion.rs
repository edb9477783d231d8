//! Deleting snapshots: who may be deleted by whom, and the record of what was.
//!
//! Invariants: what a job would restart from, what a restore still needs, and what is under way is never marked, forced or
//! not; what is pinned, and the last good snapshot of a job, only by force. The entry goes after the files.

use std::collections::VecDeque;

use weir_types::ids::{JobId, SnapshotId};
use weir_types::quota::QuotaLevel;
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::command::{Applied, Reply};
use super::{SnapshotEntry, State};

/// Deleted snapshots that are remembered; older ones are forgotten.
const DELETED_MAX: usize = 1_000;
/// Of these, as many of one job, so that a busy one does not make all others forgotten.
const DELETED_PER_JOB_MAX: usize = 100;

/// On whose behalf a snapshot is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleter {
    /// A user, by the name that they gave; may be empty.
    User(String),
    /// The retention policy of this level.
    Policy(QuotaLevel),
    /// Room was made for this savepoint.
    Eviction(SnapshotId),
    /// It was superseded, or its job ended.
    System,
}

/// Why and since when a snapshot is being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// When it was marked: nothing could refer to it any more.
    pub at: Millis,
    /// On whose behalf.
    pub by: Deleter,
}

/// What is remembered of a snapshot that was deleted by a user or a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedRecord {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// The job.
    pub job: JobId,
    /// The job's name at the time.
    pub job_name: String,
    /// Whose it was.
    pub owner: String,
    /// Where its quotas applied.
    pub namespace: String,
    /// Its name for people.
    pub name: Option<String>,
    /// Where its files were.
    pub directory: String,
    /// Bytes of all of its files.
    pub bytes: u64,
    /// When it was triggered.
    pub triggered_at: Millis,
    /// Who deleted it, and when.
    pub deletion: Deletion,
    /// When its last file was gone.
    pub removed_at: Millis,
}

/// How careful a deletion is. Whatever it is, what is needed or under way is not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// A user named it: neither what is pinned, nor the last good snapshot of a job.
    Asked,
    /// A user insists.
    Forced,
    /// A policy or an eviction chose it: as if asked, but jobs of the same name and namespace are one, because what a
    /// job leaves behind that is resubmitted each day would never go otherwise.
    Automatic,
}

impl State {
    /// Makes a snapshot unreferencable for ever, on behalf of a user.
    pub(super) fn mark_deleted(&mut self, now: Millis, snapshot: &SnapshotId, force: bool, by: Deleter) -> Reply {
        let entry = self.snapshots.get(snapshot).ok_or_else(|| no_snapshot(snapshot))?;
        if entry.state != SnapshotState::Deleting {
            self.check_deletable(entry, if force { Care::Forced } else { Care::Asked })?;
            self.mark(now, snapshot, by);
        }
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// Whether a snapshot may be deleted with so much care.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming who holds it.
    pub(super) fn check_deletable(&self, entry: &SnapshotEntry, care: Care) -> Result<()> {
        let refused = |what: String| Error::new(Code::FailedPrecondition, what);
        let id = &entry.id;
        match entry.state {
            SnapshotState::Deleting | SnapshotState::Failed => return Ok(()),
            SnapshotState::Queued | SnapshotState::InProgress => {
                return Err(refused(format!("snapshot {id} is still under way"))
                    .with_hint(format!("`weir snapshots cancel {id}` gives it up.")));
            }
            SnapshotState::Completed => {}
        }
        // What is of no use to recovery may still be what a checkpoint under way builds on.
        let in_flight = self.snapshots.of_job(&entry.job).is_some_and(|sums| !sums.in_flight.is_empty());
        if entry.kind == SnapshotKind::Checkpoint
            && (entry.fault().is_none() || in_flight)
            && self.jobs.get(&entry.job).is_some_and(|job| !job.state.is_terminal())
        {
            return Err(refused(format!("{id} is a checkpoint: its job retires it"))
                .with_hint("Set execution.checkpointing.num-retained for how many are kept."));
        }
        if let Some(job) = self.claimant(entry) {
            return Err(refused(format!("snapshot {id} belongs to job {}, which has claimed it", job.id))
                .with_hint("That job deletes it once its checkpoints supersede it, or when it ends."));
        }
        let holders = self.holders(id);
        if !holders.is_empty() {
            return Err(refused(format!("snapshot {id} is still needed"))
                .with_detail(holders.join("; "))
                .with_hint("Take another snapshot of that job, or end it, and try again."));
        }
        if care == Care::Forced {
            return Ok(());
        }
        if entry.annotations.pinned {
            return Err(refused(format!("snapshot {id} is pinned"))
                .with_hint(format!("`weir snapshots unpin {id}` lets go of it; --force deletes it all the same.")));
        }
        // What a job has claimed goes when that job likes.
        let claimed = |other: &SnapshotEntry| self.claimant(other).is_some();
        let last = match care {
            Care::Automatic => {
                let job = |entry: &SnapshotEntry| (entry.namespace.clone(), entry.charged_job_name().to_owned());
                let of = job(entry);
                last_good(self.snapshots.values().filter(|other| job(other) == of && !claimed(other)))
            }
            Care::Asked | Care::Forced => {
                last_good(self.snapshots_of(&entry.job).into_iter().filter(|other| !claimed(other)))
            }
        };
        if last.is_some_and(|last| last.id == *id) {
            let what = if entry.is_verified() { "verified" } else { "completed" };
            return Err(refused(format!("snapshot {id} is the last {what} one of job {}", entry.taken_of()))
                .with_detail(format!("job {} ({}) could not be restored without it", entry.taken_of(), entry.job_name))
                .with_hint("--force deletes it all the same."));
        }
        Ok(())
    }

    /// Marks an entry; whoever calls has made sure that nobody needs it.
    pub(super) fn mark(&mut self, now: Millis, snapshot: &SnapshotId, by: Deleter) {
        if let Some(mut entry) = self.snapshots.get_mut(snapshot) {
            entry.state = SnapshotState::Deleting;
            entry.deletion = Some(Deletion { at: now, by });
        }
    }

    /// The last of its files is gone: strikes out the entry, takes it off the files that it shared, and remembers what a
    /// user or a policy deleted.
    pub(super) fn deleted(&mut self, now: Millis, snapshot: &SnapshotId) -> Applied {
        let marked = self.snapshots.get(snapshot).is_some_and(|entry| entry.state == SnapshotState::Deleting);
        let Some(entry) = marked.then(|| self.snapshots.remove(snapshot)).flatten() else { return Applied::default() };
        let unreferenced = self.shared.leave(&entry.job, snapshot, entry.account().as_ref());
        let applied = Applied {
            job: Some(entry.job.clone()),
            snapshot: Some(snapshot.clone()),
            unreferenced,
            ..Applied::default()
        };
        self.remember_deleted(now, entry);
        applied
    }

    fn remember_deleted(&mut self, now: Millis, entry: SnapshotEntry) {
        let job = entry.taken_of().clone();
        let Some(deletion) = entry.deletion.filter(|deletion| deletion.by != Deleter::System) else { return };
        if entry.failure.is_some() {
            return;
        }
        let records = &mut self.retention.deleted;
        drop_oldest(records, |record| record.job == job, DELETED_PER_JOB_MAX - 1);
        drop_oldest(records, |_| true, DELETED_MAX - 1);
        records.push_back(DeletedRecord {
            snapshot: entry.id,
            kind: entry.kind,
            job,
            job_name: entry.job_name,
            owner: entry.owner,
            namespace: entry.namespace,
            name: entry.annotations.name,
            directory: entry.directory,
            bytes: entry.bytes,
            triggered_at: entry.triggered_at,
            deletion,
            removed_at: now,
        });
    }
}

impl SnapshotEntry {
    /// Whether every byte of it was read and found whole.
    pub fn is_verified(&self) -> bool {
        self.verified.as_ref().is_some_and(|verified| verified.damage.is_none())
    }
}

/// What a job could surely be restored from: of the snapshots that count, the newest that was verified, or if none was, the
/// newest complete one; none that is known to be damaged or cut off from its sources.
fn last_good<'a>(counts: impl Iterator<Item = &'a SnapshotEntry>) -> Option<&'a SnapshotEntry> {
    let is_good = |entry: &&SnapshotEntry| entry.fault().is_none();
    counts.filter(is_good).max_by_key(|entry| (entry.is_verified(), entry.ended_at, entry.barrier))
}

/// Drops the oldest records of those that count, until at most `max` of them are left.
fn drop_oldest(records: &mut VecDeque<DeletedRecord>, counts: impl Fn(&DeletedRecord) -> bool, max: usize) {
    let mut surplus = records.iter().filter(|record| counts(record)).count().saturating_sub(max);
    records.retain(|record| {
        let drop = surplus > 0 && counts(record);
        surplus -= usize::from(drop);
        !drop
    });
}

pub(super) fn no_snapshot(snapshot: &SnapshotId) -> Error {
    Error::not_found(format!("snapshot {snapshot} is not in the catalogue"))
        .with_hint("`weir snapshots list` shows all of them.")
}

#[cfg(test)]
mod tests {
    use weir_types::annotations::AnnotationChange;
    use weir_types::ids::RequestId;
    use weir_types::job::JobChange;
    use weir_types::snapshot::Verifier;

    use super::super::fixture::{change, delete, fail, job, reserve, run, savepoint, take};
    use super::super::{Command, State};
    use super::*;
    use crate::checkpoint::Trigger;

    fn pin(state: &mut State, snapshot: &SnapshotId, pinned: bool) {
        let change = AnnotationChange { pinned: Some(pinned), ..AnnotationChange::default() };
        let command = Command::Annotate { snapshot: snapshot.clone(), request: None, change };
        state.apply(Millis(1), command).unwrap();
    }

    fn verify(state: &mut State, snapshot: &SnapshotId, damage: Option<Error>) {
        let (snapshot, findings) = (snapshot.clone(), u64::from(damage.is_some()));
        state.apply(Millis(1), Command::Verified { snapshot, by: Verifier::Request, findings, damage }).unwrap();
    }

    /// The refusal's message and detail.
    fn refusal(state: &mut State, snapshot: &SnapshotId, force: bool) -> String {
        let error = delete(state, 9, snapshot, force).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        format!("{}: {}", error.message, error.detail.unwrap_or_default())
    }

    #[test]
    fn what_a_running_job_needs_is_not_deleted_by_force_either() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let first = take(&mut state, 2, 1, 1);
        for force in [false, true] {
            let refused = refusal(&mut state, &first, force);
            assert_eq!(refused, format!("snapshot {first} is still needed: job {} would restart from it", job(1)));
        }
        let under_way = reserve(&mut state, 3, 1, 2, Trigger::User);
        assert_eq!(refusal(&mut state, &under_way, true), format!("snapshot {under_way} is still under way: "));
        assert_eq!(delete(&mut state, 9, &savepoint(1, 7), true).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn what_a_restore_needs_is_held_until_the_job_has_its_own() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let first = take(&mut state, 2, 1, 1);
        change(&mut state, 3, 1, JobChange::Finish);
        run(&mut state, 2, "clicks", Some(first.clone()));
        let refused = refusal(&mut state, &first, true);
        assert!(refused.contains(&format!("job {} was restored from it", job(2))), "{refused}");
        take(&mut state, 4, 2, 1);
        delete(&mut state, 5, &first, true).unwrap();
    }

    #[test]
    fn pinned_and_last_snapshots_take_force() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let (first, second) = (take(&mut state, 2, 1, 1), take(&mut state, 3, 1, 2));
        change(&mut state, 4, 1, JobChange::Finish);
        pin(&mut state, &first, true);
        assert_eq!(refusal(&mut state, &first, false), format!("snapshot {first} is pinned: "));
        pin(&mut state, &first, false);
        let last = refusal(&mut state, &second, false);
        assert!(last.starts_with(&format!("snapshot {second} is the last completed one of job {}", job(1))), "{last}");
        delete(&mut state, 5, &first, false).unwrap();
        delete(&mut state, 6, &second, true).unwrap();
        let entry = &state.snapshots[&second];
        let by = Deleter::User("ann".to_owned());
        assert_eq!((entry.state, &entry.deletion), (SnapshotState::Deleting, &Some(Deletion { at: Millis(6), by })));
    }

    #[test]
    fn the_last_verified_snapshot_is_the_last_good_one_even_if_newer_ones_are_not_verified() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let taken: Vec<_> = (1..=4).map(|number| take(&mut state, number, 1, number)).collect();
        change(&mut state, 5, 1, JobChange::Finish);
        verify(&mut state, &taken[0], None);
        verify(&mut state, &taken[1], None);
        verify(&mut state, &taken[3], Some(Error::new(Code::Corrupt, "a flipped bit")));
        let refused = refusal(&mut state, &taken[1], false);
        assert!(refused.contains("the last verified one"), "{refused}");
        delete(&mut state, 6, &taken[0], false).unwrap();
        delete(&mut state, 6, &taken[2], false).unwrap();
        delete(&mut state, 6, &taken[3], false).unwrap();
    }

    #[test]
    fn a_deletion_is_remembered_once_its_files_are_gone_and_the_record_is_bounded() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        for number in 1..=DELETED_PER_JOB_MAX as u64 + 2 {
            let taken = take(&mut state, number, 1, number);
            if number > 1 {
                let before = savepoint(1, number - 1);
                delete(&mut state, number, &before, false).unwrap();
                assert!(state.retention.deleted.iter().all(|record| record.snapshot != before), "files are left");
                state.apply(Millis(number + 1), Command::Deleted { snapshot: before }).unwrap();
            }
            assert!(state.snapshots.contains_key(&taken));
        }
        let records = &state.retention.deleted;
        assert_eq!(records.len(), DELETED_PER_JOB_MAX);
        assert_eq!(records[0].snapshot, savepoint(1, 2), "the oldest was forgotten");
        let last = &records[DELETED_PER_JOB_MAX - 1];
        assert_eq!((last.deletion.at, last.removed_at, last.bytes), (Millis(102), Millis(103), 10));
    }

    #[test]
    fn a_repeated_delete_is_answered_as_the_first_one_was() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let first = take(&mut state, 2, 1, 1);
        take(&mut state, 3, 1, 2);
        let delete = || Command::MarkDeleted {
            snapshot: first.clone(),
            request: Some(RequestId::new("r").unwrap()),
            force: false,
            by: Deleter::User(String::new()),
        };
        let answer = state.apply(Millis(4), delete()).unwrap();
        state.apply(Millis(5), Command::Deleted { snapshot: first.clone() }).unwrap();
        assert_eq!(state.apply(Millis(6), delete()).unwrap(), answer);
    }

    #[test]
    fn automatic_failures_never_push_out_those_that_users_asked_for() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let asked = fail(&mut state, 1, 1, 1, Trigger::User, Code::Timeout);
        for number in 2..200 {
            let code = if number % 2 == 0 { Code::Timeout } else { Code::Unavailable };
            fail(&mut state, number, 1, number, Trigger::Scheduled, code);
        }
        assert!(state.snapshots.contains_key(&asked));
        assert_eq!(state.snapshots.len(), 21, "twenty automatic ones, and the one asked for");
        let newest = fail(&mut state, 200, 1, 200, Trigger::Scheduled, Code::Unavailable);
        assert_eq!((state.snapshots.len(), state.snapshots[&newest].failures), (21, 2), "it fails like the one before");
    }
}
