//! The catalogue's care: annotations, deletions, retention policies, as they are persisted and as clients see them.

use weir_coordination::metadata::{DeletedRecord, Deleter, Deletion, PolicyRecord, Retention, SnapshotEntry};
use weir_types::annotations::AnnotationChange;
use weir_types::ids::{JobId, RequestId, SnapshotId};
use weir_types::quota::QuotaLevel;
use weir_types::retention::{RetentionPolicy, Schedule};
use weir_types::snapshot::SnapshotKind;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::metadata::{optional, request_from_pb};
use super::{all, required};
use crate::pb::client::v1 as client;
use crate::pb::metadata::v1 as pb;

pub(super) fn annotate_to_pb(
    snapshot: &SnapshotId,
    request: Option<&RequestId>,
    change: &AnnotationChange,
) -> pb::Annotate {
    let AnnotationChange { name, note, set_labels, remove_labels, pinned } = change.clone();
    pb::Annotate {
        request: optional(request),
        snapshot: snapshot.to_string(),
        name,
        note,
        set_labels,
        remove_labels: remove_labels.into_iter().collect(),
        pinned,
    }
}

pub(super) fn annotate_from_pb(annotate: pb::Annotate) -> Result<(SnapshotId, Option<RequestId>, AnnotationChange)> {
    let pb::Annotate { request, snapshot, name, note, set_labels, remove_labels, pinned } = annotate;
    let remove_labels = remove_labels.into_iter().collect();
    let change = AnnotationChange { name, note, set_labels, remove_labels, pinned };
    Ok((SnapshotId::new(snapshot)?, request_from_pb(request)?, change))
}

/// What a client wants changed.
impl From<client::AnnotateSnapshotRequest> for AnnotationChange {
    fn from(request: client::AnnotateSnapshotRequest) -> Self {
        let client::AnnotateSnapshotRequest {
            request_id: _,
            snapshot: _,
            namespace: _,
            name,
            note,
            set_labels,
            remove_labels,
            pinned,
        } = request;
        Self { name, note, set_labels, remove_labels: remove_labels.into_iter().collect(), pinned }
    }
}

impl From<&Deleter> for pb::Deleter {
    fn from(by: &Deleter) -> Self {
        use pb::deleter::By;
        Self {
            by: Some(match by {
                Deleter::User(name) => By::User(name.clone()),
                Deleter::Policy(level) => By::Policy(level.to_string()),
                Deleter::Eviction(savepoint) => By::Eviction(savepoint.to_string()),
                Deleter::System => By::System(true),
            }),
        }
    }
}

impl TryFrom<pb::Deleter> for Deleter {
    type Error = Error;

    fn try_from(deleter: pb::Deleter) -> Result<Self> {
        use pb::deleter::By;
        Ok(match deleter.by {
            // Logs from before deletions named anybody.
            None => Deleter::User(String::new()),
            Some(By::User(name)) => Deleter::User(name),
            Some(By::Policy(level)) => Deleter::Policy(level.parse()?),
            Some(By::Eviction(savepoint)) => Deleter::Eviction(SnapshotId::new(savepoint)?),
            Some(By::System(_)) => Deleter::System,
        })
    }
}

impl From<&Deletion> for pb::Deletion {
    fn from(deletion: &Deletion) -> Self {
        Self { at_ms: deletion.at.0, by: Some((&deletion.by).into()) }
    }
}

impl TryFrom<pb::Deletion> for Deletion {
    type Error = Error;

    fn try_from(deletion: pb::Deletion) -> Result<Self> {
        Ok(Self { at: Millis(deletion.at_ms), by: deletion.by.unwrap_or_default().try_into()? })
    }
}

impl From<&Deletion> for client::Deletion {
    fn from(deletion: &Deletion) -> Self {
        let (by, who) = match &deletion.by {
            Deleter::User(name) => ("user", name.clone()),
            Deleter::Policy(level) => ("policy", level.to_string()),
            Deleter::Eviction(savepoint) => ("eviction", savepoint.to_string()),
            Deleter::System => ("system", String::new()),
        };
        Self { at_ms: deletion.at.0, by: by.to_owned(), who }
    }
}

impl From<&DeletedRecord> for pb::DeletedSnapshot {
    fn from(record: &DeletedRecord) -> Self {
        let DeletedRecord {
            snapshot,
            kind,
            job,
            job_name,
            owner,
            namespace,
            name,
            directory,
            bytes,
            triggered_at,
            deletion,
            removed_at,
        } = record;
        Self {
            snapshot: snapshot.to_string(),
            savepoint: *kind == SnapshotKind::Savepoint,
            job: job.to_string(),
            job_name: job_name.clone(),
            owner: owner.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            directory: directory.clone(),
            bytes: *bytes,
            triggered_at_ms: triggered_at.0,
            deletion: Some(deletion.into()),
            removed_at_ms: removed_at.0,
        }
    }
}

impl TryFrom<pb::DeletedSnapshot> for DeletedRecord {
    type Error = Error;

    fn try_from(record: pb::DeletedSnapshot) -> Result<Self> {
        let pb::DeletedSnapshot {
            snapshot,
            savepoint,
            job,
            job_name,
            owner,
            namespace,
            name,
            directory,
            bytes,
            triggered_at_ms,
            deletion,
            removed_at_ms,
        } = record;
        Ok(Self {
            snapshot: SnapshotId::new(snapshot)?,
            kind: if savepoint { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint },
            job: JobId::new(job)?,
            job_name,
            owner,
            namespace,
            name,
            directory,
            bytes,
            triggered_at: Millis(triggered_at_ms),
            deletion: required("deletion", deletion)?.try_into()?,
            removed_at: Millis(removed_at_ms),
        })
    }
}

impl From<&DeletedRecord> for client::DeletedSnapshot {
    fn from(record: &DeletedRecord) -> Self {
        Self {
            id: record.snapshot.to_string(),
            savepoint: record.kind == SnapshotKind::Savepoint,
            job: record.job.to_string(),
            job_name: record.job_name.clone(),
            owner: record.owner.clone(),
            namespace: record.namespace.clone(),
            name: record.name.clone().unwrap_or_default(),
            directory: record.directory.clone(),
            bytes: record.bytes,
            triggered_at_ms: record.triggered_at.0,
            deletion: Some((&record.deletion).into()),
            removed_at_ms: record.removed_at.0,
        }
    }
}

/// An entry whose files are going.
impl From<&SnapshotEntry> for client::DeletedSnapshot {
    fn from(entry: &SnapshotEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            savepoint: entry.kind == SnapshotKind::Savepoint,
            job: entry.job.to_string(),
            job_name: entry.job_name.clone(),
            owner: entry.owner.clone(),
            namespace: entry.namespace.clone(),
            name: entry.annotations.name.clone().unwrap_or_default(),
            directory: entry.directory.clone(),
            bytes: entry.bytes,
            triggered_at_ms: entry.triggered_at.0,
            deletion: entry.deletion.as_ref().map(Into::into),
            removed_at_ms: 0,
        }
    }
}

impl From<&RetentionPolicy> for pb::RetentionPolicy {
    fn from(policy: &RetentionPolicy) -> Self {
        use pb::retention_policy::Schedule as Wire;
        let RetentionPolicy { keep_last, keep_for_ms, keep_labels, schedule } = policy.clone();
        let schedule = schedule.map(|schedule| match schedule {
            Schedule::EveryMs(ms) => Wire::EveryMs(ms),
            Schedule::Cron(expression) => Wire::Cron(expression),
        });
        Self { keep_last, keep_for_ms, keep_labels, schedule }
    }
}

impl From<pb::RetentionPolicy> for RetentionPolicy {
    fn from(policy: pb::RetentionPolicy) -> Self {
        use pb::retention_policy::Schedule as Wire;
        let pb::RetentionPolicy { keep_last, keep_for_ms, keep_labels, schedule } = policy;
        let schedule = schedule.map(|schedule| match schedule {
            Wire::EveryMs(ms) => Schedule::EveryMs(ms),
            Wire::Cron(expression) => Schedule::Cron(expression),
        });
        Self { keep_last, keep_for_ms, keep_labels, schedule }
    }
}

/// What a client wants for a level.
impl TryFrom<client::SetPolicyRequest> for RetentionPolicy {
    type Error = Error;

    fn try_from(request: client::SetPolicyRequest) -> Result<Self> {
        let client::SetPolicyRequest {
            request_id: _,
            level: _,
            keep_last,
            keep_for_ms,
            keep_labels,
            every_ms,
            cron,
            owner: _,
        } = request;
        let schedule = match (every_ms, cron) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("savepoints are taken either at an interval or by a cron expression"));
            }
            (Some(ms), None) => Some(Schedule::EveryMs(ms)),
            (None, Some(expression)) => Some(Schedule::Cron(expression)),
            (None, None) => None,
        };
        Ok(Self { keep_last, keep_for_ms, keep_labels, schedule })
    }
}

/// A policy for clients. When its savepoints are due, its caller fills in.
pub fn policy_to_client(level: &QuotaLevel, record: &PolicyRecord) -> client::Policy {
    let PolicyRecord { policy, set_at, set_by } = record.clone();
    let RetentionPolicy { keep_last, keep_for_ms, keep_labels, schedule } = policy;
    let (every_ms, cron) = match schedule {
        None => (None, None),
        Some(Schedule::EveryMs(ms)) => (Some(ms), None),
        Some(Schedule::Cron(expression)) => (None, Some(expression)),
    };
    client::Policy {
        level: level.to_string(),
        keep_last,
        keep_for_ms,
        keep_labels,
        every_ms,
        cron,
        set_at_ms: set_at.0,
        set_by,
        scheduled: Vec::new(),
    }
}

impl From<&Retention> for pb::Retention {
    fn from(retention: &Retention) -> Self {
        let Retention { policies, scheduled, deleted } = retention;
        let policy = |(level, record): (&QuotaLevel, &PolicyRecord)| pb::Policy {
            level: level.to_string(),
            policy: Some((&record.policy).into()),
            set_at_ms: record.set_at.0,
            set_by: record.set_by.clone(),
        };
        Self {
            policies: policies.iter().map(policy).collect(),
            scheduled: scheduled.iter().map(|(job, at)| (job.to_string(), at.0)).collect(),
            deleted: deleted.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Retention> for Retention {
    type Error = Error;

    fn try_from(retention: pb::Retention) -> Result<Self> {
        let pb::Retention { policies, scheduled, deleted } = retention;
        let policy = |policy: pb::Policy| -> Result<_> {
            let pb::Policy { level, policy, set_at_ms, set_by } = policy;
            let policy = required("policy", policy)?.into();
            Ok((level.parse()?, PolicyRecord { policy, set_at: Millis(set_at_ms), set_by }))
        };
        let scheduled = scheduled.into_iter().map(|(job, at_ms)| Ok((JobId::new(job)?, Millis(at_ms))));
        Ok(Self {
            policies: policies.into_iter().map(policy).collect::<Result<_>>()?,
            scheduled: scheduled.collect::<Result<_>>()?,
            deleted: all(deleted)?.into(),
        })
    }
}
