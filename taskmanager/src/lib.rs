//! x
pub mod exchange;
mod fences;
