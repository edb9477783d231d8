//! The store's client for tokio programs.
//!
//! A [`StoreClient`] is cheap to clone and connects when it is first used, and again whenever the connection was lost;
//! while the store cannot be reached, calls fail with `UNAVAILABLE`, which is worth a retry. [`Producer`] and [`Reader`]
//! do that by themselves and go on without duplicates or gaps: a restart of the store costs them a pause.
//!
//! ```no_run
//! # async fn example() -> weir_types::Result<()> {
//! use weir_stream_store::client::{Producer, ProducerOptions, Reader, ReaderOptions, StoreClient};
//! use weir_types::store::StreamOptions;
//!
//! let client = StoreClient::connect("127.0.0.1:7400")?;
//! let stream = "shop/clicks".parse()?;
//! client.create_stream(&stream, &StreamOptions::new(4), true).await?;
//!
//! let mut producer = Producer::open(&client, &stream, ProducerOptions::default()).await?;
//! producer.send(Some(b"ann"), br#"{"page":"/"}"#, Some(1_700_000_000_000)).await?;
//! producer.flush().await?;
//!
//! // A bounded read: from the heads to the ends as of now.
//! let info = client.describe_stream(&stream).await?;
//! let options = ReaderOptions { until: Some(info.ends()), ..ReaderOptions::default() };
//! let mut reader = Reader::open(&client, &stream, info.heads(), options);
//! while let Some(block) = reader.next().await? {
//!     for record in block.records()? {
//!         println!("{:?}: {:?}", record.key, record.value);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod groups;
mod producer;
mod reader;
mod transactions;

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use weir_proto::convert::store::{cut_to_pb, format_to_pb};
use weir_proto::pb::store::v1 as pb;
use weir_proto::pb::store::v1::streams_client::StreamsClient;
use weir_proto::{from_status, pb::common::v1 as common};
use weir_types::ids::{ClusterId, Epoch, PartitionId, PinHolder, ProducerId, Term};
use weir_types::store::{Appended, Pin, PinHold, ProducerStamp, StreamInfo, StreamOptions, TruncateReport};
use weir_types::stream::{StreamCut, StreamName};
use weir_types::{Error, Result};

pub use groups::{GroupWatch, MemberWatch};
pub use producer::{Producer, ProducerOptions, partition_of};
pub use reader::{ReadBlock, Reader, ReaderOptions};
pub use transactions::LiveTransaction;

use crate::block::RecordBlock;
use crate::server::fence::{CLUSTER_HEADER, TERM_HEADER};
use crate::server::{CONNECTION_WINDOW_BYTES, MAX_MESSAGE_BYTES, STREAM_WINDOW_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Short calls are answered within this time or fail with `TIMEOUT`.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a store, made when it is first used.
#[derive(Clone, Debug)]
pub struct StoreClient {
    endpoint: Endpoint,
    channel: Channel,
    authority: Authority,
}

/// In whose name calls are made: metadata that the store looks at.
#[derive(Clone, Debug, Default)]
struct Authority(Vec<(&'static str, AsciiMetadataValue)>);

/// A channel whose calls say in whose name they are made.
type Calls = InterceptedService<Channel, Authority>;

impl Interceptor for Authority {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        for (name, value) in &self.0 {
            request.metadata_mut().insert(*name, value.clone());
        }
        Ok(request)
    }
}

impl StoreClient {
    /// A client for the store at `address`: `host:port`, or a URI.
    ///
    /// Nothing is connected yet, but this must be called within a tokio runtime.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the address is malformed.
    pub fn connect(address: &str) -> Result<Self> {
        let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|error| {
                Error::invalid(format!("{address:?} is not an address of a store"))
                    .with_detail(error.to_string())
                    .with_hint("Use host:port.")
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = endpoint.connect_lazy();
        Ok(Self { endpoint, channel, authority: Authority::default() })
    }

    /// A client whose commands are those of a cluster's leader: the store refuses them as `FENCED` once it has taken one of a
    /// leader of a higher term.
    ///
    /// # Errors
    /// None for an id that is valid; the check of the metadata is passed on.
    pub fn leading(&self, cluster: &ClusterId, term: Term) -> Result<Self> {
        let value = |text: String| {
            text.parse::<AsciiMetadataValue>()
                .map_err(|_| Error::invalid(format!("{text:?} cannot be sent to a store")))
        };
        let (cluster, term) = (value(cluster.to_string())?, value(term.0.to_string())?);
        Ok(Self { authority: Authority(vec![(CLUSTER_HEADER, cluster), (TERM_HEADER, term)]), ..self.clone() })
    }

    /// The address, as a URI.
    pub fn address(&self) -> String {
        self.endpoint.uri().to_string()
    }

    /// A client with a connection of its own, so that bulk data on one does not hold up the other.
    fn separate(&self) -> Self {
        Self { channel: self.endpoint.connect_lazy(), ..self.clone() }
    }

    fn streams(&self) -> StreamsClient<Calls> {
        StreamsClient::with_interceptor(self.channel.clone(), self.authority.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Waits until the store answers, for `patience` at most.
    ///
    /// # Errors
    /// `UNAVAILABLE` if it does not.
    pub async fn wait_ready(&self, patience: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            match self.list_streams(Some(".ready")).await {
                Err(error) if error.code.is_retryable() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                answered => return answered.map(drop),
            }
        }
    }

    /// Makes a stream. With `if_not_exists`, one that was made with the same options is fine.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, `INVALID_ARGUMENT`.
    pub async fn create_stream(
        &self,
        name: &StreamName,
        options: &StreamOptions,
        if_not_exists: bool,
    ) -> Result<StreamInfo> {
        let request =
            pb::CreateStreamRequest { stream: name.to_string(), options: Some(options.into()), if_not_exists };
        call(self.streams().create_stream(request)).await?.try_into()
    }

    /// Deletes a stream with everything in it.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` if pins or groups hold it and `force` is not given.
    pub async fn delete_stream(&self, name: &StreamName, force: bool) -> Result<()> {
        let request = pb::DeleteStreamRequest { stream: name.to_string(), force };
        call(self.streams().delete_stream(request)).await.map(drop)
    }

    /// All streams, or those of one scope, by name.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub async fn list_streams(&self, scope: Option<&str>) -> Result<Vec<StreamInfo>> {
        let request = pb::ListStreamsRequest { scope: scope.map(str::to_owned) };
        let reply = call(self.streams().list_streams(request)).await?;
        reply.streams.into_iter().map(TryInto::try_into).collect()
    }

    /// One stream, with the head and end of every partition as of now.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn describe_stream(&self, name: &StreamName) -> Result<StreamInfo> {
        call(self.streams().describe_stream(stream_ref(name))).await?.try_into()
    }

    /// Appends one block and waits until it is durable. For more than a few blocks use a [`Producer`]: it batches,
    /// keeps several blocks under way, and retries.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the connection was lost: without a stamp the block may or may not have been appended then, with
    /// one it can be sent again. `SEQUENCE_GAP`, `FENCED`, `RESOURCE_EXHAUSTED` (full disk), `NOT_FOUND`.
    pub async fn append(
        &self,
        name: &StreamName,
        partition: PartitionId,
        block: &RecordBlock,
        producer: Option<&ProducerStamp>,
    ) -> Result<Appended> {
        let (sender, requests) = mpsc::channel(1);
        // There is room for one.
        let _ = sender.try_send(append_request(0, name, partition, block, producer));
        let mut replies = call(self.streams().append(ReceiverStream::new(requests))).await?;
        match replies.message().await.map_err(|status| from_status(&status))? {
            Some(reply) => append_result(reply),
            None => Err(Error::unavailable("the store closed the connection before it answered")),
        }
    }

    /// Makes everything before `cut` unreadable and frees whole segments; partitions that the cut leaves out stay.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` naming the holders of pins in the way, unless `force` is given: then the report has them.
    pub async fn truncate(&self, name: &StreamName, cut: &StreamCut, force: bool) -> Result<TruncateReport> {
        let request = pb::TruncateRequest { stream: name.to_string(), cut: cut_to_pb(cut), force };
        call(self.streams().truncate(request)).await?.try_into()
    }

    /// Fences off lower epochs of `producer` and of all producers whose names begin with it and a dot: once this has
    /// returned, no partition of the stream takes their appends any more.
    ///
    /// # Errors
    /// `FENCED` if a higher epoch was fenced for; `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn fence_producers(&self, name: &StreamName, producer: &ProducerId, epoch: Epoch) -> Result<()> {
        let request =
            pb::FenceProducersRequest { stream: name.to_string(), producer: producer.to_string(), epoch: epoch.0 };
        call(self.streams().fence_producers(request)).await.map(drop)
    }

    /// Holds the stream at `cut` until [`StoreClient::unpin`]. A holder has one pin per stream; pinning again moves it.
    ///
    /// # Errors
    /// `OFFSET_TRUNCATED` if the cut lies before the head, `INVALID_ARGUMENT` if behind the end, `NOT_FOUND`.
    pub async fn pin(&self, name: &StreamName, holder: &PinHolder, cut: &StreamCut) -> Result<Pin> {
        let request =
            pb::CreatePinRequest { stream: name.to_string(), holder: holder.to_string(), cut: cut_to_pb(cut) };
        call(self.streams().create_pin(request)).await?.try_into()
    }

    /// Drops the holder's pin; none is fine.
    ///
    /// # Errors
    /// `NOT_FOUND` for the stream.
    pub async fn unpin(&self, name: &StreamName, holder: &PinHolder) -> Result<()> {
        let request = pb::DeletePinRequest { stream: name.to_string(), holder: holder.to_string() };
        call(self.streams().delete_pin(request)).await.map(drop)
    }

    /// The stream's pins, by holder.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn pins(&self, name: &StreamName) -> Result<Vec<Pin>> {
        let reply = call(self.streams().list_pins(stream_ref(name))).await?;
        reply.pins.into_iter().map(TryInto::try_into).collect()
    }

    /// The stream's pins, by holder, with what each keeps from being deleted.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn holds(&self, name: &StreamName) -> Result<Vec<(Pin, PinHold)>> {
        let pb::ListPinsReply { pins, holds } = call(self.streams().list_pins(stream_ref(name))).await?;
        let holds = holds.into_iter().map(PinHold::from).chain(std::iter::repeat(PinHold::default()));
        pins.into_iter().zip(holds).map(|(pin, hold)| Ok((pin.try_into()?, hold))).collect()
    }

    /// Pins of all streams that forced truncations have passed and whose holders have not dropped them.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn broken_pins(&self) -> Result<Vec<(StreamName, Pin)>> {
        let reply = call(self.streams().list_broken_pins(pb::Empty {})).await?;
        let pin = |found: pb::StreamPin| {
            let pin =
                found.pin.ok_or_else(|| Error::internal("the store named a pin without saying anything of it"))?;
            Ok((found.stream.parse()?, pin.try_into()?))
        };
        reply.pins.into_iter().map(pin).collect()
    }
}

fn stream_ref(name: &StreamName) -> pb::StreamRef {
    pb::StreamRef { stream: name.to_string() }
}

/// One short call: its answer, or the error that the store meant.
async fn call<T>(response: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, response).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(&status)),
        Err(_) => Err(Error::new(weir_types::Code::Timeout, "the store did not answer in time")),
    }
}

fn append_request(
    request: u64,
    stream: &StreamName,
    partition: PartitionId,
    block: &RecordBlock,
    producer: Option<&ProducerStamp>,
) -> pb::AppendRequest {
    pb::AppendRequest {
        request,
        stream: stream.to_string(),
        partition: partition.0,
        producer: producer.map(Into::into),
        format: format_to_pb(block.format()).into(),
        record_count: block.record_count(),
        max_event_time_ms: block.max_event_time_ms(),
        crc32c: block.crc(),
        payload: block.payload().clone(),
    }
}

fn append_result(reply: pb::AppendReply) -> Result<Appended> {
    use prost::Message;
    match reply.result {
        Some(pb::append_reply::Result::Done(done)) => Ok(done.into()),
        Some(pb::append_reply::Result::Error(bytes)) => Err(common::Error::decode(bytes)
            .map_or_else(|_| Error::internal("the store's error could not be decoded"), Into::into)),
        None => Err(Error::internal("the store's reply is empty")),
    }
}
