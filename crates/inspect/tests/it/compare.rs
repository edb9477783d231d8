//! Summaries and differences against naive computations.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weir_inspect::diff::diff;
use weir_inspect::summary::{Depth, summarise};

use super::fixture::{SOURCE, State, WINDOW, state, write};

fn any_state() -> impl Strategy<Value = State> {
    prop::collection::btree_map((0i64..4, "[a-d]{0,2}"), (0i64..3, 0i64..2), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_difference_counts_what_was_added_removed_and_changed(
        before in any_state(), after in any_state(), p in 1u32..4, q in 1u32..4,
    ) {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = write(one.path(), "sp-a", &before, p, 10);
        let to = write(two.path(), "sp-b", &after, q, 25);
        let found = diff(&from, &to).unwrap();
        let count = |counts: &dyn Fn(&State, &State) -> usize| counts(&before, &after) as u64;
        let added = count(&|old, new| new.keys().filter(|key| !old.contains_key(*key)).count());
        let removed = count(&|old, new| old.keys().filter(|key| !new.contains_key(*key)).count());
        let changed = count(&|old, new| old.iter().filter(|(key, value)| new.get(*key).is_some_and(|v| v != *value)).count());
        let unchanged = count(&|old, new| old.iter().filter(|(key, value)| new.get(*key) == Some(value)).count());
        match found.tables.as_slice() {
            [] => prop_assert!(before.is_empty() && after.is_empty()),
            [table] => {
                let counts = (table.added, table.removed, table.changed, table.unchanged);
                prop_assert_eq!(counts, (added, removed, changed, unchanged));
                prop_assert_eq!(&table.note, &None);
                prop_assert_eq!(table.bytes_from > 0, !before.is_empty());
            }
            more => prop_assert!(false, "{more:?}"),
        }
        let records: Vec<_> = found.sources.iter().map(|split| (split.split.as_str(), split.records())).collect();
        prop_assert_eq!(records, [("p-0", Some(15)), ("p-1", Some(0))]);
    }
}

#[test]
fn a_summary_counts_rows_and_keys_per_range_and_names_the_heaviest() {
    let directory = tempfile::tempdir().unwrap();
    let mut rows = state(2, 30);
    rows.extend((10..30).map(|window| ((window * 1000, "s3".to_owned()), (1, 1))));
    let snapshot = write(directory.path(), "sp-a", &rows, 3, 10);
    let summary = summarise(&snapshot, Depth { ranges: None, heaviest: 2 }).unwrap();
    assert_eq!((summary.rows, summary.parallelism, summary.id.as_str()), (80, 3, "sp-a"));
    let operators: BTreeMap<_, _> =
        summary.operators.iter().map(|operator| (operator.uid.as_str(), operator)).collect();
    assert_eq!((operators[SOURCE].watermark_ms, operators[SOURCE].splits.len()), (i64::MIN, 2));
    let table = &operators[WINDOW].tables[0];
    assert_eq!((table.rows, table.keys, table.ranges.len()), (80, 30, 3));
    assert_eq!(table.ranges.iter().sum::<u64>(), 80);
    let by_file: Vec<u64> = snapshot.tables()[0].files().map(|file| file.rows).collect();
    assert_eq!(table.ranges, by_file, "ranges are those of the subtasks");
    let most = table.ranges.iter().max().copied().unwrap();
    assert_eq!(table.skew, Some(most as f64 * 3.0 / 80.0));
    assert_eq!(table.heaviest[0].key, [("sensor".to_owned(), Some("s3".to_owned()))]);
    assert_eq!((table.heaviest[0].rows, table.heaviest[1].rows, table.heaviest.len()), (22, 2, 2));
    let finer = summarise(&snapshot, Depth { ranges: Some(16), heaviest: 0 }).unwrap();
    let table = &finer.operators.iter().find(|operator| operator.uid == WINDOW).unwrap().tables[0];
    assert_eq!((table.ranges.len(), table.ranges.iter().sum::<u64>(), table.heaviest.len()), (16, 80, 0));
    assert!(summarise(&snapshot, Depth { ranges: Some(5_000), heaviest: 0 }).is_err());
}
