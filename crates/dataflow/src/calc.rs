//! Filters and projects: DataFusion expressions over whole batches.
//!
//! Plain columns pass without a copy; rows are filtered before anything is computed from them, and only the columns that
//! the projection reads are filtered; a filter that keeps every row copies nothing. The row ops follow their rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{FilterBuilder, prep_null_mask_filter};
use arrow::datatypes::UInt8Type;
use arrow_schema::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use weir_state::memory::Memory;
use weir_state::{RestoredOperator, Since};
use weir_types::graph::{CalcSpec, Output, ScalarExpr};
use weir_types::{Code, Error, Result};

use crate::element::{Batch, Watermark};
use crate::operator::{Collector, Frozen, Operator, Progress};

/// A decoded expression with its text for messages.
#[derive(Clone, Debug)]
pub struct Expr {
    physical: Arc<dyn PhysicalExpr>,
    text: String,
}

impl Expr {
    /// An expression over a batch.
    pub fn new(physical: Arc<dyn PhysicalExpr>, text: impl Into<String>) -> Self {
        Self { physical, text: text.into() }
    }

    /// Decodes an expression of the job graph over columns of `input`.
    ///
    /// # Errors
    /// If the bytes do not decode or refer to columns that do not exist.
    pub fn decode(expr: &ScalarExpr, input: &SchemaRef) -> Result<Self> {
        Ok(Self::new(weir_functions::decode_expr(expr, input)?, expr.text.clone()))
    }

    /// Evaluates over all rows.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with the expression's text if it fails for some row.
    pub fn evaluate(&self, rows: &RecordBatch) -> Result<ColumnarValue> {
        self.physical.evaluate(rows).map_err(|error| self.failed(&error))
    }

    /// Evaluates over all rows, a constant repeated.
    ///
    /// # Errors
    /// As [`Expr::evaluate`].
    pub fn evaluate_array(&self, rows: &RecordBatch) -> Result<ArrayRef> {
        self.evaluate(rows)?.into_array(rows.num_rows()).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &datafusion::error::DataFusionError) -> Error {
        Error::new(Code::InvalidArgument, format!("could not evaluate {}", self.text))
            .with_detail(error.strip_backtrace())
            .with_hint("Guard the expression against such rows, for example with TRY_CAST, CASE or a filter.")
    }
}

/// How the output columns come about.
enum Projection {
    /// Columns of the input, by index.
    Columns(Vec<usize>),
    /// Expressions over these columns of the input, renumbered in this order.
    Computed { reads: Vec<usize>, exprs: Vec<Expr> },
}

/// Filter, then project.
pub struct Calc {
    predicate: Option<Expr>,
    projection: Projection,
    schema: SchemaRef,
}

impl Calc {
    /// Decodes a spec over rows of schema `input`, giving rows of schema `output`.
    ///
    /// # Errors
    /// If an expression does not decode.
    pub fn from_spec(spec: &CalcSpec, input: &SchemaRef, output: &SchemaRef) -> Result<Self> {
        let predicate = spec.predicate.as_ref().map(|expr| Expr::decode(expr, input)).transpose()?;
        let projection = spec.projection.iter().map(|expr| Expr::decode(expr, input)).collect::<Result<Vec<_>>>()?;
        Self::new(predicate, projection, Arc::clone(output))
    }

    /// A calc out of decoded expressions, one per column of `schema`.
    ///
    /// # Errors
    /// `INTERNAL` if their number does not fit.
    pub fn new(predicate: Option<Expr>, projection: Vec<Expr>, schema: SchemaRef) -> Result<Self> {
        if projection.len() != schema.fields().len() {
            return Err(Error::internal(format!(
                "a projection of {} expressions does not fit {} columns",
                projection.len(),
                schema.fields().len()
            )));
        }
        let plain: Option<Vec<usize>> = projection.iter().map(|expr| plain_column(&expr.physical)).collect();
        let projection = match plain {
            Some(columns) => Projection::Columns(columns),
            None => narrow(projection)?,
        };
        Ok(Self { predicate, projection, schema })
    }

    /// The rows that pass, projected; none if no row passes.
    ///
    /// # Errors
    /// If an expression cannot be evaluated, or gives null where the schema has NOT NULL.
    pub fn apply(&self, batch: Batch) -> Result<Option<Batch>> {
        let mask = match &self.predicate {
            Some(predicate) => Mask::evaluate(predicate, &batch.rows)?,
            None => Mask::All,
        };
        if matches!(mask, Mask::None) {
            return Ok(None);
        }
        let reads = match &self.projection {
            Projection::Columns(columns) => columns,
            Projection::Computed { reads, .. } => reads,
        };
        let Batch { rows, ops } = mask.filter(narrowed(&batch.rows, reads)?, batch.ops)?;
        let columns = match &self.projection {
            Projection::Columns(_) => rows.columns().to_vec(),
            Projection::Computed { exprs, .. } => {
                exprs.iter().map(|expr| expr.evaluate_array(&rows)).collect::<Result<Vec<_>>>()?
            }
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|error| misfit(&error))?;
        Ok(Some(Batch { rows, ops }))
    }
}

fn misfit(error: &arrow_schema::ArrowError) -> Error {
    Error::new(Code::InvalidArgument, "computed columns do not fit the schema").with_detail(error.to_string())
}

fn plain_column(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    expr.downcast_ref::<Column>().map(Column::index)
}

/// Renumbers the columns that expressions read, so that no others are filtered.
fn narrow(projection: Vec<Expr>) -> Result<Projection> {
    let mut reads: Vec<usize> =
        projection.iter().flat_map(|expr| collect_columns(&expr.physical)).map(|column| column.index()).collect();
    reads.sort_unstable();
    reads.dedup();
    let places: BTreeMap<usize, usize> = reads.iter().enumerate().map(|(place, index)| (*index, place)).collect();
    let renumber = |expr: Arc<dyn PhysicalExpr>| {
        let Some(column) = expr.downcast_ref::<Column>() else {
            return Ok(Transformed::no(expr));
        };
        let place = places.get(&column.index()).copied().unwrap_or(column.index());
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(column.name(), place));
        Ok(Transformed::yes(column))
    };
    let exprs = projection.into_iter().map(|Expr { physical, text }| {
        let physical = physical.transform(renumber).data();
        physical.map(|physical| Expr { physical, text }).map_err(|error| {
            Error::internal("could not renumber the columns of an expression").with_detail(error.strip_backtrace())
        })
    });
    Ok(Projection::Computed { exprs: exprs.collect::<Result<Vec<_>>>()?, reads })
}

fn narrowed(rows: &RecordBatch, reads: &[usize]) -> Result<RecordBatch> {
    rows.project(reads)
        .map_err(|error| Error::internal("a projection reads a missing column").with_detail(error.to_string()))
}

/// Which rows pass.
enum Mask {
    All,
    None,
    Some(BooleanArray),
}

impl Mask {
    fn evaluate(predicate: &Expr, rows: &RecordBatch) -> Result<Self> {
        let array = match predicate.evaluate(rows)? {
            ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))) => return Ok(Self::All),
            ColumnarValue::Scalar(_) => return Ok(Self::None),
            ColumnarValue::Array(array) => array,
        };
        let Some(mask) = array.as_boolean_opt() else {
            return Err(Error::internal(format!("the filter {} is not boolean", predicate.text)));
        };
        Ok(match mask.true_count() {
            0 => Self::None,
            passing if passing == mask.len() => Self::All,
            _ if mask.null_count() > 0 => Self::Some(prep_null_mask_filter(mask)),
            _ => Self::Some(mask.clone()),
        })
    }

    fn filter(&self, rows: RecordBatch, ops: Option<arrow::buffer::ScalarBuffer<u8>>) -> Result<Batch> {
        let Self::Some(mask) = self else {
            return Ok(Batch { rows, ops });
        };
        let failed = |error: arrow_schema::ArrowError| {
            Error::internal("could not filter a batch").with_detail(error.to_string())
        };
        let mut filter = FilterBuilder::new(mask);
        if rows.num_columns() > 1 {
            filter = filter.optimize();
        }
        let filter = filter.build();
        let batch = Batch { rows, ops };
        let ops = match batch.ops_array() {
            Some(ops) => Some(filter.filter(&ops).map_err(failed)?.as_primitive::<UInt8Type>().values().clone()),
            None => None,
        };
        Ok(Batch { rows: filter.filter_record_batch(&batch.rows).map_err(failed)?, ops })
    }
}

impl Operator for Calc {
    fn restore(&mut self, _state: RestoredOperator) -> Result<()> {
        Err(Error::internal("a calc has no state to restore"))
    }

    fn process(&mut self, batch: Batch, out: &mut dyn Collector) -> Result<()> {
        match self.apply(batch)? {
            Some(batch) => out.emit(Output::Main, batch),
            None => Ok(()),
        }
    }

    fn advance(&mut self, _watermark: Watermark, _out: &mut dyn Collector) -> Result<Progress> {
        Ok(Progress::Done)
    }

    fn freeze(&mut self, _since: Since, _memory: &Memory) -> Result<Frozen> {
        Ok(Frozen::default())
    }
}

#[cfg(test)]
#[path = "calc_tests.rs"]
mod tests;
