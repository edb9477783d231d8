//! `weir list`, `weir job show`, `weir cancel`.

use serde_json::json;
use weir_proto::pb::client::v1 as pb;
use weir_types::Result;

use crate::args::{Global, JobCommand};
use crate::commands::show;
use crate::connect::JobManager;
use crate::identity::{Identity, NamespaceArgs, ScopeArgs};
use crate::{connect, output};

/// `weir list`: the jobs that have not ended; `-r`, `-s` and `-a` as in Flink.
pub(crate) async fn list(global: &Global, running: bool, scheduled: bool, all: bool, scope: &ScopeArgs) -> Result<()> {
    let unfiltered = !running && !scheduled;
    let request = pb::ListJobsRequest {
        running: running || unfiltered,
        scheduled: scheduled || unfiltered,
        ended: all,
        namespace: Identity::load(global)?.scope(scope)?,
    };
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.list_jobs(request).await })
            .await?;
    if global.json {
        return output::print_json(&json!(reply.jobs.iter().map(show::job_json).collect::<Vec<_>>()));
    }
    output::print(&show::jobs_table(&reply.jobs))
}

/// `weir job …`.
pub(crate) async fn job(global: &Global, command: JobCommand) -> Result<()> {
    let JobCommand::Show { job, namespace } = command;
    let namespace = Identity::load(global)?.namespace(&namespace)?;
    let request = pb::JobRequest { request_id: connect::request_id(), job, namespace };
    let detail =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.describe_job(request).await })
            .await?;
    if global.json {
        return output::print_json(&show::job_detail_json(&detail));
    }
    output::print(&show::job_detail_text(&detail))
}

/// `weir cancel`.
pub(crate) async fn cancel(global: &Global, job: String, namespace: &NamespaceArgs) -> Result<()> {
    let namespace = Identity::load(global)?.namespace(namespace)?;
    let request = pb::JobRequest { request_id: connect::request_id(), job, namespace };
    let detail =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.cancel_job(request).await })
            .await?;
    let Some(mut summary) = detail.summary else { return Ok(()) };
    // The request is accepted before the subtasks have ended: say what became of the job.
    while !show::has_ended(summary.state()) {
        // Another JobManager may lead meanwhile.
        let request = pb::JobRequest { job: summary.id.clone(), ..Default::default() };
        let watch = |mut jobmanager: JobManager, request| async move { jobmanager.watch_job(request).await };
        let mut updates = connect::ask(global, request, watch).await?;
        while !show::has_ended(summary.state())
            && let Ok(Some(update)) = updates.message().await
        {
            summary = update.summary.unwrap_or(summary);
        }
    }
    if global.json {
        return output::print_json(&show::job_json(&summary));
    }
    output::print(&format!("Job {} ({}): {}\n", summary.id, summary.name, show::job_state(&summary)))
}
