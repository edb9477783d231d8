//! Rows of a table by their key hashes: all of one hash, then all of the next.

use std::ops::Range;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use weir_types::{Code, Error, Result};

use crate::table::Scan;

/// The rows of a scan whose first column is the key hash. `T` is what `prepare` makes of each batch, once.
pub(crate) struct HashGroups<T, P> {
    scan: Scan,
    prepare: P,
    current: Option<(Vec<u64>, T)>,
    position: usize,
    last: u64,
}

impl<T, P: Fn(&RecordBatch) -> Result<T>> HashGroups<T, P> {
    pub(crate) fn new(scan: Scan, prepare: P) -> Result<Self> {
        let mut groups = Self { scan, prepare, current: None, position: 0, last: 0 };
        groups.advance()?;
        Ok(groups)
    }

    /// The smallest hash that is left.
    pub(crate) fn peek(&self) -> Option<u64> {
        self.current.as_ref().and_then(|(hashes, _)| hashes.get(self.position)).copied()
    }

    /// Hands over all rows with this hash, which must be the smallest.
    pub(crate) fn take(&mut self, hash: u64, mut rows: impl FnMut(&T, Range<usize>) -> Result<()>) -> Result<()> {
        while let Some((hashes, prepared)) = &self.current {
            let start = self.position;
            let end = start + hashes[start..].iter().take_while(|other| **other == hash).count();
            if end > start {
                rows(prepared, start..end)?;
                self.position = end;
            }
            if end < hashes.len() {
                break;
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Goes on to the next batch.
    fn advance(&mut self) -> Result<()> {
        (self.current, self.position) = (None, 0);
        while let Some(batch) = self.scan.next().transpose()? {
            let Some(hashes) = batch.column(0).as_primitive_opt::<UInt64Type>() else {
                return Err(Error::internal("a table was read without its key hashes"));
            };
            let hashes = hashes.values().to_vec();
            let (Some(first), Some(last)) = (hashes.first(), hashes.last()) else { continue };
            if !hashes.is_sorted() || *first < self.last {
                return Err(Error::new(Code::Corrupt, "state is not sorted by key hash")
                    .with_hint("Find out where with `weir snapshots verify`."));
            }
            self.last = *last;
            self.current = Some((hashes, (self.prepare)(&batch)?));
            break;
        }
        Ok(())
    }
}
