//! Retention policies in the replicated state: what they delete, and since when a scheduled savepoint is awaited.
//!
//! Invariant: a policy deletes completed savepoints only, and none that is pinned, held, or a job's last good one.

use std::collections::{BTreeMap, VecDeque};

use weir_types::ids::{JobId, SnapshotId};
use weir_types::quota::QuotaLevel;
use weir_types::retention::RetentionPolicy;
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::command::{Applied, Reply};
use super::deletion::{Care, DeletedRecord, Deleter};
use super::{JobRecord, SnapshotEntry, State};

/// Snapshots that one command marks; the next command goes on.
const MARKED_AT_ONCE_MAX: usize = 100;

/// Policies, what they have done, and what was deleted by anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// By level: a job's (`job:NAMESPACE/NAME`) or a namespace's.
    pub policies: BTreeMap<QuotaLevel, PolicyRecord>,
    /// When a scheduled savepoint was last attempted, for each job that had one.
    pub scheduled: BTreeMap<JobId, Millis>,
    /// What was deleted by users and policies, oldest first.
    pub deleted: VecDeque<DeletedRecord>,
}

/// A policy in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// What it says.
    pub policy: RetentionPolicy,
    /// Since when: its schedule counts from then.
    pub set_at: Millis,
    /// Who set it; may be empty.
    pub set_by: String,
}

impl State {
    pub(super) fn set_policy(
        &mut self,
        now: Millis,
        level: QuotaLevel,
        policy: Option<RetentionPolicy>,
        by: String,
    ) -> Reply {
        check_level(&level)?;
        match policy {
            Some(policy) => {
                policy.check()?;
                self.retention.policies.insert(level, PolicyRecord { policy, set_at: now, set_by: by });
            }
            None => {
                if self.retention.policies.remove(&level).is_none() {
                    return Err(Error::not_found(format!("there is no policy for {level}"))
                        .with_hint("`weir policy list` shows all policies."));
                }
            }
        }
        Ok(Applied::default())
    }

    /// The policy that holds for a job's savepoints: its own, or that of its namespace.
    pub fn policy_of(&self, namespace: &str, job_name: &str) -> Option<(&QuotaLevel, &PolicyRecord)> {
        let policies = &self.retention.policies;
        let own = job_level(namespace, job_name);
        policies.get_key_value(&own).or_else(|| policies.get_key_value(&QuotaLevel::Namespace(namespace.to_owned())))
    }

    /// What policies would delete now: savepoints that no rule keeps and nobody needs, oldest first.
    pub fn policy_deletions(&self, now: Millis) -> Vec<(SnapshotId, QuotaLevel)> {
        if self.retention.policies.values().all(|record| !record.policy.deletes()) {
            return Vec::new();
        }
        let mut by_job: BTreeMap<(&str, &str), Vec<&SnapshotEntry>> = BTreeMap::new();
        let completed = |entry: &&SnapshotEntry| {
            entry.kind == SnapshotKind::Savepoint
                && entry.state == SnapshotState::Completed
                && self.claimant(entry).is_none()
        };
        for entry in self.snapshots.values().filter(completed) {
            by_job.entry((&entry.namespace, entry.charged_job_name())).or_default().push(entry);
        }
        let mut due = Vec::new();
        for ((namespace, job_name), mut entries) in by_job {
            let Some((level, record)) = self.policy_of(namespace, job_name) else { continue };
            entries.sort_by_key(|entry| std::cmp::Reverse((entry.ended_at, entry.barrier)));
            for (newer, entry) in entries.into_iter().enumerate() {
                let age_ms = entry.ended_at.map_or(0, |ended_at| now.since(ended_at));
                if !record.policy.keeps(newer, age_ms, &entry.annotations) {
                    due.push((entry, level));
                }
            }
        }
        due.sort_by_key(|(entry, _)| (entry.ended_at, &entry.id));
        let free = due.into_iter().filter(|(entry, _)| self.check_deletable(entry, Care::Automatic).is_ok());
        free.take(MARKED_AT_ONCE_MAX).map(|(entry, level)| (entry.id.clone(), level.clone())).collect()
    }

    /// Marks what policies delete now.
    pub(super) fn enforce_policies(&mut self, now: Millis) -> Reply {
        let mut applied = Applied::default();
        for (snapshot, level) in self.policy_deletions(now) {
            self.mark(now, &snapshot, Deleter::Policy(level));
            applied.retired.push(snapshot);
        }
        Ok(applied)
    }

    /// From when on the next scheduled savepoint of a job is awaited: the last one, or when its policy was set, or when
    /// the job started, whichever is latest. None: nothing is scheduled, or it does not run yet.
    pub fn scheduled_since(&self, job: &JobRecord) -> Option<(&PolicyRecord, Millis)> {
        let (_, record) = self.policy_of(&job.namespace, &job.name)?;
        record.policy.schedule.as_ref()?;
        let last = self.retention.scheduled.get(&job.id).copied().unwrap_or_default();
        Some((record, last.max(record.set_at).max(job.started_at?)))
    }
}

/// The level of a job: a restarted or resubmitted job of the same name stays the same.
fn job_level(namespace: &str, job_name: &str) -> QuotaLevel {
    QuotaLevel::Job { namespace: namespace.to_owned(), name: job_name.to_owned() }
}

/// Savepoints belong to jobs: no other level has a policy.
fn check_level(level: &QuotaLevel) -> Result<()> {
    match level {
        QuotaLevel::Job { .. } | QuotaLevel::Namespace(_) => Ok(()),
        QuotaLevel::Cluster | QuotaLevel::Owner(_) => Err(Error::invalid(format!("there are no policies for {level}"))
            .with_hint("Set one for `namespace:NAME` or for `job:NAMESPACE/NAME`.")),
    }
}

#[cfg(test)]
mod tests {
    use weir_types::Code;
    use weir_types::annotations::AnnotationChange;
    use weir_types::job::JobChange;
    use weir_types::retention::Schedule;

    use super::super::fixture::{change, delete, job, reserve, run, savepoint, take};
    use super::super::{Command, State};
    use super::*;
    use crate::checkpoint::Trigger;

    fn set(state: &mut State, at: u64, level: &str, policy: Option<RetentionPolicy>) -> Reply {
        let by = "ann".to_owned();
        state.apply(Millis(at), Command::SetPolicy { level: level.parse().unwrap(), request: None, policy, by })
    }

    fn keep_last(last: u32) -> Option<RetentionPolicy> {
        Some(RetentionPolicy { keep_last: Some(last), ..RetentionPolicy::default() })
    }

    fn enforce(state: &mut State, at: u64) -> Vec<SnapshotId> {
        state.apply(Millis(at), Command::EnforcePolicies).unwrap().retired
    }

    #[test]
    fn a_policy_deletes_what_it_does_not_keep_and_says_so() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        run(&mut state, 2, "other", None);
        for number in 1..=4 {
            take(&mut state, number, 1, number);
            take(&mut state, number, 2, number);
        }
        assert_eq!(enforce(&mut state, 9), [], "there is no policy");
        set(&mut state, 9, "job:default/clicks", keep_last(2)).unwrap();
        assert_eq!(enforce(&mut state, 9), [savepoint(1, 1), savepoint(1, 2)]);
        let entry = &state.snapshots[&savepoint(1, 1)];
        let by = Deleter::Policy("job:default/clicks".parse().unwrap());
        assert_eq!(entry.deletion.as_ref().map(|deletion| &deletion.by), Some(&by));
        assert_eq!(enforce(&mut state, 9), [], "once");
    }

    #[test]
    fn a_jobs_own_policy_takes_the_place_of_its_namespaces() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        run(&mut state, 2, "other", None);
        for number in 1..=3 {
            take(&mut state, number, 1, number);
            take(&mut state, number, 2, number);
        }
        set(&mut state, 9, "namespace:default", keep_last(1)).unwrap();
        set(&mut state, 9, "job:default/clicks", keep_last(3)).unwrap();
        assert_eq!(enforce(&mut state, 9), [savepoint(2, 1), savepoint(2, 2)]);
        set(&mut state, 9, "job:default/clicks", None).unwrap();
        assert_eq!(enforce(&mut state, 9), [savepoint(1, 1), savepoint(1, 2)]);
        assert_eq!(set(&mut state, 9, "job:default/clicks", None).unwrap_err().code, Code::NotFound);
        assert_eq!(set(&mut state, 9, "owner:ada", keep_last(1)).unwrap_err().code, Code::InvalidArgument);
        assert_eq!(set(&mut state, 9, "namespace:default", keep_last(0)).unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn what_is_pinned_labelled_held_or_the_last_good_one_stays() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        for number in 1..=5 {
            take(&mut state, number, 1, number);
        }
        let annotate = |state: &mut State, number, change| {
            let command = Command::Annotate { snapshot: savepoint(1, number), request: None, change };
            state.apply(Millis(5), command).unwrap();
        };
        let labels = [("release".to_owned(), "1".to_owned())];
        annotate(&mut state, 1, AnnotationChange { pinned: Some(true), ..AnnotationChange::default() });
        annotate(&mut state, 2, AnnotationChange { set_labels: labels.clone().into(), ..AnnotationChange::default() });
        change(&mut state, 6, 1, JobChange::Finish);
        run(&mut state, 2, "clicks", Some(savepoint(1, 3)));
        let policy =
            RetentionPolicy { keep_for_ms: Some(100), keep_labels: labels.into(), ..RetentionPolicy::default() };
        set(&mut state, 9, "namespace:default", Some(policy)).unwrap();
        assert_eq!(enforce(&mut state, 103), [], "all of them are young");
        // 3 is restored from, 5 is the last one.
        assert_eq!(enforce(&mut state, 500), [savepoint(1, 4)]);
        // A resubmitted job goes on where the earlier one stopped.
        take(&mut state, 600, 2, 1);
        assert_eq!(enforce(&mut state, 601), [savepoint(1, 3), savepoint(1, 5)]);
        assert!(
            delete(&mut state, 602, &savepoint(1, 2), false).is_err(),
            "a user is told that it is the last of its run"
        );
        assert_eq!(delete(&mut state, 603, &savepoint(1, 2), true), Ok(()));
    }

    #[test]
    fn a_schedule_counts_from_its_last_attempt_whatever_became_of_it() {
        let mut state = State::default();
        run(&mut state, 1, "clicks", None);
        let since = |state: &State| state.scheduled_since(&state.jobs[&job(1)]).map(|(_, since)| since);
        assert_eq!(since(&state), None);
        set(&mut state, 9, "namespace:default", keep_last(1)).unwrap();
        assert_eq!(since(&state), None, "it schedules nothing");
        let policy = RetentionPolicy { schedule: Some(Schedule::EveryMs(60_000)), ..RetentionPolicy::default() };
        set(&mut state, 10, "namespace:default", Some(policy)).unwrap();
        assert_eq!(since(&state), Some(Millis(10)));
        reserve(&mut state, 70_000, 1, 1, Trigger::User);
        assert_eq!(since(&state), Some(Millis(10)), "somebody else's savepoint");
        reserve(&mut state, 70_010, 1, 2, Trigger::Scheduled);
        assert_eq!(since(&state), Some(Millis(70_010)));
        change(&mut state, 80_000, 1, JobChange::Finish);
        assert_eq!(state.retention.scheduled.len(), 0);
    }
}
