//! Random histories, with kills and lost index files in between, against a model of a few lines.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;
use weir_types::ids::{Epoch, TransactionNumber};
use weir_types::store::Isolation;

use crate::fixture::{Stream, files, id, killed, name, producer, runtime};

/// A step of the model.
#[derive(Clone, Debug)]
enum Op {
    Begin(usize),
    Append { slot: usize, partition: u32, values: u8 },
    Plain(u32),
    Prepare(usize),
    Commit(usize),
    Abort(usize),
    Acknowledge(usize),
    Fence,
    Decide { epochs_back: u64, marks_back: u64, rolls_back: bool },
    Maintain,
    Reopen { kill: bool, lose_indexes: bool },
}

const SLOTS: usize = 3;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0..SLOTS).prop_map(Op::Begin),
        8 => (0..SLOTS, 0..2u32, 1..4u8).prop_map(|(slot, partition, values)| Op::Append { slot, partition, values }),
        3 => (0..2u32).prop_map(Op::Plain),
        3 => (0..SLOTS).prop_map(Op::Prepare),
        3 => (0..SLOTS).prop_map(Op::Commit),
        2 => (0..SLOTS).prop_map(Op::Abort),
        1 => (0..SLOTS).prop_map(Op::Acknowledge),
        1 => Just(Op::Fence),
        2 => (0..2_u64, 0..3_u64, any::<bool>())
            .prop_map(|(epochs_back, marks_back, rolls_back)| Op::Decide { epochs_back, marks_back, rolls_back }),
        1 => Just(Op::Maintain),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(kill, lose_indexes)| Op::Reopen { kill, lose_indexes }),
    ];
    proptest::collection::vec(op, 1..60)
}

/// What the store should think of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Open(TransactionNumber),
    Prepared,
    Committed,
    Aborted,
}

/// Each record with the transaction that it belongs to.
type Log = Vec<(String, Option<usize>)>;

#[derive(Default)]
struct Model {
    logs: [Log; 2],
    /// All transactions there ever were: state, and whether the outcome was acknowledged.
    transactions: Vec<(Expected, bool)>,
    /// The epoch of each, and what it was prepared under.
    marks: Vec<(u64, Option<u64>)>,
    next_mark: u64,
    /// The latest of each slot.
    latest: [Option<usize>; SLOTS],
    epoch: u64,
    written: u64,
}

impl Model {
    fn of(&self, slot: usize) -> Option<(usize, Expected)> {
        self.latest[slot].map(|index| (index, self.transactions[index].0))
    }

    fn committed(&self, partition: usize) -> Vec<String> {
        let decided = |(_, owner): &&(String, Option<usize>)| {
            owner.is_none_or(|index| matches!(self.transactions[index].0, Expected::Committed | Expected::Aborted))
        };
        let shown = |(_, owner): &&(String, Option<usize>)| {
            owner.is_none_or(|index| self.transactions[index].0 == Expected::Committed)
        };
        self.logs[partition].iter().take_while(decided).filter(shown).map(|(value, _)| value.clone()).collect()
    }

    async fn decide(&mut self, stream: &Stream, epochs_back: u64, marks_back: u64, rolls_back: bool) {
        let (of, up_to) = (self.epoch.saturating_sub(epochs_back), self.next_mark.saturating_sub(marks_back));
        self.epoch += u64::from(rolls_back);
        let below = rolls_back.then_some(self.epoch);
        let (mut committed, mut aborted) = (0, 0);
        for (index, (state, acknowledged)) in self.transactions.iter_mut().enumerate() {
            let (epoch, mark) = self.marks[index];
            let is_covered = epoch == of && mark.is_some_and(|mark| mark <= up_to);
            match state {
                Expected::Prepared if is_covered => {
                    committed += 1;
                    (*state, *acknowledged) = (Expected::Committed, true);
                }
                Expected::Committed if is_covered => *acknowledged = true,
                Expected::Open(_) | Expected::Prepared if rolls_back && epoch < self.epoch => {
                    aborted += 1;
                    *state = Expected::Aborted;
                }
                _ => {}
            }
        }
        assert_eq!(stream.decide("job", Some((of, up_to)), below).await.unwrap(), (committed, aborted));
        assert_eq!(stream.decide("job", Some((of, up_to)), below).await.unwrap(), (0, 0), "it was decided already");
    }

    async fn apply(&mut self, stream: &mut Stream, op: Op) {
        match op {
            Op::Begin(slot) => {
                if self.of(slot).is_some_and(|(_, state)| matches!(state, Expected::Open(_))) {
                    return;
                }
                let index = self.transactions.len();
                let number = stream.begin(&format!("t{index}"), &format!("job.{slot}"), self.epoch).await;
                self.transactions.push((Expected::Open(number), false));
                self.marks.push((self.epoch, None));
                self.latest[slot] = Some(index);
            }
            Op::Append { slot, partition, values } => {
                let Some((index, state)) = self.of(slot) else { return };
                for _ in 0..values {
                    let value = format!("v{}", self.written);
                    let of = format!("job.{slot}");
                    if let Expected::Open(number) = state {
                        stream.append((&of, self.epoch), Some(number), partition, &value).await.unwrap();
                        self.logs[partition as usize].push((value, Some(index)));
                        self.written += 1;
                    }
                }
            }
            Op::Plain(partition) => {
                let value = format!("v{}", self.written);
                stream.plain(partition, &value).await;
                self.logs[partition as usize].push((value, None));
                self.written += 1;
            }
            Op::Prepare(slot) => {
                let Some((index, state)) = self.of(slot).filter(|(index, _)| !self.transactions[*index].1) else {
                    return;
                };
                let mark = self.next_mark;
                self.next_mark += 1;
                let prepared = stream.prepare_under(&format!("t{index}"), mark).await;
                assert_eq!(prepared.is_ok(), state != Expected::Aborted);
                if matches!(state, Expected::Open(_)) {
                    self.marks[index].1 = Some(mark);
                    self.transactions[index].0 = Expected::Prepared;
                }
            }
            Op::Commit(slot) => {
                let Some((index, state)) = self.of(slot) else { return };
                let acknowledged = self.transactions[index].1;
                let committed = stream.commit(&format!("t{index}")).await;
                let may = matches!(state, Expected::Prepared | Expected::Committed) && !acknowledged;
                assert_eq!(committed.is_ok(), may, "{state:?}");
                if may {
                    self.transactions[index].0 = Expected::Committed;
                }
            }
            Op::Abort(slot) => {
                let Some((index, state)) = self.of(slot) else { return };
                let aborted = stream.abort(&format!("t{index}")).await;
                assert_eq!(aborted.is_ok(), state != Expected::Committed || self.transactions[index].1);
                if matches!(state, Expected::Open(_) | Expected::Prepared) {
                    self.transactions[index].0 = Expected::Aborted;
                }
            }
            Op::Acknowledge(slot) => {
                let Some((index, state)) = self.of(slot) else { return };
                let ids = vec![id(&format!("t{index}"))];
                let acknowledged = stream.store.acknowledge_transactions(&name(), ids).await;
                let may = matches!(state, Expected::Committed | Expected::Aborted);
                assert_eq!(acknowledged.is_ok(), may, "{state:?}");
                self.transactions[index].1 |= may;
            }
            Op::Fence => {
                self.epoch += 1;
                stream.store.fence(&name(), producer("job"), Epoch(self.epoch)).await.unwrap();
                for (state, _) in &mut self.transactions {
                    if matches!(state, Expected::Open(_)) {
                        *state = Expected::Aborted;
                    }
                }
            }
            Op::Decide { epochs_back, marks_back, rolls_back } => {
                self.decide(stream, epochs_back, marks_back, rolls_back).await
            }
            Op::Maintain => stream.store.maintain().await.unwrap(),
            Op::Reopen { .. } => unreachable!("the caller opens stores"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_history_shows_readers_what_the_model_says(ops in ops()) {
        runtime().block_on(async {
            let mut dir = TempDir::new().unwrap();
            let mut stream = Stream::open(dir.path()).await;
            let mut model = Model::default();
            for op in ops {
                match op {
                    Op::Reopen { kill, lose_indexes } => {
                        let copy = kill.then(|| killed(dir.path()));
                        let sequences = std::mem::take(&mut stream.sequences);
                        drop(stream);
                        dir = copy.unwrap_or(dir);
                        for partition in [0, 1].into_iter().filter(|_| lose_indexes) {
                            files(dir.path(), partition, "index").iter().for_each(|path| fs::remove_file(path).unwrap());
                        }
                        stream = Stream { sequences, ..Stream::open(dir.path()).await };
                    }
                    op => model.apply(&mut stream, op).await,
                }
                for partition in 0..2 {
                    let all: Vec<_> = model.logs[partition].iter().map(|(value, _)| value.clone()).collect();
                    assert_eq!(stream.read(partition as u32, Isolation::Uncommitted).await, all);
                    assert_eq!(stream.read(partition as u32, Isolation::Committed).await, model.committed(partition));
                }
            }
        });
    }
}
