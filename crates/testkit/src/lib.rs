//! What tests of several crates share. Never a dependency of anything but tests.

pub mod network;
