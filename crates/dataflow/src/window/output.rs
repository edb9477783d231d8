//! The borders of fired windows as columns.

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, TimeUnit};
use weir_state::values::Values;
use weir_types::graph::WindowColumn;
use weir_types::{Error, Result};

use super::time::in_unit;

/// So many rows of a fired window, whose start and end are given in ms.
pub(super) struct Rows {
    pub(super) window: (i64, i64),
    pub(super) count: usize,
}

/// A column of window borders.
pub(super) fn window_column(parts: &[Rows], column: WindowColumn, data_type: &DataType) -> Result<ArrayRef> {
    let DataType::Timestamp(unit, _) = data_type else {
        return Err(Error::internal(format!("a window border was planned as {data_type}")));
    };
    let mut times = Vec::with_capacity(parts.iter().map(|part| part.count).sum());
    for part in parts {
        let time = match column {
            WindowColumn::Start => in_unit(part.window.0, *unit)?,
            WindowColumn::End => in_unit(part.window.1, *unit)?,
            WindowColumn::Time => last_instant(part.window.1, *unit)?,
        };
        times.resize(times.len() + part.count, time);
    }
    Values::words_to_array(data_type, times, None)
}

/// One unit before the window's end.
fn last_instant(end: i64, unit: TimeUnit) -> Result<i64> {
    in_unit(end, unit).map(|end| end - 1)
}
