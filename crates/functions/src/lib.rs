//! SQL functions with Flink's names, types and results: one registry for planner and runtime alike.
//!
//! Invariant: whatever a job graph refers to, this build can evaluate, and it means the same as when it was planned; the
//! planner writes only what [`codec`] reads back. All functions work on whole columns; what fails names the value.

pub mod codec;
pub mod definition;
pub mod pattern;
pub mod registry;
pub mod time;
pub mod types;

mod scalar;

pub use codec::{EXPRESSION_VERSION, decode_expr, encode_expr};
pub use registry::registry;
