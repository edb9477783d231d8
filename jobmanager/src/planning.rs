//! From a script to a job: planning on a thread of its own, splits, reader groups, and what a restore needs.
//!
//! Invariant: whatever can be known to be wrong with a job is an error here, before anything starts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Semaphore;
use weir_coordination::metadata::{NewJob, RestoreRecord, SourceRecord};
use weir_proto::pb::client::v1 as pb;
use weir_sql::{PlanContext, Planned};
use weir_state::manifest::Manifest;
use weir_stream_store::client::StoreClient;
use weir_types::graph::{JobGraph, OperatorSpec};
use weir_types::ids::{JobId, RequestId};
use weir_types::{Code, Error, Result};

use crate::{sources, storage};

/// Scripts that are planned at the same time; each takes a thread and memory.
const AT_ONCE: usize = 2;
/// Longest script that is planned.
const SCRIPT_BYTES_MAX: usize = 1 << 20;

/// Plans scripts, a few at a time.
#[derive(Clone, Debug)]
pub(crate) struct Planner(Arc<Semaphore>);

impl Planner {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Plans a script with the options of a request.
    pub(crate) async fn plan(&self, request: &pb::SubmitRequest) -> Result<Planned> {
        if request.sql.len() > SCRIPT_BYTES_MAX {
            return Err(Error::invalid(format!("the script is longer than {SCRIPT_BYTES_MAX} bytes")));
        }
        let (sql, overrides) = (request.sql.clone(), request.options.clone().into_iter().collect());
        let context = PlanContext {
            overrides,
            defaults: BTreeMap::new(),
            job_name: request.name.clone().filter(|n| !n.is_empty()),
        };
        let permit = self.0.clone().acquire_owned().await;
        storage::blocking(move || {
            let _permit = permit;
            weir_sql::plan(&sql, &context)
        })
        .await
    }
}

/// Plans a job and looks at everything that it will need. Of jobs that have `ended` it may take over what they held.
pub(crate) async fn new_job(
    planner: &Planner,
    store: &StoreClient,
    request_id: RequestId,
    request: pb::SubmitRequest,
    restore: Option<RestoreRecord>,
    ended: &BTreeSet<JobId>,
) -> Result<NewJob> {
    let planned = planner.plan(&request).await?;
    for warning in &planned.warnings {
        tracing::warn!(request = %request_id, warning, "the planner has a remark");
    }
    let graph = planned.graph.filter(|_| !planned.is_explain).ok_or_else(|| {
        Error::new(Code::InvalidSql, "the script has nothing to run")
            .with_hint("A job is made from the INSERT INTO statements of a script; EXPLAIN only shows plans.")
    })?;
    graph.validate()?;
    let id = JobId::new(uuid::Uuid::new_v4().simple().to_string())?;
    let mut source_records = sources::enumerate(store, &id, &graph, ended).await?;
    if let Some(restore) = &restore {
        let manifest = storage::read(restore.directory.clone()).await?;
        check_operators(&graph, &manifest, restore.allow_non_restored_state)?;
        take_positions(&mut source_records, &manifest)?;
        sources::check_cut(store, &source_records).await?;
    }
    Ok(NewJob {
        request: Some(request_id),
        id,
        name: graph.name.clone(),
        sql: request.sql,
        owner: if request.owner.is_empty() { "default".to_owned() } else { request.owner },
        namespace: if request.namespace.is_empty() { "default".to_owned() } else { request.namespace },
        graph,
        plan: planned.explain,
        sources: source_records,
        restore,
    })
}

/// Whether all state of a snapshot has an operator that takes it.
fn check_operators(graph: &JobGraph, manifest: &Manifest, allow_non_restored_state: bool) -> Result<()> {
    let known: BTreeSet<&str> = graph.operators.iter().filter_map(|operator| operator.uid.as_deref()).collect();
    let held = manifest
        .operators
        .iter()
        .filter(|operator| !operator.files.is_empty() || !operator.splits.is_empty() || operator.prepared.is_some());
    let unknown: BTreeSet<&str> =
        held.map(|operator| operator.uid.as_str()).filter(|uid| !known.contains(uid)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let list = unknown.into_iter().collect::<Vec<_>>().join(", ");
    if allow_non_restored_state {
        tracing::warn!(snapshot = %manifest.snapshot, operators = list, "dropping state that no operator takes");
        return Ok(());
    }
    let stateful = graph.operators.iter().filter_map(|operator| {
        let uid = operator.uid.as_deref()?;
        let keeps_state = !matches!(operator.spec, OperatorSpec::Sink(_));
        keeps_state.then(|| format!("{uid} ({})", operator.name))
    });
    Err(Error::new(
        Code::FailedPrecondition,
        format!("snapshot {} holds state that no operator of the script takes", manifest.snapshot),
    )
    .with_detail(format!(
        "without an operator: {list}; the script's operators: {}",
        stateful.collect::<Vec<_>>().join(", ")
    ))
    .with_hint(
        "Restore the script that the snapshot was taken of, or drop that state with --allow-non-restored-state.",
    ))
}

/// Lets every source go on where the snapshot left off. Splits that the snapshot knows and the source no longer has are
/// an error; new ones start at their beginnings.
fn take_positions(records: &mut [SourceRecord], manifest: &Manifest) -> Result<()> {
    for source in records {
        let held = manifest.operator(&source.uid).into_iter().flat_map(|operator| operator.splits);
        let mut positions: BTreeMap<String, _> = held.map(|position| (position.split.clone(), position)).collect();
        if positions.is_empty() {
            continue;
        }
        // A generator's splits are fixed when its job is created; the snapshot says which.
        if positions.keys().all(|split| split.starts_with("split-")) {
            source.splits = positions.into_values().collect();
            continue;
        }
        for split in &mut source.splits {
            if let Some(position) = positions.remove(&split.split) {
                *split = position;
            }
        }
        if let Some(split) = positions.iter().find(|(_, position)| !position.finished).map(|(split, _)| split) {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("table {} has no split {split} any more, but the snapshot has read a part of it", source.table),
            )
            .with_hint("Bring the file or stream back as it was, or restore another snapshot."));
        }
        // What was read to its end need not be there any more; its position stays part of every snapshot.
        source.splits.extend(positions.into_values());
    }
    Ok(())
}
