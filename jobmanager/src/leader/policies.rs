//! Retention policies at work: savepoints that nobody keeps any more are deleted, scheduled ones are taken.

use weir_coordination::checkpoint::{self, Event as Step, Trigger};
use weir_coordination::metadata::{Command, Reply};
use weir_proto::convert::catalogue::policy_to_client;
use weir_proto::pb::client::v1 as pb;
use weir_types::ids::{JobId, RequestId};
use weir_types::job::JobState;
use weir_types::quota::QuotaLevel;
use weir_types::retention::RetentionPolicy;
use weir_types::snapshot::{Annotations, SnapshotKind};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::jobs::request_id;
use super::{Leader, Then, answer};
use crate::event::Answer;
use crate::metadata::now;
use crate::schedule;

/// After which time a scheduled savepoint is asked for again that was not even reserved.
const ASK_AGAIN_MS: u64 = 30_000;

impl Leader {
    pub(super) fn set_policy(&mut self, request: pb::SetPolicyRequest, to: Answer<pb::Policy>) {
        let command = || -> Result<(QuotaLevel, Command)> {
            let level: QuotaLevel = request.level.parse()?;
            let (id, by) = (request_id(&request.request_id)?, request.owner.clone());
            let policy = RetentionPolicy::try_from(request)?;
            policy.check()?;
            policy.schedule.as_ref().map_or(Ok(()), |schedule| schedule::check(schedule, now()))?;
            Ok((level.clone(), Command::SetPolicy { level, request: Some(id), policy: Some(policy), by }))
        };
        match command() {
            Ok((level, command)) => self.commit(command, Then::PolicySet(level, to)),
            Err(error) => answer(to, Err(error)),
        }
    }

    pub(super) fn on_policy_set(&mut self, level: &QuotaLevel, reply: Reply, to: Answer<pb::Policy>) {
        let result = reply.and_then(|_| self.policy_view(level));
        if let Ok(policy) = &result {
            tracing::info!(%level, by = policy.set_by, "retention policy set");
        }
        answer(to, result);
        self.keep_policies();
    }

    pub(super) fn remove_policy(&mut self, request: pb::RemovePolicyRequest, to: Answer<pb::Policy>) {
        let found = request_id(&request.request_id)
            .and_then(|id| request.level.parse().map(|level: QuotaLevel| (id, level)))
            .and_then(|(id, level)| self.policy_view(&level).map(|policy| (id, level, policy)));
        match found {
            Ok((id, level, policy)) => {
                tracing::info!(%level, by = request.owner, "removing a retention policy");
                let command = Command::SetPolicy { level, request: Some(id), policy: None, by: request.owner };
                self.commit(command, Then::PolicyRemoved(Box::new(policy), to));
            }
            Err(error) => answer(to, Err(error)),
        }
    }

    fn policy_view(&self, level: &QuotaLevel) -> Result<pb::Policy> {
        self.state(|state| {
            let record = state.retention.policies.get(level).ok_or_else(|| {
                Error::not_found(format!("there is no policy for {level}"))
                    .with_hint("`weir policy list` shows all policies.")
            })?;
            let mut view = policy_to_client(level, record);
            for job in state.jobs.values().filter(|job| !job.state.is_terminal()) {
                let governs = state.policy_of(&job.namespace, &job.name).is_some_and(|(found, _)| found == level);
                if let Some((record, since)) = state.scheduled_since(job).filter(|_| governs)
                    && let Some(schedule) = &record.policy.schedule
                {
                    view.scheduled.push(pb::ScheduledSavepoint {
                        job: job.id.to_string(),
                        job_name: job.name.clone(),
                        last_ms: state.retention.scheduled.get(&job.id).map_or(0, |at| at.0),
                        next_ms: schedule::next_after(schedule, since)?.0,
                    });
                }
            }
            Ok(view)
        })
    }

    pub(super) fn policies_view(&self, request: &pb::ListPoliciesRequest) -> Result<pb::ListPoliciesReply> {
        let levels: Vec<QuotaLevel> = match &request.level {
            Some(level) => vec![level.parse()?],
            None => {
                let namespace = request.namespace.as_deref();
                let lies_there = |level: &&QuotaLevel| namespace.is_none_or(|of| level.namespace() == Some(of));
                self.state(|state| state.retention.policies.keys().filter(lies_there).cloned().collect())
            }
        };
        let policies = levels.iter().map(|level| self.policy_view(level)).collect::<Result<_>>()?;
        Ok(pb::ListPoliciesReply { policies })
    }

    /// Deletes what no policy keeps any more, and takes what is due.
    pub(super) fn keep_policies(&mut self) {
        let now = now();
        if !self.enforcing && self.state(|state| !state.policy_deletions(now).is_empty()) {
            self.enforcing = true;
            self.commit(Command::EnforcePolicies, Then::Enforced);
        }
        let jobs: Vec<(JobId, Millis)> = self.state(|state| {
            if state.retention.policies.is_empty() {
                return Vec::new();
            }
            let running = state.jobs.values().filter(|job| job.state == JobState::Running);
            let scheduled = running.filter_map(|job| {
                let (record, since) = state.scheduled_since(job)?;
                let next = schedule::next_after(record.policy.schedule.as_ref()?, since);
                let due = next.is_ok_and(|next| next <= now);
                due.then(|| (job.id.clone(), since))
            });
            scheduled.collect()
        });
        self.scheduled.retain(|_, (_, again_at)| *again_at > now);
        for (job, since) in jobs {
            if self.scheduled.get(&job).is_some_and(|(asked, _)| *asked == since) {
                continue;
            }
            // The same for every try, so that a savepoint that is queued or was taken is not taken twice.
            let id = RequestId::new(format!("scheduled-{job}-{}", since.0));
            let Ok(id) = id else { continue };
            self.scheduled.insert(job.clone(), (since, now.plus(ASK_AGAIN_MS)));
            tracing::info!(%job, "a scheduled savepoint is due");
            let request = checkpoint::Request {
                id,
                kind: SnapshotKind::Savepoint,
                trigger: Trigger::Scheduled,
                directory: None,
                timeout_ms: None,
                owner: String::new(),
                annotations: Annotations::default(),
                evict: false,
            };
            self.coordinate(&job, Step::Requested(request));
        }
    }

    pub(super) fn on_enforced(&mut self, reply: Reply) {
        self.enforcing = false;
        match reply {
            Ok(applied) => {
                for entry in applied.retired.iter().filter_map(|snapshot| self.entry(snapshot)) {
                    let Some(deletion) = &entry.deletion else { continue };
                    tracing::info!(
                        snapshot = %entry.id, job = %entry.job, bytes = entry.bytes, by = ?deletion.by,
                        "a retention policy deletes a savepoint"
                    );
                }
                self.after_change(applied);
            }
            Err(error) => tracing::warn!(code = %error.code, %error, "policies could not be enforced"),
        }
    }
}
