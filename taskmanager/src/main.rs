//! weir-taskmanager.
fn main() {}
