//! Tests of exchanges: ownership, order, when rows and watermarks leave.

use std::sync::Arc;
use std::task::Context;

use futures::FutureExt;
use futures::task::noop_waker;
use proptest::prelude::*;
use weir_state::key_hash::hash_keys;
use weir_types::ids::SubtaskIndex;
use weir_types::key_range::KeyRange;

use super::*;
use crate::channel::{ChannelReceiver, channel};
use crate::element::RowOp;
use crate::fixtures::{barrier, batch, values};
use crate::memory::MemoryBudget;

fn outputs(exchange: &Exchange, targets: usize, limits: BatchLimits) -> (Outputs, Vec<ChannelReceiver>) {
    let (senders, receivers) = (0..targets).map(|_| channel(1 << 20, MemoryBudget::unlimited())).unzip();
    let mut outputs = Outputs::new(limits);
    assert_eq!(outputs.add(exchange, senders).unwrap(), 0);
    (outputs, receivers)
}

fn hash() -> Exchange {
    Exchange::Hash { keys: vec![0] }
}

fn small(rows: usize) -> BatchLimits {
    BatchLimits { rows, ..BatchLimits::default() }
}

/// Milliseconds after an arbitrary moment.
fn at(ms: u64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_millis(ms)
}

fn drain(receiver: &mut ChannelReceiver) -> Vec<Element> {
    std::iter::from_fn(|| receiver.recv().now_or_never().and_then(Result::ok)).collect()
}

/// Elements as text: rows by their keys.
fn seen(receiver: &mut ChannelReceiver) -> Vec<String> {
    let name = |element| match element {
        Element::Batch(batch) => {
            format!("rows {:?}", values(&batch.rows).iter().map(|(key, _)| *key).collect::<Vec<_>>())
        }
        Element::Watermark(watermark) => format!("watermark {}", watermark.0),
        Element::Idle => "idle".to_owned(),
        Element::Barrier(barrier) => format!("barrier {}", barrier.id),
        Element::EndOfInput => "end".to_owned(),
    };
    drain(receiver).into_iter().map(name).collect()
}

#[test]
fn rows_leave_when_a_batch_is_full_or_the_buffer_timeout_has_passed() {
    let (mut outputs, mut receivers) = outputs(&Exchange::Forward, 1, small(5));
    outputs.emit(0, batch(&[(1, 0), (2, 0)]), at(0)).unwrap();
    outputs.emit(0, batch(&[(3, 0)]), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), [""; 0]);
    assert_eq!(outputs.deadline().unwrap(), at(10));
    outputs.emit(0, batch(&[(4, 0), (5, 0)]), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [1, 2, 3, 4, 5]"]);
    assert_eq!(outputs.deadline(), None);
    outputs.emit(0, batch(&[(6, 0)]), at(0)).unwrap();
    outputs.flush_due(at(9)).unwrap();
    assert_eq!(seen(&mut receivers[0]), [""; 0]);
    outputs.flush_due(at(10)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [6]"]);
}

#[test]
fn a_large_batch_is_cut_and_a_half_full_one_is_not_copied() {
    let (mut outputs, mut receivers) = outputs(&Exchange::Forward, 1, small(4));
    outputs.emit(0, batch(&[(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]), at(0)).unwrap();
    outputs.barrier(&barrier(1), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [1, 2, 3, 4]", "rows [5]", "barrier 1"]);
    let half = batch(&[(6, 0), (7, 0)]);
    outputs.emit(0, half.clone(), at(0)).unwrap();
    let Some(Element::Batch(sent)) = drain(&mut receivers[0]).pop() else { panic!("it is sent at once") };
    assert!(Arc::ptr_eq(sent.rows.column(0), half.rows.column(0)));
}

#[test]
fn watermarks_are_merged_and_follow_their_rows() {
    let (mut outputs, mut receivers) = outputs(&Exchange::Forward, 1, BatchLimits::default());
    outputs.emit(0, batch(&[(1, 0)]), at(0)).unwrap();
    outputs.watermark(0, Watermark(1), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [1]", "watermark 1"], "the first is not held back");
    outputs.emit(0, batch(&[(2, 0)]), at(0)).unwrap();
    outputs.watermark(0, Watermark(2), at(0)).unwrap();
    outputs.watermark(0, Watermark(3), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), [""; 0]);
    outputs.flush_due(at(10)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [2]"], "rows need not wait for the watermark");
    assert_eq!(outputs.deadline().unwrap(), at(200));
    outputs.emit(0, batch(&[(3, 0)]), at(10)).unwrap();
    outputs.flush_due(at(200)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [3]", "watermark 3"]);
    outputs.watermark(0, Watermark(3), at(200)).unwrap();
    assert_eq!(outputs.deadline(), None, "the same watermark is not sent again");
}

#[test]
fn a_barrier_is_preceded_by_the_latest_watermark_on_every_channel() {
    let (mut outputs, mut receivers) = outputs(&hash(), 3, BatchLimits::default());
    outputs.watermark(0, Watermark(1), at(0)).unwrap();
    outputs.emit(0, batch(&[(1, 0)]), at(0)).unwrap();
    outputs.watermark(0, Watermark(2), at(0)).unwrap();
    outputs.barrier(&barrier(7), at(0)).unwrap();
    outputs.end(at(0)).unwrap();
    let owner = owner_of(1, 3);
    for (index, receiver) in receivers.iter_mut().enumerate() {
        let expected: &[&str] = if index == owner {
            &["watermark 1", "rows [1]", "watermark 2", "barrier 7", "end"]
        } else {
            &["watermark 2", "barrier 7", "end"]
        };
        assert_eq!(seen(receiver), expected);
    }
}

#[test]
fn idleness_sends_the_watermark_and_rows_end_it() {
    let (mut outputs, mut receivers) = outputs(&Exchange::Forward, 1, BatchLimits::default());
    outputs.watermark(0, Watermark(1), at(0)).unwrap();
    outputs.watermark(0, Watermark(2), at(0)).unwrap();
    outputs.idle(at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["watermark 2", "idle"], "merged in the queue");
    outputs.watermark(0, Watermark(2), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["watermark 2"], "activity is told even if time stands still");
    outputs.watermark(0, Watermark::MAX, at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), [format!("watermark {}", i64::MAX)], "the end is not held back");
}

#[test]
fn rebalance_goes_round_the_targets() {
    let (mut outputs, mut receivers) = outputs(&Exchange::Rebalance, 2, small(2));
    for key in 0..8 {
        outputs.emit(0, batch(&[(key, 0), (key, 0)]), at(0)).unwrap();
    }
    assert_eq!(seen(&mut receivers[0]), ["rows [0, 0]", "rows [2, 2]", "rows [4, 4]", "rows [6, 6]"]);
    assert_eq!(seen(&mut receivers[1]), ["rows [1, 1]", "rows [3, 3]", "rows [5, 5]", "rows [7, 7]"]);
}

#[test]
fn without_key_columns_all_rows_go_to_the_first_subtask() {
    let (mut outputs, mut receivers) = outputs(&Exchange::Hash { keys: vec![] }, 2, small(1));
    outputs.emit(0, batch(&[(1, 0), (2, 0)]), at(0)).unwrap();
    assert_eq!(seen(&mut receivers[0]), ["rows [1]", "rows [2]"]);
    assert_eq!(seen(&mut receivers[1]), [""; 0]);
}

#[test]
fn there_is_no_room_while_one_channel_is_full() {
    let (full, _full_receiver) = channel(1, MemoryBudget::unlimited());
    let (empty, _empty_receiver) = channel(1, MemoryBudget::unlimited());
    let mut outputs = Outputs::new(small(1));
    outputs.add(&Exchange::Forward, vec![full]).unwrap();
    outputs.add(&Exchange::Forward, vec![empty]).unwrap();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(outputs.poll_room(&mut cx).is_ready());
    outputs.emit(0, batch(&[(1, 0)]), at(0)).unwrap();
    assert!(outputs.poll_room(&mut cx).is_pending());
    assert!(outputs.poll_room(&mut Context::from_waker(&noop_waker())).is_pending());
}

fn owner_of(key: i64, parallelism: u32) -> usize {
    let mut hashes = Vec::new();
    hash_keys(&[Arc::clone(batch(&[(key, 0)]).rows.column(0))], &mut hashes).unwrap();
    let parallelism = Parallelism::new(parallelism).unwrap();
    (0..parallelism.get())
        .position(|index| KeyRange::of_subtask(SubtaskIndex(index), parallelism).unwrap().contains(hashes[0]))
        .unwrap()
}

/// What is emitted.
#[derive(Clone, Debug)]
enum Emitted {
    Rows(Vec<(i64, u8)>),
    Watermark,
    Barrier,
    Flush,
}

proptest! {
    /// Every row reaches exactly the subtask that owns its key, with its op, in order; no watermark or barrier
    /// overtakes a row, and every barrier comes behind the latest watermark.
    #[test]
    fn rows_reach_their_owner_in_order(
        script in proptest::collection::vec(prop_oneof![
            6 => proptest::collection::vec((0i64..40, 0u8..4), 1..30).prop_map(Emitted::Rows),
            2 => Just(Emitted::Watermark),
            1 => Just(Emitted::Barrier),
            1 => Just(Emitted::Flush),
        ], 1..40),
        parallelism in 1u32..6,
        batch_rows in 1usize..20,
        with_ops: bool,
    ) {
        {
            let mut now = 0;
            let (mut outputs, mut receivers) = outputs(&hash(), parallelism as usize, small(batch_rows));
            let mut expected: Vec<Vec<(i64, i64, u8)>> = vec![Vec::new(); parallelism as usize];
            let (mut serial, mut barriers) = (0i64, 0u64);
            let mut latest = Vec::new();
            for emitted in &script {
                match emitted {
                    Emitted::Rows(rows) => {
                        let numbered: Vec<(i64, i64)> = rows.iter().map(|(key, _)| { serial += 1; (*key, serial) }).collect();
                        let mut batch = batch(&numbered);
                        batch.ops = with_ops.then(|| rows.iter().map(|(_, op)| *op).collect::<Vec<_>>().into());
                        for ((key, number), (_, op)) in numbered.iter().zip(rows) {
                            let op = if with_ops { *op } else { RowOp::Insert as u8 };
                            expected[owner_of(*key, parallelism)].push((*key, *number, op));
                        }
                        outputs.emit(0, batch, at(now)).unwrap();
                    }
                    Emitted::Watermark => outputs.watermark(0, Watermark(serial), at(now)).unwrap(),
                    Emitted::Barrier => {
                        barriers += 1;
                        latest.push(serial);
                        outputs.watermark(0, Watermark(serial), at(now)).unwrap();
                        outputs.barrier(&barrier(barriers), at(now)).unwrap();
                    }
                    Emitted::Flush => {
                        now += 10;
                        outputs.flush_due(at(now)).unwrap();
                    }
                }
            }
            outputs.end(at(now)).unwrap();
            for (receiver, expected) in receivers.iter_mut().zip(&expected) {
                let elements = drain(receiver);
                let mut got = Vec::new();
                let (mut watermark, mut seen_barriers) = (0, 0);
                for element in &elements {
                    match element {
                        Element::Batch(batch) => {
                            assert!(batch.len() <= batch_rows);
                            let ops = batch.ops.clone().unwrap_or_else(|| vec![0; batch.len()].into());
                            got.extend(values(&batch.rows).iter().zip(ops.iter()).map(|((k, n), op)| (*k, *n, *op)));
                        }
                        Element::Watermark(Watermark(upto)) => {
                            assert!(expected.iter().filter(|(_, number, _)| number <= upto).count() <= got.len());
                            watermark = *upto;
                        }
                        Element::Barrier(_) => {
                            assert_eq!(watermark, latest[seen_barriers]);
                            seen_barriers += 1;
                        }
                        Element::Idle => panic!("nobody was idle"),
                        Element::EndOfInput => {}
                    }
                }
                assert_eq!(&got, expected);
                assert_eq!(seen_barriers as u64, barriers);
                assert!(matches!(elements.last(), Some(Element::EndOfInput)));
            }
        }
    }
}
