//! The jobs that are run: a source, a hash exchange, and a sink that also sums up per key.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::Schema;
use weir_coordination::metadata::{NewJob, ReaderGroup, SourceRecord};
use weir_types::connector::ConnectorKind;
use weir_types::graph::{
    ConnectorSpec, Edge, Exchange, JobGraph, JobOptions, Operator, OperatorSpec, Output, SinkSpec, SourceSpec,
};
use weir_types::ids::{ChainId, GroupName, JobId, OperatorId, Parallelism, PartitionId, RequestId};
use weir_types::output::{AT_LEAST_ONCE, DELIVERY_GUARANTEE, EXACTLY_ONCE};
use weir_types::splits;
use weir_types::stream::{Offset, StreamName};

use super::store::{Partition, Store};

/// The chain of sources; the other one is that of sinks.
pub(super) const SOURCE: ChainId = ChainId(0);

/// A job that a user submits.
#[derive(Clone, Debug)]
pub(super) struct JobSpec {
    pub(super) id: JobId,
    pub(super) stream: StreamName,
    pub(super) parallelism: u32,
    /// Its sink commits with snapshots; otherwise it writes at once.
    pub(super) transactional: bool,
    pub(super) options: JobOptions,
}

impl JobSpec {
    /// What its user submits, always in the same words.
    pub(super) fn new_job(&self, store: &Store) -> NewJob {
        let parallelism = Parallelism::new(self.parallelism).unwrap();
        let partitions = store.streams[&self.stream].iter().enumerate();
        let split =
            |(index, _): (usize, &Partition)| splits::stream_partition(PartitionId(index as u32), Offset(0), None);
        NewJob {
            request: Some(RequestId::new(format!("submit-{}", self.id)).unwrap()),
            id: self.id.clone(),
            name: self.id.to_string(),
            sql: String::new(),
            owner: "ada".to_owned(),
            namespace: "default".to_owned(),
            graph: self.graph(),
            plan: String::new(),
            sources: vec![SourceRecord {
                uid: "source".to_owned(),
                table: "in".to_owned(),
                chain: SOURCE,
                parallelism,
                group: Some(ReaderGroup {
                    name: GroupName::new(format!("group-{}", self.id)).unwrap(),
                    stream: self.stream.clone(),
                }),
                splits: partitions.map(split).collect(),
            }],
            restore: None,
            allow_duplicates: false,
        }
    }

    fn graph(&self) -> JobGraph {
        let schema = Arc::new(Schema::empty());
        let connector = || ConnectorSpec { kind: ConnectorKind::StreamStore, options: BTreeMap::new() };
        let operator = |id, uid: &str, spec| Operator {
            id: OperatorId(id),
            uid: Some(uid.to_owned()),
            name: uid.to_owned(),
            spec,
            schema: schema.clone(),
            parallelism_max: None,
        };
        let source = SourceSpec {
            table: "in".to_owned(),
            connector: connector(),
            scan_schema: schema.clone(),
            metadata: BTreeMap::new(),
            pushed_filters: Vec::new(),
            calc: None,
            watermark: None,
        };
        let guarantee = if self.transactional { EXACTLY_ONCE } else { AT_LEAST_ONCE };
        let options = [("stream", "out/all"), (DELIVERY_GUARANTEE, guarantee)];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let sink = SinkSpec {
            table: "out".to_owned(),
            connector: ConnectorSpec { options: options.into(), ..connector() },
            metadata: BTreeMap::new(),
            primary_key: Vec::new(),
        };
        JobGraph {
            name: self.id.to_string(),
            options: JobOptions {
                parallelism: Parallelism::new(self.parallelism).unwrap(),
                checkpoints_incremental: false,
                ..self.options.clone()
            },
            operators: vec![
                operator(0, "source", OperatorSpec::Source(source)),
                operator(1, "sink", OperatorSpec::Sink(sink)),
            ],
            edges: vec![Edge {
                from: OperatorId(0),
                output: Output::Main,
                to: OperatorId(1),
                exchange: Exchange::Hash { keys: Vec::new() },
            }],
            expression_version: String::new(),
        }
    }
}
