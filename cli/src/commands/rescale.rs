//! `weir rescale`: a running job goes on at another parallelism.

use serde_json::json;
use weir_proto::pb::client::v1 as pb;
use weir_types::{Error, Result};

use crate::args::Global;
use crate::commands::{run, show};
use crate::{connect, output};

/// Rescales a job, and waits until it runs again.
pub(crate) async fn rescale(global: &Global, request: pb::RescaleJobRequest, detached: bool) -> Result<()> {
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.rescale_job(request).await })
            .await?;
    let pb::RescaleJobReply { job_id, from, to, attempt } = &reply;
    if detached {
        return if global.json {
            output::print_json(&json!({"id": job_id, "from": from, "to": to, "attempt": attempt}))
        } else {
            output::print(&format!("Job {job_id}: parallelism {to}, from its next attempt on\n"))
        };
    }
    let next = if from == to { *attempt } else { attempt + 1 };
    // A retry does not know whether the attempt has begun already.
    let least = if *from == 0 { 0 } else { next };
    let runs = |detail: &pb::JobDetail| {
        let summary = detail.summary.as_ref();
        summary.is_some_and(|job| job.state() == pb::JobState::Running && job.attempt >= least)
    };
    let detail = run::follow(global, job_id, true, runs).await?;
    let Some(summary) = &detail.summary else { return Ok(()) };
    if !runs(&detail) {
        let state = show::job_state(summary);
        let error =
            Error::new(weir_types::Code::FailedPrecondition, format!("job {job_id} is {state}, and was not rescaled"));
        return Err(summary.failure.clone().map_or(error, Error::from));
    }
    if global.json {
        return output::print_json(&show::job_json(summary));
    }
    let (parallelism, attempt) = (summary.parallelism, summary.attempt);
    output::print(&format!("Job {job_id} runs at parallelism {parallelism}, attempt {attempt}\n"))
}
