//! Reads partitions of a stream: a partition is a split, its position is the next offset.
//!
//! A task on the io runtime keeps reading ahead, bounded by the reader's credit and by [`QUEUED_BYTES_MAX`] here. Partitions
//! with something to read take turns by batches, so that one that is far behind does not hold up the others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::compute::concat_batches;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use metrics::counter;
use tokio::sync::mpsc;
use tracing::warn;
use weir_dataflow::source::{Source, SourceContext, SourceEvent};
use weir_stream_store::Record;
use weir_stream_store::client::{ReadBlock, Reader, ReaderOptions, StoreClient};
use weir_types::ids::PartitionId;
use weir_types::store::{Isolation, RecordFormat};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Code, Error, Result, splits};

use super::{IGNORE_OPTION, arrow_schema, check_format, format, isolation, places, stream_name};
use crate::format::json::JsonDecoder;
use crate::format::layout::Layout;
use crate::format::{self, OnMalformed};

/// Blocks that wait for the compute thread.
const BLOCKS_AHEAD: usize = 4;
/// No more blocks are taken while so many bytes wait to be decoded.
const QUEUED_BYTES_MAX: usize = 4 << 20;
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Reads the partitions of its splits.
pub(crate) struct StreamSource {
    table: String,
    stream: StreamName,
    layout: Layout,
    decoder: Decoder,
    on_malformed: OnMalformed,
    batch_rows: usize,
    partitions: Vec<Partition>,
    blocks: mpsc::Receiver<Result<Arrived>>,
    queued_bytes: usize,
    /// The partition that was read last.
    turn: usize,
    skipped: u64,
}

enum Decoder {
    Json(JsonDecoder),
    /// Once the stream's schema is known: the schema, and where the table's columns are in it.
    Arrow(Option<(SchemaRef, Vec<usize>)>),
}

struct Partition {
    id: PartitionId,
    position: u64,
    end: Option<u64>,
    finished: bool,
    reported: bool,
    /// Nothing more will arrive: the queue has all that is left up to the end.
    complete: bool,
    queue: VecDeque<Queued>,
}

impl Partition {
    /// A partition may end in records that were aborted, which nobody is given.
    fn finish_if_empty(&mut self) {
        if self.complete && self.queue.is_empty() {
            self.position = self.end.map_or(self.position, |end| end.max(self.position));
            self.finished = true;
        }
    }
}

/// A block of which some records may have been taken.
struct Queued {
    block: ReadBlock,
    taken: u32,
    /// For Arrow rows, once it is decoded.
    rows: Option<RecordBatch>,
}

impl Queued {
    fn left(&self) -> u32 {
        self.block.record_count() - self.taken
    }

    /// Offset of the next record.
    fn next(&self) -> u64 {
        self.block.first.0 + u64::from(self.taken)
    }
}

enum Arrived {
    Schema(SchemaRef),
    Block(ReadBlock),
    /// Every partition has been read up to its end; what no block held was aborted.
    End,
}

impl StreamSource {
    pub(crate) fn new(context: SourceContext) -> Result<Self> {
        let SourceContext { spec, splits, batch_rows, io, store_address, .. } = context;
        let stream = stream_name(&spec.connector)?;
        let format = format(&spec.connector)?;
        let isolation = isolation(&spec.connector)?;
        let layout = Layout::new(&spec.scan_schema, &spec.metadata);
        let decoder = match format {
            RecordFormat::Bytes => Decoder::Json(JsonDecoder::new(Arc::clone(&layout.physical))?),
            RecordFormat::Arrow => Decoder::Arrow(None),
        };
        let partition = |split: &weir_types::snapshot::SplitPosition| {
            Ok(Partition {
                id: splits::parse_partition(&split.split)?,
                position: split.offset,
                end: split.end,
                finished: split.finished || split.end.is_some_and(|end| split.offset >= end),
                reported: false,
                complete: false,
                queue: VecDeque::new(),
            })
        };
        let partitions = splits.iter().map(partition).collect::<Result<Vec<_>>>()?;
        let unfinished = || partitions.iter().filter(|partition| !partition.finished);
        let from = unfinished().map(|partition| (partition.id, Offset(partition.position))).collect();
        let until = unfinished().filter_map(|partition| Some((partition.id, Offset(partition.end?)))).collect();
        let (sender, blocks) = mpsc::channel(BLOCKS_AHEAD);
        let (theirs, cut, until) = (stream.clone(), StreamCut(from), StreamCut(until));
        io.spawn(async move {
            if let Err(error) = read(&store_address, &theirs, (format, isolation), cut, until, &sender).await {
                // Nobody listens if the subtask was cancelled meanwhile.
                let _ = sender.send(Err(with_hint(error, &theirs))).await;
            }
        });
        Ok(Self {
            on_malformed: OnMalformed::of(&spec.connector, IGNORE_OPTION)?,
            table: spec.table,
            stream,
            layout,
            decoder,
            batch_rows: batch_rows.max(1),
            partitions,
            blocks,
            queued_bytes: 0,
            turn: 0,
            skipped: 0,
        })
    }

    fn accept(&mut self, arrived: Arrived) -> Result<()> {
        match arrived {
            Arrived::Schema(schema) => {
                let places = places(&self.stream, &schema, &self.layout.physical)?;
                self.decoder = Decoder::Arrow(Some((schema, places)));
            }
            Arrived::Block(block) => {
                let partition = self.partitions.iter_mut().find(|partition| partition.id == block.partition);
                let Some(partition) = partition else {
                    return Err(Error::internal(format!("partition {} was not asked for", block.partition)));
                };
                self.queued_bytes += block.block.payload().len();
                partition.queue.push_back(Queued { block, taken: 0, rows: None });
            }
            Arrived::End => self.partitions.iter_mut().for_each(|partition| {
                partition.complete = true;
                partition.finish_if_empty();
            }),
        }
        Ok(())
    }

    /// The next partition, in turn, that has records.
    fn next_partition(&mut self) -> Option<usize> {
        let count = self.partitions.len();
        let next =
            (1..=count).map(|step| (self.turn + step) % count).find(|i| !self.partitions[*i].queue.is_empty())?;
        self.turn = next;
        Some(next)
    }

    /// A batch of one partition's queued records. Their offsets follow one another: where aborted ones lie between, a
    /// batch ends.
    fn rows(&mut self, split: usize) -> Result<SourceEvent> {
        let partition = &mut self.partitions[split];
        let first = partition.queue.front().map_or(partition.position, Queued::next);
        let (count, decoded) = match &mut self.decoder {
            Decoder::Json(decoder) => {
                let records = gather(&partition.queue, self.batch_rows)?;
                let values: Vec<&[u8]> = records.iter().map(|record| record.value).collect();
                let (stream, id) = (&self.stream, partition.id);
                let place = |index: usize| {
                    format!("the record at offset {} of partition {id} of {stream}", first + index as u64)
                };
                let decoded = format::decode(decoder, &values, self.on_malformed, IGNORE_OPTION, place)?;
                let kept = decoded.kept.as_deref();
                let rows = self.layout.assemble(&decoded.rows, |key, _| metadata(key, id, first, &records, kept))?;
                if let Some(kept) = kept {
                    let skipped = (values.len() - kept.len()) as u64;
                    self.skipped += skipped;
                    counter!("weir_source_records_skipped_total", "table" => self.table.clone()).increment(skipped);
                    warn!(table = %self.table, partition = %id, skipped, total = self.skipped, "malformed records skipped");
                }
                (values.len(), rows)
            }
            Decoder::Arrow(None) => return Err(Error::internal("rows came before their schema")),
            Decoder::Arrow(Some((schema, places))) => {
                let rows = gather_rows(&mut partition.queue, self.batch_rows, schema, places)?;
                let count = rows.num_rows();
                let records = vec![Record { key: None, value: &[], event_time_ms: None }; count];
                let id = partition.id;
                (count, self.layout.assemble(&rows, |key, _| metadata(key, id, first, &records, None))?)
            }
        };
        partition.position = first + count as u64;
        self.queued_bytes -= take(&mut partition.queue, count);
        partition.finished = partition.end.is_some_and(|end| partition.position >= end);
        partition.finish_if_empty();
        Ok(SourceEvent::Rows { split, rows: decoded, next_offset: partition.position, event_time_max_ms: None })
    }
}

#[async_trait(?Send)]
impl Source for StreamSource {
    async fn next(&mut self) -> Result<SourceEvent> {
        loop {
            if let Some(split) = self.partitions.iter().position(|partition| partition.finished && !partition.reported)
            {
                self.partitions[split].reported = true;
                return Ok(SourceEvent::SplitFinished { split });
            }
            if self.partitions.iter().all(|partition| partition.finished) {
                return Ok(SourceEvent::End);
            }
            while self.queued_bytes < QUEUED_BYTES_MAX {
                let Ok(arrived) = self.blocks.try_recv() else { break };
                self.accept(arrived?)?;
            }
            if let Some(split) = self.next_partition() {
                return self.rows(split);
            }
            match self.blocks.recv().await {
                Some(arrived) => self.accept(arrived?)?,
                None => return Err(Error::internal(format!("reading {} stopped before its end", self.stream))),
            }
        }
    }
}

/// The next records of a partition, at most `max`.
fn gather(queue: &VecDeque<Queued>, max: usize) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    let first = queue.front().map_or(0, Queued::next);
    for queued in queue {
        if records.len() == max || queued.next() != first + records.len() as u64 {
            break;
        }
        let start = (queued.block.rows.start + queued.taken) as usize;
        let end = (queued.block.rows.end as usize).min(start + max - records.len());
        records.extend(queued.block.block.records()?.iter_range(start..end));
    }
    Ok(records)
}

/// The next Arrow rows of a partition, at most `max`.
fn gather_rows(queue: &mut VecDeque<Queued>, max: usize, schema: &SchemaRef, places: &[usize]) -> Result<RecordBatch> {
    let mut batches = Vec::new();
    let mut count = 0;
    let first = queue.front().map_or(0, Queued::next);
    for queued in queue {
        if count == max || queued.next() != first + count as u64 {
            break;
        }
        let take = (queued.left() as usize).min(max - count);
        let rows = match &queued.rows {
            Some(rows) => rows,
            None => queued.rows.insert(queued.block.to_batch(schema, Some(places))?),
        };
        batches.push(rows.slice(queued.taken as usize, take));
        count += take;
    }
    match batches.as_slice() {
        [only] => Ok(only.clone()),
        [first, ..] => concat_batches(&first.schema(), &batches)
            .map_err(|error| Error::internal("blocks of rows do not fit together").with_detail(error.to_string())),
        [] => Err(Error::internal("a partition without blocks has no rows")),
    }
}

/// Removes the first `count` records; returns the bytes of the blocks that are done.
fn take(queue: &mut VecDeque<Queued>, mut count: usize) -> usize {
    let mut bytes = 0;
    while let Some(queued) = queue.front_mut() {
        if (queued.left() as usize) > count {
            queued.taken += count as u32;
            break;
        }
        count -= queued.left() as usize;
        bytes += queued.block.block.payload().len();
        queue.pop_front();
    }
    bytes
}

/// A metadata column over the records that were kept.
fn metadata(
    key: &str,
    partition: PartitionId,
    first: u64,
    records: &[Record<'_>],
    kept: Option<&[u32]>,
) -> Result<ArrayRef> {
    let indices: Vec<usize> = match kept {
        Some(kept) => kept.iter().map(|index| *index as usize).collect(),
        None => (0..records.len()).collect(),
    };
    Ok(match key {
        "partition" => Arc::new(Int32Array::from(vec![partition.0 as i32; indices.len()])),
        "offset" => Arc::new(Int64Array::from_iter_values(indices.iter().map(|index| (first + *index as u64) as i64))),
        "timestamp" => {
            let times = indices.iter().map(|index| records[*index].event_time_ms);
            Arc::new(times.collect::<TimestampMillisecondArray>().with_timezone("+00:00"))
        }
        "key" => {
            let text = |index: &usize| {
                records[*index].key.map(std::str::from_utf8).transpose().map_err(|error| {
                    let offset = first + *index as u64;
                    Error::new(
                        Code::MalformedRecord,
                        format!("the key at offset {offset} of partition {partition} is not text"),
                    )
                    .with_detail(error.to_string())
                    .with_hint("Leave the metadata column 'key' out of the table.")
                })
            };
            Arc::new(indices.iter().map(text).collect::<Result<StringArray>>()?)
        }
        _ => return Err(Error::invalid(format!("connector 'stream-store' has no metadata column '{key}'"))),
    })
}

/// Reads until the ends, or until nobody listens any more.
async fn read(
    address: &str,
    stream: &StreamName,
    (format, isolation): (RecordFormat, Isolation),
    from: StreamCut,
    until: StreamCut,
    blocks: &mpsc::Sender<Result<Arrived>>,
) -> Result<()> {
    if from.0.is_empty() {
        return Ok(());
    }
    let client = StoreClient::connect(address)?;
    let info = loop {
        match client.describe_stream(stream).await {
            Err(error) if error.code.is_retryable() => {
                warn!(%stream, %error, "the stream store does not answer, trying again");
                tokio::select! {
                    () = blocks.closed() => return Ok(()),
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                }
            }
            answered => break answered?,
        }
    };
    check_format(&info, format)?;
    if format == RecordFormat::Arrow && blocks.send(Ok(Arrived::Schema(arrow_schema(&info)?))).await.is_err() {
        return Ok(());
    }
    let until = (!until.0.is_empty()).then_some(until);
    let mut reader =
        Reader::open(&client, stream, from, ReaderOptions { until, isolation, ..ReaderOptions::default() });
    loop {
        let block = tokio::select! {
            () = blocks.closed() => return Ok(()),
            block = reader.next() => block?,
        };
        let Some(block) = block else {
            // Nobody listens if the subtask was cancelled meanwhile.
            let _ = blocks.send(Ok(Arrived::End)).await;
            return Ok(());
        };
        if blocks.send(Ok(Arrived::Block(block))).await.is_err() {
            return Ok(());
        }
    }
}

fn with_hint(error: Error, stream: &StreamName) -> Error {
    match error.code {
        Code::OffsetTruncated => error.with_hint(format!(
            "Records that the job has not read yet were truncated from {stream}. Start the job from a newer snapshot, or \
             anew with 'scan.startup.mode' = 'earliest'."
        )),
        Code::NotFound => error.with_hint(format!("Create it with `weir stream create {stream}`.")),
        _ => error,
    }
}
