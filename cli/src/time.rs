//! Points and spans of time for people.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use weir_service::units::TimeSpan;
use weir_types::{Error, Result};

/// A moment in ms since the epoch as RFC 3339 in UTC; zero is `-`.
pub(crate) fn moment(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let moment = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    moment.map_or_else(|| ms.to_string(), |moment| moment.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A watermark in ms since the epoch: none yet, a moment, or the end of a bounded input.
pub(crate) fn watermark(ms: i64) -> String {
    match ms {
        i64::MIN => "-".to_owned(),
        i64::MAX => "end".to_owned(),
        ms => DateTime::<Utc>::from_timestamp_millis(ms)
            .map_or_else(|| ms.to_string(), |moment| moment.to_rfc3339_opts(SecondsFormat::Millis, true)),
    }
}

/// A moment that was written as a time in UTC (`2026-01-31`, `2026-01-31T12:00`, with seconds, or RFC 3339 with a zone), or
/// as how long ago it was (`36h`); in ms since the epoch.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub(crate) fn parse(text: &str, now_ms: u64) -> Result<u64> {
    if let Ok(TimeSpan(ago)) = text.parse() {
        return Ok(now_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
    }
    let local = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"].iter();
    let at = DateTime::parse_from_rfc3339(text)
        .map(|at| at.to_utc())
        .ok()
        .or_else(|| {
            local.filter_map(|format| NaiveDateTime::parse_from_str(text, format).ok()).next().map(|at| at.and_utc())
        })
        .or_else(|| Some(text.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0)?.and_utc()));
    at.and_then(|at| u64::try_from(at.timestamp_millis()).ok()).ok_or_else(|| {
        Error::invalid(format!("{text:?} is neither a time nor a duration"))
            .with_hint("Write, for example, 2026-01-31T12:00 (in UTC), or 36h for 36 hours ago.")
    })
}

/// Now, in ms since the epoch.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default()
}

/// A span between two moments in ms: `1.250 s`; `-` while the later is zero.
pub(crate) fn span(from_ms: u64, to_ms: u64) -> String {
    if from_ms == 0 || to_ms == 0 {
        return "-".to_owned();
    }
    let ms = to_ms.saturating_sub(from_ms);
    if ms < 60_000 {
        format!("{}.{:03} s", ms / 1000, ms % 1000)
    } else {
        format!("{} min {} s", ms / 60_000, ms / 1000 % 60)
    }
}

/// Microseconds: `12.345 ms`.
pub(crate) fn micros(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_in_utc_or_spans_before_now() {
        let noon = 1_769_860_800_000;
        for text in ["2026-01-31T12:00", "2026-01-31T12:00:00", "2026-01-31T13:00:00.000+01:00", "1h"] {
            assert_eq!(parse(text, noon + 3_600_000).unwrap(), noon, "{text}");
        }
        assert_eq!(parse("2026-01-31", 0).unwrap(), noon - 43_200_000);
        for text in ["", "yesterday", "2026-02-30", "12:00", "1969-01-01"] {
            assert_eq!(parse(text, noon).unwrap_err().code, weir_types::Code::InvalidArgument, "{text}");
        }
    }
}
