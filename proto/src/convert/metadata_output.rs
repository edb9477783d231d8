//! Decisions about the output of jobs, as they are replicated.

use weir_coordination::metadata::Output;
use weir_types::Result;
use weir_types::ids::{Attempt, BarrierId};
use weir_types::output::{CommitMark, Settlement};

use super::metadata::{change_from_pb, change_to_pb};
use crate::pb::metadata::v1 as pb;

impl From<CommitMark> for pb::CommitMark {
    fn from(CommitMark { attempt, barrier }: CommitMark) -> Self {
        Self { attempt: attempt.0, barrier: barrier.0 }
    }
}

impl From<pb::CommitMark> for CommitMark {
    fn from(pb::CommitMark { attempt, barrier }: pb::CommitMark) -> Self {
        Self { attempt: Attempt(attempt), barrier: BarrierId(barrier) }
    }
}

impl From<Settlement> for pb::Settlement {
    fn from(Settlement { commit, below }: Settlement) -> Self {
        Self { commit: commit.map(Into::into), below: below.map(|below| below.0) }
    }
}

impl From<pb::Settlement> for Settlement {
    fn from(pb::Settlement { commit, below }: pb::Settlement) -> Self {
        Self { commit: commit.map(Into::into), below: below.map(Attempt) }
    }
}

/// Nothing, where nothing was decided.
pub(super) fn output_to_pb(output: Output) -> Option<pb::Output> {
    let Output { committed, duty, ending } = output;
    (output != Output::default()).then(|| pb::Output {
        committed: committed.map(Into::into),
        duty: duty.map(Into::into),
        ending: ending.map(|ending| change_to_pb(ending).into()),
    })
}

pub(super) fn output_from_pb(output: Option<pb::Output>) -> Result<Output> {
    let pb::Output { committed, duty, ending } = output.unwrap_or_default();
    Ok(Output {
        committed: committed.map(Into::into),
        duty: duty.map(Into::into),
        ending: ending.map(change_from_pb).transpose()?,
    })
}
