//! Grants: what the writers of a snapshot ask for, and what they are given.

use weir_types::control::{Grant, GrantRequest, WritersStopped};
use weir_types::ids::{Attempt, JobId, SnapshotId, Term};
use weir_types::{Error, Result};

use super::required;
use crate::pb::control::v1 as pb;

impl From<&GrantRequest> for pb::GrantRequest {
    fn from(request: &GrantRequest) -> Self {
        let GrantRequest { subtask, snapshot, bytes, needed } = request;
        Self { subtask: Some(subtask.into()), snapshot: snapshot.to_string(), bytes: *bytes, needed: *needed }
    }
}

impl TryFrom<pb::GrantRequest> for GrantRequest {
    type Error = Error;

    fn try_from(request: pb::GrantRequest) -> Result<Self> {
        let pb::GrantRequest { subtask, snapshot, bytes, needed } = request;
        let subtask = required("subtask", subtask)?.try_into()?;
        Ok(Self { subtask, snapshot: SnapshotId::new(snapshot)?, bytes: bytes.max(needed), needed })
    }
}

impl From<&Grant> for pb::Grant {
    fn from(grant: &Grant) -> Self {
        let Grant { term, subtask, snapshot, bytes } = grant;
        Self { term: term.0, subtask: Some(subtask.into()), snapshot: snapshot.to_string(), bytes: *bytes }
    }
}

impl TryFrom<pb::Grant> for Grant {
    type Error = Error;

    fn try_from(grant: pb::Grant) -> Result<Self> {
        let pb::Grant { term, subtask, snapshot, bytes } = grant;
        let subtask = required("subtask", subtask)?.try_into()?;
        Ok(Self { term: Term(term), subtask, snapshot: SnapshotId::new(snapshot)?, bytes })
    }
}

impl From<&WritersStopped> for pb::WritersStopped {
    fn from(stopped: &WritersStopped) -> Self {
        let WritersStopped { job, attempt, snapshot } = stopped;
        Self { job: job.to_string(), attempt: attempt.0, snapshot: snapshot.to_string() }
    }
}

impl TryFrom<pb::WritersStopped> for WritersStopped {
    type Error = Error;

    fn try_from(stopped: pb::WritersStopped) -> Result<Self> {
        let pb::WritersStopped { job, attempt, snapshot } = stopped;
        Ok(Self { job: JobId::new(job)?, attempt: Attempt(attempt), snapshot: SnapshotId::new(snapshot)? })
    }
}

#[cfg(test)]
mod tests {
    use weir_types::ids::{ChainId, SubtaskId, SubtaskIndex};

    use super::*;

    #[test]
    fn grants_survive_the_wire_and_one_without_its_subtask_is_refused() {
        let (job, attempt, snapshot) = (JobId::new("j").unwrap(), Attempt(2), SnapshotId::new("sp-1").unwrap());
        let subtask = SubtaskId { job: job.clone(), chain: ChainId(3), index: SubtaskIndex(1), attempt };
        let request = GrantRequest { subtask: subtask.clone(), snapshot: snapshot.clone(), bytes: u64::MAX, needed: 3 };
        assert_eq!(GrantRequest::try_from(pb::GrantRequest::from(&request)).unwrap(), request);
        let nobody = pb::GrantRequest { subtask: None, ..pb::GrantRequest::from(&request) };
        assert!(GrantRequest::try_from(nobody).is_err());
        let grant = Grant { term: Term(1), subtask, snapshot: snapshot.clone(), bytes: 5 };
        assert_eq!(Grant::try_from(pb::Grant::from(&grant)).unwrap(), grant);
        let stopped = WritersStopped { job, attempt, snapshot };
        assert_eq!(WritersStopped::try_from(pb::WritersStopped::from(&stopped)).unwrap(), stopped);
    }
}
