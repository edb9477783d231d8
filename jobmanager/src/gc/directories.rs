//! Directories of snapshots: finding them, looking into them, sweeping them. All of it blocks.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use weir_coordination::metadata::SnapshotEntry;
use weir_state::manifest::{delete_snapshot, read_manifest};
use weir_state::open_store;
use weir_types::ids::{ClusterId, JobId, SnapshotId};
use weir_types::{Code, Error, Result};

/// What a closer look at a directory shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Bytes of the files in it.
    pub(super) bytes: u64,
    /// For how long nothing in it has changed.
    pub(super) unchanged: Duration,
    /// Why it is not this cluster's to delete, whatever its name says.
    pub(super) foreign: Option<String>,
}

/// `<root>/<job>/<snapshot>`; a root that is not there has none.
pub(super) fn checkpoints_below(root: &Path) -> Vec<(JobId, SnapshotId, PathBuf)> {
    let mut found = Vec::new();
    for (job, path) in directories(root) {
        let Ok(job) = JobId::new(job) else { continue };
        for (checkpoint, path) in directories(&path) {
            if let Ok(snapshot) = SnapshotId::new(checkpoint) {
                found.push((job.clone(), snapshot, path));
            }
        }
    }
    found
}

/// `<root>/savepoint-…`.
pub(super) fn savepoints_below(root: &Path) -> Vec<(SnapshotId, PathBuf)> {
    let named = |(name, path): (String, PathBuf)| {
        let rest = name.strip_prefix("savepoint-")?;
        SnapshotId::new(format!("sp-{rest}")).ok().map(|snapshot| (snapshot, path))
    };
    directories(root).into_iter().filter_map(named).collect()
}

/// Directories only: what a symbolic link leads to is somebody else's.
pub(super) fn directories(path: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
}

/// The names of plain files.
pub(super) fn files(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Looks into a directory that bears the name of `snapshot`; `known`: its name alone shows that it is this cluster's.
pub(super) fn look(cluster: &ClusterId, snapshot: &SnapshotId, known: bool, path: &Path) -> Result<Look> {
    let unreadable = |error: &std::io::Error| Error::io(format!("could not look into {}", path.display()), error);
    let mut bytes = 0;
    let mut changed = std::fs::symlink_metadata(path).and_then(|found| found.modified()).map_err(|e| unreadable(&e))?;
    for entry in std::fs::read_dir(path).map_err(|error| unreadable(&error))? {
        let metadata = entry.and_then(|entry| entry.metadata()).map_err(|error| unreadable(&error))?;
        bytes += metadata.len();
        changed = changed.max(metadata.modified().map_err(|error| unreadable(&error))?);
    }
    let foreign = match read_manifest(open_store(&path.to_string_lossy())?.as_ref()) {
        Ok(manifest) if manifest.cluster != *cluster => Some(format!("cluster {} wrote it", manifest.cluster)),
        Ok(manifest) if manifest.snapshot != *snapshot => Some(format!("it is a copy of {}", manifest.snapshot)),
        Ok(_) => None,
        Err(error) if error.code == Code::Corrupt || error.code == Code::Unsupported => Some(error.to_string()),
        Err(_) if known => None,
        Err(_) => Some("it has no manifest, and its name bears the id of no job of this cluster".to_owned()),
    };
    let unchanged = SystemTime::now().duration_since(changed).unwrap_or_default();
    Ok(Look { bytes, unchanged, foreign })
}

/// Removes a snapshot's files and directory, and the directory of its job if this was the last in it. False: other files are
/// in it, and so it stays.
pub(super) fn remove(path: &Path, checkpoint: bool) -> Result<bool> {
    let gone = delete_snapshot(open_store(&path.to_string_lossy())?.as_ref())?;
    if let Some(of_the_job) = path.parent().filter(|_| checkpoint) {
        // Refused unless this was the job's last checkpoint.
        let _not_empty = std::fs::remove_dir(of_the_job);
    }
    Ok(gone)
}

/// What a failed savepoint has left behind; false: nothing. A directory with a manifest is somebody else's.
pub(super) fn has_remains(entry: &SnapshotEntry) -> Result<bool> {
    let is_directory = std::fs::symlink_metadata(&entry.directory).is_ok_and(|found| found.is_dir());
    Ok(is_directory && read_manifest(open_store(&entry.directory)?.as_ref()).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> JobId {
        JobId::new(name).unwrap()
    }

    fn snapshot(name: &str) -> SnapshotId {
        SnapshotId::new(name).unwrap()
    }

    #[test]
    fn checkpoints_are_found_below_their_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("job/chk-job-1")).unwrap();
        std::fs::write(root.path().join("job/file"), "").unwrap();
        assert_eq!(
            checkpoints_below(root.path()),
            [(job("job"), snapshot("chk-job-1"), root.path().join("job/chk-job-1"))]
        );
        assert_eq!(checkpoints_below(&root.path().join("nothing")), []);
    }

    #[test]
    fn savepoints_are_found_by_name_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("savepoint-job-7")).unwrap();
        std::fs::create_dir(root.path().join("mine")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("savepoint-job-8")).unwrap();
        assert_eq!(savepoints_below(root.path()), [(snapshot("sp-job-7"), root.path().join("savepoint-job-7"))]);
    }

    #[test]
    fn a_directory_without_a_manifest_is_ours_only_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.arrow"), "12345").unwrap();
        let cluster = ClusterId::new("c").unwrap();
        let known = look(&cluster, &snapshot("sp-job-7"), true, root.path()).unwrap();
        assert_eq!((known.bytes, known.foreign), (5, None));
        let unknown = look(&cluster, &snapshot("sp-job-7"), false, root.path()).unwrap();
        assert!(unknown.foreign.is_some());
    }
}
