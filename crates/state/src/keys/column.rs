//! One column of the keys of a state table, by slot.

use weir_types::{Error, Result};

use super::frozen::{FrozenKeyColumn, FrozenStore};
use crate::arena::Arena;
use crate::memory::Memory;
use crate::pages::{Cell, Pages};
use crate::values::{Data, Form, Values};

/// One key column by slot.
#[derive(Debug)]
pub(super) struct KeyColumn {
    pub(super) store: Store,
    /// Which slots are null; none until the first null.
    pub(super) nulls: Option<Pages<bool>>,
}

#[derive(Debug)]
pub(super) enum Store {
    Words(Pages<i64>),
    Wides(Pages<i128>),
    Bytes(Arena),
}

impl KeyColumn {
    pub(super) fn new(form: Form) -> Self {
        let store = match form {
            Form::Word | Form::Float => Store::Words(Pages::new()),
            Form::Wide => Store::Wides(Pages::new()),
            Form::Bytes => Store::Bytes(Arena::default()),
        };
        Self { store, nulls: None }
    }

    #[inline]
    pub(super) fn equals(&self, slot: u32, values: &Values, row: usize) -> bool {
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
    pub(super) fn write(&mut self, slot: u32, fresh: bool, values: &Values, row: usize) -> Result<()> {
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
    pub(super) fn push(&mut self, value: KeyValue<'_>) -> Result<()> {
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

    pub(super) fn value(&self, slot: u32) -> KeyValue<'_> {
        if self.nulls.as_ref().is_some_and(|nulls| *nulls.get(slot)) {
            return KeyValue::Null;
        }
        match &self.store {
            Store::Words(pages) => KeyValue::Word(*pages.get(slot)),
            Store::Wides(pages) => KeyValue::Wide(*pages.get(slot)),
            Store::Bytes(arena) => KeyValue::Bytes(arena.get(slot)),
        }
    }

    pub(super) fn form(&self) -> Form {
        match self.store {
            Store::Words(_) => Form::Word,
            Store::Wides(_) => Form::Wide,
            Store::Bytes(_) => Form::Bytes,
        }
    }

    pub(super) fn slots(&self) -> usize {
        match &self.store {
            Store::Words(pages) => pages.len(),
            Store::Wides(pages) => pages.len(),
            Store::Bytes(arena) => arena.slots(),
        }
    }

    pub(super) fn remove(&mut self, slot: u32) -> Result<()> {
        match &mut self.store {
            Store::Bytes(arena) => arena.remove(slot),
            Store::Words(_) | Store::Wides(_) => Ok(()),
        }
    }

    pub(super) fn freeze(&mut self, memory: &Memory) -> FrozenKeyColumn {
        let store = match &mut self.store {
            Store::Words(pages) => FrozenStore::Words(pages.freeze(memory)),
            Store::Wides(pages) => FrozenStore::Wides(pages.freeze(memory)),
            Store::Bytes(arena) => FrozenStore::Bytes(arena.freeze(memory)),
        };
        FrozenKeyColumn { store, nulls: self.nulls.as_mut().map(|nulls| nulls.freeze(memory)) }
    }

    pub(super) fn bytes(&self) -> usize {
        let store = match &self.store {
            Store::Words(pages) => pages.bytes(),
            Store::Wides(pages) => pages.bytes(),
            Store::Bytes(arena) => arena.bytes(),
        };
        store + self.nulls.as_ref().map_or(0, Pages::bytes)
    }
}

#[inline]
pub(super) fn put<T: Cell>(pages: &mut Pages<T>, slot: u32, fresh: bool, value: T) {
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
