//! The asynchronous part of snapshots: writes frozen state and waits for sinks, beside further processing.
//!
//! Invariant: an acknowledgement is sent only after everything it names is durable; every snapshot that began here ends
//! in one acknowledgement or one refusal, unless it was aborted from outside. Files of a snapshot that was not acknowledged
//! are deleted here, as its directory may have been swept before they were complete. Every byte is drawn from what was
//! granted before it is written.
//!
//! Savepoints, and the checkpoints of a job that wants them so, are written whole, into their own directories. Files of
//! incremental checkpoints lie in the job's shared directory: later checkpoints refer to them as well.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{AbortHandle, Abortable, select_all, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use weir_state::store::SnapshotStore;
use weir_state::{
    Budgeted, FrozenTable, Increment, Runs, Since, delete_files, open_store, write_increment, write_tables_while,
};
use weir_types::control::SnapshotDeclined;
use weir_types::ids::{BarrierId, SnapshotId, SubtaskId};
use weir_types::snapshot::{
    Barrier, OperatorSnapshot, SnapshotKind, SnapshotTimings, SplitPosition, StateFile, SubtaskSnapshot, shared_path,
};
use weir_types::{Code, Error, Result};

use super::SubtaskEvent;
use super::lineage::{ChainRuns, Lineage};
use crate::chain::FrozenOperator;
use crate::gate::AlignedBarrier;
use crate::grants::{SnapshotGrants, Writer};
use crate::memory::SnapshotAccount;

type Ending = Pin<Box<dyn Future<Output = Ended>>>;

/// What is over.
#[derive(Default)]
struct Ended {
    barrier: BarrierId,
    /// The checkpoint that was written and acknowledged, if it is one that others may build on.
    written: Option<(SnapshotId, ChainRuns)>,
}

/// Snapshots whose asynchronous part is under way.
pub(super) struct Snapshots {
    subtask: SubtaskId,
    files: Handle,
    grants: Arc<SnapshotGrants>,
    events: mpsc::Sender<SubtaskEvent>,
    incremental: bool,
    lineage: Lineage,
    running: FuturesUnordered<Ending>,
    aborts: Vec<Writing>,
}

/// An asynchronous part that is under way.
struct Writing {
    barrier: BarrierId,
    snapshot: SnapshotId,
    since: Instant,
    abort: AbortHandle,
}

impl Snapshots {
    /// Checkpoints are written as what has changed if they are to be `incremental`.
    pub(super) fn new(
        subtask: SubtaskId,
        files: Handle,
        grants: Arc<SnapshotGrants>,
        events: mpsc::Sender<SubtaskEvent>,
        incremental: bool,
    ) -> Self {
        let (lineage, running, aborts) = (Lineage::default(), FuturesUnordered::new(), Vec::new());
        Self { subtask, files, grants, events, incremental, lineage, running, aborts }
    }

    /// What the state is compared with that is frozen next, for this barrier.
    pub(super) fn since(&mut self, barrier: &Barrier) -> Since {
        if self.incremental { self.lineage.follow(barrier) } else { Since::Start }
    }

    /// The state could not be frozen.
    pub(super) fn not_frozen(&mut self, barrier: &Barrier, error: Error) {
        self.lineage.forget();
        self.decline(barrier, error);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits until one has ended; to be called only if there is one. Cancel safe.
    pub(super) async fn ended(&mut self) {
        if let Some(Ended { barrier, written }) = self.running.next().await {
            self.aborts.retain(|running| running.barrier != barrier);
            if let Some((snapshot, runs)) = written {
                self.lineage.written(&snapshot, runs);
            }
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
        debug!(
            snapshot = %barrier.snapshot, subtask = %self.subtask, start_delay_us = timings.start_delay_us,
            alignment_us = timings.alignment_us, sync_us = timings.sync_us, "frozen"
        );
        let writer = match self.grants.begin(&self.subtask, barrier) {
            Ok(writer) => writer,
            Err(error) => return self.decline(barrier, error),
        };
        let draft = Draft::new(self.files.clone(), barrier.snapshot.clone(), barrier.directory.clone(), writer);
        let incremental = self.incremental && barrier.kind == SnapshotKind::Checkpoint;
        let base = incremental.then(|| self.lineage.base());
        let part = Part { subtask: self.subtask.clone(), barrier: barrier.clone(), timings, base };
        let events = self.events.clone();
        let id = barrier.id;
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.push(Writing { barrier: id, snapshot: barrier.snapshot.clone(), since: Instant::now(), abort });
        let memory: Vec<_> = frozen.iter().filter_map(|operator| operator.memory.clone()).collect();
        let work = Abortable::new(
            async move {
                let (event, runs) = part.finish(frozen, &memory, &draft).await;
                let acknowledged = matches!(event, SubtaskEvent::SnapshotAcked(_));
                // The receiver only goes away with the TaskManager's session for this attempt: nobody is left to tell.
                let acknowledged = events.send(event).await.is_ok() && acknowledged;
                if acknowledged {
                    draft.keep();
                }
                runs.filter(|_| acknowledged)
            },
            registration,
        );
        let snapshot = barrier.snapshot.clone();
        self.running.push(Box::pin(async move {
            let written = work.await.ok().flatten().map(|runs| (snapshot, runs));
            Ended { barrier: id, written }
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
            Ended::default()
        }));
    }

    /// Says so if the asynchronous part of this snapshot is under way.
    pub(super) fn log_writing(&self, barrier: BarrierId) {
        for running in self.aborts.iter().filter(|running| running.barrier == barrier) {
            let us = micros(running.since.elapsed());
            info!(snapshot = %running.snapshot, subtask = %self.subtask, us, "was still writing");
        }
    }

    /// Gives up a snapshot that was aborted.
    pub(super) fn abort(&mut self, barrier: BarrierId) {
        for running in self.aborts.iter().filter(|running| running.barrier == barrier) {
            running.abort.abort();
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
    barrier: Barrier,
    timings: SnapshotTimings,
    /// What an incremental checkpoint adds to.
    base: Option<ChainRuns>,
}

impl Part {
    /// What to report; and the runs that an incremental checkpoint consists of.
    async fn finish(
        mut self,
        frozen: Vec<FrozenOperator>,
        memory: &[Arc<SnapshotAccount>],
        draft: &Draft,
    ) -> (SubtaskEvent, Option<ChainRuns>) {
        let started = Instant::now();
        let operators = frozen.into_iter().enumerate().map(|(place, operator)| self.write(place, operator, draft));
        let written = tokio::select! {
            biased;
            written = try_join_all(operators) => written,
            // The draft's writer stops, wherever it is, and frees what it holds.
            error = crowded(memory) => Err(error),
        };
        let (operators, runs): (Vec<_>, Vec<_>) = match written {
            Ok(operators) => operators.into_iter().unzip(),
            Err(error) => return (declined(&self.subtask, &self.barrier, error), None),
        };
        self.timings.async_us = micros(started.elapsed());
        let files = operators.iter().flat_map(|operator| &operator.files);
        let written = files.filter(|file| file.is_written_by(&self.barrier.snapshot));
        let bytes: u64 = written.map(|file| file.bytes).sum();
        let runs = self.base.is_some().then(|| Arc::new(runs));
        let Self { subtask, barrier, timings, .. } = self;
        info!(
            %subtask, snapshot = %barrier.snapshot, bytes,
            start_delay_us = timings.start_delay_us, alignment_us = timings.alignment_us,
            sync_us = timings.sync_us, async_us = timings.async_us, "snapshot written"
        );
        let acked = SubtaskSnapshot { subtask, barrier: barrier.id, snapshot: barrier.snapshot, operators, timings };
        (SubtaskEvent::SnapshotAcked(acked), runs)
    }

    async fn write(&self, place: usize, operator: FrozenOperator, draft: &Draft) -> Result<(OperatorSnapshot, Runs)> {
        let FrozenOperator { uid, watermark, state, prepared, splits, memory: _ } = operator;
        let files = self.write_files(place, state.tables, draft);
        let prepared = async {
            match prepared {
                Some(prepared) => prepared.await,
                None => Ok(None),
            }
        };
        let ((files, runs), prepared) = futures::try_join!(files, prepared)?;
        Ok((OperatorSnapshot { uid, watermark_ms: watermark.0, files, splits, prepared }, runs))
    }

    /// Writes tables on the files thread: what of them has changed, or all. Names hold the attempt, so that no attempt ever
    /// writes another's file. Answers the files that the snapshot consists of.
    async fn write_files(
        &self,
        place: usize,
        tables: Vec<FrozenTable>,
        draft: &Draft,
    ) -> Result<(Vec<StateFile>, Runs)> {
        if tables.is_empty() {
            return Ok(Default::default());
        }
        let SubtaskId { chain, index, attempt, .. } = &self.subtask;
        let prefix = format!("state-{chain}-{index}-a{attempt}-o{place}");
        let Some(base) = &self.base else {
            let files = draft.write(move |store, wanted| write_tables_while(tables, store, &prefix, wanted));
            return Ok((files.await?, Runs::default()));
        };
        let (prefix, base) = (shared_path(&self.barrier.snapshot, &prefix), Arc::clone(base));
        let increment = draft.write(move |store, wanted| {
            write_increment(tables, base.get(place).unwrap_or(&Runs::default()), store, &prefix, wanted)
        });
        let Increment { runs, .. } = increment.await?;
        Ok((runs.files(), runs))
    }
}

/// Returns when one of the operators' snapshots does not fit into memory.
async fn crowded(memory: &[Arc<SnapshotAccount>]) -> Error {
    if memory.is_empty() {
        return std::future::pending().await;
    }
    select_all(memory.iter().map(|account| Box::pin(account.crowded()))).await.0
}

/// The files of a snapshot's part until it is acknowledged. Dropped before, it stops those who write them and has what
/// they wrote deleted.
struct Draft {
    files: Handle,
    snapshot: SnapshotId,
    directory: String,
    /// Held until nothing is written or deleted any more.
    writer: Arc<Writer>,
    written: Arc<Mutex<Written>>,
}

/// What has become of a draft's files. Whoever finds them here when the draft is given up, deletes them.
#[derive(Default)]
struct Written {
    given_up: bool,
    files: Vec<StateFile>,
}

impl Draft {
    fn new(files: Handle, snapshot: SnapshotId, directory: String, writer: Arc<Writer>) -> Self {
        Self { files, snapshot, directory, writer, written: Arc::default() }
    }

    /// Runs `write` on the files thread, as long as it is wanted.
    async fn write<T: AsRef<[StateFile]> + Send + 'static>(
        &self,
        write: impl FnOnce(&dyn SnapshotStore, &dyn Fn() -> bool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (directory, written) = (self.directory.clone(), Arc::clone(&self.written));
        let writer = Arc::clone(&self.writer);
        let writing = self.files.spawn_blocking(move || {
            let store = Budgeted::new(open_store(&directory)?, writer);
            let files = write(&store, &|| !lock(&written).given_up)?;
            let mut written = lock(&written);
            if written.given_up {
                drop(written);
                delete_files(&store, files.as_ref())?;
                return Err(Error::new(Code::Cancelled, "the snapshot was given up"));
            }
            written.files.extend_from_slice(files.as_ref());
            Ok(files)
        });
        writing
            .await
            .map_err(|error| Error::internal("writing snapshot files was cut short").with_detail(error.to_string()))?
    }

    /// The snapshot's from now on.
    fn keep(self) {
        lock(&self.written).files.clear();
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let files = {
            let mut written = lock(&self.written);
            written.given_up = true;
            std::mem::take(&mut written.files)
        };
        self.writer.give_up();
        if files.is_empty() {
            return;
        }
        let (snapshot, directory) = (self.snapshot.clone(), std::mem::take(&mut self.directory));
        let writer = Arc::clone(&self.writer);
        self.files.spawn_blocking(move || {
            let _until_deleted = writer;
            if let Err(error) = open_store(&directory).and_then(|store| delete_files(store.as_ref(), &files)) {
                warn!(%snapshot, directory, %error, "files of a snapshot that was given up are left");
            }
        });
    }
}

fn lock(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
