//! Divides a batch by the subtasks that own its rows: hash once, sort row numbers by owner, gather once.
//!
//! Invariant: every row goes to exactly the subtask whose key range holds the hash of its key, and rows of one owner keep
//! their order.

use std::ops::Range;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{take, take_record_batch};
use weir_state::key_hash::hash_keys;
use weir_types::ids::Parallelism;
use weir_types::key_range::subtask_of;
use weir_types::{Error, Result};

use crate::element::Batch;

/// Routes by key hash; keeps its scratch space between batches.
#[derive(Debug)]
pub(super) struct Partitioner {
    keys: Vec<usize>,
    parallelism: Parallelism,
    hashes: Vec<u64>,
    owners: Vec<u32>,
    ends: Vec<u32>,
}

impl Partitioner {
    pub(super) fn new(keys: Vec<usize>, parallelism: Parallelism) -> Self {
        Self { keys, parallelism, hashes: Vec::new(), owners: Vec::new(), ends: Vec::new() }
    }

    /// Calls `part` with each owner that has rows and its rows, in order of owners.
    pub(super) fn partition(&mut self, batch: &Batch, mut part: impl FnMut(usize, Batch) -> Result<()>) -> Result<()> {
        if self.keys.is_empty() || self.parallelism == Parallelism::ONE {
            return part(0, batch.clone());
        }
        self.find_owners(batch)?;
        if let Some(owner) = self.only_owner(batch.len()) {
            return part(owner, batch.clone());
        }
        let gathered = gather(batch, self.sorted_rows())?;
        for owner in 0..self.ends.len() {
            let range = self.range(owner);
            if !range.is_empty() {
                part(owner, gathered.slice(range.start, range.len()))?;
            }
        }
        Ok(())
    }

    /// Sets `owners` by row, and `ends` to where each owner's rows end once sorted.
    fn find_owners(&mut self, batch: &Batch) -> Result<()> {
        let columns: Vec<ArrayRef> =
            self.keys.iter().filter_map(|key| batch.rows.columns().get(*key)).cloned().collect();
        if columns.len() != self.keys.len() {
            return Err(Error::internal("a hash exchange's key column does not exist"));
        }
        hash_keys(&columns, &mut self.hashes)?;
        self.owners.clear();
        self.owners.extend(self.hashes.iter().map(|hash| subtask_of(*hash, self.parallelism).0));
        self.ends.clear();
        self.ends.resize(self.parallelism.get() as usize, 0);
        for owner in &self.owners {
            self.ends[*owner as usize] += 1;
        }
        let mut end = 0;
        for count in &mut self.ends {
            end += *count;
            *count = end;
        }
        Ok(())
    }

    fn range(&self, owner: usize) -> Range<usize> {
        let start = if owner == 0 { 0 } else { self.ends[owner - 1] };
        start as usize..self.ends[owner] as usize
    }

    fn only_owner(&self, rows: usize) -> Option<usize> {
        let owner = *self.owners.first()? as usize;
        (self.range(owner).len() == rows).then_some(owner)
    }

    /// Row numbers sorted by owner, those of one owner in order.
    fn sorted_rows(&self) -> UInt32Array {
        let mut next: Vec<u32> = std::iter::once(0).chain(self.ends.iter().copied()).collect();
        let mut rows = vec![0u32; self.owners.len()];
        for (row, owner) in (0u32..).zip(&self.owners) {
            let place = &mut next[*owner as usize];
            rows[*place as usize] = row;
            *place += 1;
        }
        UInt32Array::from(rows)
    }
}

fn gather(batch: &Batch, rows: UInt32Array) -> Result<Batch> {
    let failed = |error: arrow_schema::ArrowError| {
        Error::internal("could not divide a batch by its keys").with_detail(error.to_string())
    };
    let ops = match batch.ops_array() {
        Some(ops) => {
            let ops = take(&ops, &rows, None).map_err(failed)?;
            Some(arrow::array::AsArray::as_primitive::<arrow::datatypes::UInt8Type>(&ops).values().clone())
        }
        None => None,
    };
    Ok(Batch { rows: take_record_batch(&batch.rows, &rows).map_err(failed)?, ops })
}
