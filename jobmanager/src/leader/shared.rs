//! Files that the checkpoints of a job share: once nothing refers to one, it is deleted, and then its bytes are given back.
//!
//! Invariant: a file is deleted after the entry of its last referrer is gone, and nothing can refer to it any more. What a
//! leader did not come to, its successor goes on with.

use weir_coordination::metadata::{Command, Reply};
use weir_service::failpoint;
use weir_types::Result;
use weir_types::ids::JobId;
use weir_types::time::Millis;

use super::{Leader, Then};
use crate::event::Event;
use crate::metadata::now;
use crate::storage;

/// After which time a deletion that failed is tried again.
const RETRY_MS: u64 = 1_000;

impl Leader {
    /// Deletes the shared files of a job that nothing refers to any more.
    pub(super) fn release_shared(&mut self, job: &JobId) {
        // One deletion at a time: what comes meanwhile is next.
        if self.releases.get(job).is_some_and(Option::is_none) {
            return;
        }
        self.releases.remove(job);
        let names = self.state(|state| state.shared.unreferenced(job));
        if names.is_empty() {
            return;
        }
        self.releases.insert(job.clone(), None);
        let (job, root) = (job.clone(), self.checkpoint_root.clone());
        self.work(async move {
            let deleted = storage::delete_shared(&root, &job, names.clone()).await;
            Event::SharedDeleted { job, names, deleted }
        });
    }

    /// Goes on with what an earlier leader had begun.
    pub(super) fn release_all_shared(&mut self) {
        let jobs: Vec<JobId> = self.state(|state| state.jobs.keys().cloned().collect());
        jobs.iter().for_each(|job| self.release_shared(job));
    }

    pub(super) fn on_shared_deleted(&mut self, job: JobId, names: Vec<String>, deleted: Result<()>) {
        match deleted {
            Ok(()) => {
                failpoint::reach("delete.shared");
                tracing::info!(%job, files = names.len(), "deleted files that no checkpoint refers to any more");
                let then = Then::Released(job.clone());
                self.commit(Command::Released { job, names }, then);
            }
            Err(error) => {
                tracing::warn!(%job, code = %error.code, %error, "could not delete shared files yet");
                self.releases.insert(job, Some(now().plus(RETRY_MS)));
            }
        }
    }

    pub(super) fn on_released(&mut self, job: &JobId, reply: &Reply) {
        if let Err(error) = reply {
            tracing::warn!(%job, code = %error.code, %error, "deleted files are still charged");
        }
        self.releases.remove(job);
        self.release_shared(job);
    }

    /// Tries again what is due.
    pub(super) fn release_due(&mut self, now: Millis) {
        let due = self.releases.iter().filter(|(_, at)| at.is_some_and(|at| at <= now));
        let due: Vec<JobId> = due.map(|(job, _)| job.clone()).collect();
        due.iter().for_each(|job| self.release_shared(job));
    }
}
