//! What snapshots hold in memory is counted: never less than they hold, and nothing once they are gone.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field};
use proptest::prelude::*;
use weir_state::frozen::{FrozenTable, bytes_cells, key_column};
use weir_state::key_hash::hash_values;
use weir_state::keys::KeyTable;
use weir_state::memory::{Memory, SnapshotMemory};
use weir_state::pages::{FrozenPages, Pages};
use weir_state::store::{LocalDirectory, SnapshotStore};
use weir_state::values::{Form, Values};
use weir_state::{Runs, Since, write_increment, write_tables};
use weir_types::{Code, Error, Result};

/// Counts, and has a limit.
#[derive(Debug)]
struct Counted {
    held: AtomicI64,
    most: AtomicI64,
    limit: i64,
}

impl Counted {
    fn new(limit: i64) -> Arc<Self> {
        Arc::new(Self { held: AtomicI64::new(0), most: AtomicI64::new(0), limit })
    }

    fn held(&self) -> i64 {
        self.held.load(Ordering::Relaxed)
    }
}

impl SnapshotMemory for Counted {
    fn add(&self, bytes: u64) {
        let held = self.held.fetch_add(bytes as i64, Ordering::Relaxed) + bytes as i64;
        self.most.fetch_max(held, Ordering::Relaxed);
    }

    fn sub(&self, bytes: u64) {
        assert!(
            self.held.fetch_sub(bytes as i64, Ordering::Relaxed) >= bytes as i64,
            "more is given back than was counted"
        );
    }

    fn check(&self) -> Result<()> {
        if self.held() <= self.limit { Ok(()) } else { Err(Error::new(Code::ResourceExhausted, "no room")) }
    }
}

const PAGE_SLOTS: usize = 4096;

/// Addresses and bytes of the pages of one version of the values.
fn pages_of<'a>(len: usize, get: impl Fn(u32) -> &'a u64) -> BTreeMap<usize, i64> {
    let page = |first: usize| {
        let bytes = (len - first).min(PAGE_SLOTS) * size_of::<u64>();
        (std::ptr::from_ref(get(first as u32)).addr(), bytes as i64)
    };
    (0..len).step_by(PAGE_SLOTS).map(page).collect()
}

/// Bytes of the values in pages that snapshots hold and the operator does not, the number of these pages, and how often
/// snapshots hold any page.
fn held_alone(pages: &Pages<u64>, snapshots: &[FrozenPages<u64>]) -> (i64, i64, i64) {
    let own: BTreeSet<usize> = pages_of(pages.len(), |slot| pages.get(slot)).into_keys().collect();
    let mut alone: BTreeMap<usize, i64> = BTreeMap::new();
    let mut handles = 0;
    for snapshot in snapshots {
        let pages = pages_of(snapshot.len(), |slot| snapshot.get(slot));
        handles += pages.len() as i64;
        for (address, bytes) in pages.into_iter().filter(|(address, _)| !own.contains(address)) {
            let known = alone.entry(address).or_default();
            *known = bytes.max(*known);
        }
    }
    (alone.values().sum(), alone.len() as i64, handles)
}

#[derive(Clone, Debug)]
enum Step {
    Write(prop::sample::Index),
    Grow(usize),
    Freeze,
    Drop(prop::sample::Index),
    Replace,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<prop::sample::Index>().prop_map(Step::Write),
        2 => (1_usize..6000).prop_map(Step::Grow),
        3 => Just(Step::Freeze),
        2 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => Just(Step::Replace),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn as_much_is_counted_as_snapshots_hold_alone_and_nothing_when_they_are_gone(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let counted = Counted::new(i64::MAX);
        let memory: Memory = Arc::clone(&counted) as Memory;
        let (mut pages, mut snapshots) = (Pages::<u64>::new(), Vec::new());
        for step in steps {
            match step {
                Step::Write(slot) if !pages.is_empty() => *pages.get_mut(slot.index(pages.len()) as u32) += 1,
                Step::Grow(by) => pages.grow(pages.len() + by, &7),
                Step::Freeze => snapshots.push(pages.freeze(&memory)),
                Step::Drop(which) if !snapshots.is_empty() => drop(snapshots.swap_remove(which.index(snapshots.len()))),
                // A window that fires takes its pages with it.
                Step::Replace => pages = Pages::new(),
                _ => {}
            }
            let (bytes, alone, handles) = held_alone(&pages, &snapshots);
            let least = bytes + handles * size_of::<usize>() as i64;
            // Beside the values: room that a page has left, and what describes pages and snapshots.
            let most = alone * 2 * (PAGE_SLOTS * size_of::<u64>()) as i64 + (handles + snapshots.len() as i64) * 100;
            prop_assert!((least..=most).contains(&counted.held()), "{least} <= {} <= {most}", counted.held());
        }
        drop(pages);
        let (alone, ..) = held_alone(&Pages::new(), &snapshots);
        prop_assert!(counted.held() >= alone);
        snapshots.clear();
        prop_assert_eq!(counted.held(), 0);
    }
}

/// Keys of numbers and texts, with a text each.
struct Table {
    keys: KeyTable,
    texts: Pages<Option<Arc<[u8]>>>,
}

impl Table {
    fn new(rows: i64) -> Self {
        let mut table = Self { keys: KeyTable::new(&[Form::Word, Form::Bytes], 0), texts: Pages::new() };
        table.put(0..rows, "first");
        table
    }

    fn put(&mut self, numbers: std::ops::Range<i64>, text: &str) {
        let names: ArrayRef =
            Arc::new(StringArray::from_iter_values(numbers.clone().map(|number| format!("n{number}"))));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
        let keys = [Values::for_key(&numbers).unwrap(), Values::for_key(&names).unwrap()];
        let (mut hashes, mut slots) = (Vec::new(), Vec::new());
        hash_values(&keys, numbers.len(), &mut hashes);
        let rows: Vec<u32> = (0..numbers.len() as u32).collect();
        self.keys.lookup_or_insert(&hashes, &keys, &rows, &mut slots).unwrap();
        self.keys.mark(&slots);
        self.texts.grow(self.keys.slots(), &None);
        slots.iter().for_each(|&slot| *self.texts.get_mut(slot) = Some(text.as_bytes().into()));
    }

    fn freeze(&mut self, since: Since, memory: &Memory) -> FrozenTable {
        let keys = Arc::new(vec![self.keys.freeze(since, memory)]);
        let texts = Arc::new(vec![self.texts.freeze(memory)]);
        FrozenTable::of_keys("t", &keys)
            .with_column(
                Field::new("number", DataType::Int64, false),
                key_column(&DataType::Int64, Arc::clone(&keys), 0, |row| row).unwrap(),
            )
            .with_column(
                Field::new("name", DataType::Utf8, false),
                key_column(&DataType::Utf8, keys, 1, |row| row).unwrap(),
            )
            .with_column(
                Field::new("text", DataType::Utf8, true),
                bytes_cells(DataType::Utf8, texts, |text| text.as_deref()),
            )
            .with_memory(memory)
    }
}

const ROWS: i64 = 100_000;

#[test]
fn values_that_pages_point_to_are_counted_with_them() {
    let counted = Counted::new(i64::MAX);
    let memory: Memory = Arc::clone(&counted) as Memory;
    let mut table = Table::new(ROWS);
    let frozen = table.freeze(Since::Start, &memory);
    let handles = counted.held();
    assert!(handles < 20_000, "{handles}");
    table.put(0..ROWS, "second");
    // What was copied: the texts of the first version with the pages that point to them. Keys have not changed.
    let pages = ROWS * size_of::<Option<Arc<[u8]>>>() as i64;
    let copied = counted.held() - handles - pages;
    assert!((ROWS * 5..ROWS * 64).contains(&copied), "{copied}");
    drop(table);
    assert!(counted.held() > handles + 2 * pages, "what the operator has dropped is the snapshot's alone");
    drop(frozen);
    assert_eq!(counted.held(), 0);
}

#[test]
fn writing_counts_what_it_takes_and_gives_all_of_it_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path().join("chk-1"));
    let counted = Counted::new(i64::MAX);
    let memory: Memory = Arc::clone(&counted) as Memory;
    let mut table = Table::new(ROWS);
    let files = write_tables(vec![table.freeze(Since::Start, &memory)], &store, "p").unwrap();
    assert_eq!((files[0].rows, counted.held()), (ROWS as u64, 0));
    let most = counted.most.load(Ordering::Relaxed);
    // The list of rows has 16 bytes for each, and a block of 32,768 rows is gathered and encoded.
    assert!(most > ROWS * 16 + 32_768 * 30, "{most}");
    assert!(most < ROWS * 16 + (24 << 20), "{most}");
}

#[test]
fn a_snapshot_that_does_not_fit_leaves_neither_files_nor_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chk-1");
    let store = LocalDirectory::new(&path);
    let mut table = Table::new(ROWS);
    let mut refused = 0;
    // From nothing at all to nearly enough: refused before the rows are listed, or at a block.
    for limit in [0, 100_000, ROWS * 16, 4 << 20] {
        let counted = Counted::new(limit);
        let memory: Memory = Arc::clone(&counted) as Memory;
        let error = write_tables(vec![table.freeze(Since::Start, &memory)], &store, "p").unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::ResourceExhausted, "no room"), "{limit}");
        assert_eq!(counted.held(), 0, "{limit}");
        assert_eq!(store.list().unwrap(), Vec::<String>::new(), "{limit}");
        refused += 1;
    }
    assert_eq!(refused, 4);
    let memory: Memory = Counted::new(64 << 20);
    write_tables(vec![table.freeze(Since::Start, &memory)], &store, "p").unwrap();
}

#[test]
fn merging_runs_counts_the_blocks_that_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let counted = Counted::new(i64::MAX);
    let memory: Memory = Arc::clone(&counted) as Memory;
    let mut table = Table::new(ROWS);
    let mut runs = Runs::default();
    let mut merged = 0;
    for number in 0..20 {
        let store = LocalDirectory::new(directory.path().join(format!("chk-{number}")));
        let since = if number == 0 { Since::Start } else { Since::LastFreeze };
        table.put(number * 1000..number * 1000 + 1000, "again");
        let frozen = vec![table.freeze(since, &memory)];
        counted.most.store(0, Ordering::Relaxed);
        let prefix = format!("../shared/chk-{number}+s");
        let increment = write_increment(frozen, &runs, &store, &prefix, &|| true).unwrap();
        if increment.written.iter().any(|file| file.path.contains("merged")) {
            merged += 1;
            // Sixteen runs of a thousand rows each.
            assert!(counted.most.load(Ordering::Relaxed) > 16_000 * 40, "{counted:?}");
        }
        runs = increment.runs;
        assert_eq!(counted.held(), 0);
    }
    assert_eq!(merged, 1);
}
