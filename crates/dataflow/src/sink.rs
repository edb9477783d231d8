//! The contract of a sink connector.

use std::future::Future;
use std::pin::Pin;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use weir_types::Result;
use weir_types::graph::SinkSpec;
use weir_types::ids::{BarrierId, JobId};
use weir_types::snapshot::Barrier;

use crate::element::Batch;

/// What a sink connector is built from.
#[derive(Clone, Debug)]
pub struct SinkContext {
    /// The table.
    pub spec: SinkSpec,
    /// The rows' schema.
    pub schema: SchemaRef,
    /// Where connectors run network and file work.
    pub io: tokio::runtime::Handle,
    /// Address of the stream store.
    pub store_address: String,
    /// The job, for names that must not clash with another job's.
    pub job: JobId,
    /// The sink operator's uid.
    pub uid: String,
    /// Which subtask …
    pub subtask: u32,
    /// … of how many.
    pub parallelism: u32,
    /// Which attempt.
    pub attempt: u32,
}

/// Resolves when everything written before the barrier is durable, to what the snapshot must remember.
pub type Prepared = Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>>> + Send>>;

/// Writes rows. Runs on the compute thread; whatever blocks runs on [`SinkContext::io`].
#[async_trait(?Send)]
pub trait Sink {
    /// Encodes rows and queues them; never waits.
    ///
    /// # Errors
    /// For a failure of the job: a row that cannot be encoded, a sink that failed earlier.
    fn write(&mut self, batch: &Batch) -> Result<()>;

    /// Waits until the queue has room. Cancel safe.
    ///
    /// # Errors
    /// If the sink cannot go on.
    async fn ready(&mut self) -> Result<()>;

    /// The barrier has come: starts making everything written so far durable. The returned future is awaited beside
    /// further processing. Output that is committed with snapshots is not visible to others by that: it waits until the
    /// snapshot, or a later one of the same attempt, is complete; then the JobManager commits it.
    ///
    /// # Errors
    /// If the sink cannot go on.
    fn prepare(&mut self, barrier: &Barrier) -> Result<Prepared>;

    /// The snapshot of this barrier is complete, and what was prepared until then is decided. The notice may be lost.
    fn committed(&mut self, _barrier: BarrierId) {}

    /// All input has ended: makes everything durable, under [`END_OF_INPUT`](weir_types::output::END_OF_INPUT).
    ///
    /// # Errors
    /// If that fails.
    async fn finish(&mut self) -> Result<()>;
}
