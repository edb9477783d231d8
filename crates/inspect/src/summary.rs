//! What is in a snapshot, at a glance: operators, tables, rows, bytes, skew, watermarks, source positions.
//!
//! Skew is exact: the key hashes of all rows are read. Memory: a block of hashes per file.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::Serialize;
use weir_state::columns::Role;
use weir_types::ids::{OperatorUid, Parallelism};
use weir_types::key_range::{KeyRange, subtask_of};
use weir_types::snapshot::{SnapshotKind, SplitPosition};
use weir_types::{Error, Result};

use crate::Snapshot;
use crate::groups::HashGroups;
use crate::names;
use crate::table::Table;

/// Most ranges that hashes are counted in.
const RANGES_MAX: u32 = 4_096;

/// What is in a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// The cluster that wrote it.
    pub cluster: String,
    /// The job's id.
    pub job: String,
    /// The job's name.
    pub job_name: String,
    /// Its place in the job's order of snapshots.
    pub barrier: u64,
    /// When it was complete on disk, in ms since the epoch.
    pub created_at_ms: u64,
    /// The job's parallelism.
    pub parallelism: u32,
    /// Hash of the job graph.
    pub graph_hash: String,
    /// The script, if it is known.
    pub query: Option<String>,
    /// State files.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its operators, by uid.
    pub operators: Vec<OperatorSummary>,
}

/// One operator over all of its subtasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatorSummary {
    /// Its uid.
    pub uid: OperatorUid,
    /// Its event time at the barrier, in ms; -2⁶³ before the first watermark.
    pub watermark_ms: i64,
    /// How many subtasks have a part.
    pub subtasks: u64,
    /// Bytes that it, as a sink, prepared.
    pub prepared_bytes: u64,
    /// Its state tables.
    pub tables: Vec<TableSummary>,
    /// Its positions as a source, by split.
    pub splits: Vec<SplitPosition>,
}

/// One state table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableSummary {
    /// Its name.
    pub name: String,
    /// State files.
    pub files: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Different key hashes.
    pub keys: u64,
    /// Rows in each of as many equal ranges of key hashes as were asked for: by default as many as the job has subtasks, so
    /// that each is what one subtask holds.
    pub ranges: Vec<u64>,
    /// The largest of these by their mean; 1 is even. None without rows.
    pub skew: Option<f64>,
    /// The keys with the most rows, heaviest first; none if no key has more than one.
    pub heaviest: Vec<HeavyKey>,
}

/// A key with many rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeavyKey {
    /// Its hash.
    pub hash: u64,
    /// How many rows it has.
    pub rows: u64,
    /// The key columns with their values.
    pub key: Vec<(String, Option<String>)>,
}

/// How much is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Into how many equal ranges the hashes are counted; none: the job's parallelism.
    pub ranges: Option<u32>,
    /// How many of the heaviest keys are named.
    pub heaviest: usize,
}

/// Looks through a snapshot.
///
/// # Errors
/// `INVALID_ARGUMENT` for more than 4096 ranges, `CORRUPT` and the like if a state file cannot be read.
pub fn summarise(snapshot: &Snapshot, depth: Depth) -> Result<Summary> {
    let manifest = snapshot.manifest();
    let ranges = depth.ranges.unwrap_or_else(|| manifest.parallelism.get().min(RANGES_MAX));
    if ranges > RANGES_MAX {
        return Err(Error::invalid(format!("key hashes are counted in at most {RANGES_MAX} ranges")));
    }
    let ranges = Parallelism::new(ranges)?;
    let mut operators: BTreeMap<&str, OperatorSummary> = BTreeMap::new();
    for part in &manifest.operators {
        let operator = operators.entry(&part.uid).or_insert_with(|| OperatorSummary {
            uid: part.uid.clone(),
            watermark_ms: part.watermark_ms,
            subtasks: 0,
            prepared_bytes: 0,
            tables: Vec::new(),
            splits: Vec::new(),
        });
        operator.watermark_ms = operator.watermark_ms.min(part.watermark_ms);
        operator.subtasks += 1;
        operator.prepared_bytes += part.prepared.as_ref().map_or(0, Vec::len) as u64;
        operator.splits.extend(part.splits.iter().cloned());
    }
    for operator in operators.values_mut() {
        operator.splits.sort_by(|a, b| a.split.cmp(&b.split));
    }
    let (mut rows, mut files, mut bytes) = (0_u64, 0, 0_u64);
    for table in snapshot.tables() {
        let summary = table_summary(table, ranges, depth.heaviest)?;
        rows += summary.rows;
        files += summary.files;
        bytes = bytes.saturating_add(summary.bytes);
        if let Some(operator) = operators.get_mut(table.operator().as_str()) {
            operator.tables.push(summary);
        }
    }
    Ok(Summary {
        id: manifest.snapshot.to_string(),
        kind: manifest.kind,
        cluster: manifest.cluster.to_string(),
        job: manifest.job.to_string(),
        job_name: manifest.job_name.clone(),
        barrier: manifest.barrier.0,
        created_at_ms: manifest.created_at.0,
        parallelism: manifest.parallelism.get(),
        graph_hash: manifest.graph_hash.clone(),
        query: manifest.query.clone(),
        files,
        rows,
        bytes,
        operators: operators.into_values().collect(),
    })
}

fn table_summary(table: &Arc<Table>, ranges: Parallelism, heaviest: usize) -> Result<TableSummary> {
    let mut counts = vec![0_u64; ranges.get() as usize];
    let (mut keys, mut rows) = (0, 0);
    // The lightest of the heaviest is on top; of those that weigh the same, the last in the order of hashes.
    let mut heavy: BinaryHeap<Reverse<(u64, Reverse<u64>)>> = BinaryHeap::new();
    let mut groups = HashGroups::new(table.scan(&[0])?, |_| Ok(()))?;
    while let Some(hash) = groups.peek() {
        let mut own = 0_u64;
        groups.take(hash, |(), range| {
            own += range.len() as u64;
            Ok(())
        })?;
        keys += 1;
        rows += own;
        counts[subtask_of(hash, ranges).0 as usize] += own;
        if own > 1 {
            heavy.push(Reverse((own, Reverse(hash))));
            if heavy.len() > heaviest {
                heavy.pop();
            }
        }
    }
    let most = counts.iter().max().copied().unwrap_or_default();
    let skew = (rows > 0).then(|| most as f64 * counts.len() as f64 / rows as f64);
    let mut heavy: Vec<(u64, u64)> = heavy.into_iter().map(|Reverse((rows, Reverse(hash)))| (rows, hash)).collect();
    heavy.sort_unstable_by_key(|&(rows, hash)| (Reverse(rows), hash));
    let named = heavy.into_iter().map(|(rows, hash)| Ok(HeavyKey { hash, rows, key: key_of(table, hash)? }));
    Ok(TableSummary {
        name: table.name().to_owned(),
        files: table.files().count() as u64,
        rows,
        bytes: table.bytes(),
        keys,
        ranges: counts,
        skew,
        heaviest: named.collect::<Result<_>>()?,
    })
}

/// The key columns of the first row with this hash.
fn key_of(table: &Arc<Table>, hash: u64) -> Result<Vec<(String, Option<String>)>> {
    let columns = table.columns()?;
    let keys = columns.roles().filter(|(_, role)| *role == Some(Role::Key)).map(|(index, _)| index);
    let projection: Vec<usize> = std::iter::once(0).chain(keys).collect();
    for batch in table.scan_range(&projection, KeyRange::new(hash, hash)?)? {
        let batch = batch?;
        let hashes = batch.column(0).as_primitive_opt::<UInt64Type>();
        let Some(row) = hashes.and_then(|hashes| hashes.values().iter().position(|other| *other == hash)) else {
            continue;
        };
        let options = FormatOptions::default().with_null("NULL");
        let schema = batch.schema();
        let shown = batch.columns()[1..].iter().zip(&schema.fields()[1..]).map(|(column, field)| {
            let text = (!column.is_null(row)).then(|| {
                let formatter = ArrayFormatter::try_new(column.as_ref(), &options);
                // An instant that no calendar knows is shown as an error, and is none.
                formatter.map(|formatter| formatter.value(row).to_string())
            });
            let text = text.transpose().map_err(|error| {
                Error::internal(format!("could not show a key of {}", names::quoted(table)))
                    .with_detail(error.to_string())
            });
            Ok((field.name().clone(), text?))
        });
        return shown.collect();
    }
    Ok(Vec::new())
}
