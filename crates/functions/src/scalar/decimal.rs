//! Decimal arithmetic where Arrow's differs from Flink's: quotients, remainders, and results that must give up digits.
//! Digits are rounded half up; a result with more digits than its type holds is NULL.

use std::sync::Arc;

use arrow::array::{ArrayRef, PrimitiveArray};
use arrow::datatypes::{DataType, Decimal128Type, i256};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;

use crate::definition::{Arguments, Definition, Nulls, Param, Returns, Signature};
use crate::types::{Arithmetic, decimal_result};

macro_rules! decimal_function {
    ($name:literal, $operator:expr) => {
        Definition {
            name: $name,
            aliases: &[],
            signature: Signature {
                params: &[Param::Number, Param::Number],
                required: 2,
                variadic: false,
                returns: Returns::Computed(|types| decimal_result($operator, types.first()?, types.get(1)?)),
            },
            nulls: Nulls::Maybe,
            volatile: false,
            eval: |arguments| arithmetic(arguments, $operator),
        }
    };
}

pub(super) const FUNCTIONS: &[Definition] = &[
    decimal_function!("$decimal_add", Arithmetic::Add),
    decimal_function!("$decimal_subtract", Arithmetic::Subtract),
    decimal_function!("$decimal_multiply", Arithmetic::Multiply),
    decimal_function!("$decimal_divide", Arithmetic::Divide),
    decimal_function!("$decimal_modulo", Arithmetic::Modulo),
];

/// Whether digits fit a precision.
pub(crate) fn fits(digits: i128, precision: u8) -> bool {
    digits.unsigned_abs() < 10_u128.pow(u32::from(precision))
}

/// Digits at another scale, rounded half up; none if they do not fit 128 bits.
pub(crate) fn rescale(digits: i128, from: i8, to: i8) -> Option<i128> {
    let difference = i32::from(to) - i32::from(from);
    let factor = 10_i128.checked_pow(difference.unsigned_abs());
    if difference >= 0 {
        return digits.checked_mul(factor?);
    }
    // Beyond all digits: rounds to nothing.
    let Some(factor) = factor else { return Some(0) };
    let (quotient, remainder) = (digits / factor, digits % factor);
    let up = remainder.unsigned_abs() >= factor.unsigned_abs().div_ceil(2);
    Some(if up { quotient + digits.signum() } else { quotient })
}

/// The digits of a text such as `-12.345` or `1e3` at a scale, rounded half up.
pub(crate) fn parse_decimal(text: &str, scale: i8) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let mut digits: i128 = 0;
    let mut seen_scale = -exponent;
    for (index, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let behind = index >= whole.len();
        match digits.checked_mul(10).and_then(|digits| digits.checked_add(i128::from(digit - b'0'))) {
            Some(more) => {
                digits = more;
                seen_scale += i32::from(behind);
            }
            // Digits behind the point that 128 bits do not hold cannot matter.
            None if behind => break,
            None => return None,
        }
    }
    let seen = i8::try_from(seen_scale.clamp(-100, 100)).ok()?;
    let digits = rescale(digits, seen, scale)?;
    Some(if negative { -digits } else { digits })
}

/// Appends the number in plain digits.
pub(crate) fn write(digits: i128, scale: i8, out: &mut String) {
    let scale = usize::try_from(scale).unwrap_or(0);
    if digits < 0 {
        out.push('-');
    }
    let text = digits.unsigned_abs().to_string();
    if scale == 0 {
        out.push_str(&text);
        return;
    }
    let padded = format!("{text:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    out.push_str(whole);
    out.push('.');
    out.push_str(fraction);
}

/// The nearest DOUBLE.
pub(crate) fn to_f64(digits: i128, scale: i8) -> f64 {
    // Both exact below 2^53 and 10^22: one rounding. Beyond, the text is the way that rounds once.
    if digits.unsigned_abs() < 1 << 53 && (0..=22).contains(&scale) {
        return digits as f64 / 10_f64.powi(i32::from(scale));
    }
    let mut text = String::new();
    write(digits, scale, &mut text);
    text.parse().unwrap_or(f64::NAN)
}

fn power(exponent: i32) -> Option<i256> {
    i256::from_i128(10).checked_pow(u32::try_from(exponent).ok()?)
}

/// Quotient rounded half up.
fn divide(left: i256, right: i256) -> Option<i256> {
    let quotient = left.checked_div(right)?;
    let remainder = left.checked_rem(right)?;
    let twice = remainder.checked_abs()?.checked_mul(i256::from_i128(2))?;
    if twice < right.checked_abs()? {
        return Some(quotient);
    }
    let negative = left.is_negative() != right.is_negative();
    let step = i256::from_i128(if negative { -1 } else { 1 });
    quotient.checked_add(step)
}

fn arithmetic(arguments: &Arguments<'_>, operator: Arithmetic) -> Result<ColumnarValue> {
    let scale_of = |index: usize| match arguments.values.get(index).map(ColumnarValue::data_type) {
        Some(DataType::Decimal128(_, scale)) => Ok(i32::from(scale)),
        other => exec_err!("decimal arithmetic on {other:?}"),
    };
    let (left_scale, right_scale) = (scale_of(0)?, scale_of(1)?);
    let DataType::Decimal128(precision, result_scale) = *arguments.result else {
        return exec_err!("decimal arithmetic gives {}", arguments.result);
    };
    let (left, right) = (arguments.numbers::<Decimal128Type>(0)?, arguments.numbers::<Decimal128Type>(1)?);
    let scale = i32::from(result_scale);
    let aligned = left_scale.max(right_scale);
    let compute = |left: i128, right: i128| -> Option<i128> {
        let (left, right) = (i256::from_i128(left), i256::from_i128(right));
        let align = |value: i256, from: i32| value.checked_mul(power(aligned - from)?);
        let (exact, exact_scale) = match operator {
            Arithmetic::Add => (align(left, left_scale)?.checked_add(align(right, right_scale)?)?, aligned),
            Arithmetic::Subtract => (align(left, left_scale)?.checked_sub(align(right, right_scale)?)?, aligned),
            Arithmetic::Multiply => (left.checked_mul(right)?, left_scale + right_scale),
            Arithmetic::Divide => {
                let up = scale + right_scale - left_scale;
                let (left, right) = match up {
                    0.. => (left.checked_mul(power(up)?)?, right),
                    _ => (left, right.checked_mul(power(-up)?)?),
                };
                (divide(left, right)?, scale)
            }
            Arithmetic::Modulo => (align(left, left_scale)?.checked_rem(align(right, right_scale)?)?, aligned),
        };
        let digits = match scale - exact_scale {
            up @ 0.. => exact.checked_mul(power(up)?)?,
            down => divide(exact, power(-down)?)?,
        };
        digits.to_i128().filter(|digits| fits(*digits, precision))
    };
    let rows = arguments.rows_to_compute();
    let mut values = Vec::with_capacity(rows);
    for row in 0..rows {
        values.push(match (left.get(row), right.get(row)) {
            (Some(_), Some(0)) if matches!(operator, Arithmetic::Divide | Arithmetic::Modulo) => {
                return exec_err!("division by zero");
            }
            (Some(left), Some(right)) => compute(left, right),
            _ => None,
        });
    }
    let array =
        PrimitiveArray::<Decimal128Type>::from_iter(values).with_precision_and_scale(precision, result_scale)?;
    arguments.finish(Arc::new(array) as ArrayRef)
}
