//! What a TaskManager shows of itself: metrics of the whole process, and its subtasks one by one at `/subtasks`.
//!
//! Counters at `/subtasks` are those of the moment at which they are asked for; metrics are brought up to date with the
//! heartbeats. Metrics carry no job or subtask labels, so that their number stays bounded however many jobs come and go.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use weir_dataflow::memory::MemoryBudget;
use weir_dataflow::metrics::SubtaskMetrics;
use weir_types::control::SubtaskProgress;
use weir_types::deployment::SubtaskState;
use weir_types::ids::SubtaskId;

use crate::tasks::{Task, Tasks};

/// One subtask, as `/subtasks` shows it.
#[derive(Clone, Debug, Serialize)]
struct View {
    subtask: String,
    name: String,
    state: &'static str,
    rows_in: u64,
    rows_out: u64,
    late_rows: u64,
    watermark_ms: i64,
    state_bytes: u64,
    busy_us: u64,
    backpressured_us: u64,
}

/// A subtask whose counters can be read.
#[derive(Clone, Debug)]
struct Watched {
    id: SubtaskId,
    name: String,
    state: &'static str,
    metrics: Arc<SubtaskMetrics>,
}

/// Publishes counters.
pub(crate) struct Telemetry {
    subtasks: watch::Sender<Vec<Watched>>,
    memory: Arc<MemoryBudget>,
    slots: u32,
    /// What of each subtask has been added to the process's counters.
    counted: HashMap<SubtaskId, [u64; 3]>,
}

impl Telemetry {
    pub(crate) fn new(memory: Arc<MemoryBudget>, slots: u32) -> Self {
        Self { subtasks: watch::Sender::new(Vec::new()), memory, slots, counted: HashMap::new() }
    }

    /// The HTTP routes beside those that every process has.
    pub(crate) fn routes(&self) -> Router {
        let subtasks = self.subtasks.subscribe();
        let view = || async move { Json(subtasks.borrow().iter().map(Watched::view).collect::<Vec<_>>()) };
        Router::new().route("/subtasks", get(view))
    }

    /// Brings everything up to date.
    pub(crate) fn publish(&mut self, tasks: &Tasks) {
        let (mut running, mut state_bytes) = (0_u32, 0);
        let mut counted = HashMap::new();
        for (id, task) in tasks.subtasks() {
            let progress = task.metrics.progress(id.clone());
            let seen = [progress.rows_in, progress.rows_out, progress.late_rows];
            let before = self.counted.get(id).copied().unwrap_or_default();
            for (name, (now, before)) in [
                "weir_taskmanager_rows_in_total",
                "weir_taskmanager_rows_out_total",
                "weir_taskmanager_late_rows_total",
            ]
            .into_iter()
            .zip(seen.into_iter().zip(before))
            {
                metrics::counter!(name).increment(now.saturating_sub(before));
            }
            counted.insert(id.clone(), seen);
            if !task.state.is_terminal() {
                running += 1;
                state_bytes += progress.state_bytes;
            }
        }
        self.counted = counted;
        metrics::gauge!("weir_taskmanager_slots").set(f64::from(self.slots));
        metrics::gauge!("weir_taskmanager_memory_budget_bytes").set(self.memory.limit() as f64);
        metrics::gauge!("weir_taskmanager_subtasks").set(f64::from(running));
        metrics::gauge!("weir_taskmanager_state_bytes").set(state_bytes as f64);
        metrics::gauge!("weir_taskmanager_memory_used_bytes").set(self.memory.used() as f64);
        metrics::gauge!("weir_taskmanager_memory_snapshots_bytes").set(self.memory.used_by_snapshots() as f64);
        self.subtasks.send_replace(tasks.subtasks().map(|(id, task)| Watched::new(id, task)).collect());
    }
}

impl Watched {
    fn new(id: &SubtaskId, task: &Task) -> Self {
        let state = match task.state {
            SubtaskState::Starting => "STARTING",
            SubtaskState::Running => "RUNNING",
            SubtaskState::Drained => "DRAINED",
            SubtaskState::Finished => "FINISHED",
            SubtaskState::Failed(_) => "FAILED",
            SubtaskState::Cancelled => "CANCELLED",
        };
        Self { id: id.clone(), name: task.name.clone(), state, metrics: Arc::clone(&task.metrics) }
    }

    fn view(&self) -> View {
        let SubtaskProgress { subtask, rows_in, rows_out, late_rows, watermark_ms, state_bytes } =
            self.metrics.progress(self.id.clone());
        View {
            subtask: subtask.to_string(),
            name: self.name.clone(),
            state: self.state,
            rows_in,
            rows_out,
            late_rows,
            watermark_ms,
            state_bytes,
            busy_us: self.metrics.busy_us.load(Ordering::Relaxed),
            backpressured_us: self.metrics.backpressured_us.load(Ordering::Relaxed),
        }
    }
}
