//! What is decided about the output of a job's sinks, and what of that is still to be carried out.
//!
//! Invariants: what a completed snapshot says is prepared is committed, and nothing else is. The decision is part of the
//! snapshot's Complete; it is replaced only by one that covers it, and goes only when it has been carried out. No snapshot
//! with output completes once a newer attempt is decided: what the older attempt had prepared beyond the last decision is
//! given up by then. A job whose output is to be committed at its end ends when that has been carried out, and never
//! restarts meanwhile.

use weir_types::ids::{BarrierId, JobId, SnapshotId};
use weir_types::job::JobChange;
use weir_types::output::{CommitMark, CommittedSink, END_OF_INPUT, Place, Settlement};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::command::{Applied, Reply};
use super::{JobRecord, NewJob, RestoreRecord, SnapshotEntry, State, no_job};

/// The decisions about one job's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Up to where it is committed, for good.
    pub committed: Option<CommitMark>,
    /// What is to be carried out.
    pub duty: Option<Settlement>,
    /// The change with which the job ends as soon as its duty is carried out.
    pub ending: Option<JobChange>,
}

impl JobRecord {
    /// Its sinks whose output is committed with snapshots.
    pub fn committed_sinks(&self) -> Vec<CommittedSink> {
        CommittedSink::of(&self.graph)
    }

    /// What has to happen before the newest attempt may write: what was decided is committed, and all else that older
    /// attempts have left is given up.
    pub fn rollback(&self) -> Settlement {
        Settlement { commit: self.output.committed, below: Some(self.attempt) }
    }

    /// Whether a change waits until the job's output is committed.
    fn ends_after_its_output(&self, change: JobChange) -> bool {
        let ends_well = matches!(change, JobChange::Finish | JobChange::EndStopped);
        ends_well && !self.committed_sinks().is_empty()
    }

    /// Decides about all output for good: the job writes no more. At the end of the input all of it counts; otherwise what
    /// snapshots have covered.
    fn close_output(&mut self, change: JobChange) {
        if self.attempt.0 == 0 || self.committed_sinks().is_empty() {
            return;
        }
        if change == JobChange::Finish {
            self.output.committed = Some(CommitMark { attempt: self.attempt, barrier: END_OF_INPUT });
        }
        let below = Some(self.attempt.next());
        self.output.duty = Some(Settlement { commit: self.output.committed, below });
    }
}

impl State {
    /// Enters that a snapshot's output is to be committed; called with its Complete.
    pub(super) fn commit_output(&mut self, job: &JobId, mark: CommitMark) {
        let Some(record) = self.jobs.get_mut(job).filter(|record| !record.committed_sinks().is_empty()) else { return };
        record.output.committed = Some(mark);
        let below = record.output.duty.and_then(|duty| duty.below);
        record.output.duty = Some(Settlement { commit: Some(mark), below });
    }

    /// Refuses to complete a snapshot whose output was given up when a newer attempt was decided.
    pub(super) fn check_output(&self, entry: &SnapshotEntry) -> Result<()> {
        match self.jobs.get(&entry.job) {
            Some(job) if job.attempt > entry.attempt || job.state.is_terminal() => {
                Err(Error::fenced(format!("snapshot {} holds output of attempt {}", entry.id, entry.attempt))
                    .with_detail(format!("what it had prepared was given up when attempt {} was decided", job.attempt)))
            }
            _ => Ok(()),
        }
    }

    /// A job's change that has consequences for its output; true: it is put off until these are carried out.
    pub(super) fn settle_change(&mut self, job: &JobId, change: JobChange) -> bool {
        let Some(record) = self.jobs.get_mut(job) else { return false };
        match change {
            JobChange::Finish | JobChange::EndStopped if record.ends_after_its_output(change) => {
                record.close_output(change);
                // Nothing was ever deployed: there is no output.
                record.output.ending = record.output.duty.map(|_| change);
                record.output.ending.is_some()
            }
            JobChange::EndCancelled | JobChange::Fail => {
                record.close_output(change);
                false
            }
            _ => false,
        }
    }

    /// A duty has been carried out. It goes, unless more has been decided meanwhile; with the last one a job ends that has
    /// nothing else to do.
    pub(super) fn discharged(&mut self, now: Millis, job: &JobId, duty: Settlement) -> Reply {
        let record = self.jobs.get_mut(job).ok_or_else(|| no_job(job.as_str()))?;
        if record.output.duty == Some(duty) {
            record.output.duty = None;
            if let Some(change) = record.output.ending.take() {
                return self.end_job(now, job, change, None);
            }
        }
        Ok(Applied { job: Some(job.clone()), ..Applied::default() })
    }

    /// Jobs with something to be carried out.
    pub fn jobs_with_duties(&self) -> impl Iterator<Item = &JobId> {
        self.jobs.values().filter(|job| job.output.duty.is_some()).map(|job| &job.id)
    }

    /// Refuses a job that would write again what is committed in the same places: by the job that the snapshot is of, after
    /// it, or by another job that has gone on from the snapshot.
    pub(super) fn check_repeats(&self, new: &NewJob) -> Result<()> {
        let Some(restore) = new.restore.as_ref().filter(|_| !new.allow_duplicates) else { return Ok(()) };
        let places: Vec<Place> = CommittedSink::of(&new.graph).into_iter().map(|sink| sink.place).collect();
        self.check_repeated(restore, &places)
    }

    /// Refuses a restore whose output to these places would repeat what is committed there.
    ///
    /// # Errors
    /// `DUPLICATE_OUTPUT`, naming the place and who has written it.
    pub fn check_repeated(&self, restore: &RestoreRecord, places: &[Place]) -> Result<()> {
        let by_directory = || self.snapshots.values().find(|entry| entry.directory == restore.directory);
        let entry = restore.snapshot.as_ref().and_then(|id| self.snapshots.get(id)).or_else(by_directory);
        let is_ahead = |job: &&JobRecord| {
            let of_it = entry.is_some_and(|entry| entry.job == job.id);
            let from_it = job.restore.as_ref().is_some_and(|theirs| theirs.directory == restore.directory);
            let behind = entry.filter(|_| of_it).map_or(BarrierId(0), |entry| entry.barrier);
            (of_it || from_it) && job.output.committed.is_some_and(|mark| mark.barrier > behind)
        };
        for job in self.jobs.values().filter(is_ahead) {
            let theirs = job.committed_sinks();
            if let Some(sink) = theirs.iter().find(|sink| places.contains(&sink.place)) {
                let name = entry.map_or_else(|| restore.directory.clone(), |entry| entry.id.to_string());
                let what = format!("output that job {} has committed to {} would be written again", job.id, sink.place);
                return Err(Error::new(Code::DuplicateOutput, what)
                    .with_detail(format!("it was written after {name}"))
                    .with_hint(HINT));
            }
        }
        Ok(())
    }
}

/// Refuses to let a job go on from behind what it has committed.
pub(super) fn check_behind(job: &JobRecord, point: Option<(&SnapshotId, BarrierId)>) -> Result<()> {
    let Some(mark) = job.output.committed.filter(|_| !job.allow_duplicates) else { return Ok(()) };
    if point.is_some_and(|(_, barrier)| barrier >= mark.barrier) {
        return Ok(());
    }
    let places: Vec<String> = job.committed_sinks().iter().map(|sink| sink.place.to_string()).collect();
    let from = point.map_or_else(|| "what it was started from".to_owned(), |(snapshot, _)| snapshot.to_string());
    let what = format!("job {} would write again what it has committed to {}", job.id, places.join(" and "));
    Err(Error::new(Code::DuplicateOutput, what)
        .with_detail(format!("its output is committed up to barrier {}, and {from} is older", mark.barrier))
        .with_hint(HINT))
}

const HINT: &str = "If readers can bear it, run the script from that snapshot with `weir run -s … --allow-duplicates`.";

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
