//! The control loop: keeps a session with the JobManager and turns everything that happens into one sequence of events.
//!
//! Subtasks do not notice a lost session: they run on, and the next registration says what runs. What could not be sent
//! meanwhile is kept, within bounds, and sent then.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use weir_dataflow::grants::SnapshotGrants;
use weir_dataflow::subtask::SubtaskEvent;
use weir_service::Shutdown;
use weir_service::http::Readiness;
use weir_types::control::{FromTaskManager, Registration, ToTaskManager};
use weir_types::ids::{ClusterId, TaskManagerId};
use weir_types::{Code, Error, Result};

use crate::attempt::TaskEvent;
use crate::config::JobManagerConfig;
use crate::session::{self, Patience, Session};
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;

/// Acknowledgements and states kept for the next session; beyond it the oldest go, and their snapshots expire.
const UNSENT_MAX: usize = 4096;
/// How often counters are published while there is no session to say so.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Heartbeats outside of these bounds make no sense.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// How long JobManagers may take at first to say whether they lead; it doubles with each failure.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the JobManager may take to notice a goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Who this TaskManager is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) id: TaskManagerId,
    /// Where others reach its exchanges.
    pub(crate) data_address: String,
    /// Where its metrics are.
    pub(crate) http_address: String,
    /// How many slots it has.
    pub(crate) slots: u32,
}

/// Everything the control loop owns.
pub(crate) struct Agent {
    pub(crate) identity: Identity,
    /// The cluster; learnt from the first JobManager if it was not configured.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) config: JobManagerConfig,
    pub(crate) stop_timeout: Duration,
    pub(crate) tasks: Tasks,
    /// What snapshots may write here.
    pub(crate) grants: Arc<SnapshotGrants>,
    pub(crate) events: mpsc::Receiver<TaskEvent>,
    pub(crate) reports: mpsc::Receiver<SubtaskEvent>,
    pub(crate) readiness: Readiness,
    pub(crate) telemetry: Telemetry,
    pub(crate) unsent: VecDeque<FromTaskManager>,
    /// The JobManager that was refused last: others are asked before it.
    pub(crate) refused: Option<String>,
}

/// The connection to the JobManager.
enum Link {
    /// Being opened; after so many failures.
    Opening { attempt: BoxFuture<'static, Result<Session>>, failures: u32 },
    /// Open, and heard from.
    Open { session: Box<Session>, heard: Instant, silence_max: Duration },
}

/// What the control loop woke up for.
enum Wake {
    Opened(Result<Session>),
    Command(Result<ToTaskManager>),
    Event(TaskEvent),
    Report(SubtaskEvent),
    Grants,
    Tick,
}

impl Agent {
    /// Runs until shutdown is requested and everything has stopped.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut link = self.reopen(0, None);
        let mut tick = interval(IDLE_INTERVAL);
        loop {
            let wake = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                wake = link.wake() => wake,
                Some(report) = self.reports.recv() => Wake::Report(report),
                Some(event) = self.events.recv() => Wake::Event(event),
                () = self.grants.changed() => Wake::Grants,
                _ = tick.tick() => Wake::Tick,
            };
            if let Err(error) = self.on_wake(wake, &mut link, &mut tick) {
                let failures = link.failures();
                if failures.is_power_of_two() || failures == 0 {
                    tracing::warn!(%error, failures, hint = error.hint.as_deref().unwrap_or(""), "no session with a JobManager");
                }
                self.readiness.set_waiting(error.to_string());
                // One that does not lead knows who does.
                let leader = error.detail.filter(|_| error.code == Code::NotLeader);
                link = self.reopen(failures + 1, leader);
                tick = interval(IDLE_INTERVAL);
            }
        }
        self.stop(link).await;
    }

    fn on_wake(&mut self, wake: Wake, link: &mut Link, tick: &mut tokio::time::Interval) -> Result<()> {
        let anew = matches!(wake, Wake::Opened(Ok(_)));
        match wake {
            Wake::Opened(opened) => {
                let session = opened?;
                let address = session.address.clone();
                let session = self.welcome(session).inspect_err(|_| self.refused = Some(address))?;
                let registered = &session.registered;
                *tick = interval(
                    Duration::from_millis(registered.heartbeat_interval_ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX),
                );
                let silence_max = Duration::from_millis(registered.heartbeat_timeout_ms).max(HEARTBEAT_MIN);
                *link = Link::Open { session: Box::new(session), heard: Instant::now(), silence_max };
            }
            Wake::Command(command) => {
                let messages = self.tasks.on_command(command?);
                link.hear();
                self.say(messages);
            }
            Wake::Report(report) => {
                let messages = self.tasks.on_report(report);
                self.say(messages);
            }
            Wake::Event(event) => self.on_event(event),
            // What is to be said is looked at below.
            Wake::Grants => {}
            Wake::Tick => {
                self.telemetry.publish(&self.tasks);
                if matches!(link, Link::Open { .. }) {
                    let heartbeat = FromTaskManager::Heartbeat(self.tasks.progress());
                    self.say(vec![heartbeat]);
                }
            }
        }
        if let Link::Open { session, .. } = link {
            while let Some(message) = self.unsent.front() {
                session.send(message)?;
                self.unsent.pop_front();
            }
            for message in self.grants.messages(anew) {
                session.send(&message)?;
            }
            if self.tasks.has_ended() {
                // Their last rows count.
                self.telemetry.publish(&self.tasks);
                self.tasks.forget_ended();
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: TaskEvent) {
        // A subtask reports before it ends, and what it reported counts before its end.
        while let Ok(report) = self.reports.try_recv() {
            let messages = self.tasks.on_report(report);
            self.say(messages);
        }
        let messages = self.tasks.on_event(event);
        self.say(messages);
    }

    /// Queues messages; counters are not worth keeping.
    fn say(&mut self, messages: Vec<FromTaskManager>) {
        self.unsent.extend(messages);
        if self.unsent.len() > UNSENT_MAX {
            self.unsent.retain(|message| !matches!(message, FromTaskManager::Heartbeat(_)));
        }
        while self.unsent.len() > UNSENT_MAX {
            self.unsent.pop_front();
            tracing::warn!("a message to the JobManager was dropped: no session for too long");
        }
    }

    /// Checks that the JobManager which answered is the one to follow.
    fn welcome(&mut self, session: Session) -> Result<Session> {
        let Session { address, registered, .. } = &session;
        match &self.cluster {
            Some(cluster) if *cluster != registered.cluster => {
                let theirs = &registered.cluster;
                return Err(Error::new(
                    Code::FailedPrecondition,
                    format!("the JobManager at {address} belongs to cluster {theirs}, this TaskManager to {cluster}"),
                )
                .with_hint("Restart this TaskManager to join the other cluster, or correct jobmanager.addresses."));
            }
            Some(_) => {}
            None => self.cluster = Some(registered.cluster.clone()),
        }
        self.tasks.enter_term(registered.term)?;
        metrics::counter!("weir_taskmanager_sessions_total").increment(1);
        tracing::info!(jobmanager = %address, cluster = %registered.cluster, term = %registered.term, "registered");
        self.readiness.set_ready();
        Ok(session)
    }

    /// Opens a session with whichever JobManager leads, `leader` if that is not among those known, not before its time.
    fn reopen(&mut self, failures: u32, leader: Option<String>) -> Link {
        let JobManagerConfig { addresses, connect_timeout, retry_delay, retry_delay_max } = &self.config;
        let mut asked = addresses.clone();
        asked.extend(leader.filter(|leader| !addresses.contains(leader)));
        if let Some(refused) = self.refused.take().filter(|_| asked.len() > 1) {
            asked.retain(|address| *address != refused);
        }
        let doubled = |span: Duration, times: u32| span.saturating_mul(1 << times.min(16));
        let delay = match failures {
            0 => Duration::ZERO,
            failures => doubled(retry_delay.0, failures - 1).min(retry_delay_max.0),
        };
        let answer = doubled(ANSWER_TIMEOUT, failures).min(connect_timeout.0);
        let patience = Patience { answer, register: connect_timeout.0 };
        let Identity { id, data_address, http_address, slots } = self.identity.clone();
        let registration = Registration {
            cluster: self.cluster.clone(),
            task_manager: id,
            data_address,
            http_address,
            slots,
            process_id: std::process::id(),
            running: Vec::new(),
        };
        let registration = Registration { running: self.tasks.statuses(), ..registration };
        let attempt = async move {
            tokio::time::sleep(delay).await;
            session::open(asked, registration, patience).await
        };
        Link::Opening { attempt: Box::pin(attempt), failures }
    }

    /// Cancels everything, waits for it to stop, and says goodbye.
    async fn stop(mut self, mut link: Link) {
        self.readiness.set_waiting("shutting down");
        self.tasks.cancel_all();
        let deadline = Instant::now() + self.stop_timeout;
        let mut tick = interval(IDLE_INTERVAL);
        while !self.tasks.is_idle() {
            let wake = tokio::select! {
                biased;
                Some(report) = self.reports.recv() => Wake::Report(report),
                Some(event) = self.events.recv() => Wake::Event(event),
                () = sleep_until(deadline) => {
                    tracing::warn!("subtasks did not stop in time");
                    break;
                }
            };
            if let Err(error) = self.on_wake(wake, &mut link, &mut tick) {
                tracing::debug!(%error, "the JobManager was not told");
                link = Link::Opening { attempt: Box::pin(pending()), failures: 0 };
            }
        }
        if let Link::Open { session, .. } = link {
            session.close(GOODBYE_TIMEOUT).await;
        }
        tracing::info!("all subtasks stopped");
    }
}

impl Link {
    /// The next thing that comes from the JobManager. Cancel safe.
    async fn wake(&mut self) -> Wake {
        match self {
            Self::Opening { attempt, .. } => Wake::Opened(attempt.await),
            Self::Open { session, heard, silence_max } => tokio::select! {
                biased;
                command = session.command() => Wake::Command(command),
                () = sleep_until(*heard + *silence_max) => {
                    let message = format!("the JobManager at {} is silent", session.address);
                    let detail = format!("nothing was heard for {} ms", silence_max.as_millis());
                    Wake::Command(Err(Error::new(Code::Timeout, message).with_detail(detail)))
                }
            },
        }
    }

    fn hear(&mut self) {
        if let Self::Open { heard, .. } = self {
            *heard = Instant::now();
        }
    }

    fn failures(&self) -> u32 {
        match self {
            Self::Opening { failures, .. } => *failures,
            Self::Open { .. } => 0,
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
