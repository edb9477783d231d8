//! The transactions of one stream, as a state machine: what may become of which, and what is remembered for how long.
//!
//! Open → prepared → committed, and to aborted from the first two; the last two are for good. Leases and fences end open
//! transactions only. A committed one is remembered until that is acknowledged; of the aborted ones the latest few are,
//! to say why. One that is not known counts as aborted, as it has never been committed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weir_types::ids::{Epoch, ProducerId, TransactionId, TransactionNumber};
use weir_types::store::{FamilyDecision, TransactionSpec, TransactionState};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

use crate::fences::covers;

/// Transactions of one stream that may be open, prepared or not acknowledged at a time.
pub(crate) const TRANSACTIONS_MAX: usize = 10_000;
/// Aborted ones that are remembered.
const ABORTED_MAX: usize = 64;
const LEASE_MS_MIN: u64 = 1_000;
const LEASE_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) number: TransactionNumber,
    pub(crate) spec: TransactionSpec,
    pub(crate) state: TransactionState,
    /// What it was prepared under, if its producer gave a mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mark: Option<u64>,
    pub(crate) began_at_ms: u64,
    /// When the lease runs out, while it is open. Not kept: after a restart everybody gets a full lease.
    #[serde(skip)]
    pub(crate) deadline: Option<Millis>,
}

/// The transactions that are known, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// The number of the next one.
    next: TransactionNumber,
    known: Vec<Transaction>,
}

/// Whether a step changed what has to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Changed,
    Same,
}

/// What a decision about a family has to follow.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// Committed by it.
    pub(crate) committed: Vec<TransactionNumber>,
    /// Aborted by it.
    pub(crate) aborted: Vec<TransactionNumber>,
    /// Committed by it or by the same decision before: whoever decides so keeps no other record of them.
    pub(crate) outcomes: Vec<TransactionId>,
}

impl Ledger {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Transaction> {
        self.known.iter()
    }

    pub(crate) fn by_number(&self, number: TransactionNumber) -> Option<&Transaction> {
        let place = self.known.binary_search_by_key(&number, |transaction| transaction.number).ok()?;
        self.known.get(place)
    }

    pub(crate) fn by_id(&self, id: &TransactionId) -> Option<&Transaction> {
        self.known.iter().find(|transaction| transaction.spec.id == *id)
    }

    fn must_know(&mut self, id: &TransactionId) -> Result<&mut Transaction> {
        let found = self.known.iter_mut().find(|transaction| transaction.spec.id == *id);
        found.ok_or_else(|| {
            Error::not_found(format!("transaction {id} is not known"))
                .with_detail("It was never begun, or it ended and that was acknowledged.")
        })
    }

    /// Begins a transaction, or finds the open one of that name and incarnation, which gets a full lease.
    pub(crate) fn begin(&mut self, spec: TransactionSpec, now: Millis) -> Result<(TransactionNumber, Step)> {
        if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&spec.lease_ms) {
            return Err(Error::invalid(format!("a transaction cannot have a lease of {} ms", spec.lease_ms))
                .with_hint("Choose one second to seven days."));
        }
        let deadline = Some(now.plus(spec.lease_ms));
        if let Some(known) = self.known.iter_mut().find(|known| known.spec.id == spec.id) {
            let is_same = known.spec.producer == spec.producer && known.spec.epoch == spec.epoch;
            if is_same && known.state == TransactionState::Open {
                known.deadline = deadline;
                return Ok((known.number, Step::Same));
            }
            let what = format!("transaction {} exists already and is {}", spec.id, known.state);
            return Err(Error::new(Code::AlreadyExists, what)
                .with_detail(format!("it is of producer {}, epoch {}", known.spec.producer, known.spec.epoch)));
        }
        if self.known.len() >= TRANSACTIONS_MAX {
            let what = format!("the stream has {TRANSACTIONS_MAX} transactions that are not over");
            return Err(Error::new(Code::ResourceExhausted, what)
                .with_hint("`weir stream transactions list` shows them; prepared ones wait for a decision."));
        }
        let number = self.next;
        self.next = number.next();
        let (state, mark) = (TransactionState::Open, None);
        self.known.push(Transaction { number, spec, state, mark, began_at_ms: now.0, deadline });
        Ok((number, Step::Changed))
    }

    /// Gives an open transaction a full lease.
    pub(crate) fn renew(&mut self, id: &TransactionId, now: Millis) -> Result<()> {
        let known = self.must_know(id)?;
        match &known.state {
            TransactionState::Open => known.deadline = Some(now.plus(known.spec.lease_ms)),
            TransactionState::Prepared | TransactionState::Committed => {}
            TransactionState::Aborted { .. } => return Err(not_open(known)),
        }
        Ok(())
    }

    /// Ends the appends of a transaction; its lease ends with them.
    pub(crate) fn prepare(&mut self, id: &TransactionId, mark: Option<u64>) -> Result<(TransactionNumber, Step)> {
        let known = self.must_know(id)?;
        match &known.state {
            TransactionState::Open => {
                known.state = TransactionState::Prepared;
                known.mark = mark;
                known.deadline = None;
                Ok((known.number, Step::Changed))
            }
            TransactionState::Prepared | TransactionState::Committed => Ok((known.number, Step::Same)),
            TransactionState::Aborted { .. } => Err(not_open(known)),
        }
    }

    /// Decides for a prepared transaction.
    pub(crate) fn commit(&mut self, id: &TransactionId) -> Result<(TransactionNumber, Step)> {
        let known = self.must_know(id)?;
        match &known.state {
            TransactionState::Prepared => {
                known.state = TransactionState::Committed;
                Ok((known.number, Step::Changed))
            }
            TransactionState::Committed => Ok((known.number, Step::Same)),
            TransactionState::Open => {
                let what = format!("transaction {id} is still open and cannot be committed");
                Err(Error::new(Code::FailedPrecondition, what).with_hint("Prepare it first."))
            }
            TransactionState::Aborted { .. } => Err(not_open(known)),
        }
    }

    /// Decides against a transaction; one that is not known is aborted already.
    pub(crate) fn abort(&mut self, id: &TransactionId, reason: &str) -> Result<(Option<TransactionNumber>, Step)> {
        let Ok(known) = self.must_know(id) else { return Ok((None, Step::Same)) };
        let number = known.number;
        match &known.state {
            TransactionState::Open | TransactionState::Prepared => {
                known.end(reason);
                self.forget_old();
                Ok((Some(number), Step::Changed))
            }
            TransactionState::Aborted { .. } => Ok((Some(number), Step::Same)),
            TransactionState::Committed => {
                Err(Error::new(Code::FailedPrecondition, format!("transaction {id} is committed already")))
            }
        }
    }

    /// Aborts what older incarnations of the producers that `name` covers have open.
    pub(crate) fn fence(&mut self, name: &ProducerId, epoch: Epoch) -> Step {
        self.abort_open("a newer incarnation of its producer began", |known| {
            known.spec.epoch < epoch && covers(name, &known.spec.producer)
        })
    }

    /// Decides about a family; the committed ones that are due to be forgotten, those that were aborted.
    pub(crate) fn decide(&mut self, decision: &FamilyDecision) -> (Decided, Step) {
        let mut decided = Decided::default();
        let mut step = Step::Same;
        let FamilyDecision { family, commit, below } = decision;
        for known in self.known.iter_mut().filter(|known| covers(family, &known.spec.producer)) {
            let epoch = known.spec.epoch;
            let is_covered = commit.is_some_and(|(of, up_to)| epoch == of && known.mark.is_some_and(|at| at <= up_to));
            match &known.state {
                TransactionState::Prepared if is_covered => {
                    known.state = TransactionState::Committed;
                    decided.committed.push(known.number);
                    decided.outcomes.push(known.spec.id.clone());
                    step = Step::Changed;
                }
                TransactionState::Committed if is_covered => decided.outcomes.push(known.spec.id.clone()),
                TransactionState::Open | TransactionState::Prepared if below.is_some_and(|below| epoch < below) => {
                    known.end("its job went on without it");
                    decided.aborted.push(known.number);
                    step = Step::Changed;
                }
                _ => {}
            }
        }
        self.forget_old();
        (decided, step)
    }

    /// Aborts what is open and was not renewed in time.
    pub(crate) fn expire(&mut self, now: Millis) -> Step {
        for known in self.known.iter_mut().filter(|known| known.state == TransactionState::Open) {
            known.deadline.get_or_insert(now.plus(known.spec.lease_ms));
        }
        self.abort_open("its lease ran out", |known| known.deadline.is_some_and(|deadline| deadline < now))
    }

    /// Time did not count for so long.
    pub(crate) fn postpone(&mut self, ms: u64) {
        for deadline in self.known.iter_mut().filter_map(|known| known.deadline.as_mut()) {
            *deadline = deadline.plus(ms);
        }
    }

    /// Forgets how transactions ended.
    pub(crate) fn acknowledge(&mut self, ids: &[TransactionId]) -> Result<Step> {
        let undecided = self.known.iter().find(|known| ids.contains(&known.spec.id) && !known.state.is_decided());
        if let Some(known) = undecided {
            let what = format!("transaction {} is {} and has no outcome yet", known.spec.id, known.state);
            return Err(Error::new(Code::FailedPrecondition, what));
        }
        let before = self.known.len();
        self.known.retain(|known| !ids.contains(&known.spec.id));
        Ok(if self.known.len() == before { Step::Same } else { Step::Changed })
    }

    fn abort_open(&mut self, reason: &str, which: impl Fn(&Transaction) -> bool) -> Step {
        let mut step = Step::Same;
        for known in self.known.iter_mut().filter(|known| known.state == TransactionState::Open && which(known)) {
            known.end(reason);
            step = Step::Changed;
        }
        self.forget_old();
        step
    }

    fn forget_old(&mut self) {
        let is_aborted = |known: &Transaction| matches!(known.state, TransactionState::Aborted { .. });
        let mut surplus = self.known.iter().filter(|known| is_aborted(known)).count().saturating_sub(ABORTED_MAX);
        self.known.retain(|known| {
            let goes = surplus > 0 && is_aborted(known);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// The states by number, for whoever compares them with a log.
    pub(crate) fn states(&self) -> BTreeMap<TransactionNumber, TransactionState> {
        self.known.iter().map(|known| (known.number, known.state.clone())).collect()
    }

    /// Refuses content that no ledger writes: its order is relied on.
    pub(crate) fn is_sound(&self) -> bool {
        self.known.is_sorted_by(|one, other| one.number < other.number)
            && self.known.last().is_none_or(|last| last.number < self.next)
    }
}

impl Transaction {
    fn end(&mut self, reason: &str) {
        self.state = TransactionState::Aborted { reason: reason.to_owned() };
        self.deadline = None;
    }
}

/// Why a transaction takes no appends and cannot be prepared or committed.
pub(crate) fn not_open(known: &Transaction) -> Error {
    let id = &known.spec.id;
    match &known.state {
        TransactionState::Aborted { reason } => {
            Error::new(Code::FailedPrecondition, format!("transaction {id} was aborted: {reason}"))
        }
        state => Error::new(Code::FailedPrecondition, format!("transaction {id} is {state} and takes no more records")),
    }
}
