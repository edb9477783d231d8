//! weir-state.
