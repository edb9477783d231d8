//! What a state file must be like before Arrow's reader may see it: that reader trusts lengths, and panics on what no writer
//! of its own writes. Checksums do not help where whoever wrote the file wrote the manifest too.
//!
//! Promise: what passes here takes no more memory than its size allows, and is read without a panic unless a compressed
//! buffer lies about how long it becomes, which only its making tells: [`crate::file`] catches that one.

use std::io::Read;

use arrow::datatypes::{DataType, Schema};
use arrow_ipc::{
    BodyCompressionMethod, CompressionType, DateUnit, Endianness, Field, MessageHeader, MetadataVersion, Precision,
    RecordBatch, TimeUnit, Type, root_as_message,
};

/// Before the metadata of an encapsulated message: the continuation marker, and its length.
const PREFIX_BYTES: usize = 8;
/// Rows of a block that are believed.
const ROWS_MAX: u64 = 1 << 24;
/// Bytes of a block's columns that are believed.
const COLUMNS_BYTES_MAX: u64 = 1 << 32;
/// LZ4 makes at most so many bytes of one.
const EXPANSION_MAX: u64 = 255;
/// Before a compressed buffer: how long it becomes.
const LENGTH_BYTES: usize = 8;
/// In place of that length: the buffer is not compressed.
const NOT_COMPRESSED: i64 = -1;

/// Why something does not pass.
type Refusal = String;

/// The schema message in a file's header, behind the file's magic.
pub(crate) fn check_schema(header: &[u8]) -> Result<(), Refusal> {
    let message = header.get(PREFIX_BYTES..).ok_or("it ends within its schema")?;
    if !header.starts_with(&[0xff; 4]) {
        return Err("its schema message has no continuation marker".to_owned());
    }
    let message = root_as_message(message).map_err(|error| error.to_string())?;
    let schema = message.header_as_schema().ok_or("it does not begin with a schema")?;
    if schema.endianness() != Endianness::Little {
        return Err("its numbers are not little-endian".to_owned());
    }
    let entries = schema.custom_metadata().into_iter().flatten();
    if entries.into_iter().any(|entry| entry.key().is_none() || entry.value().is_none()) {
        return Err("its metadata has an entry without key or value".to_owned());
    }
    let fields = schema.fields().ok_or("its schema has no fields")?;
    fields.iter().try_for_each(|field| check_field(&field))
}

fn check_field(field: &Field<'_>) -> Result<(), Refusal> {
    let name = field.name().ok_or("a column has no name")?;
    let entries = field.custom_metadata().into_iter().flatten();
    let plain = field.dictionary().is_none() && entries.into_iter().all(|e| e.key().is_some() && e.value().is_some());
    if plain && is_plain(field) == Some(true) { Ok(()) } else { Err(format!("column {name:?} is of no plain type")) }
}

/// Whether a column is of a type that state has, and Arrow knows.
fn is_plain(field: &Field<'_>) -> Option<bool> {
    let time_unit =
        |unit| [TimeUnit::SECOND, TimeUnit::MILLISECOND, TimeUnit::MICROSECOND, TimeUnit::NANOSECOND].contains(&unit);
    Some(match field.type_type() {
        Type::Bool | Type::Utf8 | Type::LargeUtf8 | Type::Utf8View => true,
        Type::Binary | Type::LargeBinary | Type::BinaryView => true,
        Type::Int => [8, 16, 32, 64].contains(&field.type_as_int()?.bitWidth()),
        Type::FloatingPoint => [Precision::HALF, Precision::SINGLE, Precision::DOUBLE]
            .contains(&field.type_as_floating_point()?.precision()),
        Type::Decimal => {
            let decimal = field.type_as_decimal()?;
            let precision = decimal.precision();
            decimal.bitWidth() == 128 && (1..=38).contains(&precision) && (0..=precision).contains(&decimal.scale())
        }
        Type::Date => [DateUnit::DAY, DateUnit::MILLISECOND].contains(&field.type_as_date()?.unit()),
        Type::Time => {
            let time = field.type_as_time()?;
            match time.bitWidth() {
                32 => [TimeUnit::SECOND, TimeUnit::MILLISECOND].contains(&time.unit()),
                64 => [TimeUnit::MICROSECOND, TimeUnit::NANOSECOND].contains(&time.unit()),
                _ => false,
            }
        }
        Type::Timestamp => time_unit(field.type_as_timestamp()?.unit()),
        Type::Duration => time_unit(field.type_as_duration()?.unit()),
        Type::FixedSizeBinary => field.type_as_fixed_size_binary()?.byteWidth() > 0,
        _ => false,
    })
}

/// A block: the record-batch message in its first `metadata` bytes, and the body behind it.
pub(crate) fn check_block(schema: &Schema, bytes: &[u8], metadata: usize, rows: u64) -> Result<(), Refusal> {
    let (message, body) = match (bytes.get(PREFIX_BYTES..metadata), bytes.get(metadata..)) {
        (Some(message), Some(body)) if bytes.starts_with(&[0xff; 4]) => (message, body),
        _ => return Err("its message is not where it should be".to_owned()),
    };
    let message = root_as_message(message).map_err(|error| error.to_string())?;
    if message.version() != MetadataVersion::V5 || message.header_type() != MessageHeader::RecordBatch {
        return Err("it is no record batch".to_owned());
    }
    let batch = message.header_as_record_batch().ok_or("it is no record batch")?;
    if rows > ROWS_MAX || u64::try_from(batch.length()) != Ok(rows) {
        return Err(format!("it does not hold {rows} rows"));
    }
    let compressed = match batch.compression() {
        None => false,
        Some(how) if how.codec() == CompressionType::LZ4_FRAME && how.method() == BodyCompressionMethod::BUFFER => true,
        Some(_) => return Err("it is compressed in another way than LZ4".to_owned()),
    };
    check_columns(schema, &batch, &Body { bytes: body, compressed }, rows)
}

fn check_columns(schema: &Schema, batch: &RecordBatch<'_>, body: &Body<'_>, rows: u64) -> Result<(), Refusal> {
    let few = || "it has fewer columns than its schema".to_owned();
    let mut nodes = batch.nodes().into_iter().flatten();
    let mut buffers = batch.buffers().into_iter().flatten();
    let mut more = batch.variadicBufferCounts().into_iter().flatten();
    let mut total = 0_u64;
    for field in schema.fields() {
        let node = nodes.next().ok_or_else(few)?;
        let nulls = u64::try_from(node.null_count()).ok().filter(|nulls| *nulls <= rows);
        let (Some(nulls), true) = (nulls, u64::try_from(node.length()) == Ok(rows)) else {
            return Err(format!("column {:?} does not hold {rows} rows", field.name()));
        };
        let own = match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => 3,
            DataType::Utf8View | DataType::BinaryView => {
                let more = more.next().and_then(|more| u64::try_from(more).ok()).ok_or_else(few)?;
                more.checked_add(2).ok_or_else(few)?
            }
            _ => 2,
        };
        let unit = unit_bytes(field.data_type());
        for index in 0..own {
            let buffer = buffers.next().ok_or_else(few)?;
            let place = (u64::try_from(buffer.offset()), u64::try_from(buffer.length()));
            let (Ok(offset), Ok(length)) = place else { return Err("a buffer lies outside of it".to_owned()) };
            let validity = if index == 0 && nulls > 0 { rows.div_ceil(8) } else { 0 };
            let becomes = body.check_buffer(offset, length, validity)?;
            if index == 1 && !becomes.is_multiple_of(unit) {
                return Err(format!("a buffer of column {:?} ends within a value", field.name()));
            }
            total = total.saturating_add(becomes);
        }
    }
    if nodes.next().is_some() || buffers.next().is_some() || more.next().is_some() {
        return Err("it has more columns than its schema".to_owned());
    }
    if total > COLUMNS_BYTES_MAX { Err(format!("it claims to become {total} bytes")) } else { Ok(()) }
}

/// Of how many bytes the second buffer of a column of a plain type is a multiple: its values, views, or offsets. The reader
/// takes it for a slice of such units.
fn unit_bytes(column: &DataType) -> u64 {
    match column {
        DataType::Utf8 | DataType::Binary => 4,
        DataType::LargeUtf8 | DataType::LargeBinary => 8,
        DataType::Utf8View | DataType::BinaryView => 16,
        other => other.primitive_width().map_or(1, |bytes| bytes as u64),
    }
}

/// A block's columns.
struct Body<'b> {
    bytes: &'b [u8],
    compressed: bool,
}

impl Body<'_> {
    /// How long a buffer becomes; at least `needed` bytes, which is checked by making them.
    fn check_buffer(&self, offset: u64, length: u64, needed: u64) -> Result<u64, Refusal> {
        let place = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
        let buffer = place.and_then(|(offset, length)| self.bytes.get(offset..offset.checked_add(length)?));
        let buffer = buffer.ok_or("a buffer lies outside of it")?;
        let short = || "a buffer is too short".to_owned();
        if !self.compressed || buffer.is_empty() {
            return if length >= needed { Ok(length) } else { Err(short()) };
        }
        let (claimed, packed) = buffer.split_first_chunk::<LENGTH_BYTES>().ok_or_else(short)?;
        let claimed = i64::from_le_bytes(*claimed);
        let packed_bytes = packed.len() as u64;
        if claimed == NOT_COMPRESSED {
            return if packed_bytes >= needed { Ok(packed_bytes) } else { Err(short()) };
        }
        let possible = u64::try_from(claimed).ok().filter(|claimed| *claimed <= packed_bytes * EXPANSION_MAX);
        let claimed = possible.ok_or_else(|| format!("a buffer of {packed_bytes} bytes claims to become {claimed}"))?;
        if needed > 0 {
            let made =
                std::io::copy(&mut lz4_flex::frame::FrameDecoder::new(packed).take(needed), &mut std::io::sink());
            if claimed < needed || made.map_err(|error| error.to_string())? < needed {
                return Err(short());
            }
        }
        Ok(claimed)
    }
}
