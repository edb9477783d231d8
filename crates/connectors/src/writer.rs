//! A queue of bytes between a sink on the compute thread and blocking output on the io runtime.
//!
//! What a sink queues is written in order; a commit covers everything queued before it. The queue is bounded by
//! [`Writer::ready`], which waits while more than [`QUEUED_BYTES_MAX`] are in it: a chain asks before every step, so that
//! at most one step's output comes on top.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use weir_types::{Error, Result};

/// Bytes that may wait to be written.
const QUEUED_BYTES_MAX: usize = 4 << 20;

/// Where bytes go. Runs on a blocking thread.
pub(crate) trait Output: Send + 'static {
    /// Writes one piece; what one piece holds (whole lines) is never torn between two files.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes everything written so far durable, and visible to others.
    fn commit(&mut self) -> Result<()>;
}

enum Command {
    Write(Vec<u8>),
    Commit(oneshot::Sender<Result<()>>),
}

#[derive(Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    room: Notify,
    /// Set once, before the command channel closes.
    failure: parking_lot::Mutex<Option<Error>>,
}

/// The sink's end of the queue. Dropping it stops the output once the queue is empty.
pub(crate) struct Writer {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

impl Writer {
    /// Starts writing to `output` on a blocking thread of `io`.
    pub(crate) fn new(io: &Handle, output: impl Output) -> Self {
        let (commands, mut queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        io.spawn_blocking(move || {
            if let Err(error) = drive(&mut queue, output, &theirs) {
                *theirs.failure.lock() = Some(error);
            }
            theirs.room.notify_one();
        });
        Self { commands, shared }
    }

    /// Queues bytes.
    ///
    /// # Errors
    /// What the output failed with earlier.
    pub(crate) fn write(&self, bytes: Vec<u8>) -> Result<()> {
        self.check()?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.shared.queued_bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        self.commands.send(Command::Write(bytes)).map_err(|_| self.failure())
    }

    /// Waits until the queue has room. Cancel safe.
    ///
    /// # Errors
    /// What the output failed with earlier.
    pub(crate) async fn ready(&self) -> Result<()> {
        loop {
            self.check()?;
            if self.shared.queued_bytes.load(Ordering::Acquire) <= QUEUED_BYTES_MAX {
                return Ok(());
            }
            // A permit is kept for the next waiter, so that a notice between the check and the wait is not lost.
            self.shared.room.notified().await;
        }
    }

    /// Queues a commit; the future resolves when it is done.
    pub(crate) fn commit(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let (done, outcome) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let sent = self.commands.send(Command::Commit(done));
        async move {
            match (sent, outcome.await) {
                (Ok(()), Ok(result)) => result,
                _ => Err(failure(&shared)),
            }
        }
    }

    fn check(&self) -> Result<()> {
        match &*self.shared.failure.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn failure(&self) -> Error {
        failure(&self.shared)
    }
}

fn failure(shared: &Shared) -> Error {
    shared.failure.lock().clone().unwrap_or_else(|| Error::internal("the sink's output stopped without an error"))
}

fn drive(queue: &mut mpsc::UnboundedReceiver<Command>, mut output: impl Output, shared: &Shared) -> Result<()> {
    while let Some(command) = queue.blocking_recv() {
        match command {
            Command::Write(bytes) => {
                output.write(&bytes)?;
                shared.queued_bytes.fetch_sub(bytes.len(), Ordering::AcqRel);
                shared.room.notify_one();
            }
            Command::Commit(done) => {
                let result = output.commit();
                // Nobody waits for a commit of a subtask that was cancelled meanwhile.
                let _ = done.send(result.clone());
                result?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use super::*;

    struct Gated {
        gate: blocking::Receiver<Result<()>>,
        written: Arc<AtomicUsize>,
    }

    impl Output for Gated {
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.gate.recv().unwrap()?;
            self.written.fetch_add(bytes.len(), Ordering::SeqCst);
            Ok(())
        }

        fn commit(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_full_queue_is_not_ready_until_something_was_written() {
        let (open, gate) = blocking::channel();
        let written = Arc::new(AtomicUsize::new(0));
        let writer = Writer::new(&Handle::current(), Gated { gate, written: Arc::clone(&written) });
        writer.ready().await.unwrap();
        writer.write(vec![0; QUEUED_BYTES_MAX + 1]).unwrap();
        let mut ready = Box::pin(writer.ready());
        assert!(futures::poll!(&mut ready).is_pending());
        open.send(Ok(())).unwrap();
        ready.await.unwrap();
        writer.commit().await.unwrap();
        assert_eq!(written.load(Ordering::SeqCst), QUEUED_BYTES_MAX + 1);
    }

    #[tokio::test]
    async fn a_failure_reaches_whoever_comes_next() {
        let (open, gate) = blocking::channel();
        let writer = Writer::new(&Handle::current(), Gated { gate, written: Arc::default() });
        writer.write(vec![1]).unwrap();
        open.send(Err(Error::internal("disk on fire"))).unwrap();
        let commit = writer.commit();
        assert_eq!(commit.await.unwrap_err().message, "disk on fire");
        assert_eq!(writer.ready().await.unwrap_err().message, "disk on fire");
        assert_eq!(writer.write(vec![1]).unwrap_err().message, "disk on fire");
    }
}
