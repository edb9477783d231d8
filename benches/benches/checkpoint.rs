//! Incremental checkpoints of a window aggregate (`COUNT(*)` per BIGINT key, one window) against the share of its keys that
//! has changed since the checkpoint before: how long nothing is processed meanwhile, how long writing takes, and how much
//! is written. Through the operator, its state tables and the writer of runs, as a subtask would; no barriers, no grants.
//!
//! `cargo bench -p weir-benches --bench checkpoint` prints a table. `WEIR_BENCH_DIR` says where files go (default: the
//! system's temporary directory), `WEIR_BENCH_KEYS` how many keys there are (default: `1000000,5000000`).

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use weir_dataflow::element::Batch;
use weir_dataflow::operator::{Collector, Operator};
use weir_dataflow::window::WindowAggregate;
use weir_state::memory::uncounted;
use weir_state::store::{LocalDirectory, SHARED_DIRECTORY, SnapshotStore};
use weir_state::{Increment, Runs, Since, write_increment};
use weir_types::graph::{AggregateFunction, AggregateSpec, Output, WindowAggregateSpec, WindowColumn, WindowSpec};
use weir_types::ids::SnapshotId;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::shared_path;

const BATCH_ROWS: usize = 8192;
/// Checkpoints of each share; medians are reported.
const ROUNDS: usize = 5;
/// Changed keys in thousandths of all.
const SHARES: [u64; 4] = [1, 10, 100, 1000];
/// A row without compression: hash of the key, start of the window, key, count.
const ROW_BYTES: u64 = 32;
/// Coprime with the numbers of keys, so that its multiples are keys far from one another.
const STRIDE: u64 = 1_000_003;

/// Nothing is emitted: the window does not end.
struct Nowhere;

impl Collector for Nowhere {
    fn emit(&mut self, _: Output, _: Batch) -> weir_types::Result<()> {
        Ok(())
    }
}

fn input_schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![Field::new("auction", DataType::Int64, false), Field::new("ts", time, false)]))
}

fn operator() -> WindowAggregate {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let spec = WindowAggregateSpec {
        window: WindowSpec::Tumble { size_ms: 86_400_000, offset_ms: 0 },
        time_column: 1,
        keys: vec![0],
        aggregates: vec![AggregateSpec {
            function: AggregateFunction::Count,
            argument: None,
            distinct: false,
            filter: None,
        }],
        window_columns: vec![WindowColumn::Start],
        emit_late_rows: false,
    };
    let output = Arc::new(Schema::new(vec![
        Field::new("auction", DataType::Int64, false),
        Field::new("bids", DataType::Int64, false),
        Field::new("window_start", time, false),
    ]));
    WindowAggregate::new(&spec, input_schema(), output, KeyRange::FULL, BATCH_ROWS).unwrap()
}

/// An operator, and the checkpoints that were taken of it; the newest is complete, and nothing else is kept.
struct Subtask {
    operator: WindowAggregate,
    keys: u64,
    /// The next key to change, before it is spread.
    next: u64,
    directory: PathBuf,
    number: u64,
    runs: Runs,
}

/// What one checkpoint took.
struct Taken {
    sync: Duration,
    write: Duration,
    bytes: u64,
}

impl Subtask {
    /// Counts one row for each of so many keys.
    fn change(&mut self, keys: u64) {
        let mut left = keys;
        while left > 0 {
            let rows = left.min(BATCH_ROWS as u64);
            let numbers = (self.next..self.next + rows).map(|key| (key.wrapping_mul(STRIDE) % self.keys) as i64);
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
            let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![0; rows as usize]));
            let batch = RecordBatch::try_new(input_schema(), vec![numbers, times]).unwrap();
            self.operator.process(Batch::inserts(batch), &mut Nowhere).unwrap();
            (self.next, left) = ((self.next + rows) % self.keys, left - rows);
        }
    }

    fn checkpoint(&mut self, since: Since) -> Taken {
        self.number += 1;
        let id = SnapshotId::new(format!("chk-{}", self.number)).unwrap();
        let store = LocalDirectory::new(self.directory.join(id.as_str()));
        let started = Instant::now();
        let frozen = self.operator.freeze(since, &uncounted()).unwrap();
        let sync = started.elapsed();
        let started = Instant::now();
        let prefix = shared_path(&id, "state");
        let written = write_increment(frozen.tables, &self.runs, &store, &prefix, &|| true).unwrap();
        let write = started.elapsed();
        let Increment { runs, written } = written;
        self.runs = runs;
        let kept = self.runs.files();
        let shared = LocalDirectory::new(self.directory.join(SHARED_DIRECTORY));
        for name in shared.list().unwrap() {
            if kept.iter().all(|file| file.shared_name() != Some(&name)) {
                shared.delete(&name).unwrap();
            }
        }
        Taken { sync, write, bytes: written.iter().map(|file| file.bytes).sum() }
    }
}

fn median<T: Ord + Copy>(taken: &[Taken], of: impl Fn(&Taken) -> T) -> T {
    let mut values: Vec<T> = taken.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

fn main() {
    let keys = std::env::var("WEIR_BENCH_KEYS").unwrap_or_else(|_| "1000000,5000000".to_owned());
    let root = std::env::var("WEIR_BENCH_DIR").map_or_else(|_| std::env::temp_dir(), PathBuf::from);
    println!("| keys | changed | synchronous part, ms (most) | writing, ms | bytes | of the changed rows' size |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
    for keys in keys.split(',').map(|keys| keys.trim().parse::<u64>().unwrap()) {
        let directory = tempfile::tempdir_in(&root).unwrap();
        let (operator, runs) = (operator(), Runs::default());
        let path = directory.path().to_owned();
        let mut subtask = Subtask { operator, keys, next: 0, directory: path, number: 0, runs };
        subtask.change(keys);
        for share in SHARES {
            // Each begins with a table that is written whole.
            subtask.checkpoint(Since::Start);
            let changed = keys * share / 1000;
            let taken: Vec<Taken> = (0..ROUNDS)
                .map(|_| {
                    subtask.change(changed);
                    subtask.checkpoint(Since::LastFreeze)
                })
                .collect();
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let most = taken.iter().map(|taken| taken.sync).max().unwrap_or_default();
            let bytes = median(&taken, |taken| taken.bytes);
            println!(
                "| {keys} | {} % | {:.2} ({:.2}) | {:.0} | {bytes} | {:.2} |",
                share as f64 / 10.0,
                ms(median(&taken, |taken| taken.sync)),
                ms(most),
                ms(median(&taken, |taken| taken.write)),
                bytes as f64 / (changed * ROW_BYTES) as f64,
            );
        }
    }
}
