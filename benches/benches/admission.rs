//! What admission costs the replicated state: with 10,000 catalogue entries of 100 jobs and limits at every level, a
//! savepoint that is admitted, one that is refused with a hint, a grant, and a completion that retires a checkpoint. Each
//! is one `State::apply`; what the log costs on top is the `raft` benchmark's figure.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use weir_coordination::checkpoint::{Contents, Trigger};
use weir_coordination::metadata::{Command, Completion, NewJob, Reserve, StartAttempt, State};
use weir_types::graph::{JobGraph, JobOptions};
use weir_types::ids::{Attempt, BarrierId, JobId, Nonce, SnapshotId};
use weir_types::job::JobChange;
use weir_types::quota::{QuotaLevel, QuotaLimits};
use weir_types::snapshot::{Annotations, SnapshotKind};
use weir_types::time::Millis;
use weir_types::{Code, Error};

const JOBS: u64 = 100;
const ENTRIES_PER_JOB: u64 = 100;
const BYTES: u64 = 1 << 20;

fn job(number: u64) -> JobId {
    JobId::new(format!("{number:08x}")).unwrap()
}

fn id(of: u64, kind: SnapshotKind, barrier: u64) -> SnapshotId {
    SnapshotId::new(format!("{}-{of:08x}-{barrier}", kind.prefix())).unwrap()
}

fn reserve(of: u64, kind: SnapshotKind, barrier: u64) -> Command {
    let snapshot = id(of, kind, barrier);
    Command::Reserve(Box::new(Reserve {
        request: None,
        nonce: Nonce(snapshot.to_string()),
        directory: format!("/snapshots/{snapshot}"),
        snapshot,
        job: job(of),
        kind,
        trigger: Trigger::Periodic,
        barrier: BarrierId(barrier),
        attempt: Attempt(1),
        deadline: Millis(u64::MAX),
        owner: String::new(),
        annotations: Annotations::default(),
        plan_hash: String::new(),
        evict: false,
        subtasks: 4,
        estimate_bytes: BYTES,
    }))
}

fn complete(snapshot: SnapshotId) -> Command {
    let (nonce, contents) = (Nonce(snapshot.to_string()), Contents { bytes: BYTES, ..Contents::default() });
    Command::Complete(Box::new(Completion { snapshot, nonce, contents }))
}

fn new_job(number: u64) -> Command {
    let (namespace, owner) = (format!("namespace-{}", number % 10), format!("owner-{}", number % 25));
    let graph = JobGraph {
        name: format!("job-{number}"),
        options: JobOptions { checkpoints_retained: 3, ..JobOptions::default() },
        operators: vec![],
        edges: vec![],
        expression_version: String::new(),
    };
    Command::CreateJob(Box::new(NewJob {
        request: None,
        id: job(number),
        name: format!("job-{number}"),
        sql: String::new(),
        owner,
        namespace,
        graph,
        plan: String::new(),
        sources: vec![],
        restore: None,
        allow_duplicates: false,
    }))
}

/// Full of entries, with a limit on everything at every level of the first job, so that all of them are looked at.
fn full() -> State {
    let mut state = State::default();
    for number in 0..JOBS {
        state.apply(Millis(0), new_job(number)).unwrap();
        let start = StartAttempt {
            job: job(number),
            attempt: Attempt(1),
            placements: vec![],
            splits: vec![],
            from: None,
            passed_over: vec![],
            parallelism: None,
        };
        state.apply(Millis(0), Command::StartAttempt(start)).unwrap();
        state.apply(Millis(0), Command::ChangeJob { job: job(number), change: JobChange::Run, failure: None }).unwrap();
        for barrier in 1..=ENTRIES_PER_JOB {
            let kind = if barrier <= 3 { SnapshotKind::Checkpoint } else { SnapshotKind::Savepoint };
            state.apply(Millis(barrier), reserve(number, kind, barrier)).unwrap();
            state.apply(Millis(barrier), complete(id(number, kind, barrier))).unwrap();
        }
    }
    for level in QuotaLevel::of("namespace-0", "owner-0", "job-0") {
        let limits = QuotaLimits {
            savepoints: Some(1 << 30),
            retained_checkpoints: Some(1 << 30),
            bytes: Some(1 << 50),
            in_flight: Some(1 << 10),
            minimum_interval_ms: Some(1),
            age_ms: Some(1 << 40),
        };
        state.apply(Millis(0), Command::SetQuota { request: None, level, limits: Some(limits) }).unwrap();
    }
    assert_eq!(state.snapshots.len() as u64, JOBS * ENTRIES_PER_JOB);
    state
}

/// Ends a snapshot of the first job without a trace.
fn drop_snapshot(state: &mut State, snapshot: &SnapshotId) {
    let failure = Error::new(Code::Cancelled, "measured");
    let nonce = Nonce(snapshot.to_string());
    state.apply(Millis(1 << 30), Command::Abort { snapshot: snapshot.clone(), nonce, failure }).unwrap();
    state.apply(Millis(1 << 30), Command::Swept { snapshot: snapshot.clone() }).unwrap();
}

fn timed(state: &mut State, command: Command) -> Duration {
    let started = Instant::now();
    let _answer = black_box(state.apply(Millis(1 << 30), black_box(command)));
    started.elapsed()
}

fn admission(criterion: &mut Criterion) {
    let mut state = full();
    let mut barrier = ENTRIES_PER_JOB;
    let mut group = criterion.benchmark_group("admission");
    group.bench_function("savepoint_admitted", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for _ in 0..count {
                barrier += 1;
                spent += timed(&mut state, reserve(0, SnapshotKind::Savepoint, barrier));
                drop_snapshot(&mut state, &id(0, SnapshotKind::Savepoint, barrier));
            }
            spent
        });
    });
    group.bench_function("grant", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            barrier += 1;
            let snapshot = id(0, SnapshotKind::Savepoint, barrier);
            state.apply(Millis(1 << 30), reserve(0, SnapshotKind::Savepoint, barrier)).unwrap();
            for more in 1..=count {
                let (snapshot, nonce) = (snapshot.clone(), Nonce(snapshot.to_string()));
                spent += timed(&mut state, Command::Grant { snapshot, nonce, bytes: BYTES + more });
            }
            drop_snapshot(&mut state, &snapshot);
            spent
        });
    });
    group.bench_function("checkpoint_completed", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for _ in 0..count {
                barrier += 1;
                let snapshot = id(0, SnapshotKind::Checkpoint, barrier);
                state.apply(Millis(1 << 30), reserve(0, SnapshotKind::Checkpoint, barrier)).unwrap();
                let started = Instant::now();
                let retired = state.apply(Millis(1 << 30), complete(snapshot)).unwrap().retired;
                spent += started.elapsed();
                for snapshot in retired {
                    state.apply(Millis(1 << 30), Command::Deleted { snapshot }).unwrap();
                }
            }
            spent
        });
    });
    let limits = Some(QuotaLimits { bytes: Some(1), ..QuotaLimits::default() });
    state.apply(Millis(0), Command::SetQuota { request: None, level: QuotaLevel::Cluster, limits }).unwrap();
    group.bench_function("savepoint_refused", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for _ in 0..count {
                barrier += 1;
                spent += timed(&mut state, reserve(0, SnapshotKind::Savepoint, barrier));
            }
            spent
        });
    });
    group.finish();
}

criterion_group!(benches, admission);
criterion_main!(benches);
