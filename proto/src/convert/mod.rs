//! Conversions between wire and domain types, one module per message family.

pub mod error;
