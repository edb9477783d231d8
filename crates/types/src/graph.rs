//! The job graph: what a job does, as planned once by the JobManager, replicated, and deployed in every attempt.
//!
//! Operators form a directed acyclic graph. Edges whose exchange is [`Exchange::Chained`] join operators into an operator
//! chain, which runs in one subtask where passing a batch on is a function call; every other edge crosses subtasks.
//! Invariant (checked by [`JobGraph::validate`]): operator ids are unique and in topological order, a chain is a tree
//! whose head is its operator of the lowest id, and only the head has inputs from other chains.

use std::collections::{BTreeMap, BTreeSet};

use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};

use crate::changelog::Changelog;
use crate::connector::ConnectorKind;
use crate::error::{Error, Result};
use crate::ids::{ChainId, OperatorId, OperatorUid, Parallelism};
use crate::restart::RestartStrategy;

/// A planned job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobGraph {
    /// Name for people.
    pub name: String,
    /// What `SET` statements and flags asked for.
    pub options: JobOptions,
    /// In topological order.
    pub operators: Vec<Operator>,
    /// Data flows along these.
    pub edges: Vec<Edge>,
    /// The version of the scalar expressions' encoding, for example `datafusion-proto 55`.
    pub expression_version: String,
}

/// The most checkpoints that a job may keep: each has an entry in the replicated state, and pins in the store.
pub const CHECKPOINTS_RETAINED_MAX: u32 = 1_000;

/// Options of one job, set by `SET 'key' = 'value'` or by flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOptions {
    /// `parallelism.default`.
    pub parallelism: Parallelism,
    /// `parallelism.min`: with how few subtasks the job may run while slots are missing; none: it waits for slots.
    pub parallelism_min: Option<Parallelism>,
    /// `execution.checkpointing.interval` in ms; none: no periodic checkpoints.
    pub checkpoint_interval_ms: Option<u64>,
    /// `execution.checkpointing.timeout` in ms.
    pub checkpoint_timeout_ms: u64,
    /// `execution.checkpointing.min-pause` in ms.
    pub checkpoint_min_pause_ms: u64,
    /// `execution.checkpointing.num-retained`, at most [`CHECKPOINTS_RETAINED_MAX`].
    pub checkpoints_retained: u32,
    /// `execution.checkpointing.tolerable-failed-checkpoints`; none: any number (a failed checkpoint never kills a
    /// healthy job unless its tolerance says so).
    pub checkpoint_failures_tolerated: Option<u32>,
    /// `execution.checkpointing.incremental`: a checkpoint writes what has changed and shares the rest with those before it.
    pub checkpoints_incremental: bool,
    /// `execution.buffer-timeout` in ms: how long a batch may wait to be filled.
    pub buffer_timeout_ms: u64,
    /// `restart-strategy.*`.
    pub restart: RestartStrategy,
    /// `table.local-time-zone`, an IANA name.
    pub local_time_zone: String,
    /// `table.exec.source.idle-timeout` in ms; zero: splits never count as idle.
    pub source_idle_timeout_ms: u64,
    /// Whatever else was set, for operators that know it.
    pub other: BTreeMap<String, String>,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            parallelism: Parallelism::ONE,
            parallelism_min: None,
            checkpoint_interval_ms: Some(10_000),
            checkpoint_timeout_ms: 600_000,
            checkpoint_min_pause_ms: 0,
            checkpoints_retained: 1,
            checkpoint_failures_tolerated: None,
            checkpoints_incremental: true,
            buffer_timeout_ms: 10,
            restart: RestartStrategy::default(),
            local_time_zone: "UTC".to_owned(),
            source_idle_timeout_ms: 0,
            other: BTreeMap::new(),
        }
    }
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// Unique within the graph.
    pub id: OperatorId,
    /// Names the operator's state across plans. Sources, sinks and stateful operators have one.
    pub uid: Option<OperatorUid>,
    /// For people: `TumbleWindow(ts, 10 s) by auction`.
    pub name: String,
    /// What it does.
    pub spec: OperatorSpec,
    /// The schema of its main output; for a sink, that of its input.
    pub schema: SchemaRef,
    /// At most this many subtasks, whatever the job's parallelism: 1 for an aggregate without keys.
    pub parallelism_max: Option<Parallelism>,
}

/// What an operator does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OperatorSpec {
    /// Reads a table. Always the head of its chain.
    Source(SourceSpec),
    /// Filters and projects.
    Calc(CalcSpec),
    /// Aggregates per key and event-time window; emits once per window, when the watermark passes its end.
    WindowAggregate(WindowAggregateSpec),
    /// Aggregates per key; emits how results change with every batch.
    GroupAggregate(GroupAggregateSpec),
    /// Writes a table.
    Sink(SinkSpec),
}

/// A scalar expression: a DataFusion logical `Expr` over the input's columns, as datafusion-proto bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScalarExpr {
    /// The encoded expression; columns are referred to by name without a qualifier.
    pub bytes: Vec<u8>,
    /// The same as text, for `EXPLAIN` and messages.
    pub text: String,
}

/// A connector with its options, as validated against its descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorSpec {
    /// Which connector.
    pub kind: ConnectorKind,
    /// The table's options other than `connector`; every key is known to the connector's descriptor.
    pub options: BTreeMap<String, String>,
}

/// A table scan: connector, computed columns, watermarks, push-downs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// The table's name in the script.
    pub table: String,
    /// Where the rows come from.
    pub connector: ConnectorSpec,
    /// What the connector must produce: physical columns (pruned to those read, nested fields too) and metadata columns.
    pub scan_schema: SchemaRef,
    /// For each column of `scan_schema` that is a metadata column: its index and the metadata key.
    pub metadata: BTreeMap<usize, String>,
    /// Filters of the form `column IN (values)` that the connector applies itself (nexmark's `event_type`).
    pub pushed_filters: Vec<PushedFilter>,
    /// Computed columns and projection on top of `scan_schema`; none: the scan's columns as they are.
    pub calc: Option<CalcSpec>,
    /// Watermarks, over the columns after `calc`.
    pub watermark: Option<WatermarkSpec>,
}

/// `column IN (values)`, applied by the connector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedFilter {
    /// A top-level column of the table.
    pub column: String,
    /// The values that pass.
    pub values: Vec<i64>,
}

/// How a source makes watermarks; one generator per split, the subtask emits the minimum over its splits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatermarkSpec {
    /// Index of the rowtime column after the source's `calc`.
    pub column: usize,
    /// The watermark expression over the columns after `calc`: a timestamp of the rowtime column's type.
    pub expr: ScalarExpr,
    /// If the expression is `rowtime - constant`: that constant in ms. A connector that knows the event time of rows it
    /// does not produce (nexmark with a pushed filter) advances the watermark with it.
    pub constant_delay_ms: Option<i64>,
}

/// Filter, then project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalcSpec {
    /// Rows for which this is not true are dropped.
    pub predicate: Option<ScalarExpr>,
    /// One expression per output column, in the order of the operator's schema.
    pub projection: Vec<ScalarExpr>,
}

/// How event time is cut into windows. All times in milliseconds; windows are `[start, start + size)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowSpec {
    /// Side by side.
    Tumble {
        /// Length.
        size_ms: i64,
        /// Shift against the epoch.
        offset_ms: i64,
    },
    /// Overlapping: a window of `size_ms` starts every `slide_ms`.
    Hop {
        /// Length.
        size_ms: i64,
        /// Distance of starts.
        slide_ms: i64,
        /// Shift against the epoch.
        offset_ms: i64,
    },
}

/// A windowed group aggregate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowAggregateSpec {
    /// How time is cut.
    pub window: WindowSpec,
    /// Input column with the event time: a timestamp of any unit, with or without time zone. A null is an error.
    pub time_column: usize,
    /// Input columns that form the key; the hash exchange before the operator uses the same ones.
    pub keys: Vec<usize>,
    /// The aggregates.
    pub aggregates: Vec<AggregateSpec>,
    /// Output columns: keys, aggregates, then those of these that are asked for.
    pub window_columns: Vec<WindowColumn>,
    /// Late rows leave through [`Output::Late`]; they are counted in any case.
    pub emit_late_rows: bool,
}

/// An aggregate whose results change as rows come. Output columns: keys, then aggregates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupAggregateSpec {
    /// Input columns that form the key; the hash exchange before the operator uses the same ones.
    pub keys: Vec<usize>,
    /// The aggregates; none: only whether there are rows.
    pub aggregates: Vec<AggregateSpec>,
    /// The input retracts rows: it has updates or deletes.
    pub retracting: bool,
    /// What a row was is emitted before what it has become.
    pub update_before: bool,
}

/// A column that a window aggregate adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowColumn {
    /// First instant of the window.
    Start,
    /// First instant after the window.
    End,
    /// Last instant of the window, one unit before its end: the rowtime of the result.
    Time,
}

/// One aggregate call: `function([DISTINCT] column) [FILTER (WHERE filter)]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregateSpec {
    /// The function.
    pub function: AggregateFunction,
    /// Its argument, a column of the input; none for `COUNT(*)`.
    pub argument: Option<usize>,
    /// Only distinct values count.
    pub distinct: bool,
    /// A boolean column of the input; rows where it is not true are left out.
    pub filter: Option<usize>,
}

/// Aggregate functions with Flink's semantics and result types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AggregateFunction {
    /// Rows, or rows whose argument is not null. BIGINT NOT NULL.
    Count,
    /// Sum; null over no rows. Integer types keep their type (wrapping as in Flink), DECIMAL(p, s) gives DECIMAL(38, s).
    Sum,
    /// Smallest value.
    Min,
    /// Greatest value.
    Max,
    /// Mean; over integers an integer, rounded towards zero.
    Avg,
}

/// Writes a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkSpec {
    /// The table's name in the script.
    pub table: String,
    /// Where the rows go.
    pub connector: ConnectorSpec,
    /// For each column that is a metadata column: its index and the metadata key.
    pub metadata: BTreeMap<usize, String>,
    /// Columns of the declared primary key.
    pub primary_key: Vec<usize>,
}

/// Which of an operator's outputs an edge leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// Its results.
    Main,
    /// Rows that came behind the watermark, as they were (the operator's input schema).
    Late,
}

/// A flow of data between two operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// From this operator …
    pub from: OperatorId,
    /// … and this of its outputs …
    pub output: Output,
    /// … to this operator. Several edges into one operator are a UNION ALL of equal schemas.
    pub to: OperatorId,
    /// How rows are routed.
    pub exchange: Exchange,
}

/// How rows are routed along an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exchange {
    /// Within the operator chain: a function call.
    Chained,
    /// Subtask i to subtask i; both sides have the same parallelism.
    Forward,
    /// By the hash of these columns, to the subtask that owns it. No columns: all rows to subtask 0.
    Hash {
        /// Columns of the `from` operator's output.
        keys: Vec<usize>,
    },
    /// Batches round robin.
    Rebalance,
}

/// An operator chain, derived from the graph: one subtask runs all of its operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The head operator's number.
    pub id: ChainId,
    /// Members in topological order; the first is the head.
    pub operators: Vec<OperatorId>,
    /// How many subtasks.
    pub parallelism: Parallelism,
}

impl JobGraph {
    /// The operator with this id.
    pub fn operator(&self, id: OperatorId) -> Option<&Operator> {
        self.operators.iter().find(|operator| operator.id == id)
    }

    /// Edges into an operator, chained ones included.
    pub fn inputs(&self, id: OperatorId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.to == id)
    }

    /// Edges out of an operator, chained ones included.
    pub fn outputs(&self, id: OperatorId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.from == id)
    }

    /// The operator chains, in topological order of their heads.
    pub fn chains(&self) -> Vec<Chain> {
        let mut head: BTreeMap<OperatorId, OperatorId> = BTreeMap::new();
        let mut chains: BTreeMap<OperatorId, Vec<OperatorId>> = BTreeMap::new();
        for operator in &self.operators {
            let above = self.inputs(operator.id).find(|edge| edge.exchange == Exchange::Chained);
            let head_id = above.and_then(|edge| head.get(&edge.from)).copied().unwrap_or(operator.id);
            head.insert(operator.id, head_id);
            chains.entry(head_id).or_default().push(operator.id);
        }
        let parallelism = |members: &[OperatorId]| {
            self.parallelism_max(members).map_or(self.options.parallelism, |max| max.min(self.options.parallelism))
        };
        chains
            .into_iter()
            .map(|(head, operators)| Chain { id: ChainId(head.0), parallelism: parallelism(&operators), operators })
            .collect()
    }

    /// The most subtasks that a chain of these operators may have; none: any number.
    pub fn parallelism_max(&self, members: &[OperatorId]) -> Option<Parallelism> {
        members.iter().filter_map(|id| self.operator(*id)?.parallelism_max).min()
    }

    /// The same job at another parallelism.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if that would join subtasks one by one of which there are not equally many.
    pub fn at_parallelism(mut self, parallelism: Parallelism) -> Result<Self> {
        self.options.parallelism = parallelism;
        let of = |id| self.chain_of(id).map(|chain| chain.parallelism);
        match self.edges.iter().find(|edge| edge.exchange == Exchange::Forward && of(edge.from) != of(edge.to)) {
            None => Ok(self),
            Some(edge) => Err(Error::invalid(format!("the job cannot run at parallelism {parallelism}"))
                .with_detail(format!("operators {} and {} have equally many subtasks", edge.from, edge.to))),
        }
    }

    /// The chain an operator belongs to.
    pub fn chain_of(&self, id: OperatorId) -> Option<Chain> {
        self.chains().into_iter().find(|chain| chain.operators.contains(&id))
    }

    /// Checks the invariants of the module's documentation.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the operator or edge that breaks one.
    pub fn validate(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for operator in &self.operators {
            let chained = self.inputs(operator.id).filter(|edge| edge.exchange == Exchange::Chained).count();
            let inputs = self.inputs(operator.id).count();
            if chained > 1 || (chained == 1 && inputs > 1) {
                return Err(Error::invalid(format!("operator {} is chained and has other inputs", operator.id)));
            }
            if matches!(operator.spec, OperatorSpec::Source(_)) != (inputs == 0) {
                return Err(Error::invalid(format!("operator {} has {inputs} inputs", operator.id)));
            }
            if let Some(edge) = self.inputs(operator.id).find(|edge| !seen.contains(&edge.from)) {
                return Err(Error::invalid(format!("edge {} → {} is not in topological order", edge.from, edge.to)));
            }
            if !seen.insert(operator.id) {
                return Err(Error::invalid(format!("operator id {} is used twice", operator.id)));
            }
        }
        match self.edges.iter().find(|edge| !seen.contains(&edge.to) || !seen.contains(&edge.from)) {
            Some(edge) => Err(Error::invalid(format!("edge {} → {} has an unknown end", edge.from, edge.to))),
            None => self.validate_columns(),
        }
    }

    /// The schema of what flows along an edge.
    pub fn edge_schema(&self, edge: &Edge) -> Option<&SchemaRef> {
        match edge.output {
            Output::Main => self.operator(edge.from).map(|operator| &operator.schema),
            Output::Late => self.input_schema(edge.from),
        }
    }

    /// The schema of an operator's input; none for a source.
    pub fn input_schema(&self, id: OperatorId) -> Option<&SchemaRef> {
        // Depth is bounded: every step goes to an operator further up.
        self.inputs(id).next().and_then(|edge| self.edge_schema(edge))
    }

    /// The changes that flow out of an operator; for a sink, into it.
    pub fn changelog(&self, id: OperatorId) -> Changelog {
        // Depth is bounded: every step goes to an operator further up.
        let input = || {
            let inputs = self.inputs(id).filter(|edge| edge.output == Output::Main);
            inputs.map(|edge| self.changelog(edge.from)).fold(Changelog::INSERTS, Changelog::or)
        };
        match self.operator(id).map(|operator| &operator.spec) {
            None | Some(OperatorSpec::Source(_) | OperatorSpec::WindowAggregate(_)) => Changelog::INSERTS,
            Some(OperatorSpec::Calc(_) | OperatorSpec::Sink(_)) => input(),
            Some(OperatorSpec::GroupAggregate(group)) => group.changelog(),
        }
    }

    /// No column number lies outside of its schema, so that operators and exchanges may index without asking.
    fn validate_columns(&self) -> Result<()> {
        for operator in &self.operators {
            let width = self.input_schema(operator.id).map_or(0, |schema| schema.fields().len());
            let what = format!("operator {}", operator.id);
            let own = operator.schema.fields().len();
            match &operator.spec {
                OperatorSpec::Source(source) => {
                    let scan = source.scan_schema.fields().len();
                    in_range(&what, source.metadata.keys().copied(), scan)?;
                    in_range(&what, source.watermark.iter().map(|watermark| watermark.column), own)?;
                    let produced = source.calc.as_ref().map_or(scan, |calc| calc.projection.len());
                    same_width(&what, produced, own)?;
                }
                OperatorSpec::Calc(calc) => same_width(&what, calc.projection.len(), own)?,
                OperatorSpec::WindowAggregate(window) => {
                    let arguments = window.aggregates.iter().flat_map(|call| [call.argument, call.filter]).flatten();
                    let used = std::iter::once(window.time_column).chain(window.keys.iter().copied()).chain(arguments);
                    in_range(&what, used, width)?;
                    let produced = window.keys.len() + window.aggregates.len() + window.window_columns.len();
                    same_width(&what, produced, own)?;
                }
                OperatorSpec::GroupAggregate(group) => {
                    let arguments = group.aggregates.iter().flat_map(|call| [call.argument, call.filter]).flatten();
                    in_range(&what, group.keys.iter().copied().chain(arguments), width)?;
                    same_width(&what, group.keys.len() + group.aggregates.len(), own)?;
                }
                OperatorSpec::Sink(sink) => {
                    let used = sink.metadata.keys().chain(&sink.primary_key).copied();
                    in_range(&what, used, own)?;
                    same_width(&what, width, own)?;
                }
            }
        }
        for edge in &self.edges {
            if let Exchange::Hash { keys } = &edge.exchange {
                let width = self.edge_schema(edge).map_or(0, |schema| schema.fields().len());
                in_range(&format!("edge {} → {}", edge.from, edge.to), keys.iter().copied(), width)?;
            }
        }
        Ok(())
    }
}

fn in_range(what: &str, mut columns: impl Iterator<Item = usize>, width: usize) -> Result<()> {
    match columns.find(|column| *column >= width) {
        Some(column) => Err(Error::invalid(format!("{what} refers to column {column} of {width}"))),
        None => Ok(()),
    }
}

fn same_width(what: &str, produced: usize, declared: usize) -> Result<()> {
    if produced == declared {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} produces {produced} columns but declares {declared}")))
}
