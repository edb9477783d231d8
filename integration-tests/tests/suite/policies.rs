//! Retention policies: savepoints that come and go by themselves.

use serde_json::{Value, json};
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_until;
use weir_proto::pb::client::v1 as pb;

use crate::support::{append, has_read, readings, submit, totals_script};

fn scheduled(detail: &pb::JobDetail) -> impl Iterator<Item = &pb::Snapshot> {
    detail.recent_snapshots.iter().filter(|snapshot| snapshot.trigger == "scheduled" && snapshot.state == "COMPLETED")
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduled_savepoints_are_taken_and_only_the_newest_are_kept() {
    let mut cluster = Cluster::start(1, 1);
    append(&cluster, "test/in", &readings(0, 1_000));
    let job = submit(&cluster, &totals_script("1 h"), &[]);
    has_read(&cluster, &job, 1_000).await;
    let kept = cluster.weir_json(&["savepoint", &job, "--label", "release=1"]);
    let set = ["policy", "set", "namespace:default", "--keep-last", "2", "--every", "1s", "--keep-label", "release=1"];
    let policy = cluster.weir_json(&set);
    assert_eq!((&policy["keep_last"], &policy["every_ms"]), (&json!(2), &json!(1_000)));
    assert_eq!(policy["scheduled"][0]["job"], json!(job));

    // Of five at least three are marked; the files of the last may just be going.
    let detail = job_until(&cluster, &job, "five savepoints, of which two are kept", |detail| {
        scheduled(detail).any(|snapshot| snapshot.barrier >= 6) && scheduled(detail).count() <= 2
    })
    .await;
    assert!(scheduled(&detail).count() >= 1);
    let deleted = cluster.weir_json(&["snapshots", "list", "--deleted"]);
    let records = deleted.as_array().expect("a list");
    assert!(records.len() >= 2, "{deleted:#}");
    for record in records {
        assert_eq!(record["deletion"]["by"], "policy");
        assert_eq!(record["deletion"]["who"], "namespace:default");
        assert_ne!(record["id"], kept["id"], "its label keeps it");
    }

    // A savepoint that nobody could take is made up for, once.
    cluster.kill("jobmanager");
    cluster.restart("jobmanager");
    let before = detail.recent_snapshots.iter().map(|snapshot| snapshot.barrier).max().unwrap_or_default();
    job_until(&cluster, &job, "another savepoint", |detail| {
        scheduled(detail).any(|snapshot| snapshot.barrier > before + 1)
    })
    .await;
    let removed = cluster.weir(&["policy", "remove", "namespace:default"]);
    assert_eq!((removed.code, &*removed.stdout), (0, "policy of namespace:default removed\n"));
    assert_eq!(cluster.weir_json(&["policy", "list"]), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_shown_as_they_were_set_and_nonsense_is_refused() {
    let cluster = Cluster::start(0, 1);
    let set = [
        "policy",
        "set",
        "job:default/totals",
        "--keep-for",
        "7d",
        "--keep-label",
        "a=b",
        "--cron",
        "0 3 * * *",
        "--owner",
        "ann",
    ];
    let ran = cluster.weir(&set);
    let table = "LEVEL               KEEP LAST  KEEP FOR  KEEP LABELLED  SAVEPOINTS      NEXT\n\
                 job:default/totals          -        7d  a=b            cron 0 3 * * *  -\n";
    assert_eq!((ran.code, &*ran.stdout), (0, table), "{}", ran.stderr);
    assert_eq!(cluster.weir(&["policy", "list"]).stdout, table);
    let shown = cluster.weir(&["policy", "show", "job:default/totals"]).stdout;
    assert!(shown.starts_with(table) && shown.trim_end().ends_with(" by ann"), "{shown}");
    let listed = cluster.weir_json(&["policy", "list"]);
    let set_at = listed[0]["set_at_ms"].clone();
    let expected: Value = json!([{
        "level": "job:default/totals", "keep_last": null, "keep_for_ms": 604_800_000, "keep_labels": {"a": "b"},
        "every_ms": null, "cron": "0 3 * * *", "set_at_ms": set_at, "set_by": "ann", "scheduled": [],
    }]);
    assert_eq!(listed, expected);
    for (arguments, code, line) in [
        (
            &["set", "owner:ann", "--keep-last", "1"][..],
            2,
            "error[INVALID_ARGUMENT]: there are no policies for owner:ann",
        ),
        (&["set", "everything", "--keep-last", "1"], 2, "error[INVALID_ARGUMENT]: \"everything\" is not a quota level"),
        (&["set", "namespace:a"], 2, "error[INVALID_ARGUMENT]: a policy without any rule does nothing"),
        (
            &["set", "namespace:a", "--cron", "nightly"],
            2,
            "error[INVALID_ARGUMENT]: \"nightly\" is not a cron expression",
        ),
        (
            &["set", "namespace:a", "--keep-last", "0"],
            2,
            "error[INVALID_ARGUMENT]: keeping the last 0 savepoints would keep none",
        ),
        (&["show", "namespace:a"], 6, "error[NOT_FOUND]: there is no policy for namespace:a"),
        (&["remove", "namespace:a"], 6, "error[NOT_FOUND]: there is no policy for namespace:a"),
    ] {
        let arguments: Vec<&str> = std::iter::once(&"policy").chain(arguments).copied().collect();
        let ran = cluster.weir(&arguments);
        assert_eq!((ran.code, ran.stderr.lines().next().unwrap_or_default()), (code, line), "{arguments:?}");
    }
}
