//! Rescales: a job goes on at another parallelism, because somebody wants that, or because slots are there again that it lacks.
//!
//! Invariant: a checkpoint comes first, on the same governed way as any other, so that little is processed again; without it
//! the job is not touched.

use weir_coordination::checkpoint::{self, Trigger};
use weir_coordination::metadata::{Command, Reply};
use weir_coordination::scheduler;
use weir_proto::pb::client::v1 as pb;
use weir_service::failpoint;
use weir_types::graph::JobGraph;
use weir_types::ids::{Attempt, JobId, Parallelism, RequestId, SnapshotId};
use weir_types::job::JobState;
use weir_types::snapshot::{Annotations, SnapshotKind, SnapshotState};
use weir_types::{Code, Error, Result};

use super::jobs::request_id;
use super::{Leader, Then, answer};
use crate::event::Answer;
use crate::metadata::now;

/// A rescale that waits for its checkpoint.
#[derive(Debug)]
pub(super) struct Rescaling {
    job: JobId,
    /// The attempt that the checkpoint is taken of.
    attempt: Attempt,
    asked: Asked,
}

/// Who wants it.
#[derive(Debug)]
enum Asked {
    /// Users: one request, and whoever waits for its answer.
    User { request: RequestId, from: Parallelism, to: Parallelism, waiting: Vec<Answer<pb::RescaleJobReply>> },
    /// The scheduler, because slots are there again.
    Slots,
}

impl Leader {
    /// A user wants another parallelism.
    pub(super) fn rescale(&mut self, request: &pb::RescaleJobRequest, to: Answer<pb::RescaleJobReply>) {
        if let Err((to, error)) = self.try_rescale(request, to) {
            answer(to, Err(error));
        }
    }

    fn try_rescale(
        &mut self,
        wanted: &pb::RescaleJobRequest,
        to: Answer<pb::RescaleJobReply>,
    ) -> Result<(), (Answer<pb::RescaleJobReply>, Error)> {
        let pb::RescaleJobRequest { request_id: id, job, namespace, parallelism } = wanted;
        let asked = pb::JobRequest { request_id: id.clone(), job: job.clone(), namespace: namespace.clone() };
        let parsed = request_id(id).and_then(|request| {
            // The name of its checkpoint: a retry finds that, too.
            let checkpoint = RequestId::new(format!("rescale-{request}"))?;
            Ok((request, checkpoint, self.wanted(&asked)?, Parallelism::new(*parallelism)?))
        });
        let (request, checkpoint, job, parallelism) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Err((to, error)),
        };
        if let Some(reply) = self.answered(&request) {
            answer(to, reply.and_then(|_| self.rescaled_view(&job, None)));
            return Ok(());
        }
        if let Some(Rescaling { asked: Asked::User { waiting, .. }, .. }) = self.rescales.get_mut(&checkpoint) {
            waiting.push(to);
            return Ok(());
        }
        let current = match self.check_rescale(&job, parallelism) {
            Ok(current) => current,
            Err(error) => return Err((to, error)),
        };
        let Some(attempt) = self.scheduler.attempt(&job) else {
            return Err((to, Error::new(Code::FailedPrecondition, format!("job {job} has ended"))));
        };
        let asked = Asked::User { request, from: current, to: parallelism, waiting: vec![to] };
        let rescaling = Rescaling { job, attempt, asked };
        if current == parallelism {
            // It runs like that already: only what it is to have may be different.
            self.commit_rescale(rescaling);
        } else {
            self.take_first(checkpoint, rescaling);
        }
        Ok(())
    }

    /// Whether a job can be rescaled now; its parallelism.
    fn check_rescale(&self, job: &JobId, parallelism: Parallelism) -> Result<Parallelism> {
        let state = self.job_state(job);
        if state != Some(JobState::Running) {
            let state = state.map(JobState::as_str).unwrap_or_default();
            return Err(Error::new(Code::FailedPrecondition, format!("job {job} is {state}, not RUNNING")).with_hint(
                "A job is rescaled while it runs; one that has ended can be run again at any parallelism.",
            ));
        }
        if let Some(awaited) = self.scheduler.waiting_for(now(), job).first() {
            return Err(Error::unavailable(format!("job {job} has not been taken over yet"))
                .with_detail(format!("waiting: {awaited}"))
                .with_hint("Try again in a moment."));
        }
        let mut others = self.rescales.values().filter(|other| other.job == *job);
        if others.any(|other| matches!(other.asked, Asked::User { .. })) {
            return Err(Error::new(Code::FailedPrecondition, format!("job {job} is being rescaled already")));
        }
        let graph = self.state(|state| state.job(job).map(|record| record.graph.clone()))?;
        let (current, least) = (graph.options.parallelism, graph.options.parallelism_min);
        if let Some(least) = least.filter(|least| parallelism < *least) {
            return Err(Error::invalid(format!("job {job} is to have at least {least} subtasks"))
                .with_hint("Its option 'parallelism.min' says so."));
        }
        let slots = self.scheduler.slots_within_reach(job);
        // With a minimum it takes what is there, if that is more than it has.
        let gains = least.is_some() && slots > width(&graph);
        let needed = width(&graph.at_parallelism(parallelism)?);
        if slots < needed && !gains {
            return Err(Error::new(
                Code::ResourceExhausted,
                format!("job {job} needs {needed} slots at parallelism {parallelism}"),
            )
            .with_detail(format!("its own and the free ones are {slots}"))
            .with_hint("Start TaskManagers first; a job that was run with --min-parallelism takes what is there."));
        }
        Ok(current)
    }

    /// There is room for subtasks that a job lacks.
    pub(super) fn grow(&mut self, job: JobId, attempt: Attempt) {
        tracing::info!(%job, %attempt, "there are slots for more of its subtasks: taking a checkpoint first");
        let id = RequestId::new(format!("grow-{}", uuid::Uuid::new_v4().simple()));
        let Ok(id) = id else { return };
        self.take_first(id, Rescaling { job, attempt, asked: Asked::Slots });
    }

    /// Takes the checkpoint, or finds the one that an earlier try has taken.
    fn take_first(&mut self, id: RequestId, rescaling: Rescaling) {
        let job = rescaling.job.clone();
        let known = self.answered(&id);
        self.rescales.insert(id.clone(), rescaling);
        match known {
            Some(Err(error)) => self.answer_request(&id, Err(error)),
            Some(Ok(applied)) => {
                let entry = applied.snapshot.and_then(|snapshot| self.entry(&snapshot));
                match entry.map(|entry| (entry.state, entry.id, entry.failure)) {
                    Some((SnapshotState::Completed, snapshot, _)) => self.answer_request(&id, Ok(snapshot)),
                    // Its end will be heard of.
                    Some((SnapshotState::Queued | SnapshotState::InProgress, ..)) => {}
                    Some((_, _, Some(failure))) => self.answer_request(&id, Err(failure)),
                    Some(_) | None => {
                        let gone = Error::new(Code::FailedPrecondition, "the checkpoint of an earlier try is gone");
                        self.answer_request(&id, Err(gone.with_hint("Ask again under another request id.")));
                    }
                }
            }
            None => {
                let request = checkpoint::Request {
                    id,
                    kind: SnapshotKind::Checkpoint,
                    trigger: Trigger::Rescale,
                    directory: None,
                    timeout_ms: None,
                    owner: String::new(),
                    annotations: Annotations::default(),
                    evict: false,
                };
                self.coordinate(&job, checkpoint::Event::Requested(request));
            }
        }
    }

    /// The checkpoint of a rescale is complete, or there is none.
    pub(super) fn on_rescale_snapshot(&mut self, rescaling: Rescaling, result: Result<SnapshotId>) {
        let job = rescaling.job.clone();
        match (result, rescaling.asked) {
            (Ok(snapshot), Asked::Slots) => {
                tracing::info!(%job, %snapshot, "restarting with more subtasks");
                self.schedule(scheduler::Event::Grow(job, rescaling.attempt));
            }
            (Err(error), Asked::Slots) => {
                tracing::warn!(%job, code = %error.code, %error, "no checkpoint, and therefore no more subtasks yet");
                self.schedule(scheduler::Event::NotGrown(job, rescaling.attempt));
            }
            (Ok(snapshot), asked @ Asked::User { .. }) => {
                tracing::info!(%job, %snapshot, "rescaling");
                failpoint::reach("rescale.snapshot");
                self.commit_rescale(Rescaling { asked, ..rescaling });
            }
            (Err(error), Asked::User { waiting, .. }) => {
                tracing::warn!(%job, code = %error.code, %error, "not rescaled: there is no checkpoint");
                waiting.into_iter().for_each(|to| answer(to, Err(error.clone())));
            }
        }
    }

    fn commit_rescale(&mut self, rescaling: Rescaling) {
        let Asked::User { request, to, .. } = &rescaling.asked else { return };
        let command = Command::Rescale { request: Some(request.clone()), job: rescaling.job.clone(), parallelism: *to };
        self.commit(command, Then::Rescaled(Box::new(rescaling)));
    }

    pub(super) fn on_rescaled(&mut self, rescaling: Rescaling, reply: Reply) {
        let Asked::User { from, to, waiting, .. } = rescaling.asked else { return };
        let job = rescaling.job;
        if reply.is_ok() {
            tracing::info!(%job, %from, %to, "the job is rescaled");
            failpoint::reach("rescale.wanted");
            self.schedule(scheduler::Event::Rescale(job.clone(), to));
            self.touch(&job);
        }
        let view = reply.and_then(|_| self.rescaled_view(&job, Some(from)));
        waiting.into_iter().for_each(|to| answer(to, view.clone()));
    }

    /// What a job is to have; where a retry is answered, what it had is not known any more.
    fn rescaled_view(&self, job: &JobId, from: Option<Parallelism>) -> Result<pb::RescaleJobReply> {
        self.state(|state| {
            let record = state.job(job)?;
            Ok(pb::RescaleJobReply {
                job_id: job.to_string(),
                from: from.map_or(0, Parallelism::get),
                to: record.parallelism_wanted.get(),
                attempt: record.attempt.0,
            })
        })
    }
}

/// The slots that a job needs.
fn width(graph: &JobGraph) -> usize {
    graph.chains().iter().map(|chain| chain.parallelism.get() as usize).max().unwrap_or(0)
}
