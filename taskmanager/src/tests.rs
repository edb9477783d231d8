//! Whole TaskManagers against a JobManager that is played by the test, over real sockets.

mod jobmanager;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use tokio::net::TcpListener;
use weir_dataflow::testing::TestConnectors;
use weir_service::Shutdown;
use weir_service::units::TimeSpan;
use weir_types::connector::ConnectorKind;
use weir_types::control::{
    CancelAttempt, FinishAttempt, FromTaskManager, SnapshotOutcome, ToTaskManager, TriggerBarrier,
};
use weir_types::deployment::{Deployment, Placement, SplitAssignment, SubtaskState};
use weir_types::graph::{
    ConnectorSpec, Edge, Exchange, JobGraph, JobOptions, Operator, OperatorSpec, Output, SinkSpec, SourceSpec,
};
use weir_types::ids::{
    Attempt, BarrierId, ChainId, ClusterId, JobId, OperatorId, Parallelism, SnapshotId, SubtaskIndex, TaskManagerId,
    Term,
};
use weir_types::snapshot::{Barrier, SnapshotKind, SplitPosition, StopMode};
use weir_types::{Code, Error, Result};

use jobmanager::{FakeJobManager, Session};

use crate::config::Config;
use crate::daemon::{Listeners, run};

struct Node {
    name: &'static str,
    shutdown: Shutdown,
    ended: tokio::task::JoinHandle<Result<()>>,
}

impl Node {
    async fn start(name: &'static str, jobmanager: &FakeJobManager, connectors: &TestConnectors) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners { exchange: listen().await.unwrap(), http: listen().await.unwrap() };
        let mut config = Config { id: Some(name.to_owned()), ..Config::default() };
        config.jobmanager.addresses = vec![jobmanager.address.clone()];
        config.jobmanager.retry_delay = TimeSpan::ms(1);
        let (shutdown, files) = (Shutdown::new(), tokio::runtime::Handle::current());
        let ended = tokio::spawn(run(listeners, config, Arc::new(connectors.clone()), files, shutdown.clone()));
        Self { name, shutdown, ended }
    }

    async fn stop(self) {
        self.shutdown.request();
        self.ended.await.unwrap().unwrap();
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

fn rows(range: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(range))]).unwrap()
}

/// A source and a sink of [`schema`], joined by `exchange`.
fn graph(exchange: Exchange, parallelism: u32) -> JobGraph {
    let connector = |kind| ConnectorSpec { kind, options: BTreeMap::new() };
    let operator = |id: u32, name: &str, spec| Operator {
        id: OperatorId(id),
        uid: Some(format!("uid-{id}")),
        name: name.to_owned(),
        spec,
        schema: schema(),
        parallelism_max: None,
    };
    let source = OperatorSpec::Source(SourceSpec {
        table: "t".to_owned(),
        connector: connector(ConnectorKind::Nexmark),
        scan_schema: schema(),
        metadata: BTreeMap::new(),
        pushed_filters: Vec::new(),
        calc: None,
        watermark: None,
    });
    let sink = OperatorSpec::Sink(SinkSpec {
        table: "out".to_owned(),
        connector: connector(ConnectorKind::Blackhole),
        metadata: BTreeMap::new(),
        primary_key: Vec::new(),
    });
    JobGraph {
        name: "test".to_owned(),
        options: JobOptions { parallelism: Parallelism::new(parallelism).unwrap(), ..JobOptions::default() },
        operators: vec![operator(0, "Source(t)", source), operator(1, "Sink(out)", sink)],
        edges: vec![Edge { from: OperatorId(0), output: Output::Main, to: OperatorId(1), exchange }],
        expression_version: String::new(),
    }
}

/// Subtask i of every chain on the i-th TaskManager, and split `s<i>` to source subtask i.
fn deployment(graph: &JobGraph, attempt: u32, on: &[&Session]) -> Deployment {
    let placements = graph.chains().into_iter().flat_map(|chain| {
        on.iter().enumerate().map(move |(index, session)| Placement {
            chain: chain.id,
            index: SubtaskIndex(index as u32),
            task_manager: session.registration.task_manager.clone(),
            slot: 0,
            data_address: session.registration.data_address.clone(),
        })
    });
    let splits = (0..on.len() as u32).map(|index| SplitAssignment {
        uid: "uid-0".to_owned(),
        index: SubtaskIndex(index),
        position: SplitPosition {
            split: format!("s{index}"),
            offset: 0,
            watermark_ms: i64::MIN,
            finished: false,
            end: None,
        },
    });
    Deployment {
        term: Term(1),
        job: JobId::new("job").unwrap(),
        attempt: Attempt(attempt),
        graph: graph.clone(),
        placements: placements.collect(),
        splits: splits.collect(),
        restore: None,
        checkpoint_root: String::new(),
        store_address: String::new(),
    }
}

fn deploy(graph: &JobGraph, attempt: u32, on: &[&Session]) -> ToTaskManager {
    ToTaskManager::Deploy(Box::new(deployment(graph, attempt, on)))
}

fn trigger(attempt: u32, barrier: u64) -> ToTaskManager {
    let barrier = Barrier {
        id: BarrierId(barrier),
        snapshot: SnapshotId::new(format!("chk-{barrier}")).unwrap(),
        kind: SnapshotKind::Checkpoint,
        triggered_at_ms: 0,
        stop: StopMode::Continue,
        directory: "unused".to_owned(),
        base: None,
    };
    ToTaskManager::Trigger(TriggerBarrier {
        term: Term(1),
        job: JobId::new("job").unwrap(),
        attempt: Attempt(attempt),
        barrier,
    })
}

fn finish(attempt: u32) -> ToTaskManager {
    let (job, attempt) = (JobId::new("job").unwrap(), Attempt(attempt));
    ToTaskManager::Finish(FinishAttempt { term: Term(1), job, attempt })
}

fn written(connectors: &TestConnectors) -> Vec<i64> {
    let batches = connectors.written();
    let values = batches.iter().flat_map(|written| written.batch.rows.column(0).as_primitive::<Int64Type>().values());
    values.copied().collect()
}

use SubtaskState::{Cancelled, Drained, Failed, Finished, Running, Starting};

#[tokio::test]
async fn a_job_is_deployed_runs_acknowledges_and_finishes() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..100), 7, true);
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let mut session = jobmanager.registered().await;
    let registration = &session.registration;
    assert_eq!((registration.task_manager.as_str(), registration.slots), ("tm-1", 2));
    assert_eq!((registration.cluster.clone(), registration.running.clone()), (None, vec![]));
    assert_eq!(registration.process_id, std::process::id());

    session.command(deploy(&graph(Exchange::Chained, 1), 1, &[&session])).await;
    assert_eq!(session.states(2).await, [(0, 0, 1, Starting), (0, 0, 1, Running)]);
    connectors.release("t", "s0", 42);
    session.progress(|progress| progress.iter().any(|subtask| subtask.rows_in == 42)).await;
    session.command(trigger(1, 1)).await;
    let snapshot = session.acknowledged().await;
    let source = snapshot.operators.iter().find(|operator| operator.uid == "uid-0").unwrap();
    assert_eq!((snapshot.barrier, source.splits[0].offset), (BarrierId(1), 42));
    assert_eq!(written(&connectors), (0..42).collect::<Vec<_>>());

    connectors.release_all();
    assert_eq!(session.states(1).await, [(0, 0, 1, Drained)]);
    session.command(finish(1)).await;
    let last = session.progress(|progress| progress.len() == 1 && progress[0].rows_out == 100).await;
    assert_eq!((last[0].rows_in, last[0].subtask.attempt), (100, Attempt(1)));
    assert_eq!(session.states(1).await, [(0, 0, 1, Finished)]);
    assert_eq!(written(&connectors), (0..100).collect::<Vec<_>>());
    node.stop().await;
    while let Some(message) = session.message().await {
        assert!(matches!(message, FromTaskManager::Heartbeat(_)), "{message:?}");
    }
}

#[tokio::test]
async fn rows_and_barriers_cross_task_managers() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..5_000), 100, true);
    connectors.split("t", "s1", rows(5_000..10_000), 100, true);
    let nodes = [Node::start("a", &jobmanager, &connectors).await, Node::start("b", &jobmanager, &connectors).await];
    let mut sessions = [jobmanager.registered().await, jobmanager.registered().await];
    let hash = graph(Exchange::Hash { keys: vec![0] }, 2);
    let command = deploy(&hash, 1, &[&sessions[0], &sessions[1]]);
    for session in &mut sessions {
        session.command(command.clone()).await;
    }
    for (index, session) in (0..).zip(&mut sessions) {
        let mut states = session.states(4).await;
        states.sort_by_key(|(chain, ..)| *chain);
        let expected = [(0, Starting), (0, Running), (1, Starting), (1, Running)];
        assert_eq!(states, expected.map(|(chain, state)| (chain, index, 1, state)));
    }
    connectors.release("t", "s0", 1_000);
    connectors.release("t", "s1", 2_000);
    for (session, rows) in sessions.iter_mut().zip([1_000, 2_000]) {
        session.progress(|progress| progress.iter().any(|p| p.subtask.chain.0 == 0 && p.rows_in == rows)).await;
        session.command(trigger(1, 1)).await;
    }
    for session in &mut sessions {
        let chains = [session.acknowledged().await.subtask.chain, session.acknowledged().await.subtask.chain];
        assert!(chains.contains(&ChainId(0)) && chains.contains(&ChainId(1)), "{chains:?}");
    }
    // What is in the snapshot is what the sources had sent, whichever TaskManager it went to.
    let covered: usize = connectors.written().iter().map(|written| written.batch.len()).sum();
    assert_eq!(covered, 3_000);
    assert!(connectors.written().iter().all(|written| written.barrier == Some(BarrierId(1))));

    connectors.release_all();
    for session in &mut sessions {
        assert_eq!(session.states(1).await[0].3, Drained);
    }
    for session in &mut sessions {
        session.command(finish(1)).await;
    }
    for session in &mut sessions {
        let states = session.states(2).await;
        assert!(states.iter().all(|(.., state)| *state == Finished), "{states:?}");
    }
    let mut values = written(&connectors);
    values.sort_unstable();
    assert_eq!(values, (0..10_000).collect::<Vec<_>>());
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn subtasks_outlive_a_lost_session_and_are_registered_with_the_next() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..10), 1, true);
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let mut session = jobmanager.registered().await;
    session.command(deploy(&graph(Exchange::Chained, 1), 1, &[&session])).await;
    assert_eq!(session.states(2).await.len(), 2);
    drop(session);

    let unanswered = jobmanager.registering().await;
    let running = |session: &Session| {
        let states = session.registration.running.iter().map(|status| status.state.clone());
        (session.registration.cluster.clone(), states.collect::<Vec<_>>())
    };
    let cluster = Some(ClusterId::new("cluster").unwrap());
    assert_eq!(running(&unanswered), (cluster.clone(), vec![Running]));
    // What happens without a session is said in the next one.
    connectors.release_all();
    let out = || connectors.written().iter().map(|written| written.batch.len()).sum::<usize>();
    while out() < 10 {
        tokio::task::yield_now().await;
    }
    drop(unanswered);
    let mut session = jobmanager.registered().await;
    let (theirs, states) = running(&session);
    assert_eq!(theirs, cluster);
    let registered = states[0].clone();
    if registered == Running {
        assert_eq!(session.states(1).await, [(0, 0, 1, Drained)]);
    }
    session.command(finish(1)).await;
    loop {
        let states = session.states(1).await;
        if states == [(0, 0, 1, Finished)] {
            break;
        }
        assert_eq!(states, [(0, 0, 1, Drained)]);
    }
    assert_eq!(written(&connectors), (0..10).collect::<Vec<_>>());

    // How it has ended is remembered until a JobManager lets it go: this one may not have lived to say so.
    drop(session);
    let session = jobmanager.registered().await;
    assert_eq!(running(&session), (cluster.clone(), vec![Finished]));
    let (job, attempt) = (JobId::new("job").unwrap(), Attempt(1));
    session.command(ToTaskManager::Cancel(CancelAttempt { term: Term(1), job, attempt })).await;
    drop(session);
    let session = jobmanager.registered().await;
    assert_eq!(running(&session), (cluster, vec![]));
    node.stop().await;
}

#[tokio::test]
async fn a_higher_attempt_replaces_and_lower_ones_and_lower_terms_are_refused() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..10), 1, false);
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let mut session = jobmanager.registered().await;
    let graph = graph(Exchange::Chained, 1);
    session.command(deploy(&graph, 2, &[&session])).await;
    assert_eq!(session.states(2).await, [(0, 0, 2, Starting), (0, 0, 2, Running)]);

    session.command(deploy(&graph, 1, &[&session])).await;
    let refused = session.states(1).await;
    let [(0, 0, 1, Failed(error))] = refused.as_slice() else { panic!("{refused:?}") };
    assert_eq!((error.code, error.message.as_str()), (Code::Fenced, "attempt 1 of job job is over"));

    // The same again is no new deployment.
    session.command(deploy(&graph, 2, &[&session])).await;
    session.command(deploy(&graph, 3, &[&session])).await;
    assert_eq!(session.states(3).await, [(0, 0, 2, Cancelled), (0, 0, 3, Starting), (0, 0, 3, Running)]);

    let cancel = |term, attempt| {
        let job = JobId::new("job").unwrap();
        ToTaskManager::Cancel(CancelAttempt { term: Term(term), job, attempt: Attempt(attempt) })
    };
    session.command(ToTaskManager::Heartbeat(Term(5))).await;
    session.command(cancel(4, 3)).await;
    session.command(cancel(5, 2)).await;
    connectors.release("t", "s0", 10);
    // Neither stopped it: the term was too low, the attempt was not meant.
    session.progress(|progress| progress.iter().any(|subtask| subtask.rows_in == 10)).await;
    session.command(cancel(5, 3)).await;
    assert_eq!(session.states(1).await, [(0, 0, 3, Cancelled)]);
    session.command(deploy(&graph, 3, &[&session])).await;
    assert!(matches!(session.states(1).await.as_slice(), [(0, 0, 3, Failed(error))] if error.code == Code::Fenced));
    node.stop().await;
}

#[tokio::test]
async fn a_cancelled_deployment_that_still_waits_for_an_older_attempt_says_that_it_has_ended() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..10), 1, false);
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let mut session = jobmanager.registered().await;
    let graph = graph(Exchange::Chained, 1);
    session.command(deploy(&graph, 1, &[&session])).await;
    assert_eq!(session.states(2).await, [(0, 0, 1, Starting), (0, 0, 1, Running)]);
    // Both are taken before the slot's thread can say that attempt 1 has ended; if not, attempt 2 had started.
    session.command(deploy(&graph, 2, &[&session])).await;
    let job = JobId::new("job").unwrap();
    session.command(ToTaskManager::Cancel(CancelAttempt { term: Term(1), job, attempt: Attempt(2) })).await;
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let states = session.states(1).await;
        ended.extend(states.into_iter().filter(|(_, _, _, state)| state.is_terminal()));
    }
    ended.sort_by_key(|(_, _, attempt, _)| *attempt);
    assert_eq!(ended, [(0, 0, 1, Cancelled), (0, 0, 2, Cancelled)]);
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_an_attempt_that_does_not_run_here_is_declined_at_once() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..10), 1, false);
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let mut session = jobmanager.registered().await;
    session.command(trigger(2, 1)).await;
    let declined = session.declined().await;
    assert_eq!((declined.subtask.attempt, declined.barrier), (Attempt(2), BarrierId(1)));
    assert_eq!(declined.snapshot, SnapshotId::new("chk-1").unwrap());
    assert_eq!(declined.error.code, Code::FailedPrecondition);

    session.command(deploy(&graph(Exchange::Chained, 1), 2, &[&session])).await;
    session.states(2).await;
    session.command(trigger(1, 2)).await;
    let declined = session.declined().await;
    assert_eq!((declined.subtask.attempt, declined.error.code), (Attempt(1), Code::Fenced));
    session.command(trigger(2, 3)).await;
    assert_eq!(session.acknowledged().await.barrier, BarrierId(3), "the attempt that runs takes part");
    node.stop().await;
}

#[tokio::test]
async fn failures_are_reported_with_their_error_and_outcomes_reach_subtasks() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..10), 1, false);
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let mut session = jobmanager.registered().await;
    session.command(deploy(&graph(Exchange::Chained, 1), 1, &[&session])).await;
    session.states(2).await;

    connectors.fail_prepares(Some(Error::internal("no disk")));
    session.command(trigger(1, 1)).await;
    let declined = session.said().await;
    assert!(
        matches!(&declined, FromTaskManager::SnapshotDeclined(declined)
            if declined.error.message.contains("no disk") && declined.barrier == BarrierId(1)),
        "{declined:?}"
    );
    session
        .command(ToTaskManager::SnapshotOutcome(SnapshotOutcome {
            term: Term(1),
            job: JobId::new("job").unwrap(),
            attempt: Attempt(1),
            barrier: BarrierId(1),
            snapshot: SnapshotId::new("chk-1").unwrap(),
            failure: Some(Error::internal("declined")),
        }))
        .await;
    let stopped = session.said().await;
    assert!(
        matches!(&stopped, FromTaskManager::WritersStopped(stopped) if stopped.snapshot.as_str() == "chk-1"),
        "{stopped:?}"
    );
    connectors.fail_prepares(None);
    session.command(trigger(1, 2)).await;
    assert_eq!(session.acknowledged().await.barrier, BarrierId(2));

    connectors.fail_writes(Some(Error::new(Code::ResourceExhausted, "the table is full")));
    connectors.release_all();
    let failed = session.states(1).await;
    let [(0, 0, 1, Failed(error))] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!(error.code, Code::ResourceExhausted);
    // The subtask is gone, so that it cannot take part.
    session.command(deploy(&graph(Exchange::Chained, 3), 2, &[&session])).await;
    assert!(
        matches!(session.states(1).await.as_slice(), [(0, 0, 2, Failed(error))] if error.code == Code::InvalidArgument)
    );
    node.stop().await;
}

#[tokio::test]
async fn a_lost_peer_fails_the_subtasks_that_talk_to_it() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    connectors.split("t", "s0", rows(0..10), 1, false);
    connectors.split("t", "s1", rows(0..10), 1, false);
    let first = Node::start("a", &jobmanager, &connectors).await;
    let second = Node::start("b", &jobmanager, &connectors).await;
    let mut sessions = [jobmanager.registered().await, jobmanager.registered().await];
    sessions.sort_by_key(|session| session.registration.task_manager.clone());
    let command = deploy(&graph(Exchange::Rebalance, 2), 1, &[&sessions[0], &sessions[1]]);
    for session in &mut sessions {
        session.command(command.clone()).await;
        session.states(4).await;
    }
    assert_eq!(second.name, "b");
    second.shutdown.request();
    second.ended.await.unwrap().unwrap();
    // The sink that waits for the peer fails at once, the source with its next row.
    let sink = sessions[0].states(1).await;
    connectors.release_all();
    let source = sessions[0].states(1).await;
    let failure = |states: &[(u32, u32, u32, SubtaskState)], chain| match states {
        [(failed, 0, 1, Failed(error))] if *failed == chain => error.clone(),
        states => panic!("{states:?}"),
    };
    let (sink, source) = (failure(&sink, 1), failure(&source, 0));
    assert_eq!((sink.code, source.code), (Code::Unavailable, Code::Unavailable), "{sink} {source}");
    assert!(sink.message.contains("TaskManager b at 127.0.0.1:"), "{sink}");
    let states = sessions[1].states(2).await;
    assert!(states.iter().all(|(.., state)| *state == Cancelled), "{states:?}");
    assert_eq!(sessions[1].message().await, None);
    first.stop().await;
}

#[tokio::test]
async fn a_jobmanager_of_another_cluster_or_an_older_term_is_not_followed() {
    let (mut jobmanager, connectors) = (FakeJobManager::start().await, TestConnectors::default());
    let node = Node::start("tm-1", &jobmanager, &connectors).await;
    let first = jobmanager.registering().await;
    first.welcome("cluster", 7).await;
    drop(first);
    for (cluster, term) in [("other", 8), ("cluster", 6)] {
        let mut refused = jobmanager.registering().await;
        assert_eq!(refused.registration.cluster, Some(ClusterId::new("cluster").unwrap()));
        refused.welcome(cluster, term).await;
        assert!(refused.messages.message().await.is_err() || refused.message().await.is_none());
    }
    let mut session = jobmanager.registering().await;
    session.welcome("cluster", 7).await;
    assert_eq!(session.message().await, Some(FromTaskManager::Heartbeat(vec![])));
    assert_eq!(session.registration.task_manager, TaskManagerId::new("tm-1").unwrap());
    node.stop().await;
}
