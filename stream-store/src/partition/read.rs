//! Reading: whole frames from an offset on, checked, as they lie in the file.
//!
//! Committed readers get no further than the first record that is not decided, and are told which offsets are left out
//! because they were aborted: what is missing is always named.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tracing::{error, warn};
use weir_types::error::Facts;
use weir_types::ids::TransactionNumber;
use weir_types::store::Isolation;
use weir_types::stream::Offset;
use weir_types::{Code, Error, Result};

use super::Partition;
use crate::frame::{FrameHeader, FrameProblem};
use crate::segment::{self, FILE_HEADER_LEN, corrupt, index_path, log_path};
use crate::sidecar::Sidecar;

/// Where a read ended, so that the next one need not search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    base: Offset,
    position: u64,
    offset: Offset,
}

/// What a read found.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    /// Whole frames; the first one holds the offset asked for, unless that is skipped. Empty at the end of the log.
    pub(crate) frames: Bytes,
    /// What was left out because it was aborted, in order.
    pub(crate) skipped: Vec<Range<Offset>>,
    /// The offset behind all that.
    pub(crate) next: Offset,
    /// How far readers of this isolation get.
    pub(crate) end: Offset,
    pub(crate) cursor: Option<Cursor>,
}

/// The part of one segment that may be read.
struct Readable {
    base: Offset,
    /// Behind the segment's last record.
    end: Offset,
    limit: u64,
    /// The active segment's file; closed ones are opened for each read, so that few files are open at once.
    file: Option<Arc<File>>,
    /// Where to begin.
    position: u64,
    offset: Offset,
}

impl Partition {
    /// Reads frames from `from` on, about `max_bytes` of them, at least one if there is one. Blocks on the disk.
    pub(crate) fn read(
        &self,
        from: Offset,
        cursor: Option<Cursor>,
        max_bytes: usize,
        isolation: Isolation,
    ) -> Result<Slice> {
        let read = self.read_slice(from, cursor, max_bytes, isolation);
        read.inspect_err(|error| self.log_failed_read(from, error))
    }

    /// The error itself names the file, and where in it the damage is.
    fn log_failed_read(&self, from: Offset, error: &Error) {
        let (stream, partition) = (&self.setup.stream, self.setup.id);
        if error.code == Code::OffsetTruncated {
            return warn!(%stream, %partition, offset = %from, code = %error.code, %error, "read refused");
        }
        let base = {
            let view = self.view.read();
            let bases = view.sealed.iter().map(|segment| segment.base).chain([view.active.base]);
            bases.filter(|base| *base <= from).max().unwrap_or(view.active.base)
        };
        let file = log_path(&self.setup.dir, base);
        error!(%stream, %partition, file = %file.display(), offset = %from, code = %error.code, %error, "read failed");
    }

    fn read_slice(
        &self,
        from: Offset,
        cursor: Option<Cursor>,
        max_bytes: usize,
        isolation: Isolation,
    ) -> Result<Slice> {
        // Decisions only ever move this on: what lies before it is decided when the frames are read.
        let stable = self.readable_end(isolation);
        let (readable, end) = self.locate(from, cursor)?;
        let end = match isolation {
            Isolation::Committed => end.min(stable),
            Isolation::Uncommitted => end,
        };
        let Some(mut readable) = readable.filter(|_| from < end) else {
            return Ok(Slice { frames: Bytes::new(), skipped: Vec::new(), next: from, end, cursor });
        };
        if readable.file.is_none() && cursor.is_none() {
            self.seek_sealed(&mut readable, from)?;
        }
        let path = log_path(&self.setup.dir, readable.base);
        let file = match readable.file.take() {
            Some(file) => file,
            None => match File::open(&path) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && from < self.head() => {
                    return Err(truncated(from, self.head()));
                }
                Err(error) => return Err(Error::io(format!("{} could not be opened", path.display()), &error)),
            },
        };
        let (mut frames, mut position, mut next) = read_frames(&file, &path, &readable, from, max_bytes)?;
        if next > end {
            let kept = len_before(&frames, end);
            position -= (frames.len() - kept) as u64;
            frames.truncate(kept);
            next = end;
        }
        metrics::counter!("weir_store_read_bytes_total").increment(frames.len() as u64);
        let mut cursor = Cursor { base: readable.base, position, offset: next };
        if next == readable.end && next < end {
            // The next segment begins behind its header.
            cursor = Cursor { base: next, position: FILE_HEADER_LEN, offset: next };
        }
        let aborted = match isolation {
            Isolation::Committed => self.view.read().decisions.aborted_between(from, next),
            Isolation::Uncommitted => Vec::new(),
        };
        let (frames, skipped) = if aborted.is_empty() { (frames, Vec::new()) } else { leave_out(&frames, &aborted) };
        Ok(Slice { frames, skipped, next, end, cursor: Some(cursor) })
    }

    /// The segment that holds `from`, if there is anything to read, and the partition's end.
    fn locate(&self, from: Offset, cursor: Option<Cursor>) -> Result<(Option<Readable>, Offset)> {
        let view = self.view.read();
        let end = view.active.end;
        if from < view.head {
            return Err(truncated(from, view.head));
        }
        if let Some((at, fault)) = &view.read_fault
            && from >= *at
        {
            return Err(fault.clone());
        }
        if from > end {
            return Err(Error::invalid(format!("offset {from} lies behind the end of the partition, {end}"))
                .with_detail(format!("stream {}, partition {}", self.setup.stream, self.setup.id)));
        }
        if from == end {
            return Ok((None, end));
        }
        let sealed = view.sealed.partition_point(|segment| segment.end <= from);
        let (summary, file) = match view.sealed.get(sealed) {
            Some(summary) => (summary, None),
            None => (&view.active, Some(Arc::clone(&view.active_file))),
        };
        let start = match cursor {
            Some(cursor) if cursor.base == summary.base && cursor.offset == from => (cursor.offset, cursor.position),
            _ if file.is_some() => view.active_index.floor(from).unwrap_or((summary.base, FILE_HEADER_LEN)),
            _ => (summary.base, FILE_HEADER_LEN),
        };
        let readable = Readable {
            base: summary.base,
            end: summary.end,
            limit: summary.len,
            file,
            position: start.1,
            offset: start.0,
        };
        Ok((Some(readable), end))
    }

    /// Closed segments keep their index beside them; without one the segment is walked from its beginning.
    fn seek_sealed(&self, readable: &mut Readable, from: Offset) -> Result<()> {
        let sidecar = Sidecar::read(&index_path(&self.setup.dir, readable.base), readable.base)?;
        if let Some((offset, position)) = sidecar.and_then(|sidecar| sidecar.index.floor(from)) {
            readable.offset = offset;
            readable.position = position;
        }
        Ok(())
    }
}

fn truncated(from: Offset, head: Offset) -> Error {
    Error::new(Code::OffsetTruncated, format!("offset {from} has been truncated: the oldest one is {head}"))
        .with_hint("Start from the head or a newer position, if losing the records between is acceptable.")
        .with_facts(Facts::OffsetTruncated { head })
}

/// The frames in these bytes, which were checked before.
fn headers(frames: &Bytes) -> impl Iterator<Item = (FrameHeader, Bytes)> {
    let mut rest = frames.clone();
    std::iter::from_fn(move || {
        let header = FrameHeader::parse(&rest).ok()?;
        let frame = rest.split_to(header.frame_len().min(rest.len()));
        Some((header, frame))
    })
}

/// Length of the frames whose records lie before `end`.
fn len_before(frames: &Bytes, end: Offset) -> usize {
    headers(frames).take_while(|(header, _)| header.end_offset() <= end).map(|(_, frame)| frame.len()).sum()
}

/// The frames without those of aborted transactions, and the offsets of those.
fn leave_out(frames: &Bytes, aborted: &[TransactionNumber]) -> (Bytes, Vec<Range<Offset>>) {
    let mut kept = BytesMut::with_capacity(frames.len());
    let mut skipped: Vec<Range<Offset>> = Vec::new();
    for (header, frame) in headers(frames) {
        if header.transaction().is_none_or(|number| !aborted.contains(&number)) {
            kept.extend_from_slice(&frame);
            continue;
        }
        match skipped.last_mut() {
            Some(last) if last.end == header.base_offset => last.end = header.end_offset(),
            _ => skipped.push(header.base_offset..header.end_offset()),
        }
    }
    (kept.freeze(), skipped)
}

/// Whole frames from the one that holds `from` on, where they end in the file, and the offset behind them.
fn read_frames(
    file: &File,
    path: &std::path::Path,
    readable: &Readable,
    from: Offset,
    max_bytes: usize,
) -> Result<(Bytes, u64, Offset)> {
    let mut position = readable.position;
    let mut offset = readable.offset;
    let mut wanted = max_bytes;
    loop {
        let left = usize::try_from(readable.limit.saturating_sub(position)).unwrap_or(usize::MAX);
        let bytes = segment::read(file, path, position, wanted.min(left))?;
        let (mut start, mut at) = (0, 0);
        let problem = loop {
            match FrameHeader::parse_frame(&bytes[at..]) {
                Ok(header) if header.base_offset != offset => {
                    break FrameProblem::Damaged("the frame's offset does not follow its predecessor's");
                }
                Ok(header) => {
                    at += header.frame_len();
                    offset = header.end_offset();
                    if offset <= from {
                        start = at;
                    }
                }
                Err(problem) => break problem,
            }
        };
        if at > start {
            // Damage behind whole frames is reported by the read that begins there.
            let frames = Bytes::from(bytes).slice(start..at);
            return Ok((frames, position + at as u64, offset));
        }
        position += at as u64;
        match problem {
            FrameProblem::Damaged(what) => return Err(corrupt(path, position, what)),
            FrameProblem::Incomplete(needed) if (needed as u64) <= readable.limit.saturating_sub(position) => {
                wanted = max_bytes.max(needed);
            }
            FrameProblem::Incomplete(_) => return Err(corrupt(path, position, "the frame is longer than the file")),
        }
    }
}
