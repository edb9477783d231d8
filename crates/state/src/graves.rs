//! Keys that were removed from a table since a checkpoint that has completed: the tombstones of the next one.
//!
//! Invariant: either every such key is here, or it is known that some are not; then the table is written whole. So what is
//! kept is bounded by the table itself: with more tombstones than rows, writing the rows is the cheaper way.

use std::mem;
use std::sync::Arc;

use weir_types::Result;

use crate::changes::Since;
use crate::keys::{FrozenKeys, KeyTable};
use crate::memory::Memory;
use crate::values::Form;

/// As many keys are kept at least, however small the table is.
const KEYS_KEPT: usize = 4096;
/// Freezes whose keys are kept apart, at most; so many in a row that nothing builds on are rare.
const FREEZES_KEPT: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Graves {
    forms: Vec<Form>,
    /// Since the last freeze.
    fresh: KeyTable,
    fresh_complete: bool,
    /// What the last freeze has handed out.
    frozen: Vec<Arc<FrozenKeys>>,
    frozen_complete: bool,
}

impl Graves {
    /// None, of keys whose columns have these forms.
    pub(crate) fn new(forms: Vec<Form>) -> Self {
        let fresh = KeyTable::new(&forms, 0);
        Self { forms, fresh, fresh_complete: true, frozen: Vec::new(), frozen_complete: true }
    }

    /// Notes that a table is about to lose the key in a slot.
    pub(crate) fn bury(&mut self, table: &KeyTable, slot: u32) -> Result<()> {
        if !self.fresh_complete {
            return Ok(());
        }
        if self.fresh.len() >= table.len().max(KEYS_KEPT) {
            self.fresh = KeyTable::new(&self.forms, 0);
            self.fresh_complete = false;
            return Ok(());
        }
        self.fresh.insert_from(table, slot)
    }

    /// The keys, and whether these are all.
    pub(crate) fn freeze(&mut self, since: Since, memory: &Memory) -> (Vec<Arc<FrozenKeys>>, bool) {
        let mut fresh = mem::replace(&mut self.fresh, KeyTable::new(&self.forms, 0));
        let fresh_complete = mem::replace(&mut self.fresh_complete, true);
        if since == Since::SameAsLast {
            self.frozen_complete &= fresh_complete && self.frozen.len() < FREEZES_KEPT;
        } else {
            self.frozen.clear();
            self.frozen_complete = fresh_complete;
        }
        if !self.frozen_complete {
            self.frozen.clear();
        } else if !fresh.is_empty() {
            self.frozen.push(Arc::new(fresh.freeze(Since::Start, memory)));
        }
        (self.frozen.clone(), self.frozen_complete)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;
    use crate::key_hash::hash_values;
    use crate::values::Values;

    fn insert(table: &mut KeyTable, numbers: impl Iterator<Item = i64>) -> Vec<u32> {
        let array: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
        let values = [Values::for_key(&array).unwrap()];
        let (mut hashes, mut slots) = (Vec::new(), Vec::new());
        hash_values(&values, array.len(), &mut hashes);
        let rows: Vec<u32> = (0..array.len() as u32).collect();
        table.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap();
        table.mark(&slots);
        slots
    }

    /// The keys that a freeze says are removed, and those that it says have changed.
    fn frozen(table: &mut KeyTable, since: Since) -> (Vec<i64>, Option<Vec<i64>>) {
        let keys = table.freeze(since, &crate::memory::uncounted());
        let mut removed: Vec<i64> =
            keys.removed().flat_map(|keys| keys.slots().map(|slot| keys.word(0, slot)).collect::<Vec<_>>()).collect();
        removed.sort_unstable();
        let mut changed: Vec<i64> = keys.changed_slots().map(|slot| keys.word(0, slot)).collect();
        changed.sort_unstable();
        (removed, keys.knows_changes().then_some(changed))
    }

    #[test]
    fn removed_keys_are_handed_out_until_a_checkpoint_that_holds_them_has_completed() {
        let mut table = KeyTable::new(&[Form::Word], 0);
        let slots = insert(&mut table, 0..5);
        assert_eq!(frozen(&mut table, Since::Start), (vec![], None));
        table.remove(slots[1]).unwrap();
        assert_eq!(frozen(&mut table, Since::LastFreeze), (vec![1], Some(vec![])));
        table.remove(slots[3]).unwrap();
        insert(&mut table, 1..2);
        table.remove(slots[4]).unwrap();
        assert_eq!(frozen(&mut table, Since::SameAsLast), (vec![1, 3, 4], Some(vec![1])));
        assert_eq!(frozen(&mut table, Since::LastFreeze), (vec![], Some(vec![])));
    }

    #[test]
    fn a_key_that_comes_and_goes_is_kept_once() {
        let mut table = KeyTable::new(&[Form::Word], 0);
        for _ in 0..10 {
            let slots = insert(&mut table, 7..8);
            table.remove(slots[0]).unwrap();
        }
        assert_eq!(frozen(&mut table, Since::LastFreeze), (vec![7], Some(vec![])));
    }

    #[test]
    fn with_more_tombstones_than_rows_the_table_is_written_whole() {
        let mut table = KeyTable::new(&[Form::Word], 0);
        let slots = insert(&mut table, 0..2 * KEYS_KEPT as i64);
        frozen(&mut table, Since::Start);
        slots.iter().for_each(|&slot| table.remove(slot).unwrap());
        assert_eq!(frozen(&mut table, Since::LastFreeze), (vec![], None));
        assert_eq!(frozen(&mut table, Since::SameAsLast), (vec![], None), "that one did not complete");
        insert(&mut table, 3..4);
        assert_eq!(frozen(&mut table, Since::LastFreeze), (vec![], Some(vec![3])));
    }
}
