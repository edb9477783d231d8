//! What a restore needs to know of the catalogue and the cluster; and plans of restores that are only shown.

use std::collections::BTreeSet;

use weir_coordination::metadata::RestoreRecord;
use weir_coordination::restore::Terms;
use weir_proto::pb::client::v1 as pb;
use weir_types::ids::JobId;
use weir_types::restore::ClaimMode;
use weir_types::{Error, Result};

use super::{Leader, answer};
use crate::event::Answer;
use crate::planning;
use crate::restore::Restoring;

impl Leader {
    /// What `-s` means: a snapshot of the catalogue, or a directory.
    fn restore_from(&self, request: &pb::SubmitRequest, from: &str) -> Result<RestoreRecord> {
        let allow_non_restored_state = request.allow_non_restored_state;
        let entry = self.state(|state| state.find_snapshot(from).cloned());
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
        let (restored_from, names) = self.state(|state| {
            let entry = record.snapshot.as_ref().and_then(|snapshot| state.snapshots.get(snapshot));
            let job = entry.and_then(|entry| state.jobs.get(&entry.job));
            let operators = job.into_iter().flat_map(|job| &job.graph.operators);
            let names = operators.filter_map(|operator| Some((operator.uid.clone()?, operator.name.clone())));
            (entry.and_then(|entry| entry.restored_from.clone()), names.collect())
        });
        let terms = Terms { allow_non_restored_state: record.allow_non_restored_state, slots_free, ..Terms::default() };
        Ok(Some(Restoring { record, terms, restored_from, names }))
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
        let ended = self.ended_jobs();
        tokio::spawn(async move {
            let plan = planning::plan_restore(&planner, &store, &node, &request, restoring, &ended).await;
            let reply = plan.and_then(|plan| {
                let json = serde_json::to_string(&plan);
                let json =
                    json.map_err(|error| Error::internal("could not encode a plan").with_detail(error.to_string()))?;
                Ok(pb::PlanRestoreReply { json })
            });
            answer(to, reply);
        });
    }
}
