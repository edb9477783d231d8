//! An updating aggregate's state in snapshots: one table of groups, and one per column whose values are told apart.
//!
//! Columns of `groups`, by their ids: `key_hash`, `key<i>` for every key, `rows` where rows are retracted, then those of the
//! aggregates, as in window aggregates. Without retractions, `distinct<i>` has `key_hash`, the keys, `value`, and `seen`, a
//! bit per filter; with them, `values<i>` has a `count<f>` for each filter instead.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use weir_state::columns::{Role, state_field};
use weir_state::file::HASH_COLUMN;
use weir_state::frozen::{RowRef, Show, key_column, list, removed, word_cells};
use weir_state::keys::FrozenKeys;
use weir_state::memory::Memory;
use weir_state::pages::FrozenPages;
use weir_state::values::{Data, Values};
use weir_state::{FrozenTable, RestoredOperator, RestoredTable, Since};
use weir_types::{Code, Error, Result};

use super::GroupAggregate;
use crate::aggregate::plan::Plan;
use crate::aggregate::state::{
    Columns, GROUPS, RestoredValues, call_fields, check_schema, distinct_fields, freeze_calls, freeze_distinct,
    key_columns, key_fields, restored_keys,
};
use crate::operator::Frozen;

impl GroupAggregate {
    /// See [`crate::operator::Operator::freeze`].
    pub(super) fn freeze_tables(&mut self, since: Since, memory: &Memory) -> Result<Frozen> {
        let keys = Arc::new(vec![self.table.keys.freeze(since, memory)]);
        let mut groups = with_columns(FrozenTable::of_keys(GROUPS, &keys), key_columns(&self.plan, &keys, |row| row)?);
        if let Some(rows) = &mut self.rows {
            let rows = rows.freeze(memory);
            groups = groups
                .with_column(rows_field(), word_cells(DataType::Int64, Arc::new(vec![rows]), |count| Some(*count)));
        }
        groups = with_columns(groups, freeze_calls(&self.plan, &mut [&mut self.table], memory)?);
        let gone = removed(&keys);
        let graves = with_columns(FrozenTable::of_keys(GROUPS, &gone), key_columns(&self.plan, &gone, |row| row)?);
        let mut tables = vec![groups.with_gone(graves)];
        for set in 0..self.plan.sets.len() {
            tables.push(match self.counted.get_mut(set) {
                Some(counted) => {
                    let entries = Arc::new(vec![counted.entries.freeze(since, memory)]);
                    let counts = counted.counts.iter_mut().map(|counts| counts.freeze(memory)).collect();
                    freeze_values(&self.plan, set, entries, counts)?
                }
                None => {
                    let (table, locate, own) =
                        freeze_distinct(&self.plan, set, &mut [&mut self.table], &keys, since, memory)?;
                    with_columns(with_columns(table, key_columns(&self.plan, &keys, locate)?), own)
                }
            });
        }
        Ok(Frozen { tables })
    }

    /// See [`crate::operator::Operator::restore`].
    pub(super) fn restore_tables(&mut self, state: RestoredOperator) -> Result<()> {
        let mut tables = state.tables;
        for (name, schema) in self.state_schemas() {
            let Some(table) = tables.remove(&name) else { continue };
            let expected: Vec<Field> = schema.fields().iter().map(|field| Field::clone(field)).collect();
            check_schema(&name, &table.schema, &expected)?;
            match self.set_of(&name) {
                None => self.restore_groups(table)?,
                Some(set) => self.restore_set(set, table)?,
            }
        }
        match tables.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::new(Code::FailedPrecondition, format!("state table \"{name}\" is not expected"))
                .with_hint("The snapshot was taken by another query; start without it to begin with empty state.")),
        }
    }

    /// The schemas of its tables, that of the groups first.
    pub(super) fn state_schemas(&self) -> Vec<(String, Schema)> {
        let hash = Field::new(HASH_COLUMN, DataType::UInt64, false);
        let leading = || std::iter::once(hash.clone()).chain(key_fields(&self.plan));
        let rows = self.plan.retracting.then(rows_field);
        let groups = leading().chain(rows).chain(call_fields(&self.plan)).collect::<Vec<_>>();
        let mut schemas = vec![(GROUPS.to_owned(), Schema::new(groups))];
        for set in 0..self.plan.sets.len() {
            let own = if self.plan.retracting {
                value_fields(&self.plan, set)
            } else {
                distinct_fields(&self.plan.sets[set]).to_vec()
            };
            schemas.push((self.set_name(set), Schema::new(leading().chain(own).collect::<Vec<_>>())));
        }
        schemas
    }

    fn set_name(&self, set: usize) -> String {
        if self.plan.retracting { format!("values{set}") } else { format!("distinct{set}") }
    }

    fn set_of(&self, name: &str) -> Option<usize> {
        (0..self.plan.sets.len()).find(|&set| self.set_name(set) == name)
    }

    fn restore_groups(&mut self, table: RestoredTable) -> Result<()> {
        let first = 1 + self.plan.keys.len();
        for batch in table.batches {
            let values = batch.columns()[first..].iter().map(Values::new).collect::<Result<Vec<_>>>()?;
            let input = restored_keys(&self.plan, &batch, 1)?;
            let rows: Vec<u32> = (0..batch.num_rows() as u32).collect();
            let (counts, calls) = values.split_at(usize::from(self.plan.retracting));
            let mut slots = Vec::new();
            self.table.restore(&self.plan, &input, calls, &rows, &mut slots)?;
            if let (Some(pages), Some(Values { data: Data::Words(counts), .. })) = (&mut self.rows, counts.first()) {
                pages.grow(self.table.keys.slots(), &0);
                slots.iter().zip(counts.iter()).for_each(|(&slot, &count)| *pages.get_mut(slot) = count);
            }
        }
        Ok(())
    }

    fn restore_set(&mut self, set: usize, table: RestoredTable) -> Result<()> {
        let first = 1 + self.plan.keys.len();
        for batch in table.batches {
            let input = restored_keys(&self.plan, &batch, 1)?;
            let rows: Vec<u32> = (0..batch.num_rows() as u32).collect();
            match self.counted.get_mut(set) {
                None => {
                    let restored = RestoredValues::new(&batch, first)?;
                    self.table.restore_distinct(set, &input, &restored, &rows)?;
                }
                Some(counted) => {
                    let values = Values::for_key(batch.column(first))?;
                    let counts = batch.columns()[first + 1..].iter().map(Values::new).collect::<Result<Vec<_>>>()?;
                    counted.restore(&input, values, &counts, &self.table.find_all(&input, &rows)?)?;
                }
            }
        }
        Ok(())
    }
}

fn with_columns(table: FrozenTable, columns: Columns) -> FrozenTable {
    columns.into_iter().fold(table, |table, (field, gather)| table.with_column(field, gather))
}

/// How many rows a group has.
fn rows_field() -> Field {
    state_field("rows", Role::Value, "row_count", DataType::Int64, false)
}

/// The fields of a set's counted values, behind the keys.
fn value_fields(plan: &Plan, set: usize) -> Vec<Field> {
    let set = &plan.sets[set];
    let value = state_field("value", Role::MapKey, &set.state_name, set.value_type.clone(), false);
    let count = |filter| {
        let id = format!("count{filter}");
        state_field(&id, Role::Value, &id, DataType::Int64, false)
    };
    std::iter::once(value).chain((0..set.filters.len()).map(count)).collect()
}

/// The keys and the value of entries.
fn entry_columns(plan: &Plan, set: usize, entries: &Arc<Vec<FrozenKeys>>) -> Result<Columns> {
    let mut columns = key_columns(plan, entries, |row| row)?;
    let value = value_fields(plan, set).swap_remove(0);
    let gather = key_column(value.data_type(), Arc::clone(entries), plan.keys.len(), |row| row)?;
    columns.push((value, gather));
    Ok(columns)
}

/// The hash by which an entry is placed: that of its group's key, the last column.
fn placed_by(plan: &Plan) -> impl Fn(&FrozenKeys, RowRef) -> u64 + Clone + Send + 'static {
    let column = plan.keys.len() + 1;
    move |entries, row| entries.word(column, row.slot) as u64
}

fn freeze_values(
    plan: &Plan,
    set: usize,
    entries: Arc<Vec<FrozenKeys>>,
    counts: Vec<FrozenPages<i64>>,
) -> Result<FrozenTable> {
    let name = format!("values{set}");
    let (listed, hash) = (Arc::clone(&entries), placed_by(plan));
    let all = move |show: Show<'_>| list(&listed, FrozenKeys::slots, &hash, show);
    let (listed, hash) = (Arc::clone(&entries), placed_by(plan));
    let changed = move |show: Show<'_>| list(&listed, FrozenKeys::changed_slots, &hash, show);
    let mut table = FrozenTable::of_rows(&name, all).with_changes(&entries, changed);
    table = with_columns(table, entry_columns(plan, set, &entries)?);
    for (field, pages) in value_fields(plan, set).into_iter().skip(1).zip(counts) {
        table = table.with_column(field, word_cells(DataType::Int64, Arc::new(vec![pages]), |count| Some(*count)));
    }
    let gone = removed(&entries);
    let (graves, hash) = (Arc::clone(&gone), placed_by(plan));
    let listed = move |show: Show<'_>| list(&graves, FrozenKeys::slots, &hash, show);
    Ok(table.with_gone(with_columns(FrozenTable::of_rows(&name, listed), entry_columns(plan, set, &gone)?)))
}
