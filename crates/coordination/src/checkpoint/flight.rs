//! The snapshot in flight: how far it is, and how it is given up from there.
//!
//! Invariant: every phase that waits for somebody who may never answer ends at the snapshot's deadline. Those that wait for
//! the log, or for what only the storage knows, do not: until then nobody can say how the snapshot has ended.

use weir_types::ids::SnapshotId;
use weir_types::time::Millis;
use weir_types::{Code, Error};

use super::contents::Acks;
use super::{Action, Contents, Reservation, SubtaskKey};

/// Subtasks that an error names at most.
const NAMED_MAX: usize = 8;

/// How far the snapshot in flight is.
#[derive(Debug)]
pub(super) enum Phase {
    /// An earlier JobManager has left it; it is being found out whether it was published.
    Settling { retry_at: Option<Millis> },
    /// The reservation is being committed.
    Reserving,
    /// The reservation waits for its turn.
    Queued,
    /// The reader groups are being asked.
    StartingGroups,
    /// Barriers are under way.
    Aligning,
    /// The manifest is being written.
    Publishing(Box<Contents>),
    /// The completion is being committed.
    Completing,
    /// The abort marker is being written; after an attempt to publish it may turn out that the manifest is there.
    Marking { error: Error, contents: Option<Box<Contents>>, retry_at: Option<Millis> },
    /// The abort is being committed.
    Aborting(Error),
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) reservation: Reservation,
    pub(super) phase: Phase,
    pub(super) acks: Acks,
    /// Why it must be aborted as soon as it is reserved.
    pub(super) doomed: Option<Error>,
    pub(super) barriers_sent: bool,
    /// A user wanted it to end, or its JobManager ended: that is no failure of the job.
    pub(super) excused: bool,
}

impl InFlight {
    pub(super) fn new(reservation: Reservation) -> Self {
        Self {
            reservation,
            phase: Phase::Reserving,
            acks: Acks::default(),
            doomed: None,
            barriers_sent: false,
            excused: false,
        }
    }

    /// One that an earlier JobManager has left, with what it waits for.
    pub(super) fn found(reservation: Reservation, phase: Phase) -> Self {
        // Whether barriers were sent is not known. Whoever has seen one reads on when it hears of the abort.
        Self { phase, excused: true, ..Self::new(reservation) }
    }

    /// Whether something may still keep it from becoming durable, and nothing has yet.
    pub(super) fn can_be_given_up(&self) -> bool {
        match self.phase {
            Phase::Reserving => self.doomed.is_none(),
            Phase::Queued | Phase::StartingGroups | Phase::Aligning => true,
            Phase::Settling { .. }
            | Phase::Publishing(_)
            | Phase::Completing
            | Phase::Marking { .. }
            | Phase::Aborting(_) => false,
        }
    }

    /// Nothing is to come of it; only for those that can be given up.
    pub(super) fn give_up(&mut self, error: Error, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Reserving => self.doomed = Some(error),
            Phase::Aligning => self.mark(error, None, out),
            _ => self.abort(error, out),
        }
    }

    /// The snapshot, if the reader groups are being asked.
    pub(super) fn asks_groups(&self) -> Option<SnapshotId> {
        matches!(self.phase, Phase::StartingGroups).then(|| self.reservation.snapshot.clone())
    }

    /// When [`InFlight::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        match &self.phase {
            Phase::Reserving if self.doomed.is_some() => None,
            Phase::Reserving | Phase::Queued | Phase::StartingGroups | Phase::Aligning | Phase::Publishing(_) => {
                Some(Millis(self.reservation.deadline_ms))
            }
            Phase::Settling { retry_at } | Phase::Marking { retry_at, .. } => *retry_at,
            Phase::Completing | Phase::Aborting(_) => None,
        }
    }

    /// Its time, or that of its next try, has come. `missing` are the subtasks that have not acknowledged.
    pub(super) fn expire(&mut self, now: Millis, missing: &[SubtaskKey], out: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Publishing(contents) => {
                // Whether the manifest is there is not known: the marker finds out.
                let contents = std::mem::take(contents);
                let error = self.too_late(now, "the manifest was being written");
                self.mark(error, Some(contents), out);
            }
            Phase::Settling { retry_at } => {
                *retry_at = None;
                out.push(Action::Settle(self.reservation.snapshot.clone()));
            }
            Phase::Marking { retry_at, .. } => {
                *retry_at = None;
                out.push(Action::MarkAborted(self.reservation.snapshot.clone()));
            }
            Phase::Reserving => self.doomed = Some(self.too_late(now, "it was not reserved yet")),
            Phase::Queued => {
                let Reservation { kind, snapshot, triggered_at_ms, .. } = &self.reservation;
                let waited_ms = now.0.saturating_sub(*triggered_at_ms);
                let message = format!("{kind} {snapshot} has waited for its turn for {waited_ms} ms");
                self.abort(Error::new(Code::Timeout, message), out);
            }
            Phase::StartingGroups => {
                let error = self.too_late(now, "the reader groups had not answered; no barrier was sent");
                self.abort(error, out);
            }
            Phase::Aligning => {
                let (acked, subtasks) = (self.acks.len(), self.reservation.subtasks);
                let missing = named(missing);
                let how_far = format!("{acked} of {subtasks} subtasks acknowledged; missing: {missing}");
                let error = self.too_late(now, how_far);
                self.mark(error, None, out);
            }
            Phase::Completing | Phase::Aborting(_) => {}
        }
    }

    fn too_late(&self, now: Millis, how_far: impl Into<String>) -> Error {
        let Reservation { kind, snapshot, triggered_at_ms, .. } = &self.reservation;
        let waited_ms = now.0.saturating_sub(*triggered_at_ms);
        Error::new(Code::Timeout, format!("{kind} {snapshot} took longer than {waited_ms} ms"))
            .with_detail(how_far)
            .with_hint("`weir snapshots explain` shows what each subtask was doing.")
    }

    /// Makes sure that no manifest can appear, then aborts.
    pub(super) fn mark(&mut self, error: Error, contents: Option<Box<Contents>>, out: &mut Vec<Action>) {
        out.push(Action::MarkAborted(self.reservation.snapshot.clone()));
        self.phase = Phase::Marking { error, contents, retry_at: None };
    }

    /// Commits the failure.
    pub(super) fn abort(&mut self, error: Error, out: &mut Vec<Action>) {
        out.push(Action::PersistAbort(self.reservation.snapshot.clone(), error.clone()));
        self.phase = Phase::Aborting(error);
    }
}

/// Subtasks as `chain/index`, the first few of them.
fn named(subtasks: &[SubtaskKey]) -> String {
    let mut names: Vec<_> = subtasks.iter().take(NAMED_MAX).map(|(chain, index)| format!("{chain}/{index}")).collect();
    if subtasks.len() > NAMED_MAX {
        names.push(format!("{} more", subtasks.len() - NAMED_MAX));
    }
    names.join(", ")
}
