//! Aggregates: over the windows that a window function assigns, and over all rows of a key.

use std::cell::RefCell;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::prelude::Expr;
use sqlparser::ast::{self, Spanned};
use sqlparser::tokenizer::Location;
use weir_types::Result;
use weir_types::graph::AggregateFunction;

use crate::bind::{Context, Value, placeholder_index};
use crate::error::{invalid, refuse_if, start, unsupported};
use crate::projection::{Item, ItemExpr};
use crate::query::{Binder, Source};
use crate::rel::{Call, Column, Kind, Rel, Role, column, column_index};

impl Binder<'_> {
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
        let windowed = !roles.is_empty();
        if windowed && !(roles.contains(&Role::WindowStart) && roles.contains(&Role::WindowEnd)) {
            return Err(invalid(place, "GROUP BY needs both window_start and window_end")
                .with_hint("Write GROUP BY window_start, window_end and then the keys."));
        }
        let aggregate = aggregate_rel(source, &keys, calls.into_inner(), windowed, hint);
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
    let calls = keys..keys + aggregate.calls();
    let Rel { kind, mut columns } = aggregate;
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

/// The rows of a relation, each once.
pub(crate) fn distinct(input: Arc<Rel>, hint: Option<String>, place: Location) -> Result<Arc<Rel>> {
    for found in &input.columns {
        let value = Value::new(column(0), found.data_type.clone(), found.nullable);
        groupable(&value, found.at.unwrap_or(place))?;
    }
    let columns = input.columns.iter().map(|found| Column { role: Role::Plain, ..found.clone() }).collect();
    let keys = (0..input.columns.len()).map(column).collect();
    Ok(Arc::new(Rel { kind: Kind::Group { input, keys, calls: Vec::new(), hint }, columns }))
}

fn aggregate_rel(
    source: &Source,
    keys: &[(Value, String)],
    calls: Vec<Call>,
    windowed: bool,
    hint: Option<String>,
) -> Rel {
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
    let group_keys: Vec<Expr> = keys.iter().map(|(value, _)| value.expr.clone()).collect();
    let rel = Arc::clone(&source.rel);
    if !windowed {
        return Rel { kind: Kind::Group { input: rel, keys: group_keys, calls, hint }, columns };
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
    Rel { kind: Kind::Aggregate { input: rel, keys: group_keys, calls, hint }, columns }
}

/// Rewrites an expression over an aggregate's input, with call placeholders, to one over its output.
fn over_aggregate(
    expr: &Expr,
    source: &Source,
    aggregate: &Rel,
    keys: &[(Value, String)],
    place: Location,
) -> Result<Expr> {
    let calls = aggregate.calls();
    let windowed = matches!(aggregate.kind, Kind::Aggregate { .. });
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
                if let Some(position) = position.filter(|_| windowed) {
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
