//! Cleaning up: whatever an ended job, a failed snapshot or a JobManager that was killed has left in the store or on
//! disk is found by looking, now and then, and when a user asks.
//!
//! Invariant: everything is committed before it is made. So what is there is listed first, and the metadata is read
//! afterwards, through the log, by whoever leads: what it does not name then is nobody's for ever. Only what bears the id
//! of this cluster or of one of its jobs is touched.

mod directories;
mod judge;
mod shared;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use weir_proto::pb::client::v1 as pb;
use weir_replication::Node;
use weir_service::Shutdown;
use weir_stream_store::client::StoreClient;
use weir_types::group::GroupCheckpointState;
use weir_types::ids::ClusterId;
use weir_types::stream::StreamName;
use weir_types::{Code, Error, Result};

use crate::metadata::Machine;
use crate::storage;
use judge::{Found, Garbage, Known};

/// How often it looks without being asked.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long whoever ended something may take to clean up by itself.
const SETTLE: Duration = Duration::from_millis(500);
/// After which time it looks again if the store did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Directories that changed later than so long ago are left alone when a user asks, unless they say otherwise.
const OLDER_THAN: Duration = Duration::from_secs(600);

/// Why a directory is there even after its files were removed.
const OTHER_FILES: &str = "files that are not a snapshot's are in it";

/// Looks for garbage and removes it.
pub(crate) struct Collector {
    pub(crate) cluster: ClusterId,
    pub(crate) store: StoreClient,
    pub(crate) node: Node<Machine>,
    pub(crate) checkpoint_root: String,
    pub(crate) savepoint_root: String,
    /// Notified when something was ended.
    pub(crate) garbage: Arc<Notify>,
}

impl Collector {
    /// Runs until `shutdown` is requested.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut failures = 0_u32;
        loop {
            let pause = match self.collect().await {
                Ok(()) => {
                    failures = 0;
                    INTERVAL
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(code = %error.code, %error, "could not look for garbage, trying again");
                    }
                    RETRY
                }
            };
            let asked = async {
                self.garbage.notified().await;
                tokio::time::sleep(SETTLE).await;
            };
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(pause) => {}
                () = asked => {}
            }
        }
    }

    /// Removes what is nobody's beyond doubt. Savepoints that the catalogue does not know are left for a user to decide.
    async fn collect(&self) -> Result<()> {
        let (garbage, _) = self.look().await?;
        for garbage in garbage.into_iter().filter(|garbage| !matches!(garbage, Garbage::Savepoint(..))) {
            match self.remove(&garbage).await {
                Ok(true) => tracing::info!(%garbage, reason = garbage.reason(), "removed what nobody needs any more"),
                Ok(false) => {}
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Looks on behalf of a user; removes what is old enough, unless it is a dry run.
    pub(crate) async fn asked(&self, request: pb::CollectGarbageRequest) -> Result<pb::CollectGarbageReply> {
        let older_than = request.older_than_ms.map_or(OLDER_THAN, Duration::from_millis);
        let (garbage, known) = self.look().await?;
        let mut reply = pb::CollectGarbageReply::default();
        for garbage in garbage {
            let mut view = pb::Garbage {
                kind: garbage.kind().to_owned(),
                name: garbage.to_string(),
                reason: garbage.reason(),
                ..pb::Garbage::default()
            };
            let verdict = match self.kept_because(&garbage, &known, older_than).await {
                Ok((bytes, kept)) => {
                    view.bytes = bytes;
                    match kept {
                        Some(kept) => Ok(Some(kept)),
                        None if request.dry_run => Ok(None),
                        None => self.remove(&garbage).await.map(|gone| (!gone).then(|| OTHER_FILES.to_owned())),
                    }
                }
                Err(error) => Err(error),
            };
            (view.outcome, view.detail) = match verdict {
                Ok(None) if request.dry_run => ("found".to_owned(), String::new()),
                Ok(None) => ("removed".to_owned(), String::new()),
                Ok(Some(kept)) => ("kept".to_owned(), kept),
                // Somebody else was faster, or a failed savepoint has left nothing.
                Err(error) if error.code == Code::NotFound => continue,
                Err(error) => ("failed".to_owned(), error.to_string()),
            };
            if view.outcome == "removed" {
                tracing::info!(kind = view.kind, name = view.name, reason = view.reason, "removed on request");
            }
            reply.garbage.push(view);
        }
        Ok(reply)
    }

    /// The bytes of a directory, and why it is kept all the same.
    async fn kept_because(
        &self,
        garbage: &Garbage,
        known: &Known,
        older_than: Duration,
    ) -> Result<(Option<u64>, Option<String>)> {
        let Some(path) = garbage.directory() else { return Ok((None, None)) };
        let cluster = self.cluster.clone();
        let (snapshot, ours) = match garbage {
            Garbage::Savepoint(snapshot, _) => (snapshot.clone(), known.is_ours(snapshot.as_str())),
            Garbage::Checkpoint(snapshot, _) => (snapshot.clone(), true),
            Garbage::Failed(entry) => (entry.id.clone(), true),
            Garbage::Group(..) | Garbage::GroupCheckpoint(..) | Garbage::Pin(..) => return Ok((None, None)),
            // Whoever could write there is known to have ended.
            Garbage::Shared(..) | Garbage::Empty(_) => return Ok((None, None)),
        };
        let failed = if let Garbage::Failed(entry) = garbage { Some(entry.clone()) } else { None };
        let look = storage::blocking(move || {
            if let Some(entry) = failed
                && !directories::has_remains(&entry)?
            {
                return Err(Error::not_found("a failed savepoint has left nothing"));
            }
            directories::look(&cluster, &snapshot, ours, &path)
        });
        let look = look.await?;
        let young = (look.unchanged < older_than)
            .then(|| format!("it changed {} s ago, less than {} s", look.unchanged.as_secs(), older_than.as_secs()));
        Ok((Some(look.bytes), look.foreign.or(young)))
    }

    /// What nobody needs, and what the metadata named when that was decided.
    async fn look(&self) -> Result<(Vec<Garbage>, Known)> {
        let found = self.found().await?;
        let known = self.node.read_committed(|machine| Known::of(&machine.0)).await?;
        Ok((judge::garbage(&found, &known), known))
    }

    async fn found(&self) -> Result<Found> {
        let roots = (PathBuf::from(&self.checkpoint_root), PathBuf::from(&self.savepoint_root));
        let (jobs, checkpoints, savepoints) = storage::blocking(move || {
            let jobs = shared::job_directories(&roots.0);
            Ok((jobs, directories::checkpoints_below(&roots.0), directories::savepoints_below(&roots.1)))
        })
        .await?;
        let streams: BTreeSet<StreamName> = self.node.read(|machine| {
            let sources = machine.0.jobs.values().flat_map(|job| &job.sources);
            sources.filter_map(|source| Some(source.group.as_ref()?.stream.clone())).collect()
        });
        if streams.is_empty() {
            return Ok(Found { checkpoints, savepoints, jobs, ..Found::default() });
        }
        let groups = self.store.list_groups(None).await?;
        let mut pins = Vec::new();
        for stream in streams {
            match self.store.pins(&stream).await {
                Ok(found) => pins.extend(found.into_iter().map(|pin| (stream.clone(), pin.holder))),
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Found { groups, pins, checkpoints, savepoints, jobs })
    }

    /// Whether anything was removed.
    async fn remove(&self, garbage: &Garbage) -> Result<bool> {
        match garbage {
            Garbage::Group(group, job) => self.store.delete_group(group, Some(job), true).await?,
            Garbage::GroupCheckpoint(group, job, snapshot, GroupCheckpointState::Outstanding) => {
                self.store.cancel_checkpoint(group, snapshot, Some(job)).await?;
            }
            Garbage::GroupCheckpoint(group, job, snapshot, _) => {
                self.store.release_checkpoint(group, snapshot, Some(job)).await?;
            }
            Garbage::Pin(stream, holder) => self.store.unpin(stream, holder).await?,
            Garbage::Checkpoint(_, path) => return self.sweep(path.clone(), true).await,
            Garbage::Savepoint(_, path) => return self.sweep(path.clone(), false).await,
            Garbage::Shared(of_the_job, name) => {
                let (of_the_job, stray) = (of_the_job.clone(), name.clone());
                storage::blocking(move || storage::delete_shared_files(&of_the_job, |name| name == stray)).await?;
            }
            Garbage::Empty(of_the_job) => {
                let of_the_job = of_the_job.clone();
                storage::blocking(move || storage::delete_shared_files(&of_the_job, |_| false)).await?;
            }
            Garbage::Failed(entry) => {
                let entry = entry.clone();
                return storage::blocking(move || {
                    Ok(directories::has_remains(&entry)? && directories::remove(entry.directory.as_ref(), false)?)
                })
                .await;
            }
        }
        Ok(true)
    }

    async fn sweep(&self, path: PathBuf, checkpoint: bool) -> Result<bool> {
        storage::blocking(move || directories::remove(&path, checkpoint)).await
    }
}
