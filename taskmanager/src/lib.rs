//! weir-taskmanager.
