//! The merged view of a table: later files replace rows of earlier ones, whatever blocks they lie in.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type, UInt64Type};
use weir_state::columns::{Role, state_field};
use weir_state::frozen::{FrozenTable, HashedRow, RowRef, word_column};
use weir_state::store::{LocalDirectory, SnapshotStore};
use weir_state::{TableReader, write_tables};
use weir_types::Code;
use weir_types::key_range::KeyRange;
use weir_types::snapshot::OperatorSnapshot;

type Rows = BTreeMap<(u64, i64), i64>;

/// A table of (hash, map key) with a value.
fn table_of(rows: &Rows) -> FrozenTable {
    let rows: Vec<((u64, i64), i64)> = rows.iter().map(|(key, value)| (*key, *value)).collect();
    let listed: Vec<HashedRow> = (0..)
        .zip(&rows)
        .map(|(slot, ((hash, _), _))| HashedRow { hash: *hash, row: RowRef { segment: 0, slot } })
        .collect();
    let values = rows.clone();
    FrozenTable::of_rows("t", move |show| show(&listed))
        .with_column(
            state_field("key", Role::MapKey, "key", DataType::Int64, false),
            word_column(DataType::Int64, move |row| Some(rows[row.slot as usize].0.1)),
        )
        .with_column(
            state_field("value", Role::Value, "value", DataType::Int64, false),
            word_column(DataType::Int64, move |row| Some(values[row.slot as usize].1)),
        )
}

fn part(store: &dyn SnapshotStore, name: &str, runs: &[Rows]) -> OperatorSnapshot {
    let files = (0..).zip(runs).flat_map(|(number, run): (u32, _)| {
        write_tables(vec![table_of(run)], store, &format!("{name}-{number}")).unwrap()
    });
    OperatorSnapshot { uid: "o".to_owned(), watermark_ms: 0, files: files.collect(), splits: vec![], prepared: None }
}

fn read(store: &dyn SnapshotStore, parts: &[OperatorSnapshot], range: KeyRange) -> Vec<((u64, i64), i64)> {
    let mut rows = Vec::new();
    let Some(reader) = TableReader::open(store, parts, "t", range).unwrap() else { return rows };
    for batch in reader {
        let batch = batch.unwrap();
        let hashes = batch.column(0).as_primitive::<UInt64Type>();
        let keys = batch.column(1).as_primitive::<Int64Type>();
        let values = batch.column(2).as_primitive::<Int64Type>();
        rows.extend((0..batch.num_rows()).map(|row| ((hashes.value(row), keys.value(row)), values.value(row))));
    }
    rows
}

/// Runs of a subtask: the first has every even hash below `hashes`, the others change and add some.
fn runs(first: u64, hashes: u64) -> Vec<Rows> {
    let all = (first..first + hashes).step_by(2).flat_map(|hash| (0..3).map(move |key| ((hash, key), hash as i64)));
    let some = |step: usize, sign: i64| {
        (first..first + hashes)
            .step_by(step)
            .map(move |hash| ((hash, (hash % 4) as i64), sign.wrapping_mul(hash as i64)))
            .collect()
    };
    vec![all.collect(), some(7, -1), some(3, 2), some(1001, 3)]
}

#[test]
fn the_newest_row_of_every_key_comes_in_the_order_of_hashes() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let (low, high) = (runs(0, 50_000), runs(1 << 63, 20_000));
    let parts = [part(&store, "high", &high), part(&store, "low", &low)];
    let merged: Rows = low.into_iter().chain(high).flatten().collect();
    let expected: Vec<_> = merged.iter().map(|(key, value)| (*key, *value)).collect();
    let mut found = read(&store, &parts, KeyRange::FULL);
    assert!(found.is_sorted_by_key(|((hash, _), _)| *hash));
    found.sort_unstable();
    assert_eq!(found, expected);

    for (start, end) in [(0, 0), (1, 1), (100, 30_000), (40_000, u64::MAX), (1 << 62, 1 << 62)] {
        let range = KeyRange::new(start, end).unwrap();
        let mut found = read(&store, &parts, range);
        found.sort_unstable();
        assert_eq!(found, merged.range((start, i64::MIN)..=(end, i64::MAX)).map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
    }
}

#[test]
fn a_projection_still_replaces_by_the_columns_that_it_leaves_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let runs = runs(0, 1000);
    let parts = [part(&store, "p", &runs)];
    let reader = TableReader::open(&store, &parts, "t", KeyRange::FULL).unwrap().unwrap().project(&[2]).unwrap();
    let mut values: Vec<i64> =
        reader.flat_map(|batch| batch.unwrap().column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    values.sort_unstable();
    let mut expected: Vec<i64> = runs.into_iter().flatten().collect::<Rows>().into_values().collect();
    expected.sort_unstable();
    assert_eq!(values, expected);
}

#[test]
fn shared_files_lie_beside_the_snapshots_and_names_lead_nowhere_else() {
    let job = tempfile::tempdir().unwrap();
    let (one, two) = (LocalDirectory::new(job.path().join("chk-1")), LocalDirectory::new(job.path().join("chk-2")));
    let shared = part(&one, "../shared/chk-1+s", &runs(0, 10));
    assert_eq!(shared.files[0].path, "../shared/chk-1+s-0-t.state.arrow");
    assert!(job.path().join("shared/chk-1+s-0-t.state.arrow").is_file());
    assert!(!job.path().join("chk-1").exists());
    assert_eq!(read(&two, std::slice::from_ref(&shared), KeyRange::FULL).len(), 18);
    for name in ["../shared/../x", "../shared/", "../shared/.x", "../other/x", "../x", ".x", "a/b"] {
        assert_eq!(two.open(name).err().unwrap().code, Code::Corrupt, "{name}");
        assert_eq!(two.create(name).err().unwrap().code, Code::Corrupt, "{name}");
    }
    assert_eq!(two.delete("../shared/../shared/chk-1+s-0-t.state.arrow").unwrap_err().code, Code::Corrupt);
    two.delete(&shared.files[0].path).unwrap();
    assert_eq!(TableReader::open(&one, &[shared], "t", KeyRange::FULL).err().unwrap().code, Code::NotFound);
}
