//! `weir savepoint`, `checkpoint`, `stop`, `snapshots`.

use std::path::{Path, PathBuf};

use serde_json::json;
use weir_proto::from_status;
use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use crate::args::{Global, SnapshotsCommand, WaitArgs};
use crate::commands::show;
use crate::{connect, output};

/// `weir savepoint JOB [DIR]`.
pub(crate) async fn savepoint(global: &Global, job: String, directory: Option<PathBuf>, wait: WaitArgs) -> Result<()> {
    trigger(global, job, true, directory, wait).await
}

/// `weir checkpoint JOB`.
pub(crate) async fn checkpoint(global: &Global, job: String, wait: WaitArgs) -> Result<()> {
    trigger(global, job, false, None, wait).await
}

async fn trigger(
    global: &Global,
    job: String,
    savepoint: bool,
    directory: Option<PathBuf>,
    wait: WaitArgs,
) -> Result<()> {
    let request = pb::TriggerSnapshotRequest {
        request_id: connect::request_id(),
        job,
        savepoint,
        directory: directory.as_deref().map(absolute).transpose()?,
        timeout_ms: connect::timeout_ms(wait.timeout),
        owner: wait.owner,
        name: None,
    };
    let mut jobmanager = connect::jobmanager(global).await?;
    let snapshot = jobmanager.trigger_snapshot(request).await.map_err(|status| from_status(&status))?.into_inner();
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
    let request = pb::StopJobRequest {
        request_id: connect::request_id(),
        job,
        drain,
        directory: directory.as_deref().map(absolute).transpose()?,
        timeout_ms: connect::timeout_ms(wait.timeout),
        owner: wait.owner,
    };
    let mut jobmanager = connect::jobmanager(global).await?;
    let snapshot = jobmanager.stop_job(request).await.map_err(|status| from_status(&status))?.into_inner();
    print_taken(global, &snapshot)
}

fn print_taken(global: &Global, snapshot: &pb::Snapshot) -> Result<()> {
    if let Some(failure) = &snapshot.failure {
        return Err(Error::from(failure.clone()));
    }
    if global.json {
        return output::print_json(&show::snapshot_json(snapshot));
    }
    let size = output::bytes(snapshot.bytes);
    let took = crate::time::span(snapshot.triggered_at_ms, snapshot.ended_at_ms);
    output::print(&format!(
        "{} {} completed in {took}, {size}\n{}\n",
        show::kind(snapshot),
        snapshot.id,
        snapshot.directory
    ))
}

/// `weir savepoint -d`.
pub(crate) async fn dispose(global: &Global, snapshot: String) -> Result<()> {
    let mut jobmanager = connect::jobmanager(global).await?;
    let request = pb::SnapshotRequest { request_id: connect::request_id(), snapshot: local_path(snapshot)? };
    let reply = jobmanager.delete_snapshot(request).await.map_err(|status| from_status(&status))?.into_inner();
    if global.json {
        let snapshot = reply.snapshot.as_ref().map(show::snapshot_json);
        return output::print_json(&json!({"snapshot": snapshot, "bytes_freed": reply.bytes_freed}));
    }
    let id = reply.snapshot.map(|snapshot| snapshot.id).unwrap_or_default();
    output::print(&format!("savepoint {id} disposed, {} freed\n", output::bytes(reply.bytes_freed)))
}

/// `weir snapshots …`.
pub(crate) async fn run(global: &Global, command: SnapshotsCommand) -> Result<()> {
    let mut jobmanager = connect::jobmanager(global).await?;
    match command {
        SnapshotsCommand::List { job, savepoints, checkpoints } => {
            let kind = (savepoints || checkpoints).then_some(savepoints);
            let request = pb::ListSnapshotsRequest { job, savepoints: kind };
            let reply = jobmanager.list_snapshots(request).await.map_err(|status| from_status(&status))?.into_inner();
            if global.json {
                let snapshots: Vec<_> = reply.snapshots.iter().map(show::snapshot_json).collect();
                return output::print_json(&json!(snapshots));
            }
            output::print(&show::snapshots_table(&reply.snapshots))
        }
        SnapshotsCommand::Show { snapshot } => {
            let request = pb::SnapshotRequest { request_id: String::new(), snapshot: local_path(snapshot)? };
            let snapshot =
                jobmanager.describe_snapshot(request).await.map_err(|status| from_status(&status))?.into_inner();
            if global.json {
                return output::print_json(&show::snapshot_json(&snapshot));
            }
            output::print(&show::snapshot_text(&snapshot))
        }
    }
}

/// Snapshots are named by id or by directory; a relative directory is relative to this command, not to the JobManager.
pub(crate) fn local_path(snapshot: String) -> Result<String> {
    let is_path = snapshot.contains('/') || Path::new(&snapshot).is_dir();
    if is_path { absolute(Path::new(&snapshot)) } else { Ok(snapshot) }
}

fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path)
        .map_err(|error| Error::io(format!("could not resolve the path {}", path.display()), &error))?;
    path.into_os_string().into_string().map_err(|_| Error::invalid("paths must be valid UTF-8"))
}
