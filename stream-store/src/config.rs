//! Settings of the store: one documented struct, checked before anything is opened.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_types::{Error, Result};

use crate::block::MAX_BLOCK_BYTES;

/// How the log and its background work behave. The clock and the disk are arguments of `Store::open_with`, not settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Where everything lies. One store at a time: the directory is locked.
    pub data_dir: PathBuf,
    /// A segment file is closed and a new one begun when it has grown to this many bytes.
    pub segment_bytes: u64,
    /// One entry of the sparse index for so many bytes of a segment.
    pub index_interval_bytes: u64,
    /// Bytes of appends that may wait to be written; further ones wait for room.
    pub append_queue_bytes: usize,
    /// Threads that write and fsync. Partitions are spread over them; while one waits for the disk, others write.
    pub committers: usize,
    /// Most bytes that one write and fsync takes together.
    pub commit_bytes: usize,
    /// How often retention, lease expiry of closed readers and background syncs are looked at, in milliseconds.
    pub maintenance_interval_ms: u64,
    /// Bytes that one read of a segment file asks for.
    pub read_chunk_bytes: usize,
    /// Producers remembered per partition; the longest silent one is forgotten first.
    pub max_producers_per_partition: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("weir-store-data"),
            segment_bytes: 128 << 20,
            index_interval_bytes: 256 << 10,
            append_queue_bytes: 64 << 20,
            committers: 3,
            commit_bytes: 16 << 20,
            maintenance_interval_ms: 1_000,
            read_chunk_bytes: 1 << 20,
            max_producers_per_partition: 4_096,
        }
    }
}

impl StoreConfig {
    /// The defaults with another data directory.
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::default() }
    }

    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the setting.
    pub fn validate(&self) -> Result<()> {
        let least = |name: &str, value: u64, least: u64| {
            if value < least {
                return Err(Error::invalid(format!("{name} is {value}, but must be at least {least}")));
            }
            Ok(())
        };
        least("segment_bytes", self.segment_bytes, 4 << 10)?;
        least("index_interval_bytes", self.index_interval_bytes, 4 << 10)?;
        least("append_queue_bytes", self.append_queue_bytes as u64, MAX_BLOCK_BYTES as u64)?;
        least("committers", self.committers as u64, 1)?;
        least("commit_bytes", self.commit_bytes as u64, 64 << 10)?;
        least("maintenance_interval_ms", self.maintenance_interval_ms, 1)?;
        least("read_chunk_bytes", self.read_chunk_bytes as u64, 4 << 10)?;
        least("max_producers_per_partition", self.max_producers_per_partition as u64, 1)
    }
}
