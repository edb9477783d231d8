//! Tables and views that a script has declared so far.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::prelude::Expr;
use sqlparser::tokenizer::Location;
use weir_types::connector::ConnectorKind;
use weir_types::graph::ConnectorSpec;

use crate::rel::{Column, Rel};

/// Where the values of a table's column come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// The connector's rows.
    Physical,
    /// An expression over the table's physical and metadata columns.
    Computed(Expr),
    /// The connector's metadata. Virtual ones are never written.
    Metadata {
        /// The connector's key.
        key: String,
        /// The type in which the connector gives it.
        native: Column,
        /// Left out when the table is written.
        is_virtual: bool,
    },
}

/// The watermark of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Watermark {
    /// The rowtime column.
    pub(crate) column: usize,
    /// Over all columns of the table.
    pub(crate) expr: Expr,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) location: Location,
    pub(crate) columns: Vec<Column>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) watermark: Option<Watermark>,
    pub(crate) primary_key: Vec<usize>,
    pub(crate) connector: ConnectorSpec,
    pub(crate) late_rows_table: Option<String>,
}

impl Table {
    /// The connector.
    pub(crate) fn kind(&self) -> ConnectorKind {
        self.connector.kind
    }

    /// Columns that an INSERT writes, in order.
    pub(crate) fn writable(&self) -> Vec<usize> {
        let is_written = |origin: &Origin| match origin {
            Origin::Physical => true,
            Origin::Metadata { is_virtual, .. } => !is_virtual,
            Origin::Computed(_) => false,
        };
        (0..self.columns.len()).filter(|index| is_written(&self.origins[*index])).collect()
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Table(Arc<Table>),
    View(Arc<Rel>),
}

/// Everything declared, by name; names are case-sensitive.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) entries: BTreeMap<String, Entry>,
}
