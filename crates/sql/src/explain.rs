//! `EXPLAIN`: the job graph as a tree of operators, from the sinks up to the sources, and as JSON.

use std::collections::BTreeSet;
use std::fmt::Write;

use arrow::datatypes::SchemaRef;
use serde_json::{Value, json};
use sqlparser::tokenizer::Location;
use weir_functions::types;
use weir_types::connector::ConnectorKind;
use weir_types::graph::{
    AggregateFunction, AggregateSpec, CalcSpec, ConnectorSpec, Edge, Exchange, JobGraph, Operator, OperatorSpec,
    Output, SourceSpec, WindowAggregateSpec, WindowColumn, WindowSpec,
};
use weir_types::ids::OperatorId;

use crate::catalog::{Origin, Table};
use crate::rel::Column;
use crate::text::duration;

/// The table that `EXPLAIN SELECT …` pretends to write.
pub(crate) fn result_table(columns: &[Column], location: Location) -> Table {
    Table {
        name: "result".to_owned(),
        location,
        columns: columns.to_vec(),
        origins: vec![Origin::Physical; columns.len()],
        watermark: None,
        primary_key: Vec::new(),
        connector: ConnectorSpec { kind: ConnectorKind::Print, options: Default::default() },
        late_rows_table: None,
    }
}

/// The plan for people.
pub(crate) fn text(graph: &JobGraph) -> String {
    let mut out = String::new();
    let mut shown = BTreeSet::new();
    for operator in &graph.operators {
        if matches!(operator.spec, OperatorSpec::Sink(_)) {
            tree(graph, operator, None, 0, &mut shown, &mut out);
        }
    }
    out
}

fn tree(
    graph: &JobGraph,
    operator: &Operator,
    edge: Option<&Edge>,
    depth: usize,
    shown: &mut BTreeSet<OperatorId>,
    out: &mut String,
) {
    let parallelism = graph.chain_of(operator.id).map_or(graph.options.parallelism, |chain| chain.parallelism);
    let indent = "  ".repeat(depth);
    let via = edge.map(|edge| exchange(graph, edge)).unwrap_or_default();
    let input = graph.input_schema(operator.id);
    // Writing to a String cannot fail.
    let _ = write!(out, "{indent}[{}] {}{}", operator.id, line(operator, input), changelog_note(graph, operator));
    if !shown.insert(operator.id) {
        let _ = writeln!(out, "{via} (see above)");
        return;
    }
    let _ = writeln!(out, " parallelism={parallelism}{via}");
    for detail in details(operator, input) {
        let _ = writeln!(out, "{indent}      {detail}");
    }
    for edge in graph.inputs(operator.id) {
        if let Some(input) = graph.operator(edge.from) {
            tree(graph, input, Some(edge), depth + 1, shown, out);
        }
    }
}

fn exchange(graph: &JobGraph, edge: &Edge) -> String {
    let late = if edge.output == Output::Late { ", late rows" } else { "" };
    let name = |key: &usize| match graph.edge_schema(edge).and_then(|schema| schema.fields().get(*key)) {
        Some(field) => field.name().clone(),
        None => format!("${key}"),
    };
    let via = match &edge.exchange {
        Exchange::Chained => "chained".to_owned(),
        Exchange::Forward => "forward".to_owned(),
        Exchange::Rebalance => "rebalance".to_owned(),
        Exchange::Hash { keys } if keys.is_empty() => "all to one".to_owned(),
        Exchange::Hash { keys } => format!("hash({})", keys.iter().map(name).collect::<Vec<_>>().join(", ")),
    };
    format!(" → {via}{late}")
}

fn line(operator: &Operator, input: Option<&SchemaRef>) -> String {
    match &operator.spec {
        OperatorSpec::Source(source) => format!("Source({}) {}", source.table, source.connector.kind),
        OperatorSpec::Calc(_) => format!("Calc [{}]", columns(&operator.schema)),
        OperatorSpec::WindowAggregate(window) => {
            let keys: Vec<String> = window.keys.iter().map(|key| column_name(input, *key)).collect();
            let by = if keys.is_empty() { String::new() } else { format!(" by {}", keys.join(", ")) };
            let time = column_name(input, window.time_column);
            format!("WindowAggregate({}, {time}){by}", window_text(&window.window))
        }
        OperatorSpec::GroupAggregate(group) => {
            let keys: Vec<String> = group.keys.iter().map(|key| column_name(input, *key)).collect();
            let by = if keys.is_empty() { String::new() } else { format!(" by {}", keys.join(", ")) };
            format!("GroupAggregate{by}")
        }
        OperatorSpec::Sink(sink) => {
            format!("Sink({}) {} [{}]", sink.table, sink.connector.kind, columns(&operator.schema))
        }
    }
}

/// The changes that flow out of an operator, or into a sink. Those that make inserts only need no note, but sinks.
fn changelog_note(graph: &JobGraph, operator: &Operator) -> String {
    let changelog = graph.changelog(operator.id);
    match operator.spec {
        OperatorSpec::Sink(_) => format!(" changelogMode={changelog}"),
        _ if changelog.is_inserts() => String::new(),
        _ => format!(" changelogMode={changelog}"),
    }
}

/// The name of a column of an operator's input.
fn column_name(input: Option<&SchemaRef>, index: usize) -> String {
    match input.and_then(|schema| schema.fields().get(index)) {
        Some(field) => field.name().clone(),
        None => format!("${index}"),
    }
}

fn columns(schema: &SchemaRef) -> String {
    schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// Lines below the operator's own.
fn details(operator: &Operator, input: Option<&SchemaRef>) -> Vec<String> {
    match &operator.spec {
        OperatorSpec::Source(source) => source_details(source, &operator.schema),
        OperatorSpec::Calc(calc) => calc_details(calc, &operator.schema),
        OperatorSpec::WindowAggregate(window) => window_details(window, input),
        OperatorSpec::GroupAggregate(group) => {
            let calls: Vec<String> = group.aggregates.iter().map(|call| call_text(call, input)).collect();
            if calls.is_empty() { Vec::new() } else { vec![format!("aggregates: {}", calls.join(", "))] }
        }
        OperatorSpec::Sink(sink) => {
            sink.connector.options.iter().map(|(key, value)| format!("{key}: {value}")).collect()
        }
    }
}

fn source_details(source: &SourceSpec, output: &SchemaRef) -> Vec<String> {
    let typed = |field: &arrow::datatypes::FieldRef| format!("{} {}", field.name(), types::column(field));
    let scan: Vec<String> = source.scan_schema.fields().iter().map(typed).collect();
    let mut details: Vec<String> =
        source.connector.options.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    details.push(format!("scan: {}", scan.join(", ")));
    for (index, key) in &source.metadata {
        details.push(format!("metadata: {} from '{key}'", source.scan_schema.field(*index).name()));
    }
    for filter in &source.pushed_filters {
        let values: Vec<String> = filter.values.iter().map(ToString::to_string).collect();
        details.push(format!("pushed filter: {} IN ({})", filter.column, values.join(", ")));
    }
    details.extend(source.calc.iter().flat_map(|calc| calc_details(calc, output)));
    if let Some(watermark) = &source.watermark {
        let name = output.field(watermark.column).name();
        details.push(format!("watermark: {name} AS {}", watermark.expr.text));
    }
    details
}

fn calc_details(calc: &CalcSpec, output: &SchemaRef) -> Vec<String> {
    let filter = calc.predicate.iter().map(|predicate| format!("where: {}", predicate.text));
    let computed = calc.projection.iter().zip(output.fields()).map(|(expr, field)| match &expr.text == field.name() {
        true => expr.text.clone(),
        false => format!("{} AS {}", expr.text, field.name()),
    });
    let computed: Vec<String> = computed.collect();
    filter.chain([format!("select: {}", computed.join(", "))]).collect()
}

fn window_details(window: &WindowAggregateSpec, input: Option<&SchemaRef>) -> Vec<String> {
    let calls: Vec<String> = window.aggregates.iter().map(|call| call_text(call, input)).collect();
    let added: Vec<&str> = window.window_columns.iter().map(window_column).collect();
    let mut details = vec![format!("aggregates: {}", calls.join(", "))];
    if !added.is_empty() {
        details.push(format!("window columns: {}", added.join(", ")));
    }
    if window.emit_late_rows {
        details.push("late rows: to a side output".to_owned());
    }
    details
}

fn window_column(column: &WindowColumn) -> &'static str {
    match column {
        WindowColumn::Start => "window_start",
        WindowColumn::End => "window_end",
        WindowColumn::Time => "window_time",
    }
}

fn call_text(call: &AggregateSpec, input: Option<&SchemaRef>) -> String {
    let name = |index: usize| column_name(input, index);
    let function = match call.function {
        AggregateFunction::Count => "COUNT",
        AggregateFunction::Sum => "SUM",
        AggregateFunction::Min => "MIN",
        AggregateFunction::Max => "MAX",
        AggregateFunction::Avg => "AVG",
    };
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    let argument = call.argument.map_or("*".to_owned(), name);
    let filter = call.filter.map(|filter| format!(" FILTER (WHERE {})", name(filter))).unwrap_or_default();
    format!("{function}({distinct}{argument}){filter}")
}

/// The plan for programs.
pub(crate) fn json(graph: &JobGraph) -> Value {
    let operators: Vec<Value> = graph
        .operators
        .iter()
        .map(|operator| {
            let input = graph.input_schema(operator.id);
            let inputs: Vec<Value> = graph
                .inputs(operator.id)
                .map(|edge| json!({ "from": edge.from, "output": edge.output, "exchange": edge.exchange }))
                .collect();
            let chain = graph.chain_of(operator.id);
            json!({
                "id": operator.id,
                "uid": operator.uid,
                "name": operator.name,
                "chain": chain.as_ref().map(|chain| chain.id.0),
                "parallelism": chain.map(|chain| chain.parallelism),
                "operator": line(operator, input),
                "changelog_mode": graph.changelog(operator.id).to_string(),
                "details": details(operator, input),
                "columns": operator.schema.fields().iter()
                    .map(|field| json!({ "name": field.name(), "type": types::column(field) })).collect::<Vec<_>>(),
                "inputs": inputs,
            })
        })
        .collect();
    json!({ "name": graph.name, "operators": operators })
}

fn window_text(window: &WindowSpec) -> String {
    match *window {
        WindowSpec::Tumble { size_ms, offset_ms } => format!("TUMBLE {}{}", duration(size_ms), offset_text(offset_ms)),
        WindowSpec::Hop { size_ms, slide_ms, offset_ms } => {
            format!("HOP {} every {}{}", duration(size_ms), duration(slide_ms), offset_text(offset_ms))
        }
    }
}

fn offset_text(offset_ms: i64) -> String {
    if offset_ms == 0 { String::new() } else { format!(" offset {}", duration(offset_ms)) }
}
