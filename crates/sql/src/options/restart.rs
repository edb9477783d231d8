//! `restart-strategy.*`: Flink's keys as one strategy.

use weir_types::options::parse_duration_ms;
use weir_types::restart::{Backoff, RestartStrategy};
use weir_types::{Error, Result};

use super::Key;

/// Failures that a rate may allow: their times are remembered.
const FAILURES_MAX: u32 = 10_000;
/// Factors above this are slips.
const MULTIPLIER_PERMILLE_MAX: u32 = 1_000_000;
const DURATION: &str = "a duration such as '1 s'";
const STRATEGIES: &str = "'none', 'fixed-delay', 'exponential-delay' or 'failure-rate'";
const FIXED_DELAY: &str = "fixed-delay";
const EXPONENTIAL_DELAY: &str = "exponential-delay";
const FAILURE_RATE: &str = "failure-rate";

/// What the keys have said; each strategy has its own ones.
#[derive(Clone, Debug)]
pub(super) struct Restart {
    chosen: Option<&'static str>,
    /// Strategies that a key was set of.
    touched: Vec<&'static str>,
    fixed_attempts: Option<u32>,
    fixed_delay_ms: u64,
    backoff: Backoff,
    failures_max: u32,
    failure_interval_ms: u64,
    failure_delay_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            chosen: None,
            touched: Vec::new(),
            fixed_attempts: None,
            fixed_delay_ms: 100,
            backoff: Backoff::default(),
            failures_max: 1,
            failure_interval_ms: 60_000,
            failure_delay_ms: 1_000,
        }
    }
}

impl Restart {
    /// The strategy that is meant. Without `restart-strategy.type`, the keys of a strategy choose it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there are keys of several strategies, and none is chosen.
    pub(super) fn strategy(&self, warnings: &mut Vec<String>) -> Result<RestartStrategy> {
        let chosen = match (self.chosen, self.touched.as_slice()) {
            (Some(chosen), touched) => {
                for other in touched.iter().filter(|other| **other != chosen) {
                    let keys = format!("options 'restart-strategy.{other}.*' have no effect");
                    warnings.push(format!("{keys}: 'restart-strategy.type' is '{chosen}'"));
                }
                chosen
            }
            (None, []) => EXPONENTIAL_DELAY,
            (None, [only]) => only,
            (None, several) => {
                let message = format!("there are options of the restart strategies '{}'", several.join("' and '"));
                return Err(Error::invalid(message).with_hint("Choose one with 'restart-strategy.type'."));
            }
        };
        Ok(match chosen {
            FIXED_DELAY => {
                RestartStrategy::FixedDelay { attempts_max: self.fixed_attempts, delay_ms: self.fixed_delay_ms }
            }
            EXPONENTIAL_DELAY => RestartStrategy::ExponentialDelay(self.backoff.clone()),
            FAILURE_RATE => RestartStrategy::FailureRate {
                failures_max: self.failures_max,
                interval_ms: self.failure_interval_ms,
                delay_ms: self.failure_delay_ms,
            },
            _ => RestartStrategy::None,
        })
    }

    fn choose(&mut self, value: &str) -> Option<()> {
        self.chosen = Some(match value.to_lowercase().as_str() {
            "none" | "off" | "disable" => "none",
            "fixed-delay" | "fixeddelay" => FIXED_DELAY,
            "exponential-delay" | "exponentialdelay" => EXPONENTIAL_DELAY,
            "failure-rate" | "failurerate" => FAILURE_RATE,
            _ => return None,
        });
        Some(())
    }

    fn touch(&mut self, strategy: &'static str) {
        if !self.touched.contains(&strategy) {
            self.touched.push(strategy);
        }
    }
}

/// A key of a strategy: parses the value and puts it in its place.
macro_rules! key {
    ($strategy:expr, $key:literal, $takes:expr, |$restart:ident, $value:ident| $parsed:expr => $($place:tt)+) => {
        ($key, $takes, |settings, $value| {
            let $restart = &mut settings.restart;
            $restart.$($place)+ = $parsed;
            $restart.touch($strategy);
            Some(())
        })
    };
}

pub(super) const KEYS: &[Key] = &[
    ("restart-strategy.type", STRATEGIES, |settings, value| settings.restart.choose(value)),
    ("restart-strategy", STRATEGIES, |settings, value| settings.restart.choose(value)),
    key!(FIXED_DELAY, "restart-strategy.fixed-delay.attempts", "a number", |restart, value|
        limit(value)? => fixed_attempts),
    key!(FIXED_DELAY, "restart-strategy.fixed-delay.delay", DURATION, |restart, value|
        parse_duration_ms(value)? => fixed_delay_ms),
    key!(EXPONENTIAL_DELAY, "restart-strategy.exponential-delay.initial-backoff", DURATION, |restart, value|
        parse_duration_ms(value).filter(|ms| *ms > 0)? => backoff.initial_ms),
    key!(EXPONENTIAL_DELAY, "restart-strategy.exponential-delay.max-backoff", DURATION, |restart, value|
        parse_duration_ms(value).filter(|ms| *ms > 0)? => backoff.max_ms),
    key!(EXPONENTIAL_DELAY, "restart-strategy.exponential-delay.backoff-multiplier", "a number from 1", |restart, value|
        permille(value, 1_000, MULTIPLIER_PERMILLE_MAX)? => backoff.multiplier_permille),
    key!(EXPONENTIAL_DELAY, "restart-strategy.exponential-delay.reset-backoff-threshold", DURATION, |restart, value|
        parse_duration_ms(value)? => backoff.reset_threshold_ms),
    key!(EXPONENTIAL_DELAY, "restart-strategy.exponential-delay.jitter-factor", "a number from 0 to 1", |restart, value|
        permille(value, 0, 1_000)? => backoff.jitter_permille),
    key!(EXPONENTIAL_DELAY, "restart-strategy.exponential-delay.attempts-before-reset-backoff", "a number",
        |restart, value| limit(value)? => backoff.attempts_max),
    key!(FAILURE_RATE, "restart-strategy.failure-rate.max-failures-per-interval", "a number from 1 to 10000",
        |restart, value| value.parse().ok().filter(|max| (1..=FAILURES_MAX).contains(max))? => failures_max),
    key!(FAILURE_RATE, "restart-strategy.failure-rate.failure-rate-interval", DURATION, |restart, value|
        parse_duration_ms(value).filter(|ms| *ms > 0)? => failure_interval_ms),
    key!(FAILURE_RATE, "restart-strategy.failure-rate.delay", DURATION, |restart, value|
        parse_duration_ms(value)? => failure_delay_ms),
];

/// A number of attempts; Flink's documentation spells "without limit" as the largest int.
fn limit(value: &str) -> Option<Option<u32>> {
    let attempts: u32 = value.parse().ok()?;
    Some((attempts < i32::MAX as u32).then_some(attempts))
}

/// A decimal number in thousandths, within these bounds.
fn permille(value: &str, least: u32, most: u32) -> Option<u32> {
    let number: f64 = value.parse().ok()?;
    let scaled = (number * 1_000.0).round();
    (scaled >= f64::from(least) && scaled <= f64::from(most)).then_some(scaled as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Settings;
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<(RestartStrategy, Vec<String>)> {
        let pairs: BTreeMap<_, _> =
            pairs.iter().map(|(key, value)| (format!("restart-strategy{key}"), (*value).to_owned())).collect();
        Settings::of(pairs.iter()).map(|settings| (settings.options.restart, settings.warnings))
    }

    fn strategy(pairs: &[(&str, &str)]) -> RestartStrategy {
        of(pairs).unwrap().0
    }

    #[test]
    fn each_strategy_takes_its_own_keys() {
        assert_eq!(strategy(&[]), RestartStrategy::default());
        assert_eq!(strategy(&[("", "none"), (".fixed-delay.attempts", "3")]), RestartStrategy::None);
        let fixed = [(".type", "fixed-delay"), (".fixed-delay.attempts", "3"), (".fixed-delay.delay", "2 s")];
        assert_eq!(strategy(&fixed), RestartStrategy::FixedDelay { attempts_max: Some(3), delay_ms: 2_000 });
        let rate = [
            (".type", "failure-rate"),
            (".failure-rate.max-failures-per-interval", "5"),
            (".failure-rate.failure-rate-interval", "10 min"),
        ];
        let expected = RestartStrategy::FailureRate { failures_max: 5, interval_ms: 600_000, delay_ms: 1_000 };
        assert_eq!(strategy(&rate), expected);
        let exponential = [
            (".exponential-delay.initial-backoff", "10 s"),
            (".exponential-delay.max-backoff", "2 min"),
            (".exponential-delay.backoff-multiplier", "1.25"),
            (".exponential-delay.reset-backoff-threshold", "1 h"),
            (".exponential-delay.jitter-factor", "0.5"),
            (".exponential-delay.attempts-before-reset-backoff", "8"),
        ];
        let expected = Backoff {
            initial_ms: 10_000,
            max_ms: 120_000,
            multiplier_permille: 1_250,
            reset_threshold_ms: 3_600_000,
            jitter_permille: 500,
            attempts_max: Some(8),
        };
        assert_eq!(strategy(&exponential), RestartStrategy::ExponentialDelay(expected));
    }

    #[test]
    fn keys_of_one_strategy_choose_it_and_keys_of_two_need_a_type() {
        let fixed = strategy(&[(".fixed-delay.attempts", "2147483647")]);
        assert_eq!(fixed, RestartStrategy::FixedDelay { attempts_max: None, delay_ms: 100 });
        let two = [(".fixed-delay.attempts", "1"), (".failure-rate.delay", "1 s")];
        let error = of(&two).unwrap_err();
        assert_eq!(error.message, "there are options of the restart strategies 'failure-rate' and 'fixed-delay'");
        let (_, warnings) = of(&[two[0], two[1], (".type", "fixed-delay")]).unwrap();
        let expected =
            "options 'restart-strategy.failure-rate.*' have no effect: 'restart-strategy.type' is 'fixed-delay'";
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for (key, value) in [
            (".type", "sometimes"),
            (".fixed-delay.attempts", "-1"),
            (".exponential-delay.backoff-multiplier", "0.9"),
            (".exponential-delay.backoff-multiplier", "NaN"),
            (".exponential-delay.jitter-factor", "1.1"),
            (".exponential-delay.initial-backoff", "0"),
            (".failure-rate.max-failures-per-interval", "0"),
            (".failure-rate.failure-rate-interval", "soon"),
        ] {
            let error = of(&[(key, value)]).unwrap_err();
            assert_eq!(error.message, format!("option 'restart-strategy{key}' does not take the value '{value}'"));
        }
    }
}
