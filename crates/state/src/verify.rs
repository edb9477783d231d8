//! Verification: every byte of a snapshot against its manifest, with everything that is wrong in one report.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, UInt64Type};
use serde::{Deserialize, Serialize};
use weir_types::ids::OperatorUid;
use weir_types::snapshot::{StateBlock, StateFile};
use weir_types::{Code, Error, Result};

use crate::file::{corrupt, read_block};
use crate::manifest::{MANIFEST, Manifest, read_manifest};
use crate::reader::FileReader;
use crate::store::SnapshotStore;

/// Most findings that a report lists; the rest is counted.
const LISTED_MAX: usize = 1_000;

/// What was found wrong with one file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The file's name in the manifest.
    pub file: String,
    /// What is wrong: `NOT_FOUND`, `CORRUPT`, `UNSUPPORTED`, `IO`.
    pub error: Error,
}

/// The outcome of reading every byte of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What the snapshot is said to consist of.
    pub manifest: Manifest,
    /// Files that are whole.
    pub files_whole: u64,
    /// Blocks that are whole.
    pub blocks_whole: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Everything that is wrong, in the manifest's order; at most a thousand findings.
    pub damage: Vec<Damage>,
    /// How many further findings there are.
    pub damage_unlisted: u64,
    /// Files in the directory that the manifest does not name. They do no harm.
    pub foreign: Vec<String>,
}

impl Report {
    fn new(manifest: Manifest, foreign: Vec<String>) -> Self {
        Self {
            manifest,
            files_whole: 0,
            blocks_whole: 0,
            rows: 0,
            bytes_read: 0,
            damage: Vec::new(),
            damage_unlisted: 0,
            foreign,
        }
    }

    /// The first damage; none: the snapshot is whole.
    pub fn first_damage(&self) -> Option<&Error> {
        self.damage.first().map(|damage| &damage.error)
    }

    /// How many findings there are.
    pub fn findings(&self) -> u64 {
        self.damage.len() as u64 + self.damage_unlisted
    }

    fn add(&mut self, file: &StateFile, error: Error) {
        if self.damage.len() < LISTED_MAX {
            self.damage.push(Damage { file: file.path.clone(), error });
        } else {
            self.damage_unlisted += 1;
        }
    }
}

/// Reads every byte of a snapshot. `progress` hears, after every block, how many bytes have been read.
///
/// # Errors
/// As [`read_manifest`]: without a manifest there is nothing to compare with. Damage of files is in the report.
pub fn verify(store: &dyn SnapshotStore, progress: &mut dyn FnMut(u64)) -> Result<Report> {
    verify_against(store, read_manifest(store)?, progress)
}

/// The same with a manifest that was read before.
///
/// # Errors
/// `IO` if the directory cannot be listed. Damage of files is in the report.
pub fn verify_against(store: &dyn SnapshotStore, manifest: Manifest, progress: &mut dyn FnMut(u64)) -> Result<Report> {
    let foreign = foreign(store, &manifest)?;
    let mut report = Report::new(manifest, foreign);
    let files: Vec<StateFile> = report.manifest.files().cloned().collect();
    for file in &files {
        let before = report.findings();
        verify_file(store, file, &mut report, progress);
        report.files_whole += u64::from(report.findings() == before);
    }
    Ok(report)
}

/// The first damage in the files of one operator, all of whose bytes are read until then; none: they are whole.
pub fn first_damage(store: &dyn SnapshotStore, manifest: Manifest, operator: &OperatorUid) -> Option<Error> {
    let files = manifest.operators.iter().filter(|of| of.uid == *operator).flat_map(|of| of.files.clone());
    let files: Vec<StateFile> = files.collect();
    let mut report = Report::new(manifest, Vec::new());
    for file in &files {
        verify_file(store, file, &mut report, &mut |_bytes| {});
        if !report.damage.is_empty() {
            return Some(report.damage.swap_remove(0).error);
        }
    }
    None
}

fn foreign(store: &dyn SnapshotStore, manifest: &Manifest) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = manifest.files().map(|file| file.path.as_str()).collect();
    Ok(store.list()?.into_iter().filter(|name| name != MANIFEST && !known.contains(name.as_str())).collect())
}

fn verify_file(store: &dyn SnapshotStore, file: &StateFile, report: &mut Report, progress: &mut dyn FnMut(u64)) {
    let reader = match FileReader::open(store, file) {
        Ok(reader) => reader,
        Err(error) => {
            // Header or footer are damaged, or the length is wrong: whatever blocks can be read are still compared.
            report.add(file, error);
            verify_blocks_alone(store, file, report, progress);
            return;
        }
    };
    let rows = file.blocks.iter().fold(0_u64, |rows, block| rows.saturating_add(block.rows));
    if rows != file.rows {
        let detail = format!("the manifest says {} rows, its blocks have {rows}", file.rows);
        report.add(file, corrupt(&store.describe(&file.path), 0).with_detail(detail));
    }
    for (index, block) in file.blocks.iter().enumerate() {
        match reader.read(index).and_then(|batch| check_hashes(batch.column(0), &store.describe(&file.path), block)) {
            Ok(()) => {
                report.blocks_whole += 1;
                report.rows += block.rows;
            }
            Err(error) => report.add(file, error),
        }
        report.bytes_read = report.bytes_read.saturating_add(block.bytes);
        progress(report.bytes_read);
    }
    // Header and footer were read to open the file.
    let blocks = file.blocks.iter().fold(0_u64, |bytes, block| bytes.saturating_add(block.bytes));
    report.bytes_read = report.bytes_read.saturating_add(file.bytes.saturating_sub(blocks));
}

/// Compares the blocks of a file that cannot be opened as a whole.
fn verify_blocks_alone(
    store: &dyn SnapshotStore,
    file: &StateFile,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) {
    let Ok(stored) = store.open(&file.path) else { return };
    let name = store.describe(&file.path);
    for block in &file.blocks {
        match read_block(stored.as_ref(), &name, block) {
            Ok(_) => report.blocks_whole += 1,
            Err(error) => report.add(file, error),
        }
        report.bytes_read = report.bytes_read.saturating_add(block.bytes);
        progress(report.bytes_read);
    }
}

/// Restoring relies on hashes being sorted and in the block's range.
fn check_hashes(column: &arrow::array::ArrayRef, name: &str, block: &StateBlock) -> Result<()> {
    if *column.data_type() != DataType::UInt64 {
        return Err(Error::internal("a state file without key hashes was opened"));
    }
    let hashes = column.as_primitive::<UInt64Type>().values();
    let inside = hashes.iter().all(|&hash| block.hashes.contains(hash));
    if inside && hashes.is_sorted() {
        return Ok(());
    }
    let detail = if inside { "its rows are not sorted by key hash" } else { "its hashes lie outside of its range" };
    Err(Error::new(Code::Corrupt, format!("state file {name} is damaged at offset {}", block.offset))
        .with_detail(detail))
}
