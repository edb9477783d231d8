//! Whatever happens, in whatever order: what a completed snapshot says is prepared is committed, once, and nothing else is.
//!
//! The replicated state is the real one. A stream store of a few lines keeps transactions; a job prepares, its snapshots
//! complete or fail, attempts follow one another, leaders come and go in the middle of carrying something out and may do so
//! late, and the end of the input or a stop comes at any time.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::Schema;
use proptest::prelude::*;
use weir_coordination::checkpoint::{Contents, Trigger};
use weir_coordination::metadata::{Command, Completion, NewJob, Reply, Reserve, StartAttempt, State};
use weir_types::connector::ConnectorKind;
use weir_types::graph::{ConnectorSpec, JobGraph, JobOptions, Operator, OperatorSpec, SinkSpec};
use weir_types::ids::{Attempt, BarrierId, JobId, Nonce, OperatorId, SnapshotId};
use weir_types::job::{JobChange, JobState};
use weir_types::output::{CommitMark, END_OF_INPUT, Settlement};
use weir_types::snapshot::{Annotations, SnapshotKind};
use weir_types::time::Millis;

/// Subtasks of the sink.
const SUBTASKS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Subtasks prepare for a snapshot, all or some of them.
    Prepare { subtasks: usize },
    /// The snapshot in flight completes, if all of its subtasks have prepared.
    Complete,
    /// It fails.
    Abort,
    /// The leader carries the duty out, and the log may hear of it.
    Discharge { heard: bool },
    /// The attempt breaks, and the next one begins.
    Restart,
    /// Somebody who was slow carries out, again, what was to be done some time ago.
    Late(usize),
    /// All input has ended: subtasks prepare for the last time, all or some of them.
    End { subtasks: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (1..=SUBTASKS).prop_map(|subtasks| Op::Prepare { subtasks }),
        4 => Just(Op::Complete),
        2 => Just(Op::Abort),
        4 => any::<bool>().prop_map(|heard| Op::Discharge { heard }),
        2 => Just(Op::Restart),
        3 => (0..8_usize).prop_map(Op::Late),
        1 => (0..=SUBTASKS).prop_map(|subtasks| Op::End { subtasks }),
    ];
    proptest::collection::vec(op, 1..60)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Prepared,
    Committed,
    Aborted,
}

/// What the store keeps of the job's family.
#[derive(Default)]
struct Store {
    fence: u32,
    /// Attempt, mark, fate.
    transactions: Vec<(Attempt, BarrierId, Fate)>,
}

impl Store {
    fn prepare(&mut self, attempt: Attempt, mark: BarrierId) {
        if attempt.0 >= self.fence {
            self.transactions.push((attempt, mark, Fate::Prepared));
        }
    }

    fn settle(&mut self, settlement: Settlement) {
        if let Some(below) = settlement.below {
            if below.0 < self.fence {
                return;
            }
            self.fence = below.0;
        }
        for (attempt, mark, fate) in self.transactions.iter_mut().filter(|(.., fate)| *fate == Fate::Prepared) {
            if settlement.commit.is_some_and(|to| to.attempt == *attempt && *mark <= to.barrier) {
                *fate = Fate::Committed;
            } else if settlement.below.is_some_and(|below| *attempt < below) {
                *fate = Fate::Aborted;
            }
        }
    }
}

struct World {
    state: State,
    store: Store,
    attempt: Attempt,
    next_barrier: u64,
    /// The snapshot under way, and how many subtasks have prepared for it.
    in_flight: Option<(SnapshotId, BarrierId, Attempt, usize)>,
    /// Up to where snapshots have completed, per attempt.
    completed: BTreeMap<Attempt, BarrierId>,
    /// All that was ever committed to the log to be carried out.
    settlements: Vec<Settlement>,
    now: u64,
}

fn job() -> JobId {
    JobId::new("aaaaaaaa").unwrap()
}

fn graph() -> JobGraph {
    let options = [("stream", "test/out"), ("sink.delivery-guarantee", "exactly-once")];
    let options = options.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let sink = SinkSpec {
        table: "out".to_owned(),
        connector: ConnectorSpec { kind: ConnectorKind::StreamStore, options },
        metadata: BTreeMap::new(),
        primary_key: Vec::new(),
    };
    JobGraph {
        name: "j".to_owned(),
        options: JobOptions::default(),
        operators: vec![Operator {
            id: OperatorId(0),
            uid: Some("u".to_owned()),
            name: "sink".to_owned(),
            spec: OperatorSpec::Sink(sink),
            schema: Arc::new(Schema::empty()),
            parallelism_max: None,
        }],
        edges: Vec::new(),
        expression_version: String::new(),
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            store: Store::default(),
            attempt: Attempt(0),
            next_barrier: 1,
            in_flight: None,
            completed: BTreeMap::new(),
            settlements: Vec::new(),
            now: 0,
        };
        let new = NewJob {
            request: None,
            id: job(),
            name: "j".to_owned(),
            sql: String::new(),
            owner: String::new(),
            namespace: String::new(),
            graph: graph(),
            plan: String::new(),
            sources: Vec::new(),
            restore: None,
            allow_duplicates: false,
        };
        world.apply(Command::CreateJob(Box::new(new))).unwrap();
        world.start();
        world
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.now += 1;
        let reply = self.state.apply(Millis(self.now), command);
        self.settlements.extend(self.state.jobs[&job()].output.duty);
        reply
    }

    fn change(&mut self, change: JobChange) {
        self.apply(Command::ChangeJob { job: job(), change, failure: None }).unwrap();
    }

    fn is_over(&self) -> bool {
        let record = &self.state.jobs[&job()];
        record.state.is_terminal() || record.output.ending.is_some()
    }

    /// The next attempt: decided, settled, then deployed.
    fn start(&mut self) {
        self.attempt = self.attempt.next();
        let (placements, splits, passed_over) = (Vec::new(), Vec::new(), Vec::new());
        let start = StartAttempt {
            job: job(),
            attempt: self.attempt,
            placements,
            splits,
            from: None,
            passed_over,
            parallelism: None,
        };
        self.apply(Command::StartAttempt(start)).unwrap();
        let rollback = self.state.jobs[&job()].rollback();
        self.settlements.push(rollback);
        self.store.settle(rollback);
        self.change(JobChange::Run);
    }

    fn reserve(&mut self) -> (SnapshotId, BarrierId, Attempt, usize) {
        let barrier = BarrierId(self.next_barrier);
        self.next_barrier += 1;
        let snapshot = SnapshotId::new(format!("chk-aaaaaaaa-{barrier}")).unwrap();
        let reserve = Reserve {
            request: None,
            snapshot: snapshot.clone(),
            job: job(),
            kind: SnapshotKind::Checkpoint,
            trigger: Trigger::Periodic,
            barrier,
            attempt: self.attempt,
            nonce: Nonce(barrier.to_string()),
            directory: format!("/{snapshot}"),
            deadline: Millis(u64::MAX),
            owner: String::new(),
            annotations: Annotations::default(),
            plan_hash: String::new(),
            subtasks: SUBTASKS as u32,
            evict: false,
            estimate_bytes: 0,
        };
        self.apply(Command::Reserve(Box::new(reserve))).unwrap();
        (snapshot, barrier, self.attempt, 0)
    }

    fn abort(&mut self) {
        if let Some((snapshot, barrier, ..)) = self.in_flight.take() {
            let failure = weir_types::Error::unavailable("x");
            self.apply(Command::Abort { snapshot, nonce: Nonce(barrier.to_string()), failure }).unwrap();
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Late(which) if !self.settlements.is_empty() => {
                self.store.settle(self.settlements[which % self.settlements.len()]);
            }
            Op::Discharge { heard } => self.discharge(heard),
            _ if self.is_over() => {}
            Op::Prepare { subtasks } => {
                let (snapshot, barrier, attempt, before) = self.in_flight.take().unwrap_or_else(|| self.reserve());
                let prepared = subtasks.max(before);
                (before..prepared).for_each(|_| self.store.prepare(attempt, barrier));
                self.in_flight = Some((snapshot, barrier, attempt, prepared));
            }
            Op::Complete => {
                let Some((snapshot, barrier, attempt, SUBTASKS)) = self.in_flight.clone() else { return };
                let contents = Contents { has_output: true, ..Contents::default() };
                let completion = Completion { snapshot, nonce: Nonce(barrier.to_string()), contents };
                self.apply(Command::Complete(Box::new(completion))).unwrap();
                self.completed.insert(attempt, barrier);
                self.in_flight = None;
            }
            Op::Abort => self.abort(),
            Op::Restart => {
                self.abort();
                self.change(JobChange::Restart);
                self.start();
            }
            Op::End { subtasks } => {
                self.abort();
                (0..subtasks).for_each(|_| self.store.prepare(self.attempt, END_OF_INPUT));
                if subtasks == SUBTASKS {
                    self.change(JobChange::Finish);
                    self.completed.insert(self.attempt, END_OF_INPUT);
                }
            }
            Op::Late(_) => {}
        }
    }

    fn discharge(&mut self, heard: bool) {
        let Some(duty) = self.state.jobs[&job()].output.duty else { return };
        self.store.settle(duty);
        if heard {
            self.apply(Command::Discharged { job: job(), duty }).unwrap();
        }
    }

    fn is_covered(&self, attempt: Attempt, mark: BarrierId) -> bool {
        self.completed.get(&attempt).is_some_and(|barrier| mark <= *barrier)
    }

    /// Nothing is committed that no snapshot covers, and nothing given up that one does.
    fn check(&self) {
        for (attempt, mark, fate) in &self.store.transactions {
            match fate {
                Fate::Committed => assert!(self.is_covered(*attempt, *mark), "{attempt} {mark} is committed"),
                Fate::Aborted => assert!(!self.is_covered(*attempt, *mark), "{attempt} {mark} is lost"),
                Fate::Prepared => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_completed_snapshots_cover_is_committed_and_nothing_else(ops in ops()) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
            world.check();
        }
        world.discharge(true);
        if !world.is_over() {
            world.step(Op::End { subtasks: SUBTASKS });
        }
        world.discharge(true);
        world.check();
        let record = &world.state.jobs[&job()];
        prop_assert_eq!((record.state, record.output.duty), (JobState::Finished, None));
        let undecided = world.store.transactions.iter().filter(|(.., fate)| *fate == Fate::Prepared).count();
        prop_assert_eq!(undecided, 0, "a job that has ended leaves nothing undecided");
    }
}

#[test]
fn a_snapshot_with_output_of_an_attempt_that_was_replaced_does_not_complete() {
    let mut world = World::new();
    world.step(Op::Prepare { subtasks: SUBTASKS });
    let (snapshot, barrier, ..) = world.in_flight.clone().unwrap();
    world.change(JobChange::Restart);
    world.start();
    let contents = |has_output| Contents { has_output, ..Contents::default() };
    let complete = |has_output| {
        let (snapshot, nonce) = (snapshot.clone(), Nonce(barrier.to_string()));
        Command::Complete(Box::new(Completion { snapshot, nonce, contents: contents(has_output) }))
    };
    assert_eq!(world.apply(complete(true)).unwrap_err().code, weir_types::Code::Fenced);
    world.apply(complete(false)).unwrap();
    assert_eq!(world.state.jobs[&job()].output.committed, None);
}

#[test]
fn a_duty_is_replaced_by_one_that_covers_it_and_goes_when_it_was_carried_out() {
    let mut world = World::new();
    let mark = |barrier| CommitMark { attempt: Attempt(1), barrier: BarrierId(barrier) };
    for _ in 0..2 {
        world.step(Op::Prepare { subtasks: SUBTASKS });
        world.step(Op::Complete);
    }
    let duty = |barrier| Settlement { commit: Some(mark(barrier)), below: None };
    let output = |world: &World| world.state.jobs[&job()].output;
    assert_eq!(output(&world).duty, Some(duty(2)));
    world.apply(Command::Discharged { job: job(), duty: duty(1) }).unwrap();
    assert_eq!(output(&world).duty, Some(duty(2)), "more was decided meanwhile");
    world.apply(Command::Discharged { job: job(), duty: duty(2) }).unwrap();
    assert_eq!((output(&world).duty, output(&world).committed), (None, Some(mark(2))));
    world.change(JobChange::Cancel);
    world.change(JobChange::EndCancelled);
    let closing = Settlement { commit: Some(mark(2)), below: Some(Attempt(2)) };
    assert_eq!(output(&world).duty, Some(closing), "what it has left open is given up");
    assert_eq!(world.state.jobs[&job()].state, JobState::Cancelled, "nobody waits for that");
}
