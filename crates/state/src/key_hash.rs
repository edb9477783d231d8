//! The hash that places keys: XXH3-64 with seed 0 over an encoding of the key, as `docs/state-format.md` specifies it.
//!
//! Invariant: equal keys hash equally on every CPU and in every version, whatever layout their arrays have. Exchanges,
//! state files and key ranges all depend on it; the test vectors pin it.

use arrow::array::ArrayRef;
use weir_types::Result;
use xxhash_rust::xxh3::xxh3_64;

use crate::values::{Data, Values};

/// The hash of a key without columns: that of no bytes.
pub const EMPTY_KEY_HASH: u64 = 0x2d06_8005_38d3_94c2;

/// How a null is encoded.
const NULL: u8 = 0;

/// The hash of every row's key: `columns` are the key columns, all of one length. `hashes` is overwritten; it ends up
/// empty if there are no columns, as the number of rows is then unknown (use [`EMPTY_KEY_HASH`]).
///
/// # Errors
/// `UNSUPPORTED` if a column's type cannot be a key.
pub fn hash_keys(columns: &[ArrayRef], hashes: &mut Vec<u64>) -> Result<()> {
    let Some(first) = columns.first() else {
        hashes.clear();
        return Ok(());
    };
    if let [_] = columns {
        hash_column(&Values::for_key(first)?, first.len(), hashes);
        return Ok(());
    }
    let values = columns.iter().map(Values::for_key).collect::<Result<Vec<_>>>()?;
    hash_values(&values, first.len(), hashes);
    Ok(())
}

/// As [`hash_keys`], over columns that are in key form already; without columns every row gets [`EMPTY_KEY_HASH`].
pub fn hash_values(columns: &[Values], rows: usize, hashes: &mut Vec<u64>) {
    match columns {
        [] => {
            hashes.clear();
            hashes.resize(rows, EMPTY_KEY_HASH);
        }
        [column] => hash_column(column, rows, hashes),
        columns => {
            hashes.clear();
            hashes.reserve(rows);
            let mut encoded = Vec::with_capacity(64);
            for row in 0..rows {
                encoded.clear();
                for (i, column) in columns.iter().enumerate() {
                    encode(column, row, i + 1 == columns.len(), &mut encoded);
                }
                hashes.push(xxh3_64(&encoded));
            }
        }
    }
}

/// One column is hashed where it lies, without a copy.
fn hash_column(column: &Values, rows: usize, hashes: &mut Vec<u64>) {
    hashes.clear();
    match &column.data {
        Data::Words(words) => hashes.extend(words[..rows].iter().map(|word| xxh3_64(&word.to_le_bytes()))),
        Data::Floats(floats) => {
            hashes.extend(floats[..rows].iter().map(|&float| xxh3_64(&crate::values::float_key(float).to_le_bytes())));
        }
        Data::Wides(wides) => hashes.extend(wides[..rows].iter().map(|wide| xxh3_64(&wide.to_le_bytes()))),
        Data::Bytes(bytes) => hashes.extend((0..rows).map(|row| xxh3_64(bytes.value(row)))),
    }
    if let Some(nulls) = &column.nulls {
        let null = xxh3_64(&[NULL]);
        for (row, hash) in hashes.iter_mut().enumerate() {
            if nulls.is_null(row) {
                *hash = null;
            }
        }
    }
}

fn encode(column: &Values, row: usize, last: bool, out: &mut Vec<u8>) {
    if column.is_null(row) {
        out.push(NULL);
        return;
    }
    match &column.data {
        Data::Words(words) => out.extend_from_slice(&words[row].to_le_bytes()),
        Data::Floats(floats) => out.extend_from_slice(&crate::values::float_key(floats[row]).to_le_bytes()),
        Data::Wides(wides) => out.extend_from_slice(&wides[row].to_le_bytes()),
        Data::Bytes(bytes) => {
            let value = bytes.value(row);
            out.extend_from_slice(value);
            if !last {
                out.extend_from_slice(&(value.len() as u64).to_le_bytes());
            }
        }
    }
}
