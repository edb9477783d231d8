//! State as read back from a snapshot, for any parallelism.
//!
//! A subtask reads, from the files of all former subtasks, the blocks that overlap its key range, and of these the rows in
//! it. Over the subtasks of any new parallelism this gives every row exactly once.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use weir_types::Result;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::OperatorSnapshot;

use crate::merge::{TableReader, table_names};
use crate::store::SnapshotStore;

/// One operator's state as read back from a snapshot, cut to the subtask's key range.
#[derive(Debug)]
pub struct RestoredOperator {
    /// The operator's event time at the barrier, in ms; `i64::MIN` before the first watermark.
    pub watermark_ms: i64,
    /// Its tables, by name; a table that had no rows in any subtask is missing.
    pub tables: BTreeMap<String, RestoredTable>,
}

/// One state table as read back.
#[derive(Debug)]
pub struct RestoredTable {
    /// Columns: the key hash, then what the operator wrote.
    pub schema: SchemaRef,
    /// Rows, sorted by key hash. Never empty batches.
    pub batches: Vec<RecordBatch>,
}

impl RestoredOperator {
    /// Reads the state of one operator: `subtasks` is what each of its former subtasks contributed, `directory` the
    /// snapshot's.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing file, `CORRUPT` for a damaged one, by name and offset.
    pub fn load(directory: &dyn SnapshotStore, subtasks: &[OperatorSnapshot], range: KeyRange) -> Result<Self> {
        let watermark_ms = subtasks.iter().map(|subtask| subtask.watermark_ms).min().unwrap_or(i64::MIN);
        let mut tables = BTreeMap::new();
        for name in table_names(subtasks) {
            let Some(reader) = TableReader::open(directory, subtasks, name, range)? else { continue };
            let schema = reader.schema();
            let batches = reader.collect::<Result<Vec<_>>>()?;
            tables.insert(name.to_owned(), RestoredTable { schema, batches });
        }
        Ok(Self { watermark_ms, tables })
    }
}
