//! Relational algebra between binding and the job graph. Expressions refer to the columns of their input by number:
//! column `i` is `#i`, so that no rule can confuse names.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as DfColumn, DFSchema};
use datafusion::prelude::Expr;
use sqlparser::tokenizer::Location;
use weir_types::graph::{AggregateFunction, WindowSpec};
use weir_types::{Error, Result};

use crate::catalog::Table;

/// What a column stands for, beyond its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// Nothing else.
    Plain,
    /// Event time, with watermarks.
    Rowtime,
    /// Start of the window that the row is in.
    WindowStart,
    /// End of the window.
    WindowEnd,
    /// Last instant of the window; event time as well.
    WindowTime,
}

impl Role {
    /// Whether watermarks follow the column.
    pub(crate) fn is_event_time(self) -> bool {
        matches!(self, Role::Rowtime | Role::WindowTime)
    }
}

/// A column of a relation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    pub(crate) role: Role,
    /// Where the script computes it, for messages.
    pub(crate) at: Option<Location>,
    /// How large its expression is over columns of tables: what views build upon each other.
    pub(crate) weight: u32,
}

impl Column {
    pub(crate) fn plain(name: impl Into<String>, data_type: DataType, nullable: bool) -> Self {
        Self { name: name.into(), data_type, nullable, role: Role::Plain, at: None, weight: 1 }
    }

    pub(crate) fn field(&self) -> Field {
        Field::new(&self.name, self.data_type.clone(), self.nullable)
    }
}

/// An aggregate call over the columns of the relation below.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) function: AggregateFunction,
    pub(crate) argument: Option<Expr>,
    pub(crate) distinct: bool,
    pub(crate) filter: Option<Expr>,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
}

/// A relation.
#[derive(Clone, Debug)]
pub(crate) struct Rel {
    pub(crate) kind: Kind,
    pub(crate) columns: Vec<Column>,
}

/// How a relation comes about.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// All columns of a table, computed ones included.
    Scan(Arc<Table>),
    /// Filter, then project.
    Calc { input: Arc<Rel>, predicate: Option<Expr>, exprs: Vec<Expr> },
    /// Adds window_start, window_end and window_time.
    Window { input: Arc<Rel>, window: WindowSpec, time: usize, at: Location },
    /// Groups by window and keys. Columns: keys, calls, window start, end and time.
    Aggregate {
        input: Arc<Rel>,
        keys: Vec<Expr>,
        calls: Vec<Call>,
        /// Tells it apart from equal ones: `SELECT /*+ STATE_UID('hint') */`.
        hint: Option<String>,
    },
    /// Groups by keys alone; results change as rows come. Columns: keys, calls. Without calls: the distinct keys.
    Group {
        input: Arc<Rel>,
        keys: Vec<Expr>,
        calls: Vec<Call>,
        /// As in `Aggregate`.
        hint: Option<String>,
    },
    /// All rows of all inputs.
    Union(Vec<Arc<Rel>>),
}

impl Rel {
    /// How many aggregate calls it computes itself.
    pub(crate) fn calls(&self) -> usize {
        match &self.kind {
            Kind::Aggregate { calls, .. } | Kind::Group { calls, .. } => calls.len(),
            Kind::Scan(_) | Kind::Calc { .. } | Kind::Window { .. } | Kind::Union(_) => 0,
        }
    }
}

/// The column `#index`.
pub(crate) fn column(index: usize) -> Expr {
    Expr::Column(DfColumn::new_unqualified(format!("#{index}")))
}

/// The number of a column made by [`column`].
pub(crate) fn column_index(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Column(column) => column.name.strip_prefix('#')?.parse().ok(),
        _ => None,
    }
}

/// Replaces every column by an expression.
pub(crate) fn substitute(expr: &Expr, with: &mut dyn FnMut(usize) -> Expr) -> Expr {
    let replaced = expr.clone().transform(|expr| {
        Ok(match column_index(&expr) {
            Some(index) => Transformed::new(with(index), true, TreeNodeRecursion::Jump),
            None => Transformed::no(expr),
        })
    });
    // The closure never fails, and neither does a traversal by itself.
    replaced.data().unwrap_or_else(|_| expr.clone())
}

/// The columns an expression reads.
pub(crate) fn columns_of(expr: &Expr, into: &mut impl FnMut(usize)) {
    let mut visit = |expr: &Expr| {
        if let Some(index) = column_index(expr) {
            into(index);
        }
        Ok(TreeNodeRecursion::Continue)
    };
    // The closure never fails.
    let _ = expr.apply(&mut visit);
}

/// The schema in which columns are named `#0`, `#1`, …
pub(crate) fn numbered_schema(columns: &[Column]) -> Result<DFSchema> {
    let fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| Field::new(format!("#{index}"), column.data_type.clone(), column.nullable))
        .collect();
    DFSchema::try_from(Schema::new(fields)).map_err(internal)
}

/// An error of DataFusion that only a defect of the planner can cause.
pub(crate) fn internal(error: datafusion::error::DataFusionError) -> Error {
    Error::internal("the planner made an expression that does not hold").with_detail(error.to_string())
}
