//! Explaining a snapshot: what the leader knows of it; the rest is done beside its loop.

use weir_proto::pb::client::v1 as pb;
use weir_types::Error;
use weir_types::ids::SnapshotId;

use super::{Leader, answer};
use crate::event::Answer;
use crate::explain::{self, Subject};

impl Leader {
    pub(super) fn explain(&self, wanted: &pb::SnapshotRequest, to: Answer<pb::SnapshotExplanation>) {
        let subject = match self.subject(&wanted.snapshot, wanted.namespace.as_deref()) {
            Ok(subject) => subject,
            Err(error) => return answer(to, Err(error)),
        };
        // Whoever is asked may take its time, and nobody but the client waits for it.
        tokio::spawn(async move { answer(to, explain::explain(subject).await) });
    }

    fn subject(&self, snapshot: &str, namespace: Option<&str>) -> Result<Subject, Error> {
        let found = self.state(|state| state.find_snapshot(snapshot, namespace).cloned());
        // One that is gone may still be remembered by who had to do with it; only its id can name it.
        let id = match &found {
            Ok(entry) => entry.id.clone(),
            Err(error) => SnapshotId::new(snapshot).map_err(|_| error.clone())?,
        };
        let entry = found.ok().map(|entry| {
            let view = self.state(|state| self.view(state, &entry));
            (entry, view)
        });
        let job = entry.as_ref().map(|(entry, _)| &entry.job);
        let coordinator = job.and_then(|job| self.jobs.get(job)).map(|live| &live.coordinator);
        let in_flight = coordinator.filter(|c| c.in_flight().is_some_and(|(of, _)| of.snapshot == id));
        Ok(Subject {
            missing: in_flight.map(|coordinator| coordinator.missing()).unwrap_or_default(),
            hosts: self.hosts.of(job),
            record: job.and_then(|job| self.state(|state| state.jobs.get(job).cloned())),
            store_address: self.config.store_address.clone(),
            entry,
            id,
        })
    }

    /// Where the newest attempts ran, as the metadata says: what ran before this process is explained as well.
    pub(super) fn remember_hosts(&mut self) {
        let placed: Vec<_> = self.state(|state| {
            state.jobs.values().map(|job| (job.submitted_at, job.id.clone(), job.placements.clone())).collect()
        });
        let mut placed = placed;
        placed.sort_by_key(|(submitted_at, ..)| *submitted_at);
        for (_, job, placements) in placed {
            self.hosts.note(&job, &placements);
        }
    }
}
