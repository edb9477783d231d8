//! What is said beforehand of an updating aggregate's state is what it writes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use weir_state::columns;
use weir_state::schema::group_tables;
use weir_types::graph::{AggregateFunction, AggregateSpec, GroupAggregateSpec};
use weir_types::key_range::KeyRange;

use super::GroupAggregate;

#[test]
fn the_tables_that_restore_plans_expect_are_those_that_are_written() {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let types = [
        DataType::Int64,
        DataType::Int32,
        DataType::Decimal128(10, 2),
        DataType::Utf8,
        DataType::Float64,
        DataType::Boolean,
        DataType::Timestamp(TimeUnit::Millisecond, None),
    ];
    let fields = types.iter().enumerate().map(|(index, kind)| Field::new(format!("c{index}"), kind.clone(), true));
    let input = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let call = |function, argument, distinct, filter| AggregateSpec { function, argument, distinct, filter };
    let mut calls = vec![(call(Count, None, false, None), DataType::Int64)];
    for distinct in [false, true] {
        for filter in [None, Some(5)] {
            calls.push((call(Count, Some(3), distinct, filter), DataType::Int64));
            calls.push((call(Sum, Some(1), distinct, filter), DataType::Int32));
            calls.push((call(Sum, Some(2), distinct, filter), DataType::Decimal128(38, 2)));
            calls.push((call(Sum, Some(4), distinct, filter), DataType::Float64));
            calls.push((call(Avg, Some(2), distinct, filter), DataType::Decimal128(38, 6)));
            calls.push((call(Min, Some(3), distinct, filter), DataType::Utf8));
            calls.push((call(Max, Some(4), distinct, filter), DataType::Float64));
            calls.push((call(Max, Some(6), distinct, filter), types[6].clone()));
        }
    }
    let keys = vec![0, 3];
    let outputs = keys.iter().map(|&key| input.field(key).clone());
    let results =
        calls.iter().enumerate().map(|(index, (_, kind))| Field::new(format!("r{index}"), kind.clone(), true));
    let output = Arc::new(Schema::new(outputs.chain(results).collect::<Vec<_>>()));
    for retracting in [false, true] {
        let aggregates = calls.iter().map(|(call, _)| call.clone()).collect();
        let spec = GroupAggregateSpec { keys: keys.clone(), aggregates, retracting, update_before: true };
        let operator = GroupAggregate::new(&spec, &input, Arc::clone(&output), KeyRange::FULL).unwrap();
        let written = operator.state_schemas();
        let expected = group_tables(&spec, &input, &output);
        let names = |tables: &[(String, Schema)]| tables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&expected), names(&written));
        for ((table, expected), (_, written)) in expected.iter().zip(&written) {
            assert!(columns::same(expected, written), "{table}:\n{expected:?}\n{written:?}");
            for (expected, written) in expected.fields().iter().zip(written.fields()) {
                assert!(expected.name().is_empty() || expected.name() == written.name(), "{expected:?} {written:?}");
            }
        }
    }
}
