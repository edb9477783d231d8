//! Fields, elements and map values of nulls, slices and missing keys.

use arrow::array::{Int32Array, Int32Builder, ListBuilder, MapBuilder, RecordBatch, StringBuilder};
use arrow::datatypes::{Int32Type, Schema};
use datafusion::logical_expr::lit;
use datafusion::prelude::{Expr, col};

use super::*;
use crate::{decode_expr, encode_expr, registry};

/// The function's result over a column `x`, as numbers.
fn evaluate(function: &str, column: ArrayRef, argument: Expr) -> Vec<Option<i32>> {
    let field = ArrowField::new("x", column.data_type().clone(), true);
    let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap();
    let call = registry().function(function).unwrap().call(vec![col("x"), argument]);
    let expr = decode_expr(&encode_expr(&call, "x".to_owned()).unwrap(), &batch.schema()).unwrap();
    let result = expr.evaluate(&batch).unwrap().into_array(batch.num_rows()).unwrap();
    result.as_primitive::<Int32Type>().iter().collect()
}

#[test]
fn a_field_of_a_null_row_is_null_whatever_lies_beneath() {
    let values: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), Some(2), None, Some(4)]));
    let fields = Fields::from(vec![ArrowField::new("a", DataType::Int32, true)]);
    let nulls = NullBuffer::from(vec![true, false, true, true]);
    let rows = StructArray::new(fields, vec![values], Some(nulls));
    assert_eq!(evaluate("$field", Arc::new(rows.clone()), lit("a")), [Some(1), None, None, Some(4)]);
    assert_eq!(evaluate("$field", Arc::new(rows.slice(1, 3)), lit("a")), [None, None, Some(4)]);
}

#[test]
fn elements_count_from_one_and_are_null_outside() {
    let mut lists = ListBuilder::new(Int32Builder::new());
    lists.append_value([Some(10), None, Some(30)]);
    lists.append_null();
    lists.append_value([Some(40)]);
    let lists = lists.finish();
    let at = |lists: &ListArray, index: i64| evaluate("$element", Arc::new(lists.clone()), lit(index));
    assert_eq!(at(&lists, 1), [Some(10), None, Some(40)]);
    assert_eq!(at(&lists, 3), [Some(30), None, None]);
    assert_eq!(at(&lists, 0), [None, None, None]);
    assert_eq!(at(&lists.slice(2, 1), 1), [Some(40)]);
}

#[test]
fn map_values_are_found_by_key_in_slices_too() {
    let mut maps = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    for entries in [vec![("a", 1), ("b", 2)], vec![], vec![("b", 3)]] {
        for (key, value) in entries {
            maps.keys().append_value(key);
            maps.values().append_value(value);
        }
        maps.append(true).unwrap();
    }
    maps.append(false).unwrap();
    let maps = maps.finish();
    assert_eq!(evaluate("$map_value", Arc::new(maps.clone()), lit("b")), [Some(2), None, Some(3), None]);
    assert_eq!(evaluate("$map_value", Arc::new(maps.slice(2, 2)), lit("b")), [Some(3), None]);
}
