//! Keys and accumulators as columns of state tables, and back: what window aggregates and updating aggregates have in
//! common in snapshots.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, SchemaRef, UInt64Type};
use weir_state::columns::{self, Role, state_field};
use weir_state::frozen::{Gather, RowRef, Show, bytes_cells, float_cells, key_column, list, wide_cells, word_cells};
use weir_state::keys::FrozenKeys;
use weir_state::memory::Memory;
use weir_state::pages::{Cell, FrozenPages, Pages};
use weir_state::values::{Data, Form, Values};
use weir_state::{FrozenTable, Since};
use weir_types::graph::AggregateFunction;
use weir_types::{Code, Error, Result};

use super::accumulator::{Accumulator, Kind, Mean, OVERFLOW};
use super::names::SEEN;
use super::plan::{Call, Plan, ValueSet};
use super::table::{GroupTable, Input};

/// What the table of groups is called.
pub(crate) const GROUPS: &str = "groups";

/// Columns of a table to be written.
pub(crate) type Columns = Vec<(Field, Gather)>;

/// Refuses a table of a snapshot whose columns are others than expected.
///
/// # Errors
/// `FAILED_PRECONDITION` with both schemas.
pub(crate) fn check_schema(name: &str, found: &SchemaRef, expected: &[Field]) -> Result<()> {
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

/// Whether a column of a snapshot is the expected one, whatever it is called. Snapshots without column ids name key
/// columns `key.<name>`, and the others by their ids.
fn fits(found: &Field, expected: &Field) -> bool {
    let key = columns::role(expected) == Some(Role::Key) && found.name().starts_with("key.");
    found.data_type() == expected.data_type()
        && (columns::id(found) == columns::id(expected) || (key && columns::role(found).is_none()))
}

/// The fields of the keys.
pub(crate) fn key_fields(plan: &Plan) -> impl Iterator<Item = Field> {
    (0..plan.keys.len()).map(|index| key_field(plan, index))
}

fn key_field(plan: &Plan, index: usize) -> Field {
    let data_type = plan.key_fields[index].data_type().clone();
    state_field(&format!("key{index}"), Role::Key, &plan.key_names[index], data_type, true)
}

/// The key columns; `locate` finds the group that a row belongs to.
pub(crate) fn key_columns(
    plan: &Plan,
    keys: &Arc<Vec<FrozenKeys>>,
    locate: impl Fn(RowRef) -> RowRef + Clone + Send + 'static,
) -> Result<Columns> {
    let column = |(index, key): (usize, &Field)| {
        let gather = key_column(key.data_type(), Arc::clone(keys), index, locate.clone())?;
        Ok((key_field(plan, index), gather))
    };
    plan.key_fields.iter().enumerate().map(column).collect()
}

/// The fields of the calls' accumulators.
pub(crate) fn call_fields(plan: &Plan) -> impl Iterator<Item = Field> {
    plan.calls.iter().enumerate().flat_map(|(index, call)| call_columns(index, call))
}

/// The columns of the calls' accumulators in these tables.
pub(crate) fn freeze_calls(plan: &Plan, tables: &mut [&mut GroupTable], memory: &Memory) -> Result<Columns> {
    let mut columns = Vec::new();
    for (index, call) in plan.calls.iter().enumerate() {
        columns.extend(call_columns(index, call).into_iter().zip(freeze_call(tables, index, call, memory)?));
    }
    Ok(columns)
}

/// The keys of restored rows, whose columns begin at `first`.
///
/// # Errors
/// `CORRUPT` if they do not have the hashes that are stored with them.
pub(crate) fn restored_keys(plan: &Plan, batch: &RecordBatch, first: usize) -> Result<Input> {
    let input = Input::of_keys(&batch.columns()[first..first + plan.keys.len()], batch.num_rows())?;
    if batch.column(0).as_primitive::<UInt64Type>().values().as_ref() == input.hashes.as_slice() {
        return Ok(input);
    }
    Err(Error::new(Code::Corrupt, "keys in the snapshot's state do not have the hashes stored with them"))
}

impl GroupTable {
    /// Takes `rows` of a snapshot back as groups; `values` are the columns of all calls. The slots that they have got are
    /// left in `slots`.
    ///
    /// # Errors
    /// `CORRUPT` if a key is there already.
    pub(crate) fn restore(
        &mut self,
        plan: &Plan,
        input: &Input,
        mut values: &[Values],
        rows: &[u32],
        slots: &mut Vec<u32>,
    ) -> Result<()> {
        let before = self.keys.len();
        self.keys.lookup_or_insert(&input.hashes, &input.keys, rows, slots)?;
        if self.keys.len() != before + rows.len() {
            return Err(Error::new(Code::Corrupt, "a key is in the snapshot's state twice"));
        }
        for (call, accumulator) in plan.calls.iter().zip(&mut self.accumulators) {
            let (own, rest) = values.split_at(state_width(call));
            accumulator.grow(self.keys.slots());
            accumulator.restore(own, rows, slots)?;
            values = rest;
        }
        for distinct in &mut self.distincts {
            distinct.masks.grow(distinct.entries.slots(), &0);
        }
        Ok(())
    }

    /// Takes `rows` of a snapshot back as distinct values of groups that are there.
    ///
    /// # Errors
    /// `CORRUPT` if a group is not.
    pub(crate) fn restore_distinct(
        &mut self,
        set: usize,
        input: &Input,
        restored: &RestoredValues,
        rows: &[u32],
    ) -> Result<()> {
        let slots = self.find_all(input, rows)?;
        let mut bits: Vec<u64> = rows.iter().map(|&row| restored.masks[row as usize]).collect();
        let hashes = rows.iter().map(|&row| restored.hashes[row as usize]);
        self.distincts[set].insert(&slots, restored.values.take(rows)?, hashes, &mut bits, &mut Vec::new())
    }

    /// The slots of groups that must be there.
    ///
    /// # Errors
    /// `CORRUPT` if one is not.
    pub(crate) fn find_all(&self, input: &Input, rows: &[u32]) -> Result<Vec<u32>> {
        let orphan = || Error::new(Code::Corrupt, "a value in the snapshot's state belongs to no group");
        let find = |&row: &u32| self.keys.find(input.hashes[row as usize], &input.keys, row as usize);
        rows.iter().map(|row| find(row).ok_or_else(orphan)).collect()
    }
}

/// Distinct values as read back, with the filters that each has passed.
pub(crate) struct RestoredValues {
    values: Values,
    hashes: Vec<u64>,
    masks: arrow::buffer::ScalarBuffer<u64>,
}

impl RestoredValues {
    /// From the columns of values and masks, which begin at `first`.
    pub(crate) fn new(batch: &RecordBatch, first: usize) -> Result<Self> {
        let values = Values::for_key(batch.column(first))?;
        let mut hashes = Vec::new();
        weir_state::key_hash::hash_values(std::slice::from_ref(&values), batch.num_rows(), &mut hashes);
        Ok(Self { values, hashes, masks: batch.column(first + 1).as_primitive::<UInt64Type>().values().clone() })
    }
}

/// The fields of a set's distinct values, behind the keys.
pub(crate) fn distinct_fields(set: &ValueSet) -> [Field; 2] {
    let ValueSet { value_type, state_name, .. } = set;
    [
        state_field("value", Role::MapKey, state_name, value_type.clone(), false),
        state_field("seen", Role::Value, SEEN, DataType::UInt64, false),
    ]
}

/// The distinct values of one set in these tables, whose groups `keys` are: the table without its leading columns, how the
/// group of a row is found, and the columns that come last.
pub(crate) fn freeze_distinct(
    plan: &Plan,
    set: usize,
    tables: &mut [&mut GroupTable],
    keys: &Arc<Vec<FrozenKeys>>,
    since: Since,
    memory: &Memory,
) -> Result<(FrozenTable, impl Fn(RowRef) -> RowRef + Clone + Send + 'static, Columns)> {
    let masks: Arc<Vec<FrozenPages<u64>>> =
        Arc::new(tables.iter_mut().map(|table| table.distincts[set].masks.freeze(memory)).collect());
    let entries: Arc<Vec<FrozenKeys>> =
        Arc::new(tables.iter_mut().map(|table| table.distincts[set].entries.freeze(since, memory)).collect());
    let owners = Arc::clone(&entries);
    let locate =
        move |row: RowRef| RowRef { segment: row.segment, slot: owners[row.segment as usize].word(0, row.slot) as u32 };
    let (groups, owner) = (Arc::clone(keys), locate.clone());
    let hash = move |_: &FrozenKeys, row: RowRef| groups[row.segment as usize].hash(owner(row).slot);
    let (listed, hash_listed) = (Arc::clone(&entries), hash.clone());
    let all = move |show: Show<'_>| list(&listed, FrozenKeys::slots, &hash_listed, show);
    let listed = Arc::clone(&entries);
    let changed = move |show: Show<'_>| list(&listed, FrozenKeys::changed_slots, &hash, show);
    let table = FrozenTable::of_rows(format!("distinct{set}"), all).with_changes(&entries, changed);
    let values = key_column(&plan.sets[set].value_type, entries, 1, |row| row)?;
    let seen = word_cells(DataType::UInt64, masks, |mask| Some(*mask as i64));
    let own = distinct_fields(&plan.sets[set]).into_iter().zip([values, seen]).collect();
    Ok((table, locate, own))
}

/// How many columns a call's accumulator has in snapshots.
pub(crate) fn state_width(call: &Call) -> usize {
    match call.kind {
        Kind::Mean(_) => 2,
        Kind::Value(Form::Wide) if call.fold.function == AggregateFunction::Sum => 2,
        Kind::Count | Kind::Value(_) => 1,
    }
}

/// The columns of one call's accumulator.
pub(crate) fn call_columns(index: usize, call: &Call) -> Vec<Field> {
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

/// Shares the pages of one accumulator of every table.
fn freeze_all<T: Cell>(
    tables: &mut [&mut GroupTable],
    index: usize,
    memory: &Memory,
    pick: fn(&mut Accumulator) -> Option<&mut Pages<T>>,
) -> Result<Arc<Vec<FrozenPages<T>>>> {
    let frozen = tables.iter_mut().map(|table| pick(&mut table.accumulators[index]).map(|pages| pages.freeze(memory)));
    let frozen: Option<Vec<_>> = frozen.collect();
    frozen.map(Arc::new).ok_or_else(|| Error::internal("an accumulator changed its form"))
}

macro_rules! pages_of {
    ($tables:expr, $index:expr, $memory:expr, $pattern:pat => $pages:expr) => {
        freeze_all($tables, $index, $memory, |accumulator| match accumulator {
            $pattern => Some($pages),
            _ => None,
        })
    };
}

/// The columns of one call's accumulators, as [`call_columns`] names them.
pub(crate) fn freeze_call(
    tables: &mut [&mut GroupTable],
    index: usize,
    call: &Call,
    memory: &Memory,
) -> Result<Vec<Gather>> {
    let fields = call_columns(index, call);
    let data_type = fields[0].data_type().clone();
    let count = DataType::Int64;
    Ok(match call.kind {
        Kind::Count => {
            let pages = pages_of!(tables, index, memory, Accumulator::Count(pages) => pages)?;
            vec![word_cells(data_type, pages, |count| Some(*count))]
        }
        Kind::Value(Form::Word) => {
            let pages = pages_of!(tables, index, memory, Accumulator::Word(pages) => pages)?;
            vec![word_cells(data_type, pages, |word| *word)]
        }
        Kind::Value(Form::Float) => {
            let pages = pages_of!(tables, index, memory, Accumulator::Float(pages) => pages)?;
            vec![float_cells(data_type, pages, |float| *float)]
        }
        Kind::Value(Form::Wide) => {
            let pages = pages_of!(tables, index, memory, Accumulator::Wide(pages) => pages)?;
            let flags = Arc::clone(&pages);
            let value = wide_cells(data_type, pages, |wide| wide.filter(|&wide| wide != OVERFLOW));
            let flag = word_cells(DataType::Boolean, flags, |wide| Some((*wide == Some(OVERFLOW)).into()));
            if state_width(call) == 2 { vec![value, flag] } else { vec![value] }
        }
        Kind::Value(Form::Bytes) => {
            let pages = pages_of!(tables, index, memory, Accumulator::Bytes { values, .. } => values)?;
            vec![bytes_cells(data_type, pages, |value| value.as_deref())]
        }
        Kind::Mean(Form::Float) => {
            let pages = pages_of!(tables, index, memory, Accumulator::FloatMean(pages) => pages)?;
            let counts = Arc::clone(&pages);
            let sum = float_cells(data_type, pages, |mean| Some(mean.sum));
            vec![sum, word_cells(count, counts, |mean| Some(mean.count))]
        }
        Kind::Mean(Form::Wide) => {
            let pages = pages_of!(tables, index, memory, Accumulator::WideMean(pages) => pages)?;
            let counts = Arc::clone(&pages);
            let sum = wide_cells(data_type, pages, |mean| Some(mean.sum).filter(|&sum| sum != OVERFLOW));
            vec![sum, word_cells(count, counts, |mean| Some(mean.count))]
        }
        Kind::Mean(_) => {
            let pages = pages_of!(tables, index, memory, Accumulator::WordMean(pages) => pages)?;
            let counts = Arc::clone(&pages);
            let sum = word_cells(data_type, pages, |mean| Some(mean.sum));
            vec![sum, word_cells(count, counts, |mean| Some(mean.count))]
        }
    })
}

impl Accumulator {
    /// Sets the slots to what `columns`, the accumulator's own, hold in `rows`.
    pub(crate) fn restore(&mut self, columns: &[Values], rows: &[u32], slots: &[u32]) -> Result<()> {
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
