//! SQL over the tables of snapshots, by DataFusion on the files alone.
//!
//! A query names its tables as [`crate::names`] says, and reads only the columns it needs, block by block. Sorts, joins and
//! aggregates have a budget and go to temporary files beyond it. Identifiers keep their case, as in Flink.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::memory::{MemoryCatalogProvider, MemorySchemaProvider};
use datafusion::catalog::{CatalogProvider, SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, TableReference};
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::TaskContext;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use weir_types::{Code, Error, Result};

use crate::names::{self, Named, Target};
use crate::table::{Columns, Table};
use crate::{Snapshot, system};

/// Memory for sorts, joins and aggregates of a query, unless said otherwise.
pub const MEMORY_BYTES_DEFAULT: usize = 256 << 20;

/// Where tables without a qualifier are registered; no name of a user's leads here.
const CATALOG: &str = "$snapshots";
const SCHEMA: &str = "$tables";

/// The snapshots that queries are about.
#[derive(Debug)]
pub struct Queries {
    snapshots: Vec<Named>,
    memory_bytes: usize,
}

impl Queries {
    /// Queries over one snapshot, and others by name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a name that is used twice or means something else.
    pub fn new(snapshot: Snapshot, others: Vec<(String, Snapshot)>, memory_bytes: usize) -> Result<Self> {
        let mut snapshots = vec![Named { name: None, snapshot: Arc::new(snapshot) }];
        for (name, snapshot) in others {
            let taken = name == names::SYSTEM || snapshots.iter().any(|other| other.name.as_ref() == Some(&name));
            if taken || name.is_empty() {
                return Err(Error::invalid(format!("{name:?} cannot be the name of a snapshot in a query"))
                    .with_hint("Choose a word that no other snapshot of the query has; \"snapshot\" is taken."));
            }
            snapshots.push(Named { name: Some(name), snapshot: Arc::new(snapshot) });
        }
        Ok(Self { snapshots, memory_bytes })
    }

    /// Starts a query.
    ///
    /// # Errors
    /// `INVALID_SQL` if it does not parse or plan, `NOT_FOUND` for an unknown table with those that come close, `CORRUPT`
    /// if the header of a state file is damaged.
    pub async fn run(&self, sql: &str) -> Result<Rows> {
        let context = self.context()?;
        let statement = {
            let state = context.state();
            let dialect = state.config_options().sql_parser.dialect;
            state.sql_to_statement(&self.with_quoted_uids(sql), &dialect).map_err(query_error)?
        };
        if !is_query(&statement) {
            return Err(read_only());
        }
        let references = context.state().resolve_table_references(&statement).map_err(query_error)?;
        for reference in references {
            self.register(&context, reference)?;
        }
        let plan = context.state().statement_to_plan(statement).await.map_err(query_error)?;
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        options.verify_plan(&plan).map_err(|error| read_only().with_detail(error.strip_backtrace()))?;
        let frame = context.execute_logical_plan(plan).await.map_err(query_error)?;
        let stream = frame.execute_stream().await.map_err(query_error)?;
        Ok(Rows { schema: stream.schema(), stream })
    }

    fn context(&self) -> Result<SessionContext> {
        let mut config = SessionConfig::new()
            .with_target_partitions(1)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(CATALOG, SCHEMA);
        config.options_mut().sql_parser.enable_ident_normalization = false;
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(self.memory_bytes, 1.0).build_arc();
        let context = SessionContext::new_with_config_rt(config, runtime.map_err(query_error)?);
        // What DataFusion lacks in this build, Weir's own SQL has.
        let known = context.state().scalar_functions().clone();
        for name in weir_functions::registry().names() {
            if !known.contains_key(name) {
                let function = weir_functions::registry().lookup(name).map(|definition| definition.name);
                let function = weir_functions::registry().function(function.unwrap_or(name)).map_err(query_error)?;
                context.register_udf(function.as_ref().clone());
            }
        }
        Ok(context)
    }

    fn register(&self, context: &SessionContext, reference: TableReference) -> Result<()> {
        let parts: Vec<&str> =
            [reference.catalog(), reference.schema(), Some(reference.table())].into_iter().flatten().collect();
        let provider: Arc<dyn TableProvider> = match names::resolve(&self.snapshots, &parts)? {
            Target::State(table) => Arc::new(StateTable { columns: table.columns()?, table }),
            Target::System(snapshot, name) => {
                let batch = system::table(&snapshot, &name)?
                    .ok_or_else(|| Error::internal(format!("no table snapshot.{name}")))?;
                Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(query_error)?)
            }
        };
        let catalog = reference.catalog().unwrap_or(CATALOG);
        if context.catalog(catalog).is_none() {
            context.register_catalog(catalog, Arc::new(MemoryCatalogProvider::new()));
        }
        let catalog: Arc<dyn CatalogProvider> =
            context.catalog(catalog).ok_or_else(|| Error::internal("a catalog went away"))?;
        let name = reference.schema().unwrap_or(SCHEMA);
        let schema: Arc<dyn SchemaProvider> = match catalog.schema(name) {
            Some(schema) => schema,
            None => {
                let schema = Arc::new(MemorySchemaProvider::new());
                catalog.register_schema(name, Arc::clone(&schema) as Arc<dyn SchemaProvider>).map_err(query_error)?;
                schema
            }
        };
        if !schema.table_exist(reference.table()) {
            schema.register_table(reference.table().to_owned(), provider).map_err(query_error)?;
        }
        Ok(())
    }

    /// The query with quotes around uids that begin with a digit: SQL would take them for numbers.
    fn with_quoted_uids(&self, sql: &str) -> String {
        let mut quoted = String::with_capacity(sql.len());
        let mut rest = sql;
        while let Some(first) = rest.chars().next() {
            let end = match first {
                '\'' | '"' | '`' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
                c if c.is_alphanumeric() || c == '_' => {
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
                }
                c => c.len_utf8(),
            };
            let (word, after) = rest.split_at(end);
            let named = first.is_ascii_digit()
                && after.starts_with('.')
                && after[1..].starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '"' | '`'))
                && names::is_operator(&self.snapshots, word);
            if named {
                quoted.extend(["\"", word, "\""]);
            } else {
                quoted.push_str(word);
            }
            rest = after;
        }
        quoted
    }
}

/// Whether a statement reads, or shows how it would.
fn is_query(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(**statement, ast::Statement::Query(_)),
        Statement::Explain(explained) => is_query(&explained.statement),
        _ => false,
    }
}

fn read_only() -> Error {
    Error::new(Code::Unsupported, "a snapshot can only be read")
        .with_hint("Write a SELECT; `weir snapshots export` writes files.")
}

/// The rows of a query, as they come.
pub struct Rows {
    schema: SchemaRef,
    stream: SendableRecordBatchStream,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Rows {
    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows; none at the end.
    ///
    /// # Errors
    /// `CORRUPT` and the like from the files, `RESOURCE_EXHAUSTED` if the budget does not suffice, `INVALID_SQL` for what
    /// only values show, such as a division by zero.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.stream.next().await.transpose().map_err(query_error)
    }
}

/// A state table for DataFusion.
#[derive(Debug)]
struct StateTable {
    table: Arc<Table>,
    columns: Columns,
}

#[async_trait]
impl TableProvider for StateTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.columns.schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let all = || (0..self.columns.schema().fields().len()).collect();
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(all);
        let schema = Arc::new(self.columns.schema().project(&projection)?);
        let table = Arc::clone(&self.table);
        let partition = Arc::new(ScanPartition { table, projection, schema: Arc::clone(&schema) });
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![partition], None, [], false, limit)?))
    }
}

#[derive(Debug)]
struct ScanPartition {
    table: Arc<Table>,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl PartitionStream for ScanPartition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let external = |error: Error| DataFusionError::External(Box::new(error));
        let rows: Box<dyn Iterator<Item = _> + Send> = match self.table.scan(&self.projection) {
            Ok(scan) => Box::new(scan),
            Err(error) => Box::new(std::iter::once(Err(error))),
        };
        let rows = futures::stream::iter(rows.map(move |batch| batch.map_err(external)));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

/// DataFusion's error as Weir's: one of ours that passed through comes out as it went in.
fn query_error(error: DataFusionError) -> Error {
    if let Some(own) = own_error(&error) {
        return own;
    }
    let detail = error.strip_backtrace();
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => {
            Error::new(Code::ResourceExhausted, "the query does not fit into its memory")
                .with_detail(detail)
                .with_hint("Give it more with --memory, or ask for less: fewer columns, a WHERE, a smaller GROUP BY.")
        }
        DataFusionError::IoError(error) => Error::io("the query could not use its temporary files", error),
        DataFusionError::Internal(_) => Error::internal("the query failed").with_detail(detail),
        _ => Error::new(Code::InvalidSql, "the query cannot be run")
            .with_detail(detail)
            .with_hint("`weir snapshots query … --tables` lists the tables and their columns."),
    }
}

fn own_error(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(own) = error.downcast_ref::<Error>() {
            return Some(own.clone());
        }
        cause = error.source();
    }
    None
}

/// A table that can be queried, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listing {
    /// As to be written in a query.
    pub table: String,
    /// Its rows; none for what the manifest says, and where only reading the files tells.
    pub rows: Option<u64>,
    /// Names and types of its columns.
    pub columns: ColumnList,
}

/// Columns in their order: name and type.
pub type ColumnList = Vec<(String, String)>;

/// All tables of a snapshot.
///
/// # Errors
/// `CORRUPT` and the like if a state file's header cannot be read.
pub fn tables(snapshot: &Snapshot) -> Result<Vec<Listing>> {
    let shown = |schema: &SchemaRef| -> ColumnList {
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
    };
    let mut listings = Vec::new();
    for table in snapshot.tables() {
        let columns = shown(table.columns()?.schema());
        listings.push(Listing { table: names::quoted(table), rows: table.rows(), columns });
    }
    for (name, _) in system::TABLES {
        if let Some(batch) = system::table(snapshot, name)? {
            let table = format!("{}.{name}", names::SYSTEM);
            listings.push(Listing { table, rows: None, columns: shown(&batch.schema()) });
        }
    }
    Ok(listings)
}
