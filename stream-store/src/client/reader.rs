//! Reading a stream: blocks of several partitions, pushed by the store as they appear.
//!
//! A reader delivers every record of its partitions from where it began, once and in order per partition, or fails. It
//! reconnects by itself; what was not delivered yet is read again. With committed isolation, which is the default,
//! records of transactions are delivered once they are committed, and aborted ones never.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info};
use weir_proto::convert::store::{cut_to_pb, isolation_to_pb};
use weir_proto::from_status;
use weir_proto::pb::store::v1 as pb;
use weir_proto::pb::store::v1::read_request::Kind;
use weir_types::ids::PartitionId;
use weir_types::store::Isolation;
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Code, Error, Result};

use super::StoreClient;
use crate::arrow_block::decode_batch;
use crate::block::{Record, RecordBlock};
use crate::frame::{FrameHeader, FrameProblem};

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How a reader reads.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// Stop before these offsets; [`Reader::next`] returns `None` once every partition read has one and got there.
    /// Without it the reader tails the stream for ever.
    pub until: Option<StreamCut>,
    /// Bytes that the store may send ahead of what was taken: bounds the reader's memory.
    pub credit_bytes: u64,
    /// What is shown of transactions.
    pub isolation: Isolation,
    /// How long to keep trying to reach a store before `next` fails; `None` is for ever.
    pub give_up_after: Option<Duration>,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self { until: None, credit_bytes: 4 << 20, isolation: Isolation::default(), give_up_after: None }
    }
}

/// A block as it was appended, and which of its records were asked for.
#[derive(Clone, Debug)]
pub struct ReadBlock {
    /// Where it comes from.
    pub partition: PartitionId,
    /// Offset of the first record asked for.
    pub first: Offset,
    /// The whole block.
    pub block: RecordBlock,
    /// The records asked for; all of them except at the reader's start and end.
    pub rows: Range<u32>,
    /// The partition's end when the block was read, or how far committed readers get: nothing more is there yet if it
    /// equals [`ReadBlock::next_offset`].
    pub end: Offset,
}

impl ReadBlock {
    /// Number of records asked for; at least one.
    pub fn record_count(&self) -> u32 {
        self.rows.end - self.rows.start
    }

    /// The offset behind the last of them: a position to resume from.
    pub fn next_offset(&self) -> Offset {
        self.first.plus(u64::from(self.record_count()))
    }

    /// The records asked for, of a stream of bytes records, borrowed from the block.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the stream holds Arrow rows.
    pub fn records(&self) -> Result<impl ExactSizeIterator<Item = Record<'_>> + use<'_>> {
        Ok(self.block.records()?.iter_range(self.rows.start as usize..self.rows.end as usize))
    }

    /// The rows asked for, of a stream of Arrow rows: all columns or those of `projection`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the stream holds bytes records; `MALFORMED_RECORD` if `schema` is not the stream's.
    pub fn to_batch(&self, schema: &SchemaRef, projection: Option<&[usize]>) -> Result<RecordBatch> {
        let batch = decode_batch(&self.block, schema, projection)?;
        Ok(batch.slice(self.rows.start as usize, self.record_count() as usize))
    }
}

/// Reads partitions of one stream. [`Reader::next`] may be cancelled (used in `select!`) without losing anything.
pub struct Reader {
    client: StoreClient,
    stream: StreamName,
    options: ReaderOptions,
    /// Next offset per partition, behind what is in `ready`.
    fetched: BTreeMap<PartitionId, Offset>,
    /// Next offset per partition, behind what `next` has returned.
    delivered: BTreeMap<PartitionId, Offset>,
    ends: BTreeMap<PartitionId, Offset>,
    /// Blocks with the credit that taking them gives back, and what lies between them.
    ready: VecDeque<Ready>,
    session: Option<Session>,
    retry: Option<Retry>,
}

enum Ready {
    Block(ReadBlock, u64),
    /// The partition goes on at this offset: what comes before it was aborted.
    Skip(PartitionId, Offset),
}

struct Session {
    requests: mpsc::Sender<pb::ReadRequest>,
    replies: Streaming<pb::ReadReply>,
    /// Taken, but not given back yet.
    credit: u64,
}

struct Retry {
    since: Instant,
    at: Instant,
    wait: Duration,
}

impl Reader {
    /// Reads the partitions of `from`, each from its offset on. Nothing is connected before the first `next`.
    pub fn open(client: &StoreClient, stream: &StreamName, from: StreamCut, options: ReaderOptions) -> Self {
        Self {
            client: client.separate(),
            stream: stream.clone(),
            options,
            delivered: from.0.clone(),
            fetched: from.0,
            ends: BTreeMap::new(),
            ready: VecDeque::new(),
            session: None,
            retry: None,
        }
    }

    /// Where this reader would have to begin to deliver nothing twice and miss nothing.
    pub fn positions(&self) -> StreamCut {
        StreamCut(self.delivered.clone())
    }

    /// The ends of the partitions as far as they are known; a partition is caught up if its position equals its end.
    pub fn ends(&self) -> StreamCut {
        StreamCut(self.ends.clone())
    }

    /// The next block of any partition; waits for one if nothing is there. `None` once `until` is reached everywhere.
    ///
    /// # Errors
    /// `OFFSET_TRUNCATED` if a position lies before the head, `NOT_FOUND`, `CORRUPT`; `UNAVAILABLE` only after
    /// `give_up_after`. The reader may be asked again afterwards.
    pub async fn next(&mut self) -> Result<Option<ReadBlock>> {
        loop {
            match self.ready.pop_front() {
                Some(Ready::Block(block, credit)) => {
                    self.delivered.insert(block.partition, block.next_offset());
                    self.give_back(credit);
                    return Ok(Some(block));
                }
                Some(Ready::Skip(partition, to)) => {
                    self.delivered.insert(partition, to);
                    continue;
                }
                None => {}
            }
            if self.is_finished() {
                return Ok(None);
            }
            match self.fetch().await {
                Ok(()) => self.retry = None,
                Err(error) if error.code.is_retryable() => self.back_off(error)?,
                Err(error) => {
                    self.session = None;
                    return Err(error);
                }
            }
        }
    }

    fn until(&self, partition: PartitionId) -> Option<Offset> {
        self.options.until.as_ref().and_then(|cut| cut.get(partition))
    }

    fn is_finished(&self) -> bool {
        self.fetched.iter().all(|(partition, next)| self.until(*partition).is_some_and(|until| *next >= until))
    }

    /// Waits for one reply and turns it into blocks.
    async fn fetch(&mut self) -> Result<()> {
        if let Some(retry) = &self.retry {
            tokio::time::sleep_until(retry.at).await;
        }
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let session = self.connect().await?;
                self.session.insert(session)
            }
        };
        let message = session.replies.message().await.map_err(|status| from_status(&status))?;
        let Some(pb::ReadReply { partition, end, frames, skipped }) = message else {
            return Err(Error::unavailable("the store ended the read"));
        };
        self.accept(PartitionId(partition), Offset(end), frames, skipped)
    }

    async fn connect(&self) -> Result<Session> {
        let unfinished =
            |(partition, next): &(&PartitionId, &Offset)| self.until(**partition).is_none_or(|until| **next < until);
        let from = self.fetched.iter().filter(unfinished).map(|(partition, next)| (*partition, *next)).collect();
        let open = pb::ReadOpen {
            stream: self.stream.to_string(),
            from: cut_to_pb(&StreamCut(from)),
            until: self.options.until.as_ref().map(cut_to_pb).unwrap_or_default(),
            credit: self.options.credit_bytes,
            isolation: isolation_to_pb(self.options.isolation).into(),
        };
        let (requests, outgoing) = mpsc::channel(16);
        // There is room for the first.
        let _ = requests.try_send(pb::ReadRequest { kind: Some(Kind::Open(open)) });
        let response = self.client.streams().read(ReceiverStream::new(outgoing)).await;
        let replies = response.map_err(|status| from_status(&status))?.into_inner();
        debug!(stream = %self.stream, "reading");
        Ok(Session { requests, replies, credit: 0 })
    }

    fn accept(
        &mut self,
        partition: PartitionId,
        end: Offset,
        mut frames: Bytes,
        skipped: Vec<pb::OffsetRange>,
    ) -> Result<()> {
        let Some(mut next) = self.fetched.get(&partition).copied() else {
            return Err(Error::internal(format!("the store sent partition {partition}, which was not asked for")));
        };
        self.ends.insert(partition, end);
        let until = self.until(partition);
        let mut unreturned = 0;
        let mut skipped = skipped.into_iter().peekable();
        let mut skip = |next: &mut Offset, ready: &mut VecDeque<Ready>| {
            while let Some(range) = skipped.next_if(|range| range.begin <= next.0) {
                if range.end > next.0 {
                    *next = until.map_or(Offset(range.end), |until| until.min(Offset(range.end)).max(*next));
                    ready.push_back(Ready::Skip(partition, *next));
                }
            }
        };
        while !frames.is_empty() {
            let header = FrameHeader::parse_frame(&frames).map_err(|problem| damaged(partition, next, &problem))?;
            if header.base_offset > next {
                skip(&mut next, &mut self.ready);
            }
            if until.is_some_and(|until| next >= until) {
                // Frames are sent whole, and further than was asked for.
                unreturned += frames.len() as u64;
                break;
            }
            if header.base_offset > next {
                return Err(Error::internal(format!("the store left out offset {next} of partition {partition}")));
            }
            let credit = header.frame_len() as u64;
            let last = until.map_or(header.end_offset(), |until| header.end_offset().min(until));
            if last > next {
                let rows = (next.0 - header.base_offset.0) as u32..(last.0 - header.base_offset.0) as u32;
                let block = ReadBlock { partition, first: next, block: header.block(&frames), rows, end };
                self.ready.push_back(Ready::Block(block, credit));
                next = last;
            } else {
                unreturned += credit;
            }
            frames.advance(header.frame_len());
        }
        skip(&mut next, &mut self.ready);
        self.fetched.insert(partition, next);
        self.give_back(unreturned);
        Ok(())
    }

    /// Lets the store send more, in steps, so that not every block costs a message.
    fn give_back(&mut self, bytes: u64) {
        let step = self.options.credit_bytes / 4;
        if let Some(session) = &mut self.session {
            session.credit += bytes;
            if session.credit > step {
                let request = pb::ReadRequest { kind: Some(Kind::Credit(session.credit)) };
                // With no room now, the next block gives it back.
                if session.requests.try_send(request).is_ok() {
                    session.credit = 0;
                }
            }
        }
    }

    /// Plans the next attempt after a lost connection.
    fn back_off(&mut self, error: Error) -> Result<()> {
        self.session = None;
        let now = Instant::now();
        let (since, wait) = match &self.retry {
            Some(retry) => (retry.since, (retry.wait * 2).min(BACKOFF_MAX)),
            None => {
                info!(stream = %self.stream, %error, "lost the store, trying again");
                (now, BACKOFF_MIN)
            }
        };
        if self.options.give_up_after.is_some_and(|patience| now - since >= patience) {
            self.retry = None;
            return Err(error);
        }
        self.retry = Some(Retry { since, at: now + wait, wait });
        Ok(())
    }
}

fn damaged(partition: PartitionId, next: Offset, problem: &FrameProblem) -> Error {
    Error::new(Code::Corrupt, format!("what the store sent of partition {partition} at offset {next} is damaged"))
        .with_detail(format!("{problem:?}"))
}
