//! weir-sql.
