//! The input gate: merges the channels into a subtask, aligns barriers, and keeps event time.
//!
//! Invariant: no record behind barrier n is processed before n has arrived on every input. A channel that has brought
//! the barrier is not read until all have; channels that ended count as having brought it. A barrier with a higher id
//! cancels the alignment of a lower one, whose channels are read again; barriers that come late for a cancelled or
//! completed alignment are dropped.
//!
//! Event time is the minimum over the channels, without those that are idle or have brought the maximum watermark; it
//! only grows. A channel that ended without the maximum watermark (the job is being suspended) keeps holding it back.
//! [`GateState`] decides and never waits; [`InputGate`] reads channels and never decides.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::time::Instant;
use weir_types::Result;
use weir_types::ids::{BarrierId, SubtaskId};
use weir_types::snapshot::Barrier;

use crate::channel::ChannelReceiver;
use crate::element::{Batch, Element, Watermark};

/// A barrier that has arrived on every input. Only gates and sources make one; a snapshot begins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlignedBarrier {
    barrier: Barrier,
    alignment_us: u64,
}

impl AlignedBarrier {
    /// A barrier at a source: there is nothing to align.
    pub(crate) fn at_source(barrier: Barrier) -> Self {
        Self { barrier, alignment_us: 0 }
    }

    /// The barrier.
    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// From its first arrival to its last.
    pub fn alignment_us(&self) -> u64 {
        self.alignment_us
    }
}

/// What comes out of a gate.
#[derive(Clone, Debug)]
pub enum GateEvent {
    /// Rows of a channel.
    Rows {
        /// Index of the channel.
        channel: usize,
        /// The rows.
        batch: Batch,
    },
    /// Event time has advanced, or is the same again after all channels were idle.
    Watermark(Watermark),
    /// No channel brings rows for now.
    Idle,
    /// A barrier has arrived everywhere.
    Barrier(AlignedBarrier),
    /// An alignment was given up: the subtask takes no part in this snapshot.
    Cancelled(Barrier),
    /// Every channel has ended.
    End,
}

#[derive(Debug)]
struct Channel {
    watermark: Watermark,
    idle: bool,
    ended: bool,
    aligned: bool,
}

#[derive(Debug)]
struct Alignment {
    barrier: Barrier,
    since_us: u64,
}

/// The gate's decisions.
#[derive(Debug)]
pub struct GateState {
    channels: Vec<Channel>,
    alignment: Option<Alignment>,
    /// Barriers up to this one are of the past.
    settled: BarrierId,
    watermark: Watermark,
    idle: bool,
    events: VecDeque<GateEvent>,
}

impl GateState {
    /// A gate over so many channels.
    pub fn new(channels: usize) -> Self {
        let channel = || Channel { watermark: Watermark::MIN, idle: false, ended: false, aligned: false };
        Self {
            channels: (0..channels).map(|_| channel()).collect(),
            alignment: None,
            settled: BarrierId(0),
            watermark: Watermark::MIN,
            idle: false,
            events: VecDeque::new(),
        }
    }

    /// Whether the channel may be read now.
    pub fn is_open(&self, channel: usize) -> bool {
        self.channels.get(channel).is_some_and(|channel| !channel.ended && !channel.aligned)
    }

    /// The watermark that was last let through.
    pub fn watermark(&self) -> Watermark {
        self.watermark
    }

    /// The next decision, if there is one.
    pub fn next_event(&mut self) -> Option<GateEvent> {
        self.events.pop_front()
    }

    /// Takes an element of an open channel at a time in microseconds of any clock that only grows.
    pub fn on_element(&mut self, channel: usize, element: Element, now_us: u64) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        match element {
            Element::Batch(batch) => {
                if std::mem::take(&mut state.idle) {
                    self.update_event_time();
                }
                self.events.push_back(GateEvent::Rows { channel, batch });
            }
            Element::Watermark(watermark) => {
                state.idle = false;
                state.watermark = state.watermark.max(watermark);
                self.update_event_time();
            }
            Element::Idle => {
                state.idle = true;
                self.update_event_time();
            }
            Element::Barrier(barrier) => self.on_barrier(channel, barrier, now_us),
            Element::EndOfInput => {
                state.ended = true;
                self.complete_alignment(now_us);
                if self.channels.iter().all(|channel| channel.ended) {
                    self.events.push_back(GateEvent::End);
                }
            }
        }
    }

    fn on_barrier(&mut self, channel: usize, barrier: Barrier, now_us: u64) {
        if barrier.id <= self.settled {
            return;
        }
        match &self.alignment {
            Some(alignment) if alignment.barrier.id == barrier.id => {}
            Some(alignment) if alignment.barrier.id > barrier.id => return,
            _ => {
                self.give_up();
                self.alignment = Some(Alignment { barrier, since_us: now_us });
            }
        }
        if let Some(state) = self.channels.get_mut(channel) {
            state.aligned = true;
        }
        self.complete_alignment(now_us);
    }

    /// Gives up the alignment of a snapshot that was aborted, and of any earlier one; its channels are read again.
    pub fn cancel(&mut self, barrier: BarrierId) {
        if self.alignment.as_ref().is_some_and(|alignment| alignment.barrier.id <= barrier) {
            self.give_up();
        }
        self.settled = self.settled.max(barrier);
    }

    fn give_up(&mut self) {
        if let Some(alignment) = self.alignment.take() {
            self.release(alignment.barrier.id);
            self.events.push_back(GateEvent::Cancelled(alignment.barrier));
        }
    }

    fn release(&mut self, barrier: BarrierId) {
        self.settled = self.settled.max(barrier);
        for channel in &mut self.channels {
            channel.aligned = false;
        }
    }

    fn complete_alignment(&mut self, now_us: u64) {
        if self.channels.iter().any(|channel| !channel.aligned && !channel.ended) {
            return;
        }
        if let Some(Alignment { barrier, since_us }) = self.alignment.take() {
            self.release(barrier.id);
            let alignment_us = now_us.saturating_sub(since_us);
            self.events.push_back(GateEvent::Barrier(AlignedBarrier { barrier, alignment_us }));
        }
    }

    fn update_event_time(&mut self) {
        let awaited = self.channels.iter().filter(|channel| !channel.idle && channel.watermark < Watermark::MAX);
        let minimum = awaited.map(|channel| channel.watermark).min();
        let all_at_maximum = || self.channels.iter().all(|channel| channel.watermark == Watermark::MAX);
        let Some(minimum) = minimum.or_else(|| all_at_maximum().then_some(Watermark::MAX)) else {
            if !std::mem::replace(&mut self.idle, true) {
                self.events.push_back(GateEvent::Idle);
            }
            return;
        };
        let was_idle = std::mem::take(&mut self.idle);
        if minimum > self.watermark || (was_idle && self.watermark > Watermark::MIN) {
            self.watermark = self.watermark.max(minimum);
            self.events.push_back(GateEvent::Watermark(self.watermark));
        }
    }
}

/// Reads the channels into a subtask fairly: each open channel in turn.
pub struct InputGate {
    /// Whose gate it is, for the log.
    subtask: Option<SubtaskId>,
    receivers: Vec<ChannelReceiver>,
    state: GateState,
    turn: usize,
    started: Instant,
}

impl InputGate {
    /// A gate over these channels.
    pub fn new(receivers: Vec<ChannelReceiver>) -> Self {
        Self { subtask: None, state: GateState::new(receivers.len()), receivers, turn: 0, started: Instant::now() }
    }

    /// The same gate, whose log says whose it is.
    #[must_use]
    pub fn of(self, subtask: SubtaskId) -> Self {
        Self { subtask: Some(subtask), ..self }
    }

    /// The barrier that is being aligned, and on how many of all channels it has arrived or will not any more.
    pub fn aligning(&self) -> Option<(&Barrier, usize, usize)> {
        let alignment = self.state.alignment.as_ref()?;
        let arrived = self.state.channels.iter().filter(|channel| channel.aligned || channel.ended).count();
        Some((&alignment.barrier, arrived, self.state.channels.len()))
    }

    /// As [`GateState::cancel`].
    pub fn cancel(&mut self, barrier: BarrierId) {
        self.state.cancel(barrier);
    }

    /// The next event; pends for ever after [`GateEvent::End`]. Cancel safe.
    ///
    /// # Errors
    /// If a channel broke.
    pub async fn next(&mut self) -> Result<GateEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<GateEvent>> {
        loop {
            if let Some(event) = self.state.next_event() {
                return Poll::Ready(Ok(event));
            }
            let Some((channel, element)) = self.poll_element(cx)? else {
                return Poll::Pending;
            };
            let now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let is_barrier = matches!(element, Element::Barrier(_));
            self.state.on_element(channel, element, now_us);
            if is_barrier {
                self.log_alignment(channel);
            }
        }
    }

    fn log_alignment(&self, channel: usize) {
        if let (Some(subtask), Some((barrier, arrived, inputs))) = (&self.subtask, self.aligning()) {
            tracing::debug!(snapshot = %barrier.snapshot, %subtask, channel, arrived, inputs, "aligning");
        }
    }

    /// An element of the next open channel that has one.
    fn poll_element(&mut self, cx: &mut Context<'_>) -> Result<Option<(usize, Element)>> {
        let count = self.receivers.len();
        for channel in (0..count).map(|step| (self.turn + step) % count) {
            if !self.state.is_open(channel) {
                continue;
            }
            let Some(receiver) = self.receivers.get_mut(channel) else { continue };
            if let Poll::Ready(element) = receiver.poll_recv(cx) {
                self.turn = (channel + 1) % count;
                return Ok(Some((channel, element?)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
