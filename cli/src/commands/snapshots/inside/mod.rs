//! `weir snapshots inspect`, `query`, `diff`, `export`, `verify`: what is in a snapshot's files. A snapshot that is given
//! by its directory is read without any cluster.

mod query;
mod report;
mod rows;

use std::path::Path;

use serde_json::json;
use weir_inspect::export::{self, Format};
use weir_inspect::summary::{self, Depth};
use weir_inspect::{Report, Snapshot, names};
use weir_types::{Code, Error, Result};

use super::named;
use crate::args::Global;
use crate::args::inside::{ExportArgs, ExportFormat, InspectArgs};
use crate::args::snapshots::SnapshotArgs;
use crate::identity::{Named, NamespaceArgs};
use crate::{connect, output};

pub(super) use query::query;

/// Where a snapshot lies: as given, or where the JobManager says that the one with this id is.
async fn directory(global: &Global, snapshot: Named) -> Result<String> {
    if snapshot.text.contains('/') {
        return Ok(snapshot.text);
    }
    let request = snapshot.request();
    let found =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.describe_snapshot(request).await },
        )
        .await
        .map_err(looked_up)?;
    Ok(found.directory)
}

/// The error of somebody who has named a snapshot by its id where no JobManager answers.
fn looked_up(error: Error) -> Error {
    match error.code {
        Code::Unavailable => error.with_hint(
            "Snapshots named by id are looked up at a JobManager: name one with --jobmanager HOST:PORT, or give the \
             snapshot's directory.",
        ),
        _ => error,
    }
}

async fn open(global: &Global, snapshot: Named) -> Result<Snapshot> {
    Snapshot::open(&directory(global, snapshot).await?)
}

/// `weir snapshots inspect`.
pub(super) async fn inspect(global: &Global, args: InspectArgs) -> Result<()> {
    let snapshot = open(global, named(global, args.snapshot)?).await?;
    let summary = summary::summarise(&snapshot, Depth { ranges: args.ranges, heaviest: args.heaviest })?;
    if global.json {
        return output::print_json(&json!(summary));
    }
    output::print(&report::summary(&summary))
}

/// `weir snapshots diff`.
pub(super) async fn diff(global: &Global, from: String, to: String, namespace: NamespaceArgs) -> Result<()> {
    let args = |snapshot| SnapshotArgs { snapshot, namespace: namespace.clone() };
    let from = open(global, named(global, args(from))?).await?;
    let to = open(global, named(global, args(to))?).await?;
    let diff = weir_inspect::diff::diff(&from, &to)?;
    if global.json {
        return output::print_json(&json!(diff));
    }
    output::print(&report::diff(&diff))
}

/// `weir snapshots export`.
pub(super) async fn export(global: &Global, args: ExportArgs) -> Result<()> {
    let ExportArgs { snapshot, tables, format, output } = args;
    let snapshot = open(global, named(global, snapshot)?).await?;
    let format = match format {
        ExportFormat::Csv => Format::Csv,
        ExportFormat::Jsonl => Format::Jsonl,
        ExportFormat::Parquet => Format::Parquet,
    };
    let tables = match tables.as_slice() {
        [] => snapshot.tables().to_vec(),
        named => named.iter().map(|name| names::state_table(&snapshot, name)).collect::<Result<_>>()?,
    };
    if output == Path::new("-") {
        let [table] = tables.as_slice() else { return Err(one_table(tables.len())) };
        return export::write_table(table, format, rows::Stdout).map(|_written| ());
    }
    let mut written = Vec::new();
    if output.is_dir() {
        for table in &tables {
            let path = output.join(export::file_name(table, format));
            written.push((names::quoted(table), path.clone(), export::write_file(table, format, &path)?));
        }
    } else {
        let [table] = tables.as_slice() else { return Err(one_table(tables.len())) };
        written.push((names::quoted(table), output.clone(), export::write_file(table, format, &output)?));
    }
    if global.json {
        let files = written.iter().map(|(table, path, (rows, bytes))| {
            json!({"table": table, "file": path.display().to_string(), "rows": rows, "bytes": bytes})
        });
        return output::print_json(&files.collect());
    }
    let rows = written.iter().map(|(table, path, (rows, bytes))| {
        vec![table.clone(), output::count(*rows), output::bytes(*bytes), path.display().to_string()]
    });
    output::print(&output::table(&["table", "rows", "size", "file"], &[1, 2], rows))
}

fn one_table(found: usize) -> Error {
    Error::invalid(format!("{found} tables do not go into one file"))
        .with_hint("Choose one with --table, or give a directory that exists as --output.")
}

/// `weir snapshots verify`: a directory is read here, a snapshot of the catalogue by the JobManager, which enters there
/// what it has found.
pub(super) async fn verify(global: &Global, snapshot: Named) -> Result<()> {
    let (directory, report) = match snapshot.text.contains('/') {
        true => verify_here(snapshot.text)?,
        false => verify_there(global, snapshot).await?,
    };
    if global.json {
        output::print_json(&report::verification_json(&directory, &report))?;
    } else {
        output::print(&report::verification(&report))?;
    }
    damaged(&report)
}

fn verify_here(directory: String) -> Result<(String, Report)> {
    let mut progress = output::Progress::new();
    let show = &mut |bytes| progress.show(&format!("{} read", output::bytes(bytes)));
    let report = weir_inspect::snapshot::verify_directory(&directory, show)?;
    progress.clear();
    Ok((directory, report))
}

async fn verify_there(global: &Global, snapshot: Named) -> Result<(String, Report)> {
    let request = snapshot.request();
    let reply =
        connect::ask(
            global,
            request,
            |mut jobmanager, request| async move { jobmanager.verify_snapshot(request).await },
        )
        .await
        .map_err(looked_up)?;
    let report = serde_json::from_str(&reply.report)
        .map_err(|error| Error::internal("the JobManager's report does not read").with_detail(error.to_string()))?;
    Ok((reply.directory, report))
}

/// Damage is an error, after the report.
fn damaged(report: &Report) -> Result<()> {
    let Some(first) = report.first_damage() else { return Ok(()) };
    let found = report.findings();
    let findings = if found == 1 { "1 finding".to_owned() } else { format!("{found} findings") };
    Err(Error::new(Code::Corrupt, format!("snapshot {} is damaged: {findings}", report.manifest.snapshot))
        .with_detail(first.to_string())
        .with_hint("Restore from another snapshot, or fetch an undamaged copy of this one."))
}
