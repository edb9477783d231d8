//! Savepoints of other clusters that become this cluster's own: reserved, copied, and completed like any other.
//!
//! Invariants: an imported savepoint belongs to no job of this cluster, whatever its manifest says: it stands under an id of
//! its own, and under that of a job which nobody else can have. Nothing is in the catalogue twice.

use weir_types::ids::{Attempt, BarrierId, ClusterId, JobId, Nonce, Parallelism, RequestId, SnapshotId};
use weir_types::quota::{check_namespace, check_owner, or_default};
use weir_types::snapshot::{Annotations, SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::command::{Applied, Reply};
use super::{SnapshotEntry, State};
use crate::checkpoint::{Trigger, short};

/// Imports that have failed and are remembered.
const FAILED_MAX: usize = 20;

/// Where an imported savepoint comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The cluster that took it.
    pub cluster: ClusterId,
    /// Its id there.
    pub snapshot: SnapshotId,
    /// The job that it was taken of, there.
    pub job: JobId,
    /// When it was complete there.
    pub taken_at: Millis,
    /// From where its files were copied.
    pub directory: String,
}

/// A savepoint that was found whole and is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The client's name for the request.
    pub request: Option<RequestId>,
    /// Its id here.
    pub snapshot: SnapshotId,
    /// Stands for the job that it was taken of.
    pub job: JobId,
    /// That job's name; quotas and policies of jobs apply by it.
    pub job_name: String,
    /// Whose it is; empty: the default owner's.
    pub owner: String,
    /// Where its quotas apply; empty: the default namespace.
    pub namespace: String,
    /// What people say about it.
    pub annotations: Annotations,
    /// Its place in the order of the job that it was taken of.
    pub barrier: BarrierId,
    /// Its manifest's.
    pub nonce: Nonce,
    /// Where its files go.
    pub directory: String,
    /// When it is given up if it has not completed.
    pub deadline: Millis,
    /// The parallelism of the job that it was taken of.
    pub parallelism: Parallelism,
    /// Hash of the job graph that ran.
    pub plan_hash: String,
    /// Bytes of all files and of the manifest.
    pub bytes: u64,
    /// Where it comes from.
    pub origin: Origin,
}

impl SnapshotEntry {
    /// The job that it was taken of, for people: of an imported savepoint, a job of another cluster.
    pub fn taken_of(&self) -> &JobId {
        self.origin.as_ref().map_or(&self.job, |origin| &origin.job)
    }

    /// The id that it was taken under, which is in its manifest.
    pub fn taken_as(&self) -> &SnapshotId {
        self.origin.as_ref().map_or(&self.id, |origin| &origin.snapshot)
    }
}

impl State {
    /// Whether a savepoint is in the catalogue already, as itself or imported.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, naming it.
    pub fn check_import(&self, origin: &Origin, nonce: &Nonce) -> Result<()> {
        let is_there = |entry: &&SnapshotEntry| {
            entry.nonce == *nonce && !matches!(entry.state, SnapshotState::Failed | SnapshotState::Deleting)
        };
        match self.snapshots.values().find(is_there) {
            Some(entry) => Err(Error::new(
                Code::AlreadyExists,
                format!("savepoint {} of cluster {} is in the catalogue already", origin.snapshot, origin.cluster),
            )
            .with_detail(format!("as {}, in {}", entry.id, entry.directory))),
            None => Ok(()),
        }
    }

    pub(super) fn import(&mut self, now: Millis, import: Import) -> Reply {
        if let Some(entry) = self.snapshots.get(&import.snapshot) {
            return super::snapshots::reserved_before(entry, &import.nonce);
        }
        self.check_import(&import.origin, &import.nonce)?;
        if self.known_jobs().any(|id| short(id) == short(&import.job)) {
            let message = format!("a job whose id begins with {} exists already", short(&import.job));
            return Err(Error::new(Code::AlreadyExists, message).with_hint("Try again."));
        }
        let (owner, namespace) = (or_default(import.owner), or_default(import.namespace));
        check_owner(&owner)?;
        check_namespace(&namespace)?;
        let entry = SnapshotEntry {
            id: import.snapshot.clone(),
            kind: SnapshotKind::Savepoint,
            job: import.job,
            job_name: import.job_name,
            owner,
            namespace,
            annotations: import.annotations,
            state: SnapshotState::Queued,
            trigger: Trigger::Import,
            barrier: import.barrier,
            attempt: Attempt(0),
            nonce: import.nonce,
            directory: import.directory,
            triggered_at: now,
            started_at: None,
            deadline: import.deadline,
            ended_at: None,
            charged_bytes: 0,
            estimate_bytes: import.bytes,
            bytes: 0,
            written_bytes: 0,
            rows: 0,
            parallelism: import.parallelism,
            failure: None,
            restored_from: None,
            shares: Vec::new(),
            sources: Vec::new(),
            subtasks: 0,
            plan_hash: import.plan_hash,
            verified: None,
            unrestorable: None,
            deletion: None,
            claim: None,
            origin: Some(import.origin),
            failures: 0,
            first_failed_at: None,
        };
        let (room, queued) = (self.check_limits(now, &entry, &[]), self.full_level(&entry).is_some());
        self.snapshots.insert(entry);
        match room {
            Ok(()) if !queued => self.begin(now, &import.snapshot),
            Ok(()) => {}
            Err(error) => {
                self.fail(now, &import.snapshot, error.clone());
                return Err(error);
            }
        }
        Ok(Applied { snapshot: Some(import.snapshot), queued, ..Applied::default() })
    }

    /// Forgets the oldest imports that have failed: each is of another job, and so no job's number of failures bounds them.
    pub(super) fn forget_failed_imports(&mut self) {
        let failed = self.snapshots.values().filter(|entry| entry.origin.is_some() && entry.is_over());
        let mut failed: Vec<_> = failed.map(|entry| (entry.triggered_at, entry.id.clone())).collect();
        failed.sort();
        let excess = failed.len().saturating_sub(FAILED_MAX);
        for (_, oldest) in failed.drain(..excess) {
            self.snapshots.remove(&oldest);
        }
    }

    /// Every job that has left a trace.
    pub(super) fn known_jobs(&self) -> impl Iterator<Item = &JobId> {
        self.jobs.keys().chain(self.snapshots.values().map(|entry| &entry.job))
    }
}
