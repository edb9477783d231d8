//! Jobs of one process for tests: scripted sources, collecting sinks, and the real task loop between them.
//!
//! A test releases rows one by one or in whatever cuts it likes, sends barriers, and looks at what came out. All subtasks
//! share the test's thread, so that [`LocalJob::settle`] can let everything run that is able to, and no test ever sleeps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use weir_types::deployment::Deployment;
use weir_types::ids::{BarrierId, SubtaskId};
use weir_types::snapshot::{Barrier, SplitPosition};
use weir_types::{Error, Result};

use crate::ConnectorFactory;
use crate::channel::channel;
use crate::element::Batch;
use crate::grants::SnapshotGrants;
use crate::memory::MemoryBudget;
use crate::metrics::SubtaskMetrics;
use crate::plan::plan_subtasks;
use crate::sink::{Prepared, Sink, SinkContext};
use crate::source::{Source, SourceContext, SourceEvent};
use crate::subtask::{Control, Outcome, Subtask, SubtaskContext, SubtaskEvent};

/// How often [`LocalJob::settle`] lets every subtask take a turn: more often than a test's rows have steps.
const SETTLE_TURNS: usize = 2000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rows of one split, and how far a source may read it.
#[derive(Clone, Debug)]
struct SplitScript {
    rows: RecordBatch,
    released: u64,
    cut: usize,
    bounded: bool,
}

#[derive(Default)]
struct ConnectorState {
    splits: BTreeMap<(String, String), SplitScript>,
    written: Vec<Written>,
    sink_blocked: bool,
    sink_failure: Option<Error>,
    prepare_failure: Option<Error>,
}

/// A batch that reached a sink.
#[derive(Clone, Debug)]
pub struct Written {
    /// The sink's table.
    pub table: String,
    /// Its subtask.
    pub subtask: u32,
    /// Its attempt.
    pub attempt: u32,
    /// The barrier that came next and so made the batch part of its snapshot.
    pub barrier: Option<BarrierId>,
    /// The rows.
    pub batch: Batch,
}

/// Connectors whose tables are in memory; a handle that may be cloned.
#[derive(Clone, Default)]
pub struct TestConnectors {
    state: Arc<Mutex<ConnectorState>>,
    changed: Arc<Notify>,
}

impl TestConnectors {
    /// Sets the rows of a split. None are released yet; `cut` is the number of rows per batch.
    pub fn split(&self, table: &str, split: &str, rows: RecordBatch, cut: usize, bounded: bool) {
        let script = SplitScript { rows, released: 0, cut: cut.max(1), bounded };
        lock(&self.state).splits.insert((table.to_owned(), split.to_owned()), script);
    }

    /// Lets sources read a split up to so many rows.
    pub fn release(&self, table: &str, split: &str, rows: u64) {
        if let Some(script) = lock(&self.state).splits.get_mut(&(table.to_owned(), split.to_owned())) {
            script.released = rows;
        }
        self.changed.notify_waiters();
    }

    /// Lets sources read everything.
    pub fn release_all(&self) {
        for script in lock(&self.state).splits.values_mut() {
            script.released = u64::MAX;
        }
        self.changed.notify_waiters();
    }

    /// Keeps sinks from having room, or lets them go on.
    pub fn block_sinks(&self, blocked: bool) {
        lock(&self.state).sink_blocked = blocked;
        self.changed.notify_waiters();
    }

    /// Makes every further write fail.
    pub fn fail_writes(&self, error: Option<Error>) {
        lock(&self.state).sink_failure = error;
    }

    /// Makes every further preparation for a snapshot fail.
    pub fn fail_prepares(&self, error: Option<Error>) {
        lock(&self.state).prepare_failure = error;
    }

    /// What sinks have written so far, in order per subtask.
    pub fn written(&self) -> Vec<Written> {
        lock(&self.state).written.clone()
    }

    /// Forgets what was written behind a barrier, as a rollback to its snapshot does.
    pub fn roll_back(&self, barrier: BarrierId) {
        lock(&self.state).written.retain(|written| written.barrier.is_some_and(|covered| covered <= barrier));
    }
}

impl ConnectorFactory for TestConnectors {
    fn source(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        let finished = context.splits.iter().map(|split| split.finished).collect();
        Ok(Box::new(ScriptedSource { connectors: self.clone(), context, finished, turn: 0 }))
    }

    fn sink(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(CollectingSink { connectors: self.clone(), context }))
    }
}

struct ScriptedSource {
    connectors: TestConnectors,
    context: SourceContext,
    finished: Vec<bool>,
    turn: usize,
}

impl ScriptedSource {
    fn ready(&mut self) -> Option<SourceEvent> {
        let state = lock(&self.connectors.state);
        let splits = &mut self.context.splits;
        let count = splits.len();
        for split in (0..count).map(|step| (self.turn + step) % count) {
            let SplitPosition { split: name, offset, .. } = &mut splits[split];
            let Some(script) = state.splits.get(&(self.context.spec.table.clone(), name.clone())) else { continue };
            let total = script.rows.num_rows() as u64;
            let readable = script.released.min(total).saturating_sub(*offset);
            if readable > 0 {
                let rows = script.rows.slice(*offset as usize, script.cut.min(readable as usize));
                *offset += rows.num_rows() as u64;
                self.turn = split + 1;
                return Some(SourceEvent::Rows { split, rows, next_offset: *offset, event_time_max_ms: None });
            }
            if script.bounded && *offset == total && script.released >= total && !self.finished[split] {
                self.finished[split] = true;
                return Some(SourceEvent::SplitFinished { split });
            }
        }
        self.finished.iter().all(|finished| *finished).then_some(SourceEvent::End)
    }
}

#[async_trait(?Send)]
impl Source for ScriptedSource {
    async fn next(&mut self) -> Result<SourceEvent> {
        let changed = Arc::clone(&self.connectors.changed);
        loop {
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            if let Some(event) = self.ready() {
                return Ok(event);
            }
            notified.await;
        }
    }
}

struct CollectingSink {
    connectors: TestConnectors,
    context: SinkContext,
}

#[async_trait(?Send)]
impl Sink for CollectingSink {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let mut state = lock(&self.connectors.state);
        if let Some(error) = &state.sink_failure {
            return Err(error.clone());
        }
        state.written.push(Written {
            table: self.context.spec.table.clone(),
            subtask: self.context.subtask,
            attempt: self.context.attempt,
            barrier: None,
            batch: batch.clone(),
        });
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        let changed = Arc::clone(&self.connectors.changed);
        loop {
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            if !lock(&self.connectors.state).sink_blocked {
                return Ok(());
            }
            notified.await;
        }
    }

    fn prepare(&mut self, barrier: &Barrier) -> Result<Prepared> {
        let SinkContext { subtask, attempt, spec, .. } = &self.context;
        let mut state = lock(&self.connectors.state);
        for written in &mut state.written {
            if (written.subtask, written.attempt) == (*subtask, *attempt) && written.table == spec.table {
                written.barrier.get_or_insert(barrier.id);
            }
        }
        let failure = state.prepare_failure.clone();
        Ok(Box::pin(async move { failure.map_or(Ok(None), Err) }))
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A job whose subtasks all run on the current thread. To be used within a [`tokio::task::LocalSet`].
pub struct LocalJob {
    controls: BTreeMap<SubtaskId, mpsc::Sender<Control>>,
    events: mpsc::Receiver<SubtaskEvent>,
    tasks: BTreeMap<SubtaskId, JoinHandle<Result<Outcome>>>,
    metrics: BTreeMap<SubtaskId, Arc<SubtaskMetrics>>,
}

impl LocalJob {
    /// Starts all subtasks of a deployment to one TaskManager, with channels of `channel_bytes`.
    ///
    /// # Errors
    /// If the deployment does not fit together.
    pub async fn start(deployment: &Deployment, factory: &dyn ConnectorFactory, channel_bytes: usize) -> Result<Self> {
        let Some(this) = deployment.placements.first().map(|placement| placement.task_manager.clone()) else {
            return Err(Error::invalid("nothing is placed"));
        };
        let plans = plan_subtasks(deployment, &this)?;
        let memory = MemoryBudget::unlimited();
        let mut receivers = BTreeMap::new();
        let mut senders = BTreeMap::new();
        for endpoint in plans.iter().flat_map(|plan| &plan.outputs) {
            let (sender, receiver) = channel(channel_bytes, Arc::clone(&memory));
            senders.insert(endpoint.channel.clone(), sender);
            receivers.insert(endpoint.channel.clone(), receiver);
        }
        let (reporter, events) = mpsc::channel(1024);
        let mut job = Self { controls: BTreeMap::new(), events, tasks: BTreeMap::new(), metrics: BTreeMap::new() };
        for plan in plans {
            let (control, commands) = mpsc::channel(16);
            let metrics = Arc::new(SubtaskMetrics::default());
            let id = plan.id.clone();
            let inputs = plan.inputs.iter().filter_map(|end| receivers.remove_entry(&end.channel)).collect();
            let outputs = plan.outputs.iter().filter_map(|end| senders.remove_entry(&end.channel)).collect();
            let subtask = Subtask::build(SubtaskContext {
                plan,
                factory,
                inputs,
                outputs,
                control: commands,
                events: reporter.clone(),
                io: Handle::current(),
                files: Handle::current(),
                grants: SnapshotGrants::unlimited(),
                metrics: Arc::clone(&metrics),
                memory: Arc::clone(&memory),
            });
            job.tasks.insert(id.clone(), tokio::task::spawn_local(subtask.await?.run()));
            job.controls.insert(id.clone(), control);
            job.metrics.insert(id, metrics);
        }
        Ok(job)
    }

    /// Tells every subtask.
    pub async fn tell(&self, control: Control) {
        for sender in self.controls.values() {
            // A subtask that has ended does not listen any more.
            let _ended = sender.send(control.clone()).await;
        }
    }

    /// Tells one subtask.
    pub async fn tell_one(&self, subtask: &SubtaskId, control: Control) {
        if let Some(sender) = self.controls.get(subtask) {
            let _ended = sender.send(control).await;
        }
    }

    /// Lets everything move that can without more input, files or timers (let the job have no buffer timeout); what was
    /// reported meanwhile.
    pub async fn settle(&mut self) -> VecDeque<SubtaskEvent> {
        for _ in 0..SETTLE_TURNS {
            tokio::task::yield_now().await;
        }
        let mut events = VecDeque::new();
        while let Ok(event) = self.events.try_recv() {
            events.push_back(event);
        }
        events
    }

    /// Waits for the next report; none: all subtasks have ended.
    pub async fn event(&mut self) -> Option<SubtaskEvent> {
        self.events.recv().await
    }

    /// The subtasks.
    pub fn subtasks(&self) -> Vec<SubtaskId> {
        self.controls.keys().cloned().collect()
    }

    /// A subtask's counters.
    pub fn metrics(&self, subtask: &SubtaskId) -> Option<&SubtaskMetrics> {
        self.metrics.get(subtask).map(Arc::as_ref)
    }

    /// The subtasks that have ended.
    pub fn ended(&self) -> Vec<SubtaskId> {
        self.tasks.iter().filter(|(_, task)| task.is_finished()).map(|(id, _)| id.clone()).collect()
    }

    /// Waits for all subtasks; how each ended.
    pub async fn join(self) -> BTreeMap<SubtaskId, Result<Outcome>> {
        let mut outcomes = BTreeMap::new();
        for (id, task) in self.tasks {
            let outcome = task.await;
            let outcome = outcome
                .unwrap_or_else(|error| Err(Error::internal("a subtask panicked").with_detail(error.to_string())));
            outcomes.insert(id, outcome);
        }
        outcomes
    }
}
