//! What is pushed into scans: columns and nested fields that nothing reads are pruned, `column IN (…)` filters are given
//! to the connector, and expressions are simplified by what such a filter says.
//!
//! Invariant: no filter crosses a watermark assigner, except one that the connector applies while it goes on advancing
//! event time with the rows that it leaves out (which needs a watermark of a constant delay).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::logical_expr::{BinaryExpr, Operator, lit};
use datafusion::prelude::Expr;
use weir_types::graph::PushedFilter;
use weir_types::{Error, Result};

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
        return Err(Error::internal("not a source"));
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
    let used: Vec<usize> = used.into_iter().collect();
    let mut computed = BTreeMap::new();
    for index in &used {
        if let Origin::Computed(expr) = &table.origins[*index] {
            let mut expr = expr.clone();
            if let Some(filter) = &filter {
                expr = simplify(filter.assume(expr)?, &table.columns)?;
            }
            computed.insert(*index, expr);
        }
    }
    let scan = scan_columns(nodes, &consumers, &table, &used, &computed, push_down);
    let outputs = Outputs::of(nodes, &consumers, &table, &used);
    for consumer in &consumers {
        if let NodeKind::Calc { predicate, exprs } = &mut nodes[*consumer].kind {
            for expr in predicate.iter_mut().chain(exprs) {
                *expr = outputs.rewrite(expr)?;
            }
        }
    }
    let watermark = match &table.watermark {
        Some(watermark) => {
            let rowtime = outputs.rewrite(&column(watermark.column))?;
            let rowtime = column_index(&rowtime).ok_or_else(|| Error::internal("the rowtime is no output"))?;
            Some((rowtime, outputs.rewrite(&watermark.expr)?, constant_delay.flatten()))
        }
        None => None,
    };
    let exprs = output_exprs(&table, &outputs, &computed, &scan)?;
    nodes[index].columns = outputs.columns;
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

/// What a source gives to its readers: columns of the table, and instead of a ROW that nobody reads whole, the fields
/// that are read, so that whatever filters rows moves no other field.
struct Outputs {
    paths: Vec<(usize, Vec<String>)>,
    columns: Vec<Column>,
}

impl Outputs {
    fn of(nodes: &[Node], consumers: &[usize], table: &Table, used: &[usize]) -> Self {
        let mut trees: BTreeMap<usize, PathTree> = BTreeMap::new();
        for consumer in consumers {
            each_expr(&nodes[*consumer], &mut |expr| collect_paths(expr, &mut trees));
        }
        if let Some(watermark) = &table.watermark {
            collect_paths(&watermark.expr, &mut trees);
            trees.entry(watermark.column).or_default().whole = true;
        }
        let mut outputs = Self { paths: Vec::new(), columns: Vec::new() };
        for index in used {
            match trees.get(index) {
                Some(tree) => outputs.add(*index, &mut Vec::new(), tree, &table.columns[*index]),
                None => outputs.add(*index, &mut Vec::new(), &PathTree::whole(), &table.columns[*index]),
            }
        }
        outputs
    }

    fn add(&mut self, index: usize, path: &mut Vec<String>, tree: &PathTree, column: &Column) {
        let fields = match &column.data_type {
            DataType::Struct(fields) if !tree.whole => fields,
            _ => {
                self.paths.push((index, path.clone()));
                self.columns.push(column.clone());
                return;
            }
        };
        for field in fields {
            if let Some(below) = tree.fields.get(field.name()) {
                path.push(field.name().clone());
                let name = format!("{}.{}", column.name, field.name());
                let nullable = column.nullable || field.is_nullable();
                self.add(index, path, below, &Column::plain(name, field.data_type().clone(), nullable));
                path.pop();
            }
        }
    }

    /// An expression over the table's columns, over the outputs.
    fn rewrite(&self, expr: &Expr) -> Result<Expr> {
        let rewritten = expr.clone().transform_down(|node| {
            let Some((index, path)) = path_of(&node) else { return Ok(Transformed::no(node)) };
            let found = (0..=path.len()).find_map(|length| {
                let prefix = &path[..length];
                let output = self.paths.iter().position(|(known, path)| *known == index && path == prefix)?;
                Some((output, length))
            });
            match found {
                Some((output, length)) => {
                    let expr = fields_of(column(output), &path[length..])?;
                    Ok(Transformed::new(expr, true, TreeNodeRecursion::Jump))
                }
                None => plan_err!("a column that is read is no output of its source"),
            }
        });
        rewritten.data().map_err(internal)
    }
}

/// `expr.a.b`
fn fields_of(expr: Expr, path: &[String]) -> datafusion::common::Result<Expr> {
    let udf = weir_functions::registry().function("$field")?;
    Ok(path.iter().fold(expr, |row, name| udf.call(vec![row, lit(name.as_str())])))
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
    fn whole() -> Self {
        Self { whole: true, fields: BTreeMap::new() }
    }

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
    used: &[usize],
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
    for output in used {
        // A column that is an output only to carry rows is read whole.
        paths.entry(*output).or_insert_with(PathTree::whole);
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

fn output_exprs(
    table: &Table,
    outputs: &Outputs,
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
        (None, _) => Err(Error::internal(format!("column {index} of {} is not scanned", table.name))),
    };
    let mut exprs = Vec::with_capacity(outputs.paths.len());
    for (index, path) in &outputs.paths {
        let whole = match computed.get(index) {
            Some(expr) => {
                let mut failed = None;
                let expr = substitute(expr, &mut |index| {
                    scanned(index).unwrap_or_else(|error| {
                        failed = Some(error);
                        column(index)
                    })
                });
                match failed {
                    Some(error) => return Err(error),
                    None => expr,
                }
            }
            None => scanned(*index)?,
        };
        exprs.push(fields_of(whole, path).map_err(internal)?);
    }
    let is_identity =
        exprs.len() == scan.len() && exprs.iter().enumerate().all(|(index, expr)| column_index(expr) == Some(index));
    Ok((!is_identity).then_some(exprs))
}
