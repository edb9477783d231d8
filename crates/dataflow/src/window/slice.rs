//! The state of one slice of time: keys, accumulators, distinct values.
//!
//! Slices are tables of their own, so that firing a window reads and frees its state whole, without touching that of
//! others. Slots are dense and never removed one by one.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{BooleanBuffer, ScalarBuffer};
use weir_state::key_hash::hash_values;
use weir_state::keys::KeyTable;
use weir_state::pages::Pages;
use weir_state::values::{Data, Form, Values};
use weir_types::Result;

use super::accumulator::Accumulator;
use super::plan::{DistinctSet, Plan};

/// A batch's columns as the accumulators want them.
pub(super) struct Input {
    pub(super) hashes: Vec<u64>,
    pub(super) keys: Vec<Values>,
    /// By [`Plan::arguments`].
    arguments: Vec<Values>,
    /// By [`Plan::filters`]: the rows where the column is true.
    filters: Vec<BooleanBuffer>,
    /// By [`Plan::distincts`]: the values as keys, and their hashes.
    distincts: Vec<(Values, Vec<u64>)>,
}

impl Input {
    pub(super) fn new(plan: &Plan, columns: &[ArrayRef], rows: usize) -> Result<Self> {
        let keys = plan.keys.iter().map(|&key| Values::for_key(&columns[key])).collect::<Result<Vec<_>>>()?;
        let mut hashes = Vec::new();
        hash_values(&keys, rows, &mut hashes);
        let arguments = plan.arguments.iter().map(|&argument| Values::new(&columns[argument]));
        let filters = plan.filters.iter().map(|&filter| {
            let filter = columns[filter].as_boolean();
            filter.nulls().map_or_else(|| filter.values().clone(), |nulls| filter.values() & nulls.inner())
        });
        let distincts = plan.distincts.iter().map(|set| {
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
            distincts: distincts.collect::<Result<_>>()?,
        })
    }

    /// Rows of which only the keys are known.
    pub(super) fn with_keys(keys: Vec<Values>, rows: usize) -> Self {
        let mut hashes = Vec::new();
        hash_values(&keys, rows, &mut hashes);
        Self { hashes, keys, arguments: Vec::new(), filters: Vec::new(), distincts: Vec::new() }
    }

    fn passes(&self, filter: Option<usize>, row: u32) -> bool {
        filter.is_none_or(|filter| self.filters[filter].value(row as usize))
    }
}

/// Lists that are reused from batch to batch.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) slots: Vec<u32>,
    chosen_rows: Vec<u32>,
    chosen_slots: Vec<u32>,
    bits: Vec<u64>,
    entries: Vec<u32>,
}

/// Values of one column per key, with the filters under which each was seen.
#[derive(Debug)]
pub(super) struct Distinct {
    /// Keyed by the slot of the group's key, then the value.
    pub(super) entries: KeyTable,
    pub(super) masks: Pages<u64>,
}

impl Distinct {
    fn new(set: &DistinctSet) -> Result<Self> {
        let forms = [Form::Word, Form::of_key(&set.value_type)?];
        Ok(Self { entries: KeyTable::new(&forms, 0), masks: Pages::new() })
    }

    /// Notes `values[i]` for the group in `slots[i]` under the filters in `bits[i]`, which become those that are new.
    pub(super) fn insert(
        &mut self,
        slots: &[u32],
        values: Values,
        hashes: impl Iterator<Item = u64>,
        bits: &mut [u64],
        entries: &mut Vec<u32>,
    ) -> Result<()> {
        let hashes: Vec<u64> = hashes.zip(slots).map(|(hash, &slot)| entry_hash(hash, slot)).collect();
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

/// Groups share values: the group's slot is mixed into the value's hash.
fn entry_hash(value: u64, slot: u32) -> u64 {
    (value ^ u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) keys: KeyTable,
    pub(super) accumulators: Vec<Accumulator>,
    pub(super) distincts: Vec<Distinct>,
}

impl Slice {
    pub(super) fn new(plan: &Plan, capacity: usize) -> Result<Self> {
        Ok(Self {
            keys: KeyTable::new(&plan.key_forms, capacity),
            accumulators: plan.calls.iter().map(|call| Accumulator::new(call.kind)).collect(),
            distincts: plan.distincts.iter().map(Distinct::new).collect::<Result<_>>()?,
        })
    }

    /// Takes in `rows` of a batch.
    pub(super) fn update(&mut self, plan: &Plan, input: &Input, rows: &[u32], scratch: &mut Scratch) -> Result<()> {
        self.keys.lookup_or_insert(&input.hashes, &input.keys, rows, &mut scratch.slots)?;
        self.keys.mark(&scratch.slots);
        let slots = self.keys.slots();
        for (call, accumulator) in plan.calls.iter().zip(&mut self.accumulators) {
            accumulator.grow(slots);
            if call.distinct {
                continue;
            }
            let values = call.argument.map(|argument| &input.arguments[argument]);
            let nulls = values.and_then(|values| values.nulls.as_ref());
            if nulls.is_none() && call.filter.is_none() {
                accumulator.update(call.fold, values, rows, &scratch.slots)?;
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
            accumulator.update(call.fold, values, &scratch.chosen_rows, &scratch.chosen_slots)?;
        }
        for set in 0..plan.distincts.len() {
            self.update_distinct(plan, set, input, rows, scratch)?;
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
        let (distinct, set, (values, hashes)) = (&mut self.distincts[set], &plan.distincts[set], &input.distincts[set]);
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

    /// Takes in another slice of the same window.
    pub(super) fn merge(&mut self, plan: &Plan, other: &Self, scratch: &mut Scratch) -> Result<()> {
        let keys: Vec<Values> = (0..plan.keys.len()).map(|key| other.keys.values(key)).collect();
        let rows: Vec<u32> = (0..other.keys.slots() as u32).collect();
        let hashes: Vec<u64> = rows.iter().map(|&slot| other.keys.hash(slot)).collect();
        self.keys.lookup_or_insert(&hashes, &keys, &rows, &mut scratch.slots)?;
        let slots = self.keys.slots();
        for ((call, into), from) in plan.calls.iter().zip(&mut self.accumulators).zip(&other.accumulators) {
            into.grow(slots);
            if !call.distinct {
                into.merge(call.fold, from, &scratch.slots)?;
            }
        }
        for ((set, into), from) in plan.distincts.iter().zip(&mut self.distincts).zip(&other.distincts) {
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
    pub(super) fn bytes(&self) -> usize {
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
    set: &DistinctSet,
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
