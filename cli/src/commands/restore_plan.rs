//! `weir run -s SNAPSHOT --plan`: what a restore would do, for people.

use std::fmt::Write as _;

use weir_types::restore::{ColumnChange, OperatorStart, RestorePlan, SplitFate};

use crate::output::{self, bytes, count};
use crate::time;

/// The plan as text.
pub(crate) fn text(plan: &RestorePlan) -> String {
    let mut text = head(plan);
    let sections = [operators(plan), dropped(plan), changes(plan), sources(plan), quota(plan)];
    for section in sections.into_iter().flatten() {
        text.push('\n');
        text.push_str(&section);
    }
    let verdict = match plan.refusals.len() {
        0 => "The restore would be accepted.",
        _ => "The restore would be refused.",
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

fn head(plan: &RestorePlan) -> String {
    let from = &plan.snapshot;
    let mut lines = vec![
        ("Snapshot", format!("{} {}", from.kind, from.id)),
        ("Taken of", format!("job {} ({}) of cluster {}", from.job, from.job_name, from.cluster)),
        ("Taken at", time::moment(from.taken_at.0)),
        ("Directory", from.directory.clone()),
        ("State", format!("{} rows, {}", count(from.rows), bytes(from.bytes))),
    ];
    match &from.entry {
        Some(entry) if *entry == from.id => {}
        Some(entry) => lines.push(("Catalogue", format!("as {entry}"))),
        None => lines.push(("Catalogue", "not in this cluster's catalogue".to_owned())),
    }
    if let Some(earlier) = &from.restored_from {
        lines.push(("Restored from", earlier.clone()));
    }
    lines.push(("Claim mode", plan.claim.as_str().to_owned()));
    lines.push(("Parallelism", arrow(plan.parallelism.from.get(), plan.parallelism.to.get())));
    lines.push(("Slots", format!("{} needed, {} free", plan.slots.needed, plan.slots.free)));
    lines.into_iter().map(|(name, value)| format!("{:<15}{value}\n", format!("{name}:"))).collect()
}

fn arrow(from: u32, to: u32) -> String {
    if from == to { to.to_string() } else { format!("{from} → {to}") }
}

fn operators(plan: &RestorePlan) -> Option<String> {
    let rows = plan.operators.iter().map(|operator| {
        let (rows, size) = operator.tables.iter().fold((0, 0), |(r, b), table| (r + table.rows, b + table.bytes));
        let (start, subtasks) = match operator.start {
            OperatorStart::Restored => ("restored", arrow(operator.subtasks_before, operator.subtasks)),
            OperatorStart::Empty => ("empty", operator.subtasks.to_string()),
            OperatorStart::Stateless => ("stateless", operator.subtasks.to_string()),
        };
        vec![operator.uid.clone(), start.to_owned(), subtasks, count(rows), bytes(size), operator.name.clone()]
    });
    Some(output::table(&["uid", "starts", "subtasks", "rows", "size", "operator"], &[3, 4], rows))
}

fn dropped(plan: &RestorePlan) -> Option<String> {
    let rows = plan.dropped.iter().map(|state| {
        vec![
            state.uid.clone(),
            count(state.rows),
            bytes(state.bytes),
            state.splits.to_string(),
            state.name.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let table = output::table(&["dropped uid", "rows", "size", "splits", "was"], &[1, 2, 3], rows);
    (!plan.dropped.is_empty()).then_some(table)
}

fn changes(plan: &RestorePlan) -> Option<String> {
    let mut rows = Vec::new();
    for operator in &plan.operators {
        for table in &operator.tables {
            for change in &table.changes {
                let what = match change {
                    ColumnChange::Renamed { from, to } => format!("{from} is now called {to}"),
                    ColumnChange::Retyped { column, from, to } => format!("{column} was {from} and is {to}"),
                    ColumnChange::Removed { column } => format!("{column} is no longer kept"),
                    ColumnChange::Added { column } => format!("{column} is not in the snapshot"),
                };
                let fits = if change.is_compatible() { "compatible" } else { "refused" };
                rows.push(vec![operator.uid.clone(), table.table.clone(), fits.to_owned(), what]);
            }
        }
    }
    (!rows.is_empty()).then(|| output::table(&["uid", "table", "schema", "column"], &[], rows))
}

fn sources(plan: &RestorePlan) -> Option<String> {
    let mut rows = Vec::new();
    for source in &plan.sources {
        let name = match &source.stream {
            Some(stream) => format!("{} ({stream})", source.table),
            None => source.table.clone(),
        };
        for split in &source.splits {
            let fate = match split.fate {
                SplitFate::Continues { behind: Some(behind) } => format!("continues, {} to read", count(behind)),
                SplitFate::Continues { behind: None } => "continues".to_owned(),
                SplitFate::Finished => "read to its end".to_owned(),
                SplitFate::Added => "added".to_owned(),
                SplitFate::Truncated { head, lost } => format!("truncated to {head}: {} records are gone", count(lost)),
                SplitFate::TooShort { end } => format!("ends at {end} already"),
                SplitFate::Missing => "not there any more".to_owned(),
            };
            rows.push(vec![name.clone(), split.split.clone(), split.offset.to_string(), fate]);
        }
    }
    (!rows.is_empty()).then(|| output::table(&["source", "split", "offset", "state"], &[2], rows))
}

fn quota(plan: &RestorePlan) -> Option<String> {
    let rows = plan.quota.iter().map(|need| {
        vec![
            need.level.to_string(),
            need.dimension.as_str().to_owned(),
            need.limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
            need.used.to_string(),
            need.at_once.to_string(),
            need.first_checkpoint.to_string(),
        ]
    });
    let header = ["quota", "dimension", "limit", "used", "at once", "first checkpoint"];
    let table = output::table(&header, &[2, 3, 4, 5], rows);
    (!plan.quota.is_empty()).then_some(table)
}
