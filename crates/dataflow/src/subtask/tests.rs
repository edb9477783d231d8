//! Tests of the task loop: real subtasks, channels and barriers, stepped row by row.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::LocalSet;
use weir_types::Code;
use weir_types::deployment::Deployment;
use weir_types::graph::Exchange;
use weir_types::snapshot::{SplitPosition, StopMode};

use super::*;
use crate::fixtures::{at_start, barrier, deployment, edge, graph, rows, sink, source, stop_barrier, values};
use crate::testing::{LocalJob, TestConnectors};

const ROWS: i64 = 12;

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// `source → hash by key → sink` over two splits, event time 10 ms behind.
fn job(parallelism: u32, attempt: u32, splits: Vec<SplitPosition>) -> Deployment {
    let mut graph = graph(
        vec![source(0, "in", Some(10)), sink(1, "out")],
        vec![edge(0, 1, Exchange::Hash { keys: vec![0] })],
        parallelism,
    );
    graph.options.buffer_timeout_ms = 0;
    deployment(graph, attempt, &[("in", splits)])
}

fn splits() -> Vec<SplitPosition> {
    vec![at_start("p-0"), at_start("p-1")]
}

/// Split s holds the rows (key, 100 * s + i).
fn split_rows(split: i64) -> Vec<(i64, i64)> {
    (0..ROWS).map(|i| (i % 5, 100 * split + i)).collect()
}

fn connectors(bounded: bool, cut: usize) -> TestConnectors {
    let connectors = TestConnectors::default();
    for split in 0..2 {
        connectors.split("in", &format!("p-{split}"), rows(&split_rows(split)), cut, bounded);
    }
    connectors
}

fn all_rows() -> Vec<(i64, i64)> {
    let mut all: Vec<_> = (0..2).flat_map(split_rows).collect();
    all.sort_unstable();
    all
}

fn written(connectors: &TestConnectors) -> Vec<(i64, i64)> {
    let mut all: Vec<_> = connectors.written().iter().flat_map(|written| values(&written.batch.rows)).collect();
    all.sort_unstable();
    all
}

async fn start(connectors: &TestConnectors, deployment: &Deployment) -> LocalJob {
    LocalJob::start(deployment, connectors, 1 << 20).await.unwrap()
}

fn acked(events: VecDeque<SubtaskEvent>) -> Vec<SubtaskSnapshot> {
    let ack = |event| match event {
        SubtaskEvent::SnapshotAcked(snapshot) => Some(snapshot),
        SubtaskEvent::Drained(_) => None,
        SubtaskEvent::SnapshotDeclined(declined) => panic!("{declined:?}"),
    };
    events.into_iter().filter_map(ack).collect()
}

fn positions(acks: &[SubtaskSnapshot]) -> Vec<SplitPosition> {
    let mut positions: Vec<_> = acks.iter().flat_map(|a| &a.operators).flat_map(|o| o.splits.clone()).collect();
    positions.sort_by(|a, b| a.split.cmp(&b.split));
    positions
}

async fn trigger(job: &mut LocalJob, barrier: Barrier) -> Vec<SubtaskSnapshot> {
    job.tell(Control::Trigger(barrier)).await;
    acked(job.settle().await)
}

async fn completed(job: &LocalJob, barrier: u64) {
    job.tell(Control::Outcome { barrier: BarrierId(barrier), failure: None }).await;
}

async fn failed(job: &LocalJob, barrier: u64) {
    let failure = Some(Error::new(Code::Timeout, "the snapshot took too long"));
    job.tell(Control::Outcome { barrier: BarrierId(barrier), failure }).await;
}

async fn outcomes(job: LocalJob) -> BTreeSet<String> {
    let outcomes: BTreeMap<_, _> = job.join().await;
    outcomes.into_values().map(|outcome| format!("{outcome:?}")).collect()
}

fn only(outcome: &str) -> BTreeSet<String> {
    BTreeSet::from([format!("Ok({outcome})")])
}

#[test]
fn a_bounded_job_ends_only_when_all_of_its_sources_are_drained() {
    run(async {
        let connectors = connectors(true, 3);
        let mut job = start(&connectors, &job(2, 1, splits())).await;
        connectors.release("in", "p-0", u64::MAX);
        let events = job.settle().await;
        assert!(matches!(events.iter().collect::<Vec<_>>()[..], [SubtaskEvent::Drained(id)] if id.index.0 == 0));
        let acks = trigger(&mut job, barrier(1)).await;
        assert_eq!(acks.len(), 4, "a drained subtask still takes part in snapshots");
        let positions = positions(&acks);
        assert_eq!((positions[0].offset, positions[0].finished), (ROWS as u64, true));
        assert_eq!((positions[1].offset, positions[1].finished), (0, false));
        connectors.release_all();
        assert!(matches!(job.settle().await.pop_front(), Some(SubtaskEvent::Drained(id)) if id.index.0 == 1));
        assert_eq!(written(&connectors), all_rows(), "results do not wait for the end");
        assert!(job.ended().is_empty());
        assert_eq!(trigger(&mut job, barrier(2)).await.len(), 4);
        job.tell(Control::Finish).await;
        assert_eq!(outcomes(job).await, only("Finished"));
        assert_eq!(written(&connectors), all_rows());
    });
}

/// Takes a snapshot after so many rows of each split, loses what came behind it, and goes on from it at another
/// parallelism.
async fn interrupt_at(before: (u64, u64), behind: u64, cut: usize, parallelism: (u32, u32)) {
    let connectors = connectors(true, cut);
    let mut first = start(&connectors, &job(parallelism.0, 1, splits())).await;
    connectors.release("in", "p-0", before.0);
    connectors.release("in", "p-1", before.1);
    first.settle().await;
    let acks = trigger(&mut first, barrier(1)).await;
    assert_eq!(acks.len() as u32, 2 * parallelism.0);
    connectors.release("in", "p-0", before.0 + behind);
    connectors.release("in", "p-1", before.1 + behind);
    first.settle().await;
    first.tell(Control::Cancel).await;
    assert_eq!(outcomes(first).await, only("Cancelled"));
    connectors.roll_back(BarrierId(1));

    let positions = positions(&acks);
    assert_eq!((positions[0].offset, positions[1].offset), before);
    let mut second = start(&connectors, &job(parallelism.1, 2, positions)).await;
    connectors.release_all();
    second.settle().await;
    second.tell(Control::Finish).await;
    assert_eq!(outcomes(second).await, only("Finished"));
    assert_eq!(written(&connectors), all_rows(), "barrier after {before:?}, {behind} rows behind it, cut {cut}");
}

#[test]
fn a_barrier_at_any_row_restores_to_the_same_output() {
    run(async {
        for position in 0..=ROWS as u64 {
            interrupt_at((position, position), 2, 1, (2, 2)).await;
            interrupt_at((position, ROWS as u64 - position), 3, 2, (1, 2)).await;
            interrupt_at((position, 0), ROWS as u64, 5, (2, 1)).await;
        }
    });
}

#[test]
fn rows_of_a_key_stay_in_order_and_with_one_subtask() {
    run(async {
        let connectors = connectors(true, 4);
        let mut job = start(&connectors, &job(3, 1, splits())).await;
        connectors.release_all();
        job.settle().await;
        let mut owners: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
        let mut last: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        for written in connectors.written() {
            for (key, serial) in values(&written.batch.rows) {
                owners.entry(key).or_default().insert(written.subtask);
                assert!(last.insert((key, serial / 100), serial) < Some(serial));
            }
        }
        assert!(owners.values().all(|owners| owners.len() == 1));
        job.tell(Control::Cancel).await;
        assert_eq!(outcomes(job).await, only("Cancelled"));
    });
}

#[test]
fn all_subtasks_of_an_operator_hold_the_same_watermark_at_a_barrier() {
    run(async {
        let connectors = connectors(false, 1);
        let mut job = start(&connectors, &job(3, 1, splits())).await;
        for position in 1..=5 {
            connectors.release("in", "p-0", position);
            connectors.release("in", "p-1", position + 3);
            job.settle().await;
            let acks = trigger(&mut job, barrier(position)).await;
            let sinks = acks.iter().flat_map(|ack| &ack.operators).filter(|operator| operator.uid == "sink-out");
            let watermarks: BTreeSet<i64> = sinks.map(|operator| operator.watermark_ms).collect();
            assert_eq!(watermarks, BTreeSet::from([position as i64 - 1 - 10]));
        }
        job.tell(Control::Cancel).await;
        assert_eq!(outcomes(job).await, only("Cancelled"));
    });
}

#[test]
fn a_snapshot_that_fails_is_declined_and_the_job_goes_on() {
    run(async {
        let connectors = connectors(true, 1);
        let mut job = start(&connectors, &job(1, 1, splits())).await;
        connectors.release("in", "p-0", 3);
        job.settle().await;
        let failure = Error::new(Code::ResourceExhausted, "disk full");
        connectors.fail_prepares(Some(failure.clone()));
        job.tell(Control::Trigger(barrier(1))).await;
        let events = job.settle().await;
        let declined: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                SubtaskEvent::SnapshotDeclined(declined) => Some((declined.subtask.chain.0, declined.error.clone())),
                _ => None,
            })
            .collect();
        assert_eq!(declined, [(1, failure)]);
        failed(&job, 1).await;
        connectors.fail_prepares(None);
        assert_eq!(trigger(&mut job, barrier(2)).await.len(), 2);
        connectors.release_all();
        job.settle().await;
        job.tell(Control::Finish).await;
        assert_eq!(outcomes(job).await, only("Finished"));
        assert_eq!(written(&connectors), all_rows());
    });
}

#[test]
fn an_aborted_snapshot_unblocks_its_alignment() {
    run(async {
        let connectors = connectors(true, 1);
        let mut job = start(&connectors, &job(2, 1, splits())).await;
        let first = job.subtasks().into_iter().find(|id| id.chain.0 == 0 && id.index.0 == 0).unwrap();
        job.tell_one(&first, Control::Trigger(barrier(1))).await;
        assert_eq!(acked(job.settle().await).len(), 1, "only one source has the barrier");
        connectors.release("in", "p-0", 4);
        connectors.release("in", "p-1", 4);
        job.settle().await;
        assert!(written(&connectors).iter().all(|(_, serial)| *serial >= 100), "rows behind the barrier wait");
        failed(&job, 1).await;
        let declined = job.settle().await;
        assert_eq!(declined.len(), 2, "both sinks say that they take no part: {declined:?}");
        assert_eq!(written(&connectors).len(), 8);
        assert_eq!(trigger(&mut job, barrier(2)).await.len(), 4);
        job.tell(Control::Cancel).await;
        assert_eq!(outcomes(job).await, only("Cancelled"));
    });
}

#[test]
fn a_suspended_job_reads_no_further_and_fires_nothing() {
    run(async {
        let connectors = connectors(true, 1);
        let mut job = start(&connectors, &job(2, 1, splits())).await;
        connectors.release("in", "p-0", 6);
        connectors.release("in", "p-1", 6);
        job.settle().await;
        let acks = trigger(&mut job, stop_barrier(1, StopMode::Suspend)).await;
        assert_eq!(positions(&acks).iter().map(|p| p.offset).collect::<Vec<_>>(), [6, 6]);
        connectors.release_all();
        job.settle().await;
        assert_eq!(written(&connectors).len(), 12);
        assert!(job.ended().is_empty(), "the savepoint may still fail");
        completed(&job, 1).await;
        job.settle().await;
        let sink = job.subtasks().into_iter().find(|id| id.chain.0 == 1).unwrap();
        let watermark = job.metrics(&sink).unwrap().progress(sink.clone()).watermark_ms;
        assert_eq!(watermark, 5 - 10, "the maximum watermark would have fired open windows");
        assert_eq!(outcomes(job).await, only("Finished"));
        assert_eq!(written(&connectors).len(), 12);
    });
}

#[test]
fn a_suspended_job_reads_on_if_its_savepoint_fails() {
    run(async {
        let connectors = connectors(true, 1);
        let mut job = start(&connectors, &job(2, 1, splits())).await;
        connectors.release("in", "p-0", 6);
        job.settle().await;
        trigger(&mut job, stop_barrier(1, StopMode::Suspend)).await;
        connectors.release_all();
        failed(&job, 1).await;
        job.settle().await;
        assert_eq!(written(&connectors), all_rows());
        job.tell(Control::Finish).await;
        assert_eq!(outcomes(job).await, only("Finished"));
    });
}

#[test]
fn a_drained_job_has_the_maximum_watermark_in_its_savepoint() {
    run(async {
        let connectors = connectors(false, 1);
        let mut job = start(&connectors, &job(2, 1, splits())).await;
        connectors.release("in", "p-0", 3);
        job.settle().await;
        let acks = trigger(&mut job, stop_barrier(1, StopMode::Drain)).await;
        let sinks = acks.iter().flat_map(|ack| &ack.operators).filter(|operator| operator.uid == "sink-out");
        assert!(sinks.map(|operator| operator.watermark_ms).eq([i64::MAX, i64::MAX]));
        assert_eq!(
            positions(&acks).iter().map(|p| (p.offset, p.finished)).collect::<Vec<_>>(),
            [(3, false), (0, false)]
        );
        completed(&job, 1).await;
        assert_eq!(outcomes(job).await, only("Finished"));
    });
}

#[test]
fn a_drain_whose_savepoint_fails_restarts_the_job() {
    run(async {
        let connectors = connectors(false, 1);
        let mut job = start(&connectors, &job(1, 1, splits())).await;
        trigger(&mut job, stop_barrier(1, StopMode::Drain)).await;
        failed(&job, 1).await;
        let outcomes = outcomes(job).await;
        assert!(outcomes.iter().any(|outcome| outcome.contains("its savepoint failed")), "{outcomes:?}");
        assert!(!outcomes.contains("Ok(Finished)"), "{outcomes:?}");
    });
}

#[test]
fn a_barrier_that_comes_while_the_job_stops_is_declined() {
    run(async {
        let connectors = connectors(false, 1);
        let mut job = start(&connectors, &job(1, 1, splits())).await;
        assert_eq!(trigger(&mut job, stop_barrier(1, StopMode::Suspend)).await.len(), 2);
        job.tell(Control::Trigger(barrier(2))).await;
        let events = job.settle().await;
        assert!(
            matches!(events.front(), Some(SubtaskEvent::SnapshotDeclined(d)) if d.barrier == BarrierId(2)),
            "{events:?}"
        );
        completed(&job, 1).await;
        assert_eq!(outcomes(job).await, only("Finished"));
    });
}

#[test]
fn back_pressure_reaches_the_source() {
    run(async {
        let connectors = TestConnectors::default();
        let many: Vec<_> = (0..50_000).map(|i| (i % 7, i)).collect();
        connectors.split("in", "p-0", rows(&many), 5000, false);
        connectors.block_sinks(true);
        connectors.release_all();
        let deployment = job(1, 1, vec![at_start("p-0")]);
        let mut job = LocalJob::start(&deployment, &connectors, 100_000).await.unwrap();
        job.settle().await;
        let source = job.subtasks().into_iter().find(|id| id.chain.0 == 0).unwrap();
        let read = || job.metrics(&source).unwrap().progress(source.clone()).rows_in;
        assert_eq!(read(), 10_000, "two batches of 80 kB fill a channel of 100 kB");
        assert_eq!(written(&connectors).len(), 0);
        connectors.block_sinks(false);
        job.settle().await;
        assert_eq!(written(&connectors).len(), 50_000);
        connectors.block_sinks(true);
        job.tell(Control::Cancel).await;
        assert_eq!(outcomes(job).await, only("Cancelled"));
    });
}

#[test]
fn a_blocked_subtask_is_cancelled_at_once() {
    run(async {
        let connectors = connectors(false, 4);
        connectors.block_sinks(true);
        connectors.release_all();
        let mut job = LocalJob::start(&job(2, 1, splits()), &connectors, 1).await.unwrap();
        job.settle().await;
        assert!(job.ended().is_empty());
        job.tell(Control::Cancel).await;
        job.settle().await;
        assert_eq!(job.ended().len(), 4);
    });
}

#[test]
fn a_failure_names_its_operator_and_breaks_the_channels_around_it() {
    run(async {
        let connectors = connectors(false, 1);
        let mut job = start(&connectors, &job(1, 1, splits())).await;
        connectors.fail_writes(Some(Error::new(Code::Io, "could not write")));
        connectors.release("in", "p-0", 2);
        job.settle().await;
        connectors.release("in", "p-0", 4);
        let outcomes = job.join().await;
        let errors: Vec<_> = outcomes.into_values().map(|outcome| outcome.unwrap_err()).collect();
        assert_eq!(errors[0].code, Code::Unavailable, "the source notices that its receiver is gone");
        assert_eq!(errors[1].message, "operator Sink(out): could not write");
    });
}

#[test]
fn chained_operators_run_in_one_subtask() {
    run(async {
        let mut graph = graph(
            vec![source(0, "in", Some(10)), sink(1, "out"), sink(2, "copy")],
            vec![edge(0, 1, Exchange::Chained), edge(0, 2, Exchange::Chained)],
            2,
        );
        graph.options.buffer_timeout_ms = 0;
        let connectors = connectors(true, 2);
        let mut job = start(&connectors, &deployment(graph, 1, &[("in", splits())])).await;
        connectors.release_all();
        job.settle().await;
        let acks = trigger(&mut job, barrier(1)).await;
        let uids: Vec<_> = acks[0].operators.iter().map(|operator| operator.uid.as_str()).collect();
        assert_eq!((acks.len(), uids), (2, vec!["source-in", "sink-out", "sink-copy"]));
        job.tell(Control::Finish).await;
        assert_eq!(outcomes(job).await, only("Finished"));
        for table in ["out", "copy"] {
            let mut rows: Vec<_> = connectors
                .written()
                .iter()
                .filter(|written| written.table == table)
                .flat_map(|written| values(&written.batch.rows))
                .collect();
            rows.sort_unstable();
            assert_eq!(rows, all_rows(), "{table}");
        }
    });
}
