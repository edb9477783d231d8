//! weir-stream-store.
