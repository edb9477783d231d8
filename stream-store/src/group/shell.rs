//! The groups of a store: one small file each, replaced whole.
//!
//! Order, for every command: apply it to a copy, make the copy durable, show it to watchers, answer. A command whose
//! state could not be made durable has not happened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::field::display;
use tracing::{error, info, warn};
use weir_types::group::{GroupCheckpointState, GroupInfo, GroupMode, GroupSpec};
use weir_types::ids::{GroupName, JobId, SnapshotId};
use weir_types::stream::{StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::{Command, Group, Reply};
use crate::disk::{read_file, remove, replace_file, sync_dir};
use crate::stream::from_json;

const VERSION: u32 = 1;

#[derive(Serialize)]
struct GroupFileRef<'a> {
    version: u32,
    group: &'a Group,
}

#[derive(Deserialize)]
struct GroupFile {
    version: u32,
    group: Group,
}

/// One group. Watchers see states in order, each after it is durable; `None` is the end.
struct Cell {
    state: Mutex<Group>,
    shown: watch::Sender<Option<Arc<Group>>>,
}

/// All groups of a store.
pub(crate) struct Groups {
    dir: PathBuf,
    /// A group whose file is damaged is its error.
    cells: RwLock<BTreeMap<GroupName, Result<Arc<Cell>>>>,
}

impl Cell {
    fn new(group: Group) -> Arc<Self> {
        let shown = watch::Sender::new(Some(Arc::new(group.clone())));
        Arc::new(Self { state: Mutex::new(group), shown })
    }
}

fn path_of(dir: &Path, name: &GroupName) -> PathBuf {
    dir.join(format!("{name}.json"))
}

impl Groups {
    /// Loads all groups. Leases stood still while the store was down.
    pub(crate) fn open(dir: PathBuf, now: Millis) -> Result<Self> {
        let failed = |error| Error::io(format!("{} could not be listed", dir.display()), &error);
        let mut cells = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            let Some(Ok(name)) = name.map(GroupName::new) else { continue };
            let loaded = load(&path).map(|mut group| {
                group.resume(now);
                Cell::new(group)
            });
            if let Err(error) = &loaded {
                error!(group = %name, %error, "reader group could not be loaded");
            }
            cells.insert(name, loaded);
        }
        Ok(Self { dir, cells: RwLock::new(cells) })
    }

    fn cell(&self, name: &GroupName) -> Result<Arc<Cell>> {
        match self.cells.read().get(name) {
            Some(Ok(cell)) => Ok(Arc::clone(cell)),
            Some(Err(error)) => Err(error.clone()),
            None => Err(missing(name)),
        }
    }

    fn save(&self, name: &GroupName, group: &Group) -> Result<()> {
        let bytes = serde_json::to_vec(&GroupFileRef { version: VERSION, group })
            .map_err(|error| Error::internal("a reader group could not be encoded").with_detail(error.to_string()))?;
        replace_file(&path_of(&self.dir, name), &bytes)
    }

    /// Makes a group at `positions`, or returns the one there is if it is for the same stream and reader or job.
    pub(crate) fn create(&self, spec: GroupSpec, positions: StreamCut) -> Result<GroupInfo> {
        let GroupSpec { name, stream, mode, limits, start: _ } = spec;
        if limits.max_outstanding_checkpoints == 0 || limits.max_retained_checkpoints == 0 || limits.lease_ms == 0 {
            return Err(Error::invalid("the limits of a reader group must be at least 1"));
        }
        let mut cells = self.cells.write();
        match cells.get(&name) {
            Some(Err(error)) => return Err(error.clone()),
            Some(Ok(cell)) => {
                let group = cell.state.lock();
                return match (group.mode(), &mode) {
                    (existing, wanted) if existing == wanted && *group.stream() == stream => Ok(group.info()),
                    (GroupMode::Managed { job }, _) => Err(in_use(&name, job)),
                    (GroupMode::Free, _) => {
                        Err(Error::new(Code::AlreadyExists, format!("reader group {name} exists already"))
                            .with_detail(format!("it reads stream {} with free readers", group.stream())))
                    }
                };
            }
            None => {}
        }
        let group = Group::new(name.clone(), stream, mode, limits, positions);
        self.save(&name, &group)?;
        let described = group.info();
        info!(group = %name, stream = %described.stream, mode = %described.mode, "reader group created");
        cells.insert(name, Ok(Cell::new(group)));
        Ok(described)
    }

    pub(crate) fn delete(&self, name: &GroupName, job: Option<&JobId>, force: bool) -> Result<()> {
        let mut cells = self.cells.write();
        let cell = match cells.get(name) {
            Some(Ok(cell)) => Some(Arc::clone(cell)),
            Some(Err(error)) if !force => return Err(error.clone()),
            Some(Err(_)) => None,
            None => return Err(missing(name)),
        };
        if let Some(cell) = &cell {
            let group = cell.state.lock();
            match (group.mode(), job) {
                // Another job may have taken the name over since this one ended: force does not reach that far.
                (GroupMode::Managed { job: owner }, Some(job)) if job != owner => return Err(in_use(name, owner)),
                (GroupMode::Managed { job: owner }, None) if !force => return Err(in_use(name, owner)),
                (GroupMode::Free, _) if !force && group.has_members() => {
                    return Err(Error::new(Code::FailedPrecondition, format!("reader group {name} has readers"))
                        .with_hint("Stop them first, or force it."));
                }
                _ => {}
            }
        }
        remove(&path_of(&self.dir, name))?;
        sync_dir(&self.dir)?;
        cells.remove(name);
        if let Some(cell) = cell {
            cell.shown.send_replace(None);
        }
        info!(group = %name, "reader group deleted");
        Ok(())
    }

    /// Applies a command to a group.
    pub(crate) fn apply(&self, name: &GroupName, now: Millis, command: Command) -> Result<(Reply, Arc<Group>)> {
        let cell = self.cell(name)?;
        let mut state = cell.state.lock();
        let mut next = state.clone();
        let label = label(&command);
        let snapshot = snapshot_of(&command).cloned();
        let reply = next.apply(now, command).inspect_err(|error| {
            let snapshot = snapshot.as_ref().map(display);
            info!(group = %name, snapshot, command = %label, code = %error.code, %error, "command refused");
        })?;
        let has_changed = next.version() != state.version();
        if has_changed {
            self.save(name, &next)?;
        }
        for expired in newly_expired(&state, &next) {
            warn!(group = %name, snapshot = %expired, "group checkpoint dropped at its deadline");
        }
        *state = next;
        let shown = Arc::new(state.clone());
        if has_changed {
            cell.shown.send_replace(Some(Arc::clone(&shown)));
            let snapshot = snapshot.as_ref().map(display);
            info!(group = %name, snapshot, command = %label, version = shown.version(), "reader group changed");
        }
        Ok((reply, shown))
    }

    /// Lets time pass for every group.
    pub(crate) fn tick(&self, now: Millis) -> Result<()> {
        let names: Vec<GroupName> = self.cells.read().keys().cloned().collect();
        let mut outcome = Ok(());
        for name in names {
            let ticked = self.apply(&name, now, Command::Tick).map(drop);
            let known_damage = matches!(&ticked, Err(error) if error.code == Code::Corrupt);
            if let Err(error) = ticked
                && !known_damage
            {
                warn!(group = %name, %error, "leases and deadlines could not be looked after");
                outcome = Err(error);
            }
        }
        outcome
    }

    pub(crate) fn get(&self, name: &GroupName) -> Result<Group> {
        Ok(self.cell(name)?.state.lock().clone())
    }

    pub(crate) fn list(&self, stream: Option<&StreamName>) -> Vec<GroupInfo> {
        let cells: Vec<Arc<Cell>> = self.cells.read().values().filter_map(|cell| cell.as_ref().ok()).cloned().collect();
        let infos = cells.iter().map(|cell| cell.state.lock().info());
        infos.filter(|info| stream.is_none_or(|stream| info.stream == *stream)).collect()
    }

    /// The group's state now and after every change; `None` when it is deleted.
    pub(crate) fn watch(&self, name: &GroupName) -> Result<watch::Receiver<Option<Arc<Group>>>> {
        Ok(self.cell(name)?.shown.subscribe())
    }
}

fn missing(name: &GroupName) -> Error {
    Error::not_found(format!("reader group {name} does not exist")).with_hint("`weir group list` shows all of them.")
}

fn in_use(name: &GroupName, job: &JobId) -> Error {
    Error::new(Code::GroupInUse, format!("reader group {name} belongs to job {job}"))
        .with_hint("Use a reader group of another name.")
}

fn load(path: &Path) -> Result<Group> {
    let bytes = read_file(path)?.unwrap_or_default();
    let GroupFile { version, group } = from_json(path, &bytes)?;
    if version != VERSION {
        return Err(Error::new(Code::Corrupt, format!("{} is of a version unknown to this build", path.display())));
    }
    Ok(group)
}

/// The snapshot that a command is about.
fn snapshot_of(command: &Command) -> Option<&SnapshotId> {
    match command {
        Command::StartCheckpoint(start) => Some(&start.id),
        Command::Ack { id, .. } | Command::Cancel { id, .. } | Command::ReleaseCheckpoint { id, .. } => Some(id),
        Command::Join { .. }
        | Command::Leave { .. }
        | Command::Heartbeat { .. }
        | Command::Release { .. }
        | Command::Assign { .. }
        | Command::Commit { .. }
        | Command::Reset { .. }
        | Command::Tick => None,
    }
}

/// Checkpoints that are past their deadline now and were not before.
fn newly_expired(before: &Group, after: &Group) -> Vec<SnapshotId> {
    if before.version() == after.version() {
        return Vec::new();
    }
    let expired = |group: &Group| {
        let checkpoints = group.info().checkpoints.into_iter();
        let expired = checkpoints.filter(|checkpoint| checkpoint.state == GroupCheckpointState::Expired);
        expired.map(|checkpoint| checkpoint.id).collect::<Vec<_>>()
    };
    let known = expired(before);
    expired(after).into_iter().filter(|id| !known.contains(id)).collect()
}

/// A command as logs show it: with the id of the snapshot, the reader or the attempt that it is about.
fn label(command: &Command) -> String {
    match command {
        Command::Join { reader } => format!("join {reader}"),
        Command::Leave { reader, .. } => format!("leave {reader}"),
        Command::Heartbeat { reader, .. } => format!("heartbeat {reader}"),
        Command::Release { reader, .. } => format!("release partitions {reader}"),
        Command::Assign { attempt, .. } => format!("assign attempt {attempt}"),
        Command::StartCheckpoint(start) => format!("start checkpoint {}", start.id),
        Command::Ack { id, .. } => format!("ack checkpoint {id}"),
        Command::Cancel { id, .. } => format!("cancel checkpoint {id}"),
        Command::ReleaseCheckpoint { id, .. } => format!("release checkpoint {id}"),
        Command::Commit { .. } => "commit positions".to_owned(),
        Command::Reset { .. } => "reset".to_owned(),
        Command::Tick => "tick".to_owned(),
    }
}
