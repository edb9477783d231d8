//! How fast whole snapshots of a state table are written and read back, by the width of its rows, beside what the disk itself
//! takes one after the other in the same minute. One thread writes, nothing else runs; no barriers, no grants.
//!
//! `cargo run --release -p weir-state --example savepoint -- [ROWS [DIRECTORY [WIDTH]]]` prints a table; medians of five rounds, each
//! of which writes a snapshot and then as many bytes of noise, both fsynced.

#![expect(clippy::unwrap_used, reason = "a measurement that fails may panic")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, TimeUnit};
use weir_state::frozen::{FrozenTable, bytes_cells, key_column, word_cells, word_column};
use weir_state::key_hash::hash_values;
use weir_state::keys::KeyTable;
use weir_state::memory::uncounted;
use weir_state::pages::Pages;
use weir_state::store::{LocalDirectory, SnapshotStore};
use weir_state::values::{Form, Values};
use weir_state::{RestoredOperator, Since, delete_files, write_tables};
use weir_types::key_range::KeyRange;
use weir_types::snapshot::{OperatorSnapshot, StateFile};

const ROUNDS: usize = 5;
const BATCH_ROWS: usize = 8192;
const WORDS: [&str; 16] = [
    "auction",
    "bid",
    "winter",
    "of",
    "the",
    "harbour",
    "seven",
    "reserve",
    "category",
    "lamp",
    "quiet",
    "an",
    "river",
    "closing",
    "offer",
    "porcelain",
];

/// The values of a row beside its key, which is a BIGINT.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Numbers; the first is a small count, the others have any bits.
    numbers: usize,
    /// Bytes of a text.
    text: usize,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "16 bytes: key and count", numbers: 1, text: 0 },
    Shape { name: "64 bytes: key, count, six sums", numbers: 7, text: 0 },
    Shape { name: "256 bytes: key, count, four sums, a text of 208", numbers: 5, text: 208 },
];

struct State {
    keys: KeyTable,
    numbers: Vec<Pages<i64>>,
    texts: Option<Pages<Option<Arc<[u8]>>>>,
}

/// Bits that look like noise (splitmix64).
fn noise(number: u64) -> u64 {
    let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn text(row: u64, bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 16);
    let mut seed = row;
    while text.len() < bytes {
        seed = noise(seed + 1);
        text.extend_from_slice(WORDS[(seed % WORDS.len() as u64) as usize].as_bytes());
        text.extend_from_slice(format!(" {} ", seed >> 44).as_bytes());
    }
    text.truncate(bytes);
    text
}

fn fill(shape: Shape, rows: usize) -> State {
    let mut keys = KeyTable::new(&[Form::Word], rows);
    let (mut hashes, mut slots) = (Vec::new(), Vec::new());
    let all: Vec<i64> = (0..rows as i64).collect();
    for chunk in all.chunks(BATCH_ROWS) {
        let column: ArrayRef = Arc::new(Int64Array::from(chunk.to_vec()));
        let values = [Values::for_key(&column).unwrap()];
        hash_values(&values, chunk.len(), &mut hashes);
        let rows: Vec<u32> = (0..chunk.len() as u32).collect();
        keys.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap();
    }
    let number = |column: usize| {
        let mut pages = Pages::new();
        let value = |row: u64| if column == 0 { noise(row) % 20 } else { noise(row * 8 + column as u64) };
        (0..rows as u64).for_each(|row| pages.push(value(row) as i64));
        pages
    };
    let numbers = (0..shape.numbers).map(number).collect();
    let texts = (shape.text > 0).then(|| {
        let mut pages = Pages::new();
        (0..rows as u64).for_each(|row| pages.push(Some(text(row, shape.text).into())));
        pages
    });
    State { keys, numbers, texts }
}

fn freeze(state: &mut State) -> FrozenTable {
    let keys = Arc::new(vec![state.keys.freeze(Since::Start, &uncounted())]);
    let instant = DataType::Timestamp(TimeUnit::Millisecond, None);
    let mut table = FrozenTable::of_keys("groups", &keys)
        .with_column(
            Field::new("slice_start", instant.clone(), false),
            word_column(instant, |_| Some(1_700_000_000_000)),
        )
        .with_column(
            Field::new("key", DataType::Int64, true),
            key_column(&DataType::Int64, keys, 0, |row| row).unwrap(),
        );
    for (number, pages) in state.numbers.iter_mut().enumerate() {
        let frozen = Arc::new(vec![pages.freeze(&uncounted())]);
        let gather = word_cells(DataType::Int64, frozen, |word| Some(*word));
        table = table.with_column(Field::new(format!("number{number}"), DataType::Int64, false), gather);
    }
    if let Some(texts) = &mut state.texts {
        let gather = bytes_cells(DataType::Utf8, Arc::new(vec![texts.freeze(&uncounted())]), |text| text.as_deref());
        table = table.with_column(Field::new("text", DataType::Utf8, true), gather);
    }
    table
}

/// What the disk takes, in bytes a second: noise in pieces of a megabyte, then fsync.
fn disk(directory: &Path, bytes: u64) -> f64 {
    let piece: Vec<u8> = (0..131_072).flat_map(|number| noise(number).to_le_bytes()).collect();
    let path = directory.join("noise");
    let started = Instant::now();
    let mut file = File::create(&path).unwrap();
    let mut left = bytes as usize;
    while left > 0 {
        let some = left.min(piece.len());
        file.write_all(&piece[..some]).unwrap();
        left -= some;
    }
    file.sync_all().unwrap();
    let taken = started.elapsed();
    std::fs::remove_file(&path).unwrap();
    bytes as f64 / taken.as_secs_f64()
}

/// How long this thread has had a core, the kernel's work for it included.
fn computed_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rows: usize = arguments.next().map_or(5_000_000, |rows| rows.parse().unwrap());
    let root = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    println!(
        "| {rows} rows | s | ns a row | of the core | MB | MB/s | plain MB/s | disk MB/s | of the disk | read back, ms |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let width = arguments.next().unwrap_or_default();
    for shape in SHAPES.into_iter().filter(|shape| shape.name.starts_with(&width)) {
        let directory = tempfile::tempdir_in(&root).unwrap();
        let store = LocalDirectory::new(directory.path().join("snapshot"));
        let rows = rows / (1 + shape.text / 50);
        let mut state = fill(shape, rows);
        let (mut times, mut cores, mut disks, mut reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        for round in 0..ROUNDS {
            let frozen = freeze(&mut state);
            let (started, computing) = (Instant::now(), computed_ns());
            let files: Vec<StateFile> = write_tables(vec![frozen], &store, &format!("s{round}")).unwrap();
            times.push(started.elapsed());
            cores.push(computed_ns() - computing);
            bytes = files[0].bytes;
            assert_eq!(files[0].rows, rows as u64);
            disks.push(disk(directory.path(), bytes));
            let (uid, splits) = ("w".to_owned(), Vec::new());
            let part = OperatorSnapshot { uid, watermark_ms: 0, files, splits, prepared: None };
            let started = Instant::now();
            let restored = RestoredOperator::load(&store, std::slice::from_ref(&part), KeyRange::FULL).unwrap();
            reads.push(started.elapsed());
            drop(restored);
            delete_files(&store, &part.files).unwrap();
            store.prepare().unwrap();
        }
        let (time, disk, read): (Duration, f64, Duration) = (median(times), median(disks), median(reads));
        let plain = rows * (24 + 8 * shape.numbers + shape.text);
        let rate = bytes as f64 / time.as_secs_f64();
        println!(
            "| {} ({rows}) | {:.3} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.2} | {:.0} |",
            shape.name,
            time.as_secs_f64(),
            time.as_nanos() as f64 / rows as f64,
            median(cores) as f64 / rows as f64,
            bytes as f64 / 1e6,
            rate / 1e6,
            plain as f64 / time.as_secs_f64() / 1e6,
            disk / 1e6,
            rate / disk,
            read.as_secs_f64() * 1e3,
        );
    }
}
