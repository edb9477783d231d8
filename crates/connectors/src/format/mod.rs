//! Formats: bytes to rows and back.
//!
//! Decoding works on many records at a time and either gives exactly one row per record or fails. Which record was bad is
//! found out afterwards, by halving; good input never pays for that.

pub(crate) mod csv;
pub(crate) mod json;
pub(crate) mod layout;
#[cfg(test)]
mod tests;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow_schema::{ArrowError, DataType, Field, SchemaRef};
use weir_types::graph::ConnectorSpec;
use weir_types::{Code, Error, Result};

/// Records that are longer are malformed: a lost quote must not swallow a whole file into memory.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;

/// Decodes records of one format.
pub(crate) trait Decode: Send {
    /// The schema of the rows.
    fn schema(&self) -> &SchemaRef;

    /// Exactly one row per record, or an error.
    fn decode(&mut self, records: &[&[u8]]) -> Result<RecordBatch, ArrowError>;
}

/// Encodes rows of one format, a record per row.
pub(crate) trait Encode {
    /// Appends one record per row to `out`, each followed by a line feed; none holds one within, other than in quotes.
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<()>;
}

/// The rows of some records.
pub(crate) struct Decoded {
    pub(crate) rows: RecordBatch,
    /// Which records they are, if some were skipped.
    pub(crate) kept: Option<Vec<u32>>,
}

/// What happens to records that do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnMalformed {
    Fail,
    Skip,
}

impl OnMalformed {
    /// As an option of the table says.
    pub(crate) fn of(spec: &ConnectorSpec, option: &str) -> Result<Self> {
        Ok(if spec.boolean(option, false)? { Self::Skip } else { Self::Fail })
    }
}

/// Decodes records; `place` says where one of them came from.
///
/// # Errors
/// `MALFORMED_RECORD` naming the first bad record's place, unless bad ones are skipped.
pub(crate) fn decode(
    decoder: &mut dyn Decode,
    records: &[&[u8]],
    on_malformed: OnMalformed,
    option: &str,
    place: impl Fn(usize) -> String,
) -> Result<Decoded> {
    match (decoder.decode(records), on_malformed) {
        (Ok(rows), _) => Ok(Decoded { rows, kept: None }),
        (Err(_), OnMalformed::Fail) => {
            let bad = first_malformed(decoder, records);
            let record = records.get(bad).copied().unwrap_or_default();
            let reason = decoder.decode(&[record]).err().map_or_else(String::new, |error| error.to_string());
            Err(Error::new(Code::MalformedRecord, format!("{} does not decode", place(bad)))
                .with_detail(format!("{}; the record is {}", plain_reason(&reason), excerpt(record)))
                .with_hint(format!(
                    "Correct the table's columns, or set '{option}' = 'true' to count and skip such records."
                )))
        }
        (Err(_), OnMalformed::Skip) => {
            let (mut batches, mut kept) = (Vec::new(), Vec::new());
            keep_good(decoder, records, 0, &mut batches, &mut kept);
            let rows = concat_batches(decoder.schema(), &batches)
                .map_err(|error| Error::internal("decoded rows do not fit together").with_detail(error.to_string()))?;
            Ok(Decoded { rows, kept: Some(kept) })
        }
    }
}

/// The index of the first record that does not decode, given that not all do.
fn first_malformed(decoder: &mut dyn Decode, records: &[&[u8]]) -> usize {
    let (mut good, mut bad) = (0, records.len());
    // The first `good` records decode, the first `bad` do not.
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if decoder.decode(&records[good..middle]).is_ok() {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

/// Rows and indices of the records that decode, given that not all do.
fn keep_good(
    decoder: &mut dyn Decode,
    records: &[&[u8]],
    first: u32,
    batches: &mut Vec<RecordBatch>,
    kept: &mut Vec<u32>,
) {
    if records.len() < 2 {
        return;
    }
    let (left, right) = records.split_at(records.len() / 2);
    let middle = first + left.len() as u32;
    for (half, start) in [(left, first), (right, middle)] {
        match decoder.decode(half) {
            Ok(rows) => {
                batches.push(rows);
                kept.extend(start..start + half.len() as u32);
            }
            Err(_) => keep_good(decoder, half, start, batches, kept),
        }
    }
}

/// Arrow's reason without the line number, which counts from the record that was looked at alone.
fn plain_reason(reason: &str) -> String {
    let reason =
        reason.split_once(": ").map_or(reason, |(kind, rest)| if kind.ends_with("rror") { rest } else { reason });
    reason.replace(" for line 1,", ",").replace(" at line 1", "").replace(" for line 1", "")
}

fn excerpt(record: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(&record[..record.len().min(SHOWN)]);
    if record.len() > SHOWN { format!("{text}… ({} bytes)", record.len()) } else { text.into_owned() }
}

/// Refuses columns of types that a format has no text for.
///
/// # Errors
/// `UNSUPPORTED` naming the column.
fn check_types(format: &str, schema: &SchemaRef, has: impl Fn(&DataType) -> bool) -> Result<()> {
    let refused = |field: &&Field| !has(field.data_type());
    match schema.flattened_fields().into_iter().find(refused) {
        None => Ok(()),
        Some(field) => Err(Error::new(
            Code::Unsupported,
            format!("format '{format}' has no values of type {} (column '{}')", field.data_type(), field.name()),
        )),
    }
}

/// Types whose values are plain text in any format.
fn is_scalar(data_type: &DataType) -> bool {
    use DataType::{Boolean, Date32, Decimal128, Time32, Time64, Timestamp, Utf8, Utf8View};
    data_type.is_integer()
        || data_type.is_floating()
        || matches!(
            data_type,
            Boolean | Date32 | Decimal128(..) | Time32(_) | Time64(_) | Timestamp(..) | Utf8 | Utf8View
        )
}

/// How timestamps are written, as Flink's SQL format has them; fractions as long as needed: 0, 3, 6 or 9 digits.
const TIMESTAMP_FORMAT: &str = "%Y-%m-%d %H:%M:%S%.f";
/// The same for TIMESTAMP_LTZ, which is written in UTC.
const TIMESTAMP_LTZ_FORMAT: &str = "%Y-%m-%d %H:%M:%S%.fZ";

/// The rows with every TIMESTAMP_LTZ in UTC.
fn in_utc(rows: &RecordBatch) -> Result<RecordBatch> {
    fn utc(data_type: &DataType) -> Option<DataType> {
        match data_type {
            DataType::Timestamp(unit, Some(zone)) if !matches!(zone.as_ref(), "UTC" | "+00:00") => {
                Some(DataType::Timestamp(*unit, Some("+00:00".into())))
            }
            DataType::Struct(fields) if fields.iter().any(|field| utc(field.data_type()).is_some()) => {
                let convert = |field: &arrow_schema::FieldRef| match utc(field.data_type()) {
                    Some(data_type) => Field::clone(field).with_data_type(data_type).into(),
                    None => std::sync::Arc::clone(field),
                };
                Some(DataType::Struct(fields.iter().map(convert).collect()))
            }
            _ => None,
        }
    }
    let schema = rows.schema();
    if schema.fields().iter().all(|field| utc(field.data_type()).is_none()) {
        return Ok(rows.clone());
    }
    let failed = |error: ArrowError| Error::internal("time zones cannot be converted").with_detail(error.to_string());
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(rows.columns()) {
        let data_type = utc(field.data_type()).unwrap_or_else(|| field.data_type().clone());
        columns.push(arrow::compute::cast(column, &data_type).map_err(failed)?);
        fields.push(Field::clone(field).with_data_type(data_type));
    }
    RecordBatch::try_new(std::sync::Arc::new(arrow_schema::Schema::new(fields)), columns).map_err(failed)
}
