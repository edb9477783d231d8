//! The leader: one loop that owns all live state, takes events one by one, and carries out what the pure state machines
//! decide.
//!
//! Invariants: the loop never waits for a peer, a disk or a planner: work runs in tasks that report back as events, and
//! commits run one at a time, in the order in which they were asked for. Nothing that must survive is shown or acted on
//! before its commit.

mod attempts;
mod catalogue;
mod duties;
mod explain;
mod fallback;
mod grants;
mod imports;
mod jobs;
mod policies;
mod quotas;
mod recovery;
mod rescale;
mod restores;
mod sessions;
mod shared;
mod snapshots;
mod sweeps;
mod trail;
mod verifying;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use weir_coordination::checkpoint::{self, Coordinator, SubtaskKey};
use weir_coordination::liveness::Liveness;
use weir_coordination::metadata::{Command, Reply, State};
use weir_coordination::scheduler::{self, Scheduler};
use weir_proto::convert::metadata::{decode_reply, encode_command};
use weir_proto::pb::client::v1 as pb;
use weir_replication::Node;
use weir_service::{Shutdown, failpoint};
use weir_state::verify::Report;
use weir_stream_store::client::StoreClient;
use weir_types::control::SubtaskProgress;
use weir_types::deployment::Placement;
use weir_types::ids::{Attempt, ClusterId, JobId, RequestId, SnapshotId, TaskManagerId, Term};
use weir_types::quota::QuotaLevel;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use crate::config::Config;
use crate::event::{Answer, Draft, Event, Prepared, RefusedRestore};
use crate::explain::Hosts;
use crate::gc::Collector;
use crate::metadata::{Machine, now};
use crate::pins::PinWatch;
use crate::planning::Planner;
use fallback::Start;
use grants::{Account, Amount};
use imports::UnderWay;
use rescale::Rescaling;
use sessions::Session;
use sweeps::Sweep;

/// What follows a commit.
enum Then {
    /// Nothing: the commit was the point.
    Nothing,
    /// The job is known: schedule it, and answer.
    Submitted(JobId, Answer<pb::SubmitReply>),
    /// The job is to have another parallelism: restart it, and answer.
    Rescaled(Box<Rescaling>),
    /// The attempt is decided: deploy it.
    Deploy(JobId, Attempt, Vec<Placement>, Box<Prepared>),
    /// A step of a snapshot.
    Reserved(JobId, SnapshotId),
    Completed(JobId, SnapshotId),
    Aborted(JobId, SnapshotId),
    /// The snapshot can no longer be referred to: answer, and remove it.
    Marked(SnapshotId, Answer<pb::DeleteSnapshotReply>),
    /// The entry of a snapshot that was removed is gone.
    Deleted(SnapshotId),
    /// Deleted files of a job are no longer charged.
    Released(JobId),
    /// People say something else about the snapshot.
    Annotated(SnapshotId, Answer<pb::Snapshot>),
    PolicySet(QuotaLevel, Answer<pb::Policy>),
    PolicyRemoved(Box<pb::Policy>, Answer<pb::Policy>),
    /// Policies have marked what they delete.
    Enforced,
    /// A snapshot may write so much in total, or not.
    Granted(SnapshotId, u64, Amount),
    /// What the manifest takes is charged, or not.
    ManifestGranted(Box<Draft>),
    /// What an earlier JobManager left in flight has ended.
    Settled(SnapshotId),
    /// A job cannot go on from a snapshot: it goes on from another one.
    Condemned(JobId),
    /// What was decided about a job's output has been carried out.
    Discharged(JobId),
    /// What a verification has found is entered.
    Verified(SnapshotId, Result<Box<Report>>),
    /// A savepoint of another cluster may be copied, or not.
    Imported(SnapshotId),
    /// It was copied, or has failed.
    ImportEnded(SnapshotId),
    /// What keeps a snapshot from being restored is in the catalogue.
    RestoreRefused(SnapshotId, Error, RefusedRestore),
    /// The limits of a level are set.
    QuotaSet(QuotaLevel, Answer<pb::SetQuotaReply>),
}

/// What only the leader knows of a job that has not ended.
struct LiveJob {
    coordinator: Coordinator,
    progress: BTreeMap<SubtaskKey, SubtaskProgress>,
    changed: watch::Sender<u64>,
    /// An attempt that waits for the snapshot in flight to end.
    pending_start: Option<(Attempt, Vec<Placement>)>,
    /// The attempt may end as soon as no snapshot is in flight.
    pending_finish: Option<Attempt>,
    /// What the newest attempt starts from.
    start: Start,
}

type Commit = Pin<Box<dyn Future<Output = Result<bytes::Bytes, weir_replication::Error>> + Send>>;

/// The live state of the cluster; see the module's documentation.
pub(crate) struct Leader {
    config: Config,
    checkpoint_root: String,
    savepoint_root: String,
    cluster: ClusterId,
    term: Term,
    node: Node<Machine>,
    store: StoreClient,
    planner: Planner,
    events: mpsc::Sender<Event>,
    /// Requested when another JobManager leads, or this one ends: work in progress is given up.
    reign: Shutdown,
    commits: VecDeque<(Command, Then)>,
    committing: Option<(Commit, Then)>,
    scheduler: Scheduler,
    liveness: Liveness,
    sessions: BTreeMap<TaskManagerId, Session>,
    sessions_opened: u64,
    heartbeat_at: Millis,
    jobs: BTreeMap<JobId, LiveJob>,
    /// Last counters of the jobs that ended most recently, oldest first.
    ended: VecDeque<(JobId, BTreeMap<SubtaskKey, SubtaskProgress>)>,
    /// Submissions that are being planned, and who waits for each snapshot that was asked for.
    planning: BTreeMap<RequestId, Vec<Answer<pb::SubmitReply>>>,
    waiters: BTreeMap<RequestId, Vec<Answer<pb::Snapshot>>>,
    /// Who waits for the end of a job whose stop's savepoint is complete.
    stops: BTreeMap<JobId, Vec<(SnapshotId, Answer<pb::Snapshot>)>>,
    /// Rescales that wait for their checkpoint, by the request for it.
    rescales: BTreeMap<RequestId, Rescaling>,
    /// Completed snapshots whose pins are being moved; until that is done they are not removed.
    keeping: BTreeSet<SnapshotId>,
    /// Snapshots that are being removed.
    removing: BTreeSet<SnapshotId>,
    /// Snapshots of no running job that an earlier JobManager left in flight and of which it is not known yet how they have
    /// ended, with the time of the next try; none: one is under way.
    unsettled: BTreeMap<SnapshotId, Option<Millis>>,
    /// Imports that are being looked at, and those that are in the catalogue, or about to be.
    examining: BTreeMap<RequestId, UnderWay>,
    imports: BTreeMap<SnapshotId, UnderWay>,
    /// What the snapshots in flight may write.
    accounts: BTreeMap<SnapshotId, Account>,
    /// Failed snapshots whose files are not removed yet.
    sweeps: BTreeMap<SnapshotId, Sweep>,
    /// Snapshots whose removal failed, and when it is tried again.
    removals: BTreeMap<SnapshotId, Millis>,
    /// Jobs whose shared files are being deleted, or when that is tried again.
    releases: BTreeMap<JobId, Option<Millis>>,
    /// Who waits for the first try to remove each snapshot, and what they will be told.
    deletions: BTreeMap<SnapshotId, Vec<(Answer<pb::DeleteSnapshotReply>, pb::DeleteSnapshotReply)>>,
    /// Notified when something was ended that may have left garbage.
    garbage: Arc<Notify>,
    /// Where attempts ran.
    hosts: Hosts,
    /// Savepoints that are admitted, and what has to go before they begin.
    evictions: BTreeMap<SnapshotId, (JobId, BTreeSet<SnapshotId>)>,
    /// Policies are being enforced.
    enforcing: bool,
    /// Jobs whose scheduled savepoint was asked for: which one, by the time since which it is awaited, and when it is asked
    /// for again if nothing came of it.
    scheduled: BTreeMap<JobId, (Millis, Millis)>,
    /// Jobs whose output is being settled, or when that is tried again.
    duties: BTreeMap<JobId, Option<Millis>>,
    /// Who waits for the verification of which snapshot; one of them is read at a time.
    verifying: BTreeMap<SnapshotId, Vec<Answer<pb::VerifySnapshotReply>>>,
    verification: Arc<Semaphore>,
}

impl Leader {
    /// Leads until `shutdown` is requested or the log fails.
    ///
    /// # Errors
    /// If the log fails: somebody else has to lead, or nobody can.
    pub(crate) async fn lead(mut self, mut inbox: mpsc::Receiver<Event>, shutdown: Shutdown) -> Result<()> {
        tracing::info!(cluster = %self.cluster, term = %self.term, jobs = self.jobs.len(), "leading");
        loop {
            self.start_commit();
            let pause = Duration::from_millis(self.next_deadline().since(now()));
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                outcome = committed(&mut self.committing) => {
                    let (then, outcome) = outcome;
                    self.on_committed(then, outcome?);
                }
                event = inbox.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => break,
                },
                () = tokio::time::sleep(pause) => {}
            }
            self.on_time();
        }
        tracing::info!("no longer leading");
        Ok(())
    }

    /// What cleans up behind this leader and its predecessors.
    pub(crate) fn collector(&self) -> Collector {
        Collector {
            cluster: self.cluster.clone(),
            store: self.store.clone(),
            node: self.node.clone(),
            checkpoint_root: self.checkpoint_root.clone(),
            savepoint_root: self.savepoint_root.clone(),
            garbage: self.garbage.clone(),
        }
    }

    /// What looks for pins that somebody has broken.
    pub(crate) fn pin_watch(&self) -> PinWatch {
        PinWatch { store: self.store.clone(), node: self.node.clone(), events: self.events.clone() }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::SessionOpened { registration, outbound, accepted } => {
                self.open_session(registration, outbound, accepted);
            }
            Event::SessionMessage { task_manager, session, message } => {
                self.on_message(&task_manager, session, message);
            }
            Event::SessionClosed { task_manager, session, reason } => {
                self.close_session(&task_manager, Some(session), &reason);
            }
            Event::Request(request) => self.on_request(request),
            Event::Planned { request, answer, planned } => self.on_planned(request, answer, planned),
            Event::RestorePlanned { snapshot, planned, to } => self.on_restore_planned(snapshot, planned, to),
            Event::Unrestorable { snapshot, why, refused } => self.refuse_restore(snapshot, why, refused),
            Event::Prepared { job, attempt, placements, prepared } => {
                self.on_prepared(job, attempt, placements, prepared);
            }
            Event::OutputSettled { job, duty, settled } => self.on_output_settled(job, duty, settled),
            Event::RolledBack { job, attempt, placements, prepared } => {
                self.on_rolled_back(job, attempt, placements, prepared);
            }
            Event::Step { job, event } => self.coordinate(&job, event),
            Event::Kept(snapshot) => self.on_kept(snapshot),
            Event::Deletable { snapshot, command, to } => self.on_deletable(snapshot, command, to),
            Event::Drafted { job, snapshot, draft } => self.on_drafted(&job, snapshot, draft),
            Event::Settled { snapshot, found } => self.on_settled(snapshot, found),
            Event::Examined { request, wanted, examined } => self.on_examined(request, *wanted, examined),
            Event::Copied { snapshot, copied } => self.on_copied(snapshot, copied),
            Event::Swept { snapshot, result } => self.on_swept(&snapshot, result),
            Event::Removed { snapshot, result } => self.on_removed(snapshot, result),
            Event::Suspected { job, snapshot, found } => self.on_suspected(&job, snapshot, found),
            Event::CutOff { job, snapshot, reason } => self.on_cut_off(&job, snapshot, reason),
            Event::Verified { snapshot, report } => self.on_verified(snapshot, report),
            Event::SharedDeleted { job, names, deleted } => self.on_shared_deleted(job, names, deleted),
        }
    }

    /// Whatever is due.
    fn on_time(&mut self) {
        let now = now();
        if self.heartbeat_at <= now {
            self.heartbeat_at = now.plus(self.config.heartbeat.interval_ms);
            self.send_heartbeats();
            self.keep_policies();
            metrics::gauge!("weir_task_managers").set(self.sessions.len() as f64);
            metrics::gauge!("weir_jobs_live").set(self.jobs.len() as f64);
        }
        for lost in self.liveness.expire(now) {
            let timeout_ms = self.config.heartbeat.timeout_ms;
            self.close_session(&lost, None, &format!("no heartbeat for {timeout_ms} ms"));
        }
        if self.scheduler.next_deadline().is_some_and(|at| at <= now) {
            self.schedule(scheduler::Event::Tick);
        }
        let due = |job: &LiveJob| job.coordinator.next_deadline().is_some_and(|at| at <= now);
        let due: Vec<JobId> = self.jobs.iter().filter(|(_, job)| due(job)).map(|(id, _)| id.clone()).collect();
        for job in due {
            self.coordinate(&job, checkpoint::Event::Tick);
        }
        self.settle_due(now);
        self.sweep_due(now);
        self.release_due(now);
        self.expire_imports(now);
        self.discharge_due(now);
        let again: Vec<_> = self.removals.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for snapshot in again {
            self.remove_snapshot(snapshot);
        }
    }

    fn next_deadline(&self) -> Millis {
        [self.liveness.next_deadline(), self.scheduler.next_deadline()]
            .into_iter()
            .flatten()
            .chain(self.jobs.values().filter_map(|job| job.coordinator.next_deadline()))
            .chain(self.removals.values().copied())
            .chain(self.releases.values().copied().flatten())
            .chain(self.duties.values().copied().flatten())
            .chain(self.unsettled.values().copied().flatten())
            .chain(self.next_sweep())
            .chain(self.next_import_deadline())
            .fold(self.heartbeat_at, Millis::min)
    }

    /// Reads the replicated state.
    fn state<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        self.node.read(|machine| read(&machine.0))
    }

    /// Commits a command after those that were asked for before.
    fn commit(&mut self, command: Command, then: Then) {
        self.commits.push_back((command, then));
        self.start_commit();
    }

    fn start_commit(&mut self) {
        if self.committing.is_some() {
            return;
        }
        if let Some((command, then)) = self.commits.pop_front() {
            let (node, data) = (self.node.clone(), encode_command(now(), &command));
            self.committing = Some((Box::pin(async move { node.propose(data).await }), then));
        }
    }

    fn on_committed(&mut self, then: Then, reply: Reply) {
        let admitted = reply.as_ref().map(|applied| applied.admitted.clone()).unwrap_or_default();
        self.follow(then, reply);
        for snapshot in admitted {
            self.on_admitted(snapshot);
        }
    }

    fn follow(&mut self, then: Then, reply: Reply) {
        match then {
            Then::Nothing => match reply {
                Ok(applied) => self.after_change(applied),
                Err(error) => tracing::warn!(code = %error.code, %error, "a change no longer applied"),
            },
            Then::Rescaled(rescaling) => self.on_rescaled(*rescaling, reply),
            Then::Submitted(job, answer) => self.on_submitted(&job, reply, answer),
            Then::Deploy(job, attempt, placements, prepared) => {
                self.on_attempt_committed(job, attempt, placements, *prepared, reply);
            }
            Then::Reserved(job, snapshot) => self.on_reserved(&job, snapshot, reply),
            Then::Granted(snapshot, bytes, amount) => self.on_granted(&snapshot, bytes, amount, reply),
            Then::ManifestGranted(draft) => self.publish_draft(*draft, reply),
            Then::RestoreRefused(snapshot, error, refused) => self.on_restore_refused(&snapshot, error, refused),
            Then::Imported(snapshot) => self.on_imported(snapshot, reply),
            Then::ImportEnded(snapshot) => self.on_import_ended(&snapshot, reply),
            Then::Settled(snapshot) => self.on_settlement_committed(&snapshot, reply),
            Then::QuotaSet(level, to) => self.on_quota_set(&level, reply, to),
            Then::Completed(job, snapshot) => self.on_completed(&job, snapshot, reply),
            Then::Aborted(job, snapshot) => {
                self.coordinate(&job, checkpoint::Event::Aborted(snapshot.clone()));
                self.answer_settled(&snapshot);
            }
            Then::Marked(snapshot, answer) => self.on_marked_deleted(snapshot, reply, answer),
            Then::Deleted(snapshot) => {
                failpoint::reach("delete.entry");
                tracing::info!(%snapshot, "snapshot removed");
                self.answer_deletion(&snapshot);
                if let Some(job) = reply.ok().and_then(|applied| applied.job) {
                    self.release_shared(&job);
                }
            }
            Then::Released(job) => self.on_released(&job, &reply),
            Then::Annotated(snapshot, to) => answer(to, reply.and_then(|_| self.snapshot_view(&snapshot))),
            Then::PolicySet(level, to) => self.on_policy_set(&level, reply, to),
            Then::PolicyRemoved(policy, to) => answer(to, reply.map(|_| *policy)),
            Then::Enforced => self.on_enforced(reply),
            Then::Discharged(job) => self.on_discharged(&job, reply),
            Then::Condemned(job) => self.on_condemned(&job, reply),
            Then::Verified(snapshot, report) => self.on_verification_committed(&snapshot, report, reply),
        }
    }

    /// Runs work beside the loop; what it returns comes back as an event.
    fn work(&self, work: impl Future<Output = Event> + Send + 'static) {
        let (events, reign) = (self.events.clone(), self.reign.clone());
        tokio::spawn(async move {
            let event = tokio::select! {
                event = work => event,
                () = reign.requested() => return,
            };
            // Without a leader there is nobody to tell: its successor finds out by itself.
            let _gone = events.send(event).await;
        });
    }

    /// Tells whoever watches a job that something has changed.
    fn touch(&self, job: &JobId) {
        if let Some(live) = self.jobs.get(job) {
            live.changed.send_modify(|changes| *changes += 1);
        }
    }
}

/// The end of the commit under way; never, if there is none.
async fn committed(committing: &mut Option<(Commit, Then)>) -> (Then, Result<Reply>) {
    let Some((commit, _)) = committing else { return std::future::pending().await };
    let outcome = commit.await;
    let then = committing.take().map_or(Then::Nothing, |(_, then)| then);
    (then, outcome.map(|reply| decode_reply(&reply)).map_err(Error::from))
}

/// Answers a request; a client that has gone away aborts nothing.
fn answer<T>(to: oneshot::Sender<Result<T>>, result: Result<T>) {
    let _gone = to.send(result);
}
