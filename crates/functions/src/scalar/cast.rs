//! CAST and TRY_CAST where Flink and Arrow differ, padding and cutting to a length, and the NOT NULL check of sinks.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, PrimitiveArray, StringBuilder, StructArray,
};
use arrow::compute::kernels::cast::cast as arrow_cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time32MillisecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType,
};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;

use super::decimal::{self, parse_decimal, rescale};
use crate::definition::{Arguments, Definition, Nulls, Param, Returns, Signature};
use crate::time::{self, Local};
use crate::types;

const CAST: Signature =
    Signature { params: &[Param::Any, Param::Any], required: 2, variadic: false, returns: Returns::Argument(1) };

pub(super) const FUNCTIONS: &[Definition] = &[
    Definition {
        name: "$cast",
        aliases: &[],
        signature: CAST,
        nulls: Nulls::Maybe,
        volatile: false,
        eval: |arguments| convert(arguments, false),
    },
    Definition {
        name: "$try_cast",
        aliases: &[],
        signature: CAST,
        nulls: Nulls::Maybe,
        volatile: false,
        eval: |arguments| convert(arguments, true),
    },
    Definition {
        name: "$fit",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any, Param::Int, Param::Bool],
            required: 3,
            variadic: false,
            returns: Returns::Argument(0),
        },
        nulls: Nulls::Propagate,
        volatile: false,
        eval: fit,
    },
    Definition {
        name: "$not_null",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any, Param::Text],
            required: 2,
            variadic: false,
            returns: Returns::Argument(0),
        },
        nulls: Nulls::Never,
        volatile: false,
        eval: not_null,
    },
];

fn convert(arguments: &Arguments<'_>, attempt: bool) -> Result<ColumnarValue> {
    let rows = arguments.rows_to_compute();
    let value = match &arguments.values[0] {
        ColumnarValue::Array(array) => Arc::clone(array),
        ColumnarValue::Scalar(value) => value.to_array_of_size(rows)?,
    };
    arguments.finish(cast(&value, arguments.result, attempt)?)
}

/// Casts as Flink does. What does not fit fails, or is null if it is an attempt.
pub(crate) fn cast(value: &ArrayRef, target: &DataType, attempt: bool) -> Result<ArrayRef> {
    let from = value.data_type();
    if from == target {
        return Ok(Arc::clone(value));
    }
    match (from, target) {
        (DataType::Utf8, _) => from_text(value, target, attempt),
        (_, DataType::Utf8) => to_text(value),
        (DataType::Boolean, _) if types::is_numeric(target) => {
            let ones = arrow_cast(value, &DataType::Int8)?;
            cast(&ones, target, attempt)
        }
        (_, DataType::Boolean) if types::is_numeric(from) => Ok(arrow_cast(value, &DataType::Boolean)?),
        (_, DataType::Decimal128(precision, scale)) => to_decimal(value, *precision, *scale),
        (DataType::Decimal128(_, scale), _) => from_decimal(value, *scale, target),
        (_, _) if types::is_numeric(from) && types::is_numeric(target) => number(value, target),
        (_, _) if types::is_temporal(from) && types::is_temporal(target) => temporal(value, target),
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let row = value.as_struct();
            let columns = row
                .columns()
                .iter()
                .zip(fields)
                .map(|(column, field)| cast(column, field.data_type(), attempt))
                .collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(StructArray::try_new(fields.clone(), columns, row.nulls().cloned())?))
        }
        (DataType::List(_), DataType::List(element)) => {
            let list = value.as_list::<i32>();
            let values = cast(list.values(), element.data_type(), attempt)?;
            super::nested::list_of(list, Arc::clone(element), values)
        }
        (DataType::Binary, _) | (_, DataType::Binary) => Ok(arrow_cast(value, target)?),
        _ => exec_err!("{} cannot be cast to {}", types::name(from), types::name(target)),
    }
}

/// Parses each text, or fails with the first that does not parse.
fn parsed<T: ArrowPrimitiveType>(
    value: &ArrayRef,
    target: &DataType,
    attempt: bool,
    parse: impl Fn(&str) -> Option<T::Native>,
) -> Result<ArrayRef> {
    let texts = value.as_string::<i32>();
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        let parsed = text.and_then(&parse);
        if let (Some(text), None, false) = (text, &parsed, attempt) {
            return exec_err!("'{text}' cannot be cast to {}", types::name(target));
        }
        values.push(parsed);
    }
    Ok(Arc::new(PrimitiveArray::<T>::from_iter(values).with_data_type(target.clone())))
}

/// Integers as Flink reads them: spaces around, a sign, digits behind a point dropped.
fn parse_integer(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    let (whole, fraction) = text.split_once('.')?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    match whole {
        "" | "+" | "-" => Some(0),
        whole => whole.parse().ok(),
    }
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim();
    // Java's spellings: NaN, Infinity, and a type's letter behind.
    let text = text.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(text);
    let digits = text.trim_start_matches(['+', '-']);
    let known = digits == "NaN" || digits == "Infinity" || digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if known { text.parse().ok() } else { None }
}

fn parse_boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "1" => Some(true),
        "f" | "false" | "n" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn from_text(value: &ArrayRef, target: &DataType, attempt: bool) -> Result<ArrayRef> {
    let integer = parse_integer;
    match target {
        DataType::Int8 => parsed::<Int8Type>(value, target, attempt, |text| integer(text)?.try_into().ok()),
        DataType::Int16 => parsed::<Int16Type>(value, target, attempt, |text| integer(text)?.try_into().ok()),
        DataType::Int32 => parsed::<Int32Type>(value, target, attempt, |text| integer(text)?.try_into().ok()),
        DataType::Int64 => parsed::<Int64Type>(value, target, attempt, integer),
        DataType::Float32 => parsed::<Float32Type>(value, target, attempt, |text| Some(parse_float(text)? as f32)),
        DataType::Float64 => parsed::<Float64Type>(value, target, attempt, parse_float),
        DataType::Decimal128(precision, scale) => decimal_from_text(value, *precision, *scale, attempt),
        DataType::Boolean => {
            let texts = value.as_string::<i32>();
            let mut values = Vec::with_capacity(texts.len());
            for text in texts {
                let parsed = text.and_then(parse_boolean);
                if let (Some(text), None, false) = (text, parsed, attempt) {
                    return exec_err!("'{text}' cannot be cast to BOOLEAN");
                }
                values.push(parsed);
            }
            Ok(Arc::new(BooleanArray::from(values)))
        }
        DataType::Date32 => parsed::<Date32Type>(value, target, attempt, time::parse_date),
        DataType::Time32(_) => parsed::<Time32MillisecondType>(value, target, attempt, |text| {
            i32::try_from(time::parse_time(text)? / 1_000_000).ok()
        }),
        DataType::Time64(TimeUnit::Microsecond) => {
            parsed::<Time64MicrosecondType>(value, target, attempt, |text| Some(time::parse_time(text)? / 1000))
        }
        DataType::Time64(_) => parsed::<Time64NanosecondType>(value, target, attempt, time::parse_time),
        DataType::Timestamp(unit, None) => {
            let parse = |text: &str| time::parse_local(text)?.to_unit(*unit);
            match unit {
                TimeUnit::Microsecond => parsed::<TimestampMicrosecondType>(value, target, attempt, parse),
                TimeUnit::Nanosecond => parsed::<TimestampNanosecondType>(value, target, attempt, parse),
                _ => parsed::<TimestampMillisecondType>(value, target, attempt, parse),
            }
        }
        DataType::Binary => Ok(arrow_cast(value, target)?),
        _ => exec_err!("STRING cannot be cast to {}", types::name(target)),
    }
}

fn decimal_from_text(value: &ArrayRef, precision: u8, scale: i8, attempt: bool) -> Result<ArrayRef> {
    let texts = value.as_string::<i32>();
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        let parsed = text.and_then(|text| parse_decimal(text.trim(), scale));
        if let (Some(text), None, false) = (text, parsed, attempt) {
            return exec_err!("'{text}' cannot be cast to DECIMAL({precision}, {scale})");
        }
        values.push(parsed.filter(|digits| decimal::fits(*digits, precision)));
    }
    let array = PrimitiveArray::<Decimal128Type>::from_iter(values);
    Ok(Arc::new(array.with_precision_and_scale(precision, scale)?))
}

/// Writes each value that is not null.
fn written(value: &ArrayRef, mut write: impl FnMut(usize, &mut String)) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(value.len(), value.len() * 12);
    let mut text = String::new();
    for row in 0..value.len() {
        if value.is_null(row) {
            builder.append_null();
        } else {
            text.clear();
            write(row, &mut text);
            builder.append_value(&text);
        }
    }
    Arc::new(builder.finish())
}

fn to_text(value: &ArrayRef) -> Result<ArrayRef> {
    let digits = usize::from(types::precision(value.data_type()));
    Ok(match value.data_type() {
        DataType::Boolean => {
            let flags = value.as_boolean();
            written(value, |row, out| out.push_str(if flags.value(row) { "TRUE" } else { "FALSE" }))
        }
        DataType::Float32 => {
            let values = value.as_primitive::<Float32Type>();
            written(value, |row, out| java_float(&format!("{:e}", values.value(row)), out))
        }
        DataType::Float64 => {
            let values = value.as_primitive::<Float64Type>();
            written(value, |row, out| java_float(&format!("{:e}", values.value(row)), out))
        }
        DataType::Decimal128(_, scale) => {
            let (values, scale) = (value.as_primitive::<Decimal128Type>(), *scale);
            written(value, |row, out| decimal::write(values.value(row), scale, out))
        }
        DataType::Date32 => {
            let days = value.as_primitive::<Date32Type>();
            written(value, |row, out| time::write_date(i64::from(days.value(row)), out))
        }
        DataType::Timestamp(unit, None) => {
            let (unit, values) = (*unit, arrow_cast(value, &DataType::Int64)?);
            let values = values.as_primitive::<Int64Type>();
            written(value, |row, out| Local::from_unit(values.value(row), unit).write(digits, out))
        }
        DataType::Time32(unit) | DataType::Time64(unit) => {
            let unit = *unit;
            let storage = if unit == TimeUnit::Millisecond { DataType::Int32 } else { DataType::Int64 };
            let values = arrow_cast(&arrow_cast(value, &storage)?, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>();
            // TIME(0), the default, shares its unit with TIME(3): a fraction is shown where there is one.
            let digits = if unit == TimeUnit::Millisecond { 0 } else { digits };
            written(value, |row, out| time::show_time(values.value(row), unit, digits, out))
        }
        DataType::Binary => {
            let bytes: &BinaryArray = value.as_binary();
            written(value, |row, out| out.push_str(&String::from_utf8_lossy(bytes.value(row))))
        }
        from if from.is_signed_integer() => arrow_cast(value, &DataType::Utf8)?,
        from => return exec_err!("{} cannot be cast to STRING", types::name(from)),
    })
}

/// Java's text of a number, from Rust's shortest scientific one.
fn java_float(scientific: &str, out: &mut String) {
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        out.push_str(match scientific {
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            other => other,
        });
        return;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(|digit| *digit != '.').collect();
    out.push_str(sign);
    if digits == "0" {
        out.push_str("0.0");
    } else if (-3..7).contains(&exponent) {
        if exponent < 0 {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
            out.push_str(&digits);
        } else {
            let whole = exponent as usize + 1;
            let padded = format!("{digits:0<whole$}");
            let (whole, fraction) = padded.split_at(whole);
            out.push_str(whole);
            out.push('.');
            out.push_str(if fraction.is_empty() { "0" } else { fraction });
        }
    } else {
        let (first, rest) = digits.split_at(1);
        let rest = if rest.is_empty() { "0" } else { rest };
        out.push_str(&format!("{first}.{rest}E{exponent}"));
    }
}

fn unary<F: ArrowPrimitiveType, T: ArrowPrimitiveType>(
    value: &ArrayRef,
    f: impl Fn(F::Native) -> T::Native,
) -> ArrayRef {
    Arc::new(value.as_primitive::<F>().unary::<_, T>(f))
}

macro_rules! narrow {
    ($value:expr, $target:expr, $($from:ident $from_type:pat => [$($to:ident $to_type:pat => $native:ty),*]);* $(;)?) => {
        match ($value.data_type(), $target) {
            $($(($from_type, $to_type) => Ok(unary::<$from, $to>($value, |number| number as $native)),)*)*
            (from, target) => exec_err!("{} cannot be cast to {}", types::name(from), types::name(target)),
        }
    };
}

/// Numbers other than decimals. Integers wrap and floats saturate, as in Java.
fn number(value: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    let from = value.data_type();
    if from.is_signed_integer() && (types::is_float(target) || from.primitive_width() < target.primitive_width()) {
        return Ok(arrow_cast(value, target)?);
    }
    narrow!(value, target,
        Int64Type DataType::Int64 => [
            Int32Type DataType::Int32 => i32, Int16Type DataType::Int16 => i16, Int8Type DataType::Int8 => i8];
        Int32Type DataType::Int32 => [Int16Type DataType::Int16 => i16, Int8Type DataType::Int8 => i8];
        Int16Type DataType::Int16 => [Int8Type DataType::Int8 => i8];
        Float64Type DataType::Float64 => [
            Int64Type DataType::Int64 => i64, Int32Type DataType::Int32 => i32, Float32Type DataType::Float32 => f32];
        Float32Type DataType::Float32 => [
            Int64Type DataType::Int64 => i64, Int32Type DataType::Int32 => i32, Float64Type DataType::Float64 => f64];
    )
    .or_else(|error| match target {
        // Java narrows a float to a small integer by way of an INT.
        DataType::Int8 | DataType::Int16 if types::is_float(from) => number(&number(value, &DataType::Int32)?, target),
        _ => Err(error),
    })
}

fn to_decimal(value: &ArrayRef, precision: u8, scale: i8) -> Result<ArrayRef> {
    let array: PrimitiveArray<Decimal128Type> = match value.data_type() {
        DataType::Decimal128(_, from) => {
            let from = *from;
            let fitting =
                |digits: i128| rescale(digits, from, scale).filter(|digits| decimal::fits(*digits, precision));
            value.as_primitive::<Decimal128Type>().unary_opt(fitting)
        }
        from if types::is_float(from) => {
            let values = arrow_cast(value, &DataType::Float64)?;
            // The shortest decimal text of the number is what Java's BigDecimal takes it for.
            let fitting = |number: f64| {
                parse_decimal(&format!("{number:e}"), scale).filter(|digits| decimal::fits(*digits, precision))
            };
            values.as_primitive::<Float64Type>().unary_opt(fitting)
        }
        _ => {
            let values = arrow_cast(value, &DataType::Int64)?;
            let fitting =
                |number: i64| rescale(i128::from(number), 0, scale).filter(|digits| decimal::fits(*digits, precision));
            values.as_primitive::<Int64Type>().unary_opt(fitting)
        }
    };
    Ok(Arc::new(array.with_precision_and_scale(precision, scale)?))
}

fn from_decimal(value: &ArrayRef, scale: i8, target: &DataType) -> Result<ArrayRef> {
    let digits = value.as_primitive::<Decimal128Type>();
    let factor = 10_i128.pow(u32::try_from(scale).unwrap_or(0));
    Ok(match target {
        DataType::Float64 => Arc::new(digits.unary::<_, Float64Type>(|digits| decimal::to_f64(digits, scale))),
        DataType::Float32 => Arc::new(digits.unary::<_, Float32Type>(|digits| decimal::to_f64(digits, scale) as f32)),
        DataType::Int64 => Arc::new(digits.unary::<_, Int64Type>(|digits| (digits / factor) as i64)),
        _ => {
            let whole: ArrayRef = Arc::new(digits.unary::<_, Int64Type>(|digits| (digits / factor) as i64));
            number(&whole, target)?
        }
    })
}

/// Dates and times without a zone; finer digits are dropped.
fn temporal(value: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    let (from, storage) = (value.data_type(), arrow_storage(value)?);
    let counts = storage.as_primitive::<Int64Type>();
    let regroup = |f: &dyn Fn(i64) -> i64, target: &DataType| -> Result<ArrayRef> {
        let moved: ArrayRef = Arc::new(counts.unary::<_, Int64Type>(f));
        let narrow = matches!(target, DataType::Date32 | DataType::Time32(_));
        let moved = if narrow { arrow_cast(&moved, &DataType::Int32)? } else { moved };
        Ok(arrow_cast(&moved, target)?)
    };
    match (from, target) {
        (DataType::Timestamp(from, from_zone), DataType::Timestamp(to, to_zone))
            if from_zone.is_some() == to_zone.is_some() =>
        {
            let (from, to) = (time::per_second(*from), time::per_second(*to));
            if to >= from {
                return Ok(arrow_cast(value, target)?);
            }
            regroup(&|count| count.div_euclid(from / to), target)
        }
        (DataType::Timestamp(from, None), DataType::Date32) => {
            let per_day = time::per_second(*from) * time::DAY;
            regroup(&|count| count.div_euclid(per_day), target)
        }
        (DataType::Timestamp(from, None), DataType::Time32(to) | DataType::Time64(to)) => {
            let (from, to) = (time::per_second(*from), time::per_second(*to));
            let of_day = move |count: i64| count.rem_euclid(from * time::DAY);
            regroup(&|count| if to >= from { of_day(count) * (to / from) } else { of_day(count) / (from / to) }, target)
        }
        (DataType::Time32(from) | DataType::Time64(from), DataType::Time32(to) | DataType::Time64(to)) => {
            let (from, to) = (time::per_second(*from), time::per_second(*to));
            regroup(&|count| if to >= from { count * (to / from) } else { count / (from / to) }, target)
        }
        (DataType::Date32, DataType::Timestamp(_, None)) => Ok(arrow_cast(value, target)?),
        _ => exec_err!("{} cannot be cast to {}", types::name(from), types::name(target)),
    }
}

fn arrow_storage(value: &ArrayRef) -> Result<ArrayRef> {
    let narrow = matches!(value.data_type(), DataType::Date32 | DataType::Time32(_));
    let counts = if narrow { arrow_cast(value, &DataType::Int32)? } else { Arc::clone(value) };
    Ok(arrow_cast(&counts, &DataType::Int64)?)
}

/// Cuts to a length in characters or bytes, and pads with spaces or zeros if asked to.
fn fit(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let value = arguments.array(0)?;
    let length = arguments.numbers::<Int32Type>(1)?.get(0).unwrap_or(i32::MAX) as usize;
    let padded = arguments.array(2)?.as_boolean().value(0);
    if let Some(texts) = value.as_string_opt::<i32>() {
        let fitted = written(&value, |row, out| {
            let text = texts.value(row);
            let end = text.char_indices().nth(length).map_or(text.len(), |(at, _)| at);
            out.push_str(&text[..end]);
            if padded {
                let missing = length.saturating_sub(text.chars().count());
                out.extend(std::iter::repeat_n(' ', missing));
            }
        });
        return Ok(ColumnarValue::Array(fitted));
    }
    let bytes = value.as_binary::<i32>();
    let fit = |bytes: &[u8]| {
        let mut fitted = bytes[..bytes.len().min(length)].to_vec();
        if padded {
            fitted.resize(length, 0);
        }
        fitted
    };
    let fitted: BinaryArray = bytes.iter().map(|bytes| bytes.map(fit)).collect();
    Ok(ColumnarValue::Array(Arc::new(fitted)))
}

fn not_null(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let value = arguments.array(0)?;
    if value.logical_null_count() > 0 {
        let column = arguments.text(1)?.get(0).unwrap_or_default();
        return exec_err!("column {column} is NOT NULL, but a NULL is written to it");
    }
    Ok(arguments.values[0].clone())
}
