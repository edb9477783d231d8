//! The job that loses processes: a count per key whose state has every key, over rows that keep coming, with plain sinks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use weir_integration_tests::api::Api;
use weir_integration_tests::cluster::Cluster;
use weir_proto::pb::client::v1 as pb;
use weir_stream_store::client::StoreClient;
use weir_types::store::StreamOptions;
use weir_types::stream::StreamName;

use crate::feed::{Feed, now_ms, preload};
use crate::output::Output;

/// Longer than anything takes on a loaded machine; a run that gets here has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often the job's state is asked for: the resolution of when it runs again.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
const PARTITIONS: u32 = 4;
const PARALLELISM: u32 = 2;

/// One window operator holds every key, in the window of 2100, and puts out the windows of the present: event time follows
/// the clock at which a row was sent, not the time by which it is put into a window.
const SCRIPT: &str = "
CREATE TABLE events (seq BIGINT, k BIGINT, `at` TIMESTAMP(3), clock TIMESTAMP(3), WATERMARK FOR `at` AS clock)
WITH ('connector' = 'stream-store', 'stream' = 'bench/events', 'format' = 'json');
CREATE TABLE totals (k BIGINT, window_end TIMESTAMP(3), n BIGINT)
WITH ('connector' = 'stream-store', 'stream' = 'bench/totals', 'format' = 'json');
CREATE TABLE echo (seq BIGINT) WITH ('connector' = 'stream-store', 'stream' = 'bench/echo', 'format' = 'json');
INSERT INTO totals
SELECT k, window_end, COUNT(*) FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(`at`), INTERVAL '0.1' SECOND))
GROUP BY k, window_start, window_end;
INSERT INTO echo SELECT seq FROM events WHERE seq >= 0;
";

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) keys: u64,
    /// Rows a second.
    pub(crate) rate: u64,
    /// Between checkpoints.
    pub(crate) checkpoint_interval: Duration,
}

/// The job while it runs.
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) api: Api,
    pub(crate) output: Output,
    feed: Feed,
    load: Load,
}

impl Job {
    /// Starts the job, lets it take in a row of every key, and lets the rows flow.
    pub(crate) async fn start(cluster: &Cluster, load: Load) -> Result<Self> {
        let store = StoreClient::connect(&cluster.address("store"))?;
        let name = |stream: &str| StreamName::new("bench", stream);
        let (events, totals, echo) = (name("events")?, name("totals")?, name("echo")?);
        for stream in [&events, &totals, &echo] {
            store.create_stream(stream, &StreamOptions::new(PARTITIONS), false).await?;
        }
        preload(&store, &events, load.keys).await?;
        let output = Output::watch(&store, &echo, &totals).await?;
        let mut api = Api::new(&cluster.jobmanagers());
        let interval = format!("{} ms", load.checkpoint_interval.as_millis());
        let id = submit(&mut api, SCRIPT, &[("execution.checkpointing.interval", &interval)], PARALLELISM).await?;
        let feed = Feed::start(&store, &events, load.keys, load.rate).await?;
        let mut job = Self { id, api, output, feed, load };
        job.until("running with a row of every key", |detail| is_running(detail) && detail.rows_in >= load.keys)
            .await?;
        Ok(job)
    }

    /// The job as it stands.
    pub(crate) async fn detail(&mut self) -> Result<pb::JobDetail> {
        let request = pb::JobRequest { job: self.id.clone(), ..Default::default() };
        let asked = self.api.ask(PATIENCE, |mut leader| {
            let request = request.clone();
            async move { leader.describe_job(request).await }
        });
        Ok(asked.await?)
    }

    /// Waits until the job is as `done` says; when that was seen, and the job then.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        done: impl Fn(&pb::JobDetail) -> bool,
    ) -> Result<(Instant, pb::JobDetail)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let detail = self.detail().await?;
            let now = Instant::now();
            if done(&detail) {
                return Ok((now, detail));
            }
            let state = state(&detail);
            if now > deadline || state == pb::JobState::Failed {
                let summary = detail.summary.unwrap_or_default();
                let (waits_for, failure) = (detail.waiting_for, summary.failure);
                bail!("the job does not get to: {what}. It is {state:?}, waits for {waits_for:?}, {failure:?}");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the job has put out all that it was given, and a checkpoint has completed since; then for a part of the
    /// time to the next one, so that the runs of a scenario are spread over it.
    pub(crate) async fn steady(&mut self, part: f64) -> Result<()> {
        self.caught_up().await?;
        let now = now_ms()?;
        let newer = |detail: &pb::JobDetail| newest_checkpoint(detail).is_some_and(|it| it.triggered_at_ms > now);
        self.until("a checkpoint", newer).await?;
        tokio::time::sleep(self.load.checkpoint_interval.mul_f64(part)).await;
        Ok(())
    }

    /// Waits until everything that was sent before has come out.
    pub(crate) async fn caught_up(&mut self) -> Result<()> {
        let sent = self.feed.sent().await?;
        self.output.complete(sent, PATIENCE).await
    }
}

/// Submits a script.
pub(crate) async fn submit(api: &mut Api, sql: &str, options: &[(&str, &str)], parallelism: u32) -> Result<String> {
    let mut request =
        pb::SubmitRequest { request_id: format!("submit-{}", now_ms()?), sql: sql.to_owned(), ..Default::default() };
    request.options.extend(options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    request.options.insert("parallelism.default".to_owned(), parallelism.to_string());
    let submitted = api.ask(PATIENCE, |mut leader| {
        let request = request.clone();
        async move { leader.submit(request).await }
    });
    Ok(submitted.await.context("the job was refused")?.job_id)
}

pub(crate) fn state(detail: &pb::JobDetail) -> pb::JobState {
    detail.summary.as_ref().map(pb::JobSummary::state).unwrap_or_default()
}

pub(crate) fn is_running(detail: &pb::JobDetail) -> bool {
    state(detail) == pb::JobState::Running
}

pub(crate) fn attempt(detail: &pb::JobDetail) -> u32 {
    detail.summary.as_ref().map_or(0, |summary| summary.attempt)
}

/// The newest snapshot that the job can be restored from.
pub(crate) fn newest_checkpoint(detail: &pb::JobDetail) -> Option<&pb::Snapshot> {
    detail.recent_snapshots.iter().find(|snapshot| snapshot.state == "COMPLETED")
}
