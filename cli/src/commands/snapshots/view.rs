//! Snapshots as tables, text and JSON.

use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_types::{Code, Error};

use crate::commands::show::failure_json;
use crate::output::{self, bytes, count};
use crate::time;

/// `checkpoint` or `savepoint`.
pub(crate) fn kind(snapshot: &pb::Snapshot) -> &'static str {
    kind_of(snapshot.savepoint)
}

fn kind_of(savepoint: bool) -> &'static str {
    if savepoint { "savepoint" } else { "checkpoint" }
}

/// A snapshot for programs.
pub(crate) fn snapshot_json(snapshot: &pb::Snapshot) -> Value {
    let timings: Vec<_> = snapshot
        .timings
        .iter()
        .map(|timing| {
            json!({
                "chain": timing.chain, "subtask": timing.index, "start_delay_us": timing.start_delay_us,
                "alignment_us": timing.alignment_us, "sync_us": timing.sync_us, "async_us": timing.async_us,
                "bytes": timing.bytes,
            })
        })
        .collect();
    let sources: Vec<_> = snapshot
        .sources
        .iter()
        .map(|source| {
            json!({"uid": source.uid, "split": source.split, "offset": source.offset, "finished": source.finished})
        })
        .collect();
    let verified = (snapshot.verified_at_ms > 0).then(|| {
        json!({
            "at_ms": snapshot.verified_at_ms, "by": snapshot.verified_by, "findings": snapshot.findings,
            "damage": failure_json(snapshot.damage.as_ref()),
        })
    });
    json!({
        "id": snapshot.id, "kind": kind(snapshot), "name": snapshot.name, "note": snapshot.note,
        "labels": snapshot.labels, "pinned": snapshot.pinned, "job": snapshot.job, "job_name": snapshot.job_name,
        "owner": snapshot.owner, "namespace": snapshot.namespace, "state": snapshot.state,
        "trigger": snapshot.trigger, "barrier": snapshot.barrier, "triggered_at_ms": snapshot.triggered_at_ms,
        "started_at_ms": snapshot.started_at_ms, "ended_at_ms": snapshot.ended_at_ms,
        "directory": snapshot.directory, "bytes": snapshot.bytes, "exclusive_bytes": snapshot.exclusive_bytes,
        "rows": snapshot.rows, "parallelism": snapshot.parallelism, "plan_hash": snapshot.plan_hash,
        "query": snapshot.query, "restored_from": snapshot.restored_from,
        "failure": failure_json(snapshot.failure.as_ref()), "failures": snapshot.failures,
        "first_failed_at_ms": snapshot.first_failed_at_ms, "verified": verified,
        "unrestorable": snapshot.unrestorable, "deletion": deletion_json(snapshot.deletion.as_ref()),
        "holders": snapshot.holders, "claim": claim_json(snapshot.claim.as_ref()),
        "origin": origin_json(snapshot.origin.as_ref()),
        "evicted": snapshot.evicted.iter().map(deleted_json).collect::<Vec<_>>(), "subtasks_acknowledged": snapshot.subtasks_acknowledged,
        "subtasks_total": snapshot.subtasks_total, "queue_position": snapshot.queue_position, "timings": timings, "sources": sources,
    })
}

fn deletion_json(deletion: Option<&pb::Deletion>) -> Value {
    deletion.map_or(Value::Null, |deletion| json!({"at_ms": deletion.at_ms, "by": deletion.by, "who": deletion.who}))
}

fn claim_json(claim: Option<&pb::SnapshotClaim>) -> Value {
    claim.map_or(Value::Null, |claim| json!({"job": claim.job, "job_name": claim.job_name, "at_ms": claim.at_ms}))
}

fn origin_json(origin: Option<&pb::SnapshotOrigin>) -> Value {
    origin.map_or(Value::Null, |origin| {
        json!({
            "cluster": origin.cluster, "snapshot": origin.snapshot, "job": origin.job,
            "taken_at_ms": origin.taken_at_ms, "directory": origin.directory,
        })
    })
}

/// Snapshots for people.
pub(crate) fn snapshots_table(snapshots: &[pb::Snapshot]) -> String {
    let rows = snapshots.iter().map(|snapshot| {
        let state = if snapshot.failures > 1 {
            format!("{} ×{}", snapshot.state, snapshot.failures)
        } else if snapshot.queue_position > 0 {
            format!("{} #{}", snapshot.state, snapshot.queue_position)
        } else {
            snapshot.state.clone()
        };
        vec![
            snapshot.id.clone(),
            kind(snapshot).to_owned(),
            snapshot.job_name.clone(),
            dash(&snapshot.owner),
            state,
            time::moment(snapshot.triggered_at_ms),
            time::span(snapshot.triggered_at_ms, snapshot.ended_at_ms),
            bytes(snapshot.bytes),
            bytes(snapshot.exclusive_bytes),
            count(snapshot.rows),
            dash(&remarks(snapshot)),
        ]
    });
    let header =
        ["snapshot", "kind", "job", "owner", "state", "triggered", "took", "size", "exclusive", "rows", "remarks"];
    output::table(&header, &[6, 7, 8, 9], rows)
}

/// Name, labels, whether it is pinned, and why it failed, on one line.
fn remarks(snapshot: &pb::Snapshot) -> String {
    let name = Some(snapshot.name.clone()).filter(|name| !name.is_empty());
    let labels = snapshot.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let pinned = snapshot.pinned.then(|| "pinned".to_owned());
    let failure = snapshot.failure.clone().map(|failure| match Error::from(failure) {
        // Which limit it was is what one looks for in a list; other reasons may be long.
        refusal if refusal.code == Code::QuotaExceeded => refusal.to_string(),
        error => error.code.to_string(),
    });
    name.into_iter().chain(labels).chain(pinned).chain(failure).collect::<Vec<_>>().join(" ")
}

/// What people say about a snapshot, for people.
pub(crate) fn annotations_text(snapshot: &pb::Snapshot) -> String {
    let mut text = format!("{} {}\n", kind(snapshot), snapshot.id);
    let labels: Vec<_> = snapshot.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    text += &format!("Name {}\nLabels {}\n", dash(&snapshot.name), dash(&labels.join(" ")));
    text += &format!("Note {}\nPinned {}\n", dash(&snapshot.note), if snapshot.pinned { "yes" } else { "no" });
    text
}

/// A snapshot that was deleted, for programs.
pub(crate) fn deleted_json(snapshot: &pb::DeletedSnapshot) -> Value {
    json!({
        "id": snapshot.id, "kind": kind_of(snapshot.savepoint), "name": snapshot.name, "job": snapshot.job,
        "job_name": snapshot.job_name, "owner": snapshot.owner, "namespace": snapshot.namespace,
        "directory": snapshot.directory, "bytes": snapshot.bytes, "triggered_at_ms": snapshot.triggered_at_ms,
        "deletion": deletion_json(snapshot.deletion.as_ref()), "removed_at_ms": snapshot.removed_at_ms,
    })
}

/// Snapshots that were deleted, for people.
pub(crate) fn deleted_table(snapshots: &[pb::DeletedSnapshot]) -> String {
    let rows = snapshots.iter().map(|snapshot| {
        let deletion = snapshot.deletion.clone().unwrap_or_default();
        vec![
            snapshot.id.clone(),
            kind_of(snapshot.savepoint).to_owned(),
            snapshot.job_name.clone(),
            dash(&snapshot.owner),
            dash(&snapshot.name),
            time::moment(snapshot.triggered_at_ms),
            time::moment(deletion.at_ms),
            deleter(&deletion),
            bytes(snapshot.bytes),
        ]
    });
    let header = ["snapshot", "kind", "job", "owner", "name", "triggered", "deleted", "by", "size"];
    output::table(&header, &[8], rows)
}

fn deleter(deletion: &pb::Deletion) -> String {
    if deletion.who.is_empty() { deletion.by.clone() } else { format!("{} {}", deletion.by, deletion.who) }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// How long each subtask's part of a snapshot took.
pub(crate) fn timings_table(timings: &[pb::SubtaskTimings]) -> String {
    let rows = timings.iter().map(|timing| {
        vec![
            timing.chain.to_string(),
            timing.index.to_string(),
            time::micros(timing.start_delay_us),
            time::micros(timing.alignment_us),
            time::micros(timing.sync_us),
            time::micros(timing.async_us),
            bytes(timing.bytes),
        ]
    });
    let header = ["chain", "subtask", "start delay", "alignment", "sync", "async", "size"];
    output::table(&header, &[0, 1, 2, 3, 4, 5, 6], rows)
}

/// One snapshot with all its parts, for people.
pub(crate) fn snapshot_text(snapshot: &pb::Snapshot) -> String {
    let mut text = snapshots_table(std::slice::from_ref(snapshot));
    text += &format!(
        "\nJob {} ({}), namespace {}, parallelism {}, plan {}\n",
        snapshot.job,
        snapshot.job_name,
        dash(&snapshot.namespace),
        snapshot.parallelism,
        dash(&snapshot.plan_hash),
    );
    text += &format!(
        "Trigger {}, barrier {}, {}/{} subtasks acknowledged\n",
        dash(&snapshot.trigger),
        snapshot.barrier,
        snapshot.subtasks_acknowledged,
        snapshot.subtasks_total,
    );
    text += &format!(
        "Requested {}, started {}, finished {}\n",
        time::moment(snapshot.triggered_at_ms),
        time::moment(snapshot.started_at_ms),
        time::moment(snapshot.ended_at_ms),
    );
    for (what, value) in [
        ("Note", &snapshot.note),
        ("Directory", &snapshot.directory),
        ("The job was restored from", &snapshot.restored_from),
        ("Cannot be restored any more:", &snapshot.unrestorable),
    ] {
        if !value.is_empty() {
            text += &format!("{what} {value}\n");
        }
    }
    if snapshot.verified_at_ms > 0 {
        let at = time::moment(snapshot.verified_at_ms);
        text += &match &snapshot.damage {
            None => format!("Verified {at}: whole\n"),
            Some(damage) => {
                let by = if snapshot.verified_by == "restore" { ", when a job was to be restored from it" } else { "" };
                let more = match snapshot.findings {
                    0 | 1 => String::new(),
                    findings => format!(", and {} more", count(findings - 1)),
                };
                format!("Found damaged {at}{by}: {}{more}\n", Error::from(damage.clone()))
            }
        };
    }
    for evicted in &snapshot.evicted {
        text += &format!("Savepoint {} was deleted to make room, {}\n", evicted.id, bytes(evicted.bytes));
    }
    if let Some(origin) = &snapshot.origin {
        text += &format!(
            "Imported from {}: {} of cluster {}, taken at {}\n",
            origin.directory,
            origin.snapshot,
            origin.cluster,
            time::moment(origin.taken_at_ms)
        );
    }
    if let Some(claim) = &snapshot.claim {
        text += &format!("Claimed by job {} ({}) at {}\n", claim.job, claim.job_name, time::moment(claim.at_ms));
    }
    for holder in &snapshot.holders {
        text += &format!("Held: {holder}\n");
    }
    if let Some(deletion) = &snapshot.deletion {
        text += &format!("Being deleted since {} by {}\n", time::moment(deletion.at_ms), deleter(deletion));
    }
    if snapshot.failures > 1 {
        text += &format!(
            "Stands for {} failures in a row, the first at {}\n",
            snapshot.failures,
            time::moment(snapshot.first_failed_at_ms)
        );
    }
    if let Some(failure) = &snapshot.failure {
        text += &format!("\n{}", weir_service::report::render(&Error::from(failure.clone())));
    }
    if !snapshot.timings.is_empty() {
        text += &format!("\n{}", timings_table(&snapshot.timings));
    }
    if !snapshot.sources.is_empty() {
        let rows = snapshot.sources.iter().map(|source| {
            let end = if source.finished { "finished" } else { "" };
            vec![source.uid.clone(), source.split.clone(), count(source.offset), end.to_owned()]
        });
        text += &format!("\n{}", output::table(&["source", "split", "offset", ""], &[2], rows));
    }
    text
}
