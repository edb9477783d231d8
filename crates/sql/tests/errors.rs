//! Scripts that are refused, with code, place, text and hint. One helper touches the API; the scripts start on line 3, behind
//! the tables that they refer to.
#![expect(clippy::expect_used, reason = "helpers under tests/ are tests too, but clippy does not see that")]

use weir_sql::{PlanContext, plan};

const TABLES: &str = "CREATE TABLE t (a INT, b STRING, ts TIMESTAMP(3), r ROW<x INT>, WATERMARK FOR ts AS ts) \
    WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'json');\n\
    CREATE TABLE out (a INT, b STRING) WITH ('connector' = 'print');\n";

/// What the user sees, script by script.
fn refusals(scripts: &[&str]) -> String {
    let mut out = String::new();
    for script in scripts {
        let planned = plan(&format!("{TABLES}{script}"), &PlanContext::default());
        let error = planned.map(|planned| planned.explain).expect_err(script);
        let placed = matches!(error.facts.as_deref(), Some(weir_types::error::Facts::Position { line, column })
            if error.message.starts_with(&format!("line {line}, column {column}: ")));
        assert!(placed, "{script}: {error:?}");
        out.push_str(&format!("{script}\n    {}\n", error));
        if let Some(hint) = error.hint {
            out.push_str(&format!("    hint: {hint}\n"));
        }
    }
    out
}

#[test]
fn statements_and_syntax() {
    insta::assert_snapshot!(refusals(&[
        r#"SELEC a FROM t;"#,
        r#"SELECT a FROM t;"#,
        r#"USE CATALOG c;"#,
        r#"EXECUTE STATEMENT SET BEGIN
INSERT INTO out SELECT a, b FROM t;"#,
        r#"INSERT INTO out SELECT a, 'unclosed FROM t;"#,
        r#"INSERT INTO out SELECT a, b FROM t WHERE;"#,
        r#"INSERT INTO out SELECT a, b FROM t ORDER BY a;"#,
        r#"INSERT INTO out SELECT a, b FROM t LIMIT 5;"#,
        r#"INSERT INTO out SELECT a, "b" FROM t;"#,
    ]), @r##"
SELEC a FROM t;
    INVALID_SQL: line 3, column 1: expected a statement, found SELEC
    hint: Statements are CREATE TABLE, CREATE VIEW, DROP, SET, RESET, INSERT INTO, EXECUTE STATEMENT SET and EXPLAIN.
SELECT a FROM t;
    UNSUPPORTED: line 3, column 1: a query without INSERT INTO is not supported
    hint: Write it into a table: CREATE TABLE out (…) WITH ('connector' = 'print'); INSERT INTO out SELECT …
USE CATALOG c;
    UNSUPPORTED: line 3, column 1: the statement USE is not supported
    hint: Statements are CREATE TABLE, CREATE VIEW, DROP, SET, RESET, INSERT INTO, EXECUTE STATEMENT SET and EXPLAIN.
EXECUTE STATEMENT SET BEGIN
INSERT INTO out SELECT a, b FROM t;
    INVALID_SQL: line 3, column 1: the statement set has no END
    hint: Close it with END;.
INSERT INTO out SELECT a, 'unclosed FROM t;
    INVALID_SQL: line 3, column 27: unterminated string literal
INSERT INTO out SELECT a, b FROM t WHERE;
    INVALID_SQL: line 3, column 41: expected: an expression, found: ;
INSERT INTO out SELECT a, b FROM t ORDER BY a;
    UNSUPPORTED: line 3, column 45: ORDER BY is not supported
    hint: A stream has no end to sort at: sort what reads the result.
INSERT INTO out SELECT a, b FROM t LIMIT 5;
    UNSUPPORTED: line 3, column 42: LIMIT is not supported
    hint: Filter with WHERE, or bound the source.
INSERT INTO out SELECT a, "b" FROM t;
    INVALID_SQL: line 3, column 27: "b" is quoted with double quotes
    hint: Quote texts with '…' and identifiers with `…`.
"##);
}

#[test]
fn names() {
    insta::assert_snapshot!(refusals(&[
        r#"INSERT INTO out SELECT a, b FROM missing;"#,
        r#"INSERT INTO out SELECT a, b FROM T;"#,
        r#"INSERT INTO out SELECT A, b FROM t;"#,
        r#"INSERT INTO out
  SELECT a,
    nonsense(b) FROM t;"#,
        r#"INSERT INTO out SELECT a, uper(b) FROM t;"#,
        r#"INSERT INTO missing SELECT a, b FROM t;"#,
        r#"INSERT INTO out (a, c) SELECT a, b FROM t;"#,
        r#"INSERT INTO out SELECT r.y, b FROM t;"#,
        r#"INSERT INTO out SELECT a.x, b FROM t;"#,
        r#"DROP TABLE nothing;"#,
    ]), @r##"
INSERT INTO out SELECT a, b FROM missing;
    INVALID_SQL: line 3, column 34: table missing does not exist
    hint: Declare it first, with CREATE TABLE or CREATE VIEW.
INSERT INTO out SELECT a, b FROM T;
    INVALID_SQL: line 3, column 34: table T does not exist
    hint: Did you mean t? Names are case-sensitive.
INSERT INTO out SELECT A, b FROM t;
    INVALID_SQL: line 3, column 24: column A does not exist
    hint: Did you mean a? Names are case-sensitive.
INSERT INTO out
  SELECT a,
    nonsense(b) FROM t;
    INVALID_SQL: line 5, column 5: function NONSENSE does not exist
    hint: docs/sql.md lists the functions.
INSERT INTO out SELECT a, uper(b) FROM t;
    INVALID_SQL: line 3, column 27: function UPER does not exist
    hint: Did you mean UPPER?
INSERT INTO missing SELECT a, b FROM t;
    INVALID_SQL: line 3, column 13: table missing does not exist
    hint: Declare it first, with CREATE TABLE or CREATE VIEW.
INSERT INTO out (a, c) SELECT a, b FROM t;
    INVALID_SQL: line 3, column 21: column c is no column that can be written
    hint: Did you mean a? Names are case-sensitive.
INSERT INTO out SELECT r.y, b FROM t;
    INVALID_SQL: line 3, column 26: field y does not exist in ROW<x INT>
    hint: Did you mean x? Names are case-sensitive.
INSERT INTO out SELECT a.x, b FROM t;
    INVALID_SQL: line 3, column 26: INT has no field x
DROP TABLE nothing;
    INVALID_SQL: line 3, column 12: table nothing does not exist
    hint: Write IF EXISTS.
"##);
}

#[test]
fn types() {
    insta::assert_snapshot!(refusals(&[
        r#"INSERT INTO out SELECT a FROM t;"#,
        r#"INSERT INTO out SELECT b, a FROM t;"#,
        r#"INSERT INTO out SELECT CAST(a AS BIGINT), b FROM t;"#,
        r#"INSERT INTO out SELECT a, b FROM t WHERE a;"#,
        r#"INSERT INTO out SELECT a, b FROM t WHERE b > 5;"#,
        r#"INSERT INTO out SELECT a + b, b FROM t;"#,
        r#"INSERT INTO out SELECT a, b FROM t UNION ALL SELECT b, b FROM t;"#,
        r#"INSERT INTO out SELECT a, b FROM t UNION ALL SELECT a FROM t;"#,
        r#"INSERT INTO out SELECT CAST(r AS INT), b FROM t;"#,
        r#"INSERT INTO out SELECT CAST(a AS INTT), b FROM t;"#,
        r#"INSERT INTO out SELECT a, b FROM t WHERE ts > 'yesterday';"#,
        r#"INSERT INTO out SELECT a, ROUND() FROM t;"#,
        r#"INSERT INTO out SELECT a, CASE WHEN a = 1 THEN 'x' ELSE 2 END FROM t;"#,
    ]), @r##"
INSERT INTO out SELECT a FROM t;
    INVALID_SQL: line 3, column 13: the query has 1 columns, but 2 are written to out (The query has (a INT), the table (a INT, b STRING).)
INSERT INTO out SELECT b, a FROM t;
    INVALID_SQL: line 3, column 24: column b of the query is STRING but column a of the table is INT
    hint: Write CAST(b AS INT).
INSERT INTO out SELECT CAST(a AS BIGINT), b FROM t;
    INVALID_SQL: line 3, column 29: column EXPR$0 of the query is BIGINT but column a of the table is INT
    hint: Write CAST(EXPR$0 AS INT).
INSERT INTO out SELECT a, b FROM t WHERE a;
    INVALID_SQL: line 3, column 42: expected a BOOLEAN condition, found INT
INSERT INTO out SELECT a, b FROM t WHERE b > 5;
    INVALID_SQL: line 3, column 42: STRING and INT cannot be compared
    hint: CAST one side to the other's type.
INSERT INTO out SELECT a + b, b FROM t;
    INVALID_SQL: line 3, column 24: INT + STRING does not exist
    hint: CAST the STRING to a number, or join texts with ||.
INSERT INTO out SELECT a, b FROM t UNION ALL SELECT b, b FROM t;
    INVALID_SQL: line 3, column 46: UNION ALL of column a INT and column b STRING
    hint: CAST them to one type.
INSERT INTO out SELECT a, b FROM t UNION ALL SELECT a FROM t;
    INVALID_SQL: line 3, column 46: UNION ALL of 2 columns and 1 columns
INSERT INTO out SELECT CAST(r AS INT), b FROM t;
    INVALID_SQL: line 3, column 29: ROW<x INT> cannot be cast to INT
INSERT INTO out SELECT CAST(a AS INTT), b FROM t;
    INVALID_SQL: line 3, column 29: INTT is not a type
    hint: Types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p, s), STRING, VARCHAR(n), CHAR(n), BYTES, VARBINARY(n), DATE, TIME(p), TIMESTAMP(p), TIMESTAMP_LTZ(p), ROW<…>, ARRAY<…>, MAP<…>.
INSERT INTO out SELECT a, b FROM t WHERE ts > 'yesterday';
    INVALID_SQL: line 3, column 42: 'yesterday' is not a TIMESTAMP(3)
INSERT INTO out SELECT a, ROUND() FROM t;
    INVALID_SQL: line 3, column 27: ROUND does not take ()
    hint: It takes (a number [, INT]).
INSERT INTO out SELECT a, CASE WHEN a = 1 THEN 'x' ELSE 2 END FROM t;
    INVALID_SQL: line 3, column 27: CASE has values of types that do not go together: (STRING, INT)
    hint: CAST them to one type.
"##);
}

#[test]
fn later_releases() {
    insta::assert_snapshot!(refusals(&[
        r#"INSERT INTO out SELECT t.a, t.b FROM t JOIN t AS u ON t.a = u.a;"#,
        r#"INSERT INTO out SELECT t.a, t.b FROM t, out;"#,
        r#"INSERT INTO out VALUES (1, 'x');"#,
        r#"INSERT INTO out SELECT a, ROW_NUMBER() OVER (PARTITION BY a ORDER BY ts) FROM t;"#,
        r#"INSERT INTO out SELECT a, b FROM t WHERE a IN (SELECT a FROM t);"#,
        r#"INSERT INTO out SELECT a, b FROM t GROUP BY ROLLUP(a);"#,
        r#"INSERT INTO out SELECT a, b FROM t WHERE b SIMILAR TO 'x';"#,
    ]), @r##"
INSERT INTO out SELECT t.a, t.b FROM t JOIN t AS u ON t.a = u.a;
    UNSUPPORTED: line 3, column 45: JOIN is not supported
    hint: Joins come in a later release.
INSERT INTO out SELECT t.a, t.b FROM t, out;
    UNSUPPORTED: line 3, column 41: a join of several tables is not supported
    hint: Joins come in a later release.
INSERT INTO out VALUES (1, 'x');
    UNSUPPORTED: line 3, column 24: VALUES is not supported
    hint: Append rows to a stream: weir stream append.
INSERT INTO out SELECT a, ROW_NUMBER() OVER (PARTITION BY a ORDER BY ts) FROM t;
    UNSUPPORTED: line 3, column 27: ROW_NUMBER is not supported
    hint: Top-N comes in a later release.
INSERT INTO out SELECT a, b FROM t WHERE a IN (SELECT a FROM t);
    UNSUPPORTED: line 3, column 42: IN (SELECT …) is not supported
    hint: Joins come in a later release.
INSERT INTO out SELECT a, b FROM t GROUP BY ROLLUP(a);
    UNSUPPORTED: line 3, column 52: ROLLUP, CUBE and GROUPING SETS is not supported
    hint: Write one INSERT per grouping.
INSERT INTO out SELECT a, b FROM t WHERE b SIMILAR TO 'x';
    UNSUPPORTED: line 3, column 42: SIMILAR TO is not supported
    hint: Use REGEXP(text, pattern).
"##);
}

#[test]
fn changelogs() {
    let files =
        "CREATE TABLE files (a INT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '/y', 'format' = 'json');";
    let stream = "CREATE TABLE stream (a INT, PRIMARY KEY (a) NOT ENFORCED) WITH ('connector' = 'stream-store', 'stream' = 's/t');";
    let totals = "CREATE VIEW totals AS SELECT a, COUNT(*) AS n, MAX(ts) AS ts FROM t GROUP BY a;";
    insta::assert_snapshot!(refusals(&[
        &format!("{files}\nINSERT INTO files SELECT a, COUNT(*) FROM t GROUP BY a;"),
        &format!("{files}\nINSERT INTO files SELECT 1, COUNT(*) FROM t;"),
        &format!("{files}{totals}\nINSERT INTO files SELECT 1, n FROM totals WHERE a > 5 UNION ALL SELECT a, 7 FROM t;"),
        &format!("{files}{totals}\nINSERT INTO files SELECT CAST(n AS INT), COUNT(a) FROM totals GROUP BY n;"),
        &format!("{stream}{totals}\nINSERT INTO stream SELECT DISTINCT CAST(n AS INT) FROM totals;"),
        &format!("{totals}\nINSERT INTO out SELECT a, 'x' FROM TABLE(TUMBLE(TABLE totals, DESCRIPTOR(ts), INTERVAL '1' SECOND));"),
        "CREATE TABLE u (a INT) WITH ('connector' = 'stream-store', 'stream' = 's/t', 'format' = 'debezium-json');\n\
        INSERT INTO out SELECT a, 'x' FROM u;",
        "INSERT INTO out SELECT a, b FROM t GROUP BY a;",
        "INSERT INTO out SELECT a, MAX(r) FROM t GROUP BY a;",
        "INSERT INTO out SELECT DISTINCT r.x, b FROM (SELECT r, b, ARRAY[a] AS c FROM t) GROUP BY c;",
        "INSERT INTO out SELECT DISTINCT ON (a) a, b FROM t;",
        "INSERT INTO out SELECT a, b FROM t INTERSECT SELECT a, b FROM t;",
        "INSERT INTO out SELECT a, 'x' FROM t GROUP BY a, CAST(a AS DOUBLE);",
    ]), @r##"
CREATE TABLE files (a INT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '/y', 'format' = 'json');
INSERT INTO files SELECT a, COUNT(*) FROM t GROUP BY a;
    INVALID_SQL: line 4, column 13: table sink files doesn't support consuming update changes which is produced by node GroupAggregate(groupBy=[a])
    hint: Aggregate over a window, or write with 'format' = 'debezium-json', or to print or blackhole.
CREATE TABLE files (a INT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '/y', 'format' = 'json');
INSERT INTO files SELECT 1, COUNT(*) FROM t;
    INVALID_SQL: line 4, column 13: table sink files doesn't support consuming update changes which is produced by node GroupAggregate(groupBy=[])
    hint: Aggregate over a window, or write with 'format' = 'debezium-json', or to print or blackhole.
CREATE TABLE files (a INT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '/y', 'format' = 'json');CREATE VIEW totals AS SELECT a, COUNT(*) AS n, MAX(ts) AS ts FROM t GROUP BY a;
INSERT INTO files SELECT 1, n FROM totals WHERE a > 5 UNION ALL SELECT a, 7 FROM t;
    INVALID_SQL: line 4, column 13: table sink files doesn't support consuming update changes which is produced by node GroupAggregate(groupBy=[a])
    hint: Aggregate over a window, or write with 'format' = 'debezium-json', or to print or blackhole.
CREATE TABLE files (a INT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '/y', 'format' = 'json');CREATE VIEW totals AS SELECT a, COUNT(*) AS n, MAX(ts) AS ts FROM t GROUP BY a;
INSERT INTO files SELECT CAST(n AS INT), COUNT(a) FROM totals GROUP BY n;
    INVALID_SQL: line 4, column 13: table sink files doesn't support consuming update and delete changes which is produced by node GroupAggregate(groupBy=[n])
    hint: Aggregate over a window, or write with 'format' = 'debezium-json', or to print or blackhole.
CREATE TABLE stream (a INT, PRIMARY KEY (a) NOT ENFORCED) WITH ('connector' = 'stream-store', 'stream' = 's/t');CREATE VIEW totals AS SELECT a, COUNT(*) AS n, MAX(ts) AS ts FROM t GROUP BY a;
INSERT INTO stream SELECT DISTINCT CAST(n AS INT) FROM totals;
    INVALID_SQL: line 4, column 13: table sink stream doesn't support consuming delete changes which is produced by node GroupAggregate(groupBy=[EXPR$0])
    hint: Aggregate over a window, or write with 'format' = 'debezium-json', or to print or blackhole.
CREATE VIEW totals AS SELECT a, COUNT(*) AS n, MAX(ts) AS ts FROM t GROUP BY a;
INSERT INTO out SELECT a, 'x' FROM TABLE(TUMBLE(TABLE totals, DESCRIPTOR(ts), INTERVAL '1' SECOND));
    INVALID_SQL: line 4, column 74: column ts is no time attribute (It is TIMESTAMP(3), but no watermark follows it.)
    hint: Declare WATERMARK FOR it on the table, and pass it on as it is.
CREATE TABLE u (a INT) WITH ('connector' = 'stream-store', 'stream' = 's/t', 'format' = 'debezium-json');
INSERT INTO out SELECT a, 'x' FROM u;
    UNSUPPORTED: line 4, column 36: reading table u in a format of changes is not supported
    hint: Read it as 'json', with the columns before ROW<…>, after ROW<…> and op STRING.
INSERT INTO out SELECT a, b FROM t GROUP BY a;
    INVALID_SQL: line 3, column 27: column b is not grouped by
    hint: Add it to GROUP BY, or aggregate it: MAX(…).
INSERT INTO out SELECT a, MAX(r) FROM t GROUP BY a;
    INVALID_SQL: line 3, column 27: MAX does not take ROW<x INT>
INSERT INTO out SELECT DISTINCT r.x, b FROM (SELECT r, b, ARRAY[a] AS c FROM t) GROUP BY c;
    UNSUPPORTED: line 3, column 90: grouping by ARRAY<INT> is not supported
    hint: Group by its fields.
INSERT INTO out SELECT DISTINCT ON (a) a, b FROM t;
    UNSUPPORTED: line 3, column 17: DISTINCT ON is not supported
    hint: Write SELECT DISTINCT.
INSERT INTO out SELECT a, b FROM t INTERSECT SELECT a, b FROM t;
    UNSUPPORTED: line 3, column 46: INTERSECT is not supported
    hint: UNION and UNION ALL are.
INSERT INTO out SELECT a, 'x' FROM t GROUP BY a, CAST(a AS DOUBLE);
    UNSUPPORTED: line 3, column 55: grouping by DOUBLE is not supported
    hint: CAST it to DECIMAL or STRING.
"##);
}

#[test]
fn windows() {
    insta::assert_snapshot!(refusals(&[
        r#"INSERT INTO out SELECT a, b FROM t WHERE COUNT(*) > 1;"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(SESSION(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND));"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(a), INTERVAL '1' SECOND));"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts)));"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MONTH));"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '10' SECOND));"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND));"#,
        r#"INSERT INTO out SELECT a, MAX(b) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_end, a;"#,
        r#"INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end, a;"#,
        r#"INSERT INTO out SELECT a, b FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND);"#,
        r#"INSERT INTO out SELECT a, MAX(MAX(b)) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end, a;"#,
    ]), @r##"
INSERT INTO out SELECT a, b FROM t WHERE COUNT(*) > 1;
    INVALID_SQL: line 3, column 42: the aggregate COUNT cannot be used here
    hint: Aggregates stand in SELECT and HAVING, and not within each other.
INSERT INTO out SELECT a, b FROM TABLE(SESSION(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND));
    UNSUPPORTED: line 3, column 40: the window function SESSION is not supported
    hint: TUMBLE and HOP are.
INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(a), INTERVAL '1' SECOND));
    INVALID_SQL: line 3, column 67: column a is no time attribute (It is INT, but no watermark follows it.)
    hint: Declare WATERMARK FOR it on the table, and pass it on as it is.
INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts)));
    INVALID_SQL: line 3, column 40: TUMBLE has no size
    hint: Write TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND) or HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND): slide, then size.
INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MONTH));
    INVALID_SQL: line 3, column 81: an interval of months or years has no fixed length
    hint: Write it in days.
INSERT INTO out SELECT a, b FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '3' SECOND, INTERVAL '10' SECOND));
    INVALID_SQL: line 3, column 40: the size of 10000 ms is no multiple of the slide of 3000 ms
    hint: Flink asks for the same; the order is slide, then size.
INSERT INTO out SELECT a, b FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND));
    UNSUPPORTED: line 3, column 40: HOP without GROUP BY window_start, window_end is not supported
    hint: Aggregate over the windows.
INSERT INTO out SELECT a, MAX(b) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_end, a;
    INVALID_SQL: line 3, column 108: GROUP BY needs both window_start and window_end
    hint: Write GROUP BY window_start, window_end and then the keys.
INSERT INTO out SELECT a, b FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end, a;
    INVALID_SQL: line 3, column 27: column b is not grouped by
    hint: Add it to GROUP BY, or aggregate it: MAX(…).
INSERT INTO out SELECT a, b FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND);
    UNSUPPORTED: line 3, column 34: a table function without TABLE(…) is not supported
    hint: Write FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)).
INSERT INTO out SELECT a, MAX(MAX(b)) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end, a;
    INVALID_SQL: line 3, column 31: the aggregate MAX cannot be used here
    hint: Aggregates stand in SELECT and HAVING, and not within each other.
"##);
}

#[test]
fn tables() {
    insta::assert_snapshot!(refusals(&[
        r#"INSERT INTO t SELECT a, b, ts, r FROM t;
INSERT INTO out SELECT a, b FROM out;"#,
        r#"CREATE TABLE u (a INT) WITH ('connector' = 'kafka');"#,
        r#"CREATE TABLE u (a INT) WITH ('connector' = 'nexmrk');"#,
        r#"CREATE TABLE u (a INT);"#,
        r#"CREATE TABLE u (a INT) WITH ('connector' = 'filesystem', 'format' = 'json');"#,
        r#"CREATE TABLE u (a INT) WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'avro');"#,
        r#"CREATE TABLE u (a INT) WITH ('connector' = 'nexmark', 'event.num' = '5');"#,
        r#"CREATE TABLE u (a INT) WITH ('connector' = 'nexmark', 'events.num' = 'many');"#,
        r#"CREATE TABLE u (a INT, a STRING) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a INTEGR) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a DECIMAL(40, 2)) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a ROW<x INT, y) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a INT, WATERMARK FOR a AS a) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a INT, b AS c + 1) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a INT PRIMARY KEY) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a INT METADATA FROM 'nothing') WITH ('connector' = 'stream-store', 'stream' = 'a/b');"#,
        r#"CREATE TABLE t (a INT) WITH ('connector' = 'print');"#,
        r#"CREATE TABLE u (a INT) PARTITIONED BY (a) WITH ('connector' = 'print');"#,
        r#"CREATE VIEW v AS SELECT a, a FROM t;"#,
    ]), @r##"
INSERT INTO t SELECT a, b, ts, r FROM t;
INSERT INTO out SELECT a, b FROM out;
    INVALID_SQL: line 4, column 34: table out cannot be read (Connector 'print' is a sink only.)
CREATE TABLE u (a INT) WITH ('connector' = 'kafka');
    INVALID_SQL: line 3, column 44: there is no connector 'kafka'
    hint: Connectors are stream-store, filesystem, nexmark, print, blackhole.
CREATE TABLE u (a INT) WITH ('connector' = 'nexmrk');
    INVALID_SQL: line 3, column 44: there is no connector 'nexmrk'
    hint: Did you mean 'nexmark'?
CREATE TABLE u (a INT);
    INVALID_SQL: line 3, column 22: the table has no option 'connector'
    hint: Add WITH ('connector' = '…'). Connectors are stream-store, filesystem, nexmark, print, blackhole.
CREATE TABLE u (a INT) WITH ('connector' = 'filesystem', 'format' = 'json');
    INVALID_SQL: line 3, column 29: connector 'filesystem' needs the option 'path' (source: a file or directory; sink: a directory)
CREATE TABLE u (a INT) WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'avro');
    INVALID_ARGUMENT: line 3, column 84: option 'format' does not take the value 'avro' (It takes one of 'json', 'csv', 'debezium-json'.)
CREATE TABLE u (a INT) WITH ('connector' = 'nexmark', 'event.num' = '5');
    INVALID_SQL: line 3, column 55: connector 'nexmark' has no option 'event.num'
    hint: Did you mean 'events.num'?
CREATE TABLE u (a INT) WITH ('connector' = 'nexmark', 'events.num' = 'many');
    INVALID_ARGUMENT: line 3, column 70: option 'events.num' does not take the value 'many' (It takes an integer, zero or more.)
CREATE TABLE u (a INT, a STRING) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 24: column a is declared twice
CREATE TABLE u (a INTEGR) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 19: INTEGR is not a type
    hint: Types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p, s), STRING, VARCHAR(n), CHAR(n), BYTES, VARBINARY(n), DATE, TIME(p), TIMESTAMP(p), TIMESTAMP_LTZ(p), ROW<…>, ARRAY<…>, MAP<…>.
CREATE TABLE u (a DECIMAL(40, 2)) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 19: DECIMAL(40, 2) does not exist
    hint: The precision is 1 to 38, the scale 0 to the precision.
CREATE TABLE u (a ROW<x INT, y) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 31: expected a type, found )
CREATE TABLE u (a INT, WATERMARK FOR a AS a) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 38: a watermark follows a TIMESTAMP, but a is INT
    hint: Compute one: ts AS TO_TIMESTAMP(text).
CREATE TABLE u (a INT, b AS c + 1) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 29: column c does not exist
    hint: Did you mean a? Names are case-sensitive.
CREATE TABLE u (a INT PRIMARY KEY) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 23: a PRIMARY KEY is not enforced
    hint: Add NOT ENFORCED behind it.
CREATE TABLE u (a INT METADATA FROM 'nothing') WITH ('connector' = 'stream-store', 'stream' = 'a/b');
    INVALID_SQL: line 3, column 17: connector 'stream-store' has no metadata 'nothing'
    hint: It has partition, offset, timestamp, key.
CREATE TABLE t (a INT) WITH ('connector' = 'print');
    INVALID_SQL: line 3, column 14: table t exists already
    hint: DROP it first, or write IF NOT EXISTS.
CREATE TABLE u (a INT) PARTITIONED BY (a) WITH ('connector' = 'print');
    UNSUPPORTED: line 3, column 24: PARTITIONED BY is not supported
    hint: Leave it out.
CREATE VIEW v AS SELECT a, a FROM t;
    INVALID_SQL: line 3, column 13: view v has two columns a
    hint: Name them apart with AS.
"##);
}

#[test]
fn options() {
    insta::assert_snapshot!(refusals(&[
        r#"SET 'parallelism.defualt' = '2';"#,
        r#"SET 'parallelism.default' = '0';"#,
        r#"SET 'table.local-time-zone' = 'Mars';"#,
    ]), @r##"
SET 'parallelism.defualt' = '2';
    INVALID_ARGUMENT: line 3, column 1: unknown option 'parallelism.defualt'
    hint: Did you mean 'parallelism.default'?
SET 'parallelism.default' = '0';
    INVALID_ARGUMENT: line 3, column 1: option 'parallelism.default' does not take the value '0'
    hint: It takes a number from 1.
SET 'table.local-time-zone' = 'Mars';
    INVALID_ARGUMENT: line 3, column 1: option 'table.local-time-zone' does not take the value 'Mars'
    hint: It takes an IANA name such as 'Europe/Berlin'.
"##);
}

#[test]
fn no_prefix_of_a_script_makes_the_planner_panic() {
    let script = format!(
        "{}\nCREATE TABLE o (n BIGINT) WITH ('connector' = 'print'); INSERT INTO o SELECT COUNT(DISTINCT auction) \
        FILTER (WHERE price > 1) FROM TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' SECOND, INTERVAL '2' SECOND)) \
        GROUP BY window_start, window_end HAVING MAX(price) > 2;",
        include_str!("nexmark.sql")
    );
    for (end, _) in script.char_indices() {
        // Most prefixes are wrong, and some are right: what counts is that each gets an answer.
        if let Err(error) = plan(&script[..end], &PlanContext::default()) {
            assert_ne!(error.code, weir_types::Code::Internal, "{}: {error:?}", &script[..end]);
        }
    }
}

#[test]
fn expressions_that_would_exhaust_the_stack_or_memory_are_refused() {
    let chain = format!("INSERT INTO out SELECT a{}, b FROM t;", " + 1".repeat(1_000));
    let mixed = format!("INSERT INTO out SELECT a{}, b FROM t;", " + 1 - 1".repeat(60));
    let chains = format!("INSERT INTO out SELECT a{}, b FROM t;", " + 1".repeat(10_000));
    let parentheses = format!("INSERT INTO out SELECT {}a{}, b FROM t;", "(".repeat(5_000), ")".repeat(5_000));
    let mut views = "CREATE VIEW v0 AS SELECT a, b FROM t;\n".to_owned();
    for view in 1..40 {
        views += &format!("CREATE VIEW v{view} AS SELECT a + a AS a, b FROM v{};\n", view - 1);
    }
    let message = |script: &str| refusals(&[script])[script.len()..].trim().to_owned();
    insta::assert_snapshot!([&chain, &mixed, &chains, &parentheses, &views].map(|script| message(script)).join("\n"), @r##"
INVALID_SQL: line 3, column 24: the expression is nested more than 200 levels deep
    hint: Split it with a view, or write IN (…) for a chain of ORs.
INVALID_SQL: line 3, column 24: the expression is nested too deeply
    hint: Split it with a view.
INVALID_SQL: line 3, column 20015: the statement has more than 20000 tokens
    hint: Split it with views.
INVALID_SQL: line 3, column 73: the statement is nested too deeply
    hint: Split it with a view.
INVALID_SQL: line 17, column 27: column a grows to more than 10000 terms
    hint: Views are written out where they are read: use a column less often in the next view.
"##);
}

#[test]
fn late_rows_need_a_table_with_columns_of_the_rows() {
    let source = |late: &str| {
        format!(
            "CREATE TABLE s (k INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'filesystem', \
            'path' = '/x', 'format' = 'json', 'late-rows.table' = '{late}'); CREATE TABLE late (k INT, other INT) \
            WITH ('connector' = 'print'); INSERT INTO out SELECT k, 'x' FROM TABLE(TUMBLE(TABLE s, DESCRIPTOR(ts), \
            INTERVAL '1' SECOND)) GROUP BY window_start, window_end, k;"
        )
    };
    let message = |script: String| refusals(&[&script])[script.len()..].trim().to_owned();
    insta::assert_snapshot!(["missing", "late"].map(|late| message(source(late))).join("\n"), @r##"
INVALID_SQL: line 3, column 14: late-rows.table missing of table s does not exist
    hint: Declare it with CREATE TABLE, with the columns to keep.
INVALID_SQL: line 3, column 175: column other of the late-rows.table late is no column of the rows in the window
    hint: Late rows have the columns of the table or query that the window function names; leave the column out, or select it there.
"##);
}

#[test]
fn metadata_that_is_only_read_is_not_written() {
    insta::assert_snapshot!(refusals(&[
        r#"CREATE TABLE s (a INT, o BIGINT METADATA FROM 'offset') WITH ('connector' = 'stream-store', 'stream' = 'a/b');
INSERT INTO s SELECT a, 1 FROM t;"#,
    ]), @r##"
CREATE TABLE s (a INT, o BIGINT METADATA FROM 'offset') WITH ('connector' = 'stream-store', 'stream' = 'a/b');
INSERT INTO s SELECT a, 1 FROM t;
    INVALID_SQL: line 4, column 13: metadata column o of table s cannot be written
    hint: Declare it METADATA … VIRTUAL: then it is only read.
"##);
}
