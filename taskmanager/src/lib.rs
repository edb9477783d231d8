//! x
mod exchange;
