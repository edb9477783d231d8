//! The sink that counts rows and drops them.

use async_trait::async_trait;
use tracing::info;
use weir_dataflow::element::Batch;
use weir_dataflow::sink::{Prepared, Sink, SinkContext};
use weir_types::Result;
use weir_types::snapshot::Barrier;

/// Counts rows.
pub(crate) struct BlackholeSink {
    table: String,
    rows: u64,
}

impl BlackholeSink {
    pub(crate) fn new(context: &SinkContext) -> Self {
        Self { table: context.spec.table.clone(), rows: 0 }
    }
}

#[async_trait(?Send)]
impl Sink for BlackholeSink {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        self.rows += batch.rows.num_rows() as u64;
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        Ok(())
    }

    fn prepare(&mut self, _barrier: &Barrier) -> Result<Prepared> {
        Ok(Box::pin(std::future::ready(Ok(None))))
    }

    async fn finish(&mut self) -> Result<()> {
        info!(table = %self.table, rows = self.rows, "blackhole finished");
        Ok(())
    }
}
