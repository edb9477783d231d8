//! SQL over snapshots.

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use weir_inspect::query::{MEMORY_BYTES_DEFAULT, Queries, tables};
use weir_inspect::{Snapshot, names};
use weir_types::{Code, Error};

use super::fixture::{SOURCE, WINDOW, state, write};

/// The rows of a query as text.
fn run_with(queries: &Queries, sql: &str) -> Result<Vec<Vec<String>>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut rows = queries.run(sql).await?;
        let mut all = Vec::new();
        while let Some(batch) = rows.next().await? {
            all.extend(texts(&batch));
        }
        Ok(all)
    })
}

fn texts(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect()).collect()
}

fn run(snapshot: &Snapshot, sql: &str) -> Result<Vec<Vec<String>>, Error> {
    run_with(&Queries::new(snapshot.clone(), Vec::new(), MEMORY_BYTES_DEFAULT).unwrap(), sql)
}

#[test]
fn a_query_sees_every_row_once_under_the_names_of_the_query_that_wrote_it() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(3, 40), 4, 100);
    let rows =
        run(&snapshot, "SELECT sensor, window_start, window_end, n, total FROM groups WHERE sensor = 's7' ORDER BY 2");
    let expected = [
        ["s7", "1970-01-01T00:00:00", "1970-01-01T00:00:01", "8", "7"],
        ["s7", "1970-01-01T00:00:01", "1970-01-01T00:00:02", "8", "17"],
        ["s7", "1970-01-01T00:00:02", "1970-01-01T00:00:03", "8", "27"],
    ];
    assert_eq!(rows.unwrap(), expected);
    let rounded = run(&snapshot, "SELECT MAX(ABS(0 - n)), MAX(UPPER(sensor)) FROM groups").unwrap();
    assert_eq!(rounded, [["40", "S9"]]);
    let counted = run(&snapshot, "SELECT COUNT(*), COUNT(DISTINCT sensor), SUM(n) FROM groups").unwrap();
    assert_eq!(counted, [["120", "40", &(3 * (1..=40).sum::<i64>()).to_string()]]);
}

#[test]
fn an_operator_is_named_by_its_uid_with_or_without_quotes_or_by_how_it_begins() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(2, 5), 2, 100);
    let quoted = format!("\"{WINDOW}\".groups");
    for table in [&quoted, &format!("{WINDOW}.groups"), "12e4.groups", "op_12e4.groups", "\"12e4\".groups", "groups"] {
        let rows =
            run(&snapshot, &format!("SELECT COUNT(*) FROM {table} AS g WHERE g.n > 1.5 AND g.sensor <> '12e4.x'"));
        assert_eq!(rows.as_deref(), Ok(&[vec!["8".to_owned()]][..]), "{table}");
    }
    assert_eq!(names::quoted(&snapshot.tables()[0]), quoted);
}

#[test]
fn what_the_manifest_says_can_be_queried_and_joined() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(2, 5), 2, 100);
    let rows = run(&snapshot, "SELECT split, next_offset, end_offset, finished FROM snapshot.sources ORDER BY split");
    assert_eq!(rows.unwrap(), [["p-0", "100", "NULL", "false"], ["p-1", "7", "7", "true"]]);
    let rows = run(
        &snapshot,
        "SELECT o.operator, o.subtasks, o.\"rows\", o.watermark, i.job_name FROM snapshot.operators o, snapshot.info i ORDER BY 1",
    );
    let expected = [[WINDOW, "2", "10", "1970-01-01T00:00:00.999", "totals"], [SOURCE, "1", "0", "NULL", "totals"]];
    assert_eq!(rows.unwrap(), expected);
    for (table, _) in [("tables", 1), ("files", 2), ("blocks", 2), ("subtasks", 3)] {
        assert!(!run(&snapshot, &format!("SELECT * FROM snapshot.{table}")).unwrap().is_empty(), "{table}");
    }
    let listed = tables(&snapshot).unwrap();
    assert_eq!((listed[0].table.as_str(), listed[0].rows), ("\"12e45678deadbeef\".groups", Some(10)));
    let columns: Vec<&str> = listed[0].columns.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(columns, ["key_hash", "window_start", "window_end", "sensor", "n", "total"]);
}

#[test]
fn two_snapshots_are_compared_in_one_query() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = write(one.path(), "sp-a", &state(2, 5), 2, 100);
    let mut later = state(2, 5);
    later.insert((0, "s1".to_owned()), (9, 9));
    later.insert((5_000, "new".to_owned()), (1, 1));
    let now = write(two.path(), "sp-b", &later, 3, 130);
    let queries = Queries::new(now.clone(), vec![("before".to_owned(), before)], MEMORY_BYTES_DEFAULT).unwrap();
    let sql = "SELECT a.sensor, b.n, a.n FROM groups a LEFT JOIN before.groups b USING (window_start, sensor)
        WHERE b.n IS NULL OR a.n <> b.n ORDER BY 1";
    assert_eq!(run_with(&queries, sql).unwrap(), [["new", "NULL", "1"], ["s1", "2", "9"]]);
    let sql =
        "SELECT n.next_offset - o.next_offset FROM snapshot.sources n JOIN before.snapshot.sources o USING (split)
        ORDER BY split";
    assert_eq!(run_with(&queries, sql).unwrap(), [["30"], ["0"]]);
    let sql = format!("SELECT COUNT(*) FROM before.{WINDOW}.groups");
    assert_eq!(run_with(&queries, &sql).unwrap(), [["10"]]);
    for name in ["snapshot", "", "x"] {
        let others = vec![(name.to_owned(), now.clone()), (name.to_owned(), now.clone())];
        assert_eq!(Queries::new(now.clone(), others, 1).unwrap_err().code, Code::InvalidArgument);
    }
}

#[test]
fn unknown_tables_get_the_names_that_come_close() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(1, 2), 1, 1);
    for table in ["grups", "\"ffff\".groups", "12e4.group", "nobody.snapshot.sources"] {
        let error = run(&snapshot, &format!("SELECT * FROM {table}")).unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{table}: {error}");
        assert_eq!(
            error.hint.unwrap(),
            "Its tables are \"12e45678deadbeef\".groups; schema snapshot has more.",
            "{table}"
        );
    }
    let error = run(&snapshot, "SELECT * FROM snapshot.source").unwrap_err();
    assert!(error.code == Code::NotFound && error.hint.unwrap().contains("snapshot.sources"));
}

#[test]
fn only_reading_is_possible_and_bad_queries_are_typed_errors() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(1, 2), 1, 1);
    let code = |sql: &str| run(&snapshot, sql).unwrap_err().code;
    assert_eq!(code("CREATE TABLE x AS SELECT 1"), Code::Unsupported);
    assert_eq!(code("COPY (SELECT 1) TO 'x.csv'"), Code::Unsupported);
    assert_eq!(code("SELEC 1"), Code::InvalidSql);
    assert_eq!(code("SELECT nothing FROM groups"), Code::InvalidSql);
    assert_eq!(code("SELECT 1 / (n - n) FROM groups"), Code::InvalidSql);
    assert_eq!(code("SELECT 'open"), Code::InvalidSql);
}

#[test]
fn a_query_beyond_its_memory_is_refused_and_not_served_from_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), "sp-a", &state(40, 500), 1, 1);
    let queries = Queries::new(snapshot, Vec::new(), 1 << 14).unwrap();
    let sql = "SELECT a.sensor, COUNT(*) FROM groups a JOIN groups b USING (sensor) GROUP BY a.sensor";
    let error = run_with(&queries, sql).unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert!(error.hint.unwrap().contains("--memory"));
}
