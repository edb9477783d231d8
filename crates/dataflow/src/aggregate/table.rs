//! Groups by slot: keys, accumulators, distinct values.
//!
//! A window aggregate has one table per slice of time, so that firing a window reads and frees its state whole, without
//! touching that of others; an updating aggregate has one table for good.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{BooleanBuffer, ScalarBuffer};
use weir_state::key_hash::hash_values;
use weir_state::keys::KeyTable;
use weir_state::pages::Pages;
use weir_state::values::{Data, Form, Values};
use weir_types::Result;

use super::accumulator::{Accumulator, Fold};
use super::plan::{Plan, ValueSet};

/// A batch's columns as the accumulators want them.
pub(crate) struct Input {
    pub(crate) hashes: Vec<u64>,
    pub(crate) keys: Vec<Values>,
    /// By [`Plan::arguments`].
    pub(crate) arguments: Vec<Values>,
    /// By [`Plan::filters`]: the rows where the column is true.
    filters: Vec<BooleanBuffer>,
    /// By [`Plan::sets`]: the values as keys, and their hashes.
    pub(crate) sets: Vec<(Values, Vec<u64>)>,
}

impl Input {
    pub(crate) fn new(plan: &Plan, columns: &[ArrayRef], rows: usize) -> Result<Self> {
        let keys = plan.keys.iter().map(|&key| Values::for_key(&columns[key])).collect::<Result<Vec<_>>>()?;
        let mut hashes = Vec::new();
        hash_values(&keys, rows, &mut hashes);
        let arguments = plan.arguments.iter().map(|&argument| Values::new(&columns[argument]));
        let filters = plan.filters.iter().map(|&filter| {
            let filter = columns[filter].as_boolean();
            filter.nulls().map_or_else(|| filter.values().clone(), |nulls| filter.values() & nulls.inner())
        });
        let sets = plan.sets.iter().map(|set| {
            let values = Values::for_key(&columns[plan.arguments[set.argument]])?;
            let mut hashes = Vec::new();
            hash_values(std::slice::from_ref(&values), rows, &mut hashes);
            Ok((values, hashes))
        });
        Ok(Self {
            hashes,
            keys,
            arguments: arguments.collect::<Result<_>>()?,
            filters: filters.collect(),
            sets: sets.collect::<Result<_>>()?,
        })
    }

    /// Rows of which only the keys are known.
    pub(crate) fn with_keys(keys: Vec<Values>, rows: usize) -> Self {
        let mut hashes = Vec::new();
        hash_values(&keys, rows, &mut hashes);
        Self { hashes, keys, arguments: Vec::new(), filters: Vec::new(), sets: Vec::new() }
    }

    /// The keys alone, as read back.
    pub(crate) fn of_keys(columns: &[ArrayRef], rows: usize) -> Result<Self> {
        let keys = columns.iter().map(Values::for_key).collect::<Result<Vec<_>>>()?;
        Ok(Self::with_keys(keys, rows))
    }

    pub(crate) fn passes(&self, filter: Option<usize>, row: u32) -> bool {
        filter.is_none_or(|filter| self.filters[filter].value(row as usize))
    }
}

/// Lists that are reused from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) slots: Vec<u32>,
    chosen_rows: Vec<u32>,
    chosen_slots: Vec<u32>,
    bits: Vec<u64>,
    entries: Vec<u32>,
}

/// Values of one column per key, with the filters under which each was seen.
#[derive(Debug)]
pub(crate) struct Distinct {
    /// Keyed by the slot of the group's key, then the value.
    pub(crate) entries: KeyTable,
    pub(crate) masks: Pages<u64>,
}

impl Distinct {
    fn new(set: &ValueSet) -> Result<Self> {
        let forms = [Form::Word, Form::of_key(&set.value_type)?];
        Ok(Self { entries: KeyTable::new(&forms, 0), masks: Pages::new() })
    }

    /// Notes `values[i]` for the group in `slots[i]` under the filters in `bits[i]`, which become those that are new.
    pub(crate) fn insert(
        &mut self,
        slots: &[u32],
        values: Values,
        hashes: impl Iterator<Item = u64>,
        bits: &mut [u64],
        entries: &mut Vec<u32>,
    ) -> Result<()> {
        let hashes: Vec<u64> = hashes.zip(slots).map(|(hash, &slot)| entry_hash(hash, slot.into())).collect();
        let owners = ScalarBuffer::from_iter(slots.iter().map(|&slot| i64::from(slot)));
        let keys = [Values { data: Data::Words(owners), nulls: None }, values];
        let rows: Vec<u32> = (0..slots.len() as u32).collect();
        self.entries.lookup_or_insert(&hashes, &keys, &rows, entries)?;
        self.masks.grow(self.entries.slots(), &0);
        for (bits, &entry) in bits.iter_mut().zip(entries.iter()) {
            let mask = self.masks.get(entry);
            let new = *bits & !mask;
            if new != 0 {
                *self.masks.get_mut(entry) |= new;
                self.entries.mark(&[entry]);
            }
            *bits = new;
        }
        Ok(())
    }

    /// The slot of the group that an entry belongs to.
    fn owners(&self) -> Vec<u32> {
        match self.entries.values(0).data {
            Data::Words(words) => words.iter().map(|&word| word as u32).collect(),
            _ => Vec::new(),
        }
    }

    fn bytes(&self) -> usize {
        self.entries.bytes() + self.masks.bytes()
    }
}

/// Groups share values: what stands for the group is mixed into the value's hash.
pub(crate) fn entry_hash(value: u64, group: u64) -> u64 {
    (value ^ group.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct GroupTable {
    pub(crate) keys: KeyTable,
    pub(crate) accumulators: Vec<Accumulator>,
    /// By [`Plan::sets`], unless rows are retracted.
    pub(crate) distincts: Vec<Distinct>,
}

impl GroupTable {
    pub(crate) fn new(plan: &Plan, capacity: usize) -> Result<Self> {
        let sets = if plan.retracting { &[] } else { plan.sets.as_slice() };
        Ok(Self {
            keys: KeyTable::new(&plan.key_forms, capacity),
            accumulators: plan.calls.iter().map(|call| Accumulator::new(call.kind)).collect(),
            distincts: sets.iter().map(Distinct::new).collect::<Result<_>>()?,
        })
    }

    /// Takes in `rows` of a batch.
    pub(crate) fn update(&mut self, plan: &Plan, input: &Input, rows: &[u32], scratch: &mut Scratch) -> Result<()> {
        self.locate(input, rows, scratch)?;
        self.add(plan, input, rows, scratch)
    }

    /// Finds the slots of `rows`, makes room where there are none yet, and notes that they change.
    pub(crate) fn locate(&mut self, input: &Input, rows: &[u32], scratch: &mut Scratch) -> Result<()> {
        self.keys.lookup_or_insert(&input.hashes, &input.keys, rows, &mut scratch.slots)?;
        self.keys.mark(&scratch.slots);
        let slots = self.keys.slots();
        self.accumulators.iter_mut().for_each(|accumulator| accumulator.grow(slots));
        Ok(())
    }

    /// Takes in `rows` whose slots were found.
    pub(crate) fn add(&mut self, plan: &Plan, input: &Input, rows: &[u32], scratch: &mut Scratch) -> Result<()> {
        self.fold(plan, input, rows, scratch, Accumulator::update)?;
        for set in 0..self.distincts.len() {
            self.update_distinct(plan, set, input, rows, scratch)?;
        }
        Ok(())
    }

    /// Gives `rows` whose slots were found to the calls that no set of values feeds.
    pub(crate) fn fold(
        &mut self,
        plan: &Plan,
        input: &Input,
        rows: &[u32],
        scratch: &mut Scratch,
        apply: impl Fn(&mut Accumulator, Fold, Option<&Values>, &[u32], &[u32]) -> Result<()>,
    ) -> Result<()> {
        let calls = plan.calls.iter().zip(&mut self.accumulators).filter(|(call, _)| !call.of_set);
        for (call, accumulator) in calls {
            let values = call.argument.map(|argument| &input.arguments[argument]);
            let nulls = values.and_then(|values| values.nulls.as_ref());
            if nulls.is_none() && call.filter.is_none() {
                apply(accumulator, call.fold, values, rows, &scratch.slots)?;
                continue;
            }
            scratch.chosen_rows.clear();
            scratch.chosen_slots.clear();
            for (&row, &slot) in rows.iter().zip(&scratch.slots) {
                if nulls.is_none_or(|nulls| nulls.is_valid(row as usize)) && input.passes(call.filter, row) {
                    scratch.chosen_rows.push(row);
                    scratch.chosen_slots.push(slot);
                }
            }
            apply(accumulator, call.fold, values, &scratch.chosen_rows, &scratch.chosen_slots)?;
        }
        Ok(())
    }

    fn update_distinct(
        &mut self,
        plan: &Plan,
        set: usize,
        input: &Input,
        rows: &[u32],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (distinct, set, (values, hashes)) = (&mut self.distincts[set], &plan.sets[set], &input.sets[set]);
        let Scratch { slots, chosen_rows, chosen_slots, bits, entries } = scratch;
        chosen_rows.clear();
        chosen_slots.clear();
        bits.clear();
        for (&row, &slot) in rows.iter().zip(slots.iter()) {
            if values.is_null(row as usize) {
                continue;
            }
            let passed = set.filters.iter().enumerate().filter(|(_, filter)| input.passes(**filter, row));
            let passed = passed.fold(0, |bits, (bit, _)| bits | 1u64 << bit);
            if passed != 0 {
                chosen_rows.push(row);
                chosen_slots.push(slot);
                bits.push(passed);
            }
        }
        let row_hashes = chosen_rows.iter().map(|&row| hashes[row as usize]);
        distinct.insert(chosen_slots, values.take(chosen_rows)?, row_hashes, bits, entries)?;
        let argument = &input.arguments[set.argument];
        feed(&mut self.accumulators, plan, set, argument, chosen_rows, chosen_slots, bits)
    }

    /// Takes in another table of the same plan.
    pub(crate) fn merge(&mut self, plan: &Plan, other: &Self, scratch: &mut Scratch) -> Result<()> {
        let keys: Vec<Values> = (0..plan.keys.len()).map(|key| other.keys.values(key)).collect();
        let rows: Vec<u32> = (0..other.keys.slots() as u32).collect();
        let hashes: Vec<u64> = rows.iter().map(|&slot| other.keys.hash(slot)).collect();
        self.keys.lookup_or_insert(&hashes, &keys, &rows, &mut scratch.slots)?;
        let slots = self.keys.slots();
        for ((call, into), from) in plan.calls.iter().zip(&mut self.accumulators).zip(&other.accumulators) {
            into.grow(slots);
            if !call.of_set {
                into.merge(call.fold, from, &scratch.slots)?;
            }
        }
        for ((set, into), from) in plan.sets.iter().zip(&mut self.distincts).zip(&other.distincts) {
            let owners: Vec<u32> = from.owners().iter().map(|&slot| scratch.slots[slot as usize]).collect();
            let values = from.entries.values(1);
            let mut hashes = Vec::new();
            hash_values(std::slice::from_ref(&values), owners.len(), &mut hashes);
            let mut bits: Vec<u64> = from.masks.range(0, from.masks.len()).copied().collect();
            into.insert(&owners, values.clone(), hashes.iter().copied(), &mut bits, &mut scratch.entries)?;
            let values = values.out_of_key(&set.value_type);
            let rows: Vec<u32> = (0..owners.len() as u32).collect();
            feed(&mut self.accumulators, plan, set, &values, &rows, &owners, &bits)?;
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.keys.bytes()
            + self.accumulators.iter().map(Accumulator::bytes).sum::<usize>()
            + self.distincts.iter().map(Distinct::bytes).sum::<usize>()
    }
}

/// Gives each call of a set the rows whose value is new under the call's filter.
fn feed(
    accumulators: &mut [Accumulator],
    plan: &Plan,
    set: &ValueSet,
    values: &Values,
    rows: &[u32],
    slots: &[u32],
    bits: &[u64],
) -> Result<()> {
    for (bit, calls) in set.calls.iter().enumerate() {
        let new = |i: &usize| bits[*i] & (1 << bit) != 0;
        let (rows, slots): (Vec<u32>, Vec<u32>) = (0..rows.len()).filter(new).map(|i| (rows[i], slots[i])).unzip();
        for &call in calls {
            accumulators[call].update(plan.calls[call].fold, Some(values), &rows, &slots)?;
        }
    }
    Ok(())
}
