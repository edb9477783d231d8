//! Rows, barriers and graphs that the crate's own tests share.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use weir_types::connector::ConnectorKind;
use weir_types::deployment::{Deployment, Placement, SplitAssignment};
use weir_types::graph::{
    ConnectorSpec, Edge, Exchange, JobGraph, JobOptions, Operator, OperatorSpec, Output, ScalarExpr, SinkSpec,
    SourceSpec, WatermarkSpec,
};
use weir_types::ids::{
    Attempt, BarrierId, ChainId, JobId, OperatorId, Parallelism, SnapshotId, SubtaskIndex, TaskManagerId, Term,
};
use weir_types::snapshot::{Barrier, SnapshotKind, SplitPosition, StopMode};

use crate::element::Batch;

/// Columns `key BIGINT NOT NULL`, `ts TIMESTAMP(3) NOT NULL`.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ]))
}

/// Rows of [`schema`].
pub(crate) fn rows(values: &[(i64, i64)]) -> RecordBatch {
    let keys = Int64Array::from_iter_values(values.iter().map(|(key, _)| *key));
    let times = TimestampMillisecondArray::from_iter_values(values.iter().map(|(_, ts)| *ts));
    RecordBatch::try_new(schema(), vec![Arc::new(keys), Arc::new(times)]).unwrap()
}

/// The same as a batch of inserts.
pub(crate) fn batch(values: &[(i64, i64)]) -> Batch {
    Batch::inserts(rows(values))
}

/// Rows of [`schema`] as values.
pub(crate) fn values(rows: &RecordBatch) -> Vec<(i64, i64)> {
    let keys = rows.column(0).as_primitive::<Int64Type>().values().to_vec();
    let times = rows.column(1).as_primitive::<TimestampMillisecondType>().values().to_vec();
    keys.into_iter().zip(times).collect()
}

pub(crate) fn barrier(id: u64) -> Barrier {
    stop_barrier(id, StopMode::Continue)
}

pub(crate) fn stop_barrier(id: u64, stop: StopMode) -> Barrier {
    Barrier {
        id: BarrierId(id),
        snapshot: SnapshotId::new(format!("chk-{id}")).unwrap(),
        kind: if stop == StopMode::Continue { SnapshotKind::Checkpoint } else { SnapshotKind::Savepoint },
        triggered_at_ms: 0,
        stop,
        directory: "/nonexistent".to_owned(),
        base: None,
    }
}

fn connector(kind: ConnectorKind) -> ConnectorSpec {
    ConnectorSpec { kind, options: BTreeMap::new() }
}

/// A source of [`schema`] with a watermark that lies `delay_ms` behind, or without one.
pub(crate) fn source(id: u32, table: &str, delay_ms: Option<i64>) -> Operator {
    let expr = || ScalarExpr { bytes: Vec::new(), text: "ts - delay".to_owned() };
    Operator {
        id: OperatorId(id),
        uid: Some(format!("source-{table}")),
        name: format!("Source({table})"),
        spec: OperatorSpec::Source(SourceSpec {
            table: table.to_owned(),
            connector: connector(ConnectorKind::Nexmark),
            scan_schema: schema(),
            metadata: BTreeMap::new(),
            pushed_filters: Vec::new(),
            calc: None,
            watermark: delay_ms.map(|delay| WatermarkSpec { column: 1, expr: expr(), constant_delay_ms: Some(delay) }),
        }),
        schema: schema(),
        parallelism_max: None,
    }
}

/// A sink of [`schema`].
pub(crate) fn sink(id: u32, table: &str) -> Operator {
    Operator {
        id: OperatorId(id),
        uid: Some(format!("sink-{table}")),
        name: format!("Sink({table})"),
        spec: OperatorSpec::Sink(SinkSpec {
            table: table.to_owned(),
            connector: connector(ConnectorKind::Blackhole),
            metadata: BTreeMap::new(),
            primary_key: Vec::new(),
        }),
        schema: schema(),
        parallelism_max: None,
    }
}

pub(crate) fn edge(from: u32, to: u32, exchange: Exchange) -> Edge {
    Edge { from: OperatorId(from), output: Output::Main, to: OperatorId(to), exchange }
}

pub(crate) fn graph(operators: Vec<Operator>, edges: Vec<Edge>, parallelism: u32) -> JobGraph {
    JobGraph {
        name: "test".to_owned(),
        options: JobOptions { parallelism: Parallelism::new(parallelism).unwrap(), ..JobOptions::default() },
        operators,
        edges,
        expression_version: String::new(),
    }
}

/// A position at a split's beginning.
pub(crate) fn at_start(split: &str) -> SplitPosition {
    SplitPosition { split: split.to_owned(), offset: 0, watermark_ms: i64::MIN, finished: false, end: None }
}

/// Everything on one TaskManager; splits go to the subtasks of their source in turn.
pub(crate) fn deployment(graph: JobGraph, attempt: u32, splits: &[(&str, Vec<SplitPosition>)]) -> Deployment {
    let placement = |chain: ChainId, index: u32| Placement {
        chain,
        index: SubtaskIndex(index),
        task_manager: TaskManagerId::new("tm").unwrap(),
        slot: index,
        data_address: "127.0.0.1:1".to_owned(),
    };
    let chains = graph.chains();
    let placements =
        chains.iter().flat_map(|chain| (0..chain.parallelism.get()).map(|index| placement(chain.id, index))).collect();
    let parallelism = graph.options.parallelism.get();
    let assignments = splits.iter().flat_map(|(table, positions)| {
        (0u32..).zip(positions).map(move |(number, position)| SplitAssignment {
            uid: format!("source-{table}"),
            index: SubtaskIndex(number % parallelism),
            position: position.clone(),
        })
    });
    Deployment {
        term: Term(1),
        job: JobId::new("job").unwrap(),
        attempt: Attempt(attempt),
        splits: assignments.collect(),
        graph,
        placements,
        restore: None,
        checkpoint_root: String::new(),
        store_address: String::new(),
    }
}
