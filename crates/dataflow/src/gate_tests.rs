//! Tests of the gate's decisions: scenarios, then any interleaving.

use proptest::prelude::*;

use super::*;
use crate::channel::channel;
use crate::fixtures::{barrier, batch, values};
use crate::memory::MemoryBudget;

/// Feeds elements and prints what the gate lets through.
struct Scenario {
    gate: GateState,
    now_us: u64,
}

impl Scenario {
    fn new(channels: usize) -> Self {
        Self { gate: GateState::new(channels), now_us: 0 }
    }

    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.gate.next_event())
            .map(|event| match event {
                GateEvent::Rows { channel, batch } => format!("rows {} of {channel}", values(&batch.rows)[0].0),
                GateEvent::Watermark(Watermark::MAX) => "watermark max".to_owned(),
                GateEvent::Watermark(watermark) => format!("watermark {}", watermark.0),
                GateEvent::Idle => "idle".to_owned(),
                GateEvent::Barrier(aligned) => {
                    format!("barrier {} after {} us", aligned.barrier().id, aligned.alignment_us())
                }
                GateEvent::Cancelled(barrier) => format!("cancelled {}", barrier.id),
                GateEvent::End => "end".to_owned(),
            })
            .collect()
    }

    fn feed(&mut self, channel: usize, element: Element) -> Vec<String> {
        assert!(self.gate.is_open(channel), "channel {channel} must not be read now");
        self.now_us += 10;
        self.gate.on_element(channel, element, self.now_us);
        self.events()
    }

    fn rows(&mut self, channel: usize) -> Vec<String> {
        self.feed(channel, Element::Batch(batch(&[(7, 0)])))
    }

    fn watermark(&mut self, channel: usize, watermark: Watermark) -> Vec<String> {
        self.feed(channel, Element::Watermark(watermark))
    }

    fn barrier(&mut self, channel: usize, id: u64) -> Vec<String> {
        self.feed(channel, Element::Barrier(barrier(id)))
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_channel_with_the_barrier_waits_for_the_others() {
    let mut gate = Scenario::new(3);
    assert_eq!(gate.barrier(1, 1), NOTHING);
    assert!(!gate.gate.is_open(1));
    assert_eq!(gate.rows(0), ["rows 7 of 0"]);
    assert_eq!(gate.barrier(0, 1), NOTHING);
    assert_eq!(gate.rows(2), ["rows 7 of 2"]);
    assert_eq!(gate.barrier(2, 1), ["barrier 1 after 40 us"]);
    assert_eq!(gate.rows(1), ["rows 7 of 1"]);
}

#[test]
fn an_ended_channel_counts_as_aligned() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.feed(0, Element::EndOfInput), NOTHING);
    assert_eq!(gate.barrier(1, 1), ["barrier 1 after 0 us"]);
    assert_eq!(gate.feed(1, Element::EndOfInput), ["end"]);
}

#[test]
fn a_channel_that_ends_during_alignment_completes_it() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.barrier(0, 4), NOTHING);
    assert_eq!(gate.feed(1, Element::EndOfInput), ["barrier 4 after 10 us"]);
    assert_eq!(gate.feed(0, Element::EndOfInput), ["end"]);
}

#[test]
fn a_newer_barrier_cancels_an_older_alignment() {
    let mut gate = Scenario::new(3);
    assert_eq!(gate.barrier(0, 1), NOTHING);
    assert_eq!(gate.barrier(1, 2), ["cancelled 1"]);
    assert_eq!(gate.rows(0), ["rows 7 of 0"], "the channel with the older barrier is read again");
    assert_eq!(gate.barrier(2, 1), NOTHING, "a late barrier of a cancelled alignment is dropped");
    assert_eq!(gate.rows(2), ["rows 7 of 2"]);
    assert_eq!(gate.barrier(0, 2), NOTHING);
    assert_eq!(gate.barrier(2, 2), ["barrier 2 after 50 us"]);
}

#[test]
fn an_aborted_snapshot_releases_its_channels() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.barrier(0, 5), NOTHING);
    gate.gate.cancel(BarrierId(5));
    assert_eq!(gate.events(), ["cancelled 5"]);
    assert_eq!(gate.rows(0), ["rows 7 of 0"]);
    assert_eq!(gate.barrier(1, 5), NOTHING, "it comes too late");
    assert!(gate.gate.is_open(1));
    gate.gate.cancel(BarrierId(9));
    assert_eq!(gate.events(), NOTHING);
    assert_eq!(gate.barrier(0, 9), NOTHING, "aborted before it came");
    assert!(gate.gate.is_open(0));
}

#[test]
fn the_watermark_is_the_minimum_over_the_inputs() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.watermark(0, Watermark(10)), NOTHING);
    assert_eq!(gate.watermark(1, Watermark(4)), ["watermark 4"]);
    assert_eq!(gate.watermark(1, Watermark(3)), NOTHING, "it never falls");
    assert_eq!(gate.watermark(1, Watermark(12)), ["watermark 10"]);
}

#[test]
fn an_idle_input_does_not_hold_event_time_back() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.watermark(0, Watermark(10)), NOTHING);
    assert_eq!(gate.feed(1, Element::Idle), ["watermark 10"]);
    assert_eq!(gate.feed(0, Element::Idle), ["idle"]);
    assert_eq!(gate.rows(0), ["watermark 10", "rows 7 of 0"], "rows end idleness");
    assert_eq!(gate.watermark(1, Watermark(5)), NOTHING, "behind what was announced already");
    assert_eq!(gate.watermark(0, Watermark(30)), NOTHING);
    assert_eq!(gate.watermark(1, Watermark(20)), ["watermark 20"]);
}

#[test]
fn an_idle_input_beside_an_ended_one_does_not_fire_everything() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.watermark(0, Watermark(1)), NOTHING);
    assert_eq!(gate.watermark(1, Watermark(2)), ["watermark 1"]);
    assert_eq!(gate.watermark(0, Watermark::MAX), ["watermark 2"]);
    assert_eq!(gate.feed(0, Element::EndOfInput), NOTHING);
    assert_eq!(gate.feed(1, Element::Idle), ["idle"]);
    assert_eq!(gate.watermark(1, Watermark(3)), ["watermark 3"]);
    assert_eq!(gate.watermark(1, Watermark::MAX), ["watermark max"]);
    assert_eq!(gate.feed(1, Element::EndOfInput), ["end"]);
}

#[test]
fn an_input_that_ended_without_the_maximum_watermark_fires_nothing() {
    let mut gate = Scenario::new(2);
    assert_eq!(gate.watermark(0, Watermark(5)), NOTHING);
    assert_eq!(gate.watermark(1, Watermark(9)), ["watermark 5"]);
    assert_eq!(gate.feed(0, Element::EndOfInput), NOTHING);
    assert_eq!(gate.watermark(1, Watermark(99)), NOTHING);
    assert_eq!(gate.feed(1, Element::EndOfInput), ["end"]);
}

#[tokio::test]
async fn channels_are_read_in_turn() {
    let (mut senders, receivers): (Vec<_>, Vec<_>) =
        (0..3).map(|_| channel(1 << 20, MemoryBudget::unlimited())).unzip();
    for sender in &mut senders {
        for _ in 0..3 {
            sender.push(Element::Batch(batch(&[(0, 0)]))).unwrap();
        }
    }
    let mut gate = InputGate::new(receivers);
    let mut turns = Vec::new();
    for _ in 0..9 {
        let GateEvent::Rows { channel, .. } = gate.next().await.unwrap() else { panic!("only rows were sent") };
        turns.push(channel);
    }
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    drop(senders);
    assert!(gate.next().await.is_err(), "a lost sender is no end");
}

/// What one channel brings: rows numbered from 0, watermarks, and all barriers in order.
#[derive(Clone, Debug)]
enum Sent {
    Rows,
    Watermark(i64),
    Idle,
    Barrier,
}

fn script() -> impl Strategy<Value = Vec<Sent>> {
    let sent = prop_oneof![
        4 => Just(Sent::Rows),
        2 => (0i64..50).prop_map(Sent::Watermark),
        1 => Just(Sent::Idle),
        2 => Just(Sent::Barrier),
    ];
    proptest::collection::vec(sent, 0..25)
}

proptest! {
    /// Whatever the interleaving: rows before a barrier on their channel come out before it, rows behind it after it;
    /// the watermark never falls and never passes the minimum of active inputs; everything comes out once.
    #[test]
    fn no_row_crosses_an_aligned_barrier(
        scripts in proptest::collection::vec(script(), 1..4),
        choices in proptest::collection::vec(0usize..100, 200),
    ) {
        let count = scripts.len();
        let barriers = scripts.iter().map(|s| s.iter().filter(|s| matches!(s, Sent::Barrier)).count()).min().unwrap();
        let mut gate = GateState::new(count);
        let mut positions = vec![0usize; count];
        let mut sent_barriers = vec![0u64; count];
        let mut ended = vec![false; count];
        let mut out_barriers = 0u64;
        let mut last_watermark = i64::MIN;
        let mut rows_out = 0usize;
        let mut ends = 0;
        let mut choices = choices.into_iter().cycle();
        while !ended.iter().all(|ended| *ended) {
            let open: Vec<usize> = (0..count).filter(|channel| gate.is_open(*channel)).collect();
            prop_assert!(!open.is_empty(), "the gate is stuck");
            let channel = open[choices.next().unwrap() % open.len()];
            let element = match scripts[channel].get(positions[channel]) {
                None => { ended[channel] = true; Element::EndOfInput }
                Some(Sent::Rows) => Element::Batch(batch(&[(sent_barriers[channel] as i64, 0)])),
                Some(Sent::Watermark(ms)) => Element::Watermark(Watermark(*ms)),
                Some(Sent::Idle) => Element::Idle,
                Some(Sent::Barrier) if sent_barriers[channel] < barriers as u64 => {
                    sent_barriers[channel] += 1;
                    Element::Barrier(barrier(sent_barriers[channel]))
                }
                Some(Sent::Barrier) => Element::Idle,
            };
            positions[channel] += 1;
            gate.on_element(channel, element, 0);
            while let Some(event) = gate.next_event() {
                match event {
                    GateEvent::Rows { batch, .. } => {
                        rows_out += 1;
                        prop_assert_eq!(values(&batch.rows)[0].0 as u64, out_barriers, "row on the wrong side");
                    }
                    GateEvent::Barrier(aligned) => {
                        out_barriers += 1;
                        prop_assert_eq!(aligned.barrier().id.0, out_barriers);
                    }
                    GateEvent::Watermark(watermark) => {
                        prop_assert!(watermark.0 >= last_watermark);
                        last_watermark = watermark.0;
                    }
                    GateEvent::Cancelled(_) => prop_assert!(false, "nothing was superseded"),
                    GateEvent::Idle => {}
                    GateEvent::End => ends += 1,
                }
            }
        }
        prop_assert_eq!(out_barriers, barriers as u64);
        let rows_in = scripts.iter().flatten().filter(|sent| matches!(sent, Sent::Rows)).count();
        prop_assert_eq!((rows_out, ends), (rows_in, 1));
    }
}
