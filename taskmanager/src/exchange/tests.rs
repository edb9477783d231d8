//! Two data planes in one process, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weir_dataflow::channel::channel;
use weir_dataflow::element::{Batch, Element, Watermark};
use weir_proto::pb::data::v1 as pb;
use weir_proto::pb::data::v1::data_plane_client::DataPlaneClient;
use weir_types::Code;
use weir_types::ids::SubtaskIndex;

use super::*;

const WINDOW: u64 = 64 << 10;
const ROOMY: usize = 1 << 30;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("s", DataType::Utf8, false)]))
}

fn batch(first: i64, rows: i64, text_bytes: usize) -> Element {
    let numbers = Int64Array::from_iter_values(first..first + rows);
    let texts = StringArray::from_iter_values((0..rows).map(|_| "x".repeat(text_bytes)));
    Element::Batch(Batch::inserts(RecordBatch::try_new(schema(), vec![Arc::new(numbers), Arc::new(texts)]).unwrap()))
}

fn first_and_rows(element: &Element) -> (i64, usize) {
    let Element::Batch(batch) = element else { panic!("{element:?}") };
    let numbers = batch.rows.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
    (numbers.value(0), batch.rows.num_rows())
}

fn attempt_channel(attempt: u32, to: u32) -> Channel {
    Channel {
        id: ChannelId {
            job: JobId::new("job").unwrap(),
            attempt: Attempt(attempt),
            edge: 0,
            from: SubtaskIndex(0),
            to: SubtaskIndex(to),
        },
        schema: schema(),
        operator: "Count".to_owned(),
        cancelled: CancellationToken::new(),
    }
}

struct Node {
    plane: Arc<DataPlane>,
    memory: Arc<MemoryBudget>,
    peer: Peer,
    shutdown: CancellationToken,
}

impl Node {
    async fn start(name: &str) -> Self {
        Self::with(name, Duration::from_secs(60), 1 << 30).await
    }

    async fn with(name: &str, deploy_timeout: Duration, memory_budget: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let id = TaskManagerId::new(name).unwrap();
        let memory = MemoryBudget::new(memory_budget);
        let settings = Settings { window_bytes: WINDOW, deploy_timeout, connect_timeout: Duration::from_secs(5) };
        let plane = Arc::new(DataPlane::new(id.clone(), settings, memory.clone(), Handle::current()));
        let shutdown = CancellationToken::new();
        let (server, token) = (plane.clone(), shutdown.clone());
        tokio::spawn(async move { server.serve(listener, token).await.unwrap() });
        Self { plane, memory, peer: Peer { task_manager: id, address }, shutdown }
    }

    /// The receiving end of a channel whose gate may hold `bytes_max`.
    fn receive(&self, channel_: Channel, bytes_max: usize) -> ChannelReceiver {
        let (sender, receiver) = channel(bytes_max, self.memory.clone());
        self.plane.receive(channel_, sender).unwrap();
        receiver
    }

    fn send(&self, to: &Node, channel_: Channel, bytes_max: usize) -> ChannelSender {
        let (sender, receiver) = channel(bytes_max, self.memory.clone());
        self.plane.send(&to.peer, channel_, receiver).unwrap();
        sender
    }
}

#[tokio::test]
async fn elements_arrive_once_and_in_order_and_the_channel_ends() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let mut sender = a.send(&b, attempt_channel(1, 0), ROOMY);
    // Opened before the subtask is deployed on the other side: it waits.
    sender.send(batch(0, 10, 1)).await.unwrap();
    let mut receiver = b.receive(attempt_channel(1, 0), ROOMY);
    let ops = ScalarBuffer::from(vec![3_u8; 10]);
    let Element::Batch(deletes) = batch(0, 10, 1) else { unreachable!() };
    sender.send(Element::Watermark(Watermark(7))).await.unwrap();
    sender.send(Element::Batch(Batch { rows: deletes.rows, ops: Some(ops.clone()) })).await.unwrap();
    for first in 0..500 {
        sender.send(batch(first, 100, 3)).await.unwrap();
    }
    sender.send(Element::EndOfInput).await.unwrap();

    assert_eq!(first_and_rows(&receiver.recv().await.unwrap()), (0, 10));
    assert!(matches!(receiver.recv().await.unwrap(), Element::Watermark(Watermark(7))));
    let Element::Batch(deletes) = receiver.recv().await.unwrap() else { panic!() };
    assert_eq!(deletes.ops, Some(ops));
    for first in 0..500 {
        assert_eq!(first_and_rows(&receiver.recv().await.unwrap()), (first, 100));
    }
    assert!(matches!(receiver.recv().await.unwrap(), Element::EndOfInput));
    drop((sender, receiver));
    assert_eq!((a.memory.used(), b.memory.used()), (0, 0));
}

#[tokio::test]
async fn a_stalled_receiver_holds_bounded_memory_and_blocks_no_other_channel() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let mut stalled = b.receive(attempt_channel(1, 0), 1);
    let mut flowing = b.receive(attempt_channel(1, 1), ROOMY);
    let mut to_stalled = a.send(&b, attempt_channel(1, 0), 1);
    let mut to_flowing = a.send(&b, attempt_channel(1, 1), ROOMY);

    let element_bytes = 10_000;
    let mut accepted = 0;
    let filler = async {
        loop {
            to_stalled.send(batch(accepted, 1, element_bytes)).await.unwrap();
            accepted += 1;
        }
    };
    let others = async {
        for first in 0..2_000 {
            to_flowing.send(batch(first, 1, element_bytes)).await.unwrap();
            assert_eq!(first_and_rows(&flowing.recv().await.unwrap()), (first, 1));
        }
    };
    tokio::select! {
        () = filler => unreachable!(),
        () = others => {}
    }
    // The window, one element beyond it, one in either end's queue and one in either task's hands.
    let most = (WINDOW as usize / element_bytes + 1 + 4) as i64;
    assert!((7..=most).contains(&accepted), "{accepted} of at most {most}");
    assert!(b.memory.used() < WINDOW + 3 * element_bytes as u64, "{}", b.memory.used());

    // Nothing was lost meanwhile.
    for first in 0..accepted {
        assert_eq!(first_and_rows(&stalled.recv().await.unwrap()), (first, 1));
    }
}

#[tokio::test]
async fn a_large_batch_takes_turns_with_small_ones() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let mut large_in = b.receive(attempt_channel(1, 0), ROOMY);
    let mut small_in = b.receive(attempt_channel(1, 1), ROOMY);
    let mut large = a.send(&b, attempt_channel(1, 0), ROOMY);
    let mut small = a.send(&b, attempt_channel(1, 1), ROOMY);
    // One row, so that it cannot be split: far larger than the window, the frames and the HTTP/2 windows.
    large.send(batch(0, 1, 48 << 20)).await.unwrap();
    small.send(batch(0, 1, 1)).await.unwrap();
    let first = tokio::select! {
        element = small_in.recv() => first_and_rows(&element.unwrap()),
        _ = large_in.recv() => panic!("the small batch waited for the large one"),
    };
    assert_eq!(first, (0, 1));
    let Element::Batch(received) = large_in.recv().await.unwrap() else { panic!() };
    assert_eq!(received.rows.column(1).as_any().downcast_ref::<StringArray>().unwrap().value(0).len(), 48 << 20);
}

#[tokio::test]
async fn a_broken_stream_breaks_both_ends_naming_the_peer() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let mut receiver = b.receive(attempt_channel(1, 0), ROOMY);
    let mut sender = a.send(&b, attempt_channel(1, 0), ROOMY);
    sender.send(batch(0, 1, 1)).await.unwrap();
    assert_eq!(first_and_rows(&receiver.recv().await.unwrap()), (0, 1));
    b.shutdown.cancel();
    assert_eq!(receiver.recv().await.unwrap_err().code, Code::Unavailable);
    let error = loop {
        if let Err(error) = sender.send(Element::Idle).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(error.message, format!("lost the exchange with TaskManager b at {}", b.peer.address));

    // Nobody listens there any more.
    let mut sender = a.send(&b, attempt_channel(1, 1), ROOMY);
    let error = loop {
        if let Err(error) = sender.send(Element::Idle).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(error.message, format!("could not reach TaskManager b at {} for an exchange", b.peer.address));
}

#[tokio::test]
async fn an_end_that_goes_away_breaks_the_other_with_its_reason() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let mut receiver = b.receive(attempt_channel(1, 0), ROOMY);
    let mut sender = a.send(&b, attempt_channel(1, 0), ROOMY);
    sender.send(batch(0, 1, 1)).await.unwrap();
    sender.fail(Error::internal("division by zero"));
    assert_eq!(first_and_rows(&receiver.recv().await.unwrap()), (0, 1));
    let error = receiver.recv().await.unwrap_err();
    assert_eq!((error.code, error.detail.as_deref()), (Code::Unavailable, Some("INTERNAL: division by zero")));
    assert!(error.message.starts_with("TaskManager a at 127.0.0.1:"), "{error}");

    let cancelled = attempt_channel(1, 1);
    let mut receiver = b.receive(cancelled.clone(), ROOMY);
    let mut sender = a.send(&b, attempt_channel(1, 1), ROOMY);
    sender.send(batch(0, 1, 1)).await.unwrap();
    assert_eq!(first_and_rows(&receiver.recv().await.unwrap()), (0, 1));
    cancelled.cancelled.cancel();
    let error = loop {
        if let Err(error) = sender.send(Element::Idle).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(error.code, Code::Unavailable);
    let message = "broke off an exchange: the receiving subtask was cancelled";
    assert_eq!(error.message, format!("TaskManager b at {} {message}", b.peer.address));
}

async fn refusal(a: &Node, b: &Node, channel: Channel) -> Error {
    let mut sender = a.send(b, channel, ROOMY);
    loop {
        if let Err(error) = sender.send(Element::Idle).await {
            return error;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_lower_attempt_is_fenced_whether_it_comes_early_or_late() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let job = JobId::new("job").unwrap();
    let (early, ()) = tokio::join!(refusal(&a, &b, attempt_channel(1, 0)), async {
        b.plane.begin(&job, Attempt(2));
    });
    let late = refusal(&a, &b, attempt_channel(1, 1)).await;
    for error in [early, late] {
        assert_eq!(error.code, Code::Fenced, "{error}");
        assert!(error.message.ends_with("broke off an exchange: attempt 1 of job job is over"), "{error}");
    }
}

#[tokio::test]
async fn a_channel_without_a_subtask_times_out_and_one_with_other_columns_is_refused() {
    let (a, b) = (Node::start("a").await, Node::with("b", Duration::from_millis(1), 1 << 30).await);
    assert_eq!(refusal(&a, &b, attempt_channel(1, 0)).await.code, Code::Timeout);

    let other = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let mut receiver = b.receive(Channel { schema: other, ..attempt_channel(1, 1) }, ROOMY);
    let error = refusal(&a, &b, attempt_channel(1, 1)).await;
    assert_eq!(error.code, Code::Internal);
    let detail = "the sender has \"n\" Int64 not null, \"s\" Utf8 not null, the receiver \"n\" Int64";
    assert_eq!(error.detail.as_deref(), Some(detail));
    assert_eq!(receiver.recv().await.unwrap_err().detail.as_deref(), Some(detail));
}

#[tokio::test]
async fn what_exceeds_the_memory_budget_fails_its_channel_naming_the_operator() {
    let (a, b) = (Node::start("a").await, Node::with("b", Duration::from_secs(60), 30_000).await);
    let mut receiver = b.receive(attempt_channel(1, 0), ROOMY);
    let mut sender = a.send(&b, attempt_channel(1, 0), ROOMY);
    sender.send(batch(0, 1, 10)).await.unwrap();
    assert_eq!(first_and_rows(&receiver.recv().await.unwrap()), (0, 1));
    sender.send(batch(1, 1, 50_000)).await.unwrap();
    let error = receiver.recv().await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    assert!(error.message.contains("Count (exchange)"), "{error}");
    let told = loop {
        if let Err(error) = sender.send(Element::Idle).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(told.code, Code::ResourceExhausted);
    assert_eq!(b.memory.used(), 0);
}

/// A peer that speaks the protocol by hand.
struct Impostor {
    frames: mpsc::Sender<pb::Frame>,
    credits: tonic::Streaming<pb::CreditFrame>,
}

impl Impostor {
    async fn connect(to: &Node) -> Self {
        let address: SocketAddr = to.peer.address.parse().unwrap();
        let mut client = DataPlaneClient::connect(format!("http://{address}")).await.unwrap();
        let (frames, queue) = mpsc::channel(16);
        let credits = client.exchange(ReceiverStream::new(queue)).await.unwrap().into_inner();
        let impostor = Self { frames, credits };
        let hello = pb::Hello { version: PROTOCOL_VERSION, task_manager_id: "impostor".to_owned() };
        impostor.frame(0, pb::frame::Body::Hello(hello)).await;
        impostor
    }

    async fn frame(&self, channel: u32, body: pb::frame::Body) {
        self.frames.send(pb::Frame { channel, body: Some(body) }).await.unwrap();
    }

    async fn open(&mut self, number: u32, channel: &Channel) {
        let open = pb::Open { channel: Some((&channel.id).into()), schema: schema::describe(&channel.schema) };
        self.frame(number, pb::frame::Body::Open(open)).await;
        let credit = self.credits.message().await.unwrap().unwrap();
        assert_eq!(credit.body, Some(pb::credit_frame::Body::Bytes(WINDOW)));
    }

    async fn chunk(&self, number: u32, element: Option<pb::Element>, data: Vec<bytes::Bytes>) {
        self.frame(number, pb::frame::Body::Chunk(pb::Chunk { element, data })).await;
    }
}

#[tokio::test]
async fn malformed_chunks_cost_their_channel_and_nothing_else() {
    let b = Node::start("b").await;
    let mut impostor = Impostor::connect(&b).await;
    let garbage = pb::Element { bytes: 4, kind: Some(pb::element::Kind::Batch(pb::Batch { op_bytes: 0 })) };
    let huge = pb::Element { bytes: u64::MAX, ..garbage.clone() };
    for (number, element) in [(1, Some(garbage)), (2, Some(huge)), (3, None)] {
        let mut receiver = b.receive(attempt_channel(1, number), ROOMY);
        impostor.open(number, &attempt_channel(1, number)).await;
        impostor.chunk(number, element, vec![bytes::Bytes::from_static(b"oops")]).await;
        assert_eq!(receiver.recv().await.unwrap_err().code, Code::InvalidArgument);
        let answer = impostor.credits.message().await.unwrap().unwrap();
        let Some(pb::credit_frame::Body::Refused(error)) = answer.body else { panic!("{answer:?}") };
        assert_eq!((answer.channel, error.code.as_str()), (number, "INVALID_ARGUMENT"));
    }
    // The stream is still good.
    let mut receiver = b.receive(attempt_channel(1, 9), ROOMY);
    impostor.open(9, &attempt_channel(1, 9)).await;
    impostor.chunk(9, Some(pb::Element { bytes: 0, kind: Some(pb::element::Kind::WatermarkMs(5)) }), vec![]).await;
    assert!(matches!(receiver.recv().await.unwrap(), Element::Watermark(Watermark(5))));
    assert_eq!(b.memory.used(), 0);
}

#[tokio::test]
async fn a_peer_that_ignores_its_credits_loses_the_channel() {
    let b = Node::start("b").await;
    let mut impostor = Impostor::connect(&b).await;
    // The gate takes one element, and nobody reads it.
    let mut receiver = b.receive(attempt_channel(1, 0), 1);
    impostor.open(1, &attempt_channel(1, 0)).await;
    let mut encoder = ipc::Encoder::new(schema()).unwrap();
    for first in 0..8 {
        for chunk in wire::encode(&mut encoder, &batch(first, 1, 40_000)).unwrap().into_iter().flatten() {
            impostor.frame(1, pb::frame::Body::Chunk(chunk)).await;
        }
    }
    let mut received = 0;
    let error = loop {
        match receiver.recv().await {
            Ok(element) => assert_eq!(first_and_rows(&element), (received, 1)),
            Err(error) => break error,
        }
        received += 1;
    };
    // Two fit into the window, and one more for every element that the gate had taken by then.
    assert!((2..8).contains(&received), "{received}");
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::InvalidArgument, "a TaskManager sent more than its credits")
    );
    let refused = loop {
        match impostor.credits.message().await.unwrap().unwrap().body.unwrap() {
            pb::credit_frame::Body::Bytes(_) => {}
            pb::credit_frame::Body::Refused(error) => break error,
        }
    };
    assert_eq!(refused.message, error.message);
}

#[tokio::test]
async fn a_frame_that_makes_no_sense_ends_the_stream_with_its_channels() {
    let b = Node::start("b").await;
    for body in [
        None,
        Some(pb::frame::Body::Open(pb::Open { channel: None, schema: String::new() })),
        Some(pb::frame::Body::Hello(pb::Hello { version: 99, task_manager_id: "x".to_owned() })),
        Some(pb::frame::Body::Hello(pb::Hello { version: PROTOCOL_VERSION, task_manager_id: "../x".to_owned() })),
    ] {
        let mut impostor = Impostor::connect(&b).await;
        let mut receiver = b.receive(attempt_channel(1, 0), ROOMY);
        impostor.open(1, &attempt_channel(1, 0)).await;
        impostor.frames.send(pb::Frame { channel: 2, body: body.clone() }).await.unwrap();
        let status = impostor.credits.message().await.unwrap_err();
        let code = weir_proto::from_status(&status).code;
        assert!(matches!(code, Code::InvalidArgument | Code::Unsupported), "{status:?}");
        assert_eq!(receiver.recv().await.unwrap_err().code, code);
        b.plane.end(&JobId::new("job").unwrap(), Attempt(1));
    }
}
