//! Weir as its users run it: real processes, real kills, exact results.

#![expect(clippy::expect_used, reason = "helpers of tests fail them by panicking")]

mod chaos;
mod command_line;
mod failures;
mod local_cluster;
mod real_data;
mod refusals;
mod savepoints;
mod support;
mod windows;
