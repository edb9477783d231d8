//! `weir snapshots delete` and `weir savepoint -d`: deleting snapshots.

use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_service::report;
use weir_types::Result;

use super::{local_path, view};
use crate::args::snapshots::DeleteArgs;
use crate::args::{Global, WaitArgs};
use crate::identity::Identity;
use crate::{connect, output};

/// `weir savepoint -d`.
pub(crate) async fn dispose(global: &Global, snapshot: String, force: bool, wait: &WaitArgs) -> Result<()> {
    let identity = Identity::load(global)?;
    let (owner, namespace) = (identity.owner(&wait.owner)?, identity.namespace(&wait.namespace)?);
    let reply = delete_one(global, snapshot, force, owner, namespace).await?;
    if global.json {
        return output::print_json(&reply_json(&reply));
    }
    let id = reply.snapshot.map(|snapshot| snapshot.id).unwrap_or_default();
    output::print(&format!("savepoint {id} disposed, {} freed\n", output::bytes(reply.bytes_freed)))
}

/// `weir snapshots delete ID…`: each on its own; the first refusal is the command's, the others are printed.
pub(super) async fn delete(global: &Global, args: DeleteArgs) -> Result<()> {
    let identity = Identity::load(global)?;
    let (owner, namespace) = (identity.owner(&args.owner)?, identity.namespace(&args.namespace)?);
    let (mut deleted, mut refusal) = (Vec::new(), None);
    for snapshot in args.snapshots {
        match delete_one(global, snapshot, args.force, owner.clone(), namespace.clone()).await {
            Ok(reply) if global.json => deleted.push(reply_json(&reply)),
            Ok(reply) => {
                let snapshot = reply.snapshot.unwrap_or_default();
                let freed = output::bytes(reply.bytes_freed);
                output::print(&format!("{} {} deleted, {freed} freed\n", view::kind(&snapshot), snapshot.id))?;
            }
            Err(error) if refusal.is_none() => refusal = Some(error),
            Err(error) => eprint!("{}", report::render(&error)),
        }
    }
    if global.json {
        output::print_json(&json!(deleted))?;
    }
    refusal.map_or(Ok(()), Err)
}

async fn delete_one(
    global: &Global,
    snapshot: String,
    force: bool,
    owner: String,
    namespace: Option<String>,
) -> Result<pb::DeleteSnapshotReply> {
    let (snapshot, request_id) = (local_path(snapshot)?, connect::request_id());
    let request = pb::DeleteSnapshotRequest { request_id, snapshot, force, owner, namespace };
    connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.delete_snapshot(request).await })
        .await
}

fn reply_json(reply: &pb::DeleteSnapshotReply) -> Value {
    let snapshot = reply.snapshot.as_ref().map(view::snapshot_json);
    json!({"snapshot": snapshot, "bytes_freed": reply.bytes_freed})
}
