//! Restores into scripts that changed: what is shown beforehand is what happens.

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, Ran};
use weir_integration_tests::oracle::{fold, tumble};

use crate::support::{append, drain, has_read, read, readings, submit, totals_script};

/// Runs the totals over `rows` and stops with a savepoint.
async fn stopped(cluster: &Cluster, rows: &[Value], parallelism: &str) -> Value {
    append(cluster, "test/in", rows);
    let job = submit(cluster, &totals_script("1 h"), &["-p", parallelism]);
    has_read(cluster, &job, rows.len() as u64).await;
    cluster.weir_json(&["stop", &job])
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().expect("a text")
}

/// `weir run -s SNAPSHOT --plan`.
fn plan(cluster: &Cluster, snapshot: &str, script: &str, arguments: &[&str]) -> Ran {
    let file = cluster.write("job.sql", script);
    let all: Vec<&str> = ["run", "-s", snapshot, "--plan"].iter().chain(arguments).copied().chain([&*file]).collect();
    cluster.weir(&all)
}

/// The same as JSON, with the exit code and what was said on stderr.
fn plan_json(cluster: &Cluster, snapshot: &str, script: &str, arguments: &[&str]) -> (Value, Ran) {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let ran = plan(cluster, snapshot, script, &arguments);
    (serde_json::from_str(&ran.stdout).expect("a plan"), ran)
}

/// Lines with single blanks, and sizes as `SIZE`: what remains does not depend on compression.
fn plain(text: &str) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut plain: Vec<&str> = Vec::new();
        for word in words {
            let is_unit = matches!(word, "B" | "KiB" | "MiB");
            let number = plain.last().is_some_and(|last| last.bytes().all(|c| c.is_ascii_digit() || c == b'.'));
            if is_unit && number {
                plain.pop();
                plain.push("SIZE");
            } else {
                plain.push(word);
            }
        }
        plain.join(" ") + "\n"
    };
    text.lines().map(line).collect()
}

/// What becomes of every operator, by name.
fn starts(plan: &Value) -> Vec<(String, String)> {
    let operators = plan["operators"].as_array().expect("operators").iter();
    operators.map(|operator| (text(operator, "name").to_owned(), text(operator, "start").to_owned())).collect()
}

fn start_of(plan: &Value, name: &str) -> String {
    let found = starts(plan).into_iter().find(|(operator, _)| operator.contains(name));
    found.expect("an operator of that name").1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_shows_everything_that_a_rescaled_restore_then_does() {
    let cluster = Cluster::start(2, 2);
    let rows = readings(0, 12_000);
    let savepoint = stopped(&cluster, &rows[..6_000], "2").await;
    append(&cluster, "test/in", &rows[6_000..]);
    let id = text(&savepoint, "id");
    let ran = plan(&cluster, id, &totals_script("1 h"), &["-p", "4"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    let (shown, _) = plan_json(&cluster, id, &totals_script("1 h"), &["-p", "4"]);
    let operators = shown["operators"].as_array().expect("operators");
    let uid = |number: usize| text(&operators[number], "uid");
    let name = |number: usize| text(&operators[number], "name");
    let rows_held = savepoint["rows"].as_u64().expect("rows");
    let behind = |split: usize| {
        let split = &shown["sources"][0]["splits"][split];
        let behind = split["behind"].as_u64().expect("a number");
        let thousands = if behind < 1000 { String::new() } else { format!("{},", behind / 1000) };
        let rest = if behind < 1000 { behind.to_string() } else { format!("{:03}", behind % 1000) };
        format!("{} continues, {thousands}{rest} to read", split["offset"])
    };
    let moment = ran.stdout.lines().find_map(|line| line.strip_prefix("Taken at:")).expect("a moment").trim();
    let expected = format!(
        "Snapshot: savepoint {id}
Taken of: job {job} (job) of cluster {cluster}
Taken at: {moment}
Directory: {directory}
State: {rows_held} rows, SIZE
Claim mode: no-claim
Parallelism: 2 → 4
Slots: 4 needed, 4 free

UID STARTS SUBTASKS ROWS SIZE OPERATOR
{} restored 2 → 4 0 SIZE {}
{} restored 2 → 4 {rows_held} SIZE {}
{} stateless 4 0 SIZE {}

SOURCE SPLIT OFFSET STATE
readings (test/in) p-0 {}
readings (test/in) p-1 {}
readings (test/in) p-2 {}
readings (test/in) p-3 {}

The restore would be accepted.
",
        uid(0),
        name(0),
        uid(1),
        name(1),
        uid(2),
        name(2),
        behind(0),
        behind(1),
        behind(2),
        behind(3),
        job = text(&savepoint, "job"),
        cluster = text(&shown["snapshot"], "cluster"),
        directory = text(&savepoint, "directory"),
    );
    assert_eq!(plain(&ran.stdout), expected);
    let read_so_far: u64 =
        (0..4).map(|split| shown["sources"][0]["splits"][split]["offset"].as_u64().unwrap_or(0)).sum();
    assert_eq!(read_so_far, 6_000);
    assert_eq!(cluster.weir_json(&["list", "--all"]).as_array().map(Vec::len), Some(1), "a plan starts nothing");
    let resumed = submit(&cluster, &totals_script("1 h"), &["-p", "4", "-s", id]);
    has_read(&cluster, &resumed, 6_000).await;
    drain(&cluster, &resumed).await;
    let written = read(&cluster, "test/out");
    let expected = tumble(&rows, "sensor", "at", "reading", 1000);
    assert_eq!(written.len(), expected.len(), "a window was written twice");
    assert_eq!(fold(&written, "sensor"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_a_second_sink_and_fewer_subtasks_keep_the_state() {
    let cluster = Cluster::start(2, 2);
    let rows = readings(0, 8_000);
    let savepoint = stopped(&cluster, &rows[..4_000], "3").await;
    append(&cluster, "test/in", &rows[4_000..]);
    let edited = totals_script("1 h").replace("GROUP BY sensor", "WHERE reading >= 0 GROUP BY sensor")
        + "CREATE TABLE copies (sensor STRING, reading BIGINT)
           WITH ('connector' = 'stream-store', 'stream' = 'test/copies', 'format' = 'json', 'sink.partitions' = '1');
           INSERT INTO copies SELECT sensor, reading FROM readings;";
    let (shown, ran) = plan_json(&cluster, text(&savepoint, "id"), &edited, &["-p", "1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(shown["parallelism"], json!({"from": 3, "to": 1}));
    assert_eq!(shown["dropped"], json!([]));
    let restored = starts(&shown).into_iter().filter(|(_, start)| start == "restored").count();
    assert_eq!(restored, 2, "the source and the window: {shown:#}");
    assert_eq!(start_of(&shown, "copies"), "stateless");
    let resumed = submit(&cluster, &edited, &["-p", "1", "-s", text(&savepoint, "id")]);
    has_read(&cluster, &resumed, 4_000).await;
    drain(&cluster, &resumed).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
    assert_eq!(read(&cluster, "test/copies").len(), 4_000, "the new sink has what came after the snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_maps_to_nothing_is_refused_unless_allowed() {
    let cluster = Cluster::start(1, 2);
    let rows = readings(0, 6_000);
    let savepoint = stopped(&cluster, &rows[..3_000], "1").await;
    append(&cluster, "test/in", &rows[3_000..]);
    let (id, longer) =
        (text(&savepoint, "id"), totals_script("1 h").replace("INTERVAL '1' SECOND)", "INTERVAL '2' SECOND)"));
    let (shown, planned) = plan_json(&cluster, id, &longer, &[]);
    let file = cluster.write("job.sql", &longer);
    let refused = cluster.weir(&["run", "-d", "-s", id, &file]);
    assert_eq!((planned.code, refused.code), (8, 8));
    assert_eq!(planned.stderr, refused.stderr, "the plan fails as the restore does");
    let dropped = &shown["dropped"][0];
    let operators = shown["operators"].as_array().expect("operators");
    let expected = format!(
        "error[FAILED_PRECONDITION]: snapshot {id} holds state that no operator of the script takes
  detail: without an operator: {} ({}); the script's operators: {} ({}), {} ({})
  hint: Restore the script that the snapshot was taken of, or drop that state with --allow-non-restored-state.
",
        text(dropped, "uid"),
        text(dropped, "name"),
        text(&operators[0], "uid"),
        text(&operators[0], "name"),
        text(&operators[1], "uid"),
        text(&operators[1], "name"),
    );
    assert_eq!(refused.stderr.split_whitespace().collect::<Vec<_>>(), expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!((&dropped["rows"], &dropped["splits"]), (&savepoint["rows"], &json!(0)));
    let people = plan(&cluster, id, &longer, &[]);
    assert!(people.stdout.ends_with("\nThe restore would be refused.\n"), "{}", people.stdout);
    let (allowed, ran) = plan_json(&cluster, id, &longer, &["-n"]);
    assert_eq!((ran.code, &allowed["dropped"]), (0, &shown["dropped"]));
    assert_eq!(allowed["operators"][1]["start"], "empty");
    let resumed = submit(&cluster, &longer, &["-n", "-s", id]);
    has_read(&cluster, &resumed, 3_000).await;
    drain(&cluster, &resumed).await;
    let counted: i64 = read(&cluster, "test/out").iter().filter_map(|row| row["n"].as_i64()).sum();
    assert!(counted >= 3_000, "what was read before is not read again, and what came since is: {counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_refused_naming_the_column() {
    let cluster = Cluster::start(1, 1);
    let savepoint = stopped(&cluster, &readings(0, 2_000), "1").await;
    let retyped = totals_script("1 h")
        .replace("readings (sensor STRING", "readings (sensor BIGINT")
        .replace("SELECT sensor,", "SELECT CAST(sensor AS STRING),");
    let id = text(&savepoint, "id");
    let (shown, ran) = plan_json(&cluster, id, &retyped, &["--allow-non-restored-state"]);
    assert_eq!(ran.code, 8, "{shown:#}");
    assert_eq!(
        shown["operators"][1]["tables"][0]["changes"],
        json!([{"change": "retyped", "column": "sensor", "from": "STRING", "to": "BIGINT"}])
    );
    assert!(ran.stderr.contains("column sensor of its table groups was STRING and is BIGINT"), "{}", ran.stderr);
    let file = cluster.write("job.sql", &retyped);
    let refused = cluster.weir(&["run", "-d", "-s", id, &file]);
    assert_eq!((refused.code, refused.stderr), (8, ran.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_key_keeps_its_state() {
    let cluster = Cluster::start(1, 1);
    let rows = readings(0, 4_000);
    let savepoint = stopped(&cluster, &rows[..2_000], "1").await;
    append(&cluster, "test/in", &rows[2_000..]);
    let renamed = totals_script("1 h")
        .replace(
            "INSERT INTO totals",
            "CREATE VIEW renamed AS SELECT sensor AS device, reading, `at` FROM readings; INSERT INTO totals",
        )
        .replace("TABLE readings, ", "TABLE renamed, ")
        .replace("SELECT sensor,", "SELECT device,")
        .replace("GROUP BY sensor", "GROUP BY device");
    let (shown, ran) = plan_json(&cluster, text(&savepoint, "id"), &renamed, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        shown["operators"][1]["tables"][0]["changes"],
        json!([{"change": "renamed", "from": "sensor", "to": "device"}])
    );
    let resumed = submit(&cluster, &renamed, &["-s", text(&savepoint, "id")]);
    has_read(&cluster, &resumed, 2_000).await;
    drain(&cluster, &resumed).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_source_is_refused_with_how_much_is_gone() {
    let cluster = Cluster::start(1, 1);
    let savepoint = stopped(&cluster, &readings(0, 2_000), "1").await;
    append(&cluster, "test/in", &readings(2_000, 2_000));
    // A copy that the catalogue does not know pins nothing.
    let copy = cluster.path("copy");
    std::fs::create_dir(&copy).expect("a directory");
    for file in std::fs::read_dir(text(&savepoint, "directory")).expect("a directory").flatten() {
        std::fs::copy(file.path(), std::path::Path::new(&copy).join(file.file_name())).expect("a copy");
    }
    cluster.weir_json(&["savepoint", "-d", text(&savepoint, "id"), "--force"]);
    let (before, ran) = plan_json(&cluster, &copy, &totals_script("1 h"), &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(before["snapshot"]["entry"], Value::Null);
    let split = &before["sources"][0]["splits"][0];
    let offset = split["offset"].as_u64().expect("an offset");
    let ran = cluster.weir(&["stream", "truncate", "test/in", "--before", &format!("0={}", offset + 7)]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (shown, ran) = plan_json(&cluster, &copy, &totals_script("1 h"), &[]);
    assert_eq!(ran.code, 10, "{}", ran.stderr);
    let head = shown["sources"][0]["splits"][0]["head"].as_u64().expect("a head");
    let lost = head - offset;
    assert_eq!(
        shown["sources"][0]["splits"][0],
        json!({"split": "p-0", "offset": offset, "fate": "truncated", "head": head, "lost": lost})
    );
    let detail = format!("partition 0 begins at {head}, the snapshot is at {offset}: {lost} records are gone");
    assert!(lost > 0 && ran.stderr.contains(&detail), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("error[OFFSET_TRUNCATED]: stream test/in no longer holds what was not read yet\n"));
    let file = cluster.write("job.sql", &totals_script("1 h"));
    assert_eq!(cluster.weir(&["run", "-d", "-s", &copy, &file]).code, 10);
}
