//! A JobManager in this process, on real sockets, and TaskManagers that do what the test says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use weir_jobmanager::config::Config;
use weir_jobmanager::daemon::run;
use weir_proto::pb::client::v1 as client;
use weir_proto::pb::client::v1::client_client::ClientClient;
use weir_proto::pb::control::v1 as control;
use weir_proto::pb::control::v1::coordinator_client::CoordinatorClient;
use weir_service::Shutdown;
use weir_types::control::{
    FromTaskManager, Registration, SnapshotDeclined, SnapshotOutcome, SubtaskStatus, ToTaskManager, TriggerBarrier,
    WritersStopped,
};
use weir_types::deployment::{Deployment, SubtaskState};
use weir_types::graph::OperatorSpec;
use weir_types::ids::{SubtaskId, TaskManagerId};
use weir_types::snapshot::{OperatorSnapshot, SnapshotTimings, SubtaskSnapshot};
use weir_types::{Code, Error, Result};

/// Nothing in these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits something that must come soon.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it never came")
}

/// A cluster's directory, which outlives its JobManagers.
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) heartbeat_timeout_ms: u64,
    pub(crate) savepoints_max: Option<u64>,
    pub(crate) store_address: Option<String>,
}

pub(crate) struct JobManager {
    pub(crate) address: String,
    pub(crate) client: ClientClient<Channel>,
    shutdown: Shutdown,
    running: JoinHandle<Result<()>>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("input");
        std::fs::create_dir(&input).unwrap();
        for file in ["a.jsonl", "b.jsonl", "_hidden.jsonl"] {
            std::fs::write(input.join(file), "{\"a\": 1}\n").unwrap();
        }
        Self { dir, heartbeat_timeout_ms: 60_000, savepoints_max: None, store_address: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A script that reads two files.
    pub(crate) fn script(&self, options: &str) -> String {
        format!(
            "{options}\n\
             CREATE TABLE t (a BIGINT) WITH ('connector' = 'filesystem', 'format' = 'json', 'path' = '{}');\n\
             CREATE TABLE s (a BIGINT) WITH ('connector' = 'blackhole');\n\
             INSERT INTO s SELECT a FROM t;",
            self.path("input").display()
        )
    }

    pub(crate) async fn start(&self) -> JobManager {
        let mut config = Config { data_dir: self.path("data"), ..Config::default() };
        config.heartbeat.interval_ms = 50;
        config.heartbeat.timeout_ms = self.heartbeat_timeout_ms;
        config.quotas.cluster.savepoints = self.savepoints_max;
        if let Some(address) = &self.store_address {
            config.store_address.clone_from(address);
        }
        let rpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", rpc.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let running = tokio::spawn(run(rpc, http, config, shutdown.clone()));
        let client = soon(ClientClient::connect(address.clone())).await.unwrap();
        JobManager { address, client, shutdown, running }
    }
}

impl JobManager {
    pub(crate) async fn stop(self) {
        self.shutdown.request();
        soon(self.running).await.unwrap().unwrap();
    }

    pub(crate) async fn submit(&mut self, sql: String) -> String {
        let request = client::SubmitRequest { request_id: String::new(), sql, ..Default::default() };
        soon(self.client.submit(request)).await.unwrap().into_inner().job_id
    }

    /// Waits until the job's detail is as wanted; it is pushed, not polled.
    pub(crate) async fn until(&mut self, job: &str, wanted: impl Fn(&client::JobDetail) -> bool) -> client::JobDetail {
        let request = client::JobRequest { job: job.to_owned(), ..Default::default() };
        let mut details = self.client.watch_job(request).await.unwrap().into_inner();
        let found = async {
            loop {
                let detail = details.message().await.unwrap().expect("the job ended otherwise");
                if wanted(&detail) {
                    return detail;
                }
            }
        };
        soon(found).await
    }

    pub(crate) async fn until_state(&mut self, job: &str, state: client::JobState) -> client::JobDetail {
        self.until(job, |detail| detail.summary.as_ref().unwrap().state() == state).await
    }

    pub(crate) async fn snapshots(&mut self) -> Vec<client::Snapshot> {
        let reply = self.client.list_snapshots(client::ListSnapshotsRequest::default()).await.unwrap();
        reply.into_inner().snapshots
    }

    /// Asks for a savepoint without waiting for it.
    pub(crate) fn savepoint(&self, job: &str, request_id: &str, directory: Option<&Path>) -> Asked {
        let mut client = self.client.clone();
        let request = client::TriggerSnapshotRequest {
            request_id: request_id.to_owned(),
            job: job.to_owned(),
            savepoint: true,
            directory: directory.map(|path| path.display().to_string()),
            ..Default::default()
        };
        tokio::spawn(async move { client.trigger_snapshot(request).await.map(tonic::Response::into_inner) })
    }

    pub(crate) fn stop_job(&self, job: &str) -> Asked {
        let mut client = self.client.clone();
        let request = client::StopJobRequest { job: job.to_owned(), ..Default::default() };
        tokio::spawn(async move { client.stop_job(request).await.map(tonic::Response::into_inner) })
    }
}

pub(crate) type Asked = JoinHandle<std::result::Result<client::Snapshot, tonic::Status>>;

pub(crate) struct TaskManager {
    id: TaskManagerId,
    say: mpsc::Sender<control::TaskManagerMessage>,
    hear: Streaming<control::JobManagerMessage>,
    /// Whether it says that its splits are read to their ends.
    pub(crate) at_end: bool,
}

impl TaskManager {
    pub(crate) async fn join(jobmanager: &JobManager, id: &str, slots: u32, running: Vec<SubtaskStatus>) -> Self {
        let mut coordinator = CoordinatorClient::connect(jobmanager.address.clone()).await.unwrap();
        let (say, said) = mpsc::channel(64);
        let id = TaskManagerId::new(id).unwrap();
        let registration = Registration {
            cluster: None,
            task_manager: id.clone(),
            data_address: format!("{id}:1"),
            http_address: String::new(),
            slots,
            process_id: 1,
            running,
        };
        say.send((&FromTaskManager::Register(registration)).into()).await.unwrap();
        let hear = soon(coordinator.session(ReceiverStream::new(said))).await.unwrap().into_inner();
        let mut task_manager = Self { id, say, hear, at_end: false };
        assert!(matches!(task_manager.next().await, ToTaskManager::Registered(_)));
        task_manager
    }

    /// Why the JobManager does not take in a TaskManager with so many slots.
    pub(crate) async fn refused(jobmanager: &JobManager, slots: u32) -> tonic::Status {
        let mut coordinator = CoordinatorClient::connect(jobmanager.address.clone()).await.unwrap();
        let (say, said) = mpsc::channel(1);
        let registration = Registration {
            cluster: None,
            task_manager: TaskManagerId::new("greedy").unwrap(),
            data_address: String::new(),
            http_address: String::new(),
            slots,
            process_id: 1,
            running: vec![],
        };
        say.send((&FromTaskManager::Register(registration)).into()).await.unwrap();
        match soon(coordinator.session(ReceiverStream::new(said))).await {
            Err(status) => status,
            Ok(hear) => soon(hear.into_inner().message()).await.unwrap_err(),
        }
    }

    /// What the JobManager says next, heartbeats aside.
    pub(crate) async fn next(&mut self) -> ToTaskManager {
        loop {
            let message = soon(self.hear.message()).await.unwrap().expect("the session has ended");
            match message.try_into().unwrap() {
                ToTaskManager::Heartbeat(_) => {}
                ToTaskManager::SnapshotOutcome(outcome) if outcome.failure.is_some() => {
                    // Nothing is written here.
                    let SnapshotOutcome { job, attempt, snapshot, .. } = outcome.clone();
                    self.say(&FromTaskManager::WritersStopped(WritersStopped { job, attempt, snapshot })).await;
                    return ToTaskManager::SnapshotOutcome(outcome);
                }
                message => return message,
            }
        }
    }

    pub(crate) async fn say(&self, message: &FromTaskManager) {
        self.say.send(message.into()).await.unwrap();
    }

    pub(crate) async fn deployment(&mut self) -> Deployment {
        loop {
            match self.next().await {
                ToTaskManager::Deploy(deployment) => return *deployment,
                // An attempt that is over is let go when that has been committed.
                ToTaskManager::Cancel(_) => {}
                other => panic!("expected a deployment, not {other:?}"),
            }
        }
    }

    pub(crate) async fn trigger(&mut self) -> TriggerBarrier {
        match self.next().await {
            ToTaskManager::Trigger(trigger) => trigger,
            other => panic!("expected a barrier, not {other:?}"),
        }
    }

    /// Expects to be told to cancel, and does.
    pub(crate) async fn cancel(&mut self, deployment: &Deployment) {
        loop {
            match self.next().await {
                ToTaskManager::Cancel(cancel) => break assert_eq!(cancel.attempt, deployment.attempt),
                // The next periodic checkpoint may have come first, and so may the end of the last one.
                ToTaskManager::Trigger(_) | ToTaskManager::SnapshotOutcome(_) => {}
                other => panic!("expected a cancellation, not {other:?}"),
            }
        }
        self.report(deployment, SubtaskState::Cancelled).await;
    }

    /// The subtasks that run here.
    pub(crate) fn subtasks(&self, deployment: &Deployment) -> Vec<SubtaskId> {
        let here = deployment.placements.iter().filter(|placement| placement.task_manager == self.id);
        here.map(|placement| SubtaskId {
            job: deployment.job.clone(),
            chain: placement.chain,
            index: placement.index,
            attempt: deployment.attempt,
        })
        .collect()
    }

    pub(crate) fn statuses(&self, deployment: &Deployment, state: SubtaskState) -> Vec<SubtaskStatus> {
        let subtasks = self.subtasks(deployment).into_iter();
        subtasks.map(|subtask| SubtaskStatus { subtask, state: state.clone() }).collect()
    }

    pub(crate) async fn report(&self, deployment: &Deployment, state: SubtaskState) {
        for status in self.statuses(deployment, state) {
            self.say(&FromTaskManager::Status(status)).await;
        }
    }

    /// Acknowledges a barrier for every subtask here: each split has moved on by ten.
    pub(crate) async fn acknowledge(&self, deployment: &Deployment, trigger: &TriggerBarrier) {
        for subtask in self.subtasks(deployment) {
            let chain = deployment.graph.chains().into_iter().find(|chain| chain.id == subtask.chain).unwrap();
            let head = deployment.graph.operator(chain.operators[0]).unwrap();
            let mut operators = Vec::new();
            if let OperatorSpec::Source(_) = &head.spec {
                let uid = head.uid.clone().unwrap();
                let mine = deployment.splits.iter().filter(|split| split.uid == uid && split.index == subtask.index);
                let splits = mine.map(|split| {
                    let mut position = split.position.clone();
                    position.offset += 10;
                    position.finished = self.at_end;
                    position
                });
                let splits = splits.collect();
                operators.push(OperatorSnapshot { uid, watermark_ms: 5, files: vec![], splits, prepared: None });
            }
            let ack = SubtaskSnapshot {
                subtask,
                barrier: trigger.barrier.id,
                snapshot: trigger.barrier.snapshot.clone(),
                operators,
                timings: SnapshotTimings::default(),
            };
            self.say(&FromTaskManager::SnapshotAcked(ack)).await;
        }
    }

    /// Declines a barrier for every subtask here.
    pub(crate) async fn decline(&self, deployment: &Deployment, trigger: &TriggerBarrier) {
        for subtask in self.subtasks(deployment) {
            let (barrier, snapshot) = (trigger.barrier.id, trigger.barrier.snapshot.clone());
            let error = Error::new(Code::Io, "the disk is slow today");
            let declined = SnapshotDeclined { subtask, barrier, snapshot, error };
            self.say(&FromTaskManager::SnapshotDeclined(declined)).await;
        }
    }

    /// Expects to hear how the snapshot ended; says whether it completed.
    pub(crate) async fn outcome(&mut self) -> bool {
        match self.next().await {
            ToTaskManager::SnapshotOutcome(outcome) => outcome.failure.is_none(),
            other => panic!("expected an outcome, not {other:?}"),
        }
    }
}

/// Where the splits of an attempt begin: file and offset.
pub(crate) fn offsets(deployment: &Deployment) -> Vec<(String, u64)> {
    let mut offsets: Vec<_> =
        deployment.splits.iter().map(|split| (split.position.split.clone(), split.position.offset)).collect();
    offsets.sort();
    offsets
}
