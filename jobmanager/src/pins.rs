//! Pins that were broken: whoever forces a truncation past the pin of a snapshot, or deletes a pinned stream by force, takes
//! from the snapshot what it goes on from.
//!
//! The store remembers broken pins until their holders drop them, so that nothing is missed while no JobManager runs; that a
//! stream is gone shows by itself. This looks for both now and then, and tells the leader which snapshots have really lost
//! something.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use weir_coordination::metadata::{JobRecord, SnapshotEntry, SourceRecord};
use weir_replication::Node;
use weir_service::Shutdown;
use weir_stream_store::client::StoreClient;
use weir_types::ids::{JobId, SnapshotId};
use weir_types::snapshot::SnapshotState;
use weir_types::store::Pin;
use weir_types::stream::StreamName;
use weir_types::{Code, Result};

use crate::event::Event;
use crate::extents;
use crate::metadata::Machine;

/// How often it looks: one short call, and one for each stream that a snapshot goes on from.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks for broken pins.
pub(crate) struct PinWatch {
    pub(crate) store: StoreClient,
    pub(crate) node: Node<Machine>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl PinWatch {
    /// Runs until `shutdown` is requested, or nobody leads any more.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        loop {
            if let Err(error) = self.look().await {
                // Others say so louder when the store is down; what is broken stays so until it is back.
                tracing::debug!(code = %error.code, %error, "could not look for broken pins");
            }
            tokio::select! {
                () = shutdown.requested() => return,
                () = self.events.closed() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn look(&self) -> Result<()> {
        for (stream, pin) in self.store.broken_pins().await? {
            let Some((entry, reason)) = self.lost(&stream, &pin).await? else { continue };
            let event = Event::CutOff { job: entry.job, snapshot: entry.id, reason };
            if self.events.send(event).await.is_err() {
                return Ok(());
            }
        }
        self.look_for_missing_streams().await
    }

    async fn look_for_missing_streams(&self) -> Result<()> {
        let wanted: BTreeSet<StreamName> = self.node.read(|machine| {
            let state = &machine.0;
            let restorable = state.snapshots.values().filter(|entry| entry.is_complete_and_whole());
            let jobs: BTreeSet<&JobId> = restorable.map(|entry| &entry.job).collect();
            let sources = jobs.into_iter().filter_map(|job| state.jobs.get(job)).flat_map(|job| &job.sources);
            sources.filter_map(|source| Some(source.group.as_ref()?.stream.clone())).collect()
        });
        for stream in wanted {
            match self.store.describe_stream(&stream).await {
                Err(error) if error.code == Code::NotFound => self.report_missing(&stream).await?,
                // Damage of a stream is its readers' to find.
                _ => {}
            }
        }
        Ok(())
    }

    async fn report_missing(&self, stream: &StreamName) -> Result<()> {
        let reads = |job: &JobRecord| {
            job.sources.iter().any(|source| source.group.as_ref().is_some_and(|group| group.stream == *stream))
        };
        let holders: Vec<(SnapshotEntry, Vec<SourceRecord>)> = self.node.read(|machine| {
            let state = &machine.0;
            let whole = state.snapshots.values().filter(|entry| entry.is_complete_and_whole());
            let reading = whole.filter_map(|entry| Some((entry, state.jobs.get(&entry.job).filter(|job| reads(job))?)));
            reading.map(|(entry, job)| (entry.clone(), job.sources.clone())).collect()
        });
        for (entry, sources) in holders {
            let Some(reason) = extents::deleted(&self.store, &sources, &entry.sources).await? else { continue };
            let event = Event::CutOff { job: entry.job, snapshot: entry.id, reason };
            if self.events.send(event).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The snapshot that held a broken pin, and what it has lost; none, if it has lost nothing, or that is known.
    async fn lost(&self, stream: &StreamName, pin: &Pin) -> Result<Option<(SnapshotEntry, String)>> {
        // Pins of users and of jobs that start are no snapshots'.
        let Ok(id) = SnapshotId::new(pin.holder.as_str()) else { return Ok(None) };
        let found = self.node.read(|machine| {
            let entry = machine.0.snapshots.get(&id)?;
            // What is under way may yet go on from further ahead.
            let counts = entry.state == SnapshotState::Completed && entry.unrestorable.is_none();
            let sources = machine.0.jobs.get(&entry.job)?.sources.clone();
            counts.then(|| (entry.clone(), sources))
        });
        let Some((entry, sources)) = found else { return Ok(None) };
        let lost = extents::lost(&self.store, &sources, &entry.sources).await?;
        let reason = lost.and_then(|error| error.detail);
        Ok(reason.map(|reason| {
            let at = chrono::DateTime::from_timestamp_millis(pin.broken_at_ms.unwrap_or(0) as i64);
            let at = at.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)).unwrap_or_default();
            (entry.clone(), format!("a truncation of stream {stream} was forced at {at}: {reason}"))
        }))
    }
}
