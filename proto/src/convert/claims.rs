//! Whose snapshots are and where they come from, as it is persisted and as clients see it.

use weir_coordination::checkpoint::Trigger;
use weir_coordination::metadata::{Claim, Import, Origin, Reserve};
use weir_types::ids::{Attempt, ClusterId, JobId, Parallelism, SnapshotId};
use weir_types::snapshot::SnapshotKind;
use weir_types::time::Millis;
use weir_types::{Error, Result};

use super::required;
use crate::pb::client::v1 as client;
use crate::pb::metadata::v1 as pb;

impl From<&Claim> for pb::Claim {
    fn from(claim: &Claim) -> Self {
        let Claim { job, job_name, at } = claim;
        Self { job: job.to_string(), job_name: job_name.clone(), at_ms: at.0 }
    }
}

impl TryFrom<pb::Claim> for Claim {
    type Error = Error;

    fn try_from(claim: pb::Claim) -> Result<Self> {
        let pb::Claim { job, job_name, at_ms } = claim;
        Ok(Self { job: JobId::new(job)?, job_name, at: Millis(at_ms) })
    }
}

impl From<&Claim> for client::SnapshotClaim {
    fn from(claim: &Claim) -> Self {
        let Claim { job, job_name, at } = claim;
        Self { job: job.to_string(), job_name: job_name.clone(), at_ms: at.0 }
    }
}

impl From<&Origin> for pb::Origin {
    fn from(origin: &Origin) -> Self {
        let Origin { cluster, snapshot, job, taken_at, directory } = origin;
        Self {
            cluster: cluster.to_string(),
            snapshot: snapshot.to_string(),
            job: job.to_string(),
            taken_at_ms: taken_at.0,
            directory: directory.clone(),
        }
    }
}

impl TryFrom<pb::Origin> for Origin {
    type Error = Error;

    fn try_from(origin: pb::Origin) -> Result<Self> {
        let pb::Origin { cluster, snapshot, job, taken_at_ms, directory } = origin;
        Ok(Self {
            cluster: ClusterId::new(cluster)?,
            snapshot: SnapshotId::new(snapshot)?,
            job: JobId::new(job)?,
            taken_at: Millis(taken_at_ms),
            directory,
        })
    }
}

impl From<&Origin> for client::SnapshotOrigin {
    fn from(origin: &Origin) -> Self {
        let pb::Origin { cluster, snapshot, job, taken_at_ms, directory } = origin.into();
        Self { cluster, snapshot, job, taken_at_ms, directory }
    }
}

impl From<&Import> for pb::Import {
    fn from(import: &Import) -> Self {
        let Import {
            request,
            snapshot,
            job,
            job_name,
            owner,
            namespace,
            annotations,
            barrier,
            nonce,
            directory,
            deadline,
            parallelism,
            plan_hash,
            bytes,
            origin,
        } = import.clone();
        let reservation = Reserve {
            request,
            snapshot,
            job,
            kind: SnapshotKind::Savepoint,
            trigger: Trigger::Import,
            barrier,
            attempt: Attempt(0),
            nonce,
            directory,
            deadline,
            owner,
            annotations,
            plan_hash,
            subtasks: 0,
            evict: false,
            estimate_bytes: bytes,
        };
        Self {
            reservation: Some((&reservation).into()),
            namespace,
            job_name,
            parallelism: parallelism.get(),
            origin: Some((&origin).into()),
        }
    }
}

impl TryFrom<pb::Import> for Import {
    type Error = Error;

    fn try_from(import: pb::Import) -> Result<Self> {
        let pb::Import { reservation, namespace, job_name, parallelism, origin } = import;
        let Reserve {
            request,
            snapshot,
            job,
            kind: _,
            trigger: _,
            barrier,
            attempt: _,
            nonce,
            directory,
            deadline,
            owner,
            annotations,
            plan_hash,
            subtasks: _,
            evict: _,
            estimate_bytes,
        } = required("reservation", reservation)?.try_into()?;
        Ok(Self {
            request,
            snapshot,
            job,
            job_name,
            owner,
            namespace,
            annotations,
            barrier,
            nonce,
            directory,
            deadline,
            parallelism: Parallelism::new(parallelism)?,
            plan_hash,
            bytes: estimate_bytes,
            origin: required("origin", origin)?.try_into()?,
        })
    }
}
