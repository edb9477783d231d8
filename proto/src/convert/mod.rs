//! Conversions between wire and domain types, one module per message family.

pub mod catalogue;
mod claims;
pub mod client;
pub mod control;
pub mod data;
pub mod deployment;
pub mod diagnostics;
pub mod error;
mod failure;
pub mod grants;
pub mod graph;
pub mod group;
pub mod metadata;
mod metadata_output;
mod metadata_quota;
mod metadata_recovery;
pub mod metadata_state;
pub mod store;
pub mod transaction;

use weir_types::{Error, Result};

/// The value of a field that its sender must set.
pub(crate) fn required<T>(what: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::invalid(format!("message without its {what}")))
}

/// Converts every element, or fails with the first that does not convert.
pub(crate) fn all<W, D: TryFrom<W, Error = Error>>(values: Vec<W>) -> Result<Vec<D>> {
    values.into_iter().map(D::try_from).collect()
}
