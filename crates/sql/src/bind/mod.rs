//! Binding: sqlparser's expressions become typed DataFusion expressions over numbered columns, by Flink's rules.
//!
//! Invariant: every variant of the syntax tree is either bound or refused with its place; every cast is explicit in the
//! result, so that nothing downstream decides about types.

mod calls;
mod cast;
mod literal;
mod operators;
mod special;

use std::cell::RefCell;

use arrow::datatypes::DataType;
use datafusion::common::{Column as DfColumn, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Between, Case, lit};
use datafusion::prelude::Expr;
use sqlparser::ast::{self, Ident, Spanned};
use sqlparser::tokenizer::Location;
use weir_functions::definition::Nulls;
use weir_functions::{registry, types};
use weir_types::Result;

use crate::error::{invalid, nearest, refuse_if, start, unsupported};
use crate::rel::{Call, Column, column, internal};
use crate::simplify::encoded_depth;

pub(crate) use cast::Assignment;
pub(crate) use literal::interval_ms;

/// A bound expression with its type.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) expr: Expr,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
}

impl Value {
    pub(crate) fn new(expr: Expr, data_type: DataType, nullable: bool) -> Self {
        Self { expr, data_type, nullable }
    }

    /// A constant.
    pub(crate) fn literal(value: ScalarValue) -> Self {
        let (data_type, nullable) = (value.data_type(), value.is_null());
        Self { expr: Expr::Literal(value, None), data_type, nullable }
    }

    fn bool(expr: Expr, nullable: bool) -> Self {
        Self::new(expr, DataType::Boolean, nullable)
    }

    pub(crate) fn as_literal(&self) -> Option<&ScalarValue> {
        match &self.expr {
            Expr::Literal(value, _) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn type_name(&self) -> String {
        types::name(&self.data_type)
    }
}

/// Columns that an expression can name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) columns: &'a [Column],
    /// The relation's name or alias.
    pub(crate) alias: Option<&'a str>,
}

/// Where an expression stands.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) scope: Scope<'a>,
    /// Place of the nearest enclosing construct that has one.
    pub(crate) at: Location,
    /// Where aggregate calls are collected; none: they are not allowed here.
    pub(crate) calls: Option<&'a RefCell<Vec<Call>>>,
    /// IANA name of the session's time zone.
    pub(crate) time_zone: &'a str,
    /// How deep within an expression this is.
    pub(crate) depth: u16,
}

/// Deepest nesting of an expression: what evaluates it walks it recursively on an ordinary stack.
const DEPTH_MAX: u16 = 200;

/// Deepest nesting of its encoding, with room for what is put around it.
const ENCODED_DEPTH_MAX: usize = 75;

/// The column that stands for an aggregate call until the aggregate is planned.
pub(crate) fn call_placeholder(index: usize) -> Expr {
    Expr::Column(DfColumn::new_unqualified(format!("@{index}")))
}

/// The number of a call made by [`call_placeholder`].
pub(crate) fn placeholder_index(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Column(column) => column.name.strip_prefix('@')?.parse().ok(),
        _ => None,
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(scope: Scope<'a>, at: Location, time_zone: &'a str) -> Self {
        Self { scope, at, calls: None, time_zone, depth: 0 }
    }

    fn at(self, expr: &ast::Expr) -> Self {
        Self { at: start(expr.span(), self.at), ..self }
    }

    /// Binds an expression.
    pub(crate) fn bind(self, expr: &ast::Expr) -> Result<Value> {
        let value = self.bind_part(expr)?;
        if self.depth == 0 && encoded_depth(&value.expr) > ENCODED_DEPTH_MAX {
            return Err(
                invalid(self.at(expr).at, "the expression is nested too deeply").with_hint("Split it with a view.")
            );
        }
        Ok(value)
    }

    fn bind_part(self, expr: &ast::Expr) -> Result<Value> {
        if self.depth >= DEPTH_MAX {
            return Err(invalid(self.at, format!("the expression is nested more than {DEPTH_MAX} levels deep"))
                .with_hint("Split it with a view, or write IN (…) for a chain of ORs."));
        }
        let cx = Self { depth: self.depth + 1, ..self.at(expr) };
        match expr {
            ast::Expr::Identifier(name) => cx.identifier(name),
            ast::Expr::CompoundIdentifier(parts) => cx.compound(parts),
            ast::Expr::CompoundFieldAccess { root, access_chain } => cx.access(root, access_chain),
            ast::Expr::Nested(inner) => cx.bind(inner),
            ast::Expr::Value(value) => cx.value(&value.value),
            ast::Expr::TypedString(typed) => cx.typed_string(typed),
            ast::Expr::Interval(interval) => cx.interval(interval),
            ast::Expr::BinaryOp { left, op, right } => cx.binary(left, op, right),
            ast::Expr::UnaryOp { op, expr } => cx.unary(op, expr),
            ast::Expr::IsNull(inner) => Ok(Value::bool(cx.bind(inner)?.expr.is_null(), false)),
            ast::Expr::IsNotNull(inner) => Ok(Value::bool(cx.bind(inner)?.expr.is_not_null(), false)),
            ast::Expr::IsTrue(inner) => Ok(Value::bool(cx.condition(inner)?.expr.is_true(), false)),
            ast::Expr::IsNotTrue(inner) => Ok(Value::bool(cx.condition(inner)?.expr.is_not_true(), false)),
            ast::Expr::IsFalse(inner) => Ok(Value::bool(cx.condition(inner)?.expr.is_false(), false)),
            ast::Expr::IsNotFalse(inner) => Ok(Value::bool(cx.condition(inner)?.expr.is_not_false(), false)),
            ast::Expr::IsUnknown(inner) => Ok(Value::bool(cx.condition(inner)?.expr.is_null(), false)),
            ast::Expr::IsNotUnknown(inner) => Ok(Value::bool(cx.condition(inner)?.expr.is_not_null(), false)),
            ast::Expr::IsDistinctFrom(left, right) => cx.distinct_from(left, right, true),
            ast::Expr::IsNotDistinctFrom(left, right) => cx.distinct_from(left, right, false),
            ast::Expr::InList { expr, list, negated } => cx.in_list(expr, list, *negated),
            ast::Expr::Between { expr, negated, low, high } => cx.between(expr, *negated, low, high),
            ast::Expr::Like { negated, any, expr, pattern, escape_char } => {
                refuse_if(*any, cx.at, "LIKE ANY", "Combine LIKEs with OR.")?;
                cx.like(expr, pattern, escape_char.as_ref(), *negated)
            }
            ast::Expr::Case { case_token: _, end_token: _, operand, conditions, else_result } => {
                cx.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            ast::Expr::Cast { kind, expr, data_type, array, format } => {
                refuse_if(*array || format.is_some(), cx.at, "CAST with FORMAT or ARRAY", "Write CAST(x AS type).")?;
                cx.explicit_cast(kind, expr, data_type)
            }
            ast::Expr::Function(function) => cx.function(function),
            ast::Expr::Extract { field, syntax: ast::ExtractSyntax::From, expr } => cx.extract(field, expr),
            ast::Expr::Ceil { expr, field } => cx.ceil_or_floor("ceil", expr, field),
            ast::Expr::Floor { expr, field } => cx.ceil_or_floor("floor", expr, field),
            ast::Expr::Position { expr, r#in } => cx.call("position", vec![cx.bind(expr)?, cx.bind(r#in)?]),
            ast::Expr::Substring { expr, substring_from, substring_for, special: _, shorthand: _ } => {
                let mut arguments = vec![cx.bind(expr)?];
                for part in [substring_from, substring_for].into_iter().flatten() {
                    arguments.push(cx.bind(part)?);
                }
                cx.call("substring", arguments)
            }
            ast::Expr::Trim { trim_where, trim_what, expr, trim_characters } => {
                refuse_if(trim_characters.is_some(), cx.at, "TRIM(text, characters)", "Write TRIM(BOTH x FROM text).")?;
                cx.trim(trim_where.as_ref(), trim_what.as_deref(), expr)
            }
            ast::Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
                let mut arguments = vec![cx.bind(expr)?, cx.bind(overlay_what)?, cx.bind(overlay_from)?];
                if let Some(length) = overlay_for {
                    arguments.push(cx.bind(length)?);
                }
                cx.call("overlay", arguments)
            }
            ast::Expr::Tuple(parts) => cx.row(parts),
            ast::Expr::Array(array) => cx.array(&array.elem),
            other => Err(cx.refuse(other)),
        }
    }

    /// Expressions of SQL or of other dialects that are not bound.
    fn refuse(self, expr: &ast::Expr) -> weir_types::Error {
        let (what, hint) = match expr {
            ast::Expr::InSubquery { .. } => ("IN (SELECT …)", "Joins come in a later release."),
            ast::Expr::Exists { .. } => ("EXISTS", "Joins come in a later release."),
            ast::Expr::Subquery(_) => ("a subquery as an expression", "Joins come in a later release."),
            ast::Expr::Prefixed { .. } => {
                ("TABLE t outside of a window function", "Write FROM TABLE(TUMBLE(TABLE t, …)).")
            }
            ast::Expr::SimilarTo { .. } => ("SIMILAR TO", "Use REGEXP(text, pattern)."),
            ast::Expr::ILike { .. } => ("ILIKE", "Use LOWER(text) LIKE pattern."),
            ast::Expr::RLike { .. } => ("RLIKE", "Use REGEXP(text, pattern)."),
            ast::Expr::AtTimeZone { .. } => ("AT TIME ZONE", "SET 'table.local-time-zone' instead."),
            ast::Expr::Rollup(_) | ast::Expr::Cube(_) | ast::Expr::GroupingSets(_) => {
                ("ROLLUP, CUBE and GROUPING SETS", "Write one INSERT per grouping.")
            }
            _ => return unsupported(self.at, format!("the expression {expr}"), "See docs/sql.md for what is."),
        };
        unsupported(self.at, what, hint)
    }

    /// Binds a BOOLEAN.
    pub(crate) fn condition(self, expr: &ast::Expr) -> Result<Value> {
        let value = self.bind(expr)?;
        if value.data_type == DataType::Null {
            return Ok(Value::literal(ScalarValue::Boolean(None)));
        }
        if value.data_type != DataType::Boolean {
            let place = self.at(expr).at;
            return Err(invalid(place, format!("expected a BOOLEAN condition, found {}", value.type_name())));
        }
        Ok(value)
    }

    fn identifier(self, name: &Ident) -> Result<Value> {
        if let Some(index) = self.find(&name.value) {
            return Ok(self.column(index));
        }
        if name.quote_style.is_none() && ["PROCTIME", "LOCALTIME"].contains(&name.value.to_uppercase().as_str()) {
            return Err(self.no_column(&name.value).with_hint(format!("Write {}().", name.value.to_uppercase())));
        }
        Err(self.no_column(&name.value))
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.scope.columns.iter().position(|column| column.name == name)
    }

    fn column(self, index: usize) -> Value {
        let found = &self.scope.columns[index];
        Value::new(column(index), found.data_type.clone(), found.nullable)
    }

    fn no_column(self, name: &str) -> weir_types::Error {
        let error = invalid(self.at, format!("column {name} does not exist"));
        let names = || self.scope.columns.iter().map(|column| column.name.as_str());
        match nearest(name, names()) {
            Some(near) => error.with_hint(format!("Did you mean {near}? Names are case-sensitive.")),
            None if self.scope.columns.is_empty() => error.with_hint("No column can be named here."),
            None => error.with_hint(format!("Columns are {}.", names().collect::<Vec<_>>().join(", "))),
        }
    }

    /// `alias.column`, `column.field`, `alias.column.field`, …
    fn compound(self, parts: &[Ident]) -> Result<Value> {
        let (first, rest) = match parts {
            [first, rest @ ..] if !rest.is_empty() => (first, rest),
            _ => return Err(self.no_column("")),
        };
        let qualified = self.scope.alias == Some(first.value.as_str());
        if qualified && let Some(index) = self.find(&rest[0].value) {
            return self.fields(self.column(index), &rest[1..]);
        }
        match self.find(&first.value) {
            Some(index) => self.fields(self.column(index), rest),
            None if qualified => Err(self.no_column(&rest[0].value)),
            None => Err(invalid(self.at, format!("there is no table or column {}", first.value))
                .with_hint(self.no_column(&first.value).hint.unwrap_or_default())),
        }
    }

    fn fields(self, mut value: Value, names: &[Ident]) -> Result<Value> {
        for name in names {
            value = Self { at: start(name.span, self.at), ..self }.field(value, &name.value)?;
        }
        Ok(value)
    }

    /// A field of a ROW.
    pub(crate) fn field(self, value: Value, name: &str) -> Result<Value> {
        let DataType::Struct(fields) = &value.data_type else {
            return Err(invalid(self.at, format!("{} has no field {name}", value.type_name())));
        };
        let Some(field) = fields.iter().find(|field| field.name() == name) else {
            let error = invalid(self.at, format!("field {name} does not exist in {}", value.type_name()));
            return Err(match nearest(name, fields.iter().map(|field| field.name().as_str())) {
                Some(near) => error.with_hint(format!("Did you mean {near}? Names are case-sensitive.")),
                None => error,
            });
        };
        let (data_type, nullable) = (field.data_type().clone(), field.is_nullable() || value.nullable);
        let arguments = vec![value.expr, lit(name)];
        Ok(Value::new(self.udf("$field", arguments)?, data_type, nullable))
    }

    /// `a.b[1]`, `f(x).y`
    fn access(self, root: &ast::Expr, chain: &[ast::AccessExpr]) -> Result<Value> {
        // sqlparser gives `a.b[1]` a root of `a`: names before the first subscript are looked up like any others.
        let names = chain.iter().map_while(|part| match part {
            ast::AccessExpr::Dot(ast::Expr::Identifier(name)) => Some(name.clone()),
            _ => None,
        });
        let names: Vec<Ident> = names.collect();
        let mut value = match root {
            ast::Expr::Identifier(first) if !names.is_empty() => {
                let path: Vec<Ident> = std::iter::once(first.clone()).chain(names.iter().cloned()).collect();
                self.compound(&path)?
            }
            root => self.fields(self.bind(root)?, &names)?,
        };
        for part in &chain[names.len()..] {
            value = match part {
                ast::AccessExpr::Dot(ast::Expr::Identifier(name)) => self.fields(value, std::slice::from_ref(name))?,
                ast::AccessExpr::Subscript(ast::Subscript::Index { index }) => self.element(value, index)?,
                other => {
                    return Err(unsupported(self.at, format!("the access {other}"), "Write array[1] or map['key']."));
                }
            };
        }
        Ok(value)
    }

    /// A call of a function of the registry that the planner makes itself.
    fn udf(self, name: &str, arguments: Vec<Expr>) -> Result<Expr> {
        let udf = registry().function(name).map_err(internal)?;
        Ok(Expr::ScalarFunction(ScalarFunction::new_udf(udf, arguments)))
    }

    /// A call of a function by name, with Flink's implicit casts of its arguments.
    pub(crate) fn call(self, name: &str, arguments: Vec<Value>) -> Result<Value> {
        let Some(definition) = registry().lookup(name) else {
            let error = invalid(self.at, format!("function {} does not exist", name.to_uppercase()));
            let names = registry().names();
            return Err(match nearest(name, names.into_iter().chain(["count", "sum", "min", "max", "avg"])) {
                Some(near) => error.with_hint(format!("Did you mean {}?", near.to_uppercase())),
                None => error.with_hint("docs/sql.md lists the functions."),
            });
        };
        let given: Vec<DataType> = arguments.iter().map(|argument| argument.data_type.clone()).collect();
        let Some((wanted, data_type)) = definition.signature.resolve(&given) else {
            let name = definition.name.trim_start_matches('$').to_uppercase();
            return Err(invalid(self.at, format!("{name} does not take {}", types::list(&given)))
                .with_hint(format!("It takes {}.", definition.signature.describe())));
        };
        let nullable = match definition.nulls {
            Nulls::Propagate => arguments.iter().any(|argument| argument.nullable),
            Nulls::Maybe => true,
            Nulls::Never => false,
        };
        let arguments = arguments
            .into_iter()
            .zip(&wanted)
            .map(|(argument, wanted)| Ok(self.cast(argument, wanted)?.expr))
            .collect::<Result<Vec<_>>>()?;
        Ok(Value::new(self.udf(definition.name, arguments)?, data_type, nullable))
    }

    /// Casts values to their common type.
    fn unify(self, values: Vec<Value>, what: &str) -> Result<(Vec<Value>, DataType)> {
        let Some(common) = types::common_all(values.iter().map(|value| &value.data_type)) else {
            let given: Vec<DataType> = values.iter().map(|value| value.data_type.clone()).collect();
            return Err(invalid(
                self.at,
                format!("{what} has values of types that do not go together: {}", types::list(&given)),
            )
            .with_hint("CAST them to one type."));
        };
        let values = values.into_iter().map(|value| self.cast(value, &common)).collect::<Result<_>>()?;
        Ok((values, common))
    }

    fn case(
        self,
        operand: Option<&ast::Expr>,
        whens: &[ast::CaseWhen],
        otherwise: Option<&ast::Expr>,
    ) -> Result<Value> {
        let mut conditions = Vec::with_capacity(whens.len());
        let mut results = Vec::with_capacity(whens.len() + 1);
        for ast::CaseWhen { condition, result } in whens {
            conditions.push(match operand {
                Some(operand) => self.at(condition).comparison(operand, &ast::BinaryOperator::Eq, condition)?.expr,
                None => self.condition(condition)?.expr,
            });
            results.push(self.bind(result)?);
        }
        results.push(match otherwise {
            Some(otherwise) => self.bind(otherwise)?,
            None => Value::literal(ScalarValue::Null),
        });
        self.case_of(conditions, results)
    }

    /// CASE with one result more than conditions.
    fn case_of(self, conditions: Vec<Expr>, results: Vec<Value>) -> Result<Value> {
        let nullable = results.iter().any(|value| value.nullable);
        let (mut results, data_type) = self.unify(results, "CASE")?;
        let otherwise = results.pop().map(|value| Box::new(value.expr));
        let whens = conditions.into_iter().zip(results).map(|(when, then)| (Box::new(when), Box::new(then.expr)));
        let case = Case { expr: None, when_then_expr: whens.collect(), else_expr: otherwise };
        Ok(Value::new(Expr::Case(case), data_type, nullable))
    }

    fn in_list(self, expr: &ast::Expr, list: &[ast::Expr], negated: bool) -> Result<Value> {
        let mut values = vec![self.bind(expr)?];
        for item in list {
            let item = self.bind(item)?;
            let (subject, item) = self.comparable(values[0].clone(), item)?;
            // The subject's type is settled below; only literals of another kind are cast here.
            if subject.data_type == values[0].data_type {
                values.push(item);
            } else {
                values[0] = subject;
                values.push(item);
            }
        }
        let nullable = values.iter().any(|value| value.nullable);
        let (values, _) = self.unify(values, "IN")?;
        let mut exprs = values.into_iter().map(|value| value.expr);
        let subject = exprs.next().unwrap_or_else(|| lit(ScalarValue::Null));
        Ok(Value::bool(subject.in_list(exprs.collect(), negated), nullable))
    }

    fn between(self, expr: &ast::Expr, negated: bool, low: &ast::Expr, high: &ast::Expr) -> Result<Value> {
        let (subject, low) = self.comparable(self.bind(expr)?, self.bind(low)?)?;
        let (subject, high) = self.comparable(subject, self.bind(high)?)?;
        let low = self.cast(low, &subject.data_type)?;
        let nullable = subject.nullable || low.nullable || high.nullable;
        let between = Between::new(Box::new(subject.expr), negated, Box::new(low.expr), Box::new(high.expr));
        Ok(Value::bool(Expr::Between(between), nullable))
    }
}
