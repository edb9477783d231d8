//! Gives back what no job and no entry of the catalogue needs any more: reader groups, group checkpoints and pins in the
//! store, directories of snapshots. Whoever ends something tries to clean up at once; a crash or a store that is down
//! leaves it to the collector, which runs when a JobManager begins to lead, after every failure, and now and then.
//!
//! Invariant: everything is committed before it is made. So what is there is listed first and the metadata is read
//! afterwards: what it does not name then is nobody's for ever. Only what bears the id of one of this cluster's own jobs
//! is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use weir_coordination::checkpoint::short;
use weir_coordination::metadata::SnapshotEntry;
use weir_replication::Node;
use weir_service::Shutdown;
use weir_state::manifest::{delete_snapshot, read_manifest};
use weir_state::open_store;
use weir_stream_store::client::StoreClient;
use weir_types::group::{CheckpointOwner, GroupCheckpointState, GroupInfo};
use weir_types::ids::{GroupName, JobId, PinHolder, SnapshotId};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::stream::StreamName;
use weir_types::{Code, Error, Result};

use crate::metadata::Machine;
use crate::storage;

/// How often it looks without being asked.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long whoever ended something may take to clean up by itself.
const SETTLE: Duration = Duration::from_millis(500);
/// After which time it looks again if the store did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Looks for garbage and removes it.
pub(crate) struct Collector {
    pub(crate) store: StoreClient,
    pub(crate) node: Node<Machine>,
    pub(crate) checkpoint_root: String,
    /// Notified when something was ended.
    pub(crate) garbage: Arc<Notify>,
}

/// What is there.
#[derive(Debug, Default)]
struct Found {
    groups: Vec<GroupInfo>,
    pins: Vec<(StreamName, PinHolder)>,
    /// Directories of checkpoints.
    directories: Vec<(JobId, SnapshotId, PathBuf)>,
}

/// What the metadata names.
#[derive(Debug, Default)]
struct Known {
    /// All jobs; true: it has ended.
    jobs: BTreeMap<JobId, bool>,
    /// Snapshots that are under way, complete, or being removed.
    kept: BTreeSet<SnapshotId>,
    failed_savepoints: Vec<SnapshotEntry>,
}

/// What nobody needs.
#[derive(Debug, PartialEq)]
enum Garbage {
    Group(GroupName, JobId),
    GroupCheckpoint(GroupName, JobId, SnapshotId, GroupCheckpointState),
    Pin(StreamName, PinHolder),
    Directory(PathBuf),
}

impl Collector {
    /// Runs until `shutdown` is requested.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut failures = 0_u32;
        loop {
            let pause = match self.collect().await {
                Ok(()) => {
                    failures = 0;
                    INTERVAL
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(code = %error.code, %error, "could not look for garbage, trying again");
                    }
                    RETRY
                }
            };
            let asked = async {
                self.garbage.notified().await;
                tokio::time::sleep(SETTLE).await;
            };
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(pause) => {}
                () = asked => {}
            }
        }
    }

    async fn collect(&self) -> Result<()> {
        let found = self.found().await?;
        let known = self.known();
        for garbage in garbage(&found, &known) {
            match self.remove(&garbage).await {
                Ok(()) => tracing::info!(?garbage, "removed what nobody needs any more"),
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        storage::blocking(move || known.failed_savepoints.iter().try_for_each(remove_failed)).await
    }

    async fn found(&self) -> Result<Found> {
        let root = PathBuf::from(&self.checkpoint_root);
        let directories = storage::blocking(move || Ok(checkpoints_below(&root))).await?;
        let streams: BTreeSet<StreamName> = self.node.read(|machine| {
            let sources = machine.0.jobs.values().flat_map(|job| &job.sources);
            sources.filter_map(|source| Some(source.group.as_ref()?.stream.clone())).collect()
        });
        if streams.is_empty() {
            return Ok(Found { directories, ..Found::default() });
        }
        let groups = self.store.list_groups(None).await?;
        let mut pins = Vec::new();
        for stream in streams {
            match self.store.pins(&stream).await {
                Ok(found) => pins.extend(found.into_iter().map(|pin| (stream.clone(), pin.holder))),
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Found { groups, pins, directories })
    }

    fn known(&self) -> Known {
        self.node.read(|machine| {
            let state = &machine.0;
            let entries = || state.snapshots.values();
            let failed = |entry: &&SnapshotEntry| entry.state == SnapshotState::Failed;
            Known {
                jobs: state.jobs.values().map(|job| (job.id.clone(), job.state.is_terminal())).collect(),
                kept: entries().filter(|entry| !failed(entry)).map(|entry| entry.id.clone()).collect(),
                failed_savepoints: entries()
                    .filter(|entry| failed(entry) && entry.kind == SnapshotKind::Savepoint)
                    .cloned()
                    .collect(),
            }
        })
    }

    async fn remove(&self, garbage: &Garbage) -> Result<()> {
        match garbage {
            Garbage::Group(group, job) => self.store.delete_group(group, Some(job), true).await,
            Garbage::GroupCheckpoint(group, job, snapshot, GroupCheckpointState::Outstanding) => {
                self.store.cancel_checkpoint(group, snapshot, Some(job)).await.map(drop)
            }
            Garbage::GroupCheckpoint(group, job, snapshot, _) => {
                self.store.release_checkpoint(group, snapshot, Some(job)).await.map(drop)
            }
            Garbage::Pin(stream, holder) => self.store.unpin(stream, holder).await,
            Garbage::Directory(path) => {
                let path = path.clone();
                storage::blocking(move || {
                    delete_snapshot(open_store(&path.to_string_lossy())?.as_ref())?;
                    if let Some(of_the_job) = path.parent() {
                        // Refused unless this was the job's last checkpoint.
                        let _not_empty = std::fs::remove_dir(of_the_job);
                    }
                    Ok(())
                })
                .await
            }
        }
    }
}

/// Decides what nobody needs.
fn garbage(found: &Found, known: &Known) -> Vec<Garbage> {
    let shorts: BTreeSet<&str> = known.jobs.keys().map(short).collect();
    let is_ours = |id: &str| id.split('-').nth(1).is_some_and(|job| shorts.contains(job));
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
                && !is_needed(&checkpoint.id)
        });
        garbage.extend(checkpoints.map(|checkpoint| {
            Garbage::GroupCheckpoint(group.name.clone(), job.clone(), checkpoint.id.clone(), checkpoint.state)
        }));
    }
    for (stream, holder) in &found.pins {
        let snapshot = SnapshotId::new(holder.as_str()).ok().filter(|_| is_ours(holder.as_str()));
        // Until its first snapshot a job itself holds the pin of its start.
        let of_ended = JobId::new(holder.as_str()).is_ok_and(|job| known.jobs.get(&job) == Some(&true));
        if of_ended || snapshot.is_some_and(|snapshot| !is_needed(&snapshot)) {
            garbage.push(Garbage::Pin(stream.clone(), holder.clone()));
        }
    }
    for (job, snapshot, path) in &found.directories {
        if known.jobs.contains_key(job) && is_ours(snapshot.as_str()) && !is_needed(snapshot) {
            garbage.push(Garbage::Directory(path.clone()));
        }
    }
    garbage
}

/// `<root>/<job>/<snapshot>`; a root that is not there has none.
fn checkpoints_below(root: &Path) -> Vec<(JobId, SnapshotId, PathBuf)> {
    let directories = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    for of_the_job in directories(root) {
        let Ok(job) = JobId::new(of_the_job.file_name().to_string_lossy()) else { continue };
        for checkpoint in directories(&of_the_job.path()) {
            if let Ok(snapshot) = SnapshotId::new(checkpoint.file_name().to_string_lossy()) {
                found.push((job.clone(), snapshot, checkpoint.path()));
            }
        }
    }
    found
}

/// What a failed savepoint has left behind. A directory with a manifest is somebody else's.
fn remove_failed(entry: &SnapshotEntry) -> Result<()> {
    if !Path::new(&entry.directory).is_dir() {
        return Ok(());
    }
    let store = open_store(&entry.directory)?;
    if read_manifest(store.as_ref()).is_ok() {
        return Ok(());
    }
    let gone = delete_snapshot(store.as_ref()).map_err(|error: Error| {
        tracing::warn!(snapshot = %entry.id, code = %error.code, %error, "could not sweep a failed savepoint");
        error
    })?;
    if gone {
        tracing::info!(snapshot = %entry.id, directory = entry.directory, "swept a failed savepoint");
    }
    Ok(())
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
            kept: ["chk-aaaaaaaa-3", "sp-bbbbbbbb-2"].map(snapshot).into(),
            failed_savepoints: Vec::new(),
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
            directories: vec![
                directory("aaaaaaaa1", "chk-aaaaaaaa-2"),
                directory("aaaaaaaa1", "chk-aaaaaaaa-3"),
                directory("aaaaaaaa1", "notes"),
                directory("cccccccc1", "chk-cccccccc-1"),
            ],
            ..Found::default()
        };
        assert_eq!(
            garbage(&found, &known()),
            [
                Garbage::Pin(stream.clone(), PinHolder::new("bbbbbbbb1").unwrap()),
                Garbage::Pin(stream.clone(), PinHolder::new("chk-aaaaaaaa-2").unwrap()),
                Garbage::Pin(stream.clone(), PinHolder::new("chk-bbbbbbbb-1").unwrap()),
                Garbage::Directory(PathBuf::from("/snapshots/aaaaaaaa1/chk-aaaaaaaa-2")),
            ]
        );
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
}
