//! Removing what a snapshot that failed has left.
//!
//! Invariant: its files are removed, and its bytes are given back, when every TaskManager of its attempt has confirmed that nobody there writes them any
//! more, or when the time for that has passed; what a TaskManager writes that comes back later still, the collector finds.

use std::collections::BTreeSet;

use weir_coordination::metadata::{Command, SnapshotEntry};
use weir_types::control::{SnapshotOutcome, ToTaskManager, WritersStopped};
use weir_types::ids::{Attempt, JobId, SnapshotId, TaskManagerId};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::{Leader, Then};
use crate::event::Event;
use crate::metadata::now;
use crate::storage;

/// After which time a removal that failed is tried again.
const RETRY_MS: u64 = 1_000;

/// A snapshot that failed and whose files are not removed yet.
pub(super) struct Sweep {
    entry: SnapshotEntry,
    /// What its writers are told until they have confirmed it.
    outcome: SnapshotOutcome,
    /// Who has not confirmed yet.
    writers: BTreeSet<TaskManagerId>,
    /// When it is swept, whoever has not confirmed; none: it is being swept.
    at: Option<Millis>,
}

impl Leader {
    /// The TaskManagers of an attempt, if it is the job's newest.
    pub(super) fn placed_on(&self, job: &JobId, attempt: Attempt) -> BTreeSet<TaskManagerId> {
        self.state(|state| {
            let record = state.jobs.get(job).filter(|record| record.attempt == attempt);
            let placements = record.into_iter().flat_map(|record| &record.placements);
            placements.map(|placement| placement.task_manager.clone()).collect()
        })
    }

    /// Sweeps a snapshot that failed and whose writers were told, as soon as nobody writes it any more.
    pub(super) fn begin_sweep(&mut self, entry: SnapshotEntry, failure: Error) {
        let snapshot = entry.id.clone();
        if self.sweeps.contains_key(&snapshot) {
            return;
        }
        let writers = self.placed_on(&entry.job, entry.attempt);
        let outcome = SnapshotOutcome {
            term: self.term,
            job: entry.job.clone(),
            attempt: entry.attempt,
            barrier: entry.barrier,
            snapshot: snapshot.clone(),
            failure: Some(failure),
        };
        let at = Some(now().plus(self.config.snapshots.writers_timeout_ms));
        self.sweeps.insert(snapshot.clone(), Sweep { entry, outcome, writers, at });
        self.sweep_if_stopped(&snapshot);
    }

    /// Tells everybody who may still be writing a snapshot.
    pub(super) fn remind_writers(&mut self) {
        let all: Vec<TaskManagerId> = self.sessions.keys().cloned().collect();
        all.iter().for_each(|task_manager| self.remind_writer(task_manager));
    }

    /// Tells a TaskManager that is back of the snapshots which it may still be writing.
    pub(super) fn remind_writer(&mut self, task_manager: &TaskManagerId) {
        let term = self.term;
        let reminders = self.sweeps.values().filter(|sweep| sweep.writers.contains(task_manager));
        let reminders: Vec<_> = reminders.map(|sweep| SnapshotOutcome { term, ..sweep.outcome.clone() }).collect();
        for outcome in reminders {
            self.send(task_manager, ToTaskManager::SnapshotOutcome(outcome));
        }
    }

    pub(super) fn on_writers_stopped(&mut self, task_manager: &TaskManagerId, stopped: &WritersStopped) {
        let Some(sweep) = self.sweeps.get_mut(&stopped.snapshot) else { return };
        if sweep.writers.remove(task_manager) {
            tracing::debug!(%task_manager, snapshot = %stopped.snapshot, "writers stopped");
            self.sweep_if_stopped(&stopped.snapshot);
        }
    }

    fn sweep_if_stopped(&mut self, snapshot: &SnapshotId) {
        if self.sweeps.get(snapshot).is_some_and(|sweep| sweep.writers.is_empty() && sweep.at.is_some()) {
            self.sweep(snapshot);
        }
    }

    /// Sweeps what is due.
    pub(super) fn sweep_due(&mut self, now: Millis) {
        let due = self.sweeps.iter().filter(|(_, sweep)| sweep.at.is_some_and(|at| at <= now));
        let due: Vec<SnapshotId> = due.map(|(snapshot, _)| snapshot.clone()).collect();
        due.iter().for_each(|snapshot| self.sweep(snapshot));
    }

    /// When [`Leader::sweep_due`] next has something to do.
    pub(super) fn next_sweep(&self) -> Option<Millis> {
        self.sweeps.values().filter_map(|sweep| sweep.at).min()
    }

    fn sweep(&mut self, snapshot: &SnapshotId) {
        let Some(sweep) = self.sweeps.get_mut(snapshot) else { return };
        sweep.at = None;
        for task_manager in std::mem::take(&mut sweep.writers) {
            tracing::warn!(%snapshot, %task_manager, "sweeping a snapshot that this task manager has not let go of");
        }
        let (snapshot, entry) = (snapshot.clone(), sweep.entry.clone());
        self.work(async move {
            let result = storage::remove(&entry).await;
            Event::Swept { snapshot, result }
        });
    }

    pub(super) fn on_swept(&mut self, snapshot: &SnapshotId, result: Result<()>) {
        let Some(sweep) = self.sweeps.get_mut(snapshot) else { return };
        match result {
            Ok(()) => {
                tracing::info!(%snapshot, step = "swept", "swept");
                self.sweeps.remove(snapshot);
                self.commit(Command::Swept { snapshot: snapshot.clone() }, Then::Nothing);
            }
            Err(error) => {
                tracing::warn!(%snapshot, code = %error.code, %error, "could not sweep a failed snapshot yet");
                sweep.at = Some(now().plus(RETRY_MS));
            }
        }
    }
}
