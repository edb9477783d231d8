//! Window table functions, and aggregates over the windows that they assign.

use std::cell::RefCell;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::prelude::Expr;
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments, Spanned};
use sqlparser::tokenizer::Location;
use weir_types::Result;
use weir_types::graph::{AggregateFunction, WindowSpec};

use crate::bind::{Context, Value, interval_ms, placeholder_index};
use crate::dialect::TABLE_PREFIX;
use crate::error::{invalid, refuse_if, start, unsupported};
use crate::projection::{Item, ItemExpr};
use crate::query::{Binder, Source};
use crate::rel::{Call, Column, Kind, Rel, Role, column, column_index};

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

    /// The aggregate of a SELECT, or none if it has neither GROUP BY nor aggregate calls.
    pub(crate) fn aggregate(
        &self,
        source: &Source,
        groups: &[ast::Expr],
        items: &[Item<'_>],
        having: Option<&ast::Expr>,
        hint: Option<String>,
        at: Location,
    ) -> Result<Option<Arc<Rel>>> {
        let calls = RefCell::new(Vec::new());
        let cx = Context { calls: Some(&calls), ..Context::new(source.scope(), at, self.time_zone) };
        let bound = items
            .iter()
            .map(|item| match &item.expr {
                ItemExpr::Ast(expr) => cx.bind(expr),
                ItemExpr::Bound(value) => Ok(value.clone()),
            })
            .collect::<Result<Vec<_>>>()?;
        if groups.is_empty() && calls.borrow().is_empty() {
            return Ok(None);
        }
        let having = having.map(|having| Ok((cx.condition(having)?, start(having.span(), at)))).transpose()?;
        let plain = Context { calls: None, ..cx };
        let mut keys: Vec<(Value, String)> = Vec::new();
        let mut roles = Vec::new();
        for group in groups {
            let place = start(group.span(), at);
            refuse_if(
                matches!(group, ast::Expr::Rollup(_) | ast::Expr::Cube(_) | ast::Expr::GroupingSets(_)),
                place,
                "ROLLUP, CUBE and GROUPING SETS",
                "Write one INSERT per grouping.",
            )?;
            let value = plain.bind(group)?;
            let role = column_index(&value.expr).map_or(Role::Plain, |index| source.rel.columns[index].role);
            match role {
                Role::WindowStart | Role::WindowEnd | Role::WindowTime => roles.push(role),
                _ if keys.iter().any(|(key, _)| key.expr == value.expr) => {}
                _ => {
                    groupable(&value, place)?;
                    keys.push((value, group.to_string()));
                }
            }
        }
        let place = groups.first().map_or(at, |group| start(group.span(), at));
        if !(roles.contains(&Role::WindowStart) && roles.contains(&Role::WindowEnd)) {
            return Err(no_window(&roles, groups.is_empty(), place));
        }
        let aggregate = aggregate_rel(source, &keys, calls.into_inner(), hint);
        Ok(Some(self.project(source, aggregate, &keys, items, bound, having)?))
    }

    /// SELECT and HAVING on top of an aggregate.
    fn project(
        &self,
        source: &Source,
        aggregate: Rel,
        keys: &[(Value, String)],
        items: &[Item<'_>],
        bound: Vec<Value>,
        having: Option<(Value, Location)>,
    ) -> Result<Arc<Rel>> {
        let predicate = match having {
            Some((value, place)) => Some(over_aggregate(&value.expr, source, &aggregate, keys, place)?),
            None => None,
        };
        let mut exprs = Vec::with_capacity(items.len());
        let mut columns = Vec::with_capacity(items.len());
        for (index, (item, value)) in items.iter().zip(bound).enumerate() {
            let expr = over_aggregate(&value.expr, source, &aggregate, keys, item.at)?;
            let value = Value { expr, ..value };
            columns.push(item.column(index, &value, &aggregate.columns)?);
            exprs.push(value.expr);
        }
        let names = items.iter().map(Item::name).zip(&exprs);
        let input = Arc::new(named_calls(aggregate, keys.len(), names));
        Ok(Arc::new(Rel { kind: Kind::Calc { input, predicate, exprs }, columns }))
    }
}

/// The aggregate with its calls named as in SELECT, where it selects them as they are: that is what people find in its
/// state. Names stay unique.
fn named_calls<'n>(aggregate: Rel, keys: usize, selected: impl Iterator<Item = (Option<&'n str>, &'n Expr)>) -> Rel {
    let Rel { kind, mut columns } = aggregate;
    let calls = keys..columns.len() - 3;
    for (name, expr) in selected {
        let (Some(name), Some(index)) = (name, column_index(expr)) else { continue };
        if calls.contains(&index) && !name.contains('$') && columns.iter().all(|column| column.name != name) {
            columns[index].name = name.to_owned();
        }
    }
    Rel { kind, columns }
}

fn groupable(value: &Value, place: Location) -> Result<()> {
    match value.data_type {
        DataType::Struct(_) | DataType::List(_) | DataType::Map(..) => {
            Err(unsupported(place, format!("grouping by {}", value.type_name()), "Group by its fields."))
        }
        DataType::Float32 | DataType::Float64 | DataType::Null => {
            Err(unsupported(place, format!("grouping by {}", value.type_name()), "CAST it to DECIMAL or STRING."))
        }
        _ => Ok(()),
    }
}

fn no_window(roles: &[Role], global: bool, place: Location) -> weir_types::Error {
    if roles.is_empty() {
        let what = if global { "an aggregate without a window" } else { "GROUP BY without a window" };
        return unsupported(
            place,
            what,
            "Aggregate over a window: FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), \
            INTERVAL '10' SECOND)) GROUP BY window_start, window_end, …",
        );
    }
    invalid(place, "GROUP BY needs both window_start and window_end")
        .with_hint("Write GROUP BY window_start, window_end and then the keys.")
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

fn aggregate_rel(source: &Source, keys: &[(Value, String)], calls: Vec<Call>, hint: Option<String>) -> Rel {
    let input = &source.rel.columns;
    let mut columns: Vec<Column> = keys
        .iter()
        .map(|(value, text)| match column_index(&value.expr) {
            // Event time as a key is a plain value from here on.
            Some(index) => Column { role: Role::Plain, ..input[index].clone() },
            None => Column::plain(text, value.data_type.clone(), value.nullable),
        })
        .collect();
    for (index, call) in calls.iter().enumerate() {
        let name = match call.function {
            AggregateFunction::Count => "count",
            AggregateFunction::Sum => "sum",
            AggregateFunction::Min => "min",
            AggregateFunction::Max => "max",
            AggregateFunction::Avg => "avg",
        };
        columns.push(Column::plain(format!("{name}${index}"), call.data_type.clone(), call.nullable));
    }
    let of_role = |wanted: Role| input.iter().find(|column| column.role == wanted);
    let local = DataType::Timestamp(TimeUnit::Millisecond, None);
    let type_of = |role: Role| of_role(role).map_or(local.clone(), |column| column.data_type.clone());
    for (name, role) in
        [("window_start", Role::WindowStart), ("window_end", Role::WindowEnd), ("window_time", Role::WindowTime)]
    {
        columns.push(Column {
            name: name.to_owned(),
            data_type: type_of(role),
            nullable: false,
            role,
            at: None,
            weight: 1,
        });
    }
    let kind = Kind::Aggregate {
        input: Arc::clone(&source.rel),
        keys: keys.iter().map(|(value, _)| value.expr.clone()).collect(),
        calls,
        hint,
    };
    Rel { kind, columns }
}

/// Rewrites an expression over an aggregate's input, with call placeholders, to one over its output.
fn over_aggregate(
    expr: &Expr,
    source: &Source,
    aggregate: &Rel,
    keys: &[(Value, String)],
    place: Location,
) -> Result<Expr> {
    let calls = aggregate.columns.len() - keys.len() - 3;
    let mut foreign = None;
    let rewritten = expr
        .clone()
        .transform_down(|node| {
            if let Some(key) = keys.iter().position(|(key, _)| key.expr == node) {
                return Ok(Transformed::new(column(key), true, TreeNodeRecursion::Jump));
            }
            if let Some(call) = placeholder_index(&node) {
                return Ok(Transformed::new(column(keys.len() + call), true, TreeNodeRecursion::Jump));
            }
            if let Some(index) = column_index(&node) {
                let first = keys.len() + calls;
                let position = match source.rel.columns[index].role {
                    Role::WindowStart => Some(first),
                    Role::WindowEnd => Some(first + 1),
                    Role::WindowTime => Some(first + 2),
                    Role::Plain | Role::Rowtime => None,
                };
                if let Some(position) = position {
                    return Ok(Transformed::new(column(position), true, TreeNodeRecursion::Jump));
                }
                foreign.get_or_insert(index);
            }
            Ok(Transformed::no(node))
        })
        .data()
        .map_err(crate::rel::internal)?;
    match foreign {
        Some(index) => Err(invalid(place, format!("column {} is not grouped by", source.rel.columns[index].name))
            .with_hint("Add it to GROUP BY, or aggregate it: MAX(…).")),
        None => Ok(rewritten),
    }
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
