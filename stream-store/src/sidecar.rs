//! The `.index` file beside a segment: sparse index, summary, and the producers and transactions as of its end.
//!
//! It only saves walking the segment: whatever it says can be gathered again from the frames, so a missing or damaged
//! one is rebuilt. Beside the newest segment it may lag behind; what it covers had been fsynced when it was written.

use std::path::Path;

use prost::Message;
use tracing::warn;
use weir_types::Result;
use weir_types::ids::{Epoch, ProducerId, TransactionNumber};
use weir_types::stream::Offset;
use weir_types::time::Millis;

use crate::disk::{read_file, replace_file};
use crate::partition::{Decisions, Extent};
use crate::producers::{Known, Producers};

/// Version 1 knew no transactions; there were none then.
const VERSION: u32 = 2;

/// Every so many bytes, which offset begins where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    entries: Vec<(Offset, u64)>,
}

impl SparseIndex {
    /// Notes a frame, unless the last entry is nearer than `interval` bytes.
    pub(crate) fn note(&mut self, offset: Offset, position: u64, interval: u64) {
        if self.entries.last().is_none_or(|(_, last)| position >= last + interval) {
            self.entries.push((offset, position));
        }
    }

    /// The last entry at or before `offset`.
    pub(crate) fn floor(&self, offset: Offset) -> Option<(Offset, u64)> {
        let behind = self.entries.partition_point(|(entry, _)| *entry <= offset);
        behind.checked_sub(1).map(|index| self.entries[index])
    }
}

/// What lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    pub(crate) summary: Summary,
    pub(crate) index: SparseIndex,
    pub(crate) producers: Producers,
    pub(crate) decisions: Decisions,
}

/// A segment, or the part of it that is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    /// Bytes of the file, its header included.
    pub(crate) len: u64,
    pub(crate) max_event_time_ms: Option<i64>,
    pub(crate) last_append: Millis,
}

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    base: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
    #[prost(uint64, tag = "4")]
    len: u64,
    #[prost(sint64, optional, tag = "5")]
    max_event_time_ms: Option<i64>,
    #[prost(uint64, tag = "6")]
    last_append_ms: u64,
    #[prost(uint64, repeated, tag = "7")]
    offsets: Vec<u64>,
    #[prost(uint64, repeated, tag = "8")]
    positions: Vec<u64>,
    #[prost(message, repeated, tag = "9")]
    producers: Vec<WireProducer>,
    #[prost(message, repeated, tag = "10")]
    undecided: Vec<WireExtent>,
    #[prost(message, repeated, tag = "11")]
    aborted: Vec<WireExtent>,
    #[prost(bool, tag = "12")]
    has_gaps: bool,
}

/// A transaction and where its records lie.
#[derive(Clone, PartialEq, Message)]
struct WireExtent {
    #[prost(uint64, tag = "1")]
    transaction: u64,
    #[prost(uint64, tag = "2")]
    first: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
}

impl WireExtent {
    fn new(number: TransactionNumber, extent: Extent) -> Self {
        Self { transaction: number.0, first: extent.first.0, end: extent.end.0 }
    }

    fn read(self) -> (TransactionNumber, Extent) {
        let Self { transaction, first, end } = self;
        (TransactionNumber(transaction), Extent { first: Offset(first), end: Offset(end) })
    }
}

#[derive(Clone, PartialEq, Message)]
struct WireProducer {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "3")]
    last_append_ms: u64,
    #[prost(uint64, repeated, tag = "4")]
    sequences: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    offsets: Vec<u64>,
}

impl Sidecar {
    /// Writes the file: checksum, then the encoded content.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let body = self.to_wire().encode_to_vec();
        let mut bytes = crc32c::crc32c(&body).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        replace_file(path, &bytes)
    }

    /// Reads the file; `None`, with a warning if it is damaged, means that the segment has to be walked.
    pub(crate) fn read(path: &Path, base: Offset) -> Result<Option<Self>> {
        let Some(bytes) = read_file(path)? else { return Ok(None) };
        let sidecar = Self::decode(&bytes).filter(|sidecar| sidecar.summary.base == base);
        if sidecar.is_none() {
            warn!(file = %path.display(), "index file is damaged and will be rebuilt");
        }
        Ok(sidecar)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (crc, body) = bytes.split_first_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let wire = Wire::decode(body).ok().filter(|wire| (1..=VERSION).contains(&wire.version))?;
        let mut producers = Producers::default();
        for WireProducer { id, epoch, last_append_ms, sequences, offsets } in wire.producers {
            let recent = sequences.into_iter().zip(offsets.into_iter().map(Offset)).collect();
            let known = Known { epoch: Epoch(epoch), recent, last_append: Millis(last_append_ms) };
            producers.insert(ProducerId::new(id).ok()?, known);
        }
        Some(Self {
            summary: Summary {
                base: Offset(wire.base),
                end: Offset(wire.end),
                len: wire.len,
                max_event_time_ms: wire.max_event_time_ms,
                last_append: Millis(wire.last_append_ms),
            },
            index: SparseIndex { entries: wire.offsets.into_iter().map(Offset).zip(wire.positions).collect() },
            producers,
            decisions: Decisions {
                undecided: wire.undecided.into_iter().map(WireExtent::read).collect(),
                aborted: wire.aborted.into_iter().map(WireExtent::read).collect(),
                has_gaps: wire.has_gaps,
            },
        })
    }

    fn to_wire(&self) -> Wire {
        let Summary { base, end, len, max_event_time_ms, last_append } = self.summary;
        let Decisions { undecided, aborted, has_gaps } = &self.decisions;
        let producers = self.producers.iter().map(|(id, known)| WireProducer {
            id: id.to_string(),
            epoch: known.epoch.0,
            last_append_ms: known.last_append.0,
            sequences: known.recent.iter().map(|(sequence, _)| *sequence).collect(),
            offsets: known.recent.iter().map(|(_, offset)| offset.0).collect(),
        });
        Wire {
            version: VERSION,
            base: base.0,
            end: end.0,
            len,
            max_event_time_ms,
            last_append_ms: last_append.0,
            offsets: self.index.entries.iter().map(|(offset, _)| offset.0).collect(),
            positions: self.index.entries.iter().map(|(_, position)| *position).collect(),
            producers: producers.collect(),
            undecided: undecided.iter().map(|(number, extent)| WireExtent::new(*number, *extent)).collect(),
            aborted: aborted.iter().map(|(number, extent)| WireExtent::new(*number, *extent)).collect(),
            has_gaps: *has_gaps,
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_types::store::ProducerStamp;

    use super::*;

    #[test]
    fn a_sidecar_reads_back_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.index");
        let mut index = SparseIndex::default();
        index.note(Offset(5), 32, 100);
        index.note(Offset(6), 64, 100);
        index.note(Offset(9), 140, 100);
        let mut producers = Producers::default();
        let producer = ProducerId::new("p").unwrap();
        producers.record(
            &ProducerStamp { producer, epoch: Epoch(2), sequence: 7, transaction: None },
            Offset(5),
            Millis(3),
        );
        let summary =
            Summary { base: Offset(5), end: Offset(12), len: 300, max_event_time_ms: Some(-4), last_append: Millis(8) };
        let extent = |first, end| Extent { first: Offset(first), end: Offset(end) };
        let decisions = Decisions {
            undecided: [(TransactionNumber(4), extent(6, 9))].into(),
            aborted: vec![(TransactionNumber(3), extent(5, 6)), (TransactionNumber(1), extent(2, 7))],
            has_gaps: true,
        };
        let sidecar = Sidecar { summary, index, producers, decisions };
        sidecar.write(&path).unwrap();
        assert_eq!(Sidecar::read(&path, Offset(5)).unwrap(), Some(sidecar.clone()));
        assert_eq!(Sidecar::read(&path, Offset(6)).unwrap(), None);
        assert_eq!(sidecar.index.floor(Offset(8)), Some((Offset(5), 32)));
        assert_eq!(sidecar.index.floor(Offset(9)), Some((Offset(9), 140)));
        assert_eq!(sidecar.index.floor(Offset(4)), None);

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Sidecar::read(&path, Offset(5)).unwrap(), None);
    }
}
