//! Attempts: preparing, committing and deploying them, and what the scheduler decides about them.

use std::collections::BTreeMap;

use weir_coordination::checkpoint::{self, RunningAttempt, SourcePlan};
use weir_coordination::metadata::{Command, JobRecord, RecoveryPoint, Reply, StartAttempt};
use weir_coordination::scheduler::{self, Action, assign_splits};
use weir_state::manifest::Manifest;
use weir_stream_store::client::StoreClient;
use weir_types::control::{CancelAttempt, FinishAttempt, ToTaskManager};
use weir_types::deployment::{Deployment, Placement, Restore, SplitAssignment};
use weir_types::ids::{Attempt, JobId};
use weir_types::job::{JobChange, JobFailure};
use weir_types::snapshot::SourcePositions;
use weir_types::{Code, Error, Result};

use super::{Leader, Then};
use crate::event::{Event, Prepared, Unprepared};
use crate::metadata::now;
use crate::{extents, sources, storage};

impl Leader {
    /// Lets the scheduler decide, and carries out what it says.
    pub(super) fn schedule(&mut self, event: scheduler::Event) {
        for action in self.scheduler.on_event(now(), event) {
            match action {
                Action::StartAttempt(job, attempt, placements) => {
                    if let Some(live) = self.jobs.get_mut(&job) {
                        live.pending_start = Some((attempt, placements));
                    }
                    self.start_pending(&job);
                }
                Action::CancelAttempt(job, attempt, task_managers) => {
                    let cancel = CancelAttempt { term: self.term, job, attempt };
                    for task_manager in task_managers {
                        self.send(&task_manager, ToTaskManager::Cancel(cancel.clone()));
                    }
                }
                Action::FinishAttempt(job, attempt) => {
                    self.coordinate(&job, checkpoint::Event::Drained);
                    if let Some(live) = self.jobs.get_mut(&job) {
                        live.pending_finish = Some(attempt);
                    }
                    self.finish_pending(&job);
                }
                Action::ChangeJob(job, change, failure) => self.change_job(job, change, failure),
                Action::Grow(job, attempt) => self.grow(job, attempt),
                Action::Adopted(job, attempt) => {
                    tracing::info!(%job, %attempt, "attempt goes on under this job manager");
                    self.touch(&job);
                }
                Action::AttemptRunning(job, attempt) => self.attempt_running(&job, attempt),
                Action::AttemptEnded(job, attempt, error) => {
                    tracing::info!(%job, %attempt, %error, "attempt ended");
                    if let Some(live) = self.jobs.get_mut(&job) {
                        live.pending_start = None;
                        live.pending_finish = None;
                    }
                    self.coordinate(&job, checkpoint::Event::Ended(error));
                }
            }
        }
    }

    fn change_job(&mut self, job: JobId, change: JobChange, failure: Option<Box<JobFailure>>) {
        match failure.as_deref() {
            Some(JobFailure { attempt, subtask, task_manager, error, followed, .. }) => {
                let subtask = subtask.map(|(chain, index)| format!("{chain}/{index}")).unwrap_or_default();
                let task_manager = task_manager.as_ref().map(ToString::to_string).unwrap_or_default();
                metrics::counter!("weir_job_failures_total").increment(1);
                tracing::warn!(%job, %attempt, ?change, ?followed, subtask, task_manager, code = %error.code, %error,
                    "job changes");
            }
            None => tracing::info!(%job, ?change, "job changes"),
        }
        self.touch(&job);
        self.commit(Command::ChangeJob { job, change, failure }, Then::Nothing);
    }

    fn attempt_running(&mut self, job: &JobId, attempt: Attempt) {
        if let Some(live) = self.jobs.get_mut(job) {
            live.start.unconfirmed = 0;
        }
        let Some(running) = self.state(|state| state.jobs.get(job).map(|record| running_attempt(record, attempt)))
        else {
            return;
        };
        self.coordinate(job, checkpoint::Event::Started(running));
    }

    /// Starts the attempt that waits, unless a snapshot is in flight, which may become what the attempt starts from, or
    /// the one that it would start from is being looked at.
    pub(super) fn start_pending(&mut self, job: &JobId) {
        let Some(live) = self.jobs.get_mut(job) else { return };
        if live.coordinator.in_flight().is_some() || live.start.suspected.is_some() {
            return;
        }
        let Some((attempt, placements)) = live.pending_start.take() else { return };
        let Some(mut record) = self.state(|state| state.jobs.get(job).cloned()) else { return };
        if let Some(parallelism) = self.scheduler.parallelism(job) {
            record.set_parallelism(parallelism);
        }
        let point = match self.next_start(job) {
            Ok(point) => point,
            Err(error) => return self.schedule(scheduler::Event::Broken(job.clone(), attempt, error)),
        };
        self.note_start(job, attempt, point.as_ref());
        if let Some(live) = self.jobs.get_mut(job) {
            live.start.point.clone_from(&point);
        }
        let (job, store) = (job.clone(), self.store.clone());
        self.work(async move {
            let prepared = prepare(&store, &record, attempt, point).await;
            Event::Prepared { job, attempt, placements, prepared }
        });
    }

    /// Lets a drained attempt end, unless a snapshot is in flight.
    pub(super) fn finish_pending(&mut self, job: &JobId) {
        let Some(live) = self.jobs.get_mut(job) else { return };
        if live.coordinator.in_flight().is_some() {
            return;
        }
        let Some(attempt) = live.pending_finish.take() else { return };
        let finish = FinishAttempt { term: self.term, job: job.clone(), attempt };
        for task_manager in self.scheduler.task_managers_of(job) {
            self.send(&task_manager, ToTaskManager::Finish(finish.clone()));
        }
    }

    pub(super) fn on_prepared(
        &mut self,
        job: JobId,
        attempt: Attempt,
        placements: Vec<Placement>,
        prepared: Result<Prepared, Unprepared>,
    ) {
        // It may have been cancelled, or broken, while it was being prepared; one that has ended meanwhile has its groups
        // again.
        if let Some(ended) = self.state(|state| state.jobs.get(&job).filter(|job| job.state.is_terminal()).cloned()) {
            return self.delete_groups(ended);
        }
        if self.scheduler.attempt(&job) != Some(attempt) || self.scheduler.task_managers_of(&job).is_empty() {
            return;
        }
        match prepared {
            Ok(prepared) => {
                let point = self.jobs.get(&job).and_then(|live| live.start.point.as_ref());
                let start = StartAttempt {
                    job: job.clone(),
                    attempt,
                    placements: placements.clone(),
                    splits: prepared.splits.clone(),
                    from: point.map(RecoveryPoint::name),
                    passed_over: point.map(|point| point.passed_over.clone()).unwrap_or_default(),
                    parallelism: self.scheduler.parallelism(&job),
                };
                let then = Then::Deploy(job, attempt, placements, Box::new(prepared));
                self.commit(Command::StartAttempt(start), then);
            }
            Err(unprepared) => self.on_unprepared(job, attempt, unprepared),
        }
    }

    pub(super) fn on_attempt_committed(
        &mut self,
        job: JobId,
        attempt: Attempt,
        placements: Vec<Placement>,
        prepared: Prepared,
        reply: Reply,
    ) {
        if let Err(error) = reply {
            return self.schedule(scheduler::Event::Broken(job, attempt, error));
        }
        self.touch(&job);
        if self.record(&job).is_none_or(|record| record.committed_sinks().is_empty()) {
            return self.deploy(job, attempt, placements, prepared);
        }
        self.roll_back(job, attempt, placements, prepared);
    }

    /// Sends an attempt to its TaskManagers, unless it was cancelled, or broken, meanwhile.
    pub(super) fn deploy(&mut self, job: JobId, attempt: Attempt, placements: Vec<Placement>, prepared: Prepared) {
        let task_managers = self.scheduler.task_managers_of(&job);
        if self.scheduler.attempt(&job) != Some(attempt) || task_managers.is_empty() {
            return;
        }
        let Some(graph) = self.state(|state| state.jobs.get(&job).map(|record| record.graph.clone())) else { return };
        self.hosts.note(&job, &placements);
        let Prepared { splits, restore } = prepared;
        let deployment = Deployment {
            term: self.term,
            job: job.clone(),
            attempt,
            graph,
            placements,
            splits,
            restore,
            checkpoint_root: self.checkpoint_root.clone(),
            store_address: self.config.store_address.clone(),
        };
        tracing::info!(%job, %attempt, task_managers = task_managers.len(), "deploying");
        self.schedule(scheduler::Event::Deployed(job.clone(), attempt));
        for task_manager in task_managers {
            self.send(&task_manager, ToTaskManager::Deploy(Box::new(deployment.clone())));
        }
    }
}

/// Reads what an attempt starts from, and divides the splits: those of the snapshot where it left off, new ones from
/// their beginnings.
async fn prepare(
    store: &StoreClient,
    record: &JobRecord,
    attempt: Attempt,
    point: Option<RecoveryPoint>,
) -> Result<Prepared, Unprepared> {
    let manifest = match &point {
        Some(point) => Some(storage::read_named(point.clone()).await?),
        None => None,
    };
    let splits = divide_splits(record, manifest.as_ref())?;
    if manifest.is_some() {
        let position =
            |of: &SplitAssignment| SourcePositions { uid: of.uid.clone(), splits: vec![of.position.clone()] };
        let positions: Vec<_> = splits.iter().map(position).collect();
        if let Some(lost) = extents::lost(store, &record.sources, &positions).await? {
            return Err(Unprepared::CutOff(lost));
        }
    }
    // One that does not start from its own snapshot pins where it starts.
    let pin_start = point.as_ref().is_none_or(|point| !point.own);
    sources::assign_groups(store, record, attempt, &splits, pin_start).await?;
    let uids: Vec<_> = record.graph.operators.iter().filter_map(|operator| operator.uid.clone()).collect();
    let restore = point.zip(manifest).map(|(point, manifest)| Restore {
        directory: point.directory,
        operators: manifest.operators.into_iter().filter(|operator| uids.contains(&operator.uid)).collect(),
    });
    Ok(Prepared { splits, restore })
}

fn divide_splits(record: &JobRecord, manifest: Option<&Manifest>) -> Result<Vec<SplitAssignment>> {
    let mut assignments = Vec::new();
    for source in &record.sources {
        let positions = manifest.map(|manifest| manifest.operator(&source.uid)).unwrap_or_default();
        let mut positions: BTreeMap<String, _> = positions
            .into_iter()
            .flat_map(|operator| operator.splits)
            .map(|position| (position.split.clone(), position))
            .collect();
        let mut splits = Vec::with_capacity(source.splits.len());
        for split in &source.splits {
            splits.push(positions.remove(&split.split).unwrap_or_else(|| split.clone()));
        }
        if let Some((split, _)) = positions.pop_first() {
            return Err(Error::new(
                Code::InvalidArgument,
                format!("table {} has no split {split} any more, but the snapshot has a position in it", source.table),
            ));
        }
        assignments.extend(assign_splits(&source.uid, source.parallelism, splits));
    }
    Ok(assignments)
}

fn running_attempt(record: &JobRecord, attempt: Attempt) -> RunningAttempt {
    let source = |source: &weir_coordination::metadata::SourceRecord| SourcePlan {
        uid: source.uid.clone(),
        splits: source.splits.iter().map(|split| split.split.clone()).collect(),
    };
    RunningAttempt {
        attempt,
        subtasks: record.placements.iter().map(|placement| (placement.chain, placement.index)).collect(),
        sources: record.sources.iter().map(source).collect(),
    }
}
