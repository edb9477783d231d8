//! Expressions as text: for EXPLAIN and operator names, and as the canonical form that uids hash. Both want a text that
//! does not change with the version of DataFusion.

use datafusion::common::ScalarValue;
use datafusion::prelude::Expr;
use weir_functions::types;

use crate::rel::column_index;

/// The text of an expression whose columns are named by `name`.
pub(crate) fn text(expr: &Expr, name: &dyn Fn(usize) -> String) -> String {
    if let Some(index) = column_index(expr) {
        return name(index);
    }
    let of = |expr: &Expr| text(expr, name);
    let inner = |expr: &Expr| match expr {
        Expr::BinaryExpr(_) | Expr::Between(_) | Expr::Like(_) | Expr::Not(_) => format!("({})", text(expr, name)),
        _ => text(expr, name),
    };
    match expr {
        Expr::Literal(value, _) => literal(value),
        Expr::Alias(alias) => of(&alias.expr),
        Expr::BinaryExpr(binary) => format!("{} {} {}", inner(&binary.left), binary.op, inner(&binary.right)),
        Expr::Not(operand) => format!("NOT {}", inner(operand)),
        Expr::Negative(operand) => format!("-{}", inner(operand)),
        Expr::IsNull(operand) => format!("{} IS NULL", inner(operand)),
        Expr::IsNotNull(operand) => format!("{} IS NOT NULL", inner(operand)),
        Expr::IsTrue(operand) => format!("{} IS TRUE", inner(operand)),
        Expr::IsFalse(operand) => format!("{} IS FALSE", inner(operand)),
        Expr::IsUnknown(operand) => format!("{} IS UNKNOWN", inner(operand)),
        Expr::IsNotTrue(operand) => format!("{} IS NOT TRUE", inner(operand)),
        Expr::IsNotFalse(operand) => format!("{} IS NOT FALSE", inner(operand)),
        Expr::IsNotUnknown(operand) => format!("{} IS NOT UNKNOWN", inner(operand)),
        Expr::Between(between) => {
            let not = if between.negated { "NOT " } else { "" };
            format!("{} {not}BETWEEN {} AND {}", inner(&between.expr), inner(&between.low), inner(&between.high))
        }
        Expr::Like(like) => {
            let not = if like.negated { "NOT " } else { "" };
            format!("{} {not}LIKE {}", inner(&like.expr), inner(&like.pattern))
        }
        Expr::InList(list) => {
            let not = if list.negated { "NOT " } else { "" };
            let items: Vec<String> = list.list.iter().map(of).collect();
            format!("{} {not}IN ({})", inner(&list.expr), items.join(", "))
        }
        Expr::Case(case) => {
            let mut text = String::from("CASE");
            if let Some(operand) = &case.expr {
                text.push_str(&format!(" {}", of(operand)));
            }
            for (when, then) in &case.when_then_expr {
                text.push_str(&format!(" WHEN {} THEN {}", of(when), of(then)));
            }
            if let Some(otherwise) = &case.else_expr {
                text.push_str(&format!(" ELSE {}", of(otherwise)));
            }
            text + " END"
        }
        Expr::Cast(cast) => format!("CAST({} AS {})", of(&cast.expr), types::name(cast.field.data_type())),
        Expr::TryCast(cast) => format!("TRY_CAST({} AS {})", of(&cast.expr), types::name(cast.field.data_type())),
        Expr::ScalarFunction(call) => function(call.func.name(), &call.args, name),
        other => other.to_string(),
    }
}

fn function(function: &str, args: &[Expr], name: &dyn Fn(usize) -> String) -> String {
    let of = |expr: &Expr| text(expr, name);
    match (function, args) {
        ("$field", [row, Expr::Literal(ScalarValue::Utf8(Some(field)), _)]) => format!("{}.{field}", of(row)),
        ("$cast" | "$try_cast", [value, Expr::Literal(target, _)]) => {
            let cast = if function == "$cast" { "CAST" } else { "TRY_CAST" };
            format!("{cast}({} AS {})", of(value), types::name(&target.data_type()))
        }
        ("$extract", [Expr::Literal(ScalarValue::Utf8(Some(unit)), _), time]) => {
            format!("EXTRACT({unit} FROM {})", of(time))
        }
        _ => {
            let args: Vec<String> = args.iter().map(of).collect();
            format!("{}({})", function.trim_start_matches('$').to_uppercase(), args.join(", "))
        }
    }
}

fn literal(value: &ScalarValue) -> String {
    match value {
        ScalarValue::Utf8(Some(text)) => format!("'{}'", text.replace('\'', "''")),
        ScalarValue::DurationMillisecond(Some(_))
        | ScalarValue::DurationMicrosecond(Some(_))
        | ScalarValue::DurationNanosecond(Some(_)) => interval(value),
        ScalarValue::IntervalYearMonth(Some(months)) => format!("INTERVAL '{months}' MONTH"),
        ScalarValue::Boolean(Some(value)) => value.to_string().to_uppercase(),
        ScalarValue::Decimal128(Some(digits), _, scale) => decimal(*digits, *scale),
        value if value.is_null() => "NULL".to_owned(),
        value if types::is_temporal(&value.data_type()) => {
            let name = types::name(&value.data_type());
            let name = name.split('(').next().unwrap_or_default();
            match weir_functions::time::show_temporal(value) {
                Some(text) => format!("{name} '{text}'"),
                None => value.to_string(),
            }
        }
        value => value.to_string(),
    }
}

fn decimal(digits: i128, scale: i8) -> String {
    let scale = usize::try_from(scale).unwrap_or(0);
    let sign = if digits < 0 { "-" } else { "" };
    let text = format!("{:0>width$}", digits.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = text.split_at(text.len() - scale);
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

fn interval(value: &ScalarValue) -> String {
    let ms = match value {
        ScalarValue::DurationMillisecond(Some(ms)) => *ms,
        ScalarValue::DurationMicrosecond(Some(us)) => us / 1000,
        ScalarValue::DurationNanosecond(Some(ns)) => ns / 1_000_000,
        _ => 0,
    };
    format!("INTERVAL '{}'", duration(ms))
}

/// Milliseconds for people: `10 s`, `1 min`, `7 d`.
pub(crate) fn duration(ms: i64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    match units.into_iter().find(|(factor, _)| ms != 0 && ms % factor == 0) {
        Some((factor, unit)) => format!("{} {unit}", ms / factor),
        None => format!("{ms} ms"),
    }
}
