//! Builds a subtask from its plan: the chain's tree from the graph's chained edges, exchanges from all others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::info;
use weir_state::{RestoredOperator, open_store};
use weir_types::deployment::ChannelId;
use weir_types::error::Facts;
use weir_types::graph::{Exchange, Operator, OperatorSpec, SourceSpec};
use weir_types::ids::OperatorId;
use weir_types::{Code, Error, Result};

use super::snapshot::Snapshots;
use super::{Input, Phase, Subtask, SubtaskContext};
use crate::ConnectorFactory;
use crate::calc::Calc;
use crate::chain::{Link, Node, OperatorChain, Stage};
use crate::channel::ChannelSender;
use crate::element::Watermark;
use crate::exchange::{BatchLimits, Outputs};
use crate::gate::InputGate;
use crate::group::GroupAggregate;
use crate::memory::MemoryBudget;
use crate::operator;
use crate::plan::{Endpoint, SubtaskPlan};
use crate::reader::{ReaderRules, SourceReader};
use crate::sink::SinkContext;
use crate::source::SourceContext;
use crate::watermark::WatermarkGenerator;
use crate::window::WindowAggregate;

pub(super) async fn build(context: SubtaskContext<'_>) -> Result<Subtask> {
    let SubtaskContext { plan, factory, inputs, outputs, control, events, io, files, grants, metrics, memory } =
        context;
    let timeout = Duration::from_millis(plan.graph.options.buffer_timeout_ms);
    let limits = BatchLimits { timeout, ..BatchLimits::default() };
    let mut builder = Builder {
        plan: &plan,
        factory,
        io: &io,
        files: &files,
        memory: &memory,
        senders: in_order("output", &plan.outputs, outputs)?,
        outputs: Outputs::new(limits),
    };
    let head = builder.head()?;
    let root = builder.node(head).await?;
    let input = match &head.spec {
        OperatorSpec::Source(spec) => Input::Source(builder.reader(head, spec, limits)?),
        _ => {
            let receivers = in_order("input", &plan.inputs, inputs)?;
            let receivers = receivers.into_iter().map(|(_, receiver)| receiver).collect();
            Input::Gate(InputGate::new(receivers).of(plan.id.clone()))
        }
    };
    let chain = OperatorChain::new(root, builder.outputs);
    let incremental = plan.graph.options.checkpoints_incremental;
    let snapshots = Snapshots::new(plan.id.clone(), files, grants, events, incremental);
    Ok(Subtask {
        id: plan.id,
        input,
        chain,
        limits,
        control,
        snapshots,
        metrics,
        work: std::collections::VecDeque::new(),
        triggers: std::collections::VecDeque::new(),
        phase: Phase::Reading,
        rows_in: 0,
    })
}

/// The channels that were handed in, in the plan's order.
fn in_order<T>(what: &str, endpoints: &[Endpoint], channels: Vec<(ChannelId, T)>) -> Result<Vec<(ChannelId, T)>> {
    let mut channels: BTreeMap<ChannelId, T> = channels.into_iter().collect();
    let ordered = endpoints.iter().map(|Endpoint { channel, .. }| {
        let end = channels.remove(channel);
        end.map(|end| (channel.clone(), end))
            .ok_or_else(|| Error::internal(format!("{what} channel {channel} is missing")))
    });
    let ordered = ordered.collect::<Result<Vec<_>>>()?;
    match channels.keys().next() {
        Some(channel) => Err(Error::internal(format!("{what} channel {channel} is not in the plan"))),
        None => Ok(ordered),
    }
}

struct Builder<'a> {
    plan: &'a SubtaskPlan,
    factory: &'a dyn ConnectorFactory,
    io: &'a Handle,
    files: &'a Handle,
    memory: &'a Arc<MemoryBudget>,
    senders: Vec<(ChannelId, ChannelSender)>,
    outputs: Outputs,
}

impl<'a> Builder<'a> {
    fn head(&self) -> Result<&'a Operator> {
        let id = self.plan.chain.operators.first().copied().unwrap_or(OperatorId(self.plan.chain.id.0));
        self.operator(id)
    }

    fn operator(&self, id: OperatorId) -> Result<&'a Operator> {
        self.plan.graph.operator(id).ok_or_else(|| Error::internal(format!("operator {id} is not in the graph")))
    }

    /// The node of an operator with everything behind it in the chain.
    fn node(&mut self, operator: &'a Operator) -> futures::future::LocalBoxFuture<'_, Result<Node>> {
        Box::pin(async move {
            let (stage, watermark) = self.stage(operator).await.map_err(|mut error| {
                error.message = format!("operator {}: {}", operator.name, error.message);
                error
            })?;
            let mut node = Node::new(&operator.name, operator.uid.clone(), stage, self.memory);
            node.restore_watermark(watermark);
            let plan = self.plan;
            for (number, edge) in (0u32..).zip(&plan.graph.edges) {
                if edge.from != operator.id {
                    continue;
                }
                let link = match &edge.exchange {
                    Exchange::Chained => Link::Node(Box::new(self.node(self.operator(edge.to)?).await?)),
                    exchange => Link::Edge(self.edge(number, exchange)?),
                };
                node.link(edge.output, link);
            }
            Ok(node)
        })
    }

    fn edge(&mut self, number: u32, exchange: &Exchange) -> Result<usize> {
        let (mine, others) = std::mem::take(&mut self.senders).into_iter().partition(|(id, _)| id.edge == number);
        self.senders = others;
        let mine: Vec<(ChannelId, ChannelSender)> = mine;
        self.outputs.add(exchange, mine.into_iter().map(|(_, sender)| sender).collect())
    }

    /// What an operator does, and the event time that it has reached.
    async fn stage(&self, operator: &Operator) -> Result<(Stage, Watermark)> {
        let input = || {
            let schema = self.plan.graph.input_schema(operator.id);
            schema.ok_or_else(|| Error::internal("it has no input to take a schema from"))
        };
        let mut watermark = Watermark::MIN;
        let stage = match &operator.spec {
            OperatorSpec::Source(_) => Stage::Head,
            OperatorSpec::Calc(spec) => Stage::Operator(Box::new(Calc::from_spec(spec, input()?, &operator.schema)?)),
            OperatorSpec::WindowAggregate(spec) => {
                let (output, rows) = (Arc::clone(&operator.schema), BatchLimits::default().rows);
                let mut aggregate =
                    WindowAggregate::new(spec, Arc::clone(input()?), output, self.plan.key_range, rows)?;
                watermark = self.restore(operator, &mut aggregate).await?;
                Stage::Operator(Box::new(aggregate))
            }
            OperatorSpec::GroupAggregate(spec) => {
                let output = Arc::clone(&operator.schema);
                let mut aggregate = GroupAggregate::new(spec, input()?, output, self.plan.key_range)?;
                watermark = self.restore(operator, &mut aggregate).await?;
                Stage::Operator(Box::new(aggregate))
            }
            OperatorSpec::Sink(spec) => Stage::Sink(self.factory.sink(SinkContext {
                spec: spec.clone(),
                schema: Arc::clone(&operator.schema),
                io: self.io.clone(),
                store_address: self.plan.store_address.clone(),
                job: self.plan.id.job.clone(),
                uid: uid(operator)?,
                subtask: self.plan.id.index.0,
                parallelism: self.plan.chain.parallelism.get(),
                attempt: self.plan.id.attempt.0,
            })?),
        };
        Ok((stage, watermark))
    }

    /// Takes back an operator's state, read on the files thread, if the job starts from a snapshot that holds some. Answers
    /// the event time that it goes on from.
    ///
    /// The maximum watermark is not restored: at it every window has fired, and a job that goes on behind it (restored
    /// from the savepoint of a drain) begins its event time anew.
    async fn restore(&self, operator: &Operator, restored: &mut dyn operator::Operator) -> Result<Watermark> {
        let (Some(restore), Some(uid)) = (&self.plan.restore, &operator.uid) else { return Ok(Watermark::MIN) };
        if !restore.operators.iter().any(|snapshot| snapshot.uid == *uid) {
            return Ok(Watermark::MIN);
        }
        let started = Instant::now();
        let (restore, uid, range) = (Arc::clone(restore), uid.clone(), self.plan.key_range);
        let loaded = self.files.spawn_blocking(move || {
            let parts: Vec<_> = restore.operators.iter().filter(|snapshot| snapshot.uid == uid).cloned().collect();
            let loaded = open_store(&restore.directory)
                .and_then(|directory| RestoredOperator::load(directory.as_ref(), &parts, range));
            loaded.map_err(|error| match error.code {
                Code::Corrupt | Code::NotFound => error
                    .with_facts(Facts::StateUnreadable { directory: restore.directory.clone(), operator: Some(uid) }),
                _ => error,
            })
        });
        let mut state = loaded
            .await
            .map_err(|error| Error::internal("reading the snapshot was cut short").with_detail(error.to_string()))??;
        if state.watermark_ms == Watermark::MAX.0 {
            state.watermark_ms = Watermark::MIN.0;
        }
        let watermark = Watermark(state.watermark_ms);
        restored.restore(state)?;
        info!(
            subtask = %self.plan.id, operator = operator.name, state_bytes = restored.state_bytes(),
            elapsed_ms = started.elapsed().as_millis() as u64, "state restored"
        );
        Ok(watermark)
    }

    fn reader(&self, operator: &Operator, spec: &SourceSpec, limits: BatchLimits) -> Result<SourceReader> {
        let plan = self.plan;
        let source = self.factory.source(SourceContext {
            spec: spec.clone(),
            splits: plan.splits.clone(),
            batch_rows: limits.rows,
            io: self.io.clone(),
            store_address: plan.store_address.clone(),
            name: format!("{}-{}-{}", plan.id.job, uid(operator)?, plan.id.index),
        })?;
        let calc = spec.calc.as_ref().map(|calc| Calc::from_spec(calc, &spec.scan_schema, &operator.schema));
        let watermark = spec.watermark.as_ref().map(|spec| WatermarkGenerator::from_spec(spec, &operator.schema));
        let idle_timeout_ms = plan.graph.options.source_idle_timeout_ms;
        let rules = ReaderRules {
            calc: calc.transpose()?,
            watermark: watermark.transpose()?,
            idle_timeout: (idle_timeout_ms > 0).then(|| Duration::from_millis(idle_timeout_ms)),
            limits,
        };
        Ok(SourceReader::new(source, plan.splits.clone(), rules, Instant::now()))
    }
}

fn uid(operator: &Operator) -> Result<String> {
    operator.uid.clone().ok_or_else(|| Error::internal(format!("operator {} has no uid", operator.name)))
}
