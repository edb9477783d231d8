//! Incremental checkpoints against a model: whatever changes, goes, completes, is aborted or is merged, a checkpoint's runs
//! amount to the state as of its barrier; and what they take follows what has changed.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use proptest::prelude::*;
use weir_state::columns::{Role, state_field};
use weir_state::frozen::{FrozenTable, key_column, removed, word_column};
use weir_state::key_hash::hash_values;
use weir_state::keys::{FrozenKeys, KeyTable};
use weir_state::memory::uncounted;
use weir_state::pages::Pages;
use weir_state::restore::RestoredOperator;
use weir_state::runs::FAN_OUT;
use weir_state::store::{LocalDirectory, SnapshotStore, open_store};
use weir_state::values::{Form, Values};
use weir_state::{Increment, Runs, Since, write_increment};
use weir_types::Code;
use weir_types::ids::{Parallelism, SnapshotId, SubtaskIndex};
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{OperatorSnapshot, StateFile, shared_path};

/// Keys are a number and a text that follows from it.
fn text(number: i64) -> String {
    "x".repeat(number as usize % 20)
}

/// A table of counts as an operator holds it, and what it should hold.
struct Table {
    keys: KeyTable,
    counts: Pages<i64>,
    model: BTreeMap<i64, i64>,
}

impl Table {
    fn new() -> Self {
        let keys = KeyTable::new(&[Form::Word, Form::Bytes], 0);
        Self { keys, counts: Pages::new(), model: BTreeMap::new() }
    }

    fn columns(numbers: &[i64]) -> ([Values; 2], Vec<u64>) {
        let texts: ArrayRef = Arc::new(numbers.iter().map(|&number| Some(text(number))).collect::<StringArray>());
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        let values = [Values::for_key(&numbers).unwrap(), Values::for_key(&texts).unwrap()];
        let mut hashes = Vec::new();
        hash_values(&values, numbers.len(), &mut hashes);
        (values, hashes)
    }

    /// Adds `by` to these keys' counts.
    fn add(&mut self, numbers: &[i64], by: i64) {
        let ((values, hashes), mut slots) = (Self::columns(numbers), Vec::new());
        let rows: Vec<u32> = (0..numbers.len() as u32).collect();
        self.keys.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap();
        self.keys.mark(&slots);
        self.counts.grow(self.keys.slots(), &0);
        slots.iter().for_each(|&slot| *self.counts.get_mut(slot) += by);
        numbers.iter().for_each(|number| *self.model.entry(*number).or_default() += by);
    }

    fn remove(&mut self, numbers: &[i64]) {
        for number in numbers.iter().collect::<BTreeSet<_>>() {
            let (values, hashes) = Self::columns(&[*number]);
            let slot = self.keys.find(hashes[0], &values, 0);
            assert_eq!(slot.is_some(), self.model.remove(number).is_some());
            if let Some(slot) = slot {
                self.keys.remove(slot).unwrap();
                // The next key in this slot starts anew.
                *self.counts.get_mut(slot) = 0;
            }
        }
    }

    fn freeze(&mut self, since: Since) -> FrozenTable {
        let keys = Arc::new(vec![self.keys.freeze(since, &uncounted())]);
        let counts = self.counts.freeze(&uncounted());
        let gone = removed(&keys);
        with_keys(FrozenTable::of_keys("counts", &keys), &keys)
            .with_column(
                state_field("count", Role::Value, "n", DataType::Int64, false),
                word_column(DataType::Int64, move |row| Some(*counts.get(row.slot))),
            )
            .with_gone(with_keys(FrozenTable::of_keys("counts", &gone), &gone))
    }
}

fn with_keys(table: FrozenTable, keys: &Arc<Vec<FrozenKeys>>) -> FrozenTable {
    let column = |data_type: &DataType, column| key_column(data_type, Arc::clone(keys), column, |row| row).unwrap();
    table
        .with_column(state_field("key0", Role::Key, "number", DataType::Int64, false), column(&DataType::Int64, 0))
        .with_column(state_field("key1", Role::Key, "text", DataType::Utf8, false), column(&DataType::Utf8, 1))
}

/// The checkpoints of a job, as its JobManager and a subtask see them.
struct Job {
    root: tempfile::TempDir,
    number: u64,
    base: Option<Runs>,
    /// Whether the last freeze was of a checkpoint that has completed since.
    completed: bool,
}

impl Job {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), number: 0, base: None, completed: false }
    }

    fn id(&self) -> SnapshotId {
        SnapshotId::new(format!("chk-{}", self.number)).unwrap()
    }

    fn store(&self) -> Box<dyn SnapshotStore> {
        open_store(self.root.path().join(self.id().as_str()).to_str().unwrap()).unwrap()
    }

    fn since(&self) -> Since {
        match (&self.base, self.completed) {
            (None, _) => Since::Start,
            (Some(_), true) => Since::LastFreeze,
            (Some(_), false) => Since::SameAsLast,
        }
    }

    /// Takes a checkpoint, which completes or not.
    fn checkpoint(&mut self, table: &mut Table, completes: bool) -> Increment {
        self.number += 1;
        let frozen = table.freeze(self.since());
        self.completed = false;
        let prefix = shared_path(&self.id(), "state-0-0-a1-o0");
        let base = self.base.clone().unwrap_or_default();
        let increment = write_increment(vec![frozen], &base, self.store().as_ref(), &prefix, &|| true).unwrap();
        if completes {
            self.base = Some(increment.runs.clone());
            self.completed = true;
            self.keep_only(&increment.runs.files());
        } else {
            let store = self.store();
            increment.written.iter().for_each(|file| store.delete(&file.path).unwrap());
        }
        increment
    }

    /// Deletes what the newest checkpoint does not refer to.
    fn keep_only(&self, files: &[StateFile]) {
        let shared = LocalDirectory::new(self.root.path().join("shared"));
        for name in shared.list().unwrap() {
            if files.iter().all(|file| file.shared_name() != Some(&name)) {
                shared.delete(&name).unwrap();
            }
        }
    }

    fn restored(&self, runs: &Runs, parallelism: u32) -> BTreeMap<i64, i64> {
        let files = runs.files();
        let part = OperatorSnapshot { uid: "o".to_owned(), watermark_ms: 0, files, splits: vec![], prepared: None };
        let mut rows = BTreeMap::new();
        for index in 0..parallelism {
            let range = KeyRange::of_subtask(SubtaskIndex(index), Parallelism::new(parallelism).unwrap()).unwrap();
            let part = std::slice::from_ref(&part);
            let state = RestoredOperator::load(self.store().as_ref(), part, range).unwrap();
            for batch in state.tables.values().flat_map(|table| &table.batches) {
                let numbers = batch.column(1).as_primitive::<Int64Type>();
                let (texts, counts) = (batch.column(2).as_string::<i32>(), batch.column(3).as_primitive::<Int64Type>());
                for row in 0..batch.num_rows() {
                    assert_eq!(texts.value(row), text(numbers.value(row)));
                    assert_eq!(rows.insert(numbers.value(row), counts.value(row)), None, "a row twice");
                }
            }
        }
        rows
    }
}

fn rows(files: &[StateFile]) -> u64 {
    files.iter().map(|file| file.rows).sum()
}

#[derive(Clone, Debug)]
enum Step {
    Add(Vec<i64>),
    Remove(Vec<i64>),
    Checkpoint {
        completes: bool,
    },
    /// A savepoint, or a failure before anything was written.
    Freeze,
    /// The attempt ends: the next one has the state of the newest checkpoint, and knows nothing of its runs.
    Restart(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let few = || prop::collection::vec(0..60i64, 1..6);
    prop_oneof![
        6 => few().prop_map(Step::Add),
        1 => prop::collection::vec(0..600i64, 100..400).prop_map(Step::Add),
        4 => few().prop_map(Step::Remove),
        1 => prop::collection::vec(0..600i64, 100..400).prop_map(Step::Remove),
        9 => any::<u8>().prop_map(|dice| Step::Checkpoint { completes: dice % 4 > 0 }),
        1 => Just(Step::Freeze),
        1 => (1..4u32).prop_map(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_checkpoints_amounts_to_the_state(steps in prop::collection::vec(step(), 1..120)) {
        let (mut table, mut job) = (Table::new(), Job::new());
        table.add(&(0..100).collect::<Vec<_>>(), 1);
        for step in steps {
            match step {
                Step::Add(numbers) => table.add(&numbers, 1),
                Step::Remove(numbers) => table.remove(&numbers),
                Step::Checkpoint { completes } => {
                    let taken = job.checkpoint(&mut table, completes);
                    if completes {
                        prop_assert_eq!(job.restored(&taken.runs, 1), table.model.clone());
                        let held = rows(&taken.runs.files());
                        prop_assert!(held < (2 * table.model.len() as u64).max(1), "{} rows in runs", held);
                    }
                }
                Step::Freeze => {
                    drop(table.freeze(job.since()));
                    job.completed = false;
                }
                Step::Restart(parallelism) => {
                    let runs = job.base.take().unwrap_or_default();
                    table = Table::new();
                    for (number, count) in job.restored(&runs, parallelism) {
                        table.add(&[number], count);
                    }
                }
            }
        }
        let last = job.checkpoint(&mut table, true);
        prop_assert_eq!(job.restored(&last.runs, 3), table.model);
    }
}

#[test]
fn what_a_checkpoint_writes_follows_what_has_changed() {
    let (mut table, mut job) = (Table::new(), Job::new());
    table.add(&(0..20_000).collect::<Vec<_>>(), 1);
    let whole = job.checkpoint(&mut table, true);
    assert_eq!((rows(&whole.written), whole.written.len()), (20_000, 1));
    assert_eq!(job.checkpoint(&mut table, true).written, [], "nothing has changed");
    table.add(&(0..200).collect::<Vec<_>>(), 1);
    table.remove(&(300..310).collect::<Vec<_>>());
    let increment = job.checkpoint(&mut table, true);
    let written: Vec<(bool, u64)> = increment.written.iter().map(|file| (file.deletes, file.rows)).collect();
    assert_eq!(written, [(true, 10), (false, 200)]);
    let bytes = |taken: &Increment| taken.written.iter().map(|file| file.bytes).sum::<u64>();
    assert!(bytes(&increment) * 20 < bytes(&whole), "{} of {}", bytes(&increment), bytes(&whole));
    assert_eq!(job.restored(&increment.runs, 2), table.model);
}

#[test]
fn what_an_aborted_checkpoint_or_a_savepoint_froze_is_in_the_next_checkpoint() {
    let (mut table, mut job) = (Table::new(), Job::new());
    table.add(&(0..1_000).collect::<Vec<_>>(), 1);
    job.checkpoint(&mut table, true);
    table.add(&[1, 2], 1);
    table.remove(&[3]);
    job.checkpoint(&mut table, false);
    table.add(&[4], 1);
    drop(table.freeze(job.since()));
    table.add(&[2, 5], 1);
    let taken = job.checkpoint(&mut table, true);
    assert_eq!(rows(&taken.written), 5, "1, 2, 4, 5, and the tombstone of 3");
    assert_eq!(job.restored(&taken.runs, 1), table.model);
}

#[test]
fn runs_are_merged_and_the_table_is_written_whole_within_the_bounds() {
    let (mut table, mut job) = (Table::new(), Job::new());
    table.add(&(0..1_000).collect::<Vec<_>>(), 1);
    job.checkpoint(&mut table, true);
    let (mut written, mut most, mut whole) = (0, 0, 0);
    let checkpoints = 300;
    for number in 0..checkpoints {
        let changed: Vec<i64> = (0..10).map(|change| (number * 10 + change) * 7 % 1_000).collect();
        table.add(&changed, 1);
        table.remove(&[number % 1_000]);
        table.add(&[number % 1_000], 5);
        let taken = job.checkpoint(&mut table, true);
        written += rows(&taken.written);
        most = most.max(taken.runs.of_table("counts"));
        whole += usize::from(taken.written.iter().any(|file| file.rows >= 1_000));
    }
    assert_eq!(job.restored(job.base.as_ref().unwrap(), 2), table.model);
    assert!(most <= 1 + 2 * FAN_OUT, "{most} runs");
    // Of twelve rows or tombstones that change for each.
    assert!(written <= 12 * checkpoints as u64 * 4, "{written} rows written");
    assert!(whole >= 3, "written whole {whole} times");
}

#[test]
fn a_checkpoint_that_is_given_up_leaves_no_file() {
    let (mut table, mut job) = (Table::new(), Job::new());
    table.add(&(0..1_000).collect::<Vec<_>>(), 1);
    job.checkpoint(&mut table, true);
    table.add(&[1], 1);
    let frozen = vec![table.freeze(job.since()), table.freeze(Since::SameAsLast)];
    job.number += 1;
    let (store, prefix) = (job.store(), shared_path(&job.id(), "x"));
    // The second table has the name of the first, so that its file is there already.
    let error = write_increment(frozen, job.base.as_ref().unwrap(), store.as_ref(), &prefix, &|| true).unwrap_err();
    assert_eq!(error.code, Code::AlreadyExists);
    let error =
        write_increment(vec![table.freeze(Since::SameAsLast)], &Runs::default(), store.as_ref(), &prefix, &|| false)
            .unwrap_err();
    assert_eq!(error.code, Code::Cancelled);
    assert_eq!(LocalDirectory::new(job.root.path().join("shared")).list().unwrap().len(), 1);
}
