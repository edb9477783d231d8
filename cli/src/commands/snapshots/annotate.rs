//! `weir snapshots label`, `note`, `rename`, `pin`, `unpin`: what people say about snapshots.

use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use super::view;
use crate::args::Global;
use crate::identity::Named;
use crate::{connect, output};

/// `weir snapshots label ID KEY=VALUE KEY-`.
pub(super) async fn label(global: &Global, snapshot: Named, changes: Vec<String>) -> Result<()> {
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
pub(super) async fn note(global: &Global, snapshot: Named, text: String) -> Result<()> {
    annotate(global, snapshot, pb::AnnotateSnapshotRequest { note: Some(text), ..Default::default() }).await
}

/// `weir snapshots rename`.
pub(super) async fn rename(global: &Global, snapshot: Named, name: String) -> Result<()> {
    annotate(global, snapshot, pb::AnnotateSnapshotRequest { name: Some(name), ..Default::default() }).await
}

/// `weir snapshots pin` and `unpin`.
pub(super) async fn pin(global: &Global, snapshot: Named, pinned: bool) -> Result<()> {
    annotate(global, snapshot, pb::AnnotateSnapshotRequest { pinned: Some(pinned), ..Default::default() }).await
}

async fn annotate(global: &Global, snapshot: Named, request: pb::AnnotateSnapshotRequest) -> Result<()> {
    let Named { text: snapshot, namespace } = snapshot;
    let request = pb::AnnotateSnapshotRequest { request_id: connect::request_id(), snapshot, namespace, ..request };
    let snapshot =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.annotate_snapshot(request).await },
        )
        .await?;
    if global.json {
        return output::print_json(&view::snapshot_json(&snapshot));
    }
    output::print(&view::annotations_text(&snapshot))
}
