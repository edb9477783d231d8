//! Clients' requests: submitting, cancelling, stopping, snapshots on demand, deletion.

use std::collections::BTreeSet;

use tokio::sync::watch;
use weir_coordination::checkpoint::{self, Config, Coordinator, Trigger};
use weir_coordination::metadata::{Command, JobRecord, NewJob, Reply};
use weir_coordination::scheduler::{self, JobPlan, Recovered};
use weir_proto::pb::client::v1 as pb;
use weir_service::failpoint;
use weir_types::control::{CancelAttempt, ToTaskManager};
use weir_types::ids::{JobId, RequestId, TaskManagerId};
use weir_types::job::JobState;
use weir_types::snapshot::{Annotations, SnapshotKind, SnapshotState, StopMode};
use weir_types::{Code, Error, Result};

use super::{Leader, LiveJob, Then, answer};
use crate::event::{Answer, Event, RefusedRestore, Request};
use crate::planning;
use crate::sources;

/// Scripts that may be planned at the same time; planning needs memory.
const PLANNING_MAX: usize = 16;

/// Ended jobs whose last counters are kept.
const ENDED_JOBS: usize = 100;

impl Leader {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Status(to) => answer(to, Ok(self.status_view())),
            Request::Submit(request, to) => self.submit(*request, to),
            Request::PlanRestore(request, to) => self.plan_restore(*request, to),
            Request::Jobs(request, to) => answer(to, Ok(self.jobs_view(&request))),
            Request::Job(wanted, to) => answer(to, self.wanted(&wanted).and_then(|job| self.job_view(&job))),
            Request::Watch(wanted, to) => answer(to, self.wanted(&wanted).map(|job| self.watch(job))),
            Request::Cancel(wanted, to) => {
                let cancelled = self.wanted(&wanted).and_then(|job| self.cancel(job));
                answer(to, cancelled);
            }
            Request::Trigger(request, to) => self.trigger(request, to),
            Request::Stop(request, to) => self.stop(request, to),
            Request::Rescale(request, to) => self.rescale(&request, to),
            Request::Snapshots(request, to) => answer(to, self.snapshots_view(&request)),
            Request::Explain(wanted, to) => self.explain(&wanted, to),
            Request::Snapshot(wanted, to) => answer(to, self.describe_snapshot(&wanted)),
            Request::CancelSnapshot(wanted, to) => {
                let cancelled = self.cancel_snapshot(&wanted);
                answer(to, cancelled);
            }
            Request::Progress(request, to) => answer(to, self.request_view(&request)),
            Request::SetQuota(request, to) => self.set_quota(request, to),
            Request::Quotas(request, to) => answer(to, self.quotas_view(&request)),
            Request::Verify(wanted, to) => self.verify(&wanted, to),
            Request::Delete(request, to) => self.delete(request, to),
            Request::Import(request, to) => self.import(request, to),
            Request::Annotate(request, to) => self.annotate(request, to),
            Request::Deleted(request, to) => answer(to, self.deleted_view(&request)),
            Request::Collect(request, to) => {
                let collector = self.collector();
                tokio::spawn(async move { answer(to, collector.asked(request).await) });
            }
            Request::SetPolicy(request, to) => self.set_policy(request, to),
            Request::RemovePolicy(request, to) => self.remove_policy(request, to),
            Request::Policies(request, to) => answer(to, self.policies_view(&request)),
        }
    }

    /// The job that a user means; a name means one of the namespace, if one is given.
    pub(super) fn find_job(&self, text: &str, namespace: Option<&str>) -> Result<JobId> {
        self.state(|state| state.find_job(text, namespace).map(|job| job.id.clone()))
    }

    pub(super) fn wanted(&self, request: &pb::JobRequest) -> Result<JobId> {
        self.find_job(&request.job, request.namespace.as_deref())
    }

    fn submit(&mut self, request: pb::SubmitRequest, to: Answer<pb::SubmitReply>) {
        let id = match request_id(&request.request_id) {
            Ok(id) => id,
            Err(error) => return answer(to, Err(error)),
        };
        if let Some(reply) = self.answered(&id) {
            return answer(to, reply.and_then(|applied| self.submitted_view(applied.job.as_ref())));
        }
        if let Some(waiting) = self.planning.get_mut(&id) {
            return waiting.push(to);
        }
        if self.planning.len() >= PLANNING_MAX {
            let error =
                Error::new(Code::ResourceExhausted, format!("{PLANNING_MAX} scripts are being planned already"));
            return answer(to, Err(error.with_hint("Try again in a moment.")));
        }
        let restore = match self.restoring(&request) {
            Ok(restore) => restore,
            Err(error) => return answer(to, Err(error)),
        };
        self.planning.insert(id.clone(), Vec::new());
        let (planner, store, node) = (self.planner.clone(), self.store.clone(), self.node.clone());
        let ended = self.ended_jobs();
        let snapshot = restore.as_ref().and_then(|restore| restore.record.snapshot.clone());
        self.work(async move {
            match planning::new_job(&planner, &store, &node, id.clone(), request, restore, &ended).await {
                Ok(job) => Event::Planned { request: id, answer: to, planned: Ok(Box::new(job)) },
                Err(why) => Event::Unrestorable { snapshot, why, refused: RefusedRestore::Submission(id, to) },
            }
        });
    }

    pub(super) fn answered(&self, request: &RequestId) -> Option<Reply> {
        self.state(|state| state.requests.get(request).map(|answered| answered.reply.clone()))
    }

    pub(super) fn on_planned(&mut self, request: RequestId, to: Answer<pb::SubmitReply>, planned: Result<Box<NewJob>>) {
        match planned {
            Ok(job) => {
                let id = job.id.clone();
                self.planning.entry(request).or_default();
                self.commit(Command::CreateJob(job), Then::Submitted(id, to));
            }
            Err(error) => {
                tracing::info!(code = %error.code, %error, "refused a script");
                for waiting in self.planning.remove(&request).unwrap_or_default() {
                    answer(waiting, Err(error.clone()));
                }
                answer(to, Err(error));
            }
        }
    }

    pub(super) fn on_submitted(&mut self, job: &JobId, reply: Reply, to: Answer<pb::SubmitReply>) {
        let result = reply.and_then(|applied| self.submitted_view(applied.job.as_ref()));
        let known: Vec<RequestId> = self
            .state(|state| self.planning.keys().filter(|request| state.requests.contains(request)).cloned().collect());
        for waiting in known.iter().filter_map(|request| self.planning.remove(request)).flatten() {
            answer(waiting, result.clone());
        }
        match &result {
            Ok(reply) => {
                tracing::info!(%job, name = reply.name, "job accepted");
                failpoint::reach("job.accepted");
            }
            Err(error) => tracing::warn!(%job, code = %error.code, %error, "job refused"),
        }
        answer(to, result);
        self.enter_job(job, None);
    }

    /// Takes a job that the metadata knows into the live state.
    pub(super) fn enter_job(&mut self, job: &JobId, recovered: Option<Recovered>) {
        if self.jobs.contains_key(job) {
            return;
        }
        let found = self.state(|state| {
            let record = state.jobs.get(job)?;
            Some((
                record.last_barrier,
                record.graph.options.clone(),
                JobPlan::new(job.clone(), &record.graph, record.parallelism_wanted, recovered),
            ))
        });
        let Some((last_barrier, options, plan)) = found else { return };
        let config = Config::new(&options, self.checkpoint_root.clone(), self.savepoint_root.clone());
        let live = LiveJob {
            coordinator: Coordinator::new(job.clone(), config, last_barrier),
            progress: Default::default(),
            changed: watch::channel(0).0,
            pending_start: None,
            pending_finish: None,
            start: Default::default(),
        };
        self.jobs.insert(job.clone(), live);
        self.schedule(scheduler::Event::Submitted(plan));
    }

    /// Lets go of what an ended job held in the store, and of its live state.
    pub(super) fn release_ended(&mut self, job: &JobId) {
        let record = self.state(|state| state.jobs.get(job).filter(|job| job.state.is_terminal()).cloned());
        if let Some(record) = record {
            tracing::info!(%job, state = %record.state, "job ended");
            self.forget_attempt(&record);
            self.delete_groups(record);
            for (snapshot, waiter) in self.stops.remove(job).unwrap_or_default() {
                answer(waiter, self.snapshot_view(&snapshot));
            }
            self.drop_if_ended(job);
        }
    }

    /// TaskManagers remember how subtasks have ended until they are told that this has been committed.
    fn forget_attempt(&mut self, record: &JobRecord) {
        let task_managers: BTreeSet<&TaskManagerId> = record.placements.iter().map(|p| &p.task_manager).collect();
        let cancel = CancelAttempt { term: self.term, job: record.id.clone(), attempt: record.attempt };
        for task_manager in task_managers {
            self.send(task_manager, ToTaskManager::Cancel(cancel.clone()));
        }
    }

    /// Deletes what a job that has ended keeps in the store.
    pub(super) fn delete_groups(&self, record: JobRecord) {
        let (store, garbage) = (self.store.clone(), self.garbage.clone());
        tokio::spawn(async move {
            sources::delete_groups(&store, &record).await;
            garbage.notify_one();
        });
    }

    /// Forgets the live state of an ended job once no snapshot is in flight.
    pub(super) fn drop_if_ended(&mut self, job: &JobId) {
        let ended = self.state(|state| state.jobs.get(job).is_none_or(|job| job.state.is_terminal()));
        if ended && self.jobs.get(job).is_some_and(|live| live.coordinator.in_flight().is_none()) {
            self.touch(job);
            if let Some(live) = self.jobs.remove(job) {
                if self.ended.len() == ENDED_JOBS {
                    self.ended.pop_front();
                }
                self.ended.push_back((job.clone(), live.progress));
            }
        }
    }

    fn watch(&self, job: JobId) -> (JobId, watch::Receiver<u64>) {
        // A job that has ended changes no more: its receiver says so at once.
        let changed = self.jobs.get(&job).map_or_else(|| watch::channel(0).1, |live| live.changed.subscribe());
        (job, changed)
    }

    fn cancel(&mut self, job: JobId) -> Result<pb::JobDetail> {
        let state = self.job_state(&job);
        if state.is_some_and(JobState::is_terminal) && state != Some(JobState::Cancelled) {
            let state = state.map(JobState::as_str).unwrap_or_default();
            return Err(Error::new(Code::FailedPrecondition, format!("job {job} is {state} already")));
        }
        self.schedule(scheduler::Event::Cancel(job.clone()));
        self.job_view(&job)
    }

    fn trigger(&mut self, request: pb::TriggerSnapshotRequest, to: Answer<pb::Snapshot>) {
        let kind = if request.savepoint { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint };
        let pb::TriggerSnapshotRequest {
            request_id,
            job,
            savepoint: _,
            directory,
            timeout_ms,
            owner,
            name,
            note,
            labels,
            pinned,
            namespace,
            evict_oldest,
        } = request;
        let annotations = Annotations { name, note, labels, pinned };
        let job = pb::JobRequest { request_id, job, namespace };
        let parts = Wanted { job, directory, timeout_ms, owner, annotations, evict: evict_oldest };
        self.want_snapshot(parts, kind, Trigger::User, to);
    }

    fn stop(&mut self, request: pb::StopJobRequest, to: Answer<pb::Snapshot>) {
        let pb::StopJobRequest { request_id, job, drain, directory, timeout_ms, owner, namespace } = request;
        let mode = if drain { StopMode::Drain } else { StopMode::Suspend };
        let job = pb::JobRequest { request_id, job, namespace };
        let parts = Wanted { job, directory, timeout_ms, owner, annotations: Annotations::default(), evict: false };
        self.want_snapshot(parts, SnapshotKind::Savepoint, Trigger::Stop(mode), to);
    }

    fn want_snapshot(&mut self, wanted: Wanted, kind: SnapshotKind, trigger: Trigger, to: Answer<pb::Snapshot>) {
        let request = match self.snapshot_request(wanted, kind, trigger) {
            Ok(request) => request,
            Err(error) => return answer(to, Err(error)),
        };
        let (job, request) = request;
        let id = request.id.clone();
        let Some(to) = self.find_again(&id, to) else { return };
        if matches!(trigger, Trigger::Stop(_)) {
            if self.job_state(&job) != Some(JobState::Running) {
                let state = self.job_state(&job).map(JobState::as_str).unwrap_or_default();
                let error = Error::new(Code::FailedPrecondition, format!("job {job} is {state}, not RUNNING"))
                    .with_hint("`weir cancel` ends a job that does not run, without a savepoint.");
                return answer(to, Err(error));
            }
            self.schedule(scheduler::Event::Stop(job.clone()));
        }
        self.waiters.entry(id.clone()).or_default().push(to);
        if self.jobs.contains_key(&job) {
            self.coordinate(&job, checkpoint::Event::Requested(request));
        } else {
            let error = Error::new(Code::FailedPrecondition, format!("job {job} has ended"));
            for waiter in self.waiters.remove(&id).unwrap_or_default() {
                answer(waiter, Err(error.clone()));
            }
        }
    }

    /// A retry of what was asked for before finds it again, whatever has become of it; otherwise whom to answer comes back.
    pub(super) fn find_again(&mut self, id: &RequestId, to: Answer<pb::Snapshot>) -> Option<Answer<pb::Snapshot>> {
        if let Some(waiting) = self.waiters.get_mut(id) {
            waiting.push(to);
            return None;
        }
        let applied = match self.answered(id) {
            None => return Some(to),
            Some(Err(error)) => {
                answer(to, Err(error));
                return None;
            }
            Some(Ok(applied)) => applied,
        };
        let Some(snapshot) = applied.snapshot else {
            answer(to, Err(Error::invalid(format!("request id {id} was used for something else"))));
            return None;
        };
        let view = self.snapshot_view(&snapshot);
        let under_way = [SnapshotState::Queued, SnapshotState::InProgress].map(|state| state.to_string());
        if view.as_ref().is_ok_and(|view| under_way.contains(&view.state)) {
            self.waiters.entry(id.clone()).or_default().push(to);
        } else if let Some(job) = self.is_stopping(&snapshot) {
            self.stops.entry(job).or_default().push((snapshot, to));
        } else {
            answer(to, view.and_then(finished));
        }
        None
    }

    fn snapshot_request(
        &self,
        wanted: Wanted,
        kind: SnapshotKind,
        trigger: Trigger,
    ) -> Result<(JobId, checkpoint::Request)> {
        let Wanted { job, directory, timeout_ms, owner, annotations, evict } = wanted;
        let directory = directory.filter(|directory| !directory.is_empty());
        if let Some(directory) = &directory
            && !directory.starts_with('/')
            && !directory.contains("://")
        {
            return Err(Error::invalid(format!("savepoint directory {directory:?} is not absolute")));
        }
        if let Some(directory) = &directory {
            self.check_savepoint_directory(directory)?;
        }
        annotations.check()?;
        let id = request_id(&job.request_id)?;
        let job = self.wanted(&job)?;
        Ok((job, checkpoint::Request { id, kind, trigger, directory, timeout_ms, owner, annotations, evict }))
    }

    /// A savepoint lies where its user says, but not where checkpoints come and go by themselves.
    fn check_savepoint_directory(&self, directory: &str) -> Result<()> {
        let path = std::path::Path::new(directory);
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(Error::invalid(format!("savepoint directory {directory:?} has `..` in it"))
                .with_hint("Name the directory itself."));
        }
        if path.starts_with(&self.checkpoint_root) {
            return Err(Error::invalid(format!("savepoint directory {directory:?} lies among the checkpoints"))
                .with_hint("Name a directory outside of the checkpoints' root."));
        }
        Ok(())
    }
}

/// What both kinds of snapshot requests have in common.
struct Wanted {
    job: pb::JobRequest,
    directory: Option<String>,
    timeout_ms: Option<u64>,
    owner: String,
    annotations: Annotations,
    evict: bool,
}

/// A client's request id; one that sends none gets a fresh one, and cannot retry.
pub(super) fn request_id(text: &str) -> Result<RequestId> {
    if text.is_empty() { RequestId::new(uuid::Uuid::new_v4().simple().to_string()) } else { RequestId::new(text) }
}

fn finished(view: pb::Snapshot) -> Result<pb::Snapshot> {
    match view.failure.clone() {
        Some(failure) => Err(failure.into()),
        None => Ok(view),
    }
}
