//! A JobManager whose every word is the test's.

use std::pin::Pin;

use futures::Stream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::pb::control::v1 as pb;
use weir_proto::pb::control::v1::coordinator_server::{Coordinator, CoordinatorServer};
use weir_types::Result;
use weir_types::control::{
    FromTaskManager, Registered, Registration, SnapshotDeclined, SubtaskProgress, SubtaskStatus, ToTaskManager,
};
use weir_types::deployment::SubtaskState;
use weir_types::ids::{ClusterId, SubtaskId, Term};
use weir_types::snapshot::SubtaskSnapshot;

/// One session as the JobManager sees it.
pub(super) struct Session {
    pub(super) registration: Registration,
    pub(super) messages: Streaming<pb::TaskManagerMessage>,
    commands: mpsc::Sender<Result<pb::JobManagerMessage, Status>>,
}

pub(super) struct FakeJobManager {
    sessions: mpsc::Receiver<Session>,
    pub(super) address: String,
}

struct FakeService(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Coordinator for FakeService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::JobManagerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::TaskManagerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let (commands, answers) = mpsc::channel(64);
        let sessions = self.0.clone();
        tokio::spawn(async move {
            let first = FromTaskManager::try_from(messages.message().await.unwrap().unwrap()).unwrap();
            let FromTaskManager::Register(registration) = first else { panic!("{first:?}") };
            sessions.send(Session { registration, messages, commands }).await.unwrap();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl FakeJobManager {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, sessions) = mpsc::channel(16);
        let server = tonic::transport::Server::builder().add_service(CoordinatorServer::new(FakeService(sender)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { sessions, address }
    }

    /// The next TaskManager that registers, before it is answered.
    pub(super) async fn registering(&mut self) -> Session {
        self.sessions.recv().await.unwrap()
    }

    /// The next TaskManager that registers, welcomed.
    pub(super) async fn registered(&mut self) -> Session {
        let session = self.registering().await;
        session.welcome("cluster", 1).await;
        session
    }
}

impl Session {
    pub(super) async fn welcome(&self, cluster: &str, term: u64) {
        self.command(ToTaskManager::Registered(Registered {
            cluster: ClusterId::new(cluster).unwrap(),
            term: Term(term),
            heartbeat_interval_ms: 20,
            heartbeat_timeout_ms: 60_000,
        }))
        .await;
    }

    pub(super) async fn command(&self, command: ToTaskManager) {
        self.commands.send(Ok((&command).into())).await.unwrap();
    }

    pub(super) async fn message(&mut self) -> Option<FromTaskManager> {
        self.messages.message().await.unwrap().map(|message| message.try_into().unwrap())
    }

    /// The next message that is no heartbeat.
    pub(super) async fn said(&mut self) -> FromTaskManager {
        loop {
            match self.message().await.unwrap() {
                FromTaskManager::Heartbeat(_) => {}
                message => return message,
            }
        }
    }

    /// The states that `count` messages report.
    pub(super) async fn states(&mut self, count: usize) -> Vec<(u32, u32, u32, SubtaskState)> {
        let mut states = Vec::new();
        while states.len() < count {
            match self.said().await {
                FromTaskManager::Status(SubtaskStatus { subtask: SubtaskId { chain, index, attempt, .. }, state }) => {
                    states.push((chain.0, index.0, attempt.0, state));
                }
                message => panic!("{message:?}"),
            }
        }
        states
    }

    pub(super) async fn acknowledged(&mut self) -> SubtaskSnapshot {
        match self.said().await {
            FromTaskManager::SnapshotAcked(snapshot) => snapshot,
            message => panic!("{message:?}"),
        }
    }

    pub(super) async fn declined(&mut self) -> SnapshotDeclined {
        match self.said().await {
            FromTaskManager::SnapshotDeclined(declined) => declined,
            message => panic!("{message:?}"),
        }
    }

    /// The first heartbeat whose counters satisfy `done`.
    pub(super) async fn progress(&mut self, done: impl Fn(&[SubtaskProgress]) -> bool) -> Vec<SubtaskProgress> {
        loop {
            if let FromTaskManager::Heartbeat(progress) = self.message().await.unwrap()
                && done(&progress)
            {
                return progress;
            }
        }
    }
}
