//! A savepoint of another cluster on storage: looked at as a whole, then copied, its manifest last.
//!
//! Invariants: nothing of what is looked at is trusted, and nothing there is changed: its files stay their owner's. Only the
//! files that its manifest names are copied, each of them whole. All of it blocks, so all of it runs beside the loop.

use std::collections::BTreeSet;
use std::io::Write;

use weir_coordination::checkpoint::Contents;
use weir_coordination::metadata::{Origin, SnapshotEntry};
use weir_service::failpoint;
use weir_state::file::EXTENSION;
use weir_state::manifest::{MANIFEST, Manifest, encoded_bytes, publish_manifest, read_manifest, verify_snapshot};
use weir_state::open_store;
use weir_state::store::SnapshotStore;
use weir_types::snapshot::{SnapshotKind, StateFile};
use weir_types::splits::SPLITS_MAX;
use weir_types::{Code, Error, Result};

use crate::stoppable::{Stop, Stoppable};
use crate::storage::{self, blocking};

/// What is copied at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Longest name that a manifest may have for anything.
const NAME_BYTES_MAX: usize = 1_024;
/// Where Flink's savepoints have their own manifest.
const FLINK: &str = "_metadata";

/// A savepoint that is whole.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) manifest: Manifest,
    pub(crate) origin: Origin,
    /// Bytes of all files and of the manifest.
    pub(crate) bytes: u64,
}

/// Checks what a user calls a savepoint's directory.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub(crate) fn check_directory(directory: &str) -> Result<()> {
    let hostile = directory.split('/').any(|part| part == "..") || directory.chars().any(char::is_control);
    if !hostile && (directory.starts_with('/') || directory.contains("://")) {
        return Ok(());
    }
    Err(Error::invalid(format!("{directory:?} is not a savepoint's directory"))
        .with_hint("Paths must be absolute, without `..`."))
}

/// Reads every byte of a savepoint.
///
/// # Errors
/// `NOT_FOUND` if there is none, or not all of it; `CORRUPT`; `UNSUPPORTED` for a newer format, and for Flink's;
/// `FAILED_PRECONDITION` for a checkpoint, and for what was aborted.
/// Ends early when it is stopped.
pub(crate) async fn examine(directory: String, stop: Stop) -> Result<Examined> {
    blocking(move || {
        let store = Stoppable { store: open_store(&directory)?, stop: stop.clone() };
        // Regular files only: whoever opens a pipe waits for its other end.
        let names: BTreeSet<String> = store.list()?.into_iter().collect();
        if !names.contains(MANIFEST) {
            return Err(no_savepoint(&directory, &names));
        }
        let manifest = read_manifest(&store)?;
        check_manifest(&directory, &manifest, &names)?;
        let manifest = verify_snapshot(&store);
        stop.check()?;
        let manifest = manifest?;
        let origin = Origin {
            cluster: manifest.cluster.clone(),
            snapshot: manifest.snapshot.clone(),
            job: manifest.job.clone(),
            taken_at: manifest.created_at,
            directory,
        };
        let bytes = manifest.totals().bytes.saturating_add(encoded_bytes(&manifest)?);
        Ok(Examined { manifest, origin, bytes })
    })
    .await
}

fn no_savepoint(directory: &str, names: &BTreeSet<String>) -> Error {
    if names.contains(FLINK) {
        return Error::new(Code::Unsupported, format!("{directory} is a savepoint of Flink"))
            .with_hint("Weir cannot read Flink's state; start the job anew.");
    }
    Error::not_found(format!("there is no savepoint in {directory}"))
        .with_detail(format!("it has no file {MANIFEST}, or the JobManager cannot see it"))
        .with_hint("Give the savepoint's own directory, the one with manifest.json in it.")
}

/// Whether a manifest that may be anybody's is one that this cluster can make its own.
fn check_manifest(directory: &str, manifest: &Manifest, names: &BTreeSet<String>) -> Result<()> {
    let refused = |what: &str| Error::new(Code::FailedPrecondition, format!("{directory} {what}"));
    if manifest.kind != SnapshotKind::Savepoint {
        return Err(refused("is a checkpoint, and only savepoints are imported")
            .with_hint("`weir run -s` restores from it where it is."));
    }
    let corrupt = |what: String| {
        Error::new(Code::Corrupt, format!("manifest {directory}/{MANIFEST} is damaged")).with_detail(what)
    };
    let mut seen = BTreeSet::new();
    for StateFile { path, .. } in manifest.files() {
        if path.contains(['/', '\\', '\0']) || path.starts_with('.') || !path.ends_with(EXTENSION) {
            return Err(corrupt(format!("{path:?} is not a file name of a savepoint")));
        }
        if !seen.insert(path) {
            return Err(corrupt(format!("it names {path:?} twice")));
        }
        if !names.contains(path) {
            return Err(Error::not_found(format!("file {directory}/{path} does not exist"))
                .with_hint("A savepoint is the whole directory: check that it was copied completely."));
        }
    }
    let splits = || manifest.operators.iter().flat_map(|operator| &operator.splits);
    if splits().count() as u64 > SPLITS_MAX * manifest.operators.len().max(1) as u64 {
        return Err(corrupt("it has more positions than sources can have".to_owned()));
    }
    let texts = [&manifest.job_name, &manifest.nonce.0, &manifest.graph_hash].into_iter();
    let texts = texts.chain(manifest.operators.iter().map(|operator| &operator.uid));
    let texts = texts.chain(manifest.files().map(|file| &file.table));
    for text in texts.chain(splits().map(|split| &split.split)) {
        if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(corrupt(format!("{:?} is no name", text.chars().take(80).collect::<String>())));
        }
    }
    Ok(())
}

/// Copies an admitted savepoint; what it holds. If that fails, or is stopped before the manifest is written, no manifest is
/// there, and none can appear.
pub(crate) async fn copy(entry: SnapshotEntry, origin: Origin, stop: Stop) -> Result<Contents> {
    let (from, to) = (origin.directory, entry.directory.clone());
    let nonce = entry.nonce.clone();
    let copied = blocking(move || {
        let source = Stoppable { store: open_store(&from)?, stop: stop.clone() };
        let target = Stoppable { store: open_store(&to)?, stop };
        let manifest = read_manifest(&source)?;
        if manifest.nonce != nonce {
            return Err(Error::new(Code::FailedPrecondition, format!("{from} holds another savepoint by now")));
        }
        target.prepare()?;
        for file in manifest.files() {
            copy_file(&source, &target, file)?;
        }
        target.sync()?;
        failpoint::reach("import.files");
        publish_manifest(&target, &manifest)?;
        failpoint::reach("import.manifest");
        let manifest_bytes = encoded_bytes(&manifest)?;
        Ok(Contents { manifest_bytes, ..storage::contents(manifest) })
    });
    match copied.await {
        Ok(contents) => Ok(contents),
        Err(error) => match storage::mark_aborted(&entry, error.to_string()).await {
            Ok(Some(contents)) => Ok(contents),
            Ok(None) => Err(error),
            Err(unmarked) => {
                tracing::warn!(snapshot = %entry.id, code = %unmarked.code, error = %unmarked, "could not write the abort marker");
                Err(error)
            }
        },
    }
}

fn copy_file(source: &dyn SnapshotStore, target: &dyn SnapshotStore, file: &StateFile) -> Result<()> {
    let stored = source.open(&file.path)?;
    if stored.len()? != file.bytes {
        return Err(Error::new(Code::Corrupt, format!("file {} has changed", source.describe(&file.path))));
    }
    let mut new = target.create(&file.path)?;
    let mut offset = 0;
    while offset < file.bytes {
        let bytes = (file.bytes - offset).min(CHUNK_BYTES);
        let chunk = stored.read(offset, bytes as usize)?;
        let written = new.write_all(&chunk);
        written.map_err(|error| Error::io(format!("could not write {}", target.describe(&file.path)), &error))?;
        offset += bytes;
    }
    new.finish()
}

#[cfg(test)]
mod tests {
    use weir_types::ids::{BarrierId, ClusterId, JobId, Nonce, Parallelism, SnapshotId};
    use weir_types::snapshot::{OperatorSnapshot, SplitPosition};
    use weir_types::time::Millis;

    use super::*;
    use crate::stoppable::Stopper;

    /// A manifest of an operator without files.
    fn manifest() -> Manifest {
        Manifest {
            cluster: ClusterId::new("far").unwrap(),
            job: JobId::new("abcdefgh").unwrap(),
            job_name: "clicks".to_owned(),
            snapshot: SnapshotId::new("sp-abcdefgh-7").unwrap(),
            kind: SnapshotKind::Savepoint,
            barrier: BarrierId(7),
            nonce: Nonce("n".to_owned()),
            created_at: Millis(1),
            parallelism: Parallelism::ONE,
            graph_hash: "0123456789abcdef".to_owned(),
            query: None,
            operators: vec![OperatorSnapshot {
                uid: "aa".to_owned(),
                watermark_ms: 0,
                files: Vec::new(),
                splits: Vec::new(),
                prepared: None,
            }],
        }
    }

    fn file(path: &str) -> StateFile {
        StateFile {
            path: path.to_owned(),
            table: "t".to_owned(),
            bytes: 3,
            rows: 0,
            crc32c: 0,
            deletes: false,
            segments: None,
            live_from: None,
            blocks: Vec::new(),
        }
    }

    async fn looked_at(directory: &str) -> Result<Examined> {
        let stopper = Stopper::default();
        examine(directory.to_owned(), stopper.token()).await
    }

    async fn examined(manifest: &Manifest) -> Result<Examined> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        std::fs::write(directory.path().join("a.state.arrow"), "abc").unwrap();
        publish_manifest(open_store(path).unwrap().as_ref(), manifest).unwrap();
        looked_at(path).await
    }

    #[tokio::test]
    async fn what_is_whole_is_measured() {
        let manifest = manifest();
        let found = examined(&manifest).await.unwrap();
        assert_eq!((&found.manifest, found.bytes), (&manifest, encoded_bytes(&manifest).unwrap()));
        assert_eq!((found.origin.cluster, found.origin.snapshot), (manifest.cluster, manifest.snapshot));
    }

    #[tokio::test]
    async fn what_is_stopped_ends_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        publish_manifest(open_store(path).unwrap().as_ref(), &manifest()).unwrap();
        let stopper = Stopper::default();
        stopper.stop(Error::new(Code::Cancelled, "enough"));
        assert_eq!(examine(path.to_owned(), stopper.token()).await.unwrap_err().code, Code::Cancelled);
    }

    #[tokio::test]
    async fn hostile_names_are_refused_before_anything_is_opened() {
        for path in ["../../x.state.arrow", "/etc/passwd", "..", ".x.state.arrow", "manifest.json", "a/b.state.arrow"] {
            let mut hostile = manifest();
            hostile.operators[0].files.push(file(path));
            let error = examined(&hostile).await.unwrap_err();
            assert_eq!(error.code, Code::Corrupt, "{path}");
            assert_eq!(error.detail, Some(format!("{path:?} is not a file name of a savepoint")));
        }
        let mut twice = manifest();
        twice.operators[0].files = vec![file("a.state.arrow"), file("a.state.arrow")];
        assert_eq!(examined(&twice).await.unwrap_err().detail.unwrap(), "it names \"a.state.arrow\" twice");
        let mut missing = manifest();
        missing.operators[0].files.push(file("b.state.arrow"));
        assert_eq!(examined(&missing).await.unwrap_err().code, Code::NotFound);
        let mut damaged = manifest();
        damaged.operators[0].files.push(file("a.state.arrow"));
        assert_eq!(examined(&damaged).await.unwrap_err().code, Code::Corrupt);
    }

    #[tokio::test]
    async fn texts_that_could_harm_whoever_reads_them_are_refused() {
        type Spoil = fn(&mut Manifest);
        let spoils: [Spoil; 5] = [
            |manifest| manifest.job_name = "a\u{1b}[2J".to_owned(),
            |manifest| manifest.job_name = String::new(),
            |manifest| manifest.nonce.0 = "x".repeat(2_000),
            |manifest| manifest.graph_hash = "a\nb".to_owned(),
            |manifest| {
                let split = "p-0\r".to_owned();
                let position = SplitPosition { split, offset: 0, end: None, watermark_ms: 0, finished: false };
                manifest.operators[0].splits.push(position);
            },
        ];
        for spoil in spoils {
            let mut spoilt = manifest();
            spoil(&mut spoilt);
            assert_eq!(examined(&spoilt).await.unwrap_err().code, Code::Corrupt, "{spoilt:?}");
        }
    }

    #[tokio::test]
    async fn checkpoints_flinks_savepoints_and_pipes_are_none() {
        let checkpoint = Manifest { kind: SnapshotKind::Checkpoint, ..manifest() };
        assert_eq!(examined(&checkpoint).await.unwrap_err().code, Code::FailedPrecondition);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        assert_eq!(looked_at(&path).await.unwrap_err().code, Code::NotFound);
        // Opening what a link leads to, or a pipe, could wait for ever.
        std::os::unix::fs::symlink("/dev/zero", directory.path().join(MANIFEST)).unwrap();
        assert_eq!(looked_at(&path).await.unwrap_err().code, Code::NotFound);
        std::fs::write(directory.path().join(FLINK), "").unwrap();
        assert_eq!(looked_at(&path).await.unwrap_err().code, Code::Unsupported);
        assert_eq!(looked_at("s3://bucket/x").await.unwrap_err().code, Code::Unsupported);
        for hostile in ["", "relative", "/a/../b", "/a\nb", ".."] {
            assert_eq!(check_directory(hostile).unwrap_err().code, Code::InvalidArgument, "{hostile:?}");
        }
    }
}
