//! Snapshots on storage: manifests, abort markers, deletion. All of it blocks, so all of it runs beside the loop.

use std::path::Path;

use prost::Message;
use weir_coordination::checkpoint::{Contents, Marked};
use weir_coordination::metadata::{JobRecord, SnapshotEntry};
use weir_state::manifest::{
    AbortMarker, AbortOutcome, Manifest, abort_manifest, delete_snapshot, publish_manifest, read_manifest,
};
use weir_state::open_store;
use weir_types::graph::JobGraph;
use weir_types::ids::ClusterId;
use weir_types::snapshot::SnapshotKind;
use weir_types::{Error, Result};

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
        graph_hash: format!("{:016x}", graph_hash(&job.graph)),
        query: Some(job.sql.clone()),
        operators: contents.operators,
    }
}

fn graph_hash(graph: &JobGraph) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&weir_proto::pb::graph::v1::JobGraph::from(graph).encode_to_vec())
}

/// Creates the manifest of a snapshot whose files are all durable.
pub(crate) async fn publish(directory: String, manifest: Manifest) -> Result<()> {
    blocking(move || publish_manifest(open_store(&directory)?.as_ref(), &manifest)).await
}

/// What a manifest without its acknowledgements says.
fn contents(manifest: Manifest) -> Contents {
    let totals = manifest.totals();
    let mut contents = Contents { bytes: totals.bytes, rows: totals.rows, ..Contents::default() };
    for operator in &manifest.operators {
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
    contents.operators = manifest.operators;
    contents
}

/// Makes sure that no manifest of this reservation appears, unless one is there: then what it holds comes back.
pub(crate) async fn mark_aborted(entry: &SnapshotEntry, reason: String) -> Result<Option<Contents>> {
    let directory = entry.directory.clone();
    let marker = AbortMarker { snapshot: entry.id.clone(), nonce: entry.nonce.clone(), reason };
    blocking(move || match abort_manifest(open_store(&directory)?.as_ref(), &marker)? {
        AbortOutcome::Aborted => Ok(None),
        AbortOutcome::Published(manifest) => Ok(Some(contents(*manifest))),
    })
    .await
}

/// The same in the coordinator's words.
pub(crate) fn marked(found: Option<Contents>) -> Marked {
    if found.is_some() { Marked::Published } else { Marked::Aborted }
}

/// Reads the manifest of a snapshot.
pub(crate) async fn read(directory: String) -> Result<Manifest> {
    blocking(move || read_manifest(open_store(&directory)?.as_ref())).await
}

/// Removes a snapshot: first its manifest, then its files. A directory that another snapshot has taken stays as it is.
pub(crate) async fn remove(entry: &SnapshotEntry) -> Result<()> {
    let (snapshot, directory, nonce) = (entry.id.clone(), entry.directory.clone(), entry.nonce.clone());
    let checkpoint = entry.kind == SnapshotKind::Checkpoint;
    blocking(move || {
        let store = open_store(&directory)?;
        if let Ok(manifest) = read_manifest(store.as_ref())
            && manifest.nonce != nonce
        {
            tracing::warn!(%snapshot, directory, other = %manifest.snapshot, "left a directory of another snapshot");
            return Ok(());
        }
        if !delete_snapshot(store.as_ref())? {
            tracing::info!(%snapshot, directory, "left a snapshot's directory: other files are in it");
        }
        if let Some(of_the_job) = Path::new(&directory).parent().filter(|_| checkpoint) {
            // Refused unless this was the job's last checkpoint.
            let _not_empty = std::fs::remove_dir(of_the_job);
        }
        Ok(())
    })
    .await
}
