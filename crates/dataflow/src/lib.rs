//! The dataflow: elements, channels, input gates, operators and chains, exchanges, and the task loop that drives one
//! subtask. Connectors implement [`source::Source`] and [`sink::Sink`]; a TaskManager wires subtasks to its network.

mod aggregate;
pub mod calc;
pub mod chain;
pub mod channel;
pub mod element;
pub mod exchange;
#[cfg(test)]
mod fixtures;
pub mod gate;
pub mod grants;
pub mod group;
pub mod memory;
pub mod metrics;
pub mod operator;
pub mod plan;
pub mod reader;
pub mod sink;
pub mod source;
pub mod subtask;
pub mod testing;
pub mod watermark;
pub mod window;

use weir_types::Result;

/// Builds connectors; `weir-connectors` implements it, tests bring their own.
pub trait ConnectorFactory: Send + Sync {
    /// The source of a scan.
    ///
    /// # Errors
    /// If options or splits do not fit.
    fn source(&self, context: source::SourceContext) -> Result<Box<dyn source::Source>>;

    /// The sink of a table.
    ///
    /// # Errors
    /// If options or schema do not fit.
    fn sink(&self, context: sink::SinkContext) -> Result<Box<dyn sink::Sink>>;
}
