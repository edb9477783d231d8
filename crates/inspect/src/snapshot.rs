//! A snapshot as found in a directory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use weir_state::manifest::{Manifest, read_manifest};
use weir_state::merge::table_names;
use weir_state::open_store;
use weir_state::store::SnapshotStore;
use weir_state::verify::{self, Report};
use weir_types::Result;
use weir_types::ids::OperatorUid;
use weir_types::snapshot::OperatorSnapshot;

use crate::table::Table;

/// A snapshot that is being looked into: its manifest has been read, its state files have not.
#[derive(Clone)]
pub struct Snapshot {
    manifest: Arc<Manifest>,
    tables: Vec<Arc<Table>>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("id", &self.manifest.snapshot).field("tables", &self.tables).finish()
    }
}

impl Snapshot {
    /// Opens the snapshot in a directory, given as a path or a `file://` URL.
    ///
    /// # Errors
    /// `NOT_FOUND` if there is none, `CORRUPT`, `UNSUPPORTED`, `FAILED_PRECONDITION` if it was aborted, `IO`.
    pub fn open(location: &str) -> Result<Self> {
        let store: Arc<dyn SnapshotStore> = Arc::from(open_store(location)?);
        let manifest = read_manifest(store.as_ref())?;
        let mut parts: BTreeMap<(OperatorUid, String), Vec<OperatorSnapshot>> = BTreeMap::new();
        for part in &manifest.operators {
            for name in table_names(std::slice::from_ref(part)) {
                let files = part.files.iter().filter(|file| file.table == name).cloned().collect();
                let own = OperatorSnapshot { files, splits: Vec::new(), prepared: None, ..part.clone() };
                parts.entry((part.uid.clone(), name.to_owned())).or_default().push(own);
            }
        }
        let tables = parts.into_iter().map(|((operator, name), parts)| Table::new(operator, name, &store, parts));
        // Tombstones alone take nothing out.
        let tables = tables.filter(|table| table.files().any(|file| !file.deletes)).map(Arc::new).collect();
        Ok(Self { manifest: Arc::new(manifest), tables })
    }

    /// What it is said to consist of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its state tables, by operator and name.
    pub fn tables(&self) -> &[Arc<Table>] {
        &self.tables
    }

    /// The uids of its operators, each once, in order.
    pub fn operators(&self) -> Vec<&OperatorUid> {
        let mut uids: Vec<_> = self.manifest.operators.iter().map(|operator| &operator.uid).collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    }
}

/// Reads every byte of the snapshot in a directory. `progress` hears how many bytes have been read.
///
/// # Errors
/// As [`Snapshot::open`]. Damage of files is in the report.
pub fn verify_directory(location: &str, progress: &mut dyn FnMut(u64)) -> Result<Report> {
    verify::verify(open_store(location)?.as_ref(), progress)
}
