//! Failures of jobs: as the log holds them, and as clients see them.

use weir_coordination::metadata::Failures;
use weir_types::ids::{Attempt, ChainId, SubtaskIndex, TaskManagerId};
use weir_types::job::{Followed, JobChange, JobFailure};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::required;
use crate::pb::client::v1 as pb;

/// Without the chain's name, which its caller fills in for clients.
impl From<&JobFailure> for pb::JobFailure {
    fn from(failure: &JobFailure) -> Self {
        let JobFailure { at, attempt, subtask, task_manager, error, followed } = failure;
        Self {
            at_ms: at.0,
            attempt: attempt.0,
            chain: subtask.map(|(chain, _)| chain.0),
            index: subtask.map_or(0, |(_, index)| index.0),
            chain_name: String::new(),
            task_manager_id: task_manager.as_ref().map(ToString::to_string).unwrap_or_default(),
            error: Some(error.into()),
            restart_after_ms: match followed {
                Followed::Restart { delay_ms } => Some(*delay_ms),
                Followed::Fail => None,
            },
        }
    }
}

impl TryFrom<pb::JobFailure> for JobFailure {
    type Error = Error;

    fn try_from(failure: pb::JobFailure) -> Result<Self> {
        let pb::JobFailure { at_ms, attempt, chain, index, chain_name: _, task_manager_id, error, restart_after_ms } =
            failure;
        let task_manager = Some(task_manager_id).filter(|id| !id.is_empty());
        Ok(Self {
            at: Millis(at_ms),
            attempt: Attempt(attempt),
            subtask: chain.map(|chain| (ChainId(chain), SubtaskIndex(index))),
            task_manager: task_manager.map(TaskManagerId::new).transpose()?,
            error: required("error", error)?.into(),
            followed: restart_after_ms.map_or(Followed::Fail, |delay_ms| Followed::Restart { delay_ms }),
        })
    }
}

/// A job's history; `older` is the only failure that builds without a history knew of.
pub(super) fn failures_from_pb(newest: Vec<pb::JobFailure>, total: u32, older: Option<JobFailure>) -> Result<Failures> {
    let mut failures = Failures { total, newest: newest.into_iter().map(TryInto::try_into).collect::<Result<_>>()? };
    if let Some(older) = older.filter(|_| failures.newest.is_empty()) {
        failures.newest.push_back(older);
        failures.total = 1;
    }
    Ok(failures)
}

/// What a build without a history of failures said of one.
pub(super) fn of_older_build(at: Millis, attempt: Attempt, change: JobChange, error: Error) -> JobFailure {
    let followed = if change == JobChange::Fail { Followed::Fail } else { Followed::Restart { delay_ms: 0 } };
    JobFailure { at, attempt, subtask: None, task_manager: None, error, followed }
}
