//! `weir cluster` and `weir quickstart`, as a new user starts them.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use weir_integration_tests::cluster::binary_path;

fn weir(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(binary_path("weir")).args(arguments).env("WEIR_DIR", dir).output().expect("the weir binary")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn is_running(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_local_cluster_starts_is_described_and_leaves_nothing_running() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    stdout(&weir(dir.path(), &["cluster", "start", "--port", "0", "--taskmanagers", "3", "--slots", "1"]));
    let status: Value =
        serde_json::from_str(&stdout(&weir(dir.path(), &["--json", "cluster", "status"]))).expect("JSON");
    let processes = status["processes"].as_array().expect("processes").clone();
    let second = weir(dir.path(), &["cluster", "start", "--port", "0"]);
    let stopped = stdout(&weir(dir.path(), &["cluster", "stop"]));

    let names: Vec<&str> = processes.iter().map(|process| process["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["store", "jobmanager", "tm-1", "tm-2", "tm-3"]);
    assert_eq!(status["task_managers"].as_array().expect("TaskManagers").len(), 3);
    assert_eq!(second.status.code(), Some(7), "a second start in the same directory is refused");
    assert_eq!(stopped.lines().filter(|line| line.ends_with("stopped")).count(), 5, "{stopped}");
    for process in &processes {
        assert!(!is_running(process["pid"].as_u64().expect("a pid")), "{process} still runs");
    }
}

#[test]
fn a_taken_port_is_explained_and_nothing_is_left_running() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // The store takes the port after the JobManager's.
    let output = weir(dir.path(), &["cluster", "start", "--port", &(port - 1).to_string()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{errors}");
    assert!(errors.contains(&format!("could not listen on 127.0.0.1:{port}")), "{errors}");
    assert!(!dir.path().join("cluster.json").exists());
}

#[test]
fn the_quickstart_verifies_its_result_and_leaves_nothing_running() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keep = dir.path().join("kept");
    let arguments = ["--json", "quickstart", "--events", "40000", "--keep", keep.to_str().expect("UTF-8")];
    let verdict: Value = serde_json::from_str(&stdout(&weir(dir.path(), &arguments))).expect("JSON");
    assert_eq!(verdict["verdict"], "equal");
    assert_eq!(verdict["input_rows"], 40_000);
    assert!(verdict["result_rows"].as_u64().expect("a count") > 100, "{verdict}");
    assert!(!keep.join("cluster.json").exists(), "the cluster was stopped");
}

#[test]
fn a_local_cluster_of_three_jobmanagers_shrinks_and_grows_and_starts_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let members = || -> Vec<(u64, bool)> {
        let listed = stdout(&weir(dir.path(), &["--json", "cluster", "members", "list"]));
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let listed = listed.as_array().expect("a list").iter();
        listed.map(|member| (member["id"].as_u64().expect("an id"), member["votes"] == true)).collect()
    };
    let start = ["cluster", "start", "--port", "0", "--jobmanagers", "3", "--taskmanagers", "1"];
    stdout(&weir(dir.path(), &start));
    assert_eq!(members(), [(1, true), (2, true), (3, true)]);
    stdout(&weir(dir.path(), &["cluster", "members", "remove", "3"]));
    stdout(&weir(dir.path(), &["cluster", "members", "remove", "3"]));
    assert_eq!(members(), [(1, true), (2, true)]);
    let wrong = weir(dir.path(), &["cluster", "members", "add", "here"]);
    assert_eq!(wrong.status.code(), Some(2));
    stdout(&weir(dir.path(), &["cluster", "stop"]));

    stdout(&weir(dir.path(), &start));
    let status: Value =
        serde_json::from_str(&stdout(&weir(dir.path(), &["--json", "cluster", "status"]))).expect("JSON");
    assert_eq!(members(), [(1, true), (2, true), (3, true)]);
    stdout(&weir(dir.path(), &["cluster", "stop"]));
    for process in status["processes"].as_array().expect("processes") {
        assert!(!is_running(process["pid"].as_u64().expect("a pid")), "{process} still runs");
    }
}
