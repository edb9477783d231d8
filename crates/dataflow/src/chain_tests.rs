//! Tests of the operator tree: order of event time, steps, side outputs, names in errors.

use std::cell::RefCell;
use std::rc::Rc;

use futures::FutureExt;
use weir_state::memory::Memory;
use weir_state::{RestoredOperator, Since};
use weir_types::graph::Exchange;

use super::*;
use crate::channel::{ChannelReceiver, channel};
use crate::element::Element;
use crate::exchange::BatchLimits;
use crate::fixtures::{barrier, batch, values};

/// Emits, at every watermark, one batch per step; sends every row with a negative key to the side.
struct Stepping {
    steps: usize,
    log: Rc<RefCell<Vec<String>>>,
    name: &'static str,
    fail: bool,
}

impl Operator for Stepping {
    fn restore(&mut self, _state: RestoredOperator) -> Result<()> {
        Ok(())
    }

    fn process(&mut self, batch: Batch, out: &mut dyn Collector) -> Result<()> {
        if self.fail {
            return Err(Error::invalid("division by zero"));
        }
        self.log.borrow_mut().push(format!("{} rows {:?}", self.name, values(&batch.rows)));
        let output = if values(&batch.rows)[0].0 < 0 { Output::Late } else { Output::Main };
        out.emit(output, batch)
    }

    fn advance(&mut self, watermark: Watermark, out: &mut dyn Collector) -> Result<Progress> {
        self.log.borrow_mut().push(format!("{} watermark {}", self.name, watermark.0));
        if self.steps == 0 {
            return Ok(Progress::Done);
        }
        self.steps -= 1;
        out.emit(Output::Main, batch(&[(self.steps as i64, watermark.0)]))?;
        Ok(if self.steps == 0 { Progress::Done } else { Progress::More })
    }

    fn freeze(&mut self, _since: Since, _memory: &Memory) -> Result<Frozen> {
        Ok(Frozen::default())
    }

    fn state_bytes(&self) -> u64 {
        100
    }

    fn late_rows(&self) -> u64 {
        1
    }
}

struct Fixture {
    chain: OperatorChain,
    log: Rc<RefCell<Vec<String>>>,
    receivers: Vec<ChannelReceiver>,
    memory: Arc<MemoryBudget>,
}

/// `first → (main) second → (main) edge 0`, `first → (late) edge 1`.
fn fixture(steps: usize, fail_second: bool) -> Fixture {
    let log = Rc::new(RefCell::new(Vec::new()));
    let memory = MemoryBudget::unlimited();
    let mut outputs = Outputs::new(BatchLimits { rows: 1, ..BatchLimits::default() });
    let mut receivers = Vec::new();
    for _ in 0..2 {
        let (sender, receiver) = channel(1 << 20, MemoryBudget::unlimited());
        outputs.add(&Exchange::Forward, vec![sender]).unwrap();
        receivers.push(receiver);
    }
    let operator = |name, steps, fail| Stage::Operator(Box::new(Stepping { steps, log: Rc::clone(&log), name, fail }));
    let mut first = Node::new("first", Some("uid-1".to_owned()), operator("first", steps, false), &memory);
    let mut second = Node::new("second", None, operator("second", 0, fail_second), &memory);
    second.link(Output::Main, Link::Edge(0));
    first.link(Output::Main, Link::Node(Box::new(second)));
    first.link(Output::Late, Link::Edge(1));
    Fixture { chain: OperatorChain::new(first, outputs), log, receivers, memory }
}

impl Fixture {
    fn log(&self) -> Vec<String> {
        self.log.borrow_mut().drain(..).collect()
    }

    fn received(&mut self, edge: usize) -> Vec<String> {
        let receiver = &mut self.receivers[edge];
        let elements = std::iter::from_fn(|| receiver.recv().now_or_never().map(|element| element.unwrap()));
        let name = |element| match element {
            Element::Batch(batch) => format!("rows {:?}", values(&batch.rows)),
            Element::Watermark(watermark) => format!("watermark {}", watermark.0),
            element => format!("{element:?}"),
        };
        elements.map(name).collect()
    }
}

#[test]
fn a_watermark_reaches_the_next_operator_behind_what_it_released() {
    let mut fixture = fixture(2, false);
    let now = Instant::now();
    assert_eq!(fixture.chain.advance(Watermark(5), now).unwrap(), Progress::More);
    assert_eq!(fixture.log(), ["first watermark 5", "second rows [(1, 5)]"]);
    assert_eq!(fixture.chain.advance(Watermark(5), now).unwrap(), Progress::Done);
    assert_eq!(fixture.log(), ["first watermark 5", "second rows [(0, 5)]", "second watermark 5"]);
    assert_eq!(fixture.received(0), ["rows [(1, 5)]", "rows [(0, 5)]", "watermark 5"]);
    assert_eq!(fixture.received(1), ["watermark 5"], "side outputs have event time too");
    assert_eq!(fixture.chain.watermark(), Watermark(5));
}

#[test]
fn rows_leave_through_the_output_that_they_were_emitted_to() {
    let mut fixture = fixture(0, false);
    let now = Instant::now();
    fixture.chain.process(batch(&[(1, 0)]), now).unwrap();
    fixture.chain.process(batch(&[(-1, 0)]), now).unwrap();
    assert_eq!(fixture.received(0), ["rows [(1, 0)]"]);
    assert_eq!(fixture.received(1), ["rows [(-1, 0)]"]);
    assert_eq!(fixture.chain.rows_out(), 2);
    assert_eq!(fixture.chain.totals(), ChainTotals { state_bytes: 200, late_rows: 2 });
    assert_eq!(fixture.memory.used(), 200, "state is accounted for");
}

#[test]
fn an_error_names_the_operator_that_it_happened_in_and_no_other() {
    let mut fixture = fixture(0, true);
    let error = fixture.chain.process(batch(&[(1, 0)]), Instant::now()).unwrap_err();
    assert_eq!(error.message, "operator second: division by zero");
}

#[test]
fn operators_with_a_uid_have_a_part_in_snapshots() {
    let mut fixture = fixture(0, false);
    fixture.chain.advance(Watermark(3), Instant::now()).unwrap();
    let frozen = fixture.chain.freeze(&barrier(1), Since::Start).unwrap();
    assert_eq!(frozen.iter().map(|f| (f.uid.as_str(), f.watermark)).collect::<Vec<_>>(), [("uid-1", Watermark(3))]);
}
