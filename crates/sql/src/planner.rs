//! Statement by statement: declarations fill the catalogue, INSERTs become one job.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlparser::ast::Ident;
use sqlparser::tokenizer::Location;
use weir_types::graph::{JobGraph, Operator};
use weir_types::{Error, Result};

use crate::bind::{Assignment, Context, Scope, Value};
use crate::catalog::{Catalog, Entry, Origin, Table};
use crate::error::{invalid, nearest, placed};
use crate::lower::Lowering;
use crate::options::Settings;
use crate::query::{Binder, with_names};
use crate::rel::{Column, Kind, Rel, column};
use crate::script::{self, CreateView, Insert, Statement, StatementKind};
use crate::{PlanContext, Planned, changelog, explain, graph, table};

/// A bound INSERT.
#[derive(Clone, Debug)]
struct Write {
    table: Arc<Table>,
    rel: Arc<Rel>,
    /// Where the script names the table.
    at: Location,
}

/// Plans a script.
///
/// # Errors
/// `INVALID_SQL`, `INVALID_ARGUMENT` or `UNSUPPORTED`, with [`weir_types::error::Facts::Position`] where the cause stands
/// in the script.
pub fn plan(script: &str, context: &PlanContext) -> Result<Planned> {
    let failed = |what: &str| Error::internal(format!("the planner {what}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("planner".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, || plan_here(script, context)) {
            Ok(running) => running.join().unwrap_or_else(|_| Err(failed("failed on this script"))),
            Err(error) => Err(failed("could not start a thread").with_detail(error.to_string())),
        }
    })
}

/// Syntax trees are walked recursively, also by sqlparser and DataFusion: deep ones need more than a default stack.
const STACK_BYTES: usize = 64 << 20;

fn plan_here(script: &str, context: &PlanContext) -> Result<Planned> {
    let statements = script::parse(script)?;
    let mut planner = Planner::new(context)?;
    let count = statements.len();
    for statement in &statements {
        planner.statement(statement)?;
    }
    planner.finish(count)
}

struct Planner<'a> {
    context: &'a PlanContext,
    catalog: Catalog,
    set: BTreeMap<String, String>,
    settings: Settings,
    writes: Vec<Write>,
    explained: Vec<(String, serde_json::Value)>,
}

impl<'a> Planner<'a> {
    fn new(context: &'a PlanContext) -> Result<Self> {
        let settings = Settings::of(context.defaults.iter().chain(&context.overrides))?;
        Ok(Self {
            context,
            catalog: Catalog::default(),
            set: BTreeMap::new(),
            settings,
            writes: Vec::new(),
            explained: Vec::new(),
        })
    }

    fn time_zone(&self) -> &str {
        &self.settings.options.local_time_zone
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        let at = statement.location;
        match &statement.kind {
            StatementKind::CreateTable(definition) => {
                if self.declared(&definition.name, definition.if_not_exists)? {
                    return Ok(());
                }
                let table = table::create(definition, at, self.time_zone())?;
                self.catalog.entries.insert(table.name.clone(), Entry::Table(Arc::new(table)));
            }
            StatementKind::CreateView(view) => self.create_view(view, at)?,
            StatementKind::Drop { what, name, if_exists } => self.drop(what, name, *if_exists)?,
            StatementKind::Set { key, value } => {
                self.set.insert(key.clone(), value.clone());
                self.settings = self.effective().map_err(|error| placed(at, error))?;
            }
            StatementKind::Reset { key } => {
                match key {
                    Some(key) => {
                        self.set.remove(key);
                    }
                    None => self.set.clear(),
                }
                self.settings = self.effective().map_err(|error| placed(at, error))?;
            }
            StatementKind::Insert(insert) => {
                let write = self.insert(insert)?;
                self.writes.push(write);
            }
            StatementKind::Explain(inserts) => {
                let writes = inserts.iter().map(|insert| self.insert(insert)).collect::<Result<Vec<_>>>()?;
                self.explain(&writes)?;
            }
            StatementKind::ExplainQuery(query) => {
                let rel = Binder::new(&self.catalog, self.time_zone()).query(query, at)?;
                let table = Arc::new(explain::result_table(&rel.columns, at));
                self.explain(&[Write { table, rel, at }])?;
            }
        }
        Ok(())
    }

    fn effective(&self) -> Result<Settings> {
        Settings::of(self.context.defaults.iter().chain(&self.set).chain(&self.context.overrides))
    }

    /// Whether the name is taken and that is all right.
    fn declared(&self, name: &Ident, if_not_exists: bool) -> Result<bool> {
        match self.catalog.entries.contains_key(&name.value) {
            true if if_not_exists => Ok(true),
            true => Err(invalid(name.span.start, format!("table {} exists already", name.value))
                .with_hint("DROP it first, or write IF NOT EXISTS.")),
            false => Ok(false),
        }
    }

    fn create_view(&mut self, view: &CreateView, at: Location) -> Result<()> {
        if self.declared(&view.name, view.if_not_exists)? {
            return Ok(());
        }
        let mut rel = Binder::new(&self.catalog, self.time_zone()).query(&view.query, at)?;
        if !view.columns.is_empty() {
            rel = with_names(rel, &view.columns.iter().collect::<Vec<_>>())?;
        }
        for (index, column) in rel.columns.iter().enumerate() {
            if rel.columns[..index].iter().any(|earlier| earlier.name == column.name) {
                return Err(invalid(
                    view.name.span.start,
                    format!("view {} has two columns {}", view.name.value, column.name),
                )
                .with_hint("Name them apart with AS."));
            }
        }
        self.catalog.entries.insert(view.name.value.clone(), Entry::View(rel));
        Ok(())
    }

    fn drop(&mut self, what: &str, name: &Ident, if_exists: bool) -> Result<()> {
        let at = name.span.start;
        match (what, self.catalog.entries.get(&name.value)) {
            ("table", Some(Entry::Table(_))) | ("view", Some(Entry::View(_))) => {
                self.catalog.entries.remove(&name.value);
                Ok(())
            }
            (_, Some(_)) => Err(invalid(at, format!("{} is no {what}", name.value))),
            (_, None) if if_exists => Ok(()),
            (_, None) => {
                Err(invalid(at, format!("{what} {} does not exist", name.value)).with_hint("Write IF EXISTS."))
            }
        }
    }

    fn insert(&self, insert: &Insert) -> Result<Write> {
        let at = insert.table.span.start;
        let binder = Binder::new(&self.catalog, self.time_zone());
        let table = match self.catalog.entries.get(&insert.table.value) {
            Some(Entry::Table(table)) => Arc::clone(table),
            Some(Entry::View(_)) => {
                return Err(invalid(at, format!("{} is a view: it cannot be written", insert.table.value)));
            }
            None => return Err(binder.no_table(&insert.table.value, at)),
        };
        if !table.kind().descriptor().sink {
            return Err(invalid(at, format!("table {} cannot be written", table.name))
                .with_detail(format!("Connector '{}' is a source only.", table.kind())));
        }
        let known = table.kind().descriptor().metadata_written;
        for (column, origin) in table.columns.iter().zip(&table.origins) {
            if let Origin::Metadata { key, is_virtual: false, .. } = origin
                && !known.contains(&key.as_str())
            {
                let what = format!("metadata column {} of table {} cannot be written", column.name, table.name);
                return Err(invalid(at, what).with_hint("Declare it METADATA … VIRTUAL: then it is only read."));
            }
        }
        let query = binder.query(&insert.query, insert.location)?;
        let writable: Vec<&Column> = table.writable().into_iter().map(|index| &table.columns[index]).collect();
        let targets = targets(insert, &writable)?;
        if targets.iter().flatten().count() != query.columns.len()
            || (insert.columns.is_empty() && query.columns.len() != writable.len())
        {
            let expected = if insert.columns.is_empty() { writable.len() } else { insert.columns.len() };
            return Err(invalid(
                at,
                format!(
                    "the query has {} columns, but {} are written to {}",
                    query.columns.len(),
                    expected,
                    table.name
                ),
            )
            .with_detail(format!(
                "The query has ({}), the table ({}).",
                listed(query.columns.iter()),
                listed(writable.iter().copied())
            )));
        }
        let query_at = insert.location;
        let scope = Scope { columns: &query.columns, alias: None };
        let cx = Context::new(scope, query_at, self.time_zone());
        let mut exprs = Vec::with_capacity(writable.len());
        for (target, source) in writable.iter().zip(targets) {
            let (value, name) = match source {
                Some(index) => {
                    let found = &query.columns[index];
                    (Value::new(column(index), found.data_type.clone(), found.nullable), found.name.as_str())
                }
                None => (Value::literal(datafusion::common::ScalarValue::Null), "NULL"),
            };
            let at = source.and_then(|index| query.columns[index].at).unwrap_or(query_at);
            exprs.push(Context { at, ..cx }.assign(Assignment { value, name, target })?.expr);
        }
        let columns =
            writable.into_iter().cloned().map(|column| Column { role: crate::rel::Role::Plain, ..column }).collect();
        let rel = Arc::new(Rel { kind: Kind::Calc { input: query, predicate: None, exprs }, columns });
        Ok(Write { table, rel, at })
    }

    /// The job of some INSERTs, and what to tell the user about it.
    fn job(&self, writes: &[Write]) -> Result<(JobGraph, Vec<String>)> {
        let mut lowering = Lowering::new(&self.catalog, self.time_zone());
        for write in writes {
            lowering.insert(&write.table, &write.rel, write.at)?;
        }
        let tables: Vec<&str> = writes.iter().map(|write| write.table.name.as_str()).collect();
        let name = self.settings.name.clone().or_else(|| self.context.job_name.clone());
        let name = name.unwrap_or_else(|| format!("insert-into {}", tables.join(", ")));
        let (mut nodes, by_order) = lowering.finish();
        changelog::infer(&mut nodes)?;
        let graph = graph::build(nodes, name, self.settings.options.clone())?;
        let told_apart =
            graph.operators.iter().filter(|operator| operator.uid.as_ref().is_some_and(|uid| by_order.contains(uid)));
        let remark = |operator: &Operator| {
            format!(
                "the state of {} ({}) is told from that of an equal aggregate only by its place in the script; name it with \
                SELECT /*+ STATE_UID('name') */",
                operator.name,
                operator.uid.as_deref().unwrap_or_default()
            )
        };
        let remarks = told_apart.map(remark).collect();
        Ok((graph, remarks))
    }

    fn explain(&mut self, writes: &[Write]) -> Result<()> {
        let (graph, _) = self.job(writes)?;
        self.explained.push((explain::text(&graph), explain::json(&graph)));
        Ok(())
    }

    fn finish(self, statements: usize) -> Result<Planned> {
        let (graph, remarks) = if self.writes.is_empty() {
            (None, Vec::new())
        } else {
            self.job(&self.writes).map(|(graph, remarks)| (Some(graph), remarks))?
        };
        let claim_mode = self.settings.claim_mode;
        let warnings = self.settings.warnings.into_iter().chain(remarks).collect();
        let is_explain = !self.explained.is_empty();
        let (explain, explain_json) = match (&graph, is_explain) {
            (Some(graph), false) => (explain::text(graph), explain::json(graph)),
            _ => {
                let (texts, values): (Vec<_>, Vec<_>) = self.explained.into_iter().unzip();
                (texts.join("\n"), serde_json::Value::Array(values))
            }
        };
        Ok(Planned { graph, explain, explain_json, is_explain, warnings, statements, claim_mode })
    }
}

/// For each written column the query's column that goes into it; none: NULL.
fn targets(insert: &Insert, writable: &[&Column]) -> Result<Vec<Option<usize>>> {
    if insert.columns.is_empty() {
        return Ok((0..writable.len()).map(Some).collect());
    }
    let mut sources = vec![None; writable.len()];
    for (index, name) in insert.columns.iter().enumerate() {
        let Some(position) = writable.iter().position(|column| column.name == name.value) else {
            let error = invalid(name.span.start, format!("column {} is no column that can be written", name.value));
            return Err(match nearest(&name.value, writable.iter().map(|column| column.name.as_str())) {
                Some(near) => error.with_hint(format!("Did you mean {near}? Names are case-sensitive.")),
                None => error,
            });
        };
        if sources[position].replace(index).is_some() {
            return Err(invalid(name.span.start, format!("column {} is written twice", name.value)));
        }
    }
    Ok(sources)
}

fn listed<'c>(columns: impl Iterator<Item = &'c Column>) -> String {
    let columns = columns.map(|column| format!("{} {}", column.name, weir_functions::types::column(&column.field())));
    columns.collect::<Vec<_>>().join(", ")
}
