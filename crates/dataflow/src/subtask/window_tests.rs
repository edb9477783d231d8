//! Tests of a windowed job through the real task loop: snapshots at any row, restored at any parallelism.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use tokio::task::LocalSet;
use weir_types::deployment::{Deployment, Restore, SplitAssignment};
use weir_types::graph::{
    AggregateFunction, AggregateSpec, Edge, Exchange, Operator, OperatorSpec, Output, WindowAggregateSpec,
    WindowColumn, WindowSpec,
};
use weir_types::ids::OperatorId;
use weir_types::snapshot::{SplitPosition, StopMode};

use super::*;
use crate::fixtures::{at_start, deployment, edge, graph, rows, sink, source, stop_barrier, values};
use crate::testing::{LocalJob, TestConnectors};

const SIZE_MS: i64 = 10;
const DELAY_MS: i64 = 3;

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

fn counts_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("count", DataType::Int64, false),
        Field::new("window_start", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ]))
}

/// `COUNT(*)` per key and 10 ms, into `out`; late rows into `late`.
fn job(parallelism: u32, attempt: u32, splits: Vec<SplitPosition>) -> Deployment {
    let count = AggregateSpec { function: AggregateFunction::Count, argument: None, distinct: false, filter: None };
    let window = Operator {
        id: OperatorId(1),
        uid: Some("window".to_owned()),
        name: "TumbleWindow(ts)".to_owned(),
        spec: OperatorSpec::WindowAggregate(WindowAggregateSpec {
            window: WindowSpec::Tumble { size_ms: SIZE_MS, offset_ms: 0 },
            time_column: 1,
            keys: vec![0],
            aggregates: vec![count],
            window_columns: vec![WindowColumn::Start],
            emit_late_rows: true,
        }),
        schema: counts_schema(),
        parallelism_max: None,
    };
    let out = Operator { schema: counts_schema(), ..sink(2, "out") };
    let late = Edge { from: OperatorId(1), output: Output::Late, to: OperatorId(3), exchange: Exchange::Chained };
    let mut graph = graph(
        vec![source(0, "in", Some(DELAY_MS)), window, out, sink(3, "late")],
        vec![edge(0, 1, Exchange::Hash { keys: vec![0] }), edge(1, 2, Exchange::Chained), late],
        parallelism,
    );
    graph.options.buffer_timeout_ms = 0;
    deployment(graph, attempt, &[("in", splits)])
}

/// Out-of-order rows, some of them behind the watermark.
fn split_rows(split: i64) -> Vec<(i64, i64)> {
    (0..20i64).map(|i| ((i * 7 + split) % 4, i * 4 - if i % 5 == 4 { 25 } else { i % 3 })).collect()
}

fn connectors(bounded: bool) -> TestConnectors {
    let connectors = TestConnectors::default();
    for split in 0..2 {
        connectors.split("in", &format!("p-{split}"), rows(&split_rows(split)), 1, bounded);
    }
    connectors
}

fn splits() -> Vec<SplitPosition> {
    vec![at_start("p-0"), at_start("p-1")]
}

type Counts = BTreeMap<(i64, i64), i64>;

/// What `out` holds: every window of a key at most once.
fn counts(connectors: &TestConnectors) -> Counts {
    let mut counts = Counts::new();
    for written in connectors.written().iter().filter(|written| written.table == "out") {
        let rows: &RecordBatch = &written.batch.rows;
        let keys = rows.column(0).as_primitive::<Int64Type>();
        let values = rows.column(1).as_primitive::<Int64Type>();
        let starts = rows.column(2).as_primitive::<TimestampMillisecondType>();
        for row in 0..rows.num_rows() {
            let window = (keys.value(row), starts.value(row));
            assert!(counts.insert(window, values.value(row)).is_none(), "window {window:?} fired twice");
        }
    }
    counts
}

fn late(connectors: &TestConnectors) -> Vec<(i64, i64)> {
    let written = connectors.written();
    written.iter().filter(|written| written.table == "late").flat_map(|written| values(&written.batch.rows)).collect()
}

/// The same by hand: the batch computation over the input less the side output.
fn expected(late: &[(i64, i64)]) -> Counts {
    let mut counts = Counts::new();
    for (key, ts) in (0..2).flat_map(split_rows) {
        *counts.entry((key, ts.div_euclid(SIZE_MS) * SIZE_MS)).or_default() += 1;
    }
    for (key, ts) in late {
        let count = counts.get_mut(&(*key, ts.div_euclid(SIZE_MS) * SIZE_MS)).expect("a late row is an input row");
        *count -= 1;
    }
    counts.retain(|_, count| *count > 0);
    counts
}

async fn acks(job: &mut LocalJob, barrier: Barrier, count: usize) -> Vec<SubtaskSnapshot> {
    job.tell(Control::Trigger(barrier)).await;
    let mut acks = Vec::new();
    while acks.len() < count {
        match job.event().await.expect("the job runs") {
            SubtaskEvent::SnapshotAcked(ack) => acks.push(ack),
            SubtaskEvent::SnapshotDeclined(declined) => panic!("{declined:?}"),
            SubtaskEvent::Drained(_) => {}
        }
    }
    acks
}

/// The deployment that goes on from a snapshot.
fn restored(acks: &[SubtaskSnapshot], directory: &str, parallelism: u32) -> Deployment {
    let operators: Vec<_> = acks.iter().flat_map(|ack| ack.operators.clone()).collect();
    let positions = operators.iter().flat_map(|operator| operator.splits.clone()).collect();
    let mut deployment = job(parallelism, 2, positions);
    deployment.restore = Some(Restore { directory: directory.to_owned(), operators });
    deployment
}

fn barrier_into(directory: &tempfile::TempDir, stop: StopMode) -> Barrier {
    Barrier { directory: directory.path().join("chk-1").to_str().unwrap().to_owned(), ..stop_barrier(1, stop) }
}

async fn finished(job: LocalJob) {
    job.tell(Control::Finish).await;
    for (id, outcome) in job.join().await {
        assert_eq!(outcome.unwrap(), Outcome::Finished, "{id}");
    }
}

/// Stops by force behind a snapshot and goes on from it.
async fn interrupt_at(before: (u64, u64), behind: u64, parallelism: (u32, u32)) {
    let connectors = connectors(true);
    let directory = tempfile::tempdir().unwrap();
    let mut first = LocalJob::start(&job(parallelism.0, 1, splits()), &connectors, 1 << 20).await.unwrap();
    connectors.release("in", "p-0", before.0);
    connectors.release("in", "p-1", before.1);
    first.settle().await;
    let barrier = barrier_into(&directory, StopMode::Continue);
    let acks = acks(&mut first, barrier.clone(), 2 * parallelism.0 as usize).await;
    connectors.release("in", "p-0", before.0 + behind);
    connectors.release("in", "p-1", before.1 + behind);
    first.settle().await;
    first.tell(Control::Cancel).await;
    assert!(first.join().await.into_values().all(|outcome| outcome == Ok(Outcome::Cancelled)));
    connectors.roll_back(BarrierId(1));

    let deployment = restored(&acks, &barrier.directory, parallelism.1);
    let mut second = LocalJob::start(&deployment, &connectors, 1 << 20).await.unwrap();
    connectors.release_all();
    second.settle().await;
    finished(second).await;
    let late = late(&connectors);
    assert_eq!(counts(&connectors), expected(&late), "barrier after {before:?}, parallelism {parallelism:?}");
}

#[test]
fn windows_survive_a_snapshot_at_any_row_and_any_parallelism() {
    run(async {
        for position in 0..=20 {
            interrupt_at((position, position), 3, (2, 3)).await;
            interrupt_at((position, 20 - position), 1, (3, 1)).await;
            interrupt_at((20, position), 0, (1, 2)).await;
        }
    });
}

#[test]
fn late_rows_go_to_the_side_output_and_are_counted() {
    run(async {
        let connectors = connectors(true);
        let mut job = LocalJob::start(&job(2, 1, splits()), &connectors, 1 << 20).await.unwrap();
        // A barrier makes the watermark pass at once, so that what is late does not hang on timers.
        let directory = tempfile::tempdir().unwrap();
        connectors.release("in", "p-0", 14);
        connectors.release("in", "p-1", 14);
        job.settle().await;
        acks(&mut job, barrier_into(&directory, StopMode::Continue), 4).await;
        connectors.release_all();
        job.settle().await;
        let late = late(&connectors);
        let times: BTreeSet<i64> = late.iter().map(|(_, ts)| *ts).collect();
        assert!(times.contains(&31), "14 * 4 - 25 = 31 lies in a window that ended before 52 - 3: {times:?}");
        assert_eq!(counts(&connectors), expected(&late));
        let counted: u64 =
            job.subtasks().iter().map(|id| job.metrics(id).unwrap().progress(id.clone()).late_rows).sum();
        assert_eq!(counted, late.len() as u64);
        finished(job).await;
    });
}

#[test]
fn a_suspended_job_keeps_its_open_windows_for_the_next() {
    run(async {
        let connectors = connectors(true);
        let directory = tempfile::tempdir().unwrap();
        let mut first = LocalJob::start(&job(2, 1, splits()), &connectors, 1 << 20).await.unwrap();
        connectors.release("in", "p-0", 9);
        connectors.release("in", "p-1", 9);
        first.settle().await;
        let barrier = barrier_into(&directory, StopMode::Suspend);
        let acks = acks(&mut first, barrier.clone(), 4).await;
        first.tell(Control::Outcome { barrier: BarrierId(1), failure: None }).await;
        assert!(first.join().await.into_values().all(|outcome| outcome == Ok(Outcome::Finished)));
        let fired: BTreeSet<i64> = counts(&connectors).keys().map(|(_, start)| *start).collect();
        assert!(
            fired.iter().all(|start| start + SIZE_MS - 1 <= 32 - DELAY_MS),
            "only what the watermark reached: {fired:?}"
        );

        let mut second = LocalJob::start(&restored(&acks, &barrier.directory, 1), &connectors, 1 << 20).await.unwrap();
        connectors.release_all();
        second.settle().await;
        finished(second).await;
        assert_eq!(counts(&connectors), expected(&late(&connectors)));
    });
}

/// Goes on from a snapshot with a split more, which holds event time back (as one does that was idle), and takes another
/// snapshot before event time has come back.
#[test]
fn a_snapshot_soon_after_a_restore_does_not_open_fired_windows_again() {
    run(async {
        let connectors = connectors(true);
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let watermark = |acks: &[SubtaskSnapshot]| {
            let mut operators = acks.iter().flat_map(|ack| &ack.operators);
            operators.find(|operator| operator.uid == "window").map(|window| window.watermark_ms)
        };
        let mut first = LocalJob::start(&job(1, 1, vec![at_start("p-0")]), &connectors, 1 << 20).await.unwrap();
        connectors.release("in", "p-0", 16);
        first.settle().await;
        let barrier = barrier_into(&directories[0], StopMode::Continue);
        let before = acks(&mut first, barrier.clone(), 2).await;
        assert_eq!(watermark(&before), Some(60 - DELAY_MS), "row 15 has the time 15 * 4 - 0");
        assert!(!counts(&connectors).is_empty(), "windows have fired");
        first.tell(Control::Cancel).await;
        first.join().await;

        let mut second = restored(&before, &barrier.directory, 1);
        let SplitAssignment { uid, index, .. } = second.splits[0].clone();
        second.splits.push(SplitAssignment { uid, index, position: at_start("p-1") });
        let mut second = LocalJob::start(&second, &connectors, 1 << 20).await.unwrap();
        second.settle().await;
        let barrier = barrier_into(&directories[1], StopMode::Continue);
        let soon = acks(&mut second, barrier.clone(), 2).await;
        assert_eq!(watermark(&soon), watermark(&before), "nothing moved it, and it does not fall");
        second.tell(Control::Cancel).await;
        second.join().await;

        let mut third = LocalJob::start(&restored(&soon, &barrier.directory, 1), &connectors, 1 << 20).await.unwrap();
        connectors.release_all();
        third.settle().await;
        finished(third).await;
        assert_eq!(counts(&connectors), expected(&late(&connectors)));
    });
}

#[test]
fn a_drained_job_fires_every_window_before_its_savepoint() {
    run(async {
        let connectors = connectors(false);
        let directory = tempfile::tempdir().unwrap();
        let mut job = LocalJob::start(&job(2, 1, splits()), &connectors, 1 << 20).await.unwrap();
        connectors.release_all();
        job.settle().await;
        let acks = acks(&mut job, barrier_into(&directory, StopMode::Drain), 4).await;
        assert_eq!(counts(&connectors), expected(&late(&connectors)));
        assert!(
            acks.iter().flat_map(|ack| &ack.operators).all(|operator| operator.files.is_empty()),
            "no window is left"
        );
        job.tell(Control::Outcome { barrier: BarrierId(1), failure: None }).await;
        assert!(job.join().await.into_values().all(|outcome| outcome == Ok(Outcome::Finished)));
    });
}

#[test]
fn a_snapshot_that_cannot_be_written_is_declined_and_the_job_goes_on() {
    run(async {
        let connectors = connectors(true);
        let mut job = LocalJob::start(&job(1, 1, splits()), &connectors, 1 << 20).await.unwrap();
        connectors.release("in", "p-0", 10);
        connectors.release("in", "p-1", 10);
        job.settle().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let directory = file.path().join("chk-1").to_str().unwrap().to_owned();
        job.tell(Control::Trigger(Barrier { directory, ..stop_barrier(1, StopMode::Continue) })).await;
        let declined = loop {
            match job.event().await.unwrap() {
                SubtaskEvent::SnapshotDeclined(declined) => break declined,
                SubtaskEvent::SnapshotAcked(_) | SubtaskEvent::Drained(_) => {}
            }
        };
        assert_eq!((declined.subtask.chain.0, declined.barrier), (1, BarrierId(1)));
        connectors.release_all();
        job.settle().await;
        finished(job).await;
        assert_eq!(counts(&connectors), expected(&late(&connectors)));
    });
}
