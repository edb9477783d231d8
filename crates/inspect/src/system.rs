//! What a manifest says, as tables: the schema `snapshot`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array,
};
use weir_state::manifest::Manifest;
use weir_types::snapshot::OperatorSnapshot;
use weir_types::{Error, Result};

use crate::Snapshot;

/// Names of the tables, with what a row of each is.
pub(crate) const TABLES: [(&str, &str); 7] = [
    ("info", "the snapshot"),
    ("operators", "an operator with state, positions or prepared output"),
    ("subtasks", "what one subtask contributed for one operator"),
    ("tables", "a state table"),
    ("sources", "a split of a source with its position"),
    ("files", "a state file"),
    ("blocks", "a block of a state file"),
];

/// The table of this name; none: there is no such table.
///
/// # Errors
/// `INTERNAL` if it cannot be built.
pub(crate) fn table(snapshot: &Snapshot, name: &str) -> Result<Option<RecordBatch>> {
    let manifest = snapshot.manifest();
    let columns = match name {
        "info" => info(manifest),
        "operators" => operators(snapshot),
        "subtasks" => subtasks(manifest),
        "tables" => tables(snapshot),
        "sources" => sources(manifest),
        "files" => files(manifest),
        "blocks" => blocks(manifest),
        _ => return Ok(None),
    };
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
        .map(Some)
        .map_err(|error| {
            Error::internal(format!("could not build table snapshot.{name}")).with_detail(error.to_string())
        })
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn text<S: Into<String>>(values: impl IntoIterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(values.into_iter().map(|value| value.map(Into::into)).collect::<StringArray>())
}

fn numbers(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

/// Instants; those of no calendar (before the first watermark, behind the last) are null.
fn instants(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    let known = |ms: i64| Some(ms).filter(|ms| !matches!(*ms, i64::MIN | i64::MAX));
    Arc::new(values.into_iter().map(known).collect::<TimestampMillisecondArray>())
}

fn raw(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn info(manifest: &Manifest) -> Columns {
    let totals = manifest.totals();
    vec![
        ("id", text([Some(manifest.snapshot.to_string())])),
        ("kind", text([Some(manifest.kind.to_string())])),
        ("cluster", text([Some(manifest.cluster.to_string())])),
        ("job", text([Some(manifest.job.to_string())])),
        ("job_name", text([Some(manifest.job_name.clone())])),
        ("barrier", numbers([manifest.barrier.0])),
        ("created_at", instants([i64::try_from(manifest.created_at.0).unwrap_or(i64::MAX)])),
        ("parallelism", numbers([u64::from(manifest.parallelism.get())])),
        ("graph_hash", text([Some(manifest.graph_hash.clone())])),
        ("query", text([manifest.query.clone()])),
        ("files", numbers([totals.files])),
        ("rows", numbers([totals.rows])),
        ("bytes", numbers([totals.bytes])),
    ]
}

/// What the subtasks of an operator contributed together.
#[derive(Default)]
struct Sums {
    subtasks: u64,
    files: u64,
    rows: u64,
    bytes: u64,
    splits: u64,
    watermark_ms: Option<i64>,
}

fn operators(snapshot: &Snapshot) -> Columns {
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    for part in &snapshot.manifest().operators {
        let sum = sums.entry(&part.uid).or_default();
        sum.subtasks += 1;
        sum.files += part.files.len() as u64;
        sum.rows = sum.rows.saturating_add(rows(part));
        sum.bytes = sum.bytes.saturating_add(bytes(part));
        sum.splits += part.splits.len() as u64;
        sum.watermark_ms = Some(sum.watermark_ms.map_or(part.watermark_ms, |ms| ms.min(part.watermark_ms)));
    }
    let tables = |uid: &str| snapshot.tables().iter().filter(|table| table.operator() == uid).count() as u64;
    let watermarks = || sums.values().map(|sum| sum.watermark_ms.unwrap_or(i64::MIN));
    vec![
        ("operator", text(sums.keys().map(|uid| Some(*uid)))),
        ("watermark", instants(watermarks())),
        ("watermark_ms", raw(watermarks())),
        ("subtasks", numbers(sums.values().map(|sum| sum.subtasks))),
        ("tables", numbers(sums.keys().map(|uid| tables(uid)))),
        ("files", numbers(sums.values().map(|sum| sum.files))),
        ("rows", numbers(sums.values().map(|sum| sum.rows))),
        ("bytes", numbers(sums.values().map(|sum| sum.bytes))),
        ("splits", numbers(sums.values().map(|sum| sum.splits))),
    ]
}

fn rows(part: &OperatorSnapshot) -> u64 {
    part.files.iter().fold(0, |rows, file| rows.saturating_add(file.rows))
}

fn bytes(part: &OperatorSnapshot) -> u64 {
    part.files.iter().fold(0_u64, |bytes, file| bytes.saturating_add(file.bytes))
}

fn subtasks(manifest: &Manifest) -> Columns {
    let parts = &manifest.operators;
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let places = parts.iter().map(|part| {
        let next = seen.entry(&part.uid).or_default();
        *next += 1;
        *next - 1
    });
    let watermarks = || parts.iter().map(|part| part.watermark_ms);
    vec![
        ("part", numbers(places)),
        ("operator", text(parts.iter().map(|part| Some(part.uid.as_str())))),
        ("watermark", instants(watermarks())),
        ("watermark_ms", raw(watermarks())),
        ("files", numbers(parts.iter().map(|part| part.files.len() as u64))),
        ("rows", numbers(parts.iter().map(rows))),
        ("bytes", numbers(parts.iter().map(bytes))),
        ("splits", numbers(parts.iter().map(|part| part.splits.len() as u64))),
        ("prepared_bytes", numbers(parts.iter().map(|part| part.prepared.as_ref().map_or(0, Vec::len) as u64))),
    ]
}

fn tables(snapshot: &Snapshot) -> Columns {
    let tables = snapshot.tables();
    vec![
        ("operator", text(tables.iter().map(|table| Some(table.operator().as_str())))),
        ("table_name", text(tables.iter().map(|table| Some(table.name())))),
        ("files", numbers(tables.iter().map(|table| table.files().count() as u64))),
        ("rows", Arc::new(tables.iter().map(|table| table.rows()).collect::<UInt64Array>())),
        ("bytes", numbers(tables.iter().map(|table| table.bytes()))),
    ]
}

fn sources(manifest: &Manifest) -> Columns {
    let splits: Vec<_> =
        manifest.operators.iter().flat_map(|part| part.splits.iter().map(move |split| (&part.uid, split))).collect();
    let watermarks = || splits.iter().map(|(_, split)| split.watermark_ms);
    vec![
        ("operator", text(splits.iter().map(|(uid, _)| Some(uid.as_str())))),
        ("split", text(splits.iter().map(|(_, split)| Some(split.split.as_str())))),
        ("next_offset", numbers(splits.iter().map(|(_, split)| split.offset))),
        ("end_offset", Arc::new(splits.iter().map(|(_, split)| split.end).collect::<UInt64Array>())),
        ("watermark", instants(watermarks())),
        ("watermark_ms", raw(watermarks())),
        ("finished", Arc::new(splits.iter().map(|(_, split)| Some(split.finished)).collect::<BooleanArray>())),
    ]
}

fn files(manifest: &Manifest) -> Columns {
    let files: Vec<_> =
        manifest.operators.iter().flat_map(|part| part.files.iter().map(move |file| (&part.uid, file))).collect();
    let first = files.iter().map(|(_, file)| file.blocks.first().map(|block| block.hashes.start()));
    let last = files.iter().map(|(_, file)| file.blocks.last().map(|block| block.hashes.end()));
    vec![
        ("operator", text(files.iter().map(|(uid, _)| Some(uid.as_str())))),
        ("table_name", text(files.iter().map(|(_, file)| Some(file.table.as_str())))),
        ("path", text(files.iter().map(|(_, file)| Some(file.path.as_str())))),
        ("bytes", numbers(files.iter().map(|(_, file)| file.bytes))),
        ("rows", numbers(files.iter().map(|(_, file)| file.rows))),
        ("blocks", numbers(files.iter().map(|(_, file)| file.blocks.len() as u64))),
        ("crc32c", text(files.iter().map(|(_, file)| Some(format!("{:08x}", file.crc32c))))),
        ("first_hash", Arc::new(first.collect::<UInt64Array>())),
        ("last_hash", Arc::new(last.collect::<UInt64Array>())),
    ]
}

fn blocks(manifest: &Manifest) -> Columns {
    let blocks: Vec<_> =
        manifest.files().flat_map(|file| file.blocks.iter().map(move |block| (&file.path, block))).collect();
    vec![
        ("path", text(blocks.iter().map(|(path, _)| Some(path.as_str())))),
        ("start", numbers(blocks.iter().map(|(_, block)| block.offset))),
        ("bytes", numbers(blocks.iter().map(|(_, block)| block.bytes))),
        ("rows", numbers(blocks.iter().map(|(_, block)| block.rows))),
        ("crc32c", text(blocks.iter().map(|(_, block)| Some(format!("{:08x}", block.crc32c))))),
        ("first_hash", numbers(blocks.iter().map(|(_, block)| block.hashes.start()))),
        ("last_hash", numbers(blocks.iter().map(|(_, block)| block.hashes.end()))),
    ]
}
