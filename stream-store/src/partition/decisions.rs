//! What the log of one partition says of transactions: where those begin that are not decided, and which were aborted.
//!
//! It follows from the log's frames alone, as the producers do, and is kept beside closed segments like them. A record
//! of a transaction is shown to committed readers once the log has the commit marker, and never once it has the other.

use std::collections::BTreeMap;

use weir_types::ids::TransactionNumber;
use weir_types::stream::Offset;

use crate::frame::{FrameHeader, Marker};

/// A transaction's place in one partition: from its first record to behind its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) first: Offset,
    pub(crate) end: Offset,
}

/// The transactions of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decisions {
    pub(crate) undecided: BTreeMap<TransactionNumber, Extent>,
    /// In the order of their markers.
    pub(crate) aborted: Vec<(TransactionNumber, Extent)>,
    /// Frames could not be walked for damage: a marker may be missing here that was once written.
    pub(crate) has_gaps: bool,
}

impl Decisions {
    /// Follows the log by one frame.
    pub(crate) fn note(&mut self, header: &FrameHeader) {
        if let Some(Marker { transaction, committed }) = header.marker {
            let extent = self.undecided.remove(&transaction);
            self.aborted.extend(extent.filter(|_| !committed).map(|extent| (transaction, extent)));
        } else if let Some(transaction) = header.transaction() {
            let first = Extent { first: header.base_offset, end: header.end_offset() };
            self.undecided.entry(transaction).or_insert(first).end = header.end_offset();
        }
    }

    /// How far committed readers of a log with this end get.
    pub(crate) fn stable_end(&self, end: Offset) -> Offset {
        self.undecided.values().map(|extent| extent.first).min().unwrap_or(end)
    }

    /// The aborted transactions that may have records between two offsets.
    pub(crate) fn aborted_between(&self, from: Offset, to: Offset) -> Vec<TransactionNumber> {
        let overlaps = |extent: &Extent| extent.first < to && extent.end > from;
        self.aborted.iter().filter(|(_, extent)| overlaps(extent)).map(|(number, _)| *number).collect()
    }

    /// Forgets what lies before the head of the log.
    pub(crate) fn forget_before(&mut self, head: Offset) {
        self.aborted.retain(|(_, extent)| extent.end > head);
        self.undecided.retain(|_, extent| extent.end > head);
        self.undecided.values_mut().for_each(|extent| extent.first = extent.first.max(head));
    }
}
