//! The operator chain of one subtask: a tree of operators in which passing rows on is a function call.
//!
//! Invariants: rows and event time reach the operators of a branch in the order in which they came; an operator sees a
//! watermark only after the operators above it have emitted everything that the watermark releases; nothing here waits,
//! but [`OperatorChain::room`] and [`OperatorChain::finish`].

use std::future::poll_fn;
use std::sync::Arc;

use tokio::time::Instant;
use weir_state::Since;
use weir_state::memory::Memory;
use weir_types::graph::Output;
use weir_types::ids::{BarrierId, OperatorUid};
use weir_types::snapshot::{Barrier, SplitPosition};
use weir_types::{Error, Result};

use crate::element::{Batch, Watermark};
use crate::exchange::Outputs;
use crate::memory::{MemoryAccount, MemoryBudget, SnapshotAccount};
use crate::operator::{Collector, Frozen, Operator, Progress};
use crate::sink::{Prepared, Sink};

/// What a node of the chain does with rows.
pub enum Stage {
    /// Passes them on: the place of a source at the head.
    Head,
    /// Gives them to an operator.
    Operator(Box<dyn Operator>),
    /// Gives them to a sink.
    Sink(Box<dyn Sink>),
}

/// Where an output of a node leads.
pub enum Link {
    /// To the next operator of the chain.
    Node(Box<Node>),
    /// To an edge of [`Outputs`].
    Edge(usize),
}

/// An operator of the chain with everything behind it.
pub struct Node {
    name: String,
    uid: Option<OperatorUid>,
    stage: Stage,
    links: Vec<(Output, Link)>,
    watermark: Watermark,
    account: MemoryAccount,
    /// Of its snapshots.
    snapshots: Arc<SnapshotAccount>,
}

/// What one operator hands over in the synchronous part of a snapshot.
pub struct FrozenOperator {
    /// The operator.
    pub uid: OperatorUid,
    /// Its event time.
    pub watermark: Watermark,
    /// Its state.
    pub state: Frozen,
    /// A sink's part that is still under way.
    pub prepared: Option<Prepared>,
    /// A source's positions.
    pub splits: Vec<SplitPosition>,
    /// Counts what the snapshot holds of it in memory; none for what nobody counts.
    pub memory: Option<Arc<SnapshotAccount>>,
}

impl Node {
    /// A node named for people; `uid` is given if it has a part in snapshots.
    pub fn new(name: &str, uid: Option<OperatorUid>, stage: Stage, memory: &Arc<MemoryBudget>) -> Self {
        let account = MemoryAccount::new(Arc::clone(memory), name);
        let snapshots = SnapshotAccount::new(Arc::clone(memory), name);
        Self { name: name.to_owned(), uid, stage, links: Vec::new(), watermark: Watermark::MIN, account, snapshots }
    }

    /// Takes back the event time that the operator had reached: what it released must not be opened again by a snapshot
    /// that is taken before event time is here anew.
    pub fn restore_watermark(&mut self, watermark: Watermark) {
        self.watermark = watermark;
    }

    /// Leads an output further.
    pub fn link(&mut self, output: Output, link: Link) {
        self.links.push((output, link));
    }

    fn process(&mut self, batch: Batch, flow: &mut Flow<'_>) -> Result<()> {
        let mut out = Emitter { links: &mut self.links, flow, failed_below: false };
        let result = match &mut self.stage {
            Stage::Head => return out.emit(Output::Main, batch),
            Stage::Operator(operator) => operator.process(batch, &mut out),
            Stage::Sink(sink) => {
                out.flow.rows_out += batch.len() as u64;
                sink.write(&batch)
            }
        };
        let failed_below = out.failed_below;
        result.map_err(|error| if failed_below { error } else { named(&self.name, error) })?;
        self.account_state()
    }

    fn account_state(&mut self) -> Result<()> {
        match &self.stage {
            Stage::Operator(operator) => self.account.set(operator.state_bytes()),
            Stage::Head | Stage::Sink(_) => Ok(()),
        }
    }

    fn advance(&mut self, watermark: Watermark, flow: &mut Flow<'_>) -> Result<Progress> {
        if watermark > self.watermark {
            if let Stage::Operator(operator) = &mut self.stage {
                let mut out = Emitter { links: &mut self.links, flow, failed_below: false };
                let result = operator.advance(watermark, &mut out);
                let failed_below = out.failed_below;
                let progress = result.map_err(|error| if failed_below { error } else { named(&self.name, error) })?;
                self.account_state()?;
                if progress == Progress::More {
                    return Ok(Progress::More);
                }
            }
            self.watermark = watermark;
        }
        for (_, link) in &mut self.links {
            match link {
                Link::Node(node) => {
                    if node.advance(watermark, flow)? == Progress::More {
                        return Ok(Progress::More);
                    }
                }
                Link::Edge(edge) => flow.outputs.watermark(*edge, watermark, flow.now)?,
            }
        }
        Ok(Progress::Done)
    }

    /// Visits the node and everything behind it.
    fn visit<'a>(&'a mut self, visit: &mut dyn FnMut(Visited<'a>) -> Result<()>) -> Result<()> {
        let Self { name, uid, stage, links, watermark, snapshots, .. } = self;
        let visited = Visited { name, uid: uid.as_ref(), watermark: *watermark, stage, snapshots };
        visit(visited).map_err(|error| named(name, error))?;
        for (_, link) in links {
            if let Link::Node(node) = link {
                node.visit(visit)?;
            }
        }
        Ok(())
    }
}

/// A node as a visitor sees it.
struct Visited<'a> {
    name: &'a str,
    uid: Option<&'a OperatorUid>,
    watermark: Watermark,
    stage: &'a mut Stage,
    snapshots: &'a Arc<SnapshotAccount>,
}

/// The same error, saying which operator it happened in.
fn named(operator: &str, mut error: Error) -> Error {
    error.message = format!("operator {operator}: {}", error.message);
    error
}

/// What leaves the chain.
struct Flow<'a> {
    outputs: &'a mut Outputs,
    rows_out: u64,
    now: Instant,
}

struct Emitter<'a, 'b> {
    links: &'a mut [(Output, Link)],
    flow: &'a mut Flow<'b>,
    failed_below: bool,
}

impl Collector for Emitter<'_, '_> {
    fn emit(&mut self, output: Output, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        for (from, link) in self.links.iter_mut() {
            if *from != output {
                continue;
            }
            let result = match link {
                Link::Node(node) => node.process(batch.clone(), self.flow),
                Link::Edge(edge) => {
                    self.flow.rows_out += batch.len() as u64;
                    self.flow.outputs.emit(*edge, batch.clone(), self.flow.now)
                }
            };
            if result.is_err() {
                self.failed_below = true;
                return result;
            }
        }
        Ok(())
    }
}

/// Sums over the operators of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainTotals {
    /// Bytes of state.
    pub state_bytes: u64,
    /// Rows that came behind the watermark.
    pub late_rows: u64,
}

/// The operators of one subtask and the exchanges behind them.
pub struct OperatorChain {
    root: Node,
    outputs: Outputs,
    rows_out: u64,
}

impl OperatorChain {
    /// A chain from its head and the edges that its links lead to.
    pub fn new(root: Node, outputs: Outputs) -> Self {
        Self { root, outputs, rows_out: 0 }
    }

    /// Processes rows.
    ///
    /// # Errors
    /// Any operator's, with its name.
    pub fn process(&mut self, batch: Batch, now: Instant) -> Result<()> {
        let mut flow = Flow { outputs: &mut self.outputs, rows_out: 0, now };
        let result = self.root.process(batch, &mut flow);
        self.rows_out += flow.rows_out;
        result
    }

    /// Advances event time by one step; to be called again, after there is room, while it answers [`Progress::More`].
    ///
    /// # Errors
    /// Any operator's, with its name.
    pub fn advance(&mut self, watermark: Watermark, now: Instant) -> Result<Progress> {
        let mut flow = Flow { outputs: &mut self.outputs, rows_out: 0, now };
        let result = self.root.advance(watermark, &mut flow);
        self.rows_out += flow.rows_out;
        result
    }

    /// The synchronous part of a snapshot: every operator freezes its state and tells what has changed `since`, every sink
    /// begins to prepare.
    ///
    /// # Errors
    /// The first operator's that cannot; the snapshot is to be declined.
    pub fn freeze(&mut self, barrier: &Barrier, since: Since) -> Result<Vec<FrozenOperator>> {
        let mut frozen = Vec::new();
        self.root.visit(&mut |Visited { uid, watermark, stage, snapshots, .. }| {
            let memory: Memory = Arc::clone(snapshots) as Memory;
            let (state, prepared) = match stage {
                Stage::Head => (Frozen::default(), None),
                Stage::Operator(operator) => {
                    let tables = operator.freeze(since, &memory)?.tables.into_iter();
                    (Frozen { tables: tables.map(|table| table.with_memory(&memory)).collect() }, None)
                }
                Stage::Sink(sink) => (Frozen::default(), Some(sink.prepare(barrier)?)),
            };
            match uid {
                Some(uid) => {
                    let (uid, memory) = (uid.clone(), Some(Arc::clone(snapshots)));
                    frozen.push(FrozenOperator { uid, watermark, state, prepared, splits: Vec::new(), memory });
                }
                None if state.tables.is_empty() && prepared.is_none() => {}
                None => return Err(Error::internal("it has state, but no uid to keep it under")),
            }
            Ok(())
        })?;
        Ok(frozen)
    }

    /// Waits until all exchanges and sinks have room. Cancel safe.
    ///
    /// # Errors
    /// If a receiver is gone or a sink cannot go on.
    pub async fn room(&mut self) -> Result<()> {
        poll_fn(|cx| self.outputs.poll_room(cx)).await?;
        self.sinks_ready().await
    }

    /// Waits until all sinks have started and have room. Cancel safe.
    ///
    /// # Errors
    /// If a sink cannot go on.
    pub async fn sinks_ready(&mut self) -> Result<()> {
        for (name, sink) in self.sinks()? {
            sink.ready().await.map_err(|error| named(name, error))?;
        }
        Ok(())
    }

    /// All input has ended: makes the sinks' output durable, then ends the exchanges.
    ///
    /// # Errors
    /// If a sink or a receiver fails.
    pub async fn finish(&mut self) -> Result<()> {
        for (name, sink) in self.sinks()? {
            sink.finish().await.map_err(|error| named(name, error))?;
        }
        self.outputs.end(Instant::now())
    }

    /// The snapshot of this barrier is complete: what sinks have prepared until then is decided.
    ///
    /// # Errors
    /// None of its own.
    pub fn committed(&mut self, barrier: BarrierId) -> Result<()> {
        self.sinks()?.into_iter().for_each(|(_, sink)| sink.committed(barrier));
        Ok(())
    }

    fn sinks(&mut self) -> Result<Vec<(&str, &mut Box<dyn Sink>)>> {
        let mut sinks = Vec::new();
        self.root.visit(&mut |Visited { name, stage, .. }| {
            if let Stage::Sink(sink) = stage {
                sinks.push((name, sink));
            }
            Ok(())
        })?;
        Ok(sinks)
    }

    /// The exchanges.
    pub fn outputs(&mut self) -> &mut Outputs {
        &mut self.outputs
    }

    /// Event time at the head.
    pub fn watermark(&self) -> Watermark {
        self.root.watermark
    }

    /// Rows that left through exchanges and sinks.
    pub fn rows_out(&self) -> u64 {
        self.rows_out
    }

    /// Sums over the operators.
    pub fn totals(&mut self) -> ChainTotals {
        let mut totals = ChainTotals::default();
        let counted = self.root.visit(&mut |Visited { stage, .. }| {
            if let Stage::Operator(operator) = stage {
                totals.state_bytes += operator.state_bytes();
                totals.late_rows += operator.late_rows();
            }
            Ok(())
        });
        debug_assert!(counted.is_ok(), "counting cannot fail");
        totals
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
