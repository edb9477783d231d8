//! `weir savepoint`, `checkpoint`, `stop`, `snapshots`: one module per family of commands.

mod annotate;
mod delete;
mod explain;
mod gc;
mod import;
mod inside;
mod list;
mod take;
pub(crate) mod view;

use std::collections::BTreeMap;
use std::path::Path;

use weir_types::{Error, Result};

use crate::args::Global;
use crate::args::snapshots::{SnapshotArgs, SnapshotsCommand};
use crate::identity::{Identity, Named};

pub(crate) use delete::dispose;
pub(crate) use take::{checkpoint, savepoint, stop};

/// `weir snapshots …`.
pub(crate) async fn run(global: &Global, command: SnapshotsCommand) -> Result<()> {
    match command {
        SnapshotsCommand::List(args) => list::list(global, args).await,
        SnapshotsCommand::Cancel(snapshot) => take::cancel(global, named(global, snapshot)?).await,
        SnapshotsCommand::Explain(snapshot) => explain::explain(global, named(global, snapshot)?).await,
        SnapshotsCommand::Show { snapshot, query } => list::show(global, named(global, snapshot)?, query).await,
        SnapshotsCommand::Label { snapshot, changes } => {
            annotate::label(global, named(global, snapshot)?, changes).await
        }
        SnapshotsCommand::Note { snapshot, text } => annotate::note(global, named(global, snapshot)?, text).await,
        SnapshotsCommand::Rename { snapshot, name } => annotate::rename(global, named(global, snapshot)?, name).await,
        SnapshotsCommand::Pin(snapshot) => annotate::pin(global, named(global, snapshot)?, true).await,
        SnapshotsCommand::Unpin(snapshot) => annotate::pin(global, named(global, snapshot)?, false).await,
        SnapshotsCommand::Import(args) => import::import(global, args).await,
        SnapshotsCommand::Delete(args) => delete::delete(global, args).await,
        SnapshotsCommand::Gc { dry_run, older_than } => gc::gc(global, dry_run, older_than).await,
        SnapshotsCommand::Inspect(args) => inside::inspect(global, args).await,
        SnapshotsCommand::Query(args) => inside::query(global, args).await,
        SnapshotsCommand::Diff { from, to, namespace } => inside::diff(global, from, to, namespace).await,
        SnapshotsCommand::Export(args) => inside::export(global, args).await,
        SnapshotsCommand::Verify(snapshot) => inside::verify(global, named(global, snapshot)?).await,
    }
}

/// Snapshots are named by id or by directory; a relative directory is relative to this command, not to the JobManager.
pub(crate) fn local_path(snapshot: String) -> Result<String> {
    let is_path = snapshot.contains('/') || Path::new(&snapshot).is_dir();
    if is_path { absolute(Path::new(&snapshot)) } else { Ok(snapshot) }
}

/// What a command's user means, with the namespace to look for it in.
fn named(global: &Global, args: SnapshotArgs) -> Result<Named> {
    let namespace = Identity::load(global)?.namespace(&args.namespace)?;
    Ok(Named { text: local_path(args.snapshot)?, namespace })
}

/// Labels that were written `KEY=VALUE`.
pub(crate) fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let label = |text: &String| {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Error::invalid(format!("{text:?} is not a label")).with_hint("Write KEY=VALUE."))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(label).collect()
}

fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path)
        .map_err(|error| Error::io(format!("could not resolve the path {}", path.display()), &error))?;
    path.into_os_string().into_string().map_err(|_| Error::invalid("paths must be valid UTF-8"))
}
