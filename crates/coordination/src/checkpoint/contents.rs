//! Puts acknowledgements together into what a snapshot holds.
//!
//! Invariant: contents exist only if every subtask has acknowledged, and every split of every source has a position.

use std::collections::BTreeMap;

use weir_types::snapshot::{SourcePositions, SubtaskSnapshot};
use weir_types::{Error, Result};

use super::{Contents, Positions, RunningAttempt, SubtaskKey, SubtaskShare};

/// The acknowledgements of one snapshot, as far as they have come.
#[derive(Clone, Debug, Default)]
pub(super) struct Acks(BTreeMap<SubtaskKey, SubtaskSnapshot>);

impl Acks {
    /// Keeps the first acknowledgement of a subtask; a repeated one says the same.
    pub(super) fn add(&mut self, ack: SubtaskSnapshot) {
        self.0.entry((ack.subtask.chain, ack.subtask.index)).or_insert(ack);
    }

    /// How many subtasks have acknowledged.
    pub(super) fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// Whose acknowledgement is missing, in the order of chains.
    pub(super) fn missing(&self, attempt: &RunningAttempt) -> Vec<SubtaskKey> {
        let mut missing: Vec<_> = attempt.subtasks.iter().filter(|id| !self.0.contains_key(id)).copied().collect();
        missing.sort_unstable();
        missing
    }

    /// Whether nobody's acknowledgement is missing.
    pub(super) fn complete(&self, attempt: &RunningAttempt) -> bool {
        attempt.subtasks.iter().all(|subtask| self.0.contains_key(subtask))
    }

    /// All of it together.
    pub(super) fn assemble(self, attempt: &RunningAttempt) -> Result<Contents> {
        let mut positions = Positions::new();
        let (mut operators, mut shares) = (Vec::new(), Vec::new());
        for ((chain, index), ack) in self.0 {
            let mut bytes = 0;
            for operator in ack.operators {
                for split in &operator.splits {
                    positions.insert((operator.uid.clone(), split.split.clone()), split.clone());
                }
                let written = operator.files.iter().filter(|file| file.is_written_by(&ack.snapshot));
                bytes = written.fold(bytes, |sum: u64, file| sum.saturating_add(file.bytes));
                operators.push(operator);
            }
            shares.push(SubtaskShare { chain, index, timings: ack.timings, bytes });
        }
        let mut contents = Contents { shares, ..Contents::of(operators) };
        for source in &attempt.sources {
            let mut splits = Vec::with_capacity(source.splits.len());
            for split in &source.splits {
                let position = positions.remove(&(source.uid.clone(), split.clone())).ok_or_else(|| {
                    Error::internal(format!("split {split} of source {} has no position in the snapshot", source.uid))
                })?;
                splits.push(position);
            }
            contents.sources.push(SourcePositions { uid: source.uid.clone(), splits });
        }
        if let Some(((uid, split), _)) = positions.pop_first() {
            return Err(Error::internal(format!("source {uid} has no split {split}, yet a subtask read it")));
        }
        Ok(contents)
    }
}
