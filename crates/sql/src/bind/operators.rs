//! Operators: arithmetic, comparison, logic, LIKE. Result types are Flink's, settled before any evaluation.

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Like, Operator, lit};
use datafusion::prelude::Expr;
use sqlparser::ast::{self, BinaryOperator, UnaryOperator};
use weir_functions::types::{self, Arithmetic};
use weir_types::Result;

use super::{Context, Value};
use crate::error::{invalid, unsupported};

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

impl Context<'_> {
    pub(super) fn binary(self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Result<Value> {
        match op {
            BinaryOperator::Plus => self.arithmetic(Arithmetic::Add, left, right),
            BinaryOperator::Minus => self.arithmetic(Arithmetic::Subtract, left, right),
            BinaryOperator::Multiply => self.arithmetic(Arithmetic::Multiply, left, right),
            BinaryOperator::Divide => self.arithmetic(Arithmetic::Divide, left, right),
            BinaryOperator::Modulo => self.arithmetic(Arithmetic::Modulo, left, right),
            BinaryOperator::And | BinaryOperator::Or => {
                let (left, right) = (self.condition(left)?, self.condition(right)?);
                let op = if *op == BinaryOperator::And { Operator::And } else { Operator::Or };
                Ok(Value::bool(binary(left.expr, op, right.expr), left.nullable || right.nullable))
            }
            BinaryOperator::StringConcat => self.concat(left, right),
            BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq => self.comparison(left, op, right),
            other => Err(unsupported(self.at, format!("the operator {other}"), "See docs/sql.md for operators.")),
        }
    }

    pub(super) fn unary(self, op: &UnaryOperator, expr: &ast::Expr) -> Result<Value> {
        match op {
            UnaryOperator::Not => {
                let value = self.condition(expr)?;
                Ok(Value::bool(Expr::Not(Box::new(value.expr)), value.nullable))
            }
            UnaryOperator::Minus => self.negate(expr),
            UnaryOperator::Plus => self.number(expr),
            other => Err(unsupported(self.at, format!("the operator {other}"), "See docs/sql.md for operators.")),
        }
    }

    fn number(self, expr: &ast::Expr) -> Result<Value> {
        let value = self.bind(expr)?;
        if types::is_numeric(&value.data_type)
            || matches!(value.data_type, DataType::Duration(_) | DataType::Interval(_))
        {
            return Ok(value);
        }
        Err(invalid(self.at, format!("expected a number, found {}", value.type_name())))
    }

    fn negate(self, expr: &ast::Expr) -> Result<Value> {
        // The smallest BIGINT has no positive counterpart: it must be read with its sign.
        if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(text, false), .. }) = expr {
            for parse in [
                |text: &str| text.parse().ok().map(|v| ScalarValue::Int32(Some(v))),
                |text: &str| text.parse().ok().map(|v| ScalarValue::Int64(Some(v))),
            ] {
                if let Some(value) = parse(&format!("-{text}")) {
                    return Ok(Value::literal(value));
                }
            }
        }
        let value = self.number(expr)?;
        if let Some(literal) = value.as_literal()
            && let Ok(negated) = literal.arithmetic_negate()
        {
            return Ok(Value::literal(negated));
        }
        if let DataType::Duration(_) = value.data_type {
            return self.scaled(value, Value::literal(ScalarValue::Int32(Some(-1))));
        }
        Ok(Value { expr: Expr::Negative(Box::new(value.expr)), ..value })
    }

    fn concat(self, left: &ast::Expr, right: &ast::Expr) -> Result<Value> {
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        for side in [&left, &right] {
            if !matches!(side.data_type, DataType::Utf8 | DataType::Null) {
                return Err(invalid(self.at, format!("|| joins STRINGs, not {}", side.type_name()))
                    .with_hint("CAST it to STRING."));
            }
        }
        let (left, right) = (self.cast(left, &DataType::Utf8)?, self.cast(right, &DataType::Utf8)?);
        let nullable = left.nullable || right.nullable;
        Ok(Value::new(binary(left.expr, Operator::StringConcat, right.expr), DataType::Utf8, nullable))
    }

    fn arithmetic(self, op: Arithmetic, left: &ast::Expr, right: &ast::Expr) -> Result<Value> {
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        self.arithmetic_of(op, left, right)
    }

    /// Arithmetic on bound values.
    pub(super) fn arithmetic_of(self, op: Arithmetic, left: Value, right: Value) -> Result<Value> {
        // A bare NULL takes the type of the other side.
        let left = if left.data_type == DataType::Null { self.cast(left, &right.data_type)? } else { left };
        let right = if right.data_type == DataType::Null { self.cast(right, &left.data_type)? } else { right };
        if types::is_numeric(&left.data_type) && types::is_numeric(&right.data_type) {
            let is_decimal = |value: &Value| matches!(value.data_type, DataType::Decimal128(..));
            let exact = types::is_exact(&left.data_type) && types::is_exact(&right.data_type);
            return if exact && (is_decimal(&left) || is_decimal(&right)) {
                self.decimal_arithmetic(op, left, right)
            } else {
                self.plain_arithmetic(op, left, right)
            };
        }
        match (op, &left.data_type, &right.data_type) {
            (Arithmetic::Add | Arithmetic::Subtract, from, DataType::Duration(_) | DataType::Interval(_))
                if types::is_temporal(from) =>
            {
                self.shift(op, left, right)
            }
            (Arithmetic::Add, DataType::Duration(_) | DataType::Interval(_), to) if types::is_temporal(to) => {
                self.shift(op, right, left)
            }
            (Arithmetic::Add | Arithmetic::Subtract, DataType::Duration(_), DataType::Duration(_)) => {
                self.plain_arithmetic(op, left, right)
            }
            (Arithmetic::Multiply, DataType::Duration(_), number) if number.is_signed_integer() => {
                self.scaled(left, right)
            }
            (Arithmetic::Multiply, number, DataType::Duration(_)) if number.is_signed_integer() => {
                self.scaled(right, left)
            }
            _ => {
                let symbol = operator(op);
                let error =
                    invalid(self.at, format!("{} {symbol} {} does not exist", left.type_name(), right.type_name()));
                Err(match (op, types::is_temporal(&left.data_type) && types::is_temporal(&right.data_type)) {
                    (Arithmetic::Subtract, true) => error.with_hint("Use TIMESTAMPDIFF(SECOND, earlier, later)."),
                    _ if left.data_type == DataType::Utf8 || right.data_type == DataType::Utf8 => {
                        error.with_hint("CAST the STRING to a number, or join texts with ||.")
                    }
                    _ => error,
                })
            }
        }
    }

    fn plain_arithmetic(self, op: Arithmetic, left: Value, right: Value) -> Result<Value> {
        let remainder_type = right.data_type.clone();
        let (mut values, data_type) = self.unify(vec![left, right], operator(op).to_string().as_str())?;
        let nullable = values.iter().any(|value| value.nullable);
        let (Some(right), Some(left)) = (values.pop(), values.pop()) else {
            return Err(invalid(self.at, "arithmetic takes two operands"));
        };
        let result = Value::new(binary(left.expr, operator(op), right.expr), data_type, nullable);
        // An integer remainder has the divisor's type: it always fits.
        if op == Arithmetic::Modulo && result.data_type.is_signed_integer() && result.data_type != remainder_type {
            return self.convert_remainder(result, &remainder_type);
        }
        Ok(result)
    }

    fn convert_remainder(self, value: Value, target: &DataType) -> Result<Value> {
        let expr = Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(value.expr), target.clone()));
        Ok(Value::new(expr, target.clone(), value.nullable))
    }

    fn decimal_arithmetic(self, op: Arithmetic, left: Value, right: Value) -> Result<Value> {
        let as_decimal = |value: Value| match types::decimal_of(&value.data_type) {
            Some((precision, scale)) => self.cast(value, &DataType::Decimal128(precision, scale)),
            None => Ok(value),
        };
        let (left, right) = (as_decimal(left)?, as_decimal(right)?);
        let Some(data_type) = types::decimal_result(op, &left.data_type, &right.data_type) else {
            return Err(invalid(self.at, "decimal arithmetic takes exact numbers"));
        };
        let nullable = left.nullable || right.nullable;
        let fits = matches!(data_type, DataType::Decimal128(precision, _) if precision < types::DECIMAL_PRECISION_MAX);
        if fits && matches!(op, Arithmetic::Add | Arithmetic::Subtract | Arithmetic::Multiply) {
            // Here Arrow computes the same digits in the same type, and nothing can overflow.
            return Ok(Value::new(binary(left.expr, operator(op), right.expr), data_type, nullable));
        }
        let name = match op {
            Arithmetic::Add => "$decimal_add",
            Arithmetic::Subtract => "$decimal_subtract",
            Arithmetic::Multiply => "$decimal_multiply",
            Arithmetic::Divide => "$decimal_divide",
            Arithmetic::Modulo => "$decimal_modulo",
        };
        let expr = self.udf(name, vec![left.expr, right.expr])?;
        Ok(Value::new(expr, data_type, true))
    }

    /// A date or time moved by an interval.
    fn shift(self, op: Arithmetic, time: Value, interval: Value) -> Result<Value> {
        let nullable = time.nullable || interval.nullable;
        match (&time.data_type, &interval.data_type) {
            (DataType::Timestamp(unit, _), DataType::Duration(_)) => {
                let interval = self.cast(interval, &DataType::Duration(*unit))?;
                Ok(Value::new(binary(time.expr, operator(op), interval.expr), time.data_type, nullable))
            }
            (DataType::Timestamp(..) | DataType::Date32, DataType::Interval(IntervalUnit::YearMonth)) => {
                Ok(Value::new(binary(time.expr, operator(op), interval.expr), time.data_type, nullable))
            }
            (DataType::Date32, DataType::Duration(_)) => {
                let whole_days = match interval.as_literal() {
                    Some(ScalarValue::DurationMillisecond(Some(millis))) => millis % 86_400_000 == 0,
                    _ => true,
                };
                let start = self.cast(time, &DataType::Timestamp(TimeUnit::Millisecond, None))?;
                let moved = self.shift(op, start, interval)?;
                if whole_days { self.cast(moved, &DataType::Date32) } else { Ok(moved) }
            }
            _ => Err(unsupported(
                self.at,
                format!("{} {} {}", time.type_name(), operator(op), interval.type_name()),
                "Move a TIMESTAMP instead.",
            )),
        }
    }

    /// An interval times an integer.
    fn scaled(self, interval: Value, factor: Value) -> Result<Value> {
        let data_type = interval.data_type.clone();
        let nullable = interval.nullable || factor.nullable;
        let cast = |expr: Expr, to: DataType| Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(expr), to));
        let factor = self.cast(factor, &DataType::Int64)?;
        let product = binary(cast(interval.expr, DataType::Int64), Operator::Multiply, factor.expr);
        Ok(Value::new(cast(product, data_type.clone()), data_type, nullable))
    }

    /// Values that are compared, brought to types that can be: a text literal beside a date or time becomes one.
    pub(super) fn comparable(self, left: Value, right: Value) -> Result<(Value, Value)> {
        let parse = |text: Value, target: &DataType| {
            let shown = text.as_literal().map(ToString::to_string).unwrap_or_default();
            self.constant_cast(text, target)
                .ok_or_else(|| invalid(self.at, format!("'{shown}' is not a {}", types::name(target))))
        };
        let is_text = |value: &Value| value.data_type == DataType::Utf8 && value.as_literal().is_some();
        if is_text(&left) && types::is_temporal(&right.data_type) {
            return Ok((parse(left, &right.data_type)?, right));
        }
        if is_text(&right) && types::is_temporal(&left.data_type) {
            let right = parse(right, &left.data_type)?;
            return Ok((left, right));
        }
        let Some(common) = types::common(&left.data_type, &right.data_type) else {
            return Err(invalid(self.at, format!("{} and {} cannot be compared", left.type_name(), right.type_name()))
                .with_hint("CAST one side to the other's type."));
        };
        if matches!(common, DataType::Struct(_) | DataType::List(_) | DataType::Map(..)) {
            return Err(unsupported(
                self.at,
                format!("comparing values of type {}", types::name(&common)),
                "Compare their fields.",
            ));
        }
        // Decimals are compared as decimals, whatever their digits: Arrow needs one type for both.
        Ok((self.cast(left, &common)?, self.cast(right, &common)?))
    }

    pub(super) fn comparison(self, left: &ast::Expr, op: &BinaryOperator, right: &ast::Expr) -> Result<Value> {
        let (left, right) = (self.bind(left)?, self.bind(right)?);
        let (left, right) = self.comparable(left, right)?;
        let op = match op {
            BinaryOperator::Eq => Operator::Eq,
            BinaryOperator::NotEq => Operator::NotEq,
            BinaryOperator::Lt => Operator::Lt,
            BinaryOperator::LtEq => Operator::LtEq,
            BinaryOperator::Gt => Operator::Gt,
            BinaryOperator::GtEq => Operator::GtEq,
            other => {
                return Err(unsupported(self.at, format!("the operator {other}"), "See docs/sql.md for operators."));
            }
        };
        Ok(Value::bool(binary(left.expr, op, right.expr), left.nullable || right.nullable))
    }

    pub(super) fn distinct_from(self, left: &ast::Expr, right: &ast::Expr, distinct: bool) -> Result<Value> {
        let (left, right) = self.comparable(self.bind(left)?, self.bind(right)?)?;
        let op = if distinct { Operator::IsDistinctFrom } else { Operator::IsNotDistinctFrom };
        Ok(Value::bool(binary(left.expr, op, right.expr), false))
    }

    pub(super) fn like(
        self,
        expr: &ast::Expr,
        pattern: &ast::Expr,
        escape: Option<&ast::ValueWithSpan>,
        negated: bool,
    ) -> Result<Value> {
        let (subject, pattern) = (self.bind(expr)?, self.bind(pattern)?);
        for side in [&subject, &pattern] {
            if !matches!(side.data_type, DataType::Utf8 | DataType::Null) {
                return Err(invalid(self.at, format!("LIKE takes STRINGs, not {}", side.type_name())));
            }
        }
        let subject = self.cast(subject, &DataType::Utf8)?;
        let pattern = self.cast(pattern, &DataType::Utf8)?;
        let nullable = subject.nullable || pattern.nullable;
        let escape = match escape.map(|escape| &escape.value) {
            None => None,
            Some(ast::Value::SingleQuotedString(text)) if text.chars().count() == 1 => text.chars().next(),
            Some(other) => {
                return Err(invalid(self.at, format!("{other} is not an escape character"))
                    .with_hint("ESCAPE takes one character: LIKE 'a!%b' ESCAPE '!'."));
            }
        };
        // Arrow escapes with a backslash, always; Flink only with the character that is named.
        let pattern = match pattern.as_literal() {
            Some(ScalarValue::Utf8(Some(text))) => lit(escaped(text, escape)),
            Some(_) => pattern.expr,
            None if escape.is_some() => {
                return Err(unsupported(
                    self.at,
                    "ESCAPE with a pattern that is not a literal",
                    "Write the pattern out.",
                ));
            }
            None => self.udf("replace", vec![pattern.expr, lit("\\"), lit("\\\\")])?,
        };
        let like = Like::new(negated, Box::new(subject.expr), Box::new(pattern), None, false);
        Ok(Value::bool(Expr::Like(like), nullable))
    }
}

/// A pattern whose escape character is the backslash.
fn escaped(pattern: &str, escape: Option<char>) -> String {
    let mut text = String::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if Some(character) == escape {
            text.push('\\');
            text.extend(characters.next());
        } else {
            if character == '\\' {
                text.push('\\');
            }
            text.push(character);
        }
    }
    text
}

fn operator(op: Arithmetic) -> Operator {
    match op {
        Arithmetic::Add => Operator::Plus,
        Arithmetic::Subtract => Operator::Minus,
        Arithmetic::Multiply => Operator::Multiply,
        Arithmetic::Divide => Operator::Divide,
        Arithmetic::Modulo => Operator::Modulo,
    }
}
