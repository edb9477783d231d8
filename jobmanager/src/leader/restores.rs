//! What a restore needs to know of the catalogue and the cluster; and plans of restores that are only shown.

use std::collections::BTreeSet;

use weir_coordination::metadata::{Command, RestoreRecord};
use weir_coordination::restore::Terms;
use weir_proto::pb::client::v1 as pb;
use weir_types::ids::{JobId, SnapshotId};
use weir_types::restore::ClaimMode;
use weir_types::snapshot::{SnapshotState, Verifier};
use weir_types::{Error, Result};

use super::{Leader, Then, answer};
use crate::event::{Answer, Event, RefusedRestore, Unprepared};
use crate::planning;
use crate::restore::Restoring;

impl Leader {
    /// What `-s` means: a snapshot of the catalogue, or a directory.
    fn restore_from(&self, request: &pb::SubmitRequest, from: &str) -> Result<RestoreRecord> {
        let allow_non_restored_state = request.allow_non_restored_state;
        let namespace = Some(request.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let entry = self.state(|state| state.find_snapshot(from, namespace).cloned());
        let (directory, snapshot) = match entry {
            Ok(entry) => {
                entry.check_restorable()?;
                (entry.directory, Some(entry.id))
            }
            Err(_) if from.starts_with('/') || from.contains("://") => (from.trim_end_matches('/').to_owned(), None),
            Err(error) => {
                return Err(error.with_hint("Give a snapshot's id, or the absolute path of its directory."));
            }
        };
        // The script may say whose the snapshot is to be.
        Ok(RestoreRecord { directory, snapshot, allow_non_restored_state, claim: ClaimMode::default() })
    }

    /// A request's restore with what is known of it; none if it wants none.
    pub(super) fn restoring(&self, request: &pb::SubmitRequest) -> Result<Option<Restoring>> {
        let Some(from) = &request.restore_from else { return Ok(None) };
        let record = self.restore_from(request, from)?;
        let slots_free = self.sessions.keys().map(|id| self.scheduler.slots_free(id)).sum();
        let (restored_from, names, read) = self.state(|state| {
            let entry = record.snapshot.as_ref().and_then(|snapshot| state.snapshots.get(snapshot));
            let job = entry.and_then(|entry| state.jobs.get(&entry.job));
            let operators = job.into_iter().flat_map(|job| &job.graph.operators);
            let names = operators.filter_map(|operator| Some((operator.uid.clone()?, operator.name.clone())));
            let read = entry.zip(job).map(|(entry, job)| (job.sources.clone(), entry.sources.clone()));
            (entry.and_then(|entry| entry.restored_from.clone()), names.collect(), read)
        });
        let terms = Terms { allow_non_restored_state: record.allow_non_restored_state, slots_free, ..Terms::default() };
        Ok(Some(Restoring { record, terms, restored_from, names, read }))
    }

    /// Jobs that have ended: what they still held in the store is free.
    pub(super) fn ended_jobs(&self) -> BTreeSet<JobId> {
        self.state(|state| {
            state.jobs.values().filter(|job| job.state.is_terminal()).map(|job| job.id.clone()).collect()
        })
    }

    /// Answers with what a restore would do, and does nothing.
    pub(super) fn plan_restore(&self, request: pb::SubmitRequest, to: Answer<pb::PlanRestoreReply>) {
        let restoring = match self.restoring(&request) {
            Ok(Some(restoring)) => restoring,
            Ok(None) => return answer(to, Err(Error::invalid("there is no snapshot to plan the restore of"))),
            Err(error) => return answer(to, Err(error)),
        };
        let (planner, store, node) = (self.planner.clone(), self.store.clone(), self.node.clone());
        let (ended, snapshot) = (self.ended_jobs(), restoring.record.snapshot.clone());
        self.work(async move {
            let plan = planning::plan_restore(&planner, &store, &node, &request, restoring, &ended).await;
            let reply = plan.and_then(|plan| {
                let json = serde_json::to_string(&plan);
                let json =
                    json.map_err(|error| Error::internal("could not encode a plan").with_detail(error.to_string()))?;
                Ok(pb::PlanRestoreReply { json })
            });
            Event::RestorePlanned { snapshot, planned: reply, to }
        });
    }

    pub(super) fn on_restore_planned(
        &mut self,
        snapshot: Option<SnapshotId>,
        planned: Result<pb::PlanRestoreReply, Unprepared>,
        to: Answer<pb::PlanRestoreReply>,
    ) {
        match planned {
            Ok(plan) => answer(to, Ok(plan)),
            Err(unprepared) => self.refuse_restore(snapshot, unprepared, RefusedRestore::Plan(to)),
        }
    }

    /// Refuses a restore. What was found wrong with the snapshot, by this process itself, is entered into the catalogue
    /// before anybody is told.
    pub(super) fn refuse_restore(
        &mut self,
        snapshot: Option<SnapshotId>,
        unprepared: Unprepared,
        refused: RefusedRestore,
    ) {
        let complete = |id: &SnapshotId| self.entry(id).is_some_and(|entry| entry.state == SnapshotState::Completed);
        match (unprepared, snapshot.filter(complete)) {
            (Unprepared::Damaged(error), Some(snapshot)) => {
                tracing::error!(%snapshot, step = "damaged", %error, "damaged: it will not be restored");
                metrics::counter!("weir_snapshots_condemned_total").increment(1);
                let (findings, damage) = (1, Some(error.clone()));
                let command = Command::Verified { snapshot: snapshot.clone(), by: Verifier::Restore, findings, damage };
                self.commit(command, Then::RestoreRefused(snapshot, error, refused));
            }
            (Unprepared::CutOff(error), Some(snapshot)) => {
                let reason = error.detail.clone().unwrap_or_else(|| error.message.clone());
                tracing::error!(%snapshot, step = "cut off", reason, "cut off: it will not be restored");
                metrics::counter!("weir_snapshots_condemned_total").increment(1);
                let command = Command::CutOff { snapshot: snapshot.clone(), reason };
                self.commit(command, Then::RestoreRefused(snapshot, error, refused));
            }
            (Unprepared::Damaged(error) | Unprepared::CutOff(error) | Unprepared::Failed(error), _) => {
                self.answer_refused_restore(refused, error);
            }
        }
    }

    /// What was wrong with a snapshot is entered: whoever restores from it is told the same from now on.
    pub(super) fn on_restore_refused(&mut self, snapshot: &SnapshotId, error: Error, refused: RefusedRestore) {
        let known = self.entry(snapshot).and_then(|entry| entry.check_restorable().err());
        self.answer_refused_restore(refused, known.unwrap_or(error));
    }

    fn answer_refused_restore(&mut self, refused: RefusedRestore, error: Error) {
        match refused {
            RefusedRestore::Plan(to) => answer(to, Err(error)),
            RefusedRestore::Submission(request, to) => self.on_planned(request, to, Err(error)),
        }
    }
}
