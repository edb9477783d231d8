//! From a script to a job: planning on a thread of its own, splits, reader groups, and what a restore allows.
//!
//! Invariant: whatever can be known to be wrong with a job is an error here, before anything starts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Semaphore;
use weir_coordination::metadata::NewJob;
use weir_proto::pb::client::v1 as pb;
use weir_replication::Node;
use weir_sql::{PlanContext, Planned};
use weir_stream_store::client::StoreClient;
use weir_types::graph::JobGraph;
use weir_types::ids::{JobId, RequestId};
use weir_types::output::{CommittedSink, Place};
use weir_types::restore::RestorePlan;
use weir_types::{Code, Error, Result};

use crate::event::Unprepared;
use crate::metadata::Machine;
use crate::restore::{self, Restoring};
use crate::sources::{self, Names};
use crate::storage;

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
    node: &Node<Machine>,
    request_id: RequestId,
    request: pb::SubmitRequest,
    restoring: Option<Restoring>,
    ended: &BTreeSet<JobId>,
) -> Result<NewJob, Unprepared> {
    let (id, planned, graph) = script(planner, &request).await?;
    if let Some(restoring) = &restoring {
        restore::check_streams(store, restoring).await?;
    }
    for warning in &planned.warnings {
        tracing::warn!(request = %request_id, warning, "the planner has a remark");
    }
    let mut sources = sources::enumerate(store, &id, &graph, Names::TakeOver(ended)).await?;
    let restoring = restoring.map(|restoring| judged(node, restoring, &request, &planned, &graph));
    if let Some(restoring) = &restoring {
        let planned = restore::planned(store, restoring, &graph, sources).await?;
        planned.plan.check()?;
        for state in &planned.plan.dropped {
            let (snapshot, uid) = (&planned.plan.snapshot.id, &state.uid);
            tracing::warn!(%snapshot, uid, rows = state.rows, "dropping state that no operator takes");
        }
        sources = planned.sources;
    }
    Ok(NewJob {
        request: Some(request_id),
        id,
        name: graph.name.clone(),
        sql: request.sql,
        owner: request.owner,
        namespace: request.namespace,
        graph,
        plan: planned.explain,
        sources,
        restore: restoring.map(|restoring| restoring.record),
        allow_duplicates: request.allow_duplicates,
    })
}

/// Plans a restore, and changes nothing.
pub(crate) async fn plan_restore(
    planner: &Planner,
    store: &StoreClient,
    node: &Node<Machine>,
    request: &pb::SubmitRequest,
    restoring: Restoring,
    ended: &BTreeSet<JobId>,
) -> Result<RestorePlan, Unprepared> {
    let (id, planned, graph) = script(planner, request).await?;
    restore::check_streams(store, &restoring).await?;
    let restoring = judged(node, restoring, request, &planned, &graph);
    let sources = sources::enumerate(store, &id, &graph, Names::LookOver(ended)).await?;
    Ok(restore::planned(store, &restoring, &graph, sources).await?.plan)
}

/// A restore with what speaks against it, now that it is known into which job.
fn judged(
    node: &Node<Machine>,
    restoring: Restoring,
    request: &pb::SubmitRequest,
    planned: &Planned,
    graph: &JobGraph,
) -> Restoring {
    let sinks = CommittedSink::of(graph).into_iter().filter(|_| !request.allow_duplicates);
    let places: Vec<Place> = sinks.map(|sink| sink.place).collect();
    let into = restore::Into {
        name: &graph.name,
        owner: &request.owner,
        namespace: &request.namespace,
        claim: planned.claim_mode,
        places: &places,
    };
    node.read(|machine| restoring.judged(&machine.0, into))
}

/// The job that a script asks for, under a new id.
async fn script(planner: &Planner, request: &pb::SubmitRequest) -> Result<(JobId, Planned, JobGraph)> {
    let mut planned = planner.plan(request).await?;
    let graph = planned.graph.take().filter(|_| !planned.is_explain).ok_or_else(|| {
        Error::new(Code::InvalidSql, "the script has nothing to run")
            .with_hint("A job is made from the INSERT INTO statements of a script; EXPLAIN only shows plans.")
    })?;
    graph.validate()?;
    Ok((JobId::new(uuid::Uuid::new_v4().simple().to_string())?, planned, graph))
}
