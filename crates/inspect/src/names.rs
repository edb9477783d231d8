//! What a table is called in a query, and what was meant by a name that is none.
//!
//! A state table is `operator.table`: the operator by its uid, by `op_` and its uid, or by as much of the uid as no other
//! operator begins with. Alone, `table` means the one table of that name. What the manifest says is in the schema
//! `snapshot`. With several snapshots, the first is meant unless another's name stands in front.

use std::sync::Arc;

use weir_types::{Error, Result};

use crate::{Snapshot, Table, system};

/// The schema of what the manifest says.
pub const SYSTEM: &str = "snapshot";
/// May stand before a uid that begins with a digit, which SQL takes for a number.
const PREFIX: &str = "op_";
/// Fewest characters that stand for a uid.
const PREFIX_CHARS_MIN: usize = 2;
/// Most names that a hint lists.
const LISTED_MAX: usize = 8;

/// A snapshot by the name that it has in queries; the first has none.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name.
    pub name: Option<String>,
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    State(Arc<Table>),
    System(Arc<Snapshot>, String),
}

/// Finds the table that `parts`, one to three names, stand for.
pub(crate) fn resolve(snapshots: &[Named], parts: &[&str]) -> Result<Target> {
    let Some(first) = snapshots.first() else { return Err(Error::internal("a query without a snapshot")) };
    let other = |name: &str| snapshots.iter().find(|named| named.name.as_deref() == Some(name));
    match *parts {
        [table] => lone(&first.snapshot, table),
        [front, table] => match other(front) {
            Some(named) => lone(&named.snapshot, table),
            None => qualified(&first.snapshot, front, table),
        },
        [front, operator, table] => match other(front) {
            Some(named) => qualified(&named.snapshot, operator, table),
            None => Err(unknown(&first.snapshot, &parts.join("."))),
        },
        _ => Err(unknown(&first.snapshot, &parts.join("."))),
    }
}

/// The only table of this name, or the table `operator.table` if the name has a dot.
///
/// # Errors
/// `NOT_FOUND` with the names that come close, `INVALID_ARGUMENT` if several are meant.
pub fn state_table(snapshot: &Snapshot, name: &str) -> Result<Arc<Table>> {
    match name.split_once('.') {
        Some((operator, table)) => of_operator(snapshot, operator, table),
        None => only(snapshot, name),
    }
}

fn lone(snapshot: &Arc<Snapshot>, table: &str) -> Result<Target> {
    only(snapshot, table).map(Target::State)
}

fn only(snapshot: &Snapshot, name: &str) -> Result<Arc<Table>> {
    let mut found = snapshot.tables().iter().filter(|table| table.name() == name);
    match (found.next(), found.next()) {
        (Some(table), None) => Ok(Arc::clone(table)),
        (None, _) => Err(unknown(snapshot, name)),
        (Some(_), Some(_)) => {
            let all = snapshot.tables().iter().filter(|table| table.name() == name).map(|table| quoted(table));
            Err(Error::invalid(format!("several operators have a table \"{name}\""))
                .with_hint(format!("Say which: {}.", listed(all.collect()))))
        }
    }
}

fn qualified(snapshot: &Arc<Snapshot>, front: &str, table: &str) -> Result<Target> {
    if front != SYSTEM {
        return of_operator(snapshot, front, table).map(Target::State);
    }
    if system::TABLES.iter().any(|(name, _)| *name == table) {
        return Ok(Target::System(Arc::clone(snapshot), table.to_owned()));
    }
    let all = system::TABLES.iter().map(|(name, _)| format!("{SYSTEM}.{name}"));
    Err(Error::not_found(format!("there is no table {SYSTEM}.{table}"))
        .with_hint(format!("There are {}.", listed(all.collect()))))
}

fn of_operator(snapshot: &Snapshot, operator: &str, name: &str) -> Result<Arc<Table>> {
    let missing = || unknown(snapshot, &format!("{operator}.{name}"));
    let uid = operator_of(snapshot, operator)?.ok_or_else(missing)?;
    let table = snapshot.tables().iter().find(|table| table.operator() == uid && table.name() == name);
    table.cloned().ok_or_else(missing)
}

/// The operator that a name stands for.
fn operator_of<'s>(snapshot: &'s Snapshot, name: &str) -> Result<Option<&'s str>> {
    let uids = snapshot.operators();
    if let Some(uid) = uids.iter().find(|uid| uid.as_str() == name) {
        return Ok(Some(uid));
    }
    let start = name.strip_prefix(PREFIX).unwrap_or(name);
    let mut found = uids.iter().filter(|uid| start.len() >= PREFIX_CHARS_MIN && uid.starts_with(start));
    match (found.next(), found.next()) {
        (Some(uid), None) => Ok(Some(uid)),
        (None, _) => Ok(None),
        (Some(one), Some(_)) if one.as_str() == start => Ok(Some(one)),
        (Some(_), Some(_)) => {
            let all = uids.iter().filter(|uid| uid.starts_with(start)).map(|uid| format!("\"{uid}\""));
            Err(Error::invalid(format!("several operators begin with \"{start}\""))
                .with_hint(format!("Say which: {}.", listed(all.collect()))))
        }
    }
}

/// Whether a word is a uid, or begins one, in any of the snapshots.
pub(crate) fn is_operator(snapshots: &[Named], word: &str) -> bool {
    snapshots.iter().any(|named| {
        let uids = named.snapshot.operators();
        word.len() >= PREFIX_CHARS_MIN && uids.iter().any(|uid| uid.starts_with(word))
    })
}

/// As to be written in a query.
pub fn quoted(table: &Table) -> String {
    format!("\"{}\".{}", table.operator(), word(table.name()))
}

fn word(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn unknown(snapshot: &Snapshot, name: &str) -> Error {
    let id = &snapshot.manifest().snapshot;
    let error = Error::not_found(format!("snapshot {id} has no table \"{name}\""));
    if snapshot.tables().is_empty() {
        return error.with_hint(format!(
            "No operator of it has state; schema {SYSTEM} has the tables that its manifest is made of."
        ));
    }
    let wanted = name.rsplit('.').next().unwrap_or(name);
    let mut tables: Vec<(usize, String)> =
        snapshot.tables().iter().map(|table| (distance(table.name(), wanted), quoted(table))).collect();
    tables.sort();
    let tables = tables.into_iter().map(|(_, table)| table).collect();
    error.with_hint(format!("Its tables are {}; schema {SYSTEM} has more.", listed(tables)))
}

fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    names.truncate(LISTED_MAX);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

/// How many characters must be put in, taken out or changed to make one word the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let cost = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}
