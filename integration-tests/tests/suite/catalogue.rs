//! The catalogue as its users work with it: listing, describing, annotating, deleting, cleaning up.

use std::path::Path;

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE, Ran};
use weir_integration_tests::jobs::job_until;

use crate::support::{append, has_read, readings, submit, totals_script};

/// A job that has read everything, and takes no checkpoints by itself.
async fn running() -> (Cluster, String) {
    let cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 1_000));
    let job = submit(&cluster, &totals_script("1 h"), &[]);
    has_read(&cluster, &job, 1_000).await;
    (cluster, job)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

fn ids(snapshots: &Value) -> Vec<&str> {
    snapshots.as_array().expect("a list").iter().map(|snapshot| text(snapshot, "id")).collect()
}

/// Exit code and the first line of the error.
fn refusal(ran: &Ran) -> (i32, &str) {
    (ran.code, ran.stderr.lines().next().unwrap_or_default())
}

/// What a successful command printed.
fn printed(cluster: &Cluster, arguments: &[&str]) -> String {
    let ran = cluster.weir(arguments);
    assert_eq!(ran.code, 0, "weir {arguments:?}: {}", ran.stderr);
    ran.stdout
}

/// The cells of a table's row.
fn cells(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_listed_filtered_sorted_and_annotated() {
    let (cluster, job) = running().await;
    let first = [
        "savepoint",
        &job,
        "--name",
        "nightly",
        "--note",
        "before the upgrade",
        "--label",
        "env=test",
        "--label",
        "team=a",
        "--pin",
        "--owner",
        "ann",
    ];
    let first = cluster.weir_json(&first);
    let second = cluster.weir_json(&["savepoint", &job, "--owner", "bob"]);
    let third = cluster.weir_json(&["checkpoint", &job]);
    let (a, b, c) = (text(&first, "id"), text(&second, "id"), text(&third, "id"));
    assert_eq!((&first["labels"], &first["pinned"]), (&json!({"env": "test", "team": "a"}), &json!(true)));
    assert_eq!(first["exclusive_bytes"], first["bytes"]);

    for (filter, expected) in [
        (&[][..], &[a, b, c][..]),
        (&["--job", &job, "--savepoints"], &[a, b]),
        (&["--checkpoints"], &[c]),
        (&["--owner", "ann"], &[a]),
        (&["--namespace", "default", "--state", "completed", "--state", "failed"], &[a, b, c]),
        (&["--namespace", "other"], &[]),
        (&["--label", "env=test", "--label", "team=a"], &[a]),
        (&["--label", "env=prod"], &[]),
        (&["--failed"], &[]),
        (&["--since", "1h"], &[a, b, c]),
        (&["--until", "1h"], &[]),
        (&["--since", "2020-01-01T00:00", "-n", "2"], &[b, c]),
        (&["--reverse", "--limit", "1"], &[c]),
        (&["--savepoints", "--sort", "name", "--reverse"], &[a, b]),
    ] {
        let arguments: Vec<&str> = ["snapshots", "list"].iter().chain(filter).copied().collect();
        assert_eq!(ids(&cluster.weir_json(&arguments)), expected, "{filter:?}");
    }
    for (arguments, line) in [
        (&["--state", "lost"][..], "error[INVALID_ARGUMENT]: \"lost\" is not a state of a snapshot"),
        (&["--since", "yesterday"], "error[INVALID_ARGUMENT]: \"yesterday\" is neither a time nor a duration"),
        (&["--label", "env"], "error[INVALID_ARGUMENT]: \"env\" is not a label"),
    ] {
        let arguments: Vec<&str> = ["snapshots", "list"].iter().chain(arguments).copied().collect();
        assert_eq!(refusal(&cluster.weir(&arguments)), (2, line));
    }

    let table = printed(&cluster, &["snapshots", "list", "--savepoints"]);
    let lines: Vec<Vec<&str>> = table.lines().map(cells).collect();
    let header =
        ["SNAPSHOT", "KIND", "JOB", "OWNER", "STATE", "TRIGGERED", "TOOK", "SIZE", "EXCLUSIVE", "ROWS", "REMARKS"];
    assert_eq!(lines[0], header);
    let name = text(&first, "job_name");
    assert_eq!(lines[1][..5], [a, "savepoint", name, "ann", "COMPLETED"]);
    assert_eq!(lines[1][10], "nightly env=test team=a pinned");
    assert_eq!((lines[2][3], lines[2][10]), ("bob", "-"));

    let label = printed(&cluster, &["snapshots", "label", "nightly", "env=prod", "team-", "nothing-"]);
    let expected = format!("savepoint {a}\nName nightly\nLabels env=prod\nNote before the upgrade\nPinned yes\n");
    assert_eq!(label, expected);
    let note = printed(&cluster, &["snapshots", "note", a, ""]);
    assert_eq!(note, format!("savepoint {a}\nName nightly\nLabels env=prod\nNote -\nPinned yes\n"));
    let unpinned = printed(&cluster, &["snapshots", "unpin", a]);
    assert_eq!(unpinned, format!("savepoint {a}\nName nightly\nLabels env=prod\nNote -\nPinned no\n"));
    assert_eq!(cluster.weir_json(&["snapshots", "pin", a])["pinned"], true);
    assert_eq!(cluster.weir_json(&["snapshots", "rename", a, "weekly"])["name"], "weekly");
    let hostile = cluster.weir(&["snapshots", "rename", a, "../../x"]);
    assert_eq!(refusal(&hostile), (2, "error[INVALID_ARGUMENT]: \"../../x\" is not a valid snapshot name"));

    for name in [a, "weekly", text(&first, "directory")] {
        assert_eq!(cluster.weir_json(&["snapshots", "show", name])["id"], a, "{name}");
    }
    assert_eq!(cluster.weir(&["snapshots", "show", "sp-"]).code, 2, "it is the prefix of two");
    let shown = cluster.weir_json(&["snapshots", "show", c]);
    assert_eq!(shown["holders"], json!([format!("job {job} would restart from it")]));
    assert_eq!(text(&shown, "query"), totals_script("1 h"));
    let query = printed(&cluster, &["snapshots", "show", c, "--query"]);
    assert_eq!(query.trim_end(), totals_script("1 h").trim_end());
    let people = printed(&cluster, &["snapshots", "show", a]);
    for part in [&format!("Job {job} ({name}), namespace default, parallelism 1, plan "), "Trigger user, barrier 1, "] {
        assert!(people.contains(part), "{part}: {people}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_names_who_needs_a_snapshot_and_what_was_deleted_is_remembered() {
    let (cluster, job) = running().await;
    let first = cluster.weir_json(&["savepoint", &job, "--name", "first", "--pin"]);
    let second = cluster.weir_json(&["savepoint", &job]);
    let (a, b) = (text(&first, "id"), text(&second, "id"));
    let needed = cluster.weir(&["snapshots", "delete", b, "--force"]);
    assert_eq!(refusal(&needed), (8, &*format!("error[FAILED_PRECONDITION]: snapshot {b} is still needed")));
    assert!(needed.stderr.contains(&format!("detail: job {job} would restart from it")), "{}", needed.stderr);
    let pinned = cluster.weir(&["snapshots", "delete", a]);
    assert_eq!(refusal(&pinned), (8, &*format!("error[FAILED_PRECONDITION]: snapshot {a} is pinned")));
    let checkpoint = cluster.weir_json(&["checkpoint", &job]);
    let c = text(&checkpoint, "id");
    let retired = cluster.weir(&["snapshots", "delete", c]);
    assert!(retired.stderr.contains("is a checkpoint: its job retires it"), "{}", retired.stderr);

    let outside = cluster.path("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(Path::new(&outside).join("x.state.arrow"), "mine").expect("a file");
    for hostile in ["../../x", "/", "/etc", &outside, "..", "sp-", "no such"] {
        let ran = cluster.weir(&["snapshots", "delete", "--force", hostile]);
        assert!([2, 6].contains(&ran.code), "{hostile}: {}", ran.stderr);
    }
    let directory = text(&first, "directory");
    let aside = cluster.path("aside");
    std::fs::rename(directory, &aside).expect("a movable directory");
    std::os::unix::fs::symlink(&outside, directory).expect("a link");
    let link = cluster.weir(&["snapshots", "delete", "--force", a]);
    let line = format!("error[FAILED_PRECONDITION]: {directory} is a symbolic link, not a snapshot's directory");
    assert_eq!(refusal(&link), (8, &*line));
    std::fs::remove_file(directory).expect("a removable link");
    std::fs::rename(&aside, directory).expect("a movable directory");
    assert!(Path::new(&outside).join("x.state.arrow").exists(), "nothing of anybody else was touched");

    let deleted = printed(&cluster, &["snapshots", "delete", "first", "--force", "--owner", "ann"]);
    assert!(deleted.starts_with(&format!("savepoint {a} deleted, ")), "{deleted}");
    assert!(!Path::new(directory).exists());
    let gone = cluster.weir(&["snapshots", "show", a]);
    assert_eq!(refusal(&gone), (6, &*format!("error[NOT_FOUND]: snapshot {a} was deleted")));
    assert!(gone.stderr.contains("detail: ann deleted it at "), "{}", gone.stderr);
    let records = cluster.weir_json(&["snapshots", "list", "--deleted"]);
    assert_eq!(ids(&records), [a]);
    let record = &records[0];
    assert_eq!((&record["deletion"]["by"], &record["deletion"]["who"]), (&json!("user"), &json!("ann")));
    assert_eq!((text(record, "name"), &record["bytes"]), ("first", &first["bytes"]));
    let table = printed(&cluster, &["snapshots", "list", "--deleted"]);
    let header = ["SNAPSHOT", "KIND", "JOB", "OWNER", "NAME", "TRIGGERED", "DELETED", "BY", "SIZE"];
    assert_eq!(cells(table.lines().next().expect("a header")), header);

    cluster.weir_json(&["cancel", &job]);
    let last = cluster.weir(&["snapshots", "delete", b]);
    let line = format!("error[FAILED_PRECONDITION]: snapshot {b} is the last completed one of job {job}");
    assert_eq!(refusal(&last), (8, &*line));
    assert_eq!(cluster.weir(&["snapshots", "delete", b, "--force"]).code, 0);
    assert_eq!(ids(&cluster.weir_json(&["snapshots", "list", "--deleted"])), [a, b]);
}

/// Takes a savepoint. A job that is listed as running may not have been taken over by a new JobManager yet: then it is refused.
async fn savepoint_once_taken_over(cluster: &Cluster, job: &str) -> Value {
    let taken = async {
        loop {
            let ran = cluster.weir(&["--json", "savepoint", job]);
            if ran.code == 0 {
                return serde_json::from_str(&ran.stdout).expect("JSON");
            }
            assert_eq!(ran.code, 8, "{}", ran.stderr);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, taken).await.expect("a job that is taken over")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_of_a_deletion_ends_it() {
    let (mut cluster, job) = running().await;
    for step in ["delete.mark", "delete.manifest", "delete.files", "delete.pins", "delete.entry"] {
        let doomed = savepoint_once_taken_over(&cluster, &job).await;
        let kept = cluster.weir_json(&["savepoint", &job]);
        let (id, directory) = (text(&doomed, "id"), text(&doomed, "directory"));
        let reached = cluster.path(step);
        cluster.terminate("jobmanager");
        cluster.restart_with("jobmanager", &[("WEIR_FAIL_POINT", format!("{step}={reached}"))]);
        job_until(&cluster, &job, "running again", |detail| {
            detail.summary.as_ref().is_some_and(|job| job.state() == weir_proto::pb::client::v1::JobState::Running)
        })
        .await;
        let ran = cluster.weir(&["snapshots", "delete", id, "--force"]);
        assert_ne!(ran.code, 0, "{step}: the JobManager ended before it answered");
        cluster.ended("jobmanager");
        assert_eq!(std::fs::read_to_string(&reached).expect(step), step, "it was reached");
        cluster.restart("jobmanager");
        // The new leader goes on with what was marked; whoever deletes again waits for that.
        let again = cluster.weir(&["snapshots", "delete", id, "--force"]);
        assert!([0, 6].contains(&again.code), "{step}: {}", again.stderr);
        assert!(!Path::new(directory).exists(), "{step}");
        let savepoints = cluster.weir_json(&["snapshots", "list", "--savepoints"]);
        assert!(!ids(&savepoints).contains(&id) && ids(&savepoints).contains(&text(&kept, "id")), "{step}");
        let garbage = cluster.weir_json(&["snapshots", "gc", "--dry-run", "--older-than", "0s"]);
        let left = garbage.as_array().expect("a list").iter().filter(|found| text(found, "name").contains(id));
        assert_eq!(left.count(), 0, "{step}: no file and no pin is left: {garbage:#}");
        job_until(&cluster, &job, "running again", |detail| {
            detail.summary.as_ref().is_some_and(|job| job.state() == weir_proto::pb::client::v1::JobState::Running)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_named_with_its_reason_and_only_what_is_this_clusters_goes() {
    let (cluster, job) = running().await;
    let savepoint = cluster.weir_json(&["savepoint", &job]);
    let (id, directory) = (text(&savepoint, "id"), Path::new(text(&savepoint, "directory")));
    let root = directory.parent().expect("the savepoints' root");
    let short = &job[..8];
    let orphan = root.join(format!("savepoint-{short}-99"));
    let copy = root.join(format!("savepoint-{short}-98"));
    let foreign = root.join("savepoint-00000000-1");
    for made in [&orphan, &foreign] {
        std::fs::create_dir(made).expect("a directory");
        std::fs::write(made.join("a.state.arrow"), "12345").expect("a file");
    }
    std::fs::create_dir(&copy).expect("a directory");
    for file in std::fs::read_dir(directory).expect("a directory").flatten() {
        std::fs::copy(file.path(), copy.join(file.file_name())).expect("a copy");
    }
    let notes = root.join(format!("savepoint-{short}-97"));
    std::fs::create_dir(&notes).expect("a directory");
    std::fs::write(notes.join("notes.txt"), "").expect("a file");
    let outcome = |garbage: &Value, path: &Path| {
        let mut all = garbage.as_array().expect("a list").iter();
        let found = all.find(|found| text(found, "name") == path.to_string_lossy()).cloned();
        found.map(|found| (text(&found, "outcome").to_owned(), text(&found, "detail").to_owned()))
    };
    let young = cluster.weir_json(&["snapshots", "gc"]);
    let (kept, detail) = outcome(&young, &orphan).expect("the orphan");
    assert!(kept == "kept" && detail.ends_with("less than 600 s"), "{young:#}");

    let dry = cluster.weir_json(&["snapshots", "gc", "--dry-run", "--older-than", "0s"]);
    assert_eq!(outcome(&dry, &orphan), Some(("found".to_owned(), String::new())));
    assert_eq!(outcome(&dry, &copy), Some(("kept".to_owned(), format!("it is a copy of {id}"))));
    let (kept, detail) = outcome(&dry, &foreign).expect("the foreign one");
    assert_eq!(kept, "kept");
    assert!(detail.starts_with("it has no manifest"), "{detail}");
    assert_eq!(outcome(&dry, directory), None, "the catalogue refers to it");
    assert!(orphan.exists());

    let done = printed(&cluster, &["snapshots", "gc", "--older-than", "0s"]);
    let last = done.lines().last().expect("a summary");
    assert_eq!(last, "1 removed, 5 B");
    assert_eq!(cells(done.lines().next().expect("a header")), ["KIND", "NAME", "SIZE", "OUTCOME", "WHY"]);
    assert!(done.contains("kept: files that are not a snapshot's are in it"), "{done}");
    assert!(notes.join("notes.txt").exists());
    assert!(!orphan.exists() && copy.exists() && foreign.exists() && directory.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_savepoints_make_room_when_that_is_wanted() {
    let (cluster, job) = running().await;
    let first = cluster.weir_json(&["savepoint", &job, "--name", "first"]);
    let second = cluster.weir_json(&["savepoint", &job]);
    let quota = cluster.weir(&["quota", "set", "namespace:default", "--savepoints", "2"]);
    assert_eq!(quota.code, 0, "{}", quota.stderr);
    let refused = cluster.weir(&["savepoint", &job]);
    assert_eq!(refused.code, 12, "{}", refused.stderr);
    let taken = printed(&cluster, &["savepoint", &job, "--evict-oldest"]);
    let gone = format!("savepoint {} (first) deleted to make room, ", text(&first, "id"));
    assert!(taken.starts_with(&gone), "{taken}");
    assert!(!Path::new(text(&first, "directory")).exists());
    let third = cluster.weir_json(&["snapshots", "list", "--savepoints", "--state", "completed", "-n", "1"]);
    let third = text(&third[0], "id");
    let shown = cluster.weir_json(&["snapshots", "show", third]);
    assert_eq!(ids(&shown["evicted"]), [text(&first, "id")]);
    let record = &cluster.weir_json(&["snapshots", "list", "--deleted"])[0];
    assert_eq!((&record["deletion"]["by"], &record["deletion"]["who"]), (&json!("eviction"), &json!(third)));
    assert_eq!(cluster.weir_json(&["snapshots", "pin", text(&second, "id")])["pinned"], true);
    let refused = cluster.weir(&["savepoint", &job, "--evict-oldest"]);
    assert_eq!(refused.code, 12, "one is pinned, the other the job would restart from: {}", refused.stderr);
}
