//! Keys and results as columns.

use arrow::array::{ArrayRef, BooleanBufferBuilder};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use weir_state::keys::KeyValue;
use weir_state::pages::{Cell, Pages};
use weir_state::values::{Form, Values};
use weir_types::graph::AggregateFunction;
use weir_types::{Error, Result};

use super::accumulator::{Accumulator, Mean, OVERFLOW};
use super::plan::Call;
use super::table::GroupTable;

/// Some slots of a table.
pub(crate) struct Part<'a> {
    pub(crate) table: &'a GroupTable,
    pub(crate) slots: Slots<'a>,
}

/// Which slots.
#[derive(Clone, Copy)]
pub(crate) enum Slots<'a> {
    /// From the first up to, not including, the second.
    Range(usize, usize),
    /// These, in this order.
    List(&'a [u32]),
}

impl Slots<'_> {
    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (range, list) = match *self {
            Self::Range(from, to) => (from as u32..to as u32, [].as_slice()),
            Self::List(list) => (0..0, list),
        };
        range.chain(list.iter().copied())
    }
}

/// A key column.
pub(crate) fn key_column(parts: &[Part<'_>], column: usize, form: Form, data_type: &DataType) -> Result<ArrayRef> {
    let keys = parts.iter().flat_map(|part| part.slots.iter().map(|slot| part.table.keys.key(column, slot)));
    match form {
        Form::Word | Form::Float => {
            let (words, nulls) = collect(keys.map(|key| match key {
                KeyValue::Word(word) => Some(word),
                _ => None,
            }));
            Values::words_to_array(data_type, words, nulls)
        }
        Form::Wide => {
            let (wides, nulls) = collect(keys.map(|key| match key {
                KeyValue::Wide(wide) => Some(wide),
                _ => None,
            }));
            Values::wides_to_array(data_type, wides, nulls)
        }
        Form::Bytes => Values::bytes_to_array(
            data_type,
            keys.map(|key| match key {
                KeyValue::Bytes(bytes) => Some(bytes),
                _ => None,
            }),
        ),
    }
}

/// The column of an aggregate.
pub(crate) fn aggregate_column(parts: &[Part<'_>], index: usize, call: &Call) -> Result<ArrayRef> {
    let output = &call.output_type;
    let is_sum = call.fold.function == AggregateFunction::Sum;
    match parts.first().map(|part| &part.table.accumulators[index]) {
        Some(Accumulator::Count(_)) => {
            let (counts, nulls) = collect(cells(parts, index, counts).map(|&count| Some(count)));
            Values::words_to_array(output, counts, nulls)
        }
        Some(Accumulator::Word(_)) => {
            let (words, nulls) = collect(cells(parts, index, words).copied());
            match output {
                DataType::Float32 | DataType::Float64 => Err(mismatch(output)),
                _ => Values::words_to_array(output, words, nulls),
            }
        }
        Some(Accumulator::Float(_)) => {
            let (floats, nulls) = collect(cells(parts, index, floats).copied());
            Values::floats_to_array(output, floats, nulls)
        }
        Some(Accumulator::Wide(_)) => {
            let (wides, nulls) = collect(cells(parts, index, wides).map(|wide| wide.filter(|&wide| wide != OVERFLOW)));
            Values::wides_to_array(output, wides, nulls)
        }
        Some(Accumulator::Bytes { .. }) => {
            Values::bytes_to_array(output, cells(parts, index, bytes).map(Option::as_deref))
        }
        Some(Accumulator::WordMean(_)) if is_sum => {
            let means = cells(parts, index, word_means);
            let (words, nulls) = collect(means.map(|mean| (mean.count != 0).then_some(mean.sum)));
            Values::words_to_array(output, words, nulls)
        }
        Some(Accumulator::FloatMean(_)) if is_sum => {
            let means = cells(parts, index, float_means);
            let (floats, nulls) = collect(means.map(|mean| (mean.count != 0).then_some(mean.sum)));
            Values::floats_to_array(output, floats, nulls)
        }
        Some(Accumulator::WideMean(_)) if is_sum => {
            let means = cells(parts, index, wide_means);
            let sum = |mean: &Mean<i128>| (mean.count != 0 && mean.sum != OVERFLOW).then_some(mean.sum);
            let (wides, nulls) = collect(means.map(sum));
            Values::wides_to_array(output, wides, nulls)
        }
        Some(Accumulator::WordMean(_)) => {
            let means = cells(parts, index, word_means);
            let (words, nulls) = collect(means.map(|mean| mean.sum.checked_div(mean.count)));
            Values::words_to_array(output, words, nulls)
        }
        Some(Accumulator::FloatMean(_)) => {
            let means = cells(parts, index, float_means);
            let (floats, nulls) = collect(means.map(|mean| (mean.count != 0).then(|| mean.sum / mean.count as f64)));
            Values::floats_to_array(output, floats, nulls)
        }
        Some(Accumulator::WideMean(_)) => {
            let scales = match (&call.argument_type, output) {
                (Some(DataType::Decimal128(_, from)), DataType::Decimal128(_, to)) => to - from,
                _ => return Err(mismatch(output)),
            };
            let means = cells(parts, index, wide_means);
            let (wides, nulls) = collect(means.map(|mean| wide_mean(mean, scales.unsigned_abs().into())));
            Values::wides_to_array(output, wides, nulls)
        }
        None => Err(Error::internal("no groups to take results of")),
    }
}

/// The mean with `more` further decimals, rounded half away from zero; null over no rows and beyond 38 digits.
fn wide_mean(mean: &Mean<i128>, more: u32) -> Option<i128> {
    if mean.count == 0 || mean.sum == OVERFLOW {
        return None;
    }
    let (count, scale) = (i128::from(mean.count), 10i128.checked_pow(more)?);
    let whole = (mean.sum / count).checked_mul(scale)?;
    let rest = (mean.sum % count).checked_mul(scale)?;
    let rounded = whole + rest / count + (rest % count * 2 / count);
    (rounded.abs() < 10i128.pow(38)).then_some(rounded)
}

fn mismatch(output: &DataType) -> Error {
    Error::internal(format!("an aggregate was planned as {output}"))
}

fn collect<T: Default>(cells: impl Iterator<Item = Option<T>>) -> (Vec<T>, Option<NullBuffer>) {
    let mut valid = BooleanBufferBuilder::new(cells.size_hint().0);
    let mut values = Vec::with_capacity(cells.size_hint().0);
    for cell in cells {
        valid.append(cell.is_some());
        values.push(cell.unwrap_or_default());
    }
    let nulls = NullBuffer::new(valid.finish());
    (values, Some(nulls).filter(|nulls| nulls.null_count() > 0))
}

/// The accumulators of `parts`, in order; `pick` names their form.
fn cells<'a, T: Cell + 'a>(
    parts: &'a [Part<'_>],
    index: usize,
    pick: fn(&Accumulator) -> Option<&Pages<T>>,
) -> impl Iterator<Item = &'a T> {
    parts.iter().flat_map(move |part| {
        let pages = pick(&part.table.accumulators[index]);
        pages.into_iter().flat_map(move |pages| {
            let (from, to, list) = match part.slots {
                Slots::Range(from, to) => (from, to, [].as_slice()),
                Slots::List(list) => (0, 0, list),
            };
            pages.range(from, to).chain(list.iter().map(|&slot| pages.get(slot)))
        })
    })
}

macro_rules! picks {
    ($($name:ident($pattern:pat => $pages:ident): $cell:ty;)*) => {
        $(pub(crate) fn $name(accumulator: &Accumulator) -> Option<&Pages<$cell>> {
            match accumulator {
                $pattern => Some($pages),
                _ => None,
            }
        })*
    };
}

picks! {
    counts(Accumulator::Count(pages) => pages): i64;
    words(Accumulator::Word(pages) => pages): Option<i64>;
    floats(Accumulator::Float(pages) => pages): Option<f64>;
    wides(Accumulator::Wide(pages) => pages): Option<i128>;
    bytes(Accumulator::Bytes { values: pages, .. } => pages): Option<std::sync::Arc<[u8]>>;
    word_means(Accumulator::WordMean(pages) => pages): Mean<i64>;
    float_means(Accumulator::FloatMean(pages) => pages): Mean<f64>;
    wide_means(Accumulator::WideMean(pages) => pages): Mean<i128>;
}
