//! Tests of channels: credits, order, merging, and both ways to break.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::task::noop_waker;
use weir_types::{Code, Error};

use super::*;
use crate::element::{Batch, Watermark};
use crate::fixtures::{barrier, batch, values};

fn is_ready<T>(poll: &Poll<T>) -> bool {
    poll.is_ready()
}

fn has_room(sender: &mut ChannelSender) -> bool {
    is_ready(&sender.poll_room(&mut Context::from_waker(&noop_waker())))
}

fn received(receiver: &mut ChannelReceiver) -> Option<Result<Element>> {
    receiver.recv().now_or_never()
}

fn large() -> Batch {
    batch(&vec![(1, 1); 1000])
}

#[test]
fn an_element_larger_than_the_bound_fits_and_the_next_waits() {
    let memory = MemoryBudget::unlimited();
    let (mut sender, mut receiver) = channel(100, Arc::clone(&memory));
    assert!(has_room(&mut sender));
    sender.push(Element::Batch(large())).unwrap();
    assert!(!has_room(&mut sender));
    assert_eq!(memory.used(), 16_000);
    assert!(sender.send(Element::Batch(large())).now_or_never().is_none(), "nothing is queued by a cancelled send");
    assert!(matches!(received(&mut receiver), Some(Ok(Element::Batch(_)))));
    assert!(has_room(&mut sender));
    assert_eq!(memory.used(), 0);
    assert!(received(&mut receiver).is_none());
}

#[tokio::test]
async fn a_waiting_sender_goes_on_when_the_receiver_has_made_room() {
    let (mut sender, mut receiver) = channel(1, MemoryBudget::unlimited());
    let sending = tokio::spawn(async move {
        for key in 0..100 {
            sender.send(Element::Batch(batch(&[(key, 0)]))).await.unwrap();
        }
        sender.send(Element::EndOfInput).await.unwrap();
    });
    for key in 0..100 {
        let Element::Batch(batch) = receiver.recv().await.unwrap() else { panic!("a batch was sent") };
        assert_eq!(values(&batch.rows), [(key, 0)]);
        assert!(receiver.bytes() <= 256, "one element may wait, not more");
    }
    assert!(matches!(receiver.recv().await.unwrap(), Element::EndOfInput));
    sending.await.unwrap();
}

#[test]
fn neighbouring_watermarks_are_merged_but_never_across_rows_or_barriers() {
    let (mut sender, mut receiver) = channel(1 << 20, MemoryBudget::unlimited());
    let elements = [
        Element::Watermark(Watermark(1)),
        Element::Watermark(Watermark(2)),
        Element::Batch(batch(&[(1, 1)])),
        Element::Watermark(Watermark(3)),
        Element::Idle,
        Element::Idle,
        Element::Watermark(Watermark(4)),
        Element::Barrier(barrier(1)),
        Element::Watermark(Watermark(5)),
    ];
    for element in elements {
        sender.push(element).unwrap();
    }
    let mut got = Vec::new();
    while let Some(element) = received(&mut receiver) {
        got.push(match element.unwrap() {
            Element::Watermark(watermark) => format!("watermark {}", watermark.0),
            Element::Batch(_) => "rows".to_owned(),
            Element::Barrier(barrier) => format!("barrier {}", barrier.id),
            element => format!("{element:?}"),
        });
    }
    assert_eq!(got, ["watermark 2", "rows", "watermark 3", "watermark 4", "barrier 1", "watermark 5"]);
}

#[test]
fn control_elements_are_bounded_too() {
    let (mut sender, _receiver) = channel(1 << 20, MemoryBudget::unlimited());
    for id in 0..CONTROLS_MAX {
        assert!(has_room(&mut sender));
        sender.push(Element::Barrier(barrier(id as u64))).unwrap();
    }
    assert!(!has_room(&mut sender));
}

#[test]
fn a_sender_that_goes_away_without_an_end_is_an_error_behind_its_rows() {
    let (mut sender, mut receiver) = channel(1 << 20, MemoryBudget::unlimited());
    sender.push(Element::Batch(batch(&[(1, 1)]))).unwrap();
    drop(sender);
    assert!(matches!(received(&mut receiver), Some(Ok(Element::Batch(_)))));
    assert_eq!(received(&mut receiver).unwrap().unwrap_err().code, Code::Unavailable);
}

#[test]
fn the_receiver_sees_why_a_channel_was_broken() {
    let (sender, mut receiver) = channel(1 << 20, MemoryBudget::unlimited());
    let reason = Error::unavailable("connection to TaskManager tm-2 lost");
    sender.fail(reason.clone());
    assert_eq!(received(&mut receiver).unwrap().unwrap_err(), reason);
}

#[test]
fn an_ended_channel_is_no_broken_one() {
    let (mut sender, mut receiver) = channel(1 << 20, MemoryBudget::unlimited());
    sender.push(Element::EndOfInput).unwrap();
    assert_eq!(sender.push(Element::Idle).unwrap_err().code, Code::Internal);
    drop(sender);
    assert!(matches!(received(&mut receiver), Some(Ok(Element::EndOfInput))));
}

#[test]
fn a_receiver_that_goes_away_fails_the_sender_and_frees_the_memory() {
    let memory = MemoryBudget::unlimited();
    let (mut sender, receiver) = channel(1, Arc::clone(&memory));
    sender.push(Element::Batch(large())).unwrap();
    drop(receiver);
    assert_eq!(memory.used(), 0);
    assert_eq!(sender.push(Element::Idle).unwrap_err().code, Code::Unavailable);
    assert_eq!(sender.room().now_or_never().unwrap().unwrap_err().code, Code::Unavailable);
}

#[test]
fn the_sender_sees_why_a_channel_was_broken() {
    let (mut sender, receiver) = channel(1 << 20, MemoryBudget::unlimited());
    let reason = Error::unavailable("lost the exchange with TaskManager tm-2");
    receiver.fail(reason.clone());
    assert_eq!(sender.push(Element::Idle).unwrap_err(), reason);
    assert_eq!(sender.room().now_or_never().unwrap().unwrap_err(), reason);
}
