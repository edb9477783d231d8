//! Starts a TaskManager's share of an attempt: plans it, connects its channels, and hands each subtask to its slot.
//!
//! Whatever happens to a subtask, a panic included, ends in exactly one [`TaskEvent::Ended`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_dataflow::ConnectorFactory;
use weir_dataflow::channel::{ChannelReceiver, ChannelSender, channel};
use weir_dataflow::grants::SnapshotGrants;
use weir_dataflow::memory::MemoryBudget;
use weir_dataflow::metrics::SubtaskMetrics;
use weir_dataflow::plan::{Endpoint, Peer, SubtaskPlan, plan_subtasks};
use weir_dataflow::subtask::{Control, Outcome, Subtask, SubtaskContext, SubtaskEvent};
use weir_types::deployment::{ChannelId, Deployment};
use weir_types::graph::{JobGraph, OperatorSpec};
use weir_types::ids::{SubtaskId, TaskManagerId};
use weir_types::{Error, Result};

use crate::exchange::{self, DataPlane};
use crate::slots::Slots;

/// Control messages that may wait for a subtask.
const CONTROLS_MAX: usize = 64;
/// A cancelled subtask that does not end by itself is dropped after this time.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);

/// What happens to subtasks, beside what they report themselves.
#[derive(Debug)]
pub(crate) enum TaskEvent {
    /// State is restored, connectors and exchanges are there, and sinks have fenced older attempts.
    Running(SubtaskId),
    /// It is gone from its slot.
    Ended(SubtaskId, Result<Outcome>),
}

/// What attempts run on.
pub(crate) struct Host {
    /// This TaskManager.
    pub(crate) id: TaskManagerId,
    /// Its compute threads.
    pub(crate) slots: Slots,
    /// Its exchanges with others.
    pub(crate) data_plane: Arc<DataPlane>,
    /// What state and channels hold.
    pub(crate) memory: Arc<MemoryBudget>,
    /// Builds sources and sinks.
    pub(crate) connectors: Arc<dyn ConnectorFactory>,
    /// Where connectors do network and file work.
    pub(crate) io: tokio::runtime::Handle,
    /// Where snapshot files are written and read.
    pub(crate) files: tokio::runtime::Handle,
    /// What snapshots may write.
    pub(crate) grants: Arc<SnapshotGrants>,
    /// What a channel may hold.
    pub(crate) channel_bytes: usize,
    /// Where events go.
    pub(crate) events: mpsc::Sender<TaskEvent>,
    /// Where subtasks' reports go.
    pub(crate) reports: mpsc::Sender<SubtaskEvent>,
}

/// A subtask that has been handed to its slot.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its inbox; dropping it cancels the subtask.
    pub(crate) control: mpsc::Sender<Control>,
    /// Its counters.
    pub(crate) metrics: Arc<SubtaskMetrics>,
    /// Whether barriers are let in here.
    pub(crate) is_source: bool,
    /// For people: the names of its operators.
    pub(crate) name: String,
}

impl Host {
    /// Starts what `deployment` places here.
    ///
    /// # Errors
    /// If the deployment makes no sense; then nothing of it runs.
    pub(crate) fn launch(
        &self,
        deployment: &Deployment,
        cancelled: &CancellationToken,
    ) -> Result<BTreeMap<SubtaskId, Launched>> {
        let plans = plan_subtasks(deployment, &self.id)?;
        if let Some(plan) = plans.iter().find(|plan| plan.slot as usize >= self.slots.count()) {
            let count = self.slots.count();
            return Err(Error::invalid(format!("subtask {} is placed in slot {} of {count}", plan.id, plan.slot)));
        }
        let mut wiring = Wiring { host: self, cancelled, ends: BTreeMap::new() };
        let wired = plans.into_iter().map(|plan| {
            let (inputs, outputs) = (wiring.inputs(&plan)?, wiring.outputs(&plan)?);
            Ok((plan, inputs, outputs))
        });
        let wired: Vec<_> = wired.collect::<Result<_>>()?;
        let mut launched = BTreeMap::new();
        for (plan, inputs, outputs) in wired {
            launched.insert(plan.id.clone(), self.start(plan, inputs, outputs, cancelled.clone())?);
        }
        Ok(launched)
    }

    fn start(
        &self,
        plan: SubtaskPlan,
        inputs: Vec<(ChannelId, ChannelReceiver)>,
        outputs: Vec<(ChannelId, ChannelSender)>,
        cancelled: CancellationToken,
    ) -> Result<Launched> {
        let (control, inbox) = mpsc::channel(CONTROLS_MAX);
        let metrics = Arc::new(SubtaskMetrics::default());
        let operators = || plan.chain.operators.iter().filter_map(|id| plan.graph.operator(*id));
        let is_source = operators().any(|operator| matches!(operator.spec, OperatorSpec::Source(_)));
        let name = operators().map(|operator| operator.name.as_str()).collect::<Vec<_>>().join(" -> ");
        let (id, slot) = (plan.id.clone(), plan.slot);
        let (connectors, events) = (self.connectors.clone(), self.events.clone());
        let parts = Parts {
            plan,
            inputs,
            outputs,
            control: inbox,
            reports: self.reports.clone(),
            io: self.io.clone(),
            files: self.files.clone(),
            grants: self.grants.clone(),
            metrics: metrics.clone(),
            memory: self.memory.clone(),
        };
        let start = move || {
            let task = tokio::task::spawn_local(run(parts, connectors, events.clone(), cancelled));
            let watch = async move {
                let outcome = task.await.unwrap_or_else(|error| Err(panicked(error)));
                // The receiver lives as long as the process.
                let _closing_down = events.send(TaskEvent::Ended(id, outcome)).await;
            };
            Box::pin(watch) as futures::future::LocalBoxFuture<'static, ()>
        };
        self.slots.start(slot, Box::new(start))?;
        Ok(Launched { control, metrics, is_source, name })
    }
}

/// What a subtask is built from, as it travels to its slot.
struct Parts {
    plan: SubtaskPlan,
    inputs: Vec<(ChannelId, ChannelReceiver)>,
    outputs: Vec<(ChannelId, ChannelSender)>,
    control: mpsc::Receiver<Control>,
    reports: mpsc::Sender<SubtaskEvent>,
    io: tokio::runtime::Handle,
    files: tokio::runtime::Handle,
    grants: Arc<SnapshotGrants>,
    metrics: Arc<SubtaskMetrics>,
    memory: Arc<MemoryBudget>,
}

async fn run(
    parts: Parts,
    connectors: Arc<dyn ConnectorFactory>,
    events: mpsc::Sender<TaskEvent>,
    cancelled: CancellationToken,
) -> Result<Outcome> {
    let Parts { plan, inputs, outputs, control, reports, io, files, grants, metrics, memory } = parts;
    let id = plan.id.clone();
    let context = SubtaskContext {
        plan,
        factory: connectors.as_ref(),
        inputs,
        outputs,
        control,
        events: reports,
        io,
        files,
        grants,
        metrics,
        memory,
    };
    let ready = async {
        let mut subtask = Subtask::build(context).await?;
        subtask.ready().await?;
        Ok::<_, Error>(subtask)
    };
    let subtask = tokio::select! {
        biased;
        () = cancelled.cancelled() => return Ok(Outcome::Cancelled),
        ready = ready => ready?,
    };
    let _closing_down = events.send(TaskEvent::Running(id)).await;
    let overdue = async {
        cancelled.cancelled().await;
        tokio::time::sleep(CANCEL_TIMEOUT).await;
    };
    tokio::select! {
        outcome = subtask.run() => outcome,
        () = overdue => Ok(Outcome::Cancelled),
    }
}

fn panicked(error: tokio::task::JoinError) -> Error {
    let detail = match error.try_into_panic() {
        Ok(payload) => match payload.downcast::<String>() {
            Ok(message) => *message,
            Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("no message").to_owned(),
        },
        Err(error) => error.to_string(),
    };
    Error::internal("a subtask panicked").with_detail(detail).with_hint("The TaskManager's log says where.")
}

/// Makes both ends of every channel meet.
struct Wiring<'a> {
    host: &'a Host,
    cancelled: &'a CancellationToken,
    /// Ends of local channels whose other end was made first.
    ends: BTreeMap<ChannelId, (Option<ChannelSender>, Option<ChannelReceiver>)>,
}

impl Wiring<'_> {
    fn inputs(&mut self, plan: &SubtaskPlan) -> Result<Vec<(ChannelId, ChannelReceiver)>> {
        let connect = |Endpoint { channel: id, peer, .. }: &Endpoint| {
            let receiver = match peer {
                Peer::Local => {
                    let (sender, receiver) = self.local(id);
                    let kept = self.ends.entry(id.clone()).or_insert((sender, None));
                    receiver.or_else(|| kept.1.take())
                }
                Peer::Remote { .. } => {
                    let (sender, receiver) = channel(self.host.channel_bytes, self.host.memory.clone());
                    self.host.data_plane.receive(self.channel(id, &plan.graph)?, sender)?;
                    Some(receiver)
                }
            };
            let receiver = receiver.ok_or_else(|| Error::internal(format!("channel {id} has two receivers")))?;
            Ok((id.clone(), receiver))
        };
        plan.inputs.iter().map(connect).collect()
    }

    fn outputs(&mut self, plan: &SubtaskPlan) -> Result<Vec<(ChannelId, ChannelSender)>> {
        let connect = |Endpoint { channel: id, peer, .. }: &Endpoint| {
            let sender = match peer {
                Peer::Local => {
                    let (sender, receiver) = self.local(id);
                    let kept = self.ends.entry(id.clone()).or_insert((None, receiver));
                    sender.or_else(|| kept.0.take())
                }
                Peer::Remote { task_manager, data_address } => {
                    let (sender, receiver) = channel(self.host.channel_bytes, self.host.memory.clone());
                    let peer = exchange::Peer { task_manager: task_manager.clone(), address: data_address.clone() };
                    self.host.data_plane.send(&peer, self.channel(id, &plan.graph)?, receiver)?;
                    Some(sender)
                }
            };
            let sender = sender.ok_or_else(|| Error::internal(format!("channel {id} has two senders")))?;
            Ok((id.clone(), sender))
        };
        plan.outputs.iter().map(connect).collect()
    }

    /// Both ends of a local channel, for whoever comes first; nothing for whoever comes second.
    fn local(&self, id: &ChannelId) -> (Option<ChannelSender>, Option<ChannelReceiver>) {
        if self.ends.contains_key(id) {
            return (None, None);
        }
        let (sender, receiver) = channel(self.host.channel_bytes, self.host.memory.clone());
        (Some(sender), Some(receiver))
    }

    fn channel(&self, id: &ChannelId, graph: &JobGraph) -> Result<exchange::Channel> {
        let edge = graph.edges.get(id.edge as usize);
        let described =
            edge.and_then(|edge| Some((graph.edge_schema(edge)?.clone(), graph.operator(edge.to)?.name.clone())));
        let (schema, operator) = described.ok_or_else(|| Error::invalid(format!("channel {id} has no edge")))?;
        Ok(exchange::Channel { id: id.clone(), schema, operator, cancelled: self.cancelled.clone() })
    }
}
