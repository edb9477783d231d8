//! What restoring a snapshot into a job does, decided before anything starts: one pure function, whose answer is both
//! what `--plan` shows and what the restore itself follows.
//!
//! Invariant: state is matched by uid and by the ids and types of its columns, never by names. Whatever the snapshot holds
//! is taken by an operator, or listed as dropped, or the reason of a refusal.

mod sources;
mod tables;

use std::collections::BTreeMap;

use weir_types::graph::{JobGraph, Operator, OperatorSpec};
use weir_types::ids::{ClusterId, JobId, OperatorUid, Parallelism, SnapshotId};
use weir_types::restore::{
    ClaimMode, DroppedState, Lineage, OperatorPlan, OperatorStart, QuotaNeed, Rescale, RestorePlan, Slots, StateTable,
};
use weir_types::snapshot::{OperatorSnapshot, SnapshotKind};
use weir_types::time::Millis;
use weir_types::{Code, Error};

use crate::metadata::SourceRecord;

/// A snapshot as its manifest and the headers of its files describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The catalogue's entry; none: the catalogue does not know it.
    pub entry: Option<SnapshotId>,
    /// Where its files are.
    pub directory: String,
    /// The id that it was taken under.
    pub snapshot: SnapshotId,
    /// Checkpoint or savepoint.
    pub kind: SnapshotKind,
    /// The cluster that took it.
    pub cluster: ClusterId,
    /// The job that it was taken of.
    pub job: JobId,
    /// That job's name.
    pub job_name: String,
    /// When it was complete.
    pub taken_at: Millis,
    /// That job's parallelism.
    pub parallelism: Parallelism,
    /// What that job was itself restored from.
    pub restored_from: Option<String>,
    /// What every subtask contributed.
    pub operators: Vec<OperatorSnapshot>,
    /// The state tables of every operator.
    pub tables: BTreeMap<OperatorUid, Vec<StateTable>>,
    /// What the operators were called, as far as that is known.
    pub names: BTreeMap<OperatorUid, String>,
}

/// The job that is to start from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted<'a> {
    /// Planned anew.
    pub graph: &'a JobGraph,
    /// The state tables that each of its operators keeps.
    pub tables: BTreeMap<OperatorUid, Vec<StateTable>>,
    /// Its sources as a job without state would begin them.
    pub sources: Vec<SourceRecord>,
    /// What streams hold, by source and split.
    pub extents: BTreeMap<OperatorUid, BTreeMap<String, Extent>>,
}

/// What a partition of a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its oldest record.
    pub head: u64,
    /// Behind its newest record.
    pub end: u64,
}

/// Under which terms it is restored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// Whose the snapshot is afterwards.
    pub claim: ClaimMode,
    /// State that maps to nothing is dropped instead of refused.
    pub allow_non_restored_state: bool,
    /// Why the snapshot cannot be restored, or cannot be claimed, as the catalogue knows it.
    pub refused: Vec<Error>,
    /// Slots that are free.
    pub slots_free: u32,
    /// What quotas say.
    pub quota: Vec<QuotaNeed>,
}

/// A plan, and the sources as it lets them begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What happens.
    pub plan: RestorePlan,
    /// Where the job's sources begin, if the plan is accepted.
    pub sources: Vec<SourceRecord>,
}

/// Plans a restore.
pub fn plan(held: &Held, wanted: Wanted<'_>, terms: Terms) -> Planned {
    let Wanted { graph, tables, sources, extents } = wanted;
    let Terms { claim, allow_non_restored_state, refused: mut refusals, slots_free, quota } = terms;
    let operators: Vec<OperatorPlan> =
        graph.operators.iter().filter_map(|operator| operator_plan(held, graph, &tables, operator)).collect();
    let dropped = dropped(held, graph);
    if !dropped.is_empty() && !allow_non_restored_state {
        refusals.push(not_restored(held, &dropped, &operators));
    }
    refusals.extend(operators.iter().filter_map(|operator| tables::refusal(held, operator)));
    let (begun, source_plans): (Vec<_>, Vec<_>) = sources
        .into_iter()
        .map(|source| {
            let extents = extents.get(&source.uid);
            sources::take_positions(source, &held.operators, extents)
        })
        .unzip();
    refusals.extend(source_plans.iter().filter_map(sources::refusal));
    refusals.extend(quota.iter().filter_map(over_quota));
    let files = || held.operators.iter().flat_map(|operator| &operator.files);
    let plan = RestorePlan {
        snapshot: Lineage {
            entry: held.entry.clone(),
            id: held.snapshot.clone(),
            kind: held.kind,
            directory: held.directory.clone(),
            cluster: held.cluster.clone(),
            job: held.job.clone(),
            job_name: held.job_name.clone(),
            taken_at: held.taken_at,
            bytes: files().map(|file| file.bytes).sum(),
            rows: files().map(tables::rows).sum(),
            restored_from: held.restored_from.clone(),
        },
        claim,
        parallelism: Rescale { from: held.parallelism, to: graph.options.parallelism },
        slots: Slots {
            needed: graph.chains().iter().map(|chain| chain.parallelism.get()).max().unwrap_or(0),
            free: slots_free,
        },
        operators,
        dropped,
        sources: source_plans,
        quota,
        refusals,
    };
    Planned { plan, sources: begun }
}

/// What an operator starts with; none for one that has nothing to keep.
fn operator_plan(
    held: &Held,
    graph: &JobGraph,
    tables: &BTreeMap<OperatorUid, Vec<StateTable>>,
    operator: &Operator,
) -> Option<OperatorPlan> {
    let uid = operator.uid.clone()?;
    let parts: Vec<&OperatorSnapshot> = held.operators.iter().filter(|part| part.uid == uid).collect();
    let start = match &operator.spec {
        OperatorSpec::Sink(_) => OperatorStart::Stateless,
        _ if parts.is_empty() => OperatorStart::Empty,
        _ => OperatorStart::Restored,
    };
    let subtasks_before =
        if start == OperatorStart::Restored { u32::try_from(parts.len()).unwrap_or(u32::MAX) } else { 0 };
    let none = Vec::new();
    let (old, new) = (held.tables.get(&uid).unwrap_or(&none), tables.get(&uid).unwrap_or(&none));
    let tables = if start == OperatorStart::Restored { tables::compare(&parts, old, new) } else { Vec::new() };
    let subtasks = graph.chain_of(operator.id).map_or(0, |chain| chain.parallelism.get());
    Some(OperatorPlan { uid, name: operator.name.clone(), start, subtasks_before, subtasks, tables })
}

/// State and positions under uids that the job does not have. What a sink prepared is no state: it is committed or aborted
/// by the job that wrote it.
fn dropped(held: &Held, graph: &JobGraph) -> Vec<DroppedState> {
    let known = |uid: &OperatorUid| graph.operators.iter().any(|operator| operator.uid.as_ref() == Some(uid));
    let mut dropped: BTreeMap<&OperatorUid, DroppedState> = BTreeMap::new();
    let parts = held.operators.iter().filter(|part| !known(&part.uid));
    for part in parts.filter(|part| !part.files.is_empty() || !part.splits.is_empty()) {
        let state = dropped.entry(&part.uid).or_insert_with(|| DroppedState {
            uid: part.uid.clone(),
            name: held.names.get(&part.uid).cloned(),
            tables: Vec::new(),
            rows: 0,
            bytes: 0,
            splits: 0,
        });
        for file in &part.files {
            if !state.tables.contains(&file.table) {
                state.tables.push(file.table.clone());
            }
            state.rows += tables::rows(file);
            state.bytes += file.bytes;
        }
        state.splits += part.splits.len() as u64;
    }
    dropped.into_values().collect()
}

fn not_restored(held: &Held, dropped: &[DroppedState], operators: &[OperatorPlan]) -> Error {
    let named = |uid: &OperatorUid, name: Option<&String>| match name {
        Some(name) => format!("{uid} ({name})"),
        None => uid.clone(),
    };
    let lost: Vec<String> = dropped.iter().map(|state| named(&state.uid, state.name.as_ref())).collect();
    let takers = operators.iter().filter(|operator| operator.start != OperatorStart::Stateless);
    let takers: Vec<String> = takers.map(|operator| named(&operator.uid, Some(&operator.name))).collect();
    Error::new(
        Code::FailedPrecondition,
        format!("snapshot {} holds state that no operator of the script takes", held.snapshot),
    )
    .with_detail(format!("without an operator: {}; the script's operators: {}", lost.join(", "), takers.join(", ")))
    .with_hint("Restore the script that the snapshot was taken of, or drop that state with --allow-non-restored-state.")
}

/// A quota that would be exceeded at once. What the first checkpoint needs is asked for when it is taken.
pub(crate) fn over_quota(need: &QuotaNeed) -> Option<Error> {
    let limit = need.limit.filter(|limit| need.at_once > 0 && need.used.saturating_add(need.at_once) > *limit)?;
    let facts = weir_types::quota::QuotaExceeded {
        level: need.level.clone(),
        dimension: need.dimension,
        limit,
        used: need.used,
        requested: need.at_once,
    };
    Some(
        facts
            .into_error()
            .with_hint("Delete snapshots there, or restore with --claim-mode no-claim: then nothing moves."),
    )
}

#[cfg(test)]
mod tests;
