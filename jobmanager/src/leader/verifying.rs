//! Verifying snapshots on request: the files are read beside the loop, one snapshot at a time, block by block; what was
//! found is committed before it is answered. A client that goes away aborts nothing.

use weir_coordination::metadata::{Command, Reply, SnapshotEntry};
use weir_proto::pb::client::v1 as pb;
use weir_state::verify::Report;
use weir_types::ids::SnapshotId;
use weir_types::snapshot::{SnapshotState, Verifier};
use weir_types::{Code, Error, Result};

use super::{Leader, Then, answer, catalogue};
use crate::event::{Answer, Event};
use crate::storage;

/// Snapshots that may wait to be verified.
const VERIFYING_MAX: usize = 16;

impl Leader {
    /// Verifies a snapshot of the catalogue, for everybody who asks meanwhile.
    pub(super) fn verify(&mut self, wanted: &pb::SnapshotRequest, to: Answer<pb::VerifySnapshotReply>) {
        let (text, namespace) = (&wanted.snapshot, wanted.namespace.as_deref());
        let entry = match self.state(|state| verifiable(catalogue::find(state, text, namespace)?).cloned()) {
            Ok(entry) => entry,
            Err(error) => return answer(to, Err(error)),
        };
        if let Some(waiting) = self.verifying.get_mut(&entry.id) {
            return waiting.push(to);
        }
        if self.verifying.len() >= VERIFYING_MAX {
            let error = format!("{VERIFYING_MAX} snapshots are being verified already");
            let error = Error::new(Code::ResourceExhausted, error).with_hint("Try again in a moment.");
            return answer(to, Err(error));
        }
        let snapshot = entry.id.clone();
        tracing::info!(%snapshot, step = "verifying", directory = entry.directory, "verifying");
        self.verifying.insert(snapshot.clone(), vec![to]);
        let turn = self.verification.clone();
        self.work(async move {
            let _turn = turn.acquire_owned().await;
            let report = storage::verify(entry).await.map(Box::new);
            Event::Verified { snapshot, report }
        });
    }

    /// Every byte was read. Without a manifest there is nothing to compare with: that is damage too.
    pub(super) fn on_verified(&mut self, snapshot: SnapshotId, report: Result<Box<Report>>) {
        let (findings, damage) = match &report {
            Ok(report) => (report.findings(), report.first_damage().cloned()),
            Err(error) if storage::is_damage(error) => (1, Some(error.clone())),
            // It is not known how it is.
            Err(_) => return self.answer_verification(&snapshot, report),
        };
        match &damage {
            None => tracing::info!(%snapshot, step = "verified", "whole"),
            Some(error) => {
                tracing::error!(%snapshot, step = "damaged", findings, code = %error.code, %error, "damaged");
                metrics::counter!("weir_snapshots_condemned_total").increment(1);
            }
        }
        metrics::counter!("weir_snapshots_verified_total").increment(1);
        let command = Command::Verified { snapshot: snapshot.clone(), by: Verifier::Request, findings, damage };
        self.commit(command, Then::Verified(snapshot, report));
    }

    pub(super) fn on_verification_committed(
        &mut self,
        snapshot: &SnapshotId,
        report: Result<Box<Report>>,
        reply: Reply,
    ) {
        // It may have been deleted meanwhile: then what was found says nothing.
        let report = match reply {
            Ok(_) => report,
            Err(error) => Err(error),
        };
        self.answer_verification(snapshot, report);
    }

    fn answer_verification(&mut self, snapshot: &SnapshotId, report: Result<Box<Report>>) {
        let directory = self.entry(snapshot).map(|entry| entry.directory).unwrap_or_default();
        let reply = report.and_then(|report| {
            let report = serde_json::to_string(&report)
                .map_err(|error| Error::internal("could not encode a report").with_detail(error.to_string()))?;
            Ok(pb::VerifySnapshotReply { directory, report })
        });
        for to in self.verifying.remove(snapshot).unwrap_or_default() {
            answer(to, reply.clone());
        }
    }
}

fn verifiable(entry: &SnapshotEntry) -> Result<&SnapshotEntry> {
    if entry.state == SnapshotState::Completed {
        return Ok(entry);
    }
    let what = format!("snapshot {} is {} and cannot be verified", entry.id, entry.state);
    Err(Error::new(Code::FailedPrecondition, what))
}
