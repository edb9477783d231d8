//! Directories of jobs' checkpoints: which shared files are nobody's, and which directories are empty for ever. Pure, but
//! for finding them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use weir_coordination::metadata::State;
use weir_state::store::SHARED_DIRECTORY;
use weir_types::ids::{JobId, SnapshotId};
use weir_types::snapshot::{SnapshotState, shared_file_writer};

use super::directories::{directories, files};
use super::judge::Garbage;

/// The directory of one job's checkpoints.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JobDirectory {
    pub(super) job: JobId,
    pub(super) path: PathBuf,
    /// The files that checkpoints share.
    pub(super) shared: Vec<String>,
    /// Nothing else is in it.
    pub(super) bare: bool,
}

/// What the metadata names.
#[derive(Debug, Default)]
pub(super) struct KnownShared {
    /// Shared files by their jobs, those that are about to be deleted included.
    pub(super) files: BTreeMap<JobId, BTreeSet<String>>,
    /// Snapshots under way: nobody knows yet what they have written.
    pub(super) in_flight: BTreeSet<SnapshotId>,
}

impl KnownShared {
    pub(super) fn of(state: &State) -> Self {
        let mut files: BTreeMap<JobId, BTreeSet<String>> = BTreeMap::new();
        for (job, name, _) in state.shared.iter() {
            files.entry(job.clone()).or_default().insert(name.to_owned());
        }
        let under_way =
            state.snapshots.values().filter(|e| matches!(e.state, SnapshotState::Queued | SnapshotState::InProgress));
        Self { files, in_flight: under_way.map(|entry| entry.id.clone()).collect() }
    }

    fn is_named(&self, job: &JobId, name: &str) -> bool {
        self.files.get(job).is_some_and(|files| files.contains(name))
            || shared_file_writer(name).is_none_or(|writer| self.in_flight.iter().any(|it| it.as_str() == writer))
    }
}

/// `<root>/<job>`; a root that is not there has none.
pub(super) fn job_directories(root: &Path) -> Vec<JobDirectory> {
    let mut found = Vec::new();
    for (job, path) in directories(root) {
        let Ok(job) = JobId::new(job) else { continue };
        let bare = files(&path).is_empty() && directories(&path).iter().all(|(name, _)| name == SHARED_DIRECTORY);
        found.push(JobDirectory { job, shared: files(&path.join(SHARED_DIRECTORY)), path, bare });
    }
    found
}

/// What nobody needs of directories; `jobs` says of each job whether it has ended.
pub(super) fn strays(found: &[JobDirectory], known: &KnownShared, jobs: &BTreeMap<JobId, bool>) -> Vec<Garbage> {
    let mut garbage = Vec::new();
    for JobDirectory { job, path, shared, bare } in found {
        let Some(ended) = jobs.get(job) else { continue };
        let strays = shared.iter().filter(|name| !known.is_named(job, name));
        garbage.extend(strays.map(|name| Garbage::Shared(path.clone(), name.clone())));
        if *ended && *bare && shared.is_empty() {
            garbage.push(Garbage::Empty(path.clone()));
        }
    }
    garbage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_files_go_unless_the_metadata_names_them_or_their_writer_is_under_way() {
        let root = tempfile::tempdir().unwrap();
        let job = |name: &str| JobId::new(name).unwrap();
        let shared = root.path().join("a/shared");
        std::fs::create_dir_all(&shared).unwrap();
        for name in ["chk-a-1+kept", "chk-a-1+stray", "chk-a-2+new", "chk-a-0+late", "notes.txt"] {
            std::fs::write(shared.join(name), "").unwrap();
        }
        for empty in ["b/shared", "c/shared", "d"] {
            std::fs::create_dir_all(root.path().join(empty)).unwrap();
        }
        std::fs::create_dir(root.path().join("c/chk-c-1")).unwrap();
        std::fs::create_dir_all(root.path().join("stranger/shared")).unwrap();
        std::fs::write(root.path().join("stranger/shared/chk-s-1+x"), "").unwrap();
        let known = KnownShared {
            files: [(job("a"), BTreeSet::from(["chk-a-1+kept".to_owned()]))].into(),
            in_flight: [SnapshotId::new("chk-a-2").unwrap()].into(),
        };
        let jobs = [("a", false), ("b", true), ("c", true), ("d", true)].map(|(name, ended)| (job(name), ended)).into();
        let stray = |name: &str| Garbage::Shared(root.path().join("a"), name.to_owned());
        let mut found = strays(&job_directories(root.path()), &known, &jobs);
        found.sort_by_key(ToString::to_string);
        let empty = |name: &str| Garbage::Empty(root.path().join(name));
        assert_eq!(found, [stray("chk-a-0+late"), stray("chk-a-1+stray"), empty("b"), empty("d")]);
    }
}
