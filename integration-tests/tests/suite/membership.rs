//! JobManagers come and go: a fresh one joins and another one leaves under load, one that has lost its disk catches up, and
//! one that is asked to end hands over what is under way.

use std::time::{Duration, Instant};

use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::jobs::{job_in_state, job_until};
use weir_proto::pb::client::v1::JobState;

use crate::chaos::ends_exactly;
use crate::group_clients::Client;
use crate::high_availability::{asked, leader, members};
use crate::support::{append, has_read, readings, submit, totals_script};

/// Waits until there are so many members, which all follow the leader and lag by no more entries than this.
pub(crate) fn all_follow(cluster: &Cluster, count: usize, lag_max: u64) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let members = members(cluster);
        let follows = |lag: Option<u64>| lag.is_some_and(|lag| lag <= lag_max);
        let all = members.iter().all(|it| it["active"] == true && it["votes"] == true && follows(it["lag"].as_u64()));
        if members.len() == count && all {
            return;
        }
        assert!(Instant::now() < deadline, "{members:#?}");
    }
}

/// The limit of savepoints of a quota level.
fn limit(cluster: &Cluster, level: &str) -> Option<u64> {
    asked(cluster, &["quota", "show", level])["dimensions"]["savepoints"]["limit"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_member_joins_under_load_and_takes_the_place_of_the_leader() {
    let mut cluster = Cluster::start_group(3, 1, 2);
    let rows = readings(0, 3_000);
    append(&cluster, "test/in", &rows[..1_500]);
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "1"]);
    has_read(&cluster, &job, 1_500).await;
    // It goes on until it is told by the clock, which is looked at again below.
    let until = Instant::now() + Duration::from_secs(4);
    let load = tokio::spawn(Client::new(&cluster, "load", 7, until).set_quotas());

    cluster.join_jobmanager(4);
    let member = format!("4={}", cluster.address("jobmanager-4"));
    asked(&cluster, &["cluster", "members", "add", &member]);
    all_follow(&cluster, 4, 50);
    let left = leader(&cluster);
    let number = left.strip_prefix("jobmanager-").expect("its name");
    asked(&cluster, &["cluster", "members", "remove", number]);
    all_follow(&cluster, 3, 50);
    cluster.remove(&left);
    append(&cluster, "test/in", &rows[1_500..]);

    let limits = load.await.expect("no failure");
    assert!(!limits.is_empty());
    // Of the three that remain two are a majority, the fresh one among them.
    let lost = if leader(&cluster) == "jobmanager-4" { "jobmanager-2" } else { "jobmanager-4" };
    let lost = if lost == left { "jobmanager-3" } else { lost };
    cluster.kill(lost);
    for (level, promised) in &limits {
        assert_eq!(limit(&cluster, level), Some(*promised), "{level}");
    }
    cluster.restart(lost);
    all_follow(&cluster, 3, 50);
    ends_exactly(&cluster, &job, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_that_has_lost_its_disk_catches_up_under_a_new_number() {
    let mut cluster = Cluster::start_group(3, 0, 1);
    let mut client = Client::new(&cluster, "client", 3, Instant::now());
    let lost = if leader(&cluster) == "jobmanager-2" { "jobmanager-3" } else { "jobmanager-2" };
    client.set_quota("cluster", 11).await.expect("a limit");
    cluster.remove(lost);
    std::fs::remove_dir_all(cluster.path(lost)).expect("its directory");
    client.set_quota("namespace:n", 12).await.expect("a limit");

    asked(&cluster, &["cluster", "members", "remove", lost.strip_prefix("jobmanager-").expect("its name")]);
    cluster.join_jobmanager(4);
    asked(&cluster, &["cluster", "members", "add", &format!("4={}", cluster.address("jobmanager-4"))]);
    all_follow(&cluster, 3, 0);
    let gone = leader(&cluster);
    cluster.kill(&gone);
    // A majority needs the new one.
    client.set_quota("owner:o", 13).await.expect("a limit");
    let limits = ["cluster", "namespace:n", "owner:o"].map(|level| limit(&cluster, level));
    assert_eq!(limits, [Some(11), Some(12), Some(13)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_end_leaves_commands_under_way_to_another_and_none_is_carried_out_twice() {
    let mut cluster = Cluster::start_group(3, 1, 2);
    let rows = readings(0, 1_000);
    append(&cluster, "test/in", &rows);
    let job = submit(&cluster, &totals_script("1 h"), &["-p", "1"]);
    has_read(&cluster, &job, 1_000).await;
    cluster.freeze("tm-1");
    let client = |cluster: &Cluster, number| Client::new(cluster, &format!("client-{number}"), number, Instant::now());
    let mut taking = client(&cluster, 0);
    let (asked_for, request) = (job.clone(), "the-savepoint");
    let savepoint = tokio::spawn(async move { taking.savepoint(&asked_for, request).await });
    job_until(&cluster, &job, "a savepoint in flight", |detail| {
        detail.recent_snapshots.iter().any(|snapshot| snapshot.savepoint && snapshot.state == "IN_PROGRESS")
    })
    .await;
    let submitting: Vec<_> = (1..=6_u64)
        .map(|number| {
            let (mut client, name) = (client(&cluster, number), format!("job-{number}"));
            let script = totals_script("1 h").replace("test/out", &format!("test/{name}"));
            tokio::spawn(async move { (client.submit(&name, &script, &name).await, client, name, script) })
        })
        .collect();
    let asked_to_end = leader(&cluster);
    assert_eq!(cluster.terminate(&asked_to_end), Some(0));
    cluster.thaw("tm-1");

    for submitted in submitting {
        let (id, mut client, name, script) = submitted.await.expect("no failure");
        let id = id.expect("a job");
        assert_eq!(client.submit(&name, &script, &name).await.expect("the same job"), id);
        let listed = asked(&cluster, &["list", "--all"]);
        let named = listed.as_array().expect("a list").iter().filter(|listed| listed["name"] == *name);
        assert_eq!(named.map(|listed| listed["id"].as_str()).collect::<Vec<_>>(), [Some(id.as_str())], "{name}");
        asked(&cluster, &["cancel", &id]);
    }
    let answer = savepoint.await.expect("no failure").map(|snapshot| snapshot.id).map_err(|error| error.code);
    let again =
        client(&cluster, 0).savepoint(&job, request).await.map(|snapshot| snapshot.id).map_err(|error| error.code);
    assert_eq!(again, answer, "whoever asks again hears the same");
    let listed = asked(&cluster, &["snapshots", "list", "--savepoints"]);
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len(), 1, "{listed:#?}");
    assert_eq!(listed[0]["state"] == "COMPLETED", answer.is_ok(), "{answer:?}: {}", listed[0]);
    cluster.restart(&asked_to_end);
    job_in_state(&cluster, &job, JobState::Running).await;
    ends_exactly(&cluster, &job, &rows).await;
}
