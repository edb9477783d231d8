//! The cluster as clients see it.

use weir_coordination::metadata::{JobRecord, SnapshotEntry, State};
use weir_proto::pb::client::v1 as pb;
use weir_types::graph::OperatorSpec;
use weir_types::ids::{JobId, Parallelism, SnapshotId, SubtaskId, SubtaskIndex};
use weir_types::job::{JobFailure, JobState};
use weir_types::snapshot::SnapshotState;
use weir_types::{Error, Result};

use super::Leader;
use crate::metadata::now;

/// Snapshots shown with a job.
const RECENT_SNAPSHOTS: usize = 10;

impl Leader {
    pub(super) fn status_view(&self) -> pb::ClusterStatusReply {
        let now = now();
        let task_manager = |(id, session): (&weir_types::ids::TaskManagerId, &super::Session)| pb::TaskManager {
            id: id.to_string(),
            data_address: session.registration.data_address.clone(),
            http_address: session.registration.http_address.clone(),
            process_id: session.registration.process_id,
            slots: session.registration.slots,
            slots_free: self.scheduler.slots_free(id),
            last_heartbeat_ms_ago: self.liveness.silence_ms(now, id).unwrap_or(0),
        };
        pb::ClusterStatusReply {
            cluster_id: self.cluster.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            term: self.term.0,
            store_address: self.config.store_address.clone(),
            checkpoint_root: self.checkpoint_root.clone(),
            task_managers: self.sessions.iter().map(task_manager).collect(),
        }
    }

    /// The state of a job as it is being decided, which its record shows once that is committed.
    pub(super) fn job_state(&self, job: &JobId) -> Option<JobState> {
        self.scheduler.state(job).or_else(|| self.state(|state| state.jobs.get(job).map(|record| record.state)))
    }

    pub(super) fn submitted_view(&self, job: Option<&JobId>) -> Result<pb::SubmitReply> {
        let job = job.ok_or_else(|| Error::invalid("the request id was used for something else"))?;
        self.state(|state| {
            let record = state.job(job)?;
            Ok(pb::SubmitReply { job_id: record.id.to_string(), name: record.name.clone() })
        })
    }

    pub(super) fn jobs_view(&self, request: &pb::ListJobsRequest) -> pb::ListJobsReply {
        let pb::ListJobsRequest { running, scheduled, ended, ref namespace } = *request;
        let all = !running && !scheduled && !ended;
        let wanted = |state: JobState| match state {
            JobState::Created | JobState::Restarting => scheduled,
            JobState::Starting | JobState::Running | JobState::Stopping | JobState::Cancelling => running,
            JobState::Finished | JobState::Stopped | JobState::Cancelled | JobState::Failed => ended,
        };
        let listed = |job: &JobRecord| {
            (all || wanted(job.state)) && namespace.as_ref().is_none_or(|namespace| job.namespace == *namespace)
        };
        let mut jobs: Vec<pb::JobSummary> =
            self.state(|state| state.jobs.values().filter(|job| listed(job)).map(Self::summary).collect());
        jobs.sort_by_key(|job| job.submitted_at_ms);
        pb::ListJobsReply { jobs }
    }

    fn summary(record: &JobRecord) -> pb::JobSummary {
        let restored = record.restore.as_ref().map(|restore| match &restore.snapshot {
            Some(snapshot) => snapshot.to_string(),
            None => restore.directory.clone(),
        });
        pb::JobSummary {
            id: record.id.to_string(),
            name: record.name.clone(),
            state: pb::JobState::from(record.state).into(),
            parallelism: record.graph.options.parallelism.get(),
            attempt: record.attempt.0,
            submitted_at_ms: record.submitted_at.0,
            started_at_ms: record.started_at.map_or(0, |at| at.0),
            ended_at_ms: record.ended_at.map_or(0, |at| at.0),
            owner: record.owner.clone(),
            namespace: record.namespace.clone(),
            failure: record.failures.last().map(Into::into),
            restored_from: restored.unwrap_or_default(),
            parallelism_wanted: record.parallelism_wanted.get(),
            parallelism_min: record.graph.options.parallelism_min.map_or(0, Parallelism::get),
        }
    }

    pub(super) fn job_view(&self, job: &JobId) -> Result<pb::JobDetail> {
        self.state(|state| {
            let record = state.job(job)?;
            let chains = self.chains_view(record);
            let is = |chain: &pb::Chain, wanted: fn(&OperatorSpec) -> bool| {
                let members = record.graph.chains().into_iter().find(|found| found.id.0 == chain.id);
                let members = members.map(|found| found.operators).unwrap_or_default();
                let specs = record.graph.operators.iter().filter(|operator| members.contains(&operator.id));
                specs.map(|operator| &operator.spec).any(wanted)
            };
            let sum = |wanted: fn(&OperatorSpec) -> bool, count: fn(&pb::Subtask) -> u64| {
                let chains = chains.iter().filter(|chain| is(chain, wanted));
                chains.flat_map(|chain| &chain.subtasks).map(count).sum::<u64>()
            };
            let recent = state.snapshots_of(job);
            Ok(pb::JobDetail {
                summary: Some(Self::summary(record)),
                rows_in: sum(|spec| matches!(spec, OperatorSpec::Source(_)), |subtask| subtask.rows_in),
                rows_out: sum(|spec| matches!(spec, OperatorSpec::Sink(_)), |subtask| subtask.rows_out),
                late_rows: sum(|_| true, |subtask| subtask.late_rows),
                recent_snapshots: recent
                    .iter()
                    .rev()
                    .take(RECENT_SNAPSHOTS)
                    .map(|entry| self.view(state, entry))
                    .collect(),
                plan: record.plan.clone(),
                waiting_for: if record.output.ending.is_some() {
                    vec!["its output to be committed".to_owned()]
                } else {
                    self.scheduler.waiting_for(now(), job)
                },
                fallback: record.fallback.as_ref().map(Into::into),
                failures: failures_view(record, &chains),
                failures_total: record.failures.total,
                chains,
            })
        })
    }

    fn chains_view(&self, record: &JobRecord) -> Vec<pb::Chain> {
        let live = self.jobs.get(&record.id).map(|live| &live.progress);
        let counters =
            live.or_else(|| self.ended.iter().find(|(job, _)| *job == record.id).map(|(_, counters)| counters));
        let mut chains = Vec::new();
        for chain in record.graph.chains() {
            let mut subtasks = Vec::with_capacity(chain.parallelism.get() as usize);
            for index in (0..chain.parallelism.get()).map(SubtaskIndex) {
                let placement = record.placements.iter().find(|p| p.chain == chain.id && p.index == index);
                let id = SubtaskId { job: record.id.clone(), chain: chain.id, index, attempt: record.attempt };
                // Counters of an earlier attempt say nothing about this one.
                let progress = counters
                    .and_then(|counters| counters.get(&(chain.id, index)))
                    .filter(|progress| progress.subtask.attempt == record.attempt);
                subtasks.push(pb::Subtask {
                    index: index.0,
                    task_manager_id: placement.map(|p| p.task_manager.to_string()).unwrap_or_default(),
                    state: self.scheduler.subtask_state(&id).unwrap_or_else(|| ended_state(record)).to_owned(),
                    rows_in: progress.map_or(0, |progress| progress.rows_in),
                    rows_out: progress.map_or(0, |progress| progress.rows_out),
                    late_rows: progress.map_or(0, |progress| progress.late_rows),
                    watermark_ms: progress.map_or(i64::MIN, |progress| progress.watermark_ms),
                    state_bytes: progress.map_or(0, |progress| progress.state_bytes),
                });
            }
            let names = record.graph.operators.iter().filter(|operator| chain.operators.contains(&operator.id));
            chains.push(pb::Chain {
                id: chain.id.0,
                name: names.map(|operator| operator.name.as_str()).collect::<Vec<_>>().join(" → "),
                parallelism: chain.parallelism.get(),
                subtasks,
            });
        }
        chains
    }

    pub(super) fn view(&self, state: &State, entry: &SnapshotEntry) -> pb::Snapshot {
        let mut view = pb::Snapshot::from(entry);
        view.exclusive_bytes = view.exclusive_bytes.saturating_add(state.shared.exclusive_bytes(&entry.job, &entry.id));
        let in_flight = self.jobs.get(&entry.job).and_then(|live| live.coordinator.in_flight());
        if let Some((_, acknowledged)) = in_flight.filter(|(reservation, _)| reservation.snapshot == entry.id) {
            view.subtasks_acknowledged = acknowledged;
        }
        if entry.state == SnapshotState::Queued {
            view.queue_position = state.queue_position(&entry.id).map_or(0, |position| position as u32);
        }
        view
    }

    pub(super) fn snapshot_view(&self, snapshot: &SnapshotId) -> Result<pb::Snapshot> {
        self.state(|state| {
            let missing = || Error::not_found(format!("snapshot {snapshot} is not in the catalogue"));
            let mut view = state.snapshots.get(snapshot).map(|entry| self.view(state, entry)).ok_or_else(missing)?;
            view.evicted = super::catalogue::evicted_for(state, snapshot);
            Ok(view)
        })
    }
}

/// The newest failures of a job, newest first.
fn failures_view(record: &JobRecord, chains: &[pb::Chain]) -> Vec<pb::JobFailure> {
    let view = |failure: &JobFailure| {
        let chain = failure.subtask.and_then(|(id, _)| chains.iter().find(|chain| chain.id == id.0));
        let chain_name = chain.map(|chain| chain.name.clone()).unwrap_or_default();
        pb::JobFailure { chain_name, ..failure.into() }
    };
    record.failures.newest.iter().rev().map(view).collect()
}

/// State of the subtasks of a job that the scheduler has forgotten; what became of each one in a job that failed is in the logs.
fn ended_state(record: &JobRecord) -> &'static str {
    match record.state {
        JobState::Finished | JobState::Stopped => "FINISHED",
        JobState::Cancelled | JobState::Failed if record.attempt.0 > 0 => "CANCELLED",
        _ => "",
    }
}
