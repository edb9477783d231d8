//! State tables, snapshot files and manifests, restore.

/// A state table as of a barrier; pages are shared with the running operator until it writes to them.
#[derive(Debug)]
pub struct FrozenTable {}

/// One operator's state as read back from a snapshot, cut to the subtask's key range.
#[derive(Debug)]
pub struct RestoredOperator {}
