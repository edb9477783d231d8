//! Opening a partition: finding its segments, recovering the end of the log, rebuilding what was lost beside it.
//!
//! A write that was torn off at the end is cut off with a warning. Damage anywhere else is never cut off: what lies
//! before it stays readable, reading on fails with `CORRUPT`, and nothing is appended behind it. So it is with a log that
//! is shorter than what had been synced.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tracing::{error, info, warn};
use weir_types::stream::Offset;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::{Decisions, Partition, PartitionSetup, View, Writer, head_path};
use crate::disk::{create_dir, read_file, remove, sync_dir};
use crate::frame::{FrameHeader, FrameProblem};
use crate::producers::Producers;
use crate::segment::{self, FILE_HEADER_LEN, WalkEnd, base_of, check_header, corrupt, index_path, log_path};
use crate::sidecar::{Sidecar, SparseIndex, Summary};

/// What the log says beside its records, up to some place.
#[derive(Clone, Default)]
struct Told {
    producers: Producers,
    decisions: Decisions,
}

/// What walking over a segment gathers.
struct Gathered {
    summary: Summary,
    index: SparseIndex,
    interval: u64,
}

impl Gathered {
    fn new(base: Offset, interval: u64) -> Self {
        let summary =
            Summary { base, end: base, len: FILE_HEADER_LEN, max_event_time_ms: None, last_append: Millis(0) };
        Self { summary, index: SparseIndex::default(), interval }
    }

    fn add(&mut self, header: &FrameHeader, position: u64, told: &mut Told) {
        self.index.note(header.base_offset, position, self.interval);
        self.summary.end = header.end_offset();
        self.summary.len = position + header.frame_len() as u64;
        self.summary.max_event_time_ms = self.summary.max_event_time_ms.max(header.max_event_time_ms);
        self.summary.last_append = header.appended_at;
        if let Some(stamp) = &header.producer {
            told.producers.record(stamp, header.base_offset, header.appended_at);
        }
        told.decisions.note(header);
    }
}

impl PartitionSetup {
    /// Makes the directory and first segment of a new partition.
    pub(crate) fn create(&self) -> Result<()> {
        create_dir(&self.dir)?;
        segment::create(&*self.disk, &self.dir, self.id, Offset(0)).map(drop)
    }

    /// Opens the partition.
    ///
    /// # Errors
    /// I/O errors, and `CORRUPT` where nothing of the partition can be read. Damage further in is kept in the
    /// partition and reported by whatever meets it.
    pub(crate) fn open(self) -> Result<Partition> {
        let head = self.read_head()?;
        let bases = self.find_segments()?;
        let Some((active, sealed)) = bases.split_last() else {
            return Err(corrupt(&self.dir, 0, "the partition has no segment"));
        };
        let mut told = Told::default();
        let mut summaries = VecDeque::with_capacity(sealed.len());
        for (index, base) in sealed.iter().enumerate() {
            let next = sealed.get(index + 1).unwrap_or(active);
            summaries.push_back(self.open_sealed(*base, *next, &mut told)?);
        }
        self.open_active(*active, head, summaries, told)
    }

    fn read_head(&self) -> Result<Offset> {
        let path = head_path(&self.dir);
        let Some(bytes) = read_file(&path)? else { return Ok(Offset(0)) };
        let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
        number.map(Offset).ok_or_else(|| corrupt(&path, 0, "the head is not a number"))
    }

    /// First offsets of the segments, in order. A newest one that was never finished being created is removed.
    fn find_segments(&self) -> Result<Vec<Offset>> {
        let failed = |error| Error::io(format!("{} could not be listed", self.dir.display()), &error);
        let mut bases = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            bases.extend(base_of(&entry.map_err(failed)?.path()));
        }
        bases.sort_unstable();
        if let Some(newest) = bases.last().copied()
            && bases.len() > 1
        {
            let path = log_path(&self.dir, newest);
            let len = fs::metadata(&path).map_err(failed)?.len();
            // One with an index had been in use; it was cut short since, which `open_active` reports.
            let headless = len <= FILE_HEADER_LEN
                && !index_path(&self.dir, newest).exists()
                && check_header(&File::open(&path).map_err(failed)?, &path, self.id, newest).is_err();
            if headless {
                warn!(file = %path.display(), "segment was never finished being created, removed");
                remove(&path)?;
                sync_dir(&self.dir)?;
                bases.pop();
            }
        }
        Ok(bases)
    }

    fn open_file(&self, path: &Path) -> Result<(File, u64)> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened
            .and_then(|file| file.metadata().map(|metadata| (file, metadata.len())))
            .map_err(|error| Error::io(format!("{} could not be opened", path.display()), &error))
    }

    fn open_sealed(&self, base: Offset, next: Offset, told: &mut Told) -> Result<Summary> {
        let (log, index) = (log_path(&self.dir, base), index_path(&self.dir, base));
        let (file, len) = self.open_file(&log)?;
        if let Err(damage) = check_header(&file, &log, self.id, base) {
            // The frames have checksums of their own and say where they belong; they are readable all the same.
            error!(stream = %self.stream, partition = %self.id, error = %damage, "segment header is damaged");
        }
        let sidecar = Sidecar::read(&index, base)?;
        if let Some(sidecar) = sidecar.filter(|sidecar| sidecar.summary.end == next && sidecar.summary.len == len) {
            *told = Told { producers: sidecar.producers, decisions: sidecar.decisions };
            return Ok(sidecar.summary);
        }
        info!(file = %log.display(), "rebuilding the index of a segment");
        let mut gathered = Gathered::new(base, self.config.index_interval_bytes);
        let end = segment::walk(&file, &log, FILE_HEADER_LEN, base, len, |header, position| {
            gathered.add(header, position, told);
        })?;
        if end.problem.is_some() || end.offset != next {
            // Reading this place reports it; what lies around it stays readable.
            error!(file = %log.display(), position = end.position, offset = %end.offset, "segment is damaged");
            told.decisions.has_gaps = true;
            return Ok(Summary { end: next, len, ..gathered.summary });
        }
        let Gathered { summary, index: sparse, .. } = gathered;
        let Told { producers, decisions } = told.clone();
        Sidecar { summary, index: sparse, producers, decisions }.write(&index)?;
        Ok(summary)
    }

    fn open_active(self, base: Offset, head: Offset, sealed: VecDeque<Summary>, mut told: Told) -> Result<Partition> {
        let path = log_path(&self.dir, base);
        let (mut file, mut len) = self.open_file(&path)?;
        if len < FILE_HEADER_LEN {
            warn!(file = %path.display(), "segment was never finished being created, created anew");
            file = segment::create(&*self.disk, &self.dir, self.id, base)?;
            len = FILE_HEADER_LEN;
        }
        let version = check_header(&file, &path, self.id, base)?;
        let mut gathered = Gathered::new(base, self.config.index_interval_bytes);
        let mut lost = None;
        if let Some(sidecar) = Sidecar::read(&index_path(&self.dir, base), base)? {
            let Sidecar { summary, index, producers, decisions } = sidecar;
            if summary.len <= len {
                told = Told { producers, decisions };
                gathered.summary = summary;
                gathered.index = index;
            } else {
                lost = Some(summary);
            }
        }
        let covered = gathered.summary.len;
        let start = gathered.summary.end;
        let end = segment::walk(&file, &path, covered, start, len, |header, position| {
            gathered.add(header, position, &mut told);
        })?;
        let fault = match lost {
            Some(synced) => Some(self.lost_tail(&path, &end, synced)),
            None => self.settle_tail(&file, &path, &end, len)?,
        };
        // Records that a killed process had written but not synced are about to be shown to readers.
        self.disk.sync(&file).map_err(|error| Error::io(format!("{} could not be synced", path.display()), &error))?;
        let oldest = sealed.front().map_or(base, |segment| segment.base);
        let Gathered { summary, index, .. } = gathered;
        let Told { producers, mut decisions } = told;
        let head = head.max(oldest).min(summary.end);
        decisions.forget_before(head);
        decisions.has_gaps |= fault.is_some();
        let file = Arc::new(file);
        let writer = Writer {
            file: Arc::clone(&file),
            base,
            version,
            position: summary.len,
            next: summary.end,
            producers,
            synced: summary.len,
            covered,
        };
        let view = View {
            sealed,
            active: summary,
            active_file: file,
            active_index: index,
            head,
            decisions,
            append_fault: fault.clone(),
            read_fault: fault.map(|fault| (summary.end, fault)),
        };
        Ok(Partition { setup: self, writer: Mutex::new(writer), view: RwLock::new(view) })
    }

    /// The fault of a log that is shorter than what had been synced: were its offsets given out again, readers and
    /// snapshots that know the lost records would miss the new ones.
    fn lost_tail(&self, path: &Path, end: &WalkEnd, synced: Summary) -> Error {
        let (missing, offset) = (synced.len - end.position, synced.end);
        let what =
            format!("{missing} bytes from here on had been synced and are gone, records {} to {offset}", end.offset);
        let fault = corrupt(path, end.position, &what);
        error!(stream = %self.stream, partition = %self.id, error = %fault, synced = synced.len, "partition is damaged");
        fault
    }

    /// Cuts off a torn write, or returns the damage that is in the way.
    fn settle_tail(&self, file: &File, path: &Path, end: &WalkEnd, len: u64) -> Result<Option<Error>> {
        let Some(problem) = &end.problem else { return Ok(None) };
        let follows = segment::frame_follows(file, path, end.position, end.offset, len)?;
        let what = match problem {
            FrameProblem::Damaged(what) => what,
            FrameProblem::Incomplete(_) => "the frame is longer than the file",
        };
        if follows {
            let fault = corrupt(path, end.position, what);
            error!(stream = %self.stream, partition = %self.id, error = %fault, "partition is damaged");
            return Ok(Some(fault));
        }
        warn!(stream = %self.stream, partition = %self.id, file = %path.display(), position = end.position,
            bytes = len - end.position, offset = %end.offset, reason = what, "torn write at the end of the log cut off");
        file.set_len(end.position)
            .map_err(|error| Error::io(format!("{} could not be cut back", path.display()), &error))?;
        Ok(None)
    }
}
