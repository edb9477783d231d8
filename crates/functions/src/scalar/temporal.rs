//! Dates and times: parts, arithmetic, rounding, text in Java's patterns, time zones, windows, the clock.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::ColumnarValue;

use crate::definition::{Arguments, Definition, Eval, Nulls, Param, Returns, Signature, Text};
use crate::time::{self, DAY, Local, days_from_civil, days_in_month};
use crate::types;

pub(super) const fn function(
    name: &'static str,
    params: &'static [Param],
    required: usize,
    returns: Returns,
    nulls: Nulls,
    eval: Eval,
) -> Definition {
    let signature = Signature { params, required, variadic: false, returns };
    Definition { name, aliases: &[], signature, nulls, volatile: false, eval }
}

const fn clock(name: &'static str, aliases: &'static [&'static str]) -> Definition {
    let returns = Returns::Computed(|_| Some(types::ltz(TimeUnit::Millisecond)));
    let signature = Signature { params: &[], required: 0, variadic: false, returns };
    Definition { name, aliases, signature, nulls: Nulls::Never, volatile: true, eval: now }
}

const TIMESTAMP_3: Returns = Returns::Always(DataType::Timestamp(TimeUnit::Millisecond, None));
const BIGINT: Returns = Returns::Always(DataType::Int64);
const INT: Returns = Returns::Always(DataType::Int32);

pub(super) const FUNCTIONS: &[Definition] = &[
    clock("current_timestamp", &["now", "current_row_timestamp"]),
    clock("proctime", &[]),
    Definition {
        name: "unix_timestamp",
        aliases: &[],
        signature: Signature { params: &[], required: 0, variadic: false, returns: BIGINT },
        nulls: Nulls::Never,
        volatile: true,
        eval: |_| Ok(ColumnarValue::Scalar(ScalarValue::Int64(Some(now_ms()? / 1000)))),
    },
    function("$extract", &[Param::Text, Param::Temporal], 2, BIGINT, Nulls::Propagate, extract),
    function(
        "$timestamp_add",
        &[Param::Text, Param::Long, Param::Temporal],
        3,
        Returns::Computed(added_type),
        Nulls::Propagate,
        timestamp_add,
    ),
    function(
        "$timestamp_diff",
        &[Param::Text, Param::Temporal, Param::Temporal],
        3,
        INT,
        Nulls::Propagate,
        timestamp_diff,
    ),
    function("$floor_time", &[Param::Text, Param::Temporal], 2, Returns::Argument(1), Nulls::Propagate, |arguments| {
        round_time(arguments, false)
    }),
    function("$ceil_time", &[Param::Text, Param::Temporal], 2, Returns::Argument(1), Nulls::Propagate, |arguments| {
        round_time(arguments, true)
    }),
    function(
        "$to_local",
        &[Param::Timestamp, Param::Text],
        2,
        Returns::Computed(|types| Some(DataType::Timestamp(unit_of(types.first()?)?, None))),
        Nulls::Propagate,
        |arguments| rezone(arguments, time::to_local),
    ),
    function(
        "$from_local",
        &[Param::Timestamp, Param::Text],
        2,
        Returns::Computed(|types| Some(types::ltz(unit_of(types.first()?)?))),
        Nulls::Propagate,
        |arguments| rezone(arguments, time::from_local),
    ),
    function("$epoch_seconds", &[Param::Timestamp], 1, BIGINT, Nulls::Propagate, epoch_seconds),
    function("$window_start", WINDOW, 3, TIMESTAMP_3, Nulls::Propagate, |arguments| {
        window(arguments, |start, _| start)
    }),
    function("$window_end", WINDOW, 3, TIMESTAMP_3, Nulls::Propagate, |arguments| {
        window(arguments, |start, size| start + size)
    }),
    function(
        "$window_time",
        WINDOW,
        3,
        Returns::Computed(|types| match types.first()? {
            DataType::Timestamp(_, zone) => Some(DataType::Timestamp(TimeUnit::Millisecond, zone.clone())),
            _ => None,
        }),
        Nulls::Propagate,
        |arguments| window(arguments, |start, size| start + size - 1),
    ),
];

const WINDOW: &[Param] = &[Param::Timestamp, Param::Long, Param::Long];

fn unit_of(data_type: &DataType) -> Option<TimeUnit> {
    match data_type {
        DataType::Timestamp(unit, _) => Some(*unit),
        _ => None,
    }
}

fn now_ms() -> Result<i64> {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        Err(_) => exec_err!("the clock stands before 1970"),
    }
}

fn now(_: &Arguments<'_>) -> Result<ColumnarValue> {
    Ok(ColumnarValue::Scalar(ScalarValue::TimestampMillisecond(Some(now_ms()?), Some("UTC".into()))))
}

/// A column of dates or times as moments, read by row.
pub(super) struct Moments {
    counts: ArrayRef,
    unit: Option<TimeUnit>,
}

impl Moments {
    pub(super) fn new(value: &ArrayRef) -> Result<Self> {
        let (unit, narrow) = match value.data_type() {
            DataType::Date32 => (None, true),
            DataType::Time32(unit) => (Some(*unit), true),
            DataType::Time64(unit) | DataType::Timestamp(unit, _) => (Some(*unit), false),
            other => return exec_err!("a date or time is expected, not {}", types::name(other)),
        };
        let counts = if narrow { cast(value, &DataType::Int32)? } else { Arc::clone(value) };
        Ok(Self { counts: cast(&counts, &DataType::Int64)?, unit })
    }

    pub(super) fn get(&self, row: usize) -> Option<Local> {
        let counts = self.counts.as_primitive::<Int64Type>();
        counts.is_valid(row).then(|| match self.unit {
            Some(unit) => Local::from_unit(counts.value(row), unit),
            None => Local { seconds: counts.value(row) * DAY, nanos: 0 },
        })
    }
}

pub(super) fn constant_text<'a>(arguments: &'a Arguments<'_>, index: usize) -> Result<&'a str> {
    match arguments.text(index)? {
        Text::Constant(Some(text)) => Ok(text),
        _ => exec_err!("argument {index} must be a constant"),
    }
}

/// One of several arguments as a column of the rows to compute.
pub(super) fn column(arguments: &Arguments<'_>, index: usize) -> Result<ArrayRef> {
    match &arguments.values[index] {
        ColumnarValue::Array(array) => Ok(Arc::clone(array)),
        ColumnarValue::Scalar(value) => Ok(value.to_array_of_size(arguments.rows_to_compute())?),
    }
}

/// Moments back in the type that they had; what does not fit is an error.
pub(super) fn moments_as(values: Vec<Option<Local>>, data_type: &DataType) -> Result<ArrayRef> {
    let unit = match data_type {
        DataType::Date32 => None,
        DataType::Time32(unit) | DataType::Time64(unit) | DataType::Timestamp(unit, _) => Some(*unit),
        other => return exec_err!("a date or time is expected, not {}", types::name(other)),
    };
    let mut counts = Vec::with_capacity(values.len());
    for value in values {
        counts.push(match (value, unit) {
            (None, _) => None,
            (Some(local), None) => Some(local.days()),
            (Some(local), Some(unit)) => match local.to_unit(unit) {
                Some(count) => Some(count),
                None => return exec_err!("a time is out of the range of {}", types::name(data_type)),
            },
        });
    }
    let counts: ArrayRef = Arc::new(PrimitiveArray::<Int64Type>::from_iter(counts));
    let narrow = matches!(data_type, DataType::Date32 | DataType::Time32(_));
    let counts = if narrow { cast(&counts, &DataType::Int32)? } else { counts };
    Ok(cast(&counts, data_type)?)
}

fn extract(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let unit = constant_text(arguments, 0)?;
    let moments = Moments::new(&column(arguments, 1)?)?;
    let part = part_of(unit)?;
    let values = (0..arguments.rows_to_compute()).map(|row| moments.get(row).map(part));
    arguments.finish(Arc::new(PrimitiveArray::<Int64Type>::from_iter(values.collect::<Vec<_>>())))
}

fn part_of(unit: &str) -> Result<fn(Local) -> i64> {
    Ok(match unit {
        "YEAR" => |local| time::civil_from_days(local.days()).0,
        "QUARTER" => |local| i64::from((time::civil_from_days(local.days()).1 - 1) / 3 + 1),
        "MONTH" => |local| i64::from(time::civil_from_days(local.days()).1),
        "WEEK" => |local| iso_week(local.days()).1,
        "ISOYEAR" => |local| iso_week(local.days()).0,
        "DAY" => |local| i64::from(time::civil_from_days(local.days()).2),
        // Sunday is 1.
        "DOW" => |local| (local.days() + 4).rem_euclid(7) + 1,
        // Monday is 1.
        "ISODOW" => |local| (local.days() + 3).rem_euclid(7) + 1,
        "DOY" => |local| local.days() - days_from_civil(time::civil_from_days(local.days()).0, 1, 1) + 1,
        "HOUR" => |local| i64::from(local.second_of_day() / 3600),
        "MINUTE" => |local| i64::from(local.second_of_day() / 60 % 60),
        "SECOND" => |local| i64::from(local.second_of_day() % 60),
        "MILLISECOND" => |local| i64::from(local.second_of_day() % 60) * 1000 + i64::from(local.nanos / 1_000_000),
        "MICROSECOND" => |local| i64::from(local.second_of_day() % 60) * 1_000_000 + i64::from(local.nanos / 1000),
        "NANOSECOND" => |local| i64::from(local.second_of_day() % 60) * 1_000_000_000 + i64::from(local.nanos),
        "EPOCH" => |local| local.seconds,
        "DECADE" => |local| time::civil_from_days(local.days()).0.div_euclid(10),
        "CENTURY" => |local| (time::civil_from_days(local.days()).0 + 99).div_euclid(100),
        "MILLENNIUM" => |local| (time::civil_from_days(local.days()).0 + 999).div_euclid(1000),
        other => return exec_err!("{other} cannot be extracted"),
    })
}

/// Year and week by ISO 8601.
fn iso_week(days: i64) -> (i64, i64) {
    let thursday = days - (days + 3).rem_euclid(7) + 3;
    let year = time::civil_from_days(thursday).0;
    (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
}

/// Seconds and nanoseconds of a unit of fixed length.
fn fixed(unit: &str) -> Option<(i64, i64)> {
    Some(match unit {
        "WEEK" => (7 * DAY, 0),
        "DAY" => (DAY, 0),
        "HOUR" => (3600, 0),
        "MINUTE" => (60, 0),
        "SECOND" => (1, 0),
        "MILLISECOND" => (0, 1_000_000),
        "MICROSECOND" => (0, 1000),
        "NANOSECOND" => (0, 1),
        _ => return None,
    })
}

fn months_of(unit: &str) -> Option<i64> {
    Some(match unit {
        "MONTH" => 1,
        "QUARTER" => 3,
        "YEAR" => 12,
        "DECADE" => 120,
        "CENTURY" => 1200,
        "MILLENNIUM" => 12_000,
        _ => return None,
    })
}

/// A DATE moved by hours becomes a TIMESTAMP at run time only if the unit says so, which types do not show: it stays.
fn added_type(types: &[DataType]) -> Option<DataType> {
    types.get(2).cloned()
}

fn timestamp_add(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let unit = constant_text(arguments, 0)?;
    let counts = arguments.numbers::<Int64Type>(1)?;
    let moments = Moments::new(&column(arguments, 2)?)?;
    let rows = 0..arguments.rows_to_compute();
    let moved: Vec<Option<Local>> = match (months_of(unit), fixed(unit)) {
        (Some(months), _) => {
            rows.map(|row| add_months(moments.get(row)?, counts.get(row)?.checked_mul(months)?)).collect()
        }
        (None, Some((seconds, nanos))) => rows
            .map(|row| {
                let (local, count) = (moments.get(row)?, counts.get(row)?);
                let total = i128::from(local.nanos) + i128::from(nanos) * i128::from(count);
                let carried = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
                let seconds = local.seconds.checked_add(seconds.checked_mul(count)?)?.checked_add(carried)?;
                Some(Local { seconds, nanos: total.rem_euclid(1_000_000_000) as u32 })
            })
            .collect(),
        (None, None) => return exec_err!("{unit} cannot be added"),
    };
    arguments.finish(moments_as(moved, arguments.result)?)
}

fn add_months(local: Local, months: i64) -> Option<Local> {
    let (year, month, day) = time::civil_from_days(local.days());
    let total = year.checked_mul(12)?.checked_add(i64::from(month) - 1)?.checked_add(months)?;
    let (year, month) = (total.div_euclid(12), total.rem_euclid(12) as u32 + 1);
    let day = day.min(days_in_month(year, month));
    let seconds = days_from_civil(year, month, day).checked_mul(DAY)? + i64::from(local.second_of_day());
    Some(Local { seconds, nanos: local.nanos })
}

fn timestamp_diff(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let unit = constant_text(arguments, 0)?;
    let (from, to) = (Moments::new(&column(arguments, 1)?)?, Moments::new(&column(arguments, 2)?)?);
    let rows = 0..arguments.rows_to_compute();
    let span = |row: usize| Some((from.get(row)?, to.get(row)?));
    let counts: Vec<Option<i64>> = match (months_of(unit), fixed(unit)) {
        (Some(months), _) => rows.map(|row| span(row).map(|(from, to)| months_between(from, to) / months)).collect(),
        (None, Some((seconds, nanos))) => rows
            .map(|row| {
                let (from, to) = span(row)?;
                let total = i128::from(to.seconds - from.seconds) * 1_000_000_000 + i128::from(to.nanos)
                    - i128::from(from.nanos);
                i64::try_from(total / (i128::from(seconds) * 1_000_000_000 + i128::from(nanos))).ok()
            })
            .collect(),
        (None, None) => return exec_err!("{unit} cannot be counted"),
    };
    // INT, and beyond it wraps, as in Flink.
    let counts = counts.into_iter().map(|count| count.map(|count| count as i32));
    arguments.finish(Arc::new(PrimitiveArray::<Int32Type>::from_iter(counts.collect::<Vec<_>>())))
}

/// Whole months from one moment to another.
fn months_between(from: Local, to: Local) -> i64 {
    let ((from_year, from_month, from_day), (to_year, to_month, to_day)) =
        (time::civil_from_days(from.days()), time::civil_from_days(to.days()));
    let months = (to_year - from_year) * 12 + i64::from(to_month) - i64::from(from_month);
    let rest = |day: u32, local: Local| (day, local.second_of_day(), local.nanos);
    let (from_rest, to_rest) = (rest(from_day, from), rest(to_day, to));
    match months {
        1.. if to_rest < from_rest => months - 1,
        ..=-1 if to_rest > from_rest => months + 1,
        _ => months,
    }
}

fn round_time(arguments: &Arguments<'_>, up: bool) -> Result<ColumnarValue> {
    let unit = constant_text(arguments, 0)?;
    let moments = Moments::new(&column(arguments, 1)?)?;
    let round = |local: Local| -> Option<Local> {
        let floor = floor_to(local, unit)?;
        if !up || floor == local {
            return Some(floor);
        }
        match (months_of(unit), fixed(unit)?) {
            (Some(months), _) => add_months(floor, months),
            (None, (0, nanos)) => {
                let total = i64::from(floor.nanos) + nanos;
                Some(Local { seconds: floor.seconds + total / 1_000_000_000, nanos: (total % 1_000_000_000) as u32 })
            }
            (None, (seconds, _)) => Some(Local { seconds: floor.seconds + seconds, nanos: 0 }),
        }
    };
    let round = |local: Local| match months_of(unit) {
        Some(months) if up => {
            let floor = floor_to(local, unit)?;
            if floor == local { Some(floor) } else { add_months(floor, months) }
        }
        Some(_) => floor_to(local, unit),
        None => round(local),
    };
    if months_of(unit).is_none() && fixed(unit).is_none() {
        return exec_err!("a time cannot be rounded to {unit}");
    }
    let values = (0..arguments.rows_to_compute()).map(|row| round(moments.get(row)?)).collect();
    arguments.finish(moments_as(values, arguments.result)?)
}

fn floor_to(local: Local, unit: &str) -> Option<Local> {
    let days = local.days();
    if let Some(months) = months_of(unit) {
        let (year, month, _) = time::civil_from_days(days);
        let total = (year * 12 + i64::from(month) - 1).div_euclid(months) * months;
        let start = days_from_civil(total.div_euclid(12), total.rem_euclid(12) as u32 + 1, 1);
        return Some(Local { seconds: start * DAY, nanos: 0 });
    }
    Some(match (unit, fixed(unit)?) {
        // Weeks begin on Sunday.
        ("WEEK", _) => Local { seconds: (days - (days + 4).rem_euclid(7)) * DAY, nanos: 0 },
        (_, (0, nanos)) => Local { nanos: local.nanos - local.nanos % nanos as u32, ..local },
        (_, (seconds, _)) => Local { seconds: local.seconds.div_euclid(seconds) * seconds, nanos: 0 },
    })
}

fn rezone(arguments: &Arguments<'_>, f: fn(Local, chrono_tz::Tz) -> Option<Local>) -> Result<ColumnarValue> {
    let name = constant_text(arguments, 1)?;
    let Some(zone) = time::zone(name) else { return exec_err!("{name} is no time zone") };
    let value = column(arguments, 0)?;
    if zone == chrono_tz::Tz::UTC {
        // The same count of the same unit.
        return arguments.finish(cast(&cast(&value, &DataType::Int64)?, arguments.result)?);
    }
    let moments = Moments::new(&value)?;
    let values = (0..arguments.rows_to_compute()).map(|row| f(moments.get(row)?, zone)).collect();
    arguments.finish(moments_as(values, arguments.result)?)
}

fn epoch_seconds(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let moments = Moments::new(&column(arguments, 0)?)?;
    let values = (0..arguments.rows_to_compute()).map(|row| Some(moments.get(row)?.seconds));
    arguments.finish(Arc::new(PrimitiveArray::<Int64Type>::from_iter(values.collect::<Vec<_>>())))
}

fn window(arguments: &Arguments<'_>, f: fn(i64, i64) -> i64) -> Result<ColumnarValue> {
    let value = column(arguments, 0)?;
    let Some(unit) = unit_of(value.data_type()) else { return exec_err!("a window over {}", value.data_type()) };
    let (Some(size), Some(offset)) =
        (arguments.numbers::<Int64Type>(1)?.get(0), arguments.numbers::<Int64Type>(2)?.get(0))
    else {
        return exec_err!("a window has a constant size and offset");
    };
    let per_ms = time::per_second(unit) / 1000;
    let counts = cast(&value, &DataType::Int64)?;
    let moved = counts.as_primitive::<Int64Type>().unary::<_, Int64Type>(|count| {
        let ms = count.div_euclid(per_ms);
        f(ms - (ms - offset).rem_euclid(size), size)
    });
    let moved: ArrayRef = Arc::new(moved);
    arguments.finish(cast(&moved, arguments.result)?)
}
