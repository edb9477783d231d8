//! Waiting for jobs through the JobManager's pushed updates.

use std::time::Duration;

use tokio::time::timeout;
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::client_client::ClientClient;

use crate::cluster::{Cluster, DEADLINE};

/// How long a JobManager may take to begin an answer; one that does not lead waits for a leader itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the job's detail fulfils `done`; the detail.
pub async fn job_until(
    cluster: &Cluster,
    job: &str,
    what: &str,
    done: impl Fn(&pb::JobDetail) -> bool,
) -> pb::JobDetail {
    let addresses = cluster.jobmanagers();
    let watch = async {
        for address in addresses.iter().cycle() {
            // The JobManager may be the process that was killed, or not lead: then connect again, or to another one.
            let Ok(mut client) = ClientClient::connect(format!("http://{address}")).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let request = pb::JobRequest { job: job.to_owned(), ..Default::default() };
            // One that is frozen takes connections, and answers nothing.
            let Ok(Ok(updates)) = timeout(ANSWER_TIMEOUT, client.watch_job(request)).await else { continue };
            let mut updates = updates.into_inner();
            while let Ok(Some(detail)) = updates.message().await {
                if done(&detail) {
                    return detail;
                }
                let state = detail.summary.as_ref().map(pb::JobSummary::state);
                assert_ne!(state, Some(pb::JobState::Failed), "job failed while waiting until {what}: {detail:?}");
            }
        }
        panic!("a cluster without a JobManager")
    };
    timeout(DEADLINE, watch).await.unwrap_or_else(|_| panic!("job {job} does not get to: {what}"))
}

/// Waits until the job is in `state`.
pub async fn job_in_state(cluster: &Cluster, job: &str, state: pb::JobState) -> pb::JobDetail {
    job_until(cluster, job, state.as_str_name(), |detail| {
        detail.summary.as_ref().is_some_and(|summary| summary.state() == state)
    })
    .await
}

/// Waits until a checkpoint of the job has completed that started after `triggered_at_ms`.
pub async fn checkpoint_after(cluster: &Cluster, job: &str, triggered_at_ms: u64) -> pb::JobDetail {
    job_until(cluster, job, "a completed checkpoint", |detail| {
        let mut snapshots = detail.recent_snapshots.iter();
        snapshots.any(|snapshot| snapshot.state == "COMPLETED" && snapshot.triggered_at_ms > triggered_at_ms)
    })
    .await
}
