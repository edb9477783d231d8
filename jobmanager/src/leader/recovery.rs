//! Taking over: what an earlier JobManager left behind is finished or aborted, and its jobs go on.
//!
//! Invariant: a snapshot in flight is never forgotten. If its manifest is there, it is completed; otherwise an abort
//! marker makes sure that none can appear, and it is aborted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use weir_coordination::checkpoint::Contents;
use weir_coordination::liveness::Liveness;
use weir_coordination::metadata::{Command, Completion, Reply, SnapshotEntry};
use weir_coordination::scheduler::{Config as SchedulerConfig, Recovered, Scheduler};
use weir_proto::convert::metadata::{decode_reply, encode_command};
use weir_replication::Node;
use weir_service::Shutdown;
use weir_stream_store::client::StoreClient;
use weir_types::ids::{ClusterId, JobId, SnapshotId, Term};
use weir_types::snapshot::SnapshotState;
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::{Leader, Then};
use crate::config::Config;
use crate::event::Event;
use crate::explain::Hosts;
use crate::metadata::{Machine, now};
use crate::planning::Planner;
use crate::storage;

/// What the marker says.
const LEFT: &str = "its JobManager ended";
/// After which time storage that did not answer is asked again.
const SETTLE_RETRY_MS: u64 = 1_000;
/// How long storage may keep a new leader waiting for one snapshot before it leads all the same.
const SETTLE_WAIT: Duration = Duration::from_secs(10);

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
        planner: Planner,
        reign: Shutdown,
    ) -> Result<Self> {
        let (checkpoint_root, savepoint_root) = config.snapshot_roots()?;
        let fresh = ClusterId::new(uuid::Uuid::new_v4().simple().to_string())?;
        propose(&node, &Command::Found { cluster: fresh, defaults: Box::new(config.quota_defaults()) }).await??;
        let cluster = node.read(|machine| machine.0.cluster.clone());
        let cluster = cluster.ok_or_else(|| Error::internal("the cluster has no id"))?;
        let heartbeat = config.heartbeat;
        let mut leader = Self {
            planner,
            reign,
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
                resource_wait_ms: config.scheduling.resource_wait_ms,
                resource_stabilization_ms: config.scheduling.resource_stabilization_ms,
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
            rescales: BTreeMap::new(),
            keeping: BTreeSet::new(),
            removing: BTreeSet::new(),
            recovered: false,
            unsettled: BTreeMap::new(),
            examining: BTreeMap::new(),
            imports: BTreeMap::new(),
            accounts: BTreeMap::new(),
            sweeps: BTreeMap::new(),
            removals: BTreeMap::new(),
            releases: BTreeMap::new(),
            deletions: BTreeMap::new(),
            garbage: Default::default(),
            hosts: Hosts::default(),
            evictions: BTreeMap::new(),
            enforcing: false,
            scheduled: BTreeMap::new(),
            verifying: BTreeMap::new(),
            verification: Arc::new(Semaphore::new(1)),
            node,
            config,
        };
        leader.end_snapshots().await?;
        leader.remember_hosts();
        leader.resume_jobs();
        let deleting: Vec<SnapshotId> = leader.entries(SnapshotState::Deleting).into_iter().map(|e| e.id).collect();
        deleting.into_iter().for_each(|snapshot| leader.remove_snapshot(snapshot));
        leader.release_all_shared();
        Ok(leader)
    }

    fn entries(&self, wanted: SnapshotState) -> Vec<SnapshotEntry> {
        self.state(|state| state.snapshots.values().filter(|entry| entry.state == wanted).cloned().collect())
    }

    /// Ends what was in flight. Where the storage does not answer, that is tried again beside everything else.
    async fn end_snapshots(&mut self) -> Result<()> {
        for entry in self.entries(SnapshotState::Queued) {
            let (snapshot, nonce) = (entry.id, entry.nonce);
            let failure = Error::unavailable("the JobManager ended while the snapshot waited for its turn");
            propose(&self.node, &Command::Abort { snapshot, nonce, failure }).await??;
        }
        let unswept: Vec<SnapshotEntry> = self.state(|state| state.unswept().cloned().collect());
        for entry in unswept {
            let failure = entry.failure.clone().unwrap_or_else(|| Error::internal("a failure without a reason"));
            self.begin_sweep(entry, failure);
        }
        for entry in self.entries(SnapshotState::InProgress) {
            let snapshot = entry.id.clone();
            let marked = tokio::time::timeout(SETTLE_WAIT, storage::mark_aborted(&entry, LEFT.to_owned())).await;
            let found = marked.unwrap_or_else(|_| Err(Error::unavailable("the storage does not answer")));
            match settlement(&entry, found) {
                Ok(command) => {
                    let reply = propose(&self.node, &command).await??;
                    self.unsettled.insert(snapshot.clone(), None);
                    self.on_settlement_committed(&snapshot, Ok(reply));
                }
                Err(error) => self.settle_later(snapshot, &error),
            }
        }
        Ok(())
    }

    fn settle_later(&mut self, snapshot: SnapshotId, error: &Error) {
        tracing::warn!(%snapshot, code = %error.code, %error,
            "it is not known whether a snapshot that an earlier JobManager left is complete; its job waits");
        self.unsettled.insert(snapshot, Some(now().plus(SETTLE_RETRY_MS)));
    }

    pub(super) fn settle_due(&mut self, now: Millis) {
        let due = self.unsettled.iter().filter(|(_, at)| at.is_some_and(|at| at <= now));
        let due: Vec<SnapshotId> = due.map(|(snapshot, _)| snapshot.clone()).collect();
        for snapshot in due {
            self.unsettled.insert(snapshot.clone(), None);
            let Some(entry) = self.state(|state| state.snapshots.get(&snapshot).cloned()) else { continue };
            self.work(async move {
                let found = storage::mark_aborted(&entry, LEFT.to_owned()).await;
                Event::Settled { snapshot, found }
            });
        }
    }

    pub(super) fn on_settled(&mut self, snapshot: SnapshotId, found: Result<Option<Contents>>) {
        let Some(entry) = self.state(|state| state.snapshots.get(&snapshot).cloned()) else { return };
        match settlement(&entry, found) {
            Ok(command) => self.commit(command, Then::Settled(snapshot)),
            Err(error) => self.settle_later(snapshot, &error),
        }
    }

    /// The snapshot has ended: who waited for that goes on.
    pub(super) fn on_settlement_committed(&mut self, snapshot: &SnapshotId, reply: Reply) {
        self.unsettled.remove(snapshot);
        let Some(entry) = self.state(|state| state.snapshots.get(snapshot).cloned()) else { return };
        match reply {
            Ok(applied) => {
                for retired in applied.retired {
                    self.remove_snapshot(retired);
                }
            }
            Err(error) => tracing::warn!(%snapshot, code = %error.code, %error, "a change no longer applied"),
        }
        match entry.failure.clone() {
            None => self.keep_positions(&entry.job, snapshot),
            Some(failure) => {
                tracing::warn!(%snapshot, code = %failure.code, error = %failure, "snapshot failed");
                // The collector cancels the groups' checkpoints and drops the pins as soon as the store answers.
                self.garbage.notify_one();
                self.begin_sweep(entry.clone(), failure);
                self.remind_writers();
            }
        }
        self.answer_settled(snapshot);
        // While the leader recovers, all jobs are still to come.
        if self.recovered {
            self.resume_job(&entry.job);
        }
    }

    fn resume_jobs(&mut self) {
        let mut jobs: Vec<(Millis, JobId)> =
            self.state(|state| state.jobs.values().map(|job| (job.submitted_at, job.id.clone())).collect());
        jobs.sort();
        for (_, job) in jobs {
            self.resume_job(&job);
        }
        self.recovered = true;
    }

    /// Goes on with a job, unless it is not known yet what it starts from.
    fn resume_job(&mut self, job: &JobId) {
        let found = self.state(|state| {
            if self.unsettled.keys().any(|snapshot| state.snapshots.get(snapshot).is_some_and(|e| e.job == *job)) {
                return None;
            }
            let job = state.jobs.get(job).filter(|job| !job.state.is_terminal())?;
            Some(Recovered {
                state: job.state,
                attempt: job.attempt,
                parallelism: job.graph.options.parallelism,
                task_managers: job.placements.iter().map(|placement| placement.task_manager.clone()).collect(),
                stopped: job.stopped_by.is_some(),
                failures: job.failures.total,
                failed_at: job.failures.newest.iter().map(|failure| failure.at).collect(),
            })
        });
        if let Some(recovered) = found {
            tracing::info!(%job, state = %recovered.state, attempt = %recovered.attempt, "recovering");
            self.enter_job(job, Some(recovered));
        }
    }
}

/// How a snapshot that an earlier JobManager left ends, by what was found in its manifest's place.
///
/// # Errors
/// If that is not known.
fn settlement(entry: &SnapshotEntry, found: Result<Option<Contents>>) -> Result<Command> {
    let (snapshot, nonce) = (entry.id.clone(), entry.nonce.clone());
    match found {
        Ok(Some(contents)) => {
            tracing::info!(%snapshot, "completing a snapshot whose manifest is there");
            Ok(Command::Complete(Box::new(Completion { snapshot, nonce, contents })))
        }
        // Where another snapshot's manifest is, there is none of ours, and none can come.
        Err(error) if error.code != Code::AlreadyExists => Err(error),
        Ok(None) | Err(_) => {
            let failure = Error::unavailable("the JobManager ended while the snapshot was in flight");
            Ok(Command::Abort { snapshot, nonce, failure })
        }
    }
}

async fn propose(node: &Node<Machine>, command: &Command) -> Result<Reply> {
    let reply = node.propose(encode_command(now(), command)).await?;
    Ok(decode_reply(&reply))
}
