//! The updating aggregate against a naive computation over the rows that are left: any changes, any cut into batches, any
//! checkpoint, any restore. What is emitted must be a changelog that folds to the result after every batch.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;
use weir_dataflow::element::{Batch, RowOp};
use weir_dataflow::group::GroupAggregate;
use weir_dataflow::operator::{Collector, Operator};
use weir_state::key_hash::hash_keys;
use weir_state::memory::uncounted;
use weir_state::restore::RestoredOperator;
use weir_state::store::LocalDirectory;
use weir_state::{Runs, Since, write_increment, write_tables};
use weir_types::graph::{AggregateFunction, AggregateSpec, GroupAggregateSpec, Output};
use weir_types::ids::{Parallelism, SubtaskIndex};
use weir_types::key_range::{KeyRange, subtask_of};
use weir_types::snapshot::{OperatorSnapshot, StateFile};
use weir_types::{Code, Result};

#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: Option<String>,
    city: i32,
    int: Option<i32>,
    big: i64,
    dec: Option<i128>,
    text: Option<String>,
    float: f64,
    flag: Option<bool>,
}

const NAME: usize = 0;
const CITY: usize = 1;
const INT: usize = 2;
const BIG: usize = 3;
const DEC: usize = 4;
const TEXT: usize = 5;
const FLOAT: usize = 6;
const FLAG: usize = 7;

fn input_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("city", DataType::Int32, false),
        Field::new("int", DataType::Int32, true),
        Field::new("big", DataType::Int64, false),
        Field::new("dec", DataType::Decimal128(10, 2), true),
        Field::new("text", DataType::Utf8, true),
        Field::new("float", DataType::Float64, false),
        Field::new("flag", DataType::Boolean, true),
    ]))
}

fn batch_of(rows: &[&Row]) -> RecordBatch {
    let dec: Decimal128Array = rows.iter().map(|row| row.dec).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.name.clone()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.city).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|row| row.int).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|row| row.big).collect::<Int64Array>()),
        Arc::new(dec.with_precision_and_scale(10, 2).unwrap()),
        Arc::new(rows.iter().map(|row| row.text.clone()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.float).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.flag).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(input_schema(), columns).unwrap()
}

fn calls() -> Vec<(AggregateSpec, DataType)> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let call = |function, argument, distinct, filter| AggregateSpec { function, argument, distinct, filter };
    vec![
        (call(Count, None, false, None), DataType::Int64),
        (call(Count, Some(INT), false, None), DataType::Int64),
        (call(Count, None, false, Some(FLAG)), DataType::Int64),
        (call(Sum, Some(INT), false, None), DataType::Int32),
        (call(Sum, Some(BIG), false, Some(FLAG)), DataType::Int64),
        (call(Sum, Some(DEC), false, None), DataType::Decimal128(38, 2)),
        (call(Sum, Some(FLOAT), false, None), DataType::Float64),
        (call(Avg, Some(INT), false, None), DataType::Int32),
        (call(Min, Some(TEXT), false, None), DataType::Utf8),
        (call(Max, Some(TEXT), false, Some(FLAG)), DataType::Utf8),
        (call(Max, Some(INT), false, None), DataType::Int32),
        (call(Min, Some(DEC), true, None), DataType::Decimal128(10, 2)),
        (call(Max, Some(FLOAT), false, None), DataType::Float64),
        (call(Min, Some(FLOAT), false, Some(FLAG)), DataType::Float64),
        (call(Max, Some(FLAG), false, None), DataType::Boolean),
        (call(Count, Some(TEXT), true, None), DataType::Int64),
        (call(Count, Some(TEXT), true, Some(FLAG)), DataType::Int64),
        (call(Sum, Some(INT), true, None), DataType::Int32),
    ]
}

fn spec(keys: &[usize], retracting: bool, update_before: bool) -> GroupAggregateSpec {
    let aggregates = calls().into_iter().map(|(spec, _)| spec).collect();
    GroupAggregateSpec { keys: keys.to_vec(), aggregates, retracting, update_before }
}

fn output_schema(spec: &GroupAggregateSpec) -> SchemaRef {
    let input = input_schema();
    let keys = spec.keys.iter().map(|&key| input.field(key).clone());
    let results = calls().into_iter().take(spec.aggregates.len()).enumerate();
    let results = results.map(|(index, (_, data_type))| Field::new(format!("a{index}"), data_type, true));
    Arc::new(Schema::new(keys.chain(results).collect::<Vec<_>>()))
}

/// A changelog, folded as it comes; it must hold together.
#[derive(Debug)]
struct Folded {
    keys: usize,
    update_before: bool,
    rows: BTreeMap<Vec<String>, Vec<String>>,
    /// What was updated and waits for its new version.
    taken: Option<(Vec<String>, Vec<String>)>,
    /// Keys that this batch has emitted.
    emitted: BTreeSet<Vec<String>>,
}

impl Folded {
    fn new(spec: &GroupAggregateSpec) -> Self {
        let (keys, update_before) = (spec.keys.len(), spec.update_before);
        Self { keys, update_before, rows: BTreeMap::new(), taken: None, emitted: BTreeSet::new() }
    }

    fn fold(&mut self, op: u8, row: Vec<String>) {
        let key = row[..self.keys].to_vec();
        let of = |known: RowOp| op == known as u8;
        if of(RowOp::UpdateAfter) {
            let before =
                if self.update_before { self.taken.take().unwrap() } else { self.rows.remove_entry(&key).unwrap() };
            assert_eq!(before.0, key);
            assert_ne!(before.1, row, "an update changes something");
            assert!(self.rows.insert(key.clone(), row).is_none());
        } else if of(RowOp::Insert) {
            assert!(self.rows.insert(key.clone(), row).is_none(), "inserted twice");
        } else {
            let before = self.rows.remove_entry(&key).unwrap();
            assert_eq!(before.1, row, "what is taken back is what was there");
            if of(RowOp::UpdateBefore) {
                assert!(self.update_before);
                self.taken = Some(before);
                return;
            }
        }
        assert!(self.taken.is_none(), "an old version is followed by the new one");
        assert!(self.emitted.insert(key), "a group emits once per batch");
    }
}

impl Collector for Folded {
    fn emit(&mut self, output: Output, batch: Batch) -> Result<()> {
        assert_eq!(output, Output::Main);
        assert!(!batch.is_empty());
        let options = FormatOptions::default().with_null("NULL");
        let columns: Vec<_> =
            batch.rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.len() {
            let op = batch.ops.as_ref().map_or(RowOp::Insert as u8, |ops| ops[row]);
            self.fold(op, columns.iter().map(|column| column.value(row).to_string()).collect());
        }
        Ok(())
    }
}

/// All subtasks of an aggregate.
struct Subtasks {
    spec: GroupAggregateSpec,
    list: Vec<GroupAggregate>,
    directory: tempfile::TempDir,
    checkpoints: usize,
    runs: Option<Vec<Runs>>,
    completed: bool,
}

fn range(index: usize, p: usize) -> KeyRange {
    KeyRange::of_subtask(SubtaskIndex(index as u32), Parallelism::new(p as u32).unwrap()).unwrap()
}

impl Subtasks {
    fn new(spec: GroupAggregateSpec, p: usize) -> Self {
        let operator =
            |index| GroupAggregate::new(&spec, &input_schema(), output_schema(&spec), range(index, p)).unwrap();
        let list = (0..p).map(operator).collect();
        Self { spec, list, directory: tempfile::tempdir().unwrap(), checkpoints: 0, runs: None, completed: false }
    }

    fn store(&self) -> LocalDirectory {
        LocalDirectory::new(self.directory.path().join("chk"))
    }

    fn process(&mut self, changes: &[(u8, Row)], out: &mut Folded) {
        out.emitted.clear();
        let all = batch_of(&changes.iter().map(|(_, row)| row).collect::<Vec<_>>());
        let keys: Vec<ArrayRef> = self.spec.keys.iter().map(|&key| Arc::clone(all.column(key))).collect();
        let mut hashes = Vec::new();
        hash_keys(&keys, &mut hashes).unwrap();
        let p = Parallelism::new(self.list.len() as u32).unwrap();
        for (index, operator) in self.list.iter_mut().enumerate() {
            let mine = |row: &usize| keys.is_empty() || subtask_of(hashes[*row], p).0 as usize == index;
            let mine: Vec<usize> = (0..changes.len()).filter(mine).collect();
            if mine.is_empty() {
                continue;
            }
            let rows = batch_of(&mine.iter().map(|&row| &changes[row].1).collect::<Vec<_>>());
            let ops: Vec<u8> = mine.iter().map(|&row| changes[row].0).collect();
            let inserts = ops.iter().all(|&op| op == RowOp::Insert as u8);
            let ops = (!inserts).then(|| ScalarBuffer::from(ops));
            operator.process(Batch { rows, ops }, out).unwrap();
        }
    }

    /// Takes an incremental checkpoint, which completes or not.
    fn checkpoint(&mut self, completes: bool) {
        let (store, base) = (self.store(), self.runs.clone());
        let since = match (&base, self.completed) {
            (None, _) => Since::Start,
            (Some(_), true) => Since::LastFreeze,
            (Some(_), false) => Since::SameAsLast,
        };
        self.checkpoints += 1;
        let base = base.unwrap_or_else(|| vec![Runs::default(); self.list.len()]);
        let written = self.list.iter_mut().zip(&base).enumerate().map(|(index, (operator, base))| {
            let prefix = format!("../shared/{}+{index}", self.checkpoints);
            let tables = operator.freeze(since, &uncounted()).unwrap().tables;
            write_increment(tables, base, &store, &prefix, &|| true).unwrap().runs
        });
        let written = written.collect();
        self.runs = if completes { Some(written) } else { self.runs.take() };
        self.completed = completes;
    }

    /// Goes on with `p` subtasks from a checkpoint or a savepoint.
    fn rescale(mut self, p: usize, incremental: bool) -> Self {
        let store = self.store();
        let part = |files: Vec<StateFile>| OperatorSnapshot {
            uid: "g".to_owned(),
            watermark_ms: i64::MIN,
            files,
            splits: Vec::new(),
            prepared: None,
        };
        let parts: Vec<OperatorSnapshot> = if incremental {
            self.checkpoint(true);
            self.runs.iter().flatten().map(|runs| part(runs.files())).collect()
        } else {
            let operators = self.list.iter_mut().enumerate();
            operators
                .map(|(index, operator)| {
                    let tables = operator.freeze(Since::Start, &uncounted()).unwrap().tables;
                    part(write_tables(tables, &store, &format!("s{index}")).unwrap())
                })
                .collect()
        };
        let mut next = Self::new(self.spec.clone(), p);
        for (index, operator) in next.list.iter_mut().enumerate() {
            operator.restore(RestoredOperator::load(&store, &parts, range(index, p)).unwrap()).unwrap();
        }
        next
    }
}

/// One aggregate over the rows of a group, as SQL defines it.
fn aggregate(spec: &AggregateSpec, rows: &[&Row]) -> String {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let rows: Vec<&&Row> = rows.iter().filter(|row| spec.filter.is_none() || row.flag == Some(true)).collect();
    let text = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
    let mut ints: Vec<i32> = rows.iter().filter_map(|row| row.int).collect();
    let mut texts: Vec<String> = rows.iter().filter_map(|row| row.text.clone()).collect();
    if spec.distinct {
        ints = BTreeSet::from_iter(ints).into_iter().collect();
        texts = BTreeSet::from_iter(texts).into_iter().collect();
    }
    let decs: Vec<i128> = rows.iter().filter_map(|row| row.dec).collect();
    let floats: Vec<f64> = rows.iter().map(|row| row.float).collect();
    let some = |any: bool, value: String| if any { value } else { "NULL".to_owned() };
    match (spec.function, spec.argument) {
        (Count, None) => rows.len().to_string(),
        (Count, Some(INT)) => ints.len().to_string(),
        (Count, Some(TEXT)) => texts.len().to_string(),
        (Sum, Some(INT)) => {
            some(!ints.is_empty(), ints.iter().fold(0i32, |sum, int| sum.wrapping_add(*int)).to_string())
        }
        (Avg, Some(INT)) => {
            let sum = ints.iter().map(|&int| i64::from(int)).sum::<i64>();
            some(!ints.is_empty(), sum.checked_div(ints.len() as i64).unwrap_or_default().to_string())
        }
        (Max, Some(INT)) => text(ints.iter().max().map(ToString::to_string)),
        (Sum, Some(BIG)) => {
            some(!rows.is_empty(), rows.iter().fold(0i64, |sum, row| sum.wrapping_add(row.big)).to_string())
        }
        (Sum, Some(DEC)) => some(!decs.is_empty(), decimal_text(decs.iter().sum())),
        (Min, Some(DEC)) => text(decs.iter().min().copied().map(decimal_text)),
        (Min, Some(TEXT)) => text(texts.iter().min().cloned()),
        (Max, Some(TEXT)) => text(texts.iter().max().cloned()),
        (Sum, Some(FLOAT)) => some(!floats.is_empty(), format!("{:?}", floats.iter().sum::<f64>())),
        (Max, Some(FLOAT)) => text(floats.iter().copied().reduce(f64::max).map(|float| format!("{float:?}"))),
        (Min, Some(FLOAT)) => text(floats.iter().copied().reduce(f64::min).map(|float| format!("{float:?}"))),
        (Max, Some(FLAG)) => text(rows.iter().filter_map(|row| row.flag).max().map(|flag| flag.to_string())),
        other => panic!("{other:?} is not in the list"),
    }
}

fn decimal_text(unscaled: i128) -> String {
    let digits = format!("{:0>3}", unscaled.abs());
    let (whole, fraction) = digits.split_at(digits.len() - 2);
    format!("{}{whole}.{fraction}", if unscaled < 0 { "-" } else { "" })
}

fn expected(spec: &GroupAggregateSpec, rows: &[Row]) -> BTreeMap<Vec<String>, Vec<String>> {
    let mut groups: BTreeMap<Vec<String>, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let key = |key: &usize| match *key {
            NAME => row.name.clone().unwrap_or_else(|| "NULL".to_owned()),
            CITY => row.city.to_string(),
            other => panic!("{other} is no key"),
        };
        groups.entry(spec.keys.iter().map(key).collect()).or_default().push(row);
    }
    let result = |(key, rows): (Vec<String>, Vec<&Row>)| {
        let results = spec.aggregates.iter().map(|call| aggregate(call, &rows));
        (key.clone(), key.iter().cloned().chain(results).collect())
    };
    groups.into_iter().map(result).collect()
}

#[derive(Clone, Debug)]
enum Event {
    /// Rows that come, and for rows that are there a dice that says whether they go: before or after those that come.
    Batch {
        rows: Vec<Row>,
        leaving: Vec<u8>,
    },
    Checkpoint(bool),
    Restore(usize, bool),
}

fn row() -> impl Strategy<Value = Row> {
    let numbers = (-3i32..3, any::<i64>(), -4i32..4);
    let rest = (
        prop::option::of(prop_oneof![Just(i32::MAX), Just(i32::MIN), -3..3i32]),
        prop::option::of(-1000i128..1000),
        prop::option::of("[aäz]{0,2}"),
        prop::option::of("[xy]{0,1}"),
        prop::option::of(any::<bool>()),
    );
    (numbers, rest).prop_map(|((city, big, float), (int, dec, text, name, flag))| Row {
        name,
        city,
        int,
        big,
        dec,
        text,
        float: f64::from(float),
        flag,
    })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let batch = (prop::collection::vec(row(), 0..25), prop::collection::vec(any::<u8>(), 0..25));
    let event = prop_oneof![
        6 => batch.prop_map(|(rows, leaving)| Event::Batch { rows, leaving }),
        1 => (1usize..4, any::<bool>()).prop_map(|(p, incremental)| Event::Restore(p, incremental)),
        2 => any::<bool>().prop_map(Event::Checkpoint),
    ];
    prop::collection::vec(event, 1..25)
}

fn check(keys: &[usize], retracting: bool, update_before: bool, events: &[Event]) {
    let spec = spec(keys, retracting, update_before);
    let (mut subtasks, mut folded) = (Subtasks::new(spec.clone(), 2), Folded::new(&spec));
    let mut live: Vec<Row> = Vec::new();
    if keys.is_empty() {
        subtasks = Subtasks::new(spec.clone(), 1);
    }
    for event in events {
        match event {
            Event::Batch { rows, leaving } => {
                let mut changes = Vec::new();
                for (index, dice) in leaving.iter().enumerate().filter(|_| retracting) {
                    if live.is_empty() {
                        break;
                    }
                    let op = if dice % 2 == 0 { RowOp::Delete } else { RowOp::UpdateBefore };
                    changes.push((op as u8, live.swap_remove((usize::from(*dice) + index) % live.len())));
                }
                let come = rows.iter().enumerate().map(|(index, row)| {
                    let op = if retracting && index % 3 == 0 { RowOp::UpdateAfter } else { RowOp::Insert };
                    (op as u8, row.clone())
                });
                changes.extend(come);
                live.extend(rows.iter().cloned());
                // Some of those that have just come go again within the batch.
                for dice in leaving.iter().filter(|dice| retracting && **dice < 32) {
                    if live.is_empty() {
                        break;
                    }
                    let gone = live.swap_remove(live.len() - 1 - usize::from(*dice) % live.len());
                    changes.push((RowOp::Delete as u8, gone));
                }
                if !changes.is_empty() {
                    subtasks.process(&changes, &mut folded);
                }
            }
            Event::Checkpoint(completes) => subtasks.checkpoint(*completes),
            Event::Restore(p, incremental) => {
                subtasks = subtasks.rescale(if keys.is_empty() { 1 } else { *p }, *incremental);
            }
        }
        assert_eq!(folded.rows, expected(&spec, &live));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn results_follow_rows_that_come_and_go(events in events(), update_before in any::<bool>()) {
        check(&[NAME, CITY], true, update_before, &events);
    }

    #[test]
    fn results_follow_rows_that_only_come(events in events(), update_before in any::<bool>()) {
        check(&[CITY], false, update_before, &events);
    }

    #[test]
    fn an_aggregate_without_keys_follows_all_rows(events in events(), retracting in any::<bool>()) {
        check(&[], retracting, true, &events);
    }

    #[test]
    fn any_split_into_batches_gives_the_same_result(rows in prop::collection::vec(row(), 1..60), cut in 1usize..60) {
        let spec = spec(&[NAME], true, true);
        let (mut subtasks, mut folded) = (Subtasks::new(spec.clone(), 1), Folded::new(&spec));
        let changes: Vec<(u8, Row)> = rows.iter().map(|row| (RowOp::Insert as u8, row.clone())).collect();
        changes.chunks(cut).for_each(|batch| subtasks.process(batch, &mut folded));
        prop_assert_eq!(&folded.rows, &expected(&spec, &rows));
        // Everything goes again, in another order and other batches.
        let gone: Vec<(u8, Row)> = rows.iter().rev().map(|row| (RowOp::Delete as u8, row.clone())).collect();
        gone.chunks(cut / 2 + 1).for_each(|batch| subtasks.process(batch, &mut folded));
        prop_assert_eq!(&folded.rows, &BTreeMap::new());
        prop_assert!(subtasks.list[0].freeze(Since::Start, &uncounted()).is_ok());
        let rows = write_tables(subtasks.list[0].freeze(Since::Start, &uncounted()).unwrap().tables, &subtasks.store(), "x").unwrap();
        prop_assert_eq!(rows.iter().map(|file| file.rows).sum::<u64>(), 0, "no state is left");
    }
}

fn plain(name: &str, int: i32) -> Row {
    let name = Some(name.to_owned());
    Row { name, city: 0, int: Some(int), big: 1, dec: None, text: None, float: 0.0, flag: None }
}

/// `SELECT DISTINCT name`.
fn distinct_names(retracting: bool) -> GroupAggregateSpec {
    GroupAggregateSpec { keys: vec![NAME], aggregates: Vec::new(), retracting, update_before: true }
}

#[test]
fn without_aggregates_a_key_is_emitted_when_it_comes_and_when_its_last_row_goes() {
    let spec = distinct_names(true);
    let (mut subtasks, mut folded) = (Subtasks::new(spec.clone(), 1), Folded::new(&spec));
    let insert = |row| (RowOp::Insert as u8, row);
    subtasks.process(&[insert(plain("a", 1)), insert(plain("a", 2)), insert(plain("b", 1))], &mut folded);
    assert_eq!(folded.rows.len(), 2);
    subtasks.process(&[(RowOp::Delete as u8, plain("a", 1))], &mut folded);
    assert_eq!((folded.rows.len(), folded.emitted.len()), (2, 0));
    subtasks.process(&[(RowOp::Delete as u8, plain("a", 2))], &mut folded);
    assert_eq!(folded.rows.keys().cloned().collect::<Vec<_>>(), [vec!["b".to_owned()]]);
}

#[test]
fn a_retraction_of_a_group_that_is_not_there_is_passed_over() {
    let spec = spec(&[NAME], true, true);
    let (mut subtasks, mut folded) = (Subtasks::new(spec.clone(), 1), Folded::new(&spec));
    subtasks.process(&[(RowOp::Delete as u8, plain("a", 1)), (RowOp::Insert as u8, plain("b", 2))], &mut folded);
    assert_eq!(folded.rows, expected(&spec, &[plain("b", 2)]));
}

#[test]
fn updates_that_the_planner_did_not_announce_are_refused() {
    let spec = distinct_names(false);
    let mut operator = GroupAggregate::new(&spec, &input_schema(), output_schema(&spec), KeyRange::FULL).unwrap();
    let batch = Batch { rows: batch_of(&[&plain("a", 1)]), ops: Some(ScalarBuffer::from(vec![RowOp::Delete as u8])) };
    let error = operator.process(batch, &mut Folded::new(&spec)).unwrap_err();
    assert_eq!(error.code, Code::Internal);
}

#[test]
fn state_of_another_query_is_refused() {
    let mut subtasks = Subtasks::new(spec(&[NAME], true, true), 1);
    let mut folded = Folded::new(&subtasks.spec);
    subtasks.process(&[(RowOp::Insert as u8, plain("a", 1))], &mut folded);
    let store = subtasks.store();
    let files = write_tables(subtasks.list[0].freeze(Since::Start, &uncounted()).unwrap().tables, &store, "s").unwrap();
    let parts = [OperatorSnapshot { uid: "g".to_owned(), watermark_ms: 0, files, splits: Vec::new(), prepared: None }];
    for other in [spec(&[CITY], true, true), spec(&[NAME], false, true), distinct_names(true)] {
        let mut operator = GroupAggregate::new(&other, &input_schema(), output_schema(&other), KeyRange::FULL).unwrap();
        let error = operator.restore(RestoredOperator::load(&store, &parts, KeyRange::FULL).unwrap()).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    }
}
