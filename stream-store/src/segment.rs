//! Segment files: their names, their header, and walking their frames.
//!
//! A segment begins with a header that names its partition and first offset; frames follow without gaps, each at a
//! multiple of eight. Walking checks every checksum and that offsets follow one another.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use weir_types::ids::PartitionId;
use weir_types::stream::Offset;
use weir_types::{Code, Error, Result};

use crate::disk::{Disk, read_at, sync_dir};
use crate::frame::{FRAME_MAGIC, FrameHeader, FrameProblem};

/// Length of a segment file's header.
pub(crate) const FILE_HEADER_LEN: u64 = 32;
const FILE_MAGIC: &[u8; 8] = b"WEIRSEG1";
/// What new segments are. Version 1 had no transactions; its segments stay readable, and take only what they knew.
pub(crate) const FILE_VERSION: u32 = 2;
const OLDEST_VERSION: u32 = 1;
const SCAN_CHUNK: usize = 1 << 20;

/// The file of the segment that begins at `base`.
pub(crate) fn log_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.log", base.0))
}

/// Beside it: its index, and what else would have to be gathered by walking it.
pub(crate) fn index_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.index", base.0))
}

/// The first offset of the segment in a file of this name.
pub(crate) fn base_of(path: &Path) -> Option<Offset> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok().map(Offset))?
}

/// The error for damaged bytes: it names the file and the place.
pub(crate) fn corrupt(path: &Path, position: u64, what: &str) -> Error {
    Error::new(Code::Corrupt, format!("{} is damaged at byte {position}", path.display()))
        .with_detail(what.to_owned())
        .with_hint("Restore the file from a copy, or delete the stream; nothing behind the damage is skipped.")
}

fn header(version: u32, partition: PartitionId, base: Offset) -> [u8; FILE_HEADER_LEN as usize] {
    let mut bytes = [0; FILE_HEADER_LEN as usize];
    bytes[..8].copy_from_slice(FILE_MAGIC);
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes[12..16].copy_from_slice(&partition.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&base.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Creates an empty segment, durable in its directory; what lay there under its name was never used.
pub(crate) fn create(disk: &dyn Disk, dir: &Path, partition: PartitionId, base: Offset) -> Result<File> {
    let path = log_path(dir, base);
    let create = || -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        disk.write_all_at(&file, &mut [IoSlice::new(&header(FILE_VERSION, partition, base))], 0)?;
        file.sync_all()?;
        Ok(file)
    };
    let file =
        create().map_err(|error| Error::io(format!("segment {} could not be created", path.display()), &error))?;
    sync_dir(dir)?;
    Ok(file)
}

/// The version of the segment in this file, whose header must be there and right.
pub(crate) fn check_header(file: &File, path: &Path, partition: PartitionId, base: Offset) -> Result<u32> {
    let bytes = read(file, path, 0, FILE_HEADER_LEN as usize)?;
    let known = (OLDEST_VERSION..=FILE_VERSION).find(|version| bytes == header(*version, partition, base));
    known.ok_or_else(|| {
        let what = match bytes.get(..8) == Some(FILE_MAGIC.as_slice()) {
            true => "the segment's header is damaged, belongs to another partition, or is of another version",
            false => "this is not a segment file",
        };
        corrupt(path, 0, what)
    })
}

pub(crate) fn read(file: &File, path: &Path, position: u64, len: usize) -> Result<Vec<u8>> {
    read_at(file, position, len).map_err(|error| Error::io(format!("{} could not be read", path.display()), &error))
}

/// Where a walk over frames ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WalkEnd {
    /// Behind the last whole frame.
    pub(crate) position: u64,
    /// The offset that follows it.
    pub(crate) offset: Offset,
    /// Why the walk ended before the limit, if it did.
    pub(crate) problem: Option<FrameProblem>,
}

/// Walks the frames of `file` from `position`, where the frame with `offset` is expected, up to `limit`.
pub(crate) fn walk(
    file: &File,
    path: &Path,
    mut position: u64,
    mut offset: Offset,
    limit: u64,
    mut visit: impl FnMut(&FrameHeader, u64),
) -> Result<WalkEnd> {
    let mut needed = 0;
    while position < limit {
        let left = usize::try_from(limit - position).unwrap_or(usize::MAX);
        let bytes = read(file, path, position, SCAN_CHUNK.max(needed).min(left))?;
        let mut at = 0;
        let problem = loop {
            match FrameHeader::parse_frame(&bytes[at..]) {
                Ok(header) if header.base_offset != offset => {
                    break FrameProblem::Damaged("the frame's offset does not follow its predecessor's");
                }
                Ok(header) => {
                    visit(&header, position + at as u64);
                    at += header.frame_len();
                    offset = header.end_offset();
                    if at == bytes.len() {
                        break FrameProblem::Incomplete(0);
                    }
                }
                Err(problem) => break problem,
            }
        };
        position += at as u64;
        match problem {
            FrameProblem::Incomplete(len) if (len as u64) <= limit - position => needed = len,
            problem => return Ok(WalkEnd { position, offset, problem: Some(problem) }),
        }
    }
    Ok(WalkEnd { position, offset, problem: None })
}

/// Whether a whole frame with an offset of at least `offset` lies anywhere behind `position`: then what is wrong at
/// `position` is damage and not a write that was torn off.
pub(crate) fn frame_follows(file: &File, path: &Path, position: u64, offset: Offset, limit: u64) -> Result<bool> {
    let mut start = position + 8;
    let magic = FRAME_MAGIC.to_le_bytes();
    while start < limit {
        let left = usize::try_from(limit - start).unwrap_or(usize::MAX);
        let bytes = read(file, path, start, SCAN_CHUNK.min(left))?;
        for (index, word) in bytes.chunks(8).enumerate() {
            if word.get(..4) != Some(magic.as_slice()) {
                continue;
            }
            let candidate = start + index as u64 * 8;
            let end = walk_one(file, path, candidate, limit)?;
            if end.is_some_and(|header| header.base_offset >= offset) {
                return Ok(true);
            }
        }
        start += bytes.len().next_multiple_of(8) as u64;
    }
    Ok(false)
}

fn walk_one(file: &File, path: &Path, position: u64, limit: u64) -> Result<Option<FrameHeader>> {
    let left = usize::try_from(limit - position).unwrap_or(usize::MAX);
    let head = read(file, path, position, crate::frame::MAX_HEADER_LEN.min(left))?;
    let Ok(header) = FrameHeader::parse(&head) else { return Ok(None) };
    if header.frame_len() > left {
        return Ok(None);
    }
    let frame = read(file, path, position, header.frame_len())?;
    Ok(FrameHeader::parse_frame(&frame).ok())
}
