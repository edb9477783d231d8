//! Rows of a query on standard output: aligned, without holding all of them.

use std::io::{self, Write};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use weir_types::{Error, Result};

use crate::output;

/// Rows that columns are aligned over; later ones may widen them.
const ALIGNED_ROWS: usize = 1_000;

/// Standard output; a closed pipe (`weir … | head`) ends the program quietly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        quietly(io::stdout().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        quietly(io::stdout().lock().flush())
    }
}

fn quietly<T>(written: io::Result<T>) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written,
    }
}

/// A table that is printed a thousand rows at a time.
#[derive(Debug)]
pub(super) struct Aligned {
    header: Option<Vec<String>>,
    numeric: Vec<bool>,
    widths: Vec<usize>,
    waiting: Vec<Vec<String>>,
}

impl Aligned {
    pub(super) fn new(schema: &SchemaRef) -> Self {
        let numeric = |data_type: &DataType| data_type.is_numeric();
        Self {
            header: Some(schema.fields().iter().map(|field| field.name().clone()).collect()),
            numeric: schema.fields().iter().map(|field| numeric(field.data_type())).collect(),
            widths: vec![0; schema.fields().len()],
            waiting: Vec::new(),
        }
    }

    /// Takes rows, and prints those that are enough for a page.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let failed = |error: arrow::error::ArrowError| {
            Error::internal("a value could not be shown").with_detail(error.to_string())
        };
        let options = FormatOptions::default().with_null("NULL");
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
        for row in 0..batch.num_rows() {
            self.waiting.push(columns.iter().map(|column| one_line(&column.value(row).to_string())).collect());
            if self.waiting.len() == ALIGNED_ROWS {
                self.print()?;
            }
        }
        Ok(())
    }

    /// Prints what is left.
    pub(super) fn finish(mut self) -> Result<()> {
        self.print()
    }

    fn print(&mut self) -> Result<()> {
        let rows: Vec<Vec<String>> = self.header.take().into_iter().chain(self.waiting.drain(..)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().zip(&self.widths).zip(&self.numeric).map(|((cell, width), numeric)| {
                let blanks = " ".repeat(width - cell.chars().count());
                if *numeric { format!("{blanks}{cell}") } else { format!("{cell}{blanks}") }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        output::print(&text)
    }
}

/// State is anybody's data: what would break lines or move the cursor is escaped.
fn one_line(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}
