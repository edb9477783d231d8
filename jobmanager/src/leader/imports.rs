//! Imports: a savepoint of another cluster is looked at, admitted, copied, and completed like one of this cluster's.
//!
//! Invariants: nothing is copied before it is admitted and charged; what an import leaves that does not complete is swept
//! like any failed snapshot's files, and not before its one writer, this JobManager, has stopped. Whatever it is doing, an
//! import ends at its deadline or when it is cancelled: reading and copying at the next block, waiting at once.

use weir_coordination::checkpoint::{Contents, short, snapshot_id};
use weir_coordination::metadata::{Command, Completion, Import, Reply};
use weir_proto::pb::client::v1 as pb;
use weir_service::failpoint;
use weir_types::ids::{JobId, RequestId, SnapshotId};
use weir_types::quota::{check_namespace, check_owner, or_default};
use weir_types::snapshot::{Annotations, SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::jobs::request_id;
use super::{Leader, Then, answer};
use crate::event::{Answer, Event};
use crate::import::{self, Examined};
use crate::metadata::now;
use crate::stoppable::Stopper;

/// Imports at the same time; each has a thread that reads and writes.
const AT_ONCE_MAX: usize = 4;
/// How long an import may take whose user sets no limit.
const TIMEOUT_MS: u64 = 3_600_000;

/// An import that has not ended.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// Who wants it.
    request: RequestId,
    /// What is imported.
    directory: String,
    /// When it is given up.
    deadline: Millis,
    /// Ends the reading and the copying.
    stopper: Stopper,
}

impl Leader {
    pub(super) fn import(&mut self, request: pb::ImportSnapshotRequest, to: Answer<pb::Snapshot>) {
        let id = match check(&request) {
            Ok(id) => id,
            Err(error) => return answer(to, Err(error)),
        };
        let Some(to) = self.find_again(&id, to) else { return };
        if self.examining.len() + self.imports.len() >= AT_ONCE_MAX {
            let error =
                Error::new(Code::ResourceExhausted, format!("{AT_ONCE_MAX} savepoints are being imported already"));
            return answer(to, Err(error.with_hint("Try again when one of them is done.")));
        }
        self.waiters.entry(id.clone()).or_default().push(to);
        tracing::info!(request = %id, directory = request.directory, "looking at a savepoint that is to be imported");
        let directory = request.directory.trim_end_matches('/').to_owned();
        let stopper = Stopper::default();
        let stop = stopper.token();
        let deadline = now().plus(request.timeout_ms.unwrap_or(TIMEOUT_MS));
        let under_way = UnderWay { request: id.clone(), directory: directory.clone(), deadline, stopper };
        self.examining.insert(id.clone(), under_way);
        self.work(async move {
            let examined = import::examine(directory, stop).await.map(Box::new);
            Event::Examined { request: id, wanted: Box::new(request), examined }
        });
    }

    pub(super) fn on_examined(
        &mut self,
        request: RequestId,
        wanted: pb::ImportSnapshotRequest,
        examined: Result<Box<Examined>>,
    ) {
        let Some(under_way) = self.examining.remove(&request) else { return };
        let examined = under_way.stopper.token().check().and(examined);
        let import = examined.and_then(|examined| self.new_import(&under_way, wanted, *examined));
        match import {
            Ok(import) => {
                let snapshot = import.snapshot.clone();
                self.imports.insert(snapshot.clone(), under_way);
                self.commit(Command::Import(Box::new(import)), Then::Imported(snapshot));
            }
            Err(error) => self.answer_request(&request, Err(error)),
        }
    }

    fn new_import(
        &self,
        under_way: &UnderWay,
        wanted: pb::ImportSnapshotRequest,
        examined: Examined,
    ) -> Result<Import> {
        let pb::ImportSnapshotRequest { owner, namespace, name, note, labels, pinned, .. } = wanted;
        let Examined { manifest, origin, bytes } = examined;
        self.state(|state| state.check_import(&origin, &manifest.nonce))?;
        let job = JobId::new(uuid::Uuid::new_v4().simple().to_string())?;
        let snapshot = snapshot_id(&job, SnapshotKind::Savepoint, manifest.barrier)?;
        let root = self.savepoint_root.trim_end_matches('/');
        Ok(Import {
            request: Some(under_way.request.clone()),
            deadline: under_way.deadline,
            directory: format!("{root}/savepoint-{}-{}", short(&job), manifest.barrier),
            snapshot,
            job,
            job_name: manifest.job_name,
            owner,
            namespace,
            annotations: Annotations { name, note, labels, pinned },
            barrier: manifest.barrier,
            nonce: manifest.nonce,
            parallelism: manifest.parallelism,
            plan_hash: manifest.graph_hash,
            bytes,
            origin,
        })
    }

    /// The import was admitted, or refused, or waits for its turn: then [`Leader::begin_import`] is called when that comes.
    pub(super) fn on_imported(&mut self, snapshot: SnapshotId, reply: Reply) {
        match reply {
            Ok(applied) => {
                tracing::info!(%snapshot, step = "reserved", queued = applied.queued, "importing");
                failpoint::reach("import.reserved");
                let stopped = self.imports.get(&snapshot).and_then(|import| import.stopper.token().check().err());
                match (applied.queued, stopped) {
                    (true, None) => {}
                    (true, Some(reason)) => self.abandon_import(snapshot, reason),
                    (false, _) => self.begin_import(snapshot),
                }
            }
            Err(error) => {
                tracing::warn!(%snapshot, code = %error.code, %error, "import refused");
                self.import_ended(&snapshot, Err(error));
            }
        }
    }

    /// Copies an admitted import.
    pub(super) fn begin_import(&mut self, snapshot: SnapshotId) {
        let Some(entry) = self.entry(&snapshot) else { return };
        let (Some(origin), Some(import)) = (entry.origin.clone(), self.imports.get(&snapshot)) else { return };
        if let Err(reason) = import.stopper.token().check() {
            // Nothing was written yet.
            return self.abandon_import(snapshot, reason);
        }
        let stop = import.stopper.token();
        self.work(async move {
            let copied = import::copy(entry, origin, stop).await;
            Event::Copied { snapshot, copied }
        });
    }

    pub(super) fn on_copied(&mut self, snapshot: SnapshotId, copied: Result<Contents>) {
        let Some(nonce) = self.entry(&snapshot).map(|entry| entry.nonce) else { return };
        let id = snapshot.clone();
        let command = match copied {
            Ok(contents) => Command::Complete(Box::new(Completion { snapshot, nonce, contents })),
            Err(failure) => Command::Abort { snapshot, nonce, failure },
        };
        self.commit(command, Then::ImportEnded(id));
    }

    pub(super) fn on_import_ended(&mut self, snapshot: &SnapshotId, reply: Reply) {
        let Some(entry) = self.entry(snapshot) else { return };
        let result = match (reply, entry.failure.clone()) {
            (Err(error), _) => Err(error),
            (Ok(_), Some(failure)) => {
                tracing::warn!(%snapshot, code = %failure.code, error = %failure, "import failed");
                self.begin_sweep(entry, failure.clone());
                Err(failure)
            }
            (Ok(_), None) => {
                failpoint::reach("import.complete");
                tracing::info!(%snapshot, step = "completed", bytes = entry.bytes, directory = entry.directory, "imported");
                Ok(snapshot.clone())
            }
        };
        self.import_ended(snapshot, result);
    }

    /// An import that waited was admitted, or refused by then.
    pub(super) fn on_import_admitted(&mut self, snapshot: SnapshotId, refused: Option<Error>) {
        match refused {
            Some(error) => self.import_ended(&snapshot, Err(error)),
            None => self.begin_import(snapshot),
        }
    }

    /// Ends the imports whose time is up.
    pub(super) fn expire_imports(&mut self, now: Millis) {
        let due = |import: &UnderWay| import.deadline <= now && !import.stopper.is_stopped();
        let late = |directory: &str| {
            Error::new(Code::Timeout, format!("the import of {directory} took too long"))
                .with_hint("Import it again with a later --timeout.")
        };
        for import in self.examining.values().filter(|import| due(import)) {
            import.stopper.stop(late(&import.directory));
        }
        let due: Vec<_> = self.imports.iter().filter(|(_, import)| due(import)).collect();
        let due: Vec<_> = due.into_iter().map(|(id, import)| (id.clone(), late(&import.directory))).collect();
        for (snapshot, error) in due {
            self.stop_import(&snapshot, error);
        }
    }

    /// When the next import has to end.
    pub(super) fn next_import_deadline(&self) -> Option<Millis> {
        let under_way = self.examining.values().chain(self.imports.values());
        under_way.filter(|import| !import.stopper.is_stopped()).map(|import| import.deadline).min()
    }

    /// Gives up an import that is in the catalogue, because a user wants that.
    pub(super) fn cancel_import(&mut self, snapshot: &SnapshotId) {
        tracing::info!(%snapshot, step = "cancelled", "cancelled by a user");
        self.stop_import(snapshot, Error::new(Code::Cancelled, format!("the import of {snapshot} was cancelled")));
    }

    /// Gives up an import that is still being looked at, and has no id yet; says whether there is one of this directory.
    pub(super) fn cancel_examination(&mut self, directory: &str) -> bool {
        let directory = directory.trim_end_matches('/');
        let mut found = false;
        for import in self.examining.values().filter(|import| import.directory == directory) {
            let error = Error::new(Code::Cancelled, format!("the import of {directory} was cancelled"));
            tracing::info!(request = %import.request, directory, step = "cancelled", "cancelled by a user");
            import.stopper.stop(error);
            found = true;
        }
        found
    }

    /// One that is being copied ends when its writer has seen it; one that waits has none.
    fn stop_import(&mut self, snapshot: &SnapshotId, reason: Error) {
        let Some(import) = self.imports.get(snapshot).filter(|import| !import.stopper.is_stopped()) else { return };
        import.stopper.stop(reason.clone());
        if self.entry(snapshot).is_some_and(|entry| entry.state == SnapshotState::Queued) {
            self.abandon_import(snapshot.clone(), reason);
        }
    }

    /// Aborts an import of which nothing was written.
    fn abandon_import(&mut self, snapshot: SnapshotId, failure: Error) {
        let Some(nonce) = self.entry(&snapshot).map(|entry| entry.nonce) else { return };
        let id = snapshot.clone();
        self.commit(Command::Abort { snapshot, nonce, failure }, Then::ImportEnded(id));
    }

    fn import_ended(&mut self, snapshot: &SnapshotId, result: Result<SnapshotId>) {
        if let Some(import) = self.imports.remove(snapshot) {
            self.answer_request(&import.request, result);
        }
    }

    /// Whether a snapshot is an import under way.
    pub(super) fn is_importing(&self, snapshot: &SnapshotId) -> bool {
        let under_way = |state| matches!(state, SnapshotState::Queued | SnapshotState::InProgress);
        self.entry(snapshot).is_some_and(|entry| entry.origin.is_some() && under_way(entry.state))
    }
}

fn check(request: &pb::ImportSnapshotRequest) -> Result<RequestId> {
    let pb::ImportSnapshotRequest {
        request_id: id,
        directory,
        owner,
        namespace,
        name,
        note,
        labels,
        pinned,
        timeout_ms,
    } = request;
    if *timeout_ms == Some(0) {
        return Err(Error::invalid("a time limit must be longer than nothing"));
    }
    import::check_directory(directory)?;
    check_owner(&or_default(owner.clone()))?;
    check_namespace(&or_default(namespace.clone()))?;
    Annotations { name: name.clone(), note: note.clone(), labels: labels.clone(), pinned: *pinned }.check()?;
    request_id(id)
}
