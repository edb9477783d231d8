//! What the JobManager says about each step of a snapshot, with the snapshot's id; `weir snapshots explain` shows it.

use weir_coordination::checkpoint::{Event, Marked};
use weir_types::ids::JobId;

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
