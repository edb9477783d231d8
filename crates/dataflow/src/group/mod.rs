//! The updating aggregate: groups rows by key, and after every batch emits how the groups that it touched have changed.
//!
//! - A group that is new is inserted, one whose results differ from before is updated, one without rows left is deleted; one
//!   whose results are as before emits nothing. A group emits once per batch, whatever happens to it within the batch.
//! - What a group was is computed from its accumulators before the batch is taken in, so that it need not be kept.
//! - Where rows are retracted, a group counts its rows, sums know how many values they are of, and the values of MIN, MAX
//!   and DISTINCT are counted one by one ([`counted`]). A retraction of a row that no group has is passed over.

mod counted;
#[cfg(test)]
mod schema_tests;
mod snapshot;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{interleave, take};
use arrow_schema::{ArrowError, SchemaRef};
use weir_state::memory::Memory;
use weir_state::pages::Pages;
use weir_state::{RestoredOperator, Since};
use weir_types::graph::{GroupAggregateSpec, Output};
use weir_types::key_range::KeyRange;
use weir_types::{Error, Result};

use crate::aggregate::accumulator::Accumulator;
use crate::aggregate::output::{Part, Slots, aggregate_column, key_column};
use crate::aggregate::plan::Plan;
use crate::aggregate::table::{GroupTable, Input, Scratch};
use crate::element::{Batch, RowOp, Watermark};
use crate::operator::{Collector, Frozen, Operator, Progress};
use counted::Counted;

/// See the module's documentation.
#[derive(Debug)]
pub struct GroupAggregate {
    plan: Plan,
    output: SchemaRef,
    range: KeyRange,
    /// Whether consumers want the old version of a row that changes.
    update_before: bool,
    table: GroupTable,
    /// Rows by group, where rows are retracted.
    rows: Option<Pages<i64>>,
    /// By [`Plan::sets`], where rows are retracted.
    counted: Vec<Counted>,
    scratch: Scratch,
    touched: Touched,
}

/// The groups that a batch touches, each once, in the order of their first rows.
#[derive(Debug, Default)]
struct Touched {
    slots: Vec<u32>,
    /// Whether each was there before.
    existed: Vec<bool>,
    /// By slot: the number of the batch that has touched it last.
    seen: Vec<u32>,
    batch: u32,
}

impl Touched {
    /// Starts a batch; there are `slots` slots.
    fn begin(&mut self, slots: usize) {
        self.slots.clear();
        self.existed.clear();
        self.batch = self.batch.wrapping_add(1);
        if self.batch == 0 {
            self.seen.fill(0);
            self.batch = 1;
        }
        self.seen.resize(slots.max(self.seen.len()), 0);
    }

    fn add(&mut self, slots: &[u32], existed: impl Fn(u32) -> bool) {
        for &slot in slots {
            if std::mem::replace(&mut self.seen[slot as usize], self.batch) != self.batch {
                self.slots.push(slot);
                self.existed.push(existed(slot));
            }
        }
    }
}

/// Rows of a batch by what they do.
struct Changes {
    added: Vec<u32>,
    retracted: Vec<u32>,
    /// The groups of the retracted rows, once they are found.
    retracted_slots: Vec<u32>,
}

impl Changes {
    fn of(batch: &Batch) -> Self {
        let all = 0..batch.len() as u32;
        let adds = |row: &u32| match &batch.ops {
            None => true,
            Some(ops) => {
                let op = ops[*row as usize];
                op == RowOp::Insert as u8 || op == RowOp::UpdateAfter as u8
            }
        };
        let (added, retracted) = match &batch.ops {
            None => (all.collect(), Vec::new()),
            Some(_) => all.partition(adds),
        };
        Self { added, retracted, retracted_slots: Vec::new() }
    }
}

impl GroupAggregate {
    /// An operator without state. `output` is the planned schema: keys, then aggregates.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the schemas do not fit the specification, `UNSUPPORTED` for types that cannot be grouped by or
    /// aggregated.
    pub fn new(spec: &GroupAggregateSpec, input: &SchemaRef, output: SchemaRef, range: KeyRange) -> Result<Self> {
        let GroupAggregateSpec { keys, aggregates, retracting, update_before } = spec;
        let columns = keys.len() + aggregates.len();
        if output.fields().len() != columns {
            let found = output.fields().len();
            return Err(Error::invalid(format!("an aggregate has {columns} columns, not {found}")));
        }
        let plan = Plan::new(keys, aggregates, *retracting, input, &output)?;
        let counted = if *retracting {
            plan.sets.iter().map(|set| Counted::new(&plan, set)).collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        Ok(Self {
            table: GroupTable::new(&plan, 0)?,
            plan,
            output,
            range,
            update_before: *update_before,
            rows: retracting.then(Pages::new),
            counted,
            scratch: Scratch::default(),
            touched: Touched::default(),
        })
    }

    /// Finds the groups of all rows, and leaves out retractions of rows that are not there.
    fn touch(&mut self, input: &Input, changes: &mut Changes) -> Result<()> {
        let before = self.table.keys.slots();
        self.table.locate(input, &changes.added, &mut self.scratch)?;
        let slots = self.table.keys.slots();
        self.touched.begin(slots);
        let Some(rows) = &mut self.rows else {
            self.touched.add(&self.scratch.slots, |slot| (slot as usize) < before);
            return Ok(());
        };
        rows.grow(slots, &0);
        self.touched.add(&self.scratch.slots, |slot| *rows.get(slot) > 0);
        self.scratch.slots.iter().for_each(|&slot| *rows.get_mut(slot) += 1);
        let rows_retracted = std::mem::take(&mut changes.retracted);
        for row in rows_retracted {
            let found = self.table.keys.find(input.hashes[row as usize], &input.keys, row as usize);
            let Some(slot) = found.filter(|&slot| *rows.get(slot) > 0) else { continue };
            self.touched.add(&[slot], |slot| *rows.get(slot) > 0);
            *rows.get_mut(slot) -= 1;
            self.table.keys.mark(&[slot]);
            changes.retracted.push(row);
            changes.retracted_slots.push(slot);
        }
        Ok(())
    }

    /// Takes in what was added, then takes out what was retracted.
    fn take_in(&mut self, input: &Input, changes: &Changes) -> Result<()> {
        let Self { plan, table, counted, scratch, .. } = self;
        if !changes.added.is_empty() {
            table.add(plan, input, &changes.added, scratch)?;
            for (set, counted) in counted.iter_mut().enumerate() {
                let rows = (changes.added.as_slice(), scratch.slots.as_slice());
                counted.apply(plan, set, input, rows, false, &mut table.accumulators)?;
            }
        }
        if !changes.retracted.is_empty() {
            scratch.slots.clone_from(&changes.retracted_slots);
            table.fold(plan, input, &changes.retracted, scratch, Accumulator::retract)?;
            for (set, counted) in counted.iter_mut().enumerate() {
                let rows = (changes.retracted.as_slice(), scratch.slots.as_slice());
                counted.apply(plan, set, input, rows, true, &mut table.accumulators)?;
            }
        }
        Ok(())
    }

    /// The aggregates of the touched groups as they are now.
    fn results(&self) -> Result<Vec<ArrayRef>> {
        let parts = [Part { table: &self.table, slots: Slots::List(&self.touched.slots) }];
        let calls = self.plan.calls.iter().enumerate();
        calls.map(|(index, call)| aggregate_column(&parts, index, call)).collect()
    }

    fn exists(&self, slot: u32) -> bool {
        self.rows.as_ref().is_none_or(|rows| *rows.get(slot) > 0)
    }

    /// Emits how the touched groups differ from `before`; none: there were none of them before.
    fn emit(&self, before: Option<&[ArrayRef]>, out: &mut dyn Collector) -> Result<()> {
        let after = self.results()?;
        let changed = match before {
            Some(before) => differing(before, &after)?,
            None => None,
        };
        let emitted = self.choose(changed.as_ref());
        if emitted.ops.is_empty() {
            return Ok(());
        }
        let parts = [Part { table: &self.table, slots: Slots::List(&self.touched.slots) }];
        let mut columns = Vec::with_capacity(self.output.fields().len());
        for (key, &form) in self.plan.key_forms.iter().enumerate() {
            let values = key_column(&parts, key, form, self.output.field(key).data_type())?;
            columns.push(emitted.of_keys(&values)?);
        }
        for (index, after) in after.iter().enumerate() {
            columns.push(emitted.of_results(before.map(|before| &before[index]), after)?);
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(emitted.ops.len()));
        let rows = RecordBatch::try_new_with_options(SchemaRef::clone(&self.output), columns, &options)
            .map_err(|error| failed(&error))?;
        let inserts = emitted.ops.iter().all(|&op| op == RowOp::Insert as u8);
        let ops = (!inserts).then(|| ScalarBuffer::from(emitted.ops));
        out.emit(Output::Main, Batch { rows, ops })
    }

    /// Which versions of the touched groups are emitted, with which ops.
    fn choose(&self, changed: Option<&BooleanArray>) -> Emitted {
        let touched = self.touched.slots.len();
        let mut emitted = Emitted { touched, ops: Vec::with_capacity(touched), picks: Vec::with_capacity(touched) };
        for (index, (&slot, &existed)) in self.touched.slots.iter().zip(&self.touched.existed).enumerate() {
            match (existed, self.exists(slot)) {
                (false, true) => emitted.push(RowOp::Insert, index, true),
                (true, false) => emitted.push(RowOp::Delete, index, false),
                (true, true) if changed.is_some_and(|changed| changed.value(index)) => {
                    if self.update_before {
                        emitted.push(RowOp::UpdateBefore, index, false);
                    }
                    emitted.push(RowOp::UpdateAfter, index, true);
                }
                (true, true) | (false, false) => {}
            }
        }
        emitted
    }

    /// Forgets touched groups that have no rows left.
    fn sweep(&mut self) -> Result<()> {
        let Some(rows) = &self.rows else { return Ok(()) };
        for &slot in self.touched.slots.iter().filter(|&&slot| *rows.get(slot) <= 0) {
            self.table.keys.remove(slot)?;
            self.table.accumulators.iter_mut().for_each(|accumulator| accumulator.reset(slot));
            self.counted.iter_mut().for_each(|counted| counted.forget(slot));
        }
        Ok(())
    }
}

/// The rows of a batch to be emitted.
struct Emitted {
    /// Number of touched groups.
    touched: usize,
    ops: Vec<u8>,
    /// For each row: which touched group it is of, and whether it is what the group is now (1) or was before (0).
    picks: Vec<(usize, usize)>,
}

impl Emitted {
    fn push(&mut self, op: RowOp, index: usize, after: bool) {
        self.ops.push(op as u8);
        self.picks.push((usize::from(after), index));
    }

    /// Whether every touched group is emitted once, as it is now.
    fn all_after(&self) -> bool {
        self.picks.len() == self.touched && self.picks.iter().all(|(version, _)| *version == 1)
    }

    fn of_keys(&self, values: &ArrayRef) -> Result<ArrayRef> {
        if self.all_after() {
            return Ok(ArrayRef::clone(values));
        }
        let indices: UInt32Array = self.picks.iter().map(|(_, index)| *index as u32).collect();
        take(values, &indices, None).map_err(|error| failed(&error))
    }

    fn of_results(&self, before: Option<&ArrayRef>, after: &ArrayRef) -> Result<ArrayRef> {
        match before {
            Some(before) if !self.all_after() => {
                interleave(&[before.as_ref(), after.as_ref()], &self.picks).map_err(|error| failed(&error))
            }
            _ => self.of_keys(after),
        }
    }
}

/// Where some column differs; none: without columns, nowhere.
fn differing(before: &[ArrayRef], after: &[ArrayRef]) -> Result<Option<BooleanArray>> {
    let mut differs: Option<BooleanArray> = None;
    for (before, after) in before.iter().zip(after) {
        let column = distinct(before, after).map_err(|error| failed(&error))?;
        differs = Some(match differs {
            Some(differs) => arrow::compute::or(&differs, &column).map_err(|error| failed(&error))?,
            None => column,
        });
    }
    Ok(differs)
}

fn failed(error: &ArrowError) -> Error {
    Error::internal("results do not fit the schema").with_detail(error.to_string())
}

impl Operator for GroupAggregate {
    fn restore(&mut self, state: RestoredOperator) -> Result<()> {
        self.restore_tables(state)
    }

    fn process(&mut self, batch: Batch, out: &mut dyn Collector) -> Result<()> {
        let mut changes = Changes::of(&batch);
        if !changes.retracted.is_empty() && !self.plan.retracting {
            return Err(Error::internal("an aggregate got an update that the planner did not announce"));
        }
        let input = Input::new(&self.plan, batch.rows.columns(), batch.len())?;
        let (start, end) = (self.range.start(), self.range.end());
        // Without a branch per row, so that it vectorises.
        let strays = input.hashes.iter().filter(|&&hash| hash < start || hash > end).count();
        if strays > 0 {
            return Err(Error::internal(format!("{strays} rows of other key ranges than {} came here", self.range)));
        }
        self.touch(&input, &mut changes)?;
        let before = self.touched.existed.contains(&true).then(|| self.results()).transpose()?;
        self.take_in(&input, &changes)?;
        self.emit(before.as_deref(), out)?;
        self.sweep()
    }

    fn advance(&mut self, _watermark: Watermark, _out: &mut dyn Collector) -> Result<Progress> {
        Ok(Progress::Done)
    }

    fn freeze(&mut self, since: Since, memory: &Memory) -> Result<Frozen> {
        self.freeze_tables(since, memory)
    }

    fn state_bytes(&self) -> u64 {
        let rows = self.rows.as_ref().map_or(0, Pages::bytes);
        let counted: usize = self.counted.iter().map(Counted::bytes).sum();
        let seen = self.touched.seen.len() * size_of::<u32>();
        (self.table.bytes() + rows + counted + seen) as u64
    }
}
