//! gRPC: handlers turn requests into events for the leader, and answers into replies. Nothing is decided here.

mod client;
mod coordinator;
mod ready;

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::transport::Server;
use weir_proto::pb::client::v1::client_server::ClientServer;
use weir_proto::pb::control::v1::coordinator_server::CoordinatorServer;
use weir_proto::to_status;
use weir_service::Shutdown;
use weir_types::{Error, Result};

use crate::door::{Door, gone};
use crate::event::{Answer, Event};
use crate::members;
use crate::planning::Planner;

pub(crate) use ready::about_to_run;

/// Largest message in either direction: an acknowledgement lists every block of every file.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long open calls may take after shutdown was requested.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves clients, TaskManagers and other JobManagers until shutdown is requested.
pub(crate) async fn serve(
    listener: TcpListener,
    door: Door,
    planner: Planner,
    members: members::Service,
    shutdown: Shutdown,
) -> Result<()> {
    let clients = client::Service::new(door.clone(), planner, members.clone(), shutdown.clone());
    let clients = ClientServer::new(clients)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let task_managers = CoordinatorServer::new(coordinator::Service::new(door, shutdown.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let requested = shutdown.clone();
    let server = Server::builder()
        .tcp_nodelay(true)
        .add_service(clients)
        .add_service(task_managers)
        .add_service(members.server())
        .add_service(weir_proto::diagnostics::server(weir_service::events::recall))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move { requested.requested().await });
    let drained = async {
        shutdown.requested().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| Error::internal("the gRPC server failed").with_detail(error.to_string())),
        () = drained => Ok(()),
    }
}

/// Asks the leader, and waits for its answer.
pub(crate) async fn ask<T>(door: &Door, event: impl FnOnce(Answer<T>) -> Event) -> Result<T> {
    send(&door.events().await?, event).await
}

/// Asks the leader that takes these events.
async fn send<T>(events: &mpsc::Sender<Event>, event: impl FnOnce(Answer<T>) -> Event) -> Result<T> {
    let (answer, reply) = oneshot::channel();
    events.send(event(answer)).await.map_err(|_| gone())?;
    reply.await.unwrap_or_else(|_| Err(gone()))
}

fn status(error: Error) -> Status {
    to_status(&error)
}
