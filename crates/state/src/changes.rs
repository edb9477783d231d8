//! Which rows have changed, a bit per slot: what an incremental checkpoint has to write.
//!
//! Invariant: what was handed out at a freeze is handed out again at the next one, unless that is told that the snapshot in
//! between has completed. So nothing is lost to a snapshot that was aborted, nor to a savepoint, on which no checkpoint
//! builds.

use std::mem;
use std::sync::Arc;

/// What the rows of a freeze are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Since {
    /// Nothing: all rows count as changed.
    #[default]
    Start,
    /// The state as of the freeze before: its checkpoint has completed, and this one builds on it.
    LastFreeze,
    /// What the freeze before was compared with: nothing builds on that one.
    SameAsLast,
}

/// A set of slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    fn with_room_of(other: &Self) -> Self {
        Self(vec![0; other.0.len()])
    }

    #[inline]
    pub(crate) fn set(&mut self, slot: u32) {
        let word = slot as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (slot % 64);
    }

    pub(crate) fn clear(&mut self, slot: u32) {
        if let Some(word) = self.0.get_mut(slot as usize / 64) {
            *word &= !(1 << (slot % 64));
        }
    }

    fn unite(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    /// The slots in the set and not in the other, ascending.
    pub(crate) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        let words = self.0.iter().enumerate().map(|(index, word)| (index, word & !other.word(index)));
        words.filter(|(_, word)| *word != 0).flat_map(|(index, mut word)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(index as u32 * 64 + bit)
            })
        })
    }

    /// The first `slots` slots that are not in the set, ascending.
    pub(crate) fn absent(&self, slots: usize) -> impl Iterator<Item = u32> + '_ {
        (0..slots as u32).filter(|&slot| !self.has(slot))
    }

    pub(crate) fn has(&self, slot: u32) -> bool {
        self.word(slot as usize / 64) & (1 << (slot % 64)) != 0
    }

    /// Whether none of these slots is in the set; whole words of them.
    pub(crate) fn has_none_in(&self, first: usize, slots: usize) -> bool {
        let words = self.0.iter().skip(first / 64).take(slots.div_ceil(64));
        words.into_iter().all(|&word| word == 0)
    }

    fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.len() * size_of::<u64>()
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Since the last freeze.
    fresh: Bits,
    /// What the last freeze has handed out.
    frozen: Arc<Bits>,
}

impl Changes {
    #[inline]
    pub(crate) fn mark(&mut self, slot: u32) {
        self.fresh.set(slot);
    }

    /// What has changed; none: everything has. Costs nothing per slot that did not change, but for a bit.
    pub(crate) fn freeze(&mut self, since: Since) -> Option<Arc<Bits>> {
        let room = Bits::with_room_of(&self.fresh);
        let fresh = mem::replace(&mut self.fresh, room);
        match since {
            Since::Start => {
                self.frozen = Arc::default();
                return None;
            }
            Since::LastFreeze => self.frozen = Arc::new(fresh),
            Since::SameAsLast => Arc::make_mut(&mut self.frozen).unite(&fresh),
        }
        Some(Arc::clone(&self.frozen))
    }

    /// Bytes held, both sets taken for equally long: a freeze changes nothing about it.
    pub(crate) fn bytes(&self) -> usize {
        2 * self.fresh.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(bits: Option<Arc<Bits>>) -> Option<Vec<u32>> {
        bits.map(|bits| bits.without(&Bits::default()).collect())
    }

    #[test]
    fn changes_are_handed_out_until_a_checkpoint_that_holds_them_has_completed() {
        let mut changes = Changes::default();
        changes.mark(7);
        assert_eq!(slots(changes.freeze(Since::Start)), None);
        changes.mark(1);
        changes.mark(200);
        assert_eq!(slots(changes.freeze(Since::LastFreeze)), Some(vec![1, 200]));
        changes.mark(64);
        assert_eq!(slots(changes.freeze(Since::SameAsLast)), Some(vec![1, 64, 200]));
        changes.mark(63);
        assert_eq!(slots(changes.freeze(Since::LastFreeze)), Some(vec![63]));
        assert_eq!(slots(changes.freeze(Since::LastFreeze)), Some(vec![]));
    }

    #[test]
    fn a_freeze_keeps_what_it_was_given_while_later_ones_go_on() {
        let mut changes = Changes::default();
        changes.mark(1);
        let first = changes.freeze(Since::LastFreeze);
        changes.mark(2);
        assert_eq!(slots(changes.freeze(Since::SameAsLast)), Some(vec![1, 2]));
        assert_eq!(slots(first), Some(vec![1]));
    }

    #[test]
    fn sets_tell_what_is_in_them_and_what_is_not() {
        let (mut some, mut others) = (Bits::default(), Bits::default());
        [0, 5, 64, 130].into_iter().for_each(|slot| some.set(slot));
        [5, 300].into_iter().for_each(|slot| others.set(slot));
        assert_eq!(some.without(&others).collect::<Vec<_>>(), [0, 64, 130]);
        some.clear(64);
        some.clear(999);
        assert_eq!(some.without(&others).collect::<Vec<_>>(), [0, 130]);
        assert_eq!(others.absent(8).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 6, 7]);
        assert_eq!(others.absent(302).count(), 300);
    }
}
