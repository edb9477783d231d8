//! weir-store: the stream store's server.

fn main() {}
