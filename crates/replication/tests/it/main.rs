//! Members of groups, started, stopped, cut off and damaged, seen through the public interface only.

#[cfg(test)]
mod damage;
#[cfg(test)]
mod group;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod single;
