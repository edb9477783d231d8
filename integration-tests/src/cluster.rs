//! The fixture: one store, one JobManager or several, some TaskManagers, each its own process.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use weir_service::net::AddressFile;

/// Longer than anything takes on a loaded machine; a test that gets here has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often to look at a file or process that cannot be waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A running cluster; everything ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    processes: BTreeMap<String, Process>,
}

#[derive(Debug)]
struct Process {
    binary: &'static str,
    arguments: Vec<String>,
    child: Child,
    addresses: AddressFile,
}

/// What a command of the CLI printed.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cluster {
    /// Starts a cluster of `task_managers` with `slots` each.
    pub fn start(task_managers: u32, slots: u32) -> Self {
        Self::start_with(task_managers, slots, &[])
    }

    /// The same, with settings of the JobManager, `KEY=VALUE`.
    pub fn start_with(task_managers: u32, slots: u32, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("weir-test-").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("log")).expect("a log directory");
        let mut cluster = Self { dir, processes: BTreeMap::new() };
        cluster.launch("store", "weir-store", &[("--data-dir", cluster.path("store"))]);
        let mut arguments = vec![
            ("--data-dir", cluster.path("jobmanager")),
            ("--checkpoint-root", cluster.path("checkpoints")),
            ("--savepoint-root", cluster.path("savepoints")),
            ("--store", cluster.address("store")),
        ];
        arguments.extend(settings.iter().map(|setting| ("--set", (*setting).to_owned())));
        cluster.launch("jobmanager", "weir-jobmanager", &arguments);
        for number in 1..=task_managers {
            cluster.add_task_manager(&format!("tm-{number}"), slots);
        }
        cluster
    }

    /// Starts a cluster with so many JobManagers, `jobmanager-1` and so on, which form a raft group.
    pub fn start_group(jobmanagers: u32, task_managers: u32, slots: u32) -> Self {
        Self::start_group_with(jobmanagers, task_managers, slots, &[])
    }

    /// The same, with settings of the JobManagers, `KEY=VALUE`.
    pub fn start_group_with(jobmanagers: u32, task_managers: u32, slots: u32, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("weir-test-").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("log")).expect("a log directory");
        let mut cluster = Self { dir, processes: BTreeMap::new() };
        cluster.launch("store", "weir-store", &[("--data-dir", cluster.path("store"))]);
        let addresses: Vec<String> = (0..jobmanagers).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        for (number, address) in (1..).zip(&addresses) {
            let mut arguments = cluster.member_arguments(number);
            let members =
                (1..).zip(&addresses).map(|(member, address)| ("--cluster-member", format!("{member}={address}")));
            arguments.extend(members);
            arguments.extend(settings.iter().map(|setting| ("--set", (*setting).to_owned())));
            cluster.launch_at(&format!("jobmanager-{number}"), "weir-jobmanager", &arguments, address);
        }
        for number in 1..=task_managers {
            cluster.add_task_manager(&format!("tm-{number}"), slots);
        }
        cluster
    }

    /// Starts one more JobManager, `jobmanager-<number>`, which waits to be added to the group.
    pub fn join_jobmanager(&mut self, number: u64) {
        let mut arguments = self.member_arguments(number);
        arguments.push(("--set", "cluster.join=true".to_owned()));
        self.launch(&format!("jobmanager-{number}"), "weir-jobmanager", &arguments);
    }

    fn member_arguments(&self, number: u64) -> Vec<(&'static str, String)> {
        vec![
            ("--data-dir", self.path(&format!("jobmanager-{number}"))),
            ("--checkpoint-root", self.path("checkpoints")),
            ("--savepoint-root", self.path("savepoints")),
            ("--store", self.address("store")),
            ("--member", number.to_string()),
        ]
    }

    /// Kills a process for good: nobody is told its address any more.
    pub fn remove(&mut self, name: &str) {
        self.kill(name);
        self.processes.remove(name);
    }

    /// Addresses of all JobManagers, whether they run or not.
    pub fn jobmanagers(&self) -> Vec<String> {
        let jobmanagers = self.processes.iter().filter(|(_, process)| process.binary == "weir-jobmanager");
        jobmanagers.map(|(name, _)| self.address(name)).collect()
    }

    /// Starts one more TaskManager.
    pub fn add_task_manager(&mut self, name: &str, slots: u32) {
        let jobmanagers = self.jobmanagers();
        let mut arguments: Vec<(&str, String)> =
            jobmanagers.into_iter().map(|address| ("--jobmanager", address)).collect();
        arguments.extend([("--slots", slots.to_string()), ("--id", name.to_owned())]);
        self.launch(name, "weir-taskmanager", &arguments);
    }

    fn launch(&mut self, name: &str, binary: &'static str, arguments: &[(&str, String)]) {
        self.launch_at(name, binary, arguments, &format!("127.0.0.1:{}", free_port()));
    }

    fn launch_at(&mut self, name: &str, binary: &'static str, arguments: &[(&str, String)], listen: &str) {
        let mut all: Vec<String> =
            arguments.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]).collect();
        all.extend(["--log-dir".to_owned(), self.path("log")]);
        // Processes of one program must not share their log file.
        all.extend(["--set".to_owned(), format!("log.file={name}.log")]);
        let (child, addresses) = self.spawn(name, binary, &all, listen, &[]);
        let process = Process { binary, arguments: all, child, addresses };
        self.processes.insert(name.to_owned(), process);
    }

    fn spawn(
        &self,
        name: &str,
        binary: &str,
        arguments: &[String],
        listen: &str,
        environment: &[(&str, String)],
    ) -> (Child, AddressFile) {
        let file = self.dir.path().join("log").join(format!("{name}.addresses"));
        let out = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path(name)).expect("a log file");
        let mut child = Command::new(binary_path(binary))
            .args(arguments)
            .args(["--listen", listen, "--http-listen", "127.0.0.1:0"])
            .args(["--exit-with-parent", &std::process::id().to_string()])
            .arg("--address-file")
            .arg(&file)
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("could not start {binary}: {error}; build it with `cargo build --bins`"));
        let deadline = Instant::now() + DEADLINE;
        loop {
            match AddressFile::read(&file).expect("a readable address file") {
                Some(addresses) if addresses.pid == child.id() => return (child, addresses),
                _ => {}
            }
            if let Some(status) = child.try_wait().expect("a child of this process") {
                panic!("{name} ended with {status}:\n{}", self.log_tail(name));
            }
            assert!(Instant::now() < deadline, "{name} does not come up:\n{}", self.log_tail(name));
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// kill −9.
    pub fn kill(&mut self, name: &str) {
        let process = self.process_mut(name);
        process.child.kill().expect("a process that runs");
        process.child.wait().expect("a child of this process");
    }

    /// Waits until a process has ended by itself.
    pub fn ended(&mut self, name: &str) {
        let process = self.process_mut(name);
        let deadline = Instant::now() + DEADLINE;
        while process.child.try_wait().expect("a child of this process").is_none() {
            assert!(Instant::now() < deadline, "{name} does not end");
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// SIGTERM, and waits until it has ended; its exit code.
    pub fn terminate(&mut self, name: &str) -> Option<i32> {
        self.signal(name, rustix::process::Signal::TERM);
        let process = self.process_mut(name);
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = process.child.try_wait().expect("a child of this process") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{name} ignores SIGTERM");
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Stops a process where it stands, as a machine does that swaps or a hypervisor that moves it.
    pub fn freeze(&self, name: &str) {
        self.signal(name, rustix::process::Signal::STOP);
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self, name: &str) {
        self.signal(name, rustix::process::Signal::CONT);
    }

    fn signal(&self, name: &str, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.processes[name].child);
        rustix::process::kill_process(pid, signal).expect("a process that runs");
    }

    /// Starts a process that has ended again, on the same data and the same address.
    pub fn restart(&mut self, name: &str) {
        self.restart_with(name, &[]);
    }

    /// The same with something in its environment.
    pub fn restart_with(&mut self, name: &str, environment: &[(&str, String)]) {
        let process = self.process_mut(name);
        assert!(process.child.try_wait().expect("a child of this process").is_some(), "{name} still runs");
        let (binary, arguments) = (process.binary, process.arguments.clone());
        let listen = ["rpc", "exchange"].into_iter().find_map(|key| process.addresses.get(key).ok());
        let listen = listen.expect("a listener").to_string();
        let (child, addresses) = self.spawn(name, binary, &arguments, &listen, environment);
        let process = self.process_mut(name);
        (process.child, process.addresses) = (child, addresses);
    }

    /// Address of the API of `jobmanager` or `store`.
    pub fn address(&self, name: &str) -> String {
        self.processes[name].addresses.get("rpc").expect("an API").to_string()
    }

    /// Address of a process's HTTP pages.
    pub fn http_address(&self, name: &str) -> String {
        self.processes[name].addresses.get("http").expect("pages").to_string()
    }

    /// Process id.
    pub fn pid(&self, name: &str) -> u32 {
        self.processes[name].child.id()
    }

    /// A path within the cluster's directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Writes a file into the cluster's directory; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a writable directory");
        path
    }

    /// Starts `weir` with these arguments against this cluster, and does not wait for it.
    pub fn weir_in_background(&self, arguments: &[&str]) -> Child {
        let mut command = self.weir_command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the weir binary")
    }

    /// Runs `weir` with these arguments against this cluster.
    pub fn weir(&self, arguments: &[&str]) -> Ran {
        self.weir_with_input(arguments, Stdio::null())
    }

    /// The same with something on standard input.
    pub fn weir_with_input(&self, arguments: &[&str], input: Stdio) -> Ran {
        let output: Output = self.weir_command(arguments).stdin(input).output().expect("the weir binary");
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Runs `weir --json`, which must succeed; what it printed.
    pub fn weir_json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = std::iter::once("--json").chain(arguments.iter().copied()).collect();
        let ran = self.weir(&arguments);
        assert_eq!(ran.code, 0, "weir {arguments:?}: {}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    fn weir_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary_path("weir"));
        command.args(arguments).current_dir(self.dir.path());
        command.env("WEIR_JOBMANAGER", self.jobmanagers().join(",")).env("WEIR_STORE", self.address("store"));
        // Whoever runs the tests may have a configuration file.
        command.env("XDG_CONFIG_HOME", self.dir.path());
        command
    }

    fn process_mut(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).unwrap_or_else(|| panic!("no process {name}"))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("log").join(format!("{name}.out"))
    }

    fn log_tail(&self, name: &str) -> String {
        tail(&self.log_path(name))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            let _ended = process.child.kill();
            let _reaped = process.child.wait();
        }
        if std::thread::panicking() {
            let Ok(entries) = std::fs::read_dir(self.dir.path().join("log")) else { return };
            for entry in entries.flatten() {
                eprintln!("--- {}\n{}", entry.path().display(), tail(&entry.path()));
            }
        }
    }
}

/// A port that stays this process's own, also while whoever listens on it is down: it lies below those that the system
/// gives to whoever asks for any, and a lock file keeps the suites of other processes off it until this one ends.
fn free_port() -> u16 {
    static OWNED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    let locks = std::env::temp_dir().join("weir-test-ports");
    std::fs::create_dir_all(&locks).expect("a directory for the locks of ports");
    // Processes that start together begin at different places.
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for port in (0..COUNT).map(|step| FIRST + (start + step) % COUNT) {
        let lock = File::create(locks.join(port.to_string())).expect("the lock of a port");
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            OWNED.lock().expect("no test panics with it").push(lock);
            return port;
        }
    }
    panic!("every port from {FIRST} on is taken");
}

/// The last lines of a file.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A binary of the workspace, in the profile of the running program: a test lies in `target/<profile>/deps`, the
/// benchmark harness in `target/<profile>`.
pub fn binary_path(name: &str) -> PathBuf {
    let running = std::env::current_exe().expect("a path");
    let directory = running.parent().expect("target/<profile>");
    let profile = if directory.ends_with("deps") { directory.parent().expect("target/<profile>") } else { directory };
    profile.join(name)
}
