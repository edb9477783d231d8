//! Values by slot, in copy-on-write pages.
//!
//! A snapshot shares pages with the running operator; a page is copied when the operator first writes to it while the
//! snapshot still holds it. Whether a page is shared is told by a flag of the operator's own, not by asking the reference
//! count, so that a write costs no atomic operation.
//!
//! Invariant: a page that snapshots alone still hold, because the operator has copied or dropped it, is counted as theirs
//! until the last of them lets go.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::memory::{Held, Memory};

const PAGE_BITS: u32 = 12;
/// Slots per page.
pub(crate) const PAGE_SLOTS: usize = 1 << PAGE_BITS;
const PAGE_MASK: usize = PAGE_SLOTS - 1;

/// The page of a slot, and the place in it.
#[inline]
pub(crate) fn place_of(slot: u32) -> (usize, usize) {
    (slot as usize >> PAGE_BITS, slot as usize & PAGE_MASK)
}

/// What a page may hold.
pub trait Cell: Clone {
    /// Bytes that these cells point to.
    fn heap_bytes(cells: &[Self]) -> usize {
        let _plain = cells;
        0
    }
}

macro_rules! plain_cells {
    ($($cell:ty),*) => { $(impl Cell for $cell {})* };
}

plain_cells!(bool, u8, u32, i32, u64, i64, i128, Option<i64>, Option<f64>, Option<i128>);

impl Cell for Option<Arc<[u8]>> {
    fn heap_bytes(cells: &[Self]) -> usize {
        // Each has two counts beside the bytes.
        cells.iter().flatten().map(|bytes| 2 * size_of::<usize>() + bytes.len()).sum()
    }
}

/// A page's values while the operator has lent them to snapshots. They do not change.
#[derive(Debug)]
pub(crate) struct Lent<T: Cell> {
    values: Vec<T>,
    memory: Memory,
    /// The operator does not hold it any more.
    left: AtomicBool,
}

impl<T: Cell> Lent<T> {
    fn bytes(&self) -> u64 {
        (size_of::<Self>() + self.values.capacity() * size_of::<T>() + T::heap_bytes(&self.values)) as u64
    }
}

impl<T: Cell> Drop for Lent<T> {
    fn drop(&mut self) {
        if *self.left.get_mut() {
            self.memory.sub(self.bytes());
        }
    }
}

/// The operator's hold on a page that it has lent.
#[derive(Debug)]
struct Loan<T: Cell>(Arc<Lent<T>>);

impl<T: Cell> Loan<T> {
    /// The values; copies them if a snapshot still holds them.
    fn take(mut self) -> Vec<T> {
        match Arc::get_mut(&mut self.0) {
            Some(lent) => mem::take(&mut lent.values),
            None => self.0.values.clone(),
        }
    }
}

impl<T: Cell> Drop for Loan<T> {
    fn drop(&mut self) {
        // Counted first: who lets go last gives it back, which may be this.
        self.0.memory.add(self.0.bytes());
        self.0.left.store(true, Ordering::Relaxed);
    }
}

/// A run of values that is either the operator's own or lent to snapshots.
#[derive(Debug)]
pub(crate) struct Page<T: Cell> {
    /// Empty if it is lent.
    own: Vec<T>,
    lent: Option<Loan<T>>,
}

impl<T: Cell> Page<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { own: Vec::with_capacity(capacity), lent: None }
    }

    #[inline]
    pub(crate) fn values(&self) -> &[T] {
        match &self.lent {
            None => &self.own,
            Some(loan) => &loan.0.values,
        }
    }

    /// The values for writing; copies them if a snapshot still holds them.
    #[inline]
    pub(crate) fn own(&mut self) -> &mut Vec<T> {
        if self.lent.is_some() {
            self.take_back();
        }
        &mut self.own
    }

    #[cold]
    fn take_back(&mut self) {
        if let Some(loan) = self.lent.take() {
            self.own = loan.take();
        }
    }

    pub(crate) fn share(&mut self, memory: &Memory) -> Arc<Lent<T>> {
        let own = &mut self.own;
        let loan = self.lent.get_or_insert_with(|| {
            let (values, memory) = (mem::take(own), Arc::clone(memory));
            Loan(Arc::new(Lent { values, memory, left: AtomicBool::new(false) }))
        });
        Arc::clone(&loan.0)
    }

    pub(crate) fn is_own(&self) -> bool {
        self.lent.is_none()
    }
}

/// Values by slot.
#[derive(Debug)]
pub struct Pages<T: Cell> {
    pages: Vec<Page<T>>,
    len: usize,
}

impl<T: Cell> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0 }
    }
}

impl<T: Cell> Pages<T> {
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
            self.pages.push(Page::with_capacity(capacity));
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

    /// Shares all pages with a snapshot, which counts what it holds alone. Costs nothing per slot.
    pub fn freeze(&mut self, memory: &Memory) -> FrozenPages<T> {
        FrozenPages { pages: Arc::new(Handles::new(&mut self.pages, memory)), len: self.len }
    }

    /// Bytes held, what values point to aside.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

/// Pages as a snapshot holds them.
#[derive(Debug)]
pub(crate) struct Handles<T: Cell> {
    pages: Vec<Arc<Lent<T>>>,
    _held: Held,
}

impl<T: Cell> Handles<T> {
    pub(crate) fn new(pages: &mut [Page<T>], memory: &Memory) -> Self {
        let held = Held::new(memory, pages.len() * size_of::<Arc<Lent<T>>>() + size_of::<Self>());
        Self { pages: pages.iter_mut().map(|page| page.share(memory)).collect(), _held: held }
    }

    /// The values of a page; none if there is no such page.
    #[inline]
    pub(crate) fn page(&self, page: usize) -> &[T] {
        self.pages.get(page).map_or(&[], |page| page.values.as_slice())
    }
}

/// Values by slot as of a snapshot.
#[derive(Clone, Debug)]
pub struct FrozenPages<T: Cell> {
    pages: Arc<Handles<T>>,
    len: usize,
}

impl<T: Cell> FrozenPages<T> {
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
        &self.pages.page(page)[cell]
    }

    /// The values of a page, in the order of their slots; none if there is no such page.
    pub(crate) fn page(&self, page: usize) -> &[T] {
        self.pages.page(page)
    }

    /// All pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &[T]> {
        self.pages.pages.iter().map(|page| page.values.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::uncounted;

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
        let frozen = pages.freeze(&uncounted());
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
        let before = pages.freeze(&uncounted()).get(0) as *const u8;
        *pages.get_mut(0) = 2;
        assert_eq!(pages.get(0) as *const u8, before);
    }
}
