//! Blocks of Arrow rows: one IPC record batch message each, without its schema, which the stream has registered.
//!
//! A payload is an encapsulated message: continuation marker, metadata length, metadata, body. Dictionaries have no
//! place in a block that must be readable alone, so schemas with dictionary types are refused when a stream is made.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, write_message};
use bytes::Bytes;
use weir_types::store::RecordFormat;
use weir_types::{Code, Error, Result};

use crate::block::{MAX_BLOCK_BYTES, RecordBlock};

const CONTINUATION: [u8; 4] = [0xff; 4];
const PREFIX_LEN: usize = 8;

fn malformed(message: impl Into<String>) -> Error {
    Error::new(Code::MalformedRecord, message)
}

/// The schema as a stream registers it (`StreamOptions::arrow_schema`).
///
/// # Errors
/// `UNSUPPORTED` if the schema holds dictionary types; `INTERNAL` if Arrow cannot encode it.
pub fn encode_schema(schema: &Schema) -> Result<Vec<u8>> {
    refuse_dictionaries(schema)?;
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(true);
    let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
    let mut out = Vec::new();
    write_message(&mut out, encoded, &options)
        .map_err(|error| Error::internal("the schema could not be encoded").with_detail(error.to_string()))?;
    Ok(out)
}

/// The schema that [`encode_schema`] encoded.
///
/// # Errors
/// `INVALID_ARGUMENT` if the bytes are no schema message, `UNSUPPORTED` if it holds dictionary types.
pub fn decode_schema(bytes: &[u8]) -> Result<SchemaRef> {
    let schema = arrow_ipc::convert::try_schema_from_ipc_buffer(bytes)
        .map_err(|error| Error::invalid("these bytes are not an Arrow schema").with_detail(error.to_string()))?;
    refuse_dictionaries(&schema)?;
    Ok(SchemaRef::new(schema))
}

fn refuse_dictionaries(schema: &Schema) -> Result<()> {
    let found = schema
        .flattened_fields()
        .into_iter()
        .find(|field| matches!(field.data_type(), DataType::Dictionary(..) | DataType::RunEndEncoded(..)));
    match found {
        None => Ok(()),
        Some(field) => {
            Err(Error::new(Code::Unsupported, format!("column {:?} is encoded by dictionary", field.name()))
                .with_hint("Use the plain type: a stored block has to be readable alone."))
        }
    }
}

/// A block of `batch`'s rows. Slice large batches first: a block holds at most [`MAX_BLOCK_BYTES`].
///
/// # Errors
/// `INVALID_ARGUMENT` for an empty or too large batch; `INTERNAL` if Arrow cannot encode it.
pub fn encode_batch(batch: &RecordBatch, max_event_time_ms: Option<i64>) -> Result<RecordBlock> {
    if batch.num_rows() == 0 {
        return Err(Error::invalid("a block needs at least one row"));
    }
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(true);
    let failed = |error: arrow::error::ArrowError| {
        Error::internal("the rows could not be encoded").with_detail(error.to_string())
    };
    let (_, encoded) =
        IpcDataGenerator::default().encode(batch, &mut tracker, &options, &mut Default::default()).map_err(failed)?;
    let mut out = Vec::with_capacity(encoded.ipc_message.len() + encoded.arrow_data.len() + 64);
    write_message(&mut out, encoded, &options).map_err(failed)?;
    if out.len() > MAX_BLOCK_BYTES {
        return Err(Error::invalid(format!("a block of {} bytes is too large", out.len()))
            .with_hint(format!("Slice the batch: blocks hold at most {MAX_BLOCK_BYTES} bytes.")));
    }
    let payload = Bytes::from(out);
    let (rows, crc) = (batch.num_rows() as u32, crc32c::crc32c(&payload));
    Ok(RecordBlock::from_checked_parts(RecordFormat::Arrow, rows, max_event_time_ms, crc, payload))
}

/// The rows of a block, all columns or those of `projection`, in its order.
///
/// # Errors
/// `MALFORMED_RECORD` if the payload does not fit the schema; `INVALID_ARGUMENT` for a block of bytes records.
pub fn decode_batch(block: &RecordBlock, schema: &SchemaRef, projection: Option<&[usize]>) -> Result<RecordBatch> {
    if block.format() != RecordFormat::Arrow {
        return Err(Error::invalid("the block holds bytes records, not Arrow rows"));
    }
    let (metadata, body) = split(block.payload())?;
    let message = arrow_ipc::root_as_message(metadata).map_err(|error| malformed(error.to_string()))?;
    let batch = message.header_as_record_batch().ok_or_else(|| malformed("the message is no record batch"))?;
    let body = Buffer::from(block.payload().slice(body..));
    let (dictionaries, version) = (HashMap::new(), message.version());
    let decode = || {
        let schema = SchemaRef::clone(schema);
        arrow_ipc::reader::read_record_batch(&body, batch, schema, &dictionaries, projection, &version)
    };
    // Arrow's decoder asserts what it should check in a message from a peer.
    match std::panic::catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(batch)) => Ok(batch),
        Ok(Err(error)) => Err(malformed("the rows do not fit the stream's schema").with_detail(error.to_string())),
        Err(_) => Err(malformed("the rows are not encoded as Arrow IPC has it")),
    }
}

/// Decodes the block once, as a reader would, so that rows that do not fit the schema never get into the log.
pub(crate) fn check_rows(block: &RecordBlock, schema: &SchemaRef) -> Result<()> {
    decode_batch(block, schema, None).map(drop)
}

/// Number of rows of an encoded batch.
pub(crate) fn row_count(payload: &Bytes) -> Result<u32> {
    let (metadata, body) = split(payload)?;
    let message = arrow_ipc::root_as_message(metadata).map_err(|error| malformed(error.to_string()))?;
    let batch = message.header_as_record_batch().ok_or_else(|| malformed("the message is no record batch"))?;
    if message.bodyLength() != (payload.len() - body) as i64 {
        return Err(malformed("the message's body is not as long as announced"));
    }
    let body_len = (payload.len() - body) as u64;
    let within = |buffer: &arrow_ipc::Buffer| {
        let (start, len) = (u64::try_from(buffer.offset()), u64::try_from(buffer.length()));
        matches!((start, len), (Ok(start), Ok(len)) if start.checked_add(len).is_some_and(|end| end <= body_len))
    };
    if batch.buffers().is_some_and(|buffers| !buffers.iter().all(within)) {
        return Err(malformed("a column lies outside the message's body"));
    }
    u32::try_from(batch.length()).map_err(|_| malformed("the message's row count is impossible"))
}

/// The metadata, and where the body begins.
fn split(payload: &[u8]) -> Result<(&[u8], usize)> {
    let [m0, m1, m2, m3, l0, l1, l2, l3, rest @ ..] = payload else {
        return Err(malformed("the message is too short"));
    };
    let len = i32::from_le_bytes([*l0, *l1, *l2, *l3]);
    let metadata = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    match metadata {
        Some(metadata) if [*m0, *m1, *m2, *m3] == CONTINUATION => Ok((metadata, PREFIX_LEN + metadata.len())),
        _ => Err(malformed("the message is not encapsulated as Arrow IPC has it")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::Field;
    use proptest::prelude::*;

    use super::*;

    fn batch() -> RecordBatch {
        let schema =
            Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8, true)]);
        let names = StringArray::from(vec![Some("a"), None, Some("ccc")]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(names)])
            .unwrap()
    }

    fn check(payload: Bytes) -> Result<RecordBlock> {
        RecordBlock::check(RecordFormat::Arrow, 3, None, crc32c::crc32c(&payload), payload)
    }

    #[test]
    fn rows_read_back_whole_and_projected() {
        let batch = batch();
        let schema = decode_schema(&encode_schema(&batch.schema()).unwrap()).unwrap();
        assert_eq!(schema, batch.schema());
        let block = check(encode_batch(&batch, None).unwrap().payload().clone()).unwrap();
        assert_eq!(decode_batch(&block, &schema, None).unwrap(), batch);
        assert_eq!(decode_batch(&block, &schema, Some(&[1])).unwrap(), batch.project(&[1]).unwrap());
    }

    #[test]
    fn rows_of_another_schema_are_refused() {
        let block = encode_batch(&batch(), None).unwrap();
        let other = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("name", DataType::Utf8, true),
        ]));
        assert_eq!(check_rows(&block, &other).unwrap_err().code, Code::MalformedRecord);
    }

    proptest! {
        #[test]
        fn damaged_messages_never_panic(at in any::<proptest::sample::Index>(), byte: u8) {
            let batch = batch();
            let mut payload = encode_batch(&batch, None).unwrap().payload().to_vec();
            let at = at.index(payload.len());
            payload[at] = byte;
            if let Ok(block) = check(payload.into()) {
                let _ = check_rows(&block, &batch.schema());
            }
        }
    }
}
