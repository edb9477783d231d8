//! The placement of keys never changes: vectors from `docs/state-format.md`, and equality over all layouts.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float32Array, Float64Array,
    Int8Array, Int32Array, Int64Array, LargeStringArray, StringArray, StringViewArray, TimestampMillisecondArray,
    UInt64Array,
};
use arrow::datatypes::Int32Type;
use weir_state::key_hash::{EMPTY_KEY_HASH, hash_keys, hash_values};
use xxhash_rust::xxh3::xxh3_64;

fn hashes(columns: &[ArrayRef]) -> Vec<u64> {
    let mut hashes = vec![1, 2, 3];
    hash_keys(columns, &mut hashes).unwrap();
    hashes
}

fn check(columns: &[ArrayRef], expected: &[u64]) {
    assert_eq!(hashes(columns), expected, "{:016x?}", hashes(columns));
}

#[test]
fn vectors_of_the_specification() {
    check(
        &[Arc::new(Int64Array::from(vec![Some(0), Some(1), Some(-1), None]))],
        &[0xc77b_3abb_6f87_acd9, 0x2fbc_5935_64db_792e, 0x5111_c7e4_7d78_4413, 0xc44b_dff4_074e_ecdb],
    );
    check(
        &[Arc::new(StringArray::from(vec![Some(""), Some("weir"), Some("ä"), None]))],
        &[0x2d06_8005_38d3_94c2, 0x0983_1dc7_4181_7118, 0x5430_6467_6a70_b4b4, 0xc44b_dff4_074e_ecdb],
    );
    check(
        &[Arc::new(Float64Array::from(vec![0.0, -0.0, 1.5, f64::NAN]))],
        &[0xc77b_3abb_6f87_acd9, 0xc77b_3abb_6f87_acd9, 0x2561_a488_9ff6_3458, 0x0aa6_1dcf_a381_c167],
    );
    check(
        &[Arc::new(Decimal128Array::from(vec![0, 1, -1]))],
        &[0xd0a6_6a65_c752_8968, 0x26f2_a114_8cf5_2011, 0x722a_202f_07a4_b313],
    );
    let pair: [ArrayRef; 2] = [Arc::new(StringArray::from(vec!["weir", ""])), Arc::new(Int64Array::from(vec![7, -7]))];
    check(&pair, &[0xb7fc_b5d6_32eb_f712, 0xce5a_60a4_6fc9_8f04]);
}

#[test]
fn hash_of_an_empty_key_is_that_of_no_bytes() {
    assert_eq!(EMPTY_KEY_HASH, xxh3_64(&[]));
    let mut hashes = Vec::new();
    hash_values(&[], 3, &mut hashes);
    assert_eq!(hashes, [EMPTY_KEY_HASH; 3]);
}

#[test]
fn one_value_hashes_equally_in_every_layout() {
    let same = |columns: &[ArrayRef]| {
        let first = hashes(&columns[..1]);
        for column in columns {
            assert_eq!(hashes(std::slice::from_ref(column)), first, "{}", column.data_type());
        }
    };
    same(&[
        Arc::new(Int64Array::from(vec![7, 100])),
        Arc::new(Int32Array::from(vec![7, 100])),
        Arc::new(Int8Array::from(vec![7, 100])),
        Arc::new(UInt64Array::from(vec![7, 100])),
        Arc::new(Date32Array::from(vec![7, 100])),
        Arc::new(TimestampMillisecondArray::from(vec![7, 100]).with_timezone("UTC")),
    ]);
    let text = vec!["weir", "a string too long to be inlined in a view"];
    same(&[
        Arc::new(StringArray::from(text.clone())),
        Arc::new(LargeStringArray::from(text.clone())),
        Arc::new(StringViewArray::from(text.clone())),
        Arc::new(text.iter().copied().collect::<DictionaryArray<Int32Type>>()),
        Arc::new(BinaryArray::from_iter_values(&text)),
    ]);
    same(&[Arc::new(Float64Array::from(vec![0.5, 3.0])), Arc::new(Float32Array::from(vec![0.5, 3.0]))]);
}

#[test]
fn zeros_and_nans_are_one_key_each() {
    let floats = hashes(&[Arc::new(Float64Array::from(vec![
        0.0,
        -0.0,
        f64::NAN,
        -f64::NAN,
        f64::from_bits(0x7ff0_0000_0000_0001),
    ]))]);
    assert_eq!(floats[0], floats[1]);
    assert!(floats[2..].iter().all(|&hash| hash == floats[2]));
    assert_ne!(floats[0], floats[2]);
}

#[test]
fn columns_are_encoded_one_after_the_other() {
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("ab"), None, Some("")]));
    let number: ArrayRef = Arc::new(Int32Array::from(vec![Some(-2), Some(5), None]));
    let decimal: ArrayRef = Arc::new(Decimal128Array::from(vec![1, 2, -3]).with_precision_and_scale(10, 2).unwrap());
    let flag: ArrayRef = Arc::new(BooleanArray::from(vec![true, false, true]));
    let encoded = [
        [&b"ab"[..], &2u64.to_le_bytes(), &(-2i64).to_le_bytes(), &1i128.to_le_bytes(), &1u64.to_le_bytes()].concat(),
        [&[0][..], &5i64.to_le_bytes(), &2i128.to_le_bytes(), &0u64.to_le_bytes()].concat(),
        [&0u64.to_le_bytes()[..], &[0], &(-3i128).to_le_bytes(), &1u64.to_le_bytes()].concat(),
    ];
    check(&[text.clone(), number.clone(), decimal, flag], &encoded.map(|bytes| xxh3_64(&bytes)));
    // The last column needs no length.
    let encoded = [[&(-2i64).to_le_bytes()[..], b"ab"].concat(), [&5i64.to_le_bytes()[..], &[0]].concat(), vec![0]];
    check(&[number, text], &encoded.map(|bytes| xxh3_64(&bytes)));
}
