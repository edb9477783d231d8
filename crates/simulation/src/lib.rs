//! Seeded simulations of the parts of Weir that must agree with each other, whatever fails: the production state machines,
//! one thread, virtual time, and every choice drawn from one seed. Nothing links this crate; all of it is tests.
//!
//! - `raft`: groups of the production member and log, on networks and disks that misbehave.
//! - `cluster`: JobManagers that lead and are deposed, with the production metadata, coordinator, scheduler and reader
//!   groups, against fake TaskManagers, a fake store and a fake snapshot directory.
//!
//! `cargo xtask sim 100000` runs so many seeds of each. A failure names its seed and prints what happened;
//! `WEIR_SIMULATION_SEED=7 cargo test -p weir-simulation` runs that one again, exactly.

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod network;
#[cfg(test)]
mod raft;
#[cfg(test)]
mod random;
#[cfg(test)]
mod seeds;
