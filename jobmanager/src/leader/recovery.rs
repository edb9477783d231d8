//! Taking over: what an earlier JobManager left behind is finished or aborted, and its jobs go on, in the attempts that run.
//!
//! Invariants: a snapshot in flight is never forgotten. If its manifest is there, it is completed; otherwise an abort
//! marker makes sure that none can appear, and it is aborted. Nobody waits for storage but the next attempt, or the next
//! snapshot, of the job concerned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use weir_coordination::checkpoint::{self, Contents, Reservation, Trigger};
use weir_coordination::liveness::Liveness;
use weir_coordination::metadata::{Command, Completion, JobRecord, Reply, SnapshotEntry, State};
use weir_coordination::scheduler::{self, Config as SchedulerConfig, Recovered, Scheduler};
use weir_proto::convert::metadata::{decode_reply, encode_command};
use weir_replication::Node;
use weir_service::Shutdown;
use weir_stream_store::client::StoreClient;
use weir_types::control::{SnapshotOutcome, SubtaskStatus, ToTaskManager};
use weir_types::ids::{Attempt, ClusterId, JobId, SnapshotId, TaskManagerId, Term};
use weir_types::job::JobState;
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
/// What is logged while storage does not say whether a manifest is there.
const UNKNOWN: &str = "it is not known whether a snapshot that an earlier JobManager left is complete";
/// After which time storage that did not answer is asked again.
const SETTLE_RETRY_MS: u64 = 1_000;

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
        // From its first command on, the store takes none of an earlier leader.
        let store = store.leading(&cluster, term)?;
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
                // One whose leader fell silent notices that after the timeout, and has to find this one then.
                recovery_wait_ms: heartbeat.timeout_ms.saturating_add(2 * heartbeat.interval_ms),
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
            duties: BTreeMap::new(),
            verifying: BTreeMap::new(),
            verification: Arc::new(Semaphore::new(1)),
            node,
            config,
        };
        leader.take_up_sweeps();
        leader.remember_hosts();
        leader.resume_jobs();
        leader.end_left_snapshots();
        let deleting: Vec<SnapshotId> = leader.entries(SnapshotState::Deleting).into_iter().map(|e| e.id).collect();
        deleting.into_iter().for_each(|snapshot| leader.remove_snapshot(snapshot));
        leader.release_all_shared();
        leader.discharge_all();
        Ok(leader)
    }

    fn entries(&self, wanted: SnapshotState) -> Vec<SnapshotEntry> {
        self.state(|state| state.snapshots.values().filter(|entry| entry.state == wanted).cloned().collect())
    }

    fn take_up_sweeps(&mut self) {
        let unswept: Vec<SnapshotEntry> = self.state(|state| state.unswept().cloned().collect());
        for entry in unswept {
            let failure = entry.failure.clone().unwrap_or_else(|| Error::internal("a failure without a reason"));
            self.begin_sweep(entry, failure);
        }
    }

    /// Ends what was under way and is no running job's: imports, and snapshots of jobs that have ended meanwhile.
    fn end_left_snapshots(&mut self) {
        let is_left = |leader: &Self, entry: &SnapshotEntry| !leader.jobs.contains_key(&entry.job);
        let queued = self.entries(SnapshotState::Queued);
        let in_progress = self.entries(SnapshotState::InProgress);
        for entry in queued {
            if !is_left(self, &entry) {
                continue;
            }
            let (snapshot, nonce) = (entry.id, entry.nonce);
            let failure = Error::unavailable("the JobManager ended while the snapshot waited for its turn");
            self.commit(Command::Abort { snapshot: snapshot.clone(), nonce, failure }, Then::Settled(snapshot));
        }
        let left = in_progress.into_iter().filter(|entry| is_left(self, entry));
        let left: Vec<_> = left.map(|entry| (entry.id, Some(now()))).collect();
        self.unsettled.extend(left);
    }

    /// Hands a job's coordinator the snapshot that it was taking; answered by [`checkpoint::Event::Settled`].
    pub(super) fn settle(&self, job: &JobId, snapshot: SnapshotId) {
        let Some(entry) = self.entry(&snapshot) else { return };
        let job = job.clone();
        self.work(async move {
            let found = storage::mark_aborted(&entry, LEFT.to_owned()).await;
            if let Some(error) = found.as_ref().err().filter(|error| error.code != Code::AlreadyExists) {
                tracing::warn!(%snapshot, code = %error.code, %error, "{UNKNOWN}");
            }
            Event::Step { job, event: checkpoint::Event::Settled(snapshot, found.map(|found| found.map(Box::new))) }
        });
    }

    fn settle_later(&mut self, snapshot: SnapshotId, error: &Error) {
        tracing::warn!(%snapshot, code = %error.code, %error, "{UNKNOWN}");
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
        self.discharge(&entry.job);
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
    }

    fn resume_jobs(&mut self) {
        let mut jobs: Vec<(Millis, JobId)> =
            self.state(|state| state.jobs.values().map(|job| (job.submitted_at, job.id.clone())).collect());
        jobs.sort();
        for (_, job) in jobs {
            self.resume_job(&job);
        }
    }

    /// Goes on with a job that has not ended: with the attempt that runs, if it does, and with its snapshot in flight.
    fn resume_job(&mut self, job: &JobId) {
        let found = self.state(|state| {
            // One that only waits for its output to be committed has nothing left to run.
            let goes_on = |job: &&JobRecord| !job.state.is_terminal() && job.output.ending.is_none();
            let job = state.jobs.get(job).filter(goes_on)?;
            Some(Recovered {
                state: job.state,
                attempt: job.attempt,
                parallelism: job.graph.options.parallelism,
                placements: job.placements.clone(),
                stopped: job.stopped_by.is_some(),
                failures: job.failures.total,
                failed_at: job.failures.newest.iter().map(|failure| failure.at).collect(),
            })
        });
        let Some(recovered) = found else { return };
        let Recovered { state, attempt, stopped, .. } = recovered;
        tracing::info!(%job, %state, %attempt, "recovering");
        self.enter_job(job, Some(recovered));
        if matches!(state, JobState::Running | JobState::Stopping) {
            self.coordinate(job, checkpoint::Event::Resuming);
        }
        let in_flight = self.state(|state| {
            let under_way =
                |entry: &&SnapshotEntry| matches!(entry.state, SnapshotState::Queued | SnapshotState::InProgress);
            state.snapshots_of(job).into_iter().find(under_way).cloned()
        });
        let stops = in_flight.as_ref().is_some_and(|entry| matches!(entry.trigger, Trigger::Stop(_)));
        if state == JobState::Stopping && !stopped && !stops {
            // The stop was not even reserved, or has failed already: whoever asked for it asks again, or knows.
            self.schedule(scheduler::Event::StopAbandoned(job.clone()));
        }
        if let Some(entry) = in_flight {
            self.coordinate(job, found_in(&entry));
        }
    }

    /// Tells a TaskManager how the newest snapshots of what it runs have ended: perhaps nobody has lived to say so.
    pub(super) fn repeat_outcomes(&mut self, task_manager: &TaskManagerId, statuses: &[SubtaskStatus]) {
        let attempts: BTreeSet<(JobId, Attempt)> =
            statuses.iter().map(|status| (status.subtask.job.clone(), status.subtask.attempt)).collect();
        for (job, attempt) in attempts {
            for entry in self.state(|state| newest_outcomes(state, &job, attempt)) {
                let SnapshotEntry { id, barrier, failure, .. } = entry;
                let outcome =
                    SnapshotOutcome { term: self.term, job: job.clone(), attempt, barrier, snapshot: id, failure };
                self.send(task_manager, ToTaskManager::SnapshotOutcome(outcome));
            }
        }
    }
}

/// The newest completed snapshot of an attempt, and the newest failed one if that came later, in their order.
fn newest_outcomes(state: &State, job: &JobId, attempt: Attempt) -> Vec<SnapshotEntry> {
    let of_attempt: Vec<_> = state.snapshots_of(job).into_iter().filter(|entry| entry.attempt == attempt).collect();
    let newest = |failed: bool| {
        let ended = |entry: &&&SnapshotEntry| match entry.state {
            SnapshotState::Completed | SnapshotState::Deleting => !failed,
            SnapshotState::Failed => failed,
            SnapshotState::Queued | SnapshotState::InProgress => false,
        };
        of_attempt.iter().rev().find(ended).copied()
    };
    let completed = newest(false);
    let failed = newest(true).filter(|failed| completed.is_none_or(|completed| completed.barrier < failed.barrier));
    completed.into_iter().chain(failed).cloned().collect()
}

/// What a job's new coordinator is told of a snapshot that is under way.
fn found_in(entry: &SnapshotEntry) -> checkpoint::Event {
    let reservation = Reservation {
        snapshot: entry.id.clone(),
        barrier: entry.barrier,
        kind: entry.kind,
        trigger: entry.trigger,
        attempt: entry.attempt,
        // Whoever has asked for it asks again, and waits then.
        request: None,
        directory: entry.directory.clone(),
        deadline_ms: entry.deadline.0,
        triggered_at_ms: entry.triggered_at.0,
        subtasks: entry.subtasks,
    };
    match entry.state {
        SnapshotState::Queued => checkpoint::Event::FoundQueued(reservation),
        _ => checkpoint::Event::FoundInFlight(reservation),
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
