//! Tests of the head of a source chain: positions, event time per split, idleness, coalescing.

use async_trait::async_trait;

use super::*;
use crate::fixtures::{at_start, rows, values};

/// A source that never brings anything by itself.
struct Silent;

#[async_trait(?Send)]
impl Source for Silent {
    async fn next(&mut self) -> Result<SourceEvent> {
        std::future::pending().await
    }
}

struct Scenario {
    reader: SourceReader,
    start: Instant,
    offsets: Vec<u64>,
    work: VecDeque<Work>,
}

impl Scenario {
    fn new(splits: Vec<SplitPosition>, idle_timeout_ms: Option<u64>) -> Self {
        let rules = ReaderRules {
            calc: None,
            watermark: Some(WatermarkGenerator::with_delay(1, 10)),
            idle_timeout: idle_timeout_ms.map(Duration::from_millis),
            limits: BatchLimits { rows: 8, ..BatchLimits::default() },
        };
        let start = Instant::now();
        let offsets = splits.iter().map(|split| split.offset).collect();
        Self {
            reader: SourceReader::new(Box::new(Silent), splits, rules, start),
            start,
            offsets,
            work: VecDeque::new(),
        }
    }

    fn seen(&mut self) -> Vec<String> {
        let name = |work| match work {
            Work::Rows(batch) => format!("rows {:?}", values(&batch.rows).iter().map(|row| row.1).collect::<Vec<_>>()),
            Work::Join(batches) => format!("join {}", batches.len()),
            Work::Watermark(Watermark::MAX) => "watermark max".to_owned(),
            Work::Watermark(watermark) => format!("watermark {}", watermark.0),
            Work::Idle => "idle".to_owned(),
            Work::Drained => "drained".to_owned(),
            work => format!("{work:?}"),
        };
        self.work.drain(..).map(name).collect()
    }

    fn start(&mut self) -> Vec<String> {
        self.reader.start(&mut self.work);
        self.seen()
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn found(&mut self, found: Found, at_ms: u64) -> Vec<String> {
        let now = self.at(at_ms);
        self.reader.on_found(found, now, &mut self.work).unwrap();
        self.seen()
    }

    /// Rows with these event times, then a pause of the source.
    fn rows(&mut self, split: usize, times: &[i64], at_ms: u64) -> Vec<String> {
        self.offsets[split] += times.len() as u64;
        let rows = rows(&times.iter().map(|ts| (0, *ts)).collect::<Vec<_>>());
        let next_offset = self.offsets[split];
        let mut seen =
            self.found(Found::Event(SourceEvent::Rows { split, rows, next_offset, event_time_max_ms: None }), at_ms);
        seen.extend(self.found(Found::Pause, at_ms));
        seen
    }

    fn timer(&mut self, at_ms: u64) -> Vec<String> {
        let now = self.at(at_ms);
        self.reader.on_timer(now, &mut self.work);
        self.seen()
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn the_watermark_is_the_minimum_over_splits_and_follows_its_rows() {
    let mut reader = Scenario::new(vec![at_start("a"), at_start("b")], None);
    assert_eq!(reader.start(), NOTHING);
    assert_eq!(reader.rows(0, &[100, 90], 0), ["rows [100, 90]"], "the other split has brought nothing yet");
    assert_eq!(reader.rows(1, &[50], 0), ["rows [50]", "watermark 40"]);
    assert_eq!(reader.rows(1, &[20], 0), ["rows [20]"], "it never falls");
    assert_eq!(reader.rows(1, &[500], 0), ["rows [500]", "watermark 90"]);
    assert_eq!(
        reader.reader.positions().iter().map(|p| (p.offset, p.watermark_ms)).collect::<Vec<_>>(),
        [(2, 90), (3, 490)]
    );
}

#[test]
fn small_batches_are_joined_while_the_source_has_more() {
    let mut reader = Scenario::new(vec![at_start("a")], None);
    let event = |offset: u64| SourceEvent::Rows {
        split: 0,
        rows: rows(&[(0, 100 + offset as i64)]),
        next_offset: offset,
        event_time_max_ms: None,
    };
    for offset in 1..4 {
        assert_eq!(reader.found(Found::Event(event(offset)), 0), NOTHING);
    }
    assert_eq!(reader.found(Found::Event(event(4)), 0), ["join 4", "watermark 94"], "half a batch is enough");
    assert_eq!(reader.found(Found::Event(event(5)), 0), NOTHING);
    assert_eq!(reader.found(Found::Pause, 0), ["rows [105]", "watermark 95"]);
}

#[test]
fn a_restored_split_announces_its_watermark_before_any_row() {
    let restored = |watermark_ms| SplitPosition { offset: 7, watermark_ms, ..at_start("a") };
    assert_eq!(Scenario::new(vec![restored(30), restored(20)], None).start(), ["watermark 20"]);
    assert_eq!(Scenario::new(vec![restored(30), at_start("b")], None).start(), NOTHING);
}

#[test]
fn finished_splits_do_not_hold_event_time_back_and_the_last_one_ends_it() {
    let finished = SplitPosition { finished: true, watermark_ms: 5, ..at_start("a") };
    let mut reader = Scenario::new(vec![finished.clone(), at_start("b"), at_start("c")], None);
    assert_eq!(reader.start(), NOTHING);
    assert_eq!(reader.rows(1, &[60], 0), ["rows [60]"]);
    assert_eq!(reader.found(Found::Event(SourceEvent::SplitFinished { split: 2 }), 0), ["watermark 50"]);
    assert_eq!(reader.found(Found::Event(SourceEvent::SplitFinished { split: 1 }), 0), ["watermark max", "drained"]);
    assert_eq!(reader.found(Found::Event(SourceEvent::End), 0), NOTHING, "it ends once");
    assert!(reader.reader.is_ended());
    assert_eq!(Scenario::new(vec![finished], None).start(), ["watermark max", "drained"]);
    assert_eq!(Scenario::new(vec![], None).start(), ["watermark max", "drained"], "a subtask without splits");
}

#[test]
fn rows_that_wait_leave_before_the_end() {
    let mut reader = Scenario::new(vec![at_start("a")], None);
    let event = SourceEvent::Rows { split: 0, rows: rows(&[(0, 1)]), next_offset: 1, event_time_max_ms: None };
    assert_eq!(reader.found(Found::Event(event), 0), NOTHING);
    assert_eq!(reader.found(Found::Event(SourceEvent::End), 0), ["rows [1]", "watermark max", "drained"]);
}

#[test]
fn a_split_without_rows_turns_idle_and_back() {
    let mut reader = Scenario::new(vec![at_start("a"), at_start("b")], Some(100));
    assert_eq!(reader.rows(0, &[70], 50), ["rows [70]"]);
    assert_eq!(reader.reader.deadline(), Some(reader.at(100)));
    assert_eq!(reader.timer(100), ["watermark 60"], "the silent split is left out");
    assert_eq!(reader.reader.deadline(), Some(reader.at(150)));
    assert_eq!(reader.timer(150), ["idle"]);
    assert_eq!(reader.reader.deadline(), None);
    assert_eq!(reader.rows(1, &[20], 160), ["rows [20]", "watermark 60"], "active again, event time stands");
    assert_eq!(reader.rows(1, &[200], 170), ["rows [200]", "watermark 190"]);
}

#[test]
fn time_without_room_downstream_is_no_idleness() {
    let mut reader = Scenario::new(vec![at_start("a")], Some(100));
    reader.reader.resume_after(Duration::from_millis(80));
    assert_eq!(reader.reader.deadline(), Some(reader.at(180)));
    assert_eq!(reader.timer(179), NOTHING);
    assert_eq!(reader.timer(180), ["idle"]);
}

#[test]
fn a_connector_that_knows_event_time_advances_it_without_rows() {
    let mut reader = Scenario::new(vec![at_start("a")], None);
    let none = rows(&[]);
    let event = SourceEvent::Rows { split: 0, rows: none, next_offset: 50, event_time_max_ms: Some(1000) };
    assert_eq!(reader.found(Found::Event(event), 0), ["watermark 990"]);
    assert_eq!(reader.reader.positions()[0].offset, 50);
}

#[test]
fn a_split_that_was_not_given_is_an_error() {
    let mut reader = Scenario::new(vec![at_start("a")], None);
    let now = reader.at(0);
    let event = Found::Event(SourceEvent::SplitFinished { split: 1 });
    assert!(reader.reader.on_found(event, now, &mut reader.work).is_err());
}
