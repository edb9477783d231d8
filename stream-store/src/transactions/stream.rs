//! What a stream does with its transactions: the steps that need the ledger and the partitions.

use tracing::{info, warn};
use weir_service::failpoint;
use weir_types::ids::{Epoch, ProducerId, TransactionId, TransactionNumber};
use weir_types::store::{FamilyDecided, FamilyDecision, TransactionInfo, TransactionSpec, TransactionState};
use weir_types::stream::{Offset, StreamCut};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use super::ledger::{Step, Transaction};
use crate::frame::Marker;
use crate::stream::StreamState;

impl StreamState {
    /// Begins a transaction; see [`crate::Store::begin_transaction`].
    pub(crate) fn begin_transaction(&self, spec: TransactionSpec, now: Millis) -> Result<TransactionInfo> {
        let id = spec.id.clone();
        self.transactions.change(|ledger| {
            // A fence that is raised from here on finds the transaction and ends it.
            self.fences.check(&spec.producer, spec.epoch)?;
            ledger.begin(spec, now)
        })?;
        info!(stream = %self.name, transaction = %id, "transaction open");
        self.transaction(&id)
    }

    /// Gives an open transaction a full lease.
    pub(crate) fn renew_transaction(&self, id: &TransactionId, now: Millis) -> Result<()> {
        self.transactions.change(|ledger| Ok((ledger.renew(id, now)?, Step::Same)))
    }

    /// Prepares; see [`crate::Store::prepare_transaction`].
    pub(crate) fn prepare_transaction(&self, id: &TransactionId, ends: &StreamCut, mark: Option<u64>) -> Result<()> {
        let _changing = self.transactions.changing.lock();
        let before = self.transactions.ledger.read().clone();
        let mut ledger = before.clone();
        let (number, step) = ledger.prepare(id, mark)?;
        if step == Step::Same {
            return Ok(());
        }
        if let Some(known) = ledger.by_number(number) {
            self.fences.check(&known.spec.producer, known.spec.epoch)?;
        }
        // No append gets in from here on.
        *self.transactions.ledger.write() = ledger.clone();
        let prepared = self.make_durable(id, number, ends).and_then(|()| self.transactions.write(&ledger));
        match &prepared {
            Ok(()) => {
                info!(stream = %self.name, transaction = %id, "transaction prepared");
                failpoint::reach("store.prepared");
            }
            Err(_) => *self.transactions.ledger.write() = before,
        }
        prepared
    }

    /// Waits for what is under way, and makes sure that the log has all of a transaction.
    fn make_durable(&self, id: &TransactionId, number: TransactionNumber, ends: &StreamCut) -> Result<()> {
        for partition in self.open_partitions() {
            partition.settle();
            if partition.undecided().0.contains_key(&number) {
                partition.settle_durably()?;
            }
        }
        for (partition, end) in &ends.0 {
            let found = self.partition(*partition)?.undecided().0.get(&number).map_or(Offset(0), |extent| extent.end);
            if found != *end {
                return Err(Error::new(Code::FailedPrecondition, format!("records of transaction {id} are missing"))
                    .with_detail(format!("in partition {partition} they end at {found} instead of {end}"))
                    .with_hint(
                        "The machine lost what durability 'os' had not synced yet. Abort it and write it again.",
                    ));
            }
        }
        Ok(())
    }

    /// Commits; see [`crate::Store::commit_transactions`].
    pub(crate) fn commit_transactions(&self, ids: &[TransactionId], now: Millis) -> Result<()> {
        let numbers = self.transactions.change(|ledger| {
            let mut all = Step::Same;
            let mut numbers = Vec::with_capacity(ids.len());
            for id in ids {
                let (number, step) = ledger.commit(id)?;
                numbers.push(number);
                all = if step == Step::Changed { step } else { all };
            }
            Ok((numbers, all))
        })?;
        info!(stream = %self.name, transactions = ?names(ids), "transactions committed");
        self.mark(numbers, true, now)
    }

    /// Aborts; see [`crate::Store::abort_transactions`].
    pub(crate) fn abort_transactions(&self, ids: &[TransactionId], reason: &str, now: Millis) -> Result<()> {
        let numbers = self.transactions.change(|ledger| {
            let mut all = Step::Same;
            let mut numbers = Vec::with_capacity(ids.len());
            for id in ids {
                let (number, step) = ledger.abort(id, reason)?;
                numbers.extend(number);
                all = if step == Step::Changed { step } else { all };
            }
            Ok((numbers, all))
        })?;
        info!(stream = %self.name, transactions = ?names(ids), reason, "transactions aborted");
        self.mark(numbers, false, now)
    }

    /// Decides about a family; see [`crate::Store::decide_family`].
    pub(crate) fn decide_family(&self, decision: &FamilyDecision, now: Millis) -> Result<FamilyDecided> {
        let family = &decision.family;
        if let Some(below) = decision.below {
            // Nothing of lower epochs is begun or prepared from here on.
            self.fences.raise(family, below, now)?;
            self.open_partitions().for_each(|partition| partition.settle());
        }
        let decided = self.transactions.change(|ledger| Ok(ledger.decide(decision)))?;
        let done = FamilyDecided { committed: decided.committed.len() as u64, aborted: decided.aborted.len() as u64 };
        if done != FamilyDecided::default() {
            let FamilyDecided { committed, aborted } = done;
            info!(stream = %self.name, %family, committed, aborted, "transactions of a family decided");
            failpoint::reach("store.decided");
        }
        self.mark(decided.committed, true, now)?;
        self.mark(decided.aborted, false, now)?;
        if !decided.outcomes.is_empty()
            && let Err(error) = self.acknowledge_transactions(&decided.outcomes, now)
        {
            // They are committed all the same, and remembered until the next decision.
            warn!(stream = %self.name, %family, %error, "outcomes of transactions are not in every partition yet");
        }
        Ok(done)
    }

    fn mark(&self, numbers: Vec<TransactionNumber>, committed: bool, now: Millis) -> Result<()> {
        let markers: Vec<Marker> = numbers.into_iter().map(|transaction| Marker { transaction, committed }).collect();
        self.open_partitions().try_for_each(|partition| partition.mark(now, &markers))
    }

    /// Aborts what older incarnations of the producers that `name` covers have open.
    pub(crate) fn abort_fenced(&self, name: &ProducerId, epoch: Epoch, now: Millis) -> Result<()> {
        self.transactions.change(|ledger| Ok(((), ledger.fence(name, epoch))))?;
        self.settle_transactions(now)
    }

    /// Forgets outcomes; see [`crate::Store::acknowledge_transactions`].
    pub(crate) fn acknowledge_transactions(&self, ids: &[TransactionId], now: Millis) -> Result<()> {
        self.settle_transactions(now)?;
        self.transactions.change(|ledger| {
            for known in ids.iter().filter_map(|id| ledger.by_id(id)) {
                self.check_marked(known)?;
            }
            Ok(((), ledger.acknowledge(ids)?))
        })
    }

    /// Refuses to forget an outcome that a partition does not know yet.
    fn check_marked(&self, known: &Transaction) -> Result<()> {
        let is_marked = self.open_partitions().all(|p| !p.undecided().0.contains_key(&known.number))
            && self.open_partitions().count() == self.options.partitions as usize;
        if is_marked || !known.state.is_decided() {
            return Ok(());
        }
        let what = format!("the outcome of transaction {} is not in every partition yet", known.spec.id);
        Err(Error::new(Code::FailedPrecondition, what)
            .with_hint("A partition of the stream is damaged: repair it first."))
    }

    /// Writes the markers that are missing: a crash came between a decision and them, or a disk was full.
    pub(crate) fn settle_transactions(&self, now: Millis) -> Result<()> {
        for partition in self.open_partitions() {
            let (undecided, has_gaps) = partition.undecided();
            if undecided.is_empty() {
                continue;
            }
            let states = self.transactions.ledger.read().states();
            let decided = undecided.keys().filter_map(|number| {
                let committed = match states.get(number) {
                    Some(TransactionState::Open | TransactionState::Prepared) => return None,
                    Some(TransactionState::Committed) => true,
                    Some(TransactionState::Aborted { .. }) => false,
                    // What is missing of a damaged log may be its marker.
                    None if has_gaps => return None,
                    None => false,
                };
                Some(Marker { transaction: *number, committed })
            });
            partition.mark(now, &decided.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Looks after leases and missing markers.
    pub(crate) fn maintain_transactions(&self, now: Millis, interval_ms: u64) -> Result<()> {
        self.transactions.expire(now, interval_ms)?;
        self.settle_transactions(now)
    }

    /// The oldest transaction that has a record before `offset` in a partition and is not decided there.
    pub(crate) fn undecided_before(
        &self,
        partition: &crate::partition::Partition,
        offset: Offset,
    ) -> Option<(TransactionId, Offset)> {
        let ledger = self.transactions.ledger.read();
        let (undecided, _) = partition.undecided();
        let known = undecided.iter().filter_map(|(number, extent)| Some((ledger.by_number(*number)?, extent.first)));
        let before = known.filter(|(_, first)| *first < offset);
        before.min_by_key(|(_, first)| *first).map(|(known, first)| (known.spec.id.clone(), first))
    }

    /// A transaction that is open or prepared, if there is one.
    pub(crate) fn pending_transaction(&self) -> Option<TransactionId> {
        let ledger = self.transactions.ledger.read();
        ledger.iter().find(|known| !known.state.is_decided()).map(|known| known.spec.id.clone())
    }

    /// How many are open or prepared.
    pub(crate) fn undecided_transactions(&self) -> usize {
        self.transactions.ledger.read().iter().filter(|known| !known.state.is_decided()).count()
    }

    /// One transaction.
    fn transaction(&self, id: &TransactionId) -> Result<TransactionInfo> {
        let known = self.transactions.ledger.read().by_id(id).cloned();
        let known = known.ok_or_else(|| Error::not_found(format!("transaction {id} is not known")))?;
        Ok(self.describe_transaction(known))
    }

    /// All transactions that are known, oldest first.
    pub(crate) fn list_transactions(&self) -> Vec<TransactionInfo> {
        let known: Vec<Transaction> = self.transactions.ledger.read().iter().cloned().collect();
        known.into_iter().map(|known| self.describe_transaction(known)).collect()
    }

    fn describe_transaction(&self, known: Transaction) -> TransactionInfo {
        let Transaction { number, spec, state, mark, began_at_ms, deadline: _ } = known;
        let begins = self.open_partitions().filter_map(|partition| {
            let (undecided, _) = partition.undecided();
            Some((partition.id(), undecided.get(&number)?.first))
        });
        TransactionInfo { spec, number, state, mark, began_at_ms, begins: StreamCut(begins.collect()) }
    }

    /// At opening: what a crash left to do. Whatever fails is tried again at every round of maintenance.
    pub(crate) fn resume_transactions(&self, now: Millis) {
        if let Err(error) = self.settle_transactions(now) {
            warn!(stream = %self.name, %error, "outcomes of transactions could not be written yet");
        }
    }
}

fn names(ids: &[TransactionId]) -> Vec<&str> {
    ids.iter().map(TransactionId::as_str).collect()
}
