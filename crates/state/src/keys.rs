//! The keys of a state table, by slot: a hash index over columns in copy-on-write pages.
//!
//! Accumulators are kept beside it in [`Pages`] of their own, addressed by the same slots. Work is done per batch:
//! [`KeyTable::lookup_or_insert`] turns rows into slots, typed loops over the slots do the rest.

use std::mem;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use weir_types::{Code, Error, Result};

use crate::arena::{Arena, FrozenArena};
use crate::changes::{Bits, Changes, Since};
use crate::graves::Graves;
use crate::pages::{FrozenPages, Pages};
use crate::values::{BytesArray, Data, Form, Values};

/// One key column by slot.
#[derive(Debug)]
struct KeyColumn {
    store: Store,
    /// Which slots are null; none until the first null.
    nulls: Option<Pages<bool>>,
}

#[derive(Debug)]
enum Store {
    Words(Pages<i64>),
    Wides(Pages<i128>),
    Bytes(Arena),
}

impl KeyColumn {
    fn new(form: Form) -> Self {
        let store = match form {
            Form::Word | Form::Float => Store::Words(Pages::new()),
            Form::Wide => Store::Wides(Pages::new()),
            Form::Bytes => Store::Bytes(Arena::default()),
        };
        Self { store, nulls: None }
    }

    #[inline]
    fn equals(&self, slot: u32, values: &Values, row: usize) -> bool {
        if self.nulls.is_some() || values.nulls.is_some() {
            let null = self.nulls.as_ref().is_some_and(|nulls| *nulls.get(slot));
            if null || values.is_null(row) {
                return null && values.is_null(row);
            }
        }
        match (&self.store, &values.data) {
            (Store::Words(pages), Data::Words(words)) => *pages.get(slot) == words[row],
            (Store::Wides(pages), Data::Wides(wides)) => *pages.get(slot) == wides[row],
            (Store::Bytes(arena), Data::Bytes(bytes)) => arena.get(slot) == bytes.value(row),
            _ => false,
        }
    }

    /// Writes a row's value to `slot`, which is the next new one or one that was removed.
    fn write(&mut self, slot: u32, fresh: bool, values: &Values, row: usize) -> Result<()> {
        let null = values.is_null(row);
        if null && self.nulls.is_none() {
            let mut nulls = Pages::new();
            nulls.grow(self.slots(), &false);
            self.nulls = Some(nulls);
        }
        if let Some(nulls) = &mut self.nulls {
            put(nulls, slot, fresh, null);
        }
        match (&mut self.store, &values.data) {
            (Store::Words(pages), Data::Words(words)) => put(pages, slot, fresh, if null { 0 } else { words[row] }),
            (Store::Wides(pages), Data::Wides(wides)) => put(pages, slot, fresh, if null { 0 } else { wides[row] }),
            (Store::Bytes(arena), Data::Bytes(bytes)) => {
                let value = if null { &[] } else { bytes.value(row) };
                return if fresh { arena.push(value) } else { arena.set(slot, value) };
            }
            _ => return Err(Error::internal("a key column changed its type")),
        }
        Ok(())
    }

    /// Appends what another column of the same form has in a slot.
    fn push(&mut self, value: KeyValue<'_>) -> Result<()> {
        let null = value == KeyValue::Null;
        if null && self.nulls.is_none() {
            let mut nulls = Pages::new();
            nulls.grow(self.slots(), &false);
            self.nulls = Some(nulls);
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.push(null);
        }
        match (&mut self.store, value) {
            (Store::Words(pages), KeyValue::Word(word)) => pages.push(word),
            (Store::Words(pages), KeyValue::Null) => pages.push(0),
            (Store::Wides(pages), KeyValue::Wide(wide)) => pages.push(wide),
            (Store::Wides(pages), KeyValue::Null) => pages.push(0),
            (Store::Bytes(arena), KeyValue::Bytes(bytes)) => return arena.push(bytes),
            (Store::Bytes(arena), KeyValue::Null) => return arena.push(&[]),
            _ => return Err(Error::internal("a key column changed its type")),
        }
        Ok(())
    }

    fn value(&self, slot: u32) -> KeyValue<'_> {
        if self.nulls.as_ref().is_some_and(|nulls| *nulls.get(slot)) {
            return KeyValue::Null;
        }
        match &self.store {
            Store::Words(pages) => KeyValue::Word(*pages.get(slot)),
            Store::Wides(pages) => KeyValue::Wide(*pages.get(slot)),
            Store::Bytes(arena) => KeyValue::Bytes(arena.get(slot)),
        }
    }

    fn form(&self) -> Form {
        match self.store {
            Store::Words(_) => Form::Word,
            Store::Wides(_) => Form::Wide,
            Store::Bytes(_) => Form::Bytes,
        }
    }

    fn slots(&self) -> usize {
        match &self.store {
            Store::Words(pages) => pages.len(),
            Store::Wides(pages) => pages.len(),
            Store::Bytes(arena) => arena.slots(),
        }
    }

    fn remove(&mut self, slot: u32) -> Result<()> {
        match &mut self.store {
            Store::Bytes(arena) => arena.remove(slot),
            Store::Words(_) | Store::Wides(_) => Ok(()),
        }
    }

    fn freeze(&mut self) -> FrozenKeyColumn {
        let store = match &mut self.store {
            Store::Words(pages) => FrozenStore::Words(pages.freeze()),
            Store::Wides(pages) => FrozenStore::Wides(pages.freeze()),
            Store::Bytes(arena) => FrozenStore::Bytes(arena.freeze()),
        };
        FrozenKeyColumn { store, nulls: self.nulls.as_mut().map(Pages::freeze) }
    }

    fn bytes(&self) -> usize {
        let store = match &self.store {
            Store::Words(pages) => pages.bytes(),
            Store::Wides(pages) => pages.bytes(),
            Store::Bytes(arena) => arena.bytes(),
        };
        store + self.nulls.as_ref().map_or(0, Pages::bytes)
    }
}

fn put<T: Clone>(pages: &mut Pages<T>, slot: u32, fresh: bool, value: T) {
    if fresh {
        pages.push(value);
    } else {
        *pages.get_mut(slot) = value;
    }
}

/// One value of a key column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyValue<'a> {
    /// A null.
    Null,
    /// See [`Form::Word`].
    Word(i64),
    /// See [`Form::Wide`].
    Wide(i128),
    /// See [`Form::Bytes`].
    Bytes(&'a [u8]),
}

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

    /// The synchronous part of a snapshot: shares pages and bits, whatever has changed.
    ///
    /// If an earlier freeze may have gone another way here than elsewhere, the next one has to be since the start.
    pub fn freeze(&mut self, since: Since) -> FrozenKeys {
        let changed = self.changes.freeze(since);
        let (removed, all_known) = match &mut self.graves {
            Some(graves) => graves.freeze(since),
            None => (Vec::new(), true),
        };
        if since == Since::Start {
            self.graves = None;
        }
        FrozenKeys {
            hashes: self.hashes.freeze(),
            columns: self.columns.iter_mut().map(KeyColumn::freeze).collect(),
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

/// The keys of a table as of a snapshot.
#[derive(Clone, Debug)]
pub struct FrozenKeys {
    pub(crate) hashes: FrozenPages<u64>,
    pub(crate) columns: Vec<FrozenKeyColumn>,
    /// Slots without a key.
    vacant: Arc<Bits>,
    len: usize,
    /// Slots that have changed; none: all have.
    changed: Option<Arc<Bits>>,
    removed: Vec<Arc<FrozenKeys>>,
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
    store: FrozenStore,
    pub(crate) nulls: Option<FrozenPages<bool>>,
}

#[derive(Clone, Debug)]
enum FrozenStore {
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
