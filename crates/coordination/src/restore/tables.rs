//! State tables: whether what a snapshot holds is what an operator keeps.

use weir_types::restore::{ColumnChange, OperatorPlan, StateColumn, StateTable, TablePlan};
use weir_types::snapshot::{OperatorSnapshot, StateFile};
use weir_types::{Code, Error};

use super::Held;

/// The tables of one operator that the snapshot has rows of, each compared with what the operator keeps.
pub(super) fn compare(parts: &[&OperatorSnapshot], held: &[StateTable], wanted: &[StateTable]) -> Vec<TablePlan> {
    let find = |tables: &[StateTable], name: &str| tables.iter().find(|table| table.table == name).cloned();
    let mut plans: Vec<TablePlan> = Vec::new();
    for file in parts.iter().flat_map(|part| &part.files) {
        match plans.iter_mut().find(|plan| plan.table == file.table) {
            Some(plan) => {
                plan.rows += rows(file);
                plan.bytes += file.bytes;
            }
            None => {
                let wanted = find(wanted, &file.table).map(|table| table.columns).unwrap_or_default();
                // A table of nothing but tombstones fits whatever it is.
                let changes = find(held, &file.table).map(|table| changes(&table.columns, &wanted));
                plans.push(TablePlan {
                    table: file.table.clone(),
                    rows: rows(file),
                    bytes: file.bytes,
                    changes: changes.unwrap_or_default(),
                });
            }
        }
    }
    plans
}

/// Rows of a file; tombstones are none.
pub(super) fn rows(file: &StateFile) -> u64 {
    if file.deletes { 0 } else { file.rows }
}

/// How the columns that an operator keeps differ from those that a snapshot has.
fn changes(held: &[StateColumn], wanted: &[StateColumn]) -> Vec<ColumnChange> {
    let mut changes = Vec::new();
    for old in held {
        match wanted.iter().find(|new| new.id == old.id) {
            None => changes.push(ColumnChange::Removed { column: old.name.clone() }),
            Some(new) if new.data_type != old.data_type => changes.push(ColumnChange::Retyped {
                column: name(new, &old.name),
                from: old.data_type.clone(),
                to: new.data_type.clone(),
            }),
            Some(new) if name(new, &old.name) != old.name => {
                changes.push(ColumnChange::Renamed { from: old.name.clone(), to: new.name.clone() });
            }
            Some(_) => {}
        }
    }
    let added = wanted.iter().filter(|new| held.iter().all(|old| old.id != new.id));
    changes.extend(added.map(|new| ColumnChange::Added { column: name(new, &new.id) }));
    changes
}

/// What a column of the job is called; `otherwise`, if the query has no name for it.
fn name(column: &StateColumn, otherwise: &str) -> String {
    if column.name.is_empty() { otherwise.to_owned() } else { column.name.clone() }
}

/// Why an operator cannot take its state.
pub(super) fn refusal(held: &Held, operator: &OperatorPlan) -> Option<Error> {
    let mut all = Vec::new();
    for table in &operator.tables {
        for change in table.changes.iter().filter(|change| !change.is_compatible()) {
            let place = |column: &str| format!("column {column} of its table {}", table.table);
            all.push(match change {
                ColumnChange::Retyped { column, from, to } => format!("{} was {from} and is {to}", place(column)),
                ColumnChange::Removed { column } => format!("{} is no longer kept", place(column)),
                ColumnChange::Added { column } => format!("{} is not in the snapshot", place(column)),
                ColumnChange::Renamed { .. } => continue,
            });
        }
    }
    if all.is_empty() {
        return None;
    }
    Some(
        Error::new(
            Code::FailedPrecondition,
            format!("the state of {} ({}) in snapshot {} does not fit", operator.uid, operator.name, held.snapshot),
        )
        .with_detail(all.join("; "))
        .with_hint(
            "Keep the types that the snapshot was taken with, or begin with empty state: name the aggregate with \
            SELECT /*+ STATE_UID('name') */ and restore with --allow-non-restored-state.",
        ),
    )
}
