//! Transactions of the embedded store: committed readers see all of a transaction or nothing, in order, and never what
//! was not committed.

#[cfg(test)]
mod families;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod model;
#[cfg(test)]
mod steps;
