//! Checkpoints and savepoints of one job: one mechanism for both.
//!
//! [`Coordinator`] takes events and returns actions; the shell carries actions out and reports how they went as events.
//! Invariant: at most one snapshot of a job is between its reservation and its end.

mod contents;
mod coordinator;
mod flight;

use std::collections::BTreeMap;

use weir_types::Error;
use weir_types::control::SnapshotDeclined;
use weir_types::graph::JobOptions;
use weir_types::ids::{Attempt, BarrierId, ChainId, JobId, OperatorUid, RequestId, SnapshotId, SubtaskIndex};
use weir_types::snapshot::{
    Annotations, Barrier, OperatorSnapshot, SharedFile, SnapshotKind, SnapshotTimings, SourcePositions, SplitPosition,
    StopMode, SubtaskSnapshot,
};

pub use coordinator::Coordinator;

/// A subtask within an attempt.
pub type SubtaskKey = (ChainId, SubtaskIndex);

/// When, how often and where snapshots are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Time from one periodic checkpoint to the next; none: only on request.
    pub interval_ms: Option<u64>,
    /// A snapshot that takes longer is aborted.
    pub timeout_ms: u64,
    /// Least time from the end of one snapshot to the next periodic one.
    pub min_pause_ms: u64,
    /// How many checkpoints in a row may fail before the job is restarted; none: any number.
    pub failures_tolerated: Option<u32>,
    /// Checkpoints go to `<root>/<job>/<snapshot>`.
    pub checkpoint_root: String,
    /// Savepoints go here unless the request names a directory.
    pub savepoint_root: String,
}

impl Config {
    /// A job's own options, and the cluster's directories.
    pub fn new(options: &JobOptions, checkpoint_root: String, savepoint_root: String) -> Self {
        Self {
            interval_ms: options.checkpoint_interval_ms,
            timeout_ms: options.checkpoint_timeout_ms,
            min_pause_ms: options.checkpoint_min_pause_ms,
            failures_tolerated: options.checkpoint_failures_tolerated,
            checkpoint_root,
            savepoint_root,
        }
    }

    /// The directory of a snapshot: `<root>/<job>/<snapshot>` for a checkpoint, `<parent>/savepoint-…` for a savepoint.
    pub(crate) fn directory(&self, job: &JobId, snapshot: &SnapshotId, request: Option<&Request>) -> String {
        match snapshot.as_str().split_once('-') {
            Some(("sp", rest)) => {
                let parent = request.and_then(|request| request.directory.as_deref()).unwrap_or(&self.savepoint_root);
                format!("{}/savepoint-{rest}", parent.trim_end_matches('/'))
            }
            _ => format!("{}/{job}/{snapshot}", self.checkpoint_root.trim_end_matches('/')),
        }
    }
}

/// What the coordinator must know of a running attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningAttempt {
    /// Which.
    pub attempt: Attempt,
    /// Its subtasks.
    pub subtasks: Vec<SubtaskKey>,
    /// Its sources with all of their splits.
    pub sources: Vec<SourcePlan>,
}

/// One source of a running attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePlan {
    /// The source operator.
    pub uid: OperatorUid,
    /// Every split's name.
    pub splits: Vec<String>,
}

/// Why a snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Its time had come.
    Periodic,
    /// A savepoint that a retention policy schedules.
    Scheduled,
    /// Somebody asked.
    User,
    /// The job goes on from it at another parallelism.
    Rescale,
    /// The job stops with it.
    Stop(StopMode),
    /// Another cluster took it, and somebody wants it here.
    Import,
}

impl Trigger {
    /// Whether the job goes on after the snapshot.
    pub fn stop_mode(self) -> StopMode {
        match self {
            Trigger::Periodic | Trigger::Scheduled | Trigger::User | Trigger::Rescale | Trigger::Import => {
                StopMode::Continue
            }
            Trigger::Stop(mode) => mode,
        }
    }

    /// Whether nobody asked for this very snapshot.
    pub fn is_automatic(self) -> bool {
        matches!(self, Trigger::Periodic | Trigger::Scheduled)
    }

    /// The name users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Periodic => "periodic",
            Trigger::Scheduled => "scheduled",
            Trigger::User => "user",
            Trigger::Rescale => "rescale",
            Trigger::Stop(_) => "stop",
            Trigger::Import => "import",
        }
    }
}

/// A request for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub id: RequestId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// Asked for by a user, or part of a stop.
    pub trigger: Trigger,
    /// Parent directory of a savepoint; none: the cluster's own.
    pub directory: Option<String>,
    /// Instead of the job's timeout.
    pub timeout_ms: Option<u64>,
    /// Who owns the snapshot; empty: the job's owner.
    pub owner: String,
    /// What people say about it.
    pub annotations: Annotations,
    /// Where a limit would refuse it, the oldest savepoints that nobody needs make room.
    pub evict: bool,
}

/// A snapshot as it is reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Its place in the job's order.
    pub barrier: BarrierId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// Why it is taken.
    pub trigger: Trigger,
    /// The attempt it is taken of.
    pub attempt: Attempt,
    /// The request behind it.
    pub request: Option<Request>,
    /// Where its files go.
    pub directory: String,
    /// When it is aborted.
    pub deadline_ms: u64,
    /// When it was triggered.
    pub triggered_at_ms: u64,
    /// How many subtasks have to acknowledge.
    pub subtasks: u32,
}

/// A subtask's share of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubtaskShare {
    /// The chain.
    pub chain: ChainId,
    /// Which subtask of it.
    pub index: SubtaskIndex,
    /// How long it took.
    pub timings: SnapshotTimings,
    /// How much it wrote.
    pub bytes: u64,
}

/// All that a snapshot holds: every subtask has acknowledged, and every split has a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// What the operators contributed, one entry per operator and subtask that has anything to say.
    pub operators: Vec<OperatorSnapshot>,
    /// The positions of all sources.
    pub sources: Vec<SourcePositions>,
    /// Per subtask, how long it took.
    pub shares: Vec<SubtaskShare>,
    /// Bytes of all files, each counted once.
    pub bytes: u64,
    /// Rows of all files.
    pub rows: u64,
    /// Bytes of the manifest itself.
    pub manifest_bytes: u64,
    /// Whether sinks have prepared output that is to be committed.
    pub has_output: bool,
    /// The files among them that other checkpoints of the job refer to, or may come to.
    pub shared: Vec<SharedFile>,
}

impl Contents {
    /// What these operators' files add up to; a file that several of them name counts once.
    pub fn of(operators: Vec<OperatorSnapshot>) -> Self {
        let (mut bytes, mut rows, mut shared) = (0_u64, 0_u64, BTreeMap::new());
        for file in operators.iter().flat_map(|operator| &operator.files) {
            if file.shared_name().is_none_or(|name| shared.insert(name.to_owned(), file.bytes).is_none()) {
                bytes = bytes.saturating_add(file.bytes);
                rows = rows.saturating_add(file.rows);
            }
        }
        let shared = shared.into_iter().map(|(name, bytes)| SharedFile { name, bytes }).collect();
        let has_output = operators.iter().any(|operator| operator.prepared.is_some());
        Self { operators, bytes, rows, shared, has_output, ..Self::default() }
    }

    /// Bytes of all files and of the manifest.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.manifest_bytes)
    }

    /// Bytes that this snapshot has put on storage: all but what earlier checkpoints had brought.
    pub fn written_bytes(&self, snapshot: &SnapshotId) -> u64 {
        self.without(|file| !file.is_written_by(snapshot))
    }

    /// Bytes of the files that nothing else may refer to.
    pub fn own_bytes(&self) -> u64 {
        self.without(|_| true)
    }

    fn without(&self, left_out: impl Fn(&SharedFile) -> bool) -> u64 {
        let left_out = self.shared.iter().filter(|file| left_out(file));
        left_out.fold(self.total_bytes(), |sum, file| sum.saturating_sub(file.bytes))
    }
}

/// What the abort marker found at the manifest's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// No manifest is there, and none can come any more.
    Aborted,
    /// A manifest with the reservation's nonce was there already: the snapshot is to be completed.
    Published,
}

/// What happens to a job's snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An earlier JobManager has left the job running, and it is not known yet whether its attempt goes on: whoever wants a
    /// snapshot waits for that.
    Resuming,
    /// An earlier JobManager has left this snapshot waiting for its turn.
    FoundQueued(Reservation),
    /// An earlier JobManager has left this snapshot under way.
    FoundInFlight(Reservation),
    /// What was found in the place of the manifest of such a snapshot; where there was nothing, none can appear any more.
    Settled(SnapshotId, Result<Option<Box<Contents>>, Error>),
    /// All subtasks of an attempt run.
    Started(RunningAttempt),
    /// The attempt has ended, for whatever reason.
    Ended(Error),
    /// All sources of the attempt have read all of their splits: it ends as soon as no snapshot is in flight.
    Drained,
    /// Somebody wants a snapshot.
    Requested(Request),
    /// The reservation waits for its turn; what comes of it is reported as [`Event::Reserved`].
    Queued(SnapshotId),
    /// The reservation was committed, or refused.
    Reserved(SnapshotId, Result<(), Error>),
    /// A user wants the snapshot to be given up. Once everything is durable, it is too late.
    Cancelled(SnapshotId),
    /// A limit leaves no room for what the snapshot has to write.
    OutOfRoom(SnapshotId, Error),
    /// The reader groups have started their checkpoints, or refused.
    GroupsStarted(SnapshotId, Result<(), Error>),
    /// A subtask's share is durable.
    Acked(SubtaskSnapshot),
    /// A subtask cannot take part.
    Declined(SnapshotDeclined),
    /// The manifest is there, or cannot be written.
    Published(SnapshotId, Result<(), Error>),
    /// The abort marker is there.
    Marked(SnapshotId, Result<Marked, Error>),
    /// The completion was committed, or refused.
    Completed(SnapshotId, Result<(), Error>),
    /// The abort was committed.
    Aborted(SnapshotId),
    /// Time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out whether the manifest of a snapshot that an earlier JobManager has left is there, and if it is not, make sure
    /// that none can appear. Answered by [`Event::Settled`].
    Settle(SnapshotId),
    /// Step 1: commit a reservation. Answered by [`Event::Reserved`].
    Reserve(Reservation),
    /// Step 2: start the reader groups' checkpoints. Answered by [`Event::GroupsStarted`].
    StartGroups(SnapshotId),
    /// Step 3: let barriers into the sources.
    SendBarriers(Barrier),
    /// Step 6: create the manifest. Answered by [`Event::Published`].
    Publish(SnapshotId, Box<Contents>),
    /// Step 7: commit the snapshot. Answered by [`Event::Completed`].
    PersistComplete(SnapshotId, Box<Contents>),
    /// Create the abort marker. Answered by [`Event::Marked`].
    MarkAborted(SnapshotId),
    /// Commit the failure. Answered by [`Event::Aborted`].
    PersistAbort(SnapshotId, Error),
    /// Step 8: tell the subtasks, and let the reader groups keep the positions.
    NotifyComplete(SnapshotId, BarrierId),
    /// Tell the subtasks that it failed, even if no barrier was sent: every log of the job names it.
    NotifyAborted(SnapshotId, BarrierId, Error),
    /// Drop the reader groups' checkpoints.
    ReleaseGroups(SnapshotId),
    /// Remove whatever files it has, when nobody writes them any more, and release what it is charged.
    Sweep(SnapshotId),
    /// Answer the request: the snapshot has ended.
    Answer(RequestId, Result<SnapshotId, Error>),
    /// More checkpoints in a row have failed than the job tolerates, or a stop failed after its barriers were sent.
    RestartJob(Error),
    /// A user cancelled a stop after its barriers were sent: the job goes on with a new attempt, which is no failure of it.
    ResumeJob(Error),
    /// A stop was given up before any barrier was sent: the job goes on.
    AbandonStop,
}

/// Splits by source and name: where each stands.
type Positions = BTreeMap<(OperatorUid, String), SplitPosition>;

/// The id of a job's snapshot: `chk-<job>-<barrier>`, with the first eight digits of the job's id.
///
/// # Errors
/// None for a job id that is valid; the name's check is passed on.
pub fn snapshot_id(job: &JobId, kind: SnapshotKind, barrier: BarrierId) -> weir_types::Result<SnapshotId> {
    SnapshotId::new(format!("{}-{}-{barrier}", kind.prefix(), short(job)))
}

/// The part of a job's id that its snapshots bear.
pub fn short(job: &JobId) -> &str {
    job.as_str().get(..8).unwrap_or(job.as_str())
}
