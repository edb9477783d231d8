//! State tables as of a barrier: what the synchronous part of a snapshot hands to the asynchronous part.
//!
//! A table may consist of many segments (a window operator keeps one per slice of time) that share pages with the running
//! operator. Rows are gathered column by column, one call per block, in whatever order the file wants.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBufferBuilder};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field};
use weir_types::Result;

use crate::keys::{FrozenKeys, KeyValue};
use crate::values::{Form, Values};

/// A row of a frozen table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowRef {
    /// Which segment.
    pub segment: u32,
    /// Which slot in it.
    pub slot: u32,
}

/// A row with the hash of its key; files are sorted by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashedRow {
    /// Hash of the key.
    pub hash: u64,
    /// The row.
    pub row: RowRef,
}

/// Builds one column for the given rows.
pub type Gather = Box<dyn Fn(&[RowRef]) -> Result<ArrayRef> + Send>;

type ListRows = Box<dyn FnOnce() -> Vec<HashedRow> + Send>;

/// A state table as of a barrier; pages are shared with the running operator until it writes to them.
pub struct FrozenTable {
    pub(crate) name: String,
    pub(crate) rows: ListRows,
    pub(crate) columns: Vec<(Field, Gather)>,
    /// What has changed; none: all has.
    pub(crate) changes: Option<TableChanges>,
    /// Rows of lower segments have gone.
    pub(crate) live_from: Option<i64>,
}

/// What has changed in a table.
pub(crate) struct TableChanges {
    /// How many rows the table has.
    pub(crate) live: u64,
    /// Lists those that have changed or were added.
    pub(crate) rows: ListRows,
    /// The keys and map keys of those that have gone; some of them may have come again.
    pub(crate) gone: Option<Box<FrozenTable>>,
}

impl fmt::Debug for FrozenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.columns.iter().map(|(field, _)| field).collect();
        f.debug_struct("FrozenTable").field("name", &self.name).field("columns", &columns).finish_non_exhaustive()
    }
}

impl FrozenTable {
    /// A table with one row per key of `segments`; the key columns are not added by themselves. Where keys were removed,
    /// [`FrozenTable::with_gone`] has to follow.
    pub fn of_keys(name: impl Into<String>, segments: &Arc<Vec<FrozenKeys>>) -> Self {
        let listed = Arc::clone(segments);
        let table = Self::of_rows(name, move || {
            list(&listed, |keys, rows| rows.extend(keys.slots()), |keys, row| keys.hash(row.slot))
        });
        let changed = Arc::clone(segments);
        table.with_changes(segments, move || {
            list(
                &changed,
                |keys, rows| rows.extend(keys.changed().into_iter().flatten()),
                |keys, row| keys.hash(row.slot),
            )
        })
    }

    /// A table of the rows that `rows` lists in the asynchronous part.
    pub fn of_rows(name: impl Into<String>, rows: impl FnOnce() -> Vec<HashedRow> + Send + 'static) -> Self {
        Self { name: name.into(), rows: Box::new(rows), columns: Vec::new(), changes: None, live_from: None }
    }

    /// The same table, whose rows are those of `segments`, and of which `changed` lists what has changed, if that is known of
    /// all of them.
    #[must_use]
    pub fn with_changes(
        mut self,
        segments: &[FrozenKeys],
        changed: impl FnOnce() -> Vec<HashedRow> + Send + 'static,
    ) -> Self {
        let known = segments.iter().all(|keys| keys.changed().is_some());
        let live = segments.iter().map(|keys| keys.len() as u64).sum();
        self.changes = known.then(|| TableChanges { live, rows: Box::new(changed), gone: None });
        self
    }

    /// The same table, with the keys and map keys of the rows that have gone as a table of their own.
    #[must_use]
    pub fn with_gone(mut self, gone: FrozenTable) -> Self {
        if let Some(changes) = &mut self.changes {
            changes.gone = Some(Box::new(gone));
        }
        self
    }

    /// The same table, all of whose rows of segments below this one have gone at once (see [`crate::merge::SEGMENT`]).
    #[must_use]
    pub fn with_live_from(mut self, segment: i64) -> Self {
        self.live_from = Some(segment);
        self
    }

    /// The same table with one more column.
    #[must_use]
    pub fn with_column(mut self, field: Field, gather: Gather) -> Self {
        self.columns.push((field, gather));
        self
    }

    /// The table's name, unique within its operator.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Lists rows of several segments: which slots of each, and the hash of a slot's key.
pub fn list(
    segments: &[FrozenKeys],
    slots: impl Fn(&FrozenKeys, &mut Vec<u32>),
    hash: impl Fn(&FrozenKeys, RowRef) -> u64,
) -> Vec<HashedRow> {
    let (mut rows, mut chosen) = (Vec::new(), Vec::new());
    for (segment, keys) in segments.iter().enumerate() {
        chosen.clear();
        slots(keys, &mut chosen);
        rows.extend(chosen.iter().map(|&slot| {
            let row = RowRef { segment: segment as u32, slot };
            HashedRow { hash: hash(keys, row), row }
        }));
    }
    rows
}

/// The keys that were removed from these tables, as tables of their own.
pub fn removed(segments: &[FrozenKeys]) -> Arc<Vec<FrozenKeys>> {
    Arc::new(segments.iter().flat_map(FrozenKeys::removed).cloned().collect())
}

/// A key column; `locate` says in which segment and slot of `segments` a row's key is.
///
/// # Errors
/// `UNSUPPORTED` if keys cannot have this type.
pub fn key_column(
    data_type: &DataType,
    segments: Arc<Vec<FrozenKeys>>,
    column: usize,
    locate: impl Fn(RowRef) -> RowRef + Send + 'static,
) -> Result<Gather> {
    let form = Form::of_key(data_type)?;
    let data_type = data_type.clone();
    Ok(match form {
        Form::Word | Form::Float => word_column(data_type, move |row| match key(&segments, column, locate(row)) {
            KeyValue::Word(word) => Some(word),
            _ => None,
        }),
        Form::Wide => wide_column(data_type, move |row| match key(&segments, column, locate(row)) {
            KeyValue::Wide(wide) => Some(wide),
            _ => None,
        }),
        Form::Bytes => {
            bytes_column(data_type, segments, move |segments, row| match key(segments, column, locate(row)) {
                KeyValue::Bytes(bytes) => Some(bytes),
                _ => None,
            })
        }
    })
}

fn key(segments: &[FrozenKeys], column: usize, row: RowRef) -> KeyValue<'_> {
    segments[row.segment as usize].columns[column].value(row.slot)
}

/// A column of words (see [`Form::Word`]).
pub fn word_column<F>(data_type: DataType, value: F) -> Gather
where
    F: Fn(RowRef) -> Option<i64> + Send + 'static,
{
    Box::new(move |rows| {
        let (words, nulls) = collect(rows, &value);
        Values::words_to_array(&data_type, words, nulls)
    })
}

/// A column of `FLOAT` or `DOUBLE`.
pub fn float_column<F>(data_type: DataType, value: F) -> Gather
where
    F: Fn(RowRef) -> Option<f64> + Send + 'static,
{
    Box::new(move |rows| {
        let (floats, nulls) = collect(rows, &value);
        Values::floats_to_array(&data_type, floats, nulls)
    })
}

/// A column of decimals, given unscaled.
pub fn wide_column<F>(data_type: DataType, value: F) -> Gather
where
    F: Fn(RowRef) -> Option<i128> + Send + 'static,
{
    Box::new(move |rows| {
        let (wides, nulls) = collect(rows, &value);
        Values::wides_to_array(&data_type, wides, nulls)
    })
}

/// A column of strings or binary values kept in `state`.
pub fn bytes_column<S, F>(data_type: DataType, state: S, value: F) -> Gather
where
    S: Send + 'static,
    F: for<'a> Fn(&'a S, RowRef) -> Option<&'a [u8]> + Send + 'static,
{
    Box::new(move |rows| Values::bytes_to_array(&data_type, rows.iter().map(|&row| value(&state, row))))
}

fn collect<T: Default>(rows: &[RowRef], value: impl Fn(RowRef) -> Option<T>) -> (Vec<T>, Option<NullBuffer>) {
    let mut valid = BooleanBufferBuilder::new(rows.len());
    let mut values = Vec::with_capacity(rows.len());
    for &row in rows {
        let value = value(row);
        valid.append(value.is_some());
        values.push(value.unwrap_or_default());
    }
    let nulls = NullBuffer::new(valid.finish());
    (values, Some(nulls).filter(|nulls| nulls.null_count() > 0))
}
