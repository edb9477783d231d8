//! The exchanges out of an operator chain: routing, coalescing, and event time behind the rows.
//!
//! Invariants, per channel: rows keep their order; a watermark, barrier or end never overtakes rows emitted before it;
//! a barrier is preceded by the latest watermark, so that at a barrier all subtasks behind the exchange hold the same
//! one. Rows leave when a batch is full, when the buffer timeout has passed, and before a barrier or the end.
//! Watermarks are merged into the latest and sent at most every [`WATERMARK_INTERVAL`], and at once when the input turns
//! idle or ends, or a barrier passes. Time is an argument here.

mod partition;
mod target;

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use weir_types::graph::Exchange;
use weir_types::ids::Parallelism;
use weir_types::snapshot::Barrier;
use weir_types::{Error, Result};

use crate::channel::ChannelSender;
use crate::element::{Batch, Element, Watermark};
use partition::Partitioner;
use target::Target;

/// At most this often a watermark is sent, unless something else calls for it.
pub const WATERMARK_INTERVAL: Duration = Duration::from_millis(200);

/// When rows leave.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Rows of a full batch.
    pub rows: usize,
    /// Bytes of a full batch.
    pub bytes: usize,
    /// How long rows may wait for a batch to be filled.
    pub timeout: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows: 8192, bytes: 1 << 20, timeout: Duration::from_millis(10) }
    }
}

enum Routing {
    Forward,
    Hash(Partitioner),
    Rebalance { turn: usize },
}

/// One edge out of the chain.
struct EdgeOutput {
    routing: Routing,
    targets: Vec<Target>,
    /// The latest, and whether it still has to be sent.
    watermark: Watermark,
    watermark_due: bool,
    watermark_sent: Option<Instant>,
    idle: bool,
}

/// All edges out of one operator chain.
pub struct Outputs {
    edges: Vec<EdgeOutput>,
    limits: BatchLimits,
}

impl Outputs {
    /// No edges yet.
    pub fn new(limits: BatchLimits) -> Self {
        Self { edges: Vec::new(), limits }
    }

    /// Adds an edge with one sender per subtask on the other side, in order of their indices; for a forward exchange,
    /// the one opposite. Returns the edge's number here.
    ///
    /// # Errors
    /// `INTERNAL` if the number of senders does not fit.
    pub fn add(&mut self, exchange: &Exchange, senders: Vec<ChannelSender>) -> Result<usize> {
        let count = u32::try_from(senders.len()).unwrap_or(u32::MAX);
        let routing = match exchange {
            Exchange::Chained => return Err(Error::internal("a chained edge is no exchange")),
            Exchange::Forward if count != 1 => return Err(Error::internal("a forward exchange has one channel")),
            Exchange::Forward => Routing::Forward,
            Exchange::Hash { keys } => Routing::Hash(Partitioner::new(keys.clone(), Parallelism::new(count)?)),
            Exchange::Rebalance => Routing::Rebalance { turn: 0 },
        };
        self.edges.push(EdgeOutput {
            routing,
            targets: senders.into_iter().map(Target::new).collect(),
            watermark: Watermark::MIN,
            watermark_due: false,
            watermark_sent: None,
            idle: false,
        });
        Ok(self.edges.len() - 1)
    }

    /// Routes rows of an edge.
    ///
    /// # Errors
    /// `UNAVAILABLE` if a receiver is gone.
    pub fn emit(&mut self, edge: usize, batch: Batch, now: Instant) -> Result<()> {
        let limits = self.limits;
        let edge = self.edge(edge)?;
        edge.idle = false;
        edge.route(batch, &limits, now)
    }

    /// Advances event time of an edge.
    ///
    /// # Errors
    /// As [`Outputs::emit`].
    pub fn watermark(&mut self, edge: usize, watermark: Watermark, now: Instant) -> Result<()> {
        let edge = self.edge(edge)?;
        let advanced = watermark > edge.watermark;
        if !advanced && !edge.idle {
            return Ok(());
        }
        edge.watermark = edge.watermark.max(watermark);
        edge.watermark_due = true;
        let waited = edge.watermark_sent.is_none_or(|sent| now.duration_since(sent) >= WATERMARK_INTERVAL);
        if std::mem::take(&mut edge.idle) || waited || watermark == Watermark::MAX {
            edge.send_watermark(now)?;
        }
        Ok(())
    }

    /// Tells every edge that no rows come for now.
    ///
    /// # Errors
    /// As [`Outputs::emit`].
    pub fn idle(&mut self, now: Instant) -> Result<()> {
        for edge in &mut self.edges {
            edge.send_watermark(now)?;
            edge.idle = true;
            edge.send_all(&Element::Idle)?;
        }
        Ok(())
    }

    /// Sends a barrier down every channel, behind everything emitted so far.
    ///
    /// # Errors
    /// As [`Outputs::emit`].
    pub fn barrier(&mut self, barrier: &Barrier, now: Instant) -> Result<()> {
        self.close_with(&Element::Barrier(barrier.clone()), now)
    }

    /// Ends every channel, behind everything emitted so far.
    ///
    /// # Errors
    /// As [`Outputs::emit`].
    pub fn end(&mut self, now: Instant) -> Result<()> {
        self.close_with(&Element::EndOfInput, now)
    }

    fn close_with(&mut self, element: &Element, now: Instant) -> Result<()> {
        for edge in &mut self.edges {
            edge.send_watermark(now)?;
            edge.send_all(element)?;
        }
        Ok(())
    }

    /// Sends what has waited long enough.
    ///
    /// # Errors
    /// As [`Outputs::emit`].
    pub fn flush_due(&mut self, now: Instant) -> Result<()> {
        for edge in &mut self.edges {
            for target in &mut edge.targets {
                if target.since().is_some_and(|since| now >= since + self.limits.timeout) {
                    target.flush()?;
                }
            }
            if edge.watermark_deadline().is_some_and(|deadline| now >= deadline) {
                edge.send_watermark(now)?;
            }
        }
        Ok(())
    }

    /// When [`Outputs::flush_due`] has something to do next.
    pub fn deadline(&self) -> Option<Instant> {
        let rows = self.edges.iter().flat_map(|edge| &edge.targets).filter_map(Target::since).min();
        let watermark = self.edges.iter().filter_map(EdgeOutput::watermark_deadline).min();
        [rows.map(|since| since + self.limits.timeout), watermark].into_iter().flatten().min()
    }

    /// Ready when every channel has room.
    ///
    /// # Errors
    /// As [`Outputs::emit`].
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut room = Poll::Ready(Ok(()));
        for target in self.edges.iter_mut().flat_map(|edge| &mut edge.targets) {
            match target.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => room = Poll::Pending,
            }
        }
        room
    }

    fn edge(&mut self, edge: usize) -> Result<&mut EdgeOutput> {
        self.edges.get_mut(edge).ok_or_else(|| Error::internal("a chain emitted to an edge that it does not have"))
    }
}

impl EdgeOutput {
    fn route(&mut self, batch: Batch, limits: &BatchLimits, now: Instant) -> Result<()> {
        let targets = &mut self.targets;
        match &mut self.routing {
            Routing::Forward => targets.iter_mut().try_for_each(|target| target.add(batch.clone(), limits, now)),
            Routing::Hash(partitioner) => partitioner.partition(&batch, |owner, rows| {
                let target = targets.get_mut(owner);
                target.ok_or_else(|| Error::internal("a row's owner has no channel"))?.add(rows, limits, now)
            }),
            Routing::Rebalance { turn } => {
                let count = targets.len();
                let Some(target) = targets.get_mut(*turn) else {
                    return Err(Error::internal("a rebalance exchange has no channels"));
                };
                target.add(batch, limits, now)?;
                if target.since().is_none() {
                    *turn = (*turn + 1) % count;
                }
                Ok(())
            }
        }
    }

    fn watermark_deadline(&self) -> Option<Instant> {
        let sent = self.watermark_due.then_some(self.watermark_sent)?;
        sent.map(|sent| sent + WATERMARK_INTERVAL)
    }

    /// Sends all rows, and the watermark if it is due.
    fn send_watermark(&mut self, now: Instant) -> Result<()> {
        self.targets.iter_mut().try_for_each(Target::flush)?;
        if std::mem::take(&mut self.watermark_due) {
            self.watermark_sent = Some(now);
            self.send_all(&Element::Watermark(self.watermark))?;
        }
        Ok(())
    }

    fn send_all(&mut self, element: &Element) -> Result<()> {
        self.targets.iter_mut().try_for_each(|target| target.send(element.clone()))
    }
}

#[cfg(test)]
mod tests;
