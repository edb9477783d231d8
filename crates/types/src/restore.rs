//! What restoring a snapshot would do: the plan that is shown, and that the restore itself follows.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{ClusterId, JobId, OperatorUid, Parallelism, SnapshotId};
use crate::quota::{QuotaDimension, QuotaLevel};
use crate::snapshot::SnapshotKind;
use crate::time::Millis;

/// Whose the snapshot is once a job has been restored from it, as in Flink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimMode {
    /// It stays as it is: the new job never touches it, and its first checkpoint refers to none of its files.
    #[default]
    NoClaim,
    /// The new job owns it: it is charged to that job, and deleted once the job's own checkpoints supersede it.
    Claim,
}

impl ClaimMode {
    /// The mode of this name, in Weir's spelling or in Flink's (`NO_CLAIM`); none: there is none of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_lowercase().replace('_', "-");
        [ClaimMode::NoClaim, ClaimMode::Claim].into_iter().find(|mode| mode.as_str() == name)
    }

    /// The name users see.
    pub fn as_str(self) -> &'static str {
        match self {
            ClaimMode::NoClaim => "no-claim",
            ClaimMode::Claim => "claim",
        }
    }
}

/// A state table of an operator, as a snapshot holds it or as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTable {
    /// Its name within the operator.
    pub table: String,
    /// Its columns in order, the key hash left out.
    pub columns: Vec<StateColumn>,
}

/// A column of a state table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateColumn {
    /// What it is, whatever it is called: state is matched by this.
    pub id: String,
    /// What it is called; empty: the query has no name for it.
    pub name: String,
    /// Its type as SQL has it, for example `BIGINT`.
    pub data_type: String,
}

/// What restoring a snapshot into a job would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// What is restored.
    pub snapshot: Lineage,
    /// Whose it is afterwards.
    pub claim: ClaimMode,
    /// How many subtasks took the snapshot, and how many will run.
    pub parallelism: Rescale,
    /// Slots that the job needs, and those that are free now. Too few delay the job, they do not refuse it.
    pub slots: Slots,
    /// Every operator of the job that keeps state, positions or output of its own, in the job graph's order.
    pub operators: Vec<OperatorPlan>,
    /// State of the snapshot that no operator of the job takes.
    pub dropped: Vec<DroppedState>,
    /// Where every source goes on.
    pub sources: Vec<SourcePlan>,
    /// What the restore takes from quotas at once, and what the job's first checkpoint will.
    pub quota: Vec<QuotaNeed>,
    /// Why it would be refused; empty: it would be accepted.
    pub refusals: Vec<Error>,
}

impl RestorePlan {
    /// Whether the restore would be accepted.
    ///
    /// # Errors
    /// The first refusal, with the others in its detail.
    pub fn check(&self) -> Result<()> {
        let Some((first, others)) = self.refusals.split_first() else { return Ok(()) };
        let mut error = first.clone();
        for other in others {
            let detail = error.detail.take().map_or(String::new(), |detail| detail + "; ");
            error.detail = Some(format!("{detail}also: {}", other.message));
        }
        Err(error)
    }
}

/// Where a snapshot comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Its id in this cluster's catalogue; none: a directory that the catalogue does not know.
    pub entry: Option<SnapshotId>,
    /// The id that it was taken under.
    pub id: SnapshotId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// Where its files are.
    pub directory: String,
    /// The cluster that took it.
    pub cluster: ClusterId,
    /// The job that it was taken of.
    pub job: JobId,
    /// That job's name.
    pub job_name: String,
    /// When it was complete.
    pub taken_at: Millis,
    /// Bytes of its files.
    pub bytes: u64,
    /// Rows of its state.
    pub rows: u64,
    /// The snapshot or directory that its own job was restored from.
    pub restored_from: Option<String>,
}

/// A change of parallelism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescale {
    /// Of the snapshot.
    pub from: Parallelism,
    /// Of the job.
    pub to: Parallelism,
}

/// Slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// What the job needs.
    pub needed: u32,
    /// What is free.
    pub free: u32,
}

/// What an operator of the job starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorPlan {
    /// Its uid, under which the snapshot is searched.
    pub uid: OperatorUid,
    /// For people.
    pub name: String,
    /// What becomes of it.
    pub start: OperatorStart,
    /// Subtasks that contributed to the snapshot; 0: none.
    pub subtasks_before: u32,
    /// Subtasks that will run.
    pub subtasks: u32,
    /// Its state tables in the snapshot.
    pub tables: Vec<TablePlan>,
}

/// What an operator starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorStart {
    /// The snapshot holds its state or positions, and it takes them.
    Restored,
    /// The snapshot knows nothing of it, or held nothing for it: it starts empty.
    Empty,
    /// A sink: it writes on, and takes nothing from a snapshot. Output that another job prepared is that job's to commit.
    Stateless,
}

/// A state table of the snapshot and how it fits the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePlan {
    /// Its name within the operator.
    pub table: String,
    /// Rows in the snapshot.
    pub rows: u64,
    /// Their bytes in files.
    pub bytes: u64,
    /// Columns that differ; those that are merely called otherwise are no hindrance.
    pub changes: Vec<ColumnChange>,
}

/// A column of a state table that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum ColumnChange {
    /// Called otherwise: compatible.
    Renamed {
        /// In the snapshot.
        from: String,
        /// In the job.
        to: String,
    },
    /// Of another type.
    Retyped {
        /// What the job calls it.
        column: String,
        /// Its type in the snapshot.
        from: String,
        /// Its type in the job.
        to: String,
    },
    /// The job has no such column.
    Removed {
        /// In the snapshot.
        column: String,
    },
    /// The snapshot has no such column.
    Added {
        /// In the job.
        column: String,
    },
}

impl ColumnChange {
    /// Whether the state can be restored in spite of it.
    pub fn is_compatible(&self) -> bool {
        matches!(self, ColumnChange::Renamed { .. })
    }
}

/// State that no operator takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedState {
    /// Under which the snapshot holds it.
    pub uid: OperatorUid,
    /// What the operator was called, if its job is still known.
    pub name: Option<String>,
    /// Its state tables.
    pub tables: Vec<String>,
    /// Their rows.
    pub rows: u64,
    /// Their bytes in files.
    pub bytes: u64,
    /// Positions of a source.
    pub splits: u64,
}

/// Where a source goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// Its uid.
    pub uid: OperatorUid,
    /// The table's name.
    pub table: String,
    /// The stream, if it reads one.
    pub stream: Option<String>,
    /// Its splits, in order.
    pub splits: Vec<SplitPlan>,
}

/// Where a split goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitPlan {
    /// Its name.
    pub split: String,
    /// The next record that is read.
    pub offset: u64,
    /// How that comes about.
    #[serde(flatten)]
    pub fate: SplitFate,
}

/// What is known of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum SplitFate {
    /// It goes on where the snapshot left off.
    Continues {
        /// Records that are there to be read now; none: unknown.
        behind: Option<u64>,
    },
    /// The snapshot had read it to its end.
    Finished,
    /// The snapshot does not know it: it is read from its beginning.
    Added,
    /// Refused: records that were not read yet are gone.
    Truncated {
        /// The oldest record that is left.
        head: u64,
        /// How many are gone.
        lost: u64,
    },
    /// Refused: it is shorter than what was read of it.
    TooShort {
        /// Where it ends.
        end: u64,
    },
    /// Refused: there is no such split any more.
    Missing,
}

/// What a restore takes from one quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaNeed {
    /// Where the quota applies.
    pub level: QuotaLevel,
    /// What it limits.
    pub dimension: QuotaDimension,
    /// The limit, in the dimension's unit; none: there is none.
    pub limit: Option<u64>,
    /// What is in use.
    pub used: u64,
    /// What the restore takes at once: with `claim` what moves to this level.
    pub at_once: u64,
    /// What the job's first checkpoint will take on top, which is full.
    pub first_checkpoint: u64,
}
