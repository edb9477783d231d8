//! Dates and times from and to text, in Java's patterns.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, PrimitiveArray, StringBuilder};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int32Type, Int64Type, TimeUnit};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;

use super::temporal::{Moments, column, constant_text, function, moments_as};
use crate::definition::{Arguments, Definition, Nulls, Param, Returns, Text};
use crate::pattern::Pattern;
use crate::time::{self, Local};
use crate::types;

const TIMESTAMP_3: Returns = Returns::Always(DataType::Timestamp(TimeUnit::Millisecond, None));
const LTZ_3: Returns = Returns::Computed(|_| Some(types::ltz(TimeUnit::Millisecond)));
const STRING: Returns = Returns::Always(DataType::Utf8);

pub(super) const FUNCTIONS: &[Definition] = &[
    function("date_format", &[Param::Timestamp, Param::Text], 2, STRING, Nulls::Propagate, date_format),
    function("to_timestamp", &[Param::Text, Param::Text], 1, TIMESTAMP_3, Nulls::Maybe, to_timestamp),
    function("to_timestamp_ltz", &[Param::Number, Param::Int], 1, LTZ_3, Nulls::Maybe, to_timestamp_ltz),
    function("$text_to_instant", &[Param::Text, Param::Text, Param::Text], 3, LTZ_3, Nulls::Maybe, text_to_instant),
    function("to_date", &[Param::Text, Param::Text], 1, Returns::Always(DataType::Date32), Nulls::Maybe, to_date),
    function("convert_tz", &[Param::Text, Param::Text, Param::Text], 3, STRING, Nulls::Maybe, convert_tz),
];

fn pattern_of(arguments: &Arguments<'_>, index: usize) -> Result<Option<Pattern>> {
    match arguments.text(index)? {
        Text::Constant(Some(text)) => Ok(Some(Pattern::compile(text)?)),
        Text::Constant(None) | Text::Column(_) => Ok(None),
    }
}

fn date_format(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let moments = Moments::new(&column(arguments, 0)?)?;
    let (constant, texts) = (pattern_of(arguments, 1)?, arguments.text(1)?);
    let rows = arguments.rows_to_compute();
    let mut builder = StringBuilder::with_capacity(rows, rows * 20);
    let mut out = String::new();
    for row in 0..rows {
        let (Some(local), Some(text)) = (moments.get(row), texts.get(row)) else {
            builder.append_null();
            continue;
        };
        out.clear();
        match &constant {
            Some(pattern) => pattern.format(local, &mut out),
            None => Pattern::compile(text)?.format(local, &mut out),
        }
        builder.append_value(&out);
    }
    arguments.finish(Arc::new(builder.finish()))
}

/// Parses texts with the pattern in argument `index`, or in the default formats if there is none.
fn parse_texts(arguments: &Arguments<'_>, index: usize) -> Result<Vec<Option<Local>>> {
    let texts = arguments.text(0)?;
    let rows = 0..arguments.rows_to_compute();
    if arguments.values.len() <= index {
        return Ok(rows.map(|row| time::parse_local(texts.get(row)?)).collect());
    }
    let (constant, patterns) = (pattern_of(arguments, index)?, arguments.text(index)?);
    rows.map(|row| match (texts.get(row), &constant, patterns.get(row)) {
        (Some(text), Some(pattern), _) => Ok(pattern.parse(text)),
        (Some(text), None, Some(pattern)) => Ok(Pattern::compile(pattern)?.parse(text)),
        _ => Ok(None),
    })
    .collect()
}

fn to_timestamp(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    arguments.finish(moments_as(parse_texts(arguments, 1)?, arguments.result)?)
}

fn to_date(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let days = parse_texts(arguments, 1)?.into_iter().map(|local| i32::try_from(local?.days()).ok());
    arguments.finish(Arc::new(PrimitiveArray::<Date32Type>::from_iter(days.collect::<Vec<_>>())))
}

/// Seconds (precision 0, the default for one argument is 3: milliseconds) since the epoch.
fn to_timestamp_ltz(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let precision = match arguments.values.len() {
        1 => Some(3),
        _ => arguments.numbers::<Int32Type>(1)?.get(0),
    };
    let factor = match precision {
        Some(0) => 1000,
        Some(3) => 1,
        other => return exec_err!("TO_TIMESTAMP_LTZ takes the precision 0 or 3, not {other:?}"),
    };
    let value = column(arguments, 0)?;
    let millis: ArrayRef = if types::is_float(value.data_type()) {
        let numbers = cast(&value, &DataType::Float64)?;
        Arc::new(numbers.as_primitive::<Float64Type>().unary::<_, Int64Type>(|number| (number * factor as f64) as i64))
    } else if let DataType::Decimal128(..) = value.data_type() {
        let scaled = super::cast::cast(&value, &DataType::Decimal128(38, 3), false)?;
        let shift = 1000 / factor;
        Arc::new(
            scaled
                .as_primitive::<arrow::datatypes::Decimal128Type>()
                .unary::<_, Int64Type>(|digits| (digits / i128::from(shift)) as i64),
        )
    } else {
        let numbers = cast(&value, &DataType::Int64)?;
        Arc::new(numbers.as_primitive::<Int64Type>().unary_opt::<_, Int64Type>(|number| number.checked_mul(factor)))
    };
    arguments.finish(cast(&millis, arguments.result)?)
}

fn text_to_instant(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let name = constant_text(arguments, 2)?;
    let Some(zone) = time::zone(name) else { return exec_err!("{name} is no time zone") };
    let locals = parse_texts(arguments, 1)?;
    let instants = locals.into_iter().map(|local| time::from_local(local?, zone)).collect();
    arguments.finish(moments_as(instants, arguments.result)?)
}

fn convert_tz(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (texts, from, to) = (arguments.text(0)?, arguments.text(1)?, arguments.text(2)?);
    let rows = arguments.rows_to_compute();
    let mut builder = StringBuilder::with_capacity(rows, rows * 19);
    let mut out = String::new();
    for row in 0..rows {
        let converted = (|| {
            let local = time::parse_local(texts.get(row)?)?;
            let instant = time::from_local(local, time::zone(from.get(row)?)?)?;
            time::to_local(instant, time::zone(to.get(row)?)?)
        })();
        match converted {
            Some(local) => {
                out.clear();
                Local { nanos: 0, ..local }.write(0, &mut out);
                builder.append_value(&out);
            }
            None => builder.append_null(),
        }
    }
    arguments.finish(Arc::new(builder.finish()))
}
