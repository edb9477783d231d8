//! One state table of one operator, over the files of all subtasks: rows as a restore would find them, whatever runs they
//! lie in.
//!
//! Columns are those of the files; behind a column of instants that start a stretch of time follows one with their ends,
//! which is computed.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use weir_state::columns;
use weir_state::merge::TableReader;
use weir_state::store::SnapshotStore;
use weir_types::ids::OperatorUid;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{OperatorSnapshot, StateFile};
use weir_types::{Code, Error, Result};

/// A state table as its files hold it.
pub struct Table {
    operator: OperatorUid,
    name: String,
    store: Arc<dyn SnapshotStore>,
    /// What each subtask contributed, with the files of this table only.
    parts: Vec<OperatorSnapshot>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.operator, self.name)
    }
}

/// Where a column comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// From this column of the files.
    Stored(usize),
    /// The end of the stretch of time, of so many milliseconds, that starts in this column of the files.
    End(usize, i64),
}

/// The columns of a table.
#[derive(Clone, Debug)]
pub struct Columns {
    schema: SchemaRef,
    origins: Vec<Origin>,
    stored: SchemaRef,
}

impl Columns {
    fn of(stored: SchemaRef) -> Self {
        let (mut fields, mut origins) = (Vec::new(), Vec::new());
        for (index, field) in stored.fields().iter().enumerate() {
            fields.push(Arc::clone(field));
            origins.push(Origin::Stored(index));
            let instants = *field.data_type() == DataType::Timestamp(TimeUnit::Millisecond, None);
            if let (true, Some(span_ms)) = (instants, columns::span_ms(field)) {
                let name = field.name().strip_suffix("_start").unwrap_or(field.name());
                fields.push(Arc::new(Field::new(format!("{name}_end"), field.data_type().clone(), true)));
                origins.push(Origin::End(index, span_ms));
            }
        }
        Self { schema: Arc::new(Schema::new(fields)), origins, stored }
    }

    /// The columns, those that are computed included.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Which columns are in the files, and whether they are of the key, tell the rows of a key apart, or are values. The
    /// first is the key hash.
    pub fn roles(&self) -> impl Iterator<Item = (usize, Option<columns::Role>)> + '_ {
        self.origins.iter().enumerate().filter_map(|(index, origin)| match origin {
            Origin::Stored(stored) => Some((index, columns::role(self.stored.field(*stored)))),
            Origin::End(..) => None,
        })
    }
}

impl Table {
    pub(crate) fn new(
        operator: OperatorUid,
        name: String,
        store: &Arc<dyn SnapshotStore>,
        parts: Vec<OperatorSnapshot>,
    ) -> Self {
        Self { operator, name, store: Arc::clone(store), parts }
    }

    /// The operator's uid.
    pub fn operator(&self) -> &OperatorUid {
        &self.operator
    }

    /// The table's name, unique within its operator.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &StateFile> {
        self.parts.iter().flat_map(|part| &part.files)
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files().fold(0_u64, |bytes, file| bytes.saturating_add(file.bytes))
    }

    /// Its rows, if the manifest tells: where files replace rows of others, only reading them does.
    pub fn rows(&self) -> Option<u64> {
        let told = self.parts.iter().all(|part| part.files.len() == 1 && part.files[0].live_from.is_none());
        told.then(|| self.files().fold(0_u64, |rows, file| rows.saturating_add(file.rows)))
    }

    /// Its columns, from the headers of its files.
    ///
    /// # Errors
    /// `CORRUPT`, `NOT_FOUND`, `UNSUPPORTED`, `IO`.
    pub fn columns(&self) -> Result<Columns> {
        Ok(Columns::of(self.open(KeyRange::FULL)?.map_or_else(|| Arc::new(Schema::empty()), |rows| rows.schema())))
    }

    /// Its rows with the given columns of [`Table::columns`], in the order of their key hashes.
    ///
    /// # Errors
    /// As [`Table::columns`].
    pub fn scan(&self, projection: &[usize]) -> Result<Scan> {
        self.scan_range(projection, KeyRange::FULL)
    }

    /// The same, of the rows whose hashes lie in `range`.
    pub(crate) fn scan_range(&self, projection: &[usize], range: KeyRange) -> Result<Scan> {
        let Some(rows) = self.open(range)? else {
            return Ok(Scan { rows: None, schema: Arc::new(Schema::empty()), origins: Vec::new() });
        };
        let columns = Columns::of(rows.schema());
        let schema = columns.schema.project(projection).map_err(|error| broken(&error))?;
        let mut read = Vec::new();
        let mut place = |stored: usize| match read.iter().position(|known| *known == stored) {
            Some(place) => place,
            None => {
                read.push(stored);
                read.len() - 1
            }
        };
        let origins = projection.iter().map(|&column| match columns.origins[column] {
            Origin::Stored(stored) => Origin::Stored(place(stored)),
            Origin::End(stored, span_ms) => Origin::End(place(stored), span_ms),
        });
        let origins = origins.collect();
        Ok(Scan { rows: Some(rows.project(&read)?), schema: Arc::new(schema), origins })
    }

    fn open(&self, range: KeyRange) -> Result<Option<TableReader>> {
        TableReader::open(self.store.as_ref(), &self.parts, &self.name, range)
    }
}

/// Rows of a table, batch by batch; after an error it has ended.
pub struct Scan {
    rows: Option<TableReader>,
    schema: SchemaRef,
    /// For each column, where it comes from among those read.
    origins: Vec<Origin>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Scan {
    fn shape(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.origins.iter().map(|origin| match *origin {
            Origin::Stored(place) => Ok(Arc::clone(batch.column(place))),
            Origin::End(place, span_ms) => ends(batch.column(place), span_ms),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        batch.map_err(|error| broken(&error))
    }
}

impl Iterator for Scan {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.rows.as_mut()?.next()?;
        Some(batch.and_then(|batch| self.shape(&batch)))
    }
}

fn ends(starts: &ArrayRef, span_ms: i64) -> Result<ArrayRef> {
    let Some(starts) = starts.as_primitive_opt::<TimestampMillisecondType>() else {
        return Err(Error::internal("the end of something that is no instant was asked for"));
    };
    // An instant that no calendar knows has no end.
    let ends: TimestampMillisecondArray =
        starts.iter().map(|start| start.and_then(|start| start.checked_add(span_ms))).collect();
    Ok(Arc::new(ends))
}

fn broken(error: &arrow::error::ArrowError) -> Error {
    Error::new(Code::Corrupt, "a state table does not fit together").with_detail(error.to_string())
}
