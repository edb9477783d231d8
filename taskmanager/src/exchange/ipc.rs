//! Record batches as Arrow IPC messages, without trusting the sender.
//!
//! Arrow's reader checks values (UTF-8, offsets, null counts) but slices its input by the message's own numbers and
//! panics where they lie. [`decode`] therefore walks the message beside the schema first: every buffer lies within the
//! body, every validity bitmap covers its array, and nothing is missing or left over.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::writer::StreamEncoder;
use arrow_ipc::{FieldNode, MetadataVersion};
use weir_types::{Error, Result};

/// Continuation marker and length of the metadata.
const PREFIX_BYTES: usize = 8;
/// More rows than any batch has; bounds what a message without columns can pretend to hold.
const ROWS_MAX: i64 = 1 << 24;

/// Encodes the batches of one channel.
pub(crate) struct Encoder {
    schema: SchemaRef,
    stream: StreamEncoder,
}

impl Encoder {
    /// An encoder for batches of this schema.
    pub(crate) fn new(schema: SchemaRef) -> Result<Self> {
        super::schema::check(&schema)?;
        let mut stream = StreamEncoder::try_new(&schema).map_err(|error| could_not_encode(&error))?;
        // The stream encoder puts the schema before the first batch. The receiver knows it: let it go with an empty one.
        stream.encode(&RecordBatch::new_empty(schema.clone())).map_err(|error| could_not_encode(&error))?;
        Ok(Self { schema, stream })
    }

    /// The encapsulated message, in pieces that share memory with the batch.
    pub(crate) fn encode(&mut self, rows: &RecordBatch) -> Result<Vec<Buffer>> {
        let schema = rows.schema_ref();
        if !std::sync::Arc::ptr_eq(schema, &self.schema) {
            let same = |(a, b): (&_, &_)| is_same_column(a, b);
            let fields = schema.fields();
            if fields.len() != self.schema.fields().len() || !fields.iter().zip(self.schema.fields()).all(same) {
                return Err(Error::internal("a batch does not have its edge's columns").with_detail(format!(
                    "the edge has {}, the batch has {}",
                    super::schema::describe(&self.schema),
                    super::schema::describe(schema)
                )));
            }
        }
        self.stream.encode(rows).map_err(|error| could_not_encode(&error))
    }
}

/// Names may differ: the receiver's schema names the columns.
fn is_same_column(left: &arrow::datatypes::FieldRef, right: &arrow::datatypes::FieldRef) -> bool {
    left.data_type() == right.data_type() || left.data_type().equals_datatype(right.data_type())
}

/// Decodes one encapsulated message; the arrays share memory with it.
pub(crate) fn decode(message: &Buffer, schema: &SchemaRef) -> Result<RecordBatch> {
    let (prefix, rest) = message.split_at_checked(PREFIX_BYTES).ok_or_else(|| malformed("it has no prefix"))?;
    let (marker, length) = prefix.split_at(4);
    let metadata_bytes = length.iter().rev().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
    if marker != [0xff; 4] {
        return Err(malformed("it does not start with the continuation marker"));
    }
    let (metadata, body) = rest.split_at_checked(metadata_bytes).ok_or_else(|| malformed("its metadata is cut off"))?;
    let header = arrow_ipc::root_as_message(metadata)
        .map_err(|error| malformed("its metadata is not a message").with_detail(error.to_string()))?;
    let version = header.version();
    if version != MetadataVersion::V5 || header.bodyLength() != i64::try_from(body.len()).unwrap_or(-1) {
        return Err(malformed("its version or length is wrong"));
    }
    let batch = header.header_as_record_batch().ok_or_else(|| malformed("it is not a record batch"))?;
    if batch.compression().is_some() || !(0..=ROWS_MAX).contains(&batch.length()) {
        return Err(malformed("it is compressed or has too many rows"));
    }
    Walk::over(&batch, body.len()).and_then(|walk| walk.schema(schema))?;
    let body = message.slice(PREFIX_BYTES + metadata_bytes);
    RecordBatchDecoder::try_new(&body, batch, schema.clone(), &HashMap::new(), &version)
        .and_then(|decoder| decoder.with_require_alignment(false).read_record_batch())
        .map_err(|error| malformed("its values are invalid").with_detail(error.to_string()))
}

fn could_not_encode(error: &arrow::error::ArrowError) -> Error {
    Error::internal("could not encode a batch for the network").with_detail(error.to_string())
}

fn malformed(why: &str) -> Error {
    Error::invalid(format!("malformed batch from a TaskManager: {why}"))
}

/// A message's nodes and buffers, consumed in the order in which the reader consumes them.
struct Walk<'a> {
    nodes: Box<dyn Iterator<Item = &'a FieldNode> + 'a>,
    buffers: Box<dyn Iterator<Item = &'a arrow_ipc::Buffer> + 'a>,
    variadic_counts: Box<dyn Iterator<Item = i64> + 'a>,
    body_bytes: u64,
}

impl<'a> Walk<'a> {
    fn over(batch: &arrow_ipc::RecordBatch<'a>, body_bytes: usize) -> Result<Self> {
        let nodes = batch.nodes().ok_or_else(|| malformed("it has no nodes"))?;
        let buffers = batch.buffers().ok_or_else(|| malformed("it has no buffers"))?;
        Ok(Self {
            nodes: Box::new(nodes.iter()),
            buffers: Box::new(buffers.iter()),
            variadic_counts: Box::new(batch.variadicBufferCounts().into_iter().flatten()),
            body_bytes: body_bytes as u64,
        })
    }

    fn schema(mut self, schema: &SchemaRef) -> Result<()> {
        for field in schema.fields() {
            self.column(field.data_type())?;
        }
        match (self.nodes.next(), self.buffers.next(), self.variadic_counts.next()) {
            (None, None, None) => Ok(()),
            _ => Err(malformed("it has more columns than its schema")),
        }
    }

    fn column(&mut self, data_type: &DataType) -> Result<()> {
        let node = self.nodes.next().ok_or_else(|| malformed("it has fewer columns than its schema"))?;
        let (length, nulls) = (node.length(), node.null_count());
        if !(0..=i64::from(i32::MAX)).contains(&length) || !(0..=length).contains(&nulls) {
            return Err(malformed("an array has an impossible length"));
        }
        if *data_type == DataType::Null {
            return Ok(());
        }
        let validity_bytes = self.buffer(1)?;
        if nulls > 0 && validity_bytes.saturating_mul(8) < length.unsigned_abs() {
            return Err(malformed("a validity bitmap is too short"));
        }
        match data_type {
            DataType::Utf8 | DataType::Binary => self.buffer(4).and_then(|_| self.buffer(1)).map(drop),
            DataType::LargeUtf8 | DataType::LargeBinary => self.buffer(8).and_then(|_| self.buffer(1)).map(drop),
            DataType::Utf8View | DataType::BinaryView => {
                let count = self.variadic_counts.next().and_then(|count| u64::try_from(count).ok());
                let count = count.ok_or_else(|| malformed("a view array has no count of its buffers"))?;
                self.buffer(16)?;
                // Ends at the last buffer at the latest, whatever the count claims.
                (0..count).try_for_each(|_| self.buffer(1).map(drop))
            }
            DataType::List(item) | DataType::Map(item, _) => {
                self.buffer(4)?;
                self.column(item.data_type())
            }
            DataType::LargeList(item) => {
                self.buffer(8)?;
                self.column(item.data_type())
            }
            DataType::FixedSizeList(item, _) => self.column(item.data_type()),
            DataType::Struct(fields) => fields.iter().try_for_each(|field| self.column(field.data_type())),
            other => self.buffer(other.primitive_width().unwrap_or(1) as u64).map(drop),
        }
    }

    /// Length of the next buffer, which lies within the body and holds values of `width` bytes.
    fn buffer(&mut self, width: u64) -> Result<u64> {
        let buffer = self.buffers.next().ok_or_else(|| malformed("it has too few buffers"))?;
        let range = u64::try_from(buffer.offset()).ok().zip(u64::try_from(buffer.length()).ok());
        match range {
            Some((offset, length))
                if length.is_multiple_of(width)
                    && offset.checked_add(length).is_some_and(|end| end <= self.body_bytes) =>
            {
                Ok(length)
            }
            _ => Err(malformed("a buffer lies outside of its body or is cut off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BooleanArray, Decimal128Array, Int64Array, ListArray, NullArray, StringArray, StringViewArray,
        StructArray, TimestampMillisecondArray,
    };
    use arrow::datatypes::{Field, Int64Type, Schema};
    use weir_types::Code;

    use super::*;

    fn rows() -> RecordBatch {
        let strings = StringArray::from(vec![Some("a"), None, Some("ccc")]);
        let views = StringViewArray::from(vec![Some("longer than twelve bytes"), Some("b"), None]);
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        let inner = Arc::new(Int64Array::from(vec![Some(7), None, Some(9)])) as ArrayRef;
        let fields = vec![Field::new("x", DataType::Int64, true)];
        let nested = StructArray::new(fields.into(), vec![inner], Some(vec![true, true, false].into()));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("i", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            ("s", Arc::new(strings)),
            ("v", Arc::new(views)),
            ("l", Arc::new(list)),
            ("r", Arc::new(nested)),
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
            ("d", Arc::new(Decimal128Array::from(vec![1, 2, 3]).with_precision_and_scale(38, 2).unwrap())),
            ("t", Arc::new(TimestampMillisecondArray::from(vec![Some(1), None, Some(3)]))),
            ("n", Arc::new(NullArray::new(3))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    fn encoded(rows: &RecordBatch) -> Vec<u8> {
        let mut encoder = Encoder::new(rows.schema()).unwrap();
        encoder.encode(rows).unwrap().iter().flat_map(|piece| piece.as_slice().to_vec()).collect()
    }

    #[test]
    fn batches_of_every_shape_survive_and_keep_sharing_memory() {
        let rows = rows();
        for slice in [rows.clone(), rows.slice(1, 2), rows.slice(2, 1)] {
            let message = Buffer::from(encoded(&slice));
            assert_eq!(decode(&message, &rows.schema()).unwrap(), slice);
        }
        let numbers = rows.project(&[0]).unwrap();
        let message = Buffer::from(encoded(&numbers));
        let decoded = decode(&message, &numbers.schema()).unwrap();
        let values = decoded.column(0).to_data().buffers()[0].as_ptr();
        assert!(message.as_slice().as_ptr_range().contains(&values), "the values were copied");
    }

    #[test]
    fn a_batch_of_other_columns_is_not_sent() {
        let mut encoder = Encoder::new(rows().schema()).unwrap();
        let error = encoder.encode(&rows().project(&[0]).unwrap()).unwrap_err();
        assert_eq!(error.code, Code::Internal);
    }

    /// Every byte of the message set to every interesting value, and every truncation: an error or a valid batch, and
    /// never a panic.
    #[test]
    fn damaged_messages_are_errors_not_panics() {
        let (schema, bytes) = (rows().schema(), encoded(&rows()));
        let mut refused = 0;
        for position in 0..bytes.len() {
            for value in [0x01, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                refused += usize::from(decode(&Buffer::from(damaged), &schema).is_err());
            }
            assert_eq!(decode(&Buffer::from(&bytes[..position]), &schema).unwrap_err().code, Code::InvalidArgument);
        }
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn a_message_of_another_schema_is_refused() {
        let bytes = Buffer::from(encoded(&rows()));
        let mut fields: Vec<_> = rows().schema().fields().iter().cloned().collect();
        fields.pop();
        assert!(decode(&bytes, &Arc::new(Schema::new(fields.clone()))).is_err());
        fields.extend([rows().schema().field(8).clone().into(), Field::new("z", DataType::Int64, true).into()]);
        assert!(decode(&bytes, &Arc::new(Schema::new(fields))).is_err());
    }
}
