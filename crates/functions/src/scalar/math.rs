//! Mathematical functions.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use arrow::compute::kernels::cmp;
use arrow::compute::kernels::zip::zip;
use arrow::compute::{is_null, or};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;

use super::decimal::{fits, rescale};
use crate::definition::{Arguments, Definition, Eval, Nulls, Param, Returns, Signature};
use crate::types;

const fn function(
    name: &'static str,
    aliases: &'static [&'static str],
    signature: Signature,
    eval: Eval,
) -> Definition {
    Definition { name, aliases, signature, nulls: Nulls::Propagate, volatile: false, eval }
}

const fn takes(params: &'static [Param], required: usize, returns: Returns) -> Signature {
    Signature { params, required, variadic: false, returns }
}

const DOUBLE: Returns = Returns::Always(DataType::Float64);

macro_rules! double {
    ($name:literal, $f:expr) => {
        function($name, &[], takes(&[Param::Double], 1, DOUBLE), |arguments| {
            let f: fn(f64) -> f64 = $f;
            let value = arguments.array(0)?;
            Ok(ColumnarValue::Array(Arc::new(value.as_primitive::<Float64Type>().unary::<_, Float64Type>(f))))
        })
    };
}

pub(super) const FUNCTIONS: &[Definition] = &[
    function("abs", &[], takes(&[Param::Number], 1, Returns::Argument(0)), abs),
    function("sign", &[], takes(&[Param::Number], 1, Returns::Argument(0)), sign),
    function("ceil", &["ceiling"], takes(&[Param::Number], 1, Returns::Computed(whole_type)), |a| round_whole(a, true)),
    function("floor", &[], takes(&[Param::Number], 1, Returns::Computed(whole_type)), |a| round_whole(a, false)),
    function("round", &[], takes(&[Param::Number, Param::Int], 1, Returns::Computed(round_type)), |a| round(a, false)),
    function("truncate", &[], takes(&[Param::Number, Param::Int], 1, Returns::Argument(0)), |a| round(a, true)),
    function("power", &["pow"], takes(&[Param::Double, Param::Double], 2, DOUBLE), |a| binary(a, f64::powf)),
    function("atan2", &[], takes(&[Param::Double, Param::Double], 2, DOUBLE), |a| binary(a, f64::atan2)),
    function("log", &[], takes(&[Param::Double, Param::Double], 1, DOUBLE), log),
    double!("sqrt", f64::sqrt),
    double!("exp", f64::exp),
    double!("ln", f64::ln),
    double!("log2", f64::log2),
    double!("log10", f64::log10),
    double!("sin", f64::sin),
    double!("cos", f64::cos),
    double!("tan", f64::tan),
    double!("asin", f64::asin),
    double!("acos", f64::acos),
    double!("atan", f64::atan),
    double!("sinh", f64::sinh),
    double!("cosh", f64::cosh),
    double!("tanh", f64::tanh),
    double!("degrees", f64::to_degrees),
    double!("radians", f64::to_radians),
    function("pi", &[], takes(&[], 0, DOUBLE), constant_pi),
    function("e", &[], takes(&[], 0, DOUBLE), constant_e),
    function("greatest", &[], GREATEST, |arguments| extreme(arguments, true)),
    function("least", &[], GREATEST, |arguments| extreme(arguments, false)),
];

const GREATEST: Signature =
    Signature { params: &[Param::Any], required: 1, variadic: true, returns: Returns::Argument(0) };

fn scalar(value: f64) -> Result<ColumnarValue> {
    Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::Float64(Some(value))))
}

fn constant_pi(_: &Arguments<'_>) -> Result<ColumnarValue> {
    scalar(std::f64::consts::PI)
}

fn constant_e(_: &Arguments<'_>) -> Result<ColumnarValue> {
    scalar(std::f64::consts::E)
}

fn binary(arguments: &Arguments<'_>, f: fn(f64, f64) -> f64) -> Result<ColumnarValue> {
    let (left, right) = (arguments.numbers::<Float64Type>(0)?, arguments.numbers::<Float64Type>(1)?);
    let values = (0..arguments.rows_to_compute()).map(|row| Some(f(left.get(row)?, right.get(row)?)));
    arguments.finish(Arc::new(PrimitiveArray::<Float64Type>::from_iter(values.collect::<Vec<_>>())))
}

/// `LOG(x)` is natural, `LOG(base, x)`.
fn log(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    if arguments.values.len() == 1 {
        let value = arguments.array(0)?;
        return Ok(ColumnarValue::Array(Arc::new(
            value.as_primitive::<Float64Type>().unary::<_, Float64Type>(f64::ln),
        )));
    }
    binary(arguments, |base, value| value.ln() / base.ln())
}

macro_rules! by_number {
    ($array:expr, $integer:expr, $float:expr, $decimal:expr) => {{
        let array: &ArrayRef = $array;
        let result: ArrayRef = match array.data_type() {
            DataType::Int8 => Arc::new(array.as_primitive::<Int8Type>().unary::<_, Int8Type>($integer)),
            DataType::Int16 => Arc::new(array.as_primitive::<Int16Type>().unary::<_, Int16Type>($integer)),
            DataType::Int32 => Arc::new(array.as_primitive::<Int32Type>().unary::<_, Int32Type>($integer)),
            DataType::Int64 => Arc::new(array.as_primitive::<Int64Type>().unary::<_, Int64Type>($integer)),
            DataType::Float32 => Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>($float)),
            DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>($float)),
            DataType::Decimal128(precision, scale) => {
                let decimal = array.as_primitive::<Decimal128Type>().unary::<_, Decimal128Type>($decimal);
                Arc::new(decimal.with_precision_and_scale(*precision, *scale)?)
            }
            other => return exec_err!("a number is expected, not {}", types::name(other)),
        };
        Ok(ColumnarValue::Array(result))
    }};
}

fn abs(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    by_number!(&arguments.array(0)?, |number| number.wrapping_abs(), |number| number.abs(), |digits| digits.abs())
}

fn sign(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let value = arguments.array(0)?;
    let one = match value.data_type() {
        DataType::Decimal128(_, scale) => 10_i128.pow(u32::try_from(*scale).unwrap_or(0)),
        _ => 1,
    };
    by_number!(
        &value,
        |number| number.signum(),
        |number| if number == 0.0 { number } else { number.signum() },
        |digits| digits.signum() * one
    )
}

/// CEIL and FLOOR of a DECIMAL(p, s) have no fraction.
fn whole_type(types: &[DataType]) -> Option<DataType> {
    Some(match types.first()? {
        DataType::Decimal128(precision, scale) if *scale > 0 => {
            let digits = i16::from(*precision) - i16::from(*scale) + 1;
            DataType::Decimal128(digits.clamp(1, 38) as u8, 0)
        }
        other => other.clone(),
    })
}

fn round_whole(arguments: &Arguments<'_>, up: bool) -> Result<ColumnarValue> {
    let value = arguments.array(0)?;
    if let (DataType::Decimal128(_, scale), DataType::Decimal128(precision, 0)) = (value.data_type(), arguments.result)
    {
        let factor = 10_i128.pow(u32::try_from(*scale).unwrap_or(0));
        let whole = |digits: i128| {
            let floor = digits.div_euclid(factor);
            if up && digits.rem_euclid(factor) != 0 { floor + 1 } else { floor }
        };
        let array = value.as_primitive::<Decimal128Type>().unary::<_, Decimal128Type>(whole);
        return Ok(ColumnarValue::Array(Arc::new(array.with_precision_and_scale(*precision, 0)?)));
    }
    by_number!(&value, |number| number, |number| if up { number.ceil() } else { number.floor() }, |digits| digits)
}

/// ROUND of a DECIMAL keeps its scale here: the digits to keep need not be a constant.
fn round_type(types: &[DataType]) -> Option<DataType> {
    Some(match (types.first()?, types.len()) {
        (DataType::Decimal128(precision, scale), 1) if *scale > 0 => {
            let digits = i16::from(*precision) - i16::from(*scale) + 1;
            DataType::Decimal128(digits.clamp(1, 38) as u8, 0)
        }
        (other, _) => other.clone(),
    })
}

fn round(arguments: &Arguments<'_>, truncate: bool) -> Result<ColumnarValue> {
    let value = arguments.array(0)?;
    let places = match arguments.values.len() {
        1 => crate::definition::Numbers::Constant(Some(0)),
        _ => arguments.numbers::<Int32Type>(1)?,
    };
    match value.data_type() {
        DataType::Decimal128(_, scale) => round_decimal(arguments, &value, *scale, truncate, &|row| places.get(row)),
        DataType::Float64 => Ok(rounded::<Float64Type>(&value, &|row| places.get(row), |number, places| {
            round_double(number, places, truncate)
        })),
        DataType::Float32 => Ok(rounded::<Float32Type>(&value, &|row| places.get(row), |number, places| {
            round_double(f64::from(number), places, truncate) as f32
        })),
        DataType::Int64 => Ok(rounded::<Int64Type>(&value, &|row| places.get(row), |number, places| {
            round_integer(number, places, truncate)
        })),
        DataType::Int32 => Ok(rounded::<Int32Type>(&value, &|row| places.get(row), |number, places| {
            round_integer(i64::from(number), places, truncate) as i32
        })),
        DataType::Int16 => Ok(rounded::<Int16Type>(&value, &|row| places.get(row), |number, places| {
            round_integer(i64::from(number), places, truncate) as i16
        })),
        DataType::Int8 => Ok(rounded::<Int8Type>(&value, &|row| places.get(row), |number, places| {
            round_integer(i64::from(number), places, truncate) as i8
        })),
        other => exec_err!("a number is expected, not {}", types::name(other)),
    }
}

fn rounded<T: ArrowPrimitiveType>(
    value: &ArrayRef,
    places: &dyn Fn(usize) -> Option<i32>,
    f: impl Fn(T::Native, i32) -> T::Native,
) -> ColumnarValue {
    let numbers = value.as_primitive::<T>();
    let values: Vec<Option<T::Native>> = (0..numbers.len())
        .map(|row| {
            numbers.is_valid(row).then(|| numbers.value(row)).zip(places(row)).map(|(number, places)| f(number, places))
        })
        .collect();
    ColumnarValue::Array(Arc::new(PrimitiveArray::<T>::from_iter(values)))
}

/// By the number's decimal text, half away from zero, as Java's BigDecimal does.
fn round_double(number: f64, places: i32, truncate: bool) -> f64 {
    if !number.is_finite() || places > 22 {
        return number;
    }
    let factor = 10_f64.powi(places);
    if truncate {
        return (number * factor).trunc() / factor + 0.0;
    }
    let scaled = number * factor;
    // What is half way in decimal digits may lie a little below in binary ones.
    let rounded =
        if (scaled.abs().fract() - 0.5).abs() < 1e-9 { scaled.trunc() + scaled.signum() } else { scaled.round() };
    // There is no negative zero in decimals.
    rounded / factor + 0.0
}

fn round_integer(number: i64, places: i32, truncate: bool) -> i64 {
    if places >= 0 {
        return number;
    }
    let Some(factor) = 10_i64.checked_pow(places.unsigned_abs()) else { return 0 };
    let rest = number % factor;
    let floor = number - rest;
    if !truncate && rest.unsigned_abs() >= factor.unsigned_abs().div_ceil(2) {
        floor.wrapping_add(factor * number.signum())
    } else {
        floor
    }
}

fn round_decimal(
    arguments: &Arguments<'_>,
    value: &ArrayRef,
    scale: i8,
    truncate: bool,
    places: &dyn Fn(usize) -> Option<i32>,
) -> Result<ColumnarValue> {
    let DataType::Decimal128(precision, result_scale) = *arguments.result else {
        return exec_err!("a DECIMAL is expected");
    };
    let numbers = value.as_primitive::<Decimal128Type>();
    let round = |digits: i128, places: i32| {
        let places = i8::try_from(places.clamp(-38, i32::from(scale))).ok()?;
        let kept = if truncate {
            let factor = 10_i128.checked_pow(u32::try_from(scale - places).ok()?)?;
            digits / factor
        } else {
            rescale(digits, scale, places)?
        };
        rescale(kept, places, result_scale).filter(|digits| fits(*digits, precision))
    };
    let values: Vec<Option<i128>> = (0..numbers.len())
        .map(|row| numbers.is_valid(row).then(|| numbers.value(row)).zip(places(row)).and_then(|(d, p)| round(d, p)))
        .collect();
    let array =
        PrimitiveArray::<Decimal128Type>::from_iter(values).with_precision_and_scale(precision, result_scale)?;
    Ok(ColumnarValue::Array(Arc::new(array)))
}

/// NULL if any argument is, unlike DataFusion's functions of the same names.
fn extreme(arguments: &Arguments<'_>, greatest: bool) -> Result<ColumnarValue> {
    let mut best = arguments.array(0)?;
    for index in 1..arguments.values.len() {
        let other = arguments.array(index)?;
        let better = if greatest { cmp::gt(&other, &best)? } else { cmp::lt(&other, &best)? };
        let take_other: BooleanArray = or(&zeroed(&better), &is_null(&other)?)?;
        let stays_null = is_null(&best)?;
        let take_other = arrow::compute::and_not(&take_other, &stays_null)?;
        best = zip(&take_other, &other, &best)?;
    }
    Ok(ColumnarValue::Array(best))
}

/// NULL as false.
fn zeroed(flags: &BooleanArray) -> BooleanArray {
    match flags.nulls() {
        Some(nulls) => BooleanArray::new(flags.values() & nulls.inner(), None),
        None => flags.clone(),
    }
}
