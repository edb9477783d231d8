//! weir-benches.
