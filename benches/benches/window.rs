//! The window aggregate alone: nanoseconds per row of `COUNT(*)` per BIGINT key and 10-second window, without a source,
//! an exchange or a sink. Batches of 8,192 rows; every window has 100 batches; the firing of windows is included.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weir_dataflow::element::{Batch, Watermark};
use weir_dataflow::operator::{Collector, Operator, Progress};
use weir_dataflow::window::WindowAggregate;
use weir_types::graph::{AggregateFunction, AggregateSpec, Output, WindowAggregateSpec, WindowColumn, WindowSpec};
use weir_types::key_range::KeyRange;

const BATCH_ROWS: usize = 8192;
const BATCHES: usize = 100;
const WINDOW_MS: i64 = 10_000;

struct Count(usize);

impl Collector for Count {
    fn emit(&mut self, _: Output, batch: Batch) -> weir_types::Result<()> {
        self.0 += batch.rows.num_rows();
        Ok(())
    }
}

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

fn input_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("auction", DataType::Int64, false), Field::new("ts", time_type(), false)]))
}

fn operator(window: WindowSpec) -> WindowAggregate {
    let count = AggregateSpec { function: AggregateFunction::Count, argument: None, distinct: false, filter: None };
    let spec = WindowAggregateSpec {
        window,
        time_column: 1,
        keys: vec![0],
        aggregates: vec![count],
        window_columns: vec![WindowColumn::Start],
        emit_late_rows: false,
    };
    let output = Arc::new(Schema::new(vec![
        Field::new("auction", DataType::Int64, false),
        Field::new("bids", DataType::Int64, false),
        Field::new("window_start", time_type(), false),
    ]));
    WindowAggregate::new(&spec, input_schema(), output, KeyRange::FULL, BATCH_ROWS).unwrap()
}

/// The rows of one window that starts at 0, with keys drawn from `keys` by a fixed generator.
fn batches(keys: u64) -> Vec<(ArrayRef, Vec<i64>)> {
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(state) * u128::from(keys)) >> 64) as i64
    };
    let batch = |batch: usize| {
        let keys: Int64Array = (0..BATCH_ROWS).map(|_| draw()).collect::<Vec<_>>().into();
        let first = batch * BATCH_ROWS;
        let times = (first..first + BATCH_ROWS).map(|row| (row * WINDOW_MS as usize / (BATCHES * BATCH_ROWS)) as i64);
        (Arc::new(keys) as ArrayRef, times.collect())
    };
    (0..BATCHES).map(batch).collect()
}

fn count_per_key(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window/count");
    group.throughput(Throughput::Elements((BATCHES * BATCH_ROWS) as u64)).sample_size(10);
    let tumble = WindowSpec::Tumble { size_ms: WINDOW_MS, offset_ms: 0 };
    let hop = WindowSpec::Hop { size_ms: WINDOW_MS, slide_ms: WINDOW_MS / 5, offset_ms: 0 };
    for (name, window) in [("tumble", tumble), ("hop", hop)] {
        for keys in [1u64, 10_000, 1_000_000] {
            let batches = batches(keys);
            let mut operator = operator(window);
            let mut start = 0;
            group.bench_function(BenchmarkId::new(name, keys), |bencher| {
                bencher.iter(|| {
                    let mut out = Count(0);
                    for (keys, times) in &batches {
                        let times = times.iter().map(|time| start + time).collect::<Vec<_>>();
                        let times = TimestampMillisecondArray::from(times);
                        let columns = vec![Arc::clone(keys), Arc::new(times) as ArrayRef];
                        let rows = RecordBatch::try_new(input_schema(), columns).unwrap();
                        operator.process(Batch::inserts(rows), &mut out).unwrap();
                    }
                    start += WINDOW_MS;
                    while operator.advance(Watermark(start - 1), &mut out).unwrap() == Progress::More {}
                    assert!(out.0 > 0);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, count_per_key);
criterion_main!(benches);
