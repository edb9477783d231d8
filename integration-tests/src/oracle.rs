//! Oracles that share no code with the engine: small programs over JSON.

use std::collections::BTreeMap;

use serde_json::Value;

/// Milliseconds since the epoch of `yyyy-MM-dd HH:mm:ss[.SSS]` or RFC 3339 in UTC, by the civil-calendar arithmetic of
/// Howard Hinnant's `days_from_civil`.
pub fn millis(text: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| -> i64 { text[range].parse().expect("digits") };
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let fraction: String = text[19..].trim_start_matches('.').chars().take_while(char::is_ascii_digit).collect();
    let ms: i64 = format!("{fraction:0<3}")[..3].parse().expect("digits");
    ((days * 24 + number(11..13)) * 60 + number(14..16)) * 60_000 + number(17..19) * 1000 + ms
}

/// Rows of a windowed count and sum, by key and window start in ms.
pub type Windows = BTreeMap<(String, i64), (i64, i64)>;

/// Counts rows and sums `value` per `key` and tumbling window of `size_ms` over `time`.
pub fn tumble(rows: &[Value], key: &str, time: &str, value: &str, size_ms: i64) -> Windows {
    let mut windows = Windows::new();
    for row in rows {
        let at = millis(row[time].as_str().expect("a timestamp"));
        let start = at.div_euclid(size_ms) * size_ms;
        let entry = windows.entry((row[key].as_str().expect("a key").to_owned(), start)).or_default();
        entry.0 += 1;
        entry.1 += row[value].as_i64().unwrap_or_default();
    }
    windows
}

/// Folds rows written by a job, `key`, `window_start`, `n`, `total`: the same row written twice after a restart counts
/// once, but two different values for one key and window are an error.
pub fn fold(rows: &[Value], key: &str) -> Windows {
    let mut windows = Windows::new();
    for row in rows {
        let at = millis(row["window_start"].as_str().expect("a timestamp"));
        let found = (row["n"].as_i64().expect("a count"), row["total"].as_i64().unwrap_or_default());
        let before = windows.insert((row[key].as_str().expect("a key").to_owned(), at), found);
        assert!(before.is_none_or(|before| before == found), "two results for one window: {before:?} and {row}");
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_of_both_notations_are_read() {
        assert_eq!(millis("1970-01-01 00:00:00"), 0);
        assert_eq!(millis("2000-03-01T00:00:00.5Z"), 951_868_800_500);
        assert_eq!(millis("2024-02-29 12:34:56.789"), 1_709_210_096_789);
    }
}
