//! Whose snapshots are, as it is persisted and as clients see it.

use weir_coordination::metadata::Claim;
use weir_types::ids::JobId;
use weir_types::time::Millis;
use weir_types::{Error, Result};

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
