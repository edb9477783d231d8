//! `weir savepoint`, `checkpoint`, `stop`: taking snapshots.

use std::path::PathBuf;
use std::time::Duration;

use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use super::{absolute, labels, view};
use crate::args::snapshots::AnnotationArgs;
use crate::args::{Global, WaitArgs};
use crate::connect::JobManager;
use crate::identity::{Identity, Named};
use crate::output::Progress;
use crate::{connect, output};

/// How often to look how far a snapshot is that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// `weir savepoint JOB [DIR]`.
pub(crate) async fn savepoint(
    global: &Global,
    job: String,
    directory: Option<PathBuf>,
    annotations: AnnotationArgs,
    wait: WaitArgs,
) -> Result<()> {
    trigger(global, job, true, directory, annotations, wait).await
}

/// `weir checkpoint JOB`.
pub(crate) async fn checkpoint(global: &Global, job: String, wait: WaitArgs) -> Result<()> {
    trigger(global, job, false, None, AnnotationArgs::default(), wait).await
}

async fn trigger(
    global: &Global,
    job: String,
    savepoint: bool,
    directory: Option<PathBuf>,
    annotations: AnnotationArgs,
    wait: WaitArgs,
) -> Result<()> {
    let identity = Identity::load(global)?;
    let request_id = wait.request_id.unwrap_or_else(connect::request_id);
    let request = pb::TriggerSnapshotRequest {
        request_id: request_id.clone(),
        job,
        savepoint,
        directory: directory.as_deref().map(absolute).transpose()?,
        timeout_ms: connect::timeout_ms(wait.timeout),
        owner: identity.owner(&wait.owner)?,
        namespace: identity.namespace(&wait.namespace)?,
        name: annotations.name,
        note: annotations.note,
        labels: labels(&annotations.label)?,
        pinned: annotations.pin,
        evict_oldest: annotations.evict_oldest,
    };
    let watched = connect::jobmanager(global).await?;
    let taken =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.trigger_snapshot(request).await },
        );
    let snapshot = watching(watched, request_id, taken).await?;
    print_taken(global, &snapshot)
}

/// `weir stop`.
pub(crate) async fn stop(
    global: &Global,
    job: String,
    directory: Option<PathBuf>,
    drain: bool,
    wait: WaitArgs,
) -> Result<()> {
    let identity = Identity::load(global)?;
    let request_id = wait.request_id.unwrap_or_else(connect::request_id);
    let request = pb::StopJobRequest {
        request_id: request_id.clone(),
        job,
        drain,
        directory: directory.as_deref().map(absolute).transpose()?,
        timeout_ms: connect::timeout_ms(wait.timeout),
        owner: identity.owner(&wait.owner)?,
        namespace: identity.namespace(&wait.namespace)?,
    };
    let watched = connect::jobmanager(global).await?;
    let taken =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.stop_job(request).await });
    let snapshot = watching(watched, request_id, taken).await?;
    print_taken(global, &snapshot)
}

/// Waits for a snapshot, and shows meanwhile how far it is.
pub(super) async fn watching<T>(
    mut jobmanager: JobManager,
    request_id: String,
    taken: impl Future<Output = Result<T>>,
) -> Result<T> {
    let watch = async {
        let mut progress = Progress::new();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            // The request itself says what goes wrong.
            let asked = pb::RequestRef { request_id: request_id.clone() };
            if let Ok(found) = jobmanager.describe_request(asked).await {
                progress.show(&standing(&found.into_inner()));
            }
        }
    };
    tokio::select! {
        biased;
        taken = taken => taken,
        () = watch => Err(Error::internal("the wait for a snapshot ended by itself")),
    }
}

/// How far a request for a snapshot is, in words.
fn standing(progress: &pb::SnapshotProgress) -> String {
    match &progress.snapshot {
        None => format!("waits for {} other snapshots of its job", progress.ahead),
        Some(snapshot) if snapshot.queue_position > 0 => {
            format!("{} is number {} in the queue", snapshot.id, snapshot.queue_position)
        }
        Some(snapshot) if snapshot.origin.is_some() => format!("{} is being copied", snapshot.id),
        Some(snapshot) => {
            let pb::Snapshot { id, subtasks_acknowledged, subtasks_total, .. } = snapshot;
            format!("{id}: {subtasks_acknowledged} of {subtasks_total} subtasks")
        }
    }
}

/// `weir snapshots cancel`.
pub(crate) async fn cancel(global: &Global, snapshot: Named) -> Result<()> {
    let request = snapshot.request();
    let snapshot =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.cancel_snapshot(request).await },
        )
        .await?;
    if global.json {
        return output::print_json(&view::snapshot_json(&snapshot));
    }
    // An import that is still being looked at has no id yet.
    let name = if snapshot.id.is_empty() { &snapshot.directory } else { &snapshot.id };
    output::print(&format!("{} {name} is being given up\n", view::kind(&snapshot)))
}

fn print_taken(global: &Global, snapshot: &pb::Snapshot) -> Result<()> {
    if let Some(failure) = &snapshot.failure {
        return Err(Error::from(failure.clone()));
    }
    if global.json {
        return output::print_json(&view::snapshot_json(snapshot));
    }
    for evicted in &snapshot.evicted {
        let name = if evicted.name.is_empty() { String::new() } else { format!(" ({})", evicted.name) };
        let size = output::bytes(evicted.bytes);
        output::print(&format!("savepoint {}{name} deleted to make room, {size}\n", evicted.id))?;
    }
    let size = output::bytes(snapshot.bytes);
    let took = crate::time::span(snapshot.triggered_at_ms, snapshot.ended_at_ms);
    output::print(&format!(
        "{} {} completed in {took}, {size}\n{}\n",
        view::kind(snapshot),
        snapshot.id,
        snapshot.directory
    ))
}
