//! Quotas, and snapshots that are broken off: refusals are seen everywhere, and nothing is leaked.

use std::time::Duration;

use serde_json::{Value, json};
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::client_client::ClientClient;

use crate::support::{append, growing_script, has_read, of_sensors, submit, totals_script};
use crate::usage::{LOOK_INTERVAL, cluster, listed, listed_as, logged, running_job, settles, used};

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_one_error_on_the_command_line_over_http_and_in_every_log() {
    let cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    for (limit, line, dimension) in [
        (
            &["--savepoints", "0"][..],
            "error[QUOTA_EXCEEDED]: cluster has reached its limit of savepoints",
            "savepoints",
        ),
        (&["--bytes", "1KiB"], "error[QUOTA_EXCEEDED]: cluster has reached its limit of bytes", "bytes"),
        (&["--in-flight", "0"], "error[QUOTA_EXCEEDED]: cluster has reached its limit of in_flight", "in_flight"),
    ] {
        let set: Vec<&str> = ["quota", "set", "cluster"].iter().chain(limit).copied().collect();
        assert_eq!(cluster.weir(&set).code, 0);
        let ran = cluster.weir(&["savepoint", &job]);
        assert_eq!((ran.code, ran.stderr.lines().next().unwrap_or_default()), (12, line), "{}", ran.stderr);
        assert!(ran.stderr.contains("detail: limit ") && ran.stderr.contains("hint: "), "{}", ran.stderr);
        let refused = listed(&cluster).pop().expect("a catalogue entry");
        assert_eq!((&refused["state"], &refused["failure"]["code"]), (&json!("FAILED"), &json!("QUOTA_EXCEEDED")));
        assert_eq!(refused["failure"]["facts"]["dimension"], dimension);
        logged(&cluster, &["jobmanager", "tm-1", "tm-2", "store"], refused["id"].as_str().expect("an id")).await;
        let address = format!("http://{}/jobs/{job}/savepoints", cluster.http_address("jobmanager"));
        let (status, body) = post(&address).await;
        assert_eq!((status, &body["error"]["code"]), (429, &json!("QUOTA_EXCEEDED")), "{body}");
        assert_eq!(body["error"]["facts"]["dimension"], dimension);
        assert_eq!(cluster.weir(&["quota", "set", "cluster", "--remove"]).code, 0);
    }
    assert_eq!(settles(&cluster).await, 0);
    assert_eq!(cluster.weir(&["savepoint", &job]).code, 0, "the job goes on");
    assert!(settles(&cluster).await > 0);
    assert_eq!(cluster.weir(&["quota", "set", "job:totals", "--minimum-interval", "1h"]).code, 0);
    let name = cluster.weir_json(&["job", "show", &job])["job"]["name"].as_str().expect("a name").to_owned();
    let level = format!("job:{name}");
    assert_eq!(cluster.weir(&["quota", "set", &level, "--minimum-interval", "1h"]).code, 0);
    let ran = cluster.weir(&["savepoint", &job]);
    assert_eq!(ran.code, 12, "{}", ran.stderr);
    assert!(ran.stderr.contains("limit of minimum_interval"), "{}", ran.stderr);
}

/// Posts nothing; status and body.
async fn post(address: &str) -> (u16, Value) {
    let rest = address.strip_prefix("http://").expect("http");
    let (host, path) = rest.split_once('/').expect("a path");
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let mut stream = tokio::net::TcpStream::connect(host).await.expect("a listener");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("an open connection");
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.expect("an answer");
    let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let (start, end) = (body.find('{').unwrap_or(0), body.rfind('}').map_or(0, |end| end + 1));
    (status, serde_json::from_str(&body[start..end]).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_set_shown_and_tried_out() {
    let cluster = cluster(0, 1);
    let tried = cluster.weir(&["quota", "set", "owner:ada", "--savepoints", "3", "--bytes", "2MiB", "--dry-run"]);
    assert_eq!(tried.code, 0, "{}", tried.stderr);
    assert!(tried.stdout.starts_with("Nothing was changed."), "{}", tried.stdout);
    assert_eq!(cluster.weir_json(&["quota", "show", "owner:ada"])["dimensions"]["bytes"]["limit"], Value::Null);
    let set = cluster.weir(&["quota", "set", "owner:ada", "--savepoints", "3", "--bytes", "2MiB"]);
    assert_eq!(set.code, 0, "{}", set.stderr);
    let shown = cluster.weir(&["quota", "show", "owner:ada"]);
    let lines: Vec<String> =
        shown.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "LEVEL DIMENSION USED LIMIT % FROM",
            "owner:ada savepoints 0 3 0 set",
            "owner:ada retained_checkpoints 0 - - -",
            "owner:ada bytes 0 B 2.0 MiB 0 set",
            "owner:ada in_flight 0 - - -",
            "owner:ada minimum_interval - - - -",
            "owner:ada age - - - -",
        ]
    );
    assert_eq!(cluster.weir(&["quota", "set", "owner:ada", "--unset", "bytes"]).code, 0);
    let shown = cluster.weir_json(&["quota", "show", "owner:ada"]);
    assert_eq!(
        (&shown["dimensions"]["bytes"]["set"], &shown["dimensions"]["savepoints"]["limit"]),
        (&json!(false), &json!(3))
    );
    assert_eq!(cluster.weir(&["quota", "set", "owner:../x", "--bytes", "1"]).code, 2);
    assert_eq!(cluster.weir(&["quota", "set", "cluster"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_savepoint_leaves_nothing_and_its_job_goes_on() {
    let cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    cluster.freeze("tm-2");
    let mut asked = cluster.weir_in_background(&["savepoint", &job, "--request-id", "mine"]);
    let snapshot = listed_as(&cluster, "IN_PROGRESS").await;
    let id = snapshot["id"].as_str().expect("an id");
    let cancelled = cluster.weir(&["snapshots", "cancel", id]);
    assert_eq!(
        (cancelled.code, cancelled.stdout),
        (0, format!("savepoint {id} is being given up\n")),
        "{}",
        cancelled.stderr
    );
    let failed = listed_as(&cluster, "FAILED").await;
    assert_eq!(failed["failure"]["code"], "CANCELLED");
    assert_eq!(asked.wait().expect("a child").code(), Some(18), "the code of CANCELLED");
    cluster.thaw("tm-2");
    assert_eq!(settles(&cluster).await, 0);
    let again = cluster.weir(&["savepoint", &job, "--request-id", "mine"]);
    assert_eq!(again.code, 18, "the request finds its snapshot again: {}", again.stderr);
    assert_eq!(cluster.weir(&["snapshots", "cancel", id]).code, 8, "it is over");
    assert_eq!(cluster.weir(&["savepoint", &job]).code, 0);
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_aborts_nothing_and_finds_its_savepoint_again() {
    let cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    cluster.freeze("tm-2");
    let mut asked = cluster.weir_in_background(&["savepoint", &job, "--request-id", "mine"]);
    let snapshot = listed_as(&cluster, "IN_PROGRESS").await;
    asked.kill().expect("a process that runs");
    asked.wait().expect("a child");
    cluster.thaw("tm-2");
    let found = cluster.weir_json(&["savepoint", &job, "--request-id", "mine"]);
    assert_eq!((&found["id"], &found["state"]), (&snapshot["id"], &json!("COMPLETED")));
    assert_eq!(listed(&cluster).len(), 1);
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_beyond_the_limit_in_flight_wait_in_a_visible_queue() {
    let cluster = cluster(2, 2);
    let job = running_job(&cluster, "2").await;
    let other = submit(&cluster, &totals_script("1 h").replace("test/out", "test/other"), &["-p", "2"]);
    has_read(&cluster, &other, 2_000).await;
    assert_eq!(cluster.weir(&["quota", "set", "cluster", "--in-flight", "1"]).code, 0);
    cluster.freeze("tm-2");
    let mut first = cluster.weir_in_background(&["savepoint", &job]);
    listed_as(&cluster, "IN_PROGRESS").await;
    let mut second = cluster.weir_in_background(&["savepoint", &other]);
    let queued = listed_as(&cluster, "QUEUED").await;
    assert_eq!(queued["queue_position"], 1);
    let table = cluster.weir(&["snapshots", "list"]).stdout;
    assert!(table.contains("QUEUED #1"), "{table}");
    cluster.thaw("tm-2");
    assert_eq!(first.wait().expect("a child").code(), Some(0));
    assert_eq!(second.wait().expect("a child").code(), Some(0));
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobmanager_killed_during_a_snapshot_leaks_nothing() {
    let mut cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    cluster.freeze("tm-2");
    let mut asked = cluster.weir_in_background(&["savepoint", &job]);
    listed_as(&cluster, "IN_PROGRESS").await;
    cluster.kill("jobmanager");
    asked.wait().expect("a child");
    cluster.thaw("tm-2");
    cluster.restart("jobmanager");
    let failed = listed_as(&cluster, "FAILED").await;
    assert_eq!(failed["failure"]["code"], "UNAVAILABLE");
    assert_eq!(settles(&cluster).await, 0);
    job_in_state(&cluster, &job, pb::JobState::Running).await;
    assert_eq!(cluster.weir(&["savepoint", &job]).code, 0);
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_manager_killed_during_a_snapshot_leaks_nothing() {
    let mut cluster = cluster(2, 1);
    let job = running_job(&cluster, "2").await;
    cluster.freeze("tm-2");
    let mut asked = cluster.weir_in_background(&["savepoint", &job]);
    listed_as(&cluster, "IN_PROGRESS").await;
    cluster.kill("tm-2");
    assert_ne!(asked.wait().expect("a child").code(), Some(0));
    assert_eq!(settles(&cluster).await, 0);
    cluster.restart("tm-2");
    job_in_state(&cluster, &job, pb::JobState::Running).await;
    assert_eq!(cluster.weir(&["savepoint", &job]).code, 0);
    settles(&cluster).await;
}

/// Numbers that look random and are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn client(cluster: &Cluster) -> ClientClient<tonic::transport::Channel> {
    let address = format!("http://{}", cluster.address("jobmanager"));
    loop {
        if let Ok(client) = ClientClient::connect(address.clone()).await {
            return client;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// `WEIR_INTERRUPTIONS` says how many, `WEIR_SEED` which.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_broken_off_at_random_leave_usage_equal_to_storage() {
    let (count, seed) = (number("WEIR_INTERRUPTIONS", 40), number("WEIR_SEED", 1));
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut cluster = cluster(2, 1);
    append(&cluster, "test/in", &of_sensors(0..2_000));
    let job = submit(&cluster, &growing_script(), &["-p", "2"]);
    has_read(&cluster, &job, 2_000).await;
    let mut outcomes = std::collections::BTreeMap::<String, u64>::new();
    for round in 0..count {
        job_in_state(&cluster, &job, pb::JobState::Running).await;
        let mut jobmanager = client(&cluster).await;
        let kind = random.below(100);
        // What changes between checkpoints.
        append(&cluster, "test/in", &of_sensors(round * 5..round * 5 + 10));
        let request = pb::TriggerSnapshotRequest {
            request_id: format!("round-{round}"),
            job: job.clone(),
            savepoint: random.below(2) == 0,
            timeout_ms: (kind < 15).then(|| 1 + random.below(20)),
            ..Default::default()
        };
        if (15..35).contains(&kind) {
            let limit = used(&cluster).0 + random.below(20_000);
            assert_eq!(cluster.weir(&["quota", "set", "cluster", "--bytes", &limit.to_string()]).code, 0);
        }
        let mut taker = jobmanager.clone();
        let taken = tokio::spawn(async move { taker.trigger_snapshot(request).await.map(|_| ()) });
        tokio::time::sleep(Duration::from_micros(random.below(30_000))).await;
        match kind {
            35..75 => {
                let asked = pb::RequestRef { request_id: format!("round-{round}") };
                let found = jobmanager.describe_request(asked).await;
                if let Some(snapshot) = found.ok().and_then(|found| found.into_inner().snapshot) {
                    let cancel = pb::SnapshotRequest { snapshot: snapshot.id, ..Default::default() };
                    let _too_late = jobmanager.cancel_snapshot(cancel).await;
                }
            }
            75..80 => {
                cluster.kill("jobmanager");
                cluster.restart("jobmanager");
            }
            80..85 => {
                let name = if random.below(2) == 0 { "tm-1" } else { "tm-2" };
                cluster.kill(name);
                cluster.restart(name);
            }
            _ => {}
        }
        let outcome = taken.await.expect("a task that ends");
        let outcome =
            outcome.map_or_else(|status| weir_proto::from_status(&status).code.to_string(), |()| "OK".to_owned());
        *outcomes.entry(outcome).or_default() += 1;
        if (15..35).contains(&kind) {
            assert_eq!(cluster.weir(&["quota", "set", "cluster", "--remove"]).code, 0);
        }
        if round % 20 == 19 {
            settles(&cluster).await;
        }
    }
    let bytes = settles(&cluster).await;
    println!("{count} snapshots, outcomes {outcomes:?}, {bytes} bytes used and on storage");
    job_in_state(&cluster, &job, pb::JobState::Running).await;
}
