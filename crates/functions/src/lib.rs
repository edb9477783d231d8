//! weir-functions.
