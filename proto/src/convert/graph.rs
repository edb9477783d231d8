//! Job graphs on the wire and in the metadata log. What is decoded has been validated: a graph that breaks an invariant
//! of `weir_types::graph`, or refers to a column that does not exist, is refused here and never reaches an operator.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use weir_types::connector::ConnectorKind;
use weir_types::graph::{
    AggregateFunction, AggregateSpec, CalcSpec, ConnectorSpec, Edge, Exchange, GroupAggregateSpec, JobGraph,
    JobOptions, Operator, OperatorSpec, Output, PushedFilter, ScalarExpr, SinkSpec, SourceSpec, WatermarkSpec,
    WindowAggregateSpec, WindowColumn, WindowSpec,
};
use weir_types::ids::{OperatorId, Parallelism};
use weir_types::{Code, Error, Result};

use crate::pb::graph::v1 as pb;

mod restart;

/// The version of the encoding that this build writes, and the only one that it reads.
const VERSION: u32 = 1;

impl From<&JobGraph> for pb::JobGraph {
    fn from(graph: &JobGraph) -> Self {
        let JobGraph { name, options, operators, edges, expression_version } = graph;
        Self {
            version: VERSION,
            name: name.clone(),
            options: Some(options.into()),
            operators: operators.iter().map(Into::into).collect(),
            edges: edges.iter().map(Into::into).collect(),
            expression_version: expression_version.clone(),
        }
    }
}

impl TryFrom<pb::JobGraph> for JobGraph {
    type Error = Error;

    fn try_from(graph: pb::JobGraph) -> Result<Self> {
        let pb::JobGraph { version, name, options, operators, edges, expression_version } = graph;
        if version != VERSION {
            return Err(Error::new(Code::Unsupported, format!("job graph of encoding version {version}"))
                .with_hint(format!("This build reads version {VERSION}; run the same version of every process.")));
        }
        let graph = JobGraph {
            name,
            options: required(options, "options")?.try_into()?,
            operators: operators.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            edges: edges.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            expression_version,
        };
        graph.validate()?;
        Ok(graph)
    }
}

fn required<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| Error::invalid(format!("job graph without {what}")))
}

fn unknown(what: &str) -> Error {
    Error::invalid(format!("job graph with an unknown {what}"))
        .with_hint("Run the same version of every process.".to_owned())
}

fn schema_to_wire(schema: &Schema) -> bytes::Bytes {
    // Serialising a schema to memory cannot fail; an empty document would be refused by the reader.
    serde_json::to_vec(schema).unwrap_or_default().into()
}

fn schema_from_wire(json: &[u8]) -> Result<SchemaRef> {
    serde_json::from_slice::<Schema>(json)
        .map(Arc::new)
        .map_err(|error| Error::invalid("job graph with a malformed schema").with_detail(error.to_string()))
}

// Column numbers are `usize` in memory; no schema has 2^32 columns, and a number beyond any schema is refused by the
// reader's validation.
fn column(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn columns(indices: &[usize]) -> Vec<u32> {
    indices.iter().map(|index| column(*index)).collect()
}

fn indices(columns: Vec<u32>) -> Vec<usize> {
    columns.into_iter().map(|column| column as usize).collect()
}

fn metadata_to_wire(metadata: &BTreeMap<usize, String>) -> BTreeMap<u32, String> {
    metadata.iter().map(|(index, key)| (column(*index), key.clone())).collect()
}

fn metadata_from_wire(metadata: BTreeMap<u32, String>) -> BTreeMap<usize, String> {
    metadata.into_iter().map(|(index, key)| (index as usize, key)).collect()
}

impl From<&JobOptions> for pb::JobOptions {
    fn from(options: &JobOptions) -> Self {
        let JobOptions {
            parallelism,
            parallelism_min,
            checkpoint_interval_ms,
            checkpoint_timeout_ms,
            checkpoint_min_pause_ms,
            checkpoints_retained,
            checkpoint_failures_tolerated,
            checkpoints_incremental,
            buffer_timeout_ms,
            restart,
            local_time_zone,
            source_idle_timeout_ms,
            other,
        } = options;
        Self {
            parallelism: parallelism.get(),
            parallelism_min: parallelism_min.map(Parallelism::get),
            checkpoint_interval_ms: *checkpoint_interval_ms,
            checkpoint_timeout_ms: *checkpoint_timeout_ms,
            checkpoint_min_pause_ms: *checkpoint_min_pause_ms,
            checkpoints_retained: *checkpoints_retained,
            checkpoint_failures_tolerated: *checkpoint_failures_tolerated,
            buffer_timeout_ms: *buffer_timeout_ms,
            restart_attempts_max: None,
            restart_delay_ms: 0,
            restart: Some(restart.into()),
            local_time_zone: local_time_zone.clone(),
            source_idle_timeout_ms: *source_idle_timeout_ms,
            other: other.clone().into_iter().collect(),
            full_checkpoints: !checkpoints_incremental,
        }
    }
}

impl TryFrom<pb::JobOptions> for JobOptions {
    type Error = Error;

    fn try_from(options: pb::JobOptions) -> Result<Self> {
        let pb::JobOptions {
            parallelism,
            parallelism_min,
            checkpoint_interval_ms,
            checkpoint_timeout_ms,
            checkpoint_min_pause_ms,
            checkpoints_retained,
            checkpoint_failures_tolerated,
            buffer_timeout_ms,
            restart_attempts_max,
            restart_delay_ms,
            local_time_zone,
            source_idle_timeout_ms,
            other,
            full_checkpoints,
            restart,
        } = options;
        Ok(Self {
            parallelism: Parallelism::new(parallelism)?,
            parallelism_min: parallelism_min.map(Parallelism::new).transpose()?,
            checkpoint_interval_ms,
            checkpoint_timeout_ms,
            checkpoint_min_pause_ms,
            checkpoints_retained,
            checkpoint_failures_tolerated,
            buffer_timeout_ms,
            restart: restart
                .map_or_else(|| restart::of_older_build(restart_attempts_max, restart_delay_ms), Into::into),
            local_time_zone,
            source_idle_timeout_ms,
            other: other.into_iter().collect(),
            checkpoints_incremental: !full_checkpoints,
        })
    }
}

impl From<&Operator> for pb::Operator {
    fn from(operator: &Operator) -> Self {
        let Operator { id, uid, name, spec, schema, parallelism_max } = operator;
        let spec = match spec {
            OperatorSpec::Source(source) => pb::operator::Spec::Source(source.into()),
            OperatorSpec::Calc(calc) => pb::operator::Spec::Calc(calc.into()),
            OperatorSpec::WindowAggregate(window) => pb::operator::Spec::WindowAggregate(window.into()),
            OperatorSpec::GroupAggregate(group) => pb::operator::Spec::GroupAggregate(group.into()),
            OperatorSpec::Sink(sink) => pb::operator::Spec::Sink(sink.into()),
        };
        Self {
            id: id.0,
            uid: uid.clone(),
            name: name.clone(),
            spec: Some(spec),
            schema_json: schema_to_wire(schema),
            parallelism_max: parallelism_max.map(Parallelism::get),
        }
    }
}

impl TryFrom<pb::Operator> for Operator {
    type Error = Error;

    fn try_from(operator: pb::Operator) -> Result<Self> {
        let pb::Operator { id, uid, name, spec, schema_json, parallelism_max } = operator;
        let spec = match required(spec, "operator spec")? {
            pb::operator::Spec::Source(source) => OperatorSpec::Source(source.try_into()?),
            pb::operator::Spec::Calc(calc) => OperatorSpec::Calc(calc.into()),
            pb::operator::Spec::WindowAggregate(window) => OperatorSpec::WindowAggregate(window.try_into()?),
            pb::operator::Spec::GroupAggregate(group) => OperatorSpec::GroupAggregate(group.try_into()?),
            pb::operator::Spec::Sink(sink) => OperatorSpec::Sink(sink.try_into()?),
        };
        Ok(Self {
            id: OperatorId(id),
            uid,
            name,
            spec,
            schema: schema_from_wire(&schema_json)?,
            parallelism_max: parallelism_max.map(Parallelism::new).transpose()?,
        })
    }
}

impl From<&ScalarExpr> for pb::ScalarExpr {
    fn from(expr: &ScalarExpr) -> Self {
        let ScalarExpr { bytes, text } = expr;
        Self { encoded: bytes.clone().into(), text: text.clone() }
    }
}

impl From<pb::ScalarExpr> for ScalarExpr {
    fn from(expr: pb::ScalarExpr) -> Self {
        let pb::ScalarExpr { encoded, text } = expr;
        Self { bytes: encoded.into(), text }
    }
}

impl From<&ConnectorSpec> for pb::Connector {
    fn from(connector: &ConnectorSpec) -> Self {
        let ConnectorSpec { kind, options } = connector;
        Self { kind: kind.as_str().to_owned(), options: options.clone().into_iter().collect() }
    }
}

impl TryFrom<pb::Connector> for ConnectorSpec {
    type Error = Error;

    fn try_from(connector: pb::Connector) -> Result<Self> {
        let pb::Connector { kind, options } = connector;
        let kind = ConnectorKind::parse(&kind).ok_or_else(|| unknown(&format!("connector {kind:?}")))?;
        Ok(Self { kind, options: options.into_iter().collect() })
    }
}

impl From<&SourceSpec> for pb::Source {
    fn from(source: &SourceSpec) -> Self {
        let SourceSpec { table, connector, scan_schema, metadata, pushed_filters, calc, watermark } = source;
        Self {
            table: table.clone(),
            connector: Some(connector.into()),
            scan_schema_json: schema_to_wire(scan_schema),
            metadata: metadata_to_wire(metadata),
            pushed_filters: pushed_filters
                .iter()
                .map(|PushedFilter { column, values }| pb::PushedFilter {
                    column: column.clone(),
                    values: values.clone(),
                })
                .collect(),
            calc: calc.as_ref().map(Into::into),
            watermark: watermark.as_ref().map(|WatermarkSpec { column: index, expr, constant_delay_ms }| {
                pb::Watermark { column: column(*index), expr: Some(expr.into()), constant_delay_ms: *constant_delay_ms }
            }),
        }
    }
}

impl TryFrom<pb::Source> for SourceSpec {
    type Error = Error;

    fn try_from(source: pb::Source) -> Result<Self> {
        let pb::Source { table, connector, scan_schema_json, metadata, pushed_filters, calc, watermark } = source;
        let watermark = match watermark {
            None => None,
            Some(pb::Watermark { column, expr, constant_delay_ms }) => Some(WatermarkSpec {
                column: column as usize,
                expr: required(expr, "watermark expression")?.into(),
                constant_delay_ms,
            }),
        };
        Ok(Self {
            table,
            connector: required(connector, "connector")?.try_into()?,
            scan_schema: schema_from_wire(&scan_schema_json)?,
            metadata: metadata_from_wire(metadata),
            pushed_filters: pushed_filters
                .into_iter()
                .map(|pb::PushedFilter { column, values }| PushedFilter { column, values })
                .collect(),
            calc: calc.map(Into::into),
            watermark,
        })
    }
}

impl From<&CalcSpec> for pb::Calc {
    fn from(calc: &CalcSpec) -> Self {
        let CalcSpec { predicate, projection } = calc;
        Self { predicate: predicate.as_ref().map(Into::into), projection: projection.iter().map(Into::into).collect() }
    }
}

impl From<pb::Calc> for CalcSpec {
    fn from(calc: pb::Calc) -> Self {
        let pb::Calc { predicate, projection } = calc;
        Self { predicate: predicate.map(Into::into), projection: projection.into_iter().map(Into::into).collect() }
    }
}

impl From<&WindowAggregateSpec> for pb::WindowAggregate {
    fn from(spec: &WindowAggregateSpec) -> Self {
        let WindowAggregateSpec { window, time_column, keys, aggregates, window_columns, emit_late_rows } = spec;
        let window = match *window {
            WindowSpec::Tumble { size_ms, offset_ms } => {
                pb::window_aggregate::Window::Tumble(pb::Tumble { size_ms, offset_ms })
            }
            WindowSpec::Hop { size_ms, slide_ms, offset_ms } => {
                pb::window_aggregate::Window::Hop(pb::Hop { size_ms, slide_ms, offset_ms })
            }
        };
        let window_column = |column: &WindowColumn| match column {
            WindowColumn::Start => pb::WindowColumn::Start,
            WindowColumn::End => pb::WindowColumn::End,
            WindowColumn::Time => pb::WindowColumn::Time,
        };
        Self {
            window: Some(window),
            time_column: column(*time_column),
            keys: columns(keys),
            aggregates: aggregates.iter().map(Into::into).collect(),
            window_columns: window_columns.iter().map(|column| window_column(column).into()).collect(),
            emit_late_rows: *emit_late_rows,
        }
    }
}

impl TryFrom<pb::WindowAggregate> for WindowAggregateSpec {
    type Error = Error;

    fn try_from(spec: pb::WindowAggregate) -> Result<Self> {
        let pb::WindowAggregate { window, time_column, keys, aggregates, window_columns, emit_late_rows } = spec;
        let window = match required(window, "window")? {
            pb::window_aggregate::Window::Tumble(pb::Tumble { size_ms, offset_ms }) => {
                WindowSpec::Tumble { size_ms, offset_ms }
            }
            pb::window_aggregate::Window::Hop(pb::Hop { size_ms, slide_ms, offset_ms }) => {
                WindowSpec::Hop { size_ms, slide_ms, offset_ms }
            }
        };
        let window_column = |column: i32| match pb::WindowColumn::try_from(column) {
            Ok(pb::WindowColumn::Start) => Ok(WindowColumn::Start),
            Ok(pb::WindowColumn::End) => Ok(WindowColumn::End),
            Ok(pb::WindowColumn::Time) => Ok(WindowColumn::Time),
            Ok(pb::WindowColumn::Unspecified) | Err(_) => Err(unknown("window column")),
        };
        Ok(Self {
            window,
            time_column: time_column as usize,
            keys: indices(keys),
            aggregates: aggregates.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            window_columns: window_columns.into_iter().map(window_column).collect::<Result<_>>()?,
            emit_late_rows,
        })
    }
}

impl From<&GroupAggregateSpec> for pb::GroupAggregate {
    fn from(spec: &GroupAggregateSpec) -> Self {
        let GroupAggregateSpec { keys, aggregates, retracting, update_before } = spec;
        Self {
            keys: columns(keys),
            aggregates: aggregates.iter().map(Into::into).collect(),
            retracting: *retracting,
            update_before: *update_before,
        }
    }
}

impl TryFrom<pb::GroupAggregate> for GroupAggregateSpec {
    type Error = Error;

    fn try_from(spec: pb::GroupAggregate) -> Result<Self> {
        let pb::GroupAggregate { keys, aggregates, retracting, update_before } = spec;
        let aggregates = aggregates.into_iter().map(TryInto::try_into).collect::<Result<_>>()?;
        Ok(Self { keys: indices(keys), aggregates, retracting, update_before })
    }
}

impl From<&AggregateSpec> for pb::Aggregate {
    fn from(aggregate: &AggregateSpec) -> Self {
        let AggregateSpec { function, argument, distinct, filter } = aggregate;
        let function = match function {
            AggregateFunction::Count => pb::aggregate::Function::Count,
            AggregateFunction::Sum => pb::aggregate::Function::Sum,
            AggregateFunction::Min => pb::aggregate::Function::Min,
            AggregateFunction::Max => pb::aggregate::Function::Max,
            AggregateFunction::Avg => pb::aggregate::Function::Avg,
        };
        Self {
            function: function.into(),
            argument: argument.map(column),
            distinct: *distinct,
            filter: filter.map(column),
        }
    }
}

impl TryFrom<pb::Aggregate> for AggregateSpec {
    type Error = Error;

    fn try_from(aggregate: pb::Aggregate) -> Result<Self> {
        let pb::Aggregate { function, argument, distinct, filter } = aggregate;
        let function = match pb::aggregate::Function::try_from(function) {
            Ok(pb::aggregate::Function::Count) => AggregateFunction::Count,
            Ok(pb::aggregate::Function::Sum) => AggregateFunction::Sum,
            Ok(pb::aggregate::Function::Min) => AggregateFunction::Min,
            Ok(pb::aggregate::Function::Max) => AggregateFunction::Max,
            Ok(pb::aggregate::Function::Avg) => AggregateFunction::Avg,
            Ok(pb::aggregate::Function::Unspecified) | Err(_) => return Err(unknown("aggregate function")),
        };
        Ok(Self {
            function,
            argument: argument.map(|column| column as usize),
            distinct,
            filter: filter.map(|column| column as usize),
        })
    }
}

impl From<&SinkSpec> for pb::Sink {
    fn from(sink: &SinkSpec) -> Self {
        let SinkSpec { table, connector, metadata, primary_key } = sink;
        Self {
            table: table.clone(),
            connector: Some(connector.into()),
            metadata: metadata_to_wire(metadata),
            primary_key: columns(primary_key),
        }
    }
}

impl TryFrom<pb::Sink> for SinkSpec {
    type Error = Error;

    fn try_from(sink: pb::Sink) -> Result<Self> {
        let pb::Sink { table, connector, metadata, primary_key } = sink;
        Ok(Self {
            table,
            connector: required(connector, "connector")?.try_into()?,
            metadata: metadata_from_wire(metadata),
            primary_key: indices(primary_key),
        })
    }
}

impl From<&Edge> for pb::Edge {
    fn from(edge: &Edge) -> Self {
        let Edge { from, output, to, exchange } = edge;
        let output = match output {
            Output::Main => pb::edge::Output::Main,
            Output::Late => pb::edge::Output::Late,
        };
        let exchange = match exchange {
            Exchange::Chained => pb::edge::Exchange::Chained(pb::Unit {}),
            Exchange::Forward => pb::edge::Exchange::Forward(pb::Unit {}),
            Exchange::Hash { keys } => pb::edge::Exchange::Hash(pb::HashKeys { keys: columns(keys) }),
            Exchange::Rebalance => pb::edge::Exchange::Rebalance(pb::Unit {}),
        };
        Self { from: from.0, output: output.into(), to: to.0, exchange: Some(exchange) }
    }
}

impl TryFrom<pb::Edge> for Edge {
    type Error = Error;

    fn try_from(edge: pb::Edge) -> Result<Self> {
        let pb::Edge { from, output, to, exchange } = edge;
        let output = match pb::edge::Output::try_from(output) {
            Ok(pb::edge::Output::Main) => Output::Main,
            Ok(pb::edge::Output::Late) => Output::Late,
            Ok(pb::edge::Output::Unspecified) | Err(_) => return Err(unknown("output")),
        };
        let exchange = match required(exchange, "exchange")? {
            pb::edge::Exchange::Chained(pb::Unit {}) => Exchange::Chained,
            pb::edge::Exchange::Forward(pb::Unit {}) => Exchange::Forward,
            pb::edge::Exchange::Hash(pb::HashKeys { keys }) => Exchange::Hash { keys: indices(keys) },
            pb::edge::Exchange::Rebalance(pb::Unit {}) => Exchange::Rebalance,
        };
        Ok(Self { from: OperatorId(from), output, to: OperatorId(to), exchange })
    }
}

#[cfg(test)]
mod tests;
