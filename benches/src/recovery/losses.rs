//! Processes killed under a running job, and how long it takes until nobody notices any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weir_integration_tests::api::Api;
use weir_integration_tests::cluster::Cluster;
use weir_proto::pb::client::v1 as pb;

use crate::feed::now_ms;
use crate::job::{Job, Load, PATIENCE, attempt, is_running, newest_checkpoint};
use crate::report::Run;

/// Throughput is compared from so long before a loss
const BEFORE: Duration = Duration::from_secs(3);
/// to so long after it.
const AFTER: Duration = Duration::from_secs(5);
/// Members of a group that lag no more than this follow without a gap: entries are written all the time.
const LAG_MAX: u64 = 100;

/// What was seen just before a process was killed.
struct Before {
    detail: pb::JobDetail,
    doubled: u64,
    killed: Instant,
    killed_ms: u64,
}

impl Before {
    /// To be called right before the kill.
    async fn now(job: &mut Job) -> Result<Self> {
        let (detail, doubled) = (job.detail().await?, job.output.doubled());
        Ok(Self { detail, doubled, killed: Instant::now(), killed_ms: now_ms()? })
    }

    fn since_ms(&self, then: Instant) -> f64 {
        then.saturating_duration_since(self.killed).as_secs_f64() * 1000.0
    }

    /// Waits for the first new output: of a window that ended after the kill, which takes every source to be there again.
    async fn output(&self, job: &mut Job, run: &mut Run) -> Result<()> {
        let output = job.output.window_after(self.killed_ms, PATIENCE).await?;
        run.add("to new output", "ms", self.since_ms(output));
        run.add("age of a window's result before", "ms", job.output.latency_ms(self.killed - BEFORE));
        Ok(())
    }

    /// Compares throughput after the kill with that before.
    fn throughput(&self, job: &Job, run: &mut Run) {
        let (second, killed) = (Duration::from_secs(1), self.killed);
        let (earlier, later) = (job.output.dip(killed - second, killed), job.output.dip(killed, killed + second));
        run.add("output of the second after, of the second before", "%", 100.0 * later.rows / earlier.rows);
        let (usual, dip) = (job.output.dip(killed - BEFORE, killed), job.output.dip(killed, killed + AFTER));
        run.add("lowest 50 ms before, of the median", "%", 100.0 * usual.least_rows / usual.median_rows);
        run.add("lowest 50 ms after, of the median before", "%", 100.0 * dip.least_rows / usual.median_rows);
        run.add("longest time without output before", "ms", usual.pause.as_secs_f64() * 1000.0);
        run.add("longest time without output after", "ms", dip.pause.as_secs_f64() * 1000.0);
    }

    /// Waits until nothing is missing, and counts what came out twice.
    async fn reprocessed(&self, job: &mut Job, run: &mut Run) -> Result<()> {
        job.caught_up().await?;
        run.add("rows reprocessed", "rows", (job.output.doubled() - self.doubled) as f64);
        Ok(())
    }
}

/// The middle of a run's share of the checkpoint interval.
fn part(run: u32, runs: u32) -> f64 {
    (f64::from(run) + 0.5) / f64::from(runs)
}

/// Kills TaskManagers that run the job, with or without a standby slot to go to.
pub(crate) async fn task_manager(scenario: &str, standby: bool, runs: u32, load: Load) -> Result<Vec<Run>> {
    let mut cluster = Cluster::start(if standby { 3 } else { 2 }, 1);
    let mut job = Job::start(&cluster, load).await?;
    let mut measured = Vec::new();
    for number in 0..runs {
        let mut run = Run::new(scenario);
        job.steady(part(number, runs)).await?;
        let before = Before::now(&mut job).await?;
        let subtasks = before.detail.chains.iter().flat_map(|chain| &chain.subtasks);
        let victim = subtasks.map(|subtask| subtask.task_manager_id.clone()).next().context("a subtask")?;
        cluster.kill(&victim);
        if !standby {
            cluster.restart(&victim);
        }
        let earlier = attempt(&before.detail);
        // Whether all of the job is started anew, or only what was lost.
        let broke = AtomicBool::new(false);
        let is_back = |detail: &pb::JobDetail| {
            let broken = broke.fetch_or(!is_running(detail) || attempt(detail) > earlier, Ordering::Relaxed);
            is_running(detail) && (broken || attempt(detail) > earlier)
        };
        let (running, _) = job.until("running again", is_back).await?;
        run.add("to RUNNING", "ms", before.since_ms(running));
        before.output(&mut job, &mut run).await?;
        before.reprocessed(&mut job, &mut run).await?;
        if standby {
            cluster.restart(&victim);
        }
        let restored = newest_checkpoint(&before.detail).context("a checkpoint to restore")?;
        run.add("size of the restored checkpoint", "bytes", restored.bytes as f64);
        run.add(
            "age of the restored checkpoint",
            "ms",
            before.killed_ms.saturating_sub(restored.triggered_at_ms) as f64,
        );
        measured.push(run);
    }
    Ok(measured)
}

/// Kills the JobManager that leads. One that is alone is started again at once, one of a group when all is measured.
pub(crate) async fn leader(scenario: &str, jobmanagers: u32, runs: u32, load: Load) -> Result<Vec<Run>> {
    let alone = jobmanagers == 1;
    let mut cluster = if alone { Cluster::start(2, 1) } else { Cluster::start_group(jobmanagers, 2, 1) };
    let mut job = Job::start(&cluster, load).await?;
    let mut measured = Vec::new();
    for number in 0..runs {
        let mut run = Run::new(scenario);
        job.steady(part(number, runs)).await?;
        let victim = if alone { "jobmanager".to_owned() } else { whole(&mut job.api, jobmanagers).await? };
        let mut commands = Api::new(&cluster.jobmanagers());
        let before = Before::now(&mut job).await?;
        cluster.kill(&victim);
        if alone {
            cluster.restart(&victim);
        }
        command(&mut commands, "cluster", u64::from(number) + 1_000).await?;
        run.add("to an answered command", "ms", before.since_ms(Instant::now()));
        let (running, _) = job.until("running", is_running).await?;
        run.add("to RUNNING, as clients see it", "ms", before.since_ms(running));
        before.output(&mut job, &mut run).await?;
        tokio::time::sleep_until((before.killed + AFTER).into()).await;
        before.throughput(&job, &mut run);
        before.reprocessed(&mut job, &mut run).await?;
        run.add("attempts begun", "", f64::from(attempt(&job.detail().await?) - attempt(&before.detail)));
        if !alone {
            cluster.restart(&victim);
        }
        measured.push(run);
    }
    Ok(measured)
}

/// Has a limit of a quota level changed: a command that is answered when it is durable and applied.
pub(crate) async fn command(api: &mut Api, level: &str, savepoints: u64) -> Result<()> {
    let limits = pb::QuotaLimits { savepoints: Some(savepoints), ..Default::default() };
    let request_id = format!("{}-{savepoints}", level.replace(':', "-"));
    let request =
        pb::SetQuotaRequest { request_id, level: level.to_owned(), limits: Some(limits), ..Default::default() };
    let set = api.ask(PATIENCE, |mut leader| {
        let request = request.clone();
        async move { leader.set_quota(request).await }
    });
    set.await.context("a command was refused")?;
    Ok(())
}

/// Waits until all members of the group follow; the process that leads.
async fn whole(api: &mut Api, jobmanagers: u32) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list = api.ask(PATIENCE, |mut leader| async move { leader.list_members(pb::ListMembersRequest {}).await });
        let members = list.await?.members;
        let follows = |member: &pb::Member| member.active && member.lag <= LAG_MAX;
        if members.len() == jobmanagers as usize && members.iter().all(follows) {
            let leader = members.iter().find(|member| member.leads).context("a leader")?;
            return Ok(format!("jobmanager-{}", leader.id));
        }
        anyhow::ensure!(Instant::now() < deadline, "the members do not catch up: {members:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
