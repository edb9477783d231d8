//! Decides what nobody needs any more, from what is there and what the metadata names. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use weir_coordination::checkpoint::short;
use weir_coordination::metadata::{SnapshotEntry, State};
use weir_state::store::SHARED_DIRECTORY;
use weir_types::group::{CheckpointOwner, GroupCheckpointState, GroupInfo};
use weir_types::ids::{GroupName, JobId, PinHolder, SnapshotId};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::stream::StreamName;

use super::shared::{JobDirectory, KnownShared, strays};

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) groups: Vec<GroupInfo>,
    pub(super) pins: Vec<(StreamName, PinHolder)>,
    /// Directories of checkpoints: `<root>/<job>/<snapshot>`.
    pub(super) checkpoints: Vec<(JobId, SnapshotId, PathBuf)>,
    /// Directories below the savepoints' root that are named as savepoints are.
    pub(super) savepoints: Vec<(SnapshotId, PathBuf)>,
    /// Directories of jobs: `<root>/<job>`.
    pub(super) jobs: Vec<JobDirectory>,
}

/// What the metadata names.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// All jobs; true: it has ended.
    pub(super) jobs: BTreeMap<JobId, bool>,
    /// Snapshots that are under way, complete, or being removed.
    pub(super) kept: BTreeSet<SnapshotId>,
    /// The complete savepoints among them: their pins hold their cuts, and no group has to.
    pub(super) savepoints: BTreeSet<SnapshotId>,
    /// Where their files are, and where jobs were restored from that run.
    pub(super) directories: BTreeSet<PathBuf>,
    pub(super) failed_savepoints: Vec<SnapshotEntry>,
    pub(super) shared: KnownShared,
}

/// What nobody needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Garbage {
    Group(GroupName, JobId),
    GroupCheckpoint(GroupName, JobId, SnapshotId, GroupCheckpointState),
    Pin(StreamName, PinHolder),
    /// A checkpoint's directory.
    Checkpoint(SnapshotId, PathBuf),
    /// A savepoint's directory. Users copy and move them: it takes a closer look to tell whether it is the original.
    Savepoint(SnapshotId, PathBuf),
    /// What a failed savepoint has left behind, wherever its user wanted it.
    Failed(Box<SnapshotEntry>),
    /// A file that the checkpoints of a job do not share: the job's directory, and its name.
    Shared(PathBuf, String),
    /// The directory of an ended job's checkpoints, in which nothing is.
    Empty(PathBuf),
}

impl Known {
    pub(super) fn of(state: &State) -> Self {
        let entries = || state.snapshots.values();
        let failed = |entry: &&SnapshotEntry| entry.state == SnapshotState::Failed;
        let kept = || entries().filter(|entry| !failed(entry));
        let savepoints =
            entries().filter(|entry| entry.kind == SnapshotKind::Savepoint && entry.state == SnapshotState::Completed);
        let running = state.jobs.values().filter(|job| !job.state.is_terminal());
        let restored = running.filter_map(|job| job.restore.as_ref()).map(|restore| &restore.directory);
        Self {
            jobs: state.jobs.values().map(|job| (job.id.clone(), job.state.is_terminal())).collect(),
            kept: kept().map(|entry| entry.id.clone()).collect(),
            savepoints: savepoints.map(|entry| entry.id.clone()).collect(),
            directories: kept().map(|entry| &entry.directory).chain(restored).map(PathBuf::from).collect(),
            failed_savepoints: entries()
                .filter(|entry| failed(entry) && entry.kind == SnapshotKind::Savepoint)
                .cloned()
                .collect(),
            shared: KnownShared::of(state),
        }
    }

    /// Whether the name of a snapshot bears the id of one of this cluster's jobs.
    pub(super) fn is_ours(&self, snapshot: &str) -> bool {
        snapshot.split('-').nth(1).is_some_and(|of| self.jobs.keys().any(|job| short(job) == of))
    }
}

impl Garbage {
    /// What it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Garbage::Group(..) => "group",
            Garbage::GroupCheckpoint(..) => "group_checkpoint",
            Garbage::Pin(..) => "pin",
            Garbage::Checkpoint(..) | Garbage::Savepoint(..) | Garbage::Failed(_) | Garbage::Empty(_) => "directory",
            Garbage::Shared(..) => "file",
        }
    }

    /// Why nobody needs it.
    pub(super) fn reason(&self) -> String {
        match self {
            Garbage::Group(_, job) => format!("its job {job} has ended"),
            Garbage::GroupCheckpoint(_, _, snapshot, GroupCheckpointState::Outstanding) => {
                format!("snapshot {snapshot} is not under way")
            }
            Garbage::GroupCheckpoint(_, _, snapshot, _) => format!("no checkpoint {snapshot} is under way or complete"),
            Garbage::Pin(_, holder) if SnapshotId::new(holder.as_str()).is_ok() && holder.as_str().contains('-') => {
                format!("snapshot {holder} is not under way or complete")
            }
            Garbage::Pin(_, holder) => format!("job {holder} has ended"),
            Garbage::Checkpoint(snapshot, _) | Garbage::Savepoint(snapshot, _) => {
                format!("no entry of the catalogue refers to {snapshot}")
            }
            Garbage::Failed(entry) => format!("savepoint {} has failed", entry.id),
            Garbage::Shared(..) => "no checkpoint refers to it".to_owned(),
            Garbage::Empty(_) => "its job has ended".to_owned(),
        }
    }

    /// The directory, if it is one.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match self {
            Garbage::Checkpoint(_, path) | Garbage::Savepoint(_, path) => Some(path.clone()),
            Garbage::Failed(entry) => Some(PathBuf::from(&entry.directory)),
            _ => None,
        }
    }
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Garbage::Group(group, _) => write!(f, "{group}"),
            Garbage::GroupCheckpoint(group, _, snapshot, _) => write!(f, "{group}/{snapshot}"),
            Garbage::Pin(stream, holder) => write!(f, "{stream}: {holder}"),
            Garbage::Checkpoint(_, path) | Garbage::Savepoint(_, path) => write!(f, "{}", path.display()),
            Garbage::Failed(entry) => f.write_str(&entry.directory),
            Garbage::Shared(path, name) => write!(f, "{}", path.join(SHARED_DIRECTORY).join(name).display()),
            Garbage::Empty(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Decides what nobody needs.
pub(super) fn garbage(found: &Found, known: &Known) -> Vec<Garbage> {
    let is_needed = |snapshot: &SnapshotId| known.kept.contains(snapshot);
    let mut garbage = Vec::new();
    for group in &found.groups {
        let Some((job, ended)) = group.mode.job().and_then(|job| known.jobs.get_key_value(job)) else { continue };
        if *ended {
            garbage.push(Garbage::Group(group.name.clone(), job.clone()));
            continue;
        }
        let checkpoints = group.checkpoints.iter().filter(|checkpoint| {
            matches!(checkpoint.state, GroupCheckpointState::Outstanding | GroupCheckpointState::Completed)
                && checkpoint.owner == CheckpointOwner::Job(job.clone())
                && (!is_needed(&checkpoint.id) || known.savepoints.contains(&checkpoint.id))
        });
        garbage.extend(checkpoints.map(|checkpoint| {
            Garbage::GroupCheckpoint(group.name.clone(), job.clone(), checkpoint.id.clone(), checkpoint.state)
        }));
    }
    for (stream, holder) in &found.pins {
        let snapshot = SnapshotId::new(holder.as_str()).ok().filter(|_| known.is_ours(holder.as_str()));
        // Until its first snapshot a job itself holds the pin of its start.
        let of_ended = JobId::new(holder.as_str()).is_ok_and(|job| known.jobs.get(&job) == Some(&true));
        if of_ended || snapshot.is_some_and(|snapshot| !is_needed(&snapshot)) {
            garbage.push(Garbage::Pin(stream.clone(), holder.clone()));
        }
    }
    let unused = |snapshot: &SnapshotId, path| !is_needed(snapshot) && !known.directories.contains(path);
    for (job, snapshot, path) in &found.checkpoints {
        if known.jobs.contains_key(job) && known.is_ours(snapshot.as_str()) && unused(snapshot, path) {
            garbage.push(Garbage::Checkpoint(snapshot.clone(), path.clone()));
        }
    }
    let failed: BTreeSet<PathBuf> =
        known.failed_savepoints.iter().map(|entry| PathBuf::from(&entry.directory)).collect();
    for (snapshot, path) in &found.savepoints {
        if unused(snapshot, path) && !failed.contains(path) {
            garbage.push(Garbage::Savepoint(snapshot.clone(), path.clone()));
        }
    }
    let failed =
        known.failed_savepoints.iter().filter(|entry| !known.directories.contains(Path::new(&entry.directory)));
    garbage.extend(failed.cloned().map(|entry| Garbage::Failed(Box::new(entry))));
    garbage.extend(strays(&found.jobs, &known.shared, &known.jobs));
    garbage
}

#[cfg(test)]
mod tests {
    use weir_types::group::{GroupCheckpoint, GroupLimits, GroupMode};
    use weir_types::stream::StreamCut;

    use super::*;

    fn job(name: &str) -> JobId {
        JobId::new(name).unwrap()
    }

    fn snapshot(name: &str) -> SnapshotId {
        SnapshotId::new(name).unwrap()
    }

    fn group(owner: &str, checkpoints: &[(&str, GroupCheckpointState)]) -> GroupInfo {
        let checkpoint = |(id, state): &(&str, GroupCheckpointState)| GroupCheckpoint {
            id: snapshot(id),
            owner: if id.starts_with("user") {
                CheckpointOwner::User("ann".to_owned())
            } else {
                CheckpointOwner::Job(job(owner))
            },
            started_at_ms: 0,
            deadline_ms: 1,
            state: *state,
            offsets: StreamCut::default(),
            missing: Vec::new(),
        };
        GroupInfo {
            name: GroupName::new(format!("group-{owner}")).unwrap(),
            stream: "s/t".parse().unwrap(),
            mode: GroupMode::Managed { job: job(owner) },
            limits: GroupLimits::default(),
            version: 1,
            attempt: None,
            members: Vec::new(),
            unowned: Vec::new(),
            positions: StreamCut::default(),
            checkpoints: checkpoints.iter().map(checkpoint).collect(),
        }
    }

    fn known() -> Known {
        Known {
            jobs: BTreeMap::from([(job("aaaaaaaa1"), false), (job("bbbbbbbb1"), true)]),
            kept: ["chk-aaaaaaaa-3", "sp-aaaaaaaa-4", "sp-aaaaaaaa-5", "sp-bbbbbbbb-2"].map(snapshot).into(),
            savepoints: ["sp-aaaaaaaa-4", "sp-bbbbbbbb-2"].map(snapshot).into(),
            directories: [PathBuf::from("/savepoints/savepoint-aaaaaaaa-9")].into(),
            failed_savepoints: Vec::new(),
            shared: KnownShared::default(),
        }
    }

    #[test]
    fn groups_of_ended_jobs_and_checkpoints_of_failed_snapshots_go() {
        use GroupCheckpointState::{Cancelled, Completed, Outstanding};
        let running = group(
            "aaaaaaaa1",
            &[
                ("chk-aaaaaaaa-1", Outstanding),
                ("chk-aaaaaaaa-2", Completed),
                ("chk-aaaaaaaa-3", Outstanding),
                // A savepoint that is complete is held by its pin; one that is under way needs its place.
                ("sp-aaaaaaaa-4", Completed),
                ("sp-aaaaaaaa-5", Completed),
                ("chk-aaaaaaaa-0", Cancelled),
                ("user-1", Outstanding),
            ],
        );
        let name = running.name.clone();
        let ended = group("bbbbbbbb1", &[("sp-bbbbbbbb-2", Completed)]);
        let strange = group("cccccccc1", &[("chk-cccccccc-1", Outstanding)]);
        let of_ended = ended.name.clone();
        let found = Found { groups: vec![running, ended, strange], ..Found::default() };
        let checkpoint = |id, state| Garbage::GroupCheckpoint(name.clone(), job("aaaaaaaa1"), snapshot(id), state);
        assert_eq!(
            garbage(&found, &known()),
            [
                checkpoint("chk-aaaaaaaa-1", Outstanding),
                checkpoint("chk-aaaaaaaa-2", Completed),
                checkpoint("sp-aaaaaaaa-4", Completed),
                Garbage::Group(of_ended, job("bbbbbbbb1")),
            ]
        );
    }

    #[test]
    fn pins_and_directories_go_unless_the_catalogue_or_a_stranger_holds_them() {
        let stream: StreamName = "s/t".parse().unwrap();
        let pin = |holder: &str| (stream.clone(), PinHolder::new(holder).unwrap());
        let directory = |of: &str, id: &str| (job(of), snapshot(id), PathBuf::from(format!("/snapshots/{of}/{id}")));
        let found = Found {
            pins: [
                "aaaaaaaa1",
                "bbbbbbbb1",
                "chk-aaaaaaaa-2",
                "chk-aaaaaaaa-3",
                "sp-bbbbbbbb-2",
                "chk-bbbbbbbb-1",
                "sp-cccccccc-1",
                "ann",
            ]
            .map(pin)
            .into(),
            checkpoints: vec![
                directory("aaaaaaaa1", "chk-aaaaaaaa-2"),
                directory("aaaaaaaa1", "chk-aaaaaaaa-3"),
                directory("aaaaaaaa1", "notes"),
                directory("cccccccc1", "chk-cccccccc-1"),
            ],
            savepoints: ["aaaaaaaa-9", "aaaaaaaa-8", "cccccccc-1", "bbbbbbbb-2"]
                .map(|rest| (snapshot(&format!("sp-{rest}")), PathBuf::from(format!("/savepoints/savepoint-{rest}"))))
                .into(),
            ..Found::default()
        };
        let savepoint = |rest: &str| {
            Garbage::Savepoint(snapshot(&format!("sp-{rest}")), PathBuf::from(format!("/savepoints/savepoint-{rest}")))
        };
        assert_eq!(
            garbage(&found, &known()),
            [
                Garbage::Pin(stream.clone(), PinHolder::new("bbbbbbbb1").unwrap()),
                Garbage::Pin(stream.clone(), PinHolder::new("chk-aaaaaaaa-2").unwrap()),
                Garbage::Pin(stream.clone(), PinHolder::new("chk-bbbbbbbb-1").unwrap()),
                Garbage::Checkpoint(snapshot("chk-aaaaaaaa-2"), PathBuf::from("/snapshots/aaaaaaaa1/chk-aaaaaaaa-2")),
                // Where a running job was restored from is nobody's garbage, in the catalogue or not.
                savepoint("aaaaaaaa-8"),
                savepoint("cccccccc-1"),
            ]
        );
    }
}
