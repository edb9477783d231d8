//! Looking inside snapshots: the files alone suffice, no job and no cluster needs to run.
//!
//! Everything streams: at any time a table that is read has one block of each of its files in memory, queries spill to disk
//! beyond their budget. What the files say is checked before it is believed; damage ends a command with an error that names
//! file and offset.

pub mod diff;
pub mod export;
mod groups;
pub mod names;
pub mod query;
pub mod snapshot;
pub mod summary;
mod system;
pub mod table;

pub use snapshot::Snapshot;
pub use table::Table;
pub use weir_state::verify::{Damage, Report};
