//! Sessions of TaskManagers. The end of the stream, in either direction, is the end of the session.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::pb::control::v1 as pb;
use weir_proto::pb::control::v1::coordinator_server::Coordinator;
use weir_service::Shutdown;
use weir_types::control::FromTaskManager;
use weir_types::ids::TaskManagerId;
use weir_types::{Code, Error, Result};

use super::{send, status};
use crate::door::Door;
use crate::event::{Event, SESSION_QUEUE_MAX, SessionId};

/// How long a new session may take to say who it is.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Service {
    door: Door,
    shutdown: Shutdown,
}

impl Service {
    pub(super) fn new(door: Door, shutdown: Shutdown) -> Self {
        Self { door, shutdown }
    }
}

type Outbound = Pin<Box<dyn Stream<Item = Result<pb::JobManagerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Service {
    type SessionStream = Outbound;

    async fn session(&self, request: Request<Streaming<pb::TaskManagerMessage>>) -> Result<Response<Outbound>, Status> {
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(REGISTER_TIMEOUT, inbound.message()).await;
        let first = first.map_err(|_| status(Error::new(Code::Timeout, "no registration came")))??;
        let first = first.ok_or_else(|| status(Error::invalid("a session without a registration")))?;
        let FromTaskManager::Register(registration) = first.try_into().map_err(status)? else {
            return Err(status(Error::invalid("a session must begin with a registration")));
        };
        let task_manager = registration.task_manager.clone();
        let (outbound, messages) = mpsc::channel(SESSION_QUEUE_MAX);
        // What this session says goes to the leader that accepts it, and to no later one.
        let events = self.door.events().await.map_err(status)?;
        let accepted = send(&events, |accepted| Event::SessionOpened { registration, outbound, accepted });
        let session = accepted.await.map_err(status)?;
        tokio::spawn(listen(inbound, events, task_manager, session, self.shutdown.clone()));
        let shutdown = self.shutdown.clone();
        let messages = ReceiverStream::new(messages)
            .map(|message| Ok(pb::JobManagerMessage::from(&message)))
            .take_until(async move { shutdown.requested().await });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// Turns what a TaskManager says into events, until it says nothing more.
async fn listen(
    mut inbound: Streaming<pb::TaskManagerMessage>,
    events: mpsc::Sender<Event>,
    task_manager: TaskManagerId,
    session: SessionId,
    shutdown: Shutdown,
) {
    let reason = loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            () = shutdown.requested() => return,
        };
        let message = match message {
            Ok(Some(message)) => FromTaskManager::try_from(message),
            Ok(None) => break "it has closed its session".to_owned(),
            Err(status) => break format!("its session broke: {}", status.message()),
        };
        match message {
            Ok(message) => {
                let event = Event::SessionMessage { task_manager: task_manager.clone(), session, message };
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => break format!("it sent something that is no message: {error}"),
        }
    };
    let _gone = events.send(Event::SessionClosed { task_manager, session, reason }).await;
}
