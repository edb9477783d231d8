//! Types of decimal results, common types and casts, compared with what Flink documents.

use super::*;

fn decimal(precision: u8, scale: i8) -> DataType {
    DataType::Decimal128(precision, scale)
}

#[test]
fn decimal_results_are_flinks() {
    let check = |operator, left: &DataType, right: &DataType, expected: DataType| {
        assert_eq!(decimal_result(operator, left, right), Some(expected), "{operator:?}");
    };
    // 0.908 * price, as in Nexmark q1.
    check(Arithmetic::Multiply, &decimal(3, 3), &DataType::Int64, decimal(23, 3));
    check(Arithmetic::Add, &decimal(5, 2), &decimal(4, 3), decimal(7, 3));
    check(Arithmetic::Add, &decimal(38, 10), &decimal(38, 10), decimal(38, 9));
    check(Arithmetic::Divide, &decimal(5, 2), &decimal(4, 1), decimal(11, 7));
    check(Arithmetic::Divide, &decimal(38, 10), &decimal(38, 10), decimal(38, 6));
    check(Arithmetic::Modulo, &decimal(5, 2), &DataType::Int32, decimal(5, 2));
}

#[test]
fn numbers_meet_at_the_wider_type() {
    assert_eq!(common(&DataType::Int32, &DataType::Int64), Some(DataType::Int64));
    assert_eq!(common(&DataType::Int64, &DataType::Float32), Some(DataType::Float64));
    assert_eq!(common(&DataType::Int64, &decimal(5, 2)), Some(decimal(21, 2)));
    assert_eq!(common(&DataType::Null, &DataType::Utf8), Some(DataType::Utf8));
    assert_eq!(common(&DataType::Utf8, &DataType::Int32), None);
}

#[test]
fn inserting_widens_but_never_narrows() {
    assert!(casts_implicitly(&DataType::Int32, &DataType::Int64));
    assert!(!casts_implicitly(&DataType::Int64, &DataType::Int32));
    assert!(casts_implicitly(&DataType::Int64, &decimal(19, 0)));
    assert!(!casts_implicitly(&DataType::Float64, &decimal(19, 0)));
    assert!(!casts_implicitly(&DataType::Utf8, &DataType::Int32));
    assert!(casts_implicitly(&DataType::Date32, &DataType::Timestamp(TimeUnit::Millisecond, None)));
}

#[test]
fn types_print_as_sql_writes_them() {
    let row =
        DataType::Struct(vec![Field::new("a", DataType::Int32, false), Field::new("b", DataType::Utf8, true)].into());
    assert_eq!(name(&row), "ROW<a INT NOT NULL, b STRING>");
    assert_eq!(name(&ltz(TimeUnit::Millisecond)), "TIMESTAMP_LTZ(3)");
}
