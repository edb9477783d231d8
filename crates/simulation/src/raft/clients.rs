//! Clients that write and read through whichever member they think leads, and remember what they were promised.
//!
//! An operation takes effect at one moment between being asked for and being answered. With a history that only grows, and
//! in which all members agree, that comes down to this: whatever was answered before an operation was asked for stands
//! before it in the history, and a read sees it.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::world::Running;
use crate::random::Random;
use weir_replication::stepwise::Request;
use weir_replication::{Error, Result};

/// Operations under way at one time.
const OUTSTANDING_MAX: usize = 4;
/// Nobody waits longer than so many ticks for an answer.
const PATIENCE_MAX: u64 = 12;

struct Write {
    operation: u32,
    /// What had been promised when it was first asked for.
    floor: u32,
    /// Its answer; none: it is to be asked for again.
    answer: Option<oneshot::Receiver<Result<Bytes>>>,
    /// Ticks after which it is asked for again, of somebody else perhaps.
    patience: u64,
}

struct Read {
    member: u64,
    floor: u32,
    answer: oneshot::Receiver<Result<()>>,
}

/// All clients.
pub(super) struct Clients {
    careless: bool,
    asking: bool,
    operations: u32,
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// Whatever is written or read from now on stands behind so many operations.
    floor: u32,
    acknowledged: BTreeMap<u32, u32>,
}

impl Clients {
    /// Clients; `careless` ones read without asking whether the leader leads.
    pub(super) fn new(careless: bool) -> Self {
        Self {
            careless,
            asking: true,
            operations: 0,
            writes: Vec::new(),
            reads: Vec::new(),
            floor: 0,
            acknowledged: BTreeMap::new(),
        }
    }

    /// Asks for something new, and again for what had no answer.
    pub(super) fn act(&mut self, random: &mut Random, running: &mut BTreeMap<u64, &mut Running>) {
        if self.asking && self.writes.len() < OUTSTANDING_MAX && random.chance(400) {
            self.write();
        }
        for write in self.writes.iter_mut().filter(|write| write.answer.is_none()) {
            let Some((_, member)) = choose(random, running) else { continue };
            let (reply, answer) = oneshot::channel();
            member.ask(Request::Propose { data: Bytes::copy_from_slice(&write.operation.to_le_bytes()), reply });
            (write.answer, write.patience) = (Some(answer), 1 + random.below(PATIENCE_MAX));
        }
        if self.asking && self.reads.len() < OUTSTANDING_MAX && random.chance(300) {
            let Some((member, running)) = choose(random, running) else { return };
            if self.careless {
                if running.status.borrow().serving {
                    self.floor = saw(self.floor, running);
                }
                return;
            }
            let (reply, answer) = oneshot::channel();
            running.ask(Request::Barrier { reply });
            self.reads.push(Read { member, floor: self.floor, answer });
        }
    }

    /// Takes the answers.
    pub(super) fn hear(&mut self, running: &mut BTreeMap<u64, &mut Running>) {
        for mut read in std::mem::take(&mut self.reads) {
            match (read.answer.try_recv(), running.get(&read.member)) {
                (Ok(Ok(())), Some(running)) => self.floor = self.floor.max(saw(read.floor, running)),
                (Err(TryRecvError::Empty), Some(_)) => self.reads.push(read),
                _ => {}
            }
        }
        for mut write in std::mem::take(&mut self.writes) {
            let Some(answer) = &mut write.answer else {
                self.writes.push(write);
                continue;
            };
            match answer.try_recv() {
                Ok(Ok(position)) => {
                    let position = u32::from_le_bytes(position.as_ref().try_into().unwrap());
                    let Write { operation, floor, .. } = write;
                    assert!(position > floor, "operation {operation} took effect before it was asked for");
                    self.acknowledged.insert(operation, position);
                    self.floor = self.floor.max(position);
                }
                Err(TryRecvError::Empty) if write.patience > 0 => {
                    self.writes.push(Write { patience: write.patience - 1, ..write });
                }
                Err(TryRecvError::Empty) => self.writes.push(Write { answer: None, ..write }),
                Ok(Err(Error::NotLeader { .. } | Error::OutcomeUnknown)) | Err(TryRecvError::Closed) => {
                    self.writes.push(Write { answer: None, ..write });
                }
                Ok(Err(error)) => panic!("a write was refused: {error}"),
            }
        }
    }

    /// No new operations from now on.
    pub(super) fn stop_asking(&mut self) {
        self.asking = false;
        self.reads.clear();
    }

    /// Asks for one last write and returns its number.
    pub(super) fn last_write(&mut self) -> u32 {
        self.write()
    }

    /// Whether everything asked for was answered.
    pub(super) fn are_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Checks that everything that was acknowledged is where it was said to be; returns how much that is.
    pub(super) fn check(&self, order: &[u32]) -> usize {
        for (operation, position) in &self.acknowledged {
            assert_eq!(order.get(*position as usize - 1), Some(operation), "an acknowledged operation was lost");
        }
        assert_eq!(order.len(), self.operations as usize, "an operation took effect that nobody asked for");
        self.acknowledged.len()
    }

    fn write(&mut self) -> u32 {
        self.operations += 1;
        self.writes.push(Write { operation: self.operations, floor: self.floor, answer: None, patience: 0 });
        self.operations
    }
}

/// What a read from a member sees; nobody may see less from now on.
fn saw(floor: u32, running: &Running) -> u32 {
    let seen = running.machine.read().len();
    assert!(seen >= floor, "a read saw {seen} operations, but {floor} had been promised");
    seen
}

/// Mostly somebody who leads or thinks so.
fn choose<'a>(random: &mut Random, running: &'a mut BTreeMap<u64, &mut Running>) -> Option<(u64, &'a mut Running)> {
    let ids: Vec<u64> = running.keys().copied().collect();
    let leading: Vec<u64> = ids.iter().copied().filter(|id| running[id].status.borrow().serving).collect();
    let from = if leading.is_empty() || random.chance(100) { ids } else { leading };
    if from.is_empty() {
        return None;
    }
    let id = random.pick(&from);
    running.get_mut(&id).map(|running| (id, &mut **running))
}
