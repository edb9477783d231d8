//! A user's script computed in batch: the job graph's operators over the whole input at once, aggregates by DataFusion.
//!
//! It shares the planner and the scalar functions with the engine, so it is a consistency check of the streaming part
//! (partitions, exchanges, watermarks, snapshots, rescaling), not an independent proof of the query's meaning.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::functions_aggregate::expr_fn;
use datafusion::logical_expr::{Expr, ExprFunctionExt, ident};
use datafusion::prelude::SessionContext;
use weir_types::connector::ConnectorKind;
use weir_types::graph::{
    AggregateFunction, AggregateSpec, CalcSpec, Edge, JobGraph, Operator, OperatorSpec, Output, SourceSpec,
    WindowAggregateSpec, WindowColumn, WindowSpec,
};
use weir_types::ids::OperatorId;
use weir_types::{Code, Error, Result};

/// The stream that receives late rows, if the script names one.
pub(crate) fn late_stream(graph: &JobGraph) -> Option<(String, SchemaRef)> {
    let edge = graph.edges.iter().find(|edge| edge.output == Output::Late)?;
    sink_below(graph, edge.to).and_then(stream_of)
}

/// The stream that the script's results go to.
///
/// # Errors
/// `UNSUPPORTED` unless there is exactly one.
pub(crate) fn result_stream(graph: &JobGraph) -> Result<String> {
    let late = late_stream(graph).map(|(stream, _)| stream);
    let mut streams = graph.operators.iter().filter_map(stream_of).map(|(stream, _)| stream);
    let found = streams.by_ref().find(|stream| Some(stream) != late.as_ref());
    let further = streams.any(|stream| Some(stream) != late);
    found.filter(|_| !further).ok_or_else(|| unsupported("the script must write one stream, late rows aside"))
}

/// Computes the script's result over `input` (JSON lines), less the `late` rows (JSON lines as the job wrote them).
///
/// # Errors
/// `UNSUPPORTED` for graphs that this check cannot compute; evaluation errors.
pub(crate) async fn compute(graph: &JobGraph, input: &[String], late: &[String]) -> Result<RecordBatch> {
    let mut results: BTreeMap<OperatorId, RecordBatch> = BTreeMap::new();
    let mut late_found = 0;
    let mut output = None;
    for operator in &graph.operators {
        let inputs: Vec<&Edge> = graph.inputs(operator.id).collect();
        if inputs.iter().any(|edge| edge.output == Output::Late) {
            continue;
        }
        let given: Vec<&RecordBatch> = inputs.iter().filter_map(|edge| results.get(&edge.from)).collect();
        if given.is_empty() && !inputs.is_empty() {
            continue;
        }
        let rows = match (&operator.spec, given.first()) {
            (OperatorSpec::Source(spec), _) => scan(spec, &operator.schema, input)?,
            (_, None) => continue,
            (OperatorSpec::Calc(spec), Some(first)) => calc(spec, &operator.schema, &concat(first, &given)?)?,
            (OperatorSpec::WindowAggregate(spec), Some(first)) => {
                let all = concat(first, &given)?;
                let on_time = match late_stream(graph) {
                    Some((_, schema)) if spec.emit_late_rows => without(&all, &decode(&schema, late)?)?,
                    _ => all.clone(),
                };
                late_found += all.num_rows() - on_time.num_rows();
                aggregate(spec, &operator.schema, &on_time).await?
            }
            (OperatorSpec::GroupAggregate(_), Some(_)) => {
                return Err(unsupported("the script has results that change"));
            }
            (OperatorSpec::Sink(_), Some(first)) => {
                let rows = concat(first, &given)?;
                if stream_of(operator).is_some() {
                    output = Some(rows.clone());
                }
                rows
            }
        };
        results.insert(operator.id, rows);
    }
    if late_found != late.len() {
        let detail = format!("{} late rows were written, {late_found} of them are in the input", late.len());
        return Err(Error::internal("the late rows are not a part of the input").with_detail(detail));
    }
    output.ok_or_else(|| unsupported("the script writes no stream"))
}

/// One text per row, equal for equal rows.
///
/// # Errors
/// `INTERNAL` for a type that cannot be shown.
pub(crate) fn texts(rows: &RecordBatch) -> Result<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let columns = rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>().map_err(internal)?;
    let names: Vec<&str> = rows.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
    let text = |row| names.iter().zip(&columns).map(move |(name, column)| format!("{name}={}", column.value(row)));
    Ok((0..rows.num_rows()).map(|row| text(row).collect::<Vec<_>>().join(" ")).collect())
}

/// Decodes JSON lines.
///
/// # Errors
/// `MALFORMED_RECORD` if a line does not fit the schema.
pub(crate) fn decode(schema: &SchemaRef, lines: &[String]) -> Result<RecordBatch> {
    let text = lines.join("\n");
    let reader = arrow::json::ReaderBuilder::new(Arc::clone(schema))
        .build(Cursor::new(text))
        .and_then(|reader| reader.collect::<std::result::Result<Vec<_>, _>>())
        .and_then(|batches| concat_batches(schema, &batches));
    reader.map_err(|error| {
        Error::new(Code::MalformedRecord, "could not decode JSON lines").with_detail(error.to_string())
    })
}

fn sink_below(graph: &JobGraph, id: OperatorId) -> Option<&Operator> {
    let operator = graph.operator(id)?;
    if matches!(operator.spec, OperatorSpec::Sink(_)) {
        return Some(operator);
    }
    graph.outputs(id).find_map(|edge| sink_below(graph, edge.to))
}

/// The stream that a sink writes, and what it writes there.
fn stream_of(operator: &Operator) -> Option<(String, SchemaRef)> {
    match &operator.spec {
        OperatorSpec::Sink(sink) if sink.connector.kind == ConnectorKind::StreamStore => {
            Some((sink.connector.options.get("stream")?.clone(), Arc::clone(&operator.schema)))
        }
        _ => None,
    }
}

fn scan(spec: &SourceSpec, schema: &SchemaRef, input: &[String]) -> Result<RecordBatch> {
    if !spec.metadata.is_empty() || !spec.pushed_filters.is_empty() {
        return Err(unsupported("the script reads metadata columns"));
    }
    let rows = decode(&spec.scan_schema, input)?;
    match &spec.calc {
        Some(spec) => calc(spec, schema, &rows),
        None => Ok(rows),
    }
}

fn calc(spec: &CalcSpec, schema: &SchemaRef, rows: &RecordBatch) -> Result<RecordBatch> {
    let input = rows.schema();
    let evaluate = |expr, rows: &RecordBatch| -> Result<ArrayRef> {
        let expr = weir_functions::decode_expr(expr, &input)?;
        expr.evaluate(rows).and_then(|value| value.into_array(rows.num_rows())).map_err(internal)
    };
    let rows = match &spec.predicate {
        None => rows.clone(),
        Some(predicate) => {
            let keep = evaluate(predicate, rows)?;
            let keep: &BooleanArray = keep.as_boolean_opt().ok_or_else(|| Error::internal("not a predicate"))?;
            filter_record_batch(rows, keep).map_err(internal)?
        }
    };
    let columns = spec.projection.iter().map(|expr| evaluate(expr, &rows)).collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(internal)
}

fn concat(first: &RecordBatch, all: &[&RecordBatch]) -> Result<RecordBatch> {
    concat_batches(first.schema_ref(), all.iter().copied()).map_err(internal)
}

/// `all` less the rows of `removed`, compared by the columns that both have.
fn without(all: &RecordBatch, removed: &RecordBatch) -> Result<RecordBatch> {
    let shared: Vec<String> = removed
        .schema_ref()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .filter(|name| all.schema_ref().column_with_name(name).is_some())
        .collect();
    let select = |rows: &RecordBatch| -> Result<Vec<String>> {
        let indices: Vec<usize> = shared.iter().filter_map(|name| rows.schema_ref().index_of(name).ok()).collect();
        texts(&rows.project(&indices).map_err(internal)?)
    };
    let mut left: HashMap<String, usize> = HashMap::new();
    for text in select(removed)? {
        *left.entry(text).or_default() += 1;
    }
    let keep: BooleanArray = select(all)?
        .iter()
        .map(|text| match left.get_mut(text) {
            Some(count) if *count > 0 => {
                *count -= 1;
                Some(false)
            }
            _ => Some(true),
        })
        .collect();
    filter_record_batch(all, &keep).map_err(internal)
}

/// Name of the column with a window's first millisecond; no SQL identifier of a script clashes with it.
const WINDOW_START: &str = "window start\u{0}";

async fn aggregate(spec: &WindowAggregateSpec, schema: &SchemaRef, rows: &RecordBatch) -> Result<RecordBatch> {
    let rows = with_windows(spec, rows)?;
    let names: Vec<String> = (0..rows.num_columns() - 1).map(|index| format!("c{index}")).collect();
    let fields: Vec<Field> = rows
        .schema_ref()
        .fields()
        .iter()
        .zip(names.iter().map(String::as_str).chain([WINDOW_START]))
        .map(|(field, name)| Field::new(name, field.data_type().clone(), true))
        .collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec()).map_err(internal)?;
    let group = spec.keys.iter().map(|key| ident(&names[*key])).chain([ident(WINDOW_START)]).collect();
    let calls =
        spec.aggregates.iter().enumerate().map(|(index, call)| Ok(call_expr(call, &names)?.alias(format!("a{index}"))));
    let calls = calls.collect::<Result<Vec<Expr>>>()?;
    let batches = SessionContext::new()
        .read_batch(rows)
        .and_then(|frame| frame.aggregate(group, calls))
        .map_err(internal)?
        .collect()
        .await
        .map_err(internal)?;
    let Some(first) = batches.first() else { return Ok(RecordBatch::new_empty(Arc::clone(schema))) };
    let grouped = concat_batches(first.schema_ref(), &batches).map_err(internal)?;
    output_columns(spec, schema, &grouped)
}

/// One row per row and window that it falls into, the window's start in milliseconds as last column.
fn with_windows(spec: &WindowAggregateSpec, rows: &RecordBatch) -> Result<RecordBatch> {
    let time = rows.column(spec.time_column);
    let time =
        cast(time, &DataType::Timestamp(TimeUnit::Millisecond, None)).and_then(|time| cast(&time, &DataType::Int64));
    let time = time.map_err(internal)?;
    let time: &Int64Array = time.as_primitive();
    let (mut rows_taken, mut starts) = (Vec::new(), Vec::new());
    for (row, time) in time.iter().enumerate() {
        let time = time.ok_or_else(|| Error::new(Code::MalformedRecord, "a row has no event time"))?;
        let row = u32::try_from(row).map_err(|_| unsupported("more than 4 billion rows"))?;
        let (size_ms, slide_ms, offset_ms) = match spec.window {
            WindowSpec::Tumble { size_ms, offset_ms } => (size_ms, size_ms, offset_ms),
            WindowSpec::Hop { size_ms, slide_ms, offset_ms } => (size_ms, slide_ms, offset_ms),
        };
        let mut start = (time - offset_ms).div_euclid(slide_ms) * slide_ms + offset_ms;
        while start + size_ms > time {
            rows_taken.push(row);
            starts.push(start);
            start -= slide_ms;
        }
    }
    let taken = take_record_batch(rows, &UInt32Array::from(rows_taken)).map_err(internal)?;
    let mut fields: Vec<Arc<Field>> = taken.schema_ref().fields().to_vec();
    fields.push(Arc::new(Field::new(WINDOW_START, DataType::Int64, false)));
    let mut columns = taken.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(starts)));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(internal)
}

fn call_expr(call: &AggregateSpec, names: &[String]) -> Result<Expr> {
    let argument = call.argument.map(|index| ident(&names[index]));
    let value = || argument.clone().ok_or_else(|| Error::internal("an aggregate lacks its argument"));
    let decorate = |expr: Expr| -> Result<Expr> {
        if !call.distinct && call.filter.is_none() {
            return Ok(expr);
        }
        let mut builder = match call.filter {
            Some(filter) => expr.filter(ident(&names[filter])),
            None => expr.distinct(),
        };
        if call.distinct {
            builder = builder.distinct();
        }
        builder.build().map_err(internal)
    };
    let count_of = |value: Expr| decorate(expr_fn::count(value));
    match call.function {
        AggregateFunction::Count => count_of(argument.unwrap_or_else(|| datafusion::logical_expr::lit(1i64))),
        AggregateFunction::Sum => decorate(expr_fn::sum(value()?)),
        AggregateFunction::Min => decorate(expr_fn::min(value()?)),
        AggregateFunction::Max => decorate(expr_fn::max(value()?)),
        AggregateFunction::Avg => decorate(expr_fn::avg(value()?)),
    }
}

/// Keys, aggregates and window columns in the operator's order and types.
fn output_columns(spec: &WindowAggregateSpec, schema: &SchemaRef, grouped: &RecordBatch) -> Result<RecordBatch> {
    let keys = spec.keys.len();
    let starts: &Int64Array =
        grouped.column(keys).as_primitive_opt().ok_or_else(|| Error::internal("the window's start was lost"))?;
    let size_ms = match spec.window {
        WindowSpec::Tumble { size_ms, .. } | WindowSpec::Hop { size_ms, .. } => size_ms,
    };
    let mut columns: Vec<ArrayRef> = grouped.columns()[..keys].to_vec();
    columns.extend_from_slice(&grouped.columns()[keys + 1..]);
    for column in &spec.window_columns {
        let shift = match column {
            WindowColumn::Start => 0,
            WindowColumn::End => size_ms,
            WindowColumn::Time => size_ms - 1,
        };
        let ms: Int64Array = starts.unary(|start| start + shift);
        columns.push(cast(&ms, &DataType::Timestamp(TimeUnit::Millisecond, None)).map_err(internal)?);
    }
    let columns = columns.iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>().map_err(internal)?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(internal)
}

fn unsupported(why: &str) -> Error {
    Error::new(Code::Unsupported, "the result cannot be checked in batch").with_detail(why.to_owned())
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal("the batch computation failed").with_detail(error.to_string())
}
