//! Uids survive edits of a script that keep the state's meaning, and change with it.
#![expect(clippy::unwrap_used, reason = "helpers under tests/ are tests too, but clippy does not see that")]

use std::collections::BTreeMap;

use weir_sql::{PlanContext, plan};
use weir_types::graph::{JobGraph, OperatorSpec};
use weir_types::restore::ClaimMode;

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
        OperatorSpec::GroupAggregate(group) => format!("group by {}", group.keys.len()),
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

/// Windows in the graph's order, each with its uid.
fn windows(script: &str) -> Vec<String> {
    let operators = graph(script).operators.into_iter();
    let windows = operators.filter(|operator| matches!(operator.spec, OperatorSpec::WindowAggregate(_)));
    windows.filter_map(|operator| operator.uid).collect()
}

fn count(into: &str, condition: &str) -> String {
    COUNT.replace("INTO out", &format!("INTO {into}")).replace("GROUP BY", &format!("{condition} GROUP BY"))
}

#[test]
fn edits_around_an_aggregate_keep_its_uid() {
    let before = uids(COUNT);
    for (what, edited) in [
        ("a filter", COUNT.replace("GROUP BY", "WHERE v > 3 GROUP BY")),
        ("a filter behind it", COUNT.replace(", k;", ", k HAVING COUNT(*) > 1;")),
        ("a projection", COUNT.replace("k, COUNT(*)", "k * 2, COUNT(*) + k")),
        ("an alias", COUNT.replace("COUNT(*)", "COUNT(*) AS c")),
        (
            "the order of GROUP BY's window columns",
            COUNT.replace("window_start, window_end", "window_end, window_start"),
        ),
        ("a second sink", format!("{COUNT} INSERT INTO other SELECT k, v FROM t;")),
        ("an INSERT before it", format!("INSERT INTO other SELECT k, v FROM t; {COUNT}")),
        ("another aggregate before it", format!("{}{COUNT}", count("other", "").replace("'10'", "'5'"))),
        ("parallelism", format!("SET 'parallelism.default' = '4'; {COUNT}")),
        ("a statement set", format!("EXECUTE STATEMENT SET BEGIN {COUNT} END;")),
        (
            "a view in between",
            format!(
                "CREATE VIEW w AS SELECT ts, v AS x, k AS y FROM t; {}",
                COUNT.replace("TABLE t,", "TABLE w,").replace("SELECT k", "SELECT y").replace(", k;", ", y;")
            ),
        ),
    ] {
        let after = uids(&edited);
        for (operator, uid) in &before {
            assert_eq!(after.get(operator), Some(uid), "{what}: {operator}");
        }
    }
}

/// The window's uid with these tables instead.
fn over(tables: &str, script: &str) -> String {
    let graph = plan(&format!("{tables}{script}"), &PlanContext::default()).unwrap().graph.unwrap();
    let mut operators = graph.operators.into_iter();
    operators
        .find(|operator| matches!(operator.spec, OperatorSpec::WindowAggregate(_)))
        .and_then(|found| found.uid)
        .unwrap()
}

#[test]
fn tables_count_with_what_they_read_and_compute() {
    let computed = TABLES.replace("v BIGINT, ts", "raw BIGINT, v AS raw * 2, ts");
    let sum = COUNT.replace("COUNT(*)", "SUM(v)");
    let before = over(TABLES, &sum);
    for (what, tables) in [
        ("a column more", TABLES.replace("k BIGINT, v BIGINT, ts", "k BIGINT, v BIGINT, w STRING, ts")),
        ("the order of columns", TABLES.replace("k BIGINT, v BIGINT, ts", "v BIGINT, k BIGINT, ts")),
        ("the delay of the watermark", TABLES.replace("'1' SECOND", "'7' SECOND")),
        ("the reader group", TABLES.replace("'stream' = 'a/b'", "'stream' = 'a/b', 'group' = 'g'")),
        ("the type of a column", TABLES.replace("k BIGINT, v BIGINT, ts", "k STRING, v BIGINT, ts")),
    ] {
        assert_eq!(over(&tables, &sum.replace("SELECT k", "SELECT CAST(k AS BIGINT)")), over(TABLES, &sum), "{what}");
    }
    for (what, tables) in [
        ("another stream", TABLES.replace("a/b", "a/c")),
        ("a computed column", computed.clone()),
        ("another expression of it", computed.replace("raw * 2", "raw * 3")),
    ] {
        assert_ne!(over(&tables, &sum), before, "{what}");
    }
    assert_ne!(over(&computed, &sum), over(&computed.replace("raw * 2", "raw * 3"), &sum));
}

#[test]
fn sources_and_sinks_are_tables_and_places() {
    let of = |tables: &str| {
        let graph = plan(&format!("{tables}{COUNT}"), &PlanContext::default()).unwrap().graph.unwrap();
        let mut found = BTreeMap::new();
        for operator in graph.operators {
            let kind = match &operator.spec {
                OperatorSpec::Source(_) => "source",
                OperatorSpec::Sink(_) => "sink",
                _ => continue,
            };
            found.insert(kind, operator.uid.unwrap());
        }
        found
    };
    let before = of(TABLES);
    let elsewhere = of(&TABLES.replace("a/b", "a/c"));
    assert_ne!(before["source"], elsewhere["source"]);
    assert_eq!(before["sink"], elsewhere["sink"]);
    let blackhole = of(&TABLES.replacen("'print'", "'blackhole'", 1));
    assert_eq!(before["source"], blackhole["source"]);
    assert_ne!(before["sink"], blackhole["sink"]);
}

#[test]
fn a_change_of_state_changes_everything_behind_it() {
    let cascade = |seconds: u32| {
        format!(
            "CREATE VIEW c AS SELECT k, window_start, window_end, window_time, COUNT(*) AS n
                FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '{seconds}' SECOND)) GROUP BY window_start, window_end, window_time, k;
            INSERT INTO out SELECT MAX(k), MAX(n) FROM c GROUP BY window_start, window_end;"
        )
    };
    let (ten, twenty) = (windows(&cascade(10)), windows(&cascade(20)));
    assert_eq!((ten.len(), twenty.len()), (2, 2));
    assert!(ten.iter().all(|uid| !twenty.contains(uid)), "{ten:?} {twenty:?}");
}

#[test]
fn the_filters_of_calls_tell_them_apart() {
    let with = |first: &str, second: &str| {
        windows(
            &COUNT
                .replace("k, COUNT(*)", &format!("COUNT(*) FILTER (WHERE {first}), COUNT(*) FILTER (WHERE {second})")),
        )
    };
    assert_eq!(with("v < 5", "v >= 5"), with("v < 5", "v >= 5"));
    assert_ne!(with("v < 5", "v >= 5"), with("v >= 5", "v < 5"), "their state would be taken for each other's");
}

#[test]
fn equal_aggregates_are_told_apart_by_their_sinks_then_by_their_order() {
    let all = windows(&format!("{COUNT}{}{}", count("other", "WHERE v > 1"), count("other", "WHERE v > 2")));
    let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (3, 3));
    assert_eq!(all[0], windows(COUNT)[0], "the first is as if it were alone");
    // What is added for a third sink moves none of them.
    let third = "CREATE TABLE more (k BIGINT, n BIGINT) WITH ('connector' = 'print');";
    let more = windows(&format!(
        "{third}{COUNT}{}{}{}",
        count("more", "WHERE v > 9"),
        count("other", "WHERE v > 1"),
        count("other", "WHERE v > 2")
    ));
    assert!(all.iter().all(|uid| more.contains(uid)), "{all:?} {more:?}");
    let remarks =
        plan(&format!("{TABLES}{COUNT}{}", count("other", "WHERE v > 1")), &PlanContext::default()).unwrap().warnings;
    assert_eq!(remarks.len(), 1);
    assert!(remarks[0].contains("STATE_UID"), "{remarks:?}");
    assert_eq!(plan(&format!("{TABLES}{COUNT}"), &PlanContext::default()).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn a_hint_names_an_aggregate_wherever_it_stands() {
    let hinted = |name: &str, into: &str| {
        count(into, "WHERE v > 1").replace("SELECT", &format!("SELECT /*+ STATE_UID('{name}') */"))
    };
    let alone = windows(&hinted("busy", "other"));
    assert_ne!(alone, windows(COUNT));
    assert_ne!(alone, windows(&hinted("idle", "other")));
    assert_eq!(windows(&format!("{COUNT}{}", hinted("busy", "other")))[1], alone[0]);
    assert_eq!(windows(&format!("{}{COUNT}", hinted("busy", "out"))), [alone[0].clone(), windows(COUNT)[0].clone()]);
    // It is a part of the name, not all of it.
    assert_ne!(windows(&hinted("busy", "other").replace("'10'", "'11'")), alone);
}

#[test]
fn hints_that_say_nothing_are_refused_and_comments_are_not() {
    let error = |script: &str| plan(&format!("{TABLES}{script}"), &PlanContext::default()).unwrap_err();
    for (hint, message) in [
        ("/*+ BROADCAST(t) */", "the query hint BROADCAST(t) is not supported"),
        ("/*+ STATE_UID(busy) */", "the query hint STATE_UID(busy) is not supported"),
        ("/*+ STATE_UID('a') */ /*+ STATE_UID('b') */", "more than one query hint is not supported"),
    ] {
        let found = error(&COUNT.replace("SELECT", &format!("SELECT {hint}")));
        assert!(found.message.contains(message), "{hint}: {}", found.message);
    }
    let found = error("INSERT INTO out SELECT /*+ STATE_UID('a') */ k, v FROM t;");
    assert!(found.message.contains("STATE_UID on a SELECT that keeps no state"), "{}", found.message);
    for comment in ["/* + */", "/*x+ y */", "-- a + b\n"] {
        assert_eq!(windows(&COUNT.replace("SELECT", &format!("SELECT {comment}"))), windows(COUNT), "{comment}");
    }
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
fn whose_a_restored_snapshot_is_may_be_said_in_either_of_flinks_options() {
    for key in ["execution.state-recovery.claim-mode", "execution.savepoint-restore-mode"] {
        for (value, expected) in
            [("CLAIM", ClaimMode::Claim), ("NO_CLAIM", ClaimMode::NoClaim), ("no-claim", ClaimMode::NoClaim)]
        {
            let script = format!("{TABLES} SET '{key}' = '{value}'; {COUNT}");
            assert_eq!(plan(&script, &PlanContext::default()).unwrap().claim_mode, expected, "{key} {value}");
        }
        let legacy = format!("{TABLES} SET '{key}' = 'LEGACY'; {COUNT}");
        let refused = plan(&legacy, &PlanContext::default()).unwrap_err();
        assert_eq!(refused.hint.as_deref(), Some("It takes 'NO_CLAIM' or 'CLAIM'."));
    }
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
    assert_eq!(planned.claim_mode, ClaimMode::NoClaim);
    assert_eq!(planned.warnings, ["option 'table.exec.mini-batch.enabled' has no effect in Weir and is ignored"]);
}

#[test]
fn an_updating_aggregate_is_known_by_its_rows_keys_and_calls() {
    let group = |script: &str| uids(script)["group by 1"].clone();
    let before = group("INSERT INTO out SELECT k, COUNT(*) FROM t GROUP BY k;");
    let same = [
        "INSERT INTO out SELECT key, COUNT(*) AS c FROM (SELECT k AS key, v FROM t WHERE v > 3) GROUP BY key HAVING COUNT(*) > 1;",
        "INSERT INTO other SELECT k, n + 1 FROM (SELECT k, COUNT(*) AS n FROM t GROUP BY k);",
    ];
    same.iter().for_each(|script| assert_eq!(group(script), before, "{script}"));
    let others = [
        "INSERT INTO out SELECT v, COUNT(*) FROM t GROUP BY v;",
        "INSERT INTO out SELECT k, COUNT(v) FROM t GROUP BY k;",
        "INSERT INTO out SELECT k, COUNT(*) FROM (SELECT k FROM t UNION ALL SELECT v FROM t) GROUP BY k;",
        "INSERT INTO out SELECT k, COUNT(*) FROM (SELECT k, MAX(v) FROM t GROUP BY k, v) GROUP BY k;",
    ];
    others.iter().for_each(|script| assert_ne!(group(script), before, "{script}"));
    assert_ne!(uids("INSERT INTO out SELECT DISTINCT k, v FROM t;")["group by 2"], before);
}
