//! State files: rows of one table, sorted by key hash, as an Arrow IPC file with LZ4 (`docs/state-format.md`).
//!
//! Each record batch of the file is a block that can be read by itself; the manifest lists the blocks with their hash
//! ranges and checksums. Whatever the manifest's checksums do not cover directly (header and footer) is covered by the
//! checksum of the whole file, which is the combination of those of its parts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow_ipc::Block;
use arrow_ipc::convert::try_schema_from_ipc_buffer;
use arrow_ipc::reader::FileDecoder;
use crc32c::{crc32c, crc32c_combine};
use weir_types::snapshot::{SHARED_PREFIX, StateBlock, StateFile};
use weir_types::{Code, Error, Result};

use crate::admit;
use crate::frozen::FrozenTable;
use crate::parts::survey;
use crate::store::{SnapshotStore, StoredFile};
use crate::writer::write_rows;

/// Name of the first column of every state file.
pub const HASH_COLUMN: &str = "key_hash";
/// Version of the layout of state files, in the schema's metadata under `weir.format`.
pub const FORMAT_VERSION: &str = "1";
/// How the names of state files end: nothing else does, so that deleting a snapshot spares what others put there.
pub const EXTENSION: &str = ".state.arrow";
/// Rows per block.
pub(crate) const BLOCK_ROWS: usize = 32 * 1024;
/// The file's magic with its padding; the schema message follows.
const MAGIC_BYTES: u64 = 8;

/// The asynchronous part of a snapshot: writes each table that has rows to a file named `<prefix>-<table>.state.arrow`. On
/// return all of it is durable. After an error no file of this call is left.
///
/// # Errors
/// `ALREADY_EXISTS` if the prefix was used before, `IO`, `RESOURCE_EXHAUSTED`.
pub fn write_tables(tables: Vec<FrozenTable>, store: &dyn SnapshotStore, prefix: &str) -> Result<Vec<StateFile>> {
    write_tables_while(tables, store, prefix, &|| true)
}

/// The same, until `wanted` says no; it is asked before every block. The directory is made once: one that is swept
/// meanwhile does not come back.
///
/// # Errors
/// As [`write_tables`], and `CANCELLED`.
pub fn write_tables_while(
    tables: Vec<FrozenTable>,
    store: &dyn SnapshotStore,
    prefix: &str,
    wanted: &dyn Fn() -> bool,
) -> Result<Vec<StateFile>> {
    let mut files = Vec::new();
    let written = write_each(tables, store, prefix, wanted, &mut files);
    match written {
        Ok(()) => Ok(files),
        Err(error) => {
            // Should this fail too, they are swept with the snapshot.
            let _swept_later = delete_files(store, &files);
            Err(error)
        }
    }
}

/// Deletes files of a snapshot that does not come about, and the directory if nothing else is in it.
///
/// # Errors
/// `IO`.
pub fn delete_files(store: &dyn SnapshotStore, files: &[StateFile]) -> Result<()> {
    files.iter().try_for_each(|file| store.delete(&file.path))?;
    store.delete_directory().map(|_gone| ())
}

fn write_each(
    tables: Vec<FrozenTable>,
    store: &dyn SnapshotStore,
    prefix: &str,
    wanted: &dyn Fn() -> bool,
    files: &mut Vec<StateFile>,
) -> Result<()> {
    let mut prepared = false;
    for FrozenTable { name, rows, columns, memory, .. } in tables {
        check_wanted(wanted)?;
        let all = survey(&rows);
        if all.rows == 0 {
            continue;
        }
        if !std::mem::replace(&mut prepared, true) && !prefix.starts_with(SHARED_PREFIX) {
            store.prepare()?;
        }
        let path = format!("{prefix}-{name}{EXTENSION}");
        files.push(write_rows(store, path, &name, &columns, (&rows, all), &memory, wanted)?);
    }
    if prepared { store.sync() } else { Ok(()) }
}

pub(crate) fn check_wanted(wanted: &dyn Fn() -> bool) -> Result<()> {
    if wanted() { Ok(()) } else { Err(Error::new(Code::Cancelled, "the snapshot was given up")) }
}

/// The schema in the file's header, after checking header and footer.
pub(crate) fn read_schema(stored: &dyn StoredFile, name: &str, file: &StateFile) -> Result<SchemaRef> {
    let len = stored.len()?;
    if len != file.bytes {
        let detail = format!("it has {len} bytes, the manifest says {}", file.bytes);
        return Err(corrupt(name, len.min(file.bytes)).with_detail(detail));
    }
    let mut end = None;
    for block in &file.blocks {
        if block.offset < MAGIC_BYTES || end.is_some_and(|end| end != block.offset) {
            return Err(corrupt(name, block.offset).with_detail("the manifest's blocks do not follow one another"));
        }
        end = block.offset.checked_add(block.bytes);
    }
    let (Some(first), Some(end)) = (file.blocks.first(), end.filter(|&end| end <= len)) else {
        return Err(corrupt(name, 0).with_detail("the manifest's blocks do not fit into the file"));
    };
    let header = stored.read(0, to_usize(first.offset, name)?)?;
    let footer = stored.read(end, to_usize(len - end, name)?)?;
    let mut crc = crc32c(&header);
    for block in &file.blocks {
        crc = crc32c_combine(crc, block.crc32c, to_usize(block.bytes, name)?);
    }
    crc = crc32c_combine(crc, crc32c(&footer), footer.len());
    if crc != file.crc32c {
        return Err(corrupt(name, 0).with_detail(format!(
            "header, footer and blocks have checksum {crc:08x} together, the manifest says {:08x}",
            file.crc32c
        )));
    }
    let damaged = |detail: String| corrupt(name, MAGIC_BYTES).with_detail(detail);
    admit::check_schema(&header[MAGIC_BYTES as usize..]).map_err(damaged)?;
    let schema =
        try_schema_from_ipc_buffer(&header[MAGIC_BYTES as usize..]).map_err(|error| damaged(error.to_string()))?;
    match schema.metadata().get("weir.format").map(String::as_str) {
        Some(FORMAT_VERSION) => {}
        other => {
            let version = other.unwrap_or("none");
            return Err(Error::new(Code::Unsupported, format!("state file {name} has format version {version}"))
                .with_hint(format!("This version of Weir reads format version {FORMAT_VERSION}.")));
        }
    }
    match schema.fields().first() {
        Some(field) if field.name() == HASH_COLUMN && *field.data_type() == DataType::UInt64 => Ok(Arc::new(schema)),
        _ => Err(corrupt(name, MAGIC_BYTES).with_detail("the first column is not the key hash")),
    }
}

pub(crate) fn read_block(stored: &dyn StoredFile, name: &str, block: &StateBlock) -> Result<Vec<u8>> {
    let bytes = stored.read(block.offset, to_usize(block.bytes, name)?)?;
    let crc = crc32c(&bytes);
    if crc != block.crc32c {
        let detail = format!("the block has checksum {crc:08x}, the manifest says {:08x}", block.crc32c);
        return Err(corrupt(name, block.offset).with_detail(detail));
    }
    Ok(bytes)
}

/// `schema` is that of the file, of which the decoder may make a part.
pub(crate) fn decode_block(
    decoder: &FileDecoder,
    schema: &Schema,
    name: &str,
    block: &StateBlock,
    bytes: Vec<u8>,
) -> Result<RecordBatch> {
    let damaged = |detail: String| corrupt(name, block.offset).with_detail(detail);
    // An encapsulated message: four bytes 0xff, the length of the metadata, the metadata, the body.
    let prefix: Option<[u8; 4]> = bytes.get(4..8).and_then(|prefix| prefix.try_into().ok());
    let metadata = prefix.map(i32::from_le_bytes).and_then(|len| len.checked_add(8)).unwrap_or(-1);
    let body = usize::try_from(metadata).ok().and_then(|metadata| bytes.len().checked_sub(metadata));
    let Some(body) = body else { return Err(damaged("the block's length prefix is wrong".to_owned())) };
    admit::check_block(schema, &bytes, bytes.len() - body, block.rows).map_err(damaged)?;
    let place = Block::new(0, metadata, body as i64);
    let bytes = Buffer::from_vec(bytes);
    // A forged buffer can become longer or shorter than it says, which Arrow's reader notices by an assertion. Nothing of
    // the decoder is kept after an error.
    let batch = catch_unwind(AssertUnwindSafe(|| decoder.read_record_batch(&place, &bytes)))
        .map_err(|_panic| damaged("a compressed buffer does not become what it says".to_owned()))?
        .map_err(|error| damaged(error.to_string()))?;
    match batch {
        Some(batch) if batch.num_rows() as u64 == block.rows => Ok(batch),
        _ => Err(damaged(format!("the block does not hold {} rows", block.rows))),
    }
}

fn to_usize(bytes: u64, name: &str) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| corrupt(name, bytes))
}

pub(crate) fn corrupt(name: &str, offset: u64) -> Error {
    Error::new(Code::Corrupt, format!("state file {name} is damaged at offset {offset}"))
        .with_hint("Restore from another snapshot, or fetch an undamaged copy of this one.")
}
