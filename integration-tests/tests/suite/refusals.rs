//! Bad input gets a clear error where the user looks for it.

use weir_integration_tests::cluster::{Cluster, Ran};

use crate::support::{append, copy, damage, has_read, lines, readings, submit, totals_script};

/// The first line of an error, and its exit code.
fn refusal(ran: &Ran) -> (i32, &str) {
    (ran.code, ran.stderr.lines().next().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_things_are_not_found() {
    let cluster = Cluster::start(0, 1);
    for (arguments, line) in [
        (&["job", "show", "nothing"][..], "error[NOT_FOUND]: "),
        (&["cancel", "nothing"], "error[NOT_FOUND]: "),
        (&["savepoint", "nothing"], "error[NOT_FOUND]: "),
        (&["snapshots", "show", "sp-nothing"], "error[NOT_FOUND]: "),
        (&["stream", "describe", "no/stream"], "error[NOT_FOUND]: "),
        (&["group", "describe", "nogroup"], "error[NOT_FOUND]: "),
    ] {
        let ran = cluster.weir(arguments);
        let (code, first) = refusal(&ran);
        assert_eq!(code, 6, "{arguments:?}: {}", ran.stderr);
        assert!(first.starts_with(line), "{arguments:?}: {first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_jobmanager_is_named_with_a_hint() {
    let cluster = Cluster::start(0, 1);
    let ran = cluster.weir(&["--jobmanager", "127.0.0.1:1", "list"]);
    assert_eq!(refusal(&ran), (17, "error[UNAVAILABLE]: no JobManager answers at 127.0.0.1:1"));
    assert!(ran.stderr.contains("hint: Start a local cluster with `weir cluster start`"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_with_a_mistake_is_refused_with_line_and_column() {
    let cluster = Cluster::start(0, 1);
    let script =
        cluster.write("bad.sql", "CREATE TABLE t (a INT) WITH ('connector' = 'print');\nINSERT INTO t SELEKT 1;");
    let ran = cluster.weir(&["run", &script]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("line 2, column 15"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_damaged_savepoint_is_refused_before_the_job_starts() {
    let cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 1_000));
    let script = cluster.write("job.sql", &totals_script("1 s"));
    let ran = cluster.weir(&["run", "-d", "-s", "/no/such/savepoint", &script]);
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    let job = submit(&cluster, &totals_script("1 s"), &[]);
    has_read(&cluster, &job, 1_000).await;
    let savepoint = cluster.weir_json(&["stop", &job]);
    // A copy: what becomes of savepoints of the catalogue is entered there.
    let directory = &cluster.path("copy");
    copy(savepoint["directory"].as_str().expect("a directory"), directory);
    let files = || std::fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path());
    let state = files().find(|path| path.extension().is_some_and(|kind| kind == "arrow")).expect("a state file");
    let whole = std::fs::read(&state).expect("a readable file");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&state, &damaged).expect("a writable file");
    let ran = cluster.weir(&["run", "-s", directory, &script]);
    assert_eq!(ran.code, 19, "{}", ran.stderr);
    assert!(ran.stderr.contains("error[CORRUPT]"), "{}", ran.stderr);
    std::fs::remove_file(&state).expect("a removable file");
    let ran = cluster.weir(&["run", "-s", directory, &script]);
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("error[NOT_FOUND]") && ran.stderr.contains("does not exist"), "{}", ran.stderr);
    std::fs::write(&state, &whole).expect("a writable file");

    let manifest = files().find(|path| path.to_string_lossy().contains("manifest")).expect("a manifest");
    std::fs::write(&manifest, "half").expect("a writable file");
    let ran = cluster.weir(&["run", "-d", "-s", directory, &script]);
    assert_eq!(ran.code, 19, "{}", ran.stderr);
    assert!(ran.stderr.contains("error[CORRUPT]"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_record_fails_the_job_naming_where_it_lies() {
    let cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 10));
    let file = cluster.write("bad.jsonl", "{\"sensor\": 5");
    let ran = cluster.weir(&["stream", "append", "test/in", &file, "--raw"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let script =
        cluster.write("job.sql", &(totals_script("1 s") + "SET 'restart-strategy.fixed-delay.attempts' = '0';"));
    let ran = cluster.weir(&["run", &script]);
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("test/in") && ran.stderr.contains("offset"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_kind_is_named_for_what_it_is() {
    let cluster = Cluster::start(0, 1);
    let (store, pages) = (cluster.address("store"), cluster.http_address("jobmanager"));
    for (address, what) in [(store, "a stream store"), (pages, "an HTTP server (HTTP/1.1 200 OK)")] {
        let ran = cluster.weir(&["--jobmanager", &address, "list"]);
        let expected = format!("error[UNAVAILABLE]: what answers at {address} is no JobManager but {what}");
        assert_eq!(refusal(&ran), (17, expected.as_str()));
        assert!(ran.stderr.contains("hint: Give the address of the JobManager's API"), "{}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_two_jobs_is_refused_with_their_ids_and_what_to_do() {
    let cluster = Cluster::start(0, 1);
    append(&cluster, "test/in", &readings(0, 10));
    let jobs = [submit(&cluster, &totals_script("1 h"), &[]), submit(&cluster, &totals_script("1 h"), &[])];
    let ran = cluster.weir(&["job", "show", "job"]);
    assert_eq!(refusal(&ran), (2, "error[INVALID_ARGUMENT]: \"job\" means more than one job"));
    assert!(jobs.iter().all(|job| ran.stderr.contains(job)), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: Give one of these ids, or as much of it as no other begins with."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_argument_is_explained_without_an_error_code() {
    let cluster = Cluster::start(0, 1);
    let ran = cluster.weir(&["savepoint", "some-job", "--timeout", "5x"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(!ran.stderr.contains("INVALID_ARGUMENT"), "{}", ran.stderr);
    assert!(ran.stderr.contains("invalid value '5x' for '--timeout <DURATION>': \"5x\" is not a span of time"));
    assert!(ran.stderr.contains("hint: Write a number with its unit"), "{}", ran.stderr);
    let input = cluster.write("input.jsonl", "{}\n");
    let ran = cluster.weir(&["quickstart", "--input", &input, "--script", "no-such.sql"]);
    assert_eq!(refusal(&ran), (6, "error[NOT_FOUND]: could not read the script no-such.sql"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_damaged_records_is_logged_by_the_store_with_file_offset_and_stream() {
    let cluster = Cluster::start(0, 1);
    let rows = cluster.write("rows.jsonl", &lines(&readings(0, 100)));
    assert_eq!(cluster.weir(&["stream", "append", "test/in", &rows, "--create", "1"]).code, 0);
    let partition = format!("{}/streams/test/in/p-00000", cluster.path("store"));
    let files = std::fs::read_dir(&partition).expect("a partition").flatten().map(|entry| entry.path());
    let segment = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "log")).expect("a segment");
    damage::flip(&segment);
    let ran = cluster.weir(&["stream", "read", "test/in"]);
    assert_eq!(ran.code, 19, "{}", ran.stderr);
    let log = std::fs::read_to_string(format!("{}/store.log", cluster.path("log"))).expect("a log");
    let line = log.lines().find(|line| line.contains("read failed")).expect("a line of the log");
    let file = format!("file={}", segment.display());
    for part in ["ERROR", "stream=test/in", "partition=0", &file, "offset=0", "code=CORRUPT"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
