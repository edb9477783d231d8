//! Quotas and shared files as they are persisted.

use std::collections::BTreeMap;

use weir_coordination::metadata::{Account, Quotas, SharedFiles, SharedRecord};
use weir_types::Result;
use weir_types::ids::{JobId, SnapshotId};
use weir_types::quota::{QuotaDefaults, QuotaLevel, QuotaLimits};
use weir_types::snapshot::SharedFile;

use crate::pb::metadata::v1 as pb;

impl From<&QuotaLimits> for pb::QuotaLimits {
    fn from(limits: &QuotaLimits) -> Self {
        let QuotaLimits { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms } = *limits;
        Self { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms }
    }
}

impl From<pb::QuotaLimits> for QuotaLimits {
    fn from(limits: pb::QuotaLimits) -> Self {
        let pb::QuotaLimits { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms } =
            limits;
        Self { savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms }
    }
}

impl From<&QuotaDefaults> for pb::QuotaDefaults {
    fn from(defaults: &QuotaDefaults) -> Self {
        let QuotaDefaults { cluster, namespace, owner, job } = defaults;
        Self {
            cluster: Some(cluster.into()),
            namespace: Some(namespace.into()),
            owner: Some(owner.into()),
            job: Some(job.into()),
        }
    }
}

impl From<pb::QuotaDefaults> for QuotaDefaults {
    fn from(defaults: pb::QuotaDefaults) -> Self {
        let pb::QuotaDefaults { cluster, namespace, owner, job } = defaults;
        let limits = |limits: Option<pb::QuotaLimits>| limits.map(Into::into).unwrap_or_default();
        Self { cluster: limits(cluster), namespace: limits(namespace), owner: limits(owner), job: limits(job) }
    }
}

/// The defaults, or what a build without quota levels had for them: limits of the cluster.
pub(super) fn quota_defaults(defaults: Option<pb::QuotaDefaults>, older: Option<pb::Limits>) -> QuotaDefaults {
    if let Some(defaults) = defaults {
        return defaults.into();
    }
    let pb::Limits { savepoints_max, in_flight_max } = older.unwrap_or_default();
    let cluster = QuotaLimits { savepoints: savepoints_max, in_flight: in_flight_max, ..QuotaLimits::default() };
    QuotaDefaults { cluster, ..QuotaDefaults::default() }
}

/// The limits that were set, level by level.
pub(super) fn quotas_to_pb(quotas: &Quotas) -> Vec<pb::SetQuota> {
    let set = |(level, limits): (&QuotaLevel, &QuotaLimits)| pb::SetQuota {
        request: String::new(),
        level: level.to_string(),
        limits: Some(limits.into()),
    };
    quotas.set.iter().map(set).collect()
}

pub(super) fn quotas_from_pb(set: Vec<pb::SetQuota>) -> Result<BTreeMap<QuotaLevel, QuotaLimits>> {
    set.into_iter()
        .map(|pb::SetQuota { request: _, level, limits }| {
            Ok((level.parse()?, limits.map(Into::into).unwrap_or_default()))
        })
        .collect()
}

impl From<&SharedFile> for pb::SharedFile {
    fn from(file: &SharedFile) -> Self {
        let SharedFile { name, bytes } = file;
        Self { name: name.clone(), bytes: *bytes }
    }
}

impl From<pb::SharedFile> for SharedFile {
    fn from(file: pb::SharedFile) -> Self {
        let pb::SharedFile { name, bytes } = file;
        Self { name, bytes }
    }
}

pub(super) fn shared_to_pb(shared: &SharedFiles) -> Vec<pb::SharedFiles> {
    let mut jobs: Vec<pb::SharedFiles> = Vec::new();
    for (job, name, SharedRecord { bytes, referrers, owed_by }) in shared.iter() {
        if jobs.last().is_none_or(|last| last.job != job.as_str()) {
            jobs.push(pb::SharedFiles { job: job.to_string(), files: Vec::new() });
        }
        if let Some(last) = jobs.last_mut() {
            let referrers = referrers.iter().map(ToString::to_string).collect();
            let owed_by = owed_by.as_ref().map(|Account { owner, namespace, job_name }| pb::Account {
                owner: owner.clone(),
                namespace: namespace.clone(),
                job_name: job_name.clone(),
            });
            last.files.push(pb::SharedRecord { name: name.to_owned(), bytes: *bytes, referrers, owed_by });
        }
    }
    jobs
}

pub(super) fn shared_from_pb(jobs: Vec<pb::SharedFiles>) -> Result<SharedFiles> {
    let mut shared = SharedFiles::default();
    for pb::SharedFiles { job, files } in jobs {
        let job = JobId::new(job)?;
        for pb::SharedRecord { name, bytes, referrers, owed_by } in files {
            let referrers = referrers.into_iter().map(SnapshotId::new).collect::<Result<_>>()?;
            let owed_by =
                owed_by.map(|pb::Account { owner, namespace, job_name }| Account { owner, namespace, job_name });
            shared.insert(job.clone(), name, SharedRecord { bytes, referrers, owed_by });
        }
    }
    Ok(shared)
}
