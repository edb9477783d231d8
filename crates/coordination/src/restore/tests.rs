//! Every row of the plan of a restore.

use std::collections::BTreeMap;

use weir_types::graph::{Edge, Exchange, JobGraph, JobOptions, Operator, OperatorSpec, Output, SinkSpec, SourceSpec};
use weir_types::ids::{ChainId, ClusterId, GroupName, JobId, OperatorId, Parallelism, SnapshotId};
use weir_types::quota::{QuotaDimension, QuotaLevel};
use weir_types::restore::{ColumnChange, SplitFate, StateColumn};
use weir_types::snapshot::{SplitPosition, StateFile};

use super::*;
use crate::metadata::ReaderGroup;

fn splits(positions: &[(&str, u64, bool)]) -> Vec<SplitPosition> {
    let split = |(split, offset, finished): &(&str, u64, bool)| SplitPosition {
        split: (*split).to_owned(),
        offset: *offset,
        end: None,
        watermark_ms: 7,
        finished: *finished,
    };
    positions.iter().map(split).collect()
}

fn part(uid: &str, table: Option<&str>, positions: &[(&str, u64, bool)]) -> OperatorSnapshot {
    let file = |table: &str| StateFile {
        path: format!("{uid}-{table}"),
        table: table.to_owned(),
        bytes: 100,
        rows: 10,
        crc32c: 0,
        deletes: false,
        segments: None,
        live_from: None,
        blocks: Vec::new(),
    };
    OperatorSnapshot {
        uid: uid.to_owned(),
        watermark_ms: 0,
        files: table.map(file).into_iter().collect(),
        splits: splits(positions),
        prepared: None,
    }
}

fn table(columns: &[(&str, &str, &str)]) -> Vec<StateTable> {
    let column = |(id, name, data_type): &(&str, &str, &str)| StateColumn {
        id: (*id).to_owned(),
        name: (*name).to_owned(),
        data_type: (*data_type).to_owned(),
    };
    vec![StateTable { table: "groups".to_owned(), columns: columns.iter().map(column).collect() }]
}

const COUNTS: [(&str, &str, &str); 2] = [("key0", "k", "BIGINT"), ("agg0.count", "n", "BIGINT")];

/// Two subtasks of a source on two partitions and of a window.
fn held() -> Held {
    Held {
        entry: Some(SnapshotId::new("sp-1").unwrap()),
        directory: "/d/sp-1".to_owned(),
        snapshot: SnapshotId::new("sp-1").unwrap(),
        kind: SnapshotKind::Savepoint,
        cluster: ClusterId::new("c").unwrap(),
        job: JobId::new("j1").unwrap(),
        job_name: "visits".to_owned(),
        taken_at: Millis(5),
        parallelism: Parallelism::new(2).unwrap(),
        restored_from: None,
        operators: vec![
            part("src", None, &[("p-0", 40, false)]),
            part("src", None, &[("p-1", 60, false)]),
            part("win", Some("groups"), &[]),
            part("win", Some("groups"), &[]),
        ],
        tables: BTreeMap::from([("win".to_owned(), table(&COUNTS))]),
        names: BTreeMap::from([("win".to_owned(), "Window".to_owned())]),
    }
}

/// `src → win → out`, with these uids, at a parallelism.
fn graph(source: &str, window: &str, parallelism: u32) -> JobGraph {
    let schema = std::sync::Arc::new(arrow_schema::Schema::empty());
    let connector = weir_types::graph::ConnectorSpec {
        kind: weir_types::connector::ConnectorKind::StreamStore,
        options: BTreeMap::new(),
    };
    let source_spec = OperatorSpec::Source(SourceSpec {
        table: "t".to_owned(),
        connector: connector.clone(),
        scan_schema: schema.clone(),
        metadata: BTreeMap::new(),
        pushed_filters: Vec::new(),
        calc: None,
        watermark: None,
    });
    let window_spec = OperatorSpec::WindowAggregate(weir_types::graph::WindowAggregateSpec {
        window: weir_types::graph::WindowSpec::Tumble { size_ms: 1, offset_ms: 0 },
        time_column: 0,
        keys: Vec::new(),
        aggregates: Vec::new(),
        window_columns: Vec::new(),
        emit_late_rows: false,
    });
    let sink = OperatorSpec::Sink(SinkSpec {
        table: "out".to_owned(),
        connector,
        metadata: BTreeMap::new(),
        primary_key: Vec::new(),
    });
    let operator = |id: u32, uid: &str, name: &str, spec: OperatorSpec| Operator {
        id: OperatorId(id),
        uid: Some(uid.to_owned()),
        name: name.to_owned(),
        spec,
        schema: schema.clone(),
        parallelism_max: None,
    };
    let edge = |from, to, exchange| Edge { from: OperatorId(from), output: Output::Main, to: OperatorId(to), exchange };
    JobGraph {
        name: "visits".to_owned(),
        options: JobOptions { parallelism: Parallelism::new(parallelism).unwrap(), ..JobOptions::default() },
        operators: vec![
            operator(0, source, "Source t", source_spec),
            operator(1, window, "Window", window_spec),
            operator(2, "out", "Sink out", sink),
        ],
        edges: vec![edge(0, 1, Exchange::Hash { keys: Vec::new() }), edge(1, 2, Exchange::Chained)],
        expression_version: String::new(),
    }
}

fn source(uid: &str, positions: &[(&str, u64, bool)]) -> SourceRecord {
    SourceRecord {
        uid: uid.to_owned(),
        table: "t".to_owned(),
        chain: ChainId(0),
        parallelism: Parallelism::ONE,
        group: Some(ReaderGroup { name: GroupName::new("g").unwrap(), stream: "a/b".parse().unwrap() }),
        splits: splits(positions),
    }
}

fn extents(of: &[(&str, u64, u64)]) -> BTreeMap<OperatorUid, BTreeMap<String, Extent>> {
    let extents = of.iter().map(|(split, head, end)| ((*split).to_owned(), Extent { head: *head, end: *end }));
    BTreeMap::from([("src".to_owned(), extents.collect())])
}

fn wanted(graph: &JobGraph) -> Wanted<'_> {
    Wanted {
        graph,
        tables: BTreeMap::from([("win".to_owned(), table(&COUNTS))]),
        sources: vec![source("src", &[("p-0", 0, false), ("p-1", 0, false)])],
        extents: extents(&[("p-0", 10, 100), ("p-1", 10, 100)]),
    }
}

fn codes(planned: &Planned) -> Vec<Code> {
    planned.plan.refusals.iter().map(|error| error.code).collect()
}

#[test]
fn an_unchanged_job_takes_everything() {
    let graph = graph("src", "win", 2);
    let planned = plan(&held(), wanted(&graph), Terms { slots_free: 3, ..Terms::default() });
    assert_eq!(planned.plan.check(), Ok(()));
    let starts: Vec<_> =
        planned.plan.operators.iter().map(|operator| (operator.uid.as_str(), operator.start)).collect();
    assert_eq!(
        starts,
        [("src", OperatorStart::Restored), ("win", OperatorStart::Restored), ("out", OperatorStart::Stateless)]
    );
    let window = &planned.plan.operators[1];
    assert_eq!((window.tables[0].rows, window.tables[0].bytes, window.tables[0].changes.len()), (20, 200, 0));
    assert_eq!((planned.plan.snapshot.rows, planned.plan.snapshot.bytes), (20, 200));
    assert_eq!(planned.sources[0].splits, splits(&[("p-0", 40, false), ("p-1", 60, false)]));
    let fates: Vec<_> = planned.plan.sources[0].splits.iter().map(|split| split.fate).collect();
    assert_eq!(fates, [SplitFate::Continues { behind: Some(60) }, SplitFate::Continues { behind: Some(40) }]);
    assert!(planned.plan.dropped.is_empty());
    assert_eq!(planned.plan.slots, Slots { needed: 2, free: 3 });
}

#[test]
fn another_parallelism_is_shown_per_operator_and_refuses_nothing() {
    let graph = graph("src", "win", 5);
    let planned = plan(&held(), wanted(&graph), Terms::default());
    assert_eq!(planned.plan.check(), Ok(()));
    assert_eq!((planned.plan.parallelism.from.get(), planned.plan.parallelism.to.get()), (2, 5));
    assert_eq!((planned.plan.operators[1].subtasks_before, planned.plan.operators[1].subtasks), (2, 5));
    assert_eq!(planned.plan.slots, Slots { needed: 5, free: 0 });
}

#[test]
fn state_without_an_operator_is_refused_unless_allowed() {
    let graph = graph("src", "other", 1);
    let planned = plan(&held(), wanted(&graph), Terms::default());
    let error = planned.plan.check().unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert_eq!(
        error.detail.as_deref(),
        Some("without an operator: win (Window); the script's operators: src (Source t), other (Window)")
    );
    let [dropped] = planned.plan.dropped.as_slice() else { panic!("{:?}", planned.plan.dropped) };
    assert_eq!((dropped.uid.as_str(), dropped.rows, dropped.bytes, dropped.tables.len()), ("win", 20, 200, 1));
    assert_eq!(planned.plan.operators[1].start, OperatorStart::Empty);
    let allowed = plan(&held(), wanted(&graph), Terms { allow_non_restored_state: true, ..Terms::default() });
    assert_eq!(allowed.plan.check(), Ok(()));
    assert_eq!(allowed.plan.dropped, planned.plan.dropped);
}

#[test]
fn positions_without_a_source_are_dropped_state_and_prepared_output_is_not() {
    let graph = graph("elsewhere", "win", 1);
    let mut held = held();
    held.operators.push(OperatorSnapshot { prepared: Some(vec![1]), ..part("old-sink", None, &[]) });
    held.operators.push(part("empty", None, &[]));
    let mut wanted = wanted(&graph);
    wanted.sources = vec![source("elsewhere", &[("p-0", 3, false)])];
    let planned = plan(&held, wanted, Terms::default());
    let dropped: Vec<_> = planned.plan.dropped.iter().map(|state| (state.uid.as_str(), state.splits)).collect();
    assert_eq!(dropped, [("src", 2)]);
    assert_eq!(codes(&planned), [Code::FailedPrecondition]);
    assert_eq!(planned.sources[0].splits, splits(&[("p-0", 3, false)]), "a source without a position begins anew");
}

#[test]
fn a_column_of_another_type_is_refused_whatever_is_allowed_and_a_renamed_one_is_taken() {
    let graph = graph("src", "win", 1);
    let mut retyped = wanted(&graph);
    retyped.tables =
        BTreeMap::from([("win".to_owned(), table(&[("key0", "user", "STRING"), ("agg0.count", "visits", "BIGINT")]))]);
    let planned = plan(&held(), retyped.clone(), Terms { allow_non_restored_state: true, ..Terms::default() });
    let error = planned.plan.check().unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert_eq!(error.message, "the state of win (Window) in snapshot sp-1 does not fit");
    assert_eq!(error.detail.as_deref(), Some("column user of its table groups was BIGINT and is STRING"));
    let renamed = ColumnChange::Renamed { from: "n".to_owned(), to: "visits".to_owned() };
    let retype =
        ColumnChange::Retyped { column: "user".to_owned(), from: "BIGINT".to_owned(), to: "STRING".to_owned() };
    assert_eq!(planned.plan.operators[1].tables[0].changes, [retype, renamed.clone()]);
    retyped.tables = BTreeMap::from([("win".to_owned(), table(&[COUNTS[0], ("agg0.count", "visits", "BIGINT")]))]);
    let planned = plan(&held(), retyped, Terms::default());
    assert_eq!(planned.plan.check(), Ok(()));
    assert_eq!(planned.plan.operators[1].tables[0].changes, [renamed]);
}

#[test]
fn columns_that_one_side_lacks_are_refused() {
    let graph = graph("src", "win", 1);
    let mut other = wanted(&graph);
    other.tables = BTreeMap::from([("win".to_owned(), table(&[COUNTS[0], ("agg0.value", "s", "BIGINT")]))]);
    let error = plan(&held(), other, Terms::default()).plan.check().unwrap_err();
    assert_eq!(
        error.detail.as_deref(),
        Some("column n of its table groups is no longer kept; column s of its table groups is not in the snapshot")
    );
}

#[test]
fn a_truncated_partition_is_refused_with_how_much_is_gone() {
    let graph = graph("src", "win", 1);
    let mut truncated = wanted(&graph);
    truncated.extents = extents(&[("p-0", 45, 100), ("p-1", 10, 100)]);
    let planned = plan(&held(), truncated, Terms::default());
    let error = planned.plan.check().unwrap_err();
    assert_eq!(error.code, Code::OffsetTruncated);
    assert_eq!(error.detail.as_deref(), Some("partition 0 begins at 45, the snapshot is at 40: 5 records are gone"));
    assert_eq!(planned.plan.sources[0].splits[0].fate, SplitFate::Truncated { head: 45, lost: 5 });
    assert_eq!(planned.plan.sources[0].splits[1].fate, SplitFate::Continues { behind: Some(40) });
}

#[test]
fn a_stream_that_was_made_anew_is_refused() {
    let graph = graph("src", "win", 1);
    let mut short = wanted(&graph);
    short.extents = extents(&[("p-0", 0, 100), ("p-1", 0, 59)]);
    let error = plan(&held(), short, Terms::default()).plan.check().unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert_eq!(error.detail.as_deref(), Some("partition 1 ends at 59, the snapshot is at 60"));
}

#[test]
fn new_partitions_begin_at_their_heads_and_finished_ones_need_not_be_there() {
    let graph = graph("src", "win", 1);
    let mut held = held();
    held.operators[1] = part("src", None, &[("p-1", 60, true)]);
    let mut grown = wanted(&graph);
    // As 'latest' would begin them.
    grown.sources = vec![source("src", &[("p-0", 100, false), ("p-2", 100, false)])];
    grown.extents = extents(&[("p-0", 10, 100), ("p-2", 20, 100)]);
    let planned = plan(&held, grown, Terms::default());
    assert_eq!(planned.plan.check(), Ok(()));
    assert_eq!(planned.sources[0].splits, {
        let mut expected = splits(&[("p-0", 40, false), ("p-2", 20, false), ("p-1", 60, true)]);
        expected[1].watermark_ms = 7;
        expected
    });
    let fates: Vec<_> = planned.plan.sources[0].splits.iter().map(|split| split.fate).collect();
    assert_eq!(fates, [SplitFate::Continues { behind: Some(60) }, SplitFate::Added, SplitFate::Finished]);
}

#[test]
fn a_split_that_is_gone_before_it_was_read_is_refused() {
    let graph = graph("src", "win", 1);
    let mut shrunk = wanted(&graph);
    shrunk.sources = vec![source("src", &[("p-0", 0, false)])];
    let planned = plan(&held(), shrunk, Terms::default());
    assert_eq!(codes(&planned), [Code::FailedPrecondition]);
    assert_eq!(planned.plan.sources[0].splits[1].fate, SplitFate::Missing);
}

#[test]
fn a_generator_keeps_the_splits_of_the_snapshot() {
    let graph = graph("src", "win", 3);
    let mut held = held();
    held.operators[0] = part("src", None, &[("split-0-of-2", 5, false)]);
    held.operators[1] = part("src", None, &[("split-1-of-2", 6, true)]);
    let mut wanted = wanted(&graph);
    wanted.sources = vec![source("src", &[("split-0-of-3", 0, false), ("split-1-of-3", 0, false)])];
    wanted.extents.clear();
    let planned = plan(&held, wanted, Terms::default());
    assert_eq!(planned.plan.check(), Ok(()));
    assert_eq!(planned.sources[0].splits, splits(&[("split-0-of-2", 5, false), ("split-1-of-2", 6, true)]));
}

#[test]
fn all_reasons_are_listed_the_catalogues_first() {
    let graph = graph("src", "other", 1);
    let mut truncated = wanted(&graph);
    truncated.extents = extents(&[("p-0", 45, 100), ("p-1", 10, 100)]);
    let held_by_others = Error::new(Code::FailedPrecondition, "it is pinned");
    let need = |at_once, limit| QuotaNeed {
        level: QuotaLevel::Owner("ann".to_owned()),
        dimension: QuotaDimension::Bytes,
        limit: Some(limit),
        used: 900,
        at_once,
        first_checkpoint: 200,
    };
    let terms = Terms {
        claim: ClaimMode::Claim,
        refused: vec![held_by_others],
        quota: vec![need(200, 1_000), need(100, 1_000), need(0, 1)],
        ..Terms::default()
    };
    let planned = plan(&held(), truncated, terms);
    assert_eq!(
        codes(&planned),
        [Code::FailedPrecondition, Code::FailedPrecondition, Code::OffsetTruncated, Code::QuotaExceeded]
    );
    let error = planned.plan.check().unwrap_err();
    assert_eq!(error.message, "it is pinned");
    assert!(error.detail.unwrap().ends_with("also: owner:ann has reached its limit of bytes"));
}

#[test]
fn plans_are_read_back_from_json_as_they_were() {
    let graph = graph("src", "win", 2);
    let plan = plan(&held(), wanted(&graph), Terms::default()).plan;
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<RestorePlan>(&text).unwrap(), plan);
}
