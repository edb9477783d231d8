//! State tables as of a barrier: what the synchronous part of a snapshot hands to the asynchronous part.
//!
//! A table may consist of many segments (a window operator keeps one per slice of time) that share pages with the running
//! operator. Rows are gathered column by column, one call per block, in whatever order the file wants.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBufferBuilder, StringArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field};
use weir_types::{Code, Error, Result};

use crate::keys::{FrozenKeyColumn, FrozenKeys};
use crate::memory::{Memory, uncounted};
use crate::pages::{Cell, FrozenPages, PAGE_SLOTS, place_of};
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

/// Rows with the places that they take in a column.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// In the order in which they lie in memory.
    pub rows: &'a [HashedRow],
    /// Where each of them goes: every place up to their number once.
    pub places: &'a [u32],
}

/// Builds one column of the given rows.
pub type Gather = Box<dyn Fn(Placed<'_>) -> Result<ArrayRef> + Send>;

/// Shows rows, some at a time.
pub type Show<'a> = &'a mut dyn FnMut(&[HashedRow]);

/// Shows all rows of a table in the order in which they lie in memory, as often as it is called.
type Listing = Box<dyn Fn(Show<'_>) + Send>;

/// A state table as of a barrier; pages are shared with the running operator until it writes to them.
pub struct FrozenTable {
    pub(crate) name: String,
    pub(crate) rows: Listing,
    pub(crate) columns: Vec<(Field, Gather)>,
    /// What has changed; none: all has.
    pub(crate) changes: Option<TableChanges>,
    /// Rows of lower segments have gone.
    pub(crate) live_from: Option<i64>,
    /// Counts what writing it takes.
    pub(crate) memory: Memory,
}

/// What has changed in a table.
pub(crate) struct TableChanges {
    /// How many rows the table has.
    pub(crate) live: u64,
    /// Shows those that have changed or were added.
    pub(crate) rows: Listing,
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
        let all = Arc::clone(segments);
        let table = Self::of_rows(name, move |show| list_all(&all, show));
        let changed = Arc::clone(segments);
        table.with_changes(segments, move |show| {
            list(&changed, FrozenKeys::changed_slots, |keys, row| keys.hash(row.slot), show);
        })
    }

    /// A table of the rows that `rows` shows in the asynchronous part: the same ones in the same order, as often as it is
    /// called.
    pub fn of_rows(name: impl Into<String>, rows: impl Fn(Show<'_>) + Send + 'static) -> Self {
        Self {
            name: name.into(),
            rows: Box::new(rows),
            columns: Vec::new(),
            changes: None,
            live_from: None,
            memory: uncounted(),
        }
    }

    /// The same table, whose rows are those of `segments`, and of which `changed` shows what has changed, if that is known of
    /// all of them.
    #[must_use]
    pub fn with_changes(mut self, segments: &[FrozenKeys], changed: impl Fn(Show<'_>) + Send + 'static) -> Self {
        let known = segments.iter().all(FrozenKeys::knows_changes);
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

    /// The same table; what writing it takes is counted there.
    #[must_use]
    pub fn with_memory(mut self, memory: &Memory) -> Self {
        self.memory = Arc::clone(memory);
        if let Some(gone) = self.changes.as_mut().and_then(|changes| changes.gone.as_mut()) {
            gone.memory = Arc::clone(memory);
        }
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

/// Shows all rows of several segments whose keys are their own: page by page, so that nothing is asked for each row.
fn list_all(segments: &[FrozenKeys], show: Show<'_>) {
    let mut shown = Vec::with_capacity(PAGE_SLOTS);
    for (segment, keys) in (0_u32..).zip(segments) {
        for (page, hashes) in keys.hash_pages().enumerate() {
            let slots = (page * PAGE_SLOTS) as u32..;
            let rows = slots.zip(hashes).map(|(slot, &hash)| HashedRow { hash, row: RowRef { segment, slot } });
            shown.clear();
            if keys.is_full(page) {
                shown.extend(rows);
            } else {
                shown.extend(rows.filter(|row| keys.holds(row.row.slot)));
            }
            show(&shown);
        }
    }
}

/// Shows rows of several segments: which slots of each, and the hash of a slot's key.
pub fn list<'a, I: Iterator<Item = u32>>(
    segments: &'a [FrozenKeys],
    slots: impl Fn(&'a FrozenKeys) -> I,
    hash: impl Fn(&FrozenKeys, RowRef) -> u64,
    show: Show<'_>,
) {
    let mut shown = Vec::with_capacity(PAGE_SLOTS);
    for (segment, keys) in segments.iter().enumerate() {
        for slot in slots(keys) {
            let row = RowRef { segment: segment as u32, slot };
            shown.push(HashedRow { hash: hash(keys, row), row });
            if shown.len() == PAGE_SLOTS {
                show(&shown);
                shown.clear();
            }
        }
    }
    if !shown.is_empty() {
        show(&shown);
    }
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
    Ok(Box::new(move |placed| {
        let columns: Vec<&FrozenKeyColumn> = segments.iter().map(|keys| &keys.columns[column]).collect();
        let nulls: Vec<_> = columns.iter().map(|column| column.nulls.as_ref()).collect();
        let null = |row: RowRef| nulls[row.segment as usize].is_some_and(|nulls| *nulls.get(row.slot));
        let nullable = nulls.iter().any(Option::is_some);
        match form {
            Form::Word | Form::Float => {
                let pages: Vec<_> = columns.iter().map(|column| column.words()).collect();
                let mut cells = Cells::new(&pages);
                let value = |row| {
                    let row = locate(row);
                    let word = cells.get(row).copied().unwrap_or_default();
                    (!nullable || !null(row)).then_some(word)
                };
                let (words, nulls) = place(placed, value);
                Values::words_to_array(&data_type, words, nulls)
            }
            Form::Wide => {
                let pages: Vec<_> = columns.iter().map(|column| column.wides()).collect();
                let mut cells = Cells::new(&pages);
                let value = |row| {
                    let row = locate(row);
                    let wide = cells.get(row).copied().unwrap_or_default();
                    (!nullable || !null(row)).then_some(wide)
                };
                let (wides, nulls) = place(placed, value);
                Values::wides_to_array(&data_type, wides, nulls)
            }
            Form::Bytes => {
                let value = |row| {
                    let row = locate(row);
                    (!nullable || !null(row)).then(|| columns[row.segment as usize].bytes(row.slot))
                };
                place_bytes(&data_type, placed, value)
            }
        }
    }))
}

/// Finds cells of several segments; neighbours mostly lie in one page, which is looked up once.
struct Cells<'a, T: Cell> {
    segments: &'a [Option<&'a FrozenPages<T>>],
    /// The segment and the page that were looked up last.
    at: (u32, usize),
    page: &'a [T],
}

impl<'a, T: Cell> Cells<'a, T> {
    /// Of these segments; those that are missing have none.
    fn new(segments: &'a [Option<&'a FrozenPages<T>>]) -> Self {
        Self { segments, at: (u32::MAX, usize::MAX), page: &[] }
    }

    #[inline]
    fn get(&mut self, row: RowRef) -> Option<&'a T> {
        let (page, cell) = place_of(row.slot);
        if self.at != (row.segment, page) {
            self.at = (row.segment, page);
            let pages = self.segments.get(row.segment as usize).copied().flatten();
            self.page = pages.map_or(&[], |pages| pages.page(page));
        }
        self.page.get(cell)
    }
}

/// A column of words (see [`Form::Word`]).
pub fn word_column<F>(data_type: DataType, value: F) -> Gather
where
    F: Fn(RowRef) -> Option<i64> + Send + 'static,
{
    Box::new(move |placed| {
        let (words, nulls) = place(placed, &value);
        Values::words_to_array(&data_type, words, nulls)
    })
}

/// A column of words out of the cells of `segments`.
pub fn word_cells<T, F>(data_type: DataType, segments: Arc<Vec<FrozenPages<T>>>, value: F) -> Gather
where
    T: Cell + Send + Sync + 'static,
    F: Fn(&T) -> Option<i64> + Send + 'static,
{
    Box::new(move |placed| {
        let pages: Vec<_> = segments.iter().map(Some).collect();
        let mut cells = Cells::new(&pages);
        let (words, nulls) = place(placed, |row| cells.get(row).and_then(&value));
        Values::words_to_array(&data_type, words, nulls)
    })
}

/// A column of `FLOAT` or `DOUBLE` out of the cells of `segments`.
pub fn float_cells<T, F>(data_type: DataType, segments: Arc<Vec<FrozenPages<T>>>, value: F) -> Gather
where
    T: Cell + Send + Sync + 'static,
    F: Fn(&T) -> Option<f64> + Send + 'static,
{
    Box::new(move |placed| {
        let pages: Vec<_> = segments.iter().map(Some).collect();
        let mut cells = Cells::new(&pages);
        let (floats, nulls) = place(placed, |row| cells.get(row).and_then(&value));
        Values::floats_to_array(&data_type, floats, nulls)
    })
}

/// A column of decimals, given unscaled, out of the cells of `segments`.
pub fn wide_cells<T, F>(data_type: DataType, segments: Arc<Vec<FrozenPages<T>>>, value: F) -> Gather
where
    T: Cell + Send + Sync + 'static,
    F: Fn(&T) -> Option<i128> + Send + 'static,
{
    Box::new(move |placed| {
        let pages: Vec<_> = segments.iter().map(Some).collect();
        let mut cells = Cells::new(&pages);
        let (wides, nulls) = place(placed, |row| cells.get(row).and_then(&value));
        Values::wides_to_array(&data_type, wides, nulls)
    })
}

/// A column of strings or binary values out of the cells of `segments`.
pub fn bytes_cells<T, F>(data_type: DataType, segments: Arc<Vec<FrozenPages<T>>>, value: F) -> Gather
where
    T: Cell + Send + Sync + 'static,
    F: Fn(&T) -> Option<&[u8]> + Send + 'static,
{
    Box::new(move |placed| {
        let pages: Vec<_> = segments.iter().map(Some).collect();
        let mut cells = Cells::new(&pages);
        place_bytes(&data_type, placed, |row| cells.get(row).and_then(&value))
    })
}

/// Puts the value of each row in its place.
fn place<T: Copy + Default>(
    placed: Placed<'_>,
    mut value: impl FnMut(RowRef) -> Option<T>,
) -> (Vec<T>, Option<NullBuffer>) {
    let mut values = vec![T::default(); placed.rows.len()];
    let mut nulls = Nulls::default();
    for (row, &place) in placed.rows.iter().zip(placed.places) {
        match value(row.row) {
            Some(value) => values[place as usize] = value,
            None => nulls.set(place, placed.rows.len()),
        }
    }
    (values, nulls.finish())
}

/// The same for strings and binary values, all of which are found first: they are copied in the order of the places.
fn place_bytes<'a>(
    data_type: &DataType,
    placed: Placed<'_>,
    mut value: impl FnMut(RowRef) -> Option<&'a [u8]>,
) -> Result<ArrayRef> {
    let mut values: Vec<Option<&[u8]>> = vec![None; placed.rows.len()];
    for (row, &place) in placed.rows.iter().zip(placed.places) {
        values[place as usize] = value(row.row);
    }
    if *data_type != DataType::Utf8 {
        return Values::bytes_to_array(data_type, values.into_iter());
    }
    // The usual type, checked and copied as a whole.
    let mut nulls = Nulls::default();
    let mut offsets = Vec::with_capacity(values.len() + 1);
    let mut text = Vec::with_capacity(values.iter().flatten().map(|value| value.len()).sum());
    offsets.push(0);
    for (place, value) in (0..).zip(&values) {
        match value {
            Some(value) => text.extend_from_slice(value),
            None => nulls.set(place, values.len()),
        }
        offsets.push(i32::try_from(text.len()).map_err(|_| too_long())?);
    }
    let offsets = OffsetBuffer::new(offsets.into());
    let array = StringArray::try_new(offsets, text.into(), nulls.finish());
    array
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(|error| Error::new(Code::Corrupt, "a string in state is not UTF-8").with_detail(error.to_string()))
}

fn too_long() -> Error {
    Error::new(Code::ResourceExhausted, "the strings of one block of a state table are longer than 2 GiB")
}

/// Which places have no value; made when there is one.
#[derive(Default)]
struct Nulls(Option<BooleanBufferBuilder>);

impl Nulls {
    #[cold]
    fn set(&mut self, place: u32, places: usize) {
        let valid = self.0.get_or_insert_with(|| {
            let mut valid = BooleanBufferBuilder::new(places);
            valid.append_n(places, true);
            valid
        });
        valid.set_bit(place as usize, false);
    }

    fn finish(self) -> Option<NullBuffer> {
        self.0.map(|mut valid| NullBuffer::new(valid.finish()))
    }
}
