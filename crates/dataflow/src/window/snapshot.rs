//! A window aggregate's state in snapshots: one table of groups, and one per set of distinct values.
//!
//! Columns of `groups`, by their ids: `key_hash`, `slice_start`, `key<i>` for every key, then for aggregate `i` (by its
//! position) `agg<i>.count`, `agg<i>.value` (with `agg<i>.overflow` for sums of decimals), or `agg<i>.sum` and
//! `agg<i>.count` of a mean. Columns of `distinct<i>`: `key_hash`, `slice_start`, the keys, `value`, and `seen`, a bit per
//! filter. What they are called says the [`super::names`] module.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, SchemaRef, UInt64Type};
use weir_state::columns::{self, Role, state_field};
use weir_state::file::HASH_COLUMN;
use weir_state::frozen::{
    Gather, RowRef, Show, bytes_cells, float_cells, key_column, list, wide_cells, word_cells, word_column,
};
use weir_state::keys::FrozenKeys;
use weir_state::memory::Memory;
use weir_state::pages::{Cell, FrozenPages, Pages};
use weir_state::values::{Data, Form, Values};
use weir_state::{FrozenTable, RestoredOperator, RestoredTable, Since};
use weir_types::graph::AggregateFunction;
use weir_types::{Code, Error, Result};

use super::accumulator::{Accumulator, Kind, Mean, OVERFLOW};
use super::names::SEEN;
use super::plan::{Call, DistinctSet, Plan};
use super::slice::{Input, Slice};
use super::{Groups, WindowAggregate};
use crate::operator::Frozen;

const GROUPS: &str = "groups";

type Columns = Vec<(Field, Gather)>;

impl WindowAggregate {
    /// See [`crate::operator::Operator::freeze`].
    pub(super) fn freeze_tables(&mut self, since: Since, memory: &Memory) -> Result<Frozen> {
        if !self.fired.is_empty() {
            return Err(Error::internal("a barrier came while windows were being emitted"));
        }
        let Some(&live_from) = self.slices.keys().next() else { return Ok(Frozen::default()) };
        let starts: Arc<Vec<i64>> = Arc::new(self.slices.keys().copied().collect());
        let keys: Arc<Vec<FrozenKeys>> =
            Arc::new(self.slices.values_mut().map(|slice| slice.keys.freeze(since, memory)).collect());
        let mut slices: Vec<&mut Slice> = self.slices.values_mut().collect();
        let mut groups = FrozenTable::of_keys(GROUPS, &keys);
        for (field, gather) in leading_columns(&self.plan, &starts, &keys, |row| row)? {
            groups = groups.with_column(field, gather);
        }
        for (index, call) in self.plan.calls.iter().enumerate() {
            let columns = call_columns(index, call).into_iter().zip(freeze_call(&mut slices, index, call, memory)?);
            for (field, gather) in columns {
                groups = groups.with_column(field, gather);
            }
        }
        let mut tables = vec![groups];
        for set in 0..self.plan.distincts.len() {
            tables.push(freeze_distinct(
                &self.plan,
                set,
                &mut slices,
                &Leading { starts: &starts, keys: &keys },
                since,
                memory,
            )?);
        }
        // Slices go in the order of their starts: whatever was kept of lower ones has fired.
        Ok(Frozen { tables: tables.into_iter().map(|table| table.with_live_from(live_from)).collect() })
    }

    /// See [`crate::operator::Operator::restore`].
    pub(super) fn restore_tables(&mut self, state: RestoredOperator) -> Result<()> {
        let RestoredOperator { watermark_ms, mut tables } = state;
        self.fired_until = watermark_ms;
        if let Some(table) = tables.remove(GROUPS) {
            self.check_schema(GROUPS, &table.schema, &self.group_fields())?;
            self.restore_groups(table)?;
        }
        for set in 0..self.plan.distincts.len() {
            let name = format!("distinct{set}");
            if let Some(table) = tables.remove(&name) {
                self.check_schema(&name, &table.schema, &distinct_fields(&self.plan, set))?;
                self.restore_distinct(set, table)?;
            }
        }
        self.state_bytes = self.slices.values().map(Slice::bytes).sum();
        match tables.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::new(Code::FailedPrecondition, format!("state table \"{name}\" is not expected"))
                .with_hint("The snapshot was taken by another query; start without it to begin with empty state.")),
        }
    }

    fn check_schema(&self, name: &str, found: &SchemaRef, expected: &[Field]) -> Result<()> {
        let found: Vec<&Field> = found.fields().iter().map(AsRef::as_ref).collect();
        let expected: Vec<&Field> = expected.iter().collect();
        if found.len() == expected.len() && found.iter().zip(&expected).all(|(found, expected)| fits(found, expected)) {
            return Ok(());
        }
        let describe = |fields: &[&Field]| {
            let fields = fields.iter().map(|field| format!("{} {}", field.name(), field.data_type()));
            fields.collect::<Vec<_>>().join(", ")
        };
        let (found, expected) = (describe(&found), describe(&expected));
        Err(Error::new(Code::FailedPrecondition, format!("state table \"{name}\" does not fit the query"))
            .with_detail(format!("the snapshot has ({found}), the query needs ({expected})"))
            .with_hint("Restore with the query that took the snapshot, or start without state."))
    }

    /// The schemas of its tables.
    #[cfg(test)]
    pub(super) fn state_schemas(&self) -> Vec<(String, arrow::datatypes::Schema)> {
        let schema = arrow::datatypes::Schema::new;
        let groups = (GROUPS.to_owned(), schema(self.group_fields()));
        let sets = 0..self.plan.distincts.len();
        let distincts = sets.map(|set| (format!("distinct{set}"), schema(distinct_fields(&self.plan, set))));
        std::iter::once(groups).chain(distincts).collect()
    }

    fn group_fields(&self) -> Vec<Field> {
        let mut fields = leading_fields(&self.plan);
        for (index, call) in self.plan.calls.iter().enumerate() {
            fields.extend(call_columns(index, call));
        }
        fields
    }

    fn restore_groups(&mut self, table: RestoredTable) -> Result<()> {
        let first_call = 2 + self.plan.keys.len();
        for batch in table.batches {
            let values = batch.columns()[first_call..].iter().map(Values::new).collect::<Result<Vec<_>>>()?;
            let (input, groups) = self.restored_rows(&batch)?;
            let mut slots = Vec::new();
            for (start, rows) in groups.used() {
                let slice = Self::slice(&mut self.slices, &mut self.state_bytes, &self.plan, *start, rows.len())?;
                let before = slice.keys.len();
                slice.keys.lookup_or_insert(&input.hashes, &input.keys, rows, &mut slots)?;
                if slice.keys.len() != before + rows.len() {
                    return Err(Error::new(Code::Corrupt, "a key is in the snapshot's state twice"));
                }
                let mut values = values.as_slice();
                for (call, accumulator) in self.plan.calls.iter().zip(&mut slice.accumulators) {
                    let (own, rest) = values.split_at(state_width(call));
                    accumulator.grow(slice.keys.slots());
                    accumulator.restore(own, rows, &slots)?;
                    values = rest;
                }
                for distinct in &mut slice.distincts {
                    distinct.masks.grow(distinct.entries.slots(), &0);
                }
                self.state_bytes += slice.bytes();
            }
        }
        Ok(())
    }

    fn restore_distinct(&mut self, set: usize, table: RestoredTable) -> Result<()> {
        let value_column = 2 + self.plan.keys.len();
        let mut entries = Vec::new();
        for batch in table.batches {
            let values = Values::for_key(batch.column(value_column))?;
            let mut value_hashes = Vec::new();
            weir_state::key_hash::hash_values(std::slice::from_ref(&values), batch.num_rows(), &mut value_hashes);
            let masks = batch.column(value_column + 1).as_primitive::<UInt64Type>().values().clone();
            let (input, groups) = self.restored_rows(&batch)?;
            for (start, rows) in groups.used() {
                let orphan = || Error::new(Code::Corrupt, "a distinct value in the snapshot belongs to no group");
                let slice = self.slices.get_mut(start).ok_or_else(orphan)?;
                let find = |&row: &u32| {
                    slice.keys.find(input.hashes[row as usize], &input.keys, row as usize).ok_or_else(orphan)
                };
                let slots = rows.iter().map(find).collect::<Result<Vec<u32>>>()?;
                let mut bits: Vec<u64> = rows.iter().map(|&row| masks[row as usize]).collect();
                let hashes = rows.iter().map(|&row| value_hashes[row as usize]);
                let taken = values.take(rows)?;
                slice.distincts[set].insert(&slots, taken, hashes, &mut bits, &mut entries)?;
            }
        }
        Ok(())
    }

    /// The keys of restored rows, and the rows by slice.
    fn restored_rows(&self, batch: &RecordBatch) -> Result<(Input, Groups)> {
        let rows = batch.num_rows();
        let input = Input::of_keys(&batch.columns()[2..2 + self.plan.keys.len()], rows)?;
        let stored = batch.column(0).as_primitive::<UInt64Type>().values();
        if stored.as_ref() != input.hashes.as_slice() {
            return Err(Error::new(
                Code::Corrupt,
                "keys in the snapshot's state do not have the hashes stored with them",
            ));
        }
        let starts = match Values::new(batch.column(1))?.data {
            Data::Words(starts) if starts.iter().all(|&start| self.timeline.is_slice_start(start)) => starts,
            _ => {
                return Err(Error::new(
                    Code::FailedPrecondition,
                    "the snapshot's state is of windows that are cut otherwise",
                )
                .with_hint("Size, slide and offset of a window cannot change; start without state."));
            }
        };
        let mut groups = Groups::default();
        groups.fill(&self.timeline, &starts);
        Ok((input, groups))
    }
}

/// Whether a column of a snapshot is the expected one, whatever it is called. Snapshots without column ids name key
/// columns `key.<name>`, and the others by their ids.
fn fits(found: &Field, expected: &Field) -> bool {
    let key = columns::role(expected) == Some(Role::Key) && found.name().starts_with("key.");
    found.data_type() == expected.data_type()
        && (columns::id(found) == columns::id(expected) || (key && columns::role(found).is_none()))
}

/// Fields of the columns that every table begins with.
fn leading_fields(plan: &Plan) -> Vec<Field> {
    let mut fields = vec![Field::new(HASH_COLUMN, DataType::UInt64, false), plan.slice_field.clone()];
    fields.extend((0..plan.keys.len()).map(|index| key_field(plan, index)));
    fields
}

fn key_field(plan: &Plan, index: usize) -> Field {
    let data_type = plan.key_fields[index].data_type().clone();
    state_field(&format!("key{index}"), Role::Key, &plan.key_names[index], data_type, true)
}

/// The columns after the key hash that every table begins with; `locate` finds the group that a row belongs to.
fn leading_columns(
    plan: &Plan,
    starts: &Arc<Vec<i64>>,
    keys: &Arc<Vec<FrozenKeys>>,
    locate: impl Fn(RowRef) -> RowRef + Clone + Send + 'static,
) -> Result<Columns> {
    let starts = Arc::clone(starts);
    let start = word_column(plan.slice_field.data_type().clone(), move |row| Some(starts[row.segment as usize]));
    let mut columns = vec![(plan.slice_field.clone(), start)];
    for (index, key) in plan.key_fields.iter().enumerate() {
        let gather = key_column(key.data_type(), Arc::clone(keys), index, locate.clone())?;
        columns.push((key_field(plan, index), gather));
    }
    Ok(columns)
}

/// How many columns a call's accumulator has in snapshots.
fn state_width(call: &Call) -> usize {
    match call.kind {
        Kind::Mean(_) => 2,
        Kind::Value(Form::Wide) if call.fold.function == AggregateFunction::Sum => 2,
        Kind::Count | Kind::Value(_) => 1,
    }
}

fn call_columns(index: usize, call: &Call) -> Vec<Field> {
    let sum = call.fold.function == AggregateFunction::Sum;
    let argument = call.argument_type.clone().unwrap_or(DataType::Null);
    let summed = match (&argument, call.kind) {
        (DataType::Decimal128(_, scale), _) => DataType::Decimal128(38, *scale),
        (_, Kind::Value(Form::Float) | Kind::Mean(Form::Float)) => DataType::Float64,
        _ => DataType::Int64,
    };
    let name = &call.state_name;
    let field = |part: &str, suffix: &str, data_type: DataType, nullable| {
        let id = format!("agg{index}.{part}");
        state_field(&id, Role::Value, &format!("{name}{suffix}"), data_type, nullable)
    };
    match call.kind {
        Kind::Count => vec![field("count", "", DataType::Int64, false)],
        Kind::Value(Form::Wide) if sum => {
            vec![field("value", "", summed, true), field("overflow", "_overflow", DataType::Boolean, false)]
        }
        Kind::Value(Form::Float) => vec![field("value", "", DataType::Float64, true)],
        Kind::Value(Form::Bytes) => vec![field("value", "", DataType::Utf8, true)],
        Kind::Value(_) if sum => vec![field("value", "", summed, true)],
        Kind::Value(_) => vec![field("value", "", argument, true)],
        Kind::Mean(_) => {
            vec![field("sum", "_sum", summed, true), field("count", "_count", DataType::Int64, false)]
        }
    }
}

/// Shares the pages of one accumulator of every slice.
fn freeze_all<T: Cell>(
    slices: &mut [&mut Slice],
    index: usize,
    memory: &Memory,
    pick: fn(&mut Accumulator) -> Option<&mut Pages<T>>,
) -> Result<Arc<Vec<FrozenPages<T>>>> {
    let frozen = slices.iter_mut().map(|slice| pick(&mut slice.accumulators[index]).map(|pages| pages.freeze(memory)));
    let frozen: Option<Vec<_>> = frozen.collect();
    frozen.map(Arc::new).ok_or_else(|| Error::internal("an accumulator changed its form"))
}

macro_rules! pages_of {
    ($slices:expr, $index:expr, $memory:expr, $pattern:pat => $pages:expr) => {
        freeze_all($slices, $index, $memory, |accumulator| match accumulator {
            $pattern => Some($pages),
            _ => None,
        })
    };
}

/// The columns of one call's accumulators, as [`call_columns`] names them.
fn freeze_call(slices: &mut [&mut Slice], index: usize, call: &Call, memory: &Memory) -> Result<Vec<Gather>> {
    let fields = call_columns(index, call);
    let data_type = fields[0].data_type().clone();
    let count = DataType::Int64;
    Ok(match call.kind {
        Kind::Count => {
            let pages = pages_of!(slices, index, memory, Accumulator::Count(pages) => pages)?;
            vec![word_cells(data_type, pages, |count| Some(*count))]
        }
        Kind::Value(Form::Word) => {
            let pages = pages_of!(slices, index, memory, Accumulator::Word(pages) => pages)?;
            vec![word_cells(data_type, pages, |word| *word)]
        }
        Kind::Value(Form::Float) => {
            let pages = pages_of!(slices, index, memory, Accumulator::Float(pages) => pages)?;
            vec![float_cells(data_type, pages, |float| *float)]
        }
        Kind::Value(Form::Wide) => {
            let pages = pages_of!(slices, index, memory, Accumulator::Wide(pages) => pages)?;
            let flags = Arc::clone(&pages);
            let value = wide_cells(data_type, pages, |wide| wide.filter(|&wide| wide != OVERFLOW));
            let flag = word_cells(DataType::Boolean, flags, |wide| Some((*wide == Some(OVERFLOW)).into()));
            if state_width(call) == 2 { vec![value, flag] } else { vec![value] }
        }
        Kind::Value(Form::Bytes) => {
            let pages = pages_of!(slices, index, memory, Accumulator::Bytes { values, .. } => values)?;
            vec![bytes_cells(data_type, pages, |value| value.as_deref())]
        }
        Kind::Mean(Form::Float) => {
            let pages = pages_of!(slices, index, memory, Accumulator::FloatMean(pages) => pages)?;
            let counts = Arc::clone(&pages);
            let sum = float_cells(data_type, pages, |mean| Some(mean.sum));
            vec![sum, word_cells(count, counts, |mean| Some(mean.count))]
        }
        Kind::Mean(Form::Wide) => {
            let pages = pages_of!(slices, index, memory, Accumulator::WideMean(pages) => pages)?;
            let counts = Arc::clone(&pages);
            let sum = wide_cells(data_type, pages, |mean| Some(mean.sum).filter(|&sum| sum != OVERFLOW));
            vec![sum, word_cells(count, counts, |mean| Some(mean.count))]
        }
        Kind::Mean(_) => {
            let pages = pages_of!(slices, index, memory, Accumulator::WordMean(pages) => pages)?;
            let counts = Arc::clone(&pages);
            let sum = word_cells(data_type, pages, |mean| Some(mean.sum));
            vec![sum, word_cells(count, counts, |mean| Some(mean.count))]
        }
    })
}

fn distinct_fields(plan: &Plan, set: usize) -> Vec<Field> {
    let mut fields = leading_fields(plan);
    let DistinctSet { value_type, state_name, .. } = &plan.distincts[set];
    fields.push(state_field("value", Role::MapKey, state_name, value_type.clone(), false));
    fields.push(state_field("seen", Role::Value, SEEN, DataType::UInt64, false));
    fields
}

/// What the leading columns of all tables are made of.
struct Leading<'a> {
    starts: &'a Arc<Vec<i64>>,
    keys: &'a Arc<Vec<FrozenKeys>>,
}

fn freeze_distinct(
    plan: &Plan,
    set: usize,
    slices: &mut [&mut Slice],
    leading: &Leading<'_>,
    since: Since,
    memory: &Memory,
) -> Result<FrozenTable> {
    let Leading { starts, keys } = *leading;
    let masks: Arc<Vec<FrozenPages<u64>>> =
        Arc::new(slices.iter_mut().map(|slice| slice.distincts[set].masks.freeze(memory)).collect());
    let entries: Arc<Vec<FrozenKeys>> =
        Arc::new(slices.iter_mut().map(|slice| slice.distincts[set].entries.freeze(since, memory)).collect());
    let owners = Arc::clone(&entries);
    let locate =
        move |row: RowRef| RowRef { segment: row.segment, slot: owners[row.segment as usize].word(0, row.slot) as u32 };
    let (groups, owner) = (Arc::clone(keys), locate.clone());
    let hash = move |_: &FrozenKeys, row: RowRef| groups[row.segment as usize].hash(owner(row).slot);
    let (listed, hash_listed) = (Arc::clone(&entries), hash.clone());
    let all = move |show: Show<'_>| list(&listed, FrozenKeys::slots, &hash_listed, show);
    let listed = Arc::clone(&entries);
    let changed = move |show: Show<'_>| list(&listed, FrozenKeys::changed_slots, &hash, show);
    let value_type = &plan.distincts[set].value_type;
    let mut table = FrozenTable::of_rows(format!("distinct{set}"), all).with_changes(&entries, changed);
    let values = key_column(value_type, entries, 1, |row| row)?;
    let seen = word_cells(DataType::UInt64, masks, |mask| Some(*mask as i64));
    let own = [values, seen].into_iter().zip(distinct_fields(plan, set).split_off(2 + plan.keys.len()));
    for (field, gather) in leading_columns(plan, starts, keys, locate)? {
        table = table.with_column(field, gather);
    }
    for (gather, field) in own {
        table = table.with_column(field, gather);
    }
    Ok(table)
}

impl Input {
    /// The keys alone, as read back.
    fn of_keys(columns: &[ArrayRef], rows: usize) -> Result<Self> {
        let keys = columns.iter().map(Values::for_key).collect::<Result<Vec<_>>>()?;
        Ok(Self::with_keys(keys, rows))
    }
}

impl Accumulator {
    /// Sets the slots to what `columns`, the accumulator's own, hold in `rows`.
    fn restore(&mut self, columns: &[Values], rows: &[u32], slots: &[u32]) -> Result<()> {
        let first = &columns[0];
        let present = |row: u32| !first.is_null(row as usize);
        let pairs = || rows.iter().copied().zip(slots.iter().copied());
        match (self, &first.data, columns.get(1).map(|column| &column.data)) {
            (Self::Count(pages), Data::Words(words), None) => {
                pairs().for_each(|(row, slot)| *pages.get_mut(slot) = words[row as usize]);
            }
            (Self::Word(pages), Data::Words(words), None) => {
                pairs().for_each(|(row, slot)| *pages.get_mut(slot) = present(row).then(|| words[row as usize]));
            }
            (Self::Float(pages), Data::Floats(floats), None) => {
                pairs().for_each(|(row, slot)| *pages.get_mut(slot) = present(row).then(|| floats[row as usize]));
            }
            (Self::Wide(pages), Data::Wides(wides), flags) => {
                for (row, slot) in pairs() {
                    let overflow = matches!(flags, Some(Data::Words(flags)) if flags[row as usize] != 0);
                    let value = present(row).then(|| wides[row as usize]);
                    *pages.get_mut(slot) = if overflow { Some(OVERFLOW) } else { value };
                }
            }
            (Self::Bytes { values, heap }, Data::Bytes(bytes), None) => {
                for (row, slot) in pairs().filter(|(row, _)| present(*row)) {
                    let value = bytes.value(row as usize);
                    *heap += value.len();
                    *values.get_mut(slot) = Some(value.into());
                }
            }
            (Self::WordMean(pages), Data::Words(sums), Some(Data::Words(counts))) => {
                for (row, slot) in pairs() {
                    *pages.get_mut(slot) = Mean { sum: sums[row as usize], count: counts[row as usize] };
                }
            }
            (Self::FloatMean(pages), Data::Floats(sums), Some(Data::Words(counts))) => {
                for (row, slot) in pairs() {
                    *pages.get_mut(slot) = Mean { sum: sums[row as usize], count: counts[row as usize] };
                }
            }
            (Self::WideMean(pages), Data::Wides(sums), Some(Data::Words(counts))) => {
                for (row, slot) in pairs() {
                    let sum = if present(row) { sums[row as usize] } else { OVERFLOW };
                    *pages.get_mut(slot) = Mean { sum, count: counts[row as usize] };
                }
            }
            _ => return Err(Error::internal("an accumulator's state changed its form")),
        }
        Ok(())
    }
}
