//! The death of a JobManager stops no job: the next one takes over the attempt that runs, and no row is read twice.

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{job_in_state, job_until};
use weir_integration_tests::oracle::{fold, tumble};
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::JobState;
use weir_proto::pb::client::v1::client_client::ClientClient;

use crate::high_availability::{asked, leader};
use crate::support::{
    append, drain, goes_on, has_read, read, readings, rows_covered, runs_after, submit, totals_script,
};

/// Rows that are appended at a time.
const ROWS: u64 = 2_000;

/// Asks all JobManagers but `gone` until one of them leads; how long that took since `since`.
async fn without_leader(cluster: &Cluster, gone: Option<&str>, since: Instant) -> Duration {
    let gone = gone.map(|gone| cluster.address(gone));
    let addresses: Vec<_> =
        cluster.jobmanagers().into_iter().filter(|address| Some(address) != gone.as_ref()).collect();
    let leads = async |address: &String| {
        let mut client = ClientClient::connect(format!("http://{address}")).await.ok()?;
        client.cluster_status(pb::ClusterStatusRequest {}).await.ok()
    };
    while since.elapsed() < DEADLINE {
        for address in &addresses {
            if let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), leads(address)).await {
                return since.elapsed();
            }
        }
    }
    panic!("nobody leads");
}

/// Each window was written once, by the only attempt that there was.
async fn ends_exactly_once(cluster: &Cluster, job: &str, rows: &[Value]) {
    has_read(cluster, job, rows.len() as u64).await;
    drain(cluster, job).await;
    let written = read(cluster, "test/out");
    let expected = tumble(rows, "sensor", "at", "reading", 1000);
    assert_eq!((fold(&written, "sensor"), written.len()), (expected.clone(), expected.len()), "each window once");
    let detail = cluster.weir_json(&["job", "show", job]);
    assert_eq!(detail["rows_in"], rows.len(), "no row was read twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_each_leading_jobmanager_leaves_the_attempt_running() {
    let mut cluster = Cluster::start_group(3, 2, 2);
    let rows = readings(0, 4 * ROWS);
    let mut steps = rows.chunks(ROWS as usize);
    append(&cluster, "test/in", steps.next().expect("rows"));
    let job = submit(&cluster, &totals_script("300 ms"), &["-p", "2"]);
    has_read(&cluster, &job, ROWS).await;
    for more in steps {
        let victim = leader(&cluster);
        let killed = Instant::now();
        cluster.kill(&victim);
        let without = without_leader(&cluster, Some(&victim), killed).await;
        append(&cluster, "test/in", more);
        goes_on(&cluster, &job, 1).await;
        println!(
            "kill {victim}: {} ms without a leader, taken over after {} ms",
            without.as_millis(),
            killed.elapsed().as_millis()
        );
        cluster.restart(&victim);
        let taken = asked(&cluster, &["checkpoint", &job]);
        assert_eq!(taken["state"], "COMPLETED");
    }
    ends_exactly_once(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_jobmanager_that_is_killed_and_started_again_takes_its_jobs_over() {
    let mut cluster = Cluster::start(2, 2);
    let rows = readings(0, 3 * ROWS);
    let mut steps = rows.chunks(ROWS as usize);
    append(&cluster, "test/in", steps.next().expect("rows"));
    let job = submit(&cluster, &totals_script("300 ms"), &["-p", "2"]);
    has_read(&cluster, &job, ROWS).await;
    for more in steps {
        let killed = Instant::now();
        cluster.kill("jobmanager");
        // Nobody leads meanwhile, and the job goes on.
        append(&cluster, "test/in", more);
        cluster.restart("jobmanager");
        let without = without_leader(&cluster, None, killed).await;
        goes_on(&cluster, &job, 1).await;
        println!("{} ms without a leader, taken over after {} ms", without.as_millis(), killed.elapsed().as_millis());
        cluster.weir_json(&["checkpoint", &job]);
    }
    ends_exactly_once(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_reads_to_its_end_while_nobody_leads_has_finished() {
    let mut cluster = Cluster::start(1, 2);
    let rows = readings(0, ROWS);
    append(&cluster, "test/in", &rows);
    let bounded = "'stream' = 'test/in', 'scan.bounded.mode' = 'latest'";
    let script = totals_script("1 h").replace("'stream' = 'test/in'", bounded);
    let job = submit(&cluster, &script, &["-p", "2"]);
    job_until(&cluster, &job, "running", |detail| {
        detail.summary.as_ref().is_some_and(|job| matches!(job.state(), JobState::Running | JobState::Finished))
    })
    .await;
    cluster.kill("jobmanager");
    cluster.restart("jobmanager");
    let detail = job_in_state(&cluster, &job, JobState::Finished).await;
    assert_eq!(detail.summary.map(|job| job.attempt), Some(1));
    let written = read(&cluster, "test/out");
    let expected = tumble(&rows, "sensor", "at", "reading", 1000);
    assert_eq!((written.len(), fold(&written, "sensor")), (expected.len(), expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_manager_that_dies_with_the_leading_jobmanager_costs_one_restart() {
    let mut cluster = Cluster::start_group(3, 3, 1);
    let rows = readings(0, 2 * ROWS);
    let (first, rest) = rows.split_at(ROWS as usize);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "2"]);
    has_read(&cluster, &job, ROWS).await;
    asked(&cluster, &["checkpoint", &job]);
    let detail = goes_on(&cluster, &job, 1).await;
    let lost = detail.chains[0].subtasks[0].task_manager_id.clone();
    let victim = leader(&cluster);
    cluster.kill(&victim);
    cluster.kill(&lost);
    append(&cluster, "test/in", rest);
    assert_eq!(runs_after(&cluster, &job, 1).await, 2);
    // Its own loss, or what a survivor said when it registered: that it had lost the exchange with it.
    let failure = asked(&cluster, &["job", "show", &job])["job"]["failure"]["message"].to_string();
    assert!(failure.contains(&format!("TaskManager {lost} ")), "{failure}");
    let deadline = Instant::now() + DEADLINE;
    while rows_covered(&asked(&cluster, &["checkpoint", &job])) < rows.len() as u64 {
        assert!(Instant::now() < deadline, "no checkpoint covers the input");
    }
    drain(&cluster, &job).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_is_deposed_and_completes_nothing_when_it_goes_on() {
    let cluster = Cluster::start_group(3, 2, 1);
    let rows = readings(0, 2 * ROWS);
    let (first, rest) = rows.split_at(ROWS as usize);
    append(&cluster, "test/in", first);
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "2"]);
    has_read(&cluster, &job, ROWS).await;
    asked(&cluster, &["checkpoint", &job]);
    // A savepoint whose last acknowledgement comes only when its JobManager is frozen.
    cluster.freeze("tm-2");
    let mut savepoint = cluster.weir_in_background(&["savepoint", &job, "--request-id", "frozen"]);
    job_until(&cluster, &job, "a savepoint in flight", |detail| {
        let mut snapshots = detail.recent_snapshots.iter();
        snapshots.any(|it| it.savepoint && it.state == "IN_PROGRESS" && it.subtasks_acknowledged > 0)
    })
    .await;
    let deposed = leader(&cluster);
    let frozen = Instant::now();
    cluster.freeze(&deposed);
    cluster.thaw("tm-2");
    let without = without_leader(&cluster, Some(&deposed), frozen).await;
    println!("freeze {deposed}: {} ms without a leader", without.as_millis());
    append(&cluster, "test/in", rest);
    goes_on(&cluster, &job, 1).await;
    // It goes on with what it knew: every acknowledgement, a lease on nothing, and a place to write the manifest to.
    cluster.thaw(&deposed);
    savepoint.wait().expect("a child");
    let again = cluster.weir(&["savepoint", &job, "--request-id", "frozen"]);
    assert_eq!(again.code, 17, "{}{}", again.stdout, again.stderr);
    let listed = asked(&cluster, &["snapshots", "list", "--savepoints"]);
    let states: Vec<_> = listed.as_array().expect("a list").iter().map(|entry| entry["state"].clone()).collect();
    assert_eq!(states, ["FAILED"]);
    asked(&cluster, &["savepoint", &job]);
    goes_on(&cluster, &job, 1).await;
    ends_exactly_once(&cluster, &job, &rows).await;
}
