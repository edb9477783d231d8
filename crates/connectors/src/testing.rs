//! What the tests of sources and sinks share.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow_schema::{Schema, SchemaRef};
use weir_dataflow::ConnectorFactory;
use weir_dataflow::element::Batch;
use weir_dataflow::sink::{Sink, SinkContext};
use weir_dataflow::source::{Source, SourceContext, SourceEvent};
use weir_types::Result;
use weir_types::connector::ConnectorKind;
use weir_types::graph::{ConnectorSpec, SinkSpec, SourceSpec};
use weir_types::ids::{BarrierId, JobId, SnapshotId};
use weir_types::snapshot::{Barrier, SnapshotKind, SplitPosition, StopMode};

use crate::Connectors;

/// A table of one connector.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) connector: ConnectorSpec,
    pub(crate) schema: SchemaRef,
    pub(crate) metadata: BTreeMap<usize, String>,
    pub(crate) store_address: String,
}

/// What a source brought until its end.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) batches: Vec<(usize, RecordBatch, u64)>,
    pub(crate) finished: Vec<usize>,
}

impl Read {
    pub(crate) fn rows(&self, schema: &SchemaRef) -> RecordBatch {
        concat_batches(schema, self.batches.iter().map(|(_, rows, _)| rows)).unwrap()
    }
}

impl Table {
    pub(crate) fn new(kind: ConnectorKind, options: &[(&str, &str)], schema: Schema) -> Self {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let connector = ConnectorSpec { kind, options };
        Self { connector, schema: Arc::new(schema), metadata: BTreeMap::new(), store_address: String::new() }
    }

    pub(crate) fn with_metadata(mut self, metadata: &[(usize, &str)]) -> Self {
        self.metadata = metadata.iter().map(|(index, key)| (*index, (*key).to_owned())).collect();
        self
    }

    pub(crate) fn at(mut self, store_address: &str) -> Self {
        self.store_address = store_address.to_owned();
        self
    }

    pub(crate) fn source(&self, splits: Vec<SplitPosition>, batch_rows: usize) -> Result<Box<dyn Source>> {
        Connectors.source(SourceContext {
            spec: SourceSpec {
                table: "t".to_owned(),
                connector: self.connector.clone(),
                scan_schema: Arc::clone(&self.schema),
                metadata: self.metadata.clone(),
                pushed_filters: Vec::new(),
                calc: None,
                watermark: None,
            },
            splits,
            batch_rows,
            io: tokio::runtime::Handle::current(),
            store_address: self.store_address.clone(),
            name: "test".to_owned(),
        })
    }

    pub(crate) async fn read(&self, splits: Vec<SplitPosition>, batch_rows: usize) -> Result<Read> {
        let mut source = self.source(splits, batch_rows)?;
        let mut read = Read::default();
        loop {
            match source.next().await? {
                SourceEvent::Rows { split, rows, next_offset, .. } => read.batches.push((split, rows, next_offset)),
                SourceEvent::SplitFinished { split } => read.finished.push(split),
                SourceEvent::End => return Ok(read),
            }
        }
    }

    pub(crate) fn sink(&self, attempt: u32, subtask: u32) -> Result<Box<dyn Sink>> {
        Connectors.sink(SinkContext {
            spec: SinkSpec {
                table: "t".to_owned(),
                connector: self.connector.clone(),
                metadata: self.metadata.clone(),
                primary_key: Vec::new(),
            },
            schema: Arc::clone(&self.schema),
            io: tokio::runtime::Handle::current(),
            store_address: self.store_address.clone(),
            job: JobId::new("job0").unwrap(),
            uid: "sink/1 ä".to_owned(),
            subtask,
            parallelism: 2,
            attempt,
        })
    }
}

pub(crate) fn batch(rows: RecordBatch) -> Batch {
    Batch::inserts(rows)
}

pub(crate) fn barrier(id: u64) -> Barrier {
    Barrier {
        id: BarrierId(id),
        snapshot: SnapshotId::new(format!("chk-{id}")).unwrap(),
        kind: SnapshotKind::Checkpoint,
        directory: "chk".to_owned(),
        base: None,
        triggered_at_ms: 0,
        stop: StopMode::Continue,
    }
}
