//! Whatever happens in whatever order, the coordinator keeps its order: a shell that answers late, wrongly, twice or never
//! cannot make it notify before it has committed, send barriers before it may, or leave a request without an answer.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weir_coordination::checkpoint::{
    Action, Config, Contents, Coordinator, Event, Marked, Request, Reservation, RunningAttempt, SourcePlan, Trigger,
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
    /// The JobManager dies, and another one takes over; whether a manifest that was being written came to be.
    TakeOver(bool),
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
        1 => any::<bool>().prop_map(Move::TakeOver),
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
    reservation: Option<Reservation>,
    histories: BTreeMap<SnapshotId, History>,
}

impl Shell {
    fn coordinator(last_barrier: BarrierId) -> Coordinator {
        let config = Config {
            interval_ms: Some(100),
            timeout_ms: 500,
            min_pause_ms: 10,
            failures_tolerated: None,
            checkpoint_root: "/c".into(),
            savepoint_root: "/s".into(),
        };
        Coordinator::new(job(), config, last_barrier)
    }

    fn new() -> Self {
        Self {
            coordinator: Self::coordinator(BarrierId(0)),
            now: 0,
            attempt: 0,
            requests: 0,
            open_requests: BTreeSet::new(),
            asked: Vec::new(),
            in_flight: None,
            reservation: None,
            histories: BTreeMap::new(),
        }
    }

    /// A new coordinator knows what the log knows: the newest number, and a reservation that has not ended.
    fn take_over(&mut self, published: bool) -> Option<Event> {
        let last = self.reservation.as_ref().map_or(BarrierId(0), |reservation| reservation.barrier);
        self.coordinator = Self::coordinator(last);
        self.open_requests.clear();
        let asked = std::mem::take(&mut self.asked);
        // The attempt may have run; it is adopted by the next start, or lost by the next end.
        assert!(self.coordinator.on_event(Millis(self.now), Event::Resuming).is_empty());
        let reservation = Reservation { request: None, ..self.reservation.clone()? };
        let history = self.histories.get_mut(&reservation.snapshot).unwrap();
        history.published |= published && asked.iter().any(|action| matches!(action, Action::Publish(..)));
        if !history.reserved || history.complete_proposed {
            // It never was, or it is complete already, and the registrations are told so.
            history.ended = true;
        }
        (!history.ended).then_some(Event::FoundInFlight(reservation))
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
            Move::TakeOver(published) => return self.take_over(published),
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
            Action::Settle(id) => {
                let published = self.histories[&id].published;
                Event::Settled(id, result.map(|()| published.then(Box::<Contents>::default)))
            }
            other => unreachable!("{other:?} needs no answer"),
        }
    }

    fn check(&mut self, action: Action) -> Result<(), TestCaseError> {
        match &action {
            Action::Reserve(reservation) => {
                prop_assert!(self.in_flight.is_none_or_ended(&self.histories), "two snapshots in flight");
                self.in_flight = Some(reservation.snapshot.clone());
                self.reservation = Some(reservation.clone());
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
            | Action::Settle(_)
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
                | Action::Settle(_)
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
