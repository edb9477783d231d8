//! Conversions between wire and domain types, one module per message family.

pub mod error;
pub mod graph;
pub mod group;
pub mod store;
