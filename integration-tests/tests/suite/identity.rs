//! Who asks, and in which namespace: from flags, the environment and the configuration file, and what follows from it.

use serde_json::{Value, json};
use weir_integration_tests::cluster::{Cluster, Ran};

use crate::support::{append, has_read, readings, submit, totals_script};

/// Exit code and the first line of the error.
fn refusal(ran: &Ran) -> (i32, &str) {
    (ran.code, ran.stderr.lines().next().unwrap_or_default())
}

fn values<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list.as_array().expect("a list").iter().map(|value| value[key].as_str().expect("a text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_goes_before_the_configuration_file_and_lists_show_the_present_namespace() {
    let cluster = Cluster::start(2, 1);
    append(&cluster, "test/in", &readings(0, 100));
    let file = cluster.write("me.toml", "owner = \"ada\"\nnamespace = \"team-a\"\n");
    let script = totals_script("1 h");
    let from_file = submit(&cluster, &script, &["--config", &file]);
    let from_flags = submit(
        &cluster,
        &script.replace("test/out", "test/other"),
        &["--config", &file, "--namespace", "team-b", "--owner", "bob"],
    );
    for (job, owner, namespace) in [(&from_file, "ada", "team-a"), (&from_flags, "bob", "team-b")] {
        has_read(&cluster, job, 100).await;
        let shown = cluster.weir_json(&["job", "show", job]);
        assert_eq!((&shown["job"]["owner"], &shown["job"]["namespace"]), (&json!(owner), &json!(namespace)));
    }

    // Both jobs have one name, which means that of the present namespace.
    assert_eq!(cluster.weir(&["savepoint", "job"]).code, 2, "without a namespace it means both");
    let in_a = cluster.weir_json(&["savepoint", "job", "--config", &file]);
    let in_b = cluster.weir_json(&["savepoint", "job", "--namespace", "team-b", "--owner", "carl"]);
    for (savepoint, job, owner, namespace) in
        [(&in_a, &from_file, "ada", "team-a"), (&in_b, &from_flags, "carl", "team-b")]
    {
        assert_eq!((&savepoint["job"], &savepoint["owner"]), (&json!(job), &json!(owner)));
        assert_eq!(savepoint["namespace"], namespace);
    }
    let (a, b) = (in_a["id"].as_str().expect("an id"), in_b["id"].as_str().expect("an id"));
    for (arguments, jobs, snapshots) in [
        (&["--config", &file][..], &[&*from_file][..], &[a][..]),
        (&["--config", &file, "--namespace", "team-b"], &[&from_flags], &[b]),
        (&["--config", &file, "--all-namespaces"], &[&from_file, &from_flags], &[a, b]),
        (&[], &[&from_file, &from_flags], &[a, b]),
        (&["--namespace", "nobody"], &[], &[]),
    ] {
        let list = |command: &[&str]| cluster.weir_json(&[command, arguments].concat());
        assert_eq!(values(&list(&["list"]), "id"), jobs, "{arguments:?}");
        assert_eq!(values(&list(&["snapshots", "list"]), "id"), snapshots, "{arguments:?}");
    }

    let set = cluster.weir(&["quota", "set", "job:job", "--savepoints", "1", "--config", &file]);
    assert_eq!(set.code, 0, "{}", set.stderr);
    let levels = cluster.weir_json(&["quota", "list", "--namespace", "team-a"]);
    assert_eq!(values(&levels, "level"), ["namespace:team-a", "job:team-a/job"]);
    let refused = cluster.weir(&["savepoint", "job", "--config", &file]);
    let line = "error[QUOTA_EXCEEDED]: job:team-a/job has reached its limit of savepoints";
    assert_eq!(refusal(&refused), (12, line));
    assert_eq!(cluster.weir(&["savepoint", "job", "--namespace", "team-b"]).code, 0);

    let ended = cluster.weir_json(&["cancel", "job", "--namespace", "team-b"]);
    assert_eq!((&ended["id"], &ended["state"]), (&json!(from_flags), &json!("CANCELLED")));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_are_refused_from_flags_and_from_the_file() {
    let cluster = Cluster::start(0, 1);
    let script = cluster.write("job.sql", &totals_script("1 h"));
    let hostile = cluster.write("hostile.toml", "namespace = \"../../x\"\n");
    let unknown = cluster.write("unknown.toml", "\nownr = \"ada\"\n");
    let namespace = "error[INVALID_ARGUMENT]: \"../../x\" is not a valid namespace";
    let owner = "error[INVALID_ARGUMENT]: \"../../x\" is not a valid owner";
    for (arguments, line) in [
        (&["run", &script, "--namespace", "../../x"][..], namespace),
        (&["run", &script, "--owner", "../../x"], owner),
        (&["savepoint", "job", "--owner", "../../x"], owner),
        (&["stop", "job", "--namespace", "../../x"], namespace),
        (&["list", "--namespace", "../../x"], namespace),
        (&["snapshots", "list", "--namespace", "../../x"], namespace),
        (&["snapshots", "list", "--owner", "../../x"], owner),
        (&["snapshots", "delete", "sp-1", "--owner", "../../x"], owner),
        (&["quota", "list", "--namespace", "../../x"], namespace),
        (&["list", "--config", &hostile], namespace),
    ] {
        assert_eq!(refusal(&cluster.weir(arguments)), (2, line), "{arguments:?}");
    }
    let ran = cluster.weir(&["list", "--config", &unknown]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("unknown.toml") && ran.stderr.contains("line 2"), "{}", ran.stderr);
    assert_eq!(cluster.weir(&["list", "--config", "/no/such/file"]).code, 6);
}
