//! The manifest: the file that makes a directory of state files a snapshot.
//!
//! Invariant: under the manifest's name there is, for ever, at most one thing: a complete manifest or an abort marker,
//! whoever was first. A manifest bears the nonce of the reservation that it was written under, so that a writer whose
//! answer got lost recognises its own. Deleting goes manifest, files, directory: an interrupted deletion leaves nothing that
//! could pass for a snapshot, and can be repeated.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_types::ids::{BarrierId, ClusterId, JobId, Nonce, OperatorUid, Parallelism, SnapshotId};
use weir_types::snapshot::{OperatorSnapshot, SnapshotKind, StateFile};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use crate::file::EXTENSION;
use crate::store::{Created, SnapshotStore};
use crate::verify::verify;

/// Name of the manifest in a snapshot's directory.
pub const MANIFEST: &str = "manifest.json";
/// Version of the manifest's layout.
pub const FORMAT_VERSION: u32 = 1;
/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// What a snapshot consists of. Paths are relative to its directory, which may be copied or moved as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The cluster that wrote it.
    pub cluster: ClusterId,
    /// The job that it is of.
    pub job: JobId,
    /// The job's name, for people.
    pub job_name: String,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// Its place in the job's order of snapshots.
    pub barrier: BarrierId,
    /// The reservation's nonce.
    pub nonce: Nonce,
    /// When it was complete on disk.
    pub created_at: Millis,
    /// The job's parallelism at the time.
    pub parallelism: Parallelism,
    /// Hash of the job graph that ran, as 16 hex digits.
    pub graph_hash: String,
    /// The job's script, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// What every subtask contributed, for each operator that has state, positions or prepared output.
    pub operators: Vec<OperatorSnapshot>,
}

/// Sums over a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Number of state files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their rows.
    pub rows: u64,
}

impl Manifest {
    /// All state files.
    pub fn files(&self) -> impl Iterator<Item = &StateFile> {
        self.operators.iter().flat_map(|operator| &operator.files)
    }

    /// Sums over all state files.
    pub fn totals(&self) -> Totals {
        self.files().fold(Totals::default(), |totals, file| Totals {
            files: totals.files + 1,
            // Manifests may be anybody's, and claim anything.
            bytes: totals.bytes.saturating_add(file.bytes),
            rows: totals.rows.saturating_add(file.rows),
        })
    }

    /// What the subtasks of one operator contributed.
    pub fn operator(&self, uid: &OperatorUid) -> Vec<OperatorSnapshot> {
        self.operators.iter().filter(|operator| operator.uid == *uid).cloned().collect()
    }
}

/// What stands where a manifest would: nothing with this nonce will ever be a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortMarker {
    /// The snapshot that was given up.
    pub snapshot: SnapshotId,
    /// The reservation's nonce.
    pub nonce: Nonce,
    /// Why, for people.
    pub reason: String,
}

/// What lies under the manifest's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Manifest(Box<Manifest>),
    Aborted(AbortMarker),
}

/// How an attempt to abort ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AbortOutcome {
    /// The marker stands: no manifest can appear any more.
    Aborted,
    /// The manifest was there first: the snapshot is to be completed.
    Published(Box<Manifest>),
}

/// Bytes that a manifest takes in its snapshot's directory.
///
/// # Errors
/// `INTERNAL` if it cannot be encoded.
pub fn encoded_bytes(manifest: &Manifest) -> Result<u64> {
    Ok(encode(&Content::Manifest(Box::new(manifest.clone())))?.len() as u64)
}

/// Creates the manifest. Returns if it is durable now, or was already under the same nonce.
///
/// # Errors
/// `FAILED_PRECONDITION` if the snapshot was aborted meanwhile, `ALREADY_EXISTS` if another snapshot's manifest is there.
pub fn publish_manifest(store: &dyn SnapshotStore, manifest: &Manifest) -> Result<()> {
    let content = Content::Manifest(Box::new(manifest.clone()));
    if store.publish(MANIFEST, &encode(&content)?)? == Created::New {
        return Ok(());
    }
    let place = store.describe(MANIFEST);
    match read_content(store)? {
        Content::Manifest(found) if found.nonce == manifest.nonce => Ok(()),
        Content::Manifest(found) => {
            Err(Error::new(Code::AlreadyExists, format!("{place} belongs to snapshot {} already", found.snapshot))
                .with_hint("Every snapshot needs a directory of its own: choose an empty one."))
        }
        Content::Aborted(marker) => Err(aborted(&place, &marker)),
    }
}

/// Makes sure that no manifest with this nonce will appear, unless one is there already.
///
/// # Errors
/// `ALREADY_EXISTS` if another snapshot's manifest or marker is there, `IO`.
pub fn abort_manifest(store: &dyn SnapshotStore, marker: &AbortMarker) -> Result<AbortOutcome> {
    if store.publish(MANIFEST, &encode(&Content::Aborted(marker.clone()))?)? == Created::New {
        return Ok(AbortOutcome::Aborted);
    }
    let other = |snapshot: &SnapshotId| {
        Error::new(Code::AlreadyExists, format!("{} belongs to snapshot {snapshot}", store.describe(MANIFEST)))
    };
    match read_content(store)? {
        Content::Manifest(found) if found.nonce == marker.nonce => Ok(AbortOutcome::Published(found)),
        Content::Aborted(found) if found.nonce == marker.nonce => Ok(AbortOutcome::Aborted),
        Content::Manifest(found) => Err(other(&found.snapshot)),
        Content::Aborted(found) => Err(other(&found.snapshot)),
    }
}

/// Reads the manifest of a snapshot.
///
/// # Errors
/// `NOT_FOUND` without one, `CORRUPT` if it is damaged, `UNSUPPORTED` if it is of a newer version, `FAILED_PRECONDITION`
/// if the snapshot was aborted.
pub fn read_manifest(store: &dyn SnapshotStore) -> Result<Manifest> {
    match read_content(store)? {
        Content::Manifest(manifest) => Ok(*manifest),
        Content::Aborted(marker) => Err(aborted(&store.describe(MANIFEST), &marker)),
    }
}

/// Reads every byte of a snapshot and checks it against the manifest.
///
/// # Errors
/// `NOT_FOUND` or `CORRUPT` for the first file that is missing or damaged, by name and offset.
pub fn verify_snapshot(store: &dyn SnapshotStore) -> Result<Manifest> {
    let mut report = verify(store, &mut |_bytes| {})?;
    if report.damage.is_empty() { Ok(report.manifest) } else { Err(report.damage.swap_remove(0).error) }
}

/// Deletes the manifest of a snapshot, durably: from then on it is none. May be repeated.
///
/// # Errors
/// `IO`.
pub fn delete_manifest(store: &dyn SnapshotStore) -> Result<()> {
    if store.list()?.iter().any(|name| name == MANIFEST) {
        store.delete(MANIFEST)?;
        store.sync()?;
    }
    Ok(())
}

/// Deletes a snapshot: first the manifest, then the files, then the directory. May be repeated. Returns whether the
/// directory is gone; it stays if files are in it that are not a snapshot's.
///
/// # Errors
/// `IO`.
pub fn delete_snapshot(store: &dyn SnapshotStore) -> Result<bool> {
    delete_manifest(store)?;
    let names = store.list()?;
    let temporary = |name: &str| name.starts_with(&format!(".{MANIFEST}.")) && name.ends_with(".tmp");
    for name in names.iter().filter(|name| name.ends_with(EXTENSION) || temporary(name)) {
        store.delete(name)?;
    }
    store.delete_directory()
}

fn aborted(place: &str, marker: &AbortMarker) -> Error {
    Error::new(Code::FailedPrecondition, format!("snapshot {} was aborted", marker.snapshot))
        .with_detail(format!("{place}: {}", marker.reason))
        .with_hint("Use another snapshot; `weir snapshots list` shows them.")
}

/// `{"weir_snapshot": version, "crc32c": checksum of the compact content, "content": …}`.
fn encode(content: &Content) -> Result<Vec<u8>> {
    let failed =
        |error: serde_json::Error| Error::internal("could not encode a manifest").with_detail(error.to_string());
    let content = serde_json::to_value(content).map_err(failed)?;
    let crc = crc32c::crc32c(&serde_json::to_vec(&content).map_err(failed)?);
    let file = serde_json::json!({
        "weir_snapshot": FORMAT_VERSION,
        "crc32c": format!("{crc:08x}"),
        "content": content,
    });
    let mut bytes = serde_json::to_vec_pretty(&file).map_err(failed)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn read_content(store: &dyn SnapshotStore) -> Result<Content> {
    let place = store.describe(MANIFEST);
    let stored = store.open(MANIFEST).map_err(|error| match error.code {
        Code::NotFound => Error::not_found(format!("there is no snapshot: {place} does not exist")).with_hint(
            "Give the snapshot's own directory, the one with manifest.json in it; one without was never completed.",
        ),
        _ => error,
    })?;
    let len = stored.len()?;
    if len > MANIFEST_BYTES_MAX {
        return Err(damaged(&place, format!("it has {len} bytes")));
    }
    let bytes = stored.read(0, len as usize)?;
    let mut file: Value = serde_json::from_slice(&bytes).map_err(|error| damaged(&place, error.to_string()))?;
    let version = file.get("weir_snapshot").and_then(Value::as_u64);
    match version {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(version) => {
            return Err(Error::new(Code::Unsupported, format!("{place} has format version {version}"))
                .with_hint(format!("This version of Weir reads format version {FORMAT_VERSION}.")));
        }
        None => return Err(damaged(&place, "it has no format version".to_owned())),
    }
    let content = file.get_mut("content").map(Value::take).unwrap_or_default();
    let compact = serde_json::to_vec(&content).map_err(|error| damaged(&place, error.to_string()))?;
    let crc = format!("{:08x}", crc32c::crc32c(&compact));
    match file.get("crc32c").and_then(Value::as_str) {
        Some(expected) if expected == crc => {}
        expected => {
            let expected = expected.unwrap_or("none");
            return Err(damaged(&place, format!("its content has checksum {crc}, it says {expected}")));
        }
    }
    serde_json::from_value(content).map_err(|error| damaged(&place, error.to_string()))
}

fn damaged(place: &str, detail: String) -> Error {
    Error::new(Code::Corrupt, format!("manifest {place} is damaged"))
        .with_detail(detail)
        .with_hint("Restore from another snapshot, or fetch an undamaged copy of this one.")
}
