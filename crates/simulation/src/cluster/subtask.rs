//! What subtasks do with records and barriers: sources read and route, sinks align, sum up and write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weir_types::deployment::{Deployment, SubtaskState};
use weir_types::ids::{BarrierId, SubtaskId};
use weir_types::snapshot::{Barrier, SplitPosition, StopMode};
use weir_types::splits;
use weir_types::{Code, Error};

use super::store::{Record, Txn};
use super::world::World;

/// What flows from a source to a sink.
#[derive(Clone, Debug)]
pub(super) enum Element {
    Record(Record),
    Barrier(Barrier),
    End,
}

/// Count and sum by key.
pub(super) type Sums = BTreeMap<u32, (u64, u64)>;

/// One subtask that runs.
pub(super) struct Subtask {
    pub(super) id: SubtaskId,
    pub(super) state: SubtaskState,
    pub(super) parallelism: u32,
    pub(super) role: Role,
}

pub(super) enum Role {
    Source(Source),
    Sink(Sink),
}

pub(super) struct Source {
    pub(super) splits: Vec<SplitPosition>,
    /// Barriers that it was told to let in.
    pub(super) barriers: VecDeque<Barrier>,
    last: BarrierId,
    pub(super) ended: bool,
}

#[derive(Default)]
pub(super) struct Sink {
    transactional: bool,
    pub(super) sums: Sums,
    aligning: Option<Barrier>,
    /// Inputs on which the barrier has arrived.
    blocked: BTreeSet<u32>,
    ended: BTreeSet<u32>,
    last: BarrierId,
    txn: u64,
    /// The newest barrier under which something was prepared that is not known to be decided.
    pending: Option<BarrierId>,
    /// A snapshot's file is being written.
    pub(super) writing: usize,
}

/// What a step of a subtask comes to.
pub(super) enum Outcome {
    Nothing,
    /// A barrier has passed: this is the subtask's part of the snapshot.
    Frozen(Barrier, Part),
    Finished,
    Failed(Error),
}

/// A subtask's part of a snapshot.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Positions(Vec<SplitPosition>),
    State { sums: Sums, prepared: bool },
}

impl Subtask {
    /// A subtask of a deployment; sinks load their state when they start to run.
    pub(super) fn new(id: SubtaskId, deployment: &Deployment, transactional: bool) -> Self {
        let role = match id.chain {
            super::jobs::SOURCE => Role::Source(Source {
                splits: deployment
                    .splits
                    .iter()
                    .filter(|of| of.index == id.index)
                    .map(|of| of.position.clone())
                    .collect(),
                barriers: VecDeque::new(),
                last: BarrierId(0),
                ended: false,
            }),
            _ => Role::Sink(Sink { transactional, ..Sink::default() }),
        };
        let parallelism = deployment.graph.options.parallelism.get();
        Self { id, state: SubtaskState::Starting, parallelism, role }
    }

    /// One step.
    pub(super) fn step(&mut self, world: &mut World) -> Outcome {
        match &mut self.role {
            Role::Source(source) => source.step(world, &self.id, self.parallelism),
            Role::Sink(sink) => sink.step(world, &self.id, self.parallelism),
        }
    }
}

impl Source {
    fn step(&mut self, world: &mut World, id: &SubtaskId, parallelism: u32) -> Outcome {
        if self.ended {
            return Outcome::Nothing;
        }
        if let Some(barrier) = self.barriers.pop_front() {
            if barrier.id <= self.last {
                return Outcome::Nothing;
            }
            self.last = barrier.id;
            for to in 0..parallelism {
                world.emit(id, to, Element::Barrier(barrier.clone()));
            }
            if barrier.stop != StopMode::Continue {
                self.end(world, id, parallelism);
            }
            return Outcome::Frozen(barrier, Part::Positions(self.splits.clone()));
        }
        if world.store.down || self.splits.is_empty() {
            return Outcome::Nothing;
        }
        let split = world.random.below(self.splits.len() as u64) as usize;
        let position = &mut self.splits[split];
        let partition = splits::parse_partition(&position.split).unwrap().0 as usize;
        let stream = world.jobs[&id.job].stream.clone();
        for _ in 0..world.random.below(4) {
            let source = &world.store.streams[&stream][partition];
            if position.offset < source.head {
                let message = format!("{id} reads at {}, below the head {}", position.offset, source.head);
                // Fatal for a job, unless the attempt is over already.
                return Outcome::Failed(Error::new(Code::OffsetTruncated, message));
            }
            let Some(record) = source.records.get(position.offset as usize).copied() else { break };
            position.offset += 1;
            world.emit(id, record.key % parallelism, Element::Record(record));
        }
        Outcome::Nothing
    }

    /// Nothing comes any more.
    pub(super) fn end(&mut self, world: &mut World, id: &SubtaskId, parallelism: u32) {
        self.ended = true;
        (0..parallelism).for_each(|to| world.emit(id, to, Element::End));
    }
}

impl Sink {
    fn step(&mut self, world: &mut World, id: &SubtaskId, parallelism: u32) -> Outcome {
        if world.store.down {
            return Outcome::Nothing;
        }
        for input in 0..parallelism {
            for _ in 0..world.random.below(5) {
                if self.blocked.contains(&input) {
                    break;
                }
                let Some(element) = world.receive(id, input) else { break };
                match element {
                    Element::Record(record) => self.take(world, id, record),
                    Element::End => {
                        self.ended.insert(input);
                    }
                    Element::Barrier(barrier) => self.align(input, barrier),
                }
            }
        }
        let arrived = |input: &u32| self.blocked.contains(input) || self.ended.contains(input);
        if self.aligning.is_some() && (0..parallelism).all(|input| arrived(&input)) {
            return self.freeze(world, id);
        }
        if self.ended.len() == parallelism as usize && self.writing == 0 {
            return Outcome::Finished;
        }
        Outcome::Nothing
    }

    fn take(&mut self, world: &mut World, id: &SubtaskId, record: Record) {
        let sum = self.sums.entry(record.key).or_default();
        *sum = (sum.0 + 1, sum.1 + record.value);
        match self.transactional {
            false => world.store.write(&id.job, record.value),
            true => {
                let txn = self.txn_of(id);
                // A fenced attempt writes into the void until it is stopped.
                let _fenced = world.store.append(&txn, record.value);
            }
        }
    }

    fn align(&mut self, input: u32, barrier: Barrier) {
        let current = self.aligning.as_ref().map_or(self.last, |aligning| aligning.id);
        if barrier.id < current || (barrier.id == current && self.aligning.is_none()) {
            return;
        }
        if barrier.id > current {
            // The one before has failed somewhere.
            self.blocked.clear();
            self.aligning = Some(barrier);
        }
        self.blocked.insert(input);
    }

    fn freeze(&mut self, world: &mut World, id: &SubtaskId) -> Outcome {
        let Some(barrier) = self.aligning.take() else { return Outcome::Nothing };
        self.blocked.clear();
        self.last = barrier.id;
        if self.transactional {
            let txn = self.txn_of(id);
            self.txn += 1;
            match world.store.prepare(&txn, barrier.id) {
                Ok(true) => self.pending = Some(barrier.id),
                Ok(false) => {}
                // Fenced: what it has taken is for the attempt that has replaced it.
                Err(_) => return Outcome::Nothing,
            }
        }
        Outcome::Frozen(barrier, Part::State { sums: self.sums.clone(), prepared: self.pending.is_some() })
    }

    /// A snapshot has failed: its barrier is waited for no longer.
    pub(super) fn forget(&mut self, barrier: BarrierId) {
        if self.aligning.as_ref().is_some_and(|aligning| aligning.id == barrier) {
            self.aligning = None;
            self.last = barrier;
            self.blocked.clear();
        }
    }

    /// What was prepared up to this barrier is decided.
    pub(super) fn committed(&mut self, barrier: BarrierId) {
        self.pending = self.pending.filter(|pending| *pending > barrier);
    }

    fn txn_of(&self, id: &SubtaskId) -> Txn {
        Txn { job: id.job.clone(), subtask: id.index.0, attempt: id.attempt, number: self.txn }
    }
}
