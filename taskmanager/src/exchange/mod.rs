//! x
mod ipc;
mod schema;
mod wire;
