//! Appending: many blocks, one write, one fsync.
//!
//! Order: check producers and transactions, write, fsync (unless the stream is `os` durable), show to readers, answer. A
//! write that fails, for want of space say, is cut off again and the log goes on; a failed fsync poisons the partition.
//!
//! Markers go the same way, fsynced whatever the stream's options say: when the store may forget how a transaction ended,
//! the log must know.

use std::fs::File;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::field::display;
use tracing::{error, warn};
use weir_types::store::{Appended, Durability, ProducerStamp};
use weir_types::stream::Offset;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::{Partition, Writer};
use crate::block::RecordBlock;
use crate::frame::{FrameHeader, Marker};
use crate::producers::{Known, Verdict};
use crate::segment::{FILE_VERSION, log_path};

/// A block on its way into the log.
pub(crate) struct AppendJob {
    pub(crate) partition: Arc<Partition>,
    pub(crate) block: RecordBlock,
    pub(crate) producer: Option<ProducerStamp>,
    pub(crate) reply: oneshot::Sender<Result<Appended>>,
    /// Held until the job is done: bounds the bytes under way.
    pub(crate) budget: OwnedSemaphorePermit,
}

/// A job that has its place in the log.
struct Placed {
    job: AppendJob,
    result: Appended,
    /// For a new block: its header, and what to restore for its producer if the write fails.
    frame: Option<(FrameHeader, Option<Known>)>,
}

const PADDING: [u8; 8] = [0; 8];

impl Partition {
    /// Appends the blocks in order and answers each.
    pub(crate) fn append(&self, now: Millis, jobs: Vec<AppendJob>) {
        let mut writer = self.writer.lock();
        let is_transactional = |job: &AppendJob| job.producer.as_ref().is_some_and(|stamp| stamp.transaction.is_some());
        let needs_version = if jobs.iter().any(is_transactional) { FILE_VERSION } else { 0 };
        let mut jobs = jobs.into_iter().peekable();
        while jobs.peek().is_some() {
            let ready = match &self.view.read().append_fault {
                Some(fault) => Err(fault.clone()),
                None => Ok(()),
            };
            let full = writer.position >= self.setup.config.segment_bytes && writer.next > writer.base;
            let ready = ready.and_then(|()| match () {
                () if full => self.roll(&mut writer),
                () if writer.version < needs_version => self.modernise(&mut writer),
                () => Ok(()),
            });
            if let Err(error) = ready {
                self.log_failed_append(&writer, &error);
                jobs.for_each(|job| answer(job, Err(error.clone())));
                return;
            }
            let placed = self.place(&mut writer, now, &mut jobs);
            self.commit(&mut writer, now, placed);
        }
    }

    /// Gives offsets to jobs until the segment is full, and answers those that are refused.
    fn place(&self, writer: &mut Writer, now: Millis, jobs: &mut impl Iterator<Item = AppendJob>) -> Vec<Placed> {
        let mut placed = Vec::new();
        let mut next = writer.next;
        let mut position = writer.position;
        for job in jobs {
            let verdict: Result<Verdict> = job.producer.as_ref().map_or(Ok(Verdict::Append), |stamp| {
                self.setup.fences.check(&stamp.producer, stamp.epoch)?;
                // What is there already is answered so even when its transaction has ended meanwhile.
                let verdict = writer.producers.check(stamp)?;
                if let (Verdict::Append, Some(number)) = (verdict, stamp.transaction) {
                    self.setup.transactions.check_open(number, stamp)?;
                }
                Ok(verdict)
            });
            match verdict {
                Err(error) => {
                    let producer = job.producer.as_ref().map(|stamp| display(&stamp.producer));
                    warn!(stream = %self.setup.stream, partition = %self.setup.id, offset = %next, producer,
                        code = %error.code, %error, "append refused");
                    answer(job, Err(error));
                }
                Ok(Verdict::Duplicate(base_offset)) => {
                    placed.push(Placed { job, result: Appended { base_offset, duplicate: true }, frame: None });
                }
                Ok(Verdict::Append) => {
                    let header = FrameHeader::new(&job.block, next, now, job.producer.clone());
                    let before = job.producer.as_ref().and_then(|stamp| writer.producers.record(stamp, next, now));
                    let result = Appended { base_offset: next, duplicate: false };
                    next = header.end_offset();
                    position += header.frame_len() as u64;
                    placed.push(Placed { job, result, frame: Some((header, before)) });
                }
            }
            if position >= self.setup.config.segment_bytes {
                break;
            }
        }
        placed
    }

    fn commit(&self, writer: &mut Writer, now: Millis, placed: Vec<Placed>) {
        let first_new = writer.next;
        let new = || placed.iter().filter_map(|placed| Some((&placed.frame.as_ref()?.0, placed.job.block.payload())));
        let outcome = self.write(writer, new()).and_then(|written| {
            writer.position += written;
            if self.setup.durability == Durability::Fsync {
                self.sync(writer)?;
            }
            Ok(())
        });
        match outcome {
            Ok(()) => {
                self.publish(writer, now, new().map(|(header, _)| header));
                for Placed { job, result, .. } in placed {
                    answer(job, Ok(result));
                }
            }
            Err(error) => {
                metrics::counter!("weir_store_failed_writes_total").increment(1);
                self.log_failed_append(writer, &error);
                for Placed { job, frame, .. } in placed.iter().rev() {
                    if let (Some((_, before)), Some(stamp)) = (frame, &job.producer) {
                        writer.producers.restore(&stamp.producer, before.clone());
                    }
                }
                for Placed { job, result, .. } in placed {
                    // A duplicate of an older block is in the log whatever became of this write.
                    let older = result.base_offset < first_new;
                    answer(job, if older { Ok(result) } else { Err(error.clone()) });
                }
            }
        }
    }

    /// Says in the log how transactions ended, as far as they have records here that are not decided yet.
    pub(crate) fn mark(&self, now: Millis, decided: &[Marker]) -> Result<()> {
        let mut writer = self.writer.lock();
        let markers: Vec<FrameHeader> = {
            let view = self.view.read();
            let here = decided.iter().filter(|marker| view.decisions.undecided.contains_key(&marker.transaction));
            here.map(|marker| FrameHeader::of_marker(*marker, writer.next, now)).collect()
        };
        if markers.is_empty() {
            return Ok(());
        }
        if let Some(fault) = &self.view.read().append_fault {
            return Err(fault.clone());
        }
        let nothing = Bytes::new();
        let written = self.write(&mut writer, markers.iter().map(|header| (header, &nothing)))?;
        writer.position += written;
        self.sync(&mut writer)?;
        self.publish(&mut writer, now, markers.iter());
        Ok(())
    }

    fn log_failed_append(&self, writer: &Writer, error: &Error) {
        let file = log_path(&self.setup.dir, writer.base);
        error!(stream = %self.setup.stream, partition = %self.setup.id, file = %file.display(), offset = %writer.next,
            position = writer.position, code = %error.code, %error, "append failed");
    }

    /// Writes frames behind the log's end and returns how many bytes they are.
    fn write<'a>(
        &self,
        writer: &mut Writer,
        frames: impl Iterator<Item = (&'a FrameHeader, &'a Bytes)> + Clone,
    ) -> Result<u64> {
        let mut headers = BytesMut::new();
        frames.clone().for_each(|(header, _)| header.encode(&mut headers));
        let mut rest = &headers[..];
        let mut slices = Vec::with_capacity(frames.size_hint().1.unwrap_or(0) * 3);
        let mut total = 0;
        for (header, payload) in frames {
            let (own, behind) = rest.split_at(header.header_len());
            rest = behind;
            slices.push(IoSlice::new(own));
            slices.push(IoSlice::new(payload));
            if header.padding_len() > 0 {
                slices.push(IoSlice::new(&PADDING[..header.padding_len()]));
            }
            total += header.frame_len() as u64;
        }
        if slices.is_empty() {
            return Ok(0);
        }
        let file: &File = &writer.file;
        self.setup.disk.write_all_at(file, &mut slices, writer.position).map_err(|error| {
            let path = log_path(&self.setup.dir, writer.base);
            let failed = Error::io(format!("{} could not be appended to", path.display()), &error);
            // Without this, half a frame would lie where the next one belongs.
            if let Err(error) = file.set_len(writer.position) {
                self.poison(
                    Error::io(format!("{} could not be cut back after a failed write", path.display()), &error)
                        .with_hint("Restart the store; it cuts the file back when it opens it."),
                );
            }
            failed
        })?;
        Ok(total)
    }

    /// Shows the new end to readers.
    fn publish<'a>(&self, writer: &mut Writer, now: Millis, headers: impl Iterator<Item = &'a FrameHeader>) {
        let mut view = self.view.write();
        let mut position = view.active.len;
        let mut end = Offset(0);
        for header in headers {
            view.decisions.note(header);
            view.active_index.note(header.base_offset, position, self.setup.config.index_interval_bytes);
            view.active.max_event_time_ms = view.active.max_event_time_ms.max(header.max_event_time_ms);
            position += header.frame_len() as u64;
            end = header.end_offset();
        }
        if position == view.active.len {
            return;
        }
        metrics::counter!("weir_store_appended_bytes_total").increment(position - view.active.len);
        metrics::counter!("weir_store_appended_records_total").increment(end.0 - view.active.end.0);
        view.active.len = position;
        view.active.end = end;
        view.active.last_append = now;
        writer.next = end;
        drop(view);
        self.setup.tail.send_modify(|growth| *growth += 1);
    }
}

/// Answers; a caller that has gone away does not undo the append.
fn answer(job: AppendJob, result: Result<Appended>) {
    let AppendJob { reply, budget, block, .. } = job;
    drop(block);
    drop(budget);
    let _ = reply.send(result);
}
