//! weir-jobmanager.
fn main() {}
