//! Looking inside snapshots from the command line: what is shown is what the job had computed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, Ran};
use weir_integration_tests::oracle::{Windows, fold, millis, tumble};

use crate::support::{append, drain, has_read, lines, read, readings, submit};

const HOUR_MS: i64 = 3_600_000;

/// Counts and sums readings per sensor and hour: no window ends before the job is drained.
fn hourly() -> String {
    "CREATE TABLE readings (sensor STRING, reading BIGINT, `at` TIMESTAMP(3),
         WATERMARK FOR `at` AS `at` - INTERVAL '3' SECOND)
     WITH ('connector' = 'stream-store', 'stream' = 'test/in', 'format' = 'json');
     CREATE TABLE totals (sensor STRING, window_start TIMESTAMP(3), n BIGINT, total BIGINT)
     WITH ('connector' = 'stream-store', 'stream' = 'test/out', 'format' = 'json', 'sink.partitions' = '2');
     SET 'execution.checkpointing.interval' = '1 h';
     INSERT INTO totals
     SELECT sensor, window_start, COUNT(*) AS n, SUM(reading) AS total
     FROM TABLE(TUMBLE(TABLE readings, DESCRIPTOR(`at`), INTERVAL '1' HOUR))
     GROUP BY sensor, window_start, window_end;"
        .to_owned()
}

fn ok(ran: Ran) -> String {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// A job that has read three readings of two sensors, and a savepoint of it.
async fn three_readings(cluster: &Cluster) -> (String, Value) {
    let rows: Vec<Value> = [("a", 1, 1), ("a", 2, 2), ("b", 5, 5)]
        .map(|(sensor, reading, second)| json!({"sensor": sensor, "reading": reading, "at": format!("2026-01-01T00:00:0{second}Z")}))
        .to_vec();
    let file = cluster.write("rows.jsonl", &lines(&rows));
    ok(cluster.weir(&["stream", "append", "test/in", &file, "--create", "1"]));
    let job = submit(cluster, &hourly(), &["-p", "1"]);
    has_read(cluster, &job, 3).await;
    let savepoint = cluster.weir_json(&["savepoint", &job, &cluster.path("mine")]);
    (job, savepoint)
}

/// Uids of the operators with and without state tables.
fn uids(cluster: &Cluster, directory: &str) -> (String, String) {
    let sql = "SELECT operator, tables, splits FROM snapshot.operators";
    let operators = cluster.weir_json(&["snapshots", "query", directory, sql]);
    let find = |column: &str| {
        let mut found = operators.as_array().expect("rows").iter().filter(|row| row[column] != 0);
        text(&found.next().expect("an operator")["operator"]).to_owned()
    };
    (find("tables"), find("splits"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_is_looked_into_without_any_cluster() {
    let mut cluster = Cluster::start(1, 1);
    let (_job, savepoint) = three_readings(&cluster).await;
    let (id, directory) = (text(&savepoint["id"]), text(&savepoint["directory"]));
    let by_id = ok(cluster.weir(&["snapshots", "query", id, "SELECT SUM(total) AS s FROM groups", "--csv"]));
    assert_eq!(by_id, "s\n8\n");
    for process in ["tm-1", "jobmanager", "store"] {
        cluster.kill(process);
    }
    let (window, source) = uids(&cluster, directory);

    let sql = "SELECT sensor, window_start, window_end, n, total FROM groups ORDER BY sensor";
    let table = ok(cluster.weir(&["snapshots", "query", directory, sql]));
    assert_eq!(
        table,
        "sensor  window_start         window_end           n  total\n\
         a       2026-01-01T00:00:00  2026-01-01T01:00:00  2      3\n\
         b       2026-01-01T00:00:00  2026-01-01T01:00:00  1      5\n"
    );
    let sql = format!("SELECT g.sensor, s.next_offset FROM {window}.groups g, snapshot.sources s WHERE n > 1");
    assert_eq!(cluster.weir_json(&["snapshots", "query", directory, &sql]), json!([{"sensor": "a", "next_offset": 3}]));
    let tables = ok(cluster.weir(&["snapshots", "query", directory, "--tables"]));
    assert!(
        tables.contains(&format!("\"{window}\".groups     2  key_hash UInt64, window_start Timestamp(ms), window_end")),
        "{tables}"
    );

    let inspected = cluster.weir_json(&["snapshots", "inspect", directory]);
    assert_eq!((&inspected["id"], &inspected["rows"], &inspected["files"]), (&savepoint["id"], &json!(2), &json!(1)));
    // The catalogue, and with it the quotas, count the manifest too.
    let manifest = std::fs::metadata(Path::new(directory).join("manifest.json")).expect("a manifest").len();
    let bytes = |snapshot: &Value| snapshot["bytes"].as_u64().expect("a size");
    assert_eq!(bytes(&inspected) + manifest, bytes(&savepoint));
    let shown = ok(cluster.weir(&["snapshots", "inspect", directory]));
    let size = &shown[shown.find("2 rows, ").expect("rows") + 8..];
    let size = &size[..size.find('\n').expect("a line")];
    let expected = format!(
        "TABLE                    ROWS  KEYS     SIZE  FILES  SKEW\n{window}.groups     2     2  {size:>7}      1  1.00\n"
    );
    assert!(shown.contains(&expected), "{shown}\n---\n{expected}");
    let expected = format!(
        "SOURCE            SPLIT  OFFSET  END  WATERMARK\n{source}  p-0         3    -  2026-01-01T00:00:02.000Z\n"
    );
    assert!(shown.contains(&expected), "{shown}\n---\n{expected}");

    let csv = ok(cluster.weir(&["snapshots", "export", directory, "--table", "groups", "--format", "csv", "-o", "-"]));
    let mut csv: Vec<&str> = csv.lines().map(|line| line.split_once(',').expect("columns").1).collect();
    csv[1..].sort_unstable();
    assert_eq!(csv[0], "window_start,window_end,sensor,n,total");
    assert!(csv[1].ends_with(",a,2,3") && csv[2].ends_with(",b,1,5"), "{csv:?}");
    let exported =
        cluster.weir_json(&["snapshots", "export", directory, "--format", "parquet", "-o", &cluster.path("")]);
    let file = cluster.path(&format!("{window}.groups.parquet"));
    assert_eq!((&exported[0]["rows"], &exported[0]["file"]), (&json!(2), &json!(file)));
    let again = cluster.weir(&["snapshots", "export", directory, "--format", "parquet", "-o", &file]);
    assert_eq!(again.code, 7, "nothing is overwritten: {}", again.stderr);

    let away = cluster.weir(&["snapshots", "query", id, "SELECT 1"]);
    assert_eq!(away.code, 17, "an id needs a JobManager: {}", away.stderr);
    assert!(away.stderr.contains("give the snapshot's directory"), "{}", away.stderr);
    let unknown = cluster.weir(&["snapshots", "query", directory, "SELECT * FROM gruops"]);
    assert_eq!(unknown.code, 6);
    let expected = format!(
        "error[NOT_FOUND]: snapshot {id} has no table \"gruops\"\n  hint: Its tables are \"{window}\".groups; schema \
         snapshot has more.\n"
    );
    assert_eq!(unknown.stderr, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_tells_what_is_damaged_missing_or_foreign() {
    let cluster = Cluster::start(1, 1);
    let (_job, savepoint) = three_readings(&cluster).await;
    let directory = text(&savepoint["directory"]);
    let copy = cluster.path("copy");
    std::fs::create_dir(&copy).expect("a directory");
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), Path::new(&copy).join(entry.file_name())).expect("a copy");
    }
    std::fs::write(Path::new(&copy).join("notes.txt"), "mine").expect("a file");
    let whole = ok(cluster.weir(&["snapshots", "verify", &copy]));
    let id = text(&savepoint["id"]);
    assert!(whole.starts_with(&format!("savepoint {id}: 1 of 1 file whole, 1 blocks, 2 rows, ")), "{whole}");
    assert!(whole.ends_with("\nno part of it, and left alone: notes.txt\n"), "{whole}");

    let files = cluster.weir_json(&["snapshots", "query", &copy, "SELECT path FROM snapshot.files"]);
    let file = text(&files[0]["path"]);
    let path = Path::new(&copy).join(file);
    let mut bytes = std::fs::read(&path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).expect("a file");
    let damaged = cluster.weir(&["snapshots", "verify", &copy, "--json"]);
    assert_eq!(damaged.code, 19, "{}", damaged.stderr);
    let report: Value = serde_json::from_str(&damaged.stdout).expect("JSON");
    assert_eq!((&report["whole"], &report["files_whole"]), (&json!(false), &json!(0)));
    assert_eq!(
        (&report["damage"][0]["file"], &report["damage"][0]["error"]["code"]),
        (&json!(file), &json!("CORRUPT"))
    );
    assert!(damaged.stderr.starts_with(&format!("error[CORRUPT]: snapshot {id} is damaged: 1 finding")));
    let queried = cluster.weir(&["snapshots", "query", &copy, "SELECT * FROM groups"]);
    assert_eq!(queried.code, 19, "damage is never passed over: {}", queried.stderr);
    std::fs::remove_file(&path).expect("a file");
    let missing = cluster.weir(&["snapshots", "verify", &copy]);
    assert_eq!(missing.code, 19);
    assert!(missing.stdout.contains("NOT_FOUND"), "{}", missing.stdout);
    ok(cluster.weir(&["snapshots", "verify", id]));
}

/// What the state tables of a snapshot say, as the job would write it.
fn windows(cluster: &Cluster, snapshot: &str) -> Windows {
    let sql = "SELECT sensor, window_start, n, total FROM groups";
    let rows = cluster.weir_json(&["snapshots", "query", snapshot, sql]);
    let rows = rows.as_array().expect("rows").iter();
    rows.map(|row| {
        let key = (text(&row["sensor"]).to_owned(), millis(text(&row["window_start"])));
        (key, (row["n"].as_i64().expect("a count"), row["total"].as_i64().expect("a total")))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_what_the_job_writes_later_and_differences_are_what_it_read_between() {
    let cluster = Cluster::start(2, 2);
    let rows = readings(0, 6_000);
    append(&cluster, "test/in", &rows[..2_000]);
    let job = submit(&cluster, &hourly(), &["-p", "3"]);
    has_read(&cluster, &job, 2_000).await;
    let first = cluster.weir_json(&["checkpoint", &job]);
    assert_eq!(windows(&cluster, text(&first["id"])), tumble(&rows[..2_000], "sensor", "at", "reading", HOUR_MS));
    append(&cluster, "test/in", &rows[2_000..]);
    has_read(&cluster, &job, 6_000).await;
    let second = cluster.weir_json(&["savepoint", &job]);
    let expected = tumble(&rows, "sensor", "at", "reading", HOUR_MS);
    assert_eq!(windows(&cluster, text(&second["id"])), expected);

    let diff = cluster.weir_json(&["snapshots", "diff", text(&first["id"]), text(&second["directory"])]);
    let table = &diff["tables"][0];
    let counts = ["added", "removed", "changed", "unchanged"].map(|name| table[name].as_u64().expect("a count"));
    assert_eq!(counts, [0, 0, 10, 0], "{diff:#}");
    let offsets = |snapshot: &Value| -> BTreeMap<String, u64> {
        let sources = snapshot["sources"].as_array().expect("sources").iter();
        sources.map(|split| (text(&split["split"]).to_owned(), split["offset"].as_u64().expect("an offset"))).collect()
    };
    for split in diff["sources"].as_array().expect("splits") {
        let name = text(&split["split"]);
        assert_eq!(split["from"]["offset"], offsets(&first)[name], "{name}");
        assert_eq!(split["to"]["offset"], offsets(&second)[name], "{name}");
    }
    let both = format!("{}=before", text(&first["id"]));
    let sql = "SELECT SUM(now.n - before.n) AS more FROM groups now JOIN before.groups USING (sensor, window_start)";
    let sql = sql.replace("JOIN before.groups", "JOIN before.groups AS before");
    let read_between = cluster.weir_json(&["snapshots", "query", text(&second["id"]), &sql, "--and", &both]);
    assert_eq!(read_between, json!([{"more": 4_000}]));

    let inspected = cluster.weir_json(&["snapshots", "inspect", text(&second["id"]), "--ranges", "4"]);
    let operators = inspected["operators"].as_array().expect("operators");
    let table = operators.iter().find_map(|operator| operator["tables"].get(0)).expect("a table");
    assert_eq!((&table["rows"], &table["keys"]), (&json!(10), &json!(10)));
    let ranges = table["ranges"].as_array().expect("ranges");
    assert_eq!((ranges.len(), ranges.iter().filter_map(Value::as_u64).sum::<u64>()), (4, 10));

    drain(&cluster, &job).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), expected, "the savepoint told what the job wrote later");
}

#[tokio::test(flavor = "multi_thread")]
async fn pyarrow_reads_state_files_as_they_are() {
    let python = |code: &str| Command::new("python3").args(["-c", code]).output();
    if !python("import pyarrow").is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: python3 has no pyarrow here, so nobody else reads the state files");
        return;
    }
    let cluster = Cluster::start(1, 1);
    let (_job, savepoint) = three_readings(&cluster).await;
    let code = format!(
        "import glob, json, pyarrow as pa\n\
         (path,) = glob.glob('{}/*.state.arrow')\n\
         table = pa.ipc.open_file(path).read_all()\n\
         fields = [[f.name, str(f.type), (f.metadata or {{}}).get(b'weir.role', b'').decode()] for f in table.schema]\n\
         rows = [[str(r['window_start']), r['sensor'], r['n'], r['total']] for r in table.to_pylist()]\n\
         assert table.schema.metadata[b'weir.table'] == b'groups' and table.schema.metadata[b'weir.format'] == b'1'\n\
         print(json.dumps([fields, sorted(rows)]))",
        text(&savepoint["directory"])
    );
    let output = python(&code).expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let fields = json!([
        ["key_hash", "uint64", ""],
        ["window_start", "timestamp[ms]", "map-key"],
        ["sensor", "string", "key"],
        ["n", "int64", "value"],
        ["total", "int64", "value"],
    ]);
    let rows = json!([["2026-01-01 00:00:00", "a", 2, 3], ["2026-01-01 00:00:00", "b", 1, 5]]);
    assert_eq!(found, json!([fields, rows]));
}
