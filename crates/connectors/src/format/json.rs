//! JSON: one object per record.
//!
//! Reading: fields are found by name, unknown ones are passed over, missing ones are null. Timestamps are read in ISO 8601
//! and RFC 3339, with a blank or `T`, with or without a zone (then UTC). Writing: nulls are written, timestamps in Flink's
//! SQL format.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::json::reader::Decoder;
use arrow::json::writer::LineDelimited;
use arrow::json::{ReaderBuilder, StructMode, WriterBuilder};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use weir_types::{Error, Result};

use super::{Decode, Encode, TIMESTAMP_FORMAT, TIMESTAMP_LTZ_FORMAT, check_types, in_utc, is_scalar};

/// Objects and arrays nested deeper are malformed; Arrow's messages about a value recurse into it.
const DEPTH_MAX: usize = 512;
/// Shorter records cannot be nested too deeply.
const CHECK_DEPTH_FROM_BYTES: usize = 2 * DEPTH_MAX;

/// Whether JSON has values of a type.
fn has_type(data_type: &DataType) -> bool {
    is_scalar(data_type) || matches!(data_type, DataType::Struct(_) | DataType::List(_) | DataType::Map(..))
}

/// Decodes JSON objects.
pub(crate) struct JsonDecoder {
    schema: SchemaRef,
    /// Rows that `decoder` takes.
    capacity: usize,
    /// None after an error, which leaves a decoder in an unknown state.
    decoder: Option<Decoder>,
}

impl JsonDecoder {
    pub(crate) fn new(schema: SchemaRef) -> Result<Self> {
        check_types("json", &schema, has_type)?;
        Ok(Self { schema, capacity: 0, decoder: None })
    }

    fn build(&self) -> Result<Decoder, ArrowError> {
        ReaderBuilder::new(Arc::clone(&self.schema))
            .with_batch_size(self.capacity + 1)
            .with_coerce_primitive(true)
            .build_decoder()
    }
}

impl Decode for JsonDecoder {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn decode(&mut self, records: &[&[u8]]) -> Result<RecordBatch, ArrowError> {
        if records.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.schema)));
        }
        if records.len() > self.capacity {
            self.capacity = records.len().next_power_of_two();
            self.decoder = None;
        }
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => self.build()?,
        };
        for (index, record) in records.iter().enumerate() {
            if record.len() > CHECK_DEPTH_FROM_BYTES && depth(record) > DEPTH_MAX {
                return Err(ArrowError::JsonError(format!("nested deeper than {DEPTH_MAX} levels")));
            }
            decoder.decode(record)?;
            if decoder.has_partial_record() || decoder.len() != index + 1 {
                return Err(ArrowError::JsonError("not exactly one JSON object".to_owned()));
            }
        }
        let rows = decoder.flush()?;
        self.decoder = Some(decoder);
        rows.filter(|rows| rows.num_rows() == records.len())
            .ok_or_else(|| ArrowError::JsonError("the number of rows is not that of the records".to_owned()))
    }
}

/// How deep brackets are nested; those in strings do not count.
fn depth(record: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in record {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn builder() -> WriterBuilder {
    WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_timestamp_format(TIMESTAMP_FORMAT.to_owned())
        .with_timestamp_tz_format(TIMESTAMP_LTZ_FORMAT.to_owned())
}

fn unwritable(error: &ArrowError) -> Error {
    Error::internal("rows cannot be written as JSON").with_detail(error.to_string())
}

/// Encodes JSON objects.
pub(crate) struct JsonEncoder;

impl JsonEncoder {
    pub(crate) fn new(schema: &SchemaRef) -> Result<Self> {
        check_types("json", schema, has_type)?;
        Ok(Self)
    }
}

impl Encode for JsonEncoder {
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        let mut writer = builder().build::<_, LineDelimited>(out);
        writer.write(&in_utc(rows)?).and_then(|()| writer.finish()).map_err(|error| unwritable(&error))
    }
}

/// The text of every row, as a record's key: of one column the value itself (text as it is, anything else as JSON; null is
/// no key), of several columns a JSON array.
pub(crate) fn keys(columns: &RecordBatch) -> Result<Vec<Option<Vec<u8>>>> {
    let only: Option<&ArrayRef> = match columns.columns() {
        [column] => Some(column),
        _ => None,
    };
    if let Some(column) = only.filter(|column| matches!(column.data_type(), DataType::Utf8 | DataType::Utf8View)) {
        let text = arrow::compute::cast(column, &DataType::Utf8).map_err(|error| unwritable(&error))?;
        return Ok(text.as_string::<i32>().iter().map(|text| text.map(|text| text.as_bytes().to_vec())).collect());
    }
    let mut bytes = Vec::new();
    let mut writer = builder().with_struct_mode(StructMode::ListOnly).build::<_, LineDelimited>(&mut bytes);
    writer.write(&in_utc(columns)?).and_then(|()| writer.finish()).map_err(|error| unwritable(&error))?;
    let lines = bytes.split(|byte| *byte == b'\n').take(columns.num_rows());
    let key = |(row, line): (usize, &[u8])| match only {
        Some(column) if column.is_null(row) => None,
        Some(_) => Some(line.get(1..line.len().saturating_sub(1)).unwrap_or_default().to_vec()),
        None => Some(line.to_vec()),
    };
    Ok(lines.enumerate().map(key).collect())
}
