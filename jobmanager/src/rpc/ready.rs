//! Snapshots of jobs that were submitted a moment ago, or that are just recovering: whoever asks for one waits until the job
//! runs, instead of being told to try again.

use std::time::Duration;

use weir_proto::pb::client::v1 as pb;
use weir_types::job::JobState;
use weir_types::{Error, Result};

use super::ask;
use crate::door::Door;
use crate::event::{Event, Request};

/// How long a request waits for its job to run; a job that lacks slots, or breaks again and again, does not keep it longer.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Returns when the job runs, when it will not run by itself any more, or when the time is over; at once if the request is
/// a retry of one that is known. What is asked for next says what is wrong, if anything is.
pub(crate) async fn about_to_run(door: &Door, wanted: pb::JobRequest, timeout_ms: Option<u64>) {
    let request_id = wanted.request_id.clone();
    if !request_id.is_empty() && ask(door, |answer| Event::Request(Request::Progress(request_id, answer))).await.is_ok()
    {
        return;
    }
    let wait = timeout_ms.map_or(WAIT_MAX, |timeout_ms| WAIT_MAX.min(Duration::from_millis(timeout_ms)));
    let runs = async {
        let (job, mut changes) = ask(door, |answer| Event::Request(Request::Watch(wanted, answer))).await?;
        loop {
            changes.mark_unchanged();
            let job = pb::JobRequest { job: job.to_string(), ..Default::default() };
            let detail = ask(door, |answer| Event::Request(Request::Job(job, answer))).await?;
            if !is_about_to_run(&detail) || changes.changed().await.is_err() {
                return Ok::<(), Error>(());
            }
        }
    };
    let _said_by_the_request_itself: Result<Result<()>, _> = tokio::time::timeout(wait, runs).await;
}

/// A job that a new leader has not taken over yet runs, as far as is known, and waits for its subtasks to register.
fn is_about_to_run(detail: &pb::JobDetail) -> bool {
    let state = detail.summary.as_ref().map(pb::JobSummary::state).unwrap_or_default();
    !detail.waiting_for.is_empty()
        || matches!(JobState::try_from(state), Ok(JobState::Created | JobState::Starting | JobState::Restarting))
}
