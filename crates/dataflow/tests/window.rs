//! The window aggregate against a naive computation over rows: any cut into batches, any watermarks, any restore.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, StringViewArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;
use weir_dataflow::element::{Batch, Watermark};
use weir_dataflow::operator::{Collector, Operator, Progress};
use weir_dataflow::window::WindowAggregate;
use weir_state::key_hash::hash_keys;
use weir_state::memory::uncounted;
use weir_state::restore::RestoredOperator;
use weir_state::store::LocalDirectory;
use weir_state::{Runs, Since, write_increment, write_tables};
use weir_types::graph::{AggregateFunction, AggregateSpec, Output, WindowAggregateSpec, WindowColumn, WindowSpec};
use weir_types::ids::{Parallelism, SubtaskIndex};
use weir_types::key_range::{KeyRange, subtask_of};
use weir_types::snapshot::{OperatorSnapshot, StateFile};
use weir_types::{Code, Result};

#[derive(Clone, Debug)]
struct Row {
    id: i64,
    ts: i64,
    name: Option<String>,
    city: i32,
    int: Option<i32>,
    big: i64,
    dec: Option<i128>,
    text: Option<String>,
    float: f64,
    flag: Option<bool>,
}

const ID: usize = 0;
const TS: usize = 1;
const NAME: usize = 2;
const CITY: usize = 3;
const INT: usize = 4;
const BIG: usize = 5;
const DEC: usize = 6;
const TEXT: usize = 7;
const FLOAT: usize = 8;
const FLAG: usize = 9;
const EVEN: usize = 10;

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

fn input_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("ts", time_type(), true),
        Field::new("name", DataType::Utf8, true),
        Field::new("city", DataType::Int32, false),
        Field::new("int", DataType::Int32, true),
        Field::new("big", DataType::Int64, false),
        Field::new("dec", DataType::Decimal128(10, 2), true),
        Field::new("text", DataType::Utf8View, true),
        Field::new("float", DataType::Float64, false),
        Field::new("flag", DataType::Boolean, true),
        Field::new("even", DataType::Boolean, false),
    ]))
}

fn batch_of(rows: &[Row]) -> RecordBatch {
    let decimals: Decimal128Array = rows.iter().map(|row| row.dec).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
        Arc::new(TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.ts))),
        Arc::new(rows.iter().map(|row| row.name.clone()).collect::<StringArray>()),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.city))),
        Arc::new(rows.iter().map(|row| row.int).collect::<Int32Array>()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.big))),
        Arc::new(decimals.with_precision_and_scale(10, 2).unwrap()),
        Arc::new(rows.iter().map(|row| row.text.clone()).collect::<StringViewArray>()),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.float))),
        Arc::new(rows.iter().map(|row| row.flag).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|row| Some(row.id % 2 == 0)).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(input_schema(), columns).unwrap()
}

fn call(function: AggregateFunction, argument: Option<usize>, distinct: bool, filter: Option<usize>) -> AggregateSpec {
    AggregateSpec { function, argument, distinct, filter }
}

/// Every aggregate under test, with its result type.
fn aggregates() -> Vec<(AggregateSpec, DataType)> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    vec![
        (call(Count, None, false, None), DataType::Int64),
        (call(Count, Some(INT), false, None), DataType::Int64),
        (call(Count, None, false, Some(FLAG)), DataType::Int64),
        (call(Sum, Some(INT), false, None), DataType::Int32),
        (call(Sum, Some(BIG), false, Some(EVEN)), DataType::Int64),
        (call(Sum, Some(DEC), false, None), DataType::Decimal128(38, 2)),
        (call(Avg, Some(INT), false, None), DataType::Int32),
        (call(Avg, Some(DEC), false, None), DataType::Decimal128(38, 6)),
        (call(Min, Some(TEXT), false, None), DataType::Utf8),
        (call(Max, Some(TEXT), false, Some(FLAG)), DataType::Utf8View),
        (call(Min, Some(TS), false, None), time_type()),
        (call(Max, Some(DEC), true, None), DataType::Decimal128(10, 2)),
        (call(Sum, Some(FLOAT), false, None), DataType::Float64),
        (call(Avg, Some(FLOAT), false, None), DataType::Float64),
        (call(Max, Some(FLAG), false, None), DataType::Boolean),
        (call(Count, Some(TEXT), true, None), DataType::Int64),
        (call(Count, Some(TEXT), true, Some(FLAG)), DataType::Int64),
        (call(Count, Some(INT), true, Some(EVEN)), DataType::Int64),
        (call(Sum, Some(INT), true, None), DataType::Int32),
        (call(Avg, Some(DEC), true, Some(FLAG)), DataType::Decimal128(38, 6)),
        (call(Sum, Some(FLOAT), true, Some(EVEN)), DataType::Float64),
    ]
}

fn spec(window: WindowSpec, keys: &[usize]) -> WindowAggregateSpec {
    WindowAggregateSpec {
        window,
        time_column: TS,
        keys: keys.to_vec(),
        aggregates: aggregates().into_iter().map(|(spec, _)| spec).collect(),
        window_columns: vec![WindowColumn::Start, WindowColumn::End, WindowColumn::Time],
        emit_late_rows: true,
    }
}

fn output_schema(keys: &[usize]) -> SchemaRef {
    let input = input_schema();
    let mut fields: Vec<Field> = keys.iter().map(|&key| input.field(key).clone()).collect();
    for (i, (_, data_type)) in aggregates().into_iter().enumerate() {
        fields.push(Field::new(format!("a{i}"), data_type, true));
    }
    fields.extend(["window_start", "window_end", "window_time"].map(|name| Field::new(name, time_type(), false)));
    Arc::new(Schema::new(fields))
}

/// What an operator emits: result rows as text, and the ids of late rows.
#[derive(Debug, Default)]
struct Emitted {
    rows: Vec<Vec<String>>,
    ends: Vec<i64>,
    late: Vec<i64>,
    batch_rows_max: usize,
}

impl Collector for Emitted {
    fn emit(&mut self, output: Output, batch: Batch) -> Result<()> {
        let rows = &batch.rows;
        assert!(rows.num_rows() > 0, "batches are never empty");
        if output == Output::Late {
            assert_eq!(rows.schema(), input_schema());
            self.late.extend(rows.column(ID).as_primitive::<Int64Type>().values());
            return Ok(());
        }
        self.batch_rows_max = self.batch_rows_max.max(rows.num_rows());
        let options = FormatOptions::default().with_null("NULL");
        let columns: Vec<_> =
            rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..rows.num_rows() {
            self.rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
        let ends = rows.column(rows.num_columns() - 2);
        self.ends.extend(ends.as_primitive::<arrow::datatypes::TimestampMillisecondType>().values());
        Ok(())
    }
}

/// All subtasks of a window aggregate.
struct Subtasks {
    spec: WindowAggregateSpec,
    batch_rows: usize,
    list: Vec<WindowAggregate>,
    watermark: i64,
    /// Where checkpoints lie, how many there were, what the newest complete one consists of, whether it was the last freeze.
    directory: tempfile::TempDir,
    checkpoints: usize,
    runs: Option<Vec<Runs>>,
    completed: bool,
}

impl Subtasks {
    fn new(spec: WindowAggregateSpec, p: u32, batch_rows: usize) -> Self {
        let operator = |index| {
            let range = KeyRange::of_subtask(SubtaskIndex(index), Parallelism::new(p).unwrap()).unwrap();
            WindowAggregate::new(&spec, input_schema(), output_schema(&spec.keys), range, batch_rows).unwrap()
        };
        let list = (0..p).map(operator).collect();
        let (directory, watermark) = (tempfile::tempdir().unwrap(), i64::MIN);
        Self { spec, batch_rows, list, watermark, directory, checkpoints: 0, runs: None, completed: false }
    }

    fn store(&self) -> LocalDirectory {
        LocalDirectory::new(self.directory.path().join("chk"))
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

    fn process(&mut self, rows: &[Row], out: &mut Emitted) {
        let batch = batch_of(rows);
        let keys: Vec<ArrayRef> = self.spec.keys.iter().map(|&key| Arc::clone(batch.column(key))).collect();
        let mut hashes = Vec::new();
        hash_keys(&keys, &mut hashes).unwrap();
        let p = Parallelism::new(self.list.len() as u32).unwrap();
        for (index, operator) in self.list.iter_mut().enumerate() {
            let mine = |row: &usize| keys.is_empty() || subtask_of(hashes[*row], p).0 as usize == index;
            let rows: Vec<Row> = (0..rows.len()).filter(mine).map(|row| rows[row].clone()).collect();
            if !rows.is_empty() {
                operator.process(Batch::inserts(batch_of(&rows)), out).unwrap();
            }
        }
    }

    fn advance(&mut self, watermark: i64, out: &mut Emitted) {
        self.watermark = watermark;
        for operator in &mut self.list {
            let (mut own, mut steps) = (Emitted::default(), 0);
            while operator.advance(Watermark(watermark), &mut own).unwrap() == Progress::More {
                steps += 1;
                assert!(steps <= 10_000, "advancing does not end");
            }
            assert!(own.ends.is_sorted(), "windows fire in the order of their ends");
            assert!(own.batch_rows_max <= self.batch_rows);
            out.rows.append(&mut own.rows);
        }
    }

    /// Takes a checkpoint and goes on from it with `p` subtasks.
    fn rescale_incrementally(mut self, p: u32) -> Self {
        self.checkpoint(true);
        let mut next = Self::new(self.spec.clone(), p, self.batch_rows);
        let parts: Vec<OperatorSnapshot> = self.runs.iter().flatten().map(|runs| self.part(runs.files())).collect();
        next.restore(&self.store(), &parts);
        next.watermark = self.watermark;
        next
    }

    fn part(&self, files: Vec<StateFile>) -> OperatorSnapshot {
        let (uid, watermark_ms) = ("w".to_owned(), self.watermark);
        OperatorSnapshot { uid, watermark_ms, files, splits: Vec::new(), prepared: None }
    }

    fn restore(&mut self, store: &LocalDirectory, parts: &[OperatorSnapshot]) {
        let p = Parallelism::new(self.list.len() as u32).unwrap();
        for (index, operator) in self.list.iter_mut().enumerate() {
            let range = KeyRange::of_subtask(SubtaskIndex(index as u32), p).unwrap();
            operator.restore(RestoredOperator::load(store, parts, range).unwrap()).unwrap();
        }
    }

    /// Takes a savepoint and goes on from it with `p` subtasks.
    fn rescale(mut self, p: u32) -> Self {
        let store = self.store();
        let mut next = Self::new(self.spec.clone(), p, self.batch_rows);
        let mut parts = Vec::new();
        for (index, mut operator) in std::mem::take(&mut self.list).into_iter().enumerate() {
            let frozen = operator.freeze(Since::Start, &uncounted()).unwrap();
            // What the operator does after the barrier must not show in the snapshot.
            let late = Row {
                id: -1,
                ts: 1_000_000,
                name: None,
                city: 0,
                int: None,
                big: 0,
                dec: None,
                text: None,
                float: 0.0,
                flag: None,
            };
            let _ = operator.process(Batch::inserts(batch_of(&[late])), &mut Emitted::default());
            let _ = operator.advance(Watermark::MAX, &mut Emitted::default());
            let files = write_tables(frozen.tables, &store, &format!("s{index}")).unwrap();
            parts.push(self.part(files));
        }
        next.restore(&store, &parts);
        next.watermark = self.watermark;
        next
    }

    fn late_rows(&self) -> u64 {
        self.list.iter().map(Operator::late_rows).sum()
    }
}

/// The naive computation: every window keeps its rows.
struct Oracle {
    size: i64,
    slide: i64,
    offset: i64,
    keys: Vec<usize>,
    watermark: i64,
    open: BTreeMap<(i64, Vec<String>), Vec<Row>>,
}

impl Oracle {
    fn new(window: WindowSpec, keys: &[usize]) -> Self {
        let (size, slide, offset) = match window {
            WindowSpec::Tumble { size_ms, offset_ms } => (size_ms, size_ms, offset_ms),
            WindowSpec::Hop { size_ms, slide_ms, offset_ms } => (size_ms, slide_ms, offset_ms),
        };
        Self { size, slide, offset, keys: keys.to_vec(), watermark: i64::MIN, open: BTreeMap::new() }
    }

    /// Whether the row is late.
    fn add(&mut self, row: &Row) -> bool {
        let mut late = true;
        let key: Vec<String> = self
            .keys
            .iter()
            .map(|&key| match key {
                NAME => row.name.clone().unwrap_or("NULL".to_owned()),
                CITY => row.city.to_string(),
                other => panic!("{other} is no key"),
            })
            .collect();
        for start in row.ts - self.size + 1..=row.ts {
            if (start - self.offset) % self.slide == 0 && start + self.size - 1 > self.watermark {
                late = false;
                self.open.entry((start, key.clone())).or_default().push(row.clone());
            }
        }
        late
    }

    fn advance(&mut self, watermark: i64) -> Vec<Vec<String>> {
        self.watermark = watermark;
        let due: Vec<_> = self.open.keys().filter(|(start, _)| start + self.size - 1 <= watermark).cloned().collect();
        due.into_iter().map(|at| self.result(&at)).collect()
    }

    fn result(&mut self, at: &(i64, Vec<String>)) -> Vec<String> {
        let rows = self.open.remove(at).unwrap();
        let (start, key) = at;
        let mut result = key.clone();
        result.extend(aggregates().iter().map(|(spec, _)| aggregate(spec, &rows)));
        result.extend([*start, start + self.size, start + self.size - 1].map(time_text));
        result
    }
}

fn time_text(ms: i64) -> String {
    let array = TimestampMillisecondArray::from(vec![ms]);
    ArrayFormatter::try_new(&array, &FormatOptions::default()).unwrap().value(0).to_string()
}

fn decimal_text(unscaled: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", unscaled.abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{fraction}", if unscaled < 0 { "-" } else { "" })
}

/// Half away from zero.
fn divide_rounded(a: i128, b: i128) -> i128 {
    let doubled = 2 * a.abs() + b;
    (doubled / (2 * b)) * a.signum()
}

fn float_text(value: f64) -> String {
    let array = Float64Array::from(vec![value]);
    ArrayFormatter::try_new(&array, &FormatOptions::default()).unwrap().value(0).to_string()
}

/// One aggregate over the rows of a group, as SQL defines it.
fn aggregate(spec: &AggregateSpec, rows: &[Row]) -> String {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let passes = |row: &&Row| match spec.filter {
        None => true,
        Some(FLAG) => row.flag == Some(true),
        Some(_) => row.id % 2 == 0,
    };
    let rows: Vec<&Row> = rows.iter().filter(passes).collect();
    let null = || "NULL".to_owned();
    let text = |value: Option<String>| value.unwrap_or_else(null);
    fn unique<T: Ord>(values: impl Iterator<Item = T>, distinct: bool) -> Vec<T> {
        let mut values: Vec<T> = values.collect();
        if distinct {
            values = BTreeSet::from_iter(values).into_iter().collect();
        }
        values
    }
    let ints = unique(rows.iter().filter_map(|row| row.int), spec.distinct);
    let decs = unique(rows.iter().filter_map(|row| row.dec), spec.distinct);
    let texts = unique(rows.iter().filter_map(|row| row.text.clone()), spec.distinct);
    // Floats are small whole numbers here.
    let floats = unique(rows.iter().map(|row| row.float as i64), spec.distinct);
    let float_sum = floats.iter().sum::<i64>() as f64;
    match (spec.function, spec.argument) {
        (Count, None) => rows.len().to_string(),
        (Count, Some(INT)) => ints.len().to_string(),
        (Count, Some(TEXT)) => texts.len().to_string(),
        (Sum | Avg, Some(INT)) if ints.is_empty() => null(),
        (Sum, Some(INT)) => ints.iter().fold(0i32, |sum, int| sum.wrapping_add(*int)).to_string(),
        (Avg, Some(INT)) => (ints.iter().map(|&int| i64::from(int)).sum::<i64>() / ints.len() as i64).to_string(),
        (Sum, Some(BIG)) if rows.is_empty() => null(),
        (Sum, Some(BIG)) => rows.iter().fold(0i64, |sum, row| sum.wrapping_add(row.big)).to_string(),
        (Sum | Avg, Some(DEC)) if decs.is_empty() => null(),
        (Sum, Some(DEC)) => decimal_text(decs.iter().sum(), 2),
        (Avg, Some(DEC)) => decimal_text(divide_rounded(decs.iter().sum::<i128>() * 10_000, decs.len() as i128), 6),
        (Max, Some(DEC)) => text(decs.iter().max().map(|&dec| decimal_text(dec, 2))),
        (Min, Some(TEXT)) => text(texts.iter().min().cloned()),
        (Max, Some(TEXT)) => text(texts.iter().max().cloned()),
        (Min, Some(TS)) => text(rows.iter().map(|row| row.ts).min().map(time_text)),
        (Max, Some(FLAG)) => text(rows.iter().filter_map(|row| row.flag).max().map(|flag| flag.to_string())),
        (Sum | Avg, Some(FLOAT)) if floats.is_empty() => null(),
        (Sum, Some(FLOAT)) => float_text(float_sum),
        (Avg, Some(FLOAT)) => float_text(float_sum / floats.len() as f64),
        other => panic!("{other:?} is not in the list"),
    }
}

#[derive(Clone, Debug)]
enum Event {
    Rows(Vec<Row>),
    /// Event time goes on by this much.
    Watermark(i64),
    /// An incremental checkpoint, which completes or not.
    Checkpoint(bool),
    /// A savepoint or an incremental checkpoint, and a restore with this parallelism.
    Restore(u32, bool),
}

fn row() -> impl Strategy<Value = Row> {
    let numbers = (-60i64..120, -5i32..3, any::<i64>(), -4i32..4);
    let rest = (
        prop::option::of(prop_oneof![Just(i32::MAX), Just(i32::MIN), -3..3i32]),
        prop::option::of(-1000i128..1000),
        prop::option::of("[aäz]{0,2}"),
        prop::option::of("[xy]{0,1}"),
        prop::option::of(any::<bool>()),
    );
    (numbers, rest).prop_map(|((ts, city, big, float), (int, dec, text, name, flag))| Row {
        id: 0,
        ts,
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
    let event = prop_oneof![
        4 => prop::collection::vec(row(), 1..30).prop_map(Event::Rows),
        3 => (0i64..60).prop_map(Event::Watermark),
        1 => (1u32..4, any::<bool>()).prop_map(|(p, incremental)| Event::Restore(p, incremental)),
        2 => any::<bool>().prop_map(Event::Checkpoint),
    ];
    prop::collection::vec(event, 1..25).prop_map(|mut events| {
        let mut id = 0;
        for event in &mut events {
            if let Event::Rows(rows) = event {
                for row in rows {
                    row.id = id;
                    id += 1;
                }
            }
        }
        events
    })
}

fn window() -> impl Strategy<Value = WindowSpec> {
    let tumble = (1i64..40, -50i64..50).prop_map(|(size_ms, offset_ms)| WindowSpec::Tumble { size_ms, offset_ms });
    let hop = (1i64..15, 0i64..30, -50i64..50).prop_map(|(slide_ms, more, offset_ms)| WindowSpec::Hop {
        size_ms: slide_ms + more,
        slide_ms,
        offset_ms,
    });
    prop_oneof![tumble, hop]
}

fn check(window: WindowSpec, keys: &[usize], events: &[Event], p: u32, batch_rows: usize) {
    let mut subtasks = Subtasks::new(spec(window, keys), p, batch_rows);
    let mut oracle = Oracle::new(window, keys);
    let (mut watermark, mut late, mut counted) = (-70, Vec::new(), 0);
    let last = Event::Watermark(i64::MAX);
    for event in events.iter().chain([&last]) {
        let mut out = Emitted::default();
        match event {
            Event::Rows(rows) => {
                late.extend(rows.iter().filter(|row| oracle.add(row)).map(|row| row.id));
                subtasks.process(rows, &mut out);
                let mut expected = late.split_off(0);
                expected.sort_unstable();
                out.late.sort_unstable();
                assert_eq!(out.late, expected);
                counted += expected.len() as u64;
            }
            Event::Watermark(by) => {
                watermark = i64::saturating_add(watermark, *by);
                let mut expected = oracle.advance(watermark);
                subtasks.advance(watermark, &mut out);
                expected.sort_unstable();
                out.rows.sort_unstable();
                assert_eq!(out.rows, expected);
            }
            Event::Checkpoint(completes) => subtasks.checkpoint(*completes),
            Event::Restore(p, incremental) => {
                let before = subtasks.late_rows();
                // Without keys there is one subtask.
                let p = if keys.is_empty() { 1 } else { *p };
                subtasks = if *incremental { subtasks.rescale_incrementally(p) } else { subtasks.rescale(p) };
                counted -= before;
            }
        }
        assert_eq!(subtasks.late_rows(), counted);
    }
    assert!(oracle.open.is_empty());
    assert_eq!(subtasks.list.iter().map(Operator::state_bytes).sum::<u64>(), 0, "nothing is kept when all is done");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn results_equal_the_naive_computation(
        window in window(), events in events(), p in 1u32..4, batch_rows in 1usize..9,
        keys in prop::sample::select(vec![vec![NAME], vec![CITY], vec![NAME, CITY]]),
    ) {
        check(window, &keys, &events, p, batch_rows);
    }

    #[test]
    fn results_without_keys_equal_the_naive_computation(window in window(), events in events()) {
        check(window, &[], &events, 1, 3);
    }
}

fn tumble(size_ms: i64) -> WindowSpec {
    WindowSpec::Tumble { size_ms, offset_ms: 0 }
}

fn sample(id: i64, ts: i64) -> Row {
    let (name, text) = (Some(format!("n{}", id % 7)), Some(format!("t{id}")));
    Row { id, ts, name, city: 1, int: Some(1), big: 1, dec: Some(1), text, float: 1.0, flag: None }
}

#[test]
fn very_many_open_slices_fire_in_order() {
    let mut subtasks = Subtasks::new(spec(tumble(10), &[CITY]), 1, 1000);
    let rows: Vec<Row> = (0..20_000).map(|i| sample(i, (i * 7919) % 20_000 * 10)).collect();
    let mut out = Emitted::default();
    rows.chunks(4096).for_each(|rows| subtasks.process(rows, &mut out));
    assert!(subtasks.list[0].state_bytes() > 0);
    subtasks = subtasks.rescale(2);
    subtasks.advance(i64::MAX, &mut out);
    assert_eq!(out.rows.len(), 20_000);
}

#[test]
fn a_null_event_time_is_an_error_that_names_the_column() {
    let mut operator = Subtasks::new(spec(tumble(10), &[CITY]), 1, 10).list.remove(0);
    let mut columns = batch_of(&[sample(0, 0)]).columns().to_vec();
    columns[TS] = Arc::new(TimestampMillisecondArray::from(vec![None]));
    let batch = RecordBatch::try_new(input_schema(), columns).unwrap();
    let error = operator.process(Batch::inserts(batch), &mut Emitted::default()).unwrap_err();
    assert_eq!(error.code, Code::MalformedRecord);
    assert!(error.message.contains("\"ts\""), "{error}");
}

#[test]
fn an_event_time_beyond_all_calendars_is_an_error() {
    let mut operator = Subtasks::new(spec(tumble(10), &[CITY]), 1, 10).list.remove(0);
    for ts in [i64::MIN, i64::MAX, 8_640_000_000_000_001] {
        let batch = Batch::inserts(batch_of(&[sample(0, ts)]));
        let error = operator.process(batch, &mut Emitted::default()).unwrap_err();
        assert_eq!(error.code, Code::MalformedRecord);
    }
}

#[test]
fn a_row_of_another_key_range_is_refused() {
    let subtasks = Subtasks::new(spec(tumble(10), &[NAME]), 2, 10);
    let refused = subtasks.list.into_iter().filter_map(|mut operator| {
        operator.process(Batch::inserts(batch_of(&[sample(0, 0)])), &mut Emitted::default()).err()
    });
    assert_eq!(refused.map(|error| error.code).collect::<Vec<_>>(), [Code::Internal]);
}

#[test]
fn state_of_another_query_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let mut subtasks = Subtasks::new(spec(tumble(10), &[NAME]), 1, 10);
    subtasks.process(&[sample(0, 25)], &mut Emitted::default());
    let files = write_tables(subtasks.list[0].freeze(Since::Start, &uncounted()).unwrap().tables, &store, "s").unwrap();
    let part = OperatorSnapshot { uid: "w".to_owned(), watermark_ms: 0, files, splits: Vec::new(), prepared: None };
    let restore = |spec| {
        let state = RestoredOperator::load(&store, std::slice::from_ref(&part), KeyRange::FULL).unwrap();
        Subtasks::new(spec, 1, 10).list[0].restore(state)
    };
    assert_eq!(restore(spec(tumble(10), &[NAME])), Ok(()));
    let error = restore(spec(tumble(10), &[CITY])).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.detail.unwrap().contains("name Utf8"));
    assert_eq!(restore(spec(tumble(30), &[NAME])).unwrap_err().code, Code::FailedPrecondition);
}

#[test]
fn state_is_matched_by_what_columns_are_and_not_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let mut subtasks = Subtasks::new(spec(tumble(10), &[NAME]), 1, 10);
    subtasks.process(&[sample(0, 25)], &mut Emitted::default());
    let files = write_tables(subtasks.list[0].freeze(Since::Start, &uncounted()).unwrap().tables, &store, "s").unwrap();
    let part = OperatorSnapshot { uid: "w".to_owned(), watermark_ms: 0, files, splits: Vec::new(), prepared: None };
    let restore = |rename: &dyn Fn(&Field) -> Field| {
        let mut state = RestoredOperator::load(&store, std::slice::from_ref(&part), KeyRange::FULL).unwrap();
        for table in state.tables.values_mut() {
            table.schema = Arc::new(Schema::new(table.schema.fields().iter().map(|f| rename(f)).collect::<Vec<_>>()));
        }
        Subtasks::new(spec(tumble(10), &[NAME]), 1, 10).list[0].restore(state)
    };
    let renamed = |field: &Field| field.clone().with_name(format!("my_{}", field.name()));
    assert_eq!(restore(&|field| if field.metadata().is_empty() { field.clone() } else { renamed(field) }), Ok(()));
    // As written before columns had ids.
    let early = |field: &Field| {
        let id = weir_state::columns::id(field);
        let name = if id == "key0" { "key.name" } else { id };
        Field::new(name, field.data_type().clone(), field.is_nullable())
    };
    assert_eq!(restore(&early), Ok(()));
    let foreign = |field: &Field| Field::new("x", field.data_type().clone(), field.is_nullable());
    assert_eq!(restore(&foreign).unwrap_err().code, Code::FailedPrecondition);
}

#[test]
fn a_decimal_sum_beyond_38_digits_is_null_for_good() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("ts", time_type(), false),
        Field::new("d", DataType::Decimal128(38, 0), false),
    ]));
    let functions = [AggregateFunction::Sum, AggregateFunction::Avg];
    let spec = WindowAggregateSpec {
        window: tumble(10),
        time_column: 0,
        keys: Vec::new(),
        aggregates: functions.map(|function| call(function, Some(1), false, None)).to_vec(),
        window_columns: Vec::new(),
        emit_late_rows: false,
    };
    let output = Arc::new(Schema::new(vec![
        Field::new("sum", DataType::Decimal128(38, 0), true),
        Field::new("avg", DataType::Decimal128(38, 6), true),
    ]));
    let mut operator = WindowAggregate::new(&spec, schema.clone(), output, KeyRange::FULL, 10).unwrap();
    let most = 10i128.pow(38) - 1;
    let values = Decimal128Array::from(vec![most, 1, -most, 7]).with_precision_and_scale(38, 0).unwrap();
    let times = TimestampMillisecondArray::from(vec![0, 1, 2, 10]);
    let rows = RecordBatch::try_new(schema, vec![Arc::new(times), Arc::new(values)]).unwrap();
    operator.process(Batch::inserts(rows), &mut Emitted::default()).unwrap();
    let mut sink = Rows::default();
    while operator.advance(Watermark::MAX, &mut sink).unwrap() == Progress::More {}
    let batch = &sink.0[0];
    let sums = batch.column(0).as_primitive::<arrow::datatypes::Decimal128Type>();
    let means = batch.column(1).as_primitive::<arrow::datatypes::Decimal128Type>();
    assert_eq!((sums.is_null(0), means.is_null(0)), (true, true));
    assert_eq!((sums.value(1), means.value(1)), (7, 7_000_000));
}

#[derive(Default)]
struct Rows(Vec<RecordBatch>);

impl Collector for Rows {
    fn emit(&mut self, _: Output, batch: Batch) -> Result<()> {
        self.0.push(batch.rows);
        Ok(())
    }
}
