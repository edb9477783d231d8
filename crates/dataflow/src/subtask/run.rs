//! The task loop.
//!
//! Every turn takes one step of work if there is any and room for it, else it waits for the first of: a control message,
//! the end of a snapshot, room, input, a timer. After a step it yields, so that the subtasks of a slot share its thread.

use std::pin::pin;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};
use weir_types::ids::BarrierId;
use weir_types::snapshot::{Barrier, StopMode};
use weir_types::{Code, Error, Result};

use super::snapshot::{micros, with_splits};
use super::{Control, Input, Outcome, Phase, Subtask, SubtaskEvent, Work};
use crate::element::{Batch, Watermark};
use crate::gate::{AlignedBarrier, GateEvent};
use crate::operator::Progress;
use crate::reader::Found;

/// What the task loop woke up for.
enum Wake {
    Control(Option<Control>),
    SnapshotEnded,
    Room,
    Gate(GateEvent),
    Found(Found),
    Timer,
}

/// Whether the task loop goes on.
enum Turn {
    On,
    Finish,
    Cancel,
}

impl Subtask {
    /// Waits until every sink can take rows: whatever wrote there before, an older attempt of the job, is fenced then.
    ///
    /// # Errors
    /// If a sink cannot start.
    pub async fn ready(&mut self) -> Result<()> {
        self.chain.sinks_ready().await
    }

    /// Runs until the input has ended or the subtask is cancelled.
    ///
    /// # Errors
    /// Whatever fails the job: an operator's error, a broken channel.
    pub async fn run(mut self) -> Result<Outcome> {
        if let Input::Source(reader) = &mut self.input {
            reader.start(&mut self.work);
        }
        info!(subtask = %self.id, "subtask running");
        let mut room = false;
        let mut waiting_since = Instant::now();
        loop {
            self.admit_barriers();
            if room && !self.work.is_empty() {
                let started = Instant::now();
                let turn = self.step(started)?;
                self.count_step(started);
                match turn {
                    Turn::Finish => return self.finish().await,
                    Turn::Cancel => return Ok(Outcome::Cancelled),
                    Turn::On => {}
                }
                (room, waiting_since) = (false, Instant::now());
                tokio::task::yield_now().await;
            }
            match self.wake(room).await? {
                Wake::Control(control) => {
                    if matches!(self.on_control(control)?, Turn::Cancel) {
                        return Ok(Outcome::Cancelled);
                    }
                }
                Wake::SnapshotEnded => {}
                Wake::Room => {
                    room = true;
                    self.count_wait(waiting_since);
                }
                Wake::Gate(event) => self.on_gate(event),
                Wake::Found(found) => {
                    if let Input::Source(reader) = &mut self.input {
                        reader.on_found(found, Instant::now(), &mut self.work)?;
                        self.rows_in = reader.rows_read();
                    }
                }
                Wake::Timer => self.on_timer(room)?,
            }
        }
    }

    /// Waits for whatever comes first; with room and no work, for input too.
    async fn wake(&mut self, room: bool) -> Result<Wake> {
        let deadline = self.deadline(room);
        let listening = room && self.work.is_empty() && self.is_reading();
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let input = async {
            match &mut self.input {
                Input::Gate(gate) => gate.next().await.map(Wake::Gate),
                Input::Source(reader) => reader.next().await.map(Wake::Found),
            }
        };
        tokio::select! {
            biased;
            control = self.control.recv() => Ok(Wake::Control(control)),
            () = self.snapshots.ended(), if !self.snapshots.is_empty() => Ok(Wake::SnapshotEnded),
            ready = self.chain.room(), if !room => ready.map(|()| Wake::Room),
            () = timer => Ok(Wake::Timer),
            wake = input, if listening => wake,
        }
    }

    fn is_reading(&self) -> bool {
        match &self.input {
            Input::Gate(_) => true,
            Input::Source(reader) => matches!(self.phase, Phase::Reading) && !reader.is_ended(),
        }
    }

    fn deadline(&mut self, room: bool) -> Option<Instant> {
        let outputs = self.chain.outputs().deadline();
        let idle = match &self.input {
            Input::Source(reader) if room && matches!(self.phase, Phase::Reading) => reader.deadline(),
            _ => None,
        };
        [outputs, idle].into_iter().flatten().min()
    }

    fn on_timer(&mut self, room: bool) -> Result<()> {
        let now = Instant::now();
        self.chain.outputs().flush_due(now)?;
        if let Input::Source(reader) = &mut self.input
            && room
            && matches!(self.phase, Phase::Reading)
        {
            reader.on_timer(now, &mut self.work);
        }
        Ok(())
    }

    fn on_gate(&mut self, event: GateEvent) {
        self.work.push_back(match event {
            GateEvent::Rows { batch, .. } => {
                self.rows_in += batch.len() as u64;
                Work::Rows(batch)
            }
            GateEvent::Watermark(watermark) => Work::Watermark(watermark),
            GateEvent::Idle => Work::Idle,
            GateEvent::Barrier(aligned) => Work::Barrier(aligned),
            GateEvent::Cancelled(barrier) => {
                let error = Error::new(Code::Cancelled, "the snapshot was given up before all inputs had its barrier");
                Work::Decline(barrier, error)
            }
            GateEvent::End => Work::End,
        });
    }

    /// Takes the first step of the work that waits.
    fn step(&mut self, now: Instant) -> Result<Turn> {
        let Some(work) = self.work.pop_front() else { return Ok(Turn::On) };
        match work {
            Work::Rows(batch) => self.process(batch, now)?,
            Work::Join(batches) => self.process(Batch::concat(&batches)?, now)?,
            Work::Watermark(watermark) => {
                if self.chain.advance(watermark, now)? == Progress::More {
                    self.work.push_front(Work::Watermark(watermark));
                }
            }
            Work::Idle => self.chain.outputs().idle(now)?,
            Work::Barrier(aligned) => self.snapshot(&aligned, now)?,
            Work::Decline(barrier, error) => self.snapshots.decline(&barrier, error),
            Work::Drained => {
                info!(subtask = %self.id, "source drained");
                self.snapshots.report(SubtaskEvent::Drained(self.id.clone()));
            }
            Work::End => return Ok(Turn::Finish),
        }
        Ok(Turn::On)
    }

    /// Processes one batch of bounded size; what is beyond it stays the next work.
    fn process(&mut self, batch: Batch, now: Instant) -> Result<()> {
        if batch.len() <= self.limits.rows {
            return self.chain.process(batch, now);
        }
        let rest = batch.slice(self.limits.rows, batch.len() - self.limits.rows);
        self.work.push_front(Work::Rows(rest));
        self.chain.process(batch.slice(0, self.limits.rows), now)
    }

    /// The synchronous part of a snapshot; then the barrier goes on, and the asynchronous part begins.
    fn snapshot(&mut self, aligned: &AlignedBarrier, now: Instant) -> Result<()> {
        let barrier = aligned.barrier();
        let frozen = self.chain.freeze(barrier, self.snapshots.since(barrier));
        self.chain.outputs().barrier(barrier, now)?;
        match frozen {
            Ok(mut frozen) => {
                if let Input::Source(reader) = &self.input {
                    with_splits(&mut frozen, reader.positions());
                }
                self.snapshots.start(aligned, frozen, now.elapsed());
            }
            Err(error) => self.snapshots.not_frozen(barrier, error),
        }
        Ok(())
    }

    /// Lets triggered barriers in, behind everything that was read.
    fn admit_barriers(&mut self) {
        if !self.work.is_empty() {
            return;
        }
        let Input::Source(reader) = &mut self.input else { return };
        let Some(barrier) = self.triggers.pop_front() else { return };
        debug!(snapshot = %barrier.snapshot, subtask = %self.id, "barrier let in");
        reader.flush(&mut self.work);
        match (&self.phase, barrier.stop) {
            (Phase::Reading, StopMode::Continue) => {}
            (Phase::Reading, stop) => {
                if stop == StopMode::Drain {
                    self.work.push_back(Work::Watermark(Watermark::MAX));
                }
                self.phase = Phase::Stopping(barrier.clone());
            }
            (Phase::Stopping(_) | Phase::Ending, _) => {
                let error = Error::new(Code::FailedPrecondition, "the job is stopping");
                self.work.push_back(Work::Decline(barrier, error));
                return;
            }
        }
        self.work.push_back(Work::Barrier(AlignedBarrier::at_source(barrier)));
    }

    fn on_control(&mut self, control: Option<Control>) -> Result<Turn> {
        match control {
            // Without a sender nobody could ever stop the subtask: its TaskManager has given it up.
            None | Some(Control::Cancel) => return Ok(Turn::Cancel),
            Some(Control::Trigger(barrier)) => {
                if matches!(self.input, Input::Source(_)) {
                    debug!(subtask = %self.id, snapshot = %barrier.snapshot, "barrier triggered");
                    self.triggers.push_back(barrier);
                }
            }
            Some(Control::Outcome { barrier, failure }) => self.on_outcome(barrier, failure)?,
            Some(Control::Finish) => {
                if matches!(&self.input, Input::Source(reader) if reader.is_ended())
                    && !matches!(self.phase, Phase::Ending)
                {
                    self.end_source();
                }
            }
        }
        Ok(Turn::On)
    }

    /// Ends a source subtask behind the work that waits.
    fn end_source(&mut self) {
        self.phase = Phase::Ending;
        let error = || Error::new(Code::FailedPrecondition, "the job is finishing");
        let declined = self.triggers.drain(..).map(|barrier| Work::Decline(barrier, error()));
        self.work.extend(declined);
        self.work.push_back(Work::End);
    }

    fn on_outcome(&mut self, barrier: BarrierId, failure: Option<Error>) -> Result<()> {
        if failure.is_some() {
            self.log_unfinished(barrier);
            self.snapshots.abort(barrier);
            self.triggers.retain(|trigger| trigger.id != barrier);
            if let Input::Gate(gate) = &mut self.input {
                gate.cancel(barrier);
            }
        } else {
            self.chain.committed(barrier)?;
        }
        match (&self.phase, failure) {
            (Phase::Stopping(stop), None) if stop.id == barrier => self.end_source(),
            (Phase::Stopping(Barrier { id, stop: StopMode::Drain, .. }), Some(failure)) if *id == barrier => {
                return Err(Error::new(Code::FailedPrecondition, "the job was drained, but its savepoint failed")
                    .with_detail(failure.to_string())
                    .with_hint("The job goes on from its last completed snapshot."));
            }
            (Phase::Stopping(stop), Some(failure)) if stop.id == barrier => {
                info!(subtask = %self.id, snapshot = %stop.snapshot, %failure, "savepoint failed, reading on");
                self.phase = Phase::Reading;
            }
            _ => {}
        }
        Ok(())
    }

    /// Says how far this subtask's part of a snapshot was that has failed.
    fn log_unfinished(&self, barrier: BarrierId) {
        if let Input::Gate(gate) = &self.input
            && let Some((aligning, arrived, inputs)) = gate.aligning().filter(|(aligning, ..)| aligning.id == barrier)
        {
            info!(snapshot = %aligning.snapshot, subtask = %self.id, arrived, inputs, "was still aligning");
        }
        if let Some(trigger) = self.triggers.iter().find(|trigger| trigger.id == barrier) {
            info!(snapshot = %trigger.snapshot, subtask = %self.id, "its barrier still waited behind what had been read");
        }
        self.snapshots.log_writing(barrier);
    }

    /// Makes the output durable, ends the channels, and waits for snapshots that are still being written.
    async fn finish(mut self) -> Result<Outcome> {
        let Self { id, chain, control, snapshots, input, .. } = &mut self;
        let is_source = matches!(input, Input::Source(_));
        let mut finish = pin!(chain.finish());
        let mut finished = false;
        while !finished || !snapshots.is_empty() {
            tokio::select! {
                biased;
                message = control.recv() => match message {
                    None | Some(Control::Cancel) => return Ok(Outcome::Cancelled),
                    Some(Control::Outcome { barrier, failure: Some(_) }) => snapshots.abort(barrier),
                    Some(Control::Trigger(barrier)) if is_source => {
                        snapshots.decline(&barrier, Error::new(Code::FailedPrecondition, "the job is finishing"));
                    }
                    Some(_) => {}
                },
                () = snapshots.ended(), if !snapshots.is_empty() => {}
                result = &mut finish, if !finished => {
                    result?;
                    finished = true;
                }
            }
        }
        info!(subtask = %id, "subtask finished");
        Ok(Outcome::Finished)
    }

    fn count_step(&mut self, started: Instant) {
        let totals = self.chain.totals();
        let metrics = &self.metrics;
        metrics.rows_in.store(self.rows_in, Ordering::Relaxed);
        metrics.rows_out.store(self.chain.rows_out(), Ordering::Relaxed);
        metrics.late_rows.store(totals.late_rows, Ordering::Relaxed);
        metrics.state_bytes.store(totals.state_bytes, Ordering::Relaxed);
        metrics.watermark_ms.store(self.chain.watermark().0, Ordering::Relaxed);
        metrics.busy_us.fetch_add(micros(started.elapsed()), Ordering::Relaxed);
    }

    /// Room has come: the wait was back pressure, and no idleness of the source.
    fn count_wait(&mut self, since: Instant) {
        let waited = since.elapsed();
        self.metrics.backpressured_us.fetch_add(micros(waited), Ordering::Relaxed);
        if let Input::Source(reader) = &mut self.input {
            reader.resume_after(waited);
        }
    }
}
