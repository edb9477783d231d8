//! Constructs with a syntax of their own: EXTRACT, CEIL and FLOOR, TRIM, ROW and ARRAY, time units.

use arrow::datatypes::{DataType, Field};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::lit;
use sqlparser::ast::{self, CeilFloorKind, DateTimeField, TrimWhereField};
use weir_functions::types;
use weir_types::Result;

use super::{Context, Value};
use crate::error::{invalid, unsupported};

/// Time units that functions take, as `SECOND` in `TIMESTAMPADD(SECOND, 1, ts)`.
const UNITS: [&str; 19] = [
    "YEAR",
    "QUARTER",
    "MONTH",
    "WEEK",
    "DAY",
    "HOUR",
    "MINUTE",
    "SECOND",
    "MILLISECOND",
    "MICROSECOND",
    "NANOSECOND",
    "DOW",
    "DOY",
    "ISODOW",
    "ISOYEAR",
    "EPOCH",
    "DECADE",
    "CENTURY",
    "MILLENNIUM",
];

impl Context<'_> {
    /// A unit's name, checked.
    pub(super) fn unit(self, text: &str) -> Result<Value> {
        let name = text.to_uppercase();
        let name = name.strip_prefix("SQL_TSI_").unwrap_or(&name);
        let name = UNITS.into_iter().find(|unit| *unit == name || name.strip_suffix('S') == Some(*unit));
        match name {
            Some(name) => Ok(Value::literal(ScalarValue::from(name))),
            None => Err(invalid(self.at, format!("{text} is not a time unit"))
                .with_hint(format!("Units are {}.", UNITS.join(", ")))),
        }
    }

    /// TIMESTAMP_LTZ as the local TIMESTAMP that people see; anything else as it is.
    pub(super) fn local(self, value: Value) -> Result<Value> {
        match value.data_type {
            DataType::Timestamp(unit, Some(_)) => self.cast(value, &DataType::Timestamp(unit, None)),
            _ => Ok(value),
        }
    }

    pub(super) fn extract(self, field: &DateTimeField, expr: &ast::Expr) -> Result<Value> {
        let unit = self.unit(&field.to_string())?;
        let value = self.local(self.bind(expr)?)?;
        self.call("$extract", vec![unit, value])
    }

    pub(super) fn ceil_or_floor(self, name: &str, expr: &ast::Expr, field: &CeilFloorKind) -> Result<Value> {
        let value = self.bind(expr)?;
        match field {
            CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) => self.call(name, vec![value]),
            CeilFloorKind::DateTimeField(unit) => {
                let unit = self.unit(&unit.to_string())?;
                let data_type = value.data_type.clone();
                let local = self.local(value)?;
                let rounded = self.call(&format!("${name}_time"), vec![unit, local])?;
                if types::is_temporal(&data_type) { self.cast(rounded, &data_type) } else { Ok(rounded) }
            }
            CeilFloorKind::Scale(_) => {
                Err(unsupported(self.at, format!("{name} with a scale"), "Use ROUND or TRUNCATE."))
            }
        }
    }

    pub(super) fn trim(
        self,
        side: Option<&TrimWhereField>,
        what: Option<&ast::Expr>,
        expr: &ast::Expr,
    ) -> Result<Value> {
        let name = match side {
            None | Some(TrimWhereField::Both) => "btrim",
            Some(TrimWhereField::Leading) => "ltrim",
            Some(TrimWhereField::Trailing) => "rtrim",
        };
        let mut arguments = vec![self.bind(expr)?];
        if let Some(what) = what {
            arguments.push(self.bind(what)?);
        }
        self.call(name, arguments)
    }

    /// `ROW(a, b)` or `(a, b)`
    pub(super) fn row(self, parts: &[ast::Expr]) -> Result<Value> {
        let values = parts.iter().map(|part| self.bind(part)).collect::<Result<Vec<_>>>()?;
        self.row_of(values)
    }

    pub(super) fn row_of(self, values: Vec<Value>) -> Result<Value> {
        let mut fields = Vec::with_capacity(values.len());
        let mut arguments = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            let value = if value.data_type == DataType::Null { self.cast(value, &DataType::Utf8)? } else { value };
            // Fields of a row function are nullable, as its arguments may be.
            fields.push(Field::new(format!("EXPR${index}"), value.data_type.clone(), true));
            arguments.push(value.expr);
        }
        let data_type = DataType::Struct(fields.into());
        Ok(Value::new(self.udf("$row", arguments)?, data_type, false))
    }

    /// `ARRAY[a, b]`
    pub(super) fn array(self, elements: &[ast::Expr]) -> Result<Value> {
        let values = elements.iter().map(|element| self.bind(element)).collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            return Err(unsupported(self.at, "an empty ARRAY", "Give it an element, so that it has a type."));
        }
        let (values, element) = self.unify(values, "ARRAY")?;
        let data_type = DataType::List(Field::new("element", element, true).into());
        let arguments = values.into_iter().map(|value| value.expr).collect();
        Ok(Value::new(self.udf("$array", arguments)?, data_type, false))
    }

    /// `array[1]`, `map['key']`
    pub(super) fn element(self, value: Value, index: &ast::Expr) -> Result<Value> {
        let index = self.bind(index)?;
        match &value.data_type {
            DataType::List(element) => {
                let data_type = element.data_type().clone();
                let index = self.call_argument(index, &DataType::Int64)?;
                Ok(Value::new(self.udf("$element", vec![value.expr, index.expr])?, data_type, true))
            }
            DataType::Map(entries, _) => {
                let DataType::Struct(fields) = entries.data_type() else {
                    return Err(invalid(self.at, "a map without entries"));
                };
                let (key, data_type) = (fields[0].data_type().clone(), fields[1].data_type().clone());
                let index = self.call_argument(index, &key)?;
                Ok(Value::new(self.udf("$map_value", vec![value.expr, index.expr])?, data_type, true))
            }
            DataType::Struct(_) => match index.as_literal() {
                Some(ScalarValue::Utf8(Some(name))) => self.field(value, &name.clone()),
                _ => Err(invalid(self.at, "a ROW's field is named").with_hint("Write row.field.")),
            },
            other => Err(invalid(self.at, format!("{} has no elements", types::name(other)))),
        }
    }

    fn call_argument(self, value: Value, target: &DataType) -> Result<Value> {
        if types::casts_implicitly(&value.data_type, target) {
            return self.cast(value, target);
        }
        Err(invalid(self.at, format!("expected {}, found {}", types::name(target), value.type_name())))
    }

    /// The session's time zone as an argument.
    pub(super) fn zone(self) -> Value {
        Value::new(lit(self.time_zone), DataType::Utf8, false)
    }
}
