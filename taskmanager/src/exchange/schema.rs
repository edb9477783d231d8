//! What an exchange may carry, and how both of its ends make sure that they mean the same columns.
//!
//! A schema travels as text and is compared, never decoded: a peer's bytes cannot reach Arrow's schema reader, which
//! trusts its input. Metadata of fields does not count; names, types and nullability do.

use arrow::datatypes::{DataType, Field, Fields, Schema};
use weir_types::{Code, Error, Result};

/// The columns as text: `auction Int64 not null, tags List<item Utf8>`.
pub(crate) fn describe(schema: &Schema) -> String {
    describe_fields(schema.fields())
}

/// Refuses columns that the exchange protocol does not carry.
///
/// # Errors
/// `UNSUPPORTED`, naming the column.
pub(crate) fn check(schema: &Schema) -> Result<()> {
    match schema.fields().iter().find(|field| !is_carried(field.data_type())) {
        None => Ok(()),
        Some(field) => {
            let message = format!("column {:?} cannot travel between TaskManagers", field.name());
            Err(Error::new(Code::Unsupported, message).with_detail(format!("its type is {}", field.data_type())))
        }
    }
}

fn is_carried(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_carried(item.data_type())
        }
        DataType::Map(entries, _) => is_carried(entries.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_carried(field.data_type())),
        DataType::Null
        | DataType::Boolean
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => true,
        other => other.is_primitive(),
    }
}

fn describe_fields(fields: &Fields) -> String {
    fields.iter().map(|field| describe_field(field)).collect::<Vec<_>>().join(", ")
}

fn describe_field(field: &Field) -> String {
    let data_type = match field.data_type() {
        DataType::List(item) => format!("List<{}>", describe_field(item)),
        DataType::LargeList(item) => format!("LargeList<{}>", describe_field(item)),
        DataType::FixedSizeList(item, size) => format!("FixedSizeList<{}, {size}>", describe_field(item)),
        DataType::Map(entries, _) => format!("Map<{}>", describe_field(entries)),
        DataType::Struct(fields) => format!("Struct<{}>", describe_fields(fields)),
        other => format!("{other:?}"),
    };
    let nullability = if field.is_nullable() { "" } else { " not null" };
    format!("{:?} {data_type}{nullability}", field.name())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn the_text_tells_types_and_nullability_apart_but_not_metadata() {
        let item = Field::new("item", DataType::Utf8, true);
        let plain = Field::new("tags", DataType::List(Arc::new(item.clone())), false);
        let noted = item.with_metadata(HashMap::from([("k".to_owned(), "v".to_owned())]));
        let noted = Field::new("tags", DataType::List(Arc::new(noted)), false);
        let text = describe(&Schema::new(vec![plain]));
        assert_eq!(text, "\"tags\" List<\"item\" Utf8> not null");
        assert_eq!(text, describe(&Schema::new(vec![noted])));
        let time = Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), true);
        assert_eq!(describe(&Schema::new(vec![time])), "\"ts\" Timestamp(Millisecond, None)");
    }

    #[test]
    fn dictionaries_are_refused_wherever_they_hide() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let nested = DataType::Struct(Fields::from(vec![Field::new("d", dictionary, true)]));
        let error = check(&Schema::new(vec![Field::new("row", nested, true)])).unwrap_err();
        assert_eq!(error.code, Code::Unsupported);
        assert_eq!(error.message, "column \"row\" cannot travel between TaskManagers");
    }
}
