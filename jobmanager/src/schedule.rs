//! When scheduled savepoints are due. Cron expressions are evaluated in UTC, here and not in the replicated state: what is
//! replicated is only when the last savepoint was attempted.
//!
//! However many times have passed since then, one savepoint makes up for all of them.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use weir_types::retention::{INTERVAL_MS_MIN, Schedule};
use weir_types::time::Millis;
use weir_types::{Error, Result};

/// Whether a schedule can be evaluated.
///
/// # Errors
/// `INVALID_ARGUMENT` for a cron expression that is none, or that never comes true.
pub(crate) fn check(schedule: &Schedule, now: Millis) -> Result<()> {
    next_after(schedule, now).map(drop)
}

/// The first moment after `since` that a schedule names.
///
/// # Errors
/// `INVALID_ARGUMENT` for a cron expression that is none, or that never comes true again.
pub(crate) fn next_after(schedule: &Schedule, since: Millis) -> Result<Millis> {
    match schedule {
        Schedule::EveryMs(ms) => Ok(since.plus((*ms).max(INTERVAL_MS_MIN))),
        Schedule::Cron(expression) => {
            let wrong = |detail: String| {
                Error::invalid(format!("{expression:?} is not a cron expression")).with_detail(detail).with_hint(
                    "Write five fields, in UTC: minute, hour, day of month, month, day of week: `0 3 * * *`.",
                )
            };
            let cron = parse(expression).map_err(|error| wrong(error.to_string()))?;
            let since = i64::try_from(since.0).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
            let since = since.ok_or_else(|| wrong("the clock is out of its range".to_owned()))?;
            let next = cron.find_next_occurrence(&since, false).map_err(|error| wrong(error.to_string()))?;
            Ok(Millis(u64::try_from(next.timestamp_millis()).unwrap_or_default()))
        }
    }
}

fn parse(expression: &str) -> std::result::Result<Cron, croner::errors::CronError> {
    CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Millis {
        Millis(u64::try_from(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()).unwrap())
    }

    fn next(expression: &str, since: &str) -> Millis {
        next_after(&Schedule::Cron(expression.to_owned()), at(since)).unwrap()
    }

    #[test]
    fn the_next_moment_lies_strictly_after_the_last_one() {
        assert_eq!(next("0 3 * * *", "2026-01-31T02:59:59.999Z"), at("2026-01-31T03:00:00Z"));
        assert_eq!(next("0 3 * * *", "2026-01-31T03:00:00Z"), at("2026-02-01T03:00:00Z"));
        assert_eq!(next("*/10 * * * * *", "2026-01-31T23:59:51Z"), at("2026-02-01T00:00:00Z"));
        assert_eq!(next("30 1 29 2 *", "2026-01-01T00:00:00Z"), at("2028-02-29T01:30:00Z"));
        assert_eq!(next_after(&Schedule::EveryMs(5_000), Millis(7)).unwrap(), Millis(5_007));
    }

    #[test]
    fn what_is_no_expression_or_never_comes_true_is_refused() {
        for expression in ["", "* * * *", "61 * * * *", "0 3 31 2 *", "nightly", "* * * * * * 2030"] {
            let error = check(&Schedule::Cron(expression.to_owned()), at("2026-01-01T00:00:00Z")).unwrap_err();
            assert_eq!(error.code, weir_types::Code::InvalidArgument, "{expression:?}");
        }
    }
}
