//! Watermarks out of rows: the greatest value of a table's watermark expression so far.
//!
//! Times are rounded down to milliseconds, so that a watermark never promises more than the rows said.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::max;
use arrow::datatypes::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use weir_types::graph::WatermarkSpec;
use weir_types::{Error, Result};

use crate::calc::Expr;

/// Reads watermarks off batches.
#[derive(Debug)]
pub struct WatermarkGenerator {
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// The greatest event time less a constant.
    Delay { column: usize, delay_ms: i64 },
    /// The greatest value of an expression.
    Expression(Expr),
}

impl WatermarkGenerator {
    /// A generator over rows of this schema.
    ///
    /// # Errors
    /// If the watermark expression does not decode.
    pub fn from_spec(spec: &WatermarkSpec, schema: &SchemaRef) -> Result<Self> {
        let rule = match spec.constant_delay_ms {
            Some(delay_ms) => Rule::Delay { column: spec.column, delay_ms },
            None => Rule::Expression(Expr::decode(&spec.expr, schema)?),
        };
        Ok(Self { rule })
    }

    /// A generator that stays a constant behind the greatest event time.
    pub fn with_delay(column: usize, delay_ms: i64) -> Self {
        Self { rule: Rule::Delay { column, delay_ms } }
    }

    /// The watermark that the rows allow in ms; `event_time_max_ms` is what the connector knows about rows left out.
    ///
    /// # Errors
    /// If the expression cannot be evaluated.
    pub fn watermark_ms(&self, rows: Option<&RecordBatch>, event_time_max_ms: Option<i64>) -> Result<Option<i64>> {
        match &self.rule {
            Rule::Delay { column, delay_ms } => {
                let greatest = match (event_time_max_ms, rows) {
                    (Some(greatest), _) => Some(greatest),
                    (None, Some(rows)) => {
                        let column = rows.columns().get(*column);
                        greatest_ms(column.ok_or_else(|| Error::internal("the rowtime column does not exist"))?)?
                    }
                    (None, None) => None,
                };
                Ok(greatest.map(|greatest| greatest.saturating_sub(*delay_ms)))
            }
            Rule::Expression(expr) => match rows {
                Some(rows) => greatest_ms(&expr.evaluate_array(rows)?),
                None => Ok(None),
            },
        }
    }
}

/// The greatest timestamp of a column in ms, nulls left out.
fn greatest_ms(column: &ArrayRef) -> Result<Option<i64>> {
    let DataType::Timestamp(unit, _) = column.data_type() else {
        return Err(Error::internal(format!("a watermark of type {} is no timestamp", column.data_type())));
    };
    Ok(match unit {
        TimeUnit::Second => max(column.as_primitive::<TimestampSecondType>()).map(|s| s.saturating_mul(1000)),
        TimeUnit::Millisecond => max(column.as_primitive::<TimestampMillisecondType>()),
        TimeUnit::Microsecond => max(column.as_primitive::<TimestampMicrosecondType>()).map(|us| us.div_euclid(1000)),
        TimeUnit::Nanosecond => {
            max(column.as_primitive::<TimestampNanosecondType>()).map(|ns| ns.div_euclid(1_000_000))
        }
    })
}
