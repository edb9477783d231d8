//! Snapshots on storage: manifests, abort markers, deletion. All of it blocks, so all of it runs beside the loop.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use weir_coordination::checkpoint::{Contents, Marked};
use weir_coordination::metadata::{JobRecord, RecoveryPoint, SnapshotEntry};
use weir_service::failpoint;
use weir_state::manifest::{
    AbortMarker, AbortOutcome, Manifest, abort_manifest, delete_manifest, delete_snapshot, encoded_bytes,
    publish_manifest, read_manifest,
};
use weir_state::store::{SHARED_DIRECTORY, SnapshotStore};
use weir_state::verify::{Report, first_damage, verify_against};
use weir_state::{LocalDirectory, open_store};
use weir_types::graph::JobGraph;
use weir_types::ids::{ClusterId, JobId, OperatorUid, SnapshotId};
use weir_types::snapshot::{SnapshotKind, SnapshotState, shared_file_writer};
use weir_types::{Code, Error, Result};

use crate::event::Unprepared;
use crate::metadata::now;

/// Runs file work on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::internal("file work was broken off").with_detail(error.to_string())))
}

/// The manifest of a snapshot.
pub(crate) fn manifest(cluster: ClusterId, job: &JobRecord, entry: &SnapshotEntry, contents: Contents) -> Manifest {
    Manifest {
        cluster,
        job: job.id.clone(),
        job_name: job.name.clone(),
        snapshot: entry.id.clone(),
        kind: entry.kind,
        barrier: entry.barrier,
        nonce: entry.nonce.clone(),
        created_at: now(),
        parallelism: entry.parallelism,
        graph_hash: graph_hash(&job.graph),
        query: Some(job.sql.clone()),
        operators: contents.operators,
    }
}

/// Identifies what runs, as 16 hex digits.
pub(crate) fn graph_hash(graph: &JobGraph) -> String {
    let bytes = weir_proto::pb::graph::v1::JobGraph::from(graph).encode_to_vec();
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))
}

/// A manifest and the bytes that it will take.
pub(crate) async fn measure(manifest: Manifest) -> Result<(Manifest, u64)> {
    blocking(move || {
        let bytes = encoded_bytes(&manifest)?;
        Ok((manifest, bytes))
    })
    .await
}

/// Creates the manifest of a snapshot whose files are all durable.
pub(crate) async fn publish(directory: String, manifest: Manifest) -> Result<()> {
    blocking(move || publish_manifest(open_store(&directory)?.as_ref(), &manifest)).await
}

/// What a manifest without its acknowledgements says.
pub(crate) fn contents(manifest: Manifest) -> Contents {
    let mut contents = Contents::of(manifest.operators);
    for operator in &contents.operators {
        if operator.splits.is_empty() {
            continue;
        }
        match contents.sources.iter_mut().find(|source| source.uid == operator.uid) {
            Some(source) => source.splits.extend(operator.splits.iter().cloned()),
            None => contents.sources.push(weir_types::snapshot::SourcePositions {
                uid: operator.uid.clone(),
                splits: operator.splits.clone(),
            }),
        }
    }
    // Each subtask has named its own.
    contents.sources.iter_mut().for_each(|source| source.splits.sort_by(|a, b| a.split.cmp(&b.split)));
    contents
}

/// Makes sure that no manifest of this reservation appears, unless one is there: then what it holds comes back.
pub(crate) async fn mark_aborted(entry: &SnapshotEntry, reason: String) -> Result<Option<Contents>> {
    let directory = entry.directory.clone();
    let marker = AbortMarker { snapshot: entry.id.clone(), nonce: entry.nonce.clone(), reason };
    blocking(move || match abort_manifest(open_store(&directory)?.as_ref(), &marker)? {
        AbortOutcome::Aborted => Ok(None),
        AbortOutcome::Published(manifest) => {
            let bytes = encoded_bytes(&manifest)?;
            Ok(Some(Contents { manifest_bytes: bytes, ..contents(*manifest) }))
        }
    })
    .await
}

/// The same in the coordinator's words.
pub(crate) fn marked(found: Option<Contents>) -> Marked {
    if found.is_some() { Marked::Published } else { Marked::Aborted }
}

/// Reads the manifest of what an attempt starts from.
pub(crate) async fn read_named(point: RecoveryPoint) -> Result<Manifest, Unprepared> {
    let RecoveryPoint { directory, taken_as, .. } = point;
    let read = blocking(move || {
        let manifest = read_manifest(open_store(&directory)?.as_ref())?;
        check_named(&manifest, taken_as.as_ref(), &directory)?;
        Ok(manifest)
    });
    read.await.map_err(|error| if is_damage(&error) { Unprepared::Damaged(error) } else { error.into() })
}

/// Whether an error about a manifest says that it is not, or not whole, where it must be.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.code, Code::Corrupt | Code::NotFound | Code::FailedPrecondition)
}

/// Somebody may have put another snapshot in its place.
fn check_named(manifest: &Manifest, snapshot: Option<&SnapshotId>, directory: &str) -> Result<()> {
    match snapshot.filter(|snapshot| **snapshot != manifest.snapshot) {
        None => Ok(()),
        Some(snapshot) => Err(Error::new(Code::Corrupt, format!("{directory} does not hold snapshot {snapshot}"))
            .with_detail(format!("the manifest there is that of {}", manifest.snapshot))),
    }
}

/// Reads every byte of a snapshot, block by block.
///
/// # Errors
/// If its manifest cannot be read: [`is_damage`] tells whether that is damage. Damage of files is in the report.
pub(crate) async fn verify(entry: SnapshotEntry) -> Result<Report> {
    blocking(move || {
        let store = open_store(&entry.directory)?;
        let manifest = read_manifest(store.as_ref())?;
        check_named(&manifest, Some(entry.taken_as()), &entry.directory)?;
        verify_against(store.as_ref(), manifest, &mut |_bytes| {})
    })
    .await
}

/// Looks for damage in a snapshot's manifest and in the files of one operator.
///
/// # Errors
/// If it cannot be told.
pub(crate) async fn look_for_damage(entry: SnapshotEntry, operator: Option<OperatorUid>) -> Result<Option<Error>> {
    let looked = blocking(move || {
        let store = open_store(&entry.directory)?;
        let manifest = read_manifest(store.as_ref())?;
        check_named(&manifest, Some(entry.taken_as()), &entry.directory)?;
        Ok(operator.and_then(|uid| first_damage(store.as_ref(), manifest, &uid)))
    });
    match looked.await {
        Ok(Some(error)) if !matches!(error.code, Code::Corrupt | Code::NotFound) => Err(error),
        Err(error) if is_damage(&error) => Ok(Some(error)),
        other => other,
    }
}

/// Removes a snapshot: first its manifest, then its files. A directory that another snapshot has taken stays as it is.
pub(crate) async fn remove(entry: &SnapshotEntry) -> Result<()> {
    let (snapshot, directory, nonce) = (entry.id.clone(), entry.directory.clone(), entry.nonce.clone());
    let checkpoint = entry.kind == SnapshotKind::Checkpoint;
    let failed = entry.state == SnapshotState::Failed;
    blocking(move || {
        if let Some(of_the_job) = Path::new(&directory).parent().filter(|_| checkpoint && failed) {
            // Nothing refers to what it has written, and nothing will.
            delete_shared_files(of_the_job, |name| shared_file_writer(name) == Some(snapshot.as_str()))?;
        }
        if is_link(&directory) {
            tracing::warn!(%snapshot, directory, "left a symbolic link: what it leads to is somebody else's");
            return Ok(());
        }
        let store = open_store(&directory)?;
        if let Ok(manifest) = read_manifest(store.as_ref())
            && manifest.nonce != nonce
        {
            tracing::warn!(%snapshot, directory, other = %manifest.snapshot, "left a directory of another snapshot");
            return Ok(());
        }
        delete_manifest(store.as_ref())?;
        failpoint::reach("delete.manifest");
        if !delete_snapshot(store.as_ref())? {
            tracing::info!(%snapshot, directory, "left a snapshot's directory: other files are in it");
        }
        if let Some(of_the_job) = Path::new(&directory).parent().filter(|_| checkpoint) {
            // Refused unless this was the job's last checkpoint.
            let _not_empty = std::fs::remove_dir(of_the_job);
        }
        failpoint::reach("delete.files");
        Ok(())
    })
    .await
}

/// Deletes files that the checkpoints of a job have shared.
pub(crate) async fn delete_shared(checkpoint_root: &str, job: &JobId, names: Vec<String>) -> Result<()> {
    let of_the_job = Path::new(checkpoint_root).join(job.as_str());
    let names: BTreeSet<String> = names.into_iter().collect();
    blocking(move || delete_shared_files(&of_the_job, |name| names.contains(name))).await
}

/// Deletes those of the shared files of a job that are named, and the directories that are empty then.
pub(crate) fn delete_shared_files(of_the_job: &Path, named: impl Fn(&str) -> bool) -> Result<()> {
    let shared = LocalDirectory::new(of_the_job.join(SHARED_DIRECTORY));
    shared.list()?.iter().filter(|name| named(name)).try_for_each(|name| shared.delete(name))?;
    if shared.delete_directory()? {
        // Refused if there is a checkpoint of the job.
        let _not_empty = std::fs::remove_dir(of_the_job);
    }
    Ok(())
}

/// Whether a snapshot's directory was replaced by a symbolic link. Its parents may be links.
pub(crate) fn is_link(directory: &str) -> bool {
    std::fs::symlink_metadata(directory).is_ok_and(|found| found.is_symlink())
}
