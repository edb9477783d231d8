//! Values by slot, in copy-on-write pages.
//!
//! A snapshot shares pages with the running operator; a page is copied when the operator first writes to it while the
//! snapshot still holds it. Ownership is told by an enum, not by asking the reference count, so that a write costs no
//! atomic operation. A page owned by the operator has changed since the last snapshot, which is what an incremental
//! checkpoint needs to know.

use std::mem;
use std::sync::Arc;

const PAGE_BITS: u32 = 12;
/// Slots per page.
const PAGE_SLOTS: usize = 1 << PAGE_BITS;
const PAGE_MASK: usize = PAGE_SLOTS - 1;

/// The page of a slot, and the place in it.
#[inline]
pub(crate) fn place_of(slot: u32) -> (usize, usize) {
    (slot as usize >> PAGE_BITS, slot as usize & PAGE_MASK)
}

/// A run of values that is either the operator's own or shared with a snapshot.
#[derive(Clone, Debug)]
pub(crate) enum Page<T> {
    Own(Vec<T>),
    Shared(Arc<Vec<T>>),
}

impl<T: Clone> Page<T> {
    pub(crate) fn values(&self) -> &[T] {
        match self {
            Page::Own(values) => values,
            Page::Shared(values) => values,
        }
    }

    /// The values for writing; copies them if a snapshot still holds them.
    #[inline]
    pub(crate) fn own(&mut self) -> &mut Vec<T> {
        if let Page::Shared(_) = self {
            self.take_back();
        }
        match self {
            Page::Own(values) => values,
            Page::Shared(values) => Arc::make_mut(values),
        }
    }

    #[cold]
    fn take_back(&mut self) {
        if let Page::Shared(shared) = mem::replace(self, Page::Own(Vec::new())) {
            *self = Page::Own(Arc::try_unwrap(shared).unwrap_or_else(|shared| shared.as_ref().clone()));
        }
    }

    pub(crate) fn share(&mut self) -> Arc<Vec<T>> {
        if let Page::Own(values) = self {
            *self = Page::Shared(Arc::new(mem::take(values)));
        }
        match self {
            Page::Shared(values) => Arc::clone(values),
            Page::Own(values) => Arc::new(values.clone()),
        }
    }

    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Page::Own(_))
    }
}

/// Values by slot.
#[derive(Debug)]
pub struct Pages<T> {
    pages: Vec<Page<T>>,
    len: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Pages<T> {
    /// No slots.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no slots.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a slot.
    pub fn push(&mut self, value: T) {
        if self.len & PAGE_MASK == 0 {
            // The first page grows as needed: there may be very many small tables. Later ones are filled anyway.
            let capacity = if self.len == 0 { 0 } else { PAGE_SLOTS };
            self.pages.push(Page::Own(Vec::with_capacity(capacity)));
        }
        self.pages[self.len >> PAGE_BITS].own().push(value);
        self.len += 1;
    }

    /// Adds slots up to `len`, all with the same value.
    pub fn grow(&mut self, len: usize, value: &T) {
        while self.len < len {
            self.push(value.clone());
            let room = (len - self.len).min((PAGE_SLOTS - (self.len & PAGE_MASK)) & PAGE_MASK);
            if room > 0 {
                let page = self.pages[self.len >> PAGE_BITS].own();
                page.resize(page.len() + room, value.clone());
                self.len += room;
            }
        }
    }

    /// The value in a slot.
    #[inline]
    pub fn get(&self, slot: u32) -> &T {
        let slot = slot as usize;
        &self.pages[slot >> PAGE_BITS].values()[slot & PAGE_MASK]
    }

    /// The value in a slot, for writing.
    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> &mut T {
        let slot = slot as usize;
        &mut self.pages[slot >> PAGE_BITS].own()[slot & PAGE_MASK]
    }

    /// The values of slots `start..end`, in order.
    pub fn range(&self, start: usize, end: usize) -> impl Iterator<Item = &T> {
        let pages = &self.pages;
        (start >> PAGE_BITS..end.div_ceil(PAGE_SLOTS)).flat_map(move |page| {
            let base = page << PAGE_BITS;
            let values = pages[page].values();
            values[start.saturating_sub(base)..(end - base).min(values.len())].iter()
        })
    }

    /// Shares all pages with a snapshot. Costs nothing per slot.
    pub fn freeze(&mut self) -> FrozenPages<T> {
        FrozenPages { pages: self.pages.iter_mut().map(Page::share).collect(), len: self.len }
    }

    /// Bytes held, what values point to aside.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

/// Values by slot as of a snapshot.
#[derive(Clone, Debug)]
pub struct FrozenPages<T> {
    pages: Vec<Arc<Vec<T>>>,
    len: usize,
}

impl<T> FrozenPages<T> {
    /// Number of slots.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no slots.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value in a slot.
    #[inline]
    pub fn get(&self, slot: u32) -> &T {
        let (page, cell) = place_of(slot);
        &self.pages[page][cell]
    }

    /// The values of a page, in the order of their slots; none if there is no such page.
    pub(crate) fn page(&self, page: usize) -> &[T] {
        self.pages.get(page).map_or(&[], |page| page.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_fills_across_page_borders() {
        for (first, then) in [(0, 1), (1, 4096), (4095, 4096), (4096, 4097), (10, 20_000), (8192, 8192)] {
            let mut pages = Pages::new();
            pages.grow(first, &1);
            pages.grow(then, &2);
            let values: Vec<i32> = pages.range(0, pages.len()).copied().collect();
            assert_eq!(values, [vec![1; first], vec![2; then.max(first) - first]].concat(), "{first} {then}");
            assert!((0..then.max(first)).all(|slot| *pages.get(slot as u32) == if slot < first { 1 } else { 2 }));
        }
    }

    #[test]
    fn ranges_cut_pages_at_both_ends() {
        let mut pages = Pages::new();
        (0..10_000u32).for_each(|value| pages.push(value));
        for (start, end) in [(0, 0), (5, 5), (0, 4096), (4096, 8192), (4000, 9000), (9999, 10_000)] {
            assert!(pages.range(start, end).copied().eq(start as u32..end as u32), "{start}..{end}");
        }
    }

    #[test]
    fn a_snapshot_keeps_its_values_while_the_operator_writes() {
        let mut pages = Pages::new();
        pages.grow(5000, &0u64);
        let frozen = pages.freeze();
        *pages.get_mut(4999) = 7;
        pages.push(8);
        assert_eq!((frozen.len(), *frozen.get(4999)), (5000, 0));
        assert_eq!((pages.len(), *pages.get(4999), *pages.get(5000)), (5001, 7, 8));
        // The untouched page is still shared, the other one is not.
        assert_eq!(pages.pages.iter().map(Page::is_own).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_page_whose_snapshot_is_gone_is_taken_back_without_a_copy() {
        let mut pages = Pages::new();
        pages.grow(10, &1u8);
        let before = pages.freeze().get(0) as *const u8;
        *pages.get_mut(0) = 2;
        assert_eq!(pages.get(0) as *const u8, before);
    }
}
