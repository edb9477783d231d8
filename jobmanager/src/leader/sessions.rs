//! Sessions of TaskManagers: registration, heartbeats, messages in both directions.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use weir_coordination::checkpoint;
use weir_coordination::scheduler::{self, SlotsOf};
use weir_types::control::{FromTaskManager, Registered, Registration, SubtaskProgress, ToTaskManager};
use weir_types::deployment::SubtaskState;
use weir_types::ids::{JobId, TaskManagerId};
use weir_types::snapshot::SnapshotTimings;
use weir_types::{Code, Error};

use super::{Leader, answer};
use crate::event::{Answer, SessionId};
use crate::metadata::now;

/// Slots that a TaskManager may have, as many as one can be configured with: each is kept track of.
const SLOTS_MAX: u32 = 1024;

/// A registered TaskManager.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) registration: Registration,
    outbound: mpsc::Sender<ToTaskManager>,
}

impl Leader {
    pub(super) fn open_session(
        &mut self,
        registration: Registration,
        outbound: mpsc::Sender<ToTaskManager>,
        accepted: Answer<SessionId>,
    ) {
        if registration.cluster.as_ref().is_some_and(|cluster| *cluster != self.cluster) {
            let error = Error::new(
                Code::FailedPrecondition,
                format!("TaskManager {} belongs to another cluster", registration.task_manager),
            )
            .with_detail(format!("this is cluster {}", self.cluster));
            return answer(accepted, Err(error));
        }
        let task_manager = registration.task_manager.clone();
        if !(1..=SLOTS_MAX).contains(&registration.slots) {
            let message = format!("TaskManager {task_manager} registers with {} slots", registration.slots);
            let error =
                Error::invalid(message).with_hint(format!("A TaskManager has between 1 and {SLOTS_MAX} slots."));
            return answer(accepted, Err(error));
        }
        self.close_session(&task_manager, None, "it has registered again");
        self.sessions_opened += 1;
        let id = SessionId(self.sessions_opened);
        tracing::info!(%task_manager, slots = registration.slots, process_id = registration.process_id,
            data_address = registration.data_address, running = registration.running.len(), "task manager registered");
        let slots = SlotsOf {
            id: task_manager.clone(),
            slots: registration.slots,
            data_address: registration.data_address.clone(),
        };
        let mut statuses = registration.running.clone();
        self.sessions.insert(task_manager.clone(), Session { id, registration, outbound });
        self.liveness.watch(now(), task_manager.clone());
        answer(accepted, Ok(id));
        let registered = Registered {
            cluster: self.cluster.clone(),
            term: self.term,
            heartbeat_interval_ms: self.config.heartbeat.interval_ms,
            heartbeat_timeout_ms: self.config.heartbeat.timeout_ms,
        };
        self.send(&task_manager, ToTaskManager::Registered(registered));
        self.repeat_outcomes(&task_manager, &statuses);
        self.remind_writer(&task_manager);
        statuses.iter_mut().for_each(|status| self.suspect(status));
        self.schedule(scheduler::Event::TaskManagerJoined(slots, statuses));
    }

    /// Gives a TaskManager up; with a session, only if that is still the one.
    pub(super) fn close_session(&mut self, id: &TaskManagerId, session: Option<SessionId>, reason: &str) {
        if self.sessions.get(id).is_none_or(|open| session.is_some_and(|session| session != open.id)) {
            return;
        }
        self.sessions.remove(id);
        self.liveness.forget(id);
        let error = Error::unavailable(format!("TaskManager {id} was lost")).with_detail(reason.to_owned());
        tracing::warn!(task_manager = %id, code = %error.code, reason, "task manager lost");
        self.schedule(scheduler::Event::TaskManagerLost(id.clone(), error));
    }

    pub(super) fn on_message(&mut self, from: &TaskManagerId, session: SessionId, message: FromTaskManager) {
        if self.sessions.get(from).is_none_or(|open| open.id != session) {
            return;
        }
        self.liveness.heard(now(), from);
        match message {
            FromTaskManager::Register(_) => {
                self.close_session(from, Some(session), "it has registered twice in one session");
            }
            FromTaskManager::Heartbeat(progress) => self.on_progress(progress),
            FromTaskManager::Status(mut status) => {
                self.suspect(&mut status);
                if let SubtaskState::Failed(error) = &status.state {
                    tracing::warn!(subtask = %status.subtask, code = %error.code, %error, "subtask failed");
                }
                let job = status.subtask.job.clone();
                self.schedule(scheduler::Event::Status(status));
                self.touch(&job);
            }
            FromTaskManager::SnapshotAcked(ack) => {
                let SnapshotTimings { start_delay_us, alignment_us, sync_us, async_us } = ack.timings;
                tracing::debug!(snapshot = %ack.snapshot, subtask = %ack.subtask, task_manager = %from,
                    start_delay_us, alignment_us, sync_us, async_us, "subtask acknowledged");
                let job = ack.subtask.job.clone();
                self.coordinate(&job, checkpoint::Event::Acked(ack));
            }
            FromTaskManager::SnapshotDeclined(declined) => {
                tracing::warn!(snapshot = %declined.snapshot, subtask = %declined.subtask, task_manager = %from,
                    code = %declined.error.code, error = %declined.error, "subtask declined");
                let job = declined.subtask.job.clone();
                self.coordinate(&job, checkpoint::Event::Declined(declined));
            }
            FromTaskManager::GrantWanted(request) => self.on_grant_wanted(from, request),
            FromTaskManager::WritersStopped(stopped) => self.on_writers_stopped(from, &stopped),
        }
    }

    fn on_progress(&mut self, progress: Vec<SubtaskProgress>) {
        let mut changed: BTreeMap<JobId, ()> = BTreeMap::new();
        for progress in progress {
            let subtask = &progress.subtask;
            if self.scheduler.attempt(&subtask.job) != Some(subtask.attempt) {
                continue;
            }
            if let Some(live) = self.jobs.get_mut(&subtask.job) {
                changed.insert(subtask.job.clone(), ());
                live.progress.insert((subtask.chain, subtask.index), progress);
            }
        }
        changed.keys().for_each(|job| self.touch(job));
    }

    pub(super) fn send_heartbeats(&mut self) {
        let everybody: Vec<TaskManagerId> = self.sessions.keys().cloned().collect();
        for task_manager in everybody {
            self.send(&task_manager, ToTaskManager::Heartbeat(self.term));
        }
    }

    /// Says something to a TaskManager. One that does not listen any more is lost.
    pub(super) fn send(&mut self, to: &TaskManagerId, message: ToTaskManager) {
        let Some(session) = self.sessions.get(to) else { return };
        if session.outbound.try_send(message).is_err() {
            let id = session.id;
            self.close_session(to, Some(id), "it does not take messages any more");
        }
    }
}
