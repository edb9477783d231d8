//! Stable names of what keeps state: a hash of what the script says, before any rule has touched it.
//!
//! Taken in: what an operator is, its window, keys and aggregate calls resolved to columns of tables (computed columns to
//! what they compute), and the uids of whatever keeps state above it; for tables, name, connector, and which stream or
//! files that is. Left out: WHERE and HAVING, projections, names and types of columns, views, parallelism, options. Adding
//! a filter, a projection, a sink or another INSERT therefore keeps every uid; another window or key changes it, and with
//! it those of everything behind.
//!
//! Operators that are equal in all of that are told apart by a hint, else by the sink that they lead to first, else by
//! their order. The first of them has the plain uid.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weir_types::graph::WindowSpec;
use weir_types::ids::OperatorUid;
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::{Origin, Table};
use crate::rel::{Kind, Rel};
use crate::text::text;

/// Gives out uids, from the sources to the sinks.
#[derive(Debug, Default)]
pub(crate) struct Uids {
    given: BTreeMap<String, u32>,
    tables: HashMap<*const Table, OperatorUid>,
    aggregates: HashMap<*const Rel, OperatorUid>,
    sink: String,
    by_order: Vec<OperatorUid>,
}

impl Uids {
    /// What follows leads to this sink.
    pub(crate) fn lead_to(&mut self, sink: &Table) {
        self.sink.clone_from(&sink.name);
    }

    /// The uid of a source.
    pub(crate) fn of_source(&mut self, table: &Arc<Table>) -> OperatorUid {
        let uid = self.numbered(table_form("source", table));
        self.tables.insert(Arc::as_ptr(table), uid.clone());
        uid
    }

    /// The uid of a sink.
    pub(crate) fn of_sink(&mut self, table: &Table, late: bool) -> OperatorUid {
        self.numbered(table_form(if late { "late-sink" } else { "sink" }, table))
    }

    /// The uid of an aggregate, once everything above it has one.
    pub(crate) fn of_aggregate(&mut self, rel: &Arc<Rel>) -> OperatorUid {
        let form = self.aggregate_form(rel);
        let hint = match &rel.kind {
            Kind::Aggregate { hint, .. } | Kind::Group { hint, .. } => hint.as_deref(),
            _ => None,
        };
        let uid = match hint {
            Some(hint) => self.numbered(format!("{form}|hint {hint}")),
            None if self.given.contains_key(&form) => {
                let uid = self.numbered(format!("{form}|to {}", self.sink));
                self.by_order.push(uid.clone());
                uid
            }
            None => self.numbered(form),
        };
        self.aggregates.insert(Arc::as_ptr(rel), uid.clone());
        uid
    }

    /// Aggregates that equal an earlier one but for their filters.
    pub(crate) fn by_order(self) -> Vec<OperatorUid> {
        self.by_order
    }

    /// The uid of a form; equal ones are numbered in the script's order.
    fn numbered(&mut self, form: String) -> OperatorUid {
        let ordinal = self.given.entry(form.clone()).or_default();
        let uid = if *ordinal == 0 { hash(&form) } else { hash(&format!("{form}#{ordinal}")) };
        *ordinal += 1;
        uid
    }

    fn aggregate_form(&self, rel: &Rel) -> String {
        let (input, keys, calls) = match &rel.kind {
            Kind::Aggregate { input, keys, calls, .. } | Kind::Group { input, keys, calls, .. } => (input, keys, calls),
            _ => return self.column_form(rel, 0),
        };
        let name = |index: usize| self.column_form(input, index);
        let keys: Vec<String> = keys.iter().map(|key| text(key, &name)).collect();
        let calls: Vec<String> = calls
            .iter()
            .map(|call| {
                let argument = call.argument.as_ref().map_or("*".to_owned(), |argument| text(argument, &name));
                let distinct = if call.distinct { "DISTINCT " } else { "" };
                let filter =
                    call.filter.as_ref().map_or(String::new(), |filter| format!(" IF {}", text(filter, &name)));
                format!("{:?}({distinct}{argument}){filter}", call.function)
            })
            .collect();
        let (kind, rows) = match &rel.kind {
            Kind::Group { .. } => ("group-aggregate", self.rows_form(input)),
            _ => ("window-aggregate", self.window_form(input)),
        };
        format!("{kind}|{rows}|{}|{}", keys.join(","), calls.join(","))
    }

    /// The window that a relation's rows are in, with its time column.
    fn window_form(&self, rel: &Rel) -> String {
        match &rel.kind {
            Kind::Window { input, window, time, .. } => {
                let window = match window {
                    WindowSpec::Tumble { size_ms, offset_ms } => format!("tumble {size_ms} {offset_ms}"),
                    WindowSpec::Hop { size_ms, slide_ms, offset_ms } => format!("hop {size_ms} {slide_ms} {offset_ms}"),
                };
                format!("{window} {}", self.column_form(input, *time))
            }
            Kind::Aggregate { .. } => format!("[{}]", self.aggregate_uid(rel)),
            Kind::Calc { input, .. } => self.window_form(input),
            Kind::Scan(_) | Kind::Union(_) | Kind::Group { .. } => String::new(),
        }
    }

    /// Which rows a relation has: what it reads, filters and projections aside.
    fn rows_form(&self, rel: &Rel) -> String {
        match &rel.kind {
            Kind::Scan(table) => self.source_uid(table),
            Kind::Calc { input, .. } | Kind::Window { input, .. } => self.rows_form(input),
            Kind::Aggregate { .. } | Kind::Group { .. } => self.aggregate_uid(rel),
            Kind::Union(inputs) => {
                let forms: Vec<String> = inputs.iter().map(|input| self.rows_form(input)).collect();
                format!("union({})", forms.join("|"))
            }
        }
    }

    /// A column, resolved to those of the tables and aggregates that it comes from.
    fn column_form(&self, rel: &Rel, index: usize) -> String {
        match &rel.kind {
            Kind::Scan(table) => self.table_column_form(table, index),
            Kind::Calc { input, exprs, .. } => text(&exprs[index], &|index| self.column_form(input, index)),
            Kind::Window { input, .. } if index < input.columns.len() => self.column_form(input, index),
            Kind::Window { .. } => format!("{:?}", rel.columns[index].role),
            Kind::Aggregate { .. } | Kind::Group { .. } => format!("{}[{index}]", self.aggregate_uid(rel)),
            Kind::Union(inputs) => {
                let forms: Vec<String> = inputs.iter().map(|input| self.column_form(input, index)).collect();
                format!("union({})", forms.join("|"))
            }
        }
    }

    fn table_column_form(&self, table: &Arc<Table>, index: usize) -> String {
        match &table.origins[index] {
            Origin::Computed(expr) => text(expr, &|index| self.table_column_form(table, index)),
            Origin::Metadata { key, .. } => format!("{}.${key}", self.source_uid(table)),
            Origin::Physical => format!("{}.{}", self.source_uid(table), table.columns[index].name),
        }
    }

    fn source_uid(&self, table: &Arc<Table>) -> OperatorUid {
        let given = self.tables.get(&Arc::as_ptr(table));
        given.cloned().unwrap_or_else(|| hash(&table_form("source", table)))
    }

    fn aggregate_uid(&self, rel: &Rel) -> OperatorUid {
        let given = self.aggregates.get(&std::ptr::from_ref(rel));
        given.cloned().unwrap_or_else(|| hash(&self.aggregate_form(rel)))
    }
}

fn hash(form: &str) -> OperatorUid {
    format!("{:016x}", xxh3_64(form.as_bytes()))
}

/// A table as a place: its name, and which stream or files that is.
fn table_form(what: &str, table: &Table) -> String {
    let place = ["stream", "path"].into_iter().find_map(|key| table.connector.options.get(key));
    format!("{what}|{}|{}|{}", table.name, table.kind(), place.map_or("", String::as_str))
}

/// The tables that a relation reads before any aggregate.
pub(crate) fn tables(rel: &Rel) -> Vec<Arc<Table>> {
    match &rel.kind {
        Kind::Scan(table) => vec![Arc::clone(table)],
        Kind::Calc { input, .. } | Kind::Window { input, .. } => tables(input),
        Kind::Aggregate { .. } | Kind::Group { .. } => Vec::new(),
        Kind::Union(inputs) => inputs.iter().flat_map(|input| tables(input)).collect(),
    }
}
