//! The sink that prints rows to the TaskManager's standard output, as Flink's print connector does: `+I[1, abc]`, after
//! the `print-identifier` and, if there are several, the number of the subtask.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use arrow::array::{Array, AsArray, StructArray};
use arrow::datatypes::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use async_trait::async_trait;
use chrono::{DateTime, Timelike};
use weir_dataflow::element::Batch;
use weir_dataflow::sink::{Prepared, Sink, SinkContext};
use weir_types::ids::BarrierId;
use weir_types::output::END_OF_INPUT;
use weir_types::snapshot::Barrier;
use weir_types::{Error, Result};

use crate::changes;
use crate::writer::{Blocking, BlockingOutput, Writer};

/// Prints rows.
pub(crate) struct PrintSink {
    prefix: String,
    writer: Writer<Vec<u8>>,
}

struct StandardOutput;

impl BlockingOutput for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut output = std::io::stdout();
        // What was printed is seen at once, not at the next checkpoint.
        let written = output.write_all(bytes).and_then(|()| output.flush());
        written.map_err(|error| Error::io("cannot write to standard output", &error))
    }

    fn prepare(&mut self, _at: BarrierId) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

impl PrintSink {
    pub(crate) fn new(context: &SinkContext) -> Self {
        let identifier = context.spec.connector.text("print-identifier").unwrap_or_default();
        Self {
            prefix: prefix(identifier, context.subtask, context.parallelism),
            writer: Writer::new(&context.io, Blocking::new(StandardOutput)),
        }
    }
}

fn prefix(identifier: &str, subtask: u32, parallelism: u32) -> String {
    match (identifier.is_empty(), parallelism > 1) {
        (true, false) => String::new(),
        (true, true) => format!("{}> ", subtask + 1),
        (false, false) => format!("{identifier}> "),
        (false, true) => format!("{identifier}:{}> ", subtask + 1),
    }
}

#[async_trait(?Send)]
impl Sink for PrintSink {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let text = render(&self.prefix, batch)?.into_bytes();
        let bytes = text.len();
        self.writer.write(text, bytes)
    }

    async fn ready(&mut self) -> Result<()> {
        self.writer.ready().await
    }

    fn prepare(&mut self, barrier: &Barrier) -> Result<Prepared> {
        Ok(Box::pin(self.writer.prepare(barrier.id)))
    }

    async fn finish(&mut self) -> Result<()> {
        self.writer.prepare(END_OF_INPUT).await.map(drop)
    }
}

/// One line per row.
fn render(prefix: &str, batch: &Batch) -> Result<String> {
    let options = FormatOptions::new().with_null("null");
    let unprintable =
        |error: &dyn std::error::Error| Error::internal("a row cannot be printed").with_detail(error.to_string());
    let columns = batch.rows.columns().iter().map(|column| Value::new(column, &options)).collect::<Result<Vec<_>, _>>();
    let columns = columns.map_err(|error| unprintable(&error))?;
    let mut text = String::new();
    for row in 0..batch.rows.num_rows() {
        text.push_str(prefix);
        text.push_str(changes::short_name(batch, row));
        write_list(&columns, row, &mut text).map_err(|error| unprintable(&error))?;
        text.push('\n');
    }
    Ok(text)
}

/// How one column's values are written.
enum Value<'a> {
    /// A nested row, written as Flink writes a `Row`.
    Row {
        array: &'a StructArray,
        fields: Vec<Value<'a>>,
    },
    Timestamp {
        array: &'a dyn Array,
        unit: TimeUnit,
        instant: bool,
    },
    Plain {
        array: &'a dyn Array,
        formatter: ArrayFormatter<'a>,
    },
}

impl<'a> Value<'a> {
    fn new(array: &'a dyn Array, options: &FormatOptions<'a>) -> Result<Self, ArrowError> {
        Ok(match array.data_type() {
            DataType::Struct(_) => {
                let array = array.as_struct();
                let fields =
                    array.columns().iter().map(|field| Value::new(field, options)).collect::<Result<_, _>>()?;
                Value::Row { array, fields }
            }
            DataType::Timestamp(unit, zone) => Value::Timestamp { array, unit: *unit, instant: zone.is_some() },
            _ => Value::Plain { array, formatter: ArrayFormatter::try_new(array, options)? },
        })
    }

    fn write(&self, row: usize, text: &mut String) -> fmt::Result {
        let array: &dyn Array = match self {
            Value::Row { array, .. } => *array,
            Value::Timestamp { array, .. } | Value::Plain { array, .. } => *array,
        };
        if array.is_null(row) {
            text.push_str("null");
            return Ok(());
        }
        match self {
            Value::Row { fields, .. } => {
                text.push_str("+I");
                write_list(fields, row, text)
            }
            Value::Timestamp { array, unit, instant } => write_timestamp(*array, *unit, *instant, row, text),
            Value::Plain { formatter, .. } => write!(text, "{}", formatter.value(row)),
        }
    }
}

fn write_list(values: &[Value<'_>], row: usize, text: &mut String) -> fmt::Result {
    text.push('[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        value.write(row, text)?;
    }
    text.push(']');
    Ok(())
}

/// As Java prints a `LocalDateTime`, or for TIMESTAMP_LTZ an `Instant`: `2020-01-01T10:00`, `2020-01-01T10:00:00.123Z`.
fn write_timestamp(array: &dyn Array, unit: TimeUnit, instant: bool, row: usize, text: &mut String) -> fmt::Result {
    let time = match unit {
        TimeUnit::Second => DateTime::from_timestamp(array.as_primitive::<TimestampSecondType>().value(row), 0),
        TimeUnit::Millisecond => {
            DateTime::from_timestamp_millis(array.as_primitive::<TimestampMillisecondType>().value(row))
        }
        TimeUnit::Microsecond => {
            DateTime::from_timestamp_micros(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        TimeUnit::Nanosecond => {
            Some(DateTime::from_timestamp_nanos(array.as_primitive::<TimestampNanosecondType>().value(row)))
        }
    };
    let Some(time) = time else {
        text.push_str("(out of range)");
        return Ok(());
    };
    if instant {
        write!(text, "{}Z", time.format("%Y-%m-%dT%H:%M:%S%.f"))
    } else if time.second() == 0 && time.nanosecond() == 0 {
        write!(text, "{}", time.format("%Y-%m-%dT%H:%M"))
    } else {
        write!(text, "{}", time.format("%Y-%m-%dT%H:%M:%S%.f"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Decimal128Array, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMillisecondArray,
    };
    use arrow::buffer::ScalarBuffer;
    use arrow_schema::Field;

    use super::*;

    fn columns(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[test]
    fn rows_look_as_in_flink() {
        let nested = StructArray::from(vec![
            (
                Arc::new(Field::new("x", DataType::Int32, true)),
                Arc::new(Int32Array::from(vec![Some(7), None])) as ArrayRef,
            ),
            (Arc::new(Field::new("y", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["ä", "b, c"]))),
        ]);
        let rows = columns(vec![
            ("id", Arc::new(Int32Array::from(vec![Some(1), None]))),
            ("nested", Arc::new(nested)),
            ("ts", Arc::new(TimestampMillisecondArray::from(vec![1_577_836_800_123, 1_577_836_800_000]))),
            ("ltz", Arc::new(TimestampMillisecondArray::from(vec![1_577_836_801_000, 0]).with_timezone("UTC"))),
            ("price", Arc::new(Decimal128Array::from(vec![12_345, -5]).with_precision_and_scale(10, 2).unwrap())),
            ("f", Arc::new(Float64Array::from(vec![1.5, 2.0]))),
        ]);
        let batch = Batch { rows, ops: Some(ScalarBuffer::from(vec![0_u8, 3])) };
        assert_eq!(
            render("out> ", &batch).unwrap(),
            "out> +I[1, +I[7, ä], 2020-01-01T00:00:00.123, 2020-01-01T00:00:01Z, 123.45, 1.5]\n\
             out> -D[null, +I[null, b, c], 2020-01-01T00:00, 1970-01-01T00:00:00Z, -0.05, 2.0]\n"
        );
    }

    #[test]
    fn prefixes_tell_identifier_and_subtask() {
        assert_eq!(prefix("", 0, 1), "");
        assert_eq!(prefix("", 1, 2), "2> ");
        assert_eq!(prefix("out", 0, 1), "out> ");
        assert_eq!(prefix("out", 3, 4), "out:4> ");
    }
}
