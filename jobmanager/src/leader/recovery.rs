//! Taking over: what an earlier JobManager left behind is finished or aborted, and its jobs go on.
//!
//! Invariant: a snapshot in flight is never forgotten. If its manifest is there, it is completed; otherwise an abort
//! marker makes sure that none can appear, and it is aborted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::mpsc;
use weir_coordination::liveness::Liveness;
use weir_coordination::metadata::{Command, Completion, Limits, Reply, RestoreRecord, SnapshotEntry};
use weir_coordination::scheduler::{Config as SchedulerConfig, Recovered, Scheduler};
use weir_proto::convert::metadata::{decode_reply, encode_command};
use weir_replication::Node;
use weir_stream_store::client::StoreClient;
use weir_types::ids::{ClusterId, SnapshotId, Term};
use weir_types::snapshot::SnapshotState;
use weir_types::{Code, Error, Result};

use super::Leader;
use crate::config::Config;
use crate::event::Event;
use crate::metadata::{Machine, now};
use crate::planning::Planner;
use crate::storage;

impl Leader {
    /// Becomes the leader of `term`.
    ///
    /// # Errors
    /// If the log fails.
    pub(crate) async fn recover(
        config: Config,
        term: Term,
        node: Node<Machine>,
        store: StoreClient,
        events: mpsc::Sender<Event>,
    ) -> Result<Self> {
        let (checkpoint_root, savepoint_root) = config.snapshot_roots()?;
        let fresh = ClusterId::new(uuid::Uuid::new_v4().simple().to_string())?;
        let limits =
            Limits { savepoints_max: config.snapshots.savepoints_max, in_flight_max: config.snapshots.in_flight_max };
        propose(&node, &Command::Found { cluster: fresh, limits }).await??;
        let cluster = node.read(|machine| machine.0.cluster.clone());
        let cluster = cluster.ok_or_else(|| Error::internal("the cluster has no id"))?;
        let heartbeat = config.heartbeat;
        let mut leader = Self {
            planner: Planner::new(),
            checkpoint_root,
            savepoint_root,
            cluster,
            term,
            store,
            events,
            commits: VecDeque::new(),
            committing: None,
            scheduler: Scheduler::new(SchedulerConfig {
                cancel_timeout_ms: heartbeat.cancel_timeout_ms,
                recovery_wait_ms: heartbeat.timeout_ms,
            }),
            liveness: Liveness::new(heartbeat.timeout_ms),
            sessions: BTreeMap::new(),
            sessions_opened: 0,
            heartbeat_at: now(),
            jobs: BTreeMap::new(),
            ended: VecDeque::new(),
            planning: BTreeMap::new(),
            waiters: BTreeMap::new(),
            stops: BTreeMap::new(),
            keeping: BTreeSet::new(),
            removals: BTreeMap::new(),
            deletions: BTreeMap::new(),
            garbage: Default::default(),
            node,
            config,
        };
        leader.end_snapshots().await?;
        leader.resume_jobs();
        let deleting: Vec<SnapshotId> = leader.entries(SnapshotState::Deleting).into_iter().map(|e| e.id).collect();
        deleting.into_iter().for_each(|snapshot| leader.remove_snapshot(snapshot));
        Ok(leader)
    }

    fn entries(&self, wanted: SnapshotState) -> Vec<SnapshotEntry> {
        self.state(|state| state.snapshots.values().filter(|entry| entry.state == wanted).cloned().collect())
    }

    async fn end_snapshots(&mut self) -> Result<()> {
        for entry in self.entries(SnapshotState::InProgress) {
            let snapshot = entry.id.clone();
            let found = storage::mark_aborted(&entry, "its JobManager ended".to_owned()).await;
            if let Ok(Some(contents)) = found {
                tracing::info!(%snapshot, "completing a snapshot whose manifest is there");
                let completion = Completion { snapshot: snapshot.clone(), nonce: entry.nonce.clone(), contents };
                propose(&self.node, &Command::Complete(Box::new(completion))).await??;
                self.keep_positions(&entry.job, &snapshot);
                continue;
            }
            if let Err(error) = found {
                // The nonce dies with this entry: a manifest that bears it is never restored.
                tracing::warn!(%snapshot, code = %error.code, %error, "could not write the abort marker");
            }
            let failure = Error::unavailable("the JobManager ended while the snapshot was in flight");
            tracing::warn!(%snapshot, code = %failure.code, "aborting a snapshot that an earlier JobManager left");
            propose(&self.node, &Command::Abort { snapshot: snapshot.clone(), nonce: entry.nonce.clone(), failure })
                .await??;
            // The collector cancels the groups' checkpoints and drops the pins as soon as the store answers.
            if let Err(error) = storage::remove(&entry).await {
                tracing::warn!(%snapshot, code = %error.code, %error, "could not sweep a failed snapshot");
            }
        }
        Ok(())
    }

    fn resume_jobs(&mut self) {
        let mut jobs: Vec<_> = self.state(|state| {
            let live = state.jobs.values().filter(|job| !job.state.is_terminal());
            live.map(|job| {
                let recovered = Recovered {
                    state: job.state,
                    attempt: job.attempt,
                    task_managers: job.placements.iter().map(|placement| placement.task_manager.clone()).collect(),
                    stopped: job.stopped_by.is_some(),
                };
                (job.submitted_at, job.id.clone(), recovered)
            })
            .collect()
        });
        jobs.sort_by_key(|(submitted_at, _, _)| *submitted_at);
        for (_, job, recovered) in jobs {
            tracing::info!(%job, state = %recovered.state, attempt = %recovered.attempt, "recovering");
            self.enter_job(&job, Some(recovered));
        }
    }

    /// What `-s` means: a snapshot of the catalogue, or a directory.
    pub(super) fn restore_from(&self, from: &str, allow_non_restored_state: bool) -> Result<RestoreRecord> {
        let entry = self.state(|state| state.find_snapshot(from).cloned());
        let (directory, snapshot) = match entry {
            Ok(entry) if entry.state == SnapshotState::Completed => (entry.directory, Some(entry.id)),
            Ok(entry) => {
                let message = format!("snapshot {} is {} and cannot be restored", entry.id, entry.state);
                return Err(Error::new(Code::FailedPrecondition, message));
            }
            Err(_) if from.starts_with('/') || from.contains("://") => (from.trim_end_matches('/').to_owned(), None),
            Err(error) => {
                return Err(error.with_hint("Give a snapshot's id, or the absolute path of its directory."));
            }
        };
        Ok(RestoreRecord { directory, snapshot, allow_non_restored_state })
    }
}

async fn propose(node: &Node<Machine>, command: &Command) -> Result<Reply> {
    let reply = node.propose(encode_command(now(), command)).await?;
    Ok(decode_reply(&reply))
}
