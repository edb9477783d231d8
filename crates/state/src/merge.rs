//! The merged view of one table of one operator in a snapshot: what the files of all subtasks amount to.
//!
//! Rows come in the order of their key hashes, a batch at a time. Of the files of one subtask, a later one replaces the
//! rows of the same key and map key in earlier ones, and takes out those that it holds tombstones for; rows of segments
//! that have gone since are left out. Of each file only the blocks are read that overlap the key range, one at a time.
//!
//! Invariant: two subtasks never have rows of the same key, so that only files of one subtask replace one another.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};
use arrow::row::{RowConverter, Rows, SortField};
use hashbrown::HashSet;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{OperatorSnapshot, StateBlock, StateFile};
use weir_types::{Code, Error, Result};

use crate::columns::{self, Role};
use crate::file::{BLOCK_ROWS, corrupt};
use crate::reader::FileReader;
use crate::store::SnapshotStore;
use crate::values::{Data, Values, arrow_error};

/// Metadata key of the column that holds a row's segment: rows go by segments, the lowest first.
pub const SEGMENT: &str = "weir.segment";

/// The names of the tables that an operator has in a snapshot.
pub fn table_names(subtasks: &[OperatorSnapshot]) -> BTreeSet<&str> {
    subtasks.iter().flat_map(|subtask| &subtask.files).map(|file| file.table.as_str()).collect()
}

/// The columns that tell the rows of a table apart: keys and map keys.
fn identity_columns(schema: &Schema) -> Vec<usize> {
    let identifies = |column: &usize| matches!(columns::role(schema.field(*column)), Some(Role::Key | Role::MapKey));
    (0..schema.fields().len()).filter(identifies).collect()
}

pub(crate) fn segment_column(schema: &Schema) -> Option<usize> {
    schema.fields().iter().position(|field| field.metadata().contains_key(SEGMENT))
}

/// See the module's documentation. An iterator of batches, none of which is empty; after an error it has ended.
pub struct TableReader {
    schema: SchemaRef,
    /// Which columns of the batches read to pass on; none: all.
    wanted: Option<Vec<usize>>,
    identity: Identity,
    /// Files with rows left. Before the first batch nothing of a file but its ends has been read.
    cursors: Vec<Cursor>,
}

impl TableReader {
    /// The rows of `table` whose key hashes lie in `range`; none if no file has any. `subtasks` is what each of the
    /// operator's subtasks contributed, `directory` the snapshot's.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing file, `CORRUPT` for a damaged one, by name and offset.
    pub fn open(
        directory: &dyn SnapshotStore,
        subtasks: &[OperatorSnapshot],
        table: &str,
        range: KeyRange,
    ) -> Result<Option<Self>> {
        let mut cursors: Vec<Cursor> = Vec::new();
        for (part, subtask) in subtasks.iter().enumerate() {
            let files = subtask.files.iter().filter(|file| file.table == table);
            for (age, file) in files.enumerate() {
                if file.blocks.iter().any(|block| block.hashes.overlaps(range)) {
                    cursors.push(Cursor::open(directory, file, (part, age), range)?);
                }
            }
        }
        // Tombstones alone take nothing out.
        let Some(first) = cursors.iter().find(|cursor| !cursor.deletes) else { return Ok(None) };
        let schema = Arc::clone(first.file.schema());
        let identity = Identity::new(&schema)?;
        for cursor in &cursors {
            let known = if cursor.deletes {
                identity.is_of(cursor.file.schema())
            } else {
                columns::same(&schema, cursor.file.schema())
            };
            if !known {
                return Err(other_columns(cursor.file.name()));
            }
        }
        Ok(Some(Self { schema, wanted: None, identity, cursors }))
    }

    /// The same rows with these columns only; others are read only where they are needed to merge. To be called before the
    /// first batch.
    ///
    /// # Errors
    /// `INTERNAL` if there is no such column.
    pub fn project(mut self, columns: &[usize]) -> Result<Self> {
        let failed = |error| arrow_error("could not choose columns of a state table", &error);
        let whole = Arc::clone(&self.schema);
        let mut read: BTreeSet<usize> = columns.iter().copied().chain([0]).collect();
        read.extend(segment_column(&whole));
        if self.cursors.len() > 1 {
            read.extend(identity_columns(&whole));
        }
        let read: Vec<usize> = read.into_iter().collect();
        let place = |column: &usize| read.binary_search(column).unwrap_or(0);
        self.wanted = Some(columns.iter().map(place).collect());
        self.schema = Arc::new(whole.project(columns).map_err(failed)?);
        let cursors =
            self.cursors.into_iter().map(|cursor| if cursor.deletes { Ok(cursor) } else { cursor.project(&read) });
        self.cursors = cursors.collect::<Result<_>>()?;
        Ok(self)
    }

    /// The columns: the key hash, then what the operator wrote.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Bytes of the blocks that are held.
    pub(crate) fn bytes(&self) -> usize {
        let loaded = self.cursors.iter().filter_map(|cursor| cursor.loaded.as_ref());
        loaded.map(|loaded| loaded.batch.get_array_memory_size() + loaded.identities.get().map_or(0, Rows::size)).sum()
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        for loaded in self.cursors.iter_mut().filter_map(|cursor| cursor.loaded.as_mut()) {
            loaded.slot = None;
        }
        let mut picked = Picked::default();
        while picked.rows.len() < BLOCK_ROWS {
            let Some((hash, bound)) = self.lowest() else { break };
            let mut holders: Vec<usize> =
                (0..self.cursors.len()).filter(|&cursor| self.cursors[cursor].head() == Some(hash)).collect();
            let mut known = true;
            for &holder in &holders {
                known &= self.cursors[holder].load()?;
            }
            if !known {
                self.cursors.retain(|cursor| cursor.head().is_some());
            } else if let [lone] = holders[..] {
                if picked.rows.is_empty()
                    && let Some(block) = self.cursors[lone].take_block(bound)
                {
                    return Ok(Some(block));
                }
                self.cursors[lone].take_until(bound, &mut picked);
            } else {
                // The files of one subtask, its newest first.
                holders.sort_by_key(|&cursor| {
                    let (part, age) = self.cursors[cursor].place;
                    (part, std::cmp::Reverse(age))
                });
                self.take_group(hash, &holders, &mut picked)?;
            }
        }
        picked.gather()
    }

    /// The lowest hash that is left, and the lowest of the other files, which is the same if two have it; none: no other
    /// file has rows left.
    fn lowest(&self) -> Option<(u64, Option<u64>)> {
        let mut heads = self.cursors.iter().filter_map(Cursor::head);
        let (mut lowest, mut second) = (heads.next()?, None);
        for head in heads {
            if head < lowest {
                (lowest, second) = (head, Some(lowest));
            } else if second.is_none_or(|second| head < second) {
                second = Some(head);
            }
        }
        Some((lowest, second))
    }

    /// Takes the rows of one hash out of several files.
    fn take_group(&mut self, hash: u64, holders: &[usize], picked: &mut Picked) -> Result<()> {
        let mut seen: HashSet<Box<[u8]>> = HashSet::new();
        let mut own: Vec<Box<[u8]>> = Vec::new();
        let mut part = None;
        for (place, &holder) in holders.iter().enumerate() {
            let cursor = &mut self.cursors[holder];
            if part.replace(cursor.place.0) != Some(cursor.place.0) {
                seen.clear();
            }
            let older_follow = holders.get(place + 1).is_some();
            while cursor.head() == Some(hash) {
                cursor.load()?;
                let Some(loaded) = cursor.loaded.as_mut().filter(|loaded| loaded.next_hash() == Some(hash)) else {
                    continue;
                };
                let end = loaded.end_of(hash);
                // Tombstones have other columns, and give no rows.
                let slot = if cursor.deletes { 0 } else { picked.slot(loaded) };
                if older_follow || !seen.is_empty() {
                    let identities = loaded.identities(&self.identity)?;
                    for row in loaded.position..end {
                        let identity = identities.row(row);
                        if !cursor.deletes && !seen.contains(identity.as_ref()) {
                            picked.rows.push((slot, row));
                        }
                        if older_follow {
                            own.push(identity.as_ref().into());
                        }
                    }
                } else if !cursor.deletes {
                    picked.rows.extend((loaded.position..end).map(|row| (slot, row)));
                }
                loaded.position = end;
            }
            seen.extend(own.drain(..));
        }
        Ok(())
    }
}

impl Iterator for TableReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_batch().and_then(|batch| {
            let (Some(batch), Some(wanted)) = (&batch, &self.wanted) else { return Ok(batch) };
            let projected = batch.project(wanted);
            projected.map(Some).map_err(|error| arrow_error("could not choose columns of state", &error))
        });
        if next.is_err() {
            self.cursors.clear();
        }
        next.transpose()
    }
}

/// What tells the rows of a table apart, in bytes that can be compared.
struct Identity {
    /// Ids and types of the columns.
    columns: Vec<(String, DataType)>,
    converter: RowConverter,
}

impl Identity {
    fn new(schema: &Schema) -> Result<Self> {
        let columns = Self::columns(schema);
        let fields = columns.iter().map(|(_, data_type)| SortField::new(data_type.clone())).collect();
        let converter = RowConverter::new(fields).map_err(|error| arrow_error("state cannot be merged", &error))?;
        Ok(Self { columns, converter })
    }

    fn columns(schema: &Schema) -> Vec<(String, DataType)> {
        let fields = identity_columns(schema).into_iter().map(|column| schema.field(column));
        fields.map(|field| (columns::id(field).to_owned(), field.data_type().clone())).collect()
    }

    /// Whether a file's rows are told apart by the same columns.
    fn is_of(&self, schema: &Schema) -> bool {
        Self::columns(schema) == self.columns
    }
}

/// One file, as far as it has been read.
struct Cursor {
    file: FileReader,
    /// The first block that has not been read.
    block: usize,
    /// Which subtask's, and its place among that subtask's files of the table: a greater one is newer.
    place: (usize, usize),
    range: KeyRange,
    deletes: bool,
    /// The column of segments, and the lowest that still lives.
    live_from: Option<(usize, i64)>,
    identity: Vec<usize>,
    loaded: Option<Loaded>,
}

/// A block of a file whose rows are not all taken; those that do not count any more are left out.
struct Loaded {
    batch: RecordBatch,
    hashes: ScalarBuffer<u64>,
    position: usize,
    identity: Vec<usize>,
    identities: OnceLock<Rows>,
    /// Its place among the batches that the rows picked come from.
    slot: Option<usize>,
}

impl Cursor {
    fn open(directory: &dyn SnapshotStore, file: &StateFile, place: (usize, usize), range: KeyRange) -> Result<Self> {
        let reader = FileReader::open(directory, file)?;
        let live_from = match (file.live_from, segment_column(reader.schema())) {
            (None, _) => None,
            (Some(live_from), Some(column)) => Some((column, live_from)),
            (Some(_), None) => {
                return Err(Error::new(Code::Corrupt, format!("state file {} has no segments", reader.name()))
                    .with_detail("the manifest says that some of them are gone"));
            }
        };
        let identity = identity_columns(reader.schema());
        Ok(Self { file: reader, block: 0, place, range, deletes: file.deletes, live_from, identity, loaded: None })
    }

    fn project(self, columns: &[usize]) -> Result<Self> {
        let file = self.file.project(columns)?;
        let live_from = self.live_from.and_then(|(_, live_from)| Some((segment_column(file.schema())?, live_from)));
        let identity = identity_columns(file.schema());
        Ok(Self { file, live_from, identity, ..self })
    }

    /// The hash of the next row or, as long as its block has not been read, one that it cannot lie below.
    fn head(&self) -> Option<u64> {
        match self.loaded.as_ref().and_then(Loaded::next_hash) {
            Some(hash) => Some(hash),
            None => self.next_block().map(|(_, block)| block.hashes.start().max(self.range.start())),
        }
    }

    fn next_block(&self) -> Option<(usize, &StateBlock)> {
        let blocks = self.file.blocks().iter().enumerate().skip(self.block);
        blocks.into_iter().find(|(_, block)| block.hashes.overlaps(self.range))
    }

    /// Reads the next block if all rows of the last one are taken. Answers whether it was read before: else the next hash
    /// may be another one now.
    fn load(&mut self) -> Result<bool> {
        if self.loaded.as_ref().is_some_and(|loaded| loaded.next_hash().is_some()) {
            return Ok(true);
        }
        self.loaded = None;
        let Some((index, &block)) = self.next_block() else { return Ok(false) };
        self.block = index + 1;
        let batch = self.file.read(index)?;
        let hashes = batch.column(0).as_primitive::<UInt64Type>().values();
        let ends = (hashes.first().copied(), hashes.last().copied());
        if ends != (Some(block.hashes.start()), Some(block.hashes.end())) || !hashes.is_sorted() {
            return Err(corrupt(self.file.name(), block.offset).with_detail(
                "the block's rows are not in the order, or in the range, of hashes that they should be in",
            ));
        }
        let batch = self.living(batch)?;
        let hashes = batch.column(0).as_primitive::<UInt64Type>().values().clone();
        let (identity, identities) = (self.identity.clone(), OnceLock::new());
        self.loaded = Some(Loaded { batch, hashes, position: 0, identity, identities, slot: None });
        Ok(false)
    }

    /// The rows in the range, but for those of segments that have gone.
    fn living(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let hashes = batch.column(0).as_primitive::<UInt64Type>().values();
        let (first, last) = (hashes.first().copied().unwrap_or(0), hashes.last().copied().unwrap_or(0));
        let range = self.range;
        let inside = range.contains(first) && range.contains(last);
        if inside && self.live_from.is_none() {
            return Ok(batch);
        }
        let mut lives: Vec<bool> = hashes.iter().map(|&hash| range.contains(hash)).collect();
        if let Some((column, live_from)) = self.live_from {
            let Data::Words(segments) = Values::new(batch.column(column))?.data else {
                return Err(other_columns(self.file.name()));
            };
            lives.iter_mut().zip(segments.iter()).for_each(|(lives, &segment)| *lives &= segment >= live_from);
        }
        filter_record_batch(&batch, &BooleanArray::from(lives))
            .map_err(|error| arrow_error("could not cut state to what is wanted of it", &error))
    }

    /// All that is left of the block, if all of it lies below `bound`.
    fn take_block(&mut self, bound: Option<u64>) -> Option<RecordBatch> {
        let loaded = self.loaded.as_mut()?;
        let last = *loaded.hashes.last()?;
        if self.deletes || bound.is_some_and(|bound| last >= bound) {
            return None;
        }
        let (from, rows) = (loaded.position, loaded.hashes.len() - loaded.position);
        loaded.position = loaded.hashes.len();
        Some(loaded.batch.slice(from, rows))
    }

    /// Takes the rows of the block that lie below `bound`, which no other file has anything to say about.
    fn take_until(&mut self, bound: Option<u64>, picked: &mut Picked) {
        let Some(loaded) = &mut self.loaded else { return };
        let rest = &loaded.hashes[loaded.position..];
        let end = loaded.position + bound.map_or(rest.len(), |bound| rest.partition_point(|&hash| hash < bound));
        if !self.deletes {
            let slot = picked.slot(loaded);
            picked.rows.extend((loaded.position..end).map(|row| (slot, row)));
        }
        loaded.position = end;
    }
}

impl Loaded {
    fn next_hash(&self) -> Option<u64> {
        self.hashes.get(self.position).copied()
    }

    /// Where the rows of a hash end that the next row has.
    fn end_of(&self, hash: u64) -> usize {
        self.position + self.hashes[self.position..].partition_point(|&other| other <= hash)
    }

    fn identities(&self, identity: &Identity) -> Result<&Rows> {
        if let Some(rows) = self.identities.get() {
            return Ok(rows);
        }
        let columns: Vec<ArrayRef> = self.identity.iter().map(|&column| self.batch.column(column).clone()).collect();
        let rows = identity.converter.convert_columns(&columns);
        let rows = rows.map_err(|error| arrow_error("state cannot be merged", &error))?;
        Ok(self.identities.get_or_init(|| rows))
    }
}

/// Rows picked out of several batches.
#[derive(Default)]
struct Picked {
    batches: Vec<RecordBatch>,
    rows: Vec<(usize, usize)>,
}

impl Picked {
    /// The place of a block among the batches that the rows come from.
    fn slot(&mut self, loaded: &mut Loaded) -> usize {
        *loaded.slot.get_or_insert_with(|| {
            self.batches.push(loaded.batch.clone());
            self.batches.len() - 1
        })
    }

    fn gather(self) -> Result<Option<RecordBatch>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let gathered = interleave_record_batch(&batches, &self.rows);
        gathered.map(Some).map_err(|error| arrow_error("could not gather rows of state", &error))
    }
}

fn other_columns(name: &str) -> Error {
    Error::new(Code::Corrupt, format!("state file {name} has other columns than its siblings"))
}
