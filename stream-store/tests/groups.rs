//! Reader groups over a real socket: pushed views, durability across restarts, refusals.

#![expect(clippy::unwrap_used, reason = "test helpers panic like tests; clippy exempts only test functions")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use weir_stream_store::RecordBlockBuilder;
use weir_stream_store::client::{MemberWatch, StoreClient};
use weir_types::Code;
use weir_types::error::Facts;
use weir_types::group::{
    CheckpointOwner, GroupActor, GroupCheckpointState, GroupLimits, GroupMode, GroupSpec, GroupStart, MemberView,
    ResetTarget,
};
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::store::StreamOptions;
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;

use support::Server;

fn stream() -> StreamName {
    "shop/clicks".parse().unwrap()
}

fn group() -> GroupName {
    GroupName::new("g").unwrap()
}

fn reader(name: &str) -> ReaderId {
    ReaderId::new(name).unwrap()
}

fn id(name: &str) -> SnapshotId {
    SnapshotId::new(name).unwrap()
}

fn cut(offsets: &[(u32, u64)]) -> StreamCut {
    StreamCut(offsets.iter().map(|(p, offset)| (PartitionId(*p), Offset(*offset))).collect())
}

fn in_a_minute() -> Millis {
    Millis((SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(60)).as_millis() as u64)
}

fn spec(mode: GroupMode, limits: GroupLimits) -> GroupSpec {
    GroupSpec { name: group(), stream: stream(), mode, limits, start: GroupStart::Earliest }
}

async fn with_records(server: &Server) -> StoreClient {
    let client = server.client();
    client.create_stream(&stream(), &StreamOptions::new(2), false).await.unwrap();
    for partition in 0..2 {
        let mut builder = RecordBlockBuilder::default();
        for i in 0..10 {
            builder.push(None, &[i], None).unwrap();
        }
        client.append(&stream(), PartitionId(partition), &builder.finish(), None).await.unwrap();
    }
    client
}

/// The first view pushed that `wanted` accepts.
async fn until(watch: &mut MemberWatch, wanted: impl Fn(&MemberView) -> bool) -> MemberView {
    loop {
        let view = watch.next().await.unwrap();
        if wanted(&view) {
            return view;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_pushed_handovers_and_checkpoints() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = with_records(&server).await;
    client.create_group(&spec(GroupMode::Free, GroupLimits::default())).await.unwrap();
    let a = client.join_group(&group(), &reader("a")).await.unwrap();
    let mut watch_a = client.watch_member(&group(), &reader("a"), a.epoch).await.unwrap();
    assert_eq!(until(&mut watch_a, |_| true).await.owned, cut(&[(0, 0), (1, 0)]));

    let b = client.join_group(&group(), &reader("b")).await.unwrap();
    let mut watch_b = client.watch_member(&group(), &reader("b"), b.epoch).await.unwrap();
    let asked = until(&mut watch_a, |view| !view.revoking.is_empty()).await;
    assert_eq!(asked.revoking, [PartitionId(0)]);
    client.release_partitions(&group(), &reader("a"), a.epoch, &cut(&[(0, 4)])).await.unwrap();
    assert_eq!(until(&mut watch_b, |view| !view.owned.0.is_empty()).await.owned, cut(&[(0, 4)]));

    let owner = CheckpointOwner::User("ann".to_owned());
    client.start_checkpoint(&group(), &id("c-1"), &owner, in_a_minute(), &[]).await.unwrap();
    for (name, epoch, watch, offset) in [("a", a.epoch, &mut watch_a, (1, 7)), ("b", b.epoch, &mut watch_b, (0, 5))] {
        let view = until(watch, |view| !view.checkpoints.is_empty()).await;
        assert_eq!(view.checkpoints, [id("c-1")]);
        let by = GroupActor::Reader { reader: reader(name), epoch };
        client.ack_checkpoint(&group(), &id("c-1"), &by, &cut(&[offset])).await.unwrap();
    }
    let info = client.describe_group(&group()).await.unwrap();
    assert_eq!(info.checkpoints[0].state, GroupCheckpointState::Completed);
    assert_eq!(info.checkpoints[0].offsets, cut(&[(0, 5), (1, 7)]));

    client.join_group(&group(), &reader("b")).await.unwrap();
    let fenced = loop {
        match watch_b.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(fenced.code, Code::Fenced);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_reader_loses_its_partitions_to_the_other() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path()).await;
    let client = with_records(&server).await;
    let limits = GroupLimits { lease_ms: 300, ..GroupLimits::default() };
    client.create_group(&spec(GroupMode::Free, limits)).await.unwrap();
    let a = client.join_group(&group(), &reader("a")).await.unwrap();
    client.heartbeat(&group(), &reader("a"), a.epoch, &cut(&[(1, 3)])).await.unwrap();
    let b = client.join_group(&group(), &reader("b")).await.unwrap();
    let mut watch = client.watch_member(&group(), &reader("b"), b.epoch).await.unwrap();
    let beating = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(50));
            loop {
                every.tick().await;
                client.heartbeat(&group(), &reader("b"), b.epoch, &cut(&[])).await.unwrap();
            }
        })
    };
    assert_eq!(until(&mut watch, |view| view.owned.0.len() == 2).await.owned, cut(&[(0, 0), (1, 3)]));
    beating.abort();
    let late = client.heartbeat(&group(), &reader("a"), a.epoch, &cut(&[])).await.unwrap_err();
    assert_eq!(late.code, Code::Fenced);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jobs_group_survives_a_restart_whole() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(dir.path()).await;
    let client = with_records(&server).await;
    let job = JobId::new("job1").unwrap();
    let managed = GroupMode::Managed { job: job.clone() };
    client.create_group(&spec(managed.clone(), GroupLimits::default())).await.unwrap();
    let other = GroupMode::Managed { job: JobId::new("job2").unwrap() };
    let refused = client.create_group(&spec(other, GroupLimits::default())).await.unwrap_err();
    assert_eq!(refused.code, Code::GroupInUse);

    let owners = BTreeMap::from([(reader("s-0"), vec![PartitionId(0), PartitionId(1)])]);
    client.assign_partitions(&group(), &job, Attempt(1), &owners, &cut(&[(0, 2)])).await.unwrap();
    let owner = CheckpointOwner::Job(job.clone());
    client.start_checkpoint(&group(), &id("chk-1"), &owner, in_a_minute(), &[]).await.unwrap();
    let by_reader = GroupActor::Reader { reader: reader("s-0"), epoch: Epoch(1) };
    client.ack_checkpoint(&group(), &id("chk-1"), &by_reader, &cut(&[(0, 6)])).await.unwrap();
    let before = client.describe_group(&group()).await.unwrap();

    let address = server.stop().await;
    server = Server::start_on(dir.path(), address).await;
    client.wait_ready(Duration::from_secs(10)).await.unwrap();
    assert_eq!(client.describe_group(&group()).await.unwrap(), before);

    let by_job = GroupActor::Job { job: job.clone(), attempt: Attempt(1) };
    let too_far = client.ack_checkpoint(&group(), &id("chk-1"), &by_job, &cut(&[(1, 11)])).await.unwrap_err();
    assert_eq!(too_far.code, Code::InvalidArgument);
    let done = client.ack_checkpoint(&group(), &id("chk-1"), &by_job, &cut(&[(1, 9)])).await.unwrap();
    assert_eq!((done.state, done.offsets.clone()), (GroupCheckpointState::Completed, cut(&[(0, 6), (1, 9)])));
    client.commit_positions(&group(), &by_job, &done.offsets).await.unwrap();

    client.truncate(&stream(), &cut(&[(0, 8)]), false).await.unwrap();
    let back = ResetTarget::Checkpoint(id("chk-1"));
    let refused = client.reset_group(&group(), Some(&job), &back).await.unwrap_err();
    assert_eq!(refused.facts.as_deref(), Some(&Facts::OffsetTruncated { head: Offset(8) }));
    let released = client.release_checkpoint(&group(), &id("chk-1"), Some(&job)).await.unwrap();
    assert_eq!(released.state, GroupCheckpointState::Released);
    assert_eq!(client.delete_stream(&stream(), false).await.unwrap_err().code, Code::FailedPrecondition);
    // A job that had the name before, and is late to delete its group, does not reach this one.
    let before = JobId::new("job0").unwrap();
    let refused = client.delete_group(&group(), Some(&before), true).await.unwrap_err();
    assert_eq!(refused.code, Code::GroupInUse);
    client.delete_group(&group(), Some(&job), false).await.unwrap();
    client.delete_stream(&stream(), false).await.unwrap();
    assert_eq!(client.list_groups(None).await.unwrap(), []);
    server.stop().await;
}
