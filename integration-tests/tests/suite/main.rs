//! Weir as its users run it: real processes, real kills, exact results.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail them by panicking")]

mod catalogue;
mod chaos;
mod claims;
mod command_line;
mod deleted_streams;
mod exactly_once;
mod explain;
mod failures;
mod fallback;
mod group_chaos;
mod group_clients;
mod high_availability;
mod identity;
mod imports;
mod incremental;
mod inspect;
mod limits;
mod local_cluster;
mod membership;
mod policies;
mod quotas;
mod real_data;
mod recovery;
mod refusals;
mod restore;
mod savepoints;
mod steps;
mod support;
mod takeover;
mod transactions;
mod transcripts;
mod updating;
mod usage;
mod verification;
mod windows;
