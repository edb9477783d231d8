//! State tables, snapshot files and manifests, restore.
//!
//! Invariant: a snapshot's synchronous part copies handles, never rows; whatever is named by a manifest is on disk,
//! checksummed, and was written once.

mod arena;
pub mod file;
pub mod frozen;
pub mod key_hash;
pub mod keys;
pub mod manifest;
pub mod pages;
pub mod restore;
pub mod store;
pub mod values;

pub use file::{delete_files, write_tables, write_tables_while};
pub use frozen::FrozenTable;
pub use restore::{RestoredOperator, RestoredTable};
pub use store::open_store;
