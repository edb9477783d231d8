//! The receiving end: frames of a peer's stream go to their channels, each of which has a task of its own that decodes,
//! hands elements to the input gate and gives their credits back.
//!
//! The loop over a stream never waits for a channel: a channel holds what it has credits for and no more, and a peer that
//! sends beyond its credits loses the channel. A channel whose stream ends before its end of input breaks.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weir_dataflow::element::Element;
use weir_dataflow::memory::{MemoryAccount, MemoryBudget};
use weir_proto::pb::data::v1 as pb;
use weir_proto::pb::data::v1::data_plane_server::DataPlane;
use weir_types::deployment::ChannelId;
use weir_types::{Code, Error, Result};

use super::registry::{Registry, Target};
use super::wire::{self, Assembler, Incoming};
use super::{PROTOCOL_VERSION, schema};

/// Channels that a stream may have open.
const CHANNELS_MAX: usize = 65_536;
/// Credit frames that may wait to be sent.
const CREDIT_FRAMES_MAX: usize = 256;
/// Credits are given back when the channel is empty, or so much of the window has been consumed.
const WINDOW_PARTS: i64 = 8;

pub(super) struct Service {
    pub(super) registry: Arc<Registry>,
    pub(super) window_bytes: u64,
    pub(super) deploy_timeout: Duration,
    pub(super) memory: Arc<MemoryBudget>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl DataPlane for Service {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<pb::CreditFrame, Status>> + Send>>;

    async fn exchange(&self, request: Request<Streaming<pb::Frame>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let (credits, frames) = mpsc::channel(CREDIT_FRAMES_MAX);
        let stream = PeerStream {
            peer: request.remote_addr().map(|address| address.to_string()).unwrap_or_default(),
            channels: HashMap::new(),
            credits,
            registry: self.registry.clone(),
            window_bytes: i64::try_from(self.window_bytes).unwrap_or(i64::MAX),
            deploy_timeout: self.deploy_timeout,
            memory: self.memory.clone(),
            runtime: self.runtime.clone(),
        };
        let shutdown = self.shutdown.clone();
        self.runtime.spawn(stream.run(request.into_inner(), shutdown));
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

/// One peer's stream.
struct PeerStream {
    /// The peer, for people: its address until it has introduced itself.
    peer: String,
    channels: HashMap<u32, Receiving>,
    credits: mpsc::Sender<Result<pb::CreditFrame, Status>>,
    registry: Arc<Registry>,
    window_bytes: i64,
    deploy_timeout: Duration,
    memory: Arc<MemoryBudget>,
    runtime: tokio::runtime::Handle,
}

/// A channel as the loop over its stream sees it.
struct Receiving {
    assembler: Assembler,
    lane: Arc<Lane>,
    queue: mpsc::Sender<Incoming>,
}

/// What the stream's loop and the channel's task share.
struct Lane {
    /// Credits that the sender has left.
    credits: AtomicI64,
    /// Why the channel broke, for the task to read once its queue has ended.
    broken: OnceLock<Broken>,
    /// The channel has been refused: what still comes is dropped.
    refused: AtomicBool,
    /// Counts what has come and was not handed on; none until the subtask is known.
    account: Mutex<Option<MemoryAccount>>,
    held: AtomicI64,
}

/// Why a channel broke.
struct Broken {
    error: Error,
    /// The peer still listens and does not know.
    tell_peer: bool,
}

impl Lane {
    fn break_off(&self, error: Error, tell_peer: bool) {
        // The first reason counts.
        let _known_already = self.broken.set(Broken { error, tell_peer });
    }

    fn admit(&self, cost: u64) -> Result<()> {
        let cost = i64::try_from(cost).unwrap_or(i64::MAX);
        if self.credits.load(Ordering::Relaxed) <= 0 {
            return Err(Error::invalid("a TaskManager sent more than its credits"));
        }
        self.credits.fetch_sub(cost, Ordering::Relaxed);
        self.hold(cost)
    }

    fn account(&self) -> MutexGuard<'_, Option<MemoryAccount>> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `change` bytes towards the memory budget.
    fn hold(&self, change: i64) -> Result<()> {
        let held = self.held.fetch_add(change, Ordering::Relaxed) + change;
        self.account().as_mut().map_or(Ok(()), |account| account.set(u64::try_from(held).unwrap_or(0)))
    }
}

impl PeerStream {
    async fn run(mut self, mut frames: Streaming<pb::Frame>, shutdown: CancellationToken) {
        let reason = loop {
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = shutdown.cancelled() => {
                    let error = Error::unavailable("the TaskManager shuts down");
                    let _peer_gone = self.credits.try_send(Err(weir_proto::to_status(&error)));
                    break error;
                }
            };
            match frame {
                Ok(Some(frame)) => {
                    if let Err(error) = self.frame(frame) {
                        tracing::warn!(peer = self.peer, %error, "peer broke the exchange protocol");
                        let _peer_gone = self.credits.try_send(Err(weir_proto::to_status(&error)));
                        break error;
                    }
                }
                Ok(None) => break Error::unavailable(format!("TaskManager {} ended its exchange", self.peer)),
                Err(status) => {
                    break Error::unavailable(format!("lost the exchange with TaskManager {}", self.peer))
                        .with_detail(status.message());
                }
            }
        };
        if !self.channels.is_empty() {
            tracing::info!(peer = self.peer, channels = self.channels.len(), %reason, "exchange broke off");
        }
        for channel in self.channels.into_values() {
            channel.lane.break_off(reason.clone(), false);
        }
    }

    fn frame(&mut self, frame: pb::Frame) -> Result<()> {
        use pb::frame::Body;
        let pb::Frame { channel, body } = frame;
        match body {
            Some(Body::Hello(pb::Hello { version, task_manager_id })) => {
                if version != PROTOCOL_VERSION {
                    let message = format!("exchange protocol version {version} is not spoken here");
                    return Err(Error::new(Code::Unsupported, message)
                        .with_hint("Run the same version of weir-taskmanager everywhere."));
                }
                self.peer = format!("{} at {}", weir_types::ids::TaskManagerId::new(task_manager_id)?, self.peer);
                Ok(())
            }
            Some(Body::Open(open)) => self.open(channel, open),
            Some(Body::Chunk(chunk)) => {
                self.chunk(channel, chunk);
                Ok(())
            }
            Some(Body::Broken(pb::Broken { reason })) => {
                if let Some(channel) = self.channels.remove(&channel) {
                    // Whatever it was, here it is but a consequence: the sending subtask reports it itself.
                    let error = Error::unavailable(format!("TaskManager {} broke off an exchange", self.peer));
                    let reason = match reason.map(Error::from) {
                        Some(reason) => error.with_detail(reason.to_string()),
                        None => error,
                    };
                    channel.lane.break_off(reason, false);
                }
                Ok(())
            }
            None => Err(Error::invalid("a frame has no body")),
        }
    }

    fn open(&mut self, number: u32, open: pb::Open) -> Result<()> {
        let id = open.channel.ok_or_else(|| Error::invalid("a channel has no name"))?;
        let id = ChannelId::try_from(id)?;
        if self.channels.contains_key(&number) || self.channels.len() >= CHANNELS_MAX {
            return Err(Error::invalid(format!("channel number {number} is taken, or there are too many")));
        }
        let lane = Arc::new(Lane {
            credits: AtomicI64::new(0),
            broken: OnceLock::new(),
            refused: AtomicBool::new(false),
            account: Mutex::new(None),
            held: AtomicI64::new(0),
        });
        // Every element costs at least the overhead, so that a queue of this length never refuses what credits admit.
        let elements_max = usize::try_from(self.window_bytes).unwrap_or(usize::MAX) / wire::cost(0) as usize + 2;
        let (queue, elements) = mpsc::channel(elements_max);
        let task = ChannelTask {
            number,
            id,
            schema: open.schema,
            peer: self.peer.clone(),
            lane: lane.clone(),
            elements,
            credits: self.credits.clone(),
            registry: self.registry.clone(),
            window_bytes: self.window_bytes,
            deploy_timeout: self.deploy_timeout,
            memory: self.memory.clone(),
        };
        self.runtime.spawn(task.run());
        self.channels.insert(number, Receiving { assembler: Assembler::default(), lane, queue });
        Ok(())
    }

    /// A chunk that is wrong costs the peer its channel, not the stream.
    fn chunk(&mut self, number: u32, chunk: pb::Chunk) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if channel.lane.refused.load(Ordering::Relaxed) {
            return;
        }
        let lane = &channel.lane;
        let pushed = channel.assembler.push(chunk, |cost| lane.admit(cost)).and_then(|element| {
            let Some(element) = element else { return Ok(false) };
            let is_end = element.is_end();
            let queued = channel.queue.try_send(element);
            queued.map_err(|_| Error::invalid("a TaskManager sent more than its credits")).map(|()| is_end)
        });
        match pushed {
            Ok(false) => {}
            Ok(true) => drop(self.channels.remove(&number)),
            Err(error) => {
                lane.break_off(error, true);
                self.channels.remove(&number);
            }
        }
    }
}

/// A channel's own task.
struct ChannelTask {
    number: u32,
    id: ChannelId,
    schema: String,
    peer: String,
    lane: Arc<Lane>,
    elements: mpsc::Receiver<Incoming>,
    credits: mpsc::Sender<Result<pb::CreditFrame, Status>>,
    registry: Arc<Registry>,
    window_bytes: i64,
    deploy_timeout: Duration,
    memory: Arc<MemoryBudget>,
}

impl ChannelTask {
    async fn run(mut self) {
        let mut target = match self.meet().await {
            Ok(target) => target,
            Err(error) => return self.refuse(error).await,
        };
        let cancelled = target.channel.cancelled.clone();
        let moved = tokio::select! {
            moved = self.forward(&mut target) => moved,
            () = cancelled.cancelled() => Err(Error::new(Code::Cancelled, "the receiving subtask was cancelled")),
        };
        *self.lane.account() = None;
        let Err(error) = moved else { return };
        tracing::debug!(channel = %self.id, peer = self.peer, %error, "channel broke off");
        target.sender.fail(error.clone());
        if self.lane.broken.get().is_none_or(|broken| broken.tell_peer) {
            self.refuse(error).await;
        }
    }

    /// Waits for the receiving subtask and checks that both ends mean the same.
    async fn meet(&self) -> Result<Box<Target>> {
        let claim = self.registry.claim(&self.id)?;
        let target = match tokio::time::timeout(self.deploy_timeout, claim).await {
            Ok(Ok(met)) => met?,
            Ok(Err(_)) => return Err(Error::unavailable(format!("channel {} was given up here", self.id))),
            Err(_) => {
                self.registry.give_up(&self.id);
                return Err(Error::new(Code::Timeout, format!("no subtask was deployed here for channel {}", self.id)));
            }
        };
        let expected = schema::describe(&target.channel.schema);
        if self.schema != expected {
            let error = Error::internal(format!("both ends of channel {} disagree about its columns", self.id))
                .with_detail(format!("the sender has {}, the receiver {expected}", self.schema));
            target.sender.fail(error.clone());
            return Err(error);
        }
        let name = format!("{} (exchange)", target.channel.operator);
        let account = MemoryAccount::new(self.memory.clone(), name);
        *self.lane.account() = Some(account);
        Ok(target)
    }

    async fn forward(&mut self, target: &mut Target) -> Result<()> {
        self.grant(self.window_bytes).await;
        let mut consumed = 0;
        while let Some(element) = self.elements.recv().await {
            let cost = i64::try_from(element.cost()).unwrap_or(i64::MAX);
            let element = element.decode(&target.channel.schema)?;
            let is_end = matches!(element, Element::EndOfInput);
            target.sender.room().await?;
            self.lane.hold(-cost)?;
            target.sender.push(element)?;
            if is_end {
                return Ok(());
            }
            consumed += cost;
            if self.elements.is_empty() || consumed >= self.window_bytes / WINDOW_PARTS {
                self.grant(std::mem::take(&mut consumed)).await;
            }
        }
        let broken = self.lane.broken.get().map(|broken| broken.error.clone());
        Err(broken.unwrap_or_else(|| Error::internal("a channel ended without a reason")))
    }

    async fn grant(&self, bytes: i64) {
        self.lane.credits.fetch_add(bytes, Ordering::Relaxed);
        self.answer(pb::credit_frame::Body::Bytes(bytes.unsigned_abs())).await;
    }

    async fn refuse(&self, error: Error) {
        self.lane.refused.store(true, Ordering::Relaxed);
        if error.code == Code::Fenced {
            tracing::info!(channel = %self.id, peer = self.peer, %error, "channel refused");
        }
        self.answer(pb::credit_frame::Body::Refused((&error).into())).await;
    }

    async fn answer(&self, body: pb::credit_frame::Body) {
        // A peer that is gone needs no answer; the stream's loop notices.
        let _peer_gone = self.credits.send(Ok(pb::CreditFrame { channel: self.number, body: Some(body) })).await;
    }
}
