//! State tables, snapshot files and manifests, restore.
//!
//! Invariant: a snapshot's synchronous part copies handles, never rows; whatever is named by a manifest is on disk,
//! checksummed, and was written once.

mod admit;
mod arena;
mod block;
pub mod budget;
mod changes;
pub mod columns;
pub mod file;
pub mod frozen;
mod graves;
pub mod key_hash;
pub mod keys;
pub mod manifest;
pub mod memory;
pub mod merge;
pub mod pages;
mod parts;
pub mod reader;
pub mod restore;
pub mod runs;
pub mod schema;
pub mod store;
pub mod values;
pub mod verify;
mod writer;

pub use budget::{Budgeted, Unlimited, WriteBudget};
pub use changes::Since;
pub use file::{delete_files, write_tables, write_tables_while};
pub use frozen::FrozenTable;
pub use merge::TableReader;
pub use reader::FileReader;
pub use restore::{RestoredOperator, RestoredTable};
pub use runs::{Increment, Runs, write_increment};
pub use store::{LocalDirectory, open_store};
