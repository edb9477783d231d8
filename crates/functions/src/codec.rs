//! Scalar expressions of job graphs: written once by the planner, read by every attempt.
//!
//! What is written has its types made explicit: reading adds no cast and looks up no overload.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::DFSchema;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::prelude::Expr;
use datafusion_proto::bytes::Serializeable;
use weir_types::graph::ScalarExpr;
use weir_types::{Code, Error, Result};

use crate::registry;

/// Names the encoding; a graph of another one is planned anew from its SQL, never read.
pub const EXPRESSION_VERSION: &str = "datafusion-proto 55";

/// Encodes an expression over columns without qualifiers.
///
/// # Errors
/// `INTERNAL` for an expression that cannot be written, such as one nested too deeply.
pub fn encode_expr(expr: &Expr, text: String) -> Result<ScalarExpr> {
    let bytes = expr.to_bytes().map_err(|error| {
        Error::internal(format!("the expression {text} cannot be encoded")).with_detail(error.to_string())
    })?;
    Ok(ScalarExpr { bytes: bytes.to_vec(), text })
}

/// The logical expression, as it was planned.
///
/// # Errors
/// `CORRUPT` if the bytes are not an expression of this version.
pub fn decode_logical(expr: &ScalarExpr) -> Result<Expr> {
    Expr::from_bytes_with_ctx(&expr.bytes, registry().context()).map_err(|error| {
        Error::new(Code::Corrupt, format!("the expression {} cannot be decoded", expr.text))
            .with_detail(error.to_string())
            .with_hint("It was planned by another version of Weir: submit the job anew.")
    })
}

/// The expression, ready to be evaluated over batches of the schema `input`.
///
/// # Errors
/// `CORRUPT` if the bytes are not an expression of this version, or refer to columns that `input` does not have.
pub fn decode_expr(expr: &ScalarExpr, input: &SchemaRef) -> Result<Arc<dyn PhysicalExpr>> {
    let logical = decode_logical(expr)?;
    let failed = |error: datafusion::error::DataFusionError| {
        Error::new(Code::Corrupt, format!("the expression {} does not fit its input", expr.text))
            .with_detail(error.to_string())
    };
    let schema = DFSchema::try_from(Arc::clone(input)).map_err(failed)?;
    create_physical_expr(&logical, &schema, &ExecutionProps::new(), &PhysicalPlanningContext::default()).map_err(failed)
}
