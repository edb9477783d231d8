//! What expressions give, evaluated as the runtime does it: planned, encoded, decoded, and run over a batch.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers under tests/ are tests too, but clippy does not see that"
)]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::util::display::array_value_to_string;
use weir_functions::decode_expr;
use weir_sql::{PlanContext, plan};
use weir_types::graph::{JobGraph, OperatorSpec};

const TABLE: &str = "CREATE TABLE t (i INT, l BIGINT, d DOUBLE, n DECIMAL(10, 2), s STRING, u STRING, b BOOLEAN,
    ts TIMESTAMP(3), lt TIMESTAMP_LTZ(3), dt DATE) WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'json');\n";

/// Three rows, the last one of nulls.
fn rows() -> RecordBatch {
    let times = vec![Some(1_583_155_845_678), Some(-1), None];
    let columns: Vec<(&str, DataType, ArrayRef)> = vec![
        ("i", DataType::Int32, Arc::new(Int32Array::from(vec![Some(7), Some(-7), None]))),
        ("l", DataType::Int64, Arc::new(Int64Array::from(vec![Some(123), Some(i64::MAX), None]))),
        ("d", DataType::Float64, Arc::new(Float64Array::from(vec![Some(2.5), Some(-0.5), None]))),
        (
            "n",
            DataType::Decimal128(10, 2),
            Arc::new(Decimal128Array::from(vec![Some(12345), Some(-5), None]).with_precision_and_scale(10, 2).unwrap()),
        ),
        ("s", DataType::Utf8, Arc::new(StringArray::from(vec![Some("Hello, Wörld"), Some(""), None]))),
        (
            "u",
            DataType::Utf8,
            Arc::new(StringArray::from(vec![
                Some("https://www.nexmark.com/a/b/item.htm?query=1&channel_id=42"),
                Some("x"),
                None,
            ])),
        ),
        ("b", DataType::Boolean, Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        (
            "ts",
            DataType::Timestamp(TimeUnit::Millisecond, None),
            Arc::new(TimestampMillisecondArray::from(times.clone())),
        ),
        (
            "lt",
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC")),
        ),
        ("dt", DataType::Date32, Arc::new(Date32Array::from(vec![Some(18_323), Some(-1), None]))),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, data_type, _)| Field::new(*name, data_type.clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, _, column)| column).collect())
        .unwrap()
}

/// The expression's type, as EXPLAIN gives it.
fn type_of(settings: &str, expr: &str) -> String {
    let planned = plan(&format!("{settings}{TABLE}EXPLAIN SELECT {expr} AS x FROM t;"), &PlanContext::default());
    let planned = planned.expect(expr);
    let operators = planned.explain_json[0]["operators"].as_array().unwrap().clone();
    operators.last().unwrap()["columns"][0]["type"].as_str().unwrap().to_owned()
}

fn evaluate(graph: &JobGraph) -> Result<Vec<String>, String> {
    let source = &graph.operators[0];
    let OperatorSpec::Source(scan) = &source.spec else { return Err("the first operator is no source".to_owned()) };
    let rows = rows();
    let named = |schema: &Schema| {
        let columns = schema.fields().iter().map(|field| rows.column_by_name(field.name()).unwrap().clone()).collect();
        RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap()
    };
    let scanned = named(&scan.scan_schema);
    let OperatorSpec::Calc(calc) = &graph.operators[1].spec else {
        return Ok((0..3).map(|row| array_value_to_string(scanned.column(0), row).unwrap()).collect());
    };
    let expr = decode_expr(&calc.projection[0], &source.schema).unwrap();
    let value = expr.evaluate(&scanned).map_err(|error| error.strip_backtrace())?;
    let column = value.into_array(3).map_err(|error| error.to_string())?;
    assert_eq!(column.data_type(), graph.operators[1].schema.field(0).data_type());
    let text = |row| if column.is_null(row) { "NULL".to_owned() } else { array_value_to_string(&column, row).unwrap() };
    Ok((0..3).map(text).collect())
}

fn run(settings: &str, expr: &str, sql_type: &str) -> Result<Vec<String>, String> {
    let script = format!(
        "{settings}{TABLE}CREATE TABLE out (x {sql_type}) WITH ('connector' = 'print');
        INSERT INTO out SELECT {expr} FROM t;"
    );
    let planned = plan(&script, &PlanContext::default()).expect(expr);
    evaluate(&planned.graph.unwrap())
}

/// Type and values over the three rows.
#[track_caller]
fn check(expr: &str, sql_type: &str, expected: [&str; 3]) {
    check_in("", expr, sql_type, expected);
}

#[track_caller]
fn check_in(settings: &str, expr: &str, sql_type: &str, expected: [&str; 3]) {
    assert_eq!(type_of(settings, expr).trim_end_matches(" NOT NULL"), sql_type, "type of {expr}");
    assert_eq!(run(settings, expr, sql_type).unwrap(), expected, "{expr}");
}

/// A constant, whatever the row.
#[track_caller]
fn check_constant(expr: &str, sql_type: &str, expected: &str) {
    check(expr, sql_type, [expected; 3]);
}

#[track_caller]
fn check_failure(expr: &str, sql_type: &str, expected: &str) {
    let error = run("", expr, sql_type).unwrap_err();
    assert!(error.contains(expected), "{expr}: {error}");
}

#[test]
fn arithmetic_has_flinks_types_and_truncates() {
    check("i / 2", "INT", ["3", "-3", "NULL"]);
    check("i % 3", "INT", ["1", "-1", "NULL"]);
    check("l + i", "BIGINT", ["130", "9223372036854775800", "NULL"]);
    check("l + 1", "BIGINT", ["124", "-9223372036854775808", "NULL"]);
    check("MOD(l, 100)", "INT", ["23", "7", "NULL"]);
    check("i * 1.5", "DECIMAL(13, 1)", ["10.5", "-10.5", "NULL"]);
    check("n * n", "DECIMAL(21, 4)", ["15239.9025", "0.0025", "NULL"]);
    check("n / 3", "DECIMAL(21, 13)", ["41.1500000000000", "-0.0166666666667", "NULL"]);
    check("n % 7", "DECIMAL(10, 2)", ["4.45", "-0.05", "NULL"]);
    check("n + d", "DOUBLE", ["125.95", "-0.55", "NULL"]);
    check("-i", "INT", ["-7", "7", "NULL"]);
    check("0.908 * l", "DECIMAL(23, 3)", ["111.684", "8374821809464136432.756", "NULL"]);
    check_failure("i / (i - i)", "INT", "Divide by zero");
}

#[test]
fn numbers_in_a_script_have_flinks_types() {
    check_constant("1", "INT", "1");
    check_constant("2147483648", "BIGINT", "2147483648");
    check_constant("-9223372036854775808", "BIGINT", "-9223372036854775808");
    check_constant("9223372036854775808", "DECIMAL(19, 0)", "9223372036854775808");
    check_constant("0.908", "DECIMAL(3, 3)", "0.908");
    check_constant("1e2", "DOUBLE", "100.0");
    check_constant("1 / 2", "INT", "0");
    check_constant("1.0 / 3", "DECIMAL(13, 12)", "0.333333333333");
}

#[test]
fn comparisons_logic_and_conditions() {
    check("i > 0 AND b", "BOOLEAN", ["true", "false", "NULL"]);
    check("i = 7.0", "BOOLEAN", ["true", "false", "NULL"]);
    check("i IN (7, 8)", "BOOLEAN", ["true", "false", "NULL"]);
    check("i NOT BETWEEN 0 AND 10", "BOOLEAN", ["false", "true", "NULL"]);
    check("b IS NOT TRUE", "BOOLEAN", ["false", "true", "true"]);
    check("i IS NOT DISTINCT FROM NULL", "BOOLEAN", ["false", "false", "true"]);
    check("ts > '2020-01-01 00:00:00'", "BOOLEAN", ["true", "false", "NULL"]);
    check("dt = DATE '2020-03-02'", "BOOLEAN", ["true", "false", "NULL"]);
    check("CASE i WHEN 7 THEN 'seven' ELSE s END", "STRING", ["seven", "", "NULL"]);
    check("CASE WHEN b THEN 1 WHEN NOT b THEN 2.5 END", "DECIMAL(11, 1)", ["1.0", "2.5", "NULL"]);
    check("COALESCE(i, l, 0)", "BIGINT", ["7", "-7", "0"]);
    check("NULLIF(i, 7)", "INT", ["NULL", "-7", "NULL"]);
    check("IF(b, 'yes', 'no')", "STRING", ["yes", "no", "no"]);
    check("GREATEST(i, 0)", "INT", ["7", "0", "NULL"]);
    check("LEAST(i, 0, 3)", "INT", ["0", "-7", "NULL"]);
}

#[test]
fn the_left_side_decides_before_the_right_side_can_fail() {
    check("i > 100 AND 1 / (i - 7) > 0", "BOOLEAN", ["false", "false", "NULL"]);
    check("i < 100 OR 1 / (i - 7) > 0", "BOOLEAN", ["true", "true", "NULL"]);
    check("i <> 7 AND (s = 'x' OR 1 / (i - 7) > 0)", "BOOLEAN", ["false", "false", "NULL"]);
    check("CASE WHEN i = 7 THEN 0 ELSE 14 / (i - 7) END", "INT", ["0", "-1", "NULL"]);
}

#[test]
fn like_escapes_only_with_the_named_character() {
    check("s LIKE 'Hell_, W%'", "BOOLEAN", ["true", "false", "NULL"]);
    check(r"'a\b' LIKE 'a\b'", "BOOLEAN", ["true", "true", "true"]);
    check("'50%' LIKE '50!%' ESCAPE '!'", "BOOLEAN", ["true", "true", "true"]);
    check("'500' LIKE '50!%' ESCAPE '!'", "BOOLEAN", ["false", "false", "false"]);
    check("s NOT LIKE '%o%'", "BOOLEAN", ["false", "true", "NULL"]);
}

#[test]
fn casts_are_flinks() {
    check("CAST(i AS STRING)", "STRING", ["7", "-7", "NULL"]);
    check("CAST(b AS STRING)", "STRING", ["TRUE", "FALSE", "NULL"]);
    check("CAST(d AS STRING)", "STRING", ["2.5", "-0.5", "NULL"]);
    check_constant("CAST(1e10 AS STRING)", "STRING", "1.0E10");
    check_constant("CAST(0.00001e0 AS STRING)", "STRING", "1.0E-5");
    check("CAST(n AS STRING)", "STRING", ["123.45", "-0.05", "NULL"]);
    check("CAST(ts AS STRING)", "STRING", ["2020-03-02 13:30:45.678", "1969-12-31 23:59:59.999", "NULL"]);
    check("CAST(dt AS STRING)", "STRING", ["2020-03-02", "1969-12-31", "NULL"]);
    check("CAST(ts AS DATE)", "DATE", ["2020-03-02", "1969-12-31", "NULL"]);
    check("CAST(dt AS TIMESTAMP(3))", "TIMESTAMP(3)", ["2020-03-02T00:00:00", "1969-12-31T00:00:00", "NULL"]);
    check("CAST(l AS INT)", "INT", ["123", "-1", "NULL"]);
    check("CAST(d AS INT)", "INT", ["2", "0", "NULL"]);
    check("CAST(n AS INT)", "INT", ["123", "0", "NULL"]);
    check("CAST(n AS DECIMAL(10, 1))", "DECIMAL(10, 1)", ["123.5", "-0.1", "NULL"]);
    check("CAST(n AS DECIMAL(3, 2))", "DECIMAL(3, 2)", ["NULL", "-0.05", "NULL"]);
    check("CAST(d AS DECIMAL(5, 1))", "DECIMAL(5, 1)", ["2.5", "-0.5", "NULL"]);
    check("CAST(i AS BOOLEAN)", "BOOLEAN", ["true", "true", "NULL"]);
    check_constant("CAST(' 12 ' AS INT)", "INT", "12");
    check_constant("CAST('1.9' AS INT)", "INT", "1");
    check_constant("CAST('yes' AS BOOLEAN)", "BOOLEAN", "true");
    check_constant("CAST('12.345' AS DECIMAL(5, 2))", "DECIMAL(5, 2)", "12.35");
    check("CAST(s AS VARCHAR(4))", "STRING", ["Hell", "", "NULL"]);
    check("CAST('ab' AS CHAR(4)) || '|'", "STRING", ["ab  |", "ab  |", "ab  |"]);
    check("TRY_CAST(s AS INT)", "INT", ["NULL", "NULL", "NULL"]);
    check_failure("CAST(s AS INT)", "INT", "'Hello, Wörld' cannot be cast to INT");
}

#[test]
fn texts() {
    check("UPPER(s)", "STRING", ["HELLO, WÖRLD", "", "NULL"]);
    check("LOWER(s)", "STRING", ["hello, wörld", "", "NULL"]);
    check("INITCAP('hello wORLD-x')", "STRING", ["Hello World-X"; 3]);
    check("CHAR_LENGTH(s)", "INT", ["12", "0", "NULL"]);
    check("SUBSTRING(s FROM 8 FOR 3)", "STRING", ["Wör", "", "NULL"]);
    check("SUBSTR(s, -5)", "STRING", ["Wörld", "", "NULL"]);
    check_constant("SUBSTRING('abc', 0, 2)", "STRING", "ab");
    check_constant("SUBSTRING('abc', 2, -1)", "STRING", "NULL");
    check("POSITION('ör' IN s)", "INT", ["9", "0", "NULL"]);
    check_constant("LOCATE('b', 'abab', 3)", "INT", "4");
    check_constant("TRIM('  x ')", "STRING", "x");
    check_constant("TRIM(LEADING 'ab' FROM 'abcab')", "STRING", "cab");
    check("'<' || s || '>'", "STRING", ["<Hello, Wörld>", "<>", "NULL"]);
    check("CONCAT(s, '!', s)", "STRING", ["Hello, Wörld!Hello, Wörld", "!", "NULL"]);
    check("CONCAT_WS('-', 'a', s, 'b')", "STRING", ["a-Hello, Wörld-b", "a--b", "a-b"]);
    check("REPLACE(s, 'l', 'LL')", "STRING", ["HeLLLLo, WörLLd", "", "NULL"]);
    check_constant("LPAD('hi', 4, '??')", "STRING", "??hi");
    check_constant("LPAD('hi', 1, '??')", "STRING", "h");
    check_constant("RPAD('hi', 5, 'xy')", "STRING", "hixyx");
    check_constant("LEFT('wörld', 2)", "STRING", "wö");
    check_constant("RIGHT('wörld', 4)", "STRING", "örld");
    check_constant("REVERSE('wör')", "STRING", "röw");
    check_constant("REPEAT('ab', 3)", "STRING", "ababab");
    check_constant("OVERLAY('abcdef' PLACING 'XY' FROM 3 FOR 1)", "STRING", "abXYdef");
    check("SPLIT_INDEX(u, '/', 3)", "STRING", ["a", "NULL", "NULL"]);
    check("REGEXP_EXTRACT(u, '(&|^)channel_id=([^&]*)', 2)", "STRING", ["42", "NULL", "NULL"]);
    check_constant("REGEXP_REPLACE('foobar', 'oo|ar', '')", "STRING", "fb");
    check_constant("REGEXP_REPLACE('ab12', '([a-z]+)([0-9]+)', '$2x$1')", "STRING", "12xab");
    check("REGEXP(s, '^H.*d$')", "BOOLEAN", ["true", "false", "NULL"]);
}

#[test]
fn mathematics() {
    check("ABS(i)", "INT", ["7", "7", "NULL"]);
    check("FLOOR(d)", "DOUBLE", ["2.0", "-1.0", "NULL"]);
    check("CEIL(n)", "DECIMAL(9, 0)", ["124", "0", "NULL"]);
    check("FLOOR(n)", "DECIMAL(9, 0)", ["123", "-1", "NULL"]);
    check("ROUND(n, 1)", "DECIMAL(10, 2)", ["123.50", "-0.10", "NULL"]);
    check("ROUND(d)", "DOUBLE", ["3.0", "-1.0", "NULL"]);
    check_constant("ROUND(1.005e0, 2)", "DOUBLE", "1.01");
    check("ROUND(l, -1)", "BIGINT", ["120", "-9223372036854775806", "NULL"]);
    check("TRUNCATE(d, 0)", "DOUBLE", ["2.0", "0.0", "NULL"]);
    check_constant("POWER(2, 10)", "DOUBLE", "1024.0");
    check_constant("SQRT(16)", "DOUBLE", "4.0");
    check("SIGN(i)", "INT", ["1", "-1", "NULL"]);
}

#[test]
fn dates_and_times() {
    check("EXTRACT(HOUR FROM ts)", "BIGINT", ["13", "23", "NULL"]);
    check("YEAR(dt) * 100 + MONTH(dt)", "BIGINT", ["202003", "196912", "NULL"]);
    check("DAYOFWEEK(dt)", "BIGINT", ["2", "4", "NULL"]);
    check("EXTRACT(WEEK FROM dt)", "BIGINT", ["10", "1", "NULL"]);
    check("QUARTER(ts)", "BIGINT", ["1", "4", "NULL"]);
    check(
        "DATE_FORMAT(ts, 'yyyy-MM-dd''T''HH:mm:ss.SSS')",
        "STRING",
        ["2020-03-02T13:30:45.678", "1969-12-31T23:59:59.999", "NULL"],
    );
    check(
        "DATE_FORMAT(ts, 'EEE, d MMM yy hh:mm a')",
        "STRING",
        ["Mon, 2 Mar 20 01:30 PM", "Wed, 31 Dec 69 11:59 PM", "NULL"],
    );
    check("FLOOR(ts TO HOUR)", "TIMESTAMP(3)", ["2020-03-02T13:00:00", "1969-12-31T23:00:00", "NULL"]);
    check("CEIL(ts TO DAY)", "TIMESTAMP(3)", ["2020-03-03T00:00:00", "1970-01-01T00:00:00", "NULL"]);
    check("FLOOR(ts TO MONTH)", "TIMESTAMP(3)", ["2020-03-01T00:00:00", "1969-12-01T00:00:00", "NULL"]);
    check("ts + INTERVAL '1' DAY", "TIMESTAMP(3)", ["2020-03-03T13:30:45.678", "1970-01-01T23:59:59.999", "NULL"]);
    check(
        "ts - INTERVAL '1-1' YEAR TO MONTH",
        "TIMESTAMP(3)",
        ["2019-02-02T13:30:45.678", "1968-11-30T23:59:59.999", "NULL"],
    );
    check("dt + INTERVAL '2' DAY", "DATE", ["2020-03-04", "1970-01-02", "NULL"]);
    check(
        "TIMESTAMPADD(MONTH, -1, ts)",
        "TIMESTAMP(3)",
        ["2020-02-02T13:30:45.678", "1969-11-30T23:59:59.999", "NULL"],
    );
    check(
        "TIMESTAMPADD(SECOND, i, ts)",
        "TIMESTAMP(3)",
        ["2020-03-02T13:30:52.678", "1969-12-31T23:59:52.999", "NULL"],
    );
    check("TIMESTAMPDIFF(DAY, TIMESTAMP '2020-03-01 14:00:00', ts)", "INT", ["0", "-18322", "NULL"]);
    check("TIMESTAMPDIFF(MONTH, TIMESTAMP '2019-12-02 13:30:45.678', ts)", "INT", ["3", "-599", "NULL"]);
    check("lt", "TIMESTAMP_LTZ(3)", ["2020-03-02T13:30:45.678Z", "1969-12-31T23:59:59.999Z", "NULL"]);
}

#[test]
fn texts_become_times_in_flinks_format_and_in_rfc_3339() {
    check_constant("TO_TIMESTAMP('2020-03-02 13:30:45')", "TIMESTAMP(3)", "2020-03-02T13:30:45");
    check_constant("TO_TIMESTAMP('2020-03-02 13:30:45.678')", "TIMESTAMP(3)", "2020-03-02T13:30:45.678");
    check_constant("TO_TIMESTAMP('2020-03-02T13:30:45Z')", "TIMESTAMP(3)", "2020-03-02T13:30:45");
    check_constant("TO_TIMESTAMP('2020-03-02T13:30:45.123456+02:00')", "TIMESTAMP(3)", "2020-03-02T11:30:45.123");
    check_constant("TO_TIMESTAMP('02/03/2020 1 PM', 'dd/MM/yyyy h a')", "TIMESTAMP(3)", "2020-03-02T13:00:00");
    check_constant("TO_TIMESTAMP('20200302133045', 'yyyyMMddHHmmss')", "TIMESTAMP(3)", "2020-03-02T13:30:45");
    check_constant("TO_TIMESTAMP('2020-02-30 00:00:00')", "TIMESTAMP(3)", "NULL");
    check_constant("TO_TIMESTAMP('nonsense')", "TIMESTAMP(3)", "NULL");
    check_constant("TO_TIMESTAMP_LTZ(1583155845678, 3)", "TIMESTAMP_LTZ(3)", "2020-03-02T13:30:45.678Z");
    check_constant("TO_TIMESTAMP_LTZ(1583155845, 0)", "TIMESTAMP_LTZ(3)", "2020-03-02T13:30:45Z");
    check_constant("TO_DATE('2020-03-02')", "DATE", "2020-03-02");
    check_constant("CAST('2020-03-02 13:30' AS TIMESTAMP(3))", "TIMESTAMP(3)", "2020-03-02T13:30:00");
    check_constant("UNIX_TIMESTAMP('1970-01-01 00:01:00')", "BIGINT", "60");
    check_constant("FROM_UNIXTIME(60)", "STRING", "1970-01-01 00:01:00");
}

#[test]
fn the_sessions_time_zone_is_between_timestamp_and_timestamp_ltz() {
    let berlin = "SET 'table.local-time-zone' = 'Europe/Berlin';";
    check_in(berlin, "CAST(lt AS STRING)", "STRING", ["2020-03-02 14:30:45.678", "1970-01-01 00:59:59.999", "NULL"]);
    check_in(berlin, "HOUR(lt)", "BIGINT", ["14", "0", "NULL"]);
    check_in(
        berlin,
        "CAST(ts AS TIMESTAMP_LTZ(3))",
        "TIMESTAMP_LTZ(3)",
        ["2020-03-02T12:30:45.678Z", "1969-12-31T22:59:59.999Z", "NULL"],
    );
    check_in(berlin, "FROM_UNIXTIME(0)", "STRING", ["1970-01-01 01:00:00"; 3]);
    check_in(
        berlin,
        "CAST('2020-07-01 12:00:00' AS TIMESTAMP_LTZ(3))",
        "TIMESTAMP_LTZ(3)",
        ["2020-07-01T10:00:00Z"; 3],
    );
}

#[test]
fn the_clock_is_read_when_a_row_comes_not_when_the_script_is_planned() {
    for expr in ["CURRENT_TIMESTAMP", "NOW()", "PROCTIME()"] {
        let explain =
            plan(&format!("{TABLE}EXPLAIN SELECT {expr} AS x FROM t;"), &PlanContext::default()).unwrap().explain;
        let called = if expr == "PROCTIME()" { "PROCTIME() AS x" } else { "CURRENT_TIMESTAMP() AS x" };
        assert!(explain.contains(called), "{explain}");
        assert!(run("", expr, "TIMESTAMP_LTZ(3)").unwrap()[0].starts_with("20"));
    }
}

#[test]
fn a_null_for_a_not_null_column_fails_with_its_name() {
    check_failure("i", "INT NOT NULL", "column x is NOT NULL, but a NULL is written to it");
}

#[test]
fn rows_and_arrays() {
    check(
        "ROW(i, s)",
        "ROW<EXPR$0 INT, EXPR$1 STRING>",
        ["{EXPR$0: 7, EXPR$1: Hello, Wörld}", "{EXPR$0: -7, EXPR$1: }", "{EXPR$0: , EXPR$1: }"],
    );
    check("ARRAY[i, 1]", "ARRAY<INT>", ["[7, 1]", "[-7, 1]", "[, 1]"]);
    check("ARRAY[i, 1][1]", "INT", ["7", "-7", "NULL"]);
    check("CARDINALITY(ARRAY[i, 1])", "INT", ["2", "2", "2"]);
}

#[test]
fn long_chains_of_conditions_that_can_fail_stay_small() {
    let chain: Vec<String> = (0..60).map(|n| format!("CAST(s AS STRING) <> '{n}' AND n / (i + 100) <> {n}")).collect();
    check(&chain.join(" AND "), "BOOLEAN", ["true", "true", "NULL"]);
}

#[test]
fn views_on_views_nest_as_deep_as_one_likes() {
    let mut script = format!("{TABLE}CREATE VIEW v0 AS SELECT i, s FROM t;");
    for view in 1..100 {
        script += &format!("CREATE VIEW v{view} AS SELECT ABS(i - 1) AS i, s FROM v{};", view - 1);
    }
    script += "CREATE TABLE out (x INT) WITH ('connector' = 'print'); INSERT INTO out SELECT i FROM v99;";
    let graph = plan(&script, &PlanContext::default()).unwrap().graph.unwrap();
    let calcs = graph.operators.iter().filter(|operator| matches!(operator.spec, OperatorSpec::Calc(_)));
    assert!(calcs.count() > 1);
}
