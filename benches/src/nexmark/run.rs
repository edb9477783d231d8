//! One run of one query.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use weir_benches::measure::{cpu_seconds, median, memory_mib};
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_proto::pb::client::v1::JobState;

/// How every query is run.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) events: u64,
    pub(crate) rate: u64,
    pub(crate) parallelism: u32,
    pub(crate) push_down: bool,
}

/// What one run took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) query: String,
    pub(crate) push_down: bool,
    pub(crate) events: u64,
    /// From all subtasks running to the job finished.
    pub(crate) seconds: f64,
    /// From the submission to all subtasks running.
    pub(crate) start_seconds: f64,
    pub(crate) task_manager_cpu_seconds: f64,
    pub(crate) jobmanager_cpu_seconds: f64,
    pub(crate) rows_out: u64,
    /// Of each TaskManager.
    pub(crate) task_manager_peak_mib: Vec<f64>,
    pub(crate) jobmanager_peak_mib: f64,
    pub(crate) store_peak_mib: f64,
}

/// Runs a query on a fresh cluster.
pub(crate) async fn run(query: &str, setting: &Setting) -> Result<Measured> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("nexmark");
    let read = |name: &str| {
        let path = folder.join(format!("{name}.sql"));
        std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
    };
    let script = (read("tables")? + &read(query)?)
        .replace("${EVENTS}", &setting.events.to_string())
        .replace("${RATE}", &setting.rate.to_string())
        .replace("${PARALLELISM}", &setting.parallelism.to_string())
        .replace("${PUSH_DOWN}", &setting.push_down.to_string());
    let cluster = Cluster::start(setting.parallelism, 1);
    let path = cluster.write("query.sql", &script);
    let task_managers: Vec<u32> =
        (1..=setting.parallelism).map(|number| cluster.pid(&format!("tm-{number}"))).collect();
    let jobmanager = cluster.pid("jobmanager");
    let cpu = |pids: &[u32]| pids.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>();
    let (cpu_before, jobmanager_before) = (cpu(&task_managers)?, cpu(&[jobmanager])?);
    let submitted = Instant::now();
    let job = cluster.weir_json(&["run", "-d", &path])["id"].as_str().context("a job id")?.to_owned();
    job_in_state(&cluster, &job, JobState::Finished).await;
    let detail = cluster.weir_json(&["job", "show", &job]);
    let total = submitted.elapsed().as_secs_f64();
    let ms = |name: &str| detail["job"][name].as_f64().context("a time");
    let seconds = (ms("ended_at_ms")? - ms("started_at_ms")?) / 1000.0;
    anyhow::ensure!(seconds <= total, "the job's times are wrong");
    Ok(Measured {
        query: query.to_owned(),
        push_down: setting.push_down,
        events: setting.events,
        seconds,
        start_seconds: (ms("started_at_ms")? - ms("submitted_at_ms")?) / 1000.0,
        task_manager_cpu_seconds: cpu(&task_managers)? - cpu_before,
        jobmanager_cpu_seconds: cpu(&[jobmanager])? - jobmanager_before,
        rows_out: detail["rows_out"].as_u64().context("a count")?,
        task_manager_peak_mib: task_managers.iter().map(|pid| memory_mib(*pid, "VmHWM")).collect::<Result<_>>()?,
        jobmanager_peak_mib: memory_mib(jobmanager, "VmHWM")?,
        store_peak_mib: memory_mib(cluster.pid("store"), "VmHWM")?,
    })
}

/// The table's header, in Markdown.
pub(crate) fn header() -> String {
    "| query | events | s | events/s | TM CPU s | events per TM CPU s | start s | rows out | peak MiB: TM, JM, store |\n\
     | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
        .to_owned()
}

/// Medians of several runs of a query; ratios to earlier runs, if there are any.
pub(crate) fn row(runs: &[Measured], earlier: &[Measured]) -> String {
    let of = |runs: &[Measured], figure: fn(&Measured) -> f64| median(runs.iter().map(figure).collect());
    let shown = |figure: fn(&Measured) -> f64, digits: usize| {
        let now = of(runs, figure);
        let ratio = now / of(earlier, figure);
        if ratio.is_nan() { format!("{now:.digits$}") } else { format!("{now:.digits$} ({ratio:.2}×)") }
    };
    let Some(first) = runs.first() else { return String::new() };
    format!(
        "| {}{} | {} | {} | {} | {} | {} | {} | {} | {:.0}, {:.0}, {:.0} |",
        first.query,
        if first.push_down { "" } else { " (no push-down)" },
        first.events,
        shown(|run| run.seconds, 2),
        shown(|run| run.events as f64 / run.seconds, 0),
        shown(|run| run.task_manager_cpu_seconds, 2),
        shown(|run| run.events as f64 / run.task_manager_cpu_seconds, 0),
        shown(|run| run.start_seconds, 3),
        first.rows_out,
        of(runs, |run| run.task_manager_peak_mib.iter().copied().fold(0.0, f64::max)),
        of(runs, |run| run.jobmanager_peak_mib),
        of(runs, |run| run.store_peak_mib),
    )
}
