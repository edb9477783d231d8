//! Literals: numbers, texts, dates and times, intervals.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use sqlparser::ast::{self, DateTimeField};
use sqlparser::tokenizer::Location;
use weir_functions::types;
use weir_types::Result;

use super::{Context, Value};
use crate::error::{invalid, unsupported};

impl Context<'_> {
    pub(super) fn value(self, value: &ast::Value) -> Result<Value> {
        let scalar = match value {
            ast::Value::Number(text, false) => number(text).ok_or_else(|| {
                invalid(self.at, format!("{text} has more digits than any number type holds"))
                    .with_hint("DECIMAL has 38 digits at most.")
            })?,
            ast::Value::Number(text, true) => {
                return Err(invalid(self.at, format!("{text}L is not a number")).with_hint("Leave the L out."));
            }
            ast::Value::SingleQuotedString(text) => ScalarValue::Utf8(Some(text.clone())),
            ast::Value::Boolean(value) => ScalarValue::Boolean(Some(*value)),
            ast::Value::Null => ScalarValue::Null,
            ast::Value::HexStringLiteral(digits) => match from_hex(digits) {
                Some(bytes) => ScalarValue::Binary(Some(bytes)),
                None => return Err(invalid(self.at, "a hexadecimal literal has an even number of hex digits")),
            },
            ast::Value::DoubleQuotedString(text) => {
                return Err(invalid(self.at, format!("\"{text}\" is quoted with double quotes"))
                    .with_hint("Quote texts with '…' and identifiers with `…`."));
            }
            other => return Err(unsupported(self.at, format!("the literal {other}"), "Write a text as '…'.")),
        };
        Ok(Value::literal(scalar))
    }

    /// `TIMESTAMP '…'`, `DATE '…'`, `TIME '…'`
    pub(super) fn typed_string(self, typed: &ast::TypedString) -> Result<Value> {
        let ast::TypedString { data_type, value, uses_odbc_syntax: _ } = typed;
        let ast::Value::SingleQuotedString(text) = &value.value else {
            return Err(invalid(self.at, "expected a text in single quotes"));
        };
        let target = crate::ddl::cast_type(data_type, self.at)?.data_type;
        let target = match target {
            DataType::Timestamp(_, zone) => {
                let digits = text.rsplit_once('.').map_or(0, |(_, fraction)| fraction.len());
                DataType::Timestamp(types::time_unit(digits.min(9) as u8), zone)
            }
            DataType::Date32 | DataType::Time32(_) | DataType::Time64(_) => target,
            other => {
                return Err(unsupported(self.at, format!("a literal of type {}", types::name(&other)), "Use CAST."));
            }
        };
        let value = Value::literal(ScalarValue::Utf8(Some(text.clone())));
        self.constant_cast(value, &target)
            .ok_or_else(|| invalid(self.at, format!("'{text}' is not a {}", types::name(&target))))
    }

    pub(super) fn interval(self, interval: &ast::Interval) -> Result<Value> {
        Ok(Value::literal(match interval_of(interval, self.at)? {
            IntervalValue::Months(months) => ScalarValue::IntervalYearMonth(Some(months)),
            IntervalValue::Millis(millis) => ScalarValue::DurationMillisecond(Some(millis)),
        }))
    }
}

/// INT, BIGINT, DECIMAL or DOUBLE, as Flink types a number.
fn number(text: &str) -> Option<ScalarValue> {
    if text.contains(['e', 'E']) {
        return text.parse().ok().map(|value| ScalarValue::Float64(Some(value)));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !text.contains('.') {
        if let Ok(value) = text.parse::<i32>() {
            return Some(ScalarValue::Int32(Some(value)));
        }
        if let Ok(value) = text.parse::<i64>() {
            return Some(ScalarValue::Int64(Some(value)));
        }
    }
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0').len();
    let precision = significant.max(fraction.len()).max(1);
    if precision > usize::from(types::DECIMAL_PRECISION_MAX) {
        return None;
    }
    Some(ScalarValue::Decimal128(Some(digits.parse().ok()?), precision as u8, fraction.len() as i8))
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

enum IntervalValue {
    Months(i32),
    Millis(i64),
}

/// The milliseconds of an interval literal of days or less.
pub(crate) fn interval_ms(expr: &ast::Expr, at: Location) -> Result<i64> {
    let ast::Expr::Interval(interval) = expr else {
        return Err(invalid(at, format!("expected an INTERVAL, found {expr}")).with_hint("Write INTERVAL '10' SECOND."));
    };
    match interval_of(interval, at)? {
        IntervalValue::Millis(millis) => Ok(millis),
        IntervalValue::Months(_) => {
            Err(invalid(at, "an interval of months or years has no fixed length").with_hint("Write it in days."))
        }
    }
}

fn interval_of(interval: &ast::Interval, at: Location) -> Result<IntervalValue> {
    let ast::Interval { value, leading_field, leading_precision: _, last_field, fractional_seconds_precision: _ } =
        interval;
    let malformed =
        || invalid(at, format!("{interval} is not an interval")).with_hint("Write it like INTERVAL '10' SECOND.");
    let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::SingleQuotedString(text), .. }) = value.as_ref()
    else {
        return Err(malformed());
    };
    let first = leading_field.as_ref().and_then(unit_of).ok_or_else(malformed)?;
    let last = match last_field {
        Some(field) => unit_of(field).ok_or_else(malformed)?,
        None => first,
    };
    let (negative, text) = match text.trim().strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.trim().trim_start_matches('+')),
    };
    let sign = if negative { -1 } else { 1 };
    if first <= 1 {
        let months = months(text, first, last).ok_or_else(malformed)?;
        return Ok(IntervalValue::Months(sign * months));
    }
    Ok(IntervalValue::Millis(i64::from(sign) * millis(text, first, last).ok_or_else(malformed)?))
}

/// Year 0, month 1, day 2, hour 3, minute 4, second 5; a week counts as 6.
fn unit_of(field: &DateTimeField) -> Option<usize> {
    Some(match field {
        DateTimeField::Year | DateTimeField::Years => 0,
        DateTimeField::Month | DateTimeField::Months => 1,
        DateTimeField::Day | DateTimeField::Days => 2,
        DateTimeField::Hour | DateTimeField::Hours => 3,
        DateTimeField::Minute | DateTimeField::Minutes => 4,
        DateTimeField::Second | DateTimeField::Seconds => 5,
        DateTimeField::Week(None) | DateTimeField::Weeks => 6,
        _ => return None,
    })
}

fn months(text: &str, first: usize, last: usize) -> Option<i32> {
    match (first, last) {
        (0, 0) => text.parse::<i32>().ok()?.checked_mul(12),
        (1, 1) => text.parse().ok(),
        (0, 1) => {
            let (years, months) = text.split_once('-')?;
            years.parse::<i32>().ok()?.checked_mul(12)?.checked_add(months.parse().ok()?)
        }
        _ => None,
    }
}

fn millis(text: &str, first: usize, last: usize) -> Option<i64> {
    const FACTORS: [i64; 7] = [0, 0, 86_400_000, 3_600_000, 60_000, 1000, 7 * 86_400_000];
    if first == 6 || last == 6 {
        return if first == last { text.parse::<i64>().ok()?.checked_mul(FACTORS[6]) } else { None };
    }
    let parts: Vec<&str> = text.split([' ', ':']).filter(|part| !part.is_empty()).collect();
    if last < first || parts.len() != last - first + 1 {
        return None;
    }
    let mut total = 0_i64;
    for (unit, part) in (first..).zip(parts) {
        let amount = if unit == 5 { seconds(part)? } else { part.parse::<i64>().ok()?.checked_mul(FACTORS[unit])? };
        total = total.checked_add(amount)?;
    }
    Some(total)
}

/// `1.5` as 1500 ms; finer digits are dropped, as intervals count milliseconds.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    whole.parse::<i64>().ok()?.checked_mul(1000)?.checked_add(fraction.parse().ok()?)
}
