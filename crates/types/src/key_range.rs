//! Contiguous ranges of the 64-bit key hash space. A subtask owns one; together the subtasks of a chain own all of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{Parallelism, SubtaskIndex};

/// An inclusive range of key hashes; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct KeyRange {
    start: u64,
    end: u64,
}

impl KeyRange {
    /// The whole hash space.
    pub const FULL: Self = Self { start: 0, end: u64::MAX };

    /// The range from `start` to `end`, both included.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if `start` is greater than `end`.
    pub fn new(start: u64, end: u64) -> Result<Self> {
        if start > end {
            return Err(Error::invalid(format!("key range starts at {start:016x}, after its end {end:016x}")));
        }
        Ok(Self { start, end })
    }

    /// The range that subtask `index` of `parallelism` owns: the hashes that [`subtask_of`] sends to it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if `index` is not below `parallelism`.
    pub fn of_subtask(index: SubtaskIndex, parallelism: Parallelism) -> Result<Self> {
        let (i, p) = (u128::from(index.0), u128::from(parallelism.get()));
        if i >= p {
            return Err(Error::invalid(format!("subtask {index} of {parallelism} does not exist")));
        }
        // The first hash h with floor(h * p / 2^64) == i is ceil(i * 2^64 / p).
        let first = |i: u128| (i << 64).div_ceil(p);
        let start = first(i) as u64;
        let end = (first(i + 1) - 1) as u64;
        Ok(Self { start, end })
    }

    /// First hash.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Last hash, included.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Whether `hash` lies in the range.
    pub fn contains(self, hash: u64) -> bool {
        self.start <= hash && hash <= self.end
    }

    /// Whether both have a hash in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// The subtask that owns `hash` when the space is divided evenly over `parallelism` subtasks: `hash * p >> 64`.
#[inline]
pub fn subtask_of(hash: u64, parallelism: Parallelism) -> SubtaskIndex {
    SubtaskIndex(((u128::from(hash) * u128::from(parallelism.get())) >> 64) as u32)
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}…{:016x}", self.start, self.end)
    }
}

impl TryFrom<(u64, u64)> for KeyRange {
    type Error = Error;

    fn try_from((start, end): (u64, u64)) -> Result<Self> {
        Self::new(start, end)
    }
}

impl From<KeyRange> for (u64, u64) {
    fn from(range: KeyRange) -> Self {
        (range.start, range.end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_subtask_owns_everything() {
        assert_eq!(KeyRange::of_subtask(SubtaskIndex(0), Parallelism::ONE).unwrap(), KeyRange::FULL);
    }

    proptest! {
        #[test]
        fn ranges_tile_the_space_and_agree_with_routing(p in 1u32..2000, hash: u64) {
            let p = Parallelism::new(p).unwrap();
            let owner = subtask_of(hash, p);
            prop_assert!(KeyRange::of_subtask(owner, p).unwrap().contains(hash));
            let mut next = 0u128;
            for i in 0..p.get() {
                let range = KeyRange::of_subtask(SubtaskIndex(i), p).unwrap();
                prop_assert_eq!(u128::from(range.start()), next);
                next = u128::from(range.end()) + 1;
            }
            prop_assert_eq!(next, 1u128 << 64);
        }
    }
}
