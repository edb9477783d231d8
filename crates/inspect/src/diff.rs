//! What changed from one snapshot to another.
//!
//! Tables are merged by key hash; rows are matched by key and map key. Memory: a block of each file, and 48 bytes per row of
//! the key that has the most. Rows are compared by 128-bit and 64-bit hashes of what they hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};
use serde::Serialize;
use weir_state::columns::{self, Role};
use weir_types::ids::OperatorUid;
use weir_types::snapshot::SplitPosition;
use weir_types::{Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::Snapshot;
use crate::groups::HashGroups;
use crate::table::{Columns, Table};

/// The differences between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Id of the first.
    pub from: String,
    /// Id of the second.
    pub to: String,
    /// Every table of either, by operator and name.
    pub tables: Vec<TableDiff>,
    /// Every operator of either.
    pub operators: Vec<OperatorDiff>,
    /// Every split of either.
    pub sources: Vec<SplitDiff>,
}

/// How a table changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableDiff {
    /// The operator's uid.
    pub operator: OperatorUid,
    /// The table's name.
    pub table: String,
    /// Rows that only the second has.
    pub added: u64,
    /// Rows that only the first has.
    pub removed: u64,
    /// Rows of one key with other values.
    pub changed: u64,
    /// Rows that are the same.
    pub unchanged: u64,
    /// Bytes of the files in the first; zero if the table is not in it.
    pub bytes_from: u64,
    /// Bytes of the files in the second; zero if the table is not in it.
    pub bytes_to: u64,
    /// Why rows could not be compared as usual.
    pub note: Option<String>,
}

/// How far an operator's event time came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperatorDiff {
    /// The operator's uid.
    pub operator: OperatorUid,
    /// Its watermark in the first, in ms; none: it is not in it.
    pub watermark_from_ms: Option<i64>,
    /// Its watermark in the second.
    pub watermark_to_ms: Option<i64>,
}

/// How far a source read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitDiff {
    /// The source's uid.
    pub operator: OperatorUid,
    /// The split.
    pub split: String,
    /// Where it stood in the first; none: it is not in it.
    pub from: Option<SplitPosition>,
    /// Where it stood in the second.
    pub to: Option<SplitPosition>,
}

impl SplitDiff {
    /// Records read between the two; negative if the second is earlier.
    pub fn records(&self) -> Option<i128> {
        let (from, to) = (self.from.as_ref()?, self.to.as_ref()?);
        Some(i128::from(to.offset) - i128::from(from.offset))
    }
}

/// Compares two snapshots.
///
/// # Errors
/// `CORRUPT` and the like if a state file cannot be read.
pub fn diff(from: &Snapshot, to: &Snapshot) -> Result<Diff> {
    let key = |table: &Arc<Table>| (table.operator().clone(), table.name().to_owned());
    let tables = |snapshot: &Snapshot| -> BTreeMap<_, _> {
        snapshot.tables().iter().map(|table| (key(table), Arc::clone(table))).collect()
    };
    let (old, new) = (tables(from), tables(to));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let compared = keys.into_iter().map(|key| {
        let counted = match (old.get(key), new.get(key)) {
            (Some(old), Some(new)) => compare(old, new)?,
            (Some(old), None) => TableDiff { removed: count(old)?, bytes_from: old.bytes(), ..TableDiff::default() },
            (None, Some(new)) => TableDiff { added: count(new)?, bytes_to: new.bytes(), ..TableDiff::default() },
            (None, None) => TableDiff::default(),
        };
        Ok(TableDiff { operator: key.0.clone(), table: key.1.clone(), ..counted })
    });
    Ok(Diff {
        from: from.manifest().snapshot.to_string(),
        to: to.manifest().snapshot.to_string(),
        tables: compared.collect::<Result<_>>()?,
        operators: operators(from, to),
        sources: sources(from, to),
    })
}

fn operators(from: &Snapshot, to: &Snapshot) -> Vec<OperatorDiff> {
    let watermarks = |snapshot: &Snapshot| {
        let mut least: BTreeMap<OperatorUid, i64> = BTreeMap::new();
        for part in &snapshot.manifest().operators {
            let known = least.entry(part.uid.clone()).or_insert(part.watermark_ms);
            *known = part.watermark_ms.min(*known);
        }
        least
    };
    let (old, new) = (watermarks(from), watermarks(to));
    let uids: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let shown = |uid: &OperatorUid| OperatorDiff {
        operator: uid.clone(),
        watermark_from_ms: old.get(uid).copied(),
        watermark_to_ms: new.get(uid).copied(),
    };
    uids.into_iter().map(shown).collect()
}

fn sources(from: &Snapshot, to: &Snapshot) -> Vec<SplitDiff> {
    let splits = |snapshot: &Snapshot| -> BTreeMap<_, _> {
        let parts = snapshot.manifest().operators.iter();
        parts
            .flat_map(|part| part.splits.iter().map(|split| ((part.uid.clone(), split.split.clone()), split.clone())))
            .collect()
    };
    let (old, new) = (splits(from), splits(to));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let shown = |key: &(OperatorUid, String)| SplitDiff {
        operator: key.0.clone(),
        split: key.1.clone(),
        from: old.get(key).cloned(),
        to: new.get(key).cloned(),
    };
    keys.into_iter().map(shown).collect()
}

fn count(table: &Arc<Table>) -> Result<u64> {
    table.scan(&[0])?.try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64))
}

/// What columns there are of each kind: positions, and what they are.
#[derive(Default)]
struct Kinds {
    keys: Vec<usize>,
    key_forms: Vec<(String, DataType)>,
    values: Vec<usize>,
    value_forms: Vec<(String, DataType)>,
}

impl Kinds {
    /// Where a file does not tell keys from values, a row is its own key.
    fn of(columns: &Columns) -> Self {
        let mut kinds = Self::default();
        for (index, role) in columns.roles().skip(1) {
            let field = columns.schema().field(index);
            let form = (columns::id(field).to_owned(), field.data_type().clone());
            if role == Some(Role::Value) {
                kinds.values.push(index);
                kinds.value_forms.push(form);
            } else {
                kinds.keys.push(index);
                kinds.key_forms.push(form);
            }
        }
        kinds
    }
}

fn compare(old: &Arc<Table>, new: &Arc<Table>) -> Result<TableDiff> {
    let (old_kinds, new_kinds) = (Kinds::of(&old.columns()?), Kinds::of(&new.columns()?));
    let mut diff = TableDiff { bytes_from: old.bytes(), bytes_to: new.bytes(), ..TableDiff::default() };
    if old_kinds.key_forms != new_kinds.key_forms {
        diff.note = Some("the key has other columns".to_owned());
        (diff.removed, diff.added) = (count(old)?, count(new)?);
        return Ok(diff);
    }
    let comparable = old_kinds.value_forms == new_kinds.value_forms;
    if !comparable {
        diff.note = Some("the values have other columns".to_owned());
    }
    let mut old = fingerprints(old, &old_kinds)?;
    let mut new = fingerprints(new, &new_kinds)?;
    let mut rows: HashMap<u128, (u64, u64)> = HashMap::new();
    while let Some(hash) = [old.peek(), new.peek()].into_iter().flatten().min() {
        old.take(hash, |prints, range| {
            for (key, value) in &prints[range] {
                rows.entry(*key).or_insert((*value, 0)).1 += 1;
            }
            Ok(())
        })?;
        new.take(hash, |prints, range| {
            for (key, value) in &prints[range] {
                match rows.get_mut(key) {
                    Some((known, left)) if *left > 0 => {
                        *left -= 1;
                        let same = comparable && known == value;
                        *(if same { &mut diff.unchanged } else { &mut diff.changed }) += 1;
                    }
                    _ => diff.added += 1,
                }
            }
            Ok(())
        })?;
        diff.removed += rows.drain().map(|(_, (_, left))| left).sum::<u64>();
    }
    Ok(diff)
}

/// Hashes of each row's key and of its values.
type Prints = Vec<(u128, u64)>;

fn fingerprints(
    table: &Arc<Table>,
    kinds: &Kinds,
) -> Result<HashGroups<Prints, impl Fn(&RecordBatch) -> Result<Prints> + use<>>> {
    // The key hash comes first.
    let projection: Vec<usize> = [0].iter().chain(&kinds.keys).chain(&kinds.values).copied().collect();
    let keys = 1..1 + kinds.keys.len();
    let values = keys.end..projection.len();
    let converter = |forms: &[(String, DataType)]| {
        RowConverter::new(forms.iter().map(|(_, data_type)| SortField::new(data_type.clone())).collect())
    };
    let (key_rows, value_rows) = (converter(&kinds.key_forms), converter(&kinds.value_forms));
    let (key_rows, value_rows) = (key_rows.map_err(incomparable)?, value_rows.map_err(incomparable)?);
    HashGroups::new(table.scan(&projection)?, move |batch| {
        let keys = encode(&key_rows, batch, keys.clone())?;
        let values = encode(&value_rows, batch, values.clone())?;
        let print = |row| {
            let key = keys.as_ref().map_or(0, |keys| xxh3_128(keys.row(row).as_ref()));
            (key, values.as_ref().map_or(0, |values| xxh3_64(values.row(row).as_ref())))
        };
        Ok((0..batch.num_rows()).map(print).collect())
    })
}

/// None without columns: all rows are the same then.
fn encode(converter: &RowConverter, batch: &RecordBatch, columns: Range<usize>) -> Result<Option<Rows>> {
    if columns.is_empty() {
        return Ok(None);
    }
    let columns: &[ArrayRef] = &batch.columns()[columns];
    let mut rows = converter.empty_rows(batch.num_rows(), 0);
    converter.append(&mut rows, columns).map_err(incomparable)?;
    Ok(Some(rows))
}

fn incomparable(error: arrow::error::ArrowError) -> Error {
    Error::internal("rows of state could not be compared").with_detail(error.to_string())
}
