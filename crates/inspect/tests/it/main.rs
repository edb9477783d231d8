//! The crate's public interface, over small snapshots that are written with `weir-state`.

#[cfg(test)]
mod compare;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod output;
#[cfg(test)]
mod queries;
