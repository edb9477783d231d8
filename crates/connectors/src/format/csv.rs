//! CSV as in RFC 4180: fields in quotes may hold delimiters, line breaks and doubled quotes.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::csv::reader::{Decoder, Format};
use arrow::csv::{ReaderBuilder, WriterBuilder};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use weir_types::graph::ConnectorSpec;
use weir_types::{Error, Result};

use super::{Decode, Encode, TIMESTAMP_FORMAT, TIMESTAMP_LTZ_FORMAT, check_types, in_utc, is_scalar};

/// How CSV is read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CsvOptions {
    pub(crate) delimiter: u8,
    /// Text that stands for NULL.
    pub(crate) null_literal: String,
    /// The first line names the columns and is not a record.
    pub(crate) ignore_first_line: bool,
}

impl CsvOptions {
    pub(crate) fn new(spec: &ConnectorSpec) -> Result<Self> {
        let delimiter = match spec.text("csv.field-delimiter").unwrap_or(",") {
            "\\t" | "\t" => b'\t',
            text => match text.as_bytes() {
                [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => *byte,
                _ => {
                    return Err(Error::invalid(format!("option 'csv.field-delimiter' cannot be '{text}'"))
                        .with_hint("Use one ASCII character other than a quote or a line break; '\\t' is a tab."));
                }
            },
        };
        Ok(Self {
            delimiter,
            null_literal: spec.text("csv.null-literal").unwrap_or_default().to_owned(),
            ignore_first_line: spec.boolean("csv.ignore-first-line", false)?,
        })
    }
}

/// Decodes CSV records, by the place of their fields.
pub(crate) struct CsvDecoder {
    schema: SchemaRef,
    format: Format,
    /// The records of one call with line feeds between.
    lines: Vec<u8>,
}

impl CsvDecoder {
    pub(crate) fn new(schema: SchemaRef, options: &CsvOptions) -> Result<Self> {
        check_types("csv", &schema, is_scalar)?;
        if schema.fields().is_empty() {
            return Err(Error::internal("a CSV table was planned without its columns"));
        }
        let mut format = Format::default().with_header(false).with_delimiter(options.delimiter);
        if !options.null_literal.is_empty() {
            let literal = regex::Regex::new(&format!("^{}$", regex::escape(&options.null_literal)));
            format = format.with_null_regex(literal.map_err(|error| {
                Error::invalid("option 'csv.null-literal' cannot be used").with_detail(error.to_string())
            })?);
        }
        Ok(Self { schema, format, lines: Vec::new() })
    }
}

impl Decode for CsvDecoder {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn decode(&mut self, records: &[&[u8]]) -> Result<RecordBatch, ArrowError> {
        if records.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.schema)));
        }
        self.lines.clear();
        for record in records {
            self.lines.extend_from_slice(record);
            self.lines.push(b'\n');
        }
        // One row more than there are records has room, so that a record that is two is noticed.
        let builder = ReaderBuilder::new(Arc::clone(&self.schema)).with_format(self.format.clone());
        let mut decoder: Decoder = builder.with_batch_size(records.len() + 1).build_decoder();
        let read = decoder.decode(&self.lines)?;
        let rows = decoder.flush().map_err(|error| with_name(error, &self.schema))?;
        match rows.filter(|rows| rows.num_rows() == records.len() && read == self.lines.len()) {
            // The reader does not look at NOT NULL; building a batch does.
            Some(rows) => {
                let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
                RecordBatch::try_new_with_options(Arc::clone(&self.schema), rows.columns().to_vec(), &options)
            }
            None => Err(ArrowError::CsvError("not exactly one record: a quote is missing or misplaced".to_owned())),
        }
    }
}

/// Arrow numbers the columns and lines of what it was given; only the column's name means something to a user.
fn with_name(error: ArrowError, schema: &SchemaRef) -> ArrowError {
    let ArrowError::ParseError(text) = &error else { return error };
    let named = || {
        let (what, place) = text.split_once("' for column ")?;
        let (column, _) = place.split_once(" at line ")?;
        let field = schema.fields().get(column.parse::<usize>().ok()?)?;
        Some(ArrowError::ParseError(format!("column {}: {what}'", field.name())))
    };
    named().unwrap_or(error)
}

/// Encodes CSV records.
pub(crate) struct CsvEncoder {
    options: CsvOptions,
}

impl CsvEncoder {
    pub(crate) fn new(schema: &SchemaRef, options: CsvOptions) -> Result<Self> {
        check_types("csv", schema, |data_type: &DataType| is_scalar(data_type))?;
        Ok(Self { options })
    }
}

impl Encode for CsvEncoder {
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        let mut writer = WriterBuilder::new()
            .with_header(false)
            .with_delimiter(self.options.delimiter)
            .with_null(self.options.null_literal.clone())
            .with_timestamp_format(TIMESTAMP_FORMAT.to_owned())
            .with_timestamp_tz_format(TIMESTAMP_LTZ_FORMAT.to_owned())
            .build(out);
        writer
            .write(&in_utc(rows)?)
            .map_err(|error| Error::internal("rows cannot be written as CSV").with_detail(error.to_string()))
    }
}
