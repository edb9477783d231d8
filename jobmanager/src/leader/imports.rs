//! Imports: a savepoint of another cluster is looked at, admitted, copied, and completed like one of this cluster's.
//!
//! Invariant: nothing is copied before it is admitted and charged; what an import leaves that does not complete is swept
//! like any failed snapshot's files. It has no barrier and no writers but this JobManager.

use weir_coordination::checkpoint::{Contents, short, snapshot_id};
use weir_coordination::metadata::{Command, Completion, Import, Reply};
use weir_proto::pb::client::v1 as pb;
use weir_service::failpoint;
use weir_types::ids::{JobId, RequestId, SnapshotId};
use weir_types::quota::{check_namespace, check_owner, or_default};
use weir_types::snapshot::{Annotations, SnapshotKind, SnapshotState};
use weir_types::{Code, Error, Result};

use super::jobs::request_id;
use super::{Leader, Then, answer};
use crate::event::{Answer, Event};
use crate::import::{self, Examined};

/// Imports at the same time; each has a thread that reads and writes.
const AT_ONCE_MAX: usize = 4;

impl Leader {
    pub(super) fn import(&mut self, request: pb::ImportSnapshotRequest, to: Answer<pb::Snapshot>) {
        let id = match check(&request) {
            Ok(id) => id,
            Err(error) => return answer(to, Err(error)),
        };
        let Some(to) = self.find_again(&id, to) else { return };
        if self.importing.len() >= AT_ONCE_MAX {
            let error =
                Error::new(Code::ResourceExhausted, format!("{AT_ONCE_MAX} savepoints are being imported already"));
            return answer(to, Err(error.with_hint("Try again when one of them is done.")));
        }
        self.waiters.entry(id.clone()).or_default().push(to);
        self.importing.insert(id.clone());
        tracing::info!(request = %id, directory = request.directory, "looking at a savepoint that is to be imported");
        let directory = request.directory.trim_end_matches('/').to_owned();
        self.work(async move {
            let examined = import::examine(directory).await.map(Box::new);
            Event::Examined { request: id, wanted: Box::new(request), examined }
        });
    }

    pub(super) fn on_examined(
        &mut self,
        request: RequestId,
        wanted: pb::ImportSnapshotRequest,
        examined: Result<Box<Examined>>,
    ) {
        let import = examined.and_then(|examined| self.new_import(&request, wanted, *examined));
        match import {
            Ok(import) => {
                let snapshot = import.snapshot.clone();
                self.commit(Command::Import(Box::new(import)), Then::Imported(request, snapshot));
            }
            Err(error) => self.import_ended(&request, Err(error)),
        }
    }

    fn new_import(&self, request: &RequestId, wanted: pb::ImportSnapshotRequest, examined: Examined) -> Result<Import> {
        let pb::ImportSnapshotRequest { request_id: _, directory: _, owner, namespace, name, note, labels, pinned } =
            wanted;
        let Examined { manifest, origin, bytes } = examined;
        self.state(|state| state.check_import(&origin, &manifest.nonce))?;
        let job = JobId::new(uuid::Uuid::new_v4().simple().to_string())?;
        let snapshot = snapshot_id(&job, SnapshotKind::Savepoint, manifest.barrier)?;
        let root = self.savepoint_root.trim_end_matches('/');
        Ok(Import {
            request: Some(request.clone()),
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
    pub(super) fn on_imported(&mut self, request: RequestId, snapshot: SnapshotId, reply: Reply) {
        match reply {
            Ok(applied) => {
                tracing::info!(%snapshot, step = "reserved", queued = applied.queued, "importing");
                failpoint::reach("import.reserved");
                self.imports.insert(snapshot.clone(), request);
                if !applied.queued {
                    self.begin_import(snapshot);
                }
            }
            Err(error) => {
                tracing::warn!(%snapshot, code = %error.code, %error, "import refused");
                self.import_ended(&request, Err(error));
            }
        }
    }

    /// Copies an admitted import.
    pub(super) fn begin_import(&mut self, snapshot: SnapshotId) {
        let Some(entry) = self.entry(&snapshot) else { return };
        let Some(origin) = entry.origin.clone() else { return };
        self.work(async move {
            let copied = import::copy(entry, origin).await;
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
        if let Some(request) = self.imports.remove(snapshot) {
            self.import_ended(&request, result);
        }
    }

    /// An import that waited was admitted, or refused by then.
    pub(super) fn on_import_admitted(&mut self, snapshot: SnapshotId, refused: Option<Error>) {
        match (refused, self.imports.get(&snapshot).cloned()) {
            (Some(error), Some(request)) => {
                self.imports.remove(&snapshot);
                self.import_ended(&request, Err(error));
            }
            (Some(_), None) => {}
            (None, _) => self.begin_import(snapshot),
        }
    }

    fn import_ended(&mut self, request: &RequestId, result: Result<SnapshotId>) {
        self.importing.remove(request);
        self.answer_request(request, result);
    }

    /// Whether a snapshot is an import under way.
    pub(super) fn is_importing(&self, snapshot: &SnapshotId) -> bool {
        let under_way = |state| matches!(state, SnapshotState::Queued | SnapshotState::InProgress);
        self.entry(snapshot).is_some_and(|entry| entry.origin.is_some() && under_way(entry.state))
    }
}

fn check(request: &pb::ImportSnapshotRequest) -> Result<RequestId> {
    let pb::ImportSnapshotRequest { request_id: id, directory, owner, namespace, name, note, labels, pinned } = request;
    import::check_directory(directory)?;
    check_owner(&or_default(owner.clone()))?;
    check_namespace(&or_default(namespace.clone()))?;
    Annotations { name: name.clone(), note: note.clone(), labels: labels.clone(), pinned: *pinned }.check()?;
    request_id(id)
}
