//! The log file: frames of records, and what it means when one cannot be read.
//!
//! A file is `WEIRRAFT`, a version, and frames. A frame is a header (payload length, sequence number, checksum of the
//! payload, checksum of the header) and a payload. Each frame is synced before the next is written. Therefore only the
//! last frame can be torn, and it was never acknowledged: it is cut off. Anything else that does not check is damage,
//! and is reported with file and offset, never skipped:
//!
//! - the file ends within a frame: torn;
//! - the last frame is all there but wrong: torn if some sector of it reads as zeros, as sectors do that never reached
//!   the disk; otherwise bytes have changed since;
//! - a frame is wrong that others follow: damage.

use std::path::Path;

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState};
use weir_types::{Code, Error, Result};

/// Start of every log file; the last four bytes are the format's version.
pub(crate) const MAGIC: [u8; 12] = *b"WEIRRAFT\x01\0\0\0";
const HEADER_BYTES: usize = 20;
const SECTOR_BYTES: usize = 512;

const SECTION_BASE: u8 = 1;
const SECTION_HARD_STATE: u8 = 2;
const SECTION_MEMBERS: u8 = 3;
const SECTION_ENTRY: u8 = 4;

/// A place in the log: an entry's index and term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// What a log file starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base {
    /// The entry before the file's first.
    pub(crate) before: Position,
    /// The index of the snapshot that the state starts from, at or after `before`; zero for none.
    pub(crate) snapshot_index: u64,
}

/// Who belongs to the group, as of an index of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Members {
    pub(crate) index: u64,
    pub(crate) conf: ConfState,
}

/// What one frame says; all of it takes effect or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Record {
    /// Only in a file's first frame.
    pub(crate) base: Option<Base>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) members: Option<Members>,
    /// They replace whatever the log holds from the first one's index on.
    pub(crate) entries: Vec<Entry>,
}

/// Appends `record` as frame number `sequence` to `buffer`.
pub(crate) fn encode(record: &Record, sequence: u64, buffer: &mut Vec<u8>) -> Result<()> {
    let start = buffer.len();
    buffer.resize(start + HEADER_BYTES, 0);
    if let Some(Base { before, snapshot_index }) = &record.base {
        section(buffer, SECTION_BASE, |buffer| {
            for number in [before.index, before.term, *snapshot_index] {
                buffer.extend_from_slice(&number.to_le_bytes());
            }
            Ok(())
        })?;
    }
    if let Some(hard_state) = &record.hard_state {
        section(buffer, SECTION_HARD_STATE, |buffer| hard_state.write_to_vec(buffer))?;
    }
    if let Some(Members { index, conf }) = &record.members {
        section(buffer, SECTION_MEMBERS, |buffer| {
            buffer.extend_from_slice(&index.to_le_bytes());
            conf.write_to_vec(buffer)
        })?;
    }
    for entry in &record.entries {
        section(buffer, SECTION_ENTRY, |buffer| entry.write_to_vec(buffer))?;
    }
    let payload = &buffer[start + HEADER_BYTES..];
    let length = u32::try_from(payload.len()).map_err(|_| Error::internal("a raft record exceeds 4 GiB"))?;
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..12].copy_from_slice(&sequence.to_le_bytes());
    header[12..16].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let checksum = crc32c::crc32c(&header[..16]);
    header[16..].copy_from_slice(&checksum.to_le_bytes());
    buffer[start..start + HEADER_BYTES].copy_from_slice(&header);
    Ok(())
}

fn section(
    buffer: &mut Vec<u8>,
    tag: u8,
    write: impl FnOnce(&mut Vec<u8>) -> protobuf::ProtobufResult<()>,
) -> Result<()> {
    buffer.push(tag);
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    write(buffer).map_err(|error| Error::internal("could not encode a raft record").with_detail(error.to_string()))?;
    let length = u32::try_from(buffer.len() - start - 4).map_err(|_| Error::internal("a raft entry exceeds 4 GiB"))?;
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// The records of a log file, and how many of its bytes they take: less than all of them if the last frame is torn.
///
/// # Errors
/// `CORRUPT`, naming the file and the offset of the frame.
pub(crate) fn decode(path: &Path, file: &[u8]) -> Result<(Vec<Record>, usize)> {
    if file.get(..MAGIC.len()) != Some(&MAGIC) {
        return Err(corrupt(path, 0, "it does not start as a raft log of this version does"));
    }
    let (mut records, mut offset) = (Vec::new(), MAGIC.len());
    while offset < file.len() {
        match frame(&file[offset..], offset, records.len() as u64) {
            Frame::Whole { payload, length } => {
                records.push(parse(payload).map_err(|reason| corrupt(path, offset, &reason))?);
                offset += length;
            }
            Frame::Torn => break,
            Frame::Damaged(reason) => return Err(corrupt(path, offset, reason)),
        }
    }
    Ok((records, offset))
}

fn corrupt(path: &Path, offset: usize, reason: &str) -> Error {
    Error::new(Code::Corrupt, format!("the raft log {} is damaged at offset {offset}", path.display()))
        .with_detail(reason.to_owned())
        .with_hint("Restore the directory from a backup, or, in a group of several members, replace this member.")
}

enum Frame<'a> {
    Whole { payload: &'a [u8], length: usize },
    Torn,
    Damaged(&'static str),
}

struct Header {
    length: usize,
    sequence: u64,
    payload_crc: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (checked, stored) = (bytes.get(..16)?, bytes.get(16..HEADER_BYTES)?);
        if crc32c::crc32c(checked) != u32::from_le_bytes(stored.try_into().ok()?) {
            return None;
        }
        Some(Self {
            length: u32::from_le_bytes(checked[..4].try_into().ok()?) as usize,
            sequence: u64::from_le_bytes(checked[4..12].try_into().ok()?),
            payload_crc: u32::from_le_bytes(checked[12..].try_into().ok()?),
        })
    }
}

/// The frame that `rest`, the file from `offset` on, starts with.
fn frame(rest: &[u8], offset: usize, sequence: u64) -> Frame<'_> {
    if rest.len() < HEADER_BYTES {
        return Frame::Torn;
    }
    let Some(header) = Header::read(rest) else {
        return match has_zero_sector(rest, offset) && !later_frame_follows(rest, sequence) {
            true => Frame::Torn,
            false => Frame::Damaged("a frame's header does not match its checksum"),
        };
    };
    if header.sequence != sequence {
        return Frame::Damaged("a frame is out of order");
    }
    let length = HEADER_BYTES + header.length;
    let Some(payload) = rest.get(HEADER_BYTES..length) else { return Frame::Torn };
    if crc32c::crc32c(payload) == header.payload_crc {
        return Frame::Whole { payload, length };
    }
    match rest.len() == length && has_zero_sector(payload, offset + HEADER_BYTES) {
        true => Frame::Torn,
        false => Frame::Damaged("a frame's payload does not match its checksum"),
    }
}

/// Whether what lies in some sector of the file is nothing but zeros; `bytes` start at `offset` in the file.
fn has_zero_sector(bytes: &[u8], offset: usize) -> bool {
    let first = (SECTOR_BYTES - offset % SECTOR_BYTES).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    zero(head) || rest.chunks(SECTOR_BYTES).any(zero)
}

/// Whether a whole frame with a later sequence number starts anywhere behind the first byte.
fn later_frame_follows(rest: &[u8], sequence: u64) -> bool {
    (1..rest.len().saturating_sub(HEADER_BYTES)).any(|start| {
        Header::read(&rest[start..]).is_some_and(|header| {
            let payload = rest.get(start + HEADER_BYTES..start + HEADER_BYTES + header.length);
            header.sequence > sequence && payload.is_some_and(|payload| crc32c::crc32c(payload) == header.payload_crc)
        })
    })
}

fn parse(mut payload: &[u8]) -> std::result::Result<Record, String> {
    let mut record = Record::default();
    while let Some((tag, rest)) = payload.split_first() {
        let (length, rest) = rest.split_first_chunk::<4>().ok_or("a section has no length")?;
        let body = rest.get(..u32::from_le_bytes(*length) as usize).ok_or("a section is cut short")?;
        payload = &rest[body.len()..];
        match *tag {
            SECTION_BASE => {
                let (numbers, []) = body.as_chunks::<8>() else { return Err("a base is cut short".into()) };
                let [index, term, snapshot_index] = numbers else { return Err("a base is cut short".into()) };
                record.base = Some(Base {
                    before: Position { index: u64::from_le_bytes(*index), term: u64::from_le_bytes(*term) },
                    snapshot_index: u64::from_le_bytes(*snapshot_index),
                });
            }
            SECTION_HARD_STATE => record.hard_state = Some(message(body)?),
            SECTION_MEMBERS => {
                let (index, conf) = body.split_first_chunk::<8>().ok_or("a membership is cut short")?;
                record.members = Some(Members { index: u64::from_le_bytes(*index), conf: message(conf)? });
            }
            SECTION_ENTRY => record.entries.push(message(body)?),
            other => return Err(format!("section {other} is of a newer version")),
        }
    }
    Ok(record)
}

fn message<M: protobuf::Message>(bytes: &[u8]) -> std::result::Result<M, String> {
    M::parse_from_bytes(bytes).map_err(|error| error.to_string())
}
