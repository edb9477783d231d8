//! Sources and sinks: the Nexmark generator, files, streams of the stream store, and sinks that print or drop.
//!
//! A source's position counts records from the beginning of a split: reading on from any position gives exactly the
//! records that follow it. A sink's output before a barrier is durable before the barrier is acknowledged.

mod blackhole;
mod changes;
mod filesystem;
mod format;
pub mod nexmark;
mod print;
mod stream_store;
#[cfg(test)]
mod testing;
mod writer;

use weir_dataflow::ConnectorFactory;
use weir_dataflow::sink::{Sink, SinkContext};
use weir_dataflow::source::{Source, SourceContext};
use weir_types::connector::ConnectorKind;
use weir_types::{Code, Error, Result};

/// Builds every connector of [`ConnectorKind`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Connectors;

fn unsupported(kind: ConnectorKind, role: &str) -> Error {
    Error::new(Code::Unsupported, format!("connector '{kind}' cannot be used as a {role}"))
}

impl ConnectorFactory for Connectors {
    fn source(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        match context.spec.connector.kind {
            ConnectorKind::Nexmark => Ok(Box::new(nexmark::NexmarkSource::new(context)?)),
            ConnectorKind::Filesystem => Ok(Box::new(filesystem::FilesystemSource::new(context)?)),
            ConnectorKind::StreamStore => Ok(Box::new(stream_store::StreamSource::new(context)?)),
            kind @ (ConnectorKind::Print | ConnectorKind::Blackhole) => Err(unsupported(kind, "source")),
        }
    }

    fn sink(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        match context.spec.connector.kind {
            ConnectorKind::Print => Ok(Box::new(print::PrintSink::new(&context))),
            ConnectorKind::Blackhole => Ok(Box::new(blackhole::BlackholeSink::new(&context))),
            ConnectorKind::Filesystem => Ok(Box::new(filesystem::FilesystemSink::new(&context)?)),
            ConnectorKind::StreamStore => Ok(Box::new(stream_store::StreamSink::new(&context)?)),
            kind @ ConnectorKind::Nexmark => Err(unsupported(kind, "sink")),
        }
    }
}
