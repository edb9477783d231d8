//! Carries out what the coordinators of snapshots decide: commits, reader groups, barriers, manifests, notices, removal.

use weir_coordination::checkpoint::{Action, Contents, Event as Step, Reservation};
use weir_coordination::metadata::{Applied, Command, Completion, JobRecord, Reply, Reserve, SnapshotEntry};
use weir_coordination::scheduler;
use weir_proto::pb::client::v1 as pb;
use weir_types::control::{SnapshotOutcome, ToTaskManager, TriggerBarrier};
use weir_types::ids::{BarrierId, JobId, Nonce, RequestId, SnapshotId};
use weir_types::snapshot::{Barrier, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::{Leader, Then, answer};
use crate::event::{Answer, Event};
use crate::metadata::now;
use crate::{sources, storage};

/// After which time a removal that failed is tried again; mostly the store was down, and comes back soon.
const REMOVAL_RETRY_MS: u64 = 1_000;

impl Leader {
    /// Lets a job's coordinator decide, and carries out what it says.
    pub(super) fn coordinate(&mut self, job: &JobId, event: Step) {
        let Some(live) = self.jobs.get_mut(job) else { return };
        let actions = live.coordinator.on_event(now(), event);
        for action in actions {
            self.act(job, action);
        }
        self.touch(job);
        self.start_pending(job);
        self.finish_pending(job);
        self.drop_if_ended(job);
    }

    fn act(&mut self, job: &JobId, action: Action) {
        match action {
            Action::Reserve(reservation) => self.reserve(job, reservation),
            Action::StartGroups(snapshot) => self.start_groups(job, snapshot),
            Action::SendBarriers(barrier) => self.send_barriers(job, barrier),
            Action::Publish(snapshot, contents) => self.publish(job, snapshot, *contents),
            Action::PersistComplete(snapshot, contents) => self.persist_complete(job, snapshot, *contents),
            Action::MarkAborted(snapshot) => self.mark_aborted(job, snapshot),
            Action::PersistAbort(snapshot, failure) => {
                tracing::warn!(%job, %snapshot, code = %failure.code, error = %failure, "snapshot failed");
                metrics::counter!("weir_snapshots_failed_total").increment(1);
                let Some(nonce) = self.entry(&snapshot).map(|entry| entry.nonce) else { return };
                let then = Then::Aborted(job.clone(), snapshot.clone());
                self.commit(Command::Abort { snapshot, nonce, failure }, then);
            }
            Action::NotifyComplete(snapshot, barrier) => self.notify_complete(job, snapshot, barrier),
            Action::NotifyAborted(snapshot, barrier, error) => self.notify(job, snapshot, barrier, Some(error)),
            Action::ReleaseGroups(snapshot) => {
                let Some(record) = self.record(job) else { return };
                let (store, garbage) = (self.store.clone(), self.garbage.clone());
                tokio::spawn(async move {
                    sources::release_groups(&store, &record, &snapshot).await;
                    garbage.notify_one();
                });
            }
            Action::Sweep(snapshot) => {
                let Some(entry) = self.entry(&snapshot) else { return };
                tokio::spawn(async move {
                    if let Err(error) = storage::remove(&entry).await {
                        tracing::warn!(%snapshot, code = %error.code, %error, "could not sweep a failed snapshot");
                    }
                });
            }
            Action::Answer(request, result) => self.answer_request(&request, result),
            Action::RestartJob(error) => {
                if let Some(attempt) = self.scheduler.attempt(job) {
                    self.schedule(scheduler::Event::Broken(job.clone(), attempt, error));
                }
            }
            Action::AbandonStop => self.schedule(scheduler::Event::StopAbandoned(job.clone())),
        }
    }

    fn record(&self, job: &JobId) -> Option<JobRecord> {
        self.state(|state| state.jobs.get(job).cloned())
    }

    fn entry(&self, snapshot: &SnapshotId) -> Option<SnapshotEntry> {
        self.state(|state| state.snapshots.get(snapshot).cloned())
    }

    fn reserve(&mut self, job: &JobId, reservation: Reservation) {
        let Reservation {
            snapshot, barrier, kind, trigger, attempt, request, directory, deadline_ms, subtasks, ..
        } = reservation;
        tracing::info!(%job, %snapshot, trigger = trigger.as_str(), directory, "reserving");
        let (owner, name) = request.as_ref().map(|r| (r.owner.clone(), r.name.clone())).unwrap_or_default();
        let reserve = Reserve {
            request: request.map(|request| request.id),
            snapshot: snapshot.clone(),
            job: job.clone(),
            kind,
            trigger,
            barrier,
            attempt,
            nonce: Nonce(uuid::Uuid::new_v4().simple().to_string()),
            directory,
            deadline: Millis(deadline_ms),
            owner,
            name,
            subtasks,
        };
        self.commit(Command::Reserve(Box::new(reserve)), Then::Reserved(job.clone(), snapshot));
    }

    fn start_groups(&mut self, job: &JobId, snapshot: SnapshotId) {
        let found = self.state(|state| {
            let entry = state.snapshots.get(&snapshot)?;
            let superseded = state.superseded_by_next(job);
            Some((state.jobs.get(job)?.clone(), entry.deadline, superseded))
        });
        let Some((record, deadline, superseded)) = found else { return };
        let (job, store) = (job.clone(), self.store.clone());
        self.work(async move {
            let started = sources::start_groups(&store, &record, &snapshot, deadline, &superseded).await;
            Event::Step { job, event: Step::GroupsStarted(snapshot, started) }
        });
    }

    fn send_barriers(&mut self, job: &JobId, barrier: Barrier) {
        let Some(attempt) = self.scheduler.attempt(job) else { return };
        tracing::info!(%job, snapshot = %barrier.snapshot, barrier = %barrier.id, "sending barriers");
        let trigger = TriggerBarrier { term: self.term, job: job.clone(), attempt, barrier };
        for task_manager in self.scheduler.task_managers_of(job) {
            self.send(&task_manager, ToTaskManager::Trigger(trigger.clone()));
        }
    }

    fn publish(&mut self, job: &JobId, snapshot: SnapshotId, contents: Contents) {
        let (Some(record), Some(entry)) = (self.record(job), self.entry(&snapshot)) else { return };
        let (job, store, cluster) = (job.clone(), self.store.clone(), self.cluster.clone());
        tracing::info!(%job, %snapshot, bytes = contents.bytes, rows = contents.rows, "publishing");
        self.work(async move {
            let published = async {
                sources::acknowledge_groups(&store, &record, entry.attempt, &snapshot, &contents.sources).await?;
                let directory = entry.directory.clone();
                storage::publish(directory, storage::manifest(cluster, &record, &entry, contents)).await
            };
            let published = published.await;
            Event::Step { job, event: Step::Published(snapshot, published) }
        });
    }

    fn persist_complete(&mut self, job: &JobId, snapshot: SnapshotId, contents: Contents) {
        let Some(nonce) = self.entry(&snapshot).map(|entry| entry.nonce) else { return };
        let completion = Completion { snapshot: snapshot.clone(), nonce, contents };
        self.commit(Command::Complete(Box::new(completion)), Then::Completed(job.clone(), snapshot));
    }

    fn mark_aborted(&mut self, job: &JobId, snapshot: SnapshotId) {
        let Some(entry) = self.entry(&snapshot) else { return };
        let job = job.clone();
        self.work(async move {
            let marked = storage::mark_aborted(&entry, "aborted by its JobManager".to_owned()).await;
            if let Err(error) = &marked {
                tracing::warn!(%snapshot, code = %error.code, %error, "could not write the abort marker");
            }
            Event::Step { job, event: Step::Marked(snapshot, marked.map(storage::marked)) }
        });
    }

    pub(super) fn on_completed(&mut self, job: &JobId, snapshot: SnapshotId, reply: Reply) {
        let result = reply.map(|applied| {
            let entry = self.entry(&snapshot);
            let stopped = self.state(|state| state.jobs.get(job).is_some_and(|job| job.stopped_by.is_some()));
            if let Some(entry) = entry {
                let ms = entry.ended_at.map_or(0, |at| at.since(entry.triggered_at));
                tracing::info!(%job, %snapshot, ms, bytes = entry.bytes, "snapshot completed");
                metrics::counter!("weir_snapshots_completed_total").increment(1);
                metrics::histogram!("weir_snapshot_seconds").record(ms as f64 / 1e3);
            }
            if stopped {
                self.schedule(scheduler::Event::StopCompleted(job.clone()));
            }
            self.after_change(applied);
        });
        self.coordinate(job, Step::Completed(snapshot, result));
    }

    /// Removes what a commit has retired.
    pub(super) fn after_change(&mut self, applied: Applied) {
        for snapshot in applied.retired {
            self.remove_snapshot(snapshot);
        }
        if let Some(job) = applied.job {
            self.touch(&job);
            self.release_ended(&job);
        }
    }

    fn notify_complete(&mut self, job: &JobId, snapshot: SnapshotId, barrier: BarrierId) {
        self.notify(job, snapshot.clone(), barrier, None);
        self.keep_positions(job, &snapshot);
    }

    /// Lets the reader groups and the pins follow a completed snapshot.
    pub(super) fn keep_positions(&mut self, job: &JobId, snapshot: &SnapshotId) {
        let (Some(record), Some(entry)) = (self.record(job), self.entry(snapshot)) else { return };
        self.keeping.insert(snapshot.clone());
        let store = self.store.clone();
        self.work(async move {
            sources::keep_positions(&store, &record, &entry).await;
            Event::Kept(entry.id)
        });
    }

    pub(super) fn on_kept(&mut self, snapshot: SnapshotId) {
        self.keeping.remove(&snapshot);
        self.remove_snapshot(snapshot);
    }

    fn notify(&mut self, job: &JobId, snapshot: SnapshotId, barrier: BarrierId, failure: Option<Error>) {
        let Some(attempt) = self.entry(&snapshot).map(|entry| entry.attempt) else { return };
        if self.scheduler.attempt(job) != Some(attempt) {
            return;
        }
        let outcome = SnapshotOutcome { term: self.term, job: job.clone(), attempt, barrier, snapshot, failure };
        for task_manager in self.scheduler.task_managers_of(job) {
            self.send(&task_manager, ToTaskManager::SnapshotOutcome(outcome.clone()));
        }
    }

    fn answer_request(&mut self, request: &RequestId, result: Result<SnapshotId>) {
        let waiters = self.waiters.remove(request).unwrap_or_default();
        if let Ok(snapshot) = &result
            && let Some(job) = self.is_stopping(snapshot)
        {
            let waiters = waiters.into_iter().map(|waiter| (snapshot.clone(), waiter));
            return self.stops.entry(job).or_default().extend(waiters);
        }
        let result = result.and_then(|snapshot| self.snapshot_view(&snapshot));
        for waiter in waiters {
            answer(waiter, result.clone());
        }
    }

    /// The job that a completed savepoint stops and that has not ended yet. Only with its end are its slots and the
    /// names of its reader groups free: a stop is answered then.
    pub(super) fn is_stopping(&self, snapshot: &SnapshotId) -> Option<JobId> {
        self.state(|state| {
            let job = state.jobs.get(&state.snapshots.get(snapshot)?.job)?;
            (job.stopped_by.as_ref() == Some(snapshot) && !job.state.is_terminal()).then(|| job.id.clone())
        })
    }

    /// Removes a snapshot that is marked: manifest, files, pins, then its entry.
    pub(super) fn remove_snapshot(&mut self, snapshot: SnapshotId) {
        self.removals.remove(&snapshot);
        if self.keeping.contains(&snapshot) {
            // Its pin may be made again until then.
            return;
        }
        let Some(entry) = self.entry(&snapshot).filter(|entry| entry.state == SnapshotState::Deleting) else { return };
        let (record, store) = (self.record(&entry.job), self.store.clone());
        tracing::info!(%snapshot, directory = entry.directory, "removing");
        self.work(async move {
            let removed = async {
                // A failed attempt's directory may be somebody else's: it has none of its own.
                if entry.failure.is_none() {
                    storage::remove(&entry).await?;
                }
                match &record {
                    Some(record) => sources::drop_pins(&store, record, &snapshot).await,
                    None => Ok(()),
                }
            };
            let result = removed.await;
            Event::Removed { snapshot, result }
        });
    }

    pub(super) fn on_removed(&mut self, snapshot: SnapshotId, result: Result<()>) {
        match result {
            Ok(()) => {
                let deleted = Then::Deleted(snapshot.clone());
                self.commit(Command::Deleted { snapshot }, deleted);
            }
            Err(error) => {
                tracing::warn!(%snapshot, code = %error.code, %error, "could not remove a snapshot yet");
                // It can never be used again, and is tried again until it is gone: that is all that can be said now.
                self.answer_deletion(&snapshot);
                self.removals.insert(snapshot, now().plus(REMOVAL_RETRY_MS));
            }
        }
    }

    pub(super) fn on_marked_deleted(
        &mut self,
        snapshot: SnapshotId,
        reply: Reply,
        to: Answer<pb::DeleteSnapshotReply>,
    ) {
        let result = reply.and_then(|_| self.snapshot_view(&snapshot));
        let result = result.map(|view| pb::DeleteSnapshotReply { bytes_freed: view.bytes, snapshot: Some(view) });
        match result {
            Ok(reply) => {
                self.deletions.entry(snapshot.clone()).or_default().push((to, reply));
                self.remove_snapshot(snapshot);
            }
            Err(error) => answer(to, Err(error)),
        }
    }

    /// Answers who wanted the snapshot gone.
    pub(super) fn answer_deletion(&mut self, snapshot: &SnapshotId) {
        for (to, reply) in self.deletions.remove(snapshot).unwrap_or_default() {
            answer(to, Ok(reply));
        }
    }
}
