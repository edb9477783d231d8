//! ROW, ARRAY and MAP.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray, UInt32Array, new_null_array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{interleave, take};
use arrow::datatypes::{DataType, Field as ArrowField, FieldRef, Fields, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature as UdfSignature, Volatility,
};

use crate::definition::{Arguments, Definition, Nulls, Param, Returns, Signature};

pub(super) const FUNCTIONS: &[Definition] = &[
    Definition {
        name: "$row",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any],
            required: 1,
            variadic: true,
            returns: Returns::Computed(|types| Some(DataType::Struct(row_fields(types)))),
        },
        nulls: Nulls::Never,
        volatile: false,
        eval: row,
    },
    Definition {
        name: "$array",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any],
            required: 1,
            variadic: true,
            returns: Returns::Computed(|types| Some(DataType::List(element_field(types.first()?)))),
        },
        nulls: Nulls::Never,
        volatile: false,
        eval: array,
    },
    Definition {
        name: "$element",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any, Param::Long],
            required: 2,
            variadic: false,
            returns: Returns::Computed(|types| match types.first()? {
                DataType::List(element) => Some(element.data_type().clone()),
                _ => None,
            }),
        },
        nulls: Nulls::Maybe,
        volatile: false,
        eval: element,
    },
    Definition {
        name: "$map_value",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any, Param::Any],
            required: 2,
            variadic: false,
            returns: Returns::Computed(|types| match types.first()? {
                DataType::Map(entries, _) => match entries.data_type() {
                    DataType::Struct(fields) => Some(fields.get(1)?.data_type().clone()),
                    _ => None,
                },
                _ => None,
            }),
        },
        nulls: Nulls::Maybe,
        volatile: false,
        eval: map_value,
    },
    Definition {
        name: "cardinality",
        aliases: &[],
        signature: Signature {
            params: &[Param::Any],
            required: 1,
            variadic: false,
            returns: Returns::Computed(|types| {
                matches!(types.first()?, DataType::List(_) | DataType::Map(..)).then_some(DataType::Int32)
            }),
        },
        nulls: Nulls::Propagate,
        volatile: false,
        eval: cardinality,
    },
];

fn row_fields(types: &[DataType]) -> Fields {
    let field =
        |(index, data_type): (usize, &DataType)| ArrowField::new(format!("EXPR${index}"), data_type.clone(), true);
    types.iter().enumerate().map(field).collect()
}

fn element_field(data_type: &DataType) -> FieldRef {
    Arc::new(ArrowField::new("element", data_type.clone(), true))
}

fn row(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let columns = (0..arguments.values.len()).map(|index| arguments.array(index)).collect::<Result<Vec<_>>>()?;
    let types: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
    Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(row_fields(&types), columns, None)?)))
}

fn array(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let columns = (0..arguments.values.len()).map(|index| arguments.array(index)).collect::<Result<Vec<_>>>()?;
    let references: Vec<&dyn Array> = columns.iter().map(AsRef::as_ref).collect();
    let width = columns.len();
    let order: Vec<(usize, usize)> =
        (0..arguments.rows).flat_map(|row| (0..width).map(move |column| (column, row))).collect();
    let values = interleave(&references, &order)?;
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(width, arguments.rows));
    let list = ListArray::try_new(element_field(values.data_type()), offsets, values, None)?;
    Ok(ColumnarValue::Array(Arc::new(list)))
}

fn element(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let list = arguments.array(0)?;
    let Some(list) = list.as_list_opt::<i32>() else { return exec_err!("an element of {}", list.data_type()) };
    let index = arguments.numbers::<Int64Type>(1)?;
    let positions: UInt32Array = (0..list.len())
        .map(|row| {
            let position = index.get(row).filter(|position| list.is_valid(row) && *position >= 1)?;
            let length = i64::from(list.value_length(row));
            // Beyond the end: NULL.
            (position <= length).then(|| list.value_offsets()[row] as u32 + (position - 1) as u32)
        })
        .collect();
    Ok(ColumnarValue::Array(take(list.values(), &positions, None)?))
}

fn map_value(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let map = arguments.array(0)?;
    let Some(map) = map.as_map_opt() else { return exec_err!("a value of {}", map.data_type()) };
    let wanted = arguments.array(1)?;
    // One comparison over all entries, each beside the key that its row wants.
    let rows: UInt32Array =
        (0..map.len()).flat_map(|row| std::iter::repeat_n(row as u32, map.value_length(row) as usize)).collect();
    let first = map.value_offsets().first().map_or(0, |first| *first as usize);
    let keys = map.keys().slice(first, rows.len());
    let wanted = take(&wanted, &rows, None)?;
    let equal = arrow::compute::kernels::cmp::eq(&keys, &wanted)?;
    let mut found: Vec<Option<u32>> = vec![None; map.len()];
    for (entry, row) in rows.values().iter().enumerate() {
        if equal.is_valid(entry) && equal.value(entry) && map.is_valid(*row as usize) {
            found[*row as usize] = Some((first + entry) as u32);
        }
    }
    Ok(ColumnarValue::Array(take(map.values(), &UInt32Array::from(found), None)?))
}

fn cardinality(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let value = arguments.array(0)?;
    let length = |row: usize| match value.data_type() {
        DataType::List(_) => value.as_list::<i32>().value_length(row),
        _ => value.as_map().value_length(row),
    };
    let lengths: arrow::array::Int32Array =
        (0..value.len()).map(|row| value.is_valid(row).then(|| length(row))).collect();
    Ok(ColumnarValue::Array(Arc::new(lengths)))
}

/// `row.field`: no row is copied, and a field of a null row is null.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Field {
    signature: UdfSignature,
}

impl Field {
    pub(super) fn new() -> Self {
        Self { signature: UdfSignature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Field {
    fn name(&self) -> &str {
        "$field"
    }

    fn signature(&self) -> &UdfSignature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("the type of a field depends on its name")
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(arg_types.to_vec())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let (Some(row), Some(Some(ScalarValue::Utf8(Some(name))))) =
            (args.arg_fields.first(), args.scalar_arguments.get(1))
        else {
            return plan_err!("a field is named by a constant");
        };
        let DataType::Struct(fields) = row.data_type() else { return plan_err!("{} has no fields", row.data_type()) };
        match fields.iter().find(|field| field.name() == name) {
            Some(field) => {
                let nullable = field.is_nullable() || row.is_nullable();
                Ok(Arc::new(ArrowField::new(name, field.data_type().clone(), nullable)))
            }
            None => plan_err!("there is no field {name}"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [row, ColumnarValue::Scalar(ScalarValue::Utf8(Some(name)))] = args.args.as_slice() else {
            return exec_err!("a field is named by a constant");
        };
        let row = row.to_array(args.number_rows)?;
        let Some(row) = row.as_struct_opt() else {
            return Ok(ColumnarValue::Array(new_null_array(args.return_field.data_type(), args.number_rows)));
        };
        match row.column_by_name(name) {
            Some(field) => Ok(ColumnarValue::Array(masked(field, row.nulls())?)),
            None => exec_err!("there is no field {name}"),
        }
    }
}

/// A row's field with the row's own nulls.
fn masked(field: &ArrayRef, nulls: Option<&NullBuffer>) -> Result<ArrayRef> {
    let Some(nulls) = nulls.filter(|nulls| nulls.null_count() > 0) else { return Ok(Arc::clone(field)) };
    let nulls = NullBuffer::union(field.nulls(), Some(nulls));
    let data = field.to_data().into_builder().nulls(nulls).build()?;
    Ok(arrow::array::make_array(data))
}

/// Rows of a list or map, for casts: keeps the structure and replaces the values.
pub(super) fn list_of(list: &ListArray, field: FieldRef, values: ArrayRef) -> Result<ArrayRef> {
    Ok(Arc::new(ListArray::try_new(field, list.offsets().clone(), values, list.nulls().cloned())?))
}

#[cfg(test)]
mod tests;
