//! The keys of a state table, by slot: a hash index over columns in copy-on-write pages.
//!
//! Accumulators are kept beside it in [`Pages`] of their own, addressed by the same slots. Work is done per batch:
//! [`KeyTable::lookup_or_insert`] turns rows into slots, typed loops over the slots do the rest.

mod column;
mod frozen;

use std::mem;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use weir_types::{Code, Error, Result};

use crate::changes::{Bits, Changes, Since};
use crate::graves::Graves;
use crate::memory::Memory;
use crate::pages::Pages;
use crate::values::{BytesArray, Data, Form, Values};
pub use column::KeyValue;
use column::{KeyColumn, Store, put};
pub(crate) use frozen::FrozenKeyColumn;
pub use frozen::FrozenKeys;

/// Keys by slot. Slots are dense: a removed key's slot goes to the next new key.
#[derive(Debug)]
pub struct KeyTable {
    index: HashTable<u32>,
    hashes: Pages<u64>,
    columns: Vec<KeyColumn>,
    free: Free,
    changes: Changes,
    /// Keys that were removed since a checkpoint that has completed, if any was.
    graves: Option<Box<Graves>>,
}

/// Slots without a key.
#[derive(Debug, Default)]
struct Free {
    stack: Vec<u32>,
    /// The same as a set.
    vacant: Arc<Bits>,
}

impl Free {
    fn pop(&mut self) -> Option<u32> {
        let slot = self.stack.pop()?;
        Arc::make_mut(&mut self.vacant).clear(slot);
        Some(slot)
    }

    fn push(&mut self, slot: u32) {
        self.stack.push(slot);
        Arc::make_mut(&mut self.vacant).set(slot);
    }
}

/// Subtasks own ranges of hashes, so the upper bits of a hash say little within one subtask, and it is these that the
/// index compares first.
#[inline]
fn spread(hash: u64) -> u64 {
    hash ^ (hash << 32)
}

impl KeyTable {
    /// An empty table with room for `capacity` keys whose columns have these forms.
    pub fn new(forms: &[Form], capacity: usize) -> Self {
        Self {
            index: HashTable::with_capacity(capacity),
            hashes: Pages::new(),
            columns: forms.iter().map(|&form| KeyColumn::new(form)).collect(),
            free: Free::default(),
            changes: Changes::default(),
            graves: None,
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.hashes.len() - self.free.stack.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the greatest slot in use: accumulators must have this many slots.
    pub fn slots(&self) -> usize {
        self.hashes.len()
    }

    /// For each of `rows`, the slot of its key; a key not seen before gets one. `hashes` and `keys` are indexed by row,
    /// `slots` (overwritten) by position in `rows`.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` beyond 2³² keys.
    pub fn lookup_or_insert(
        &mut self,
        hashes: &[u64],
        keys: &[Values],
        rows: &[u32],
        slots: &mut Vec<u32>,
    ) -> Result<()> {
        slots.clear();
        slots.reserve(rows.len());
        if let ([Values { data: Data::Words(words), nulls: None }], [KeyColumn { nulls: None, .. }]) =
            (keys, self.columns.as_slice())
        {
            return self.lookup_or_insert_words(hashes, words, rows, slots);
        }
        for &row in rows {
            slots.push(self.entry(hashes[row as usize], keys, row as usize)?);
        }
        Ok(())
    }

    /// One column of words without nulls: compares the key itself, not its hash.
    fn lookup_or_insert_words(
        &mut self,
        hashes: &[u64],
        words: &[i64],
        rows: &[u32],
        slots: &mut Vec<u32>,
    ) -> Result<()> {
        let Self { index, hashes: stored, columns, free, .. } = self;
        let [KeyColumn { store: Store::Words(pages), .. }] = columns.as_mut_slice() else {
            return Err(Error::internal("a key column changed its type"));
        };
        for &row in rows {
            let (hash, word) = (hashes[row as usize], words[row as usize]);
            let entry = index.entry(spread(hash), |&slot| *pages.get(slot) == word, |&slot| spread(*stored.get(slot)));
            let slot = match entry {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    let (slot, fresh) = next_slot(free, stored.len())?;
                    entry.insert(slot);
                    put(stored, slot, fresh, hash);
                    put(pages, slot, fresh, word);
                    slot
                }
            };
            slots.push(slot);
        }
        Ok(())
    }

    fn entry(&mut self, hash: u64, keys: &[Values], row: usize) -> Result<u32> {
        let Self { index, hashes: stored, columns, free, .. } = self;
        let equal = |&slot: &u32| {
            *stored.get(slot) == hash && columns.iter().zip(keys).all(|(column, key)| column.equals(slot, key, row))
        };
        match index.entry(spread(hash), equal, |&slot| spread(*stored.get(slot))) {
            Entry::Occupied(entry) => Ok(*entry.get()),
            Entry::Vacant(entry) => {
                let (slot, fresh) = next_slot(free, stored.len())?;
                for (column, key) in columns.iter_mut().zip(keys) {
                    column.write(slot, fresh, key, row)?;
                }
                entry.insert(slot);
                put(stored, slot, fresh, hash);
                Ok(slot)
            }
        }
    }

    /// The slot of a row's key, if it is there.
    pub fn find(&self, hash: u64, keys: &[Values], row: usize) -> Option<u32> {
        let equal = |&slot: &u32| {
            *self.hashes.get(slot) == hash
                && self.columns.iter().zip(keys).all(|(column, key)| column.equals(slot, key, row))
        };
        self.index.find(spread(hash), equal).copied()
    }

    /// Notes that the rows in these slots have changed, so that the next checkpoint writes them. Whoever changes a row, or
    /// adds one, has to say so.
    pub fn mark(&mut self, slots: &[u32]) {
        slots.iter().for_each(|&slot| self.changes.mark(slot));
    }

    /// Forgets the key in `slot`; the slot will be given to another key.
    ///
    /// # Errors
    /// `INTERNAL` if no key is there.
    pub fn remove(&mut self, slot: u32) -> Result<()> {
        let hash = spread(*self.hashes.get(slot));
        match self.index.find_entry(hash, |&other| other == slot) {
            Ok(entry) => entry.remove(),
            Err(_) => return Err(Error::internal(format!("slot {slot} holds no key"))),
        };
        let forms = || self.columns.iter().map(KeyColumn::form).collect::<Vec<_>>();
        let mut graves = mem::take(&mut self.graves).unwrap_or_else(|| Box::new(Graves::new(forms())));
        graves.bury(self, slot)?;
        self.graves = Some(graves);
        self.free.push(slot);
        self.columns.iter_mut().try_for_each(|column| column.remove(slot))
    }

    /// The hash of the key in a slot.
    #[inline]
    pub fn hash(&self, slot: u32) -> u64 {
        *self.hashes.get(slot)
    }

    /// One column of the key in a slot.
    #[inline]
    pub fn key(&self, column: usize, slot: u32) -> KeyValue<'_> {
        self.columns[column].value(slot)
    }

    /// Adds the key that another table of the same forms has in a slot, unless it is there already.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` beyond 2³² keys, `INTERNAL` if the forms are others.
    pub(crate) fn insert_from(&mut self, other: &Self, slot: u32) -> Result<()> {
        let Self { index, hashes: stored, columns, .. } = self;
        let hash = other.hash(slot);
        let equal = |&own: &u32| {
            *stored.get(own) == hash
                && columns.iter().zip(&other.columns).all(|(column, other)| column.value(own) == other.value(slot))
        };
        if let Entry::Vacant(entry) = index.entry(spread(hash), equal, |&slot| spread(*stored.get(slot))) {
            let (own, _) = next_slot(&mut Free::default(), stored.len())?;
            for (column, other) in columns.iter_mut().zip(&other.columns) {
                column.push(other.value(slot))?;
            }
            entry.insert(own);
            stored.push(hash);
        }
        Ok(())
    }

    /// One key column of all slots, removed ones included.
    pub fn values(&self, column: usize) -> Values {
        let column = &self.columns[column];
        let data = match &column.store {
            Store::Words(pages) => Data::Words(pages.range(0, pages.len()).copied().collect()),
            Store::Wides(pages) => Data::Wides(pages.range(0, pages.len()).copied().collect()),
            Store::Bytes(arena) => {
                let values = (0..arena.slots() as u32).map(|slot| Some(arena.get(slot)));
                Data::Bytes(BytesArray::Binary(values.collect()))
            }
        };
        let nulls = column.nulls.as_ref().map(|nulls| nulls.range(0, nulls.len()).map(|&null| !null).collect());
        Values { data, nulls }
    }

    /// The synchronous part of a snapshot: shares pages and bits, whatever has changed. What the snapshot comes to hold alone
    /// is counted in `memory`.
    ///
    /// If an earlier freeze may have gone another way here than elsewhere, the next one has to be since the start.
    pub fn freeze(&mut self, since: Since, memory: &Memory) -> FrozenKeys {
        let changed = self.changes.freeze(since);
        let (removed, all_known) = match &mut self.graves {
            Some(graves) => graves.freeze(since, memory),
            None => (Vec::new(), true),
        };
        if since == Since::Start {
            self.graves = None;
        }
        FrozenKeys {
            hashes: self.hashes.freeze(memory),
            columns: self.columns.iter_mut().map(|column| column.freeze(memory)).collect(),
            vacant: Arc::clone(&self.free.vacant),
            len: self.len(),
            changed: changed.filter(|_| all_known),
            removed,
        }
    }

    /// Bytes held, keys that were removed since the last snapshots aside.
    pub fn bytes(&self) -> usize {
        self.index.allocation_size()
            + self.hashes.bytes()
            + self.columns.iter().map(KeyColumn::bytes).sum::<usize>()
            + self.free.stack.len() * size_of::<u32>()
            // A snapshot may have a copy of its own.
            + 2 * self.free.vacant.bytes()
            + self.changes.bytes()
    }
}

fn next_slot(free: &mut Free, slots: usize) -> Result<(u32, bool)> {
    match free.pop() {
        Some(slot) => Ok((slot, false)),
        None => match u32::try_from(slots) {
            Ok(slot) => Ok((slot, true)),
            Err(_) => Err(Error::new(Code::ResourceExhausted, "a state table holds 2³² keys already")
                .with_hint("Raise the parallelism, so that each subtask holds fewer keys.")),
        },
    }
}
