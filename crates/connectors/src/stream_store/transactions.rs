//! The transactions of one subtask of a sink, one after the other: the first row after a barrier begins one, the next
//! barrier prepares it under its number. The JobManager decides about them when a snapshot is complete, or when the job goes
//! on from an earlier one.
//!
//! Invariants: nothing is sent outside of a transaction; what is prepared under a barrier is all that was written before it
//! and after the barrier before; a name is used once (job, sink, subtask, attempt, number).

use std::time::Duration;

use serde_json::json;
use tracing::warn;
use weir_stream_store::client::{LiveTransaction, Producer, StoreClient};
use weir_types::ids::{BarrierId, Epoch, ProducerId, TransactionId};
use weir_types::store::TransactionSpec;
use weir_types::stream::StreamName;
use weir_types::{Error, Result};

/// An open transaction that nobody renews for so long is aborted: its TaskManager is gone, and so is the JobManager that
/// would have ended it. Until then committed readers wait.
const LEASE_MS: u64 = 60_000;

const RETRY_AFTER: Duration = Duration::from_millis(200);

/// See the module's documentation.
pub(super) struct Transactions {
    client: StoreClient,
    stream: StreamName,
    producer: ProducerId,
    epoch: Epoch,
    begun: u64,
    open: Option<LiveTransaction>,
    /// The newest one that is prepared and not known to be decided.
    pending: Option<Pending>,
}

/// What was prepared last.
struct Pending {
    barrier: BarrierId,
    /// What the snapshot remembers, for people: a decision goes by family, epoch and barrier.
    handle: Vec<u8>,
}

impl Transactions {
    /// None is open yet.
    pub(super) fn new(client: StoreClient, stream: StreamName, producer: ProducerId, epoch: Epoch) -> Self {
        Self { client, stream, producer, epoch, begun: 0, open: None, pending: None }
    }

    /// Makes sure that what is sent next belongs to a transaction.
    pub(super) async fn enter(&mut self, producer: &mut Producer) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let id = TransactionId::new(format!("{}.{}.{}", self.producer, self.epoch, self.begun))?;
        self.begun += 1;
        let spec = TransactionSpec { id, producer: self.producer.clone(), epoch: self.epoch, lease_ms: LEASE_MS };
        let live = loop {
            match LiveTransaction::begin(&self.client, &self.stream, &spec).await {
                Err(error) if error.code.is_retryable() => pause(&self.stream, &error).await,
                begun => break begun?,
            }
        };
        producer.enter_transaction(Some(live.number())).await?;
        self.open = Some(live);
        Ok(())
    }

    /// Prepares the open one, if there is one; what is not decided.
    pub(super) async fn prepare(&mut self, producer: &mut Producer, at: BarrierId) -> Result<Option<Vec<u8>>> {
        if let Some(live) = &self.open {
            let ends = producer.flush().await?;
            loop {
                match self.client.prepare_transaction(&self.stream, live.id(), &ends, Some(at.0)).await {
                    Err(error) if error.code.is_retryable() => pause(&self.stream, &error).await,
                    prepared => break prepared?,
                }
            }
            let handle = json!({
                "stream": self.stream.to_string(), "producer": self.producer.to_string(), "epoch": self.epoch.0,
                "transaction": live.number().0,
            });
            self.pending = Some(Pending { barrier: at, handle: handle.to_string().into_bytes() });
            self.open = None;
        }
        Ok(self.pending.as_ref().map(|pending| pending.handle.clone()))
    }

    /// What was prepared under this barrier, and before, is decided.
    pub(super) fn committed(&mut self, at: BarrierId) {
        self.pending.take_if(|pending| pending.barrier <= at);
    }
}

/// The store does not answer: it is asked again.
async fn pause(stream: &StreamName, error: &Error) {
    warn!(%stream, %error, "the stream store does not answer, trying again");
    tokio::time::sleep(RETRY_AFTER).await;
}
