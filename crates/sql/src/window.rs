//! Window table functions.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments, Spanned};
use sqlparser::tokenizer::Location;
use weir_types::Result;
use weir_types::graph::WindowSpec;

use crate::bind::{Context, interval_ms};
use crate::dialect::TABLE_PREFIX;
use crate::error::{invalid, refuse_if, start, unsupported};
use crate::query::Binder;
use crate::rel::{Column, Kind, Rel, Role, column_index};

const EXAMPLE: &str = "Write TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND) or HOP(TABLE t, DESCRIPTOR(ts), \
    INTERVAL '5' SECOND, INTERVAL '10' SECOND): slide, then size.";

/// The arguments of a window function by role.
#[derive(Default)]
struct Arguments<'e> {
    data: Option<&'e ast::Expr>,
    time: Option<&'e ast::Expr>,
    size: Option<&'e ast::Expr>,
    slide: Option<&'e ast::Expr>,
    offset: Option<&'e ast::Expr>,
}

impl Binder<'_> {
    /// `TUMBLE(…)` or `HOP(…)` within `TABLE(…)`.
    pub(crate) fn window_function(&self, expr: &ast::Expr, at: Location) -> Result<Arc<Rel>> {
        let at = start(expr.span(), at);
        let ast::Expr::Function(function) = expr else {
            return Err(unsupported(at, "TABLE(…) of anything but a window function", EXAMPLE));
        };
        let name = function.name.to_string().to_uppercase();
        if ["CUMULATE", "SESSION"].contains(&name.as_str()) {
            return Err(unsupported(at, format!("the window function {name}"), "TUMBLE and HOP are."));
        }
        if !["TUMBLE", "HOP"].contains(&name.as_str()) {
            return Err(unsupported(at, format!("the table function {name}"), "TUMBLE and HOP are."));
        }
        let arguments = arguments(&name, function, at)?;
        let rel = self.window_data(arguments.data, at)?;
        let time = self.window_time(&rel, arguments.time, at)?;
        let window = window_spec(&name, &arguments, at)?;
        Ok(windowed(rel, window, time, at))
    }

    fn window_data(&self, data: Option<&ast::Expr>, at: Location) -> Result<Arc<Rel>> {
        let missing = || invalid(at, "the window function names no table").with_hint(EXAMPLE);
        match data.ok_or_else(missing)? {
            ast::Expr::Prefixed { prefix, value } if prefix.value == TABLE_PREFIX => match value.as_ref() {
                ast::Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                    [name] => self.named_ident(name, start(name.span, at)),
                    _ => Err(unsupported(at, "a qualified table name", "Use the table's name alone.")),
                },
                ast::Expr::Subquery(query) => self.query(query, at),
                _ => Err(missing()),
            },
            ast::Expr::Subquery(query) => self.query(query, at),
            other => Err(invalid(start(other.span(), at), format!("expected a table, found {other}"))
                .with_hint("Write TABLE before the table's name.")),
        }
    }

    fn window_time(&self, rel: &Rel, time: Option<&ast::Expr>, at: Location) -> Result<usize> {
        let missing = || invalid(at, "the window function has no DESCRIPTOR(column)").with_hint(EXAMPLE);
        let ast::Expr::Function(descriptor) = time.ok_or_else(missing)? else { return Err(missing()) };
        if !descriptor.name.to_string().eq_ignore_ascii_case("descriptor") {
            return Err(missing());
        }
        let FunctionArguments::List(list) = &descriptor.args else { return Err(missing()) };
        let [FunctionArg::Unnamed(FunctionArgExpr::Expr(column_name))] = list.args.as_slice() else {
            return Err(missing());
        };
        let scope = crate::bind::Scope { columns: &rel.columns, alias: None };
        let value = Context::new(scope, at, self.time_zone).bind(column_name)?;
        let place = start(column_name.span(), at);
        let index = column_index(&value.expr).ok_or_else(missing)?;
        let found = &rel.columns[index];
        if !found.role.is_event_time() {
            return Err(invalid(place, format!("column {} is no time attribute", found.name))
                .with_detail(format!("It is {}, but no watermark follows it.", value.type_name()))
                .with_hint("Declare WATERMARK FOR it on the table, and pass it on as it is."));
        }
        if matches!(found.data_type, DataType::Timestamp(_, Some(_))) && self.time_zone != "UTC" {
            return Err(unsupported(
                place,
                format!("a window over TIMESTAMP_LTZ in the time zone {}", self.time_zone),
                "SET 'table.local-time-zone' = 'UTC', or window over a TIMESTAMP.",
            ));
        }
        Ok(index)
    }
}

/// A relation with its rows in windows.
pub(crate) fn windowed(input: Arc<Rel>, window: WindowSpec, time: usize, at: Location) -> Arc<Rel> {
    let mut columns = input.columns.clone();
    columns.extend(window_columns(&input.columns[time].data_type));
    Arc::new(Rel { kind: Kind::Window { input, window, time, at }, columns })
}

/// window_start, window_end and window_time, for an event time of this type.
fn window_columns(time: &DataType) -> [Column; 3] {
    let local = DataType::Timestamp(TimeUnit::Millisecond, None);
    let zone = match time {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let column = |name: &str, data_type, role| Column {
        name: name.to_owned(),
        data_type,
        nullable: false,
        role,
        at: None,
        weight: 1,
    };
    [
        column("window_start", local.clone(), Role::WindowStart),
        column("window_end", local, Role::WindowEnd),
        column("window_time", DataType::Timestamp(TimeUnit::Millisecond, zone), Role::WindowTime),
    ]
}

fn arguments<'e>(name: &str, function: &'e ast::Function, at: Location) -> Result<Arguments<'e>> {
    let ast::Function { name: _, uses_odbc_syntax: _, parameters, args, filter, null_treatment, over, within_group } =
        function;
    let extra = *parameters != FunctionArguments::None
        || filter.is_some()
        || null_treatment.is_some()
        || over.is_some()
        || !within_group.is_empty();
    refuse_if(extra, at, "a clause behind a window function", EXAMPLE)?;
    let FunctionArguments::List(ast::FunctionArgumentList { duplicate_treatment: None, args, clauses }) = args else {
        return Err(invalid(at, format!("{name} takes a table, a descriptor and intervals")).with_hint(EXAMPLE));
    };
    refuse_if(!clauses.is_empty(), at, "a clause within a window function", EXAMPLE)?;
    let order: &[&str] = if name == "HOP" {
        &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"]
    } else {
        &["DATA", "TIMECOL", "SIZE", "OFFSET"]
    };
    let mut found = Arguments::default();
    for (index, arg) in args.iter().enumerate() {
        let place = start(arg.span(), at);
        let (role, value) = match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => match order.get(index) {
                Some(role) => ((*role).to_owned(), value),
                None => {
                    return Err(
                        invalid(place, format!("{name} takes {} arguments at most", order.len())).with_hint(EXAMPLE)
                    );
                }
            },
            FunctionArg::Named { name: role, arg: FunctionArgExpr::Expr(value), operator: _ } => {
                (role.value.to_uppercase(), value)
            }
            _ => return Err(invalid(place, format!("{arg} is no argument of {name}")).with_hint(EXAMPLE)),
        };
        let slot = match role.as_str() {
            "DATA" => &mut found.data,
            "TIMECOL" => &mut found.time,
            "SIZE" => &mut found.size,
            "SLIDE" if name == "HOP" => &mut found.slide,
            "OFFSET" => &mut found.offset,
            _ => return Err(invalid(place, format!("{name} has no argument {role}")).with_hint(EXAMPLE)),
        };
        if slot.replace(value).is_some() {
            return Err(invalid(place, format!("the argument {role} is given twice")));
        }
    }
    Ok(found)
}

fn window_spec(name: &str, arguments: &Arguments<'_>, at: Location) -> Result<WindowSpec> {
    let positive = |expr: Option<&ast::Expr>, what: &str| -> Result<i64> {
        let expr = expr.ok_or_else(|| invalid(at, format!("{name} has no {what}")).with_hint(EXAMPLE))?;
        let place = start(expr.span(), at);
        let ms = interval_ms(expr, place)?;
        if ms <= 0 {
            return Err(invalid(place, format!("the {what} of a window is longer than nothing")));
        }
        Ok(ms)
    };
    let offset_ms = match arguments.offset {
        Some(expr) => interval_ms(expr, start(expr.span(), at))?,
        None => 0,
    };
    let size_ms = positive(arguments.size, "size")?;
    if name == "TUMBLE" {
        return Ok(WindowSpec::Tumble { size_ms, offset_ms });
    }
    let slide_ms = positive(arguments.slide, "slide")?;
    if size_ms % slide_ms != 0 {
        return Err(invalid(at, format!("the size of {size_ms} ms is no multiple of the slide of {slide_ms} ms"))
            .with_hint("Flink asks for the same; the order is slide, then size."));
    }
    Ok(WindowSpec::Hop { size_ms, slide_ms, offset_ms })
}
