//! weir-connectors.
