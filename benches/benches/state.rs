//! State of one million BIGINT keys with a count each: key hashing and look-up per row, the synchronous part of a snapshot
//! (handles only), the asynchronous part (sort, compress, write, sync), and reading it back.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_state::frozen::{FrozenTable, key_column, word_column};
use weir_state::key_hash::{hash_keys, hash_values};
use weir_state::keys::KeyTable;
use weir_state::memory::uncounted;
use weir_state::pages::Pages;
use weir_state::restore::RestoredOperator;
use weir_state::store::LocalDirectory;
use weir_state::values::{Form, Values};
use weir_state::{Since, write_tables};
use weir_types::key_range::KeyRange;
use weir_types::snapshot::OperatorSnapshot;

const KEYS: usize = 1_000_000;
const BATCH_ROWS: usize = 8192;

struct State {
    keys: KeyTable,
    counts: Pages<i64>,
}

fn fill() -> State {
    let mut state = State { keys: KeyTable::new(&[Form::Word], 0), counts: Pages::new() };
    let (mut hashes, mut slots) = (Vec::new(), Vec::new());
    let all: Vec<i64> = (0..KEYS as i64).map(|key| key.wrapping_mul(7919)).collect();
    for chunk in all.chunks(BATCH_ROWS) {
        let column: ArrayRef = Arc::new(Int64Array::from(chunk.to_vec()));
        let values = [Values::for_key(&column).unwrap()];
        hash_values(&values, chunk.len(), &mut hashes);
        let rows: Vec<u32> = (0..chunk.len() as u32).collect();
        state.keys.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap();
        state.counts.grow(state.keys.slots(), &1);
    }
    state
}

fn freeze(state: &mut State) -> FrozenTable {
    let (keys, counts) =
        (Arc::new(vec![state.keys.freeze(Since::Start, &uncounted())]), state.counts.freeze(&uncounted()));
    FrozenTable::of_keys("counts", &keys)
        .with_column(
            Field::new("key", DataType::Int64, true),
            key_column(&DataType::Int64, keys, 0, |row| row).unwrap(),
        )
        .with_column(
            Field::new("count", DataType::Int64, false),
            word_column(DataType::Int64, move |row| Some(*counts.get(row.slot))),
        )
}

fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state/keys");
    group.throughput(Throughput::Elements(BATCH_ROWS as u64));
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..BATCH_ROWS as i64));
    let mut hashes = Vec::new();
    group.bench_function("hash one BIGINT", |bencher| {
        bencher.iter(|| hash_keys(black_box(std::slice::from_ref(&column)), &mut hashes).unwrap());
    });
    let two = [Arc::clone(&column), column];
    group
        .bench_function("hash two BIGINT", |bencher| bencher.iter(|| hash_keys(black_box(&two), &mut hashes).unwrap()));
    let mut state = fill();
    let step = KEYS / BATCH_ROWS;
    let scattered = (0..BATCH_ROWS).map(|row| (row * step) as i64 * 7919);
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(scattered));
    let values = [Values::for_key(&column).unwrap()];
    let rows: Vec<u32> = (0..BATCH_ROWS as u32).collect();
    let mut slots = Vec::new();
    hash_values(&values, BATCH_ROWS, &mut hashes);
    group.bench_function("look up among a million", |bencher| {
        bencher.iter(|| state.keys.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap());
    });
    group.finish();
}

fn snapshot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state/snapshot of a million keys");
    group.sample_size(10);
    let mut state = fill();
    group.bench_function("synchronous part", |bencher| bencher.iter(|| black_box(freeze(&mut state))));
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let mut number = 0;
    let mut files = Vec::new();
    group.bench_function("asynchronous part", |bencher| {
        bencher.iter(|| {
            number += 1;
            files = write_tables(vec![freeze(&mut state)], &store, &format!("s{number}")).unwrap();
        });
    });
    println!("{} rows in {} bytes, {} blocks", files[0].rows, files[0].bytes, files[0].blocks.len());
    let part = OperatorSnapshot { uid: "w".to_owned(), watermark_ms: 0, files, splits: Vec::new(), prepared: None };
    group.bench_function("reading back", |bencher| {
        bencher
            .iter(|| RestoredOperator::load(&store, std::slice::from_ref(&part), KeyRange::FULL).unwrap().tables.len());
    });
    group.finish();
}

criterion_group!(benches, keys, snapshot);
criterion_main!(benches);
