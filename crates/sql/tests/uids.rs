//! Uids survive edits of a script that keep the state's meaning, and change with it.
#![expect(clippy::unwrap_used, reason = "helpers under tests/ are tests too, but clippy does not see that")]

use std::collections::BTreeMap;

use weir_sql::{PlanContext, plan};
use weir_types::graph::{JobGraph, OperatorSpec};

const TABLES: &str = "
    CREATE TABLE t (k BIGINT, v BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)
        WITH ('connector' = 'stream-store', 'stream' = 'a/b');
    CREATE TABLE out (k BIGINT, n BIGINT) WITH ('connector' = 'print');
    CREATE TABLE other (k BIGINT, n BIGINT) WITH ('connector' = 'print');";

const COUNT: &str =
    "INSERT INTO out SELECT k, COUNT(*) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))
    GROUP BY window_start, window_end, k;";

fn graph(script: &str) -> JobGraph {
    plan(&format!("{TABLES}{script}"), &PlanContext::default()).unwrap().graph.unwrap()
}

fn uids(script: &str) -> BTreeMap<String, String> {
    let kind = |spec: &OperatorSpec| match spec {
        OperatorSpec::Source(source) => format!("source {}", source.table),
        OperatorSpec::Calc(_) => "calc".to_owned(),
        OperatorSpec::WindowAggregate(_) => "window".to_owned(),
        OperatorSpec::Sink(sink) => format!("sink {}", sink.table),
    };
    let named = graph(script).operators.into_iter().filter_map(|operator| Some((kind(&operator.spec), operator.uid?)));
    named.collect()
}

#[test]
fn stateful_operators_have_uids_of_16_hex_digits_and_calcs_have_none() {
    let uids = uids(COUNT);
    assert_eq!(uids.keys().collect::<Vec<_>>(), ["sink out", "source t", "window"]);
    assert!(uids.values().all(|uid| uid.len() == 16 && uid.bytes().all(|digit| digit.is_ascii_hexdigit())));
}

#[test]
fn a_filter_a_rename_and_a_second_sink_keep_every_uid() {
    let before = uids(COUNT);
    let edited = "CREATE VIEW busy AS SELECT ts, k AS key, v FROM t WHERE v > 3;
        INSERT INTO out SELECT key, COUNT(*) AS c FROM TABLE(TUMBLE(TABLE busy, DESCRIPTOR(ts), INTERVAL '10' SECOND))
            WHERE key < 100 GROUP BY window_start, window_end, key HAVING COUNT(*) > 1;
        INSERT INTO other SELECT k, v FROM t;";
    let after = uids(edited);
    for (operator, uid) in before {
        assert_eq!(after.get(&operator), Some(&uid), "{operator}");
    }
}

#[test]
fn what_changes_the_state_changes_the_uid() {
    let window = |script: &str| uids(script)["window"].clone();
    let before = window(COUNT);
    for edited in [
        COUNT.replace("'10' SECOND", "'11' SECOND"),
        COUNT.replace("COUNT(*)", "SUM(v)"),
        COUNT.replace("COUNT(*)", "COUNT(v)"),
        COUNT.replace("COUNT(*)", "COUNT(DISTINCT v)"),
        COUNT.replace(", k;", ", k, v;"),
        COUNT.replace("TUMBLE(TABLE t, DESCRIPTOR(ts), ", "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, "),
    ] {
        assert_ne!(window(&edited), before, "{edited}");
    }
}

#[test]
fn equal_aggregates_and_sinks_are_told_apart_by_their_order() {
    let graph = graph(&format!("{COUNT}{COUNT}"));
    let all: Vec<&String> = graph.operators.iter().filter_map(|operator| operator.uid.as_ref()).collect();
    let distinct: std::collections::BTreeSet<&&String> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (5, 5));
    let alone = uids(COUNT);
    assert!(all.contains(&&alone["window"]) && all.contains(&&alone["sink out"]));
}

#[test]
fn a_view_that_is_read_twice_aggregates_once() {
    let script =
        "CREATE VIEW c AS SELECT k, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))
            GROUP BY window_start, window_end, k;
        INSERT INTO out SELECT k, n FROM c; INSERT INTO other SELECT k, n FROM c WHERE n > 5;";
    let windows = graph(script)
        .operators
        .into_iter()
        .filter(|operator| matches!(operator.spec, OperatorSpec::WindowAggregate(_)));
    assert_eq!(windows.count(), 1);
}

#[test]
fn options_of_flags_win_over_the_script_and_the_script_over_defaults() {
    let of = |entries: &[(&str, &str)]| {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let context = PlanContext {
        defaults: of(&[
            ("parallelism.default", "3"),
            ("execution.buffer-timeout", "5 ms"),
            ("execution.checkpointing.interval", "1 min"),
        ]),
        overrides: of(&[("execution.checkpointing.interval", "7 s")]),
        job_name: Some("from a flag".to_owned()),
    };
    let script = format!(
        "{TABLES} SET 'parallelism.default' = '2'; SET execution.checkpointing.interval = 30 s;
        SET 'table.exec.mini-batch.enabled' = 'true'; {COUNT}"
    );
    let planned = plan(&script, &context).unwrap();
    let graph = planned.graph.unwrap();
    assert_eq!(graph.options.parallelism.get(), 2);
    assert_eq!(graph.options.buffer_timeout_ms, 5);
    assert_eq!(graph.options.checkpoint_interval_ms, Some(7_000));
    assert_eq!(graph.name, "from a flag");
    assert_eq!(planned.warnings, ["option 'table.exec.mini-batch.enabled' has no effect in Weir and is ignored"]);
}
