//! Recovery from damaged snapshots: a job goes on from the newest one that is whole, says so, and never from nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{job_in_state, job_until};
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::JobState;
use weir_stream_store::client::StoreClient;

use crate::support::{
    append, damage, drain, has_read, manifest_of, metric, own_files, read, readings, submit, totals_script,
};

/// Rows between two checkpoints.
const STEP: usize = 2_000;

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().expect("a text")
}

/// Never checkpoints by itself, and keeps what it has taken.
fn script() -> String {
    totals_script("1 h") + "SET 'execution.checkpointing.num-retained' = '9';"
}

/// A job with `count` checkpoints, each after [`STEP`] more rows.
async fn checkpoints(cluster: &Cluster, rows: &[Value], count: usize) -> (String, Vec<Value>) {
    append(cluster, "test/in", &rows[..STEP]);
    let job = submit(cluster, &script(), &["-p", "2"]);
    let mut taken = Vec::new();
    for number in 1..=count {
        if number > 1 {
            append(cluster, "test/in", &rows[(number - 1) * STEP..number * STEP]);
        }
        has_read(cluster, &job, (number * STEP) as u64).await;
        taken.push(cluster.weir_json(&["checkpoint", &job]));
    }
    (job, taken)
}

/// Waits until the job runs again after it has fallen back to this snapshot.
async fn fell_back(cluster: &Cluster, job: &str, to: &Value) -> Value {
    job_until(cluster, job, "a fallback", |detail| {
        detail.summary.as_ref().is_some_and(|job| job.state() == JobState::Running)
            && detail.fallback.as_ref().is_some_and(|fallback| fallback.to == text(to, "id"))
    })
    .await;
    cluster.weir_json(&["job", "show", job])["fallback"].clone()
}

/// Ids of what was passed over, newest first.
fn passed_over(fallback: &Value) -> Vec<&str> {
    let passed = fallback["passed_over"].as_array().expect("a list");
    passed.iter().map(|passed| text(passed, "snapshot")).collect()
}

/// Lets the job read the rest, and compares all that it has written with the oracle.
async fn ends_exactly(cluster: &Cluster, job: &str, rows: &[Value], appended: usize) {
    append(cluster, "test/in", &rows[appended..]);
    job_in_state(cluster, job, JobState::Running).await;
    drain(cluster, job).await;
    assert_eq!(fold(&read(cluster, "test/out"), "sensor"), tumble(rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_newest_checkpoint_sends_the_job_back_to_the_one_before() {
    let mut cluster = Cluster::start(2, 2);
    let rows = readings(0, 3 * STEP as u64);
    let (job, taken) = checkpoints(&cluster, &rows, 2).await;
    let (first, second) = (&taken[0], &taken[1]);
    let file = damage::flip(&own_files(&cluster, second, Some(first))[0]);
    assert_eq!(cluster.weir_json(&["job", "show", &job])["fallback"], Value::Null);
    cluster.kill("tm-1");
    let fallback = fell_back(&cluster, &job, first).await;
    assert_eq!(passed_over(&fallback), [text(second, "id")]);
    let reason = text(&fallback["passed_over"][0], "reason");
    assert!(reason.starts_with("it is damaged: CORRUPT: ") && reason.contains(&file), "{reason}");

    let shown = cluster.weir_json(&["snapshots", "show", text(second, "id")]);
    assert_eq!((&shown["state"], &shown["verified"]["by"]), (&json!("DAMAGED"), &json!("restore")));
    assert_eq!(shown["verified"]["damage"]["code"], "CORRUPT");
    let people = cluster.weir(&["job", "show", &job]).stdout;
    let line = format!("  {} was passed over: it is damaged: CORRUPT: ", text(second, "id"));
    assert!(people.contains(&line), "{people}");
    assert!(people.contains(&format!(" fell back to {} at ", text(first, "id"))), "{people}");
    let attempt = &fallback["attempt"];
    let summary =
        |of: &Value| text(&cluster.weir_json(&["snapshots", "explain", text(of, "id")]), "summary").to_owned();
    let passed = format!("; attempt {attempt} of the job passed it over and fell back to {}", text(first, "id"));
    assert!(summary(second).ends_with(&passed), "{}", summary(second));
    let took =
        format!("; attempt {attempt} of the job fell back to it, because {} cannot be restored", text(second, "id"));
    assert!(summary(first).ends_with(&took), "{}", summary(first));
    let explained = cluster.weir_json(&["snapshots", "explain", text(first, "id")]);
    let timeline = explained["timeline"].as_array().expect("a timeline");
    assert!(timeline.iter().any(|event| event["message"] == "the job falls back to it"), "{explained:#}");
    assert_eq!(metric(&cluster, "jobmanager", "weir_job_fallbacks_total").await, Some(1.0));
    assert_eq!(metric(&cluster, "jobmanager", "weir_snapshots_condemned_total").await, Some(1.0));

    // The next checkpoint is the newest that is whole, and a restart goes on from that.
    cluster.weir_json(&["checkpoint", &job]);
    cluster.restart("tm-1");
    cluster.kill("tm-2");
    ends_exactly(&cluster, &job, &rows, 2 * STEP).await;
    assert_eq!(metric(&cluster, "jobmanager", "weir_job_fallbacks_total").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_manifest_and_a_missing_file_are_both_passed_over_after_all_were_killed() {
    let mut cluster = Cluster::start(1, 2);
    let rows = readings(0, 4 * STEP as u64);
    let (job, taken) = checkpoints(&cluster, &rows, 3).await;
    let missing = own_files(&cluster, &taken[1], Some(&taken[0]))[0].clone();
    // The second one's file, unless the third one needs it too: then both are damaged by it.
    std::fs::remove_file(&missing).expect("a state file");
    damage::tear(&manifest_of(&taken[2]));
    for name in ["jobmanager", "tm-1"] {
        cluster.kill(name);
    }
    for name in ["jobmanager", "tm-1"] {
        cluster.restart(name);
    }
    let fallback = fell_back(&cluster, &job, &taken[0]).await;
    assert_eq!(passed_over(&fallback), [text(&taken[2], "id"), text(&taken[1], "id")]);
    let codes: Vec<Value> = [&taken[2], &taken[1]]
        .map(|of| cluster.weir_json(&["snapshots", "show", text(of, "id")])["verified"]["damage"]["code"].clone())
        .into();
    assert_eq!(codes, [json!("CORRUPT"), json!("NOT_FOUND")]);
    ends_exactly(&cluster, &job, &rows, 3 * STEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_snapshot_damaged_the_job_fails_naming_all_of_them_instead_of_beginning_anew() {
    let mut cluster = Cluster::start(1, 2);
    let rows = readings(0, 2 * STEP as u64);
    let (job, taken) = checkpoints(&cluster, &rows, 2).await;
    damage::cut(&own_files(&cluster, &taken[1], Some(&taken[0]))[0]);
    std::fs::remove_file(manifest_of(&taken[0])).expect("a manifest");
    cluster.kill("tm-1");
    cluster.restart("tm-1");
    job_in_state(&cluster, &job, JobState::Failed).await;
    let failure = cluster.weir_json(&["job", "show", &job])["job"]["failure"].clone();
    assert_eq!(failure["code"], "UNRESTORABLE", "{failure:#}");
    assert_eq!(failure["message"], format!("job {job} has no snapshot left that it could go on from"));
    let (first, second) = (text(&taken[0], "id"), text(&taken[1], "id"));
    let detail = text(&failure, "detail");
    assert!(detail.starts_with(&format!("{second}: it is damaged: CORRUPT: ")), "{detail}");
    assert!(detail.contains(&format!("; {first}: it is damaged: NOT_FOUND: ")), "{detail}");
    let states = cluster.weir_json(&["snapshots", "list", "--checkpoints"]);
    let states: Vec<&str> = states.as_array().expect("a list").iter().map(|of| text(of, "state")).collect();
    assert_eq!(states, ["DAMAGED", "DAMAGED"]);
    // They are of no use any more, and go without force.
    for id in [first, second] {
        let deleted = cluster.weir(&["snapshots", "delete", id]);
        assert_eq!(deleted.code, 0, "{}", deleted.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_a_user_named_is_not_replaced_by_another_one() {
    let cluster = Cluster::start(1, 2);
    let rows = readings(0, 2 * STEP as u64);
    let (job, _) = checkpoints(&cluster, &rows, 1).await;
    let older = cluster.weir_json(&["savepoint", &job]);
    append(&cluster, "test/in", &rows[STEP..]);
    has_read(&cluster, &job, 2 * STEP as u64).await;
    let newest = cluster.weir_json(&["stop", &job]);
    damage::flip(&own_files(&cluster, &newest, None)[0]);
    let file = cluster.write("job.sql", &script());
    let ran = cluster.weir(&["run", "-p", "2", "-s", text(&newest, "id"), &file]);
    assert_eq!(ran.code, 19, "{}", ran.stderr);
    assert!(ran.stderr.contains("error[CORRUPT]: "), "{}", ran.stderr);
    // From now on that is known beforehand.
    let refused = cluster.weir(&["run", "-d", "-s", text(&newest, "id"), &file]);
    assert_eq!(refused.code, 21, "{}", refused.stderr);
    let resumed = submit(&cluster, &script(), &["-p", "2", "-s", text(&older, "id")]);
    ends_exactly(&cluster, &resumed, &rows, 2 * STEP).await;
}

/// A partition that was read between two snapshots: `PARTITION=OFFSET` of the later one.
fn place_between(earlier: &Value, later: &Value) -> String {
    let sources = |of: &Value| of["sources"].as_array().expect("sources").clone();
    let moved = sources(later).into_iter().find(|split| {
        let before = sources(earlier).into_iter().find(|of| of["split"] == split["split"]).expect("a split");
        split["offset"].as_u64() > before["offset"].as_u64()
    });
    let split = moved.expect("a partition that was read");
    format!("{}={}", text(&split, "split").trim_start_matches("p-"), split["offset"])
}

/// Waits until a snapshot is shown in this state.
async fn in_state(cluster: &Cluster, snapshot: &Value, state: &str) -> Value {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let shown = cluster.weir_json(&["snapshots", "show", text(snapshot, "id")]);
        if shown["state"] == state {
            return shown;
        }
        assert!(Instant::now() < deadline, "it is not {state}: {shown:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_that_was_forced_while_the_jobmanager_was_down_makes_a_snapshot_unrestorable() {
    let mut cluster = Cluster::start(1, 2);
    let rows = readings(0, 3 * STEP as u64);
    let (job, taken) = checkpoints(&cluster, &rows, 2).await;
    let (first, second) = (text(&taken[0], "id"), text(&taken[1], "id"));
    let place = place_between(&taken[0], &taken[1]);
    let refused = cluster.weir(&["stream", "truncate", "test/in", "--before", &place]);
    assert_eq!(refused.code, 8, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("is pinned by {first} before this cut")), "{}", refused.stderr);
    let log = std::fs::read_to_string(format!("{}/store.log", cluster.path("log"))).expect("a log");
    let line = log.lines().find(|line| line.contains("truncation refused: pinned")).expect("a line of the log");
    assert!(line.contains("stream=test/in") && line.contains(&format!("snapshot={first}")), "{line}");
    cluster.kill("jobmanager");
    let forced = cluster.weir(&["stream", "truncate", "test/in", "--before", &place, "--force"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    assert!(forced.stdout.ends_with(&format!("pin of {first} can no longer be honoured\n")), "{}", forced.stdout);
    cluster.restart("jobmanager");
    let shown = in_state(&cluster, &taken[0], "UNRESTORABLE").await;
    let reason = text(&shown, "unrestorable");
    assert!(reason.starts_with("a truncation of stream test/in was forced at "), "{reason}");
    let (partition, head) = place.split_once('=').expect("a place");
    assert!(reason.contains(&format!("partition {partition} begins at {head}, the snapshot is at ")), "{reason}");
    assert_eq!(cluster.weir_json(&["snapshots", "show", second])["state"], "COMPLETED");
    let listed = cluster.weir_json(&["snapshots", "list", "--state", "unrestorable"]);
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["id"]), (Some(1), &json!(first)));
    let explained = cluster.weir_json(&["snapshots", "explain", first]);
    let expected = format!("; it can no longer be restored: {reason}");
    assert!(text(&explained, "summary").contains(&expected), "{explained:#}");

    let file = cluster.write("job.sql", &script());
    let refused = cluster.weir(&["run", "-d", "-s", first, &file]);
    assert_eq!(refused.code, 21, "{}", refused.stderr);
    let line = format!("error[UNRESTORABLE]: snapshot {first} is UNRESTORABLE and cannot be restored");
    assert_eq!(refused.stderr.lines().next(), Some(line.as_str()));
    assert!(refused.stderr.contains(reason), "{}", refused.stderr);
    let planned = cluster.weir(&["run", "-s", first, "--plan", &file]);
    assert_eq!((planned.code, &planned.stderr), (21, &refused.stderr));

    // Its files and its broken pin go like those of any other; the job goes on from the newer one.
    assert_eq!(cluster.weir(&["snapshots", "delete", first]).code, 0);
    let store = StoreClient::connect(&cluster.address("store")).expect("an address");
    assert_eq!(store.broken_pins().await.expect("pins"), []);
    ends_exactly(&cluster, &job, &rows, 2 * STEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_sources_were_truncated_past_all_its_snapshots_fails_naming_them() {
    let mut cluster = Cluster::start(1, 2);
    let rows = readings(0, 3 * STEP as u64);
    let (job, taken) = checkpoints(&cluster, &rows, 2).await;
    append(&cluster, "test/in", &rows[2 * STEP..]);
    has_read(&cluster, &job, 3 * STEP as u64).await;
    for name in ["jobmanager", "tm-1"] {
        cluster.kill(name);
    }
    let described = cluster.weir_json(&["stream", "describe", "test/in"]);
    let sources = taken[1]["sources"].as_array().expect("sources");
    let partitions = described["partitions"].as_array().expect("partitions").iter();
    let behind =
        partitions.filter_map(|partition| Some((partition["partition"].as_u64()?, partition["end"].as_u64()?)));
    let mut behind = behind.filter(|(number, end)| {
        sources.iter().any(|split| split["split"] == format!("p-{number}") && split["offset"].as_u64() < Some(*end))
    });
    let (partition, end) = behind.next().expect("a partition that was read since");
    let place = format!("{partition}={end}");
    let forced = cluster.weir(&["stream", "truncate", "test/in", "--before", &place, "--force"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    for name in ["jobmanager", "tm-1"] {
        cluster.restart(name);
    }
    job_in_state(&cluster, &job, JobState::Failed).await;
    let failure = cluster.weir_json(&["job", "show", &job])["job"]["failure"].clone();
    assert_eq!(failure["code"], "UNRESTORABLE", "{failure:#}");
    let detail = text(&failure, "detail");
    for snapshot in &taken {
        assert!(detail.contains(&format!("{}: ", text(snapshot, "id"))), "{detail}");
        in_state(&cluster, snapshot, "UNRESTORABLE").await;
    }
    assert!(detail.contains(&format!("partition {partition} begins at {end}, the snapshot is at ")), "{detail}");
}
