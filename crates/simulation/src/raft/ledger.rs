//! The state machine of simulated groups, and the judge of what their members apply: all of them share one history.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use weir_replication::{Command, StateMachine};

/// What was applied anywhere, ever.
#[derive(Default)]
pub(super) struct History {
    /// By index: in which term it was proposed, and what.
    log: BTreeMap<u64, (u64, u32)>,
    /// The operations, each once, in the order in which they took effect.
    pub(super) order: Vec<u32>,
    /// How many snapshots were restored.
    pub(super) restored: usize,
    /// A digest of everything that happened, in order.
    pub(super) digest: u64,
}

impl History {
    /// Takes a number into the digest.
    pub(super) fn note(&mut self, number: u64) {
        self.digest = (self.digest.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// The operations that took effect; one that is proposed again is recognised.
pub(super) struct Ledger {
    member: u64,
    history: Arc<Mutex<History>>,
    applied: u64,
    operations: Vec<u32>,
    positions: BTreeMap<u32, u32>,
}

impl Ledger {
    pub(super) fn new(member: u64, history: Arc<Mutex<History>>) -> Self {
        Self { member, history, applied: 0, operations: Vec::new(), positions: BTreeMap::new() }
    }

    /// How many operations took effect.
    pub(super) fn len(&self) -> u32 {
        self.operations.len() as u32
    }

    /// All of them, in order.
    pub(super) fn operations(&self) -> &[u32] {
        &self.operations
    }

    /// Lets an operation take effect, and returns how many have since the beginning.
    fn take(&mut self, operation: u32) -> u32 {
        if let Some(position) = self.positions.get(&operation) {
            return *position;
        }
        self.operations.push(operation);
        self.positions.insert(operation, self.len());
        self.len()
    }
}

impl StateMachine for Ledger {
    fn apply(&mut self, command: Command<'_>) -> Bytes {
        let operation = u32::from_le_bytes(command.data.try_into().unwrap());
        let (member, index) = (self.member, command.index);
        assert!(index > self.applied, "member {member} applied {index} after {}", self.applied);
        let position = self.take(operation);

        let mut history = self.history.lock();
        let skipped = history.log.range(self.applied + 1..index).next();
        assert!(skipped.is_none(), "member {member} skipped {skipped:?} before {index}");
        let here = (command.term.0, operation);
        let known = *history.log.entry(index).or_insert(here);
        assert_eq!(known, here, "member {member} applied something else at {index}");
        if position as usize > history.order.len() {
            history.order.push(operation);
        }
        assert_eq!(history.order[position as usize - 1], operation, "member {member} is in another order");
        history.note(member << 32 | index);
        self.applied = index;
        Bytes::copy_from_slice(&position.to_le_bytes())
    }

    fn snapshot(&self) -> Bytes {
        let operations = self.operations.iter().flat_map(|operation| operation.to_le_bytes());
        self.applied.to_le_bytes().into_iter().chain(operations).collect()
    }

    fn restore(&mut self, snapshot: &[u8]) -> weir_types::Result<()> {
        let (applied, operations) = snapshot.split_first_chunk::<8>().unwrap();
        let (operations, []) = operations.as_chunks::<4>() else { panic!("a snapshot is cut short") };
        self.applied = u64::from_le_bytes(*applied);
        (self.operations, self.positions) = (Vec::new(), BTreeMap::new());
        for operation in operations {
            self.take(u32::from_le_bytes(*operation));
        }
        let mut history = self.history.lock();
        history.restored += 1;
        assert_eq!(self.operations, history.order[..self.operations.len()], "member {} restored a lie", self.member);
        Ok(())
    }
}
