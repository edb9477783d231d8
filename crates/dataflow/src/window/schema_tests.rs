//! What is said beforehand of a window aggregate's state is what it writes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use weir_state::columns;
use weir_state::schema::window_tables;
use weir_types::graph::{AggregateFunction, AggregateSpec, WindowAggregateSpec, WindowSpec};
use weir_types::key_range::KeyRange;

use super::WindowAggregate;

#[test]
fn the_tables_that_restore_plans_expect_are_those_that_are_written() {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let types = [
        DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Int32,
        DataType::Int64,
        DataType::Decimal128(10, 2),
        DataType::Utf8,
        DataType::Float32,
        DataType::Float64,
        DataType::Boolean,
        DataType::Date32,
    ];
    let fields = types.iter().enumerate().map(|(index, kind)| Field::new(format!("c{index}"), kind.clone(), true));
    let input = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let result = |function: AggregateFunction, argument: &DataType| match (function, argument) {
        (Count, _) => DataType::Int64,
        (Sum, DataType::Decimal128(_, scale)) => DataType::Decimal128(38, *scale),
        (Avg, DataType::Decimal128(_, scale)) => DataType::Decimal128(38, (*scale).max(6)),
        _ => argument.clone(),
    };
    let numeric = |index: usize| matches!(index, 1 | 2 | 3 | 5 | 6);
    let keyed = |index: usize| !matches!(index, 5 | 6);
    let mut aggregates = vec![AggregateSpec { function: Count, argument: None, distinct: false, filter: None }];
    for argument in 0..types.len() {
        for function in [Count, Sum, Min, Max, Avg] {
            if matches!(function, Sum | Avg) && !numeric(argument) {
                continue;
            }
            for distinct in [false, true] {
                for filter in [None, Some(7)] {
                    if !distinct || keyed(argument) {
                        aggregates.push(AggregateSpec { function, argument: Some(argument), distinct, filter });
                    }
                }
            }
        }
    }
    let keys = vec![2, 4, 8];
    let outputs = keys.iter().map(|&key| input.field(key).clone());
    let results = aggregates.iter().enumerate().map(|(index, call)| {
        let argument = call.argument.map_or(DataType::Null, |argument| types[argument].clone());
        Field::new(format!("r{index}"), result(call.function, &argument), call.function != Count)
    });
    let output = Arc::new(Schema::new(outputs.chain(results).collect::<Vec<_>>()));
    let spec = WindowAggregateSpec {
        window: WindowSpec::Tumble { size_ms: 1000, offset_ms: 0 },
        time_column: 0,
        keys,
        aggregates,
        window_columns: Vec::new(),
        emit_late_rows: false,
    };
    let window = WindowAggregate::new(&spec, input.clone(), output.clone(), KeyRange::FULL, 100).unwrap();
    let written = window.state_schemas();
    let expected = window_tables(&spec, &input, &output);
    let names = |tables: &[(String, Schema)]| tables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&written));
    for ((table, expected), (_, written)) in expected.iter().zip(&written) {
        assert!(columns::same(expected, written), "{table}:\n{expected:?}\n{written:?}");
        for (expected, written) in expected.fields().iter().zip(written.fields()) {
            assert!(expected.name().is_empty() || expected.name() == written.name(), "{expected:?} {written:?}");
        }
    }
}
