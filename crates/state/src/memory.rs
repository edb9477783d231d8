//! What snapshots hold in memory beside the state that they are of: pages that the operator has changed or freed since, lists of
//! rows that are being sorted, blocks that are being written.
//!
//! Invariant: what is held is counted, page by page and buffer by buffer, and given back when it is freed, by whoever frees
//! it last. Counting never fails, since an operator that writes to its state cannot wait; whoever writes the snapshot asks
//! between blocks whether all fits, and gives the snapshot up if it does not.

use std::fmt;
use std::sync::Arc;

use weir_types::Result;

/// Counts what the snapshots of one operator hold.
pub trait SnapshotMemory: fmt::Debug + Send + Sync {
    /// So many more bytes are held.
    fn add(&self, bytes: u64);

    /// So many bytes were freed.
    fn sub(&self, bytes: u64);

    /// Whether all of it fits.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if it does not, naming the operator.
    fn check(&self) -> Result<()>;
}

/// Shared by an operator's tables and their snapshots.
pub type Memory = Arc<dyn SnapshotMemory>;

/// Where nobody counts: anything fits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncounted;

impl SnapshotMemory for Uncounted {
    fn add(&self, _bytes: u64) {}

    fn sub(&self, _bytes: u64) {}

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Memory that nobody counts.
pub fn uncounted() -> Memory {
    Arc::new(Uncounted)
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Memory,
    bytes: u64,
}

impl Held {
    pub(crate) fn new(memory: &Memory, bytes: usize) -> Self {
        memory.add(bytes as u64);
        Self { memory: Arc::clone(memory), bytes: bytes as u64 }
    }

    /// So many bytes are held from now on.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<()> {
        let bytes = bytes as u64;
        // In one step: what is held already is not counted twice meanwhile.
        if bytes > self.bytes {
            self.memory.add(bytes - self.bytes)
        } else {
            self.memory.sub(self.bytes - bytes)
        }
        self.bytes = bytes;
        self.memory.check()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.sub(self.bytes);
    }
}
