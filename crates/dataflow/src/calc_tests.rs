//! Tests of filters and projections over batches with row ops.

use arrow_schema::{DataType, Field, Schema};
use datafusion::logical_expr::{Operator as BinaryOperator, ident, lit as literal};
use datafusion::physical_expr::expressions::{BinaryExpr, binary, col, lit};

use super::*;
use crate::element::RowOp;
use crate::fixtures::{batch, schema, values};

fn expr(physical: Arc<dyn PhysicalExpr>) -> Expr {
    let text = physical.to_string();
    Expr::new(physical, text)
}

fn column(name: &str) -> Expr {
    expr(col(name, &schema()).unwrap())
}

/// `key <op> value`.
fn compare(op: BinaryOperator, value: i64) -> Expr {
    expr(binary(col("key", &schema()).unwrap(), op, lit(value), &schema()).unwrap())
}

fn both() -> Vec<Expr> {
    vec![column("key"), column("ts")]
}

fn sums_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("double", DataType::Int64, false)]))
}

fn doubled() -> Expr {
    compare(BinaryOperator::Plus, 0)
}

#[test]
fn rows_are_filtered_with_their_ops() {
    let calc = Calc::new(Some(compare(BinaryOperator::Gt, 1)), both(), schema()).unwrap();
    let mut input = batch(&[(1, 10), (2, 20), (3, 30)]);
    input.ops = Some(vec![RowOp::Insert as u8, RowOp::UpdateBefore as u8, RowOp::Delete as u8].into());
    let output = calc.apply(input).unwrap().unwrap();
    assert_eq!(values(&output.rows), [(2, 20), (3, 30)]);
    assert_eq!(output.ops.unwrap().as_ref(), [RowOp::UpdateBefore as u8, RowOp::Delete as u8]);
}

#[test]
fn plain_columns_are_not_copied_if_every_row_passes() {
    let calc = Calc::new(Some(compare(BinaryOperator::Gt, 0)), both(), schema()).unwrap();
    let input = batch(&[(1, 10), (2, 20)]);
    let output = calc.apply(input.clone()).unwrap().unwrap();
    assert!(Arc::ptr_eq(input.rows.column(0), output.rows.column(0)));
    assert!(output.ops.is_none());
}

#[test]
fn no_batch_comes_out_if_no_row_passes() {
    let calc = Calc::new(Some(compare(BinaryOperator::Gt, 9)), both(), schema()).unwrap();
    assert!(calc.apply(batch(&[(1, 10)])).unwrap().is_none());
    let never = Calc::new(Some(expr(lit(false))), both(), schema()).unwrap();
    assert!(never.apply(batch(&[(1, 10)])).unwrap().is_none());
    let unknown = Calc::new(Some(expr(lit(ScalarValue::Boolean(None)))), both(), schema()).unwrap();
    assert!(unknown.apply(batch(&[(1, 10)])).unwrap().is_none(), "null is not true");
}

#[test]
fn a_null_predicate_drops_its_row() {
    let nullable: SchemaRef = Arc::new(Schema::new(vec![Field::new("flag", DataType::Boolean, true)]));
    let flags = BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]);
    let rows = RecordBatch::try_new(Arc::clone(&nullable), vec![Arc::new(flags)]).unwrap();
    let flag = || expr(col("flag", &nullable).unwrap());
    let calc = Calc::new(Some(flag()), vec![flag()], Arc::clone(&nullable)).unwrap();
    assert_eq!(calc.apply(Batch::inserts(rows)).unwrap().unwrap().len(), 2);
}

#[test]
fn expressions_read_their_columns_whatever_else_is_left_out() {
    let later: Arc<dyn PhysicalExpr> =
        Arc::new(BinaryExpr::new(col("ts", &schema()).unwrap(), BinaryOperator::Gt, col("ts", &schema()).unwrap()));
    let output: SchemaRef = Arc::new(Schema::new(vec![Field::new("later", DataType::Boolean, true)]));
    let calc = Calc::new(Some(compare(BinaryOperator::NotEq, 2)), vec![expr(later)], output).unwrap();
    let Projection::Computed { reads, .. } = &calc.projection else { panic!("it computes") };
    assert_eq!(reads, &[1]);
    let output = calc.apply(batch(&[(1, 1), (2, 2), (3, 3)])).unwrap().unwrap();
    assert_eq!(output.rows.column(0).as_boolean().iter().collect::<Vec<_>>(), [Some(false), Some(false)]);
}

#[test]
fn constants_are_repeated() {
    let calc = Calc::new(None, vec![expr(lit(7i64))], sums_schema()).unwrap();
    let output = calc.apply(batch(&[(1, 1), (2, 2)])).unwrap().unwrap();
    assert_eq!(output.rows.column(0).as_primitive::<arrow::datatypes::Int64Type>().values(), &[7, 7]);
}

#[test]
fn a_row_is_filtered_before_anything_is_computed_from_it() {
    let quotient = binary(lit(100i64), BinaryOperator::Divide, col("key", &schema()).unwrap(), &schema()).unwrap();
    let calc = |predicate| Calc::new(predicate, vec![expr(Arc::clone(&quotient))], sums_schema()).unwrap();
    let guarded = calc(Some(compare(BinaryOperator::NotEq, 0)));
    assert_eq!(guarded.apply(batch(&[(0, 0), (5, 0)])).unwrap().unwrap().len(), 1);
    let error = calc(None).apply(batch(&[(0, 0), (5, 0)])).err().unwrap();
    assert_eq!(error.code, Code::InvalidArgument);
    assert!(error.message.contains("100 / key"), "{error}");
}

#[test]
fn a_projection_that_does_not_fit_its_schema_is_refused() {
    assert!(Calc::new(None, both(), sums_schema()).is_err());
    let fits = Calc::new(None, vec![doubled()], sums_schema()).unwrap();
    assert_eq!(fits.apply(batch(&[(4, 0)])).unwrap().unwrap().rows.num_columns(), 1);
}

#[test]
fn a_spec_of_the_job_graph_is_decoded_and_applied() {
    let encode = |expr: datafusion::prelude::Expr| weir_functions::encode_expr(&expr, expr.to_string()).unwrap();
    let spec = CalcSpec {
        predicate: Some(encode(ident("key").gt(literal(1i64)))),
        projection: vec![encode(ident("key") + literal(10i64)), encode(ident("ts"))],
    };
    let calc = Calc::from_spec(&spec, &schema(), &schema()).unwrap();
    assert_eq!(values(&calc.apply(batch(&[(1, 5), (2, 6)])).unwrap().unwrap().rows), [(12, 6)]);
    let missing = CalcSpec { predicate: None, projection: vec![encode(ident("nothing")), encode(ident("ts"))] };
    assert_eq!(Calc::from_spec(&missing, &schema(), &schema()).err().unwrap().code, Code::Corrupt);
}
