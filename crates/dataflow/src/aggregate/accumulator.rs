//! Accumulators of one aggregate by slot, in the few physical forms that state is kept in.
//!
//! Every operation is a typed loop over a batch's rows and slots. Sums of decimals that leave 38 digits become null for
//! good (Flink's result for the row that overflows); integers wrap, as in Flink.

use std::sync::Arc;

use weir_state::pages::{Cell, Pages};
use weir_state::values::{Data, Form, Values};
use weir_types::graph::AggregateFunction;
use weir_types::{Error, Result};

/// The greatest decimal has 38 digits.
const WIDE_LIMIT: i128 = 10i128.pow(38);
/// Stands for a decimal sum that left 38 digits; no decimal has this value.
pub(crate) const OVERFLOW: i128 = i128::MAX;

/// Sum and count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Mean<T> {
    pub(crate) sum: T,
    pub(crate) count: i64,
}

impl<T: Clone> Cell for Mean<T> {}

/// Which accumulator an aggregate needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number of rows.
    Count,
    /// One value of this form, or none.
    Value(Form),
    /// Sum and count of this form.
    Mean(Form),
}

/// The accumulators of one aggregate, by slot.
#[derive(Debug)]
pub(crate) enum Accumulator {
    Count(Pages<i64>),
    Word(Pages<Option<i64>>),
    Float(Pages<Option<f64>>),
    Wide(Pages<Option<i128>>),
    Bytes { values: Pages<Option<Arc<[u8]>>>, heap: usize },
    WordMean(Pages<Mean<i64>>),
    FloatMean(Pages<Mean<f64>>),
    WideMean(Pages<Mean<i128>>),
}

/// What an aggregate does with values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fold {
    pub(crate) function: AggregateFunction,
    /// Sums of `FLOAT` are rounded to it at every step, as in Flink.
    pub(crate) single_precision: bool,
}

impl Accumulator {
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Count => Self::Count(Pages::new()),
            Kind::Value(Form::Word) => Self::Word(Pages::new()),
            Kind::Value(Form::Float) => Self::Float(Pages::new()),
            Kind::Value(Form::Wide) => Self::Wide(Pages::new()),
            Kind::Value(Form::Bytes) => Self::Bytes { values: Pages::new(), heap: 0 },
            Kind::Mean(Form::Float) => Self::FloatMean(Pages::new()),
            Kind::Mean(Form::Wide) => Self::WideMean(Pages::new()),
            Kind::Mean(_) => Self::WordMean(Pages::new()),
        }
    }

    /// Makes sure that there are `slots` slots.
    pub(crate) fn grow(&mut self, slots: usize) {
        match self {
            Self::Count(pages) => pages.grow(slots, &0),
            Self::Word(pages) => pages.grow(slots, &None),
            Self::Float(pages) => pages.grow(slots, &None),
            Self::Wide(pages) => pages.grow(slots, &None),
            Self::Bytes { values, .. } => values.grow(slots, &None),
            Self::WordMean(pages) => pages.grow(slots, &Mean::default()),
            Self::FloatMean(pages) => pages.grow(slots, &Mean::default()),
            Self::WideMean(pages) => pages.grow(slots, &Mean::default()),
        }
    }

    /// Takes in the values of `rows`, none of which is null, each into the slot at the same position of `slots`.
    pub(crate) fn update(&mut self, fold: Fold, values: Option<&Values>, rows: &[u32], slots: &[u32]) -> Result<()> {
        use AggregateFunction::{Avg, Max, Min, Sum};
        if let Self::Count(pages) = self {
            slots.iter().for_each(|&slot| *pages.get_mut(slot) += 1);
            return Ok(());
        }
        let Some(values) = values else { return Err(mismatch()) };
        match (self, &values.data, fold.function) {
            (Self::Word(pages), Data::Words(words), Sum) => each(pages, words, rows, slots, i64::wrapping_add),
            (Self::Word(pages), Data::Words(words), Min) => each(pages, words, rows, slots, i64::min),
            (Self::Word(pages), Data::Words(words), Max) => each(pages, words, rows, slots, i64::max),
            (Self::Float(pages), Data::Floats(floats), Sum) if fold.single_precision => {
                each(pages, floats, rows, slots, add_single);
            }
            (Self::Float(pages), Data::Floats(floats), Sum) => each(pages, floats, rows, slots, |a, b| a + b),
            (Self::Float(pages), Data::Floats(floats), Min) => each(pages, floats, rows, slots, min_float),
            (Self::Float(pages), Data::Floats(floats), Max) => each(pages, floats, rows, slots, max_float),
            (Self::Wide(pages), Data::Wides(wides), Sum) => each(pages, wides, rows, slots, add_wide),
            (Self::Wide(pages), Data::Wides(wides), Min) => each(pages, wides, rows, slots, i128::min),
            (Self::Wide(pages), Data::Wides(wides), Max) => each(pages, wides, rows, slots, i128::max),
            (Self::Bytes { values, heap }, Data::Bytes(bytes), Min | Max) => {
                for (&row, &slot) in rows.iter().zip(slots) {
                    offer(values, heap, slot, bytes.value(row as usize), fold.function == Min);
                }
            }
            (Self::WordMean(pages), Data::Words(words), Sum | Avg) => {
                mean(pages, words, rows, slots, i64::wrapping_add)
            }
            (Self::FloatMean(pages), Data::Floats(floats), Sum) if fold.single_precision => {
                mean(pages, floats, rows, slots, add_single);
            }
            (Self::FloatMean(pages), Data::Floats(floats), Sum | Avg) => mean(pages, floats, rows, slots, |a, b| a + b),
            (Self::WideMean(pages), Data::Wides(wides), Sum | Avg) => mean(pages, wides, rows, slots, add_wide),
            _ => return Err(mismatch()),
        }
        Ok(())
    }

    /// Takes out values that were taken in before, as [`Accumulator::update`] does.
    pub(crate) fn retract(&mut self, fold: Fold, values: Option<&Values>, rows: &[u32], slots: &[u32]) -> Result<()> {
        if let Self::Count(pages) = self {
            slots.iter().for_each(|&slot| *pages.get_mut(slot) -= 1);
            return Ok(());
        }
        match (self, values.map(|values| &values.data)) {
            (Self::WordMean(pages), Some(Data::Words(words))) => {
                unmean(pages, words, rows, slots, i64::wrapping_sub);
            }
            (Self::FloatMean(pages), Some(Data::Floats(floats)))
                if fold.single_precision && fold.function == AggregateFunction::Sum =>
            {
                unmean(pages, floats, rows, slots, |a, b| add_single(a, -b));
            }
            (Self::FloatMean(pages), Some(Data::Floats(floats))) => unmean(pages, floats, rows, slots, |a, b| a - b),
            (Self::WideMean(pages), Some(Data::Wides(wides))) => {
                unmean(pages, wides, rows, slots, |a, b| add_wide(a, -b));
            }
            _ => return Err(mismatch()),
        }
        Ok(())
    }

    /// Takes a slot back to how it was without any values.
    pub(crate) fn reset(&mut self, slot: u32) {
        match self {
            Self::Count(pages) => *pages.get_mut(slot) = 0,
            Self::Word(pages) => *pages.get_mut(slot) = None,
            Self::Float(pages) => *pages.get_mut(slot) = None,
            Self::Wide(pages) => *pages.get_mut(slot) = None,
            Self::Bytes { values, heap } => {
                let before = values.get_mut(slot).take();
                *heap -= before.map_or(0, |value| value.len());
            }
            Self::WordMean(pages) => *pages.get_mut(slot) = Mean::default(),
            Self::FloatMean(pages) => *pages.get_mut(slot) = Mean::default(),
            Self::WideMean(pages) => *pages.get_mut(slot) = Mean::default(),
        }
    }

    /// Takes in the accumulators of another slice: its slot `i` goes to `slots[i]`.
    pub(crate) fn merge(&mut self, fold: Fold, other: &Self, slots: &[u32]) -> Result<()> {
        use AggregateFunction::{Max, Min, Sum};
        match (self, other, fold.function) {
            (Self::Count(into), Self::Count(from), _) => {
                for (count, &slot) in from.range(0, from.len()).zip(slots) {
                    *into.get_mut(slot) += count;
                }
            }
            (Self::Word(into), Self::Word(from), Sum) => combine(into, from, slots, i64::wrapping_add),
            (Self::Word(into), Self::Word(from), Min) => combine(into, from, slots, i64::min),
            (Self::Word(into), Self::Word(from), Max) => combine(into, from, slots, i64::max),
            (Self::Float(into), Self::Float(from), Sum) if fold.single_precision => {
                combine(into, from, slots, add_single);
            }
            (Self::Float(into), Self::Float(from), Sum) => combine(into, from, slots, |a, b| a + b),
            (Self::Float(into), Self::Float(from), Min) => combine(into, from, slots, min_float),
            (Self::Float(into), Self::Float(from), Max) => combine(into, from, slots, max_float),
            (Self::Wide(into), Self::Wide(from), Sum) => combine(into, from, slots, add_wide),
            (Self::Wide(into), Self::Wide(from), Min) => combine(into, from, slots, i128::min),
            (Self::Wide(into), Self::Wide(from), Max) => combine(into, from, slots, i128::max),
            (Self::Bytes { values: into, heap }, Self::Bytes { values: from, .. }, Min | Max) => {
                for (value, &slot) in from.range(0, from.len()).zip(slots) {
                    if let Some(value) = value {
                        offer(into, heap, slot, value, fold.function == Min);
                    }
                }
            }
            (Self::WordMean(into), Self::WordMean(from), _) => merge_means(into, from, slots, i64::wrapping_add),
            (Self::FloatMean(into), Self::FloatMean(from), _) => merge_means(into, from, slots, |a, b| a + b),
            (Self::WideMean(into), Self::WideMean(from), _) => merge_means(into, from, slots, add_wide),
            _ => return Err(mismatch()),
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Count(pages) => pages.bytes(),
            Self::Word(pages) => pages.bytes(),
            Self::Float(pages) => pages.bytes(),
            Self::Wide(pages) => pages.bytes(),
            Self::Bytes { values, heap } => values.bytes() + heap,
            Self::WordMean(pages) => pages.bytes(),
            Self::FloatMean(pages) => pages.bytes(),
            Self::WideMean(pages) => pages.bytes(),
        }
    }
}

fn mismatch() -> Error {
    Error::internal("an aggregate got values of another type than planned")
}

fn each<T: Copy>(pages: &mut Pages<Option<T>>, values: &[T], rows: &[u32], slots: &[u32], fold: impl Fn(T, T) -> T)
where
    Option<T>: Cell,
{
    for (&row, &slot) in rows.iter().zip(slots) {
        accumulate(pages.get_mut(slot), values[row as usize], &fold);
    }
}

fn combine<T: Copy>(into: &mut Pages<Option<T>>, from: &Pages<Option<T>>, slots: &[u32], fold: impl Fn(T, T) -> T)
where
    Option<T>: Cell,
{
    for (value, &slot) in from.range(0, from.len()).zip(slots) {
        if let Some(value) = value {
            accumulate(into.get_mut(slot), *value, &fold);
        }
    }
}

#[inline]
fn accumulate<T: Copy>(cell: &mut Option<T>, value: T, fold: impl Fn(T, T) -> T) {
    *cell = Some(match *cell {
        Some(before) => fold(before, value),
        None => value,
    });
}

fn mean<T: Copy>(pages: &mut Pages<Mean<T>>, values: &[T], rows: &[u32], slots: &[u32], add: impl Fn(T, T) -> T) {
    for (&row, &slot) in rows.iter().zip(slots) {
        let cell = pages.get_mut(slot);
        cell.sum = add(cell.sum, values[row as usize]);
        cell.count += 1;
    }
}

fn unmean<T: Copy>(pages: &mut Pages<Mean<T>>, values: &[T], rows: &[u32], slots: &[u32], sub: impl Fn(T, T) -> T) {
    for (&row, &slot) in rows.iter().zip(slots) {
        let cell = pages.get_mut(slot);
        cell.sum = sub(cell.sum, values[row as usize]);
        cell.count -= 1;
    }
}

fn merge_means<T: Copy>(into: &mut Pages<Mean<T>>, from: &Pages<Mean<T>>, slots: &[u32], add: impl Fn(T, T) -> T) {
    for (value, &slot) in from.range(0, from.len()).zip(slots) {
        let cell = into.get_mut(slot);
        cell.sum = add(cell.sum, value.sum);
        cell.count += value.count;
    }
}

/// Keeps the smaller (or the greater) of two byte strings; UTF-8 sorts by code point this way.
fn offer(values: &mut Pages<Option<Arc<[u8]>>>, heap: &mut usize, slot: u32, value: &[u8], smaller: bool) {
    let better = |old: &[u8]| if smaller { value < old } else { value > old };
    let old = values.get(slot).as_deref();
    if old.is_none_or(better) {
        *heap = *heap + value.len() - old.map_or(0, <[u8]>::len);
        *values.get_mut(slot) = Some(value.into());
    }
}

fn add_single(a: f64, b: f64) -> f64 {
    f64::from(a as f32 + b as f32)
}

/// NaN is the greatest value, as in Java's ordering.
fn min_float(a: f64, b: f64) -> f64 {
    if b.is_nan() || a < b { a } else { b }
}

fn max_float(a: f64, b: f64) -> f64 {
    if b.is_nan() || b > a { b } else { a }
}

fn add_wide(a: i128, b: i128) -> i128 {
    if a == OVERFLOW || b == OVERFLOW {
        return OVERFLOW;
    }
    let sum = a + b;
    if sum.abs() >= WIDE_LIMIT { OVERFLOW } else { sum }
}
