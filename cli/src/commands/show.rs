//! Jobs as tables, text and JSON.

use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::common::v1 as common;
use weir_types::Error;

use crate::commands::snapshots::view::{snapshot_json, snapshots_table};
use crate::output::{self, bytes, count};
use crate::time;

/// The state's name as users know it.
pub(crate) fn job_state(summary: &pb::JobSummary) -> &'static str {
    summary.state().as_str_name()
}

/// Whether nothing follows.
pub(crate) fn has_ended(state: pb::JobState) -> bool {
    matches!(state, pb::JobState::Finished | pb::JobState::Stopped | pb::JobState::Cancelled | pb::JobState::Failed)
}

/// A job for programs.
pub(crate) fn job_json(job: &pb::JobSummary) -> Value {
    json!({
        "id": job.id, "name": job.name, "state": job_state(job), "parallelism": job.parallelism,
        "attempt": job.attempt, "submitted_at_ms": job.submitted_at_ms, "started_at_ms": job.started_at_ms,
        "ended_at_ms": job.ended_at_ms, "owner": job.owner, "namespace": job.namespace,
        "restored_from": job.restored_from, "parallelism_wanted": job.parallelism_wanted,
        "parallelism_min": job.parallelism_min, "failure": failure_json(job.failure.as_ref()),
    })
}

/// What broke, for programs.
pub(crate) fn failure_json(failure: Option<&common::Error>) -> Value {
    failure.map_or(Value::Null, |failure| json!(Error::from(failure.clone())))
}

/// What it has, and what it lacks of what it is to have.
fn parallelism(job: &pb::JobSummary) -> String {
    match job.parallelism_wanted {
        wanted if wanted == 0 || wanted == job.parallelism => job.parallelism.to_string(),
        wanted => format!("{} of {wanted}", job.parallelism),
    }
}

/// Jobs for people.
pub(crate) fn jobs_table(jobs: &[pb::JobSummary]) -> String {
    let now = time::now_ms();
    let rows = jobs.iter().map(|job| {
        let until = if job.ended_at_ms == 0 { now } else { job.ended_at_ms };
        vec![
            job.id.clone(),
            job.name.clone(),
            job_state(job).to_owned(),
            parallelism(job),
            job.attempt.to_string(),
            time::moment(job.submitted_at_ms),
            time::span(job.submitted_at_ms, until),
        ]
    });
    output::table(&["job", "name", "state", "parallelism", "attempt", "submitted", "duration"], &[3, 4, 6], rows)
}

/// A job with all its parts, for programs.
pub(crate) fn job_detail_json(job: &pb::JobDetail) -> Value {
    let chains: Vec<_> = job
        .chains
        .iter()
        .map(|chain| {
            let subtasks: Vec<_> = chain
                .subtasks
                .iter()
                .map(|subtask| {
                    json!({
                        "index": subtask.index, "task_manager": subtask.task_manager_id, "state": subtask.state,
                        "rows_in": subtask.rows_in, "rows_out": subtask.rows_out, "late_rows": subtask.late_rows,
                        "watermark_ms": subtask.watermark_ms, "state_bytes": subtask.state_bytes,
                    })
                })
                .collect();
            json!({"id": chain.id, "name": chain.name, "parallelism": chain.parallelism, "subtasks": subtasks})
        })
        .collect();
    let snapshots: Vec<_> = job.recent_snapshots.iter().map(snapshot_json).collect();
    json!({
        "failures": job.failures.iter().map(job_failure_json).collect::<Vec<_>>(),
        "failures_total": job.failures_total,
        "fallback": job.fallback.as_ref().map(fallback_json),
        "job": job.summary.as_ref().map(job_json), "chains": chains, "snapshots": snapshots, "plan": job.plan,
        "rows_in": job.rows_in, "rows_out": job.rows_out, "late_rows": job.late_rows, "waiting_for": job.waiting_for,
    })
}

fn job_failure_json(failure: &pb::JobFailure) -> Value {
    json!({
        "at_ms": failure.at_ms, "attempt": failure.attempt, "chain": failure.chain, "chain_name": failure.chain_name,
        "subtask": failure.chain.map(|_| failure.index), "task_manager": failure.task_manager_id,
        "error": failure_json(failure.error.as_ref()),
        "followed": if failure.restart_after_ms.is_some() { "RESTART" } else { "FAIL" },
        "restart_after_ms": failure.restart_after_ms,
    })
}

/// The newest failures, for people: one line of a table for each, and the whole of the newest one below.
fn failures_text(job: &pb::JobDetail) -> String {
    let Some(newest) = job.failures.first() else { return String::new() };
    let rows = job.failures.iter().map(|failure| {
        let subtask = failure.chain.map(|chain| format!("{chain}/{} {}", failure.index, failure.chain_name));
        let followed = failure.restart_after_ms.map(|delay| format!("restart after {delay} ms"));
        let error = failure.error.clone().map(Error::from);
        vec![
            time::moment(failure.at_ms),
            failure.attempt.to_string(),
            subtask.unwrap_or_default(),
            failure.task_manager_id.clone(),
            followed.unwrap_or_else(|| "the job failed".to_owned()),
            error.map(|error| format!("{}: {}", error.code, error.message)).unwrap_or_default(),
        ]
    });
    let header = &["failed at", "attempt", "subtask", "taskmanager", "what followed", "error"];
    let mut text = format!("\nFailures: {}\n", job.failures_total);
    text += &output::table(header, &[1], rows);
    if let Some(detail) = newest.error.as_ref().and_then(|error| error.detail.as_ref()) {
        text += &format!("Detail of the newest one: {detail}\n");
    }
    text
}

fn fallback_json(fallback: &pb::Fallback) -> Value {
    let passed = fallback.passed_over.iter();
    let passed: Vec<_> = passed.map(|of| json!({"snapshot": of.snapshot, "reason": of.reason})).collect();
    json!({"at_ms": fallback.at_ms, "attempt": fallback.attempt, "to": fallback.to, "passed_over": passed})
}

/// A job with all its parts, for people.
pub(crate) fn job_detail_text(job: &pb::JobDetail) -> String {
    let mut text = jobs_table(job.summary.as_slice());
    text += &failures_text(job);
    if let Some(pb::Fallback { at_ms, attempt, to, passed_over }) = &job.fallback {
        text += &format!("\nAttempt {attempt} fell back to {to} at {}:\n", time::moment(*at_ms));
        for pb::PassedOver { snapshot, reason } in passed_over {
            text += &format!("  {snapshot} was passed over: {reason}\n");
        }
    }
    for reason in &job.waiting_for {
        text += &format!("\nWaiting: {reason}\n");
    }
    text += &format!(
        "\nRead {} rows, wrote {}, late {}.\n\n",
        count(job.rows_in),
        count(job.rows_out),
        count(job.late_rows)
    );
    let rows = job.chains.iter().flat_map(|chain| {
        chain.subtasks.iter().map(|subtask| {
            vec![
                chain.name.clone(),
                subtask.index.to_string(),
                subtask.task_manager_id.clone(),
                subtask.state.clone(),
                count(subtask.rows_in),
                count(subtask.rows_out),
                count(subtask.late_rows),
                time::watermark(subtask.watermark_ms),
                bytes(subtask.state_bytes),
            ]
        })
    });
    text += &output::table(
        &["chain", "subtask", "taskmanager", "state", "rows in", "rows out", "late", "watermark", "memory"],
        &[1, 4, 5, 6, 8],
        rows,
    );
    if !job.recent_snapshots.is_empty() {
        text.push('\n');
        text += &snapshots_table(&job.recent_snapshots);
    }
    if !job.plan.is_empty() {
        text += &format!("\n{}\n", job.plan.trim_end());
    }
    text
}
