//! Life of a job. [`JobState::next`] is the only transition function; terminal states absorb.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{Attempt, ChainId, SubtaskIndex, TaskManagerId};
use crate::time::Millis;

/// An attempt that broke: where, why, and what followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// When the JobManager heard of it.
    pub at: Millis,
    /// The attempt.
    pub attempt: Attempt,
    /// The subtask that broke first; none: the cause lies outside of the subtasks.
    pub subtask: Option<(ChainId, SubtaskIndex)>,
    /// The TaskManager that the subtask ran on, or that was lost.
    pub task_manager: Option<TaskManagerId>,
    /// The root cause.
    pub error: Error,
    /// What followed.
    pub followed: Followed,
}

/// What follows when an attempt breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The job restarts after so many milliseconds, given slots.
    Restart {
        /// The delay.
        delay_ms: u64,
    },
    /// The job has failed.
    Fail,
}

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Accepted, waiting for slots.
    Created,
    /// Deployed, not all subtasks run yet.
    Starting,
    /// All subtasks run.
    Running,
    /// Broken; the next attempt waits for its delay and for slots.
    Restarting,
    /// A stop with savepoint is under way.
    Stopping,
    /// Being cancelled.
    Cancelling,
    /// All input was read, all output is durable.
    Finished,
    /// Ended by a stop with savepoint.
    Stopped,
    /// Ended by its user.
    Cancelled,
    /// Ended by an error.
    Failed,
}

/// What may happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobChange {
    /// An attempt is deployed.
    Deploy,
    /// All subtasks run; also: a stop was given up while they did.
    Run,
    /// The attempt broke.
    Restart,
    /// A stop with savepoint begins.
    Stop,
    /// The user wants it gone.
    Cancel,
    /// All subtasks have finished.
    Finish,
    /// The stop's savepoint is complete and all subtasks have ended.
    EndStopped,
    /// All subtasks of a cancelled job have ended.
    EndCancelled,
    /// It cannot go on.
    Fail,
}

impl JobState {
    /// The state after `change`, or none if the change does not apply: it came too late, or too early.
    pub fn next(self, change: JobChange) -> Option<Self> {
        use JobState::{
            Cancelled, Cancelling, Created, Failed, Finished, Restarting, Running, Starting, Stopped, Stopping,
        };
        match (self, change) {
            (Finished | Stopped | Cancelled | Failed, _) => None,
            (Created | Restarting, JobChange::Deploy) => Some(Starting),
            (Starting | Stopping, JobChange::Run) => Some(Running),
            (Created | Starting | Running | Restarting | Stopping, JobChange::Restart) => Some(Restarting),
            (Running, JobChange::Stop) => Some(Stopping),
            (Created | Starting | Running | Restarting | Stopping, JobChange::Cancel) => Some(Cancelling),
            (Starting | Running | Stopping, JobChange::Finish) => Some(Finished),
            (Starting | Running | Restarting | Stopping, JobChange::EndStopped) => Some(Stopped),
            (Cancelling, JobChange::EndCancelled) => Some(Cancelled),
            (Created | Starting | Running | Restarting | Stopping, JobChange::Fail) => Some(Failed),
            _ => None,
        }
    }

    /// Whether nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Cancelled | Self::Failed)
    }

    /// The name users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "CREATED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Restarting => "RESTARTING",
            Self::Stopping => "STOPPING",
            Self::Cancelling => "CANCELLING",
            Self::Finished => "FINISHED",
            Self::Stopped => "STOPPED",
            Self::Cancelled => "CANCELLED",
            Self::Failed => "FAILED",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGES: [JobChange; 9] = [
        JobChange::Deploy,
        JobChange::Run,
        JobChange::Restart,
        JobChange::Stop,
        JobChange::Cancel,
        JobChange::Finish,
        JobChange::EndStopped,
        JobChange::EndCancelled,
        JobChange::Fail,
    ];

    #[test]
    fn terminal_states_absorb() {
        for state in [JobState::Finished, JobState::Stopped, JobState::Cancelled, JobState::Failed] {
            assert!(state.is_terminal());
            assert!(CHANGES.iter().all(|change| state.next(*change).is_none()), "{state}");
        }
    }

    #[test]
    fn a_cancelled_job_ends_cancelled_and_nothing_else() {
        for change in CHANGES {
            let next = JobState::Cancelling.next(change);
            assert_eq!(next, (change == JobChange::EndCancelled).then_some(JobState::Cancelled), "{change:?}");
        }
    }

    #[test]
    fn a_job_that_is_not_deployed_cannot_run_or_finish() {
        for state in [JobState::Created, JobState::Restarting] {
            assert_eq!(state.next(JobChange::Run), None);
            assert_eq!(state.next(JobChange::Finish), None);
        }
    }
}
