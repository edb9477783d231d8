//! The head of a source's operator chain: positions, event time per split, idleness, and batches of a good size.
//!
//! Invariants: a split's position lies behind exactly the rows that were handed on or are waiting here, and
//! [`SourceReader::flush`] hands those on; a watermark follows the rows that it was read off; the subtask's watermark is
//! the minimum over its splits, without finished and idle ones, and only grows. After a restore the splits' watermarks
//! come before any row.

use std::collections::VecDeque;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use weir_types::snapshot::SplitPosition;
use weir_types::{Error, Result};

use crate::calc::Calc;
use crate::element::{Batch, Watermark};
use crate::exchange::BatchLimits;
use crate::source::{Source, SourceEvent};
use crate::subtask::Work;
use crate::watermark::WatermarkGenerator;

/// How a source's rows become those of its table.
pub struct ReaderRules {
    /// Computed columns and projection.
    pub calc: Option<Calc>,
    /// Watermarks, over the columns after `calc`.
    pub watermark: Option<WatermarkGenerator>,
    /// After how long without rows a split counts as idle.
    pub idle_timeout: Option<Duration>,
    /// How large batches become.
    pub limits: BatchLimits,
}

struct Split {
    position: SplitPosition,
    active_at: Instant,
    idle: bool,
}

/// Reads a source.
pub struct SourceReader {
    source: Box<dyn Source>,
    rules: ReaderRules,
    splits: Vec<Split>,
    waiting: Vec<Batch>,
    waiting_rows: usize,
    waiting_bytes: usize,
    watermark: Watermark,
    watermark_due: bool,
    idle: bool,
    ended: bool,
    rows_read: u64,
}

/// What [`SourceReader::next`] found.
pub enum Found {
    /// The source brought something.
    Event(SourceEvent),
    /// Rows wait here, and the source has nothing more at the moment.
    Pause,
}

impl SourceReader {
    /// A reader of these splits.
    pub fn new(source: Box<dyn Source>, splits: Vec<SplitPosition>, rules: ReaderRules, now: Instant) -> Self {
        Self {
            source,
            rules,
            splits: splits.into_iter().map(|position| Split { position, active_at: now, idle: false }).collect(),
            waiting: Vec::new(),
            waiting_rows: 0,
            waiting_bytes: 0,
            watermark: Watermark::MIN,
            watermark_due: false,
            idle: false,
            ended: false,
            rows_read: 0,
        }
    }

    /// Event time to start with: that of the splits' positions.
    pub fn start(&mut self, work: &mut VecDeque<Work>) {
        self.advance_event_time(work);
        self.end_if_finished(work);
    }

    /// Whether all splits have been read to their ends.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Rows read so far.
    pub fn rows_read(&self) -> u64 {
        self.rows_read
    }

    /// Where every split stands.
    pub fn positions(&self) -> Vec<SplitPosition> {
        self.splits.iter().map(|split| split.position.clone()).collect()
    }

    /// Waits for the source; not at all if rows are waiting here. Cancel safe.
    ///
    /// # Errors
    /// The source's.
    pub async fn next(&mut self) -> Result<Found> {
        if self.waiting.is_empty() {
            return self.source.next().await.map(Found::Event);
        }
        self.source.next().now_or_never().map_or(Ok(Found::Pause), |event| event.map(Found::Event))
    }

    /// Takes what [`SourceReader::next`] found.
    ///
    /// # Errors
    /// If a row cannot be computed, or the source names a split that it was not given.
    pub fn on_found(&mut self, found: Found, now: Instant, work: &mut VecDeque<Work>) -> Result<()> {
        match found {
            Found::Pause => self.flush(work),
            Found::Event(SourceEvent::Rows { split, rows, next_offset, event_time_max_ms }) => {
                self.rows_read += rows.num_rows() as u64;
                let batch = if rows.num_rows() == 0 { None } else { Some(Batch::inserts(rows)) };
                let batch = match (batch, &self.rules.calc) {
                    (Some(batch), Some(calc)) => calc.apply(batch)?,
                    (batch, _) => batch,
                };
                self.on_rows(split, batch, (next_offset, event_time_max_ms), now)?;
                self.advance_event_time(work);
            }
            Found::Event(SourceEvent::SplitFinished { split }) => {
                self.split(split)?.position.finished = true;
                self.advance_event_time(work);
                self.end_if_finished(work);
            }
            Found::Event(SourceEvent::End) => {
                for split in &mut self.splits {
                    split.position.finished = true;
                }
                self.end_if_finished(work);
            }
        }
        let limits = &self.rules.limits;
        if self.waiting_rows * 2 >= limits.rows || self.waiting_bytes * 2 >= limits.bytes {
            self.flush(work);
        }
        Ok(())
    }

    fn on_rows(
        &mut self,
        split: usize,
        batch: Option<Batch>,
        (next_offset, event_time_max_ms): (u64, Option<i64>),
        now: Instant,
    ) -> Result<()> {
        let watermark_ms = match &self.rules.watermark {
            Some(generator) => generator.watermark_ms(batch.as_ref().map(|batch| &batch.rows), event_time_max_ms)?,
            None => None,
        };
        let split = self.split(split)?;
        split.position.offset = next_offset;
        split.position.watermark_ms = split.position.watermark_ms.max(watermark_ms.unwrap_or(i64::MIN));
        split.active_at = now;
        split.idle = false;
        if let Some(batch) = batch {
            self.waiting_rows += batch.len();
            self.waiting_bytes += batch.bytes();
            self.waiting.push(batch);
        }
        Ok(())
    }

    fn split(&mut self, split: usize) -> Result<&mut Split> {
        let splits = self.splits.len();
        let found = self.splits.get_mut(split);
        found.ok_or_else(|| Error::internal(format!("a source of {splits} splits brought rows of split {split}")))
    }

    /// Hands on the rows that wait, and the watermark behind them.
    pub fn flush(&mut self, work: &mut VecDeque<Work>) {
        (self.waiting_rows, self.waiting_bytes) = (0, 0);
        if self.waiting.len() == 1 {
            work.extend(self.waiting.pop().map(Work::Rows));
        } else if !self.waiting.is_empty() {
            work.push_back(Work::Join(std::mem::take(&mut self.waiting)));
        }
        if std::mem::take(&mut self.watermark_due) {
            work.push_back(Work::Watermark(self.watermark));
        }
    }

    fn end_if_finished(&mut self, work: &mut VecDeque<Work>) {
        if !self.ended && self.splits.iter().all(|split| split.position.finished) {
            self.ended = true;
            self.watermark = Watermark::MAX;
            self.watermark_due = true;
            self.flush(work);
            work.push_back(Work::Drained);
        }
    }

    fn advance_event_time(&mut self, work: &mut VecDeque<Work>) {
        if self.rules.watermark.is_none() || self.ended {
            return;
        }
        let awaited = self.splits.iter().filter(|split| !split.position.finished && !split.idle);
        let Some(minimum) = awaited.map(|split| Watermark(split.position.watermark_ms)).min() else {
            let unfinished = self.splits.iter().any(|split| !split.position.finished);
            if unfinished && !std::mem::replace(&mut self.idle, true) {
                self.flush(work);
                work.push_back(Work::Idle);
            }
            return;
        };
        let was_idle = std::mem::take(&mut self.idle);
        if minimum > self.watermark || (was_idle && self.watermark > Watermark::MIN) {
            self.watermark = self.watermark.max(minimum);
            self.watermark_due = true;
        }
        if self.waiting.is_empty() {
            self.flush(work);
        }
    }

    /// When the next split would turn idle.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = self.rules.idle_timeout?;
        self.rules.watermark.as_ref()?;
        let active = self.splits.iter().filter(|split| !split.idle && !split.position.finished);
        active.map(|split| split.active_at + timeout).min()
    }

    /// Marks the splits idle that have brought nothing for long enough.
    pub fn on_timer(&mut self, now: Instant, work: &mut VecDeque<Work>) {
        let Some(timeout) = self.rules.idle_timeout else { return };
        for split in &mut self.splits {
            split.idle |= now >= split.active_at + timeout;
        }
        self.advance_event_time(work);
    }

    /// The reader was kept from reading for so long: that does not count as idleness.
    pub fn resume_after(&mut self, waited: Duration) {
        for split in &mut self.splits {
            split.active_at += waited;
        }
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
