//! Strings and binary values by slot: bytes in append-only chunks, slots that point into them.
//!
//! Invariant: bytes that a slot points to never change, so that a snapshot shares chunks whatever the operator does next.
//! Space of removed values is reclaimed by rewriting the arena once most of it is dead.

use std::mem;
use std::sync::Arc;

use weir_types::{Code, Error, Result};

use crate::memory::Memory;
use crate::pages::{Cell, FrozenPages, Handles, Page, Pages};

/// A chunk that has reached this many bytes is not appended to.
const CHUNK_BYTES: usize = 64 * 1024;
/// A shared chunk below this size is copied rather than left behind half empty.
const COPY_BYTES: usize = 4 * 1024;

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    chunk: u32,
    offset: u32,
    len: u32,
}

impl Cell for Place {}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunks: Vec<Page<u8>>,
    places: Pages<Place>,
    live: usize,
    dead: usize,
}

impl Arena {
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> &[u8] {
        let place = *self.places.get(slot);
        if place.len == 0 {
            return &[];
        }
        &self.chunks[place.chunk as usize].values()[place.offset as usize..][..place.len as usize]
    }

    pub(crate) fn push(&mut self, value: &[u8]) -> Result<()> {
        let place = self.append(value)?;
        self.places.push(place);
        Ok(())
    }

    /// Replaces the value of a slot that was removed.
    pub(crate) fn set(&mut self, slot: u32, value: &[u8]) -> Result<()> {
        *self.places.get_mut(slot) = self.append(value)?;
        Ok(())
    }

    /// Gives up the bytes of a slot; it reads as empty until it is set again.
    pub(crate) fn remove(&mut self, slot: u32) -> Result<()> {
        let place = mem::take(self.places.get_mut(slot));
        self.live -= place.len as usize;
        self.dead += place.len as usize;
        if self.dead > CHUNK_BYTES && self.dead > self.live {
            self.compact()?;
        }
        Ok(())
    }

    fn append(&mut self, value: &[u8]) -> Result<Place> {
        let too_long = || Error::new(Code::ResourceExhausted, "a value in state is longer than 4 GiB");
        let len = u32::try_from(value.len()).map_err(|_| too_long())?;
        if len == 0 {
            return Ok(Place::default());
        }
        let fits = self.chunks.last().is_some_and(|chunk| {
            let used = chunk.values().len();
            used + value.len() <= CHUNK_BYTES && (chunk.is_own() || used <= COPY_BYTES)
        });
        if !fits {
            self.chunks.push(Page::with_capacity(0));
        }
        let chunk = self.chunks.len() - 1;
        let bytes = self.chunks[chunk].own();
        let place = Place {
            chunk: u32::try_from(chunk).map_err(|_| too_long())?,
            offset: u32::try_from(bytes.len()).map_err(|_| too_long())?,
            len,
        };
        bytes.extend_from_slice(value);
        self.live += value.len();
        Ok(place)
    }

    fn compact(&mut self) -> Result<()> {
        let mut compacted = Arena::default();
        for slot in 0..self.places.len() {
            compacted.push(self.get(slot as u32))?;
        }
        *self = compacted;
        Ok(())
    }

    pub(crate) fn slots(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn freeze(&mut self, memory: &Memory) -> FrozenArena {
        let chunks = Arc::new(Handles::new(&mut self.chunks, memory));
        FrozenArena { chunks, places: self.places.freeze(memory) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.live + self.dead + self.places.bytes()
    }
}

/// An arena as of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct FrozenArena {
    chunks: Arc<Handles<u8>>,
    places: FrozenPages<Place>,
}

impl FrozenArena {
    pub(crate) fn get(&self, slot: u32) -> &[u8] {
        let place = *self.places.get(slot);
        if place.len == 0 {
            return &[];
        }
        &self.chunks.page(place.chunk as usize)[place.offset as usize..][..place.len as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_snapshots_chunk_borders_and_removal() {
        let value = |i: u32| vec![i as u8; (i as usize * 7919) % 300];
        let mut arena = Arena::default();
        for i in 0..1000 {
            arena.push(&value(i)).unwrap();
        }
        arena.push(&vec![9; 3 * CHUNK_BYTES]).unwrap();
        let frozen = arena.freeze(&crate::memory::uncounted());
        for slot in 0..900 {
            arena.remove(slot).unwrap();
        }
        arena.set(5, b"again").unwrap();
        assert!((0..1000).all(|i| frozen.get(i) == value(i)));
        assert_eq!(arena.get(5), b"again");
        assert!((900..1000).all(|i| arena.get(i) == value(i)));
        assert_eq!(arena.get(1000).len(), 3 * CHUNK_BYTES);
    }

    #[test]
    fn dead_bytes_are_reclaimed() {
        let mut arena = Arena::default();
        arena.push(b"first").unwrap();
        for _ in 0..10_000 {
            arena.remove(0).unwrap();
            arena.set(0, &[1; 1000]).unwrap();
        }
        assert_eq!(arena.get(0), [1; 1000]);
        assert!(arena.bytes() < 3 * CHUNK_BYTES, "{}", arena.bytes());
    }
}
