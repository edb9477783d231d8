//! weir-dataflow.
