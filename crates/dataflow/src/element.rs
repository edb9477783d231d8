//! What flows between operators. Order within one channel is kept; nothing is said across channels.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, ListArray, RecordBatch, StructArray, UInt8Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::concat_batches;
use arrow_schema::DataType;
use weir_types::snapshot::Barrier;
use weir_types::{Error, Result};

/// The change that a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowOp {
    /// `+I`
    Insert = 0,
    /// `-U`: the old version of a row that changes.
    UpdateBefore = 1,
    /// `+U`: its new version.
    UpdateAfter = 2,
    /// `-D`
    Delete = 3,
}

/// Rows with the change that each stands for.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The rows; never empty.
    pub rows: RecordBatch,
    /// One [`RowOp`] per row as its number; none: all of them are inserts.
    pub ops: Option<ScalarBuffer<u8>>,
}

impl Batch {
    /// Rows that are all inserts.
    pub fn inserts(rows: RecordBatch) -> Self {
        Self { rows, ops: None }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Whether there are no rows, which never holds for a batch in a channel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the rows take, those of other slices of the same buffers left out.
    pub fn bytes(&self) -> usize {
        let rows: usize = self.rows.columns().iter().map(|column| array_bytes(&column.to_data())).sum();
        rows + self.ops.as_ref().map_or(0, |ops| ops.len())
    }

    /// Some rows, without copying them.
    #[must_use]
    pub fn slice(&self, start: usize, rows: usize) -> Self {
        Self { rows: self.rows.slice(start, rows), ops: self.ops.as_ref().map(|ops| ops.slice(start, rows)) }
    }

    /// All rows of `batches`, which must not be empty, in order.
    ///
    /// # Errors
    /// `INTERNAL` if the schemas differ.
    pub fn concat(batches: &[Self]) -> Result<Self> {
        let Some(first) = batches.first() else {
            return Err(Error::internal("no batches to join"));
        };
        let rows = concat_batches(first.rows.schema_ref(), batches.iter().map(|batch| &batch.rows))
            .map_err(|error| Error::internal("could not join batches").with_detail(error.to_string()))?;
        let ops = batches.iter().any(|batch| batch.ops.is_some()).then(|| {
            let mut ops = Vec::with_capacity(rows.num_rows());
            for batch in batches {
                match &batch.ops {
                    Some(theirs) => ops.extend_from_slice(theirs),
                    None => ops.resize(ops.len() + batch.len(), RowOp::Insert as u8),
                }
            }
            ScalarBuffer::from(ops)
        });
        Ok(Self { rows, ops })
    }

    /// The same rows with string and binary views that hold on to no bytes but their own.
    ///
    /// # Errors
    /// `INTERNAL` if a column cannot be rebuilt.
    pub fn compact(self) -> Result<Self> {
        if !self.rows.schema_ref().fields().iter().any(|field| has_views(field.data_type())) {
            return Ok(self);
        }
        let columns = self.rows.columns().iter().map(compact_column).collect::<Result<Vec<_>>>()?;
        let rows = RecordBatch::try_new(self.rows.schema(), columns)
            .map_err(|error| Error::internal("could not compact a batch").with_detail(error.to_string()))?;
        Ok(Self { rows, ops: self.ops })
    }

    /// The ops as an array, for kernels.
    pub fn ops_array(&self) -> Option<UInt8Array> {
        self.ops.clone().map(|ops| UInt8Array::new(ops, None))
    }
}

/// Event time in milliseconds since the epoch: no row at or before it is expected any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermark(pub i64);

impl Watermark {
    /// Before the first watermark.
    pub const MIN: Self = Self(i64::MIN);
    /// The end of a bounded input: every timer fires.
    pub const MAX: Self = Self(i64::MAX);
}

/// One thing in a channel.
#[derive(Clone, Debug)]
pub enum Element {
    /// Rows.
    Batch(Batch),
    /// Event time has advanced; an idle channel becomes active again.
    Watermark(Watermark),
    /// The channel brings no rows for now: its watermark is left out of the minimum.
    Idle,
    /// A snapshot's barrier.
    Barrier(Barrier),
    /// Nothing follows.
    EndOfInput,
}

/// Bytes of a slice; for views, the buffers that they hold on to.
fn array_bytes(data: &ArrayData) -> usize {
    data.get_slice_memory_size().unwrap_or_else(|_| data.get_array_memory_size()) + view_bytes(data)
}

fn view_bytes(data: &ArrayData) -> usize {
    let own = match data.data_type() {
        DataType::Utf8View | DataType::BinaryView => data.buffers().iter().skip(1).map(|buffer| buffer.len()).sum(),
        _ => 0,
    };
    own + data.child_data().iter().map(view_bytes).sum::<usize>()
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        DataType::List(field) => has_views(field.data_type()),
        _ => false,
    }
}

fn compact_column(column: &ArrayRef) -> Result<ArrayRef> {
    let failed =
        |error: arrow_schema::ArrowError| Error::internal("could not compact a column").with_detail(error.to_string());
    Ok(match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        DataType::Struct(fields) if has_views(column.data_type()) => {
            let array = column.as_struct();
            let children = array.columns().iter().map(compact_column).collect::<Result<Vec<_>>>()?;
            Arc::new(StructArray::try_new(fields.clone(), children, array.nulls().cloned()).map_err(failed)?)
        }
        DataType::List(field) if has_views(field.data_type()) => {
            let array = column.as_list::<i32>();
            let values = compact_column(array.values())?;
            let (offsets, nulls) = (array.offsets().clone(), array.nulls().cloned());
            Arc::new(ListArray::try_new(Arc::clone(field), offsets, values, nulls).map_err(failed)?)
        }
        _ => Arc::clone(column),
    })
}
