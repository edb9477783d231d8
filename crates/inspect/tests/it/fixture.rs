//! Snapshots of a window aggregate over sensors: how many readings, and their total.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use weir_inspect::Snapshot;
use weir_state::columns::{Role, SPAN_MS, state_field};
use weir_state::frozen::{FrozenTable, HashedRow, Placed, RowRef};
use weir_state::key_hash::hash_keys;
use weir_state::manifest::{Manifest, publish_manifest};
use weir_state::store::LocalDirectory;
use weir_state::write_tables;
use weir_types::ids::{BarrierId, ClusterId, JobId, Nonce, Parallelism, SnapshotId};
use weir_types::key_range::subtask_of;
use weir_types::snapshot::{OperatorSnapshot, SnapshotKind, SplitPosition};
use weir_types::time::Millis;

/// The window aggregate. It begins with digits, as uids do, and has an `e` among them, as numbers do.
pub(crate) const WINDOW: &str = "12e45678deadbeef";
/// The source.
pub(crate) const SOURCE: &str = "ab00000000000001";

/// (count, total) by (window start, sensor).
pub(crate) type State = BTreeMap<(i64, String), (i64, i64)>;

pub(crate) fn state(windows: i64, sensors: i64) -> State {
    let rows = (0..windows).flat_map(|window| (0..sensors).map(move |sensor| (window, sensor)));
    rows.map(|(window, sensor)| ((window * 1000, format!("s{sensor}")), (sensor + 1, window * 10 + sensor))).collect()
}

/// Writes a snapshot of this state, as of so many subtasks.
pub(crate) fn write(directory: &Path, id: &str, state: &State, subtasks: u32, read: u64) -> Snapshot {
    let store = LocalDirectory::new(directory);
    let parallelism = Parallelism::new(subtasks).unwrap();
    let mut parts: BTreeMap<u32, State> = (0..subtasks).map(|index| (index, State::new())).collect();
    for (key, value) in state {
        let sensor: ArrayRef = Arc::new(StringArray::from(vec![key.1.clone()]));
        let mut hashes = Vec::new();
        hash_keys(&[sensor], &mut hashes).unwrap();
        parts.get_mut(&subtask_of(hashes[0], parallelism).0).unwrap().insert(key.clone(), *value);
    }
    let mut operators: Vec<OperatorSnapshot> = parts
        .iter()
        .map(|(index, rows)| OperatorSnapshot {
            uid: WINDOW.to_owned(),
            watermark_ms: 999,
            files: write_tables(vec![table(rows)], &store, &format!("state-1-{index}-a1-o0")).unwrap(),
            splits: Vec::new(),
            prepared: None,
        })
        .collect();
    let split = |name: &str, offset: u64, finished: bool| SplitPosition {
        split: name.to_owned(),
        offset,
        end: finished.then_some(offset),
        watermark_ms: 1_000 + i64::try_from(offset).unwrap(),
        finished,
    };
    operators.push(OperatorSnapshot {
        uid: SOURCE.to_owned(),
        watermark_ms: i64::MIN,
        files: Vec::new(),
        splits: vec![split("p-0", read, false), split("p-1", 7, true)],
        prepared: None,
    });
    let manifest = Manifest {
        cluster: ClusterId::new("c").unwrap(),
        job: JobId::new("j").unwrap(),
        job_name: "totals".to_owned(),
        snapshot: SnapshotId::new(id).unwrap(),
        kind: SnapshotKind::Savepoint,
        barrier: BarrierId(3),
        nonce: Nonce(id.to_owned()),
        created_at: Millis(1_767_225_600_000),
        parallelism,
        graph_hash: "00ff".to_owned(),
        query: None,
        operators,
    };
    publish_manifest(&store, &manifest).unwrap();
    open(directory).unwrap()
}

pub(crate) fn open(directory: &Path) -> weir_types::Result<Snapshot> {
    Snapshot::open(directory.to_str().unwrap())
}

fn table(rows: &State) -> FrozenTable {
    let instant = DataType::Timestamp(TimeUnit::Millisecond, None);
    let mut start = state_field("slice_start", Role::MapKey, "window_start", instant, false);
    start.metadata_mut().insert(SPAN_MS.to_owned(), "1000".to_owned());
    let fields = vec![
        start,
        state_field("key0", Role::Key, "sensor", DataType::Utf8, true),
        state_field("agg0.count", Role::Value, "n", DataType::Int64, false),
        state_field("agg1.value", Role::Value, "total", DataType::Int64, true),
    ];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.keys().map(|key| Some(key.0)).collect::<TimestampMillisecondArray>()),
        Arc::new(rows.keys().map(|key| Some(key.1.clone())).collect::<StringArray>()),
        Arc::new(rows.values().map(|value| value.0).collect::<Int64Array>()),
        Arc::new(rows.values().map(|value| Some(value.1)).collect::<Int64Array>()),
    ];
    frozen("groups", &RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap(), 1)
}

/// A table of rows that are keyed by one column.
fn frozen(name: &str, batch: &RecordBatch, key: usize) -> FrozenTable {
    let mut hashes = Vec::new();
    hash_keys(&[Arc::clone(batch.column(key))], &mut hashes).unwrap();
    let hashed = |(slot, hash)| HashedRow { hash, row: RowRef { segment: 0, slot } };
    let listed: Vec<HashedRow> = (0..).zip(hashes).map(hashed).collect();
    let mut table = FrozenTable::of_rows(name, move |show| show(&listed));
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = Arc::clone(column);
        let gather = move |placed: Placed<'_>| {
            let mut slots = vec![0; placed.rows.len()];
            for (row, &place) in placed.rows.iter().zip(placed.places) {
                slots[place as usize] = row.row.slot;
            }
            Ok(take(&column, &UInt32Array::from(slots), None).unwrap())
        };
        table = table.with_column(Field::clone(field), Box::new(gather));
    }
    table
}
