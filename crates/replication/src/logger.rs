//! Hands raft-rs's log records (slog) to tracing, one level quieter: elections are routine to everybody else.

use std::convert::Infallible;
use std::fmt::{Arguments, Write as _};

use slog::{Drain, KV, Key, Level, Logger, OwnedKVList, Record, Serializer};

/// A logger that writes to this process's log.
pub(crate) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Infallible;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Infallible> {
        let mut fields = Fields(String::new());
        // Writing to a string cannot fail.
        let _written = record.kv().serialize(record, &mut fields);
        let (message, fields) = (record.msg(), fields.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", %fields, "{message}"),
            Level::Warning => tracing::warn!(target: "raft", %fields, "{message}"),
            Level::Info => tracing::debug!(target: "raft", %fields, "{message}"),
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", %fields, "{message}"),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error => tracing::enabled!(target: "raft", tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(target: "raft", tracing::Level::WARN),
            Level::Info => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
            Level::Debug | Level::Trace => tracing::enabled!(target: "raft", tracing::Level::TRACE),
        }
    }
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        let gap = if self.0.is_empty() { "" } else { " " };
        Ok(write!(self.0, "{gap}{key}={value}")?)
    }
}
