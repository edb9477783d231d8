//! The records of the replicated state.

use weir_types::Error;
use weir_types::deployment::{Placement, SplitAssignment};
use weir_types::graph::JobGraph;
use weir_types::ids::{Attempt, BarrierId, ChainId, GroupName, JobId, Nonce, OperatorUid, Parallelism, SnapshotId};
use weir_types::job::JobState;
use weir_types::restore::ClaimMode;
use weir_types::snapshot::{Annotations, SnapshotKind, SnapshotState, SourcePositions, SplitPosition, Verification};
use weir_types::stream::StreamName;
use weir_types::time::Millis;

use super::{Claim, Deletion, Failures, Fallback, Origin, Output};
use crate::checkpoint::{SubtaskShare, Trigger};

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// For its whole life.
    pub id: JobId,
    /// For people.
    pub name: String,
    /// The script, for a later engine version to plan anew.
    pub sql: String,
    /// Who submitted it.
    pub owner: String,
    /// Where its quotas apply.
    pub namespace: String,
    /// What it does, at the parallelism of the newest attempt; recovery runs this and never plans again.
    pub graph: JobGraph,
    /// The parallelism that it is to have, given slots.
    pub parallelism_wanted: Parallelism,
    /// The plan as `EXPLAIN` shows it.
    pub plan: String,
    /// Its sources.
    pub sources: Vec<SourceRecord>,
    /// How it is.
    pub state: JobState,
    /// The newest attempt; 0 before the first.
    pub attempt: Attempt,
    /// How often it was restarted.
    pub restarts: u32,
    /// When it was accepted.
    pub submitted_at: Millis,
    /// When all of its subtasks ran for the first time.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// What broke it, also while it restarts.
    pub failures: Failures,
    /// Whose state it started with.
    pub restore: Option<RestoreRecord>,
    /// Where the newest attempt runs.
    pub placements: Vec<Placement>,
    /// Who reads what in the newest attempt, and from where.
    pub splits: Vec<SplitAssignment>,
    /// Number of its newest snapshot, whatever became of it.
    pub last_barrier: BarrierId,
    /// The completed savepoint of a stop: the job never restarts.
    pub stopped_by: Option<SnapshotId>,
    /// It has completed a snapshot: from then on it never begins from nothing.
    pub took_snapshot: bool,
    /// The last attempt that did not start from the newest snapshot.
    pub fallback: Option<Fallback>,
    /// What is decided about its output.
    pub output: Output,
    /// It may write again what is committed already.
    pub allow_duplicates: bool,
}

impl JobRecord {
    /// The job and its sources as an attempt at this parallelism runs them.
    pub fn set_parallelism(&mut self, parallelism: Parallelism) {
        self.graph.options.parallelism = parallelism;
        let chains = self.graph.chains();
        for source in &mut self.sources {
            let chain = chains.iter().find(|chain| chain.id == source.chain);
            source.parallelism = chain.map_or(source.parallelism, |chain| chain.parallelism);
        }
    }

    /// How many checkpoints it keeps; at least one.
    pub fn checkpoints_retained(&self) -> usize {
        self.graph.options.checkpoints_retained.max(1) as usize
    }
}

/// A source of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRecord {
    /// The operator.
    pub uid: OperatorUid,
    /// The table's name in the script.
    pub table: String,
    /// The chain that it heads.
    pub chain: ChainId,
    /// How many subtasks read it.
    pub parallelism: Parallelism,
    /// The reader group of a stream-store source.
    pub group: Option<ReaderGroup>,
    /// All splits, at the positions where the job begins.
    pub splits: Vec<SplitPosition>,
}

/// A managed reader group that belongs to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderGroup {
    /// Its name in the store.
    pub name: GroupName,
    /// The stream that it reads.
    pub stream: StreamName,
}

/// The snapshot that a job was started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRecord {
    /// Where its files are.
    pub directory: String,
    /// The catalogue's entry, unless the directory came from elsewhere.
    pub snapshot: Option<SnapshotId>,
    /// State that maps to nothing is dropped instead of refused.
    pub allow_non_restored_state: bool,
    /// Whose the snapshot is from then on.
    pub claim: ClaimMode,
}

/// The catalogue's entry of a snapshot, or of an attempt at one.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotEntry {
    /// Its id.
    pub id: SnapshotId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// The job.
    pub job: JobId,
    /// The job's name at the time.
    pub job_name: String,
    /// Whose it is.
    pub owner: String,
    /// Where its quotas apply.
    pub namespace: String,
    /// What people say about it.
    pub annotations: Annotations,
    /// How far it is.
    pub state: SnapshotState,
    /// Why it was taken.
    pub trigger: Trigger,
    /// Its place in the job's order.
    pub barrier: BarrierId,
    /// The attempt it was taken of.
    pub attempt: Attempt,
    /// Proves that a manifest was written under this very reservation.
    pub nonce: Nonce,
    /// Where its files are.
    pub directory: String,
    /// When it was triggered.
    pub triggered_at: Millis,
    /// When it was admitted; none: it was refused, or waits for its turn.
    pub started_at: Option<Millis>,
    /// When it is aborted if it has not completed.
    pub deadline: Millis,
    /// When it completed or failed.
    pub ended_at: Option<Millis>,
    /// Bytes charged to its quotas: while it is in flight those granted, afterwards those of its own files. What it shares
    /// with other snapshots is charged with the files.
    pub charged_bytes: u64,
    /// What it was expected to write when it was reserved.
    pub estimate_bytes: u64,
    /// Bytes of all files, the shared ones too.
    pub bytes: u64,
    /// What it has put on storage itself: all but the shared files that earlier checkpoints had brought.
    pub written_bytes: u64,
    /// Rows of all files.
    pub rows: u64,
    /// The job's parallelism.
    pub parallelism: Parallelism,
    /// Why it failed.
    pub failure: Option<Error>,
    /// The snapshot or directory that the job itself was restored from.
    pub restored_from: Option<String>,
    /// Per subtask, how long it took.
    pub shares: Vec<SubtaskShare>,
    /// The positions of all sources.
    pub sources: Vec<SourcePositions>,
    /// How many subtasks had to acknowledge.
    pub subtasks: u32,
    /// Hash of the job graph that ran, as 16 hex digits.
    pub plan_hash: String,
    /// The newest verification.
    pub verified: Option<Verification>,
    /// Why it can no longer be restored although its files are there: somebody forced a truncation of a stream.
    pub unrestorable: Option<String>,
    /// Since when and on whose behalf it is being deleted.
    pub deletion: Option<Deletion>,
    /// The job that owns it since it was restored from it; it is charged to that job's levels.
    pub claim: Option<Claim>,
    /// Where it comes from, if another cluster took it.
    pub origin: Option<Origin>,
    /// Failed attempts in a row that this entry stands for.
    pub failures: u32,
    /// When the first of them was triggered.
    pub first_failed_at: Option<Millis>,
}

impl SnapshotEntry {
    /// When it was admitted, or triggered if it was not.
    pub fn admitted_at(&self) -> Millis {
        self.started_at.unwrap_or(self.triggered_at)
    }

    /// Whether it has failed, and its files may still be there.
    pub fn is_unswept(&self) -> bool {
        self.state == SnapshotState::Failed && self.charged_bytes > 0
    }

    /// Whether it holds no files and awaits nothing.
    pub(super) fn is_over(&self) -> bool {
        self.state == SnapshotState::Failed && self.charged_bytes == 0
    }
}
