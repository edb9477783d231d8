//! Whatever happens in whatever order, the coordinator keeps its order: a shell that answers late, wrongly, twice or never
//! cannot make it notify before it has committed, send barriers before it may, or leave a request without an answer.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weir_coordination::checkpoint::{
    Action, Config, Coordinator, Event, Marked, Request, RunningAttempt, SourcePlan, Trigger,
};
use weir_types::control::SnapshotDeclined;
use weir_types::ids::{Attempt, BarrierId, ChainId, JobId, RequestId, SnapshotId, SubtaskId, SubtaskIndex};
use weir_types::snapshot::{
    Annotations, OperatorSnapshot, SnapshotKind, SnapshotTimings, SplitPosition, StopMode, SubtaskSnapshot,
};
use weir_types::time::Millis;
use weir_types::{Code, Error};

const SUBTASKS: u32 = 2;

/// What a snapshot has been through.
#[derive(Debug, Default)]
struct History {
    reserved: bool,
    groups: bool,
    barriers: bool,
    published: bool,
    complete_proposed: bool,
    ended: bool,
}

#[derive(Clone, Debug)]
enum Move {
    /// The shell answers what it was asked longest ago, well or not.
    Answer(bool),
    Ack(u32),
    Decline,
    Request(bool, bool),
    Ended,
    Started,
    Drained,
    Tick(u64),
}

fn a_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => prop::bool::weighted(0.8).prop_map(Move::Answer),
        6 => (0..SUBTASKS).prop_map(Move::Ack),
        1 => Just(Move::Decline),
        2 => (any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(savepoint, stop)| Move::Request(savepoint, stop)),
        1 => Just(Move::Ended),
        2 => Just(Move::Started),
        1 => Just(Move::Drained),
        3 => (0u64..400).prop_map(Move::Tick),
    ]
}

fn job() -> JobId {
    JobId::new("0123456789abcdef").unwrap()
}

fn subtask(index: u32, attempt: u32) -> SubtaskId {
    SubtaskId { job: job(), chain: ChainId(0), index: SubtaskIndex(index), attempt: Attempt(attempt) }
}

fn failure() -> Error {
    Error::new(Code::Io, "scripted")
}

/// Drives a coordinator and checks every action against what came before it.
struct Shell {
    coordinator: Coordinator,
    now: u64,
    attempt: u32,
    requests: u32,
    open_requests: BTreeSet<RequestId>,
    asked: Vec<Action>,
    in_flight: Option<SnapshotId>,
    histories: BTreeMap<SnapshotId, History>,
}

impl Shell {
    fn new() -> Self {
        let config = Config {
            interval_ms: Some(100),
            timeout_ms: 500,
            min_pause_ms: 10,
            failures_tolerated: None,
            checkpoint_root: "/c".into(),
            savepoint_root: "/s".into(),
        };
        Self {
            coordinator: Coordinator::new(job(), config, BarrierId(0)),
            now: 0,
            attempt: 0,
            requests: 0,
            open_requests: BTreeSet::new(),
            asked: Vec::new(),
            in_flight: None,
            histories: BTreeMap::new(),
        }
    }

    fn make(&mut self, chosen: Move) -> Option<Event> {
        Some(match chosen {
            Move::Answer(well) => {
                let asked = (!self.asked.is_empty()).then(|| self.asked.remove(0))?;
                self.answer(asked, if well { Ok(()) } else { Err(failure()) })
            }
            Move::Ack(index) => {
                let split = SplitPosition {
                    split: format!("p-{index}"),
                    offset: 1,
                    end: None,
                    watermark_ms: 0,
                    finished: false,
                };
                let splits = vec![split];
                Event::Acked(SubtaskSnapshot {
                    subtask: subtask(index, self.attempt),
                    barrier: BarrierId(0),
                    snapshot: self.in_flight.clone()?,
                    operators: vec![OperatorSnapshot {
                        uid: "s".into(),
                        watermark_ms: 0,
                        files: vec![],
                        splits,
                        prepared: None,
                    }],
                    timings: SnapshotTimings::default(),
                })
            }
            Move::Decline => Event::Declined(SnapshotDeclined {
                subtask: subtask(0, self.attempt),
                barrier: BarrierId(0),
                snapshot: self.in_flight.clone()?,
                error: failure(),
            }),
            Move::Request(savepoint, stop) => {
                self.requests += 1;
                let id = RequestId::new(format!("r{}", self.requests)).unwrap();
                self.open_requests.insert(id.clone());
                Event::Requested(Request {
                    id,
                    kind: if savepoint || stop { SnapshotKind::Savepoint } else { SnapshotKind::Checkpoint },
                    trigger: if stop { Trigger::Stop(StopMode::Suspend) } else { Trigger::User },
                    directory: None,
                    timeout_ms: None,
                    owner: String::new(),
                    annotations: Annotations::default(),
                    evict: false,
                })
            }
            Move::Ended => Event::Ended(failure()),
            Move::Started => {
                self.attempt += 1;
                Event::Started(RunningAttempt {
                    attempt: Attempt(self.attempt),
                    subtasks: (0..SUBTASKS).map(|index| (ChainId(0), SubtaskIndex(index))).collect(),
                    sources: vec![SourcePlan { uid: "s".into(), splits: vec!["p-0".into(), "p-1".into()] }],
                })
            }
            Move::Drained => Event::Drained,
            Move::Tick(ms) => {
                self.now += ms;
                Event::Tick
            }
        })
    }

    fn answer(&mut self, asked: Action, result: Result<(), Error>) -> Event {
        let history = |shell: &mut Self, id: &SnapshotId, step: fn(&mut History)| {
            step(shell.histories.get_mut(id).unwrap());
        };
        match asked {
            Action::Reserve(reservation) => {
                if result.is_ok() {
                    history(self, &reservation.snapshot, |history| history.reserved = true);
                } else {
                    history(self, &reservation.snapshot, |history| history.ended = true);
                }
                Event::Reserved(reservation.snapshot, result)
            }
            Action::StartGroups(id) => {
                if result.is_ok() {
                    history(self, &id, |history| history.groups = true);
                }
                Event::GroupsStarted(id, result)
            }
            Action::Publish(id, _) => {
                history(self, &id, |history| history.published = true);
                Event::Published(id, result)
            }
            Action::MarkAborted(id) => {
                let published = self.histories[&id].published;
                Event::Marked(id, result.map(|()| if published { Marked::Published } else { Marked::Aborted }))
            }
            // The log refuses a completion only if somebody else has aborted the snapshot.
            Action::PersistComplete(id, _) => {
                if result.is_ok() {
                    history(self, &id, |history| history.complete_proposed = true);
                }
                Event::Completed(id, result)
            }
            Action::PersistAbort(id, _) => Event::Aborted(id),
            other => unreachable!("{other:?} needs no answer"),
        }
    }

    fn check(&mut self, action: Action) -> Result<(), TestCaseError> {
        match &action {
            Action::Reserve(reservation) => {
                prop_assert!(self.in_flight.is_none_or_ended(&self.histories), "two snapshots in flight");
                self.in_flight = Some(reservation.snapshot.clone());
                let before = self.histories.insert(reservation.snapshot.clone(), History::default());
                prop_assert!(before.is_none(), "a snapshot's id is used twice");
            }
            Action::StartGroups(id) => prop_assert!(self.histories[id].reserved),
            Action::SendBarriers(barrier) => {
                let history = self.histories.get_mut(&barrier.snapshot).unwrap();
                prop_assert!(history.reserved && history.groups && !history.barriers);
                history.barriers = true;
            }
            Action::Publish(id, contents) => {
                prop_assert!(self.histories[id].barriers);
                prop_assert_eq!(contents.sources[0].splits.len(), 2);
                prop_assert_eq!(contents.shares.len() as u32, SUBTASKS);
            }
            Action::PersistComplete(id, _) => prop_assert!(self.histories[id].published),
            Action::NotifyComplete(id, _) => {
                let history = self.histories.get_mut(id).unwrap();
                prop_assert!(history.complete_proposed && !history.ended, "notified before it was committed");
                history.ended = true;
            }
            Action::NotifyAborted(id, _, _) | Action::ReleaseGroups(id) => {
                let history = self.histories.get_mut(id).unwrap();
                prop_assert!(!history.complete_proposed, "a committed snapshot is aborted");
                history.ended = true;
            }
            Action::Answer(id, _) => prop_assert!(self.open_requests.remove(id), "{id} is answered twice"),
            Action::MarkAborted(_)
            | Action::PersistAbort(..)
            | Action::Sweep(_)
            | Action::RestartJob(_)
            | Action::ResumeJob(_)
            | Action::AbandonStop => {}
        }
        if matches!(
            action,
            Action::Reserve(_)
                | Action::StartGroups(_)
                | Action::Publish(..)
                | Action::MarkAborted(_)
                | Action::PersistComplete(..)
                | Action::PersistAbort(..)
        ) {
            self.asked.push(action);
        }
        Ok(())
    }

    fn step(&mut self, chosen: Move) -> Result<(), TestCaseError> {
        if let Some(event) = self.make(chosen) {
            for action in self.coordinator.on_event(Millis(self.now), event) {
                self.check(action)?;
            }
        }
        Ok(())
    }
}

trait NoneOrEnded {
    fn is_none_or_ended(&self, histories: &BTreeMap<SnapshotId, History>) -> bool;
}

impl NoneOrEnded for Option<SnapshotId> {
    fn is_none_or_ended(&self, histories: &BTreeMap<SnapshotId, History>) -> bool {
        self.as_ref().is_none_or(|id| histories[id].ended)
    }
}

proptest! {
    #[test]
    fn the_order_holds_and_every_request_is_answered(moves in prop::collection::vec(a_move(), 1..200)) {
        let mut shell = Shell::new();
        for chosen in moves {
            shell.step(chosen)?;
        }
        // The attempt ends, and the shell answers everything: nothing stays open.
        shell.step(Move::Ended)?;
        for _ in 0..20 {
            shell.step(Move::Answer(true))?;
            shell.step(Move::Tick(2_000))?;
        }
        prop_assert!(shell.coordinator.in_flight().is_none());
        prop_assert!(shell.open_requests.is_empty(), "without an answer: {:?}", shell.open_requests);
        prop_assert_eq!(shell.coordinator.next_deadline(), None);
    }
}
