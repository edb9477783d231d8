//! The key table against a map: lookups, removal, reuse of slots, snapshots taken between.
#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, StringArray};
use proptest::prelude::*;
use weir_state::Since;
use weir_state::key_hash::hash_values;
use weir_state::keys::{KeyTable, KeyValue};
use weir_state::memory::uncounted;
use weir_state::values::{Form, Values};

type Key = (Option<i64>, Option<String>, i128);

fn columns(keys: &[Key]) -> (Vec<Values>, Vec<u64>) {
    let arrays: [ArrayRef; 3] = [
        Arc::new(keys.iter().map(|key| key.0).collect::<Int64Array>()),
        Arc::new(keys.iter().map(|key| key.1.clone()).collect::<StringArray>()),
        Arc::new(Decimal128Array::from_iter_values(keys.iter().map(|key| key.2))),
    ];
    let values: Vec<Values> = arrays.iter().map(|array| Values::for_key(array).unwrap()).collect();
    let mut hashes = Vec::new();
    hash_values(&values, keys.len(), &mut hashes);
    (values, hashes)
}

fn key_at(table: &KeyTable, slot: u32) -> Key {
    let number = match table.key(0, slot) {
        KeyValue::Word(word) => Some(word),
        _ => None,
    };
    let text = match table.key(1, slot) {
        KeyValue::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
        _ => None,
    };
    match table.key(2, slot) {
        KeyValue::Wide(wide) => (number, text, wide),
        other => panic!("{other:?}"),
    }
}

fn key() -> impl Strategy<Value = Key> {
    (prop::option::of(0..5i64), prop::option::of("[ab]{0,3}"), 0..2i128)
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_map(steps in prop::collection::vec((prop::collection::vec(key(), 0..20), any::<u8>()), 1..20)) {
        let mut table = KeyTable::new(&[Form::Word, Form::Bytes, Form::Wide], 0);
        let mut model: BTreeMap<Key, u32> = BTreeMap::new();
        for (keys, remove) in steps {
            let (values, hashes) = columns(&keys);
            let rows: Vec<u32> = (0..keys.len() as u32).rev().collect();
            let mut slots = Vec::new();
            table.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap();
            for (row, slot) in rows.iter().zip(slots) {
                let known = *model.entry(keys[*row as usize].clone()).or_insert(slot);
                prop_assert_eq!(known, slot);
            }
            prop_assert_eq!(table.len(), model.len());
            let frozen = table.freeze(Since::Start, &uncounted());
            if remove % 2 == 0 && !model.is_empty() {
                let key = model.keys().nth(remove as usize % model.len()).cloned().unwrap();
                let slot = model.remove(&key).unwrap();
                table.remove(slot).unwrap();
                prop_assert!(table.remove(slot).is_err());
                let (values, hashes) = columns(std::slice::from_ref(&key));
                prop_assert_eq!(table.find(hashes[0], &values, 0), None);
                prop_assert!(frozen.slots().any(|other| other == slot), "a snapshot keeps what is removed later");
            }
            for (key, slot) in &model {
                prop_assert_eq!(&key_at(&table, *slot), key);
            }
            let mut live: Vec<u32> = model.values().copied().collect();
            live.sort_unstable();
            prop_assert_eq!(table.freeze(Since::Start, &uncounted()).slots().collect::<Vec<_>>(), live);
        }
    }
}

#[test]
fn a_null_after_plain_keys_is_a_key_of_its_own() {
    let mut table = KeyTable::new(&[Form::Word], 0);
    let mut insert = |numbers: Vec<Option<i64>>| {
        let array: ArrayRef = Arc::new(Int64Array::from(numbers));
        let values = [Values::for_key(&array).unwrap()];
        let (mut hashes, mut slots) = (Vec::new(), Vec::new());
        hash_values(&values, array.len(), &mut hashes);
        let rows: Vec<u32> = (0..array.len() as u32).collect();
        table.lookup_or_insert(&hashes, &values, &rows, &mut slots).unwrap();
        slots
    };
    assert_eq!(insert(vec![Some(0), Some(1), Some(0)]), [0, 1, 0]);
    assert_eq!(insert(vec![None, Some(0), None]), [2, 0, 2]);
    assert_eq!(insert(vec![Some(1), Some(2)]), [1, 3]);
}
