//! `weir snapshots label`, `note`, `rename`, `pin`, `unpin`: what people say about snapshots.

use weir_proto::from_status;
use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use super::{local_path, view};
use crate::args::Global;
use crate::{connect, output};

/// `weir snapshots label ID KEY=VALUE KEY-`.
pub(super) async fn label(global: &Global, snapshot: String, changes: Vec<String>) -> Result<()> {
    let mut request = pb::AnnotateSnapshotRequest::default();
    for change in changes {
        match (change.split_once('='), change.strip_suffix('-')) {
            (Some((key, value)), _) => {
                request.set_labels.insert(key.to_owned(), value.to_owned());
            }
            (None, Some(key)) => request.remove_labels.push(key.to_owned()),
            (None, None) => {
                return Err(Error::invalid(format!("{change:?} changes no label"))
                    .with_hint("Write KEY=VALUE to set a label, KEY- to remove it."));
            }
        }
    }
    annotate(global, snapshot, request).await
}

/// `weir snapshots note`.
pub(super) async fn note(global: &Global, snapshot: String, text: String) -> Result<()> {
    annotate(global, snapshot, pb::AnnotateSnapshotRequest { note: Some(text), ..Default::default() }).await
}

/// `weir snapshots rename`.
pub(super) async fn rename(global: &Global, snapshot: String, name: String) -> Result<()> {
    annotate(global, snapshot, pb::AnnotateSnapshotRequest { name: Some(name), ..Default::default() }).await
}

/// `weir snapshots pin` and `unpin`.
pub(super) async fn pin(global: &Global, snapshot: String, pinned: bool) -> Result<()> {
    annotate(global, snapshot, pb::AnnotateSnapshotRequest { pinned: Some(pinned), ..Default::default() }).await
}

async fn annotate(global: &Global, snapshot: String, request: pb::AnnotateSnapshotRequest) -> Result<()> {
    let request =
        pb::AnnotateSnapshotRequest { request_id: connect::request_id(), snapshot: local_path(snapshot)?, ..request };
    let mut jobmanager = connect::jobmanager(global).await?;
    let snapshot = jobmanager.annotate_snapshot(request).await.map_err(|status| from_status(&status))?.into_inner();
    if global.json {
        return output::print_json(&view::snapshot_json(&snapshot));
    }
    output::print(&view::annotations_text(&snapshot))
}
