//! Streams of the stream store: a source that reads partitions, and a sink that appends as an idempotent producer.

mod sink;
mod source;
#[cfg(test)]
mod tests;
mod transactions;

use arrow_schema::{Schema, SchemaRef};
use weir_types::connector::DEBEZIUM_JSON;
use weir_types::graph::ConnectorSpec;
use weir_types::store::{Isolation, RecordFormat, StreamInfo};
use weir_types::stream::StreamName;
use weir_types::{Error, Result};

pub(crate) use self::sink::StreamSink;
pub(crate) use self::source::StreamSource;

/// The option that skips malformed records.
const IGNORE_OPTION: &str = "json.ignore-parse-errors";

fn stream_name(spec: &ConnectorSpec) -> Result<StreamName> {
    spec.required("stream")?.parse()
}

fn format(spec: &ConnectorSpec) -> Result<RecordFormat> {
    match spec.text("format").unwrap_or("json") {
        "json" | DEBEZIUM_JSON => Ok(RecordFormat::Bytes),
        "arrow" => Ok(RecordFormat::Arrow),
        other => Err(Error::invalid(format!("connector 'stream-store' has no format '{other}'"))),
    }
}

fn isolation(spec: &ConnectorSpec) -> Result<Isolation> {
    spec.text("scan.isolation").map_or(Ok(Isolation::default()), str::parse)
}

/// Refuses a stream whose records are of another format than the table says.
fn check_format(info: &StreamInfo, format: RecordFormat) -> Result<()> {
    if info.options.format == format {
        return Ok(());
    }
    let table_format = |format| if format == RecordFormat::Arrow { "arrow" } else { "json" };
    Err(Error::invalid(format!("stream {} holds {} records", info.name, info.options.format)).with_hint(format!(
        "Declare the table with 'format' = '{}', not '{}'.",
        table_format(info.options.format),
        table_format(format)
    )))
}

/// The schema of a stream of Arrow rows.
fn arrow_schema(info: &StreamInfo) -> Result<SchemaRef> {
    match &info.options.arrow_schema {
        Some(bytes) => weir_stream_store::arrow_block::decode_schema(bytes),
        None => Err(Error::internal(format!("stream {} holds Arrow rows without a schema", info.name))),
    }
}

/// Where each column of `wanted` is in the stream's schema; types must be equal.
fn places(stream: &StreamName, schema: &Schema, wanted: &Schema) -> Result<Vec<usize>> {
    let place = |field: &arrow_schema::FieldRef| {
        let (index, found) = schema.column_with_name(field.name()).ok_or_else(|| {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            Error::invalid(format!("stream {stream} has no column '{}'", field.name()))
                .with_detail(format!("Its columns are {}.", names.join(", ")))
        })?;
        if found.data_type() != field.data_type() {
            return Err(Error::invalid(format!("column '{}' of stream {stream} has another type", field.name()))
                .with_detail(format!("It is {}; the table declares {}.", found.data_type(), field.data_type())));
        }
        Ok(index)
    };
    wanted.fields().iter().map(place).collect()
}
