//! The fixture of several hosts: every process of a cluster in a container of its own, with its own address on a private
//! network, built from the workspace's own binaries. Hosts are killed, frozen and cut off from each other ([`faults`]).
//!
//! Names are addresses, as a host that starts again may get another number. Commands of the CLI run on a host of their own,
//! `client`, as nothing outside of the network knows the names.

pub mod faults;
mod image;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;
use testcontainers::bollard::Docker;
use testcontainers::bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptionsBuilder, StartContainerOptions,
};
use testcontainers::core::{ExecCommand, Mount};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

use crate::cluster::{DEADLINE, Ran};
pub use image::unavailable;

/// Ports, the same on every host.
const JOBMANAGER_PORT: u16 = 7300;
const JOBMANAGER_HTTP: u16 = 7301;
const STORE_PORT: u16 = 7400;
const STORE_HTTP: u16 = 7401;
const TASK_MANAGER_PORT: u16 = 7500;
const TASK_MANAGER_HTTP: u16 = 7501;
/// Where hosts that share snapshots find them, and the client the tests' files.
const SNAPSHOTS: &str = "/var/lib/weir/snapshots";
const FILES: &str = "/files";
/// The host that commands run on.
const CLIENT: &str = "client";
/// Lines of each host's log that a failing test prints.
const LOG_TAIL: &str = "80";

/// A cluster of hosts; everything is removed when it is dropped.
pub struct Hosts {
    /// Prefix of all names that Docker sees, so that clusters do not meet.
    name: String,
    dir: TempDir,
    docker: Docker,
    hosts: BTreeMap<String, ContainerAsync<GenericImage>>,
    ready: BTreeMap<String, String>,
    jobmanagers: Vec<String>,
    task_managers: Vec<String>,
}

impl Hosts {
    /// Starts a store, so many JobManagers, `jobmanager-1` and so on, and TaskManagers, `tm-1` and so on, and waits until
    /// all are ready. `settings` are the JobManagers', `KEY=VALUE`.
    pub async fn start(jobmanagers: u32, task_managers: u32, slots: u32, settings: &[&str]) -> Self {
        let docker = testcontainers::core::client::docker_client_instance().await.expect("Docker");
        let image = image::build().await;
        let dir = tempfile::Builder::new().prefix("weir-hosts-").tempdir().expect("a temporary directory");
        let name = dir.path().file_name().expect("a name").to_str().expect("UTF-8").to_lowercase();
        for shared in ["snapshots", "files"] {
            let path = dir.path().join(shared);
            std::fs::create_dir(&path).expect("a directory");
            // Another user owns the processes.
            std::fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("one's own directory");
        }
        let named = |role: &str, count: u32| (1..=count).map(|number| format!("{role}-{number}")).collect();
        let mut hosts = Self {
            name,
            dir,
            docker,
            hosts: BTreeMap::new(),
            ready: BTreeMap::new(),
            jobmanagers: named("jobmanager", jobmanagers),
            task_managers: named("tm", task_managers),
        };
        hosts.start_store(&image).await;
        for number in 1..=jobmanagers {
            hosts.start_jobmanager(&image, number, settings).await;
        }
        for task_manager in hosts.task_managers.clone() {
            hosts.start_task_manager(&image, &task_manager, slots).await;
        }
        hosts.start_client(&image).await;
        let all: Vec<String> = hosts.ready.keys().cloned().collect();
        hosts.are_ready(&all).await;
        hosts
    }

    async fn start_store(&mut self, image: &GenericImage) {
        let listen = format!("0.0.0.0:{STORE_PORT}");
        let http = format!("0.0.0.0:{STORE_HTTP}");
        let command = ["weir-store", "--data-dir", "/var/lib/weir/store", "--listen", &listen, "--http-listen", &http];
        self.launch(image, "store", &command, &[], Some(STORE_HTTP)).await;
    }

    async fn start_jobmanager(&mut self, image: &GenericImage, number: u32, settings: &[&str]) {
        let mut command: Vec<String> = vec!["weir-jobmanager".to_owned()];
        let mut flag = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
        flag("--data-dir", "/var/lib/weir/jobmanager".to_owned());
        flag("--checkpoint-root", format!("{SNAPSHOTS}/checkpoints"));
        flag("--savepoint-root", format!("{SNAPSHOTS}/savepoints"));
        flag("--listen", format!("0.0.0.0:{JOBMANAGER_PORT}"));
        flag("--http-listen", format!("0.0.0.0:{JOBMANAGER_HTTP}"));
        flag("--store", format!("{}:{STORE_PORT}", self.host("store")));
        flag("--member", number.to_string());
        for (member, name) in (1..).zip(&self.jobmanagers) {
            flag("--cluster-member", format!("{member}={}:{JOBMANAGER_PORT}", self.host(name)));
        }
        for setting in settings {
            flag("--set", (*setting).to_owned());
        }
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let snapshots = self.snapshots();
        self.launch(
            image,
            &format!("jobmanager-{number}"),
            &command,
            &[(&snapshots, SNAPSHOTS)],
            Some(JOBMANAGER_HTTP),
        )
        .await;
    }

    async fn start_task_manager(&mut self, image: &GenericImage, name: &str, slots: u32) {
        let mut command: Vec<String> = vec!["weir-taskmanager".to_owned()];
        let mut flag = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
        for jobmanager in &self.jobmanagers {
            flag("--jobmanager", format!("{}:{JOBMANAGER_PORT}", self.host(jobmanager)));
        }
        flag("--id", name.to_owned());
        flag("--slots", slots.to_string());
        flag("--listen", format!("0.0.0.0:{TASK_MANAGER_PORT}"));
        flag("--http-listen", format!("0.0.0.0:{TASK_MANAGER_HTTP}"));
        flag("--set", format!("exchange.advertised_address={}:{TASK_MANAGER_PORT}", self.host(name)));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let snapshots = self.snapshots();
        self.launch(image, name, &command, &[(&snapshots, SNAPSHOTS)], Some(TASK_MANAGER_HTTP)).await;
    }

    async fn start_client(&mut self, image: &GenericImage) {
        let (snapshots, files) = (self.snapshots(), self.dir.path().join("files"));
        // A host needs a process; an idle store that nobody knows is a small one.
        let command =
            ["weir-store", "--data-dir", "/tmp/idle", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        self.launch(image, CLIENT, &command, &[(&snapshots, SNAPSHOTS), (&files, FILES)], None).await;
    }

    async fn launch(
        &mut self,
        image: &GenericImage,
        name: &str,
        command: &[&str],
        mounts: &[(&Path, &str)],
        http: Option<u16>,
    ) {
        let jobmanagers: Vec<String> =
            self.jobmanagers.iter().map(|name| format!("{}:{JOBMANAGER_PORT}", self.host(name))).collect();
        let mut request = image
            .clone()
            .with_cmd(command.iter().copied())
            .with_container_name(self.host(name))
            .with_network(&self.name)
            .with_env_var("WEIR_JOBMANAGER", jobmanagers.join(","))
            .with_env_var("WEIR_STORE", format!("{}:{STORE_PORT}", self.host("store")))
            .with_startup_timeout(DEADLINE);
        for (from, to) in mounts {
            request = request.with_mount(Mount::bind_mount(from.to_str().expect("UTF-8"), *to));
        }
        let container = request.start().await.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        self.hosts.insert(name.to_owned(), container);
        if let Some(port) = http {
            self.ready.insert(name.to_owned(), format!("{}:{port}", self.host(name)));
        }
    }

    /// The name under which Docker and the other hosts know a host.
    fn host(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    fn container(&self, name: &str) -> &ContainerAsync<GenericImage> {
        self.hosts.get(name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// Where snapshots lie, as this process sees them.
    pub fn snapshots(&self) -> PathBuf {
        self.dir.path().join("snapshots")
    }

    /// The path in this process's eyes of what hosts call `path`.
    pub fn outside(&self, path: &str) -> PathBuf {
        let below = path.strip_prefix(SNAPSHOTS).expect("a path of a snapshot");
        self.snapshots().join(below.trim_start_matches('/'))
    }

    /// All hosts but the client's.
    pub fn names(&self) -> Vec<String> {
        self.ready.keys().cloned().collect()
    }

    /// The JobManagers.
    pub fn jobmanagers(&self) -> &[String] {
        &self.jobmanagers
    }

    /// The TaskManagers.
    pub fn task_managers(&self) -> &[String] {
        &self.task_managers
    }

    /// Waits until these hosts' processes can do their work.
    pub async fn are_ready(&self, names: &[String]) {
        let mut command = vec!["ready", "--wait", "60s"];
        command.extend(names.iter().map(|name| self.ready[name].as_str()));
        let ran = self.weir(&command).await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }

    /// Runs `weir` on the client's host.
    pub async fn weir(&self, arguments: &[&str]) -> Ran {
        let command = std::iter::once("weir").chain(arguments.iter().copied());
        let mut run = self.container(CLIENT).exec(ExecCommand::new(command)).await.expect("a host that runs");
        let stdout = run.stdout_to_vec().await.expect("what it printed");
        let stderr = run.stderr_to_vec().await.expect("what it printed");
        let deadline = Instant::now() + DEADLINE;
        let code = loop {
            match run.exit_code().await.expect("Docker") {
                Some(code) => break code,
                // Its output has ended, and Docker is about to notice its end.
                None => assert!(Instant::now() < deadline, "weir {arguments:?} does not end"),
            }
        };
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: i32::try_from(code).unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Runs `weir --json`, which must succeed; what it printed.
    pub async fn weir_json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = std::iter::once("--json").chain(arguments.iter().copied()).collect();
        let ran = self.weir(&all).await;
        assert_eq!(ran.code, 0, "weir {all:?}: {}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    /// Writes a file that the client's host sees; its path there.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.dir.path().join("files").join(name), text).expect("a writable directory");
        format!("{FILES}/{name}")
    }

    /// The address of the store, for clients in this process. It may be another one after the store's host has started
    /// again.
    pub async fn store_address(&self) -> String {
        format!("{}:{STORE_PORT}", self.address_of("store").await)
    }

    async fn address_of(&self, name: &str) -> IpAddr {
        let address = self.container(name).get_bridge_ip_address().await;
        address.unwrap_or_else(|error| panic!("{name} has no address: {error}"))
    }

    /// kill −9.
    pub async fn kill(&self, name: &str) {
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        let killed = self.docker.kill_container(self.container(name).id(), Some(options)).await;
        killed.unwrap_or_else(|error| panic!("{name} is not killed: {error}"));
        let deadline = Instant::now() + DEADLINE;
        while self.container(name).is_running().await.expect("Docker") {
            assert!(Instant::now() < deadline, "{name} does not die");
        }
    }

    /// Starts a host again whose process has ended, on the data that it left.
    pub async fn restart(&self, name: &str) {
        let started = self.docker.start_container(self.container(name).id(), None::<StartContainerOptions>).await;
        started.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
    }

    /// Asks a process to end, as `docker stop` does; its exit code.
    pub async fn stop(&self, name: &str) -> Option<i64> {
        let container = self.container(name);
        container.stop_with_timeout(Some(40)).await.unwrap_or_else(|error| panic!("{name} does not stop: {error}"));
        container.exit_code().await.expect("Docker")
    }

    /// Freezes a host, as a machine does that swaps or a hypervisor that moves it.
    pub async fn freeze(&self, name: &str) {
        self.container(name).pause().await.unwrap_or_else(|error| panic!("{name} is not frozen: {error}"));
    }

    /// Lets a frozen host go on.
    pub async fn thaw(&self, name: &str) {
        self.container(name).unpause().await.unwrap_or_else(|error| panic!("{name} stays frozen: {error}"));
    }

    /// The process id of a host's process, as this machine counts.
    async fn pid(&self, name: &str) -> u32 {
        let found = self.docker.inspect_container(self.container(name).id(), None::<InspectContainerOptions>).await;
        let pid = found.expect("Docker").state.and_then(|state| state.pid).expect("a process id");
        u32::try_from(pid).expect("a process id")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // The containers go when this returns, with all that they have said.
        for (name, container) in &self.hosts {
            let logs = Command::new("docker").args(["logs", "--tail", LOG_TAIL, container.id()]).output();
            if let Ok(logs) = logs {
                eprintln!("--- {name}\n{}", String::from_utf8_lossy(&logs.stderr));
            }
        }
    }
}
