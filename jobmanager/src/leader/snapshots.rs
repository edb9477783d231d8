//! Carries out what the coordinators of snapshots decide: commits, reader groups, barriers, manifests, notices, removal.

use weir_coordination::checkpoint::{Action, Contents, Event as Step, Reservation};
use weir_coordination::metadata::{Applied, Command, Completion, JobRecord, Reply, Reserve, SnapshotEntry};
use weir_coordination::scheduler;
use weir_proto::pb::client::v1 as pb;
use weir_service::failpoint;
use weir_types::control::{SnapshotOutcome, ToTaskManager, TriggerBarrier};
use weir_types::ids::{BarrierId, JobId, Nonce, RequestId, SnapshotId};
use weir_types::snapshot::{Barrier, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::{Leader, Then, answer, trail};
use crate::event::{Draft, Event};
use crate::metadata::now;
use crate::{sources, storage};

/// After which time a removal that failed is tried again; mostly the store was down, and comes back soon.
const REMOVAL_RETRY_MS: u64 = 1_000;

impl Leader {
    /// Lets a job's coordinator decide, and carries out what it says.
    pub(super) fn coordinate(&mut self, job: &JobId, event: Step) {
        trail::log(job, &event);
        trail::passed(&event);
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
        trail::next(&action);
        match action {
            Action::Settle(snapshot) => self.settle(job, snapshot),
            Action::Reserve(reservation) => self.reserve(job, reservation),
            Action::StartGroups(snapshot) => self.start_groups(job, snapshot),
            Action::SendBarriers(barrier) => self.send_barriers(job, barrier),
            Action::Publish(snapshot, contents) => self.publish(job, snapshot, *contents),
            Action::PersistComplete(snapshot, contents) => self.persist_complete(job, snapshot, *contents),
            Action::MarkAborted(snapshot) => self.mark_aborted(job, snapshot),
            Action::PersistAbort(snapshot, failure) => {
                tracing::warn!(%job, %snapshot, step = "failed", code = %failure.code, error = %failure, "snapshot failed");
                metrics::counter!("weir_snapshots_failed_total").increment(1);
                let Some(nonce) = self.entry(&snapshot).map(|entry| entry.nonce) else { return };
                self.close_account(&snapshot);
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
                let failure = entry.failure.clone().unwrap_or_else(|| Error::internal("a failure without a reason"));
                self.begin_sweep(entry, failure);
            }
            Action::Answer(request, result) => self.answer_request(&request, result),
            Action::RestartJob(error) => {
                if let Some(attempt) = self.scheduler.attempt(job) {
                    self.schedule(scheduler::Event::Broken(job.clone(), attempt, error));
                }
            }
            Action::ResumeJob(error) => {
                if let Some(attempt) = self.scheduler.attempt(job) {
                    self.schedule(scheduler::Event::Resumed(job.clone(), attempt, error));
                }
            }
            Action::AbandonStop => self.schedule(scheduler::Event::StopAbandoned(job.clone())),
        }
    }

    pub(super) fn record(&self, job: &JobId) -> Option<JobRecord> {
        self.state(|state| state.jobs.get(job).cloned())
    }

    pub(super) fn entry(&self, snapshot: &SnapshotId) -> Option<SnapshotEntry> {
        self.state(|state| state.snapshots.get(snapshot).cloned())
    }

    fn reserve(&mut self, job: &JobId, reservation: Reservation) {
        let Reservation {
            snapshot, barrier, kind, trigger, attempt, request, directory, deadline_ms, subtasks, ..
        } = reservation;
        tracing::info!(%job, %snapshot, step = "reserving", trigger = trigger.as_str(), directory, "reserving");
        let (owner, annotations) =
            request.as_ref().map(|r| (r.owner.clone(), r.annotations.clone())).unwrap_or_default();
        let evict = request.as_ref().is_some_and(|request| request.evict);
        let plan_hash = self.state(|state| state.jobs.get(job).map(|job| storage::graph_hash(&job.graph)));
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
            annotations,
            plan_hash: plan_hash.unwrap_or_default(),
            subtasks,
            evict,
            estimate_bytes: self.reservation_bytes(job, kind),
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
        tracing::info!(%job, snapshot = %barrier.snapshot, step = "barriers sent", barrier = %barrier.id, "sending barriers");
        if let Some(entry) = self.entry(&barrier.snapshot) {
            self.open_account(&entry);
        }
        let barrier = Barrier { base: self.state(|state| state.base_of_next(job)), ..barrier };
        let trigger = TriggerBarrier { term: self.term, job: job.clone(), attempt, barrier };
        for task_manager in self.scheduler.task_managers_of(job) {
            self.send(&task_manager, ToTaskManager::Trigger(trigger.clone()));
        }
    }

    fn publish(&mut self, job: &JobId, snapshot: SnapshotId, contents: Contents) {
        let (Some(record), Some(entry)) = (self.record(job), self.entry(&snapshot)) else { return };
        let (job, store, cluster) = (job.clone(), self.store.clone(), self.cluster.clone());
        tracing::info!(%job, %snapshot, step = "acknowledged", bytes = contents.bytes, rows = contents.rows, "publishing");
        self.work(async move {
            let (of, id) = (job.clone(), snapshot.clone());
            let draft = async move {
                sources::acknowledge_groups(&store, &record, entry.attempt, &id, &contents.sources).await?;
                let (directory, written) = (entry.directory.clone(), contents.written_bytes(&id));
                let manifest = storage::manifest(cluster, &record, &entry, contents);
                let (manifest, bytes) = storage::measure(manifest).await?;
                Ok(Box::new(Draft { job: of, snapshot: id, directory, manifest, written, bytes }))
            };
            let draft = draft.await;
            Event::Drafted { job, snapshot, draft }
        });
    }

    /// The manifest's bytes are charged before it is written, like any others.
    pub(super) fn on_drafted(&mut self, job: &JobId, snapshot: SnapshotId, draft: Result<Box<Draft>>) {
        let draft = match draft {
            Ok(draft) => draft,
            Err(error) => return self.coordinate(job, Step::Published(snapshot, Err(error))),
        };
        if !self.is_publishing(job, &snapshot) {
            return;
        }
        match self.settle_manifest(&snapshot, draft.written, draft.bytes) {
            None => self.publish_draft(*draft, Ok(Applied::default())),
            Some((nonce, bytes)) => {
                self.commit(Command::Grant { snapshot, nonce, bytes }, Then::ManifestGranted(draft));
            }
        }
    }

    /// Whether a draft is still wanted. Once its snapshot's time is up, its place is marked and perhaps swept.
    fn is_publishing(&self, job: &JobId, snapshot: &SnapshotId) -> bool {
        self.jobs.get(job).is_some_and(|live| live.coordinator.is_publishing(snapshot))
    }

    pub(super) fn publish_draft(&mut self, draft: Draft, granted: Reply) {
        let Draft { job, snapshot, directory, manifest, .. } = draft;
        if let Err(error) = granted {
            return self.coordinate(&job, Step::Published(snapshot, Err(error)));
        }
        if !self.is_publishing(&job, &snapshot) {
            return;
        }
        self.work(async move {
            let published = storage::publish(directory, manifest).await;
            Event::Step { job, event: Step::Published(snapshot, published) }
        });
    }

    fn persist_complete(&mut self, job: &JobId, snapshot: SnapshotId, mut contents: Contents) {
        let Some(nonce) = self.entry(&snapshot).map(|entry| entry.nonce) else { return };
        // One that an earlier JobManager has published says itself how long it is.
        contents.manifest_bytes = self.manifest_bytes(&snapshot).unwrap_or(contents.manifest_bytes);
        self.close_account(&snapshot);
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

    /// A reservation was committed; one that waits for its turn is told when that has come.
    pub(super) fn on_reserved(&mut self, job: &JobId, snapshot: SnapshotId, reply: Reply) {
        match reply {
            Ok(applied) => {
                let Applied { retired, queued, .. } = applied;
                for evicted in &retired {
                    tracing::info!(%job, %snapshot, %evicted, "a savepoint makes room for another one");
                }
                if queued {
                    tracing::info!(%job, %snapshot, step = "queued", "waiting for a place");
                    self.coordinate(job, Step::Queued(snapshot));
                } else if retired.is_empty() {
                    self.coordinate(job, Step::Reserved(snapshot, Ok(())));
                } else {
                    let waiting = (job.clone(), retired.iter().cloned().collect());
                    self.evictions.insert(snapshot.clone(), waiting);
                    self.coordinate(job, Step::Queued(snapshot));
                }
                retired.into_iter().for_each(|evicted| self.remove_snapshot(evicted));
            }
            Err(error) => self.refused(job, snapshot, error),
        }
    }

    /// No barrier was sent, and none will be; yet everybody who had to do with the snapshot is told why.
    fn refused(&mut self, job: &JobId, snapshot: SnapshotId, error: Error) {
        if let Some(entry) = self.entry(&snapshot) {
            self.notify(job, snapshot.clone(), entry.barrier, Some(error.clone()));
        }
        if let Some(record) = self.record(job) {
            let (store, snapshot, error) = (self.store.clone(), snapshot.clone(), error.clone());
            tokio::spawn(async move { sources::note_refusal(&store, &record, &snapshot, &error).await });
        }
        self.coordinate(job, Step::Reserved(snapshot, Err(error)));
    }

    /// The turn of a snapshot that waited has come.
    pub(super) fn on_admitted(&mut self, snapshot: SnapshotId) {
        let Some(entry) = self.entry(&snapshot) else { return };
        if entry.origin.is_some() {
            return self.on_import_admitted(snapshot, entry.failure);
        }
        match entry.failure {
            Some(failure) if entry.state == SnapshotState::Failed => self.refused(&entry.job, snapshot, failure),
            _ => self.coordinate(&entry.job, Step::Reserved(snapshot, Ok(()))),
        }
    }

    pub(super) fn on_completed(&mut self, job: &JobId, snapshot: SnapshotId, reply: Reply) {
        let result = reply.map(|applied| {
            let entry = self.entry(&snapshot);
            let stopped = self.state(|state| state.jobs.get(job).is_some_and(|job| job.stopped_by.is_some()));
            if let Some(entry) = entry {
                let ms = entry.ended_at.map_or(0, |at| at.since(entry.triggered_at));
                tracing::info!(%job, %snapshot, step = "completed", ms, bytes = entry.bytes, "snapshot completed");
                metrics::counter!("weir_snapshots_completed_total").increment(1);
                metrics::histogram!("weir_snapshot_seconds").record(ms as f64 / 1e3);
            }
            if stopped {
                self.schedule(scheduler::Event::StopCompleted(job.clone()));
            }
            self.after_change(applied);
        });
        self.coordinate(job, Step::Completed(snapshot.clone(), result));
        self.answer_settled(&snapshot);
    }

    /// Removes what a commit has retired.
    pub(super) fn after_change(&mut self, applied: Applied) {
        if !applied.retired.is_empty() {
            failpoint::reach("retire.mark");
        }
        for snapshot in applied.retired {
            self.remove_snapshot(snapshot);
        }
        if let Some(job) = applied.job {
            self.touch(&job);
            self.discharge(&job);
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
        tracing::debug!(%snapshot, step = "positions kept", "reader groups and pins have followed");
        failpoint::reach("snapshot.kept");
        self.keeping.remove(&snapshot);
        self.remove_snapshot(snapshot);
    }

    fn notify(&mut self, job: &JobId, snapshot: SnapshotId, barrier: BarrierId, failure: Option<Error>) {
        let Some(attempt) = self.entry(&snapshot).map(|entry| entry.attempt) else { return };
        let outcome = SnapshotOutcome { term: self.term, job: job.clone(), attempt, barrier, snapshot, failure };
        for task_manager in self.placed_on(job, attempt) {
            self.send(&task_manager, ToTaskManager::SnapshotOutcome(outcome.clone()));
        }
    }

    pub(super) fn answer_request(&mut self, request: &RequestId, result: Result<SnapshotId>) {
        if let Some(rescaling) = self.rescales.remove(request) {
            return self.on_rescale_snapshot(rescaling, result);
        }
        let waiters = self.waiters.remove(request).unwrap_or_default();
        if let Ok(snapshot) = &result
            && let Some(job) = self.is_stopping(snapshot)
        {
            let waiters = waiters.into_iter().map(|waiter| (snapshot.clone(), waiter));
            return self.stops.entry(job).or_default().extend(waiters);
        }
        let result = match result {
            Ok(snapshot) => self.snapshot_view(&snapshot),
            Err(error) => Err(self.naming_evicted(request, error)),
        };
        for waiter in waiters {
            answer(waiter, result.clone());
        }
    }

    /// Answers whoever has asked again for a snapshot that an earlier JobManager had left in flight.
    pub(super) fn answer_settled(&mut self, snapshot: &SnapshotId) {
        let under_way = |state| matches!(state, SnapshotState::Queued | SnapshotState::InProgress);
        if self.entry(snapshot).is_none_or(|entry| under_way(entry.state)) {
            return;
        }
        let of = |request: &&RequestId| {
            self.answered(request).is_some_and(|reply| reply.is_ok_and(|of| of.snapshot.as_ref() == Some(snapshot)))
        };
        let requests: Vec<RequestId> = self.waiters.keys().chain(self.rescales.keys()).filter(of).cloned().collect();
        let failure = self.entry(snapshot).and_then(|entry| entry.failure);
        for request in requests {
            let result = failure.clone().map_or_else(|| Ok(snapshot.clone()), Err);
            self.answer_request(&request, result);
        }
    }

    /// Gives up a snapshot because a user wants that.
    pub(super) fn cancel_snapshot(&mut self, wanted: &pb::SnapshotRequest) -> Result<pb::Snapshot> {
        let (snapshot, namespace) = (&wanted.snapshot, wanted.namespace.as_deref());
        let entry = match self.state(|state| state.find_snapshot(snapshot, namespace).cloned()) {
            Ok(entry) => entry,
            Err(_) if self.cancel_examination(snapshot) => {
                return Ok(pb::Snapshot { directory: snapshot.clone(), savepoint: true, ..pb::Snapshot::default() });
            }
            Err(error) => return Err(error),
        };
        let over = |why: &str| Error::new(Code::FailedPrecondition, format!("snapshot {} {why}", entry.id));
        if !matches!(entry.state, SnapshotState::Queued | SnapshotState::InProgress) {
            return Err(over(&format!("is {} already", entry.state)));
        }
        if self.is_importing(&entry.id) {
            self.cancel_import(&entry.id);
            return self.snapshot_view(&entry.id);
        }
        let can = self.jobs.get(&entry.job).is_some_and(|live| live.coordinator.can_cancel(&entry.id));
        if !can {
            return Err(over("is ending already").with_hint("Wait for its end: `weir snapshots list` shows it."));
        }
        tracing::info!(job = %entry.job, snapshot = %entry.id, step = "cancelled", "cancelled by a user");
        self.coordinate(&entry.job, Step::Cancelled(entry.id.clone()));
        self.snapshot_view(&entry.id)
    }

    /// What has become of a request for a snapshot.
    pub(super) fn request_view(&self, request: &str) -> Result<pb::SnapshotProgress> {
        let id = RequestId::new(request)?;
        let waiting = self.jobs.values().find_map(|live| live.coordinator.waiting().position(|wants| wants.id == id));
        if let Some(before) = waiting {
            // The snapshot in flight goes before all that wait.
            return Ok(pb::SnapshotProgress { ahead: before as u32 + 1, snapshot: None });
        }
        match self.answered(&id) {
            Some(Ok(Applied { snapshot: Some(snapshot), .. })) => {
                let view = self.snapshot_view(&snapshot)?;
                Ok(pb::SnapshotProgress { ahead: view.queue_position.saturating_sub(1), snapshot: Some(view) })
            }
            Some(Err(error)) => Err(error),
            _ if self.waiters.contains_key(&id) => Ok(pb::SnapshotProgress::default()),
            _ => Err(Error::not_found(format!("no request {id} is known"))),
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
        if self.keeping.contains(&snapshot) || self.removing.contains(&snapshot) {
            // Its pin may be made again until then; and one removal at a time is enough.
            return;
        }
        let Some(entry) = self.entry(&snapshot).filter(|entry| entry.state == SnapshotState::Deleting) else { return };
        let (record, store) = (self.record(&entry.job), self.store.clone());
        tracing::info!(%snapshot, directory = entry.directory, "removing");
        self.removing.insert(snapshot.clone());
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
        self.removing.remove(&snapshot);
        match result {
            Ok(()) => {
                failpoint::reach("delete.pins");
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

    /// Answers who wanted the snapshot gone, and lets go on who waited for its room.
    pub(super) fn answer_deletion(&mut self, snapshot: &SnapshotId) {
        let mut ready = Vec::new();
        self.evictions.retain(|savepoint, (job, evicted)| {
            evicted.remove(snapshot);
            if evicted.is_empty() {
                ready.push((job.clone(), savepoint.clone()));
            }
            !evicted.is_empty()
        });
        for (job, savepoint) in ready {
            self.coordinate(&job, Step::Reserved(savepoint, Ok(())));
        }
        for (to, reply) in self.deletions.remove(snapshot).unwrap_or_default() {
            answer(to, Ok(reply));
        }
    }
}
