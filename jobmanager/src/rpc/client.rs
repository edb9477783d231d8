//! The client API. A client that goes away aborts nothing: what it asked for is found again by its request id.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::client_server::Client;
use weir_service::Shutdown;
use weir_types::job::JobState;
use weir_types::{Error, Result};

use super::{about_to_run, ask, status};
use crate::door::Door;
use crate::event::{Answer, Event, Request as Asked};
use crate::identity::{self, Claim};
use crate::members;
use crate::planning::Planner;

/// Changes of a watched job within this time are shown as one.
const COALESCE: Duration = Duration::from_millis(50);

pub(super) struct Service {
    door: Door,
    planner: Planner,
    members: members::Service,
    shutdown: Shutdown,
}

impl Service {
    pub(super) fn new(door: Door, planner: Planner, members: members::Service, shutdown: Shutdown) -> Self {
        Self { door, planner, members, shutdown }
    }

    async fn ask<T>(&self, asked: impl FnOnce(Answer<T>) -> Asked) -> Result<Response<T>, Status> {
        ask(&self.door, |answer| Event::Request(asked(answer))).await.map(Response::new).map_err(status)
    }
}

type Details = Pin<Box<dyn Stream<Item = Result<pb::JobDetail, Status>> + Send>>;

#[tonic::async_trait]
impl Client for Service {
    async fn cluster_status(
        &self,
        _request: Request<pb::ClusterStatusRequest>,
    ) -> Result<Response<pb::ClusterStatusReply>, Status> {
        self.ask(Asked::Status).await
    }

    async fn explain(&self, request: Request<pb::SubmitRequest>) -> Result<Response<pb::ExplainReply>, Status> {
        let planned = self.planner.plan(request.get_ref()).await.map_err(status)?;
        Ok(Response::new(pb::ExplainReply { text: planned.explain, json: planned.explain_json.to_string() }))
    }

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Result<Response<pb::SubmitReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Submit(Box::new(request), answer)).await
    }

    async fn plan_restore(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::PlanRestoreReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::PlanRestore(Box::new(request), answer)).await
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Jobs(request, answer)).await
    }

    async fn describe_job(&self, request: Request<pb::JobRequest>) -> Result<Response<pb::JobDetail>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Job(request, answer)).await
    }

    type WatchJobStream = Details;

    async fn watch_job(&self, request: Request<pb::JobRequest>) -> Result<Response<Details>, Status> {
        let request = known(request)?;
        let (job, changes) =
            ask(&self.door, |answer| Event::Request(Asked::Watch(request, answer))).await.map_err(status)?;
        let watched = Watched { door: self.door.clone(), job: job.to_string(), changes, shown: false, ended: false };
        let details = futures::stream::unfold(watched, Watched::next);
        let shutdown = self.shutdown.clone();
        let details = futures::StreamExt::take_until(details, async move { shutdown.requested().await });
        Ok(Response::new(Box::pin(details)))
    }

    async fn cancel_job(&self, request: Request<pb::JobRequest>) -> Result<Response<pb::JobDetail>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Cancel(request, answer)).await
    }

    async fn trigger_snapshot(
        &self,
        request: Request<pb::TriggerSnapshotRequest>,
    ) -> Result<Response<pb::Snapshot>, Status> {
        let request = known(request)?;
        let pb::TriggerSnapshotRequest { request_id, job, namespace, timeout_ms, .. } = request.clone();
        about_to_run(&self.door, pb::JobRequest { request_id, job, namespace }, timeout_ms).await;
        self.ask(|answer| Asked::Trigger(request, answer)).await
    }

    async fn stop_job(&self, request: Request<pb::StopJobRequest>) -> Result<Response<pb::Snapshot>, Status> {
        let request = known(request)?;
        let pb::StopJobRequest { request_id, job, namespace, timeout_ms, .. } = request.clone();
        about_to_run(&self.door, pb::JobRequest { request_id, job, namespace }, timeout_ms).await;
        self.ask(|answer| Asked::Stop(request, answer)).await
    }

    async fn rescale_job(
        &self,
        request: Request<pb::RescaleJobRequest>,
    ) -> Result<Response<pb::RescaleJobReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Rescale(request, answer)).await
    }

    async fn list_snapshots(
        &self,
        request: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Snapshots(request, answer)).await
    }

    async fn describe_snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<pb::Snapshot>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Snapshot(request, answer)).await
    }

    async fn explain_snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<pb::SnapshotExplanation>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Explain(request, answer)).await
    }

    async fn cancel_snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<pb::Snapshot>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::CancelSnapshot(request, answer)).await
    }

    async fn describe_request(
        &self,
        request: Request<pb::RequestRef>,
    ) -> Result<Response<pb::SnapshotProgress>, Status> {
        self.ask(|answer| Asked::Progress(request.into_inner().request_id, answer)).await
    }

    async fn set_quota(&self, request: Request<pb::SetQuotaRequest>) -> Result<Response<pb::SetQuotaReply>, Status> {
        self.ask(|answer| Asked::SetQuota(request.into_inner(), answer)).await
    }

    async fn list_quotas(
        &self,
        request: Request<pb::ListQuotasRequest>,
    ) -> Result<Response<pb::ListQuotasReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Quotas(request, answer)).await
    }

    async fn verify_snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<pb::VerifySnapshotReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Verify(request, answer)).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DeleteSnapshotReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Delete(request, answer)).await
    }

    async fn import_snapshot(
        &self,
        request: Request<pb::ImportSnapshotRequest>,
    ) -> Result<Response<pb::Snapshot>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Import(request, answer)).await
    }

    async fn annotate_snapshot(
        &self,
        request: Request<pb::AnnotateSnapshotRequest>,
    ) -> Result<Response<pb::Snapshot>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Annotate(request, answer)).await
    }

    async fn list_deleted(
        &self,
        request: Request<pb::ListDeletedRequest>,
    ) -> Result<Response<pb::ListDeletedReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Deleted(request, answer)).await
    }

    async fn collect_garbage(
        &self,
        request: Request<pb::CollectGarbageRequest>,
    ) -> Result<Response<pb::CollectGarbageReply>, Status> {
        self.ask(|answer| Asked::Collect(request.into_inner(), answer)).await
    }

    async fn set_policy(&self, request: Request<pb::SetPolicyRequest>) -> Result<Response<pb::Policy>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::SetPolicy(request, answer)).await
    }

    async fn remove_policy(&self, request: Request<pb::RemovePolicyRequest>) -> Result<Response<pb::Policy>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::RemovePolicy(request, answer)).await
    }

    async fn list_policies(
        &self,
        request: Request<pb::ListPoliciesRequest>,
    ) -> Result<Response<pb::ListPoliciesReply>, Status> {
        let request = known(request)?;
        self.ask(|answer| Asked::Policies(request, answer)).await
    }

    async fn list_members(
        &self,
        _request: Request<pb::ListMembersRequest>,
    ) -> Result<Response<pb::ListMembersReply>, Status> {
        self.members.list().await.map(Response::new).map_err(status)
    }

    async fn add_member(
        &self,
        request: Request<pb::AddMemberRequest>,
    ) -> Result<Response<pb::ListMembersReply>, Status> {
        self.members.add(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn remove_member(
        &self,
        request: Request<pb::RemoveMemberRequest>,
    ) -> Result<Response<pb::ListMembersReply>, Status> {
        self.members.remove(request.into_inner()).await.map(Response::new).map_err(status)
    }
}

/// A request with the identity that it is carried out under.
fn known<T: Claim>(request: Request<T>) -> Result<T, Status> {
    identity::resolve(request.into_inner()).map_err(status)
}

/// A watched job: its detail at once, after changes, and a last time when it has ended.
struct Watched {
    door: Door,
    job: String,
    changes: watch::Receiver<u64>,
    shown: bool,
    ended: bool,
}

impl Watched {
    async fn next(mut self) -> Option<(Result<pb::JobDetail, Status>, Self)> {
        if self.ended {
            return None;
        }
        if self.shown {
            // An error says that the leader has let go of the job: it has ended, and this is its last detail.
            self.ended = self.changes.changed().await.is_err();
            tokio::time::sleep(COALESCE).await;
        }
        self.changes.mark_unchanged();
        self.shown = true;
        let job = pb::JobRequest { job: self.job.clone(), ..Default::default() };
        let detail = ask(&self.door, |answer| Event::Request(Asked::Job(job, answer))).await;
        self.ended |= detail.as_ref().map_or(true, has_ended);
        Some((detail.map_err(status), self))
    }
}

fn has_ended(detail: &pb::JobDetail) -> bool {
    let state = detail.summary.as_ref().map(pb::JobSummary::state).unwrap_or_default();
    JobState::try_from(state).map_err(|_: Error| ()).is_ok_and(JobState::is_terminal)
}
