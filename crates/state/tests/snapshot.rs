//! Snapshot files and manifests: what is written is read back at any parallelism; damage is named, never overlooked.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, UInt64Type};
use proptest::prelude::*;
use weir_state::Since;
use weir_state::file::{write_tables, write_tables_while};
use weir_state::frozen::{FrozenTable, HashedRow, RowRef, key_column, word_column};
use weir_state::key_hash::hash_values;
use weir_state::keys::KeyTable;
use weir_state::manifest::{
    AbortMarker, AbortOutcome, MANIFEST, Manifest, abort_manifest, delete_snapshot, publish_manifest, read_manifest,
    verify_snapshot,
};
use weir_state::memory::uncounted;
use weir_state::pages::Pages;
use weir_state::restore::RestoredOperator;
use weir_state::store::{LocalDirectory, SnapshotStore, open_store};
use weir_state::values::{Form, Values};
use weir_state::verify::verify;
use weir_types::ids::{BarrierId, ClusterId, JobId, Nonce, Parallelism, SnapshotId, SubtaskIndex};
use weir_types::key_range::{KeyRange, subtask_of};
use weir_types::snapshot::{OperatorSnapshot, SnapshotKind, StateFile};
use weir_types::time::Millis;
use weir_types::{Code, Error};

type Rows = BTreeMap<(i64, Option<String>), i64>;

/// A table keyed by (number, text) with one count per key, as an operator holds it.
fn table_of<'a>(rows: impl IntoIterator<Item = (&'a (i64, Option<String>), &'a i64)>) -> FrozenTable {
    let rows: Vec<_> = rows.into_iter().collect();
    let numbers: ArrayRef = Arc::new(rows.iter().map(|((number, _), _)| *number).collect::<Int64Array>());
    let texts: ArrayRef = Arc::new(rows.iter().map(|((_, text), _)| text.clone()).collect::<StringArray>());
    let keys = [Values::for_key(&numbers).unwrap(), Values::for_key(&texts).unwrap()];
    let (mut hashes, mut slots) = (Vec::new(), Vec::new());
    hash_values(&keys, rows.len(), &mut hashes);
    let mut table = KeyTable::new(&[Form::Word, Form::Bytes], 0);
    let all: Vec<u32> = (0..rows.len() as u32).collect();
    table.lookup_or_insert(&hashes, &keys, &all, &mut slots).unwrap();
    let mut counts = Pages::new();
    counts.grow(table.slots(), &0i64);
    for (slot, (_, count)) in slots.iter().zip(&rows) {
        *counts.get_mut(*slot) = **count;
    }
    let (frozen, counts) = (Arc::new(vec![table.freeze(Since::Start, &uncounted())]), counts.freeze(&uncounted()));
    FrozenTable::of_keys("counts", &frozen)
        .with_column(
            Field::new("number", DataType::Int64, false),
            key_column(&DataType::Int64, frozen.clone(), 0, |row| row).unwrap(),
        )
        .with_column(
            Field::new("text", DataType::Utf8, true),
            key_column(&DataType::Utf8, frozen.clone(), 1, |row| row).unwrap(),
        )
        .with_column(
            Field::new("count", DataType::Int64, false),
            word_column(DataType::Int64, move |row| Some(*counts.get(row.slot))),
        )
}

fn rows_of(restored: &RestoredOperator, range: KeyRange) -> Rows {
    let mut rows = Rows::new();
    for batch in restored.tables.values().flat_map(|table| &table.batches) {
        let hashes = batch.column(0).as_primitive::<UInt64Type>();
        let texts = batch.column(2).as_string::<i32>();
        for row in 0..batch.num_rows() {
            assert!(range.contains(hashes.value(row)));
            let text = texts.is_valid(row).then(|| texts.value(row).to_owned());
            let key = (batch.column(1).as_primitive::<Int64Type>().value(row), text);
            assert_eq!(rows.insert(key, batch.column(3).as_primitive::<Int64Type>().value(row)), None);
        }
    }
    rows
}

/// Writes `rows` as the state of `p` subtasks.
fn write(store: &dyn SnapshotStore, rows: &Rows, p: u32) -> Vec<OperatorSnapshot> {
    let p = Parallelism::new(p).unwrap();
    let mut subtasks: BTreeMap<SubtaskIndex, Rows> = BTreeMap::new();
    for (key, count) in rows {
        let columns: [ArrayRef; 2] =
            [Arc::new(Int64Array::from(vec![key.0])), Arc::new(StringArray::from(vec![key.1.clone()]))];
        let mut hashes = Vec::new();
        weir_state::key_hash::hash_keys(&columns, &mut hashes).unwrap();
        subtasks.entry(subtask_of(hashes[0], p)).or_default().insert(key.clone(), *count);
    }
    let write = |(index, rows): (SubtaskIndex, Rows)| OperatorSnapshot {
        uid: "w".to_owned(),
        watermark_ms: 17,
        files: write_tables(vec![table_of(&rows)], store, &format!("c1-{index}-a1")).unwrap(),
        splits: Vec::new(),
        prepared: None,
    };
    subtasks.into_iter().map(write).collect()
}

fn sample(keys: i64) -> Rows {
    (0..keys).map(|i| ((i * 37 % 1009 + i, (i % 5 != 0).then(|| "x".repeat(i as usize % 40))), i)).collect()
}

fn manifest(operators: Vec<OperatorSnapshot>, nonce: &str) -> Manifest {
    Manifest {
        cluster: ClusterId::new("c").unwrap(),
        job: JobId::new("j").unwrap(),
        job_name: "count".to_owned(),
        snapshot: SnapshotId::new(format!("sp-{nonce}")).unwrap(),
        kind: SnapshotKind::Savepoint,
        barrier: BarrierId(3),
        nonce: Nonce(nonce.to_owned()),
        created_at: Millis(5),
        parallelism: Parallelism::new(2).unwrap(),
        graph_hash: "00".to_owned(),
        query: Some("INSERT …".to_owned()),
        operators,
    }
}

fn marker(nonce: &str) -> AbortMarker {
    AbortMarker {
        snapshot: SnapshotId::new("sp-x").unwrap(),
        nonce: Nonce(nonce.to_owned()),
        reason: "late".to_owned(),
    }
}

fn only_file(subtasks: &[OperatorSnapshot]) -> &StateFile {
    match subtasks {
        [OperatorSnapshot { files, .. }] => &files[0],
        _ => panic!("one subtask expected"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rescaling_gives_every_row_to_exactly_one_subtask(
        rows in prop::collection::btree_map((any::<i64>(), prop::option::of("[a-cä]{0,20}")), any::<i64>(), 0..300),
        p in 1u32..6,
        q in 1u32..9,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalDirectory::new(directory.path());
        let subtasks = write(&store, &rows, p);
        let q = Parallelism::new(q).unwrap();
        let mut union = Rows::new();
        for index in 0..q.get() {
            let range = KeyRange::of_subtask(SubtaskIndex(index), q).unwrap();
            let restored = RestoredOperator::load(&store, &subtasks, range).unwrap();
            for (key, count) in rows_of(&restored, range) {
                prop_assert_eq!(union.insert(key, count), None);
            }
        }
        prop_assert_eq!(union, rows);
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed(position in 0.0..1.0f64, bit in 0u8..8) {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalDirectory::new(directory.path());
        let subtasks = write(&store, &sample(300), 1);
        publish_manifest(&store, &manifest(subtasks.clone(), "n")).unwrap();
        verify_snapshot(&store).unwrap();
        let path = directory.path().join(&only_file(&subtasks).path);
        let mut bytes = fs::read(&path).unwrap();
        let at = (bytes.len() as f64 * position) as usize;
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        for error in [
            RestoredOperator::load(&store, &subtasks, KeyRange::FULL).unwrap_err(),
            verify_snapshot(&store).unwrap_err(),
        ] {
            prop_assert_eq!(error.code, Code::Corrupt);
            prop_assert!(error.message.contains(path.to_str().unwrap()) && error.message.contains("offset"), "{}", error);
        }
    }

    #[test]
    fn no_flipped_bit_in_a_manifest_goes_unnoticed(position in 0.0..1.0f64, bit in 0u8..8) {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalDirectory::new(directory.path());
        let written = manifest(write(&store, &sample(3), 1), "n");
        publish_manifest(&store, &written).unwrap();
        let path = directory.path().join(MANIFEST);
        let mut bytes = fs::read(&path).unwrap();
        let at = (bytes.len() as f64 * position) as usize;
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        // White space may change without harm; nothing else may.
        match read_manifest(&store) {
            Ok(read) => prop_assert_eq!(read, written),
            Err(error) => prop_assert!(matches!(error.code, Code::Corrupt | Code::Unsupported), "{}", error),
        }
    }
}

#[test]
fn only_blocks_that_overlap_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let rows = sample(100_000);
    let subtasks = write(&store, &rows, 1);
    let file = only_file(&subtasks);
    assert_eq!((file.rows, file.blocks.len()), (100_000, 4));
    // Damage the last block: the lower half of the space does not need it.
    let path = directory.path().join(&file.path);
    let mut bytes = fs::read(&path).unwrap();
    bytes[file.blocks[3].offset as usize + 2000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let half = |index| KeyRange::of_subtask(SubtaskIndex(index), Parallelism::new(2).unwrap()).unwrap();
    let lower = RestoredOperator::load(&store, &subtasks, half(0)).unwrap();
    assert_eq!(lower.watermark_ms, 17);
    assert!(rows_of(&lower, half(0)).len() > 49_000);
    let error = RestoredOperator::load(&store, &subtasks, half(1)).unwrap_err();
    assert_eq!(error.code, Code::Corrupt);
    assert!(error.message.ends_with(&format!("offset {}", file.blocks[3].offset)), "{error}");
}

#[test]
fn a_missing_or_short_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let subtasks = write(&store, &sample(100), 1);
    let path = directory.path().join(&only_file(&subtasks).path);
    let load = || RestoredOperator::load(&store, &subtasks, KeyRange::FULL).unwrap_err();
    let bytes = fs::read(&path).unwrap();
    for len in [bytes.len() - 1, 100, 8, 0] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert_eq!(load().code, Code::Corrupt, "{len}");
    }
    fs::remove_file(&path).unwrap();
    let error: Error = load();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.contains(path.to_str().unwrap()) && error.hint.is_some(), "{error}");
}

#[test]
fn a_snapshot_can_be_moved() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("a/b/sp-1"), directory.path().join("moved"));
    let store = LocalDirectory::new(&from);
    let rows = sample(50);
    publish_manifest(&store, &manifest(write(&store, &rows, 2), "n")).unwrap();
    fs::rename(&from, &to).unwrap();
    let store = open_store(&format!("file://{}", to.display())).unwrap();
    let manifest = verify_snapshot(store.as_ref()).unwrap();
    assert_eq!(manifest.totals().rows, 50);
    let restored = RestoredOperator::load(store.as_ref(), &manifest.operator(&"w".to_owned()), KeyRange::FULL).unwrap();
    assert_eq!(rows_of(&restored, KeyRange::FULL), rows);
}

#[test]
fn snapshots_of_earlier_versions_can_be_read() {
    let store = LocalDirectory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1"));
    let read = verify_snapshot(&store).unwrap();
    assert_eq!(read, manifest(read.operators.clone(), "fixture"));
    for p in 1..4 {
        let mut union = Rows::new();
        for index in 0..p {
            let range = KeyRange::of_subtask(SubtaskIndex(index), Parallelism::new(p).unwrap()).unwrap();
            let restored = RestoredOperator::load(&store, &read.operator(&"w".to_owned()), range).unwrap();
            union.extend(rows_of(&restored, range));
        }
        assert_eq!(union, sample(40));
    }
}

#[test]
fn files_are_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let rows = sample(10);
    write(&store, &rows, 1);
    let error = write_tables(vec![table_of(&rows)], &store, "c1-0-a1").unwrap_err();
    assert_eq!(error.code, Code::AlreadyExists);
}

/// A table of one row.
fn other_table() -> FrozenTable {
    FrozenTable::of_rows("other", |show| show(&[HashedRow { hash: 1, row: RowRef { segment: 0, slot: 0 } }]))
}

#[test]
fn a_snapshot_that_is_given_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let store = LocalDirectory::new(&path);
    let tables = || vec![table_of(&sample(10)), FrozenTable::of_rows("empty", |_| {}), other_table()];
    // Asked before each of three tables and before the one block of two: given up at every point there is.
    for wanted_times in 0..5 {
        let asked = Cell::new(0);
        let wanted = || asked.replace(asked.get() + 1) < wanted_times;
        let error = write_tables_while(tables(), &store, "a1", &wanted).unwrap_err();
        assert_eq!((error.code, asked.get()), (Code::Cancelled, wanted_times + 1));
        assert!(!path.exists(), "given up when asked for the {wanted_times}th time");
    }
}

#[test]
fn a_directory_that_was_swept_during_a_snapshot_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let store = LocalDirectory::new(&path);
    let sweep = || {
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
        true
    };
    let error = write_tables_while(vec![table_of(&sample(10)), other_table()], &store, "a1", &sweep).unwrap_err();
    assert_eq!(error.code, Code::Io, "{error}");
    assert!(!path.exists());
}

#[test]
fn a_failed_write_spares_the_files_that_were_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path().join("chk-1"));
    let before = write_tables(vec![table_of(&sample(10))], &store, "a1").unwrap();
    let error = write_tables(vec![other_table(), table_of(&sample(10))], &store, "a1").unwrap_err();
    assert_eq!(error.code, Code::AlreadyExists);
    assert_eq!(store.list().unwrap(), [before[0].path.as_str()]);
}

#[test]
fn an_empty_table_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path().join("none"));
    assert_eq!(write_tables(vec![table_of(&Rows::new())], &store, "x").unwrap(), []);
    assert!(!directory.path().join("none").exists());
}

#[test]
fn the_manifest_goes_to_whoever_is_first() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| LocalDirectory::new(directory.path().join(name));

    let store = at("published");
    let ours = manifest(Vec::new(), "ours");
    publish_manifest(&store, &ours).unwrap();
    publish_manifest(&store, &ours).unwrap();
    assert_eq!(publish_manifest(&store, &manifest(Vec::new(), "theirs")).unwrap_err().code, Code::AlreadyExists);
    assert_eq!(abort_manifest(&store, &marker("ours")).unwrap(), AbortOutcome::Published(Box::new(ours.clone())));
    assert_eq!(abort_manifest(&store, &marker("theirs")).unwrap_err().code, Code::AlreadyExists);
    assert_eq!(read_manifest(&store).unwrap(), ours);

    let store = at("aborted");
    assert_eq!(abort_manifest(&store, &marker("ours")).unwrap(), AbortOutcome::Aborted);
    assert_eq!(abort_manifest(&store, &marker("ours")).unwrap(), AbortOutcome::Aborted);
    assert_eq!(publish_manifest(&store, &ours).unwrap_err().code, Code::FailedPrecondition);
    assert_eq!(read_manifest(&store).unwrap_err().code, Code::FailedPrecondition);

    assert_eq!(read_manifest(&at("nothing")).unwrap_err().code, Code::NotFound);
}

#[test]
fn deletion_takes_the_manifest_first_and_spares_strangers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sp");
    let store = LocalDirectory::new(&path);
    publish_manifest(&store, &manifest(write(&store, &sample(10), 2), "n")).unwrap();
    fs::write(path.join("export.arrow"), "mine").unwrap();
    fs::write(path.join(".manifest.json.77.tmp"), "{").unwrap();
    assert!(!delete_snapshot(&store).unwrap());
    assert_eq!(store.list().unwrap(), ["export.arrow"]);
    fs::remove_file(path.join("export.arrow")).unwrap();
    assert!(delete_snapshot(&store).unwrap());
    assert!(delete_snapshot(&store).unwrap(), "deleting again is no error");
    assert!(!Path::new(&path).exists());
}

#[test]
fn manifests_of_strangers_cannot_reach_out_of_their_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path().join("sp"));
    let mut subtasks = write(&store, &sample(5), 1);
    subtasks[0].files[0].path = "../../etc/passwd".to_owned();
    let error = RestoredOperator::load(&store, &subtasks, KeyRange::FULL).unwrap_err();
    assert_eq!(error.code, Code::Corrupt);
}

#[test]
fn object_stores_are_refused_by_name() {
    let error = open_store("s3://bucket/x").err().unwrap();
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.message.contains("s3://"));
}

#[test]
fn verification_reports_everything_that_is_wrong_and_what_does_not_belong() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let subtasks = write(&store, &sample(900), 3);
    let files: Vec<StateFile> = subtasks.iter().flat_map(|part| part.files.clone()).collect();
    let written = manifest(subtasks, "n");
    publish_manifest(&store, &written).unwrap();
    fs::write(directory.path().join("notes.txt"), "mine").unwrap();
    let mut heard = 0;
    let whole = verify(&store, &mut |bytes| heard = bytes).unwrap();
    assert_eq!((whole.files_whole, whole.blocks_whole, whole.rows, whole.findings()), (3, 3, 900, 0));
    assert_eq!((whole.bytes_read, whole.foreign), (written.totals().bytes, vec!["notes.txt".to_owned()]));
    assert!(heard > 0);

    fs::remove_file(directory.path().join(&files[0].path)).unwrap();
    let path = directory.path().join(&files[2].path);
    let mut bytes = fs::read(&path).unwrap();
    bytes[files[2].blocks[0].offset as usize + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = verify(&store, &mut |_| {}).unwrap();
    let damage: Vec<_> = report.damage.iter().map(|damage| (damage.file.as_str(), damage.error.code)).collect();
    assert_eq!(damage, [(files[0].path.as_str(), Code::NotFound), (files[2].path.as_str(), Code::Corrupt)]);
    assert_eq!((report.files_whole, report.blocks_whole), (1, 1));
    bytes.truncate(bytes.len() - 10);
    fs::write(&path, &bytes).unwrap();
    let cut = verify(&store, &mut |_| {}).unwrap();
    assert_eq!(cut.findings(), 3, "the length and the block are wrong: {:?}", cut.damage);
}
