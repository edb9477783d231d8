//! `weir snapshots import`: a savepoint of another cluster becomes one of this cluster's.

use weir_proto::pb::client::v1 as pb;
use weir_types::Result;

use super::{absolute, labels, take, view};
use crate::args::Global;
use crate::args::snapshots::ImportArgs;
use crate::connect::JobManager;
use crate::identity::Identity;
use crate::{connect, output};

/// `weir snapshots import PATH`.
pub(super) async fn import(global: &Global, args: ImportArgs) -> Result<()> {
    let identity = Identity::load(global)?;
    let request_id = args.request_id.unwrap_or_else(connect::request_id);
    let request = pb::ImportSnapshotRequest {
        request_id: request_id.clone(),
        directory: absolute(&args.path)?,
        owner: identity.owner(&args.owner)?,
        namespace: identity.namespace(&args.namespace)?.unwrap_or_default(),
        name: args.name,
        note: args.note,
        labels: labels(&args.label)?,
        pinned: args.pin,
        timeout_ms: connect::timeout_ms(args.timeout),
    };
    let watched = connect::jobmanager(global).await?;
    let import = |mut jobmanager: JobManager, request| async move { jobmanager.import_snapshot(request).await };
    let imported = connect::ask(global, request, import);
    let snapshot = take::watching(watched, request_id, imported).await?;
    if global.json {
        return output::print_json(&view::snapshot_json(&snapshot));
    }
    let origin = snapshot.origin.clone().unwrap_or_default();
    output::print(&format!(
        "savepoint {} imported, {}; it was {} of cluster {}\n{}\n",
        snapshot.id,
        output::bytes(snapshot.bytes),
        origin.snapshot,
        origin.cluster,
        snapshot.directory
    ))
}
