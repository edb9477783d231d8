//! Rows of a table, parted by ranges of their hashes: the first step of sorting them.

use weir_types::{Code, Error, Result};

use crate::file::BLOCK_ROWS;
use crate::frozen::{HashedRow, RowRef};

/// Rows of a part, on average at most: four blocks, of a few columns of which the cache of one core holds the values.
const PART_ROWS: usize = 4 * BLOCK_ROWS;

/// Rows parted by ranges of their hashes; those of a part are in the order in which they were listed.
pub(crate) struct Parts {
    rows: Vec<HashedRow>,
    /// Places in `rows`, part after part.
    places: Vec<u32>,
    /// Where each part ends in `places`.
    ends: Vec<usize>,
}

impl Parts {
    /// Counts the rows of each part, then deals them out: a radix sort's first pass (Knuth, "The Art of Computer
    /// Programming", volume 3, section 5.2.5).
    pub(crate) fn of(rows: Vec<HashedRow>) -> Result<Self> {
        if u32::try_from(rows.len()).is_err() {
            return Err(Error::new(Code::Unsupported, format!("a state table has {} rows in one subtask", rows.len()))
                .with_hint("Raise the job's parallelism."));
        }
        let bits = (rows.len() / PART_ROWS).next_power_of_two().trailing_zeros();
        let part = |row: &HashedRow| (row.hash.unbounded_shr(u64::BITS - bits)) as usize;
        let mut ends = vec![0; 1 << bits];
        rows.iter().for_each(|row| ends[part(row)] += 1);
        let mut next = 0;
        for end in &mut ends {
            next += std::mem::replace(end, next);
        }
        let mut places = vec![0; rows.len()];
        for (place, row) in (0_u32..).zip(&rows) {
            let end = &mut ends[part(row)];
            places[*end] = place;
            *end += 1;
        }
        Ok(Self { rows, places, ends })
    }

    /// The parts, by ascending hashes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Part> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter(|(start, end)| start < end).map(|(start, &end)| {
            let rows = self.places[start..end].iter().map(|&place| self.rows[place as usize]);
            let mut part = Part { rows: Vec::with_capacity(end - start), order: Vec::with_capacity(end - start) };
            for (place, HashedRow { hash, row }) in (0_u32..).zip(rows) {
                part.rows.push(row);
                part.order.push((hash, place));
            }
            part.order.sort_unstable();
            part
        })
    }
}

/// The rows of a range of hashes.
pub(crate) struct Part {
    /// In the order in which they were listed.
    pub(crate) rows: Vec<RowRef>,
    /// Hashes in ascending order, each with the place of its row in `rows`.
    pub(crate) order: Vec<(u64, u32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(hashes: impl IntoIterator<Item = u64>) -> Vec<HashedRow> {
        let row = |(slot, hash)| HashedRow { hash, row: RowRef { segment: 0, slot } };
        (0_u32..).zip(hashes).map(row).collect()
    }

    fn parts(rows: &[HashedRow]) -> Vec<Part> {
        Parts::of(rows.to_vec()).unwrap().iter().collect()
    }

    #[test]
    fn parts_follow_one_another_by_hash_and_keep_the_order_of_their_rows() {
        let count = 3 * PART_ROWS as u64;
        let all = rows((0..count).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let parts = parts(&all);
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| part.rows.is_sorted()));
        let mut sorted = all;
        sorted.sort_unstable();
        let in_order = |part: &Part| {
            let rows = part.order.iter().map(|&(hash, place)| HashedRow { hash, row: part.rows[place as usize] });
            rows.collect::<Vec<_>>()
        };
        assert_eq!(parts.iter().flat_map(in_order).collect::<Vec<_>>(), sorted);
    }

    #[test]
    fn few_rows_are_one_part_and_hashes_that_are_alike_too() {
        assert_eq!(parts(&[]).len(), 0);
        assert_eq!(parts(&rows([7, 3])).len(), 1);
        assert_eq!(parts(&rows([0, u64::MAX])).len(), 1);
        let alike = parts(&rows(vec![u64::MAX; 2 * PART_ROWS]));
        assert_eq!(alike.iter().map(|part| part.rows.len()).collect::<Vec<_>>(), [2 * PART_ROWS]);
        assert!(alike[0].order.is_sorted());
    }
}
