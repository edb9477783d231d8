//! `weir run` and `weir explain`: a script becomes one job.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::json;
use weir_proto::from_status;
use weir_proto::pb::client::v1 as pb;
use weir_types::restore::RestorePlan;
use weir_types::{Code, Error, Result};

use crate::args::{Global, PlanArgs, RunArgs};
use crate::commands::{restore_plan, show, snapshots};
use crate::connect::{self, JobManager};
use crate::identity::Identity;
use crate::output::{self, Progress, count};

/// `weir run`.
pub(crate) async fn run(global: &Global, args: RunArgs) -> Result<()> {
    let mut request = request(global, &args.script, &args.plan)?;
    request.restore_from = args.from_savepoint.map(snapshots::local_path).transpose()?;
    request.allow_non_restored_state = args.allow_non_restored_state;
    request.allow_duplicates = args.allow_duplicates;
    if let Some(mode) = args.claim_mode {
        request.options.insert("execution.state-recovery.claim-mode".to_owned(), mode);
    }
    if args.only_plan {
        return plan_restore(global, request).await;
    }
    let job = connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.submit(request).await })
        .await?;
    if args.detached {
        return if global.json {
            output::print_json(&json!({"id": job.job_id, "name": job.name}))
        } else {
            output::print(&format!("Job {} ({}) submitted\n", job.job_id, job.name))
        };
    }
    if !global.json {
        output::print(&format!("Job {} ({}) submitted; Ctrl-C leaves it running\n", job.job_id, job.name))?;
    }
    let ended = tokio::select! {
        ended = follow(global, &job.job_id, global.json, |_| false) => ended?,
        _ = tokio::signal::ctrl_c() => {
            return output::print(&format!("\nJob {} goes on; stop it with `weir stop {}`\n", job.job_id, job.job_id));
        }
    };
    match ended.summary {
        Some(summary) if global.json => output::print_json(&show::job_json(&summary)),
        _ => Ok(()),
    }
}

/// Shows what a restore would do, and fails as it would.
async fn plan_restore(global: &Global, request: pb::SubmitRequest) -> Result<()> {
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.plan_restore(request).await })
            .await?;
    let plan: RestorePlan = serde_json::from_str(&reply.json).map_err(|error| {
        Error::internal("the JobManager answered with a plan that this command cannot read")
            .with_detail(error.to_string())
    })?;
    if global.json {
        let json = serde_json::to_value(&plan);
        output::print_json(&json.map_err(|error| Error::internal(error.to_string()))?)?;
    } else {
        output::print(&restore_plan::text(&plan))?;
    }
    plan.check()
}

/// Follows a job to its end, or until that is enough, from one leader to the next; unless it is to be quiet, it shows state changes
/// and progress.
pub(crate) async fn follow(
    global: &Global,
    job: &str,
    quiet: bool,
    enough: impl Fn(&pb::JobDetail) -> bool,
) -> Result<pb::JobDetail> {
    let several = connect::jobmanager_address(global)?.contains(',');
    loop {
        let mut jobmanager = connect::jobmanager(global).await?;
        match follow_while_led(&mut jobmanager, job, quiet, &enough).await? {
            Err(lost) if !several && lost.code != Code::NotLeader => return Err(lost),
            Err(_) => {}
            Ok(ended) => return Ok(ended),
        }
    }
}

/// Follows a job as long as one JobManager leads; the inner error says that it does no longer.
async fn follow_while_led(
    jobmanager: &mut JobManager,
    job: &str,
    quiet: bool,
    enough: &impl Fn(&pb::JobDetail) -> bool,
) -> Result<Result<pb::JobDetail>> {
    let request = pb::JobRequest { job: job.to_owned(), ..Default::default() };
    let mut updates = jobmanager.watch_job(request).await.map_err(|status| from_status(&status))?.into_inner();
    let mut progress = Progress::new();
    let mut shown = None;
    let (mut restarted, mut waiting) = (String::new(), String::new());
    loop {
        let detail = match updates.message().await {
            Ok(Some(detail)) => detail,
            Ok(None) => break,
            Err(status) => {
                let error = from_status(&status);
                let lost = status.details().is_empty() || error.code == Code::NotLeader;
                return if lost { Ok(Err(error)) } else { Err(error) };
            }
        };
        let Some(summary) = &detail.summary else { continue };
        let state = summary.state();
        if shown != Some(state) && !quiet {
            progress.clear();
            output::print(&format!("{}\n", state.as_str_name()))?;
        }
        shown = Some(state);
        match summary.failure.clone().map(Error::from) {
            Some(error) if state == pb::JobState::Failed => return Err(error),
            Some(error) if state == pb::JobState::Restarting => {
                let why = error.to_string();
                if why != restarted && !quiet {
                    progress.clear();
                    output::print(&format!("  because of {why}\n"))?;
                }
                restarted = why;
            }
            _ if !detail.waiting_for.is_empty() => {
                let reasons = detail.waiting_for.join("; ");
                if reasons != waiting && !quiet {
                    progress.clear();
                    output::print(&format!("  waiting: {reasons}\n"))?;
                }
                waiting = reasons;
            }
            _ if quiet => {}
            _ => progress.show(&format!("{} rows read, {} written", count(detail.rows_in), count(detail.rows_out))),
        }
        if show::has_ended(state) || enough(&detail) {
            return Ok(Ok(detail));
        }
    }
    Ok(Err(Error::new(Code::Unavailable, "the JobManager ended the connection")
        .with_hint(format!("The job goes on if the JobManager comes back; look at it with `weir job show {job}`."))))
}

/// `weir explain`.
pub(crate) async fn explain(global: &Global, script: &Path, plan: &PlanArgs) -> Result<()> {
    let request = request(global, script, plan)?;
    let reply =
        connect::ask(global, request, |mut jobmanager, request| async move { jobmanager.explain(request).await })
            .await?;
    let text = if global.json { reply.json } else { reply.text };
    output::print(&format!("{}\n", text.trim_end()))
}

/// A submission of the script at `path`.
fn request(global: &Global, path: &Path, plan: &PlanArgs) -> Result<pb::SubmitRequest> {
    let identity = Identity::load(global)?;
    let sql = read_script(path)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| *stem != "-");
    let mut options = BTreeMap::new();
    for setting in &plan.set {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            Error::invalid(format!("{setting:?} is not a setting")).with_hint("Write --set KEY=VALUE.")
        })?;
        options.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    if let Some(parallelism) = plan.parallelism {
        options.insert("parallelism.default".to_owned(), parallelism.to_string());
    }
    if let Some(least) = plan.min_parallelism {
        options.insert("parallelism.min".to_owned(), least.to_string());
    }
    if let Some(name) = &plan.name {
        options.insert("pipeline.name".to_owned(), name.clone());
    }
    Ok(pb::SubmitRequest {
        request_id: connect::request_id(),
        sql,
        name: stem.map(str::to_owned),
        options,
        owner: identity.owner(&plan.owner)?,
        namespace: identity.namespace(&plan.namespace)?.unwrap_or_default(),
        ..pb::SubmitRequest::default()
    })
}

/// Reads a script; `-` is standard input.
///
/// # Errors
/// `NOT_FOUND`, `IO`.
pub(crate) fn read_script(path: &Path) -> Result<String> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| {
        let message = format!("could not read the script {}", path.display());
        if error.kind() == std::io::ErrorKind::NotFound {
            return Error::not_found(message).with_detail(error.to_string());
        }
        Error::io(message, &error)
    })
}
