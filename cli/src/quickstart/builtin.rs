//! The built-in input and query of the quickstart, and the query's result computed without the engine.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_types::{Code, Error, Result};

/// The job: page views and spending per page and ten seconds, late views kept apart.
pub(crate) const SCRIPT: &str = include_str!("pages.sql");
/// What picks a view's partition.
pub(crate) const KEY: &str = "visitor";

/// 2026-01-01T00:00:00Z.
const BASE_MS: i64 = 1_767_225_600_000;
/// Event time between two views.
const STEP_MS: i64 = 5;
/// A window of the query.
const WINDOW_MS: i64 = 10_000;
/// Pages, the first ones more popular.
const PAGES: [&str; 8] = ["/", "/search", "/docs", "/pricing", "/blog", "/cart", "/login", "/about"];

/// View number `i` as a JSON line: a pure function of `i`. Views are up to four seconds out of order; one in two thousand
/// comes a minute late, behind the watermark.
pub(crate) fn line(i: u64) -> String {
    let random = mix(i);
    let page = PAGES[((random & 7).min((random >> 3) & 7)) as usize];
    let delay_ms = if random.is_multiple_of(2_000) { 60_000 } else { (random >> 8) % 4_000 };
    let at_ms = BASE_MS + i as i64 * STEP_MS - delay_ms as i64;
    let viewed_at = chrono::DateTime::<chrono::Utc>::from_timestamp_millis(at_ms)
        .map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
        .unwrap_or_default();
    let visitor = format!("v{}", (random >> 20) % 5_000);
    json!({"page": page, "visitor": visitor, "cents": (random >> 40) % 10_000, "viewed_at": viewed_at}).to_string()
}

/// SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The query's result over `lines`, one canonical text per row: what a batch program of a few lines makes of the input.
///
/// # Errors
/// `MALFORMED_RECORD` if a line is not a page view.
pub(crate) fn batch<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
    struct Totals {
        views: i64,
        cents: i64,
        dearest: i64,
        visitors: std::collections::BTreeSet<String>,
    }
    let mut groups: BTreeMap<(i64, String), Totals> = BTreeMap::new();
    for line in lines {
        let (page, visitor, cents, at_ms) = parse(line)?;
        let start_ms = at_ms.div_euclid(WINDOW_MS) * WINDOW_MS;
        let totals = groups.entry((start_ms, page)).or_insert_with(|| Totals {
            views: 0,
            cents: 0,
            dearest: i64::MIN,
            visitors: std::collections::BTreeSet::new(),
        });
        totals.views += 1;
        totals.cents += cents;
        totals.dearest = totals.dearest.max(cents);
        totals.visitors.insert(visitor);
    }
    let rows = groups.into_iter().map(|((start_ms, page), totals)| {
        row(&page, &sql_timestamp(start_ms), totals.views, totals.visitors.len() as i64, totals.cents, totals.dearest)
    });
    Ok(rows.collect())
}

/// A row that the job wrote, in the same canonical text.
///
/// # Errors
/// `MALFORMED_RECORD` if it has other columns than the query's.
pub(crate) fn canonical(record: &str) -> Result<String> {
    let value: Value = serde_json::from_str(record).map_err(|_| malformed(record))?;
    let text = |name: &str| value[name].as_str().map(str::to_owned).ok_or_else(|| malformed(record));
    let number = |name: &str| value[name].as_i64().ok_or_else(|| malformed(record));
    let start = sql_timestamp(moment(&text("window_start")?).ok_or_else(|| malformed(record))?);
    Ok(row(&text("page")?, &start, number("views")?, number("visitors")?, number("cents")?, number("dearest")?))
}

fn row(page: &str, start: &str, views: i64, visitors: i64, cents: i64, dearest: i64) -> String {
    format!("{start} {page} views={views} visitors={visitors} cents={cents} dearest={dearest}")
}

fn parse(line: &str) -> Result<(String, String, i64, i64)> {
    let value: Value = serde_json::from_str(line).map_err(|_| malformed(line))?;
    let text = |name: &str| value[name].as_str().map(str::to_owned).ok_or_else(|| malformed(line));
    let at = moment(&text("viewed_at")?).ok_or_else(|| malformed(line))?;
    Ok((text("page")?, text("visitor")?, value["cents"].as_i64().ok_or_else(|| malformed(line))?, at))
}

/// Milliseconds since the epoch of a timestamp in RFC 3339, as the input has it, or in SQL's notation, as jobs write it.
fn moment(text: &str) -> Option<i64> {
    let utc = chrono::DateTime::parse_from_rfc3339(text).map(|at| at.timestamp_millis());
    utc.ok().or_else(|| {
        let local = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok()?;
        Some(local.and_utc().timestamp_millis())
    })
}

/// An input line or late row in a text that is equal for equal views.
///
/// # Errors
/// `MALFORMED_RECORD` if it is not a page view.
pub(crate) fn view_key(line: &str) -> Result<String> {
    let (page, visitor, cents, at_ms) = parse(line)?;
    Ok(format!("{page} {visitor} {cents} {at_ms}"))
}

fn sql_timestamp(ms: i64) -> String {
    chrono::DateTime::<chrono::Utc>::from_timestamp_millis(ms)
        .map(|at| at.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
        .unwrap_or_default()
}

fn malformed(line: &str) -> Error {
    Error::new(Code::MalformedRecord, "not a record of the quickstart").with_detail(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_groups_by_page_and_window() {
        let view = |page: &str, visitor: &str, cents: i64, at: &str| {
            json!({"page": page, "visitor": visitor, "cents": cents, "viewed_at": at}).to_string()
        };
        let lines = [
            view("/", "a", 5, "2026-01-01T00:00:00.000Z"),
            view("/", "a", 7, "2026-01-01T00:00:09.999Z"),
            view("/", "b", 1, "2026-01-01T00:00:10.000Z"),
            view("/docs", "b", 2, "2026-01-01 00:00:03.000"),
        ];
        let expected = [
            "2026-01-01 00:00:00.000 / views=2 visitors=1 cents=12 dearest=7",
            "2026-01-01 00:00:00.000 /docs views=1 visitors=1 cents=2 dearest=2",
            "2026-01-01 00:00:10.000 / views=1 visitors=1 cents=1 dearest=1",
        ];
        assert_eq!(batch(lines.iter().map(String::as_str)).unwrap(), expected);
    }

    #[test]
    fn views_are_a_pure_function_of_their_number_and_some_are_late() {
        assert_eq!(line(41), line(41));
        let late = (0..20_000).filter(|i| mix(*i).is_multiple_of(2_000)).count();
        assert!(late > 0, "the input must exercise late rows");
    }
}
