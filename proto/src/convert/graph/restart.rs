//! Restart strategies on the wire and in the metadata log.

use weir_types::restart::{Backoff, RestartStrategy};

use crate::pb::graph::v1 as pb;
use crate::pb::graph::v1::job_options::Restart;

impl From<&RestartStrategy> for Restart {
    fn from(strategy: &RestartStrategy) -> Self {
        match strategy {
            RestartStrategy::None => Self::NoRestart(pb::NoRestart {}),
            RestartStrategy::FixedDelay { attempts_max, delay_ms } => {
                Self::FixedDelay(pb::FixedDelay { attempts_max: *attempts_max, delay_ms: *delay_ms })
            }
            RestartStrategy::ExponentialDelay(backoff) => {
                let Backoff {
                    initial_ms,
                    max_ms,
                    multiplier_permille,
                    reset_threshold_ms,
                    jitter_permille,
                    attempts_max,
                } = *backoff;
                Self::ExponentialDelay(pb::ExponentialDelay {
                    initial_ms,
                    max_ms,
                    multiplier_permille,
                    reset_threshold_ms,
                    jitter_permille,
                    attempts_max,
                })
            }
            RestartStrategy::FailureRate { failures_max, interval_ms, delay_ms } => {
                Self::FailureRate(pb::FailureRate {
                    failures_max: *failures_max,
                    interval_ms: *interval_ms,
                    delay_ms: *delay_ms,
                })
            }
        }
    }
}

impl From<Restart> for RestartStrategy {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::NoRestart(pb::NoRestart {}) => Self::None,
            Restart::FixedDelay(pb::FixedDelay { attempts_max, delay_ms }) => {
                Self::FixedDelay { attempts_max, delay_ms }
            }
            Restart::ExponentialDelay(pb::ExponentialDelay {
                initial_ms,
                max_ms,
                multiplier_permille,
                reset_threshold_ms,
                jitter_permille,
                attempts_max,
            }) => Self::ExponentialDelay(Backoff {
                initial_ms,
                max_ms,
                multiplier_permille,
                reset_threshold_ms,
                jitter_permille,
                attempts_max,
            }),
            Restart::FailureRate(pb::FailureRate { failures_max, interval_ms, delay_ms }) => {
                Self::FailureRate { failures_max, interval_ms, delay_ms }
            }
        }
    }
}

/// What a build meant that knew a number of attempts and a first delay, which grew.
pub(super) fn of_older_build(attempts_max: Option<u32>, delay_ms: u64) -> RestartStrategy {
    match attempts_max {
        Some(0) => RestartStrategy::None,
        Some(_) => RestartStrategy::FixedDelay { attempts_max, delay_ms },
        None => RestartStrategy::ExponentialDelay(Backoff { initial_ms: delay_ms, ..Backoff::default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_survive_the_wire() {
        for strategy in [
            RestartStrategy::None,
            RestartStrategy::FixedDelay { attempts_max: Some(3), delay_ms: 5 },
            RestartStrategy::FixedDelay { attempts_max: None, delay_ms: 0 },
            RestartStrategy::ExponentialDelay(Backoff { attempts_max: Some(7), ..Backoff::default() }),
            RestartStrategy::FailureRate { failures_max: 2, interval_ms: 3, delay_ms: 4 },
        ] {
            assert_eq!(RestartStrategy::from(Restart::from(&strategy)), strategy);
        }
    }

    #[test]
    fn jobs_of_older_builds_keep_their_options() {
        assert_eq!(of_older_build(Some(0), 100), RestartStrategy::None);
        assert_eq!(of_older_build(Some(2), 50), RestartStrategy::FixedDelay { attempts_max: Some(2), delay_ms: 50 });
        let RestartStrategy::ExponentialDelay(backoff) = of_older_build(None, 70) else { panic!("delays grew") };
        assert_eq!((backoff.initial_ms, backoff.attempts_max), (70, None));
    }
}
