//! Restart strategies, with Flink's names: whether and when a job whose attempt broke is started again.

use serde::{Deserialize, Serialize};

/// What follows when an attempt of a job breaks. Times are in milliseconds, factors in thousandths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum RestartStrategy {
    /// `none`: the job fails.
    None,
    /// `fixed-delay`: so many restarts, each after the same time.
    FixedDelay {
        /// `attempts`: how many restarts in the job's whole life; none: without limit.
        attempts_max: Option<u32>,
        /// `delay`.
        delay_ms: u64,
    },
    /// `exponential-delay`: longer and longer delays, until the job has run for a while.
    ExponentialDelay(Backoff),
    /// `failure-rate`: restarts, as long as there are not too many in a time.
    FailureRate {
        /// `max-failures-per-interval`: with one failure more within the interval, the job fails.
        failures_max: u32,
        /// `failure-rate-interval`.
        interval_ms: u64,
        /// `delay`.
        delay_ms: u64,
    },
}

/// Delays that grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// `initial-backoff`: the delay after the first failure.
    pub initial_ms: u64,
    /// `max-backoff`: no delay is longer, its jitter left aside.
    pub max_ms: u64,
    /// `backoff-multiplier`, in thousandths.
    pub multiplier_permille: u32,
    /// `reset-backoff-threshold`: an attempt that has run for so long begins anew with the first delay.
    pub reset_threshold_ms: u64,
    /// `jitter-factor`, in thousandths: by how much of itself a delay may be longer or shorter, so that jobs which broke
    /// together do not start together.
    pub jitter_permille: u32,
    /// `attempts-before-reset-backoff`: how many restarts before the job fails, counted anew when the delay is; none: without
    /// limit.
    pub attempts_max: Option<u32>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial_ms: 100,
            max_ms: 60_000,
            multiplier_permille: 1_500,
            reset_threshold_ms: 60_000,
            jitter_permille: 100,
            attempts_max: None,
        }
    }
}

impl Default for RestartStrategy {
    fn default() -> Self {
        Self::ExponentialDelay(Backoff::default())
    }
}

impl RestartStrategy {
    /// As it is configured.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FixedDelay { .. } => "fixed-delay",
            Self::ExponentialDelay(_) => "exponential-delay",
            Self::FailureRate { .. } => "failure-rate",
        }
    }
}
