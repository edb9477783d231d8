//! weir-replication.
