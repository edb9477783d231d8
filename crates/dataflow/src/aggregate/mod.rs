//! What window aggregates and updating aggregates have in common: keys and calls resolved to accumulators, groups by slot,
//! results as columns, and all of it in snapshots.

pub(crate) mod accumulator;
pub(crate) mod names;
pub(crate) mod output;
pub(crate) mod plan;
pub(crate) mod state;
pub(crate) mod table;
