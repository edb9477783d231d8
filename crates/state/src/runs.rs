//! Incremental checkpoints: every table is a sequence of immutable runs, of which a checkpoint adds one that holds what has
//! changed since the checkpoint before, rows and tombstones.
//!
//! Two rules bound what that costs. Both are decided and carried out by whoever writes the files, never by the operator.
//!
//! - **Space.** A run that would bring the rows of a table's runs, tombstones included, to twice those of the table is not
//!   written; the table is written whole instead, out of memory, as a first run. So the runs of a table have less than twice
//!   its rows. Since the runs had no more rows than the table when it was last written whole, at least as many rows as are
//!   written now have changed or gone meanwhile: writing whole costs at most one more write per change.
//! - **Number.** Runs are tiered, as in log-structured merge trees (O'Neil et al., "The Log-Structured Merge-Tree", 1996;
//!   Luo and Carey, "LSM-based Storage Techniques: A Survey", 2020, section 2.2): a new run is of level 0, and as soon as a
//!   level has [`FAN_OUT`] of them, all younger ones and these become one run of the next level. Levels never rise from an
//!   older run to a younger one, so after `n` checkpoints since the table was written whole there are at most `FAN_OUT · (1 +
//!   log n)` runs beside the first, to the base of `FAN_OUT`, and merging has written a change at most `log n` times again.
//!   Merges read the runs of completed checkpoints block by block, and leave the first run alone: it is only written whole.
//!
//! So a change is written at most `2 + log n` times, that is four times for up to 256 checkpoints that change as much as the
//! table holds. What a checkpoint does not need any more stays on storage until those that do are retired.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::Field;
use weir_types::Result;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{OperatorSnapshot, SHARED_PREFIX, StateFile};

use crate::file::{BLOCK_ROWS, EXTENSION, check_wanted, delete_files};
use crate::frozen::{FrozenTable, Gather, Show, TableChanges};
use crate::memory::{Held, Memory};
use crate::merge::TableReader;
use crate::parts::{Stretch, survey};
use crate::store::SnapshotStore;
use crate::values::arrow_error;
use crate::writer::{TableWriter, write_rows};

/// Runs of one level that are merged. The more, the less is written again and the more is read at a restore.
pub const FAN_OUT: usize = 16;
/// The level of a run that is no result of merging: the table as it once was.
const WHOLE: u32 = u32::MAX;

/// The runs that the tables of one operator in one subtask consist of, as of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<String, Vec<Run>>);

/// What has changed between two checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    /// How often it was merged; never higher than an older one's.
    level: u32,
    /// Tombstones; rows of the same run come after them.
    gone: Option<StateFile>,
    rows: Option<StateFile>,
}

impl Run {
    fn files(&self) -> impl Iterator<Item = &StateFile> {
        self.gone.iter().chain(&self.rows)
    }

    fn len(&self) -> u64 {
        self.files().map(|file| file.rows).sum()
    }

    fn is_empty(&self) -> bool {
        self.gone.is_none() && self.rows.is_none()
    }
}

impl Runs {
    /// The files, those of a table in the order in which a snapshot lists them: a later one replaces rows of those before.
    pub fn files(&self) -> Vec<StateFile> {
        self.0.values().flatten().flat_map(Run::files).cloned().collect()
    }

    /// How many runs a table has.
    pub fn of_table(&self, table: &str) -> usize {
        self.0.get(table).map_or(0, Vec::len)
    }
}

/// What a checkpoint has of the tables of one operator in one subtask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Increment {
    /// All runs that it consists of.
    pub runs: Runs,
    /// The files among them that were written for it.
    pub written: Vec<StateFile>,
}

impl AsRef<[StateFile]> for Increment {
    /// The files that were written.
    fn as_ref(&self) -> &[StateFile] {
        &self.written
    }
}

/// The asynchronous part of an incremental checkpoint: adds a run of what has changed to those of `base`, the checkpoint
/// that the changes were told since, merges what is due, or writes a table whole. Files are named
/// `<prefix>-<table>.state.arrow`, with `.gone`, `.merged` or `.merged-gone` after the prefix for tombstones and merged
/// runs. On return all of it is durable. After an error no file of this call is left. `wanted` is asked before every block.
///
/// # Errors
/// `ALREADY_EXISTS` if the prefix was used before, `IO`, `RESOURCE_EXHAUSTED`, `CANCELLED`; of the base's files those of
/// [`TableReader::open`].
pub fn write_increment(
    tables: Vec<FrozenTable>,
    base: &Runs,
    store: &dyn SnapshotStore,
    prefix: &str,
    wanted: &dyn Fn() -> bool,
) -> Result<Increment> {
    let mut writer = Writer { store, prefix, wanted, written: Vec::new() };
    match writer.write(tables, base) {
        Ok(runs) => Ok(Increment { runs, written: writer.written }),
        Err(error) => {
            // Should this fail too, they are swept with the snapshot.
            let _swept_later = delete_files(store, &writer.written);
            Err(error)
        }
    }
}

struct Writer<'a> {
    store: &'a dyn SnapshotStore,
    prefix: &'a str,
    wanted: &'a dyn Fn() -> bool,
    written: Vec<StateFile>,
}

impl Writer<'_> {
    fn write(&mut self, tables: Vec<FrozenTable>, base: &Runs) -> Result<Runs> {
        if !self.prefix.starts_with(SHARED_PREFIX) {
            self.store.prepare()?;
        }
        let mut all = BTreeMap::new();
        for table in tables {
            check_wanted(self.wanted)?;
            let name = table.name.clone();
            let before = base.0.get(&name).cloned().unwrap_or_default();
            let runs = self.write_table(table, before)?;
            if !runs.is_empty() {
                all.insert(name, runs);
            }
        }
        if !self.written.is_empty() {
            self.store.sync()?;
        }
        Ok(Runs(all))
    }

    fn write_table(&mut self, mut table: FrozenTable, before: Vec<Run>) -> Result<Vec<Run>> {
        let mut runs = living(before, table.live_from);
        if let Some(TableChanges { live, rows, gone }) = table.changes.take().filter(|_| !runs.is_empty()) {
            let changed = survey(&rows);
            let gone = gone.map(|gone| (survey(&gone.rows), gone));
            let added = changed.rows + gone.as_ref().map_or(0, |(all, _)| all.rows);
            if runs.iter().map(Run::len).sum::<u64>() + (added as u64) < live.saturating_mul(2) {
                self.merge_due(&mut runs, &table.name, &table.memory)?;
                let gone = match gone {
                    None => None,
                    Some((all, gone)) => {
                        let written =
                            self.write_file(".gone", &table.name, &gone.columns, (&gone.rows, all), &table.memory)?;
                        written.map(|file| self.tombstones(file))
                    }
                };
                let rows = self.write_file("", &table.name, &table.columns, (&rows, changed), &table.memory)?;
                runs.extend(Some(Run { level: 0, gone, rows }).filter(|run| !run.is_empty()));
                return Ok(runs);
            }
        }
        let rows =
            self.write_file("", &table.name, &table.columns, (&table.rows, survey(&table.rows)), &table.memory)?;
        Ok(rows.map(|file| Run { level: WHOLE, gone: None, rows: Some(file) }).into_iter().collect())
    }

    fn write_file(
        &mut self,
        kind: &str,
        table: &str,
        columns: &[(Field, Gather)],
        rows: (&dyn Fn(Show<'_>), Stretch),
        memory: &Memory,
    ) -> Result<Option<StateFile>> {
        if rows.1.rows == 0 {
            return Ok(None);
        }
        let path = self.path(kind, table);
        let file = write_rows(self.store, path, table, columns, rows, memory, self.wanted)?;
        self.written.push(file.clone());
        Ok(Some(file))
    }

    fn path(&self, kind: &str, table: &str) -> String {
        format!("{}{kind}-{table}{EXTENSION}", self.prefix)
    }

    /// The file that was written last is one of tombstones.
    fn tombstones(&mut self, file: StateFile) -> StateFile {
        let file = StateFile { deletes: true, ..file };
        self.written.pop();
        self.written.push(file.clone());
        file
    }

    /// Makes one run of those that are due.
    fn merge_due(&mut self, runs: &mut Vec<Run>, table: &str, memory: &Memory) -> Result<()> {
        let Some((first, level)) = due(runs) else { return Ok(()) };
        let merged: Vec<Run> = runs.drain(first..).collect();
        let files: Vec<StateFile> = merged.iter().flat_map(Run::files).cloned().collect();
        // Older runs may have what the tombstones are for, so these are kept: as rows of a table of keys.
        let gone = files.iter().filter(|file| file.deletes).map(|file| StateFile { deletes: false, ..file.clone() });
        let gone = self.merge(gone.collect(), ".merged-gone", table, memory)?.map(|file| self.tombstones(file));
        let rows = self.merge(files, ".merged", table, memory)?;
        runs.extend(Some(Run { level, gone, rows }).filter(|run| !run.is_empty()));
        Ok(())
    }

    /// Writes the merged view of these files.
    fn merge(&mut self, files: Vec<StateFile>, kind: &str, table: &str, memory: &Memory) -> Result<Option<StateFile>> {
        let part = OperatorSnapshot { uid: String::new(), watermark_ms: 0, files, splits: Vec::new(), prepared: None };
        let Some(mut reader) = TableReader::open(self.store, &[part], table, KeyRange::FULL)? else { return Ok(None) };
        let fields = reader.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        let mut next = reader.next();
        if next.is_none() {
            return Ok(None);
        }
        let mut writer = TableWriter::create(self.store, self.path(kind, table), table, fields)?;
        let mut block = Block::default();
        let mut held = Held::new(memory, 0);
        while let Some(batch) = next.take().or_else(|| reader.next()) {
            check_wanted(self.wanted)?;
            let batch = batch?;
            // Blocks that were read, and those that become one: before, joined, and as bytes.
            let joined = block.batches.iter().chain([&batch]).map(RecordBatch::get_array_memory_size).sum::<usize>();
            held.set(reader.bytes() + 3 * joined)?;
            block.add(batch, &mut writer)?;
        }
        block.write(&mut writer)?;
        let file = writer.finish()?;
        self.written.push(file.clone());
        Ok(Some(file))
    }
}

/// Batches that become one block.
#[derive(Default)]
struct Block {
    batches: Vec<RecordBatch>,
    rows: usize,
}

impl Block {
    fn add(&mut self, batch: RecordBatch, writer: &mut TableWriter) -> Result<()> {
        if self.rows + batch.num_rows() > BLOCK_ROWS {
            self.write(writer)?;
        }
        self.rows += batch.num_rows();
        self.batches.push(batch);
        Ok(())
    }

    fn write(&mut self, writer: &mut TableWriter) -> Result<()> {
        let Some(first) = self.batches.first() else { return Ok(()) };
        let whole = concat_batches(&Arc::clone(&first.schema()), &self.batches);
        let whole = whole.map_err(|error| arrow_error("state cannot be merged", &error))?;
        *self = Self::default();
        writer.write(whole.columns())
    }
}

/// The runs without those of which everything has gone, if rows of lower segments than `live_from` have.
fn living(runs: Vec<Run>, live_from: Option<i64>) -> Vec<Run> {
    let Some(live_from) = live_from else { return runs };
    let cut = |mut file: StateFile| {
        if let Some(segments) = file.segments {
            if segments.last < live_from {
                return None;
            }
            if segments.first < live_from {
                file.live_from = Some(live_from);
            }
        }
        Some(file)
    };
    let cut = runs.into_iter().map(|run| Run { gone: run.gone.and_then(cut), rows: run.rows.and_then(cut), ..run });
    cut.filter(|run| !run.is_empty()).collect()
}

/// The first of the runs that are to be merged, all younger ones included, and the level of the result.
fn due(runs: &[Run]) -> Option<(usize, u32)> {
    let (mut found, mut level, mut carried) = (None, 0, 0);
    loop {
        let first = runs.iter().position(|run| run.level <= level)?;
        let of_level = runs[first..].iter().filter(|run| run.level == level).count();
        if of_level + carried < FAN_OUT {
            return found;
        }
        (carried, level) = (1, level + 1);
        found = Some((first, level));
    }
}

#[cfg(test)]
mod tests {
    use weir_types::snapshot::Segments;

    use super::*;

    fn run(level: u32) -> Run {
        Run { level, gone: None, rows: Some(StateFile::default()) }
    }

    fn runs(levels: &[(u32, usize)]) -> Vec<Run> {
        levels.iter().flat_map(|&(level, count)| std::iter::repeat_with(move || run(level)).take(count)).collect()
    }

    #[test]
    fn a_level_that_is_full_becomes_one_run_of_the_next() {
        assert_eq!(due(&[]), None);
        assert_eq!(due(&runs(&[(WHOLE, 1)])), None);
        assert_eq!(due(&runs(&[(WHOLE, 1), (0, FAN_OUT - 1)])), None);
        assert_eq!(due(&runs(&[(WHOLE, 1), (0, FAN_OUT)])), Some((1, 1)));
        assert_eq!(due(&runs(&[(WHOLE, 1), (2, 3), (1, 4), (0, FAN_OUT)])), Some((8, 1)));
    }

    #[test]
    fn merging_goes_on_to_the_next_level_at_once_if_that_is_full_then() {
        assert_eq!(due(&runs(&[(WHOLE, 1), (1, FAN_OUT - 1), (0, FAN_OUT)])), Some((1, 2)));
        assert_eq!(due(&runs(&[(WHOLE, 1), (2, 1), (1, FAN_OUT - 1), (0, FAN_OUT)])), Some((2, 2)));
        let full = [(WHOLE, 1), (2, FAN_OUT - 1), (1, FAN_OUT - 1), (0, FAN_OUT)];
        assert_eq!(due(&runs(&full)), Some((1, 3)));
    }

    #[test]
    fn the_number_of_runs_and_of_writes_is_bounded_as_promised() {
        let (mut runs, mut rewrites) = (runs(&[(WHOLE, 1)]), 0);
        for checkpoints in 1..=5_000_usize {
            if let Some((first, level)) = due(&runs) {
                rewrites += (first..runs.len()).map(|run| FAN_OUT.pow(runs[run].level)).sum::<usize>();
                runs.truncate(first);
                runs.push(run(level));
            }
            runs.push(run(0));
            assert!(runs.is_sorted_by(|older, younger| older.level >= younger.level));
            let log = (checkpoints as f64).log(FAN_OUT as f64);
            assert!(runs.len() - 1 <= FAN_OUT + ((FAN_OUT - 1) as f64 * log) as usize, "{}", runs.len());
            assert!(rewrites as f64 <= checkpoints as f64 * log.max(0.0), "{rewrites} of {checkpoints}");
        }
    }

    #[test]
    fn runs_go_with_their_last_segment() {
        let of = |first, last| {
            let file = StateFile { segments: Some(Segments { first, last }), ..StateFile::default() };
            Run { level: 0, gone: None, rows: Some(file) }
        };
        let left = living(vec![of(0, 10), of(5, 20), of(20, 30)], Some(20));
        let left: Vec<_> = left.iter().filter_map(|run| run.rows.as_ref()).map(|file| file.live_from).collect();
        assert_eq!(left, [Some(20), None]);
        assert_eq!(living(vec![of(0, 10)], None).len(), 1);
    }
}
