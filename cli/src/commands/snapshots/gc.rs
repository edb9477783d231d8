//! `weir snapshots gc`: what nobody needs any more.

use serde_json::{Value, json};
use weir_proto::pb::client::v1 as pb;
use weir_service::units::TimeSpan;
use weir_types::{Code, Error, Result};

use crate::args::Global;
use crate::{connect, output};

/// `weir snapshots gc [--dry-run]`.
pub(super) async fn gc(global: &Global, dry_run: bool, older_than: Option<TimeSpan>) -> Result<()> {
    let request = pb::CollectGarbageRequest { dry_run, older_than_ms: connect::timeout_ms(older_than) };
    let reply =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.collect_garbage(request).await },
        )
        .await?;
    if global.json {
        output::print_json(&json!(reply.garbage.iter().map(garbage_json).collect::<Vec<_>>()))?;
    } else {
        output::print(&text(&reply.garbage, dry_run))?;
    }
    match reply.garbage.iter().find(|garbage| garbage.outcome == "failed") {
        None => Ok(()),
        Some(failed) => {
            Err(Error::new(Code::Io, format!("{} could not be removed", failed.name)).with_detail(&failed.detail))
        }
    }
}

fn garbage_json(garbage: &pb::Garbage) -> Value {
    json!({
        "kind": garbage.kind, "name": garbage.name, "reason": garbage.reason, "bytes": garbage.bytes,
        "outcome": garbage.outcome, "detail": garbage.detail,
    })
}

fn text(garbage: &[pb::Garbage], dry_run: bool) -> String {
    let (done, verb) = if dry_run { ("found", "would be removed") } else { ("removed", "removed") };
    let gone = || garbage.iter().filter(|garbage| garbage.outcome == done);
    let bytes: u64 = gone().filter_map(|garbage| garbage.bytes).sum();
    let summary = format!("{} {verb}, {}\n", gone().count(), output::bytes(bytes));
    if garbage.is_empty() {
        return summary;
    }
    let rows = garbage.iter().map(|garbage| {
        let why = if garbage.detail.is_empty() {
            garbage.reason.clone()
        } else {
            format!("{}; {}: {}", garbage.reason, garbage.outcome, garbage.detail)
        };
        let size = garbage.bytes.map_or_else(|| "-".to_owned(), output::bytes);
        vec![garbage.kind.clone(), garbage.name.clone(), size, garbage.outcome.clone(), why]
    });
    output::table(&["kind", "name", "size", "outcome", "why"], &[2], rows) + "\n" + &summary
}
