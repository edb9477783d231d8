//! The JobManager over real sockets, with TaskManagers that the tests play.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod harness;
mod streams;

use harness::{Cluster, TaskManager, offsets, soon};
use weir_proto::from_status;
use weir_proto::pb::client::v1 as client;
use weir_types::control::ToTaskManager;
use weir_types::deployment::SubtaskState;
use weir_types::{Code, Error};

fn at(offset: u64) -> Vec<(String, u64)> {
    vec![("file-a.jsonl".to_owned(), offset), ("file-b.jsonl".to_owned(), offset)]
}

/// Waits until nothing is at `path`.
async fn gone(path: &std::path::Path) {
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
}

fn job_request(job: &str) -> client::JobRequest {
    client::JobRequest { job: job.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_job_is_deployed_runs_takes_a_savepoint_and_stops() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let job = jobmanager.submit(cluster.script("SET 'parallelism.default' = '2';")).await;
    let waiting = jobmanager.until(&job, |detail| !detail.waiting_for.is_empty()).await;
    assert_eq!(waiting.waiting_for, ["2 slots: 0 of 0 are free"]);

    let mut one = TaskManager::join(&jobmanager, "one", 1, vec![]).await;
    let mut two = TaskManager::join(&jobmanager, "two", 1, vec![]).await;
    let (deployment, same) = (one.deployment().await, two.deployment().await);
    assert_eq!(deployment, same);
    assert_eq!(offsets(&deployment), at(0));
    assert!(deployment.restore.is_none());
    one.report(&deployment, SubtaskState::Running).await;
    two.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;

    let parent = cluster.path("kept");
    let asked = jobmanager.savepoint(&job, "request-1", Some(&parent));
    let (barrier, same) = (one.trigger().await, two.trigger().await);
    assert_eq!(barrier, same);
    one.acknowledge(&deployment, &barrier).await;
    two.acknowledge(&deployment, &barrier).await;
    let savepoint = soon(asked).await.unwrap().unwrap();
    assert_eq!((savepoint.state.as_str(), savepoint.subtasks_acknowledged), ("COMPLETED", savepoint.subtasks_total));
    assert!(savepoint.directory.starts_with(parent.to_str().unwrap()), "{}", savepoint.directory);
    assert!(std::path::Path::new(&savepoint.directory).join("manifest.json").exists());
    assert!(one.outcome().await && two.outcome().await);

    // The same request finds the same savepoint again.
    assert_eq!(soon(jobmanager.savepoint(&job, "request-1", None)).await.unwrap().unwrap(), savepoint);

    let asked = jobmanager.stop_job(&job);
    let barrier = one.trigger().await;
    assert_eq!(barrier.barrier.stop, weir_types::snapshot::StopMode::Suspend);
    let barrier = two.trigger().await;
    one.acknowledge(&deployment, &barrier).await;
    two.acknowledge(&deployment, &barrier).await;
    assert!(one.outcome().await && two.outcome().await);
    one.report(&deployment, SubtaskState::Finished).await;
    jobmanager.until_state(&job, client::JobState::Stopping).await;
    assert!(!asked.is_finished(), "a stop is answered when its job has ended");
    two.report(&deployment, SubtaskState::Finished).await;
    assert_eq!(soon(asked).await.unwrap().unwrap().trigger, "stop");
    jobmanager.until_state(&job, client::JobState::Stopped).await;
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_lost_task_manager_restarts_its_job_from_the_newest_snapshot() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let mut first = TaskManager::join(&jobmanager, "first", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("SET 'execution.checkpointing.interval' = '100 ms';")).await;
    let deployment = first.deployment().await;
    first.report(&deployment, SubtaskState::Running).await;
    let barrier = first.trigger().await;
    first.acknowledge(&deployment, &barrier).await;
    assert!(first.outcome().await);
    drop(first);
    let restarting = jobmanager.until_state(&job, client::JobState::Restarting).await;
    assert_eq!(Error::from(restarting.summary.unwrap().failure.unwrap()).code, Code::Unavailable);

    let mut second = TaskManager::join(&jobmanager, "second", 1, vec![]).await;
    let again = second.deployment().await;
    assert_eq!(again.attempt, deployment.attempt.next());
    assert_eq!(offsets(&again), at(10));
    assert_eq!(again.restore.as_ref().unwrap().directory, barrier.barrier.directory);
    second.report(&again, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;

    jobmanager.client.cancel_job(job_request(&job)).await.unwrap();
    second.cancel(&again).await;
    jobmanager.until_state(&job, client::JobState::Cancelled).await;
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_task_manager_with_too_many_slots_is_refused() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    for slots in [0, 1025, u32::MAX] {
        assert_eq!(from_status(&TaskManager::refused(&jobmanager, slots).await).code, Code::InvalidArgument);
    }
    let status = jobmanager.client.cluster_status(client::ClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.task_managers, []);
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_silent_task_manager_is_lost() {
    let mut cluster = Cluster::new();
    cluster.heartbeat_timeout_ms = 150;
    let mut jobmanager = cluster.start().await;
    let _silent = TaskManager::join(&jobmanager, "silent", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("")).await;
    let restarting = jobmanager.until_state(&job, client::JobState::Restarting).await;
    assert_eq!(Error::from(restarting.summary.unwrap().failure.unwrap()).message, "TaskManager silent was lost");
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_new_jobmanager_goes_on_with_jobs_and_ends_what_was_in_flight() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("SET 'execution.checkpointing.interval' = '1 h';")).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let done = jobmanager.savepoint(&job, "done", None);
    let barrier = worker.trigger().await;
    worker.acknowledge(&deployment, &barrier).await;
    let done = soon(done).await.unwrap().unwrap();
    assert!(worker.outcome().await);
    let in_flight = jobmanager.savepoint(&job, "in-flight", None);
    let barrier = worker.trigger().await;
    let status = jobmanager.client.cluster_status(client::ClusterStatusRequest {}).await.unwrap().into_inner();
    jobmanager.stop().await;
    soon(in_flight).await.unwrap().unwrap_err();

    let mut jobmanager = cluster.start().await;
    let again = jobmanager.client.cluster_status(client::ClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(again.cluster_id, status.cluster_id);
    assert!(again.term > status.term);
    let running = worker.statuses(&deployment, SubtaskState::Running);
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, running).await;
    // The attempt goes on, and hears what has become of both snapshots: perhaps nobody had lived to say so.
    assert!(worker.outcome().await);
    let asked = jobmanager.savepoint(&job, "next", None);
    let mut aborted = false;
    let next = loop {
        match worker.next().await {
            ToTaskManager::Trigger(trigger) => break trigger,
            ToTaskManager::SnapshotOutcome(outcome) => aborted |= outcome.failure.is_some(),
            other => panic!("neither a barrier nor an outcome: {other:?}"),
        }
    };
    assert!(aborted);
    assert_eq!((next.attempt, next.barrier.id), (deployment.attempt, barrier.barrier.id.next()));
    worker.acknowledge(&deployment, &barrier).await;
    worker.acknowledge(&deployment, &next).await;
    soon(asked).await.unwrap().unwrap();
    let detail = jobmanager.until_state(&job, client::JobState::Running).await;
    assert_eq!(detail.summary.unwrap().attempt, deployment.attempt.0);

    // The one in flight has failed, whoever asks, and its late acknowledgement has changed nothing.
    let error = soon(jobmanager.savepoint(&job, "in-flight", None)).await.unwrap().unwrap_err();
    assert_eq!(from_status(&error).code, Code::Unavailable);
    assert_eq!(soon(jobmanager.savepoint(&job, "done", None)).await.unwrap().unwrap().id, done.id);
    assert!(!std::path::Path::new(&barrier.barrier.directory).exists());
    let states: Vec<_> = jobmanager.snapshots().await.into_iter().map(|snapshot| snapshot.state).collect();
    assert_eq!(states, ["COMPLETED", "FAILED", "COMPLETED"]);
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_savepoint_that_was_moved_is_restored_at_another_parallelism() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 2, vec![]).await;
    let job = jobmanager.submit(cluster.script("SET 'parallelism.default' = '2';")).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let asked = jobmanager.stop_job(&job);
    let barrier = worker.trigger().await;
    worker.acknowledge(&deployment, &barrier).await;
    assert!(worker.outcome().await);
    worker.report(&deployment, SubtaskState::Finished).await;
    let savepoint = soon(asked).await.unwrap().unwrap();
    jobmanager.until_state(&job, client::JobState::Stopped).await;

    let moved = cluster.path("moved");
    std::fs::rename(&savepoint.directory, &moved).unwrap();
    let restore = client::SubmitRequest {
        sql: cluster.script(""),
        restore_from: Some(moved.display().to_string()),
        ..Default::default()
    };
    soon(jobmanager.client.submit(restore.clone())).await.unwrap();
    let restored = worker.deployment().await;
    assert_eq!(offsets(&restored), at(10));
    assert!(restored.splits.iter().all(|split| split.index.0 == 0));
    assert_eq!(restored.restore.unwrap().directory, moved.display().to_string());

    // State that nobody takes is refused; so is a snapshot that is not there.
    let other = client::SubmitRequest {
        sql: cluster.script("").replace("TABLE t", "TABLE u").replace("FROM t", "FROM u"),
        ..restore.clone()
    };
    let error = from_status(&jobmanager.client.submit(other).await.unwrap_err());
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    let gone = client::SubmitRequest { restore_from: Some(savepoint.directory), ..restore };
    let error = from_status(&jobmanager.client.submit(gone).await.unwrap_err());
    assert_eq!(error.code, Code::Unrestorable, "{error}");
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_quota_refuses_before_any_barrier() {
    let mut cluster = Cluster::new();
    cluster.savepoints_max = Some(0);
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("SET 'execution.checkpointing.interval' = '1 h';")).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let error = soon(jobmanager.savepoint(&job, "r", None)).await.unwrap().unwrap_err();
    assert_eq!(from_status(&error).code, Code::QuotaExceeded);
    let refused = jobmanager.snapshots().await;
    assert_eq!((refused.len(), refused[0].state.as_str()), (1, "FAILED"));
    // A refused stop leaves the job running.
    let error = soon(jobmanager.stop_job(&job)).await.unwrap().unwrap_err();
    assert_eq!(from_status(&error).code, Code::QuotaExceeded);
    jobmanager.until_state(&job, client::JobState::Running).await;
    jobmanager.client.cancel_job(job_request(&job)).await.unwrap();
    worker.cancel(&deployment).await;
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_bounded_job_finishes_when_its_sources_are_drained() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("")).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    worker.report(&deployment, SubtaskState::Drained).await;
    assert!(matches!(worker.next().await, weir_types::control::ToTaskManager::Finish(_)));
    worker.report(&deployment, SubtaskState::Finished).await;
    jobmanager.until_state(&job, client::JobState::Finished).await;
    let error = jobmanager.client.cancel_job(job_request(&job)).await.unwrap_err();
    assert_eq!(from_status(&error).code, Code::FailedPrecondition);
    jobmanager.stop().await;
}

#[tokio::test]
async fn mistakes_are_refused_with_their_codes() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let submit = |sql: &str| client::SubmitRequest { sql: sql.to_owned(), ..Default::default() };
    let broken = jobmanager.client.submit(submit("SELEKT 1")).await.unwrap_err();
    assert_eq!(from_status(&broken).code, Code::InvalidSql);
    let nothing = jobmanager.client.submit(submit("SET 'parallelism.default' = '2';")).await.unwrap_err();
    assert_eq!(from_status(&nothing).code, Code::InvalidSql);
    let unknown = jobmanager.client.describe_job(job_request("nobody")).await.unwrap_err();
    assert_eq!(from_status(&unknown).code, Code::NotFound);
    std::fs::remove_dir_all(cluster.path("input")).unwrap();
    let missing = jobmanager.client.submit(submit(&cluster.script(""))).await.unwrap_err();
    assert_eq!(from_status(&missing).code, Code::NotFound);
    jobmanager.stop().await;
}

#[tokio::test]
async fn snapshots_wait_until_it_is_known_whether_the_one_left_in_flight_is_complete() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("SET 'execution.checkpointing.interval' = '1 h';")).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let asked = jobmanager.savepoint(&job, "asked", None);
    let barrier = worker.trigger().await;
    jobmanager.stop().await;
    soon(asked).await.unwrap().unwrap_err();

    // The storage refuses the abort marker: where the directory was, there is none.
    let directory = std::path::PathBuf::from(&barrier.barrier.directory);
    std::fs::create_dir_all(directory.parent().unwrap()).unwrap();
    std::fs::write(&directory, "in the way").unwrap();
    let mut jobmanager = cluster.start().await;
    let states = |snapshots: Vec<client::Snapshot>| snapshots.into_iter().map(|one| one.state).collect::<Vec<_>>();
    assert_eq!(states(jobmanager.snapshots().await), ["IN_PROGRESS"]);
    let again = jobmanager.savepoint(&job, "asked", None);
    let another = jobmanager.savepoint(&job, "another", None);
    let running = worker.statuses(&deployment, SubtaskState::Running);
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, running).await;
    assert!(!again.is_finished() && !another.is_finished(), "the job runs, and whoever asks waits");

    std::fs::remove_file(&directory).unwrap();
    let error = soon(again).await.unwrap().unwrap_err();
    assert_eq!(from_status(&error).code, Code::Unavailable);
    let next = loop {
        match worker.next().await {
            ToTaskManager::Trigger(next) => break next,
            ToTaskManager::SnapshotOutcome(outcome) => assert!(outcome.failure.is_some()),
            other => panic!("neither a barrier nor an outcome: {other:?}"),
        }
    };
    assert_eq!(next.attempt, deployment.attempt);
    worker.acknowledge(&deployment, &next).await;
    soon(another).await.unwrap().unwrap();
    assert_eq!(states(jobmanager.snapshots().await), ["FAILED", "COMPLETED"]);
    gone(&directory).await;
    jobmanager.stop().await;
}

#[tokio::test]
async fn a_failed_snapshot_is_swept_when_its_writers_have_stopped() {
    let cluster = Cluster::new();
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(cluster.script("SET 'execution.checkpointing.interval' = '1 h';")).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let asked = jobmanager.savepoint(&job, "asked", None);
    let barrier = worker.trigger().await;
    let directory = std::path::PathBuf::from(&barrier.barrier.directory);
    std::fs::create_dir_all(&directory).unwrap();
    let stray = directory.join("a.state.arrow");
    std::fs::write(&stray, "written").unwrap();
    worker.decline(&deployment, &barrier).await;
    soon(asked).await.unwrap().unwrap_err();
    assert!(stray.exists(), "it may still be written");
    // Confirms that it has stopped.
    assert!(!worker.outcome().await);
    gone(&directory).await;
    jobmanager.stop().await;
}
