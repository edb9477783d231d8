//! Idempotent producers of one partition: which sequence number comes next, and where the latest blocks went.
//!
//! A sequence number is accepted once. The table is rebuilt from the stamps in the log's frames, starting at the
//! newest snapshot of it, so that a duplicate is recognised across restarts of the store as well.

use std::collections::{HashMap, VecDeque};

use weir_types::error::Facts;
use weir_types::ids::{Epoch, ProducerId};
use weir_types::store::ProducerStamp;
use weir_types::stream::Offset;
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

/// Blocks remembered per producer. A producer may have at most this many unacknowledged ones in one partition.
pub(crate) const REMEMBERED_BLOCKS: usize = 16;

/// What to do with a stamped block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next one.
    Append,
    /// It is in the log already, at this offset.
    Duplicate(Offset),
}

/// One producer as a partition knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) epoch: Epoch,
    /// Sequence number and offset of the latest blocks of this epoch, oldest first; never empty.
    pub(crate) recent: VecDeque<(u64, Offset)>,
    pub(crate) last_append: Millis,
}

impl Known {
    fn next_sequence(&self) -> u64 {
        self.recent.back().map_or(0, |(sequence, _)| sequence + 1)
    }
}

/// The producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    known: HashMap<ProducerId, Known>,
}

impl Producers {
    pub(crate) fn check(&self, stamp: &ProducerStamp) -> Result<Verdict> {
        let ProducerStamp { producer, epoch, sequence, transaction: _ } = stamp;
        let known = self.known.get(producer);
        if let Some(newer) = known.filter(|known| known.epoch > *epoch) {
            return Err(Error::fenced(format!("producer {producer} has been replaced by a newer incarnation"))
                .with_detail(format!("its epoch is {}, this append has {epoch}", newer.epoch)));
        }
        let current = known.filter(|known| known.epoch == *epoch);
        let expected = current.map_or(0, Known::next_sequence);
        if *sequence == expected {
            return Ok(Verdict::Append);
        }
        let earlier = current.and_then(|known| known.recent.iter().find(|(known, _)| known == sequence));
        if let Some((_, offset)) = earlier {
            return Ok(Verdict::Duplicate(*offset));
        }
        Err(Error::new(Code::SequenceGap, format!("producer {producer} sent block {sequence} instead of {expected}"))
            .with_detail(match *sequence < expected {
                true => "that block was appended too long ago to remember where".to_owned(),
                false => format!("blocks {expected} to {} are missing", sequence - 1),
            })
            .with_facts(Facts::SequenceGap { expected }))
    }

    /// Remembers an append and returns what to restore if it fails after all.
    pub(crate) fn record(&mut self, stamp: &ProducerStamp, offset: Offset, now: Millis) -> Option<Known> {
        let before = self.known.get(&stamp.producer).cloned();
        let known = self.known.entry(stamp.producer.clone()).or_insert_with(|| Known {
            epoch: stamp.epoch,
            recent: VecDeque::with_capacity(REMEMBERED_BLOCKS),
            last_append: now,
        });
        if known.epoch != stamp.epoch {
            known.epoch = stamp.epoch;
            known.recent.clear();
        }
        if known.recent.len() == REMEMBERED_BLOCKS {
            known.recent.pop_front();
        }
        known.recent.push_back((stamp.sequence, offset));
        known.last_append = now;
        before
    }

    pub(crate) fn restore(&mut self, producer: &ProducerId, before: Option<Known>) {
        match before {
            Some(known) => self.known.insert(producer.clone(), known),
            None => self.known.remove(producer),
        };
    }

    pub(crate) fn insert(&mut self, producer: ProducerId, known: Known) {
        self.known.insert(producer, known);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ProducerId, &Known)> {
        self.known.iter()
    }

    /// Forgets the longest silent producers beyond `max`.
    pub(crate) fn forget_beyond(&mut self, max: usize) {
        let surplus = self.known.len().saturating_sub(max);
        if surplus == 0 {
            return;
        }
        let mut by_age: Vec<_> = self.known.iter().map(|(id, known)| (known.last_append, id.clone())).collect();
        by_age.sort();
        for (_, id) in by_age.into_iter().take(surplus) {
            self.known.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(epoch: u64, sequence: u64) -> ProducerStamp {
        ProducerStamp { producer: ProducerId::new("p").unwrap(), epoch: Epoch(epoch), sequence, transaction: None }
    }

    fn append(producers: &mut Producers, stamp: &ProducerStamp, offset: u64) {
        assert_eq!(producers.check(stamp).unwrap(), Verdict::Append);
        producers.record(stamp, Offset(offset), Millis(0));
    }

    #[test]
    fn a_repeated_block_is_answered_with_its_offset() {
        let mut producers = Producers::default();
        append(&mut producers, &stamp(0, 0), 10);
        append(&mut producers, &stamp(0, 1), 20);
        assert_eq!(producers.check(&stamp(0, 0)).unwrap(), Verdict::Duplicate(Offset(10)));
        assert_eq!(producers.check(&stamp(0, 1)).unwrap(), Verdict::Duplicate(Offset(20)));
    }

    #[test]
    fn a_gap_names_the_block_that_is_waited_for() {
        let mut producers = Producers::default();
        append(&mut producers, &stamp(0, 0), 10);
        let error = producers.check(&stamp(0, 5)).unwrap_err();
        assert_eq!(error.code, Code::SequenceGap);
        assert_eq!(error.facts.as_deref(), Some(&Facts::SequenceGap { expected: 1 }));
    }

    #[test]
    fn a_newer_epoch_begins_anew_and_fences_the_older() {
        let mut producers = Producers::default();
        append(&mut producers, &stamp(1, 0), 10);
        append(&mut producers, &stamp(2, 0), 20);
        assert_eq!(producers.check(&stamp(1, 1)).unwrap_err().code, Code::Fenced);
        assert_eq!(producers.check(&stamp(2, 0)).unwrap(), Verdict::Duplicate(Offset(20)));
    }

    #[test]
    fn a_failed_append_is_undone() {
        let mut producers = Producers::default();
        append(&mut producers, &stamp(0, 0), 10);
        let as_before = producers.clone();
        let before = producers.record(&stamp(0, 1), Offset(20), Millis(1));
        producers.restore(&stamp(0, 1).producer, before);
        assert_eq!(producers, as_before);
    }

    #[test]
    fn the_longest_silent_producer_is_forgotten_first() {
        let mut producers = Producers::default();
        for (name, at) in [("a", 5), ("b", 3), ("c", 9)] {
            let stamp = ProducerStamp { producer: ProducerId::new(name).unwrap(), ..stamp(0, 0) };
            producers.record(&stamp, Offset(0), Millis(at));
        }
        producers.forget_beyond(2);
        let mut left: Vec<_> = producers.iter().map(|(id, _)| id.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["a", "c"]);
    }
}
