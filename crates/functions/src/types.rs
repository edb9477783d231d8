//! Flink's type rules on Arrow types: names, what is cast implicitly, common types, decimal results.

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};

/// Most digits of a DECIMAL.
pub const DECIMAL_PRECISION_MAX: u8 = 38;

/// The scale that a decimal quotient keeps at least, where digits must be given up.
const DECIMAL_SCALE_KEPT: u8 = 6;

/// The type as SQL writes it.
pub fn name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "NULL".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 => "STRING".to_owned(),
        DataType::Binary => "BYTES".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => format!("TIME({})", precision(data_type)),
        DataType::Timestamp(_, None) => format!("TIMESTAMP({})", precision(data_type)),
        DataType::Timestamp(_, Some(_)) => format!("TIMESTAMP_LTZ({})", precision(data_type)),
        DataType::Duration(_) => "INTERVAL DAY TO SECOND".to_owned(),
        DataType::Interval(IntervalUnit::YearMonth) => "INTERVAL YEAR TO MONTH".to_owned(),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{} {}", field.name(), column(field))).collect();
            format!("ROW<{}>", fields.join(", "))
        }
        DataType::List(element) => format!("ARRAY<{}>", column(element)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                format!("MAP<{}, {}>", name(fields[0].data_type()), column(&fields[1]))
            }
            _ => "MAP".to_owned(),
        },
        other => other.to_string(),
    }
}

/// A column's type, with `NOT NULL` where it applies.
pub fn column(field: &Field) -> String {
    let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
    format!("{}{not_null}", name(field.data_type()))
}

/// Types in parentheses, for messages.
pub fn list(data_types: &[DataType]) -> String {
    let names: Vec<String> = data_types.iter().map(name).collect();
    format!("({})", names.join(", "))
}

/// Fractional digits of seconds that a time type keeps.
pub fn precision(data_type: &DataType) -> u8 {
    let (DataType::Timestamp(unit, _) | DataType::Time32(unit) | DataType::Time64(unit) | DataType::Duration(unit)) =
        data_type
    else {
        return 0;
    };
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

/// The unit that keeps so many fractional digits of a second.
pub fn time_unit(precision: u8) -> TimeUnit {
    match precision {
        0..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        _ => TimeUnit::Nanosecond,
    }
}

/// TIMESTAMP_LTZ of a unit.
pub fn ltz(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, Some("UTC".into()))
}

/// Integers, decimals, FLOAT and DOUBLE.
pub fn is_numeric(data_type: &DataType) -> bool {
    is_exact(data_type) || is_float(data_type)
}

/// FLOAT and DOUBLE.
pub fn is_float(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float32 | DataType::Float64)
}

/// Integers and decimals.
pub fn is_exact(data_type: &DataType) -> bool {
    data_type.is_signed_integer() || matches!(data_type, DataType::Decimal128(..))
}

/// DATE, TIME, TIMESTAMP, TIMESTAMP_LTZ.
pub fn is_temporal(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date32 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(..))
}

/// Precision and scale of an exact number seen as a decimal.
pub fn decimal_of(data_type: &DataType) -> Option<(u8, i8)> {
    match data_type {
        DataType::Int8 => Some((3, 0)),
        DataType::Int16 => Some((5, 0)),
        DataType::Int32 => Some((10, 0)),
        DataType::Int64 => Some((19, 0)),
        DataType::Decimal128(precision, scale) => Some((*precision, *scale)),
        _ => None,
    }
}

/// Rank among numbers for widening.
fn rank(data_type: &DataType) -> Option<u8> {
    match data_type {
        DataType::Int8 => Some(0),
        DataType::Int16 => Some(1),
        DataType::Int32 => Some(2),
        DataType::Int64 => Some(3),
        DataType::Decimal128(..) => Some(4),
        DataType::Float32 => Some(5),
        DataType::Float64 => Some(6),
        _ => None,
    }
}

/// Whether a value of type `from` may stand where `to` is wanted without a CAST, as when it is inserted.
pub fn casts_implicitly(from: &DataType, to: &DataType) -> bool {
    if from == to || *from == DataType::Null {
        return true;
    }
    match (from, to) {
        // Flink takes a decimal of any precision and scale: it rounds, and gives NULL if digits do not fit.
        (DataType::Decimal128(..), DataType::Decimal128(..)) => true,
        // TIMESTAMP and TIMESTAMP_LTZ convert through the session's time zone.
        (DataType::Timestamp(..), DataType::Timestamp(..)) => true,
        (DataType::Date32, DataType::Timestamp(..)) => true,
        (DataType::Time32(_) | DataType::Time64(_), DataType::Time32(_) | DataType::Time64(_)) => true,
        (DataType::Duration(_), DataType::Duration(_)) => true,
        (DataType::Struct(from), DataType::Struct(to)) => {
            from.len() == to.len()
                && from.iter().zip(to).all(|(from, to)| casts_implicitly(from.data_type(), to.data_type()))
        }
        (DataType::List(from), DataType::List(to)) => casts_implicitly(from.data_type(), to.data_type()),
        _ => match (rank(from), rank(to)) {
            (Some(from_rank), Some(to_rank)) => from_rank < to_rank,
            _ => false,
        },
    }
}

/// The type that values of both types are cast to where they meet (CASE, COALESCE, UNION, comparison).
pub fn common(left: &DataType, right: &DataType) -> Option<DataType> {
    if left == right || *right == DataType::Null {
        return Some(left.clone());
    }
    match (left, right) {
        (DataType::Null, _) => Some(right.clone()),
        (DataType::Date32, DataType::Timestamp(..)) => Some(right.clone()),
        (DataType::Timestamp(..), DataType::Date32) => Some(left.clone()),
        (DataType::Timestamp(left_unit, left_zone), DataType::Timestamp(right_unit, right_zone)) => {
            let zone = left_zone.clone().or_else(|| right_zone.clone());
            Some(DataType::Timestamp(*left_unit.max(right_unit), zone))
        }
        (DataType::Duration(left_unit), DataType::Duration(right_unit)) => {
            Some(DataType::Duration(*left_unit.max(right_unit)))
        }
        (DataType::Time32(_) | DataType::Time64(_), DataType::Time32(_) | DataType::Time64(_)) => {
            Some(if precision(left) >= precision(right) { left.clone() } else { right.clone() })
        }
        _ if is_numeric(left) && is_numeric(right) => common_number(left, right),
        _ => None,
    }
}

fn common_number(left: &DataType, right: &DataType) -> Option<DataType> {
    let (left_rank, right_rank) = (rank(left)?, rank(right)?);
    // An exact number and a FLOAT meet as DOUBLE, as FLOAT keeps fewer digits than INT.
    if is_float(left) != is_float(right) {
        return Some(DataType::Float64);
    }
    if left_rank.max(right_rank) != 4 {
        return Some(if left_rank >= right_rank { left.clone() } else { right.clone() });
    }
    let ((left_precision, left_scale), (right_precision, right_scale)) = (decimal_of(left)?, decimal_of(right)?);
    let scale = left_scale.max(right_scale);
    let digits = (left_precision as i8 - left_scale).max(right_precision as i8 - right_scale);
    Some(fit_decimal(i16::from(digits) + i16::from(scale), i16::from(scale)))
}

/// The common type of several.
pub fn common_all<'a>(mut data_types: impl Iterator<Item = &'a DataType>) -> Option<DataType> {
    let first = data_types.next()?.clone();
    data_types.try_fold(first, |left, right| common(&left, right))
}

/// DECIMAL of so many digits, giving up fractional digits (but keeping six) where there are more than 38.
fn fit_decimal(precision: i16, scale: i16) -> DataType {
    let max = i16::from(DECIMAL_PRECISION_MAX);
    if precision <= max {
        return DataType::Decimal128(precision as u8, scale as i8);
    }
    let kept = scale.min(i16::from(DECIMAL_SCALE_KEPT));
    DataType::Decimal128(DECIMAL_PRECISION_MAX, (max - (precision - scale)).max(kept) as i8)
}

/// An arithmetic operator on numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Modulo,
}

/// Result of decimal arithmetic, for operands of which at least one is a DECIMAL and the other exact.
pub fn decimal_result(operator: Arithmetic, left: &DataType, right: &DataType) -> Option<DataType> {
    let wide = |(precision, scale): (u8, i8)| (i16::from(precision), i16::from(scale));
    let ((left_precision, left_scale), (right_precision, right_scale)) =
        (wide(decimal_of(left)?), wide(decimal_of(right)?));
    let (left_digits, right_digits) = (left_precision - left_scale, right_precision - right_scale);
    Some(match operator {
        Arithmetic::Add | Arithmetic::Subtract => {
            let scale = left_scale.max(right_scale);
            fit_decimal(left_digits.max(right_digits) + scale + 1, scale)
        }
        Arithmetic::Multiply => fit_decimal(left_precision + right_precision + 1, left_scale + right_scale),
        Arithmetic::Divide => {
            let scale = (left_scale + right_precision + 1).max(i16::from(DECIMAL_SCALE_KEPT));
            fit_decimal(left_digits + right_scale + scale, scale)
        }
        Arithmetic::Modulo => {
            let scale = left_scale.max(right_scale);
            fit_decimal(left_digits.min(right_digits) + scale, scale)
        }
    })
}

#[cfg(test)]
mod tests;
