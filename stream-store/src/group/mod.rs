//! Reader groups: the pure state machine, and the shell that makes it durable.

mod assign;
mod checkpoint;
#[cfg(test)]
mod properties;
mod shell;
mod state;
#[cfg(test)]
mod tests;

pub use checkpoint::Start;
pub(crate) use shell::Groups;
pub use state::{Command, Group, Reply};
