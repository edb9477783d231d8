//! The window aggregate: groups rows by key and event-time window, and emits one row per key when the watermark passes the
//! window's end.
//!
//! - A window `[start, end)` fires when the watermark reaches `end - 1`. Windows fire in the order of their ends, each once.
//! - A row is late if every window that it belongs to has fired: it is counted, and leaves through [`Output::Late`] if
//!   asked for. A row of overlapping windows some of which have fired counts for those that have not.
//! - A window without rows emits nothing, an aggregate without keys included.
//! - A snapshot is taken between calls of [`Operator::advance`] that ended with [`Progress::Done`]: the task loop passes no
//!   barrier on while a watermark has more to emit. State is then exactly the slices of windows that have not fired, and
//!   the watermark tells which have.

mod output;
mod plan;
#[cfg(test)]
mod schema_tests;
mod snapshot;
mod time;

use std::collections::{BTreeMap, VecDeque};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow_schema::SchemaRef;
use hashbrown::HashMap;
use weir_state::memory::Memory;
use weir_state::{RestoredOperator, Since};
use weir_types::graph::{Output, WindowAggregateSpec};
use weir_types::key_range::KeyRange;
use weir_types::{Error, Result};

use crate::aggregate::output::{Part, Slots, aggregate_column, key_column};
use crate::aggregate::plan::Plan;
use crate::aggregate::table::{GroupTable, Input, Scratch};
use crate::element::{Batch, RowOp, Watermark};
use crate::operator::{Collector, Frozen, Operator, Progress};
use output::{Rows, window_column};
use plan::WindowPlan;
use time::{Timeline, event_times};

/// Room for keys that a new slice starts with, at most.
const CAPACITY_MAX: usize = 1 << 20;

/// With more open slices than these, new ones start small.
const SLICES_FEW: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub struct WindowAggregate {
    plan: Plan,
    window: WindowPlan,
    timeline: Timeline,
    output: SchemaRef,
    range: KeyRange,
    batch_rows: usize,
    emit_late_rows: bool,
    /// Slices of windows that have not fired, by start.
    slices: BTreeMap<i64, GroupTable>,
    /// Windows that have fired and are not emitted to the end.
    fired: VecDeque<FiredWindow>,
    /// Windows whose last instant is at or before this have fired.
    fired_until: i64,
    late_rows: u64,
    state_bytes: usize,
    /// How many keys the last window had: a guess at the next one's.
    keys_expected: usize,
    groups: Groups,
    scratch: Scratch,
}

#[derive(Debug)]
struct FiredWindow {
    window: (i64, i64),
    slice: GroupTable,
    emitted: usize,
    bytes: usize,
}

/// The rows of a batch by slice.
#[derive(Debug, Default)]
struct Groups {
    by_start: HashMap<i64, usize>,
    /// The first `by_start.len()` are in use; the others keep their memory for the next batch.
    list: Vec<(i64, Vec<u32>)>,
}

impl Groups {
    /// Groups rows by the slices of their times; neighbours mostly fall into the same one.
    fn fill(&mut self, timeline: &Timeline, times: &[i64]) {
        self.by_start.clear();
        let (mut current, mut start, mut end) = (0, 0, 0);
        for (row, &time) in times.iter().enumerate() {
            if time < start || time >= end {
                start = timeline.slice_of(time);
                end = start + timeline.slice_size();
                current = self.group(start);
            }
            self.list[current].1.push(row as u32);
        }
    }

    fn group(&mut self, start: i64) -> usize {
        let next = self.by_start.len();
        let group = *self.by_start.entry(start).or_insert(next);
        if group == next {
            match self.list.get_mut(next) {
                Some((kept, rows)) => {
                    *kept = start;
                    rows.clear();
                }
                None => self.list.push((start, Vec::new())),
            }
        }
        group
    }

    fn used(&self) -> &[(i64, Vec<u32>)] {
        &self.list[..self.by_start.len()]
    }
}

impl WindowAggregate {
    /// An operator without state. `output` is the planned schema: keys, aggregates, window columns.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the schemas do not fit the specification, `UNSUPPORTED` for types that cannot be grouped by or
    /// aggregated.
    pub fn new(
        spec: &WindowAggregateSpec,
        input: SchemaRef,
        output: SchemaRef,
        range: KeyRange,
        batch_rows: usize,
    ) -> Result<Self> {
        Ok(Self {
            window: WindowPlan::new(spec, &input, &output)?,
            plan: Plan::new(&spec.keys, &spec.aggregates, false, &input, &output)?,
            timeline: Timeline::new(&spec.window)?,
            output,
            range,
            batch_rows: batch_rows.max(1),
            emit_late_rows: spec.emit_late_rows,
            slices: BTreeMap::new(),
            fired: VecDeque::new(),
            fired_until: i64::MIN,
            late_rows: 0,
            state_bytes: 0,
            keys_expected: 0,
            groups: Groups::default(),
            scratch: Scratch::default(),
        })
    }

    /// The slice that starts at `start`, with its bytes taken off the account until [`Self::state_bytes`] gets them back.
    fn slice<'a>(
        slices: &'a mut BTreeMap<i64, GroupTable>,
        state_bytes: &mut usize,
        plan: &Plan,
        start: i64,
        capacity: usize,
    ) -> Result<&'a mut GroupTable> {
        use std::collections::btree_map::Entry;
        match slices.entry(start) {
            Entry::Occupied(entry) => {
                *state_bytes -= entry.get().bytes();
                Ok(entry.into_mut())
            }
            Entry::Vacant(entry) => Ok(entry.insert(GroupTable::new(plan, capacity)?)),
        }
    }

    /// Counts late rows, and sends them to the side output if asked for.
    fn late(&mut self, batch: &Batch, rows: Vec<u32>, out: &mut dyn Collector) -> Result<()> {
        self.late_rows += rows.len() as u64;
        if !self.emit_late_rows {
            return Ok(());
        }
        let late = if rows.len() == batch.rows.num_rows() {
            batch.rows.clone()
        } else {
            take_record_batch(&batch.rows, &UInt32Array::from(rows))
                .map_err(|error| Error::internal("could not take late rows").with_detail(error.to_string()))?
        };
        out.emit(Output::Late, Batch::inserts(late))
    }

    /// Fires the window that ends first, if its end is reached. Its slices that no later window needs are freed.
    fn fire_next(&mut self, watermark: i64) -> Result<bool> {
        let Some((&first, _)) = self.slices.first_key_value() else { return Ok(false) };
        let end = self.timeline.next_end(first, self.fired_until);
        if end - 1 > watermark {
            return Ok(false);
        }
        let start = self.timeline.start_of(end);
        let mut starts = self.slices.range(start..end).map(|(&start, _)| start);
        let (lone, more) = (starts.next(), starts.next());
        drop(starts);
        let lone = lone.filter(|&slice| more.is_none() && self.timeline.last_end(slice) <= end);
        let slice = match lone.and_then(|slice| self.slices.remove(&slice)) {
            Some(slice) => {
                self.state_bytes -= slice.bytes();
                slice
            }
            None => self.merge(start, end)?,
        };
        self.keys_expected = slice.keys.len().min(CAPACITY_MAX);
        let bytes = slice.bytes();
        self.state_bytes += bytes;
        self.fired.push_back(FiredWindow { window: (start, end), slice, emitted: 0, bytes });
        self.fired_until = end - 1;
        Ok(true)
    }

    fn merge(&mut self, start: i64, end: i64) -> Result<GroupTable> {
        let mut merged = GroupTable::new(&self.plan, self.keys_expected)?;
        let mut expired = Vec::new();
        for (&slice_start, slice) in self.slices.range(start..end) {
            merged.merge(&self.plan, slice, &mut self.scratch)?;
            if self.timeline.last_end(slice_start) <= end {
                expired.push(slice_start);
            }
        }
        for start in expired {
            self.state_bytes -= self.slices.remove(&start).map_or(0, |slice| slice.bytes());
        }
        Ok(merged)
    }

    /// Emits up to a batch of rows of fired windows.
    fn emit(&mut self, out: &mut dyn Collector) -> Result<()> {
        let (mut parts, mut windows) = (Vec::new(), Vec::new());
        let mut room = self.batch_rows;
        for FiredWindow { window, slice, emitted, .. } in &mut self.fired {
            let to = slice.keys.slots().min(*emitted + room);
            parts.push(Part { table: slice, slots: Slots::Range(*emitted, to) });
            windows.push(Rows { window: *window, count: to - *emitted });
            room -= to - *emitted;
            *emitted = to;
            if room == 0 {
                break;
            }
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.output.fields().len());
        for (key, &form) in self.plan.key_forms.iter().enumerate() {
            columns.push(key_column(&parts, key, form, self.output.field(key).data_type())?);
        }
        for (index, call) in self.plan.calls.iter().enumerate() {
            columns.push(aggregate_column(&parts, index, call)?);
        }
        for &column in &self.window.window_columns {
            columns.push(window_column(&windows, column, self.output.field(columns.len()).data_type())?);
        }
        let rows = RecordBatch::try_new(SchemaRef::clone(&self.output), columns)
            .map_err(|error| Error::internal("results do not fit the schema").with_detail(error.to_string()))?;
        while self.fired.front().is_some_and(|window| window.emitted == window.slice.keys.slots()) {
            self.state_bytes -= self.fired.pop_front().map_or(0, |window| window.bytes);
        }
        out.emit(Output::Main, Batch::inserts(rows))
    }

    /// Rows that wait to be emitted, of windows that have fired.
    fn rows_fired(&self) -> usize {
        self.fired.iter().map(|window| window.slice.keys.slots() - window.emitted).sum()
    }
}

impl Operator for WindowAggregate {
    fn restore(&mut self, state: RestoredOperator) -> Result<()> {
        self.restore_tables(state)
    }

    fn process(&mut self, batch: Batch, out: &mut dyn Collector) -> Result<()> {
        if batch.ops.as_ref().is_some_and(|ops| ops.iter().any(|&op| op != RowOp::Insert as u8)) {
            return Err(Error::internal("a window aggregate got an update; the planner allows inserts only"));
        }
        let columns = batch.rows.columns();
        let times = event_times(&columns[self.window.time_column], &self.window.time_name)?;
        let input = Input::new(&self.plan, columns, batch.rows.num_rows())?;
        let (start, end) = (self.range.start(), self.range.end());
        // Without a branch per row, so that it vectorises.
        let strays = input.hashes.iter().filter(|&&hash| hash < start || hash > end).count();
        if strays > 0 {
            return Err(Error::internal(format!("{strays} rows of other key ranges than {} came here", self.range)));
        }
        self.groups.fill(&self.timeline, &times);
        let mut late = Vec::new();
        for (start, rows) in self.groups.used() {
            if self.timeline.last_end(*start) - 1 <= self.fired_until {
                late.extend_from_slice(rows);
                continue;
            }
            // Many open slices are small ones.
            let capacity = if self.slices.len() < SLICES_FEW { self.keys_expected } else { 0 };
            let slice = Self::slice(&mut self.slices, &mut self.state_bytes, &self.plan, *start, capacity)?;
            slice.update(&self.plan, &input, rows, &mut self.scratch)?;
            self.state_bytes += slice.bytes();
        }
        if late.is_empty() {
            return Ok(());
        }
        late.sort_unstable();
        self.late(&batch, late, out)
    }

    fn advance(&mut self, watermark: Watermark, out: &mut dyn Collector) -> Result<Progress> {
        let mut rows = self.rows_fired();
        while rows < self.batch_rows && self.fire_next(watermark.0)? {
            rows += self.fired.back().map_or(0, |window| window.slice.keys.slots());
        }
        if rows > 0 {
            self.emit(out)?;
        }
        if !self.fired.is_empty() {
            return Ok(Progress::More);
        }
        let next = self.slices.first_key_value().map(|(&first, _)| self.timeline.next_end(first, self.fired_until));
        if next.is_some_and(|end| end - 1 <= watermark.0) {
            return Ok(Progress::More);
        }
        self.fired_until = self.fired_until.max(watermark.0);
        Ok(Progress::Done)
    }

    fn freeze(&mut self, since: Since, memory: &Memory) -> Result<Frozen> {
        self.freeze_tables(since, memory)
    }

    fn state_bytes(&self) -> u64 {
        self.state_bytes as u64
    }

    fn late_rows(&self) -> u64 {
        self.late_rows
    }
}
