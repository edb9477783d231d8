//! State files block by block: what a restore does not need, but whoever looks inside does.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_ipc::MetadataVersion;
use arrow_ipc::reader::FileDecoder;
use weir_types::snapshot::{StateBlock, StateFile};
use weir_types::{Error, Result};

use crate::file::{decode_block, read_block, read_schema};
use crate::store::{SnapshotStore, StoredFile};
use crate::values::arrow_error;

/// One state file, open; nothing of it is held in memory.
pub struct FileReader {
    stored: Box<dyn StoredFile>,
    /// For messages.
    name: String,
    blocks: Vec<StateBlock>,
    /// The columns of the file …
    whole: SchemaRef,
    /// … and those that are read.
    schema: SchemaRef,
    decoder: FileDecoder,
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader").field("name", &self.name).field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl FileReader {
    /// Opens a file of a snapshot, and checks its length, header and footer.
    ///
    /// # Errors
    /// `NOT_FOUND`, `CORRUPT`, `UNSUPPORTED` for a newer format, `IO`.
    pub fn open(store: &dyn SnapshotStore, file: &StateFile) -> Result<Self> {
        let name = store.describe(&file.path);
        let stored = store.open(&file.path)?;
        let schema = read_schema(stored.as_ref(), &name, file)?;
        let decoder = FileDecoder::new(Arc::clone(&schema), MetadataVersion::V5);
        Ok(Self { stored, name, blocks: file.blocks.clone(), whole: Arc::clone(&schema), schema, decoder })
    }

    /// The same file, of which only these columns are decoded.
    ///
    /// # Errors
    /// `INTERNAL` if there is no such column.
    pub fn project(self, columns: &[usize]) -> Result<Self> {
        let schema = self.schema.project(columns);
        let schema = schema.map_err(|error| arrow_error("could not choose columns of a state file", &error))?;
        Ok(Self { schema: Arc::new(schema), decoder: self.decoder.with_projection(columns.to_vec()), ..self })
    }

    /// The columns that are read.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Where the file is, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the blocks lie, and the hashes in them.
    pub fn blocks(&self) -> &[StateBlock] {
        &self.blocks
    }

    /// Reads and checks a block.
    ///
    /// # Errors
    /// `CORRUPT` by name and offset, `IO`.
    pub fn read(&self, block: usize) -> Result<RecordBatch> {
        let Some(block) = self.blocks.get(block) else {
            return Err(Error::internal(format!("{} has no block {block}", self.name)));
        };
        let bytes = read_block(self.stored.as_ref(), &self.name, block)?;
        decode_block(&self.decoder, &self.whole, &self.name, block, bytes)
    }
}
