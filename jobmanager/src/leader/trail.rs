//! What the JobManager says about each step of a snapshot, with the snapshot's id; `weir snapshots explain` shows it. Also the
//! places between two steps where a test may end it.

use weir_coordination::checkpoint::{Action, Event, Marked};
use weir_service::failpoint;
use weir_types::ids::JobId;

/// After a step, before anything follows from it.
pub(super) fn passed(event: &Event) {
    match event {
        Event::Reserved(_, Ok(())) => failpoint::reach("snapshot.reserved"),
        Event::GroupsStarted(_, Ok(())) => failpoint::reach("snapshot.groups"),
        // Barriers are under way, and the first subtask has answered.
        Event::Acked(_) => failpoint::reach("snapshot.barriers"),
        Event::Published(_, Ok(())) => failpoint::reach("snapshot.published"),
        Event::Completed(_, Ok(())) => failpoint::reach("snapshot.completed"),
        Event::Marked(_, Ok(_)) => failpoint::reach("snapshot.marked"),
        Event::Aborted(_) => failpoint::reach("snapshot.aborted"),
        _ => {}
    }
}

/// Before a step that no single event leads to.
pub(super) fn next(action: &Action) {
    if let Action::Publish(..) = action {
        failpoint::reach("snapshot.acknowledged");
    }
}

/// Says what has happened, before it is decided what follows.
pub(super) fn log(job: &JobId, event: &Event) {
    match event {
        Event::Reserved(snapshot, Ok(())) => tracing::debug!(%job, %snapshot, step = "reserved", "reserved"),
        Event::Reserved(snapshot, Err(error)) => {
            tracing::warn!(%job, %snapshot, step = "refused", code = %error.code, %error, "snapshot refused");
        }
        Event::GroupsStarted(snapshot, Ok(())) => {
            tracing::debug!(%job, %snapshot, step = "reader groups", "reader groups have started their checkpoints");
        }
        Event::GroupsStarted(snapshot, Err(error)) => {
            tracing::warn!(%job, %snapshot, code = %error.code, %error, "reader groups refused");
        }
        Event::Published(snapshot, Ok(())) => {
            tracing::debug!(%job, %snapshot, step = "published", "manifest published");
        }
        Event::Published(snapshot, Err(error)) => {
            tracing::warn!(%job, %snapshot, code = %error.code, %error, "could not publish the manifest");
        }
        Event::Marked(snapshot, Ok(Marked::Aborted)) => tracing::debug!(%job, %snapshot, "abort marker written"),
        Event::Marked(snapshot, Ok(Marked::Published)) => {
            tracing::info!(%job, %snapshot, "the manifest is there: completing instead of aborting");
        }
        Event::Completed(snapshot, Err(error)) => {
            tracing::warn!(%job, %snapshot, code = %error.code, %error, "completion refused");
        }
        Event::Aborted(snapshot) => tracing::debug!(%job, %snapshot, step = "aborted", "abortion committed"),
        // Said where it is carried out, or about no snapshot.
        _ => {}
    }
}
