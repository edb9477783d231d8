//! The contract of a source connector.

use arrow::array::RecordBatch;
use async_trait::async_trait;
use weir_types::Result;
use weir_types::graph::SourceSpec;
use weir_types::snapshot::SplitPosition;

/// What a source connector is built from.
#[derive(Clone, Debug)]
pub struct SourceContext {
    /// The scan.
    pub spec: SourceSpec,
    /// The splits that this subtask reads, with the positions to start from.
    pub splits: Vec<SplitPosition>,
    /// Rows per batch, at most.
    pub batch_rows: usize,
    /// Where connectors run network and file work; the compute thread only decodes.
    pub io: tokio::runtime::Handle,
    /// Address of the stream store.
    pub store_address: String,
    /// Name for logs, and for what the source registers elsewhere: job id, uid and subtask.
    pub name: String,
}

/// What a source brings.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// Rows of one split.
    Rows {
        /// Index into [`SourceContext::splits`].
        split: usize,
        /// Columns as in the spec's `scan_schema`. May be empty if rows were filtered out by the connector.
        rows: RecordBatch,
        /// The split's position after these rows.
        next_offset: u64,
        /// The largest event time up to that position in ms, rows that a pushed filter left out included; none: the
        /// connector does not know better than the rows themselves.
        event_time_max_ms: Option<i64>,
    },
    /// A bounded split has been read to its end.
    SplitFinished {
        /// Index into [`SourceContext::splits`].
        split: usize,
    },
    /// All splits are finished.
    End,
}

/// Reads splits. Runs on the compute thread; whatever blocks runs on [`SourceContext::io`].
#[async_trait(?Send)]
pub trait Source {
    /// The next event. Cancel safe: dropping the future loses nothing. Pends while there is nothing to read.
    ///
    /// # Errors
    /// For a failure of the job: a malformed record, a truncated offset. Lost connections are retried within.
    async fn next(&mut self) -> Result<SourceEvent>;
}
