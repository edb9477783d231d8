//! The order of a snapshot, which is Weir's durability contract: reserve, start the reader groups' checkpoints, send
//! barriers, gather acknowledgements, publish the manifest, complete, notify. This file owns it.
//!
//! Invariants: no barrier is sent before the reservation is committed and the reader groups have agreed; nobody is
//! notified of a completion before it is committed; a reservation ends once, as complete or as aborted, and if barriers
//! were sent, aborting first makes sure that no manifest can appear any more.

use std::collections::{BTreeSet, VecDeque};

use weir_types::ids::{BarrierId, JobId, RequestId, SnapshotId};
use weir_types::snapshot::{Barrier, SnapshotKind};
use weir_types::time::Millis;
use weir_types::{Code, Error};

use super::flight::{InFlight, Phase};
use super::{
    Action, Config, Contents, Event, Marked, Request, Reservation, RunningAttempt, SubtaskKey, Trigger, snapshot_id,
};

/// Requests that may wait for their turn.
const QUEUE_MAX: usize = 64;
/// After which time storage that did not answer about an abort marker is asked again.
const MARK_RETRY_MS: u64 = 1_000;

/// Decides about the snapshots of one job.
#[derive(Debug)]
pub struct Coordinator {
    job: JobId,
    config: Config,
    next_barrier: BarrierId,
    running: Option<RunningAttempt>,
    /// An earlier JobManager's attempt may turn out to run.
    resuming: bool,
    drained: bool,
    queue: VecDeque<Request>,
    in_flight: Option<InFlight>,
    /// Snapshots that were given up while the reader groups were asked, and that these have not answered yet.
    asking: BTreeSet<SnapshotId>,
    periodic_at: Option<Millis>,
    pause_until: Millis,
    failures_in_a_row: u32,
    stopped: bool,
}

impl Coordinator {
    /// A coordinator for a job whose last snapshot, of whatever outcome, had the number `last_barrier`.
    pub fn new(job: JobId, config: Config, last_barrier: BarrierId) -> Self {
        Self {
            job,
            config,
            next_barrier: last_barrier.next(),
            running: None,
            resuming: false,
            drained: false,
            queue: VecDeque::new(),
            in_flight: None,
            asking: BTreeSet::new(),
            periodic_at: None,
            pause_until: Millis(0),
            failures_in_a_row: 0,
            stopped: false,
        }
    }

    /// Takes an event and says what is to be done, in this order.
    pub fn on_event(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Resuming => self.resuming = true,
            Event::FoundQueued(reservation) => {
                let error = Error::unavailable("the JobManager ended while the snapshot waited for its turn");
                let flight = self.in_flight.insert(InFlight::found(reservation, Phase::Queued));
                flight.abort(error, &mut out);
            }
            Event::FoundInFlight(reservation) => {
                out.push(Action::Settle(reservation.snapshot.clone()));
                self.in_flight = Some(InFlight::found(reservation, Phase::Settling { retry_at: None }));
            }
            Event::Settled(snapshot, found) => self.settled(now, &snapshot, found, &mut out),
            Event::Started(attempt) => self.started(now, attempt),
            Event::Ended(error) => self.ended(&error, &mut out),
            Event::Drained => {
                self.drained = true;
                self.refuse_queue(&drained(&self.job), &mut out);
            }
            Event::Requested(request) => self.requested(request, &mut out),
            Event::Queued(snapshot) => self.queued(&snapshot, &mut out),
            Event::Reserved(snapshot, result) => self.reserved(now, &snapshot, result, &mut out),
            Event::Cancelled(snapshot) => {
                let error = Error::new(Code::Cancelled, format!("snapshot {snapshot} was cancelled"));
                if self.give_up(Some(&snapshot), error, &mut out)
                    && let Some(flight) = self.in_flight_as(&snapshot)
                {
                    flight.excused = true;
                }
            }
            Event::OutOfRoom(snapshot, error) => {
                self.give_up(Some(&snapshot), error, &mut out);
            }
            Event::GroupsStarted(snapshot, result) => self.groups_started(&snapshot, result, &mut out),
            Event::Acked(ack) => {
                let expected = self.running.as_ref().is_some_and(|running| {
                    running.attempt == ack.subtask.attempt
                        && running.subtasks.contains(&(ack.subtask.chain, ack.subtask.index))
                });
                if let Some(flight) = self.in_flight_as(&ack.snapshot)
                    && matches!(flight.phase, Phase::Aligning)
                    && expected
                {
                    flight.acks.add(ack);
                    self.publish_if_complete(&mut out);
                }
            }
            Event::Declined(declined) => {
                if let Some(flight) = self.in_flight_as(&declined.snapshot)
                    && flight.reservation.attempt == declined.subtask.attempt
                    && matches!(flight.phase, Phase::Aligning)
                {
                    flight.mark(declined.error, None, &mut out);
                }
            }
            Event::Published(snapshot, result) => self.published(&snapshot, result, &mut out),
            Event::Marked(snapshot, result) => self.marked(now, &snapshot, result, &mut out),
            Event::Completed(snapshot, result) => self.completed(now, &snapshot, result, &mut out),
            Event::Aborted(snapshot) => self.aborted(now, &snapshot, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.start_next(now, &mut out);
        out
    }

    /// When [`Event::Tick`] may next change anything.
    pub fn next_deadline(&self) -> Option<Millis> {
        let Some(flight) = &self.in_flight else {
            return self.periodic_due();
        };
        flight.next_deadline()
    }

    /// The snapshot in flight: its reservation, and how many subtasks have acknowledged.
    pub fn in_flight(&self) -> Option<(&Reservation, u32)> {
        self.in_flight.as_ref().map(|flight| (&flight.reservation, flight.acks.len()))
    }

    /// Subtasks whose acknowledgement the snapshot in flight waits for.
    pub fn missing(&self) -> Vec<SubtaskKey> {
        match (&self.in_flight, &self.running) {
            (Some(flight), Some(running)) if flight.barriers_sent => flight.acks.missing(running),
            _ => Vec::new(),
        }
    }

    fn in_flight_as(&mut self, snapshot: &SnapshotId) -> Option<&mut InFlight> {
        self.in_flight.as_mut().filter(|flight| flight.reservation.snapshot == *snapshot)
    }

    fn started(&mut self, now: Millis, attempt: RunningAttempt) {
        self.running = Some(attempt);
        self.resuming = false;
        self.drained = false;
        self.failures_in_a_row = 0;
        self.periodic_at = self.config.interval_ms.map(|interval_ms| now.plus(interval_ms));
    }

    fn ended(&mut self, error: &Error, out: &mut Vec<Action>) {
        self.running = None;
        self.resuming = false;
        self.periodic_at = None;
        self.refuse_queue(&not_running(&self.job, Some(error)), out);
        self.give_up(None, error.clone(), out);
    }

    /// Gives up the snapshot in flight, if it is this one and not all of it is durable already; whether that was so.
    fn give_up(&mut self, only: Option<&SnapshotId>, error: Error, out: &mut Vec<Action>) -> bool {
        let Some(flight) = &mut self.in_flight else { return false };
        let possible = only.is_none_or(|only| flight.reservation.snapshot == *only) && flight.can_be_given_up();
        if possible {
            self.asking.extend(flight.asks_groups());
            flight.give_up(error, out);
        }
        possible
    }

    /// Whether the snapshot can still be given up.
    pub fn can_cancel(&self, snapshot: &SnapshotId) -> bool {
        let flight = self.in_flight.as_ref().filter(|flight| flight.reservation.snapshot == *snapshot);
        flight.is_some_and(InFlight::can_be_given_up)
    }

    /// Whether the snapshot's manifest may be written: not once its time was up.
    pub fn is_publishing(&self, snapshot: &SnapshotId) -> bool {
        let flight = self.in_flight.as_ref().filter(|flight| flight.reservation.snapshot == *snapshot);
        flight.is_some_and(|flight| matches!(flight.phase, Phase::Publishing(_)))
    }

    /// The requests that wait for the snapshot in flight to end, in their order.
    pub fn waiting(&self) -> impl Iterator<Item = &Request> {
        self.queue.iter()
    }

    fn queued(&mut self, snapshot: &SnapshotId, out: &mut Vec<Action>) {
        let Some(flight) = self.in_flight_as(snapshot).filter(|flight| matches!(flight.phase, Phase::Reserving)) else {
            return;
        };
        flight.phase = Phase::Queued;
        if let Some(error) = flight.doomed.take() {
            flight.abort(error, out);
        }
    }

    fn requested(&mut self, request: Request, out: &mut Vec<Action>) {
        let in_flight = self.in_flight.as_ref().and_then(|flight| flight.reservation.request.as_ref());
        if in_flight.into_iter().chain(&self.queue).any(|known| known.id == request.id) {
            return;
        }
        let refusal = match &self.running {
            None if !self.resuming => Some(not_running(&self.job, None)),
            _ if self.stopped => Some(not_running(&self.job, None)),
            _ if self.drained => Some(drained(&self.job)),
            _ if self.queue.len() >= QUEUE_MAX => Some(
                Error::new(Code::ResourceExhausted, format!("{QUEUE_MAX} snapshots of job {} wait already", self.job))
                    .with_hint("Wait for them; `weir snapshots list` shows how far they are."),
            ),
            _ => None,
        };
        match refusal {
            Some(error) => {
                if matches!(request.trigger, Trigger::Stop(_)) {
                    out.push(Action::AbandonStop);
                }
                out.push(Action::Answer(request.id, Err(error)));
            }
            None => self.queue.push_back(request),
        }
    }

    fn reserved(&mut self, now: Millis, snapshot: &SnapshotId, result: Result<(), Error>, out: &mut Vec<Action>) {
        let waits = |flight: &&mut InFlight| matches!(flight.phase, Phase::Reserving | Phase::Queued);
        let Some(flight) = self.in_flight_as(snapshot).filter(waits) else { return };
        match (result, flight.doomed.take()) {
            // The refusal is in the catalogue already, and nothing was started.
            (Err(error), _) => self.end(now, Err(error), out),
            (Ok(()), Some(error)) => flight.abort(error, out),
            (Ok(()), None) => {
                flight.phase = Phase::StartingGroups;
                out.push(Action::StartGroups(snapshot.clone()));
            }
        }
    }

    fn groups_started(&mut self, snapshot: &SnapshotId, result: Result<(), Error>, out: &mut Vec<Action>) {
        if self.asking.remove(snapshot) {
            // It was given up meanwhile, and this may have started after the groups were told.
            return out.push(Action::ReleaseGroups(snapshot.clone()));
        }
        let Some(flight) = self.in_flight_as(snapshot).filter(|flight| matches!(flight.phase, Phase::StartingGroups))
        else {
            return;
        };
        if let Err(error) = result {
            return flight.abort(error, out);
        }
        flight.phase = Phase::Aligning;
        flight.barriers_sent = true;
        out.push(Action::SendBarriers(Barrier {
            id: flight.reservation.barrier,
            snapshot: snapshot.clone(),
            kind: flight.reservation.kind,
            triggered_at_ms: flight.reservation.triggered_at_ms,
            stop: flight.reservation.trigger.stop_mode(),
            directory: flight.reservation.directory.clone(),
            // The shell names it: it knows what is complete, and what of that is damaged.
            base: None,
        }));
        self.publish_if_complete(out);
    }

    fn publish_if_complete(&mut self, out: &mut Vec<Action>) {
        let (Some(flight), Some(running)) = (&mut self.in_flight, &self.running) else { return };
        if !matches!(flight.phase, Phase::Aligning) || !flight.acks.complete(running) {
            return;
        }
        match flight.acks.clone().assemble(running) {
            Ok(contents) => {
                let contents = Box::new(contents);
                out.push(Action::Publish(flight.reservation.snapshot.clone(), contents.clone()));
                flight.phase = Phase::Publishing(contents);
            }
            Err(error) => flight.mark(error, None, out),
        }
    }

    fn published(&mut self, snapshot: &SnapshotId, result: Result<(), Error>, out: &mut Vec<Action>) {
        let Some(flight) = self.in_flight_as(snapshot) else { return };
        match std::mem::replace(&mut flight.phase, Phase::Completing) {
            Phase::Publishing(contents) => match result {
                Ok(()) => out.push(Action::PersistComplete(snapshot.clone(), contents)),
                // Whether the manifest is there is not known: the marker finds out.
                Err(error) => flight.mark(error, Some(contents), out),
            },
            other => flight.phase = other,
        }
    }

    fn marked(&mut self, now: Millis, snapshot: &SnapshotId, result: Result<Marked, Error>, out: &mut Vec<Action>) {
        let Some(flight) = self.in_flight_as(snapshot) else { return };
        let Phase::Marking { error, contents, retry_at } = &mut flight.phase else { return };
        match (result, contents.take()) {
            (Ok(Marked::Published), Some(contents)) => {
                out.push(Action::PersistComplete(snapshot.clone(), contents));
                flight.phase = Phase::Completing;
            }
            (Err(failure), Some(kept)) if failure.code != Code::AlreadyExists => {
                *contents = Some(kept);
                *retry_at = Some(now.plus(MARK_RETRY_MS));
            }
            // Without an attempt to publish, or where another snapshot's manifest is, there is none of ours.
            (Ok(_) | Err(_), _) => {
                let error = error.clone();
                flight.abort(error, out);
            }
        }
    }

    fn settled(
        &mut self,
        now: Millis,
        snapshot: &SnapshotId,
        found: Result<Option<Box<Contents>>, Error>,
        out: &mut Vec<Action>,
    ) {
        let Some(flight) = self.in_flight_as(snapshot) else { return };
        let Phase::Settling { retry_at } = &mut flight.phase else { return };
        match found {
            Ok(Some(contents)) => {
                out.push(Action::PersistComplete(snapshot.clone(), contents));
                flight.phase = Phase::Completing;
            }
            Err(error) if error.code != Code::AlreadyExists => *retry_at = Some(now.plus(MARK_RETRY_MS)),
            // Where another snapshot's manifest is, there is none of ours, and none can come.
            Ok(None) | Err(_) => {
                flight.abort(Error::unavailable("the JobManager ended while the snapshot was in flight"), out);
            }
        }
    }

    fn completed(&mut self, now: Millis, snapshot: &SnapshotId, result: Result<(), Error>, out: &mut Vec<Action>) {
        let Some(flight) = self.in_flight_as(snapshot).filter(|flight| matches!(flight.phase, Phase::Completing))
        else {
            return;
        };
        match result {
            Ok(()) => {
                out.push(Action::NotifyComplete(snapshot.clone(), flight.reservation.barrier));
                self.end(now, Ok(snapshot.clone()), out);
            }
            Err(error) => flight.abort(error, out),
        }
    }

    fn aborted(&mut self, now: Millis, snapshot: &SnapshotId, out: &mut Vec<Action>) {
        let Some(flight) = self.in_flight_as(snapshot) else { return };
        let Phase::Aborting(error) = &flight.phase else { return };
        let error = error.clone();
        out.push(Action::ReleaseGroups(snapshot.clone()));
        out.push(Action::NotifyAborted(snapshot.clone(), flight.reservation.barrier, error.clone()));
        out.push(Action::Sweep(snapshot.clone()));
        self.end(now, Err(error), out);
    }

    /// The snapshot in flight has ended; what follows from that for the job.
    fn end(&mut self, now: Millis, result: Result<SnapshotId, Error>, out: &mut Vec<Action>) {
        let Some(flight) = self.in_flight.take() else { return };
        let InFlight { excused, barriers_sent, reservation, .. } = flight;
        let Reservation { kind, trigger, request, .. } = reservation;
        let stops = matches!(trigger, Trigger::Stop(_));
        self.pause_until = now.plus(self.config.min_pause_ms);
        let answer = |id: RequestId, out: &mut Vec<Action>, result| out.push(Action::Answer(id, result));
        match result {
            Ok(snapshot) => {
                self.failures_in_a_row = 0;
                self.stopped |= stops;
                if let Some(request) = request {
                    answer(request.id, out, Ok(snapshot));
                }
                if stops {
                    self.refuse_queue(&not_running(&self.job, None), out);
                }
            }
            Err(error) => {
                if let Some(request) = request {
                    answer(request.id, out, Err(error.clone()));
                }
                if self.running.is_none() && !self.resuming {
                    return;
                }
                if stops {
                    // Sources that saw the barrier have ended: only a new attempt reads on.
                    out.push(match (barriers_sent, excused) {
                        (false, _) => Action::AbandonStop,
                        (true, false) => Action::RestartJob(error),
                        (true, true) => Action::ResumeJob(error),
                    });
                } else if kind == SnapshotKind::Checkpoint && !excused {
                    self.failures_in_a_row += 1;
                    if self.config.failures_tolerated.is_some_and(|tolerated| self.failures_in_a_row > tolerated) {
                        self.failures_in_a_row = 0;
                        out.push(Action::RestartJob(error));
                    }
                }
            }
        }
    }

    fn tick(&mut self, now: Millis, out: &mut Vec<Action>) {
        let missing = self.missing();
        let Some(flight) = &mut self.in_flight else { return };
        if flight.next_deadline().is_some_and(|at| at <= now) {
            self.asking.extend(flight.asks_groups());
            flight.expire(now, &missing, out);
        }
    }

    fn periodic_due(&self) -> Option<Millis> {
        let due = self.running.is_some() && !self.stopped && !self.drained;
        self.periodic_at.filter(|_| due).map(|at| at.max(self.pause_until))
    }

    fn start_next(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.in_flight.is_some() || self.stopped || self.drained {
            return;
        }
        let Some(running) = &self.running else { return };
        let request = self.queue.pop_front();
        if request.is_none() {
            match self.periodic_due() {
                Some(due) if due <= now => self.periodic_at = self.config.interval_ms.map(|ms| now.plus(ms)),
                _ => return,
            }
        }
        let kind = request.as_ref().map_or(SnapshotKind::Checkpoint, |request| request.kind);
        let barrier = self.next_barrier;
        let Ok(snapshot) = snapshot_id(&self.job, kind, barrier) else { return };
        self.next_barrier = barrier.next();
        let timeout_ms = request.as_ref().and_then(|request| request.timeout_ms).unwrap_or(self.config.timeout_ms);
        let reservation = Reservation {
            directory: self.config.directory(&self.job, &snapshot, request.as_ref()),
            snapshot,
            barrier,
            kind,
            trigger: request.as_ref().map_or(Trigger::Periodic, |request| request.trigger),
            attempt: running.attempt,
            deadline_ms: now.plus(timeout_ms).0,
            triggered_at_ms: now.0,
            subtasks: running.subtasks.len() as u32,
            request,
        };
        out.push(Action::Reserve(reservation.clone()));
        self.in_flight = Some(InFlight::new(reservation));
    }

    fn refuse_queue(&mut self, error: &Error, out: &mut Vec<Action>) {
        for request in self.queue.drain(..) {
            if matches!(request.trigger, Trigger::Stop(_)) && !self.stopped {
                out.push(Action::AbandonStop);
            }
            out.push(Action::Answer(request.id, Err(error.clone())));
        }
    }
}

fn drained(job: &JobId) -> Error {
    Error::new(Code::FailedPrecondition, format!("all sources of job {job} have finished"))
        .with_hint("The job is about to finish by itself: there is nothing to resume from.")
}

fn not_running(job: &JobId, cause: Option<&Error>) -> Error {
    let error = Error::new(Code::FailedPrecondition, format!("job {job} is not running"));
    match cause {
        Some(cause) => error.with_detail(cause.to_string()),
        None => error.with_hint("Snapshots are taken of running jobs; `weir list` shows the state of each."),
    }
}
