//! weir-jobmanager.
