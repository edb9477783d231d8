//! `weir snapshots query`.

use serde_json::json;
use weir_inspect::export::{Format, RowWriter};
use weir_inspect::query::{self, Queries};
use weir_types::{Error, Result};

use super::rows::{Aligned, Stdout};
use super::{named, open};
use crate::args::Global;
use crate::args::inside::QueryArgs;
use crate::args::snapshots::SnapshotArgs;
use crate::output;

/// `weir snapshots query`.
pub(in crate::commands::snapshots) async fn query(global: &Global, args: QueryArgs) -> Result<()> {
    let QueryArgs { snapshot, sql, tables: _, others, csv, memory } = args;
    let namespace = snapshot.namespace.clone();
    let snapshot = open(global, named(global, snapshot)?).await?;
    let Some(sql) = sql else { return list_tables(global, &query::tables(&snapshot)?) };
    let mut further = Vec::with_capacity(others.len());
    for other in others {
        let Some((place, name)) = other.rsplit_once('=') else {
            return Err(Error::invalid(format!("{other:?} does not name a snapshot"))
                .with_hint("Write --and SNAPSHOT=NAME: id or directory, then the name that it has in the query."));
        };
        let other = SnapshotArgs { snapshot: place.to_owned(), namespace: namespace.clone() };
        further.push((name.to_owned(), open(global, named(global, other)?).await?));
    }
    let memory = usize::try_from(memory.0).unwrap_or(usize::MAX);
    let mut rows = Queries::new(snapshot, further, memory)?.run(&sql).await?;
    if csv || global.json {
        let format = if csv { Format::Csv } else { Format::Json };
        let mut writer = RowWriter::new(format, rows.schema(), Stdout)?;
        while let Some(batch) = rows.next().await? {
            writer.write(&batch)?;
        }
        return writer.finish().map(|_written| ());
    }
    let mut table = Aligned::new(rows.schema());
    while let Some(batch) = rows.next().await? {
        table.add(&batch)?;
    }
    table.finish()
}

fn list_tables(global: &Global, tables: &[query::Listing]) -> Result<()> {
    if global.json {
        return output::print_json(&json!(tables));
    }
    let rows = tables.iter().map(|listing| {
        let columns: Vec<String> = listing.columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        let rows = listing.rows.map_or_else(|| "-".to_owned(), output::count);
        vec![listing.table.clone(), rows, columns.join(", ")]
    });
    output::print(&output::table(&["table", "rows", "columns"], &[1], rows))
}
