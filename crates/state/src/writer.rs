//! Writing a state file: its blocks one after the other, with their places and checksums.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use arrow_ipc::Block;
use crc32c::{crc32c_append, crc32c_combine};
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{Segments, StateBlock, StateFile};
use weir_types::{Error, Result};

use crate::block::{BlockEncoder, footer, header};
use crate::file::{FORMAT_VERSION, HASH_COLUMN, check_wanted};
use crate::frozen::{Gather, Show};
use crate::memory::{Held, Memory};
use crate::merge::segment_column;
use crate::parts::{self, Part, Stretch};
use crate::store::{NewFile, SnapshotStore};
use crate::values::{Data, Values, arrow_error};

/// Sorts the rows of a table that `list` shows, of which `all` says how they are, by their hashes and writes them to a file.
pub(crate) fn write_rows(
    store: &dyn SnapshotStore,
    path: String,
    table: &str,
    columns: &[(Field, Gather)],
    (list, all): (&dyn Fn(Show<'_>), Stretch),
    memory: &Memory,
    wanted: &dyn Fn() -> bool,
) -> Result<StateFile> {
    let fields = std::iter::once(Field::new(HASH_COLUMN, DataType::UInt64, false));
    let fields = fields.chain(columns.iter().map(|(field, _)| field.clone())).collect();
    let mut writer = TableWriter::create(store, path, table, fields)?;
    let (mut sorting, mut block, mut whole) = (Held::new(memory, 0), Held::new(memory, 0), Held::new(memory, 0));
    // While a column is made, numbers have eight bytes, and nulls a bit.
    let width = columns.iter().filter_map(|(field, _)| fixed_width(field)).map(|width| width.max(8) + 1).sum();
    // The columns of fixed width of a stretch, in the order of its parts.
    let mut stretch: Vec<Option<ArrayRef>> = Vec::new();
    parts::sort(list, (all, width), &mut |bytes| sorting.set(bytes), &mut |Part { hashes, placed, within }| {
        check_wanted(wanted)?;
        let hashes: ArrayRef = Arc::new(UInt64Array::from(hashes.to_vec()));
        if let Some(within) = within.filter(|within| within.from == 0) {
            stretch.clear();
            whole.set(within.stretch.rows.len() * width)?;
            stretch = columns
                .iter()
                .map(|(field, gather)| fixed_width(field).map(|_| gather(within.stretch)).transpose())
                .collect::<Result<Vec<_>>>()?;
        }
        let gathered = columns.iter().enumerate().map(|(index, (_, gather))| match (within, stretch.get(index)) {
            (Some(within), Some(Some(column))) => {
                let order = UInt32Array::from(within.order.to_vec());
                take(&column.slice(within.from, order.len()), &order, None)
                    .map_err(|error| arrow_error("rows of state cannot be sorted", &error))
            }
            _ => gather(placed),
        });
        let gathered = std::iter::once(Ok(hashes)).chain(gathered).collect::<Result<Vec<_>>>()?;
        let bytes: usize = gathered.iter().map(|column| column.get_array_memory_size()).sum();
        // The block as it is written takes no more than its columns do, and a little for what describes it.
        block.set(2 * bytes + writer.encoder.bytes())?;
        writer.write(&gathered)
    })?;
    writer.finish()
}

/// Bytes of a value, if all are equally long: such columns are made for a stretch, others for each part, as their values may
/// be long.
fn fixed_width(field: &Field) -> Option<usize> {
    field.data_type().primitive_width()
}

/// A state file that is being written, block by block.
pub(crate) struct TableWriter {
    file: Checked,
    encoder: BlockEncoder,
    schema: SchemaRef,
    path: String,
    /// For messages.
    name: String,
    table: String,
    blocks: Vec<StateBlock>,
    /// The same as the footer has them.
    places: Vec<Block>,
    segment_column: Option<usize>,
    segments: Option<Segments>,
}

impl TableWriter {
    /// Begins a file of a table; the first of `fields` is the key hash.
    pub(crate) fn create(store: &dyn SnapshotStore, path: String, table: &str, fields: Vec<Field>) -> Result<Self> {
        let metadata = [("weir.table", table), ("weir.format", FORMAT_VERSION)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let schema: SchemaRef = Arc::new(Schema::new_with_metadata(fields, metadata));
        let name = store.describe(&path);
        let mut file = Checked::new(store.create(&path)?);
        file.write_all(&header(&schema)).map_err(|error| write_error(&name, &error))?;
        file.take_part();
        let segment_column = segment_column(&schema);
        let (table, blocks, places) = (table.to_owned(), Vec::new(), Vec::new());
        let encoder = BlockEncoder::default();
        Ok(Self { file, encoder, schema, path, name, table, blocks, places, segment_column, segments: None })
    }

    /// Writes a block: the columns of rows that are sorted by hash and follow those that were written before.
    pub(crate) fn write(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let types = self.schema.fields().iter().map(|field| field.data_type());
        let rows = columns.first().map_or(0, |column| column.len());
        if !columns.iter().map(|column| column.data_type()).eq(types) || columns.iter().any(|c| c.len() != rows) {
            return Err(Error::internal(format!("columns of state table {:?} do not fit together", self.table)));
        }
        let hashes = columns[0].as_primitive::<UInt64Type>().values();
        let (Some(&first), Some(&last)) = (hashes.first(), hashes.last()) else {
            return Err(Error::internal("a block without rows"));
        };
        let hashes = KeyRange::new(first, last)?;
        self.note_segments(columns)?;
        let (head, body) = self.encoder.encode(columns, rows)?;
        let written = self.file.write_all(head).and_then(|()| self.file.write_all(body));
        written.map_err(|error| write_error(&self.name, &error))?;
        let (head, body) = (head.len(), body.len());
        let (offset, bytes, crc32c) = self.file.take_part();
        self.blocks.push(StateBlock { offset, bytes, rows: rows as u64, hashes, crc32c });
        self.places.push(Block::new(offset as i64, head as i32, body as i64));
        Ok(())
    }

    fn note_segments(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let Some(column) = self.segment_column else { return Ok(()) };
        let Data::Words(words) = Values::new(&columns[column])?.data else {
            return Err(Error::internal(format!("segments of state table {:?} have no order", self.table)));
        };
        let (Some(first), Some(last)) = (words.iter().min(), words.iter().max()) else { return Ok(()) };
        let seen = self.segments.get_or_insert(Segments { first: *first, last: *last });
        *seen = Segments { first: seen.first.min(*first), last: seen.last.max(*last) };
        Ok(())
    }

    /// Makes the file durable, but for its name.
    pub(crate) fn finish(mut self) -> Result<StateFile> {
        let footer = footer(&self.schema, &self.places);
        self.file.write_all(&footer).map_err(|error| write_error(&self.name, &error))?;
        self.file.take_part();
        let (bytes, crc32c) = (self.file.written, self.file.file_crc);
        self.file.file.finish()?;
        let rows = self.blocks.iter().map(|block| block.rows).sum();
        let Self { path, table, blocks, segments, .. } = self;
        Ok(StateFile { path, table, bytes, rows, crc32c, segments, blocks, ..StateFile::default() })
    }
}

/// Counts and checksums what passes through to a file, as a whole and in parts.
struct Checked {
    file: Box<dyn NewFile>,
    written: u64,
    file_crc: u32,
    part_start: u64,
    part_crc: u32,
}

impl Checked {
    fn new(file: Box<dyn NewFile>) -> Self {
        Self { file, written: 0, file_crc: 0, part_start: 0, part_crc: 0 }
    }

    /// Offset, length and checksum of what was written since the last call.
    fn take_part(&mut self) -> (u64, u64, u32) {
        let part = (self.part_start, self.written - self.part_start, self.part_crc);
        self.file_crc = crc32c_combine(self.file_crc, self.part_crc, part.1 as usize);
        self.part_start = self.written;
        self.part_crc = 0;
        part
    }
}

impl Write for Checked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.part_crc = crc32c_append(self.part_crc, &bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn write_error(name: &str, error: &io::Error) -> Error {
    // A budget's refusal is what it is, not a failure of the disk.
    let refused = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    refused.cloned().unwrap_or_else(|| Error::io(format!("could not write state file {name}"), error))
}
