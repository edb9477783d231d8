//! The sequence of events: which kind event i is, and the runs of events of wanted kinds in a share of the sequence.
//!
//! The sequence repeats in epochs of `total` events: first the persons, then the auctions, then the bids. Kinds that are
//! not wanted are passed over by arithmetic, not by looking at each event.

use weir_types::splits::{NEXMARK_BLOCK_EVENTS, NexmarkSplit};

/// What an event is; its number is the value of `event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Person = 0,
    Auction = 1,
    Bid = 2,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Person, Kind::Auction, Kind::Bid];
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds([bool; 3]);

impl Kinds {
    /// All of them.
    pub(super) const ALL: Kinds = Kinds([true; 3]);

    /// Those also in `values`.
    pub(super) fn retain(&mut self, values: &[i64]) {
        for kind in Kind::ALL {
            self.0[kind as usize] &= values.contains(&i64::from(kind as u8));
        }
    }

    /// Whether a kind is in the set.
    pub(super) fn has(self, kind: Kind) -> bool {
        self.0[kind as usize]
    }
}

/// How many events of each kind an epoch has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epochs {
    pub(super) persons: u64,
    pub(super) auctions: u64,
    /// Events in an epoch.
    pub(super) total: u64,
}

/// Neighbouring events of one kind in one epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) kind: Kind,
    pub(super) epoch: u64,
    /// The first event's number.
    pub(super) first: u64,
    /// How many events.
    pub(super) count: u64,
}

impl Run {
    pub(super) fn events(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

/// The runs that make one batch.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pub(super) runs: Vec<Run>,
    /// Events in all runs.
    pub(super) rows: usize,
}

/// Passing over unwanted events pauses after so many, so that progress is reported.
const PASSED_MAX: u64 = 1 << 22;

impl Epochs {
    /// Fills `runs` with at most `rows_max` events of the `wanted` kinds out of `split`, from its position `start` on and
    /// before its position `limit`. Returns the position after the last event that was taken or passed over.
    pub(super) fn select(
        &self,
        split: NexmarkSplit,
        wanted: Kinds,
        start: u64,
        limit: u64,
        rows_max: usize,
        runs: &mut Runs,
    ) -> u64 {
        runs.runs.clear();
        runs.rows = 0;
        let limit = limit.min(start.saturating_add(PASSED_MAX));
        let mut position = start;
        while position < limit {
            let within = position % NEXMARK_BLOCK_EVENTS;
            let span = (NEXMARK_BLOCK_EVENTS - within).min(limit - position);
            let first = split.event_number(position);
            let taken = self.select_range(first, first + span, wanted, rows_max, runs);
            position += taken - first;
            if runs.rows == rows_max {
                break;
            }
        }
        position
    }

    /// As [`Epochs::select`], for the events `from..to`.
    fn select_range(&self, from: u64, to: u64, wanted: Kinds, rows_max: usize, runs: &mut Runs) -> u64 {
        let mut event = from;
        while event < to {
            let epoch = event / self.total;
            let start = epoch * self.total;
            let (kind, end) = match event - start {
                offset if offset < self.persons => (Kind::Person, self.persons),
                offset if offset < self.persons + self.auctions => (Kind::Auction, self.persons + self.auctions),
                _ => (Kind::Bid, self.total),
            };
            let end = (start + end).min(to);
            if !wanted.has(kind) {
                event = end;
                continue;
            }
            let count = (end - event).min((rows_max - runs.rows) as u64);
            if count == 0 {
                break;
            }
            runs.runs.push(Run { kind, epoch, first: event, count });
            runs.rows += count as usize;
            event += count;
        }
        event
    }
}
