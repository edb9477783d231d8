//! The change that a row stands for, as sinks see it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, StructArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use weir_dataflow::element::{Batch, RowOp};
use weir_types::graph::ConnectorSpec;
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

/// How a sink writes what a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Rows as they are: all of them are inserts.
    Rows,
    /// An object per change, as Debezium has them: `before`, `after`, `op`.
    Debezium,
}

impl Written {
    /// As the table's format says.
    pub(crate) fn of(spec: &ConnectorSpec) -> Self {
        if spec.has_change_format() { Self::Debezium } else { Self::Rows }
    }

    /// The rows to be encoded, out of some columns of a batch.
    ///
    /// # Errors
    /// `UNSUPPORTED` naming the table, if it takes no updates or deletes.
    pub(crate) fn rows(self, table: &str, batch: &Batch, columns: RecordBatch) -> Result<RecordBatch> {
        match self {
            Self::Rows => require_inserts(table, batch).map(|()| columns),
            Self::Debezium => envelope(columns, batch.ops.as_deref()),
        }
    }
}

/// Rows as Flink's `debezium-json` writes them: an insert and the new version of an updated row as a creation, a delete and
/// the old version as a deletion.
fn envelope(rows: RecordBatch, ops: Option<&[u8]>) -> Result<RecordBatch> {
    let lives = |op: u8| op == RowOp::Insert as u8 || op == RowOp::UpdateAfter as u8;
    let live: BooleanBuffer = match ops {
        Some(ops) => ops.iter().map(|op| lives(*op)).collect(),
        None => BooleanBuffer::new_set(rows.num_rows()),
    };
    let failed = |error: ArrowError| Error::internal("changes cannot be written").with_detail(error.to_string());
    let op: StringArray = live.iter().map(|live| Some(if live { "c" } else { "d" })).collect();
    let version = |valid: BooleanBuffer| {
        let (fields, columns) = (rows.schema_ref().fields().clone(), rows.columns().to_vec());
        StructArray::try_new(fields, columns, Some(NullBuffer::new(valid))).map_err(failed)
    };
    let (before, after) = (version(!&live)?, version(live)?);
    let row = |name, version: &StructArray| Field::new(name, version.data_type().clone(), true);
    let fields = vec![row("before", &before), row("after", &after), Field::new("op", DataType::Utf8, false)];
    let columns: Vec<ArrayRef> = vec![Arc::new(before), Arc::new(after), Arc::new(op)];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)
}

/// Refuses batches with updates or deletes, for sinks that append.
fn require_inserts(table: &str, batch: &Batch) -> Result<()> {
    let inserts = |ops: &[u8]| ops.iter().all(|op| *op == RowOp::Insert as u8);
    if batch.ops.as_deref().is_none_or(inserts) {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, format!("table '{table}' takes inserts only, not updates or deletes"))
        .with_hint("Write to a connector that takes a changelog, such as 'print', or with 'format' = 'debezium-json'."))
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::buffer::ScalarBuffer;

    use super::*;
    use crate::format::Encode;
    use crate::format::json::JsonEncoder;

    fn batch(ops: Option<Vec<u8>>) -> Batch {
        let fields = vec![Field::new("k", DataType::Utf8, false), Field::new("n", DataType::Int64, true)];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["a", "a", "a", "b"])),
            Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(2), None])),
        ];
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        Batch { rows, ops: ops.map(ScalarBuffer::from) }
    }

    fn text(batch: &Batch) -> String {
        let rows = Written::Debezium.rows("t", batch, batch.rows.clone()).unwrap();
        let mut out = Vec::new();
        JsonEncoder::new(&rows.schema()).unwrap().encode(&rows, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn changes_are_written_as_flink_writes_them() {
        assert_eq!(
            text(&batch(Some(vec![0, 1, 2, 3]))),
            r#"{"before":null,"after":{"k":"a","n":1},"op":"c"}
{"before":{"k":"a","n":1},"after":null,"op":"d"}
{"before":null,"after":{"k":"a","n":2},"op":"c"}
{"before":{"k":"b","n":null},"after":null,"op":"d"}
"#
        );
        assert_eq!(text(&batch(None)).matches(r#""op":"c""#).count(), 4);
    }

    #[test]
    fn a_table_of_rows_refuses_changes() {
        let (inserts, changes) = (batch(None), batch(Some(vec![0, 0, 0, 3])));
        assert_eq!(Written::Rows.rows("t", &inserts, inserts.rows.clone()).unwrap(), inserts.rows);
        let error = Written::Rows.rows("t", &changes, changes.rows.clone()).unwrap_err();
        assert_eq!(error.to_string(), "UNSUPPORTED: table 't' takes inserts only, not updates or deletes");
    }
}
