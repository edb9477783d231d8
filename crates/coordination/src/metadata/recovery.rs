//! What a job goes on from when it starts anew; what verifications have found, and what was cut off from its sources.
//!
//! Invariants: what is damaged or cut off is never restored; a job that has completed a snapshot never begins from nothing.

use weir_types::ids::{Attempt, JobId, SnapshotId};
use weir_types::snapshot::{SnapshotState, Verification, Verifier};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::command::{Applied, Reply};
use super::deletion::no_snapshot;
use super::output::check_behind;
use super::{JobRecord, SnapshotEntry, State};

/// A snapshot that is newer than what an attempt starts from, but cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Its id, or the directory of one that the catalogue does not know.
    pub snapshot: String,
    /// Why.
    pub reason: String,
}

/// An attempt that did not start from the newest snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// When it was decided.
    pub at: Millis,
    /// The attempt.
    pub attempt: Attempt,
    /// Id or directory of the snapshot that it started from.
    pub to: String,
    /// What is newer, newest first.
    pub passed_over: Vec<PassedOver>,
}

/// What a job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// No state: it was not restored, and has never completed a snapshot.
    Nothing,
    /// A snapshot.
    From(RecoveryPoint),
    /// Every snapshot that it could have gone on from is damaged or cut off: `UNRESTORABLE`, naming all of them; or what was
    /// found wrong with the only one, which its user had named; or the newest that is whole lies behind what the job has
    /// committed: `DUPLICATE_OUTPUT`.
    Lost(Error),
}

/// The snapshot that a job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPoint {
    /// Where its files are.
    pub directory: String,
    /// The catalogue's entry, unless it came from elsewhere.
    pub snapshot: Option<SnapshotId>,
    /// The id in its manifest, if the catalogue knows it: another one than its own if it was imported.
    pub taken_as: Option<SnapshotId>,
    /// Whether the job took it itself.
    pub own: bool,
    /// What is newer, newest first.
    pub passed_over: Vec<PassedOver>,
}

impl RecoveryPoint {
    /// Its id, or its directory if the catalogue does not know it.
    pub fn name(&self) -> String {
        self.snapshot.as_ref().map_or_else(|| self.directory.clone(), ToString::to_string)
    }

    /// What a job fails with when this one, of which the catalogue keeps no record, cannot be restored either.
    pub fn lost(&self, job: &JobId, error: Error) -> Error {
        if self.passed_over.is_empty() {
            return Error { facts: None, ..error };
        }
        let mut passed_over = self.passed_over.clone();
        passed_over.push(PassedOver { snapshot: self.name(), reason: error.to_string() });
        lost(job, &passed_over)
    }
}

impl State {
    /// What a job restarts from: its newest completed snapshot of either kind that can be restored.
    pub fn recovery_point(&self, job: &JobId) -> Option<&SnapshotEntry> {
        let completed = self.snapshots.of_job(job)?.completed.iter().rev();
        completed.filter_map(|(_, id)| self.snapshots.get(id)).find(|entry| entry.fault().is_none())
    }

    /// What the next attempt of a job starts from: its newest whole snapshot; if it has none any more, what it was restored
    /// from itself.
    pub fn recovery(&self, job: &JobRecord) -> Recovery {
        let mut passed_over = Vec::new();
        let completed = self.snapshots.of_job(&job.id).into_iter().flat_map(|sums| sums.completed.iter().rev());
        for entry in completed.filter_map(|(_, id)| self.snapshots.get(id)) {
            let Some(reason) = entry.fault() else {
                if let Err(error) = check_behind(job, Some((&entry.id, entry.barrier))) {
                    return Recovery::Lost(error);
                }
                let (directory, snapshot) = (entry.directory.clone(), Some(entry.id.clone()));
                let taken_as = Some(entry.taken_as().clone());
                return Recovery::From(RecoveryPoint { directory, snapshot, taken_as, own: true, passed_over });
            };
            passed_over.push(PassedOver { snapshot: entry.id.to_string(), reason });
        }
        if let Some(restore) = &job.restore {
            let entry = restore.snapshot.as_ref().map(|id| self.snapshots.get(id));
            let fault = entry.and_then(|entry| entry.map_or_else(|| Some("it was deleted".to_owned()), |e| e.fault()));
            let (directory, snapshot) = (restore.directory.clone(), restore.snapshot.clone());
            let taken_as = entry.flatten().map(|entry| entry.taken_as().clone());
            let origin = RecoveryPoint { directory, snapshot, taken_as, own: false, passed_over: Vec::new() };
            if fault.is_none()
                && let Err(error) = check_behind(job, None)
            {
                return Recovery::Lost(error);
            }
            match (fault, entry.flatten().and_then(SnapshotEntry::damage)) {
                (None, _) => return Recovery::From(RecoveryPoint { passed_over, ..origin }),
                (Some(_), Some(damage)) if !job.took_snapshot => return Recovery::Lost(damage.clone()),
                (Some(reason), _) => passed_over.push(PassedOver { snapshot: origin.name(), reason }),
            }
        }
        if passed_over.is_empty() && !job.took_snapshot {
            return Recovery::Nothing;
        }
        Recovery::Lost(lost(&job.id, &passed_over))
    }

    /// Enters what a verification has found.
    pub(super) fn verified(
        &mut self,
        now: Millis,
        snapshot: &SnapshotId,
        by: Verifier,
        findings: u64,
        damage: Option<Error>,
    ) -> Reply {
        let mut entry = self.snapshots.get_mut(snapshot).ok_or_else(|| no_snapshot(snapshot))?;
        if entry.state != SnapshotState::Completed {
            return Err(not_complete(&entry));
        }
        entry.verified = Some(Verification { at: now, by, findings, damage });
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// Enters that a stream no longer holds what a snapshot goes on from. Nothing brings that back: the first reason stays.
    pub(super) fn cut_off(&mut self, snapshot: &SnapshotId, reason: String) -> Reply {
        let mut entry = self.snapshots.get_mut(snapshot).ok_or_else(|| no_snapshot(snapshot))?;
        if entry.state != SnapshotState::Completed {
            return Err(not_complete(&entry));
        }
        entry.unrestorable.get_or_insert(reason);
        Ok(Applied { snapshot: Some(snapshot.clone()), ..Applied::default() })
    }

    /// What a job deletes by itself, without the newest `retained` that can be restored and what lies between them.
    pub(super) fn superseded(&self, job: &JobId, retained: usize) -> Vec<SnapshotId> {
        let mut kept = 0;
        let mut superseded = Vec::new();
        for id in self.retirable(job) {
            if kept == retained {
                superseded.push(id);
            } else if self.snapshots.get(&id).is_some_and(|entry| entry.fault().is_none()) {
                kept += 1;
            }
        }
        superseded
    }
}

impl SnapshotEntry {
    /// What the newest verification has found wrong.
    pub fn damage(&self) -> Option<&Error> {
        self.verified.as_ref()?.damage.as_ref()
    }

    /// Whether it is complete, and as far as is known can be restored.
    pub fn is_complete_and_whole(&self) -> bool {
        self.state == SnapshotState::Completed && self.unrestorable.is_none() && self.damage().is_none()
    }

    /// Why a completed snapshot cannot be restored, in words; none: as far as is known it can.
    pub fn fault(&self) -> Option<String> {
        match (self.state, &self.unrestorable, self.damage()) {
            (SnapshotState::Completed, None, None) => None,
            (SnapshotState::Completed, Some(reason), _) => Some(reason.clone()),
            (SnapshotState::Completed, None, Some(damage)) => Some(format!("it is damaged: {damage}")),
            (SnapshotState::Deleting, ..) => Some("it is being deleted".to_owned()),
            (state, ..) => Some(format!("it is {state}")),
        }
    }

    /// Its state as users see it: one that is complete but cannot be restored is `DAMAGED` or `UNRESTORABLE`.
    pub fn status(&self) -> &'static str {
        match self.state {
            SnapshotState::Completed if self.damage().is_some() => "DAMAGED",
            SnapshotState::Completed if self.unrestorable.is_some() => "UNRESTORABLE",
            state => state.as_str(),
        }
    }

    /// Refuses a restore of what cannot be restored.
    ///
    /// # Errors
    /// `UNRESTORABLE` with the reason if it is damaged or cut off; `FAILED_PRECONDITION` if it is not complete.
    pub fn check_restorable(&self) -> Result<()> {
        let Some(reason) = self.fault() else { return Ok(()) };
        let what = format!("snapshot {} is {} and cannot be restored", self.id, self.status());
        if self.state != SnapshotState::Completed {
            return Err(Error::new(Code::FailedPrecondition, what));
        }
        Err(Error::new(Code::Unrestorable, what)
            .with_detail(reason)
            .with_hint("Restore another one: `weir snapshots list` shows them and how they are."))
    }
}

fn not_complete(entry: &SnapshotEntry) -> Error {
    Error::new(Code::FailedPrecondition, format!("snapshot {} is {}", entry.id, entry.state))
}

fn lost(job: &JobId, passed_over: &[PassedOver]) -> Error {
    let error = Error::new(Code::Unrestorable, format!("job {job} has no snapshot left that it could go on from"));
    let tried: Vec<String> =
        passed_over.iter().map(|passed| format!("{}: {}", passed.snapshot, passed.reason)).collect();
    let error = if tried.is_empty() { error } else { error.with_detail(tried.join("; ")) };
    error.with_hint(
        "It does not begin from nothing by itself: submit its script again, from another savepoint if there is one.",
    )
}

#[cfg(test)]
mod tests {
    use weir_types::job::JobChange;

    use super::super::fixture::{change, delete, job, reserve, run, take};
    use super::super::{Command, StartAttempt};
    use super::*;
    use crate::checkpoint::Trigger;

    fn damage(state: &mut State, snapshot: &SnapshotId) {
        let damage = Some(Error::new(Code::Corrupt, "a flipped bit"));
        let command = Command::Verified { snapshot: snapshot.clone(), by: Verifier::Restore, findings: 1, damage };
        state.apply(Millis(50), command).unwrap();
    }

    fn recovery(state: &State, number: u32) -> Recovery {
        state.recovery(&state.jobs[&job(number)])
    }

    fn from(state: &State, number: u32) -> (String, Vec<String>) {
        match recovery(state, number) {
            Recovery::From(point) => {
                (point.name(), point.passed_over.into_iter().map(|passed| passed.snapshot).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_goes_on_from_the_newest_snapshot_that_is_whole() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        assert_eq!(recovery(&state, 1), Recovery::Nothing);
        let taken: Vec<_> = (1..=3).map(|number| take(&mut state, number, 1, number)).collect();
        assert_eq!(from(&state, 1), (taken[2].to_string(), vec![]));
        damage(&mut state, &taken[2]);
        assert_eq!(from(&state, 1), (taken[1].to_string(), vec![taken[2].to_string()]));
        let reason = "its stream was truncated".to_owned();
        state.apply(Millis(51), Command::CutOff { snapshot: taken[1].clone(), reason }).unwrap();
        assert_eq!(from(&state, 1), (taken[0].to_string(), vec![taken[2].to_string(), taken[1].to_string()]));
        assert_eq!(state.recovery_point(&job(1)).map(|entry| &entry.id), Some(&taken[0]));
        // A newer one that is whole takes over.
        let newer = take(&mut state, 60, 1, 4);
        assert_eq!(from(&state, 1), (newer.to_string(), vec![]));
    }

    #[test]
    fn with_nothing_left_the_error_names_all_that_was_tried_even_after_it_was_deleted() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let (first, second) = (take(&mut state, 2, 1, 1), take(&mut state, 3, 1, 2));
        damage(&mut state, &first);
        state.apply(Millis(5), Command::CutOff { snapshot: second.clone(), reason: "cut off".to_owned() }).unwrap();
        let Recovery::Lost(error) = recovery(&state, 1) else { panic!("it begins from nothing") };
        assert_eq!(error.code, Code::Unrestorable);
        let detail = format!("{second}: cut off; {first}: it is damaged: CORRUPT: a flipped bit");
        assert_eq!(error.detail, Some(detail));
        for snapshot in [&first, &second] {
            delete(&mut state, 6, snapshot, false).unwrap();
            state.apply(Millis(7), Command::Deleted { snapshot: snapshot.clone() }).unwrap();
        }
        let Recovery::Lost(error) = recovery(&state, 1) else { panic!("it begins from nothing") };
        assert_eq!(error.detail, None);
    }

    #[test]
    fn what_a_job_was_restored_from_is_the_last_to_be_tried() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let origin = take(&mut state, 2, 1, 1);
        change(&mut state, 3, 1, JobChange::Finish);
        run(&mut state, 2, "clicks", Some(origin.clone()));
        assert_eq!(from(&state, 2), (origin.to_string(), vec![]));
        let own = take(&mut state, 4, 2, 1);
        assert_eq!(from(&state, 2), (own.to_string(), vec![]));
        damage(&mut state, &own);
        assert_eq!(from(&state, 2), (origin.to_string(), vec![own.to_string()]));
        assert!(!state.holders(&origin).is_empty(), "it may be needed again");
        assert!(state.holders(&own).is_empty());
        damage(&mut state, &origin);
        let Recovery::Lost(error) = recovery(&state, 2) else { panic!("there is nothing left") };
        assert!(error.detail.unwrap().contains(origin.as_str()));
        assert!(state.holders(&origin).is_empty(), "nobody can be restored from it");
    }

    #[test]
    fn a_later_verification_that_finds_it_whole_clears_the_damage() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let taken = take(&mut state, 2, 1, 1);
        damage(&mut state, &taken);
        let error = state.snapshots[&taken].check_restorable().unwrap_err();
        assert_eq!((error.code, state.snapshots[&taken].status()), (Code::Unrestorable, "DAMAGED"));
        let whole = Command::Verified { snapshot: taken.clone(), by: Verifier::Request, findings: 0, damage: None };
        state.apply(Millis(9), whole).unwrap();
        assert_eq!(from(&state, 1), (taken.to_string(), vec![]));
        let verified = Verification { at: Millis(9), by: Verifier::Request, findings: 0, damage: None };
        assert_eq!(state.snapshots[&taken].verified, Some(verified));
        assert_eq!(state.snapshots[&taken].status(), "COMPLETED");
    }

    #[test]
    fn only_what_is_complete_can_be_found_damaged_or_cut_off() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let under_way = reserve(&mut state, 2, 1, 1, Trigger::User);
        let command =
            Command::Verified { snapshot: under_way.clone(), by: Verifier::Request, findings: 0, damage: None };
        assert_eq!(state.apply(Millis(3), command).unwrap_err().code, Code::FailedPrecondition);
        let command = Command::CutOff { snapshot: under_way.clone(), reason: "x".to_owned() };
        assert_eq!(state.apply(Millis(3), command).unwrap_err().code, Code::FailedPrecondition);
        let error = state.snapshots[&under_way].check_restorable().unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
    }

    #[test]
    fn a_fallback_is_remembered_with_what_was_passed_over() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let taken: Vec<_> = (1..=2).map(|number| take(&mut state, number, 1, number)).collect();
        damage(&mut state, &taken[1]);
        change(&mut state, 3, 1, JobChange::Restart);
        let Recovery::From(point) = recovery(&state, 1) else { panic!("there is one") };
        let start = StartAttempt {
            job: job(1),
            attempt: Attempt(2),
            placements: Vec::new(),
            splits: Vec::new(),
            from: Some(point.name()),
            passed_over: point.passed_over.clone(),
            parallelism: None,
        };
        state.apply(Millis(4), Command::StartAttempt(start)).unwrap();
        let fallback =
            Fallback { at: Millis(4), attempt: Attempt(2), to: taken[0].to_string(), passed_over: point.passed_over };
        assert_eq!(state.jobs[&job(1)].fallback, Some(fallback));
    }
}
