//! Clients of a group of JobManagers whose leader may go at any time. Each remembers what it was promised. Now and then one
//! goes away before it has its answer, and asks again under the same request id, as after a lost connection.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use tonic::{Response, Status};
use weir_integration_tests::api::{Api, Leader};
use weir_integration_tests::cluster::{Cluster, DEADLINE};
use weir_integration_tests::random::Random;
use weir_proto::pb::client::v1 as pb;
use weir_types::{Code, Error, Result};

use crate::usage::LOOK_INTERVAL;

/// The longest that a client waits which goes away early.
const IMPATIENCE_MS: u64 = 40;
/// Savepoints that one client keeps at once.
const SAVEPOINTS_MAX: usize = 6;
/// Quota levels that one client changes.
const LEVELS: u64 = 3;

/// One client, which asks for one thing after the other.
pub(crate) struct Client {
    pub(crate) api: Api,
    random: Random,
    name: String,
    requests: u64,
    until: Instant,
}

/// What a client that takes savepoints was promised.
#[derive(Debug, Default)]
pub(crate) struct Savepoints {
    /// By request id: what was answered.
    pub(crate) requests: BTreeMap<String, std::result::Result<String, Code>>,
    /// By id, with the value of their label, if they were given one.
    pub(crate) kept: BTreeMap<String, Option<String>>,
    pub(crate) deleted: BTreeSet<String>,
}

impl Client {
    /// A client that goes on until a moment; `seed` decides what it does.
    pub(crate) fn new(cluster: &Cluster, name: &str, seed: u64, until: Instant) -> Self {
        let api = Api::new(&cluster.jobmanagers());
        Self { api, random: Random::new(seed), name: name.to_owned(), requests: 0, until }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    fn request_id(&mut self) -> String {
        self.requests += 1;
        format!("{}-{}", self.name, self.requests)
    }

    /// Asks until it is answered for good.
    async fn answer<T, F>(&mut self, call: impl Fn(Leader) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        while self.random.below(3) == 0 {
            let patience = Duration::from_millis(self.random.below(IMPATIENCE_MS));
            match self.api.ask(patience, &call).await {
                // Whoever went away does not know what these mean.
                Err(error) if error.code.is_retryable() => {}
                answered => return answered,
            }
        }
        self.api.ask(DEADLINE, &call).await
    }

    /// Takes a savepoint.
    pub(crate) async fn savepoint(&mut self, job: &str, request_id: &str) -> Result<pb::Snapshot> {
        let request = pb::TriggerSnapshotRequest {
            request_id: request_id.to_owned(),
            job: job.to_owned(),
            savepoint: true,
            owner: self.name.clone(),
            ..Default::default()
        };
        self.answer(|mut leader| {
            let request = request.clone();
            async move { leader.trigger_snapshot(request).await }
        })
        .await
    }

    async fn label(&mut self, snapshot: &str, value: &str) -> Result<pb::Snapshot> {
        let request = pb::AnnotateSnapshotRequest {
            request_id: self.request_id(),
            snapshot: snapshot.to_owned(),
            set_labels: [("value".to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        self.answer(|mut leader| {
            let request = request.clone();
            async move { leader.annotate_snapshot(request).await }
        })
        .await
    }

    async fn delete(&mut self, snapshot: &str) -> Result<pb::DeleteSnapshotReply> {
        let request = pb::DeleteSnapshotRequest {
            request_id: self.request_id(),
            snapshot: snapshot.to_owned(),
            force: true,
            owner: self.name.clone(),
            ..Default::default()
        };
        self.answer(|mut leader| {
            let request = request.clone();
            async move { leader.delete_snapshot(request).await }
        })
        .await
    }

    /// Submits a job, always the same for one request id.
    pub(crate) async fn submit(&mut self, name: &str, sql: &str, request_id: &str) -> Result<String> {
        let request = pb::SubmitRequest {
            request_id: request_id.to_owned(),
            sql: sql.to_owned(),
            name: Some(name.to_owned()),
            ..Default::default()
        };
        let submitted = self.answer(|mut leader| {
            let request = request.clone();
            async move { leader.submit(request).await }
        });
        Ok(submitted.await?.job_id)
    }

    /// Changes a limit; all changes differ.
    pub(crate) async fn set_quota(&mut self, level: &str, savepoints: u64) -> Result<()> {
        let request = pb::SetQuotaRequest {
            request_id: self.request_id(),
            level: level.to_owned(),
            limits: Some(pb::QuotaLimits { savepoints: Some(savepoints), ..Default::default() }),
            ..Default::default()
        };
        let deadline = Instant::now() + DEADLINE;
        loop {
            let set = self.answer(|mut leader| {
                let request = request.clone();
                async move { leader.set_quota(request).await }
            });
            match set.await {
                // The same change may still be under way, for the client that went away.
                Err(error) if error.code == Code::Unavailable && Instant::now() < deadline => {}
                answered => return answered.map(drop),
            }
        }
    }

    /// Waits until a job has finished.
    async fn finished(&mut self, job: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let request = pb::JobRequest { job: job.to_owned(), ..Default::default() };
            let described = self.answer(|mut leader| {
                let request = request.clone();
                async move { leader.describe_job(request).await }
            });
            let summary = described.await.expect("a job that was accepted").summary.unwrap_or_default();
            let state = summary.state();
            if state == pb::JobState::Finished {
                return;
            }
            assert!(state != pb::JobState::Failed && Instant::now() < deadline, "{summary:?}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Takes, labels and deletes savepoints of a job, one of them at a time.
    pub(crate) async fn keep_savepoints(mut self, job: String) -> Savepoints {
        let mut promised = Savepoints::default();
        while self.goes_on() {
            let some = match promised.kept.len() as u64 {
                0 => None,
                count => promised.kept.keys().nth(self.random.below(count) as usize).cloned(),
            };
            match (self.random.below(4), some) {
                (0, Some(id)) if promised.kept.len() > 1 => match self.delete(&id).await {
                    Ok(_) => {
                        promised.kept.remove(&id);
                        promised.deleted.insert(id);
                    }
                    // The job may need it.
                    Err(error) => assert_eq!(error.code, Code::FailedPrecondition, "{id}: {error:?}"),
                },
                (1, Some(id)) => {
                    let value = format!("v{}", self.requests);
                    self.label(&id, &value).await.expect("a savepoint that is there");
                    promised.kept.insert(id, Some(value));
                }
                _ if promised.kept.len() < SAVEPOINTS_MAX => {
                    let request = self.request_id();
                    let taken = self.savepoint(&job, &request).await;
                    promised.kept.extend(taken.iter().map(|snapshot| (snapshot.id.clone(), None)));
                    promised.requests.insert(request, taken.map(|snapshot| snapshot.id).map_err(code_of_a_loss));
                }
                _ => {}
            }
        }
        promised
    }

    /// Changes limits; the last promised of each level.
    pub(crate) async fn set_quotas(mut self) -> BTreeMap<String, u64> {
        let mut limits = BTreeMap::new();
        while self.goes_on() {
            let level = format!("namespace:{}-{}", self.name, self.random.below(LEVELS));
            let limit = self.requests + 10;
            self.set_quota(&level, limit).await.expect("a limit");
            limits.insert(level, limit);
        }
        limits
    }

    /// Runs jobs of scripts that the name is put into, one after the other; their ids by their names.
    pub(crate) async fn run_jobs(mut self, script: impl Fn(&str) -> String) -> BTreeMap<String, String> {
        let mut jobs = BTreeMap::new();
        while self.goes_on() {
            let request = self.request_id();
            let id = self.submit(&request, &script(&request), &request).await.expect("a script that is good");
            self.finished(&id).await;
            jobs.insert(request, id);
        }
        jobs
    }
}

/// A savepoint may fail for what was lost, and for nothing else.
fn code_of_a_loss(error: Error) -> Code {
    let losses = [Code::Unavailable, Code::FailedPrecondition, Code::Cancelled];
    assert!(losses.contains(&error.code), "{error:?}");
    error.code
}
