//! Nodes become the job graph: scans planned, expressions simplified, guarded and encoded, exchanges chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::Column as DfColumn;
use datafusion::prelude::Expr;
use weir_functions::{EXPRESSION_VERSION, encode_expr};
use weir_types::graph::{
    CalcSpec, Edge, Exchange, GroupAggregateSpec, JobGraph, JobOptions, Operator, OperatorSpec, Output, ScalarExpr,
    SinkSpec, SourceSpec, WatermarkSpec, WindowAggregateSpec, WindowSpec,
};
use weir_types::ids::{OperatorId, Parallelism};
use weir_types::{Error, Result};

use crate::catalog::{Origin, Table};
use crate::lower::{GroupNode, Node, NodeKind, SinkNode, WindowNode};
use crate::rel::{Column, column, column_index, columns_of, substitute};
use crate::simplify::{guard, guard_predicate, simplify};
use crate::source::{self, Scan};
use crate::text::{duration, text};

/// Builds the graph of a job.
pub(crate) fn build(mut nodes: Vec<Node>, name: String, options: JobOptions) -> Result<JobGraph> {
    simplify_calcs(&mut nodes)?;
    prune_windows(&mut nodes);
    let mut scans = BTreeMap::new();
    for index in 0..nodes.len() {
        if matches!(nodes[index].kind, NodeKind::Source(_)) {
            scans.insert(index, source::finish(&mut nodes, index)?);
        }
    }
    let kept = elide(&mut nodes);
    let ids: BTreeMap<usize, OperatorId> =
        (0_u32..).zip(&kept).map(|(number, index)| (*index, OperatorId(number))).collect();
    let schemas: BTreeMap<usize, SchemaRef> =
        kept.iter().map(|index| (*index, schema_of(&nodes[*index].columns))).collect();
    let mut graph = JobGraph {
        name,
        options,
        operators: Vec::new(),
        edges: Vec::new(),
        expression_version: EXPRESSION_VERSION.to_owned(),
    };
    let mut single: BTreeSet<usize> = BTreeSet::new();
    for index in kept {
        let node = &nodes[index];
        let (spec, name) = match &node.kind {
            NodeKind::Source(table) => {
                let scan = scans.remove(&index).ok_or_else(|| Error::internal("a source without a scan"))?;
                (source_spec(table, scan, &schemas[&index])?, format!("Source({})", table.name))
            }
            NodeKind::Calc { predicate, exprs } => {
                let input = input_schema(&nodes, &schemas, node)?;
                let calc = calc_spec(predicate.as_ref(), exprs, &input)?;
                let name = if calc.predicate.is_some() { "Filter" } else { "Calc" };
                (OperatorSpec::Calc(calc), name.to_owned())
            }
            NodeKind::Window(window) => {
                let input = input_schema(&nodes, &schemas, node)?;
                (window_spec(window), window_name(window, &input))
            }
            NodeKind::Group(group) => {
                let input = input_schema(&nodes, &schemas, node)?;
                (group_spec(group), group_name(&group.keys, &input))
            }
            NodeKind::Sink(SinkNode { table, .. }) => (sink_spec(table), format!("Sink({})", table.name)),
        };
        let edges = edges(&nodes, index, &ids, &mut single, graph.options.parallelism);
        let parallelism_max = match &node.kind {
            NodeKind::Window(WindowNode { keys, .. }) | NodeKind::Group(GroupNode { keys, .. }) if keys.is_empty() => {
                Some(Parallelism::ONE)
            }
            _ => None,
        };
        let schema = Arc::clone(&schemas[&index]);
        graph.operators.push(Operator { id: ids[&index], uid: node.uid.clone(), name, spec, schema, parallelism_max });
        graph.edges.extend(edges);
    }
    graph.validate()?;
    Ok(graph)
}

fn simplify_calcs(nodes: &mut [Node]) -> Result<()> {
    for index in 0..nodes.len() {
        let Some((input, _)) = nodes[index].inputs.first().copied() else { continue };
        let columns = nodes[input].columns.clone();
        let columns = match nodes[index].inputs.first() {
            Some((input, Output::Late)) => late_input(nodes, *input).unwrap_or(columns),
            _ => columns,
        };
        if let NodeKind::Calc { predicate, exprs } = &mut nodes[index].kind {
            if let Some(condition) = predicate.take() {
                *predicate = Some(simplify(condition, &columns)?);
            }
            for expr in exprs {
                *expr = simplify(expr.clone(), &columns)?;
            }
        }
    }
    Ok(())
}

/// The columns of late rows: those of the window's input.
fn late_input(nodes: &[Node], window: usize) -> Option<Vec<Column>> {
    let (input, _) = nodes[window].inputs.first()?;
    Some(nodes[*input].columns.clone())
}

/// Drops the columns of windows that nobody reads.
fn prune_windows(nodes: &mut [Node]) {
    for index in 0..nodes.len() {
        let NodeKind::Window(window) = &nodes[index].kind else { continue };
        let first = window.keys.len() + window.calls.len();
        let consumers: Vec<usize> =
            (0..nodes.len()).filter(|node| nodes[*node].inputs.contains(&(index, Output::Main))).collect();
        if consumers.iter().any(|consumer| !matches!(nodes[*consumer].kind, NodeKind::Calc { .. })) {
            continue;
        }
        let mut used = BTreeSet::new();
        for consumer in &consumers {
            if let NodeKind::Calc { predicate, exprs } = &nodes[*consumer].kind {
                predicate.iter().chain(exprs).for_each(|expr| {
                    columns_of(expr, &mut |column| {
                        used.insert(column);
                    })
                });
            }
        }
        let kept: Vec<usize> = (0..first).chain((first..first + 3).filter(|column| used.contains(column))).collect();
        let position = |column: usize| kept.binary_search(&column).unwrap_or(0);
        for consumer in consumers {
            if let NodeKind::Calc { predicate, exprs } = &mut nodes[consumer].kind {
                for expr in predicate.iter_mut().chain(exprs) {
                    *expr = substitute(expr, &mut |index| column(position(index)));
                }
            }
        }
        let columns = kept.iter().map(|column| nodes[index].columns[*column].clone()).collect();
        nodes[index].columns = columns;
        if let NodeKind::Window(window) = &mut nodes[index].kind {
            let all = window.window_columns.clone();
            window.window_columns =
                kept.iter().filter_map(|column| all.get(column.checked_sub(first)?).copied()).collect();
        }
    }
}

/// Takes out calcs that change nothing; what is left, in order.
fn elide(nodes: &mut [Node]) -> Vec<usize> {
    let mut kept = Vec::new();
    for index in 0..nodes.len() {
        if let (NodeKind::Calc { predicate: None, exprs }, [(input, Output::Main)]) =
            (&nodes[index].kind, nodes[index].inputs.as_slice())
        {
            let input = *input;
            let below = unique_names(&nodes[input].columns);
            let same = |(a, b): (&Column, &Column)| a.data_type == b.data_type && a.nullable == b.nullable;
            let is_identity = exprs.len() == nodes[input].columns.len()
                && exprs.iter().enumerate().all(|(position, expr)| column_index(expr) == Some(position))
                && nodes[index].columns.iter().zip(&nodes[input].columns).all(same)
                && unique_names(&nodes[index].columns) == below;
            if is_identity {
                for node in nodes.iter_mut() {
                    for (from, _) in &mut node.inputs {
                        if *from == index {
                            *from = input;
                        }
                    }
                }
                continue;
            }
        }
        kept.push(index);
    }
    kept
}

/// Names of columns, with repeated ones told apart.
fn unique_names(columns: &[Column]) -> Vec<String> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    columns
        .iter()
        .map(|column| {
            let mut name = column.name.clone();
            let mut ordinal = 0;
            while !seen.insert(name.clone()) {
                name = format!("{}{ordinal}", column.name);
                ordinal += 1;
            }
            name
        })
        .collect()
}

fn schema_of(columns: &[Column]) -> SchemaRef {
    let fields: Vec<Field> = columns
        .iter()
        .zip(unique_names(columns))
        .map(|(column, name)| Field::new(name, column.data_type.clone(), column.nullable))
        .collect();
    Arc::new(Schema::new(fields))
}

fn input_schema(nodes: &[Node], schemas: &BTreeMap<usize, SchemaRef>, node: &Node) -> Result<SchemaRef> {
    let missing = || Error::internal("an operator without an input");
    let (input, output) = *node.inputs.first().ok_or_else(missing)?;
    let input = match output {
        Output::Main => input,
        Output::Late => nodes[input].inputs.first().ok_or_else(missing)?.0,
    };
    schemas.get(&input).cloned().ok_or_else(missing)
}

/// Encodes an expression over numbered columns for an input of this schema.
fn encode(expr: &Expr, input: &SchemaRef) -> Result<ScalarExpr> {
    encode_as(expr, guard(expr.clone())?, input)
}

/// Encodes what is guarded, shown as what was written.
fn encode_as(expr: &Expr, guarded: Expr, input: &SchemaRef) -> Result<ScalarExpr> {
    let name = |index: usize| input.fields().get(index).map_or("?".to_owned(), |field| field.name().clone());
    let shown = text(expr, &name);
    let named = substitute(&guarded, &mut |index| Expr::Column(DfColumn::new_unqualified(name(index))));
    encode_expr(&named, shown)
}

fn calc_spec(predicate: Option<&Expr>, exprs: &[Expr], input: &SchemaRef) -> Result<CalcSpec> {
    Ok(CalcSpec {
        predicate: predicate
            .map(|predicate| encode_as(predicate, guard_predicate(predicate.clone())?, input))
            .transpose()?,
        projection: exprs.iter().map(|expr| encode(expr, input)).collect::<Result<_>>()?,
    })
}

fn source_spec(table: &Table, scan: Scan, output: &SchemaRef) -> Result<OperatorSpec> {
    let scan_schema = schema_of(&scan.columns);
    let calc = scan.exprs.map(|exprs| calc_spec(None, &exprs, &scan_schema)).transpose()?;
    let watermark = match scan.watermark {
        Some((column, expr, constant_delay_ms)) => {
            Some(WatermarkSpec { column, expr: encode(&expr, output)?, constant_delay_ms })
        }
        None => None,
    };
    Ok(OperatorSpec::Source(SourceSpec {
        table: table.name.clone(),
        connector: table.connector.clone(),
        scan_schema,
        metadata: scan.metadata,
        pushed_filters: scan.filters,
        calc,
        watermark,
    }))
}

fn window_spec(window: &WindowNode) -> OperatorSpec {
    let WindowNode { window, time, keys, calls, window_columns, late } = window;
    OperatorSpec::WindowAggregate(WindowAggregateSpec {
        window: *window,
        time_column: *time,
        keys: keys.clone(),
        aggregates: calls.clone(),
        window_columns: window_columns.clone(),
        emit_late_rows: *late,
    })
}

fn group_spec(group: &GroupNode) -> OperatorSpec {
    let GroupNode { keys, calls, retracting, update_before } = group;
    OperatorSpec::GroupAggregate(GroupAggregateSpec {
        keys: keys.clone(),
        aggregates: calls.clone(),
        retracting: *retracting,
        update_before: *update_before,
    })
}

fn group_name(keys: &[usize], input: &SchemaRef) -> String {
    let name = |key: &usize| input.fields().get(*key).map_or("?", |field| field.name().as_str());
    let keys: Vec<&str> = keys.iter().map(name).collect();
    if keys.is_empty() { "GroupAggregate".to_owned() } else { format!("GroupAggregate by {}", keys.join(", ")) }
}

fn window_name(window: &WindowNode, input: &SchemaRef) -> String {
    let name = |index: usize| input.fields().get(index).map_or("?", |field| field.name().as_str());
    let time = name(window.time);
    let shape = match window.window {
        WindowSpec::Tumble { size_ms, .. } => format!("TumbleWindow({time}, {})", duration(size_ms)),
        WindowSpec::Hop { size_ms, slide_ms, .. } => {
            format!("HopWindow({time}, {} every {})", duration(size_ms), duration(slide_ms))
        }
    };
    let keys: Vec<&str> = window.keys.iter().map(|key| name(*key)).collect();
    if keys.is_empty() { shape } else { format!("{shape} by {}", keys.join(", ")) }
}

fn sink_spec(table: &Table) -> OperatorSpec {
    let writable = table.writable();
    let position = |column: &usize| writable.iter().position(|written| written == column);
    let metadata = writable.iter().enumerate().filter_map(|(position, column)| match &table.origins[*column] {
        Origin::Metadata { key, .. } => Some((position, key.clone())),
        Origin::Physical | Origin::Computed(_) => None,
    });
    OperatorSpec::Sink(SinkSpec {
        table: table.name.clone(),
        connector: table.connector.clone(),
        metadata: metadata.collect(),
        primary_key: table.primary_key.iter().filter_map(position).collect(),
    })
}

/// The edges into a node. Notes in `single` which nodes run as one subtask.
fn edges(
    nodes: &[Node],
    index: usize,
    ids: &BTreeMap<usize, OperatorId>,
    single: &mut BTreeSet<usize>,
    parallelism: Parallelism,
) -> Vec<Edge> {
    let node = &nodes[index];
    let alone = node.inputs.len() == 1;
    let mut edges = Vec::with_capacity(node.inputs.len());
    for (from, output) in &node.inputs {
        let narrow = single.contains(from) && parallelism != Parallelism::ONE;
        let exchange = match &node.kind {
            NodeKind::Window(WindowNode { keys, .. }) | NodeKind::Group(GroupNode { keys, .. }) => {
                Exchange::Hash { keys: keys.clone() }
            }
            // Updates of one row must not overtake one another.
            NodeKind::Sink(SinkNode { updating: true, .. }) if narrow && !alone => Exchange::Hash { keys: Vec::new() },
            NodeKind::Sink(SinkNode { updating: false, .. }) if narrow => Exchange::Rebalance,
            NodeKind::Sink(_) if !alone => Exchange::Forward,
            NodeKind::Calc { .. } | NodeKind::Sink(_) | NodeKind::Source(_) => {
                if single.contains(from) {
                    single.insert(index);
                }
                Exchange::Chained
            }
        };
        edges.push(Edge { from: ids[from], output: *output, to: ids[&index], exchange });
    }
    let keys = match &node.kind {
        NodeKind::Window(WindowNode { keys, .. }) | NodeKind::Group(GroupNode { keys, .. }) => Some(keys),
        NodeKind::Source(_) | NodeKind::Calc { .. } | NodeKind::Sink(_) => None,
    };
    if keys.is_some_and(Vec::is_empty) {
        single.insert(index);
    }
    edges
}
