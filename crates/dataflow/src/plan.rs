//! What a TaskManager makes of a deployment: one plan per subtask, with both ends of every channel named.
//!
//! Invariant: a channel appears as an output of exactly one subtask and as an input of exactly one, under the same
//! [`ChannelId`]; the inputs of a subtask are in order of edge and sending subtask, the outputs in order of edge and
//! receiving subtask.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_types::deployment::{ChannelId, Deployment, Placement, Restore};
use weir_types::graph::{Chain, Edge, Exchange, JobGraph};
use weir_types::ids::{ChainId, OperatorUid, SubtaskId, SubtaskIndex, TaskManagerId};
use weir_types::key_range::KeyRange;
use weir_types::snapshot::SplitPosition;
use weir_types::{Error, Result};

/// Where the other end of a channel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// In this process.
    Local,
    /// On another TaskManager.
    Remote {
        /// Which.
        task_manager: TaskManagerId,
        /// Its `host:port` for exchanges.
        data_address: String,
    },
}

/// One end of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The channel.
    pub channel: ChannelId,
    /// The subtask at the other end.
    pub subtask: SubtaskId,
    /// Where that is.
    pub peer: Peer,
}

/// One subtask to run.
#[derive(Clone, Debug, PartialEq)]
pub struct SubtaskPlan {
    /// Which.
    pub id: SubtaskId,
    /// The slot that it shares with one subtask of every other chain.
    pub slot: u32,
    /// The job graph.
    pub graph: Arc<JobGraph>,
    /// Its operator chain.
    pub chain: Chain,
    /// The key hashes that it owns.
    pub key_range: KeyRange,
    /// Splits of its source operator, if it has one.
    pub splits: Vec<SplitPosition>,
    /// State to start from.
    pub restore: Option<Arc<Restore>>,
    /// Channels into it.
    pub inputs: Vec<Endpoint>,
    /// Channels out of it.
    pub outputs: Vec<Endpoint>,
    /// Address of the stream store.
    pub store_address: String,
}

/// The plans of all subtasks that `this` TaskManager runs.
///
/// # Errors
/// `INVALID_ARGUMENT` if the graph is invalid, a subtask is placed nowhere or twice, or a split has no subtask.
pub fn plan_subtasks(deployment: &Deployment, this: &TaskManagerId) -> Result<Vec<SubtaskPlan>> {
    deployment.graph.validate()?;
    let planner = Planner::new(deployment, this)?;
    let mut plans = Vec::new();
    for chain in &planner.chains {
        for index in (0..chain.parallelism.get()).map(SubtaskIndex) {
            let placement = planner.placement(chain.id, index)?;
            if placement.task_manager == *this {
                plans.push(planner.plan(chain, index, placement)?);
            }
        }
    }
    Ok(plans)
}

struct Planner<'a> {
    deployment: &'a Deployment,
    this: &'a TaskManagerId,
    graph: Arc<JobGraph>,
    restore: Option<Arc<Restore>>,
    chains: Vec<Chain>,
    placements: BTreeMap<(ChainId, SubtaskIndex), &'a Placement>,
}

impl<'a> Planner<'a> {
    fn new(deployment: &'a Deployment, this: &'a TaskManagerId) -> Result<Self> {
        let mut placements = BTreeMap::new();
        for placement in &deployment.placements {
            if placements.insert((placement.chain, placement.index), placement).is_some() {
                let Placement { chain, index, .. } = placement;
                return Err(Error::invalid(format!("subtask {chain}/{index} is placed twice")));
            }
        }
        let chains = deployment.graph.chains();
        for assignment in &deployment.splits {
            let source = deployment.graph.operators.iter().find(|operator| {
                operator.uid.as_ref() == Some(&assignment.uid)
                    && chains
                        .iter()
                        .any(|chain| chain.id.0 == operator.id.0 && assignment.index.0 < chain.parallelism.get())
            });
            if source.is_none() {
                return Err(Error::invalid(format!(
                    "split {} of source {} is assigned to subtask {}, which does not exist",
                    assignment.position.split, assignment.uid, assignment.index
                )));
            }
        }
        Ok(Self {
            deployment,
            this,
            graph: Arc::new(deployment.graph.clone()),
            restore: deployment.restore.clone().map(Arc::new),
            chains,
            placements,
        })
    }

    fn placement(&self, chain: ChainId, index: SubtaskIndex) -> Result<&'a Placement> {
        let placement = self.placements.get(&(chain, index)).copied();
        placement.ok_or_else(|| Error::invalid(format!("subtask {chain}/{index} is placed nowhere")))
    }

    fn subtask(&self, chain: ChainId, index: SubtaskIndex) -> SubtaskId {
        SubtaskId { job: self.deployment.job.clone(), chain, index, attempt: self.deployment.attempt }
    }

    fn plan(&self, chain: &Chain, index: SubtaskIndex, placement: &Placement) -> Result<SubtaskPlan> {
        let head = chain.operators.first().and_then(|id| self.graph.operator(*id));
        let uid: Option<&OperatorUid> = head.and_then(|operator| operator.uid.as_ref());
        let mine = self.deployment.splits.iter().filter(|split| Some(&split.uid) == uid && split.index == index);
        Ok(SubtaskPlan {
            id: self.subtask(chain.id, index),
            slot: placement.slot,
            graph: Arc::clone(&self.graph),
            chain: chain.clone(),
            key_range: KeyRange::of_subtask(index, chain.parallelism)?,
            splits: mine.map(|split| split.position.clone()).collect(),
            restore: self.restore.clone(),
            inputs: self.endpoints(chain, index, |edge| edge.to)?,
            outputs: self.endpoints(chain, index, |edge| edge.from)?,
            store_address: self.deployment.store_address.clone(),
        })
    }

    /// The channels whose end picked by `near` is this subtask.
    fn endpoints(
        &self,
        chain: &Chain,
        index: SubtaskIndex,
        near: impl Fn(&Edge) -> weir_types::ids::OperatorId,
    ) -> Result<Vec<Endpoint>> {
        let mut endpoints = Vec::new();
        for (number, edge) in (0u32..).zip(&self.graph.edges) {
            if edge.exchange == Exchange::Chained || !chain.operators.contains(&near(edge)) {
                continue;
            }
            let outgoing = near(edge) == edge.from;
            let far = if outgoing { edge.to } else { edge.from };
            let unknown = || Error::invalid(format!("operator {far} belongs to no chain"));
            let peer_chain = self.chains.iter().find(|chain| chain.operators.contains(&far)).ok_or_else(unknown)?;
            if edge.exchange == Exchange::Forward && peer_chain.parallelism != chain.parallelism {
                return Err(Error::invalid(format!(
                    "the forward exchange {} → {} joins parallelism {} and {}",
                    edge.from, edge.to, chain.parallelism, peer_chain.parallelism
                )));
            }
            for peer in (0..peer_chain.parallelism.get()).map(SubtaskIndex) {
                if edge.exchange == Exchange::Forward && peer != index {
                    continue;
                }
                let (from, to) = if outgoing { (index, peer) } else { (peer, index) };
                endpoints.push(Endpoint {
                    channel: ChannelId {
                        job: self.deployment.job.clone(),
                        attempt: self.deployment.attempt,
                        edge: number,
                        from,
                        to,
                    },
                    subtask: self.subtask(peer_chain.id, peer),
                    peer: self.peer(self.placement(peer_chain.id, peer)?),
                });
            }
        }
        Ok(endpoints)
    }

    fn peer(&self, placement: &Placement) -> Peer {
        if placement.task_manager == *self.this {
            return Peer::Local;
        }
        Peer::Remote { task_manager: placement.task_manager.clone(), data_address: placement.data_address.clone() }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
