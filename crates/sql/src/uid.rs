//! Stable names of stateful operators: a hash of what the script says, before any rule has touched it.
//!
//! Filters and generated names do not take part: adding a WHERE or a second sink keeps every uid.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_types::graph::WindowSpec;
use weir_types::ids::OperatorUid;
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::Table;
use crate::rel::{Kind, Rel};
use crate::text::text;

/// Gives out uids; equal forms are told apart by an ordinal in the script's order.
#[derive(Debug, Default)]
pub(crate) struct Uids {
    given: BTreeMap<String, u32>,
}

impl Uids {
    /// The uid of a canonical form.
    pub(crate) fn of(&mut self, form: String) -> OperatorUid {
        let ordinal = self.given.entry(form.clone()).or_default();
        let uid = if *ordinal == 0 { hash(&form) } else { hash(&format!("{form}#{ordinal}")) };
        *ordinal += 1;
        uid
    }
}

fn hash(form: &str) -> OperatorUid {
    format!("{:016x}", xxh3_64(form.as_bytes()))
}

/// The form of a source: its table, and which stream or files that is.
pub(crate) fn source_form(table: &Table) -> String {
    let identity = ["stream", "path"].into_iter().find_map(|key| table.connector.options.get(key));
    format!("source|{}|{}|{}", table.name, table.kind(), identity.map_or("", String::as_str))
}

/// The form of a sink.
pub(crate) fn sink_form(table: &Table, late: bool) -> String {
    format!("{}|{}", if late { "late-sink" } else { "sink" }, table.name)
}

/// The form of a window aggregate.
pub(crate) fn aggregate_form(rel: &Rel) -> String {
    let Kind::Aggregate { input, keys, calls } = &rel.kind else { return column_form(rel, 0) };
    let name = |index: usize| column_form(input, index);
    let keys: Vec<String> = keys.iter().map(|key| text(key, &name)).collect();
    let calls: Vec<String> = calls
        .iter()
        .map(|call| {
            let argument = call.argument.as_ref().map_or("*".to_owned(), |argument| text(argument, &name));
            let distinct = if call.distinct { "DISTINCT " } else { "" };
            format!("{:?}({distinct}{argument}) FILTER {}", call.function, call.filter.is_some())
        })
        .collect();
    format!("window-aggregate|{}|{}|{}", window_form(input), keys.join(","), calls.join(","))
}

/// The window that a relation's rows are in, with its time column.
fn window_form(rel: &Rel) -> String {
    match &rel.kind {
        Kind::Window { input, window, time, .. } => {
            let window = match window {
                WindowSpec::Tumble { size_ms, offset_ms } => format!("tumble {size_ms} {offset_ms}"),
                WindowSpec::Hop { size_ms, slide_ms, offset_ms } => format!("hop {size_ms} {slide_ms} {offset_ms}"),
            };
            format!("{window} {}", column_form(input, *time))
        }
        Kind::Aggregate { .. } => format!("[{}]", aggregate_form(rel)),
        Kind::Calc { input, .. } => window_form(input),
        Kind::Scan(_) | Kind::Union(_) => String::new(),
    }
}

/// A column, resolved to those of the tables that it comes from.
fn column_form(rel: &Rel, index: usize) -> String {
    match &rel.kind {
        Kind::Scan(table) => format!("{}.{}", table.name, rel.columns[index].name),
        Kind::Calc { input, exprs, .. } => text(&exprs[index], &|index| column_form(input, index)),
        Kind::Window { input, .. } if index < input.columns.len() => column_form(input, index),
        Kind::Window { .. } => format!("{:?}", rel.columns[index].role),
        Kind::Aggregate { .. } => format!("{}[{index}]", hash(&aggregate_form(rel))),
        Kind::Union(inputs) => {
            let forms: Vec<String> = inputs.iter().map(|input| column_form(input, index)).collect();
            format!("union({})", forms.join("|"))
        }
    }
}

/// The tables that a relation reads before any aggregate.
pub(crate) fn tables(rel: &Rel) -> Vec<Arc<Table>> {
    match &rel.kind {
        Kind::Scan(table) => vec![Arc::clone(table)],
        Kind::Calc { input, .. } | Kind::Window { input, .. } => tables(input),
        Kind::Aggregate { .. } => Vec::new(),
        Kind::Union(inputs) => inputs.iter().flat_map(|input| tables(input)).collect(),
    }
}
