//! What a window aggregate needs to know beside keys and calls: its time, and how windows lie in it.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use weir_state::columns::{Role, SPAN_MS, state_field};
use weir_state::merge::SEGMENT;
use weir_types::graph::{WindowAggregateSpec, WindowColumn, WindowSpec};
use weir_types::{Error, Result};

use super::time::Timeline;
use crate::aggregate::names;
use crate::aggregate::plan::field;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct WindowPlan {
    pub(super) time_column: usize,
    pub(super) time_name: String,
    pub(super) window_columns: Vec<WindowColumn>,
    /// The column of slices in snapshots.
    pub(super) slice_field: Field,
}

impl WindowPlan {
    pub(super) fn new(spec: &WindowAggregateSpec, input: &Schema, output: &Schema) -> Result<Self> {
        let columns = spec.keys.len() + spec.aggregates.len() + spec.window_columns.len();
        if output.fields().len() != columns {
            let found = output.fields().len();
            return Err(Error::invalid(format!("a window aggregate has {columns} columns, not {found}")));
        }
        let time = field(input, spec.time_column)?;
        if !matches!(time.data_type(), DataType::Timestamp(_, _)) {
            let (name, found) = (time.name(), time.data_type());
            return Err(Error::invalid(format!("event time column \"{name}\" is of type {found}, not a timestamp")));
        }
        for out in &output.fields()[spec.keys.len() + spec.aggregates.len()..] {
            if !matches!(out.data_type(), DataType::Timestamp(_, _)) {
                let (name, found) = (out.name(), out.data_type());
                return Err(Error::invalid(format!("window column \"{name}\" is of type {found}, not a timestamp")));
            }
        }
        Ok(Self {
            time_column: spec.time_column,
            time_name: time.name().clone(),
            window_columns: spec.window_columns.clone(),
            slice_field: slice_field(&spec.window)?,
        })
    }
}

/// The column of slices: an instant, and how long the slice is that starts there.
fn slice_field(window: &WindowSpec) -> Result<Field> {
    let span = Timeline::new(window)?.slice_size();
    let data_type = DataType::Timestamp(TimeUnit::Millisecond, None);
    let mut field = state_field("slice_start", Role::MapKey, names::slice_start(window), data_type, false);
    field.metadata_mut().insert(SPAN_MS.to_owned(), span.to_string());
    field.metadata_mut().insert(SEGMENT.to_owned(), "true".to_owned());
    Ok(field)
}
