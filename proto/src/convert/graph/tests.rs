//! Job graphs survive the wire whole, and graphs that contradict themselves are refused.

use arrow_schema::{DataType, Field, Fields, TimeUnit};
use prost::Message;
use weir_types::restart::RestartStrategy;

use super::*;

fn expr(text: &str) -> ScalarExpr {
    ScalarExpr { bytes: text.as_bytes().to_vec(), text: text.to_owned() }
}

fn operator(id: u32, uid: Option<&str>, spec: OperatorSpec, fields: Vec<Field>) -> Operator {
    Operator {
        id: OperatorId(id),
        uid: uid.map(str::to_owned),
        name: format!("operator {id}"),
        spec,
        schema: Arc::new(Schema::new(fields)),
        parallelism_max: (id == 2).then_some(Parallelism::ONE),
    }
}

fn scan() -> Vec<Field> {
    let row = Fields::from(vec![Field::new("price", DataType::Decimal128(23, 3), true)]);
    vec![
        Field::new("event_type", DataType::Int32, true),
        Field::new("bid", DataType::Struct(row), true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
    ]
}

fn connector(kind: ConnectorKind) -> ConnectorSpec {
    ConnectorSpec { kind, options: BTreeMap::from([("seed".to_owned(), "7".to_owned())]) }
}

fn source() -> OperatorSpec {
    OperatorSpec::Source(SourceSpec {
        table: "nexmark".to_owned(),
        connector: connector(ConnectorKind::Nexmark),
        scan_schema: Arc::new(Schema::new(scan())),
        metadata: BTreeMap::from([(2, "timestamp".to_owned())]),
        pushed_filters: vec![PushedFilter { column: "event_type".to_owned(), values: vec![-1, 2] }],
        calc: Some(CalcSpec {
            predicate: Some(expr("event_type = 2")),
            projection: vec![expr("event_type"), expr("bid"), expr("ts")],
        }),
        watermark: Some(WatermarkSpec { column: 2, expr: expr("ts - 4 s"), constant_delay_ms: Some(4000) }),
    })
}

fn window(window: WindowSpec, function: AggregateFunction) -> OperatorSpec {
    OperatorSpec::WindowAggregate(WindowAggregateSpec {
        window,
        time_column: 2,
        keys: vec![0],
        aggregates: vec![AggregateSpec { function, argument: Some(0), distinct: true, filter: None }],
        window_columns: vec![WindowColumn::Start, WindowColumn::End, WindowColumn::Time],
        emit_late_rows: true,
    })
}

fn sink() -> OperatorSpec {
    OperatorSpec::Sink(SinkSpec {
        table: "out".to_owned(),
        connector: connector(ConnectorKind::Print),
        metadata: BTreeMap::from([(1, "key".to_owned())]),
        primary_key: vec![0, 1],
    })
}

fn graph() -> JobGraph {
    let out = || {
        let mut fields = vec![Field::new("event_type", DataType::Int32, true), Field::new("n", DataType::Int64, false)];
        fields.extend(["s", "e", "t"].map(|n| Field::new(n, DataType::Timestamp(TimeUnit::Millisecond, None), false)));
        fields
    };
    let tumble = WindowSpec::Tumble { size_ms: 10_000, offset_ms: -5 };
    let hop = WindowSpec::Hop { size_ms: 10_000, slide_ms: 3_000, offset_ms: 1 };
    let calc = CalcSpec { predicate: None, projection: vec![expr("event_type"), expr("bid"), expr("ts")] };
    let edge = |from, output, to, exchange| Edge { from: OperatorId(from), output, to: OperatorId(to), exchange };
    JobGraph {
        name: "job".to_owned(),
        options: JobOptions {
            checkpoint_interval_ms: None,
            parallelism_min: Some(Parallelism::ONE),
            checkpoint_failures_tolerated: Some(0),
            checkpoints_incremental: false,
            restart: RestartStrategy::FailureRate { failures_max: 3, interval_ms: 2, delay_ms: 1 },
            other: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            ..JobOptions::default()
        },
        operators: vec![
            operator(0, Some("00112233445566aa"), source(), scan()),
            operator(1, None, OperatorSpec::Calc(calc), scan()),
            operator(2, Some("x"), window(tumble, AggregateFunction::Count), out()),
            operator(3, Some("y"), window(hop, AggregateFunction::Avg), out()),
            operator(4, Some("z"), sink(), out()),
            operator(5, Some("late"), sink(), scan()),
        ],
        edges: vec![
            edge(0, Output::Main, 1, Exchange::Chained),
            edge(1, Output::Main, 2, Exchange::Hash { keys: vec![0] }),
            edge(1, Output::Main, 3, Exchange::Hash { keys: vec![0] }),
            edge(2, Output::Main, 4, Exchange::Rebalance),
            edge(3, Output::Main, 4, Exchange::Forward),
            edge(3, Output::Late, 5, Exchange::Forward),
        ],
        expression_version: "datafusion-proto 55".to_owned(),
    }
}

#[test]
fn a_graph_survives_the_wire_whole() {
    let graph = graph();
    let bytes = pb::JobGraph::from(&graph).encode_to_vec();
    assert_eq!(JobGraph::try_from(pb::JobGraph::decode(bytes.as_slice()).unwrap()).unwrap(), graph);
}

#[test]
fn every_aggregate_function_survives_the_wire() {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    for function in [Count, Sum, Min, Max, Avg] {
        let spec = AggregateSpec { function, argument: None, distinct: false, filter: Some(3) };
        assert_eq!(AggregateSpec::try_from(pb::Aggregate::from(&spec)).unwrap(), spec);
    }
}

#[test]
fn an_updating_aggregate_survives_the_wire() {
    let call = AggregateSpec { function: AggregateFunction::Max, argument: Some(1), distinct: false, filter: Some(2) };
    for (retracting, update_before) in [(false, true), (true, false)] {
        let spec = GroupAggregateSpec { keys: vec![2, 0], aggregates: vec![call.clone()], retracting, update_before };
        assert_eq!(GroupAggregateSpec::try_from(pb::GroupAggregate::from(&spec)).unwrap(), spec);
    }
}

fn refusal(change: impl FnOnce(&mut pb::JobGraph)) -> String {
    let mut wire = pb::JobGraph::from(&graph());
    change(&mut wire);
    JobGraph::try_from(wire).unwrap_err().to_string()
}

#[test]
fn a_damaged_graph_is_refused_with_the_reason() {
    assert_eq!(refusal(|wire| wire.version = 2), "UNSUPPORTED: job graph of encoding version 2");
    assert_eq!(refusal(|wire| wire.options = None), "INVALID_ARGUMENT: job graph without options");
    assert_eq!(refusal(|wire| wire.edges[0].output = 9), "INVALID_ARGUMENT: job graph with an unknown output");
    assert_eq!(refusal(|wire| wire.edges[0].exchange = None), "INVALID_ARGUMENT: job graph without exchange");
    assert_eq!(refusal(|wire| wire.edges[0].from = 77), "INVALID_ARGUMENT: edge 77 → 1 is not in topological order");
    assert!(refusal(|wire| wire.operators[0].schema_json = "{".into()).contains("malformed schema"));
    assert!(refusal(|wire| wire.options.as_mut().unwrap().parallelism = 0).contains("at least 1"));
}

#[test]
fn a_column_that_does_not_exist_is_refused() {
    let window = |wire: &mut pb::JobGraph, change: fn(&mut pb::WindowAggregate)| {
        let Some(pb::operator::Spec::WindowAggregate(window)) = &mut wire.operators[2].spec else { panic!() };
        change(window);
    };
    let message = "INVALID_ARGUMENT: operator 2 refers to column 9 of 3";
    assert_eq!(refusal(|wire| window(wire, |spec| spec.time_column = 9)), message);
    assert_eq!(refusal(|wire| window(wire, |spec| spec.keys = vec![9])), message);
    assert_eq!(refusal(|wire| window(wire, |spec| spec.aggregates[0].argument = Some(9))), message);
    assert_eq!(refusal(|wire| window(wire, |spec| spec.aggregates[0].filter = Some(9))), message);
    let keys = pb::edge::Exchange::Hash(pb::HashKeys { keys: vec![9] });
    assert_eq!(
        refusal(|wire| wire.edges[1].exchange = Some(keys)),
        "INVALID_ARGUMENT: edge 1 → 2 refers to column 9 of 3"
    );
}
