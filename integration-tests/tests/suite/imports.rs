//! Savepoints of other clusters: looked at, copied, charged, restored, deleted, and given up half-way.

use std::path::Path;

use serde_json::{Value, json};
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, drain, has_read, read, readings, submit, totals_script};
use crate::usage;

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().expect("a text")
}

/// Runs over `rows`, and stops with a savepoint.
async fn stopped(cluster: &Cluster, rows: &[Value]) -> Value {
    append(cluster, "test/in", rows);
    let job = submit(cluster, &totals_script("1 h"), &[]);
    has_read(cluster, &job, rows.len() as u64).await;
    let savepoint = cluster.weir_json(&["stop", &job]);
    job_in_state(cluster, &job, JobState::Stopped).await;
    savepoint
}

fn copy(from: &str, to: &str) {
    std::fs::create_dir(to).expect("a new directory");
    for file in std::fs::read_dir(from).expect("a directory").flatten() {
        std::fs::copy(file.path(), Path::new(to).join(file.file_name())).expect("a copy");
    }
}

/// Names and contents of all files, in order.
fn files(directory: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("a directory")
        .flatten()
        .map(|file| {
            (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).expect("a readable file"))
        })
        .collect();
    files.sort();
    files
}

fn used_bytes(cluster: &Cluster, level: &str) -> u64 {
    cluster.weir_json(&["quota", "show", level])["dimensions"]["bytes"]["used"].as_u64().expect("a number")
}

/// Exit code and the first line of the error.
fn refusal(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let ran = cluster.weir(arguments);
    (ran.code, ran.stderr.lines().next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_of_another_cluster_is_imported_restored_and_deleted() {
    let rows = readings(0, 4_000);
    let far = Cluster::start(1, 1);
    let savepoint = stopped(&far, &rows[..2_000]).await;
    let mut written = read(&far, "test/out");
    let here = Cluster::start(1, 1);
    let carried = here.path("carried");
    copy(text(&savepoint, "directory"), &carried);
    drop(far);

    let options = ["--name", "arrived", "--label", "from=far", "--owner", "ann", "--namespace", "web"];
    let import: Vec<&str> = ["snapshots", "import", &carried].iter().chain(&options).copied().collect();
    let ran = here.weir(&import);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let listed = here.weir_json(&["snapshots", "list"]);
    let imported = &listed[0];
    let (id, directory) = (text(imported, "id"), text(imported, "directory"));
    let (first, second) = ran.stdout.split_once('\n').expect("two lines");
    let far_id = text(&savepoint, "id");
    assert!(first.starts_with(&format!("savepoint {id} imported, ")), "{first}");
    assert!(first.contains(&format!("; it was {far_id} of cluster ")), "{first}");
    assert_eq!(second, format!("{directory}\n"));
    assert!(directory.starts_with(&here.path("savepoints/savepoint-")), "{directory}");
    assert_eq!(files(directory), files(&carried), "it is a copy, byte for byte");
    for (key, expected) in [
        ("kind", json!("savepoint")),
        ("state", json!("COMPLETED")),
        ("trigger", json!("import")),
        ("name", json!("arrived")),
        ("labels", json!({"from": "far"})),
        ("owner", json!("ann")),
        ("namespace", json!("web")),
        ("job_name", savepoint["job_name"].clone()),
        ("job", savepoint["job"].clone()),
        ("bytes", savepoint["bytes"].clone()),
        ("rows", savepoint["rows"].clone()),
    ] {
        assert_eq!(imported[key], expected, "{key}");
    }
    let origin = &imported["origin"];
    assert_eq!(
        (text(origin, "snapshot"), &origin["job"], text(origin, "directory")),
        (far_id, &savepoint["job"], &*carried)
    );
    assert_eq!(imported["verified"]["damage"], Value::Null);
    let bytes = savepoint["bytes"].as_u64().expect("bytes");
    assert_eq!((used_bytes(&here, "owner:ann"), used_bytes(&here, "namespace:web")), (bytes, bytes));
    let shown = here.weir(&["snapshots", "show", "arrived"]).stdout;
    assert!(
        shown.contains(&format!("\nImported from {carried}: {far_id} of cluster {}", text(origin, "cluster"))),
        "{shown}"
    );

    for command in ["explain", "verify", "inspect"] {
        let ran = here.weir(&["snapshots", command, id]);
        assert_eq!(ran.code, 0, "{command}: {}", ran.stderr);
    }

    // The streams here decide whether its cut means anything here.
    let file = here.write("job.sql", &totals_script("1 h"));
    let plan = ["run", "-s", id, "--plan", &file];
    assert_eq!(refusal(&here, &plan).0, 6, "there is no such stream");
    append(&here, "test/in", &rows[..100]);
    assert_eq!(
        refusal(&here, &plan),
        (8, "error[FAILED_PRECONDITION]: stream test/in is shorter than what was read of it".to_owned())
    );
    append(&here, "test/in", &rows[100..]);
    let planned = here.weir(&plan);
    assert_eq!(planned.code, 0, "{}", planned.stderr);
    assert!(planned.stdout.lines().any(|line| line.starts_with("Catalogue:") && line.ends_with(&format!(" as {id}"))));

    let job = submit(&here, &totals_script("1 h"), &["-s", id]);
    assert_eq!(refusal(&here, &["snapshots", "delete", "--force", id]).0, 8, "the restore holds it");
    has_read(&here, &job, 2_000).await;
    drain(&here, &job).await;
    written.extend(read(&here, "test/out"));
    assert_eq!(fold(&written, "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));

    assert_eq!(refusal(&here, &["snapshots", "delete", id]).0, 8, "the last verified one of its job takes --force");
    let deleted = here.weir_json(&["snapshots", "delete", "--force", id]);
    assert_eq!(deleted[0]["bytes_freed"], savepoint["bytes"]);
    assert!(!Path::new(directory).exists());
    assert!(Path::new(&carried).join("manifest.json").exists(), "what was imported is still its owner's");
    assert_eq!(used_bytes(&here, "owner:ann"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_savepoint_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start(1, 1);
    let savepoint = stopped(&cluster, &readings(0, 1_000)).await;
    let directory = text(&savepoint, "directory");
    let import = |path: &str| refusal(&cluster, &["snapshots", "import", path]);
    let manifest = std::fs::read_to_string(Path::new(directory).join("manifest.json")).expect("a manifest");
    let state = files(directory).into_iter().find(|(name, _)| name.ends_with(".state.arrow")).expect("state");
    let spoilt = |name: &str, spoil: &dyn Fn(&Path)| {
        let path = cluster.path(name);
        copy(directory, &path);
        spoil(Path::new(&path));
        path
    };
    let flipped = spoilt("flipped", &|path| {
        let mut bytes = state.1.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path.join(&state.0), bytes).expect("a file");
    });
    assert_eq!(import(&flipped).0, 19);
    let missing = spoilt("missing", &|path| std::fs::remove_file(path.join(&state.0)).expect("a file"));
    assert_eq!(import(&missing), (6, format!("error[NOT_FOUND]: file {missing}/{} does not exist", state.0)));
    let newer = spoilt("newer", &|path| {
        let newer = manifest.replace("\"weir_snapshot\": 1", "\"weir_snapshot\": 99");
        std::fs::write(path.join("manifest.json"), newer).expect("a file");
    });
    assert_eq!(import(&newer), (4, format!("error[UNSUPPORTED]: {newer}/manifest.json has format version 99")));
    let edited = spoilt("edited", &|path| {
        let edited = manifest.replace("\"job_name\": \"job\"", "\"job_name\": \"jab\"");
        std::fs::write(path.join("manifest.json"), edited).expect("a file");
    });
    assert_eq!(import(&edited), (19, format!("error[CORRUPT]: manifest {edited}/manifest.json is damaged")));
    let nothing = cluster.path("log");
    assert_eq!(import(&nothing), (6, format!("error[NOT_FOUND]: there is no savepoint in {nothing}")));
    let dots = format!("{nothing}/../flipped");
    assert_eq!(import(&dots), (2, format!("error[INVALID_ARGUMENT]: {dots:?} is not a savepoint's directory")));
    assert_eq!(refusal(&cluster, &["snapshots", "import", directory, "--owner", "../x"]).0, 2);
    assert_eq!(refusal(&cluster, &["snapshots", "import", directory, "--name", "a b"]).0, 2);
    let (id, cluster_id) = (text(&savepoint, "id"), serde_json::from_str::<Value>(&manifest).expect("JSON"));
    let cluster_id = text(&cluster_id["content"]["manifest"], "cluster").to_owned();
    let line = format!("error[ALREADY_EXISTS]: savepoint {id} of cluster {cluster_id} is in the catalogue already");
    assert_eq!(import(directory), (7, line));
    let snapshots = cluster.weir_json(&["snapshots", "list"]);
    assert_eq!(snapshots.as_array().map(Vec::len), Some(1), "{snapshots:#}");

    // A copy outlives what it is a copy of, and a quota has the last word.
    let kept = spoilt("kept", &|_| {});
    cluster.weir_json(&["snapshots", "delete", "--force", id]);
    assert_eq!(cluster.weir(&["quota", "set", "owner:ann", "--savepoints", "0"]).code, 0);
    let refused = refusal(&cluster, &["snapshots", "import", &kept, "--owner", "ann"]);
    assert_eq!(refused, (12, "error[QUOTA_EXCEEDED]: owner:ann has reached its limit of savepoints".to_owned()));
    assert_eq!(std::fs::read_dir(cluster.path("savepoints")).expect("a directory").count(), 0);
    let once = ["snapshots", "import", &kept, "--request-id", "once"];
    let first = cluster.weir_json(&once);
    let again = cluster.weir_json(&once);
    assert_eq!((&first["id"], &first["state"]), (&again["id"], &json!("COMPLETED")));
    assert_eq!(std::fs::read_dir(cluster.path("savepoints")).expect("a directory").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_of_an_import_leaves_all_of_it_or_nothing() {
    let mut cluster = Cluster::start(1, 1);
    let savepoint = stopped(&cluster, &readings(0, 1_000)).await;
    let kept = cluster.path("kept");
    copy(text(&savepoint, "directory"), &kept);
    cluster.weir_json(&["snapshots", "delete", "--force", text(&savepoint, "id")]);
    for (step, whole) in
        [("import.reserved", false), ("import.files", false), ("import.manifest", true), ("import.complete", true)]
    {
        let reached = cluster.path(step);
        cluster.terminate("jobmanager");
        cluster.restart_with("jobmanager", &[("WEIR_FAIL_POINT", format!("{step}={reached}"))]);
        let import = ["snapshots", "import", &kept, "--request-id", step];
        assert_ne!(cluster.weir(&import).code, 0, "{step}: the JobManager ended before it answered");
        cluster.ended("jobmanager");
        assert_eq!(std::fs::read_to_string(&reached).expect(step), step, "it was reached");
        cluster.restart("jobmanager");
        let again = cluster.weir(&import);
        if whole {
            assert_eq!(again.code, 0, "{step}: {}", again.stderr);
        } else {
            assert_eq!(again.code, 17, "{step}: {}", again.stderr);
            // What was given up is gone for good, and does not keep it from being imported after all.
            assert_eq!(cluster.weir(&["snapshots", "import", &kept]).code, 0, "{step}");
        }
        let complete = cluster.weir_json(&["snapshots", "list", "--state", "completed"]);
        assert_eq!(complete.as_array().map(Vec::len), Some(1), "{step}: {complete:#}");
        assert_eq!(files(text(&complete[0], "directory")), files(&kept), "{step}");
        cluster.weir_json(&["snapshots", "delete", "--force", text(&complete[0], "id")]);
        let swept = async {
            while used_bytes(&cluster, "cluster") > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let swept = tokio::time::timeout(weir_integration_tests::cluster::DEADLINE, swept).await;
        swept.expect("everything is given back");
        assert_eq!(std::fs::read_dir(cluster.path("savepoints")).expect("a directory").count(), 0, "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_waits_ends_at_its_deadline_or_when_it_is_cancelled() {
    let cluster = usage::cluster(1, 1);
    let savepoint = stopped(&cluster, &readings(0, 1_000)).await;
    let kept = cluster.path("kept");
    copy(text(&savepoint, "directory"), &kept);
    cluster.weir_json(&["snapshots", "delete", "--force", text(&savepoint, "id")]);
    let job = submit(&cluster, &totals_script("1 h"), &[]);
    has_read(&cluster, &job, 1_000).await;
    assert_eq!(cluster.weir(&["quota", "set", "cluster", "--in-flight", "1"]).code, 0);
    cluster.freeze("tm-1");
    let mut asked = cluster.weir_in_background(&["savepoint", &job]);
    let in_flight = usage::listed_as(&cluster, "IN_PROGRESS").await;

    let late = cluster.weir(&["snapshots", "import", &kept, "--timeout", "200ms"]);
    let line = format!("error[TIMEOUT]: the import of {kept} took too long");
    assert_eq!((late.code, late.stderr.lines().next()), (16, Some(&*line)));
    let failed = usage::listed_as(&cluster, "FAILED").await;
    assert_eq!((&failed["trigger"], &failed["failure"]["code"]), (&json!("import"), &json!("TIMEOUT")));

    let mut waiting = cluster.weir_in_background(&["snapshots", "import", &kept]);
    let queued = usage::listed_as(&cluster, "QUEUED").await;
    let cancelled = cluster.weir(&["snapshots", "cancel", text(&queued, "id")]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.stderr);
    assert_eq!(waiting.wait().expect("a child").code(), Some(18), "the code of CANCELLED");
    let listed = cluster.weir_json(&["snapshots", "show", text(&queued, "id")]);
    assert_eq!((&listed["state"], &listed["failure"]["code"]), (&json!("FAILED"), &json!("CANCELLED")));

    assert_eq!(cluster.weir(&["snapshots", "cancel", text(&in_flight, "id")]).code, 0);
    assert_eq!(asked.wait().expect("a child").code(), Some(18));
    cluster.thaw("tm-1");
    assert_eq!(usage::settles(&cluster).await, 0);
    assert_eq!(cluster.weir(&["snapshots", "import", &kept]).code, 0, "there is room now");
    usage::settles(&cluster).await;
}
