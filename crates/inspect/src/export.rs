//! Rows as CSV, JSON or Parquet.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use weir_types::{Code, Error, Result};

use crate::table::Table;

/// Rows per group of a Parquet file: they are encoded in memory.
const GROUP_ROWS: usize = 128 * 1024;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// One JSON array of objects, an object a line.
    Json,
    /// A Parquet file, compressed with Snappy.
    Parquet,
}

impl Format {
    /// How names of such files end.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::Jsonl => "jsonl",
            Format::Json => "json",
            Format::Parquet => "parquet",
        }
    }
}

/// One JSON array, an object a line.
#[derive(Debug, Default)]
struct ArrayLines;

impl json::writer::JsonFormat for ArrayLines {
    fn start_stream<W: Write>(&self, writer: &mut W) -> std::result::Result<(), ArrowError> {
        Ok(writer.write_all(b"[")?)
    }

    fn start_row<W: Write>(&self, writer: &mut W, is_first_row: bool) -> std::result::Result<(), ArrowError> {
        Ok(writer.write_all(if is_first_row { b"\n" } else { b",\n" })?)
    }

    fn end_stream<W: Write>(&self, writer: &mut W) -> std::result::Result<(), ArrowError> {
        Ok(writer.write_all(b"\n]\n")?)
    }
}

enum Encoder<W: Write + Send> {
    Csv(Box<csv::Writer<W>>),
    Jsonl(json::Writer<W, json::writer::LineDelimited>),
    Json(json::Writer<W, ArrayLines>),
    Parquet(Box<ArrowWriter<W>>),
}

/// Writes rows in one of the formats; what it holds in memory is bounded.
pub struct RowWriter<W: Write + Send> {
    encoder: Encoder<W>,
    rows: u64,
}

impl<W: Write + Send> std::fmt::Debug for RowWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowWriter").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl<W: Write + Send> RowWriter<W> {
    /// Begins.
    ///
    /// # Errors
    /// `UNSUPPORTED` for columns that the format cannot hold, `IO`.
    pub fn new(format: Format, schema: &SchemaRef, out: W) -> Result<Self> {
        let json = || json::WriterBuilder::new().with_explicit_nulls(true);
        let encoder = match format {
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(out);
                // The header is there even if no row is.
                writer.write(&RecordBatch::new_empty(Arc::clone(schema))).map_err(arrow_failed)?;
                Encoder::Csv(Box::new(writer))
            }
            Format::Jsonl => Encoder::Jsonl(json().build(out)),
            Format::Json => Encoder::Json(json().build(out)),
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_max_row_group_row_count(Some(GROUP_ROWS))
                    .build();
                let writer = ArrowWriter::try_new(out, Arc::clone(schema), Some(properties));
                Encoder::Parquet(Box::new(writer.map_err(parquet_failed)?))
            }
        };
        Ok(Self { encoder, rows: 0 })
    }

    /// Writes rows.
    ///
    /// # Errors
    /// `IO`, `RESOURCE_EXHAUSTED`, `UNSUPPORTED`.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match &mut self.encoder {
            Encoder::Csv(writer) => writer.write(batch).map_err(arrow_failed)?,
            Encoder::Jsonl(writer) => writer.write(batch).map_err(arrow_failed)?,
            Encoder::Json(writer) => writer.write(batch).map_err(arrow_failed)?,
            Encoder::Parquet(writer) => writer.write(batch).map_err(parquet_failed)?,
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Ends; gives back what was written to, and how many rows were.
    ///
    /// # Errors
    /// As [`RowWriter::write`].
    pub fn finish(self) -> Result<(W, u64)> {
        let out = match self.encoder {
            Encoder::Csv(writer) => writer.into_inner(),
            Encoder::Jsonl(mut writer) => {
                writer.finish().map_err(arrow_failed)?;
                writer.into_inner()
            }
            Encoder::Json(mut writer) => {
                writer.finish().map_err(arrow_failed)?;
                writer.into_inner()
            }
            Encoder::Parquet(writer) => writer.into_inner().map_err(parquet_failed)?,
        };
        Ok((out, self.rows))
    }
}

/// Writes all rows of a table; how many there were.
///
/// # Errors
/// `CORRUPT` and the like if a state file cannot be read, else as [`RowWriter::write`].
pub fn write_table<W: Write + Send>(table: &Arc<Table>, format: Format, out: W) -> Result<(W, u64)> {
    let columns = table.columns()?;
    let all: Vec<usize> = (0..columns.schema().fields().len()).collect();
    let mut writer = RowWriter::new(format, columns.schema(), out)?;
    for batch in table.scan(&all)? {
        writer.write(&batch?)?;
    }
    writer.finish()
}

/// Writes all rows of a table to a file that must not exist, and that appears only when it is complete; rows and bytes.
///
/// # Errors
/// `ALREADY_EXISTS`, else as [`write_table`].
pub fn write_file(table: &Arc<Table>, format: Format, path: &Path) -> Result<(u64, u64)> {
    let failed = |what: &str, error: &io::Error| Error::io(format!("could not {what} {}", path.display()), error);
    let taken = || {
        Error::new(Code::AlreadyExists, format!("{} exists already", path.display()))
            .with_hint("Choose another name, or delete it.")
    };
    if path.exists() {
        return Err(taken());
    }
    let Some(name) = path.file_name() else {
        return Err(Error::invalid(format!("{} is not a file name", path.display())));
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(hidden);
    let written = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&part);
        let file = file.map_err(|error| failed("create", &error))?;
        let (out, rows) = write_table(table, format, BufWriter::new(file))?;
        let file = out.into_inner().map_err(|error| failed("write", error.error()))?;
        file.sync_all().map_err(|error| failed("write", &error))?;
        let bytes = file.metadata().map_err(|error| failed("write", &error))?.len();
        match fs::hard_link(&part, path) {
            Ok(()) => Ok((rows, bytes)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken()),
            Err(error) => Err(failed("create", &error)),
        }
    })();
    // Whether or not it worked, the temporary name has served.
    let _gone = fs::remove_file(&part);
    written
}

/// The name of the file that a table is exported to in a directory: of the table's names only what is safe in one.
pub fn file_name(table: &Table, format: Format) -> String {
    let safe = |name: &str| -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' }).collect()
    };
    format!("{}.{}.{}", safe(table.operator()), safe(table.name()), format.extension())
}

fn arrow_failed(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => Error::io("could not write rows", &error),
        // The CSV writer hides what the operating system said.
        other => Error::new(Code::Unsupported, "rows cannot be written in this format")
            .with_detail(other.to_string())
            .with_hint("Choose another format, or leave columns out with `weir snapshots query`."),
    }
}

fn parquet_failed(error: ParquetError) -> Error {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => Error::io("could not write rows", &error),
            Err(other) => Error::new(Code::Io, "could not write rows").with_detail(other.to_string()),
        },
        other => Error::new(Code::Unsupported, "rows cannot be written as Parquet").with_detail(other.to_string()),
    }
}
