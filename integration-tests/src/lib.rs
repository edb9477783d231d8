//! A cluster of real processes for tests: started on random ports, killed, restarted, asked through the command line and
//! the API. Waiting is always on something that is pushed, with a deadline; a failing test prints every process's log.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "every function is a part of some test and fails it by panicking"
)]

pub mod api;
pub mod cluster;
pub mod hosts;
pub mod jobs;
pub mod oracle;
pub mod random;
pub mod transcript;
pub mod workload;
