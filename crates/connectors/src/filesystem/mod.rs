//! Files in a directory: a bounded source of JSON lines and CSV, and a sink that appends part files.

mod lines;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use arrow_schema::SchemaRef;
use weir_types::connector::DEBEZIUM_JSON;
use weir_types::graph::ConnectorSpec;
use weir_types::{Error, Result};

pub(crate) use self::sink::FilesystemSink;
pub(crate) use self::source::FilesystemSource;
use crate::format::csv::{CsvDecoder, CsvEncoder, CsvOptions};
use crate::format::json::{JsonDecoder, JsonEncoder};
use crate::format::{Decode, Encode, OnMalformed};

/// What the `format` option and those of the format say.
#[derive(Clone, Debug)]
enum Format {
    Json,
    Csv(CsvOptions),
}

impl Format {
    fn new(spec: &ConnectorSpec) -> Result<Self> {
        match spec.required("format")? {
            "json" | DEBEZIUM_JSON => Ok(Format::Json),
            "csv" => CsvOptions::new(spec).map(Format::Csv),
            other => Err(Error::invalid(format!("connector 'filesystem' has no format '{other}'"))),
        }
    }

    fn extension(&self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Csv(_) => "csv",
        }
    }

    /// The option that skips malformed records.
    fn ignore_option(&self) -> &'static str {
        match self {
            Format::Json => "json.ignore-parse-errors",
            Format::Csv(_) => "csv.ignore-parse-errors",
        }
    }

    fn on_malformed(&self, spec: &ConnectorSpec) -> Result<OnMalformed> {
        OnMalformed::of(spec, self.ignore_option())
    }

    fn decoder(&self, schema: SchemaRef) -> Result<Box<dyn Decode>> {
        Ok(match self {
            Format::Json => Box::new(JsonDecoder::new(schema)?),
            Format::Csv(options) => Box::new(CsvDecoder::new(schema, options)?),
        })
    }

    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encode>> {
        Ok(match self {
            Format::Json => Box::new(JsonEncoder::new(schema)?),
            Format::Csv(options) => Box::new(CsvEncoder::new(schema, options.clone())?),
        })
    }
}
