//! Casts: explicit ones, and those that Flink makes by itself.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Cast, lit};
use datafusion::prelude::Expr;
use sqlparser::ast::{self, CastKind};
use weir_functions::types;
use weir_types::Result;

use super::{Context, Value};
use crate::ddl;
use crate::error::{invalid, unsupported};
use crate::rel::Column;

/// A query's column and the table's column that it is written to.
pub(crate) struct Assignment<'a> {
    pub(crate) value: Value,
    pub(crate) name: &'a str,
    pub(crate) target: &'a Column,
}

impl Context<'_> {
    /// `CAST(x AS type)`, `TRY_CAST(x AS type)`
    pub(super) fn explicit_cast(self, kind: &CastKind, expr: &ast::Expr, data_type: &ast::DataType) -> Result<Value> {
        let attempt = match kind {
            CastKind::Cast => false,
            CastKind::TryCast => true,
            CastKind::SafeCast | CastKind::DoubleColon => {
                return Err(unsupported(self.at, "this form of cast", "Write CAST(x AS type) or TRY_CAST(x AS type)."));
            }
        };
        let target = ddl::cast_type(data_type, self.at)?;
        let value = self.bind(expr)?;
        let from = value.data_type.clone();
        let cast = if from == target.data_type && target.length.is_none() {
            value
        } else if !castable(&from, &target.data_type) {
            return Err(invalid(
                self.at,
                format!("{} cannot be cast to {}", types::name(&from), types::name(&target.data_type)),
            ));
        } else {
            self.convert(value, &target.data_type, attempt)?
        };
        let Some((length, padded)) = target.length else { return Ok(cast) };
        let nullable = cast.nullable;
        let fitted = self.udf("$fit", vec![cast.expr, lit(length as i32), lit(padded)])?;
        Ok(Value::new(fitted, target.data_type, nullable))
    }

    /// A cast that was found to be allowed.
    pub(crate) fn cast(self, value: Value, target: &DataType) -> Result<Value> {
        if value.data_type == *target {
            return Ok(value);
        }
        if let Some(constant) = self.constant_cast(value.clone(), target) {
            return Ok(constant);
        }
        self.convert(value, target, false)
    }

    /// The cast of a constant, if it is one and the cast needs no evaluation beyond Arrow's.
    pub(super) fn constant_cast(self, value: Value, target: &DataType) -> Option<Value> {
        let literal = value.as_literal()?;
        if literal.is_null() {
            return ScalarValue::try_from(target).ok().map(Value::literal);
        }
        if is_plain(&value.data_type, target) {
            return literal.cast_to(target).ok().map(Value::literal);
        }
        if value.data_type == DataType::Utf8 && types::is_temporal(target) {
            let ScalarValue::Utf8(Some(text)) = literal else { return None };
            return weir_functions::time::parse_temporal(text, target, self.time_zone).map(Value::literal);
        }
        None
    }

    fn convert(self, value: Value, target: &DataType, attempt: bool) -> Result<Value> {
        let Value { expr, data_type: from, nullable } = value;
        if is_plain(&from, target) {
            let cast = Expr::Cast(Cast::new(Box::new(expr), target.clone()));
            return Ok(Value::new(cast, target.clone(), nullable));
        }
        // Through the session's time zone where TIMESTAMP_LTZ meets anything that shows local time.
        let is_instant = |data_type: &DataType| matches!(data_type, DataType::Timestamp(_, Some(_)));
        if is_instant(&from) && !is_instant(target) {
            let DataType::Timestamp(unit, _) = from else { return Err(invalid(self.at, "not an instant")) };
            let local = self.udf("$to_local", vec![expr, lit(self.time_zone)])?;
            return self.convert_or_done(Value::new(local, DataType::Timestamp(unit, None), nullable), target, attempt);
        }
        if !is_instant(&from) && is_instant(target) {
            let DataType::Timestamp(unit, _) = target else { return Err(invalid(self.at, "not an instant")) };
            let local = DataType::Timestamp(*unit, None);
            let value = self.convert_or_done(Value::new(expr, from, nullable), &local, attempt)?;
            let instant = self.udf("$from_local", vec![value.expr, lit(self.time_zone)])?;
            return Ok(Value::new(instant, target.clone(), value.nullable));
        }
        let name = if attempt { "$try_cast" } else { "$cast" };
        let witness = ScalarValue::try_from(target).map_err(crate::rel::internal)?;
        let cast = self.udf(name, vec![expr, Expr::Literal(witness, None)])?;
        // A decimal whose digits do not fit, and a failed TRY_CAST, give NULL.
        let nullable = nullable || attempt || matches!(target, DataType::Decimal128(..));
        Ok(Value::new(cast, target.clone(), nullable))
    }

    fn convert_or_done(self, value: Value, target: &DataType, attempt: bool) -> Result<Value> {
        if value.data_type == *target { Ok(value) } else { self.convert(value, target, attempt) }
    }

    /// The value as it is written to a table's column.
    pub(crate) fn assign(self, assignment: Assignment<'_>) -> Result<Value> {
        let Assignment { value, name, target } = assignment;
        if !types::casts_implicitly(&value.data_type, &target.data_type) {
            return Err(invalid(
                self.at,
                format!(
                    "column {name} of the query is {} but column {} of the table is {}",
                    value.type_name(),
                    target.name,
                    types::name(&target.data_type)
                ),
            )
            .with_hint(format!("Write CAST({name} AS {}).", types::name(&target.data_type))));
        }
        let value = self.cast(value, &target.data_type)?;
        if target.nullable || !value.nullable {
            return Ok(Value { nullable: target.nullable, ..value });
        }
        if value.as_literal().is_some_and(ScalarValue::is_null) {
            return Err(invalid(self.at, format!("column {} of the table is NOT NULL", target.name)));
        }
        let checked = self.udf("$not_null", vec![value.expr, lit(target.name.as_str())])?;
        Ok(Value::new(checked, target.data_type.clone(), false))
    }
}

/// Whether Arrow's cast is Flink's: nothing is rounded, refused or spelt out.
fn is_plain(from: &DataType, to: &DataType) -> bool {
    let finer = |from: &TimeUnit, to: &TimeUnit| from <= to;
    match (from, to) {
        (DataType::Null, _) => true,
        (DataType::Decimal128(from_precision, from_scale), DataType::Decimal128(precision, scale)) => {
            *from_scale <= *scale
                && i16::from(*from_precision) - i16::from(*from_scale) <= i16::from(*precision) - i16::from(*scale)
        }
        (from, DataType::Decimal128(precision, scale)) if from.is_signed_integer() => types::decimal_of(from)
            .is_some_and(|(digits, _)| i16::from(digits) + i16::from(*scale) <= i16::from(*precision)),
        (from, to) if from.is_signed_integer() => {
            types::is_float(to) || (to.is_signed_integer() && width(from) <= width(to))
        }
        (DataType::Float32, DataType::Float64) => true,
        (DataType::Timestamp(from, from_zone), DataType::Timestamp(to, to_zone)) => {
            from_zone.is_some() == to_zone.is_some() && finer(from, to)
        }
        (DataType::Date32, DataType::Timestamp(_, None)) => true,
        (DataType::Duration(from), DataType::Duration(to)) => finer(from, to),
        _ => false,
    }
}

fn width(data_type: &DataType) -> usize {
    data_type.primitive_width().unwrap_or(usize::MAX)
}

/// Whether CAST takes `from` to `to`.
fn castable(from: &DataType, to: &DataType) -> bool {
    if types::casts_implicitly(from, to) {
        return true;
    }
    let is_text = |data_type: &DataType| *data_type == DataType::Utf8;
    let is_simple = |data_type: &DataType| {
        types::is_numeric(data_type) || types::is_temporal(data_type) || *data_type == DataType::Boolean
    };
    match (from, to) {
        (from, to) if is_text(from) => is_simple(to) || *to == DataType::Binary,
        (from, to) if is_text(to) => is_simple(from) || *from == DataType::Binary,
        (DataType::Boolean, to) => types::is_numeric(to),
        (from, DataType::Boolean) => types::is_numeric(from),
        (from, to) if types::is_numeric(from) => types::is_numeric(to),
        (DataType::Timestamp(..), DataType::Date32 | DataType::Time32(_) | DataType::Time64(_)) => true,
        _ => false,
    }
}
