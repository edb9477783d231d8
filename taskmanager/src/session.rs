//! A session with the JobManager that leads: found among all, opened by a registration, kept by heartbeats, ended by either
//! side.
//!
//! Sending never waits: a JobManager that does not take what it is sent loses the session. Only one that a majority has just
//! confirmed answers that it leads: nobody registers with one that is deposed.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use weir_proto::pb::client::v1::ClusterStatusRequest;
use weir_proto::pb::client::v1::client_client::ClientClient;
use weir_proto::pb::control::v1 as pb;
use weir_proto::pb::control::v1::coordinator_client::CoordinatorClient;
use weir_types::control::{FromTaskManager, Registered, Registration, ToTaskManager};
use weir_types::{Code, Error, Result};

/// Messages that may wait to be sent.
const OUTBOX_MAX: usize = 4096;
/// A deployment names every file of the snapshot that it restores.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// An open session.
#[derive(Debug)]
pub(crate) struct Session {
    /// The JobManager's `host:port`.
    pub(crate) address: String,
    /// What it answered to the registration.
    pub(crate) registered: Registered,
    outbox: mpsc::Sender<pb::TaskManagerMessage>,
    inbox: Streaming<pb::JobManagerMessage>,
}

/// How long a session may take to open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until a JobManager has said whether it leads.
    pub(crate) answer: Duration,
    /// Until the one that leads has taken the registration.
    pub(crate) register: Duration,
}

/// Asks all of these JobManagers at once which one leads, and registers with it.
///
/// # Errors
/// `UNAVAILABLE` or `TIMEOUT` if nobody answers, `NOT_LEADER` with who leads if that is none of them, else what the leader
/// answered.
pub(crate) async fn open(addresses: Vec<String>, registration: Registration, patience: Patience) -> Result<Session> {
    let (address, transport) = find_leader(addresses, patience.answer).await?;
    let registered = register(&address, transport, registration);
    match tokio::time::timeout(patience.register, registered).await {
        Ok(registered) => registered,
        Err(_) => Err(late(&address, patience.register)),
    }
}

async fn find_leader(addresses: Vec<String>, timeout: Duration) -> Result<(String, Channel)> {
    let ask = |address: String| async move {
        let leads = tokio::time::timeout(timeout, leads(&address)).await;
        let transport = leads.unwrap_or_else(|_| Err(late(&address, timeout)))?;
        Ok::<_, Error>((address, transport))
    };
    let mut asked: FuturesUnordered<_> = addresses.into_iter().map(ask).collect();
    let mut refusal: Option<Error> = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(leader) => return Ok(leader),
            // Whoever knows a leader says more than whoever knows none, or does not answer.
            Err(error) if refusal.is_none() || (error.code == Code::NotLeader && error.detail.is_some()) => {
                refusal = Some(error);
            }
            Err(_) => {}
        }
    }
    Err(refusal.unwrap_or_else(|| Error::invalid("no address of a JobManager").with_hint("Set jobmanager.addresses.")))
}

/// Connects to a JobManager that leads.
async fn leads(address: &str) -> Result<Channel> {
    let unreachable = |why: String| {
        Error::unavailable(format!("could not reach the JobManager at {address}"))
            .with_detail(why)
            .with_hint("Check that weir-jobmanager runs there; this TaskManager goes on trying.")
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::invalid(format!("{address:?} is not HOST:PORT")).with_detail(error.to_string()))?
        .tcp_nodelay(true);
    let transport = endpoint.connect().await.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        unreachable(cause)
    })?;
    match ClientClient::new(transport.clone()).cluster_status(ClusterStatusRequest {}).await {
        Ok(_) => Ok(transport),
        Err(status) => match weir_proto::from_status(&status) {
            error if error.code == Code::NotLeader => Err(error),
            error if error.code == Code::Unavailable => Err(unreachable(error.message)),
            // Whatever else is wrong there, it says so to the registration.
            _ => Ok(transport),
        },
    }
}

fn late(address: &str, timeout: Duration) -> Error {
    let message = format!("the JobManager at {address} did not answer within {} ms", timeout.as_millis());
    Error::new(Code::Timeout, message)
}

async fn register(address: &str, transport: Channel, registration: Registration) -> Result<Session> {
    let mut client = CoordinatorClient::new(transport)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
    let hello = pb::TaskManagerMessage::from(&FromTaskManager::Register(registration));
    outbox.try_send(hello).map_err(|_| Error::internal("a new session has no room"))?;
    let answer = client.session(ReceiverStream::new(messages)).await;
    let mut inbox = answer.map_err(|status| weir_proto::from_status(&status))?.into_inner();
    match next(&mut inbox, address).await? {
        ToTaskManager::Registered(registered) => Ok(Session { address: address.to_owned(), registered, outbox, inbox }),
        _ => Err(Error::internal(format!("the JobManager at {address} did not answer the registration"))),
    }
}

async fn next(inbox: &mut Streaming<pb::JobManagerMessage>, address: &str) -> Result<ToTaskManager> {
    match inbox.message().await {
        Ok(Some(message)) => message.try_into(),
        Ok(None) => Err(Error::unavailable(format!("the JobManager at {address} ended the session"))),
        Err(status) => Err(weir_proto::from_status(&status)),
    }
}

impl Session {
    /// The next command. Cancel safe.
    ///
    /// # Errors
    /// If the session is over.
    pub(crate) async fn command(&mut self) -> Result<ToTaskManager> {
        next(&mut self.inbox, &self.address).await
    }

    /// Sends a message.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the session is over.
    pub(crate) fn send(&self, message: &FromTaskManager) -> Result<()> {
        self.outbox.try_send(message.into()).map_err(|error| {
            let why = match error {
                mpsc::error::TrySendError::Full(_) => "it does not take what it is sent",
                mpsc::error::TrySendError::Closed(_) => "the session is over",
            };
            Error::unavailable(format!("lost the JobManager at {}", self.address)).with_detail(why)
        })
    }

    /// Ends the session once everything sent has been taken, or at the deadline.
    pub(crate) async fn close(mut self, timeout: Duration) {
        drop(self.outbox);
        let drained = async { while let Ok(Some(_)) = self.inbox.message().await {} };
        let _closed_by_force = tokio::time::timeout(timeout, drained).await;
    }
}
