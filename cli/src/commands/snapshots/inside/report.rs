//! Summaries, differences and verifications as text and JSON.

use serde_json::{Value, json};
use weir_inspect::Report;
use weir_inspect::diff::Diff;
use weir_inspect::summary::{HeavyKey, Summary, TableSummary};
use weir_types::ids::{Parallelism, SubtaskIndex};
use weir_types::key_range::KeyRange;

use crate::output::{bytes, count, table};
use crate::time;

/// What `weir snapshots inspect` prints.
pub(super) fn summary(summary: &Summary) -> String {
    let Summary { kind, id, job_name, job, cluster, barrier, parallelism, .. } = summary;
    let mut text = format!(
        "{kind} {id} of job {job_name} ({job}), cluster {cluster}\ntaken {}, barrier {barrier}, parallelism \
         {parallelism}: {} files, {} rows, {}\n\n",
        time::moment(summary.created_at_ms),
        count(summary.files),
        count(summary.rows),
        bytes(summary.bytes)
    );
    let rows = summary.operators.iter().map(|operator| {
        vec![
            operator.uid.clone(),
            time::watermark(operator.watermark_ms),
            count(operator.subtasks),
            count(operator.tables.len() as u64),
            count(operator.splits.len() as u64),
            bytes(operator.prepared_bytes),
        ]
    });
    let header = ["operator", "watermark", "subtasks", "tables", "splits", "prepared"];
    text += &table(&header, &[2, 3, 4, 5], rows);
    let tables: Vec<(String, &TableSummary)> = summary
        .operators
        .iter()
        .flat_map(|operator| operator.tables.iter().map(|table| (format!("{}.{}", operator.uid, table.name), table)))
        .collect();
    if !tables.is_empty() {
        text += &state_tables(&tables);
    }
    let splits: Vec<_> = summary
        .operators
        .iter()
        .flat_map(|operator| operator.splits.iter().map(|split| (operator.uid.clone(), split)))
        .collect();
    if !splits.is_empty() {
        text.push('\n');
        let rows = splits.into_iter().map(|(uid, split)| {
            vec![
                uid,
                split.split.clone(),
                count(split.offset),
                split.end.map_or_else(|| "-".to_owned(), count),
                time::watermark(split.watermark_ms),
                if split.finished { "finished" } else { "" }.to_owned(),
            ]
        });
        text += &table(&["source", "split", "offset", "end", "watermark", ""], &[2, 3], rows);
    }
    text
}

fn state_tables(tables: &[(String, &TableSummary)]) -> String {
    let rows = tables.iter().map(|(name, table)| {
        vec![
            name.clone(),
            count(table.rows),
            count(table.keys),
            bytes(table.bytes),
            count(table.files),
            table.skew.map_or_else(|| "-".to_owned(), |skew| format!("{skew:.2}")),
        ]
    });
    let header = ["table", "rows", "keys", "size", "files", "skew"];
    let mut text = format!("\n{}", table(&header, &[1, 2, 3, 4, 5], rows));
    let ranges = tables.iter().filter(|(_, table)| table.ranges.len() > 1).flat_map(|(name, table)| {
        let all = table.ranges.len();
        table
            .ranges
            .iter()
            .enumerate()
            .map(move |(index, rows)| vec![name.clone(), range(index, all), count(*rows), share(*rows, table.rows)])
    });
    let ranges: Vec<_> = ranges.collect();
    if !ranges.is_empty() {
        text += &format!("\n{}", self::table(&["table", "key range", "rows", "share"], &[2, 3], ranges));
    }
    let heavy = tables.iter().flat_map(|(name, table)| {
        table
            .heaviest
            .iter()
            .map(move |key| vec![name.clone(), key_text(key), count(key.rows), share(key.rows, table.rows)])
    });
    let heavy: Vec<_> = heavy.collect();
    if !heavy.is_empty() {
        text += &format!("\n{}", self::table(&["table", "heaviest keys", "rows", "share"], &[2, 3], heavy));
    }
    text
}

/// `0000…7fff`: the first digits of a range's ends.
fn range(index: usize, of: usize) -> String {
    let place = u32::try_from(index).ok().zip(u32::try_from(of).ok());
    let range =
        place.and_then(|(index, of)| KeyRange::of_subtask(SubtaskIndex(index), Parallelism::new(of).ok()?).ok());
    range.map_or_else(String::new, |range| format!("{:04x}…{:04x}", range.start() >> 48, range.end() >> 48))
}

fn share(part: u64, of: u64) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / of as f64) }
}

fn key_text(key: &HeavyKey) -> String {
    if key.key.is_empty() {
        return format!("{:016x}", key.hash);
    }
    let columns = key.key.iter().map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("NULL")));
    columns.collect::<Vec<_>>().join(" ")
}

/// What `weir snapshots diff` prints.
pub(super) fn diff(diff: &Diff) -> String {
    let mut text = format!("{} → {}\n", diff.from, diff.to);
    if !diff.tables.is_empty() {
        let rows = diff.tables.iter().map(|table| {
            vec![
                format!("{}.{}", table.operator, table.table),
                count(table.added),
                count(table.removed),
                count(table.changed),
                count(table.unchanged),
                bytes(table.bytes_from),
                bytes(table.bytes_to),
                table.note.clone().unwrap_or_default(),
            ]
        });
        let header = ["table", "added", "removed", "changed", "unchanged", "size before", "size after", ""];
        text += &format!("\n{}", table(&header, &[1, 2, 3, 4, 5, 6], rows));
    }
    let absent = || "absent".to_owned();
    let rows = diff.operators.iter().map(|operator| {
        let shown = |ms: Option<i64>| ms.map_or_else(absent, time::watermark);
        vec![operator.operator.clone(), shown(operator.watermark_from_ms), shown(operator.watermark_to_ms)]
    });
    text += &format!("\n{}", table(&["operator", "watermark before", "watermark after"], &[], rows));
    if !diff.sources.is_empty() {
        let rows = diff.sources.iter().map(|split| {
            let offset = |at: &Option<weir_types::snapshot::SplitPosition>| {
                at.as_ref().map_or_else(absent, |at| count(at.offset))
            };
            vec![
                split.operator.clone(),
                split.split.clone(),
                offset(&split.from),
                offset(&split.to),
                split.records().map_or_else(|| "-".to_owned(), |records| format!("{records:+}")),
                split.to.as_ref().map_or_else(absent, |at| time::watermark(at.watermark_ms)),
            ]
        });
        let header = ["source", "split", "offset before", "offset after", "records", "watermark after"];
        text += &format!("\n{}", table(&header, &[2, 3, 4], rows));
    }
    text
}

/// What `weir snapshots verify` prints.
pub(super) fn verification(report: &Report) -> String {
    let manifest = &report.manifest;
    let files = manifest.totals().files;
    let mut text = format!(
        "{} {}: {} of {} whole, {} blocks, {} rows, {} read\n",
        manifest.kind,
        manifest.snapshot,
        report.files_whole,
        if files == 1 { "1 file".to_owned() } else { format!("{} files", count(files)) },
        count(report.blocks_whole),
        count(report.rows),
        bytes(report.bytes_read)
    );
    if !report.damage.is_empty() {
        let rows = report.damage.iter().map(|damage| {
            let detail = damage.error.detail.clone().unwrap_or_default();
            vec![damage.file.clone(), damage.error.code.to_string(), damage.error.message.clone(), detail]
        });
        text += &format!("\n{}", table(&["file", "code", "problem", "detail"], &[], rows));
        if report.damage_unlisted > 0 {
            text += &format!("and {} more\n", count(report.damage_unlisted));
        }
    }
    if !report.foreign.is_empty() {
        text += &format!("\nno part of it, and left alone: {}\n", report.foreign.join(", "));
    }
    text
}

/// The same for programs.
pub(super) fn verification_json(directory: &str, report: &Report) -> Value {
    let manifest = &report.manifest;
    json!({
        "snapshot": manifest.snapshot, "kind": manifest.kind, "directory": directory,
        "whole": report.findings() == 0, "files": manifest.totals().files, "files_whole": report.files_whole,
        "blocks_whole": report.blocks_whole, "rows": report.rows, "bytes_read": report.bytes_read,
        "damage": report.damage, "damage_unlisted": report.damage_unlisted, "foreign": report.foreign,
    })
}
