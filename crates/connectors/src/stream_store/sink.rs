//! Appends rows to a stream as an idempotent producer, named by job, sink and subtask; its epoch is the attempt. Before it
//! takes rows it fences off older attempts, of all subtasks of the sink: one that is still somewhere, perhaps with more
//! subtasks, appends nothing any more.
//!
//! At a barrier everything is flushed: it is durable before the barrier is acknowledged. At least once: readers see rows as
//! they are appended, and a job that restarts appends again what it had appended after its last checkpoint. Exactly once:
//! rows are appended in transactions, which are prepared at barriers and committed with the snapshots.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::datatypes::TimestampMillisecondType;
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use async_trait::async_trait;
use tracing::{info, warn};
use weir_dataflow::element::Batch;
use weir_dataflow::sink::{Prepared, Sink, SinkContext};
use weir_stream_store::arrow_block::{encode_batch, encode_schema};
use weir_stream_store::client::{Producer, ProducerOptions, StoreClient, partition_of};
use weir_types::ids::{BarrierId, Epoch, PartitionId, ProducerId};
use weir_types::output::{END_OF_INPUT, producer_family};
use weir_types::snapshot::Barrier;
use weir_types::store::{RecordFormat, StreamInfo, StreamOptions};
use weir_types::stream::StreamName;
use weir_types::{Code, Error, Result};

use super::transactions::Transactions;
use super::{arrow_schema, check_format, format, places, stream_name};
use crate::changes::Written;
use crate::format::Encode as _;
use crate::format::json::{self, JsonEncoder};
use crate::format::layout::Layout;
use crate::writer::{Output, Writer};

const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Writes rows to a stream.
pub(crate) struct StreamSink {
    table: String,
    written: Written,
    /// Columns of the record itself.
    values: Vec<usize>,
    /// Columns that make the key; none: records without keys.
    keys: Vec<usize>,
    /// The metadata column with the record's event time.
    time: Option<usize>,
    /// For JSON.
    encoder: Option<JsonEncoder>,
    writer: Writer<Piece>,
}

/// One batch, encoded as far as the compute thread goes.
struct Piece {
    rows: Rows,
    keys: Option<Vec<Option<Vec<u8>>>>,
    times: Option<ArrayRef>,
}

enum Rows {
    /// One line per row.
    Json(Vec<u8>),
    Arrow(RecordBatch),
}

impl StreamSink {
    pub(crate) fn new(context: &SinkContext) -> Result<Self> {
        let spec = &context.spec;
        let format = format(&spec.connector)?;
        let stream = stream_name(&spec.connector)?;
        let written = Written::of(&spec.connector);
        let (mut time, mut key_column) = (None, None);
        for (index, key) in &spec.metadata {
            match key.as_str() {
                "timestamp" => time = Some(*index),
                "key" => key_column = Some(*index),
                other => {
                    return Err(Error::invalid(format!(
                        "metadata column '{other}' of '{}' cannot be written",
                        spec.table
                    ))
                    .with_hint("Declare it VIRTUAL, or leave it out of the sink table."));
                }
            }
        }
        let layout = Layout::new(&context.schema, &spec.metadata);
        let keys = match (spec.connector.text("key.fields"), key_column) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("option 'key.fields' and metadata column 'key' both give the key"));
            }
            (Some(names), None) => {
                names.split(';').map(|name| key_field(&context.schema, name)).collect::<Result<_>>()?
            }
            // Changes of one row stay in order.
            (None, None) if written == Written::Debezium => spec.primary_key.clone(),
            (None, column) => column.into_iter().collect(),
        };
        let family = producer_family(&context.job, &context.uid);
        let partitions = u32::try_from(spec.connector.integer("sink.partitions", 1)?);
        let output = Appender {
            address: context.store_address.clone(),
            stream,
            format,
            schema: Arc::clone(&layout.physical),
            partitions: partitions.map_err(|_| Error::invalid("option 'sink.partitions' is too large"))?,
            producer: ProducerId::new(format!("{family}.{}", context.subtask))?,
            family: ProducerId::new(family)?,
            epoch: Epoch(u64::from(context.attempt)),
            exactly_once: spec.is_exactly_once(),
            open: None,
            turn: context.subtask,
        };
        Ok(Self {
            table: spec.table.clone(),
            written,
            values: (0..context.schema.fields().len()).filter(|index| !spec.metadata.contains_key(index)).collect(),
            keys,
            time,
            encoder: (format == RecordFormat::Bytes).then(|| JsonEncoder::new(&layout.physical)).transpose()?,
            writer: Writer::new(&context.io, output),
        })
    }
}

fn key_field(schema: &SchemaRef, name: &str) -> Result<usize> {
    schema.index_of(name.trim()).map_err(|_| {
        Error::invalid(format!("option 'key.fields' names column '{}', which the table does not have", name.trim()))
    })
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::internal("rows cannot be encoded").with_detail(error.to_string())
}

#[async_trait(?Send)]
impl Sink for StreamSink {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let values = batch.rows.project(&self.values).map_err(failed)?;
        let values = self.written.rows(&self.table, batch, values)?;
        let (rows, mut bytes) = match &mut self.encoder {
            Some(encoder) => {
                let mut text = Vec::new();
                encoder.encode(&values, &mut text)?;
                let bytes = text.len();
                (Rows::Json(text), bytes)
            }
            None => {
                let bytes = values.get_array_memory_size();
                (Rows::Arrow(values), bytes)
            }
        };
        let keys = match self.keys.as_slice() {
            [] => None,
            keys => Some(json::keys(&batch.rows.project(keys).map_err(failed)?)?),
        };
        bytes += keys.iter().flatten().flatten().map(Vec::len).sum::<usize>();
        let time = |index: usize| {
            let milliseconds = DataType::Timestamp(TimeUnit::Millisecond, None);
            arrow::compute::cast(batch.rows.column(index), &milliseconds).map_err(failed)
        };
        let times = self.time.map(time).transpose()?;
        self.writer.write(Piece { rows, keys, times }, bytes)
    }

    async fn ready(&mut self) -> Result<()> {
        self.writer.ready().await
    }

    fn prepare(&mut self, barrier: &Barrier) -> Result<Prepared> {
        Ok(Box::pin(self.writer.prepare(barrier.id)))
    }

    fn committed(&mut self, barrier: BarrierId) {
        self.writer.committed(barrier);
    }

    async fn finish(&mut self) -> Result<()> {
        self.writer.prepare(END_OF_INPUT).await.map(drop)
    }
}

/// The io runtime's end: makes the stream if need be, and appends.
struct Appender {
    address: String,
    stream: StreamName,
    format: RecordFormat,
    schema: SchemaRef,
    partitions: u32,
    producer: ProducerId,
    /// What the producers of all subtasks are named by.
    family: ProducerId,
    epoch: Epoch,
    exactly_once: bool,
    open: Option<Opened>,
    /// The partition that Arrow rows without keys go to next.
    turn: u32,
}

/// What is there once the store has answered.
struct Opened {
    producer: Producer,
    /// Exactly once.
    transactions: Option<Transactions>,
}

impl Appender {
    async fn open(&self) -> Result<Opened> {
        let client = StoreClient::connect(&self.address)?;
        loop {
            match self.try_open(&client).await {
                Err(error) if error.code.is_retryable() => {
                    warn!(stream = %self.stream, %error, "the stream store does not answer, trying again");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                result => {
                    let transactions = self
                        .exactly_once
                        .then(|| Transactions::new(client, self.stream.clone(), self.producer.clone(), self.epoch));
                    return result.map(|producer| Opened { producer, transactions });
                }
            }
        }
    }

    async fn try_open(&self, client: &StoreClient) -> Result<Producer> {
        let info = match client.describe_stream(&self.stream).await {
            Err(error) if error.code == Code::NotFound => self.create(client).await?,
            found => found?,
        };
        check_format(&info, self.format)?;
        if self.format == RecordFormat::Arrow {
            let theirs = arrow_schema(&info)?;
            let places = places(&self.stream, &theirs, &self.schema)?;
            if places.iter().copied().ne(0..theirs.fields().len()) {
                return Err(Error::invalid(format!(
                    "the columns of stream {} are not those of the table",
                    self.stream
                ))
                .with_hint("A sink table has all columns of a stream of Arrow rows, in its order."));
            }
        }
        let options = ProducerOptions {
            id: Some(self.producer.clone()),
            epoch: self.epoch,
            family: Some(self.family.clone()),
            ..ProducerOptions::default()
        };
        Producer::open(client, &self.stream, options).await
    }

    async fn create(&self, client: &StoreClient) -> Result<StreamInfo> {
        let mut options = StreamOptions::new(self.partitions);
        if self.format == RecordFormat::Arrow {
            options.format = RecordFormat::Arrow;
            options.arrow_schema = Some(encode_schema(&self.schema)?);
        }
        info!(stream = %self.stream, partitions = self.partitions, "creating the sink's stream");
        match client.create_stream(&self.stream, &options, true).await {
            // Another subtask, or somebody else, was faster.
            Err(error) if error.code == Code::AlreadyExists => client.describe_stream(&self.stream).await,
            created => created,
        }
    }

    async fn append(&mut self, producer: &mut Producer, piece: Piece) -> Result<()> {
        let Piece { rows, keys, times } = piece;
        let times = times.as_ref().map(|times| times.as_primitive::<TimestampMillisecondType>());
        match rows {
            Rows::Json(text) => {
                // JSON text has line feeds between rows only: within strings they are escaped.
                for (row, value) in text.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty()).enumerate() {
                    let key = keys.as_ref().and_then(|keys| keys[row].as_deref());
                    let time = times.filter(|times| times.is_valid(row)).map(|times| times.value(row));
                    producer.send(key, value, time).await?;
                }
                Ok(())
            }
            Rows::Arrow(rows) => {
                let time = |rows: &[u32]| {
                    let times = times?;
                    rows.iter()
                        .map(|row| *row as usize)
                        .filter(|row| times.is_valid(*row))
                        .map(|row| times.value(row))
                        .max()
                };
                let mut shares = vec![Vec::new(); producer.partitions().get() as usize];
                for row in 0..rows.num_rows() {
                    let key = keys.as_ref().and_then(|keys| keys[row].as_deref());
                    let partition = key.map_or(self.turn % producer.partitions().get(), |key| {
                        partition_of(key, producer.partitions()).0
                    });
                    shares[partition as usize].push(row as u32);
                }
                self.turn = self.turn.wrapping_add(1);
                for (partition, share) in shares.into_iter().enumerate().filter(|(_, share)| !share.is_empty()) {
                    let max_time = time(&share);
                    let taken = arrow::compute::take_record_batch(&rows, &UInt32Array::from(share)).map_err(failed)?;
                    send_rows(producer, PartitionId(partition as u32), &taken, max_time).await?;
                }
                Ok(())
            }
        }
    }
}

/// Sends rows as one block, or as several if they are too large for one.
async fn send_rows(
    producer: &mut Producer,
    partition: PartitionId,
    rows: &RecordBatch,
    max_time: Option<i64>,
) -> Result<()> {
    let mut waiting = vec![rows.clone()];
    while let Some(rows) = waiting.pop() {
        match encode_batch(&rows, max_time) {
            Ok(block) => producer.send_block(partition, block).await?,
            Err(error) if error.code == Code::InvalidArgument && rows.num_rows() > 1 => {
                let half = rows.num_rows() / 2;
                waiting.push(rows.slice(half, rows.num_rows() - half));
                waiting.push(rows.slice(0, half));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[async_trait]
impl Output for Appender {
    type Piece = Piece;

    async fn start(&mut self) -> Result<()> {
        self.open = Some(self.open().await?);
        Ok(())
    }

    async fn write(&mut self, piece: Piece) -> Result<()> {
        let Some(mut opened) = self.open.take() else {
            return Err(Error::internal("rows came before the producer was open"));
        };
        if let Some(transactions) = &mut opened.transactions {
            transactions.enter(&mut opened.producer).await?;
        }
        let result = self.append(&mut opened.producer, piece).await;
        self.open = Some(opened);
        result
    }

    async fn prepare(&mut self, at: BarrierId) -> Result<Option<Vec<u8>>> {
        match &mut self.open {
            Some(Opened { producer, transactions: Some(transactions) }) => transactions.prepare(producer, at).await,
            Some(Opened { producer, transactions: None }) => producer.flush().await.map(|_| None),
            None => Ok(None),
        }
    }

    fn committed(&mut self, at: BarrierId) {
        if let Some(transactions) = self.open.as_mut().and_then(|opened| opened.transactions.as_mut()) {
            transactions.committed(at);
        }
    }
}
