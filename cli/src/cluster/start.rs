//! `weir cluster start`: store, JobManager, TaskManagers, until every TaskManager has registered.

use std::path::Path;
use std::time::{Duration, Instant};

use weir_proto::from_status;
use weir_proto::pb::client::v1::{AddMemberRequest, ClusterStatusReply, ClusterStatusRequest};
use weir_types::{Code, Error, Result};

use crate::args::StartArgs;
use crate::cluster::file::{ClusterFile, Process};
use crate::cluster::process::{Launch, Started};
use crate::cluster::stop;
use crate::connect;

/// How long a cluster may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to ask whether the TaskManagers have registered.
const ASK_INTERVAL: Duration = Duration::from_millis(10);

/// Starts a cluster in `dir` and returns once it is ready.
///
/// # Errors
/// `ALREADY_EXISTS` if one runs there; else what kept a process from starting. Nothing is left running then.
pub(crate) async fn start(dir: &Path, args: &StartArgs) -> Result<ClusterFile> {
    std::fs::create_dir_all(dir.join("log"))
        .map_err(|error| Error::io(format!("could not create {}", dir.join("log").display()), &error))?;
    let dir = dir.canonicalize().map_err(|error| Error::io(format!("could not open {}", dir.display()), &error))?;
    if let Some(file) = ClusterFile::read(&dir)?
        && file.processes.iter().any(|process| process.id.is_running())
    {
        return Err(Error::new(Code::AlreadyExists, format!("a cluster runs in {} already", dir.display()))
            .with_hint("Stop it with `weir cluster stop`, or choose another --dir."));
    }
    let mut cluster = Starting { dir: &dir, args, deadline: Instant::now() + START_TIMEOUT, started: Vec::new() };
    match cluster.run().await {
        Ok(file) => Ok(file),
        Err(error) => {
            let processes: Vec<_> = cluster.started.iter().map(|(process, _)| process.clone()).collect();
            stop::stop_processes(&processes).await;
            let _absent = ClusterFile::remove(&dir);
            Err(error)
        }
    }
}

/// Adds a JobManager that waits for that; a leader may be lost meanwhile, and adding again changes nothing.
async fn add_member(jobmanagers: &str, id: u64, address: &str, deadline: Instant) -> Result<()> {
    loop {
        let request = AddMemberRequest { id, address: address.to_owned() };
        let mut jobmanager = connect::jobmanager_at(jobmanagers).await?;
        let Err(status) = jobmanager.add_member(request).await else { return Ok(()) };
        let error = from_status(&status);
        let passing = matches!(error.code, Code::NotLeader | Code::Unavailable | Code::FailedPrecondition);
        if !passing || Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

struct Starting<'a> {
    dir: &'a Path,
    args: &'a StartArgs,
    deadline: Instant,
    started: Vec<(Process, Started)>,
}

impl Starting<'_> {
    async fn run(&mut self) -> Result<ClusterFile> {
        let data = |name: &str| self.dir.join(name).display().to_string();
        let store_arguments = vec!["--data-dir".to_owned(), data("store")];
        let store = self.launch("store", "weir-store", store_arguments, self.port(1), self.port(3)).await?;
        let jobmanager_arguments = [
            ("--data-dir", data("jobmanager")),
            ("--checkpoint-root", data("checkpoints")),
            ("--savepoint-root", data("savepoints")),
            ("--store", store.0.clone()),
        ];
        let jobmanager_arguments: Vec<String> =
            jobmanager_arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let (mut jobmanager, http) = self
            .launch("jobmanager", "weir-jobmanager", jobmanager_arguments.clone(), self.port(0), self.port(2))
            .await?;
        for number in 2..=self.args.jobmanagers {
            let name = format!("jobmanager-{number}");
            let mut arguments = jobmanager_arguments.clone();
            arguments[1] = data(&name);
            arguments.extend(["--member".to_owned(), number.to_string(), "--join".to_owned()]);
            // After a restart the others may be elsewhere than they were.
            for (place, address) in jobmanager.split(',').enumerate() {
                arguments.extend(["--cluster-member".to_owned(), format!("{}={address}", place + 1)]);
            }
            arguments.extend(["--set".to_owned(), format!("log.file={name}.log")]);
            let added = self.launch(&name, "weir-jobmanager", arguments, 0, 0).await?;
            add_member(&jobmanager, u64::from(number), &added.0, self.deadline).await?;
            jobmanager = format!("{jobmanager},{}", added.0);
        }
        let launched = self.started.len();
        for number in 1..=self.args.taskmanagers {
            self.spawn_task_manager(number, &jobmanager)?;
        }
        for index in launched..self.started.len() {
            let (process, started) = &mut self.started[index];
            process.http = started.addresses(self.deadline).await?.get("http")?.to_string();
        }
        let processes = self.started.iter().map(|(process, _)| process.clone()).collect();
        let file = ClusterFile { jobmanager, jobmanager_http: http, store: store.0, processes };
        file.write(self.dir)?;
        self.await_registrations(&file).await?;
        Ok(file)
    }

    /// The port `n` places after the first one; 0 stays 0.
    fn port(&self, n: u16) -> u16 {
        if self.args.port == 0 { 0 } else { self.args.port.saturating_add(n) }
    }

    /// Starts a server and waits for its addresses: API, HTTP.
    async fn launch(
        &mut self,
        name: &str,
        binary: &str,
        mut arguments: Vec<String>,
        port: u16,
        http_port: u16,
    ) -> Result<(String, String)> {
        arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        arguments.extend(["--http-listen".to_owned(), format!("127.0.0.1:{http_port}")]);
        let mut started = self.spawn(name, binary, arguments)?;
        let addresses = started.addresses(self.deadline).await;
        let process = Process { name: name.to_owned(), id: started.id, http: String::new() };
        self.started.push((process, started));
        let addresses = addresses?;
        let (rpc, http) = (addresses.get("rpc")?.to_string(), addresses.get("http")?.to_string());
        if let Some((process, _)) = self.started.last_mut() {
            process.http.clone_from(&http);
        }
        Ok((rpc, http))
    }

    fn spawn_task_manager(&mut self, number: u32, jobmanager: &str) -> Result<()> {
        let name = format!("tm-{number}");
        let jobmanagers = jobmanager.split(',').map(|address| ("--jobmanager", address.to_owned()));
        let arguments = [
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--http-listen", "127.0.0.1:0".to_owned()),
            ("--slots", self.args.slots.to_string()),
            ("--id", name.clone()),
        ];
        let arguments = jobmanagers.chain(arguments).flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let started = self.spawn(&name, "weir-taskmanager", arguments)?;
        self.started.push((Process { name, id: started.id, http: String::new() }, started));
        Ok(())
    }

    fn spawn(&self, name: &str, binary: &str, arguments: Vec<String>) -> Result<Started> {
        let log_dir = self.dir.join("log");
        let exit_with_parent = self.args.exit_with_parent;
        Launch { name, binary, arguments, log_dir: &log_dir, exit_with_parent }.start()
    }

    async fn await_registrations(&mut self, file: &ClusterFile) -> Result<()> {
        let mut jobmanager = connect::jobmanager_at(&file.jobmanager).await?;
        let wanted = self.args.taskmanagers as usize;
        loop {
            let status: ClusterStatusReply = jobmanager
                .cluster_status(ClusterStatusRequest {})
                .await
                .map_err(|status| from_status(&status))?
                .into_inner();
            if status.task_managers.len() >= wanted {
                return Ok(());
            }
            for (_, started) in &mut self.started {
                started.check_alive()?;
            }
            if Instant::now() >= self.deadline {
                let detail = format!("{} of {wanted} registered", status.task_managers.len());
                return Err(Error::new(Code::Timeout, "not all TaskManagers have registered").with_detail(detail));
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }
}
