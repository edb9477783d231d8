//! weir-store.
fn main() {}
