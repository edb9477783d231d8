//! Rows of a table in the order of their hashes, part by part, in memory that is bounded by a part of the table.
//!
//! Rows are listed in the order in which they lie in memory, and hashes have nothing to do with that. A first listing tells
//! how hashes are distributed; then the range of hashes is cut into stretches, and for each the rows are listed again, of
//! which those in the stretch are kept, dealt out to parts of about a block each (a radix sort's first pass; Knuth, "The Art
//! of Computer Programming", volume 3, section 5.2.5). A part fits into a core's cache, where it is put in order.
//!
//! The values of a stretch are read in the order in which they lie in memory too, and dealt out in the same way: reading those of
//! one part after the other would wait for memory once for nearly every value.
//!
//! Listing again is cheap beside all else, as it reads hashes one after the other; keeping all rows at once would take as much
//! memory as a small table itself.

use weir_types::Result;

use crate::file::BLOCK_ROWS;
use crate::frozen::{HashedRow, Placed, RowRef, Show};

/// Rows of a bucket on average, at least: rows are counted by equally long ranges of hashes, some of which make a part.
const BUCKET_ROWS: usize = 1024;
/// Buckets, at least and at most, as powers of two.
const BUCKETS_BITS: (u32, u32) = (8, 20);
/// What the rows of a stretch may take, with their values of fixed width, …
const STRETCH_BYTES: usize = 64 << 20;
/// … unless there would be more stretches than this: so often a large table is listed.
const STRETCHES_MAX: usize = 16;
/// What sorting holds for each row of a stretch: the row as listed and as dealt, and its place.
const ROW_BYTES: usize = 2 * size_of::<HashedRow>() + size_of::<u32>();

/// Shows all rows, the same ones in the same order as often as it is called.
type List<'a> = &'a dyn Fn(Show<'_>);

/// Rows whose hashes lie between two, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    first: u64,
    last: u64,
    pub(crate) rows: usize,
}

impl Stretch {
    #[inline]
    fn has(self, hash: u64) -> bool {
        hash.wrapping_sub(self.first) <= self.last - self.first
    }
}

/// A part's rows, as they are handed out.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// Hashes in ascending order.
    pub(crate) hashes: &'a [u64],
    /// The rows, with their places in that order.
    pub(crate) placed: Placed<'a>,
    /// Where it lies in a stretch, unless all of its rows have the same hash.
    pub(crate) within: Option<Within<'a>>,
}

/// A part of a stretch. Reading the cells of a stretch goes through memory once, in its order; those of a part lie far from one
/// another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Within<'a> {
    /// The rows of the stretch, with places one part after the other.
    pub(crate) stretch: Placed<'a>,
    /// The place of the part's first row.
    pub(crate) from: usize,
    /// The places of the part's rows from there, in the order of their hashes.
    pub(crate) order: &'a [u32],
}

/// Told how many bytes sorting holds from then on; what it answers with an error ends it.
type Hold<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// The range that the hashes of all rows lie in, and how many there are.
pub(crate) fn survey(list: List<'_>) -> Stretch {
    let mut all = Stretch { first: u64::MAX, last: 0, rows: 0 };
    list(&mut |shown| {
        for row in shown {
            all.first = all.first.min(row.hash);
            all.last = all.last.max(row.hash);
        }
        all.rows += shown.len();
    });
    all
}

/// Hands out all rows in the order of their hashes, a block at most at a time. `all` is what [`survey`] said, `width` what
/// whoever is given a stretch holds for each of its rows.
pub(crate) fn sort(
    list: List<'_>,
    (all, width): (Stretch, usize),
    hold: Hold<'_>,
    write: &mut dyn FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let stretch_rows = (STRETCH_BYTES / (ROW_BYTES + width)).max(all.rows / STRETCHES_MAX);
    Sorting {
        list,
        hold,
        write,
        stretch_rows,
        rows: Vec::new(),
        places: Vec::new(),
        dealt: Vec::new(),
        sorter: Sorter::default(),
    }
    .stretch(all)
}

struct Sorting<'a> {
    list: List<'a>,
    hold: Hold<'a>,
    write: &'a mut dyn FnMut(Part<'_>) -> Result<()>,
    /// Rows that are kept at once.
    stretch_rows: usize,
    rows: Vec<HashedRow>,
    /// The places of these rows, part after part …
    places: Vec<u32>,
    /// … and the rows in their places.
    dealt: Vec<HashedRow>,
    sorter: Sorter,
}

impl Sorting<'_> {
    /// Hands out a stretch of any length.
    fn stretch(&mut self, stretch: Stretch) -> Result<()> {
        if stretch.rows == 0 {
            return Ok(());
        }
        if stretch.first == stretch.last {
            return self.alike(stretch);
        }
        let buckets = Buckets::count(self.list, stretch);
        for (stretch, parts) in buckets.stretches(self.stretch_rows) {
            if parts.is_empty() {
                // One range of hashes with very many rows: it is cut again.
                self.stretch(stretch)?;
            } else {
                self.deal(stretch, &buckets, &parts)?;
            }
        }
        Ok(())
    }

    /// Bytes held.
    fn bytes(&self) -> usize {
        (self.rows.capacity() + self.dealt.capacity()) * size_of::<HashedRow>()
            + self.places.capacity() * size_of::<u32>()
            + self.sorter.bytes()
    }

    /// Rows of equal hashes need no order.
    fn alike(&mut self, stretch: Stretch) -> Result<()> {
        let block = BLOCK_ROWS.min(stretch.rows);
        let bytes = self.bytes() + block * (size_of::<HashedRow>() + size_of::<u64>() + size_of::<u32>());
        (self.hold)(bytes)?;
        let mut rows: Vec<HashedRow> = Vec::with_capacity(block);
        let (hashes, places) = (vec![stretch.first; block], (0..block as u32).collect::<Vec<_>>());
        let mut failed = Ok(());
        let mut write = |rows: &mut Vec<HashedRow>| {
            let (hashes, places) = (&hashes[..rows.len()], &places[..rows.len()]);
            let written = (self.write)(Part { hashes, placed: Placed { rows, places }, within: None });
            rows.clear();
            written
        };
        (self.list)(&mut |shown| {
            for row in shown.iter().filter(|row| row.hash == stretch.first) {
                rows.push(*row);
                if rows.len() == block && failed.is_ok() {
                    failed = write(&mut rows);
                }
                if failed.is_err() {
                    rows.clear();
                }
            }
        });
        failed?;
        if rows.is_empty() { Ok(()) } else { write(&mut rows) }
    }

    /// Lists the rows of a stretch into parts, and hands these out.
    fn deal(&mut self, stretch: Stretch, buckets: &Buckets, parts: &[Stretch]) -> Result<()> {
        let part_rows = parts.iter().map(|part| part.rows).max().unwrap_or_default();
        let rows = self.rows.capacity().max(stretch.rows) * ROW_BYTES;
        (self.hold)(rows + buckets.bytes() + self.sorter.bytes().max(part_rows * Sorter::ROW_BYTES))?;
        let nothing = HashedRow { hash: 0, row: RowRef { segment: 0, slot: 0 } };
        self.rows.clear();
        self.rows.reserve_exact(stretch.rows);
        self.places.clear();
        self.places.reserve_exact(stretch.rows);
        self.dealt.clear();
        self.dealt.reserve_exact(stretch.rows);
        self.dealt.resize(stretch.rows, nothing);
        let mut next = Vec::with_capacity(parts.len());
        let mut part_of = vec![0_u32; buckets.rows.len()];
        let mut start = 0;
        for (number, part) in (0..).zip(parts) {
            part_of[buckets.of(part.first)..=buckets.of(part.last)].fill(number);
            next.push(start);
            start += part.rows;
        }
        let (rows, places, dealt) = (&mut self.rows, &mut self.places, &mut self.dealt);
        let mut kept = Vec::new();
        (self.list)(&mut |shown| {
            // Without a branch per row: a stretch has some of the rows only, and which ones nobody can predict.
            kept.resize(shown.len().max(kept.len()), nothing);
            let mut count = 0;
            for row in shown {
                kept[count] = *row;
                count += usize::from(stretch.has(row.hash));
            }
            for row in &kept[..count] {
                let next = &mut next[part_of[buckets.of(row.hash)] as usize];
                dealt[*next] = *row;
                places.push(*next as u32);
                *next += 1;
            }
            rows.extend_from_slice(&kept[..count]);
        });
        let whole = Placed { rows: &self.rows, places: &self.places };
        let mut start = 0;
        for part in parts {
            let rows = &self.dealt[start..start + part.rows];
            let (hashes, places, order) = self.sorter.sort(rows, *part);
            let within = Some(Within { stretch: whole, from: start, order });
            start += part.rows;
            // Parts are blocks, but for ranges of hashes that could not be cut any further in one go.
            (self.write)(Part { hashes, placed: Placed { rows, places }, within })?;
        }
        Ok(())
    }
}

/// How many rows fall into each of equally long ranges of hashes.
struct Buckets {
    first: u64,
    last: u64,
    shift: u32,
    rows: Vec<usize>,
}

impl Buckets {
    fn count(list: List<'_>, stretch: Stretch) -> Self {
        let span = stretch.last - stretch.first;
        let bits = (stretch.rows / BUCKET_ROWS).max(1).ilog2().clamp(BUCKETS_BITS.0, BUCKETS_BITS.1);
        let shift = (u64::BITS - span.leading_zeros()).saturating_sub(bits);
        let rows = vec![0; (span >> shift) as usize + 1];
        let mut buckets = Self { first: stretch.first, last: stretch.last, shift, rows };
        list(&mut |shown| {
            for row in shown {
                if stretch.has(row.hash) {
                    let bucket = buckets.of(row.hash);
                    buckets.rows[bucket] += 1;
                }
            }
        });
        buckets
    }

    /// Bytes that these, and what parts they make, take.
    fn bytes(&self) -> usize {
        self.rows.capacity() * (size_of::<usize>() + size_of::<u32>() + size_of::<Stretch>())
    }

    #[inline]
    fn of(&self, hash: u64) -> usize {
        ((hash - self.first) >> self.shift) as usize
    }

    /// The buckets `from..to` as one stretch.
    fn join(&self, from: usize, to: usize, rows: usize) -> Stretch {
        let first = self.first.saturating_add((from as u64) << self.shift);
        let last = self.first.saturating_add(((to as u64) << self.shift).saturating_sub(1));
        Stretch { first, last: if to >= self.rows.len() { self.last } else { last }, rows }
    }

    /// Stretches of at most so many rows, with the parts of each, none of which has more rows than a block. A bucket that has
    /// more is a stretch without parts.
    fn stretches(&self, stretch_rows: usize) -> Vec<(Stretch, Vec<Stretch>)> {
        let mut stretches: Vec<(Stretch, Vec<Stretch>)> = Vec::new();
        let mut add = |part: Stretch, whole: bool| match stretches.last_mut() {
            _ if part.rows == 0 => {}
            Some((stretch, parts)) if whole && !parts.is_empty() && stretch.rows + part.rows <= stretch_rows => {
                *stretch = Stretch { first: stretch.first, last: part.last, rows: stretch.rows + part.rows };
                parts.push(part);
            }
            _ => stretches.push((part, if whole { vec![part] } else { Vec::new() })),
        };
        let (mut from, mut gathered) = (0, 0);
        for (bucket, &rows) in self.rows.iter().enumerate() {
            if gathered + rows > BLOCK_ROWS {
                add(self.join(from, bucket, gathered), true);
                (from, gathered) = (bucket, 0);
            }
            gathered += rows;
            if gathered > BLOCK_ROWS {
                add(self.join(from, bucket + 1, gathered), false);
                (from, gathered) = (bucket + 1, 0);
            }
        }
        add(self.join(from, self.rows.len(), gathered), true);
        stretches
    }
}

/// Puts a part in order; keeps its memory from one to the next.
#[derive(Debug, Default)]
struct Sorter {
    ends: Vec<u32>,
    order: Vec<(u64, u32)>,
    hashes: Vec<u64>,
    places: Vec<u32>,
    sorted: Vec<u32>,
}

impl Sorter {
    /// What it holds for each row of a part, at most: as many ranges as the next power of two, and two of them for it.
    const ROW_BYTES: usize = 4 * size_of::<u32>() + size_of::<(u64, u32)>() + size_of::<u64>() + 2 * size_of::<u32>();

    /// Bytes held.
    fn bytes(&self) -> usize {
        self.ends.capacity() * size_of::<u32>()
            + self.order.capacity() * size_of::<(u64, u32)>()
            + self.hashes.capacity() * size_of::<u64>()
            + (self.places.capacity() + self.sorted.capacity()) * size_of::<u32>()
    }

    /// Deals rows out to as many ranges of hashes as there are rows, then puts each of these in order: most have one row. The
    /// hashes in ascending order, the place of each row in it, and the row in each place; rows of equal hashes keep theirs.
    fn sort(&mut self, rows: &[HashedRow], part: Stretch) -> (&[u64], &[u32], &[u32]) {
        let span = part.last - part.first;
        let bits = rows.len().max(2).next_power_of_two().trailing_zeros();
        let shift = (u64::BITS - span.leading_zeros()).saturating_sub(bits);
        let range = |hash: u64| ((hash - part.first) >> shift) as usize;
        self.ends.clear();
        self.ends.resize((span >> shift) as usize + 1, 0);
        rows.iter().for_each(|row| self.ends[range(row.hash)] += 1);
        let mut next = 0;
        for end in &mut self.ends {
            next += std::mem::replace(end, next);
        }
        self.order.clear();
        self.order.resize(rows.len(), (0, 0));
        for (number, row) in (0_u32..).zip(rows) {
            let end = &mut self.ends[range(row.hash)];
            self.order[*end as usize] = (row.hash, number);
            *end += 1;
        }
        let mut start = 0;
        for &end in &self.ends {
            let end = end as usize;
            if end - start > 1 {
                self.order[start..end].sort_unstable();
            }
            start = end;
        }
        self.hashes.clear();
        self.hashes.extend(self.order.iter().map(|(hash, _)| *hash));
        self.places.clear();
        self.places.resize(rows.len(), 0);
        for (place, (_, number)) in (0_u32..).zip(&self.order) {
            self.places[*number as usize] = place;
        }
        self.sorted.clear();
        self.sorted.extend(self.order.iter().map(|(_, number)| *number));
        (&self.hashes, &self.places, &self.sorted)
    }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
