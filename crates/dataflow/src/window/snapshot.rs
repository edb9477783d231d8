//! A window aggregate's state in snapshots: one table of groups, and one per set of distinct values.
//!
//! Columns of `groups`, by their ids: `key_hash`, `slice_start`, `key<i>` for every key, then for aggregate `i` (by its
//! position) `agg<i>.count`, `agg<i>.value` (with `agg<i>.overflow` for sums of decimals), or `agg<i>.sum` and
//! `agg<i>.count` of a mean. Columns of `distinct<i>`: `key_hash`, `slice_start`, the keys, `value`, and `seen`, a bit per
//! filter. What they are called says the [`crate::aggregate::names`] module.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use weir_state::file::HASH_COLUMN;
use weir_state::frozen::{RowRef, word_column};
use weir_state::keys::FrozenKeys;
use weir_state::memory::Memory;
use weir_state::values::{Data, Values};
use weir_state::{FrozenTable, RestoredOperator, RestoredTable, Since};
use weir_types::{Code, Error, Result};

use super::{Groups, WindowAggregate};
use crate::aggregate::plan::Plan;
use crate::aggregate::state::{
    Columns, GROUPS, RestoredValues, call_fields, check_schema, distinct_fields, freeze_calls, freeze_distinct,
    key_columns, key_fields, restored_keys,
};
use crate::aggregate::table::{GroupTable, Input};
use crate::operator::Frozen;

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
        let mut slices: Vec<&mut GroupTable> = self.slices.values_mut().collect();
        let mut groups = FrozenTable::of_keys(GROUPS, &keys);
        let leading = leading_columns(&self.plan, &self.window.slice_field, &starts, &keys, |row| row)?;
        for (field, gather) in leading.into_iter().chain(freeze_calls(&self.plan, &mut slices, memory)?) {
            groups = groups.with_column(field, gather);
        }
        let mut tables = vec![groups];
        for set in 0..self.plan.sets.len() {
            let (mut table, locate, own) = freeze_distinct(&self.plan, set, &mut slices, &keys, since, memory)?;
            for (field, gather) in
                leading_columns(&self.plan, &self.window.slice_field, &starts, &keys, locate)?.into_iter().chain(own)
            {
                table = table.with_column(field, gather);
            }
            tables.push(table);
        }
        // Slices go in the order of their starts: whatever was kept of lower ones has fired.
        Ok(Frozen { tables: tables.into_iter().map(|table| table.with_live_from(live_from)).collect() })
    }

    /// See [`crate::operator::Operator::restore`].
    pub(super) fn restore_tables(&mut self, state: RestoredOperator) -> Result<()> {
        let RestoredOperator { watermark_ms, mut tables } = state;
        self.fired_until = watermark_ms;
        if let Some(table) = tables.remove(GROUPS) {
            check_schema(GROUPS, &table.schema, &self.group_fields())?;
            self.restore_groups(table)?;
        }
        for set in 0..self.plan.sets.len() {
            let name = format!("distinct{set}");
            if let Some(table) = tables.remove(&name) {
                check_schema(&name, &table.schema, &self.distinct_fields(set))?;
                self.restore_distinct(set, table)?;
            }
        }
        self.state_bytes = self.slices.values().map(GroupTable::bytes).sum();
        match tables.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::new(Code::FailedPrecondition, format!("state table \"{name}\" is not expected"))
                .with_hint("The snapshot was taken by another query; start without it to begin with empty state.")),
        }
    }

    /// The schemas of its tables.
    #[cfg(test)]
    pub(super) fn state_schemas(&self) -> Vec<(String, arrow::datatypes::Schema)> {
        let schema = arrow::datatypes::Schema::new;
        let groups = (GROUPS.to_owned(), schema(self.group_fields()));
        let sets = 0..self.plan.sets.len();
        let distincts = sets.map(|set| (format!("distinct{set}"), schema(self.distinct_fields(set))));
        std::iter::once(groups).chain(distincts).collect()
    }

    /// Fields of the columns that every table begins with.
    fn leading_fields(&self) -> Vec<Field> {
        let hash = Field::new(HASH_COLUMN, DataType::UInt64, false);
        [hash, self.window.slice_field.clone()].into_iter().chain(key_fields(&self.plan)).collect()
    }

    fn group_fields(&self) -> Vec<Field> {
        self.leading_fields().into_iter().chain(call_fields(&self.plan)).collect()
    }

    fn distinct_fields(&self, set: usize) -> Vec<Field> {
        self.leading_fields().into_iter().chain(distinct_fields(&self.plan.sets[set])).collect()
    }

    fn restore_groups(&mut self, table: RestoredTable) -> Result<()> {
        let first_call = 2 + self.plan.keys.len();
        for batch in table.batches {
            let values = batch.columns()[first_call..].iter().map(Values::new).collect::<Result<Vec<_>>>()?;
            let (input, groups) = self.restored_rows(&batch)?;
            let mut slots = Vec::new();
            for (start, rows) in groups.used() {
                let slice = Self::slice(&mut self.slices, &mut self.state_bytes, &self.plan, *start, rows.len())?;
                slice.restore(&self.plan, &input, &values, rows, &mut slots)?;
                self.state_bytes += slice.bytes();
            }
        }
        Ok(())
    }

    fn restore_distinct(&mut self, set: usize, table: RestoredTable) -> Result<()> {
        for batch in table.batches {
            let restored = RestoredValues::new(&batch, 2 + self.plan.keys.len())?;
            let (input, groups) = self.restored_rows(&batch)?;
            for (start, rows) in groups.used() {
                let orphan = || Error::new(Code::Corrupt, "a distinct value in the snapshot belongs to no group");
                let slice = self.slices.get_mut(start).ok_or_else(orphan)?;
                slice.restore_distinct(set, &input, &restored, rows)?;
            }
        }
        Ok(())
    }

    /// The keys of restored rows, and the rows by slice.
    fn restored_rows(&self, batch: &RecordBatch) -> Result<(Input, Groups)> {
        let input = restored_keys(&self.plan, batch, 2)?;
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

/// The columns after the key hash that every table begins with; `locate` finds the group that a row belongs to.
fn leading_columns(
    plan: &Plan,
    slice: &Field,
    starts: &Arc<Vec<i64>>,
    keys: &Arc<Vec<FrozenKeys>>,
    locate: impl Fn(RowRef) -> RowRef + Clone + Send + 'static,
) -> Result<Columns> {
    let starts = Arc::clone(starts);
    let start = word_column(slice.data_type().clone(), move |row| Some(starts[row.segment as usize]));
    Ok(std::iter::once((slice.clone(), start)).chain(key_columns(plan, keys, locate)?).collect())
}
