//! The sending end: one connection per peer, one task per channel.
//!
//! A channel's task takes an element out of its local channel only when it has credits, so that a receiver without room
//! holds up its sender and nobody else. Chunks of all channels go through one short queue whose waiters are served in
//! order: a channel with many chunks gets one turn at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use weir_dataflow::channel::ChannelReceiver;
use weir_dataflow::element::Element;
use weir_proto::pb::data::v1 as pb;
use weir_proto::pb::data::v1::data_plane_client::DataPlaneClient;
use weir_types::ids::TaskManagerId;
use weir_types::{Code, Error, Result};

use super::{
    CONNECTION_WINDOW_BYTES, Channel, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, PROTOCOL_VERSION, Peer,
    STREAM_WINDOW_BYTES, ipc, schema, wire,
};

/// Frames between the channels' tasks and the connection: enough to keep it busy, few enough to take turns.
const FRAMES_MAX: usize = 4;
/// A credit frame is small, but it may hold an error.
const CREDIT_FRAME_BYTES_MAX: usize = 64 << 10;

/// Connections to the peers that this TaskManager sends to.
#[derive(Debug)]
pub(super) struct Peers {
    own_id: TaskManagerId,
    connect_timeout: Duration,
    runtime: tokio::runtime::Handle,
    /// A connection lives as long as its channels.
    connections: Mutex<HashMap<Peer, Weak<Connection>>>,
}

impl Peers {
    pub(super) fn new(own_id: TaskManagerId, connect_timeout: Duration, runtime: tokio::runtime::Handle) -> Self {
        Self { own_id, connect_timeout, runtime, connections: Mutex::new(HashMap::new()) }
    }

    /// Starts sending what comes out of `receiver`.
    pub(super) fn send(&self, peer: &Peer, channel: Channel, encoder: ipc::Encoder, receiver: ChannelReceiver) {
        let connection = self.connection(peer);
        self.runtime.spawn(send_channel(connection, channel, encoder, receiver));
    }

    fn connection(&self, peer: &Peer) -> Arc<Connection> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connections.get(peer).and_then(Weak::upgrade)
            && connection.lanes().broken.is_none()
        {
            return connection;
        }
        connections.retain(|_, connection| connection.strong_count() > 0);
        let (frames, queue) = mpsc::channel(FRAMES_MAX);
        let lanes = Mutex::new(Lanes { next: 1, open: HashMap::new(), broken: None });
        let connection = Arc::new(Connection { peer: peer.clone(), frames, lanes });
        connections.insert(peer.clone(), Arc::downgrade(&connection));
        let driver = drive(Arc::downgrade(&connection), peer.clone(), self.own_id.clone(), self.connect_timeout, queue);
        self.runtime.spawn(driver);
        connection
    }
}

/// One stream to a peer.
#[derive(Debug)]
struct Connection {
    peer: Peer,
    frames: mpsc::Sender<pb::Frame>,
    lanes: Mutex<Lanes>,
}

#[derive(Debug)]
struct Lanes {
    next: u32,
    open: HashMap<u32, Arc<Lane>>,
    broken: Option<Error>,
}

/// A channel as its connection sees it.
#[derive(Debug, Default)]
struct Lane {
    credits: AtomicI64,
    ended: OnceLock<Error>,
    changed: Notify,
}

impl Connection {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<(u32, Arc<Lane>)> {
        let mut lanes = self.lanes();
        if let Some(error) = &lanes.broken {
            return Err(error.clone());
        }
        let (number, lane) = (lanes.next, Arc::new(Lane::default()));
        lanes.next = number.checked_add(1).ok_or_else(|| Error::unavailable("the exchange has used up its numbers"))?;
        lanes.open.insert(number, lane.clone());
        Ok((number, lane))
    }

    async fn frame(&self, channel: u32, body: pb::frame::Body) -> Result<()> {
        let frame = pb::Frame { channel, body: Some(body) };
        let sent = self.frames.send(frame).await;
        sent.map_err(|_| self.lanes().broken.clone().unwrap_or_else(|| self.lost("the stream has ended")))
    }

    fn lost(&self, why: impl Into<String>) -> Error {
        lost(&self.peer, why)
    }

    fn credit(&self, frame: pb::CreditFrame) -> Result<()> {
        let lanes = self.lanes();
        // A channel that has ended here may still be answered.
        let Some(lane) = lanes.open.get(&frame.channel) else { return Ok(()) };
        match frame.body {
            Some(pb::credit_frame::Body::Bytes(bytes)) => {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                let add = |credits: i64| Some(credits.saturating_add(bytes));
                let _always_added = lane.credits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
            }
            Some(pb::credit_frame::Body::Refused(error)) => {
                let Peer { task_manager, address } = &self.peer;
                let mut error = Error::from(error);
                error.message =
                    format!("TaskManager {task_manager} at {address} broke off an exchange: {}", error.message);
                if error.code == Code::Cancelled {
                    // Nobody cancelled this end.
                    error.code = Code::Unavailable;
                }
                let _first_reason_counts = lane.ended.set(error);
            }
            None => return Err(Error::invalid("a credit frame has no body")),
        }
        lane.changed.notify_waiters();
        Ok(())
    }

    fn break_off(&self, error: Error) {
        let mut lanes = self.lanes();
        for lane in lanes.open.values() {
            let _first_reason_counts = lane.ended.set(error.clone());
            lane.changed.notify_waiters();
        }
        lanes.broken = Some(error);
    }
}

fn lost(peer: &Peer, why: impl Into<String>) -> Error {
    let Peer { task_manager, address } = peer;
    Error::unavailable(format!("lost the exchange with TaskManager {task_manager} at {address}")).with_detail(why)
}

/// Connects, and hands credits to the channels until the stream ends; then all channels break.
async fn drive(
    connection: Weak<Connection>,
    peer: Peer,
    own_id: TaskManagerId,
    connect_timeout: Duration,
    frames: mpsc::Receiver<pb::Frame>,
) {
    let error = match connect(&peer, own_id, connect_timeout, frames).await {
        Err(error) => error,
        Ok(mut credits) => loop {
            let credit = credits.message().await;
            let Some(connection) = connection.upgrade() else { return };
            match credit {
                Ok(Some(credit)) => {
                    if let Err(error) = connection.credit(credit) {
                        break error;
                    }
                }
                Ok(None) => break connection.lost("the peer ended the stream"),
                Err(status) => {
                    let error = weir_proto::from_status(&status);
                    break connection.lost(error.to_string());
                }
            }
        },
    };
    if let Some(connection) = connection.upgrade() {
        tracing::info!(peer = %peer.task_manager, address = peer.address, %error, "exchange broke off");
        connection.break_off(error);
    }
}

async fn connect(
    peer: &Peer,
    own_id: TaskManagerId,
    connect_timeout: Duration,
    frames: mpsc::Receiver<pb::Frame>,
) -> Result<tonic::Streaming<pb::CreditFrame>> {
    let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
        .map_err(|error| lost(peer, format!("its address is not valid: {error}")))?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let refused = |error: tonic::transport::Error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Error { message: unreachable(peer), ..lost(peer, cause) }
    };
    let transport = endpoint.connect().await.map_err(refused)?;
    let mut client = DataPlaneClient::new(transport).max_decoding_message_size(CREDIT_FRAME_BYTES_MAX);
    let hello = pb::Hello { version: PROTOCOL_VERSION, task_manager_id: own_id.to_string() };
    let hello = pb::Frame { channel: 0, body: Some(pb::frame::Body::Hello(hello)) };
    let frames = futures::StreamExt::chain(tokio_stream::once(hello), ReceiverStream::new(frames));
    let answer = client.exchange(frames).await.map_err(|status| lost(peer, status.message()))?;
    Ok(answer.into_inner())
}

fn unreachable(peer: &Peer) -> String {
    format!("could not reach TaskManager {} at {} for an exchange", peer.task_manager, peer.address)
}

impl Lane {
    /// Returns once `done` holds, or with the reason why the channel has ended.
    async fn until(&self, done: impl Fn(&Self) -> bool) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(error) = self.ended.get() {
                return Err(error.clone());
            }
            if done(self) {
                return Ok(());
            }
            changed.await;
        }
    }

    async fn credited(&self) -> Result<()> {
        self.until(|lane| lane.credits.load(Ordering::Relaxed) > 0).await
    }

    async fn ended(&self) -> Error {
        match self.until(|_| false).await {
            Err(error) => error,
            Ok(()) => Error::internal("a channel ended without a reason"),
        }
    }
}

/// Sends one channel, from open to end of input; whatever goes wrong is told to both ends.
async fn send_channel(
    connection: Arc<Connection>,
    channel: Channel,
    mut encoder: ipc::Encoder,
    mut receiver: ChannelReceiver,
) {
    let (number, lane) = match connection.open() {
        Ok(opened) => opened,
        Err(error) => return receiver.fail(error),
    };
    let cancelled = channel.cancelled.clone();
    let sent = tokio::select! {
        sent = send_elements(&connection, number, &lane, &channel, &mut encoder, &mut receiver) => sent,
        error = lane.ended() => Err(error),
        () = cancelled.cancelled() => Err(Error::new(Code::Cancelled, "the sending subtask was cancelled")),
    };
    if let Err(error) = sent {
        tracing::debug!(channel = %channel.id, peer = %connection.peer.task_manager, %error, "channel broke off");
        receiver.fail(error.clone());
        let reason = Some((&error).into());
        // Not if the stream is gone, which breaks the channel over there as well.
        let _stream_gone = connection.frame(number, pb::frame::Body::Broken(pb::Broken { reason })).await;
    }
    connection.lanes().open.remove(&number);
}

async fn send_elements(
    connection: &Connection,
    number: u32,
    lane: &Lane,
    channel: &Channel,
    encoder: &mut ipc::Encoder,
    receiver: &mut ChannelReceiver,
) -> Result<()> {
    use pb::frame::Body;
    let open = pb::Open { channel: Some((&channel.id).into()), schema: schema::describe(&channel.schema) };
    connection.frame(number, Body::Open(open)).await?;
    loop {
        lane.credited().await?;
        let element = receiver.recv().await?;
        for outgoing in wire::encode(encoder, &element)? {
            lane.credited().await?;
            lane.credits.fetch_sub(i64::try_from(outgoing.cost()).unwrap_or(i64::MAX), Ordering::Relaxed);
            for chunk in outgoing {
                connection.frame(number, Body::Chunk(chunk)).await?;
            }
        }
        if matches!(element, Element::EndOfInput) {
            return Ok(());
        }
    }
}
