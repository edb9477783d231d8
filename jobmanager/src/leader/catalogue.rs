//! The catalogue as users work with it: listing, describing, annotating, deleting.

use chrono::{DateTime, SecondsFormat, Utc};
use weir_coordination::metadata::{Command, DeletedRecord, Deleter, Deletion, Reply, SnapshotEntry, State};
use weir_proto::pb::client::v1 as pb;
use weir_service::failpoint;
use weir_types::ids::{RequestId, SnapshotId};
use weir_types::snapshot::{SnapshotKind, SnapshotState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::jobs::request_id;
use super::{Leader, Then, answer};
use crate::event::{Answer, Event};
use crate::storage::{self, is_link};

/// What [`SnapshotEntry::status`] may say.
const STATES: [&str; 7] = ["QUEUED", "IN_PROGRESS", "COMPLETED", "DAMAGED", "UNRESTORABLE", "FAILED", "DELETING"];

impl Leader {
    pub(super) fn snapshots_view(&self, request: &pb::ListSnapshotsRequest) -> Result<pb::ListSnapshotsReply> {
        let namespace = request.namespace.as_deref();
        let job = request.job.as_deref().filter(|job| !job.is_empty());
        let job = job.map(|job| self.find_job(job, namespace)).transpose()?;
        let states = request.states.iter().map(|state| parse_state(state)).collect::<Result<Vec<_>>>()?;
        let is = |wanted: Option<&str>, has: &str| wanted.is_none_or(|wanted| wanted == has);
        let wanted = |entry: &&SnapshotEntry| {
            let savepoint = entry.kind == SnapshotKind::Savepoint;
            job.as_ref().is_none_or(|job| entry.job == *job)
                && request.savepoints.is_none_or(|wanted| wanted == savepoint)
                // Checkpoints that are being retired are of no use to anybody who does not ask for them.
                && if states.is_empty() {
                    entry.state != SnapshotState::Deleting || savepoint
                } else {
                    states.contains(&entry.status())
                }
                && is(request.owner.as_deref(), &entry.owner)
                && is(namespace, &entry.namespace)
                && request.labels.iter().all(|(key, value)| entry.annotations.labels.get(key) == Some(value))
                && request.since_ms.is_none_or(|since| entry.triggered_at.0 >= since)
                && request.until_ms.is_none_or(|until| entry.triggered_at.0 < until)
        };
        let snapshots = self.state(|state| {
            let mut entries: Vec<&SnapshotEntry> = state.snapshots.values().filter(wanted).collect();
            entries.sort_by_key(|entry| (entry.triggered_at, entry.barrier));
            sort(&mut entries, request.order());
            let surplus = request.limit.map_or(0, |limit| entries.len().saturating_sub(limit as usize));
            let mut entries = entries.split_off(surplus);
            if request.reverse {
                entries.reverse();
            }
            entries.into_iter().map(|entry| self.view(state, entry)).collect()
        });
        Ok(pb::ListSnapshotsReply { snapshots })
    }

    /// One snapshot with its script and who needs it.
    pub(super) fn describe_snapshot(&self, wanted: &pb::SnapshotRequest) -> Result<pb::Snapshot> {
        self.state(|state| {
            let entry = find(state, &wanted.snapshot, wanted.namespace.as_deref())?;
            let mut view = self.view(state, entry);
            view.query = state.jobs.get(&entry.job).map(|job| job.sql.clone());
            view.evicted = evicted_for(state, &entry.id);
            if entry.state == SnapshotState::Completed {
                view.holders = state.holders(&entry.id);
            }
            Ok(view)
        })
    }

    pub(super) fn deleted_view(&self, request: &pb::ListDeletedRequest) -> Result<pb::ListDeletedReply> {
        let namespace = request.namespace.as_deref();
        let snapshots = self.state(|state| {
            // A job may be forgotten while what was deleted of it is not.
            let of_job = |record: &&DeletedRecord| {
                request.job.as_deref().is_none_or(|job| {
                    record.job_name == job || (!job.is_empty() && record.job.as_str().starts_with(job))
                })
            };
            let records = state.retention.deleted.iter().filter(of_job);
            let records = records.filter(|record| namespace.is_none_or(|namespace| record.namespace == namespace));
            records.map(Into::into).collect()
        });
        Ok(pb::ListDeletedReply { snapshots })
    }

    pub(super) fn annotate(&mut self, request: pb::AnnotateSnapshotRequest, to: Answer<pb::Snapshot>) {
        let namespace = request.namespace.as_deref();
        let found = request_id(&request.request_id).and_then(|id| {
            self.state(|state| find(state, &request.snapshot, namespace).map(|entry| (entry.id.clone(), id)))
        });
        match found {
            Ok((snapshot, id)) => {
                let change = request.into();
                let command = Command::Annotate { snapshot: snapshot.clone(), request: Some(id), change };
                self.commit(command, Then::Annotated(snapshot, to));
            }
            Err(error) => answer(to, Err(error)),
        }
    }

    pub(super) fn delete(&mut self, request: pb::DeleteSnapshotRequest, to: Answer<pb::DeleteSnapshotReply>) {
        let id = match request_id(&request.request_id) {
            Ok(id) => id,
            Err(error) => return answer(to, Err(error)),
        };
        // A retry may come when the entry is gone already.
        let answered = self.state(|state| state.requests.get(&id).and_then(|answered| answered.reply.clone().ok()));
        let found = match answered.and_then(|applied| applied.snapshot) {
            Some(snapshot) => Ok(snapshot),
            None => {
                let namespace = request.namespace.as_deref();
                self.state(|state| find(state, &request.snapshot, namespace).map(|entry| entry.id.clone()))
            }
        };
        match found {
            Ok(snapshot) => {
                let by = Deleter::User(request.owner);
                let command =
                    Command::MarkDeleted { snapshot: snapshot.clone(), request: Some(id), force: request.force, by };
                let directory = self.entry(&snapshot).map(|entry| entry.directory);
                self.work(async move {
                    let checked = storage::blocking(move || check_no_link(directory.as_deref())).await;
                    Event::Deletable { snapshot, command: checked.map(|()| Box::new(command)), to }
                });
            }
            Err(error) => answer(to, Err(error)),
        }
    }

    pub(super) fn on_deletable(
        &mut self,
        snapshot: SnapshotId,
        command: Result<Box<Command>>,
        to: Answer<pb::DeleteSnapshotReply>,
    ) {
        match command {
            Ok(command) => self.commit(*command, Then::Marked(snapshot, to)),
            Err(error) => answer(to, Err(error)),
        }
    }

    pub(super) fn on_marked_deleted(
        &mut self,
        snapshot: SnapshotId,
        reply: Reply,
        to: Answer<pb::DeleteSnapshotReply>,
    ) {
        if let Err(error) = reply {
            return answer(to, Err(error));
        }
        let Some(entry) = self.entry(&snapshot) else {
            return answer(to, self.deleted_before(&snapshot));
        };
        failpoint::reach("delete.mark");
        tracing::info!(%snapshot, by = ?entry.deletion.as_ref().map(|deletion| &deletion.by), "marked for deletion");
        let view = pb::Snapshot::from(&entry);
        let reply = pb::DeleteSnapshotReply { bytes_freed: view.exclusive_bytes, snapshot: Some(view) };
        self.deletions.entry(snapshot.clone()).or_default().push((to, reply));
        self.remove_snapshot(snapshot);
    }

    /// A savepoint that failed although others had made room for it: its user has to know of both.
    pub(super) fn naming_evicted(&self, request: &RequestId, error: Error) -> Error {
        let evicted = self.state(|state| {
            let applied = state.requests.get(request).and_then(|answered| answered.reply.as_ref().ok());
            let savepoint = applied.and_then(|applied| applied.snapshot.as_ref());
            savepoint.map(|savepoint| evicted_for(state, savepoint)).unwrap_or_default()
        });
        if evicted.is_empty() {
            return error;
        }
        let ids: Vec<String> = evicted.into_iter().map(|evicted| evicted.id).collect();
        let gone = format!("deleted to make room: {}", ids.join(", "));
        let detail = error.detail.as_ref().map_or_else(|| gone.clone(), |detail| format!("{detail}; {gone}"));
        error.with_detail(detail)
    }

    /// The answer to the retry of a deletion that was carried out.
    fn deleted_before(&self, snapshot: &SnapshotId) -> Result<pb::DeleteSnapshotReply> {
        self.state(|state| {
            let record = state.retention.deleted.iter().rev().find(|record| record.snapshot == *snapshot);
            let record = record.ok_or_else(|| {
                Error::not_found(format!("snapshot {snapshot} was deleted, and is not remembered any more"))
            })?;
            let view = pb::Snapshot {
                id: record.snapshot.to_string(),
                savepoint: record.kind == SnapshotKind::Savepoint,
                job: record.job.to_string(),
                job_name: record.job_name.clone(),
                owner: record.owner.clone(),
                namespace: record.namespace.clone(),
                state: SnapshotState::Deleting.to_string(),
                triggered_at_ms: record.triggered_at.0,
                directory: record.directory.clone(),
                bytes: record.bytes,
                name: record.name.clone().unwrap_or_default(),
                deletion: Some((&record.deletion).into()),
                ..pb::Snapshot::default()
            };
            Ok(pb::DeleteSnapshotReply { bytes_freed: record.bytes, snapshot: Some(view) })
        })
    }
}

/// What made room for a savepoint: what is gone, and what is going.
pub(super) fn evicted_for(state: &State, savepoint: &SnapshotId) -> Vec<pb::DeletedSnapshot> {
    let is_for = |deletion: &Deletion| deletion.by == Deleter::Eviction(savepoint.clone());
    let gone = state.retention.deleted.iter().filter(|record| is_for(&record.deletion)).map(Into::into);
    let going = state.snapshots.values().filter(|entry| entry.deletion.as_ref().is_some_and(is_for));
    gone.chain(going.map(Into::into)).collect()
}

/// Refuses to delete through a symbolic link.
fn check_no_link(directory: Option<&str>) -> Result<()> {
    match directory.filter(|directory| is_link(directory)) {
        Some(directory) => Err(Error::new(
            Code::FailedPrecondition,
            format!("{directory} is a symbolic link, not a snapshot's directory"),
        )
        .with_hint("Put the directory back in its place, or remove the link.")),
        None => Ok(()),
    }
}

/// The entry that a user means; if it was deleted, the error says when and by whom.
pub(super) fn find<'a>(state: &'a State, text: &str, namespace: Option<&str>) -> Result<&'a SnapshotEntry> {
    state.find_snapshot(text, namespace).map_err(|error| {
        let mut deleted = state.retention.deleted.iter().rev();
        let directory = text.trim_end_matches('/');
        let named = |record: &DeletedRecord| {
            record.name.as_deref() == Some(text) && namespace.is_none_or(|namespace| record.namespace == namespace)
        };
        let record =
            deleted.find(|record| record.snapshot.as_str() == text || record.directory == directory || named(record));
        match record.filter(|_| error.code == Code::NotFound) {
            Some(record) => Error::not_found(format!("snapshot {} was deleted", record.snapshot))
                .with_detail(deletion_text(&record.deletion))
                .with_hint("`weir snapshots list --deleted` shows what was deleted."),
            None => error,
        }
    })
}

fn deletion_text(deletion: &Deletion) -> String {
    let at = moment(deletion.at);
    match &deletion.by {
        Deleter::User(name) if name.is_empty() => format!("a user deleted it at {at}"),
        Deleter::User(name) => format!("{name} deleted it at {at}"),
        Deleter::Policy(level) => format!("the retention policy of {level} deleted it at {at}"),
        Deleter::Eviction(savepoint) => format!("it made room for {savepoint} at {at}"),
        Deleter::System => format!("it was superseded at {at}"),
    }
}

fn moment(at: Millis) -> String {
    let moment = i64::try_from(at.0).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    moment.map_or_else(|| at.0.to_string(), |moment| moment.to_rfc3339_opts(SecondsFormat::Millis, true))
}

fn parse_state(text: &str) -> Result<&'static str> {
    let text = text.replace('-', "_");
    STATES.into_iter().find(|state| state.eq_ignore_ascii_case(&text)).ok_or_else(|| {
        Error::invalid(format!("{text:?} is not a state of a snapshot"))
            .with_hint(format!("Use {}.", STATES.join(", ")))
    })
}

/// Sorts what is in the order of time already, in ascending order.
fn sort(entries: &mut [&SnapshotEntry], order: pb::SnapshotOrder) {
    use pb::SnapshotOrder as Order;
    match order {
        Order::Time => {}
        Order::Bytes => entries.sort_by_key(|entry| entry.bytes),
        Order::ExclusiveBytes => entries.sort_by_key(|entry| entry.charged_bytes),
        // Those that have not ended are last: nobody knows how long they will take.
        Order::Duration => entries.sort_by_key(|entry| match entry.ended_at {
            Some(ended_at) => (false, ended_at.since(entry.triggered_at)),
            None => (true, 0),
        }),
        Order::Rows => entries.sort_by_key(|entry| entry.rows),
        Order::Job => entries.sort_by(|a, b| a.job_name.cmp(&b.job_name)),
        Order::Name => entries.sort_by(|a, b| a.annotations.name.cmp(&b.annotations.name)),
    }
}
