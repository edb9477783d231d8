//! The change that a row stands for, as sinks see it.

use weir_dataflow::element::{Batch, RowOp};
use weir_types::{Code, Error, Result};

/// `+I`, `-U`, `+U` or `-D`, for one row of a batch.
pub(crate) fn short_name(batch: &Batch, row: usize) -> &'static str {
    match batch.ops.as_ref().and_then(|ops| ops.get(row)) {
        Some(op) if *op == RowOp::UpdateBefore as u8 => "-U",
        Some(op) if *op == RowOp::UpdateAfter as u8 => "+U",
        Some(op) if *op == RowOp::Delete as u8 => "-D",
        _ => "+I",
    }
}

/// Refuses batches with updates or deletes, for sinks that append.
///
/// # Errors
/// `UNSUPPORTED` naming the table.
pub(crate) fn require_inserts(table: &str, batch: &Batch) -> Result<()> {
    let inserts = |ops: &[u8]| ops.iter().all(|op| *op == RowOp::Insert as u8);
    if batch.ops.as_deref().is_none_or(inserts) {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, format!("table '{table}' takes inserts only, not updates or deletes"))
        .with_hint("Write to a connector that takes a changelog, such as 'print'."))
}
