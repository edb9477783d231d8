//! weir-coordination.
