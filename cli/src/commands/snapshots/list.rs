//! `weir snapshots list` and `show`: the catalogue.

use serde_json::json;
use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use super::{labels, view};
use crate::args::Global;
use crate::args::snapshots::{ListArgs, Sort};
use crate::identity::{Identity, Named};
use crate::{connect, output, time};

/// `weir snapshots list`.
pub(super) async fn list(global: &Global, args: ListArgs) -> Result<()> {
    let namespace = Identity::load(global)?.scope(&args.scope)?;
    if args.deleted {
        let request = pb::ListDeletedRequest { job: args.job, namespace };
        let reply =
            connect::ask(
                global,
                request,
                |mut jobmanager, request| async move { jobmanager.list_deleted(request).await },
            )
            .await?;
        if global.json {
            return output::print_json(&json!(reply.snapshots.iter().map(view::deleted_json).collect::<Vec<_>>()));
        }
        return output::print(&view::deleted_table(&reply.snapshots));
    }
    let request = wanted(args, namespace)?;
    let reply =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.list_snapshots(request).await },
        )
        .await?;
    if global.json {
        return output::print_json(&json!(reply.snapshots.iter().map(view::snapshot_json).collect::<Vec<_>>()));
    }
    output::print(&view::snapshots_table(&reply.snapshots))
}

fn wanted(args: ListArgs, namespace: Option<String>) -> Result<pb::ListSnapshotsRequest> {
    let moment = |text: Option<String>| text.map(|text| time::parse(&text, time::now_ms())).transpose();
    let order = match args.sort {
        Sort::Time => pb::SnapshotOrder::Time,
        Sort::Bytes => pb::SnapshotOrder::Bytes,
        Sort::Exclusive => pb::SnapshotOrder::ExclusiveBytes,
        Sort::Duration => pb::SnapshotOrder::Duration,
        Sort::Rows => pb::SnapshotOrder::Rows,
        Sort::Job => pb::SnapshotOrder::Job,
        Sort::Name => pb::SnapshotOrder::Name,
    };
    Ok(pb::ListSnapshotsRequest {
        job: args.job,
        savepoints: (args.savepoints || args.checkpoints).then_some(args.savepoints),
        states: if args.failed { vec!["failed".to_owned()] } else { args.state },
        owner: args.owner,
        namespace,
        labels: labels(&args.label)?,
        since_ms: moment(args.since)?,
        until_ms: moment(args.until)?,
        order: order.into(),
        reverse: args.reverse,
        limit: args.limit,
    })
}

/// `weir snapshots show`.
pub(super) async fn show(global: &Global, snapshot: Named, query: bool) -> Result<()> {
    let request = snapshot.request();
    let snapshot =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.describe_snapshot(request).await },
        )
        .await?;
    if query {
        let script = snapshot
            .query
            .ok_or_else(|| Error::not_found(format!("the script of job {} is not known any more", snapshot.job)))?;
        return output::print(&format!("{}\n", script.trim_end()));
    }
    if global.json {
        return output::print_json(&view::snapshot_json(&snapshot));
    }
    output::print(&view::snapshot_text(&snapshot))
}
