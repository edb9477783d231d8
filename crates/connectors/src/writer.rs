//! A queue between a sink on the compute thread and its output on the io runtime.
//!
//! What a sink queues is written in order; a preparation covers everything queued before it. The queue is bounded by
//! [`Writer::ready`], which waits until the output has started, and while more than [`QUEUED_BYTES_MAX`] are in it: a chain asks before every step, so that
//! at most one step's output comes on top. Dropping the writer stops the output where it is: a cancelled attempt writes
//! nothing more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use weir_types::ids::BarrierId;
use weir_types::{Error, Result};

/// Bytes that may wait to be written.
const QUEUED_BYTES_MAX: usize = 4 << 20;

/// Where pieces go.
#[async_trait]
pub(crate) trait Output: Send + 'static {
    /// What one batch was encoded to.
    type Piece: Send + 'static;

    /// Called once, before anything else: whatever would fail at the first piece anyway fails here.
    async fn start(&mut self) -> Result<()>;

    /// Writes one piece.
    async fn write(&mut self, piece: Self::Piece) -> Result<()>;

    /// Makes everything written so far durable under the number of a barrier; what the snapshot must remember of it.
    async fn prepare(&mut self, at: BarrierId) -> Result<Option<Vec<u8>>>;

    /// The snapshot of this barrier is complete: what was prepared until then is committed by others.
    fn committed(&mut self, _at: BarrierId) {}
}

/// Where bytes go by calls that block.
pub(crate) trait BlockingOutput: Send + 'static {
    /// Called once, before anything else.
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Writes bytes; what one call brings (whole lines) is never torn between two files.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes everything written so far durable under the number of a barrier; what the snapshot must remember of it.
    fn prepare(&mut self, at: BarrierId) -> Result<Option<Vec<u8>>>;

    /// The snapshot of this barrier is complete: what was prepared until then is committed by others. Must not block.
    fn committed(&mut self, _at: BarrierId) {}
}

/// Makes the calls of a [`BlockingOutput`] on blocking threads. It is away while a call is under way.
pub(crate) struct Blocking<O>(Option<O>);

impl<O: BlockingOutput> Blocking<O> {
    pub(crate) fn new(output: O) -> Self {
        Self(Some(output))
    }

    async fn call<T: Send + 'static>(&mut self, work: impl FnOnce(&mut O) -> Result<T> + Send + 'static) -> Result<T> {
        let Some(mut output) = self.0.take() else {
            return Err(Error::internal("an earlier write did not come back"));
        };
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut output);
            (output, result)
        });
        let (output, result) =
            done.await.map_err(|error| Error::internal("a write was cut short").with_detail(error.to_string()))?;
        self.0 = Some(output);
        result
    }
}

#[async_trait]
impl<O: BlockingOutput> Output for Blocking<O> {
    type Piece = Vec<u8>;

    async fn start(&mut self) -> Result<()> {
        self.call(O::start).await
    }

    async fn write(&mut self, piece: Vec<u8>) -> Result<()> {
        self.call(move |output| output.write(&piece)).await
    }

    async fn prepare(&mut self, at: BarrierId) -> Result<Option<Vec<u8>>> {
        self.call(move |output| output.prepare(at)).await
    }

    fn committed(&mut self, at: BarrierId) {
        if let Some(output) = &mut self.0 {
            output.committed(at);
        }
    }
}

enum Command<P> {
    Write { piece: P, bytes: usize },
    Prepare(BarrierId, oneshot::Sender<Result<Option<Vec<u8>>>>),
    Committed(BarrierId),
}

#[derive(Default)]
struct Shared {
    started: AtomicBool,
    queued_bytes: AtomicUsize,
    room: Notify,
    /// Set once, before the command channel closes.
    failure: Mutex<Option<Error>>,
}

/// The sink's end of the queue.
pub(crate) struct Writer<P> {
    commands: mpsc::UnboundedSender<Command<P>>,
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl<P: Send + 'static> Writer<P> {
    /// Starts writing to `output` on `io`.
    pub(crate) fn new(io: &Handle, output: impl Output<Piece = P>) -> Self {
        let (commands, mut queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let task = io.spawn(async move {
            if let Err(error) = drive(&mut queue, output, &theirs).await {
                *theirs.failure.lock() = Some(error);
            }
            theirs.room.notify_one();
        });
        Self { commands, shared, task: task.abort_handle() }
    }

    /// Queues a piece of so many bytes.
    ///
    /// # Errors
    /// What the output failed with earlier.
    pub(crate) fn write(&self, piece: P, bytes: usize) -> Result<()> {
        self.check()?;
        self.shared.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.commands.send(Command::Write { piece, bytes }).map_err(|_| failure(&self.shared))
    }

    /// Waits until the output has started and the queue has room. Cancel safe.
    ///
    /// # Errors
    /// What the output failed with earlier.
    pub(crate) async fn ready(&self) -> Result<()> {
        loop {
            self.check()?;
            let started = self.shared.started.load(Ordering::Acquire);
            if started && self.shared.queued_bytes.load(Ordering::Acquire) <= QUEUED_BYTES_MAX {
                return Ok(());
            }
            // A permit is kept for the next waiter, so that a notice between the check and the wait is not lost.
            self.shared.room.notified().await;
        }
    }

    /// Queues a preparation; the future resolves when it is done.
    pub(crate) fn prepare(&self, at: BarrierId) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send + use<P> {
        let (done, outcome) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let sent = self.commands.send(Command::Prepare(at, done)).is_ok();
        async move {
            match outcome.await {
                Ok(result) if sent => result,
                _ => Err(failure(&shared)),
            }
        }
    }

    /// Queues the notice that a snapshot is complete.
    pub(crate) fn committed(&self, at: BarrierId) {
        // An output that has stopped has nothing to remember.
        let _stopped = self.commands.send(Command::Committed(at));
    }

    fn check(&self) -> Result<()> {
        match &*self.shared.failure.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl<P> Drop for Writer<P> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn failure(shared: &Shared) -> Error {
    shared.failure.lock().clone().unwrap_or_else(|| Error::internal("the sink's output stopped without an error"))
}

async fn drive<P>(
    queue: &mut mpsc::UnboundedReceiver<Command<P>>,
    mut output: impl Output<Piece = P>,
    shared: &Shared,
) -> Result<()> {
    output.start().await?;
    shared.started.store(true, Ordering::Release);
    shared.room.notify_one();
    while let Some(command) = queue.recv().await {
        match command {
            Command::Write { piece, bytes } => {
                output.write(piece).await?;
                shared.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
                shared.room.notify_one();
            }
            Command::Prepare(at, done) => {
                let result = output.prepare(at).await;
                // Nobody waits for a preparation of a subtask that was cancelled meanwhile.
                let _ = done.send(result.clone());
                result?;
            }
            Command::Committed(at) => output.committed(at),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gated {
        gate: mpsc::Receiver<Result<()>>,
        written: Arc<AtomicUsize>,
    }

    /// Starts when it is told to.
    struct Late(oneshot::Receiver<()>);

    #[async_trait]
    impl Output for Late {
        type Piece = usize;

        async fn start(&mut self) -> Result<()> {
            (&mut self.0).await.map_err(|_| Error::internal("never started"))
        }

        async fn write(&mut self, _piece: usize) -> Result<()> {
            Ok(())
        }

        async fn prepare(&mut self, _at: BarrierId) -> Result<Option<Vec<u8>>> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn nothing_is_taken_before_the_output_has_started() {
        let (start, started) = oneshot::channel();
        let writer = Writer::new(&Handle::current(), Late(started));
        let mut ready = Box::pin(writer.ready());
        assert!(futures::poll!(&mut ready).is_pending());
        start.send(()).unwrap();
        ready.await.unwrap();
    }

    #[async_trait]
    impl Output for Gated {
        type Piece = usize;

        async fn start(&mut self) -> Result<()> {
            Ok(())
        }

        async fn write(&mut self, piece: usize) -> Result<()> {
            self.gate.recv().await.unwrap()?;
            self.written.fetch_add(piece, Ordering::SeqCst);
            Ok(())
        }

        async fn prepare(&mut self, _at: BarrierId) -> Result<Option<Vec<u8>>> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn a_full_queue_is_not_ready_until_something_was_written() {
        let (open, gate) = mpsc::channel(1);
        let written = Arc::new(AtomicUsize::new(0));
        let writer = Writer::new(&Handle::current(), Gated { gate, written: Arc::clone(&written) });
        writer.ready().await.unwrap();
        writer.write(7, QUEUED_BYTES_MAX + 1).unwrap();
        let mut ready = Box::pin(writer.ready());
        assert!(futures::poll!(&mut ready).is_pending());
        open.send(Ok(())).await.unwrap();
        ready.await.unwrap();
        writer.prepare(BarrierId(1)).await.unwrap();
        assert_eq!(written.load(Ordering::SeqCst), 7);
    }

    #[tokio::test]
    async fn a_failure_reaches_whoever_comes_next() {
        let (open, gate) = mpsc::channel(1);
        let writer = Writer::new(&Handle::current(), Gated { gate, written: Arc::default() });
        writer.write(1, 1).unwrap();
        open.send(Err(Error::internal("disk on fire"))).await.unwrap();
        let prepared = writer.prepare(BarrierId(1));
        assert_eq!(prepared.await.unwrap_err().message, "disk on fire");
        assert_eq!(writer.ready().await.unwrap_err().message, "disk on fire");
        assert_eq!(writer.write(1, 1).unwrap_err().message, "disk on fire");
    }

    #[tokio::test]
    async fn a_dropped_writer_writes_nothing_more() {
        let (open, gate) = mpsc::channel(1);
        let written = Arc::new(AtomicUsize::new(0));
        let writer = Writer::new(&Handle::current(), Gated { gate, written: Arc::clone(&written) });
        writer.write(1, 1).unwrap();
        drop(writer);
        // The gate's other end goes with the task.
        open.closed().await;
        assert_eq!(written.load(Ordering::SeqCst), 0);
    }
}
