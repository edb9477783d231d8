//! Deployments, and with them everything that the JobManager says to a TaskManager.

use weir_types::control::ToTaskManager;
use weir_types::deployment::{Deployment, Placement, Restore, SplitAssignment};
use weir_types::ids::{Attempt, ChainId, JobId, SubtaskIndex, TaskManagerId, Term};
use weir_types::{Error, Result};

use super::{all, required};
use crate::pb::control::v1 as pb;

impl From<&Placement> for pb::Placement {
    fn from(placement: &Placement) -> Self {
        let Placement { chain, index, task_manager, slot, data_address } = placement;
        Self {
            chain: chain.0,
            index: index.0,
            task_manager_id: task_manager.to_string(),
            slot: *slot,
            data_address: data_address.clone(),
        }
    }
}

impl TryFrom<pb::Placement> for Placement {
    type Error = Error;

    fn try_from(placement: pb::Placement) -> Result<Self> {
        let pb::Placement { chain, index, task_manager_id, slot, data_address } = placement;
        Ok(Self {
            chain: ChainId(chain),
            index: SubtaskIndex(index),
            task_manager: TaskManagerId::new(task_manager_id)?,
            slot,
            data_address,
        })
    }
}

impl From<&SplitAssignment> for pb::SplitAssignment {
    fn from(assignment: &SplitAssignment) -> Self {
        let SplitAssignment { uid, index, position } = assignment;
        Self { uid: uid.clone(), index: index.0, position: Some(position.into()) }
    }
}

impl TryFrom<pb::SplitAssignment> for SplitAssignment {
    type Error = Error;

    fn try_from(assignment: pb::SplitAssignment) -> Result<Self> {
        let pb::SplitAssignment { uid, index, position } = assignment;
        Ok(Self { uid, index: SubtaskIndex(index), position: required("split position", position)?.into() })
    }
}

impl From<&Restore> for pb::Restore {
    fn from(restore: &Restore) -> Self {
        let Restore { directory, operators } = restore;
        Self { directory: directory.clone(), operators: operators.iter().map(Into::into).collect() }
    }
}

impl TryFrom<pb::Restore> for Restore {
    type Error = Error;

    fn try_from(restore: pb::Restore) -> Result<Self> {
        let pb::Restore { directory, operators } = restore;
        Ok(Self { directory, operators: all(operators)? })
    }
}

impl From<&Deployment> for pb::Deployment {
    fn from(deployment: &Deployment) -> Self {
        let Deployment { term, job, attempt, graph, placements, splits, restore, checkpoint_root, store_address } =
            deployment;
        Self {
            term: term.0,
            job: job.to_string(),
            attempt: attempt.0,
            graph: Some(graph.into()),
            placements: placements.iter().map(Into::into).collect(),
            splits: splits.iter().map(Into::into).collect(),
            restore: restore.as_ref().map(Into::into),
            checkpoint_root: checkpoint_root.clone(),
            store_address: store_address.clone(),
        }
    }
}

impl TryFrom<pb::Deployment> for Deployment {
    type Error = Error;

    fn try_from(deployment: pb::Deployment) -> Result<Self> {
        let pb::Deployment { term, job, attempt, graph, placements, splits, restore, checkpoint_root, store_address } =
            deployment;
        Ok(Self {
            term: Term(term),
            job: JobId::new(job)?,
            attempt: Attempt(attempt),
            graph: required("job graph", graph)?.try_into()?,
            placements: all(placements)?,
            splits: all(splits)?,
            restore: restore.map(TryInto::try_into).transpose()?,
            checkpoint_root,
            store_address,
        })
    }
}

impl From<&ToTaskManager> for pb::JobManagerMessage {
    fn from(message: &ToTaskManager) -> Self {
        use pb::job_manager_message::Message;
        let message = match message {
            ToTaskManager::Registered(registered) => Message::Registered(registered.into()),
            ToTaskManager::Deploy(deployment) => Message::Deploy(deployment.as_ref().into()),
            ToTaskManager::Cancel(cancel) => Message::Cancel(cancel.into()),
            ToTaskManager::Trigger(trigger) => Message::Trigger(trigger.into()),
            ToTaskManager::Finish(finish) => Message::Finish(finish.into()),
            ToTaskManager::SnapshotOutcome(outcome) => Message::SnapshotOutcome(outcome.into()),
            ToTaskManager::Grant(grant) => Message::Grant(grant.into()),
            ToTaskManager::Heartbeat(term) => Message::Heartbeat(pb::Heartbeat { term: term.0, progress: Vec::new() }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::JobManagerMessage> for ToTaskManager {
    type Error = Error;

    fn try_from(message: pb::JobManagerMessage) -> Result<Self> {
        use pb::job_manager_message::Message;
        Ok(match required("message", message.message)? {
            Message::Registered(registered) => Self::Registered(registered.try_into()?),
            Message::Deploy(deployment) => Self::Deploy(Box::new(deployment.try_into()?)),
            Message::Cancel(cancel) => Self::Cancel(cancel.try_into()?),
            Message::Trigger(trigger) => Self::Trigger(trigger.try_into()?),
            Message::Finish(finish) => Self::Finish(finish.try_into()?),
            Message::SnapshotOutcome(outcome) => Self::SnapshotOutcome(outcome.try_into()?),
            Message::Grant(grant) => Self::Grant(grant.try_into()?),
            Message::Heartbeat(pb::Heartbeat { term, progress: _ }) => Self::Heartbeat(Term(term)),
        })
    }
}

#[cfg(test)]
mod tests {
    use weir_types::graph::{JobGraph, JobOptions};
    use weir_types::snapshot::{OperatorSnapshot, SplitPosition};

    use super::*;

    #[test]
    fn a_deployment_survives_the_wire() {
        let position = SplitPosition { split: "p-1".into(), offset: 3, end: Some(9), watermark_ms: 4, finished: false };
        let operator =
            OperatorSnapshot { uid: "u".into(), watermark_ms: 5, files: vec![], splits: vec![], prepared: None };
        let deployment = Deployment {
            term: Term(3),
            job: JobId::new("j").unwrap(),
            attempt: Attempt(2),
            graph: JobGraph {
                name: "n".into(),
                options: JobOptions::default(),
                operators: vec![],
                edges: vec![],
                expression_version: "datafusion-proto 55".into(),
            },
            placements: vec![Placement {
                chain: ChainId(1),
                index: SubtaskIndex(0),
                task_manager: TaskManagerId::new("tm").unwrap(),
                slot: 1,
                data_address: "h:1".into(),
            }],
            splits: vec![SplitAssignment { uid: "u".into(), index: SubtaskIndex(0), position }],
            restore: Some(Restore { directory: "d".into(), operators: vec![operator] }),
            checkpoint_root: "r".into(),
            store_address: "s:1".into(),
        };
        let message = ToTaskManager::Deploy(Box::new(deployment));
        assert_eq!(ToTaskManager::try_from(pb::JobManagerMessage::from(&message)).unwrap(), message);
    }
}
