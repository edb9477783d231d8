//! Where a scan's columns come from: the records themselves, or what is known about each record (metadata columns).

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Schema, SchemaRef};
use weir_types::{Error, Result};

/// A scan's schema, taken apart.
#[derive(Debug)]
pub(crate) struct Layout {
    scan: SchemaRef,
    /// The columns that are decoded from records.
    pub(crate) physical: SchemaRef,
    /// Per column of the scan.
    columns: Vec<Column>,
}

#[derive(Debug)]
enum Column {
    Physical(usize),
    Metadata(String),
}

impl Layout {
    /// `metadata` has the metadata columns' places and keys.
    pub(crate) fn new(scan: &SchemaRef, metadata: &BTreeMap<usize, String>) -> Self {
        let (mut physical, mut columns) = (Vec::new(), Vec::new());
        for (index, field) in scan.fields().iter().enumerate() {
            if let Some(key) = metadata.get(&index) {
                columns.push(Column::Metadata(key.clone()));
            } else {
                columns.push(Column::Physical(physical.len()));
                physical.push(Arc::clone(field));
            }
        }
        Self { scan: Arc::clone(scan), physical: Arc::new(Schema::new(physical)), columns }
    }

    /// The scan's rows; `metadata` makes the column of a key, of the given type.
    ///
    /// # Errors
    /// What `metadata` returns; `MALFORMED_RECORD` if a column that is NOT NULL has a null.
    pub(crate) fn assemble(
        &self,
        physical: &RecordBatch,
        metadata: impl Fn(&str, &DataType) -> Result<ArrayRef>,
    ) -> Result<RecordBatch> {
        let column = |(column, field): (&Column, &arrow_schema::FieldRef)| match column {
            Column::Physical(index) => Ok(Arc::clone(physical.column(*index))),
            Column::Metadata(key) => {
                let array = metadata(key, field.data_type())?;
                // The planner's type may differ in its string layout or time zone, not in kind.
                arrow::compute::cast(&array, field.data_type())
                    .map_err(|error| Error::invalid(format!("metadata column '{key}': {error}")))
            }
        };
        let columns = self.columns.iter().zip(self.scan.fields()).map(column).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(physical.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.scan), columns, &options).map_err(|error| {
            Error::new(weir_types::Code::MalformedRecord, "records do not fit the table's schema")
                .with_detail(error.to_string())
        })
    }
}
