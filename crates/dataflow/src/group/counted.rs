//! How often each value of a column is in each group, where rows are retracted: what DISTINCT, MIN and MAX go by.
//!
//! A value is a state row of its own, told by the group's key and the value, with a count per filter; one that no filter
//! counts any more is gone. MIN and MAX also keep the values of a group in order, which snapshots leave out.

use std::collections::BTreeSet;
use std::ops::RangeBounds;
use std::sync::Arc;

use weir_state::keys::KeyTable;
use weir_state::pages::Pages;
use weir_state::values::{Data, Form, Values};
use weir_types::graph::AggregateFunction;
use weir_types::{Error, Result};

use crate::aggregate::accumulator::Accumulator;
use crate::aggregate::plan::{Plan, ValueSet};
use crate::aggregate::table::{Input, entry_hash};

/// The counted values of one [`ValueSet`].
#[derive(Debug)]
pub(super) struct Counted {
    /// Keyed by the group's key, the value, and the hash of the group's key, by which snapshots place rows.
    pub(super) entries: KeyTable,
    /// By filter of the set.
    pub(super) counts: Vec<Pages<i64>>,
    /// By filter of the set; none: neither MIN nor MAX asks for it.
    orders: Vec<Option<Order>>,
    scratch: Scratch,
}

/// Lists that are reused from batch to batch.
#[derive(Debug, Default)]
struct Scratch {
    hashes: Vec<u64>,
    rows: Vec<u32>,
    slots: Vec<u32>,
    entries: Vec<u32>,
    /// Rows whose value has come to a group or gone from it, and the slots of the groups.
    changed_rows: Vec<u32>,
    changed_slots: Vec<u32>,
}

/// The values of all groups in order, by the slot of the group.
#[derive(Debug)]
enum Order {
    Words { values: BTreeSet<(u32, i64)>, floats: bool },
    Wides(BTreeSet<(u32, i128)>),
    Bytes(BTreeSet<(u32, Arc<[u8]>)>),
}

/// The key columns of entries.
fn entry_keys(input: &Input, values: &Values) -> Vec<Values> {
    let hashes = Values { data: Data::Words(input.hashes.iter().map(|&hash| hash as i64).collect()), nulls: None };
    input.keys.iter().chain([values, &hashes]).cloned().collect()
}

fn is_extreme(function: AggregateFunction) -> bool {
    matches!(function, AggregateFunction::Min | AggregateFunction::Max)
}

impl Counted {
    pub(super) fn new(plan: &Plan, set: &ValueSet) -> Result<Self> {
        let form = Form::of(&set.value_type)?;
        let own = [Form::of_key(&set.value_type)?, Form::Word];
        let forms: Vec<Form> = plan.key_forms.iter().copied().chain(own).collect();
        let order = |calls: &Vec<usize>| {
            let wanted = calls.iter().any(|&call| is_extreme(plan.calls[call].fold.function));
            wanted.then(|| Order::new(form))
        };
        Ok(Self {
            entries: KeyTable::new(&forms, 0),
            counts: set.filters.iter().map(|_| Pages::new()).collect(),
            orders: set.calls.iter().map(order).collect(),
            scratch: Scratch::default(),
        })
    }

    /// Takes in the values of `rows`, which belong to the groups in `slots`, or takes them out again.
    pub(super) fn apply(
        &mut self,
        plan: &Plan,
        set: usize,
        input: &Input,
        (rows, slots): (&[u32], &[u32]),
        retract: bool,
        accumulators: &mut [Accumulator],
    ) -> Result<()> {
        let (set, (values, hashes)) = (&plan.sets[set], &input.sets[set]);
        self.choose(set, input, values, rows, slots);
        let keys = entry_keys(input, values);
        let hash = |row: usize| entry_hash(hashes[row], input.hashes[row]);
        self.find(&keys, hash, retract)?;
        let argument = &input.arguments[set.argument];
        for (bit, filter) in set.filters.iter().enumerate() {
            self.count(bit, |row| input.passes(*filter, row), retract);
            let Scratch { changed_rows, changed_slots, .. } = &mut self.scratch;
            if changed_rows.is_empty() {
                continue;
            }
            if let Some(order) = &mut self.orders[bit] {
                let changed = changed_rows.iter().zip(changed_slots.iter());
                changed.for_each(|(&row, &slot)| order.change(slot, values, row as usize, retract));
            }
            let (extremes, sums): (Vec<usize>, Vec<usize>) =
                set.calls[bit].iter().partition(|&&call| is_extreme(plan.calls[call].fold.function));
            for call in sums {
                let (fold, accumulator) = (plan.calls[call].fold, &mut accumulators[call]);
                let apply = if retract { Accumulator::retract } else { Accumulator::update };
                apply(accumulator, fold, Some(argument), changed_rows, changed_slots)?;
            }
            changed_slots.sort_unstable();
            changed_slots.dedup();
            for call in extremes {
                if let Some(order) = &self.orders[bit] {
                    let least = plan.calls[call].fold.function == AggregateFunction::Min;
                    order.write(changed_slots, least, &mut accumulators[call])?;
                }
            }
        }
        if retract { self.sweep() } else { Ok(()) }
    }

    /// Chooses the rows whose value counts under some filter.
    fn choose(&mut self, set: &ValueSet, input: &Input, values: &Values, rows: &[u32], slots: &[u32]) {
        let Scratch { rows: chosen_rows, slots: chosen_slots, .. } = &mut self.scratch;
        chosen_rows.clear();
        chosen_slots.clear();
        for (&row, &slot) in rows.iter().zip(slots) {
            let counts = || set.filters.iter().any(|filter| input.passes(*filter, row));
            if !values.is_null(row as usize) && counts() {
                chosen_rows.push(row);
                chosen_slots.push(slot);
            }
        }
    }

    /// Finds the entries of the chosen rows. Values that are retracted and not there are passed over, as in Flink.
    fn find(&mut self, keys: &[Values], hash: impl Fn(usize) -> u64, retract: bool) -> Result<()> {
        let Scratch { hashes, rows, slots, entries, .. } = &mut self.scratch;
        if retract {
            let mut kept = 0;
            entries.clear();
            for index in 0..rows.len() {
                let row = rows[index] as usize;
                if let Some(entry) = self.entries.find(hash(row), keys, row) {
                    (rows[kept], slots[kept]) = (rows[index], slots[index]);
                    entries.push(entry);
                    kept += 1;
                }
            }
            rows.truncate(kept);
            slots.truncate(kept);
        } else {
            hashes.clear();
            let last = rows.last().map_or(0, |&row| row as usize + 1);
            hashes.extend((0..last).map(hash));
            self.entries.lookup_or_insert(hashes, keys, rows, entries)?;
            let slots = self.entries.slots();
            self.counts.iter_mut().for_each(|counts| counts.grow(slots, &0));
        }
        self.entries.mark(entries);
        Ok(())
    }

    /// Counts the found entries under one filter, and lists the rows whose value has come or gone.
    fn count(&mut self, bit: usize, passes: impl Fn(u32) -> bool, retract: bool) {
        let Scratch { rows, slots, entries, changed_rows, changed_slots, .. } = &mut self.scratch;
        changed_rows.clear();
        changed_slots.clear();
        let counts = &mut self.counts[bit];
        for ((&row, &slot), &entry) in rows.iter().zip(slots.iter()).zip(entries.iter()) {
            if !passes(row) {
                continue;
            }
            let count = counts.get_mut(entry);
            let changed = match (retract, *count) {
                (true, ..=0) => continue,
                (true, before) => {
                    *count = before - 1;
                    before == 1
                }
                (false, before) => {
                    *count = before + 1;
                    before == 0
                }
            };
            if changed {
                changed_rows.push(row);
                changed_slots.push(slot);
            }
        }
    }

    /// Removes found entries that nothing counts any more.
    fn sweep(&mut self) -> Result<()> {
        let entries = &mut self.scratch.entries;
        entries.sort_unstable();
        entries.dedup();
        for &entry in entries.iter() {
            if self.counts.iter().all(|counts| *counts.get(entry) <= 0) {
                self.entries.remove(entry)?;
            }
        }
        Ok(())
    }

    /// Takes back values of a snapshot; `counts` are by filter, then by row.
    pub(super) fn restore(&mut self, input: &Input, values: Values, counts: &[Values], slots: &[u32]) -> Result<()> {
        let rows: Vec<u32> = (0..slots.len() as u32).collect();
        let mut hashes = Vec::new();
        weir_state::key_hash::hash_values(std::slice::from_ref(&values), rows.len(), &mut hashes);
        hashes.iter_mut().zip(&input.hashes).for_each(|(hash, &group)| *hash = entry_hash(*hash, group));
        let keys = entry_keys(input, &values);
        let mut entries = Vec::new();
        self.entries.lookup_or_insert(&hashes, &keys, &rows, &mut entries)?;
        let held = self.entries.slots();
        for ((pages, counts), order) in self.counts.iter_mut().zip(counts).zip(&mut self.orders) {
            pages.grow(held, &0);
            let Data::Words(counts) = &counts.data else { return Err(Error::internal("counts are no integers")) };
            for ((row, &entry), &slot) in entries.iter().enumerate().zip(slots) {
                *pages.get_mut(entry) = counts[row];
                if counts[row] > 0
                    && let Some(order) = order
                {
                    order.change(slot, &values, row, false);
                }
            }
        }
        Ok(())
    }

    /// Forgets a group whose slot is about to be given away.
    pub(super) fn forget(&mut self, slot: u32) {
        self.orders.iter_mut().flatten().for_each(|order| order.forget(slot));
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let counts: usize = self.counts.iter().map(Pages::bytes).sum();
        self.entries.bytes() + counts + self.orders.iter().flatten().map(Order::bytes).sum::<usize>()
    }
}

impl Order {
    fn new(form: Form) -> Self {
        match form {
            Form::Word => Self::Words { values: BTreeSet::new(), floats: false },
            Form::Float => Self::Words { values: BTreeSet::new(), floats: true },
            Form::Wide => Self::Wides(BTreeSet::new()),
            Form::Bytes => Self::Bytes(BTreeSet::new()),
        }
    }

    /// A value, given in key form, has come to a group, or has gone.
    fn change(&mut self, slot: u32, values: &Values, row: usize, gone: bool) {
        fn put<T: Ord>(set: &mut BTreeSet<(u32, T)>, value: (u32, T), gone: bool) {
            if gone {
                set.remove(&value);
            } else {
                set.insert(value);
            }
        }
        match (self, &values.data) {
            (Self::Words { values, floats }, Data::Words(words)) => {
                let word = if *floats { in_order(words[row]) } else { words[row] };
                put(values, (slot, word), gone);
            }
            (Self::Wides(set), Data::Wides(wides)) => put(set, (slot, wides[row]), gone),
            (Self::Bytes(set), Data::Bytes(bytes)) => put(set, (slot, Arc::from(bytes.value(row))), gone),
            // The plan gives every set one type.
            _ => {}
        }
    }

    /// Sets a call's accumulators to the least or the greatest values of these groups.
    fn write(&self, slots: &[u32], least: bool, into: &mut Accumulator) -> Result<()> {
        match (self, into) {
            (Self::Words { values, floats: false }, Accumulator::Word(pages)) => {
                slots.iter().for_each(|&slot| *pages.get_mut(slot) = extreme(values, slot, i64::MIN, least).copied());
            }
            (Self::Words { values, floats: true }, Accumulator::Float(pages)) => {
                let float = |&word: &i64| f64::from_bits(in_order(word) as u64);
                for &slot in slots {
                    *pages.get_mut(slot) = extreme(values, slot, i64::MIN, least).map(float);
                }
            }
            (Self::Wides(set), Accumulator::Wide(pages)) => {
                slots.iter().for_each(|&slot| *pages.get_mut(slot) = extreme(set, slot, i128::MIN, least).copied());
            }
            (Self::Bytes(set), Accumulator::Bytes { values, heap }) => {
                for &slot in slots {
                    let value = extreme(set, slot, Arc::default(), least).cloned();
                    *heap += value.as_ref().map_or(0, |value| value.len());
                    let before = std::mem::replace(values.get_mut(slot), value);
                    *heap -= before.map_or(0, |before| before.len());
                }
            }
            _ => return Err(Error::internal("an aggregate got values of another type than planned")),
        }
        Ok(())
    }

    fn forget(&mut self, slot: u32) {
        fn drop_all<T: Ord + Clone>(set: &mut BTreeSet<(u32, T)>, slot: u32, least: T) {
            while let Some(value) = extreme(set, slot, least.clone(), true).cloned() {
                set.remove(&(slot, value));
            }
        }
        match self {
            Self::Words { values, .. } => drop_all(values, slot, i64::MIN),
            Self::Wides(set) => drop_all(set, slot, i128::MIN),
            Self::Bytes(set) => drop_all(set, slot, Arc::default()),
        }
    }

    /// Bytes held, the tree's own left out; the bytes of strings are counted where the entries are.
    fn bytes(&self) -> usize {
        match self {
            Self::Words { values, .. } => values.len() * size_of::<(u32, i64)>(),
            Self::Wides(set) => set.len() * size_of::<(u32, i128)>(),
            Self::Bytes(set) => 2 * set.len() * size_of::<(u32, Arc<[u8]>)>(),
        }
    }
}

/// The least or the greatest value of a group; `bottom` is the least value of all.
fn extreme<T: Ord>(set: &BTreeSet<(u32, T)>, slot: u32, bottom: T, least: bool) -> Option<&T>
where
    (u32, T): Ord,
{
    fn within<T: Ord>(set: &BTreeSet<(u32, T)>, range: impl RangeBounds<(u32, T)>, least: bool) -> Option<&(u32, T)> {
        let mut range = set.range(range);
        if least { range.next() } else { range.next_back() }
    }
    let found = match (least, slot.checked_add(1)) {
        (true, _) | (false, None) => within(set, (slot, bottom).., least),
        (false, Some(next)) => within(set, ..(next, bottom), least),
    };
    found.filter(|(owner, _)| *owner == slot).map(|(_, value)| value)
}

/// The bits of a float as an integer that sorts as the float does, NaN last; and back.
fn in_order(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}
