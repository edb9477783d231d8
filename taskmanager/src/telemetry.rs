//! What a TaskManager shows of itself: metrics of the whole process, and its subtasks one by one at `/subtasks`.
//!
//! Metrics carry no job or subtask labels, so that their number stays bounded however many jobs come and go.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use weir_dataflow::memory::MemoryBudget;
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

/// Publishes counters.
pub(crate) struct Telemetry {
    views: watch::Sender<Vec<View>>,
    memory: Arc<MemoryBudget>,
    slots: u32,
    /// What of each subtask has been added to the process's counters.
    counted: HashMap<SubtaskId, [u64; 3]>,
}

impl Telemetry {
    pub(crate) fn new(memory: Arc<MemoryBudget>, slots: u32) -> Self {
        Self { views: watch::Sender::new(Vec::new()), memory, slots, counted: HashMap::new() }
    }

    /// The HTTP routes beside those that every process has.
    pub(crate) fn routes(&self) -> Router {
        let views = self.views.subscribe();
        Router::new().route("/subtasks", get(|| async move { Json(views.borrow().clone()) }))
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
        self.views.send_replace(tasks.subtasks().map(|(id, task)| view(id, task)).collect());
    }
}

fn view(id: &SubtaskId, task: &Task) -> View {
    let SubtaskProgress { subtask, rows_in, rows_out, late_rows, watermark_ms, state_bytes } =
        task.metrics.progress(id.clone());
    View {
        subtask: subtask.to_string(),
        name: task.name.clone(),
        state: match task.state {
            SubtaskState::Starting => "STARTING",
            SubtaskState::Running => "RUNNING",
            SubtaskState::Drained => "DRAINED",
            SubtaskState::Finished => "FINISHED",
            SubtaskState::Failed(_) => "FAILED",
            SubtaskState::Cancelled => "CANCELLED",
        },
        rows_in,
        rows_out,
        late_rows,
        watermark_ms,
        state_bytes,
        busy_us: task.metrics.busy_us.load(Ordering::Relaxed),
        backpressured_us: task.metrics.backpressured_us.load(Ordering::Relaxed),
    }
}
