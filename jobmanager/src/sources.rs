//! Sources of a job: their splits, and the reader groups, group checkpoints and pins that a job keeps in the store.
//!
//! Invariant: the snapshot is the truth for positions; a group's positions start only jobs that have none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use weir_coordination::metadata::{JobRecord, ReaderGroup, SnapshotEntry, SourceRecord};
use weir_stream_store::client::StoreClient;
use weir_types::connector::ConnectorKind;
use weir_types::deployment::SplitAssignment;
use weir_types::graph::{JobGraph, Operator, OperatorSpec, SourceSpec};
use weir_types::group::{CheckpointOwner, GroupActor, GroupLimits, GroupMode, GroupSpec, GroupStart};
use weir_types::ids::{Attempt, GroupName, JobId, PartitionId, PinHolder, ReaderId, SnapshotId};
use weir_types::snapshot::{SnapshotKind, SourcePositions, SplitPosition};
use weir_types::splits;
use weir_types::store::{Isolation, PartitionInfo};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use crate::storage;

/// The store drops a group checkpoint this long after its snapshot's own deadline, so that the snapshot ends first.
const DEADLINE_SLACK_MS: u64 = 10_000;

/// What may be done with the names of reader groups that jobs which have ended still hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names<'a> {
    /// They are free: such a group is deleted.
    TakeOver(&'a BTreeSet<JobId>),
    /// They would be free; nothing is changed.
    LookOver(&'a BTreeSet<JobId>),
}

impl Names<'_> {
    fn are_free_of(self, job: &JobId) -> bool {
        match self {
            Names::TakeOver(ended) | Names::LookOver(ended) => ended.contains(job),
        }
    }
}

/// Finds the splits of all sources of a new job.
pub(crate) async fn enumerate(
    store: &StoreClient,
    job: &JobId,
    graph: &JobGraph,
    names: Names<'_>,
) -> Result<Vec<SourceRecord>> {
    let mut records = Vec::new();
    for operator in &graph.operators {
        let OperatorSpec::Source(source) = &operator.spec else { continue };
        let uid =
            operator.uid.clone().ok_or_else(|| Error::internal(format!("source {} has no uid", operator.name)))?;
        let chain = graph
            .chain_of(operator.id)
            .ok_or_else(|| Error::internal(format!("source {} has no chain", operator.name)))?;
        let (splits, group) = match source.connector.kind {
            ConnectorKind::Nexmark => (splits::nexmark(&source.connector, chain.parallelism)?, None),
            ConnectorKind::Filesystem => (files(source).await?, None),
            ConnectorKind::StreamStore => {
                let (splits, group) = partitions(store, job, operator, source, names).await?;
                (splits, Some(group))
            }
            kind @ (ConnectorKind::Print | ConnectorKind::Blackhole) => {
                return Err(Error::new(Code::Unsupported, format!("connector {kind} is not a source")));
            }
        };
        records.push(SourceRecord {
            uid,
            table: source.table.clone(),
            chain: chain.id,
            parallelism: chain.parallelism,
            group,
            splits,
        });
    }
    Ok(records)
}

async fn files(source: &SourceSpec) -> Result<Vec<SplitPosition>> {
    let path = source.connector.options.get("path").cloned().unwrap_or_default();
    let table = source.table.clone();
    storage::blocking(move || {
        let root = PathBuf::from(path.strip_prefix("file://").unwrap_or(&path));
        let unreadable = |error: &std::io::Error, at: &Path| {
            let message = format!("could not read {} of table {table}", at.display());
            if error.kind() == std::io::ErrorKind::NotFound {
                return Error::not_found(message)
                    .with_detail(error.to_string())
                    .with_hint("The option 'path' must name a file or directory that the JobManager can read.");
            }
            Error::io(message, error)
        };
        let metadata = std::fs::metadata(&root).map_err(|error| unreadable(&error, &root))?;
        if metadata.is_file() {
            let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            return Ok(splits::files([name]));
        }
        let mut found = Vec::new();
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).map_err(|error| unreadable(&error, &directory))? {
                let path = entry.map_err(|error| unreadable(&error, &directory))?.path();
                let relative = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
                if !splits::is_visible_file(&relative) {
                    continue;
                }
                let metadata = std::fs::metadata(&path).map_err(|error| unreadable(&error, &path))?;
                if metadata.is_dir() { directories.push(path) } else { found.push(relative) }
            }
            if found.len() as u64 > splits::SPLITS_MAX {
                return Err(Error::new(
                    Code::ResourceExhausted,
                    format!("{} holds more than {} files", root.display(), splits::SPLITS_MAX),
                ));
            }
        }
        Ok(splits::files(found))
    })
    .await
}

async fn partitions(
    store: &StoreClient,
    job: &JobId,
    operator: &Operator,
    source: &SourceSpec,
    names: Names<'_>,
) -> Result<(Vec<SplitPosition>, ReaderGroup)> {
    let option = |key: &str| source.connector.options.get(key).map(String::as_str);
    let stream: StreamName = option("stream").unwrap_or_default().parse()?;
    let info = store.describe_stream(&stream).await.map_err(|error| match error.code {
        Code::NotFound => error.with_hint(format!("Create it with `weir stream create {stream}`.")),
        _ => error,
    })?;
    let wanted = option("group").map(GroupName::new).transpose()?;
    let mode = option("scan.startup.mode").unwrap_or("earliest");
    let isolation = option("scan.isolation").map_or(Ok(Isolation::default()), str::parse)?;
    let ends = info.readable_ends(isolation);
    let end = |info: &PartitionInfo| ends.get(info.partition).unwrap_or(info.end);
    let existing = match &wanted {
        None => None,
        Some(name) => match store.describe_group(name).await {
            Ok(group) => match group.mode.job().filter(|job| mode != "group" && names.are_free_of(job)) {
                None => Some(group),
                Some(job) => {
                    if let Names::TakeOver(_) = names {
                        found(store.delete_group(name, Some(job), true).await)?;
                    }
                    None
                }
            },
            Err(error) if error.code == Code::NotFound => None,
            Err(error) => return Err(error),
        },
    };
    let own = GroupName::new(format!("job-{}-{}", weir_coordination::checkpoint::short(job), operator.id))?;
    let (name, start) = match (mode, wanted, existing) {
        // Positions of another group start a job; it then keeps its own.
        ("group", Some(_), Some(group)) => (own, group.positions),
        ("group", wanted, _) => {
            let group = wanted.map(|name| name.to_string()).unwrap_or_default();
            return Err(Error::not_found(format!("reader group {group:?} of table {} does not exist", source.table))
                .with_hint("'scan.startup.mode' = 'group' starts at the positions of the group that 'group' names."));
        }
        (_, Some(name), Some(group)) => {
            let error = Error::new(Code::GroupInUse, format!("reader group {name} exists already"));
            return Err(error
                .with_detail(format!("it belongs to: {}", group.mode))
                .with_hint("A job has a group of its own: choose another name, or leave 'group' out."));
        }
        (mode, wanted, None) => {
            let start = info.partitions.iter().map(|p| (p.partition, if mode == "latest" { end(p) } else { p.head }));
            (wanted.unwrap_or(own), StreamCut(start.collect()))
        }
        (_, None, Some(_)) => (own, StreamCut::default()),
    };
    let bounded = option("scan.bounded.mode") == Some("latest");
    let split = |info: &PartitionInfo| {
        let from = start.get(info.partition).unwrap_or(info.head).max(info.head);
        splits::stream_partition(info.partition, from, bounded.then_some(end(info).max(from)))
    };
    Ok((info.partitions.iter().map(split).collect(), ReaderGroup { name, stream }))
}

/// The sources that read streams, with their groups.
pub(crate) fn groups(records: &[SourceRecord]) -> impl Iterator<Item = (&SourceRecord, &ReaderGroup)> {
    records.iter().filter_map(|source| Some((source, source.group.as_ref()?)))
}

/// What is not there any more is no error.
fn found<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.code != Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The positions of stream partitions as a cut.
fn cut<'a>(splits: impl Iterator<Item = &'a SplitPosition>) -> Result<StreamCut> {
    let position = |split: &SplitPosition| Ok((splits::parse_partition(&split.split)?, Offset(split.offset)));
    splits.map(position).collect::<Result<BTreeMap<_, _>>>().map(StreamCut)
}

/// The positions of what has to be read yet. Retention may have passed those of what was read to its end.
fn cut_to_read<'a>(splits: impl Iterator<Item = &'a SplitPosition>) -> Result<StreamCut> {
    cut(splits.filter(|split| !split.finished))
}

/// The lowest positions in each stream: sources that read the same stream share its pin.
fn lowest(
    sources: &[SourceRecord],
    positions: impl Fn(&SourceRecord) -> Result<StreamCut>,
) -> Result<BTreeMap<&StreamName, StreamCut>> {
    let mut streams: BTreeMap<&StreamName, StreamCut> = BTreeMap::new();
    for (source, group) in groups(sources) {
        let held = streams.entry(&group.stream).or_default();
        for (partition, offset) in positions(source)?.0 {
            let lowest = held.0.entry(partition).or_insert(offset);
            *lowest = offset.min(*lowest);
        }
    }
    Ok(streams)
}

/// Makes the job's groups, if they are not there, and divides their partitions for an attempt. One that does not start
/// from a snapshot of the job itself pins where it starts: a restart before the first snapshot begins there again.
pub(crate) async fn assign_groups(
    store: &StoreClient,
    job: &JobRecord,
    attempt: Attempt,
    assignments: &[SplitAssignment],
    pin_start: bool,
) -> Result<()> {
    if pin_start {
        let holder = PinHolder::new(job.id.as_str())?;
        for (stream, positions) in lowest(&job.sources, |source| {
            cut_to_read(assignments.iter().filter(|of| of.uid == source.uid).map(|assignment| &assignment.position))
        })? {
            if !positions.0.is_empty() {
                store.pin(stream, &holder, &positions).await?;
            }
        }
    }
    for (source, group) in groups(&job.sources) {
        let mine: Vec<_> = assignments.iter().filter(|assignment| assignment.uid == source.uid).collect();
        let positions = cut_to_read(mine.iter().map(|assignment| &assignment.position))?;
        let spec = GroupSpec {
            name: group.name.clone(),
            stream: group.stream.clone(),
            mode: GroupMode::Managed { job: job.id.clone() },
            limits: limits(job),
            start: GroupStart::Cut(positions.clone()),
        };
        store.create_group(&spec).await?;
        let mut owners: BTreeMap<ReaderId, Vec<PartitionId>> = BTreeMap::new();
        for assignment in mine {
            let reader = ReaderId::new(format!("{}-{}", source.uid, assignment.index))?;
            owners.entry(reader).or_default().push(splits::parse_partition(&assignment.position.split)?);
        }
        store.assign_partitions(&group.name, &job.id, attempt, &owners, &positions).await?;
    }
    Ok(())
}

/// The limits of a job's groups: room for the checkpoints that the job keeps besides those of users.
fn limits(job: &JobRecord) -> GroupLimits {
    let limits = GroupLimits::default();
    let own = u32::try_from(job.checkpoints_retained()).unwrap_or(u32::MAX);
    GroupLimits { max_retained_checkpoints: limits.max_retained_checkpoints.saturating_add(own), ..limits }
}

/// Starts the groups' checkpoints and pins what the snapshot may need. A refusal by one of them is the answer.
pub(crate) async fn start_groups(
    store: &StoreClient,
    job: &JobRecord,
    snapshot: &SnapshotId,
    deadline: Millis,
    superseded: &[SnapshotId],
) -> Result<()> {
    let owner = CheckpointOwner::Job(job.id.clone());
    let holder = PinHolder::new(snapshot.as_str())?;
    let mut pins: BTreeMap<&StreamName, StreamCut> = BTreeMap::new();
    for (_, group) in groups(&job.sources) {
        let deadline = deadline.plus(DEADLINE_SLACK_MS);
        store.start_checkpoint(&group.name, snapshot, &owner, deadline, superseded).await?;
        let positions = store.describe_group(&group.name).await?.positions;
        let held: &mut StreamCut = pins.entry(&group.stream).or_default();
        // What was read to its end may have been truncated since.
        for partition in store.describe_stream(&group.stream).await?.partitions {
            let at = positions.get(partition.partition).unwrap_or(partition.head).max(partition.head);
            let lowest = held.0.entry(partition.partition).or_insert(at);
            *lowest = at.min(*lowest);
        }
    }
    for (stream, positions) in pins {
        store.pin(stream, &holder, &positions).await?;
    }
    Ok(())
}

/// Gives the groups' checkpoints the snapshot's positions.
pub(crate) async fn acknowledge_groups(
    store: &StoreClient,
    job: &JobRecord,
    attempt: Attempt,
    snapshot: &SnapshotId,
    positions: &[SourcePositions],
) -> Result<()> {
    let by = GroupActor::Job { job: job.id.clone(), attempt };
    for (source, group) in groups(&job.sources) {
        let offsets = cut(positions.iter().filter(|of| of.uid == source.uid).flat_map(|of| &of.splits))?;
        store.ack_checkpoint(&group.name, snapshot, &by, &offsets).await?;
    }
    Ok(())
}

/// After completion: the groups go on from the snapshot's positions, and the pins rise to them; that of the job's start
/// is not needed any more. It is the pins that hold a snapshot's cut: the groups keep no checkpoint of a savepoint, because
/// users keep as many savepoints as they like and a group's list is short. Failing here loses nothing: positions are only for show and for later jobs, and a pin that is
/// too low holds more than it must.
pub(crate) async fn keep_positions(store: &StoreClient, job: &JobRecord, entry: &SnapshotEntry) {
    let keep = async {
        let by = GroupActor::Job { job: job.id.clone(), attempt: entry.attempt };
        let holder = PinHolder::new(entry.id.as_str())?;
        let splits = |source: &SourceRecord| {
            let uid = source.uid.clone();
            entry.sources.iter().filter(move |of| of.uid == uid).flat_map(|of| &of.splits)
        };
        for (stream, to_read) in lowest(&job.sources, |source| cut_to_read(splits(source)))? {
            if to_read.0.is_empty() {
                found(store.unpin(stream, &holder).await)?;
            } else {
                store.pin(stream, &holder, &to_read).await?;
            }
            found(store.unpin(stream, &PinHolder::new(job.id.as_str())?).await)?;
        }
        for (source, group) in groups(&job.sources) {
            if entry.kind == SnapshotKind::Savepoint {
                release_checkpoint(store, job, group, &entry.id).await;
            }
            let positions = cut(splits(source))?;
            match store.commit_positions(&group.name, &by, &positions).await {
                // A later attempt has taken over, or the job has ended.
                Err(error) if matches!(error.code, Code::Fenced | Code::NotFound) => {}
                other => other?,
            }
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = keep.await {
        tracing::warn!(snapshot = %entry.id, code = %error.code, %error, "could not move the reader groups on");
    }
}

/// After a failure: the groups drop their checkpoints, and the pins go.
pub(crate) async fn release_groups(store: &StoreClient, job: &JobRecord, snapshot: &SnapshotId) {
    for (_, group) in groups(&job.sources) {
        match store.cancel_checkpoint(&group.name, snapshot, Some(&job.id)).await {
            Ok(_) => {}
            Err(error) if error.code == Code::NotFound => {}
            Err(error) if error.code == Code::FailedPrecondition => {
                release_checkpoint(store, job, group, snapshot).await;
            }
            Err(error) => {
                tracing::warn!(%snapshot, group = %group.name, code = %error.code, %error,
                    "could not cancel a group checkpoint; the store drops it at its deadline");
            }
        }
    }
    if let Err(error) = drop_pins(store, job, snapshot).await {
        tracing::warn!(%snapshot, code = %error.code, %error, "could not drop the pins of a failed snapshot");
    }
}

/// Lets the store know of a snapshot that was refused before it was asked, if the job has anything to do with it.
pub(crate) async fn note_refusal(store: &StoreClient, job: &JobRecord, snapshot: &SnapshotId, reason: &Error) {
    if groups(&job.sources).next().is_none() {
        return;
    }
    if let Err(error) = store.note_refusal(snapshot, &job.id, reason.to_string()).await {
        tracing::debug!(%snapshot, code = %error.code, %error, "the store was not told of a refusal");
    }
}

async fn release_checkpoint(store: &StoreClient, job: &JobRecord, group: &ReaderGroup, snapshot: &SnapshotId) {
    match store.release_checkpoint(&group.name, snapshot, Some(&job.id)).await {
        Err(error) if error.code != Code::NotFound => {
            tracing::warn!(%snapshot, group = %group.name, code = %error.code, %error,
                "could not release a group checkpoint");
        }
        _ => {}
    }
}

/// Before an entry goes: the groups forget the checkpoint, and the pins go.
pub(crate) async fn drop_pins(store: &StoreClient, job: &JobRecord, snapshot: &SnapshotId) -> Result<()> {
    let holder = PinHolder::new(snapshot.as_str())?;
    for (_, group) in groups(&job.sources) {
        release_checkpoint(store, job, group, snapshot).await;
        found(store.unpin(&group.stream, &holder).await)?;
    }
    Ok(())
}

/// Deletes the groups of a job that has ended, and drops the pins of its start.
pub(crate) async fn delete_groups(store: &StoreClient, job: &JobRecord) {
    for (_, group) in groups(&job.sources) {
        match store.delete_group(&group.name, Some(&job.id), true).await {
            Err(error) if error.code != Code::NotFound => {
                tracing::warn!(job = %job.id, group = %group.name, code = %error.code, %error,
                    "could not delete a reader group");
            }
            _ => {}
        }
        let unpinned = async { found(store.unpin(&group.stream, &PinHolder::new(job.id.as_str())?).await) };
        if let Err(error) = unpinned.await {
            tracing::warn!(job = %job.id, stream = %group.stream, code = %error.code, %error,
                "could not drop the pin of a job's start");
        }
    }
}
