//! Whether and when a broken job is started again: Flink's restart strategies, without clock and dice. What Flink draws by
//! lot, the jitter, is derived from job and attempt: it differs between jobs, and is the same on every JobManager.

use std::collections::VecDeque;

use weir_types::ids::{Attempt, JobId};
use weir_types::restart::{Backoff, RestartStrategy};
use weir_types::time::Millis;

/// An attempt that broke.
#[derive(Clone, Copy, Debug)]
pub(super) struct Broke {
    /// When.
    pub(super) at: Millis,
    /// Which.
    pub(super) attempt: Attempt,
    /// Since when all of its subtasks ran; none: they never did.
    pub(super) ran_since: Option<Millis>,
    /// Somebody whom it needs is gone: that says nothing about the next attempt.
    pub(super) by_peer: bool,
}

/// What a strategy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Restart after this time.
    After {
        /// The time.
        delay_ms: u64,
    },
    /// The job fails.
    GiveUp,
}

/// The restarts of one job.
#[derive(Debug)]
pub(super) struct Restarts {
    strategy: RestartStrategy,
    /// Hash of the job's id.
    seed: u64,
    /// Failures in the job's whole life.
    failures: u32,
    /// With exponential delays: failures since the delay was last the first one.
    in_a_row: u32,
    /// With a failure rate: times of the newest failures, one more than are allowed.
    times: VecDeque<Millis>,
}

impl Restarts {
    /// Those of a job that has failed so often, and at these times as far as they are known.
    pub(super) fn new(job: &JobId, strategy: RestartStrategy, failures: u32, times: Vec<Millis>) -> Self {
        let mut restarts =
            Self { strategy, seed: fnv(job.as_str().as_bytes()), failures, in_a_row: 0, times: VecDeque::new() };
        times.into_iter().for_each(|at| restarts.note(at));
        restarts
    }

    /// An attempt broke.
    pub(super) fn failed(&mut self, broke: Broke) -> Verdict {
        self.failures = self.failures.saturating_add(1);
        self.note(broke.at);
        match &self.strategy {
            RestartStrategy::None => Verdict::GiveUp,
            RestartStrategy::FixedDelay { attempts_max, delay_ms } => {
                restart_unless(attempts_max.is_some_and(|max| self.failures > max), *delay_ms)
            }
            RestartStrategy::FailureRate { failures_max, interval_ms, delay_ms } => {
                let beyond = self.times.len() > *failures_max as usize;
                let oldest = self.times.front().copied().unwrap_or(broke.at);
                restart_unless(beyond && broke.at.since(oldest) <= *interval_ms, *delay_ms)
            }
            RestartStrategy::ExponentialDelay(backoff) => {
                let ran_ms = broke.ran_since.map(|since| broke.at.since(since));
                if ran_ms.is_some_and(|ran| broke.by_peer || ran >= backoff.reset_threshold_ms) {
                    self.in_a_row = 0;
                }
                self.in_a_row = self.in_a_row.saturating_add(1);
                let delay_ms = jittered(backoff, delay(backoff, self.in_a_row), self.seed, broke.attempt);
                restart_unless(backoff.attempts_max.is_some_and(|max| self.in_a_row > max), delay_ms)
            }
        }
    }

    fn note(&mut self, at: Millis) {
        let RestartStrategy::FailureRate { failures_max, .. } = &self.strategy else { return };
        self.times.push_back(at);
        if self.times.len() > (*failures_max as usize).saturating_add(1) {
            self.times.pop_front();
        }
    }
}

fn restart_unless(exhausted: bool, delay_ms: u64) -> Verdict {
    if exhausted { Verdict::GiveUp } else { Verdict::After { delay_ms } }
}

/// The delay after the n-th failure in a row, counted from 1.
fn delay(backoff: &Backoff, failure: u32) -> u64 {
    let mut delay = backoff.initial_ms.min(backoff.max_ms);
    for _ in 1..failure {
        let longer = scaled(delay, backoff.multiplier_permille);
        // What does not grow any more will not.
        if delay >= backoff.max_ms || longer <= delay {
            break;
        }
        delay = longer.min(backoff.max_ms);
    }
    delay
}

/// The delay, longer or shorter by up to the jitter's part of it.
fn jittered(backoff: &Backoff, delay: u64, seed: u64, attempt: Attempt) -> u64 {
    let most = scaled(delay, backoff.jitter_permille);
    let drawn = fnv(&[seed.to_le_bytes(), u64::from(attempt.0).to_le_bytes()].concat());
    let offset = drawn % most.saturating_mul(2).saturating_add(1);
    delay.saturating_sub(most).saturating_add(offset)
}

fn scaled(value: u64, permille: u32) -> u64 {
    let scaled = u128::from(value) * u128::from(permille) / 1_000;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// FNV-1a: spreads names, and needs no more.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job() -> JobId {
        JobId::new("clicks").unwrap()
    }

    proptest! {
        #[test]
        fn delays_grow_up_to_their_limit_and_jitter_stays_within_its_part(
            initial_ms in 1u64..10_000,
            max_ms in 1u64..1_000_000,
            multiplier_permille in 1_000u32..10_000,
            jitter_permille in 0u32..=1_000,
            attempt in 1u32..1_000,
        ) {
            let backoff =
                Backoff { initial_ms, max_ms, multiplier_permille, jitter_permille, ..Backoff::default() };
            let delays: Vec<u64> = (1..50).map(|failure| delay(&backoff, failure)).collect();
            prop_assert_eq!(delays[0], initial_ms.min(max_ms));
            prop_assert!(delays.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] <= max_ms));
            for plain in delays {
                let most = plain * u64::from(jitter_permille) / 1_000;
                let with = jittered(&backoff, plain, 7, Attempt(attempt));
                prop_assert!((plain - most..=plain + most).contains(&with));
            }
        }
    }

    #[test]
    fn jobs_that_break_together_do_not_restart_together() {
        let first = |name: &str| {
            let mut restarts = Restarts::new(&JobId::new(name).unwrap(), RestartStrategy::default(), 0, Vec::new());
            restarts.failed(Broke { at: Millis(0), attempt: Attempt(1), ran_since: None, by_peer: false })
        };
        let delays: Vec<_> = ["a", "b", "c", "d"].map(first).to_vec();
        assert!(delays.iter().any(|delay| *delay != delays[0]), "{delays:?}");
        assert_eq!(first("a"), delays[0], "the same on every JobManager");
    }

    #[test]
    fn what_failed_before_a_change_of_leaders_counts() {
        let rate = RestartStrategy::FailureRate { failures_max: 2, interval_ms: 1_000, delay_ms: 5 };
        let broke = |at| Broke { at: Millis(at), attempt: Attempt(4), ran_since: None, by_peer: false };
        let mut restarts = Restarts::new(&job(), rate.clone(), 2, vec![Millis(100), Millis(900)]);
        assert_eq!(restarts.failed(broke(1_100)), Verdict::GiveUp);
        let mut restarts = Restarts::new(&job(), rate, 2, vec![Millis(100), Millis(900)]);
        assert_eq!(restarts.failed(broke(1_101)), Verdict::After { delay_ms: 5 });
        let fixed = RestartStrategy::FixedDelay { attempts_max: Some(2), delay_ms: 5 };
        let mut restarts = Restarts::new(&job(), fixed, 2, Vec::new());
        assert_eq!(restarts.failed(broke(0)), Verdict::GiveUp);
    }
}
