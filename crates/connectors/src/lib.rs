//! Sources and sinks: the Nexmark generator, files, streams of the stream store, and sinks that print or drop.
//!
//! A source's position counts records from the beginning of a split: reading on from any position gives exactly the
//! records that follow it. A sink's output before a barrier is durable before the barrier is acknowledged.

pub mod nexmark;
