//! State as read back from a snapshot, for any parallelism.
//!
//! A subtask reads, from the files of all former subtasks, the blocks that overlap its key range, and of these the rows in
//! it. Over the subtasks of any new parallelism this gives every row exactly once.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::OperatorSnapshot;
use weir_types::{Code, Error, Result};

use crate::file::read_file;
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
    /// Rows, sorted by key hash within each file that they come from. Never empty batches.
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
        let mut tables: BTreeMap<String, RestoredTable> = BTreeMap::new();
        for file in subtasks.iter().flat_map(|subtask| &subtask.files) {
            if !file.blocks.iter().any(|block| block.hashes.overlaps(range)) {
                continue;
            }
            let rows = read_file(directory, file, range)?;
            match tables.get_mut(&file.table) {
                None => {
                    tables.insert(file.table.clone(), RestoredTable { schema: rows.schema, batches: rows.batches });
                }
                Some(table) if table.schema == rows.schema => table.batches.extend(rows.batches),
                Some(_) => {
                    let name = directory.describe(&file.path);
                    return Err(Error::new(
                        Code::Corrupt,
                        format!("state file {name} has other columns than its siblings"),
                    ));
                }
            }
        }
        Ok(Self { watermark_ms, tables })
    }
}
