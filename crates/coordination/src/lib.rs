//! The decisions of the JobManager as pure state machines: which snapshot goes which step, which subtask runs where, who
//! is alive, and what is remembered. Nothing in here awaits, reads a clock or draws a random number: time and new ids are
//! arguments, and what is to be done comes back as actions that a shell carries out.

pub mod checkpoint;
pub mod liveness;
pub mod metadata;
pub mod restore;
pub mod scheduler;
