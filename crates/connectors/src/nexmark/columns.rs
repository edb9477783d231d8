//! From a scan's schema to batches: which columns, nested fields and kinds of events are wanted, and the batch of a
//! selection of events.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanBufferBuilder, Int32Array, RecordBatch, RecordBatchOptions, StructArray, new_null_array,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Fields, SchemaRef};
use weir_types::graph::PushedFilter;
use weir_types::{Error, Result};

use super::fields::{Field, Generator};
use super::sequence::{Kind, Kinds, Runs};

/// The column that tells an event's kind.
const EVENT_TYPE: &str = "event_type";

#[derive(Debug)]
enum Column {
    EventType,
    /// Fields of one kind's struct, null in rows of other kinds.
    Event {
        kind: Kind,
        fields: Vec<Field>,
        types: Fields,
    },
    /// A struct of a kind that is filtered out.
    Absent(ArrayRef),
}

/// What a scan produces.
#[derive(Debug)]
pub(super) struct Scan {
    schema: SchemaRef,
    columns: Vec<Column>,
    /// The kinds whose events are rows.
    pub(super) kinds: Kinds,
}

fn arrow_error(error: arrow_schema::ArrowError) -> Error {
    Error::invalid("generated events do not fit the table's schema").with_detail(error.to_string())
}

impl Scan {
    /// A scan with `schema`, of the events that pass all `filters`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming a column or type that Nexmark does not have.
    pub(super) fn new(schema: SchemaRef, filters: &[PushedFilter], batch_rows: usize) -> Result<Self> {
        let mut kinds = Kinds::ALL;
        for filter in filters {
            if filter.column != EVENT_TYPE {
                return Err(Error::invalid(format!("nexmark cannot filter by column '{}'", filter.column)));
            }
            kinds.retain(&filter.values);
        }
        let column = |field: &arrow_schema::FieldRef| column(field, kinds, batch_rows);
        let columns = schema.fields().iter().map(column).collect::<Result<_>>()?;
        Ok(Self { schema, columns, kinds })
    }

    /// The rows of `runs`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the schema forbids nulls where events of other kinds have them.
    pub(super) fn batch(&self, generator: &Generator, runs: &Runs) -> Result<RecordBatch> {
        let arrays = self.columns.iter().map(|column| column.array(generator, runs)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(runs.rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(arrow_error)
    }
}

fn column(field: &arrow_schema::FieldRef, kinds: Kinds, batch_rows: usize) -> Result<Column> {
    let (kind, types) = match (field.name().as_str(), field.data_type()) {
        (EVENT_TYPE, DataType::Int32) => return Ok(Column::EventType),
        ("person", DataType::Struct(types)) => (Kind::Person, types),
        ("auction", DataType::Struct(types)) => (Kind::Auction, types),
        ("bid", DataType::Struct(types)) => (Kind::Bid, types),
        (name, data_type) => {
            return Err(Error::invalid(format!("nexmark has no column '{name}' of type {data_type}")).with_hint(
                "Its columns are event_type INT, person ROW<…>, auction ROW<…>, bid ROW<…>; see docs/nexmark.md.",
            ));
        }
    };
    let fields = types.iter().map(|nested| nested_field(kind, nested)).collect::<Result<_>>()?;
    if !kinds.has(kind) {
        return Ok(Column::Absent(new_null_array(field.data_type(), batch_rows)));
    }
    Ok(Column::Event { kind, fields, types: types.clone() })
}

fn nested_field(kind: Kind, nested: &arrow_schema::Field) -> Result<Field> {
    let known = Field::of(kind);
    match known.iter().find(|(name, _)| name == nested.name()) {
        Some((_, field)) if field.data_type() == *nested.data_type() => Ok(*field),
        Some((name, field)) => Err(Error::invalid(format!(
            "nexmark's field '{name}' is of type {}, not {}",
            field.data_type(),
            nested.data_type()
        ))),
        None => Err(Error::invalid(format!("nexmark has no field '{}' there", nested.name())).with_hint(format!(
            "The fields are {}.",
            known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        ))),
    }
}

impl Column {
    fn array(&self, generator: &Generator, runs: &Runs) -> Result<ArrayRef> {
        match self {
            Column::EventType => {
                let mut values = Vec::with_capacity(runs.rows);
                for run in &runs.runs {
                    values.resize(values.len() + run.count as usize, i32::from(run.kind as u8));
                }
                Ok(Arc::new(Int32Array::new(ScalarBuffer::from(values), None)))
            }
            Column::Absent(nulls) => Ok(nulls.slice(0, runs.rows)),
            Column::Event { kind, fields, types } => {
                let nulls = validity(*kind, runs);
                let column = |field: &Field| generator.column(*kind, *field, runs, nulls.clone());
                let arrays = fields.iter().map(column).collect::<Result<_>>()?;
                StructArray::try_new_with_length(types.clone(), arrays, nulls, runs.rows)
                    .map(|array| Arc::new(array) as ArrayRef)
                    .map_err(arrow_error)
            }
        }
    }
}

/// Where rows are of `kind`; none: everywhere.
fn validity(kind: Kind, runs: &Runs) -> Option<NullBuffer> {
    if runs.runs.iter().all(|run| run.kind == kind) {
        return None;
    }
    let mut valid = BooleanBufferBuilder::new(runs.rows);
    for run in &runs.runs {
        valid.append_n(run.count as usize, run.kind == kind);
    }
    Some(NullBuffer::new(valid.finish()))
}
