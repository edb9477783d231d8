//! The store behind gRPC.
//!
//! [`run`] serves until it is told to stop; then sessions end with `UNAVAILABLE`, what was queued becomes durable, and
//! the store is closed.

mod append;
pub mod daemon;
pub(crate) mod fence;
mod groups;
mod read;
mod streams;

use std::future::Future;
use std::time::Duration;

use futures::stream::unfold;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weir_proto::pb::store::v1::groups_server::GroupsServer;
use weir_proto::pb::store::v1::streams_server::StreamsServer;
use weir_types::{Error, Result};

use crate::store::{Store, blocking};
use fence::Fenced;

/// The largest message either side takes: a block of the greatest size with everything around it.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// How long open calls may take to end when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// The store and when to stop: what every service holds.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) stopping: CancellationToken,
}

/// Serves `store` on `listener` until `shutdown` resolves, then closes the store.
///
/// # Errors
/// If serving failed, or if the store could not be closed cleanly.
pub async fn serve(listener: TcpListener, store: Store, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
    let stopping = CancellationToken::new();
    let context = Context { store: store.clone(), stopping: stopping.clone() };
    let groups = GroupsServer::new(groups::GroupsService(context.clone()));
    let streams = StreamsServer::new(streams::StreamsService(context))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(socket, _)| {
            // Small messages must not wait for company; if it cannot be set, they are late, no more.
            let _ = socket.set_nodelay(true);
            socket
        });
        Some((accepted, listener))
    });
    let stop = stopping.clone();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(Fenced::new(streams, store.clone()))
        .add_service(Fenced::new(groups, store.clone()))
        .add_service(weir_proto::diagnostics::server(weir_service::events::recall))
        .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
    let server = std::pin::pin!(server);
    let grace = async {
        shutdown.await;
        stopping.cancel();
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    let served = tokio::select! {
        served = server => served
            .map_err(|error| Error::internal("serving gRPC failed").with_detail(error.to_string())),
        () = grace => {
            tracing::warn!("calls were still open when the server stopped");
            Ok(())
        }
    };
    let closed = store.close().await;
    served.and(closed)
}

/// Opens the store that `config` describes and serves it, as [`serve`] does.
///
/// # Errors
/// As [`Store::open`] and [`serve`].
pub async fn run(
    listener: TcpListener,
    config: crate::StoreConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let store = blocking(move || Store::open(config)).await?;
    serve(listener, store, shutdown).await
}
