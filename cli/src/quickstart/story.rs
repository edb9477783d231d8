//! The steps of the quickstart, told as they happen.

use std::time::Duration;

use serde_json::Value;
use weir_proto::from_status;
use weir_proto::pb::client::v1 as pb;
use weir_stream_store::client::StoreClient;
use weir_types::stream::StreamName;
use weir_types::{Code, Error, Result};

use crate::cluster::file::ClusterFile;
use crate::commands::show;
use crate::commands::snapshots::view;
use crate::commands::stream::{append_lines, create_stream, read_to_end};
use crate::connect::{self, JobManager};
use crate::output::{Progress, bytes, count};
use crate::quickstart::check::{self, Outputs};
use crate::quickstart::input::{INPUT_STREAM, Input};
use crate::quickstart::say;

/// Partitions of the input stream.
const PARTITIONS: u32 = 4;
/// Parallelism before and after the savepoint.
const PARALLELISM: [u32; 2] = [2, 3];
/// How long the job may take to read its input.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// A quickstart under way.
#[derive(Debug)]
pub(crate) struct Story<'a> {
    cluster: &'a ClusterFile,
    input: &'a Input,
}

impl<'a> Story<'a> {
    /// The story of `input` on `cluster`.
    pub(crate) fn begin(cluster: &'a ClusterFile, input: &'a Input) -> Self {
        Self { cluster, input }
    }

    /// Runs it and returns the verdict.
    ///
    /// # Errors
    /// Whatever went wrong; a result that differs from the batch computation.
    pub(crate) async fn await_told(self) -> Result<Value> {
        let mut jobmanager = connect::jobmanager_at(&self.cluster.jobmanager).await?;
        let store = StoreClient::connect(&self.cluster.store)?;
        let outputs = Outputs::of(&self.input.script)?;
        let stream: StreamName = INPUT_STREAM.parse()?;
        create_stream(&store, &stream, PARTITIONS).await?;

        let half = self.input.lines.len() / 2;
        let (first, rest) = self.input.lines.split_at(half);
        let job = self.submit(&mut jobmanager, PARALLELISM[0], None).await?;
        say(&format!("Job {job} submitted at parallelism {}", PARALLELISM[0]))?;
        self.load(&store, &stream, first).await?;
        self.follow(&mut jobmanager, &store, &job, &outputs, first.len() as u64).await?;
        let savepoint = self.stop(&mut jobmanager, &job, false).await?;
        let read: u64 = savepoint.sources.iter().map(|source| source.offset).sum();

        self.load(&store, &stream, rest).await?;
        let job = self.submit(&mut jobmanager, PARALLELISM[1], Some(savepoint.directory.clone())).await?;
        say(&format!("Job {job} resumed from {} at parallelism {}", savepoint.id, PARALLELISM[1]))?;
        let remaining = (self.input.lines.len() as u64).saturating_sub(read);
        self.follow(&mut jobmanager, &store, &job, &outputs, remaining).await?;
        self.stop(&mut jobmanager, &job, true).await?;

        let written = read_to_end(&store, &outputs.results.parse()?).await?;
        let late = match &outputs.late {
            Some(stream) => read_to_end(&store, &stream.parse()?).await?,
            None => Vec::new(),
        };
        let verdict = check::check(self.input, &outputs, &written, &late).await?;
        say(&format!(
            "Result: {} rows from {} input rows, {} late rows kept apart; equal to the {}",
            count(written.len() as u64),
            count(self.input.lines.len() as u64),
            count(late.len() as u64),
            verdict["compared_with"].as_str().unwrap_or_default(),
        ))?;
        Ok(verdict)
    }

    async fn load(&self, store: &StoreClient, stream: &StreamName, lines: &[String]) -> Result<()> {
        let mut progress = Progress::new();
        let total = lines.len() as u64;
        let rows = append_lines(store, stream, lines.iter().cloned().map(Ok), self.input.key.as_deref(), |appended| {
            progress.show(&format!("Loading {} of {} rows", count(appended), count(total)));
        })
        .await?;
        drop(progress);
        say(&format!("Loaded {} rows into the stream {stream}", count(rows)))
    }

    async fn submit(
        &self,
        jobmanager: &mut JobManager,
        parallelism: u32,
        restore_from: Option<String>,
    ) -> Result<String> {
        let request = pb::SubmitRequest {
            request_id: connect::request_id(),
            sql: self.input.script.clone(),
            name: Some("quickstart".to_owned()),
            options: [("parallelism.default".to_owned(), parallelism.to_string())].into(),
            restore_from,
            owner: "quickstart".to_owned(),
            ..pb::SubmitRequest::default()
        };
        Ok(jobmanager.submit(request).await.map_err(|status| from_status(&status))?.into_inner().job_id)
    }

    /// Shows results and checkpoints as they come, until the job has read `rows` rows.
    async fn follow(
        &self,
        jobmanager: &mut JobManager,
        store: &StoreClient,
        job: &str,
        outputs: &Outputs,
        rows: u64,
    ) -> Result<()> {
        let request = pb::JobRequest { job: job.to_owned(), ..Default::default() };
        let mut updates = jobmanager.watch_job(request).await.map_err(|status| from_status(&status))?.into_inner();
        let mut progress = Progress::new();
        let mut newest_checkpoint = String::new();
        let reading = async {
            while let Some(detail) = updates.message().await.map_err(|status| from_status(&status))? {
                let Some(summary) = &detail.summary else { continue };
                if show::has_ended(summary.state()) {
                    let failure = summary.failure.clone().map(Error::from);
                    return Err(failure.unwrap_or_else(|| Error::internal("the job ended early")));
                }
                let completed = detail.recent_snapshots.iter().find(|snapshot| snapshot.state == "COMPLETED");
                if let Some(snapshot) = completed
                    && snapshot.id != newest_checkpoint
                {
                    newest_checkpoint.clone_from(&snapshot.id);
                    progress.clear();
                    let took = snapshot.ended_at_ms.saturating_sub(snapshot.triggered_at_ms);
                    say(&format!(
                        "  {} {} completed in {took} ms, {}",
                        view::kind(snapshot),
                        snapshot.id,
                        bytes(snapshot.bytes)
                    ))?;
                }
                progress.show(&format!("  {} of {} rows read", count(detail.rows_in), count(rows)));
                if detail.rows_in >= rows && summary.state() == pb::JobState::Running {
                    return Ok(());
                }
            }
            Err(Error::unavailable("the JobManager ended the connection"))
        };
        tokio::time::timeout(READ_TIMEOUT, reading).await.map_err(|_| {
            Error::new(Code::Timeout, format!("the job did not read {rows} rows in {READ_TIMEOUT:?}"))
        })??;
        drop(progress);
        self.show_results(store, outputs).await
    }

    /// Shows how many results there are, and the newest.
    async fn show_results(&self, store: &StoreClient, outputs: &Outputs) -> Result<()> {
        let results = match read_to_end(store, &outputs.results.parse()?).await {
            Err(error) if error.code == Code::NotFound => Vec::new(),
            results => results?,
        };
        say(&format!("  {} results so far{}", count(results.len() as u64), if results.is_empty() { "" } else { ":" }))?;
        for record in results.iter().rev().take(3).rev() {
            say(&format!("    {record}"))?;
        }
        Ok(())
    }

    async fn stop(&self, jobmanager: &mut JobManager, job: &str, drain: bool) -> Result<pb::Snapshot> {
        let request = pb::StopJobRequest {
            request_id: connect::request_id(),
            job: job.to_owned(),
            drain,
            directory: None,
            timeout_ms: None,
            owner: "quickstart".to_owned(),
            namespace: None,
        };
        let snapshot = jobmanager.stop_job(request).await.map_err(|status| from_status(&status))?.into_inner();
        if let Some(failure) = snapshot.failure {
            return Err(failure.into());
        }
        let took = snapshot.ended_at_ms.saturating_sub(snapshot.triggered_at_ms);
        let how = if drain { "drained and stopped" } else { "stopped" };
        say(&format!("Job {how} with savepoint {} in {took} ms, {}", snapshot.id, bytes(snapshot.bytes)))?;
        Ok(snapshot)
    }
}
