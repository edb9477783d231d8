//! Frames: how a block of records lies in a segment file, and how it travels to readers, unchanged.
//!
//! A frame's header has a CRC32C of its own and holds the payload's, so that every bit of a frame is covered; the
//! padding that rounds it up to eight bytes must be zero. `docs/stream-store.md` gives the layout. The producer's
//! stamp and the kind are in the header so that recovery, idempotence and transactions need headers only.
//!
//! A marker is a frame without records: it says in one partition how a transaction ended.

use bytes::{BufMut, Bytes, BytesMut};
use weir_types::ids::{Epoch, ProducerId, TransactionNumber};
use weir_types::store::{ProducerStamp, RecordFormat};
use weir_types::stream::Offset;
use weir_types::time::Millis;

use crate::block::RecordBlock;

/// First bytes of every frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"WFR1");
/// Length of a header without the producer's name.
pub const FIXED_HEADER_LEN: usize = 72;
/// Length of a transaction's number, which follows the fixed part in frames that belong to one.
const TRANSACTION_LEN: usize = 8;
/// No header is longer: a name has at most 128 characters.
pub const MAX_HEADER_LEN: usize = FIXED_HEADER_LEN + TRANSACTION_LEN + 128;
const CRC_FROM: usize = 8;
const NO_EVENT_TIME: i64 = i64::MIN;

/// What a frame is for. Readers refuse kinds that they do not know: nothing is skipped silently.
const KIND_DATA: u8 = 0;
/// Records of a transaction.
const KIND_TRANSACTION: u8 = 1;
const KIND_COMMIT: u8 = 2;
const KIND_ABORT: u8 = 3;

/// How a transaction ended in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Which transaction.
    pub transaction: TransactionNumber,
    /// Whether it was committed; aborted otherwise.
    pub committed: bool,
}

/// A frame's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Number of records, at least one; none in a marker.
    pub record_count: u32,
    /// How the payload is encoded.
    pub format: RecordFormat,
    /// Length of the payload.
    pub payload_len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// The greatest event time of its records.
    pub max_event_time_ms: Option<i64>,
    /// When the store took it.
    pub appended_at: Millis,
    /// Which producer appended it, if an idempotent one did, and within which transaction.
    pub producer: Option<ProducerStamp>,
    /// Set in a marker, which has nothing else but its time and place.
    pub marker: Option<Marker>,
}

/// What is wrong with bytes that should be a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameProblem {
    /// The bytes end before the frame does; the frame needs this many.
    Incomplete(usize),
    /// The bytes are not what was written.
    Damaged(&'static str),
}

impl FrameHeader {
    /// A header for `block` at `base_offset`.
    pub fn new(block: &RecordBlock, base_offset: Offset, now: Millis, producer: Option<ProducerStamp>) -> Self {
        Self {
            base_offset,
            record_count: block.record_count(),
            format: block.format(),
            payload_len: block.payload().len() as u32,
            payload_crc: block.crc(),
            max_event_time_ms: block.max_event_time_ms(),
            appended_at: now,
            producer,
            marker: None,
        }
    }

    /// A marker's frame at the end of a log, behind the last record.
    pub fn of_marker(marker: Marker, end: Offset, now: Millis) -> Self {
        Self {
            base_offset: end,
            record_count: 0,
            format: RecordFormat::Bytes,
            payload_len: 0,
            payload_crc: crc32c::crc32c(&[]),
            max_event_time_ms: None,
            appended_at: now,
            producer: None,
            marker: Some(marker),
        }
    }

    /// The transaction that the frame's records belong to, if they do to one.
    pub fn transaction(&self) -> Option<TransactionNumber> {
        self.producer.as_ref().and_then(|stamp| stamp.transaction)
    }

    fn kind(&self) -> (u8, Option<TransactionNumber>) {
        match (self.marker, self.transaction()) {
            (Some(Marker { transaction, committed: true }), _) => (KIND_COMMIT, Some(transaction)),
            (Some(Marker { transaction, committed: false }), _) => (KIND_ABORT, Some(transaction)),
            (None, Some(transaction)) => (KIND_TRANSACTION, Some(transaction)),
            (None, None) => (KIND_DATA, None),
        }
    }

    /// The offset behind the frame's last record.
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.record_count))
    }

    /// Length of this header.
    pub fn header_len(&self) -> usize {
        let name = self.producer.as_ref().map_or(0, |stamp| stamp.producer.as_str().len()).next_multiple_of(8);
        FIXED_HEADER_LEN + self.kind().1.map_or(0, |_| TRANSACTION_LEN) + name
    }

    /// Length of the whole frame with its padding.
    pub fn frame_len(&self) -> usize {
        self.header_len() + (self.payload_len as usize).next_multiple_of(8)
    }

    /// Zero bytes behind the payload.
    pub fn padding_len(&self) -> usize {
        (self.payload_len as usize).next_multiple_of(8) - self.payload_len as usize
    }

    /// Appends the header's bytes to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        let name = self.producer.as_ref().map_or("", |stamp| stamp.producer.as_str());
        let (kind, transaction) = self.kind();
        out.put_u32_le(FRAME_MAGIC);
        out.put_u32_le(0);
        out.put_u16_le(self.header_len() as u16);
        out.put_u8(kind);
        out.put_u8(match self.format {
            RecordFormat::Bytes => 0,
            RecordFormat::Arrow => 1,
        });
        out.put_u16_le(0);
        out.put_u16_le(name.len() as u16);
        out.put_u32_le(self.payload_len);
        out.put_u32_le(self.payload_crc);
        out.put_u64_le(self.base_offset.0);
        out.put_u32_le(self.record_count);
        out.put_u32_le(0);
        out.put_i64_le(self.max_event_time_ms.unwrap_or(NO_EVENT_TIME));
        out.put_u64_le(self.appended_at.0);
        let (epoch, sequence) = self.producer.as_ref().map_or((0, 0), |stamp| (stamp.epoch.0, stamp.sequence));
        out.put_u64_le(epoch);
        out.put_u64_le(sequence);
        if let Some(transaction) = transaction {
            out.put_u64_le(transaction.0);
        }
        out.put_slice(name.as_bytes());
        out.put_bytes(0, name.len().next_multiple_of(8) - name.len());
        let crc = crc32c::crc32c(&out[start + CRC_FROM..]);
        out[start + 4..start + CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads and checks the header at the beginning of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameProblem> {
        let Some(fixed) = bytes.first_chunk::<FIXED_HEADER_LEN>() else {
            // A wrong start is damage even where the rest is missing.
            let magic = FRAME_MAGIC.to_le_bytes();
            let known = bytes.len().min(magic.len());
            return Err(match bytes[..known] == magic[..known] {
                true => FrameProblem::Incomplete(FIXED_HEADER_LEN),
                false => FrameProblem::Damaged("no frame begins here"),
            });
        };
        if u32_at(fixed, 0) != FRAME_MAGIC {
            return Err(FrameProblem::Damaged("no frame begins here"));
        }
        let header_len = usize::from(u16_at(fixed, 8));
        if !(FIXED_HEADER_LEN..=MAX_HEADER_LEN).contains(&header_len) || !header_len.is_multiple_of(8) {
            return Err(FrameProblem::Damaged("the frame header's length is impossible"));
        }
        let Some(header) = bytes.get(..header_len) else { return Err(FrameProblem::Incomplete(header_len)) };
        if crc32c::crc32c(&header[CRC_FROM..]) != u32_at(fixed, 4) {
            return Err(FrameProblem::Damaged("the frame header's checksum does not match"));
        }
        Self::decode(fixed, header).ok_or(FrameProblem::Damaged("the frame header is of a kind unknown to this build"))
    }

    fn decode(fixed: &[u8; FIXED_HEADER_LEN], header: &[u8]) -> Option<Self> {
        let format = match (fixed[11], u16_at(fixed, 12)) {
            (0, 0) => RecordFormat::Bytes,
            (1, 0) => RecordFormat::Arrow,
            _ => return None,
        };
        let rest = &header[FIXED_HEADER_LEN..];
        let (transaction, rest) = match fixed[10] {
            KIND_DATA => (None, rest),
            KIND_TRANSACTION | KIND_COMMIT | KIND_ABORT => {
                let (number, rest) = rest.split_first_chunk::<TRANSACTION_LEN>()?;
                (Some(TransactionNumber(u64::from_le_bytes(*number))), rest)
            }
            _ => return None,
        };
        let marker = match (fixed[10], transaction) {
            (KIND_COMMIT | KIND_ABORT, Some(transaction)) => {
                Some(Marker { transaction, committed: fixed[10] == KIND_COMMIT })
            }
            _ => None,
        };
        let name = rest.get(..usize::from(u16_at(fixed, 14)))?;
        let producer = match std::str::from_utf8(name).ok()? {
            "" => None,
            name => Some(ProducerStamp {
                producer: ProducerId::new(name).ok()?,
                epoch: Epoch(u64_at(fixed, 56)),
                sequence: u64_at(fixed, 64),
                transaction,
            }),
        };
        // Records of a transaction have a producer; a marker has neither producer nor records.
        let (records, payload_len) = (u32_at(fixed, 32), u32_at(fixed, 16));
        let is_possible = match marker {
            Some(_) => records == 0 && payload_len == 0 && producer.is_none(),
            None => records > 0 && (producer.is_some() || transaction.is_none()),
        };
        if !is_possible {
            return None;
        }
        let max_event_time_ms = match u64_at(fixed, 40) as i64 {
            NO_EVENT_TIME => None,
            time => Some(time),
        };
        Some(Self {
            base_offset: Offset(u64_at(fixed, 24)),
            record_count: u32_at(fixed, 32),
            format,
            payload_len: u32_at(fixed, 16),
            payload_crc: u32_at(fixed, 20),
            max_event_time_ms,
            appended_at: Millis(u64_at(fixed, 48)),
            producer,
            marker,
        })
    }

    /// Reads the header at the beginning of `bytes` and checks the whole frame.
    pub fn parse_frame(bytes: &[u8]) -> Result<Self, FrameProblem> {
        let header = Self::parse(bytes)?;
        let Some(frame) = bytes.get(..header.frame_len()) else {
            return Err(FrameProblem::Incomplete(header.frame_len()));
        };
        let (payload, padding) = frame[header.header_len()..].split_at(header.payload_len as usize);
        if crc32c::crc32c(payload) != header.payload_crc {
            return Err(FrameProblem::Damaged("the payload's checksum does not match"));
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err(FrameProblem::Damaged("the padding is not zero"));
        }
        Ok(header)
    }

    /// The block of the frame that begins at `bytes`, which [`FrameHeader::parse_frame`] has checked; shares memory.
    pub fn block(&self, bytes: &Bytes) -> RecordBlock {
        let payload = bytes.slice(self.header_len()..self.header_len() + self.payload_len as usize);
        RecordBlock::from_checked_parts(
            self.format,
            self.record_count,
            self.max_event_time_ms,
            self.payload_crc,
            payload,
        )
    }
}

fn u16_at(bytes: &[u8; FIXED_HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; FIXED_HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; FIXED_HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::RecordBlockBuilder;

    fn frame(producer: Option<&str>, transaction: Option<u64>, values: &[&[u8]]) -> (FrameHeader, Vec<u8>) {
        let mut builder = RecordBlockBuilder::default();
        for value in values {
            builder.push(None, value, Some(5)).unwrap();
        }
        let block = builder.finish();
        let producer = producer.map(|name| ProducerStamp {
            producer: ProducerId::new(name).unwrap(),
            epoch: Epoch(3),
            sequence: 9,
            transaction: transaction.map(TransactionNumber),
        });
        let header = FrameHeader::new(&block, Offset(40), Millis(1000), producer);
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        bytes.put_slice(block.payload());
        bytes.put_bytes(0, header.padding_len());
        (header, bytes.to_vec())
    }

    fn marker(committed: bool) -> (FrameHeader, Vec<u8>) {
        let marker = Marker { transaction: TransactionNumber(77), committed };
        let header = FrameHeader::of_marker(marker, Offset(40), Millis(9));
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        (header, bytes.to_vec())
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        let longest = "x".repeat(128);
        let producers =
            [(None, None), (Some("p"), None), (Some("p"), Some(5)), (Some(longest.as_str()), Some(u64::MAX))];
        let frames = producers.map(|(producer, transaction)| frame(producer, transaction, &[b"hello", b"wor"]));
        for (header, bytes) in frames.into_iter().chain([marker(true), marker(false)]) {
            assert_eq!(bytes.len(), header.frame_len());
            assert_eq!(FrameHeader::parse_frame(&bytes), Ok(header));
        }
    }

    #[test]
    fn a_frame_that_no_store_writes_is_refused() {
        // A marker with records, data without any, and a transaction's records without their producer.
        let with_records = FrameHeader { record_count: 1, ..marker(true).0 };
        let without = FrameHeader { record_count: 0, payload_len: 0, ..frame(None, None, &[b"x"]).0 };
        for header in [with_records, without] {
            let mut bytes = BytesMut::new();
            header.encode(&mut bytes);
            assert!(matches!(FrameHeader::parse(&bytes), Err(FrameProblem::Damaged(_))), "{header:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for (_, bytes) in [frame(Some("p"), None, &[b"hello"]), frame(Some("p"), Some(3), &[b"hello"]), marker(true)] {
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(FrameHeader::parse_frame(&damaged).is_err(), "bit {bit} of {}", bytes.len() * 8);
            }
        }
    }

    #[test]
    fn every_cut_is_incomplete() {
        let (_, bytes) = frame(Some("p"), Some(1), &[b"hello"]);
        for len in 0..bytes.len() {
            let problem = FrameHeader::parse_frame(&bytes[..len]).unwrap_err();
            assert!(matches!(problem, FrameProblem::Incomplete(_)), "{len}: {problem:?}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            let _ = FrameHeader::parse_frame(&bytes);
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
                prop_assert!(FrameHeader::parse_frame(&bytes).is_err());
            }
        }
    }
}
