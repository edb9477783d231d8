//! What a column of a state table is, apart from what it is called.
//!
//! Columns are named for people, after the query that wrote them; a renamed alias renames a column. What a column *is*
//! stands in its metadata: its id under `weir.column`, stable as long as the state means the same, and its role under
//! `weir.role`. State is matched by ids, never by names. A column without an id has its name as id.

use arrow::datatypes::{DataType, Field, Schema};

/// Metadata key of a column's id.
pub const ID: &str = "weir.column";
/// Metadata key of a column's role.
pub const ROLE: &str = "weir.role";
/// Metadata key, on a column of instants, of the length of the stretch of time that starts there, in milliseconds.
pub const SPAN_MS: &str = "weir.span_ms";

/// What a column does in its table. Key and map key together occur once per table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Part of the key, whose hash places the row.
    Key,
    /// Tells the rows of one key apart.
    MapKey,
    /// What is kept.
    Value,
}

impl Role {
    /// As in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Key => "key",
            Role::MapKey => "map-key",
            Role::Value => "value",
        }
    }
}

/// A column of a state table.
pub fn state_field(id: &str, role: Role, name: &str, data_type: DataType, nullable: bool) -> Field {
    let metadata = [(ID, id), (ROLE, role.as_str())].map(|(key, value)| (key.to_owned(), value.to_owned()));
    Field::new(name, data_type, nullable).with_metadata(metadata.into())
}

/// A column's id.
pub fn id(field: &Field) -> &str {
    field.metadata().get(ID).unwrap_or(field.name())
}

/// A column's role; none if the file does not tell.
pub fn role(field: &Field) -> Option<Role> {
    let name = field.metadata().get(ROLE)?;
    [Role::Key, Role::MapKey, Role::Value].into_iter().find(|role| role.as_str() == name)
}

/// How long the stretch of time is that starts at a column's instants, in milliseconds.
pub fn span_ms(field: &Field) -> Option<i64> {
    field.metadata().get(SPAN_MS)?.parse().ok()
}

/// Whether two schemas are of the same table: equal ids and types, whatever the names.
pub fn same(one: &Schema, other: &Schema) -> bool {
    let what = |schema: &Schema| -> Vec<(String, DataType)> {
        schema.fields().iter().map(|field| (id(field).to_owned(), field.data_type().clone())).collect()
    };
    what(one) == what(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_the_same_whatever_their_columns_are_called() {
        let schema = |id, name, data_type| Schema::new(vec![state_field(id, Role::Value, name, data_type, true)]);
        let one = schema("agg0.count", "n", DataType::Int64);
        assert!(same(&one, &schema("agg0.count", "visits", DataType::Int64)));
        assert!(!same(&one, &schema("agg1.count", "n", DataType::Int64)));
        assert!(!same(&one, &schema("agg0.count", "n", DataType::Int32)));
        assert!(same(&one, &Schema::new(vec![Field::new("agg0.count", DataType::Int64, true)])));
        assert_eq!(role(one.field(0)), Some(Role::Value));
        assert_eq!((role(&Field::new("x", DataType::Int64, true)), id(one.field(0))), (None, "agg0.count"));
    }
}
