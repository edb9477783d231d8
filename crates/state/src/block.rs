//! Blocks of a state file as bytes: record batches as Arrow IPC messages (<https://arrow.apache.org/docs/format/Columnar.html>).
//!
//! Arrow's own writer compresses all buffers of a batch or none. Here each buffer is compressed if a sample of it says that
//! this pays: the hashes that rows are sorted by never shrink, and keys seldom do by enough for what it costs; counts, small
//! numbers, starts of windows and most texts do. A buffer that is not compressed says so (a length of -1), as Arrow has it.

use std::io::Write;

use arrow::array::{Array, ArrayData, ArrayRef, UInt32Array, make_array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Schema};
use arrow_ipc::convert::IpcSchemaEncoder;
use arrow_ipc::{
    Block, BodyCompressionBuilder, BodyCompressionMethod, Buffer, CompressionType, FieldNode, FooterBuilder,
    MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder,
};
use flatbuffers::FlatBufferBuilder;
use lz4_flex::frame::FrameEncoder;
use weir_types::{Error, Result};

use crate::values::arrow_error;

/// Messages and buffers begin at multiples of this.
const ALIGNMENT: usize = 8;
/// Begins an encapsulated message.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Ends a file.
const MAGIC: &[u8; 6] = b"ARROW1";
/// In place of a buffer's length without compression: it is not compressed.
const NOT_COMPRESSED: i64 = -1;
/// Of a longer buffer so much is compressed on trial.
const SAMPLE_BYTES: usize = 8 * 1024;
/// What is compressed on trial has to become at most five eighths as long. A number of 64 bits three of whose bytes are in
/// use shrinks to six eighths, and compressing it takes longer than writing the rest to any disk.
const PAYS: (usize, usize) = (5, 8);

/// Makes blocks; keeps its memory from one to the next.
#[derive(Default)]
pub(crate) struct BlockEncoder {
    metadata: FlatBufferBuilder<'static>,
    /// The message: prefix, metadata, padding.
    head: Vec<u8>,
    body: Vec<u8>,
    sample: Vec<u8>,
    nodes: Vec<FieldNode>,
    buffers: Vec<Buffer>,
    /// How many buffers each column of views has beside them.
    more: Vec<i64>,
}

impl BlockEncoder {
    /// The block's message and its body, of which both are written one after the other.
    pub(crate) fn encode(&mut self, columns: &[ArrayRef], rows: usize) -> Result<(&[u8], &[u8])> {
        self.body.clear();
        self.nodes.clear();
        self.buffers.clear();
        self.more.clear();
        for column in columns {
            self.column(&whole(column)?)?;
        }
        self.message(rows);
        Ok((&self.head, &self.body))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.head.capacity() + self.body.capacity() + self.sample.capacity()
    }

    fn column(&mut self, data: &ArrayData) -> Result<()> {
        let rows = data.len();
        if *data.data_type() == DataType::Null {
            self.nodes.push(FieldNode::new(rows as i64, rows as i64));
            return Ok(());
        }
        let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0);
        self.nodes.push(FieldNode::new(rows as i64, nulls.map_or(0, |nulls| nulls.null_count()) as i64));
        match nulls {
            Some(nulls) => self.buffer(nulls.inner().sliced().as_slice())?,
            None => self.buffer(&[])?,
        }
        let first = data.buffers().first().map(|buffer| buffer.as_slice()).unwrap_or_default();
        let cut = |bytes: usize| first.get(..bytes).ok_or_else(|| Error::internal("a column is shorter than its rows"));
        match data.data_type() {
            DataType::Boolean => self.buffer(cut(rows.div_ceil(8))?),
            DataType::Utf8 | DataType::Binary => self.lists(cut((rows + 1) * size_of::<i32>())?, data),
            DataType::LargeUtf8 | DataType::LargeBinary => self.lists(cut((rows + 1) * size_of::<i64>())?, data),
            DataType::Utf8View | DataType::BinaryView => {
                self.buffer(cut(rows * size_of::<u128>())?)?;
                let more = &data.buffers()[1..];
                self.more.push(more.len() as i64);
                more.iter().try_for_each(|buffer| self.buffer(buffer.as_slice()))
            }
            DataType::FixedSizeBinary(width) => self.buffer(cut(rows * usize::try_from(*width).unwrap_or(0))?),
            other => match other.primitive_width() {
                Some(width) => self.buffer(cut(rows * width)?),
                None => Err(Error::internal(format!("state files have no columns of type {other}"))),
            },
        }
    }

    /// Values of different lengths, which begin with the first byte.
    fn lists(&mut self, offsets: &[u8], data: &ArrayData) -> Result<()> {
        self.buffer(offsets)?;
        let end = match offsets.last_chunk::<8>() {
            Some(last) if !matches!(data.data_type(), DataType::Utf8 | DataType::Binary) => i64::from_le_bytes(*last),
            _ => offsets.last_chunk::<4>().map_or(0, |last| i32::from_le_bytes(*last).into()),
        };
        let values = usize::try_from(end).ok().and_then(|end| data.buffers()[1].as_slice().get(..end));
        self.buffer(values.ok_or_else(|| Error::internal("a column's values end before its offsets"))?)
    }

    fn buffer(&mut self, bytes: &[u8]) -> Result<()> {
        let start = self.body.len();
        if !bytes.is_empty() {
            let compressed = self.pays(bytes)? && {
                self.body.extend_from_slice(&(bytes.len() as i64).to_le_bytes());
                compress(bytes, &mut self.body)?;
                self.body.len() - start < bytes.len()
            };
            if !compressed {
                self.body.truncate(start);
                self.body.extend_from_slice(&NOT_COMPRESSED.to_le_bytes());
                self.body.extend_from_slice(bytes);
            }
        }
        self.buffers.push(Buffer::new(start as i64, (self.body.len() - start) as i64));
        self.body.resize(self.body.len().next_multiple_of(ALIGNMENT), 0);
        Ok(())
    }

    /// Whether compressing is worth its time: a sample out of the middle tells.
    fn pays(&mut self, bytes: &[u8]) -> Result<bool> {
        if bytes.len() <= 2 * SAMPLE_BYTES {
            return Ok(true);
        }
        let middle = (bytes.len() / 2).next_multiple_of(ALIGNMENT);
        let sample = &bytes[middle..bytes.len().min(middle + SAMPLE_BYTES)];
        self.sample.clear();
        compress(sample, &mut self.sample)?;
        Ok(self.sample.len() * PAYS.1 <= sample.len() * PAYS.0)
    }

    fn message(&mut self, rows: usize) {
        let metadata = &mut self.metadata;
        metadata.reset();
        let mut compression = BodyCompressionBuilder::new(metadata);
        compression.add_method(BodyCompressionMethod::BUFFER);
        compression.add_codec(CompressionType::LZ4_FRAME);
        let compression = compression.finish();
        let buffers = metadata.create_vector(&self.buffers);
        let nodes = metadata.create_vector(&self.nodes);
        let more = (!self.more.is_empty()).then(|| metadata.create_vector(&self.more));
        let mut batch = RecordBatchBuilder::new(metadata);
        batch.add_length(rows as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(buffers);
        batch.add_compression(compression);
        if let Some(more) = more {
            batch.add_variadicBufferCounts(more);
        }
        let batch = batch.finish().as_union_value();
        let mut message = MessageBuilder::new(metadata);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(MessageHeader::RecordBatch);
        message.add_bodyLength(self.body.len() as i64);
        message.add_header(batch);
        let message = message.finish();
        metadata.finish(message, None);
        encapsulate(metadata.finished_data(), &mut self.head);
    }
}

/// The file's beginning: its magic, and the schema.
pub(crate) fn header(schema: &Schema) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let schema = IpcSchemaEncoder::new().schema_to_fb_offset(&mut builder, schema).as_union_value();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::Schema);
    message.add_bodyLength(0);
    message.add_header(schema);
    let message = message.finish();
    builder.finish(message, None);
    let mut head = Vec::new();
    encapsulate(builder.finished_data(), &mut head);
    let mut header = MAGIC.to_vec();
    header.resize(MAGIC.len().next_multiple_of(ALIGNMENT), 0);
    header.extend_from_slice(&head);
    header
}

/// The file's end, behind `blocks`.
pub(crate) fn footer(schema: &Schema, blocks: &[Block]) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let dictionaries = builder.create_vector::<Block>(&[]);
    let blocks = builder.create_vector(blocks);
    let schema = IpcSchemaEncoder::new().schema_to_fb_offset(&mut builder, schema);
    let mut footer = FooterBuilder::new(&mut builder);
    footer.add_version(MetadataVersion::V5);
    footer.add_schema(schema);
    footer.add_dictionaries(dictionaries);
    footer.add_recordBatches(blocks);
    let footer = footer.finish();
    builder.finish(footer, None);
    // The end of the stream of messages comes first.
    let mut bytes = [CONTINUATION, [0; 4]].concat();
    bytes.extend_from_slice(builder.finished_data());
    bytes.extend_from_slice(&(builder.finished_data().len() as i32).to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    bytes
}

/// A message with its prefix, padded so that what follows is aligned.
fn encapsulate(metadata: &[u8], message: &mut Vec<u8>) {
    let prefix = CONTINUATION.len() + size_of::<i32>();
    let padded = (prefix + metadata.len()).next_multiple_of(ALIGNMENT);
    message.clear();
    message.extend_from_slice(&CONTINUATION);
    message.extend_from_slice(&((padded - prefix) as i32).to_le_bytes());
    message.extend_from_slice(metadata);
    message.resize(padded, 0);
}

fn compress(bytes: &[u8], into: &mut Vec<u8>) -> Result<()> {
    let failed = |error: &dyn std::error::Error| Error::internal("LZ4 failed").with_detail(error.to_string());
    let mut encoder = FrameEncoder::new(into);
    encoder.write_all(bytes).map_err(|error| failed(&error))?;
    encoder.finish().map(|_| ()).map_err(|error| failed(&error))
}

/// The column as one whose buffers begin with the first row: a part of another is copied.
fn whole(column: &ArrayRef) -> Result<ArrayData> {
    let data = column.to_data();
    let begins = |first: Option<i64>| first.unwrap_or_default() == 0;
    let starts = match data.data_type() {
        _ if data.offset() != 0 || data.nulls().is_some_and(|nulls| nulls.offset() != 0) => false,
        DataType::Utf8 | DataType::Binary => begins(data.buffers()[0].typed_data::<i32>().first().map(|&at| at.into())),
        DataType::LargeUtf8 | DataType::LargeBinary => begins(data.buffers()[0].typed_data::<i64>().first().copied()),
        _ => true,
    };
    if starts {
        return Ok(data);
    }
    let rows: UInt32Array = (0..column.len() as u32).collect::<Vec<_>>().into();
    let copied = take(&make_array(data), &rows, None);
    copied.map(|copied| copied.to_data()).map_err(|error| arrow_error("rows of state cannot be copied", &error))
}
