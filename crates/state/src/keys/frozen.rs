//! The keys of a state table as a snapshot has them: pages and bits that are shared with the running operator.

use std::sync::Arc;

use crate::arena::FrozenArena;
use crate::changes::Bits;
use crate::pages::{FrozenPages, PAGE_SLOTS};

/// The keys of a table as of a snapshot.
#[derive(Clone, Debug)]
pub struct FrozenKeys {
    pub(crate) hashes: FrozenPages<u64>,
    pub(crate) columns: Vec<FrozenKeyColumn>,
    /// Slots without a key.
    pub(super) vacant: Arc<Bits>,
    pub(super) len: usize,
    /// Slots that have changed; none: all have.
    pub(super) changed: Option<Arc<Bits>>,
    pub(super) removed: Vec<Arc<FrozenKeys>>,
}

impl FrozenKeys {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slots that hold a key, ascending.
    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.vacant.absent(self.hashes.len())
    }

    /// Whether it is known which rows have changed, see [`KeyTable::freeze`].
    pub fn knows_changes(&self) -> bool {
        self.changed.is_some()
    }

    /// The slots of the rows that have changed, ascending; none, if that is not known.
    pub fn changed_slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.changed.iter().flat_map(|changed| changed.without(&self.vacant))
    }

    /// Keys that were removed in the same time, perhaps added again, perhaps more than once; complete only if what has
    /// changed is known.
    pub fn removed(&self) -> impl Iterator<Item = &FrozenKeys> {
        self.removed.iter().map(AsRef::as_ref)
    }

    /// The hashes of all slots, page by page.
    pub(crate) fn hash_pages(&self) -> impl Iterator<Item = &[u64]> {
        self.hashes.pages()
    }

    /// Whether all slots of a page hold a key.
    pub(crate) fn is_full(&self, page: usize) -> bool {
        self.vacant.has_none_in(page * PAGE_SLOTS, PAGE_SLOTS)
    }

    /// Whether a slot holds a key.
    pub(crate) fn holds(&self, slot: u32) -> bool {
        !self.vacant.has(slot)
    }

    /// The hash of the key in a slot.
    #[inline]
    pub fn hash(&self, slot: u32) -> u64 {
        *self.hashes.get(slot)
    }

    /// A column of words of the key in a slot; zero for a null and for columns of other forms.
    pub fn word(&self, column: usize, slot: u32) -> i64 {
        self.columns[column].words().map_or(0, |words| *words.get(slot))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct FrozenKeyColumn {
    pub(super) store: FrozenStore,
    pub(crate) nulls: Option<FrozenPages<bool>>,
}

#[derive(Clone, Debug)]
pub(super) enum FrozenStore {
    Words(FrozenPages<i64>),
    Wides(FrozenPages<i128>),
    Bytes(FrozenArena),
}

impl FrozenKeyColumn {
    /// The cells of a column of words; zero where null.
    pub(crate) fn words(&self) -> Option<&FrozenPages<i64>> {
        if let FrozenStore::Words(pages) = &self.store { Some(pages) } else { None }
    }

    /// The cells of a column of decimals; zero where null.
    pub(crate) fn wides(&self) -> Option<&FrozenPages<i128>> {
        if let FrozenStore::Wides(pages) = &self.store { Some(pages) } else { None }
    }

    /// A string or binary value; empty where null, and for columns of other forms.
    pub(crate) fn bytes(&self, slot: u32) -> &[u8] {
        if let FrozenStore::Bytes(arena) = &self.store { arena.get(slot) } else { &[] }
    }
}
