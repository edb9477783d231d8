//! Restores: what `-s` names is read, and planned by `weir_coordination::restore` before anything starts.

use std::collections::BTreeMap;

use weir_coordination::metadata::{RestoreRecord, SourceRecord, State};
use weir_coordination::restore::{Held, Planned, Terms, Wanted, plan};
use weir_functions::types;
use weir_state::manifest::read_manifest;
use weir_state::open_store;
use weir_state::schema::{held_tables, kept_tables};
use weir_stream_store::client::StoreClient;
use weir_types::graph::JobGraph;
use weir_types::ids::OperatorUid;
use weir_types::output::Place;
use weir_types::quota::{QuotaLevel, or_default};
use weir_types::restore::ClaimMode;
use weir_types::snapshot::SourcePositions;
use weir_types::{Code, Error, Result};

use crate::event::Unprepared;
use crate::metadata::now;
use crate::{extents, storage};

/// A restore as the leader knows it, before the snapshot was read.
#[derive(Clone, Debug)]
pub(crate) struct Restoring {
    /// What is restored, and how.
    pub(crate) record: RestoreRecord,
    /// What the catalogue and the cluster say about it.
    pub(crate) terms: Terms,
    /// What the snapshot's own job was restored from.
    pub(crate) restored_from: Option<String>,
    /// What that job's operators were called.
    pub(crate) names: BTreeMap<OperatorUid, String>,
    /// What that job read, and how far, if the catalogue knows.
    pub(crate) read: Option<(Vec<SourceRecord>, Vec<SourcePositions>)>,
}

/// The job that is to start, as far as quotas and claims look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Into<'a> {
    pub(crate) name: &'a str,
    pub(crate) owner: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) claim: ClaimMode,
    /// Where its output must not repeat what is committed there.
    pub(crate) places: &'a [Place],
}

impl Restoring {
    /// With what the catalogue and the quotas have to say to it. The log entry that creates the job is checked alike.
    pub(crate) fn judged(mut self, state: &State, into: Into<'_>) -> Self {
        let Into { name, owner, namespace, claim, places } = into;
        let levels = QuotaLevel::of(&or_default(namespace.to_owned()), &or_default(owner.to_owned()), name);
        let entry = self.record.snapshot.as_ref().and_then(|snapshot| state.snapshots.get(snapshot));
        let bytes = entry.map_or(0, |entry| entry.bytes);
        self.record.claim = claim;
        self.terms.claim = claim;
        self.terms.refused.extend(state.check_restore(&self.record).err());
        self.terms.refused.extend(state.check_repeated(&self.record, places).err());
        self.terms.quota = state.restore_needs(now(), &self.record, &levels, bytes);
        self
    }
}

/// Refuses to go on from a stream that was deleted: there is nothing to plan with then.
///
/// # Errors
/// [`Unprepared::CutOff`]; or if the store cannot say.
pub(crate) async fn check_streams(store: &StoreClient, restoring: &Restoring) -> Result<(), Unprepared> {
    let Some((records, positions)) = &restoring.read else { return Ok(()) };
    match extents::deleted(store, records, positions).await? {
        None => Ok(()),
        Some(reason) => {
            let error = Error::new(Code::OffsetTruncated, "the streams no longer hold what the snapshot goes on from");
            Err(Unprepared::CutOff(error.with_detail(reason)))
        }
    }
}

/// Reads the snapshot and plans its restore into a job whose sources would begin at `sources`.
///
/// # Errors
/// If the snapshot or the store cannot be read. What speaks against the restore is in the plan.
pub(crate) async fn planned(
    store: &StoreClient,
    restoring: &Restoring,
    graph: &JobGraph,
    sources: Vec<SourceRecord>,
) -> Result<Planned, Unprepared> {
    let directory = restoring.record.directory.clone();
    let read = storage::blocking(move || {
        let files = open_store(&directory)?;
        let manifest = read_manifest(files.as_ref())?;
        let tables = held_tables(files.as_ref(), &manifest.operators, &types::name)?;
        Ok((manifest, tables))
    });
    let damaged = |error| if storage::is_damage(&error) { Unprepared::Damaged(error) } else { error.into() };
    let (manifest, tables) = read.await.map_err(damaged)?;
    let extents = extents::extents(store, &sources).await?;
    let held = Held {
        entry: restoring.record.snapshot.clone(),
        directory: restoring.record.directory.clone(),
        snapshot: manifest.snapshot,
        kind: manifest.kind,
        cluster: manifest.cluster,
        job: manifest.job,
        job_name: manifest.job_name,
        taken_at: manifest.created_at,
        parallelism: manifest.parallelism,
        restored_from: restoring.restored_from.clone(),
        operators: manifest.operators,
        tables,
        names: restoring.names.clone(),
    };
    let wanted = Wanted { graph, tables: kept_tables(graph, &types::name), sources, extents };
    Ok(plan(&held, wanted, restoring.terms.clone()))
}
