//! Dates and times as text, and the civil calendar behind them. Everything is a number of seconds and nanoseconds since
//! the epoch, so that years beyond the range of nanoseconds in 64 bits work.

use arrow::datatypes::{DataType, TimeUnit};
use chrono::{LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;
use datafusion::common::ScalarValue;

/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// A time zone by its IANA name, or a fixed offset such as `GMT+08:00`.
pub fn zone(name: &str) -> Option<Tz> {
    name.parse().ok()
}

/// Days since the epoch of a date of the proleptic Gregorian calendar.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month = i64::from(month);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a number of days since the epoch.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

/// Days of a month.
pub fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A moment of a calendar without a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Since the epoch, as if in UTC.
    pub seconds: i64,
    /// Beyond the second.
    pub nanos: u32,
}

impl Local {
    /// From a count of a unit.
    pub fn from_unit(value: i64, unit: TimeUnit) -> Self {
        let per_second = per_second(unit);
        let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
        Self { seconds: value.div_euclid(per_second), nanos: nanos as u32 }
    }

    /// As a count of a unit, finer digits dropped; none if it does not fit.
    pub fn to_unit(self, unit: TimeUnit) -> Option<i64> {
        let per_second = per_second(unit);
        let fraction = i64::from(self.nanos) / (1_000_000_000 / per_second);
        self.seconds.checked_mul(per_second)?.checked_add(fraction)
    }

    /// From date and time of day; none if there is no such date or time.
    pub fn from_parts(date: (i64, u32, u32), time: (u32, u32, u32), nanos: u32) -> Option<Self> {
        let ((year, month, day), (hour, minute, second)) = (date, time);
        let valid = (1..=12).contains(&month) && day >= 1 && day <= days_in_month(year, month);
        if !valid || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let of_day = i64::from(hour * 3600 + minute * 60 + second);
        Some(Self { seconds: days_from_civil(year, month, day) * DAY + of_day, nanos })
    }

    /// Days since the epoch.
    pub fn days(self) -> i64 {
        self.seconds.div_euclid(DAY)
    }

    /// Second of the day.
    pub fn second_of_day(self) -> u32 {
        self.seconds.rem_euclid(DAY) as u32
    }

    /// `yyyy-MM-dd HH:mm:ss` with a fraction of at least `digits`.
    pub fn write(self, digits: usize, out: &mut String) {
        write_date(self.days(), out);
        out.push(' ');
        write_time(self.second_of_day(), self.nanos, digits, out);
    }
}

/// How many of a unit make a second.
pub fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn push_padded(value: u32, width: usize, out: &mut String) {
    let mut digits = [b'0'; 10];
    let mut rest = value;
    let mut at = digits.len();
    while rest > 0 || digits.len() - at < width {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend(digits[at..].iter().map(|digit| char::from(*digit)));
}

/// Appends `yyyy-MM-dd`.
pub fn write_date(days: i64, out: &mut String) {
    let (year, month, day) = civil_from_days(days);
    if year < 0 {
        out.push('-');
    }
    push_padded(u32::try_from(year.unsigned_abs()).unwrap_or(u32::MAX), 4, out);
    out.push('-');
    push_padded(month, 2, out);
    out.push('-');
    push_padded(day, 2, out);
}

/// Appends `HH:mm:ss`, with a fraction of at least `digits` that ends in no further zeros.
pub fn write_time(second_of_day: u32, nanos: u32, digits: usize, out: &mut String) {
    push_padded(second_of_day / 3600, 2, out);
    out.push(':');
    push_padded(second_of_day / 60 % 60, 2, out);
    out.push(':');
    push_padded(second_of_day % 60, 2, out);
    let mut fraction = String::with_capacity(9);
    push_padded(nanos, 9, &mut fraction);
    let significant = fraction.trim_end_matches('0').len().max(digits);
    if significant > 0 {
        out.push('.');
        out.push_str(&fraction[..significant]);
    }
}

/// Reads texts from the front.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn byte(&mut self, expected: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        (*first == expected).then(|| self.rest = rest)
    }

    /// A number of `min` to `max` digits.
    fn number(&mut self, min: usize, max: usize) -> Option<u32> {
        let digits = self.rest.iter().take(max).take_while(|byte| byte.is_ascii_digit()).count();
        if digits < min {
            return None;
        }
        let (digits, rest) = self.rest.split_at(digits);
        self.rest = rest;
        Some(digits.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
    }

    /// Digits behind the point, as nanoseconds; further ones are dropped.
    fn fraction(&mut self) -> Option<u32> {
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let (digits, rest) = self.rest.split_at(digits);
        self.rest = rest;
        let nanos = |value: u32, at: usize| value * 10 + digits.get(at).map_or(0, |digit| u32::from(digit - b'0'));
        Some((0..9).fold(0, nanos))
    }

    fn date(&mut self) -> Option<(i64, u32, u32)> {
        let year = i64::from(self.number(1, 4)?);
        self.byte(b'-')?;
        let month = self.number(1, 2)?;
        self.byte(b'-')?;
        Some((year, month, self.number(1, 2)?))
    }

    fn time(&mut self) -> Option<((u32, u32, u32), u32)> {
        let hour = self.number(1, 2)?;
        self.byte(b':')?;
        let minute = self.number(1, 2)?;
        let second = if self.byte(b':').is_some() { self.number(1, 2)? } else { return Some(((hour, minute, 0), 0)) };
        let nanos = if self.byte(b'.').is_some() { self.fraction()? } else { 0 };
        Some(((hour, minute, second), nanos))
    }

    /// `Z`, `+02:00`, `+0200`, `+02`: seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        if self.byte(b'Z').is_some() || self.byte(b'z').is_some() {
            return Some(0);
        }
        let sign = if self.byte(b'+').is_some() {
            1
        } else {
            self.byte(b'-')?;
            -1
        };
        let hours = i64::from(self.number(2, 2)?);
        let minutes = if self.byte(b':').is_some() { self.number(2, 2)? } else { self.number(2, 2).unwrap_or(0) };
        (hours <= 18 && minutes < 60).then(|| sign * (hours * 3600 + i64::from(minutes) * 60))
    }
}

/// Reads `yyyy-MM-dd`, a space or `T`, `HH:mm:ss.fraction` and an offset; all from the time on may be missing. Gives the
/// local time and the offset from UTC, if there is one.
pub fn parse_timestamp(text: &str) -> Option<(Local, Option<i64>)> {
    let mut cursor = Cursor { rest: text.trim().as_bytes() };
    let date = cursor.date()?;
    if cursor.rest.is_empty() {
        return Some((Local::from_parts(date, (0, 0, 0), 0)?, None));
    }
    if cursor.byte(b'T').is_none() && cursor.byte(b't').is_none() {
        cursor.byte(b' ')?;
    }
    let (time, nanos) = cursor.time()?;
    let local = Local::from_parts(date, time, nanos)?;
    if cursor.rest.is_empty() {
        return Some((local, None));
    }
    if cursor.rest.first() == Some(&b' ') {
        cursor.byte(b' ')?;
    }
    let offset = cursor.offset()?;
    cursor.rest.is_empty().then_some((local, Some(offset)))
}

/// The same without a time zone: where the text has an offset, the time in UTC.
pub fn parse_local(text: &str) -> Option<Local> {
    let (local, offset) = parse_timestamp(text)?;
    Some(Local { seconds: local.seconds - offset.unwrap_or(0), ..local })
}

/// `yyyy-MM-dd`, or the date of a timestamp, as days.
pub fn parse_date(text: &str) -> Option<i32> {
    i32::try_from(parse_timestamp(text)?.0.days()).ok()
}

/// `HH:mm:ss.fraction` as nanoseconds of the day.
pub fn parse_time(text: &str) -> Option<i64> {
    let mut cursor = Cursor { rest: text.trim().as_bytes() };
    let (time, nanos) = cursor.time()?;
    if !cursor.rest.is_empty() {
        return None;
    }
    let local = Local::from_parts((1970, 1, 1), time, nanos)?;
    local.to_unit(TimeUnit::Nanosecond)
}

/// The instant at which clocks of a zone show a local time: in a gap the one after it, in an overlap the earlier.
pub fn from_local(local: Local, zone: Tz) -> Option<Local> {
    if zone == Tz::UTC {
        return Some(local);
    }
    let naive = naive(local)?;
    let offset = match zone.offset_from_local_datetime(&naive) {
        LocalResult::Single(offset) | LocalResult::Ambiguous(offset, _) => offset.fix().local_minus_utc(),
        LocalResult::None => {
            // Java moves a time within a gap forward by its length: the offset before the gap does that.
            let before = naive.checked_sub_signed(TimeDelta::try_hours(3)?)?;
            zone.offset_from_local_datetime(&before).earliest()?.fix().local_minus_utc()
        }
    };
    Some(Local { seconds: local.seconds - i64::from(offset), ..local })
}

/// What clocks of a zone show at an instant.
pub fn to_local(instant: Local, zone: Tz) -> Option<Local> {
    if zone == Tz::UTC {
        return Some(instant);
    }
    let offset = zone.offset_from_utc_datetime(&naive(instant)?).fix().local_minus_utc();
    Some(Local { seconds: instant.seconds + i64::from(offset), ..instant })
}

fn naive(local: Local) -> Option<NaiveDateTime> {
    Some(chrono::DateTime::from_timestamp(local.seconds, local.nanos)?.naive_utc())
}

/// A timestamp of a unit as a scalar of this type.
fn timestamp_scalar(value: i64, data_type: &DataType) -> Option<ScalarValue> {
    ScalarValue::Int64(Some(value)).cast_to(data_type).ok()
}

/// A text as a DATE, TIME, TIMESTAMP or, in that time zone, TIMESTAMP_LTZ.
pub fn parse_temporal(text: &str, target: &DataType, time_zone: &str) -> Option<ScalarValue> {
    match target {
        DataType::Date32 => Some(ScalarValue::Date32(Some(parse_date(text)?))),
        DataType::Time32(_) => {
            Some(ScalarValue::Time32Millisecond(Some(i32::try_from(parse_time(text)? / 1_000_000).ok()?)))
        }
        DataType::Time64(TimeUnit::Microsecond) => Some(ScalarValue::Time64Microsecond(Some(parse_time(text)? / 1000))),
        DataType::Time64(_) => Some(ScalarValue::Time64Nanosecond(Some(parse_time(text)?))),
        DataType::Timestamp(unit, None) => timestamp_scalar(parse_local(text)?.to_unit(*unit)?, target),
        DataType::Timestamp(unit, Some(_)) => {
            let instant = match parse_timestamp(text)? {
                (local, Some(offset)) => Local { seconds: local.seconds - offset, ..local },
                (local, None) => from_local(local, zone(time_zone)?)?,
            };
            timestamp_scalar(instant.to_unit(*unit)?, target)
        }
        _ => None,
    }
}

/// A date or time as text; TIMESTAMP_LTZ in UTC.
pub fn show_temporal(value: &ScalarValue) -> Option<String> {
    let mut out = String::new();
    let digits = usize::from(crate::types::precision(&value.data_type()));
    match value {
        ScalarValue::Date32(Some(days)) => write_date(i64::from(*days), &mut out),
        ScalarValue::Time32Millisecond(Some(ms)) => show_time(i64::from(*ms), TimeUnit::Millisecond, digits, &mut out),
        ScalarValue::Time64Microsecond(Some(us)) => show_time(*us, TimeUnit::Microsecond, digits, &mut out),
        ScalarValue::Time64Nanosecond(Some(ns)) => show_time(*ns, TimeUnit::Nanosecond, digits, &mut out),
        ScalarValue::TimestampMillisecond(Some(ms), _) => {
            Local::from_unit(*ms, TimeUnit::Millisecond).write(digits, &mut out);
        }
        ScalarValue::TimestampMicrosecond(Some(us), _) => {
            Local::from_unit(*us, TimeUnit::Microsecond).write(digits, &mut out);
        }
        ScalarValue::TimestampNanosecond(Some(ns), _) => {
            Local::from_unit(*ns, TimeUnit::Nanosecond).write(digits, &mut out);
        }
        _ => return None,
    }
    Some(out)
}

/// Appends a time of day.
pub fn show_time(value: i64, unit: TimeUnit, digits: usize, out: &mut String) {
    let local = Local::from_unit(value, unit);
    write_time(local.second_of_day(), local.nanos, digits, out);
}
