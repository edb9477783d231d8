//! Function calls: aggregates, functions that are short for other expressions, functions of the registry.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::lit;
use sqlparser::ast::{self, DuplicateTreatment, FunctionArg, FunctionArgExpr, FunctionArguments};
use weir_functions::types::{self, Arithmetic};
use weir_types::Result;
use weir_types::graph::AggregateFunction;

use super::{Context, Value, call_placeholder};
use crate::error::{invalid, refuse_if, unsupported};
use crate::rel::Call;

/// Functions whose results are pinned to a window in Flink's older group windows.
const GROUP_WINDOWS: [&str; 9] = [
    "TUMBLE_START",
    "TUMBLE_END",
    "TUMBLE_ROWTIME",
    "HOP_START",
    "HOP_END",
    "HOP_ROWTIME",
    "SESSION_START",
    "SESSION_END",
    "SESSION_ROWTIME",
];

impl Context<'_> {
    pub(super) fn function(self, function: &ast::Function) -> Result<Value> {
        let ast::Function { name, uses_odbc_syntax: _, parameters, args, filter, null_treatment, over, within_group } =
            function;
        let name = match name.0.as_slice() {
            [part] => match part.as_ident() {
                Some(ident) => ident.value.to_uppercase(),
                None => return Err(unsupported(self.at, "this function name", "Use a plain name.")),
            },
            _ => return Err(unsupported(self.at, format!("the qualified function name {name}"), "Use a plain name.")),
        };
        if name == "ROW_NUMBER" || name == "RANK" || name == "DENSE_RANK" {
            return Err(unsupported(self.at, name, "Top-N comes in a later release."));
        }
        refuse_if(over.is_some(), self.at, "OVER", "Aggregate over a window: GROUP BY window_start, window_end.")?;
        refuse_if(null_treatment.is_some(), self.at, "IGNORE NULLS", "Filter the nulls out.")?;
        refuse_if(!within_group.is_empty(), self.at, "WITHIN GROUP", "See docs/sql.md for aggregates.")?;
        refuse_if(*parameters != FunctionArguments::None, self.at, "a function with parameters", "Leave them out.")?;
        let (distinct, args) = self.arguments(args)?;
        if let Some(function) = aggregate(&name) {
            return self.aggregate(function, &name, distinct, args, filter.as_deref());
        }
        refuse_if(filter.is_some(), self.at, &format!("FILTER on {name}"), "Only aggregates take it; use CASE.")?;
        refuse_if(distinct, self.at, &format!("DISTINCT in {name}"), "Only aggregates take it.")?;
        if GROUP_WINDOWS.contains(&name.as_str()) || ["TUMBLE", "HOP", "SESSION", "CUMULATE"].contains(&name.as_str()) {
            return Err(unsupported(
                self.at,
                format!("the group window function {name}"),
                "Write FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY window_start, window_end.",
            ));
        }
        let args = args.into_iter().map(|arg| self.scalar_argument(&name, arg)).collect::<Result<Vec<_>>>()?;
        self.scalar(&name, &args)
    }

    /// Whether DISTINCT was given, and the arguments.
    fn arguments(self, args: &FunctionArguments) -> Result<(bool, Vec<&FunctionArgExpr>)> {
        let list = match args {
            FunctionArguments::None => return Ok((false, Vec::new())),
            FunctionArguments::Subquery(_) => {
                return Err(unsupported(self.at, "a subquery as an argument", "Joins come in a later release."));
            }
            FunctionArguments::List(list) => list,
        };
        let ast::FunctionArgumentList { duplicate_treatment, args, clauses } = list;
        refuse_if(!clauses.is_empty(), self.at, "ORDER BY or another clause within the arguments", "Leave it out.")?;
        let args = args
            .iter()
            .map(|arg| match arg {
                FunctionArg::Unnamed(arg) => Ok(arg),
                FunctionArg::Named { .. } | FunctionArg::ExprNamed { .. } => {
                    Err(unsupported(self.at, "a named argument", "Give the arguments in order."))
                }
            })
            .collect::<Result<_>>()?;
        Ok((*duplicate_treatment == Some(DuplicateTreatment::Distinct), args))
    }

    fn scalar_argument<'e>(self, name: &str, arg: &'e FunctionArgExpr) -> Result<&'e ast::Expr> {
        match arg {
            FunctionArgExpr::Expr(expr) => Ok(expr),
            _ => Err(invalid(self.at, format!("{name} does not take *"))),
        }
    }

    fn aggregate(
        self,
        function: AggregateFunction,
        name: &str,
        distinct: bool,
        args: Vec<&FunctionArgExpr>,
        filter: Option<&ast::Expr>,
    ) -> Result<Value> {
        let Some(calls) = self.calls else {
            return Err(invalid(self.at, format!("the aggregate {name} cannot be used here"))
                .with_hint("Aggregates stand in SELECT and HAVING, and not within each other."));
        };
        let inner = Self { calls: None, ..self };
        let argument = match args.as_slice() {
            [FunctionArgExpr::Wildcard] if function == AggregateFunction::Count && !distinct => None,
            [FunctionArgExpr::Expr(expr)] => Some(inner.bind(expr)?),
            [_] => return Err(invalid(self.at, format!("{name} does not take *"))),
            _ => {
                return Err(unsupported(
                    self.at,
                    format!("{name} of {} arguments", args.len()),
                    "It takes one argument.",
                ));
            }
        };
        let data_type = match &argument {
            None => DataType::Int64,
            Some(value) => result_type(function, &value.data_type)
                .ok_or_else(|| invalid(self.at, format!("{name} does not take {}", value.type_name())))?,
        };
        let filter = filter.map(|filter| inner.condition(filter)).transpose()?;
        let call = Call {
            function,
            // MIN and MAX of distinct values are those of all.
            distinct: distinct && !matches!(function, AggregateFunction::Min | AggregateFunction::Max),
            argument: argument.map(|value| value.expr),
            filter: filter.map(|value| value.expr),
            data_type: data_type.clone(),
            nullable: function != AggregateFunction::Count,
        };
        let mut calls = calls.borrow_mut();
        let index = calls.iter().position(|known| *known == call).unwrap_or_else(|| {
            calls.push(call);
            calls.len() - 1
        });
        Ok(Value::new(call_placeholder(index), data_type, function != AggregateFunction::Count))
    }

    fn scalar(self, name: &str, args: &[&ast::Expr]) -> Result<Value> {
        if let Some(value) = self.timed(name, args)? {
            return Ok(value);
        }
        let values = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
        match (name, values.as_slice()) {
            ("COALESCE" | "IFNULL", [_, ..]) => self.coalesce(values),
            ("IF", [condition, then, otherwise]) => {
                self.boolean(condition)?;
                self.case_of(vec![condition.expr.clone()], vec![then.clone(), otherwise.clone()])
            }
            ("NULLIF", [left, right]) => {
                let (a, b) = self.comparable(left.clone(), right.clone())?;
                let null = Value::literal(ScalarValue::Null);
                self.case_of(vec![a.expr.eq(b.expr)], vec![null, left.clone()])
            }
            ("GREATEST" | "LEAST", [_, ..]) => {
                let (values, _) = self.unify(values, name)?;
                self.call(name, values)
            }
            ("MOD", [left, right]) => self.arithmetic_of(Arithmetic::Modulo, left.clone(), right.clone()),
            ("ROW", _) => self.row_of(values),
            ("ISNULL" | "ISNOTNULL", _) => Err(unsupported(self.at, name, "Write x IS NULL or x IS NOT NULL.")),
            ("CHARACTER_LENGTH" | "CHAR_LENGTH", [_]) => self.call("char_length", values),
            _ => self.call(name, values),
        }
    }

    fn boolean(self, value: &Value) -> Result<()> {
        if value.data_type == DataType::Boolean {
            return Ok(());
        }
        Err(invalid(self.at, format!("expected a BOOLEAN condition, found {}", value.type_name())))
    }

    fn coalesce(self, values: Vec<Value>) -> Result<Value> {
        let nullable = values.iter().all(|value| value.nullable);
        let (values, data_type) = self.unify(values, "COALESCE")?;
        let expr = self.udf("coalesce", values.into_iter().map(|value| value.expr).collect())?;
        Ok(Value::new(expr, data_type, nullable))
    }

    /// Functions that take a time unit, or depend on the session's time zone.
    fn timed(self, name: &str, args: &[&ast::Expr]) -> Result<Option<Value>> {
        let local_ms = DataType::Timestamp(TimeUnit::Millisecond, None);
        let value = match (name, args) {
            ("TIMESTAMPADD", [unit, count, time]) => {
                let (unit, count) = (self.unit(&unit.to_string())?, self.bind(count)?);
                let time = self.bind(time)?;
                let zoned = time.data_type.clone();
                let moved = self.call("$timestamp_add", vec![unit, count, self.local(time)?])?;
                match zoned {
                    DataType::Timestamp(_, Some(_)) => self.cast(moved, &zoned)?,
                    _ => moved,
                }
            }
            ("TIMESTAMPDIFF", [unit, from, to]) => {
                let unit = self.unit(&unit.to_string())?;
                let (from, to) = (self.local(self.bind(from)?)?, self.local(self.bind(to)?)?);
                self.call("$timestamp_diff", vec![unit, from, to])?
            }
            ("YEAR" | "QUARTER" | "MONTH" | "WEEK" | "HOUR" | "MINUTE" | "SECOND", [time]) => self.part(name, time)?,
            ("DAYOFMONTH", [time]) => self.part("DAY", time)?,
            ("DAYOFYEAR", [time]) => self.part("DOY", time)?,
            ("DAYOFWEEK", [time]) => self.part("DOW", time)?,
            ("DATE_FORMAT", [time, format]) => {
                let time = self.bind(time)?;
                let time = if time.data_type == DataType::Utf8 { self.call("to_timestamp", vec![time])? } else { time };
                self.call("date_format", vec![self.local(time)?, self.bind(format)?])?
            }
            ("FROM_UNIXTIME", [seconds, format @ ..]) if format.len() <= 1 => {
                let instant = self.call("to_timestamp_ltz", vec![self.bind(seconds)?, literal_int(0)])?;
                let format = match format {
                    [format] => self.bind(format)?,
                    _ => text("yyyy-MM-dd HH:mm:ss"),
                };
                self.call("date_format", vec![self.local(instant)?, format])?
            }
            ("UNIX_TIMESTAMP", [time, format @ ..]) if format.len() <= 1 => {
                let mut arguments = vec![self.bind(time)?];
                if let [format] = format {
                    arguments.push(self.bind(format)?);
                }
                let local = self.call("to_timestamp", arguments)?;
                let instant = self.cast(local, &types::ltz(TimeUnit::Millisecond))?;
                self.call("$epoch_seconds", vec![instant])?
            }
            ("LOCALTIMESTAMP", []) => self.cast(self.call("current_timestamp", Vec::new())?, &local_ms)?,
            ("CURRENT_DATE", []) => {
                let now = self.cast(self.call("current_timestamp", Vec::new())?, &local_ms)?;
                self.cast(now, &DataType::Date32)?
            }
            ("LOCALTIME" | "CURRENT_TIME", []) => {
                let now = self.cast(self.call("current_timestamp", Vec::new())?, &local_ms)?;
                self.cast(now, &DataType::Time32(TimeUnit::Millisecond))?
            }
            ("CONVERT_TZ", [time, from, to]) => {
                self.call("convert_tz", vec![self.bind(time)?, self.bind(from)?, self.bind(to)?])?
            }
            ("TO_TIMESTAMP_LTZ", [value, ..]) => {
                let mut arguments = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
                if arguments[0].data_type != DataType::Utf8 {
                    return Ok(Some(self.call("to_timestamp_ltz", arguments)?));
                }
                let _ = value;
                if arguments.len() < 2 {
                    arguments.push(text("yyyy-MM-dd HH:mm:ss.SSS"));
                }
                if arguments.len() < 3 {
                    arguments.push(self.zone());
                }
                self.call("$text_to_instant", arguments)?
            }
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    fn part(self, unit: &str, time: &ast::Expr) -> Result<Value> {
        let time = self.local(self.bind(time)?)?;
        self.call("$extract", vec![text(unit), time])
    }
}

fn text(value: &str) -> Value {
    Value::new(lit(value), DataType::Utf8, false)
}

fn literal_int(value: i32) -> Value {
    Value::literal(ScalarValue::Int32(Some(value)))
}

fn aggregate(name: &str) -> Option<AggregateFunction> {
    Some(match name {
        "COUNT" => AggregateFunction::Count,
        "SUM" => AggregateFunction::Sum,
        "MIN" => AggregateFunction::Min,
        "MAX" => AggregateFunction::Max,
        "AVG" => AggregateFunction::Avg,
        _ => return None,
    })
}

/// The result's type; none if the function does not take the argument.
fn result_type(function: AggregateFunction, argument: &DataType) -> Option<DataType> {
    let is_ordered = types::is_numeric(argument)
        || types::is_temporal(argument)
        || matches!(argument, DataType::Utf8 | DataType::Boolean | DataType::Binary);
    match (function, argument) {
        (AggregateFunction::Count, _) => Some(DataType::Int64),
        (AggregateFunction::Min | AggregateFunction::Max, _) => is_ordered.then(|| argument.clone()),
        (AggregateFunction::Sum, DataType::Decimal128(_, scale)) => {
            Some(DataType::Decimal128(types::DECIMAL_PRECISION_MAX, *scale))
        }
        (AggregateFunction::Avg, DataType::Decimal128(_, scale)) => {
            Some(DataType::Decimal128(types::DECIMAL_PRECISION_MAX, (*scale).max(6)))
        }
        (AggregateFunction::Sum | AggregateFunction::Avg, _) => types::is_numeric(argument).then(|| argument.clone()),
    }
}
