//! The asynchronous part of snapshots: writes frozen state and waits for sinks, beside further processing.
//!
//! Invariant: an acknowledgement is sent only after everything it names is durable; every snapshot that began here ends
//! in one acknowledgement or one refusal, unless it was aborted from outside.

use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{AbortHandle, Abortable, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};
use weir_state::{FrozenTable, open_store, write_tables};
use weir_types::control::SnapshotDeclined;
use weir_types::ids::{BarrierId, SubtaskId};
use weir_types::snapshot::{Barrier, OperatorSnapshot, SnapshotTimings, SplitPosition, StateFile, SubtaskSnapshot};
use weir_types::{Error, Result};

use super::SubtaskEvent;
use crate::chain::FrozenOperator;
use crate::gate::AlignedBarrier;

type Ending = Pin<Box<dyn Future<Output = BarrierId>>>;

/// Snapshots whose asynchronous part is under way.
pub(super) struct Snapshots {
    subtask: SubtaskId,
    files: Handle,
    events: mpsc::Sender<SubtaskEvent>,
    running: FuturesUnordered<Ending>,
    aborts: Vec<(BarrierId, AbortHandle)>,
}

impl Snapshots {
    pub(super) fn new(subtask: SubtaskId, files: Handle, events: mpsc::Sender<SubtaskEvent>) -> Self {
        Self { subtask, files, events, running: FuturesUnordered::new(), aborts: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits until one has ended; to be called only if there is one. Cancel safe.
    pub(super) async fn ended(&mut self) {
        if let Some(ended) = self.running.next().await {
            self.aborts.retain(|(barrier, _)| *barrier != ended);
        }
    }

    /// Begins the asynchronous part.
    pub(super) fn start(&mut self, aligned: &AlignedBarrier, frozen: Vec<FrozenOperator>, sync: Duration) {
        let barrier = aligned.barrier();
        let timings = SnapshotTimings {
            start_delay_us: start_delay_us(aligned),
            alignment_us: aligned.alignment_us(),
            sync_us: micros(sync),
            async_us: 0,
        };
        let part = Part { subtask: self.subtask.clone(), files: self.files.clone(), barrier: barrier.clone(), timings };
        let events = self.events.clone();
        let id = barrier.id;
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.push((id, abort));
        let work = Abortable::new(
            async move {
                let event = part.finish(frozen).await;
                // The receiver only goes away with the TaskManager's session for this attempt: nobody is left to tell.
                let _gone = events.send(event).await;
            },
            registration,
        );
        self.running.push(Box::pin(async move {
            let _aborted = work.await;
            id
        }));
    }

    /// Reports that the subtask takes no part in a snapshot.
    pub(super) fn decline(&mut self, barrier: &Barrier, error: Error) {
        self.report(declined(&self.subtask, barrier, error));
    }

    /// Reports an event without waiting for it to be taken.
    pub(super) fn report(&mut self, event: SubtaskEvent) {
        let events = self.events.clone();
        self.running.push(Box::pin(async move {
            let _gone = events.send(event).await;
            BarrierId::default()
        }));
    }

    /// Gives up a snapshot that was aborted.
    pub(super) fn abort(&mut self, barrier: BarrierId) {
        for (_, abort) in self.aborts.iter().filter(|(running, _)| *running == barrier) {
            abort.abort();
        }
    }
}

fn declined(subtask: &SubtaskId, barrier: &Barrier, error: Error) -> SubtaskEvent {
    warn!(%subtask, snapshot = %barrier.snapshot, %error, "snapshot declined");
    SubtaskEvent::SnapshotDeclined(SnapshotDeclined {
        subtask: subtask.clone(),
        barrier: barrier.id,
        snapshot: barrier.snapshot.clone(),
        error,
    })
}

/// One subtask's part of one snapshot.
struct Part {
    subtask: SubtaskId,
    files: Handle,
    barrier: Barrier,
    timings: SnapshotTimings,
}

impl Part {
    async fn finish(mut self, frozen: Vec<FrozenOperator>) -> SubtaskEvent {
        let started = Instant::now();
        let operators = frozen.into_iter().enumerate().map(|(place, operator)| self.write(place, operator));
        let operators = match try_join_all(operators).await {
            Ok(operators) => operators,
            Err(error) => return declined(&self.subtask, &self.barrier, error),
        };
        self.timings.async_us = micros(started.elapsed());
        let bytes: u64 = operators.iter().flat_map(|operator| &operator.files).map(|file| file.bytes).sum();
        let Self { subtask, barrier, timings, .. } = self;
        info!(
            %subtask, snapshot = %barrier.snapshot, bytes,
            start_delay_us = timings.start_delay_us, alignment_us = timings.alignment_us,
            sync_us = timings.sync_us, async_us = timings.async_us, "snapshot written"
        );
        SubtaskEvent::SnapshotAcked(SubtaskSnapshot {
            subtask,
            barrier: barrier.id,
            snapshot: barrier.snapshot,
            operators,
            timings,
        })
    }

    async fn write(&self, place: usize, operator: FrozenOperator) -> Result<OperatorSnapshot> {
        let FrozenOperator { uid, watermark, state, prepared, splits } = operator;
        let files = self.write_files(place, state.tables);
        let prepared = async {
            match prepared {
                Some(prepared) => prepared.await,
                None => Ok(None),
            }
        };
        let (files, prepared) = futures::try_join!(files, prepared)?;
        Ok(OperatorSnapshot { uid, watermark_ms: watermark.0, files, splits, prepared })
    }

    /// Writes tables on the files thread. Names hold the attempt, so that no attempt ever writes another's file.
    async fn write_files(&self, place: usize, tables: Vec<FrozenTable>) -> Result<Vec<StateFile>> {
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let SubtaskId { chain, index, attempt, .. } = &self.subtask;
        let prefix = format!("state-{chain}-{index}-a{attempt}-o{place}");
        let directory = self.barrier.directory.clone();
        let written =
            self.files.spawn_blocking(move || write_tables(tables, open_store(&directory)?.as_ref(), &prefix));
        written
            .await
            .map_err(|error| Error::internal("writing snapshot files was cut short").with_detail(error.to_string()))?
    }
}

/// The positions of a source, added to what its chain froze.
pub(super) fn with_splits(frozen: &mut [FrozenOperator], splits: Vec<SplitPosition>) {
    if let Some(source) = frozen.first_mut() {
        source.splits = splits;
    }
}

/// From the trigger on the JobManager to the first barrier here, by the machines' clocks.
fn start_delay_us(aligned: &AlignedBarrier) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let triggered_us = aligned.barrier().triggered_at_ms.saturating_mul(1000);
    micros(now).saturating_sub(triggered_us).saturating_sub(aligned.alignment_us())
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
