//! What follows when TaskManagers are killed: restarts as the strategy says, with a history that shows them.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{checkpoint_after, job_until};
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1::{JobDetail, JobState};

use crate::support::{append, drain, metric, read, readings, submit, totals_script};

fn task_manager_of(detail: &JobDetail) -> String {
    detail.chains[0].subtasks[0].task_manager_id.clone()
}

/// Waits until the job runs in this attempt; where it runs.
async fn runs(cluster: &Cluster, job: &str, attempt: u32) -> String {
    let detail = job_until(cluster, job, "an attempt that runs", |detail| {
        detail
            .summary
            .as_ref()
            .is_some_and(|summary| summary.state() == JobState::Running && summary.attempt == attempt)
    })
    .await;
    task_manager_of(&detail)
}

/// Waits until the job has failed.
async fn fails(cluster: &Cluster, job: &str) -> Value {
    let failed = async {
        loop {
            let shown = cluster.weir_json(&["job", "show", job]);
            if shown["job"]["state"] == "FAILED" {
                return shown;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, failed).await.expect("the job fails")
}

/// Attempt, TaskManager, code and what followed of each failure, oldest first.
fn history(shown: &Value) -> Vec<(u64, String, String, Value)> {
    let failures = shown["failures"].as_array().expect("a history");
    let one = |failure: &Value| {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let attempt = failure["attempt"].as_u64().expect("a number");
        (attempt, text(&failure["task_manager"]), text(&failure["error"]["code"]), failure["restart_after_ms"].clone())
    };
    failures.iter().rev().map(one).collect()
}

/// Kills one TaskManager after the other, until the job has failed as its strategy says; the delays of its restarts.
async fn killed_until_it_fails(options: &str) -> Vec<Value> {
    let mut cluster = Cluster::start(3, 1);
    append(&cluster, "test/in", &readings(0, 100));
    let job = submit(&cluster, &(totals_script("100 ms") + options), &["-p", "1"]);
    let mut killed = Vec::new();
    let restarts = if options.contains("'none'") { 0 } else { 1 };
    for attempt in 1..=restarts + 1 {
        let on = runs(&cluster, &job, attempt).await;
        cluster.kill(&on);
        killed.push(on);
    }
    let shown = fails(&cluster, &job).await;
    let history = history(&shown);
    assert_eq!(shown["failures_total"], restarts + 1);
    for (number, (attempt, on, code, _)) in history.iter().enumerate() {
        assert_eq!((*attempt, on, code.as_str()), (number as u64 + 1, &killed[number], "UNAVAILABLE"), "{shown:#}");
    }
    assert_eq!(shown["failures"][0]["followed"], "FAIL");
    let people = cluster.weir(&["job", "show", &job]).stdout;
    assert!(people.contains(&format!("Failures: {}\n", restarts + 1)), "{people}");
    assert!(people.contains("the job failed"), "{people}");
    assert_eq!(metric(&cluster, "jobmanager", "weir_job_failures_total").await, Some(f64::from(restarts + 1)));
    history.into_iter().map(|(_, _, _, delay)| delay).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_a_restart_strategy_fails_with_its_task_manager() {
    let delays = killed_until_it_fails("SET 'restart-strategy.type' = 'none';").await;
    assert_eq!(delays, [Value::Null]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_restarts_as_often_and_as_late_as_fixed_delay_says() {
    let options = "SET 'restart-strategy.type' = 'fixed-delay'; SET 'restart-strategy.fixed-delay.attempts' = '1';
        SET 'restart-strategy.fixed-delay.delay' = '70 ms';";
    assert_eq!(killed_until_it_fails(options).await, [json!(70), Value::Null]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_beyond_its_failure_rate() {
    let options = "SET 'restart-strategy.failure-rate.max-failures-per-interval' = '1';
        SET 'restart-strategy.failure-rate.failure-rate-interval' = '1 h';
        SET 'restart-strategy.failure-rate.delay' = '30 ms';";
    assert_eq!(killed_until_it_fails(options).await, [json!(30), Value::Null]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_moves_to_standby_slots_and_keeps_its_history_when_the_jobmanager_is_killed() {
    let mut cluster = Cluster::start(3, 1);
    let rows = readings(0, 10_000);
    let (first, rest) = rows.split_at(rows.len() / 2);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("100 ms"), &["-p", "1"]);
    for attempt in 1..=2 {
        let on = runs(&cluster, &job, attempt).await;
        checkpoint_after(&cluster, &job, 0).await;
        cluster.kill(&on);
    }
    runs(&cluster, &job, 3).await;
    let before = cluster.weir_json(&["job", "show", &job])["failures"].clone();
    cluster.kill("jobmanager");
    cluster.restart("jobmanager");
    job_until(&cluster, &job, "the job runs again", |detail| {
        detail.summary.as_ref().is_some_and(|summary| summary.state() == JobState::Running)
    })
    .await;
    let after = cluster.weir_json(&["job", "show", &job]);
    assert_eq!(after["failures"], before, "a change of leaders is no failure, and loses none");
    let delays: Vec<u64> =
        before.as_array().expect("a list").iter().filter_map(|failure| failure["restart_after_ms"].as_u64()).collect();
    // A lost TaskManager does not make delays grow; the jitter is a tenth.
    assert!(delays.len() == 2 && delays.iter().all(|delay| (90..=110).contains(delay)), "{delays:?}");
    append(&cluster, "test/in", rest);
    drain(&cluster, &job).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

/// Waits until the job runs with so many subtasks per chain.
async fn runs_at(cluster: &Cluster, job: &str, parallelism: u32) -> JobDetail {
    job_until(cluster, job, "its parallelism", |detail| {
        detail.summary.as_ref().is_some_and(|summary| {
            summary.state() == JobState::Running
                && summary.parallelism == parallelism
                && detail.chains.iter().all(|chain| chain.subtasks.len() == parallelism as usize)
        })
    })
    .await
}

async fn ends_exactly(cluster: &Cluster, job: &str, rows: &[Value]) {
    drain(cluster, job).await;
    assert_eq!(fold(&read(cluster, "test/out"), "sensor"), tumble(rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_rescaled_up_and_down_while_it_runs_and_its_output_is_exact() {
    let cluster = Cluster::start(2, 2);
    let rows = readings(0, 30_000);
    let mut parts = rows.chunks(10_000);
    let mut append_more = || append(&cluster, "test/in", parts.next().expect("three parts"));
    append_more();
    // No checkpoint but those that rescaling takes.
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "2"]);
    runs_at(&cluster, &job, 2).await;
    let up = cluster.weir_json(&["rescale", &job, "-p", "4", "--request-id", "up"]);
    assert_eq!((&up["parallelism"], &up["attempt"], &up["state"]), (&json!(4), &json!(2), &json!("RUNNING")));
    append_more();
    let again = cluster.weir_json(&["rescale", &job, "-p", "4", "--request-id", "up"]);
    assert_eq!(again["attempt"], 2, "it is carried out once");
    let refused = cluster.weir(&["rescale", &job, "-p", "5"]);
    assert!(refused.stderr.contains("RESOURCE_EXHAUSTED"), "{}", refused.stderr);
    let down = cluster.weir(&["rescale", &job, "-p", "1"]);
    assert_eq!(down.stdout, format!("Job {job} runs at parallelism 1, attempt 3\n"), "{}", down.stderr);
    append_more();
    let shown = cluster.weir_json(&["job", "show", &job]);
    assert_eq!(shown["failures_total"], 0, "it is no failure");
    let taken = shown["snapshots"].as_array().expect("a list");
    assert!(!taken.is_empty() && taken.iter().all(|snapshot| snapshot["trigger"] == "rescale"), "{shown:#}");
    ends_exactly(&cluster, &job, &rows).await;
    let ended = cluster.weir(&["rescale", &job, "-p", "2"]);
    assert!(ended.stderr.contains("FAILED_PRECONDITION"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_minimum_goes_on_with_fewer_subtasks_and_grows_when_slots_are_back() {
    let settings = ["scheduling.resource_wait_ms=300", "scheduling.resource_stabilization_ms=500"];
    let mut cluster = Cluster::start_with(2, 1, &settings);
    let rows = readings(0, 30_000);
    let (first, rest) = rows.split_at(10_000);
    let (second, third) = rest.split_at(10_000);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("100 ms"), &["-p", "2", "--min-parallelism", "1"]);
    runs_at(&cluster, &job, 2).await;
    checkpoint_after(&cluster, &job, 0).await;
    cluster.kill("tm-1");
    runs_at(&cluster, &job, 1).await;
    append(&cluster, "test/in", second);
    let shown = cluster.weir_json(&["job", "show", &job])["job"].clone();
    assert_eq!((&shown["parallelism"], &shown["parallelism_wanted"]), (&json!(1), &json!(2)));
    let people = cluster.weir(&["list"]).stdout;
    assert!(people.contains("1 of 2"), "{people}");
    cluster.add_task_manager("tm-3", 1);
    let grown = runs_at(&cluster, &job, 2).await;
    assert!(grown.recent_snapshots.iter().any(|s| s.trigger == "rescale" && s.state == "COMPLETED"), "{grown:?}");
    // What it has does not change with the leader.
    cluster.kill("jobmanager");
    cluster.restart("jobmanager");
    runs_at(&cluster, &job, 2).await;
    append(&cluster, "test/in", third);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_for_slots_is_not_rescaled() {
    let mut cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 100));
    let job = submit(&cluster, &totals_script("100 ms"), &["-p", "1"]);
    runs(&cluster, &job, 1).await;
    cluster.kill("tm-1");
    job_until(&cluster, &job, "a restart", |detail| {
        detail.summary.as_ref().is_some_and(|summary| summary.state() == JobState::Restarting)
    })
    .await;
    let refused = cluster.weir(&["rescale", &job, "-p", "2"]);
    assert!(
        refused.stderr.contains("FAILED_PRECONDITION") && refused.stderr.contains("RESTARTING"),
        "{}",
        refused.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_between_any_two_steps_of_a_rescale_carries_it_out_once() {
    let mut cluster = Cluster::start(2, 2);
    let rows = readings(0, 20_000);
    let (first, rest) = rows.split_at(10_000);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "1"]);
    runs_at(&cluster, &job, 1).await;
    for (step, from, to) in [("rescale.snapshot", 1, 2), ("rescale.wanted", 2, 4)] {
        let reached = cluster.path(step);
        cluster.terminate("jobmanager");
        cluster.restart_with("jobmanager", &[("WEIR_FAIL_POINT", format!("{step}={reached}"))]);
        runs_at(&cluster, &job, from).await;
        let wanted = to.to_string();
        let rescale = ["rescale", &job, "-p", &wanted, "--request-id", step];
        // It is refused until the TaskManagers have registered; then the JobManager ends before it answers.
        let deadline = Instant::now() + DEADLINE;
        while !Path::new(&reached).exists() {
            assert_ne!(cluster.weir(&rescale).code, 0, "nobody has answered");
            assert!(Instant::now() < deadline, "{step} is not reached");
        }
        cluster.ended("jobmanager");
        assert_eq!(std::fs::read_to_string(&reached).expect(step), step, "it was reached");
        cluster.restart("jobmanager");
        job_until(&cluster, &job, "the job runs again", |detail| {
            detail.summary.as_ref().is_some_and(|summary| summary.state() == JobState::Running)
        })
        .await;
        while cluster.weir(&rescale).code != 0 {
            assert!(Instant::now() < deadline, "it is refused for ever");
        }
        let attempt = |detail: &JobDetail| detail.summary.as_ref().map(|summary| summary.attempt);
        let done = runs_at(&cluster, &job, to).await;
        let again = cluster.weir(&rescale);
        assert_eq!((again.code, attempt(&runs_at(&cluster, &job, to).await)), (0, attempt(&done)), "{}", again.stderr);
    }
    append(&cluster, "test/in", rest);
    ends_exactly(&cluster, &job, &rows).await;
}
