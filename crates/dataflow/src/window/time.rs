//! Window arithmetic in event time. All times in milliseconds; windows are `[start, start + size)`.
//!
//! Windows are made of slices: the greatest stretches of time that no window border cuts. A row goes into one slice; a
//! window that fires merges its slices. Tumbling windows are one slice each.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{
    DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use weir_types::graph::WindowSpec;
use weir_types::{Code, Error, Result};

/// Event times beyond ±275 760 years are refused, so that no window border overflows.
const TIME_MS_MAX: i64 = 8_640_000_000_000_000;

/// How time is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline {
    size: i64,
    slide: i64,
    offset: i64,
    slice: i64,
}

impl Timeline {
    pub(super) fn new(spec: &WindowSpec) -> Result<Self> {
        let (size, slide, offset) = match *spec {
            WindowSpec::Tumble { size_ms, offset_ms } => (size_ms, size_ms, offset_ms),
            WindowSpec::Hop { size_ms, slide_ms, offset_ms } => (size_ms, slide_ms, offset_ms),
        };
        let sane = |length: i64| (1..=TIME_MS_MAX).contains(&length);
        if !sane(size) || !sane(slide) || slide > size || offset.unsigned_abs() > TIME_MS_MAX.unsigned_abs() {
            return Err(Error::invalid(format!(
                "a window of {size} ms every {slide} ms with an offset of {offset} ms is not possible"
            ))
            .with_hint("The size must be positive, and the slide must be positive and at most the size."));
        }
        Ok(Self { size, slide, offset, slice: gcd(size, slide) })
    }

    /// The slice that an instant lies in, by its start.
    #[inline]
    pub(super) fn slice_of(&self, time: i64) -> i64 {
        time - (time - self.offset).rem_euclid(self.slice)
    }

    /// Length of a slice.
    #[inline]
    pub(super) fn slice_size(&self) -> i64 {
        self.slice
    }

    /// Whether a slice may start at this instant.
    pub(super) fn is_slice_start(&self, time: i64) -> bool {
        time.unsigned_abs() <= TIME_MS_MAX.unsigned_abs() * 2 && self.slice_of(time) == time
    }

    /// End of the last window that a slice is part of: the slice's state is of no use after it.
    #[inline]
    pub(super) fn last_end(&self, slice: i64) -> i64 {
        slice - (slice - self.offset).rem_euclid(self.slide) + self.size
    }

    /// End of the first window that a slice is part of and that ends (its last instant) after `fired`.
    pub(super) fn next_end(&self, slice: i64, fired: i64) -> i64 {
        let bound = (slice + self.slice).max(fired.saturating_add(2));
        bound.saturating_add((self.offset + self.size).wrapping_sub(bound).rem_euclid(self.slide))
    }

    /// Start of the window with this end.
    pub(super) fn start_of(&self, end: i64) -> i64 {
        end - self.size
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Event times in milliseconds, rounded down.
///
/// # Errors
/// `MALFORMED_RECORD` for a null or a time that is out of range.
pub(super) fn event_times(column: &ArrayRef, name: &str) -> Result<ScalarBuffer<i64>> {
    if column.null_count() > 0 {
        return Err(Error::new(Code::MalformedRecord, format!("event time column \"{name}\" is null in a row"))
            .with_hint(format!("Leave such rows out with WHERE {name} IS NOT NULL before the window.")));
    }
    let times = match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            let seconds = column.as_primitive::<TimestampSecondType>().values();
            seconds.iter().map(|second| second.saturating_mul(1000)).collect()
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            column.as_primitive::<TimestampMillisecondType>().values().clone()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().values();
            micros.iter().map(|micro| micro.div_euclid(1000)).collect()
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let nanos = column.as_primitive::<TimestampNanosecondType>().values();
            nanos.iter().map(|nano| nano.div_euclid(1_000_000)).collect()
        }
        other => return Err(Error::internal(format!("event time column \"{name}\" is of type {other}"))),
    };
    // Without a branch per row, so that it vectorises.
    let (least, greatest) =
        times.iter().fold((0, 0), |(least, greatest): (i64, i64), &time| (least.min(time), greatest.max(time)));
    if least < -TIME_MS_MAX || greatest > TIME_MS_MAX {
        return Err(Error::new(Code::MalformedRecord, format!("event time in column \"{name}\" is out of range"))
            .with_detail(format!("times between {least} and {greatest} ms since the epoch")));
    }
    Ok(times)
}

/// A time in milliseconds as a timestamp of `unit`, rounded down.
pub(super) fn in_unit(time_ms: i64, unit: TimeUnit) -> Result<i64> {
    let converted = match unit {
        TimeUnit::Second => Some(time_ms.div_euclid(1000)),
        TimeUnit::Millisecond => Some(time_ms),
        TimeUnit::Microsecond => time_ms.checked_mul(1000),
        TimeUnit::Nanosecond => time_ms.checked_mul(1_000_000),
    };
    converted.ok_or_else(|| {
        Error::new(Code::MalformedRecord, format!("a window border at {time_ms} ms does not fit its column"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_before_the_epoch_start_at_or_before_their_rows() {
        let tumble = Timeline::new(&WindowSpec::Tumble { size_ms: 10, offset_ms: 3 }).unwrap();
        for (time, start) in [(3, 3), (12, 3), (13, 13), (2, -7), (0, -7), (-7, -7), (-8, -17)] {
            assert_eq!(tumble.slice_of(time), start, "{time}");
            assert_eq!(tumble.last_end(start), start + 10);
        }
    }

    #[test]
    fn impossible_windows_are_refused() {
        for (size_ms, slide_ms) in [(0, 1), (1, 0), (-5, 1), (5, -1), (5, 6), (i64::MAX, 1)] {
            let error = Timeline::new(&WindowSpec::Hop { size_ms, slide_ms, offset_ms: 0 }).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
        }
    }

    proptest! {
        #[test]
        fn slices_tile_windows(slide in 1i64..20, more in 0i64..40, offset in -30i64..30, time in -200i64..200) {
            let size = slide + more;
            let timeline = Timeline::new(&WindowSpec::Hop { size_ms: size, slide_ms: slide, offset_ms: offset }).unwrap();
            let slice = timeline.slice_of(time);
            prop_assert!(slice <= time && time < slice + timeline.slice_size());
            // By definition: all windows that hold the row, by trying every start.
            let ends: Vec<i64> = (time - size - slide..=time)
                .filter(|start| (start - offset).rem_euclid(slide) == 0 && *start <= time && time < start + size)
                .map(|start| start + size)
                .collect();
            prop_assert_eq!(timeline.last_end(slice), *ends.last().unwrap());
            let mut fired = i64::MIN;
            for end in &ends {
                let next = timeline.next_end(slice, fired);
                prop_assert_eq!(next, *end);
                prop_assert!(timeline.start_of(next) <= slice && slice + timeline.slice_size() <= next);
                fired = end - 1;
            }
        }
    }
}
