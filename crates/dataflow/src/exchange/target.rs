//! One channel out of an exchange and the rows that wait to fill a batch for it.

use std::task::{Context, Poll};

use tokio::time::Instant;
use weir_types::Result;

use super::BatchLimits;
use crate::channel::ChannelSender;
use crate::element::{Batch, Element};

pub(super) struct Target {
    sender: ChannelSender,
    waiting: Vec<Batch>,
    rows: usize,
    bytes: usize,
    since: Option<Instant>,
}

impl Target {
    pub(super) fn new(sender: ChannelSender) -> Self {
        Self { sender, waiting: Vec::new(), rows: 0, bytes: 0, since: None }
    }

    /// Since when rows have been waiting; none: no rows wait.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Adds rows behind those that wait, and sends them if there are enough. A batch that is at least half full is not
    /// copied together with others.
    pub(super) fn add(&mut self, batch: Batch, limits: &BatchLimits, now: Instant) -> Result<()> {
        let mut start = 0;
        while start < batch.len() {
            let rows = (batch.len() - start).min(limits.rows);
            self.add_piece(if rows == batch.len() { batch.clone() } else { batch.slice(start, rows) }, limits, now)?;
            start += rows;
        }
        Ok(())
    }

    fn add_piece(&mut self, piece: Batch, limits: &BatchLimits, now: Instant) -> Result<()> {
        let (rows, bytes) = (piece.len(), piece.bytes());
        if self.rows + rows > limits.rows || self.bytes + bytes > limits.bytes {
            self.flush()?;
        }
        self.waiting.push(piece);
        self.rows += rows;
        self.bytes += bytes;
        self.since.get_or_insert(now);
        let large = self.waiting.len() == 1 && (rows * 2 >= limits.rows || bytes * 2 >= limits.bytes);
        if large || limits.timeout.is_zero() || self.rows >= limits.rows || self.bytes >= limits.bytes {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends the rows that wait.
    pub(super) fn flush(&mut self) -> Result<()> {
        let batch = match self.waiting.len() {
            0 => return Ok(()),
            1 => self.waiting.pop(),
            _ => Some(Batch::concat(&self.waiting)?),
        };
        self.waiting.clear();
        (self.rows, self.bytes, self.since) = (0, 0, None);
        match batch {
            Some(batch) => self.sender.push(Element::Batch(batch.compact()?)),
            None => Ok(()),
        }
    }

    /// Sends anything but rows, behind the rows that wait.
    pub(super) fn send(&mut self, element: Element) -> Result<()> {
        self.flush()?;
        self.sender.push(element)
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.sender.poll_room(cx)
    }
}
