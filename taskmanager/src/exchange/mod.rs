//! The data plane: channels between subtasks of different TaskManagers.
//!
//! Every ordered pair of TaskManagers shares one gRPC stream for all of its channels. A channel sends only what its
//! receiver has room for (credits in bytes), and its elements are cut into chunks that take turns with those of the other
//! channels: no channel waits for another's receiver, nor for another's large batch. A stream that breaks breaks all of
//! its channels, at both ends, with an error that names the peer.

mod inbound;
mod ipc;
mod outbound;
mod registry;
mod schema;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use weir_dataflow::channel::{ChannelReceiver, ChannelSender};
use weir_dataflow::memory::MemoryBudget;
use weir_proto::pb::data::v1::data_plane_server::DataPlaneServer;
use weir_types::deployment::ChannelId;
use weir_types::ids::{Attempt, JobId, TaskManagerId};
use weir_types::{Error, Result};

use crate::fences::Fences;

/// Version of the exchange protocol.
const PROTOCOL_VERSION: u32 = 1;
/// What HTTP/2 lets one stream send ahead; credits bound each channel well before.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for a connection.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// A peer whose machine is gone is noticed after this interval and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds of the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What one channel may send ahead of its receiving subtask; an element may begin while any of it is left.
    pub window_bytes: u64,
    /// How long an arriving channel waits for its receiving subtask to be deployed here.
    pub deploy_timeout: Duration,
    /// How long connecting to a peer may take.
    pub connect_timeout: Duration,
}

/// One channel, as either of its ends sees it.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Its name, the same at both ends.
    pub id: ChannelId,
    /// The columns of its batches.
    pub schema: SchemaRef,
    /// The receiving operator, for errors.
    pub operator: String,
    /// Ends the channel at once when cancelled.
    pub cancelled: CancellationToken,
}

/// Where a peer listens for exchanges.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The TaskManager.
    pub task_manager: TaskManagerId,
    /// `host:port`.
    pub address: String,
}

/// This TaskManager's end of the data plane.
pub struct DataPlane {
    registry: Arc<registry::Registry>,
    peers: outbound::Peers,
    settings: Settings,
    memory: Arc<MemoryBudget>,
    runtime: tokio::runtime::Handle,
}

impl DataPlane {
    /// A data plane whose network work runs on `runtime`.
    pub fn new(
        own_id: TaskManagerId,
        settings: Settings,
        memory: Arc<MemoryBudget>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let peers = outbound::Peers::new(own_id, settings.connect_timeout, runtime.clone());
        Self { registry: Arc::new(registry::Registry::new(Fences::default())), peers, settings, memory, runtime }
    }

    /// An attempt of a job begins here: channels of lower ones are refused from now on.
    pub fn begin(&self, job: &JobId, attempt: Attempt) {
        self.registry.begin(job, attempt);
    }

    /// An attempt has ended here: forgets channels that were never opened.
    pub fn end(&self, job: &JobId, attempt: Attempt) {
        self.registry.end(job, attempt);
    }

    /// What arrives on `channel` goes into `sender`.
    ///
    /// # Errors
    /// `UNSUPPORTED` for columns that cannot travel, `INTERNAL` if the channel is known already.
    pub fn receive(&self, channel: Channel, sender: ChannelSender) -> Result<()> {
        schema::check(&channel.schema)?;
        self.registry.offer(channel, sender)
    }

    /// What comes out of `receiver` goes to `peer`.
    ///
    /// # Errors
    /// `UNSUPPORTED` for columns that cannot travel.
    pub fn send(&self, peer: &Peer, channel: Channel, receiver: ChannelReceiver) -> Result<()> {
        let encoder = ipc::Encoder::new(channel.schema.clone())?;
        self.peers.send(peer, channel, encoder, receiver);
        Ok(())
    }

    /// Answers peers until `shutdown` is cancelled, then breaks what is left.
    ///
    /// # Errors
    /// `IO` if the listener fails.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
        let service = inbound::Service {
            registry: self.registry.clone(),
            window_bytes: self.settings.window_bytes,
            deploy_timeout: self.settings.deploy_timeout,
            memory: self.memory.clone(),
            runtime: self.runtime.clone(),
            shutdown: shutdown.clone(),
        };
        let service = DataPlaneServer::new(service).max_decoding_message_size(wire::FRAME_BYTES_MAX);
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(service)
            .add_service(weir_proto::diagnostics::server(weir_service::events::recall))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                shutdown.cancelled_owned(),
            )
            .await
            .map_err(|error| Error::internal("the data plane failed").with_detail(format!("{error:?}")))
    }
}

#[cfg(test)]
mod tests;
