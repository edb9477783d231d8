//! What is pushed into scans: columns and nested fields that nothing reads are pruned, `column IN (…)` filters are given
//! to the connector, and expressions are simplified by what such a filter says.
//!
//! Invariant: no filter crosses a watermark assigner, except one that the connector applies while it goes on advancing
//! event time with the rows that it leaves out (which needs a watermark of a constant delay).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{BinaryExpr, Operator};
use datafusion::prelude::Expr;
use weir_types::Result;
use weir_types::graph::PushedFilter;

use crate::catalog::{Origin, Table};
use crate::lower::{Node, NodeKind};
use crate::rel::{Column, column, column_index, columns_of, internal, substitute};
use crate::simplify::{conjunction, conjuncts, simplify};

/// A scan, ready to become a source operator.
#[derive(Debug)]
pub(crate) struct Scan {
    /// What the connector produces.
    pub(crate) columns: Vec<Column>,
    /// Metadata keys by index into `columns`.
    pub(crate) metadata: BTreeMap<usize, String>,
    pub(crate) filters: Vec<PushedFilter>,
    /// The source's output over `columns`; none: the columns as they are.
    pub(crate) exprs: Option<Vec<Expr>>,
    /// The rowtime column's index in the output, and the watermark over the output.
    pub(crate) watermark: Option<(usize, Expr, Option<i64>)>,
}

/// Plans the scan of source node `index` and rewrites the calcs that read it.
pub(crate) fn finish(nodes: &mut [Node], index: usize) -> Result<Scan> {
    let NodeKind::Source(table) = &nodes[index].kind else {
        return Err(weir_types::Error::internal("not a source"));
    };
    let table = Arc::clone(table);
    let consumers: Vec<usize> =
        (0..nodes.len()).filter(|node| nodes[*node].inputs.iter().any(|(from, _)| *from == index)).collect();
    let constant_delay = table.watermark.as_ref().map(|watermark| constant_delay_ms(&watermark.expr, watermark.column));
    let push_down = table.connector.options.get("push-down").is_none_or(|value| !value.eq_ignore_ascii_case("false"));
    let filter = if push_down && constant_delay.is_none_or(|delay| delay.is_some()) {
        common_filter(nodes, &consumers, &table)
    } else {
        None
    };
    if let Some(filter) = &filter {
        for consumer in &consumers {
            apply_filter(&mut nodes[*consumer], filter, &table)?;
        }
    }
    let mut used: BTreeSet<usize> = BTreeSet::new();
    for consumer in &consumers {
        each_expr(&nodes[*consumer], &mut |expr| {
            columns_of(expr, &mut |column| {
                used.insert(column);
            })
        });
    }
    if let Some(watermark) = &table.watermark {
        used.insert(watermark.column);
        columns_of(&watermark.expr, &mut |column| {
            used.insert(column);
        });
    }
    if used.is_empty() {
        // Rows are still counted: some column must carry them.
        used.insert(cheapest(&table));
    }
    let outputs: Vec<usize> = used.into_iter().collect();
    let mut computed = BTreeMap::new();
    for output in &outputs {
        if let Origin::Computed(expr) = &table.origins[*output] {
            let mut expr = expr.clone();
            if let Some(filter) = &filter {
                expr = simplify(filter.assume(expr)?, &table.columns)?;
            }
            computed.insert(*output, expr);
        }
    }
    let scan = scan_columns(nodes, &consumers, &table, &outputs, &computed, push_down);
    finish_consumers(nodes, &consumers, &outputs);
    let position = |column: usize| outputs.binary_search(&column).unwrap_or(0);
    let watermark = table.watermark.as_ref().map(|watermark| {
        let expr = substitute(&watermark.expr, &mut |index| column(position(index)));
        (position(watermark.column), expr, constant_delay.flatten())
    });
    let output_columns: Vec<Column> = outputs
        .iter()
        .map(|output| match scan.get(output) {
            Some((_, pruned, None)) => pruned.clone(),
            _ => table.columns[*output].clone(),
        })
        .collect();
    let exprs = output_exprs(&table, &outputs, &computed, &scan)?;
    nodes[index].columns = output_columns;
    let metadata = scan.values().filter_map(|(at, _, key)| Some((*at, key.clone()?))).collect();
    let mut columns: Vec<(usize, Column)> = scan.into_values().map(|(at, column, _)| (at, column)).collect();
    columns.sort_by_key(|(at, _)| *at);
    Ok(Scan {
        columns: columns.into_iter().map(|(_, column)| column).collect(),
        metadata,
        filters: filter.into_iter().map(|filter| filter.pushed).collect(),
        exprs,
        watermark,
    })
}

/// `rowtime - constant` or `rowtime` alone.
fn constant_delay_ms(expr: &Expr, rowtime: usize) -> Option<i64> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) if column_index(left) == Some(rowtime) => {
            match right.as_ref() {
                Expr::Literal(ScalarValue::DurationMillisecond(Some(ms)), _) => Some(*ms),
                Expr::Literal(ScalarValue::DurationMicrosecond(Some(us)), _) if us % 1000 == 0 => Some(us / 1000),
                Expr::Literal(ScalarValue::DurationNanosecond(Some(ns)), _) if ns % 1_000_000 == 0 => {
                    Some(ns / 1_000_000)
                }
                _ => None,
            }
        }
        expr if column_index(expr) == Some(rowtime) => Some(0),
        _ => None,
    }
}

/// A filter that every reader of a table applies, or a part of it.
struct Filter {
    /// The table's column.
    column: usize,
    pushed: PushedFilter,
    data_type: DataType,
}

impl Filter {
    /// The expression, for rows that pass the filter.
    fn assume(&self, expr: Expr) -> Result<Expr> {
        let known = match self.pushed.values.as_slice() {
            [value] => Some(*value),
            _ => None,
        };
        expr.transform_up(|node| {
            if let Some((column, value)) = equality(&node)
                && column == self.column
                && !self.pushed.values.contains(&value)
            {
                return Ok(Transformed::yes(Expr::Literal(ScalarValue::Boolean(Some(false)), None)));
            }
            if let (Some(column), Some(value)) = (column_index(&node), known)
                && column == self.column
            {
                let value = ScalarValue::Int64(Some(value)).cast_to(&self.data_type)?;
                return Ok(Transformed::yes(Expr::Literal(value, None)));
            }
            Ok(Transformed::no(node))
        })
        .data()
        .map_err(internal)
    }
}

fn integer(value: &ScalarValue) -> Option<i64> {
    if !value.data_type().is_signed_integer() {
        return None;
    }
    match value.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(value)) => value,
        _ => None,
    }
}

/// `column = literal`, either way round.
fn equality(expr: &Expr) -> Option<(usize, i64)> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = expr else { return None };
    match (column_index(left), &**right, column_index(right), &**left) {
        (Some(column), Expr::Literal(value, _), ..) | (_, _, Some(column), Expr::Literal(value, _)) => {
            Some((column, integer(value)?))
        }
        _ => None,
    }
}

/// `column = a`, `column IN (a, b)`, or several of these joined by OR.
fn in_set(expr: &Expr) -> Option<(usize, BTreeSet<i64>)> {
    if let Some((column, value)) = equality(expr) {
        return Some((column, BTreeSet::from([value])));
    }
    match expr {
        Expr::InList(list) if !list.negated => {
            let values = list.list.iter().map(|item| match item {
                Expr::Literal(value, _) => integer(value),
                _ => None,
            });
            Some((column_index(&list.expr)?, values.collect::<Option<_>>()?))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let ((left, mut values), (right, more)) = (in_set(left)?, in_set(right)?);
            values.extend(more);
            (left == right).then_some((left, values))
        }
        _ => None,
    }
}

/// The filter that all readers have in common: on one column, the union of their values.
fn common_filter(nodes: &[Node], consumers: &[usize], table: &Table) -> Option<Filter> {
    let pushable = table.kind().descriptor().filter_push_down;
    (0..table.columns.len())
        .filter(|index| {
            let Column { name, data_type, .. } = &table.columns[*index];
            let is_physical = table.origins[*index] == Origin::Physical;
            is_physical && data_type.is_signed_integer() && pushable.contains(&name.as_str())
        })
        .find_map(|index| {
            let mut union = BTreeSet::new();
            for consumer in consumers {
                let NodeKind::Calc { predicate: Some(predicate), .. } = &nodes[*consumer].kind else { return None };
                let sets = conjuncts(predicate)
                    .iter()
                    .filter_map(in_set)
                    .filter(|(column, _)| *column == index)
                    .collect::<Vec<_>>();
                let (_, values) = sets.into_iter().next()?;
                union.extend(values);
            }
            let Column { name, data_type, .. } = &table.columns[index];
            let pushed = PushedFilter { column: name.clone(), values: union.into_iter().collect() };
            (!pushed.values.is_empty()).then(|| Filter { column: index, pushed, data_type: data_type.clone() })
        })
}

/// Drops from a reader what the connector does for it, and simplifies the rest.
fn apply_filter(node: &mut Node, filter: &Filter, table: &Table) -> Result<()> {
    let NodeKind::Calc { predicate, exprs } = &mut node.kind else { return Ok(()) };
    let pushed: BTreeSet<i64> = filter.pushed.values.iter().copied().collect();
    let kept = predicate
        .iter()
        .flat_map(conjuncts)
        .filter(|conjunct| in_set(conjunct).is_none_or(|(column, values)| column != filter.column || values != pushed));
    let kept: Vec<Expr> = kept.collect();
    *predicate = conjunction(kept).map(|kept| simplify(filter.assume(kept)?, &table.columns)).transpose()?;
    for expr in exprs {
        *expr = simplify(filter.assume(expr.clone())?, &table.columns)?;
    }
    Ok(())
}

fn each_expr(node: &Node, visit: &mut dyn FnMut(&Expr)) {
    if let NodeKind::Calc { predicate, exprs } = &node.kind {
        predicate.iter().chain(exprs).for_each(visit);
    }
}

/// The physical column that costs least to produce.
fn cheapest(table: &Table) -> usize {
    let width = |index: &usize| match &table.columns[*index].data_type {
        DataType::Boolean => 1,
        data_type => data_type.primitive_width().unwrap_or(usize::MAX),
    };
    (0..table.columns.len()).filter(|index| table.origins[*index] == Origin::Physical).min_by_key(width).unwrap_or(0)
}

/// Which fields of a column are read.
#[derive(Clone, Debug, Default)]
struct PathTree {
    whole: bool,
    fields: BTreeMap<String, PathTree>,
}

impl PathTree {
    fn add(&mut self, path: &[String]) {
        match path {
            [] => self.whole = true,
            [first, rest @ ..] => self.fields.entry(first.clone()).or_default().add(rest),
        }
    }

    fn prune(&self, data_type: &DataType) -> DataType {
        match data_type {
            DataType::Struct(fields) if !self.whole => {
                let kept: Fields = fields
                    .iter()
                    .filter_map(|field| {
                        let pruned = self.fields.get(field.name())?.prune(field.data_type());
                        Some(Field::new(field.name(), pruned, field.is_nullable()))
                    })
                    .collect();
                DataType::Struct(kept)
            }
            other => other.clone(),
        }
    }
}

/// The column and path of `#i.a.b`, if an expression is one.
fn path_of(expr: &Expr) -> Option<(usize, Vec<String>)> {
    if let Some(index) = column_index(expr) {
        return Some((index, Vec::new()));
    }
    let Expr::ScalarFunction(call) = expr else { return None };
    let ("$field", [row, Expr::Literal(ScalarValue::Utf8(Some(name)), _)]) = (call.func.name(), call.args.as_slice())
    else {
        return None;
    };
    let (index, mut path) = path_of(row)?;
    path.push(name.clone());
    Some((index, path))
}

fn collect_paths(expr: &Expr, into: &mut BTreeMap<usize, PathTree>) {
    let visited = expr.apply(|node| {
        Ok(match path_of(node) {
            Some((index, path)) => {
                into.entry(index).or_default().add(&path);
                TreeNodeRecursion::Jump
            }
            None => TreeNodeRecursion::Continue,
        })
    });
    debug_assert!(visited.is_ok(), "the closure never fails");
}

/// Scan columns by table column: position in the scan, column as scanned, metadata key.
type ScanColumns = BTreeMap<usize, (usize, Column, Option<String>)>;

fn scan_columns(
    nodes: &[Node],
    consumers: &[usize],
    table: &Table,
    outputs: &[usize],
    computed: &BTreeMap<usize, Expr>,
    push_down: bool,
) -> ScanColumns {
    let mut paths: BTreeMap<usize, PathTree> = BTreeMap::new();
    for consumer in consumers {
        each_expr(&nodes[*consumer], &mut |expr| collect_paths(expr, &mut paths));
    }
    if let Some(watermark) = &table.watermark {
        collect_paths(&watermark.expr, &mut paths);
        paths.entry(watermark.column).or_default().whole = true;
    }
    computed.values().for_each(|expr| collect_paths(expr, &mut paths));
    for output in outputs {
        // A column that is an output only to carry rows is read whole.
        paths.entry(*output).or_insert_with(|| PathTree { whole: true, fields: BTreeMap::new() });
    }
    let prunes = push_down && table.connector.prunes_columns();
    let mut scan = ScanColumns::new();
    for (index, origin) in table.origins.iter().enumerate() {
        let declared = &table.columns[index];
        let position = scan.len();
        match (origin, paths.get(&index)) {
            (Origin::Physical, Some(tree)) if prunes => {
                let data_type = tree.prune(&declared.data_type);
                scan.insert(index, (position, Column { data_type, ..declared.clone() }, None));
            }
            (Origin::Physical, _) if !prunes => {
                scan.insert(index, (position, declared.clone(), None));
            }
            (Origin::Metadata { key, native, .. }, Some(_)) => {
                let scanned = Column { name: declared.name.clone(), ..native.clone() };
                scan.insert(index, (position, scanned, Some(key.clone())));
            }
            _ => {}
        }
    }
    scan
}

/// Lets the readers refer to the source's output columns by their new positions.
fn finish_consumers(nodes: &mut [Node], consumers: &[usize], outputs: &[usize]) {
    let position = |column: usize| outputs.binary_search(&column).unwrap_or(0);
    for consumer in consumers {
        if let NodeKind::Calc { predicate, exprs } = &mut nodes[*consumer].kind {
            for expr in predicate.iter_mut().chain(exprs) {
                *expr = substitute(expr, &mut |index| column(position(index)));
            }
        }
    }
}

fn output_exprs(
    table: &Table,
    outputs: &[usize],
    computed: &BTreeMap<usize, Expr>,
    scan: &ScanColumns,
) -> Result<Option<Vec<Expr>>> {
    let scanned = |index: usize| match (scan.get(&index), &table.origins[index]) {
        (Some((at, found, _)), Origin::Metadata { .. }) if found.data_type != table.columns[index].data_type => {
            let context =
                crate::bind::Context::new(crate::bind::Scope { columns: &[], alias: None }, table.location, "UTC");
            let value = crate::bind::Value::new(column(*at), found.data_type.clone(), found.nullable);
            context.cast(value, &table.columns[index].data_type).map(|value| value.expr)
        }
        (Some((at, _, _)), _) => Ok(column(*at)),
        (None, _) => Err(weir_types::Error::internal(format!("column {index} of {} is not scanned", table.name))),
    };
    let mut exprs = Vec::with_capacity(outputs.len());
    for output in outputs {
        exprs.push(match computed.get(output) {
            Some(expr) => {
                let mut failed = None;
                let expr = substitute(expr, &mut |index| match scanned(index) {
                    Ok(expr) => expr,
                    Err(error) => {
                        failed = Some(error);
                        column(index)
                    }
                });
                match failed {
                    Some(error) => return Err(error),
                    None => expr,
                }
            }
            None => scanned(*output)?,
        });
    }
    let is_identity =
        exprs.len() == scan.len() && exprs.iter().enumerate().all(|(index, expr)| column_index(expr) == Some(index));
    Ok((!is_identity).then_some(exprs))
}
