//! Points and spans of time for people.

use chrono::{DateTime, SecondsFormat, Utc};

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
