//! A job's history of failures: the newest ones with their root causes, and how many there were.

use std::collections::VecDeque;

use weir_types::Error;
use weir_types::job::JobFailure;

/// Failures that are remembered of each job, as many as Flink shows.
const FAILURES_MAX: usize = 16;
/// What is kept of each text of an error, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// What broke a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Failures in the job's whole life.
    pub total: u32,
    /// The newest of them, oldest first.
    pub newest: VecDeque<JobFailure>,
}

impl Failures {
    /// The cause of the newest failure.
    pub fn last(&self) -> Option<&Error> {
        self.newest.back().map(|failure| &failure.error)
    }

    /// Remembers a failure.
    pub(super) fn note(&mut self, mut failure: JobFailure) {
        let error = &mut failure.error;
        for text in [Some(&mut error.message), error.detail.as_mut(), error.hint.as_mut()].into_iter().flatten() {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        }
        self.total = self.total.saturating_add(1);
        self.newest.push_back(failure);
        if self.newest.len() > FAILURES_MAX {
            self.newest.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_types::Code;
    use weir_types::ids::Attempt;
    use weir_types::job::Followed;
    use weir_types::time::Millis;

    use super::*;

    #[test]
    fn the_newest_failures_are_kept_and_all_are_counted() {
        let mut failures = Failures::default();
        for attempt in 1..=20 {
            failures.note(JobFailure {
                at: Millis(u64::from(attempt)),
                attempt: Attempt(attempt),
                subtask: None,
                task_manager: None,
                error: Error::new(Code::Io, "é".repeat(TEXT_BYTES_MAX)).with_detail("short"),
                followed: Followed::Restart { delay_ms: 1 },
            });
        }
        assert_eq!((failures.total, failures.newest.len()), (20, FAILURES_MAX));
        let attempts: Vec<u32> = failures.newest.iter().map(|failure| failure.attempt.0).collect();
        assert_eq!(attempts, (5..=20).collect::<Vec<_>>());
        let last = failures.last().unwrap();
        assert_eq!((last.message.len(), last.detail.as_deref()), (TEXT_BYTES_MAX, Some("short")));
    }
}
