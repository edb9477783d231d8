//! Counters of one subtask: plain atomics, written by its compute thread, read by heartbeats and metrics pages.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use weir_types::control::SubtaskProgress;
use weir_types::ids::SubtaskId;

/// Counters since the subtask started.
#[derive(Debug)]
pub struct SubtaskMetrics {
    /// Rows that came in: for a source, those it read.
    pub rows_in: AtomicU64,
    /// Rows that went out: through exchanges, and to sinks.
    pub rows_out: AtomicU64,
    /// Rows that came behind the watermark.
    pub late_rows: AtomicU64,
    /// Event time.
    pub watermark_ms: AtomicI64,
    /// State in memory.
    pub state_bytes: AtomicU64,
    /// Time spent processing, in microseconds.
    pub busy_us: AtomicU64,
    /// Time spent waiting for room downstream, in microseconds.
    pub backpressured_us: AtomicU64,
}

impl Default for SubtaskMetrics {
    fn default() -> Self {
        Self {
            rows_in: AtomicU64::new(0),
            rows_out: AtomicU64::new(0),
            late_rows: AtomicU64::new(0),
            watermark_ms: AtomicI64::new(i64::MIN),
            state_bytes: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            backpressured_us: AtomicU64::new(0),
        }
    }
}

impl SubtaskMetrics {
    /// What a heartbeat says about the subtask.
    pub fn progress(&self, subtask: SubtaskId) -> SubtaskProgress {
        SubtaskProgress {
            subtask,
            rows_in: self.rows_in.load(Ordering::Relaxed),
            rows_out: self.rows_out.load(Ordering::Relaxed),
            late_rows: self.late_rows.load(Ordering::Relaxed),
            watermark_ms: self.watermark_ms.load(Ordering::Relaxed),
            state_bytes: self.state_bytes.load(Ordering::Relaxed),
        }
    }
}
