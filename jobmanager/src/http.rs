//! REST for programs that do not speak gRPC: the same answers as JSON.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_service::http::HttpError;
use weir_types::Error;
use weir_types::quota::QuotaLimits;

use crate::door::Door;
use crate::event::{Answer, Event, Request};
use crate::identity;
use crate::rpc::{about_to_run, ask};

type Reply = Result<axum::Json<Value>, HttpError>;

/// `/overview`, `/jobs`, `/jobs/{job}`, `/jobs/{job}/checkpoints`, `/snapshots`, `/snapshots/{snapshot}`,
/// `/snapshots/{snapshot}/explanation`.
pub(crate) fn router(door: Door) -> Router {
    Router::new()
        .route("/overview", get(overview))
        .route("/jobs", get(jobs))
        .route("/jobs/{job}", get(job))
        .route("/jobs/{job}/checkpoints", get(checkpoints))
        .route("/jobs/{job}/savepoints", post(savepoint))
        .route("/quotas", get(quotas))
        .route("/snapshots", get(snapshots))
        .route("/snapshots/{snapshot}", get(snapshot))
        .route("/snapshots/{snapshot}/explanation", get(explanation))
        .with_state(door)
}

async fn request<T>(door: &Door, asked: impl FnOnce(Answer<T>) -> Request) -> Result<T, HttpError> {
    ask(door, |answer| Event::Request(asked(answer))).await.map_err(HttpError)
}

async fn overview(State(door): State<Door>) -> Reply {
    let status = request(&door, Request::Status).await?;
    let jobs = request(&door, |to| Request::Jobs(pb::ListJobsRequest::default(), to)).await?.jobs;
    let mut states = serde_json::Map::new();
    for job in &jobs {
        let count = states.entry(job.state().as_str_name()).or_insert(json!(0));
        *count = json!(count.as_u64().unwrap_or(0) + 1);
    }
    let slots: u32 = status.task_managers.iter().map(|task_manager| task_manager.slots).sum();
    let free: u32 = status.task_managers.iter().map(|task_manager| task_manager.slots_free).sum();
    Ok(axum::Json(json!({
        "cluster": status.cluster_id,
        "version": status.version,
        "term": status.term,
        "task_managers": status.task_managers.len(),
        "slots": slots,
        "slots_free": free,
        "jobs": states,
    })))
}

async fn jobs(State(door): State<Door>) -> Reply {
    let reply = request(&door, |to| Request::Jobs(pb::ListJobsRequest::default(), to)).await?;
    Ok(axum::Json(json!({ "jobs": reply.jobs.iter().map(summary).collect::<Vec<_>>() })))
}

async fn job(State(door): State<Door>, Path(job): Path<String>) -> Reply {
    let wanted = pb::JobRequest { job, ..Default::default() };
    let detail = request(&door, |to| Request::Job(wanted, to)).await?;
    let mut value = detail.summary.as_ref().map(summary).unwrap_or_default();
    let subtask = |subtask: &pb::Subtask| {
        json!({
            "index": subtask.index,
            "task_manager": subtask.task_manager_id,
            "state": subtask.state,
            "rows_in": subtask.rows_in,
            "rows_out": subtask.rows_out,
            "late_rows": subtask.late_rows,
            "watermark_ms": subtask.watermark_ms,
            "state_bytes": subtask.state_bytes,
        })
    };
    let chain = |chain: &pb::Chain| {
        json!({
            "id": chain.id,
            "name": chain.name,
            "parallelism": chain.parallelism,
            "subtasks": chain.subtasks.iter().map(subtask).collect::<Vec<_>>(),
        })
    };
    value["chains"] = detail.chains.iter().map(chain).collect();
    value["rows_in"] = json!(detail.rows_in);
    value["rows_out"] = json!(detail.rows_out);
    value["late_rows"] = json!(detail.late_rows);
    value["waiting_for"] = json!(detail.waiting_for);
    value["plan"] = json!(detail.plan);
    value["failures"] = detail.failures.iter().map(failure_json).collect();
    value["failures_total"] = json!(detail.failures_total);
    Ok(axum::Json(value))
}

fn failure_json(failure: &pb::JobFailure) -> Value {
    json!({
        "at_ms": failure.at_ms,
        "attempt": failure.attempt,
        "chain": failure.chain,
        "chain_name": failure.chain_name,
        "subtask": failure.chain.map(|_| failure.index),
        "task_manager": failure.task_manager_id,
        "error": failure.error.clone().map(Error::from),
        "followed": if failure.restart_after_ms.is_some() { "RESTART" } else { "FAIL" },
        "restart_after_ms": failure.restart_after_ms,
    })
}

/// What a savepoint is taken with; a body without a member means its default.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Savepoint {
    /// Given again, it finds what the first request has started.
    request_id: String,
    directory: Option<String>,
    timeout_ms: Option<u64>,
    owner: String,
    name: Option<String>,
}

async fn savepoint(State(door): State<Door>, Path(job): Path<String>, body: Bytes) -> Reply {
    let wrong = |error: serde_json::Error| {
        HttpError(Error::invalid("the body is not what a savepoint is asked for with").with_detail(error.to_string()))
    };
    let asked: Savepoint =
        if body.is_empty() { Savepoint::default() } else { serde_json::from_slice(&body).map_err(wrong)? };
    let Savepoint { request_id, directory, timeout_ms, owner, name } = asked;
    let wanted = pb::TriggerSnapshotRequest {
        request_id,
        job,
        savepoint: true,
        directory,
        timeout_ms,
        owner,
        name,
        ..Default::default()
    };
    let wanted = identity::resolve(wanted)?;
    let job = pb::JobRequest { job: wanted.job.clone(), request_id: wanted.request_id.clone(), namespace: None };
    about_to_run(&door, job, wanted.timeout_ms).await;
    let taken = request(&door, |to| Request::Trigger(wanted, to)).await?;
    Ok(axum::Json(snapshot_json(&taken)))
}

async fn quotas(State(door): State<Door>) -> Reply {
    let reply = request(&door, |to| Request::Quotas(pb::ListQuotasRequest::default(), to)).await?;
    Ok(axum::Json(json!({ "quotas": reply.quotas.iter().map(quota_json).collect::<Vec<_>>() })))
}

fn quota_json(quota: &pb::Quota) -> Value {
    let limits = |limits: Option<pb::QuotaLimits>| QuotaLimits::from(limits.unwrap_or_default());
    let consumer = |consumer: &pb::QuotaConsumer| {
        json!({
            "snapshot": consumer.snapshot,
            "job_name": consumer.job_name,
            "owner": consumer.owner,
            "state": consumer.state,
            "bytes": consumer.bytes,
        })
    };
    json!({
        "level": quota.level,
        "limits": limits(quota.limits),
        "set": limits(quota.set),
        "savepoints": quota.savepoints,
        "retained_checkpoints": quota.retained_checkpoints,
        "bytes": quota.bytes,
        "shared_bytes": quota.shared_bytes,
        "checkpoint_reserve": quota.checkpoint_reserve,
        "in_flight": quota.in_flight,
        "queued": quota.queued,
        "since_last_savepoint_ms": quota.since_last_savepoint_ms,
        "oldest_savepoint_ms": quota.oldest_savepoint_ms,
        "consumers": quota.consumers.iter().map(consumer).collect::<Vec<_>>(),
    })
}

async fn checkpoints(State(door): State<Door>, Path(job): Path<String>) -> Reply {
    let wanted = pb::ListSnapshotsRequest { job: Some(job), ..Default::default() };
    list(&door, wanted).await
}

async fn snapshots(State(door): State<Door>) -> Reply {
    list(&door, pb::ListSnapshotsRequest::default()).await
}

async fn list(door: &Door, wanted: pb::ListSnapshotsRequest) -> Reply {
    let reply = request(door, |to| Request::Snapshots(wanted, to)).await?;
    Ok(axum::Json(json!({ "snapshots": reply.snapshots.iter().map(snapshot_json).collect::<Vec<_>>() })))
}

async fn snapshot(State(door): State<Door>, Path(snapshot): Path<String>) -> Reply {
    let snapshot = request(&door, |to| Request::Snapshot(named(snapshot), to)).await?;
    Ok(axum::Json(snapshot_json(&snapshot)))
}

async fn explanation(State(door): State<Door>, Path(snapshot): Path<String>) -> Reply {
    let explanation = request(&door, |to| Request::Explain(named(snapshot), to)).await?;
    Ok(axum::Json(explanation_json(&explanation)))
}

/// A snapshot of any namespace.
fn named(snapshot: String) -> pb::SnapshotRequest {
    pb::SnapshotRequest { snapshot, ..pb::SnapshotRequest::default() }
}

fn explanation_json(explanation: &pb::SnapshotExplanation) -> Value {
    let step = |step: &pb::SnapshotStep| json!({ "name": step.name, "at_us": step.at_us, "took_us": step.took_us });
    let event = |event: &pb::TimelineEvent| {
        let fields = event.fields.iter().map(|field| (field.name.clone(), json!(field.value)));
        json!({
            "node": event.node,
            "at_us": event.at_us,
            "level": event.level,
            "message": event.message,
            "fields": fields.collect::<serde_json::Map<_, _>>(),
        })
    };
    let node = |node: &pb::ExplainedNode| {
        json!({
            "name": node.name,
            "address": node.address,
            "events": node.events,
            "ahead_us": node.ahead_us,
            "failure": node.failure.clone().map(Error::from),
        })
    };
    json!({
        "id": explanation.id,
        "snapshot": explanation.snapshot.as_ref().map(snapshot_json),
        "summary": explanation.summary,
        "hints": explanation.hints,
        "steps": explanation.steps.iter().map(step).collect::<Vec<_>>(),
        "timeline": explanation.timeline.iter().map(event).collect::<Vec<_>>(),
        "nodes": explanation.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

fn summary(job: &pb::JobSummary) -> Value {
    json!({
        "id": job.id,
        "name": job.name,
        "state": job.state().as_str_name(),
        "parallelism": job.parallelism,
        "attempt": job.attempt,
        "submitted_at_ms": job.submitted_at_ms,
        "started_at_ms": job.started_at_ms,
        "ended_at_ms": job.ended_at_ms,
        "owner": job.owner,
        "namespace": job.namespace,
        "failure": job.failure.clone().map(Error::from),
        "restored_from": job.restored_from,
        "parallelism_wanted": job.parallelism_wanted,
        "parallelism_min": job.parallelism_min,
    })
}

fn snapshot_json(snapshot: &pb::Snapshot) -> Value {
    let cut = |cut: &pb::SourceCut| json!({ "uid": cut.uid, "split": cut.split, "offset": cut.offset, "finished": cut.finished });
    let timings = |timings: &pb::SubtaskTimings| {
        json!({
            "chain": timings.chain,
            "index": timings.index,
            "start_delay_us": timings.start_delay_us,
            "alignment_us": timings.alignment_us,
            "sync_us": timings.sync_us,
            "async_us": timings.async_us,
            "bytes": timings.bytes,
        })
    };
    json!({
        "id": snapshot.id,
        "kind": if snapshot.savepoint { "savepoint" } else { "checkpoint" },
        "name": snapshot.name,
        "job": snapshot.job,
        "job_name": snapshot.job_name,
        "owner": snapshot.owner,
        "namespace": snapshot.namespace,
        "state": snapshot.state,
        "trigger": snapshot.trigger,
        "barrier": snapshot.barrier,
        "triggered_at_ms": snapshot.triggered_at_ms,
        "ended_at_ms": snapshot.ended_at_ms,
        "directory": snapshot.directory,
        "bytes": snapshot.bytes,
        "rows": snapshot.rows,
        "parallelism": snapshot.parallelism,
        "failure": snapshot.failure.clone().map(Error::from),
        "failures": snapshot.failures,
        "restored_from": snapshot.restored_from,
        "subtasks_acknowledged": snapshot.subtasks_acknowledged,
        "subtasks_total": snapshot.subtasks_total,
        "queue_position": snapshot.queue_position,
        "sources": snapshot.sources.iter().map(cut).collect::<Vec<_>>(),
        "timings": snapshot.timings.iter().map(timings).collect::<Vec<_>>(),
    })
}
