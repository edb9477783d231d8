//! The embedded store's transactions.
//!
//! A transaction gathers appends of one producer to partitions of one stream. Committed readers see all of them or none.
//! Begin, append with its number in the stamps, prepare, commit or abort, acknowledge: each step is durable when it
//! returns, and may be repeated.

use weir_types::Result;
use weir_types::ids::TransactionId;
use weir_types::store::{FamilyDecided, FamilyDecision, TransactionInfo, TransactionSpec};
use weir_types::stream::{StreamCut, StreamName};

use crate::store::{Store, blocking};

impl Store {
    /// Begins a transaction, or finds the open one of that name and incarnation of the producer and renews its lease.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for a name that is taken, `FENCED` for a producer that was, `RESOURCE_EXHAUSTED` if there are too
    /// many, `INVALID_ARGUMENT` for an impossible lease, `NOT_FOUND` for the stream; I/O errors.
    pub async fn begin_transaction(&self, name: &StreamName, spec: TransactionSpec) -> Result<TransactionInfo> {
        let (stream, now) = (self.inner.stream(name)?, self.inner.clock.now());
        blocking(move || stream.begin_transaction(spec, now)).await
    }

    /// Gives an open transaction a full lease; one that is prepared or committed needs none.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it was aborted, saying why; `NOT_FOUND`.
    pub async fn renew_transaction(&self, name: &StreamName, id: TransactionId) -> Result<()> {
        let (stream, now) = (self.inner.stream(name)?, self.inner.clock.now());
        blocking(move || stream.renew_transaction(&id, now)).await
    }

    /// Prepares a transaction: it takes no more appends, its records are durable whatever the stream's options say, and
    /// nothing but a decision ends it any more. `ends` are the offsets behind its last records as far as the caller knows
    /// them; if the log has lost some, this is noticed here. A decision about the producer's family may select it by its
    /// `mark`.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it was aborted or has lost records, `FENCED`, `NOT_FOUND`; I/O errors: it may or may not
    /// be prepared then.
    pub async fn prepare_transaction(
        &self,
        name: &StreamName,
        id: TransactionId,
        ends: StreamCut,
        mark: Option<u64>,
    ) -> Result<()> {
        let stream = self.inner.stream(name)?;
        blocking(move || stream.prepare_transaction(&id, &ends, mark)).await
    }

    /// Commits what a family of producers has prepared up to a mark, and gives up what older epochs have left, in one
    /// durable step. What it commits is forgotten at once: the same decision again finds nothing left to do.
    ///
    /// # Errors
    /// `FENCED` if a higher epoch than that to go on with was fenced for: then nothing is decided. `NOT_FOUND` for the
    /// stream. I/O errors: repeat it; what was decided stays decided.
    pub async fn decide_family(&self, name: &StreamName, decision: FamilyDecision) -> Result<FamilyDecided> {
        let (stream, now) = (self.inner.stream(name)?, self.inner.clock.now());
        blocking(move || stream.decide_family(&decision, now)).await
    }

    /// Commits prepared transactions, all of them in one durable step, and shows them to committed readers.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one is open or aborted, `NOT_FOUND` if one is not known: then none is committed. I/O
    /// errors: repeat it; what was decided stays decided.
    pub async fn commit_transactions(&self, name: &StreamName, ids: Vec<TransactionId>) -> Result<()> {
        let (stream, now) = (self.inner.stream(name)?, self.inner.clock.now());
        blocking(move || stream.commit_transactions(&ids, now)).await
    }

    /// Aborts open and prepared transactions; those that are not known or aborted already are fine.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one is committed: then none is aborted. I/O errors: repeat it.
    pub async fn abort_transactions(&self, name: &StreamName, ids: Vec<TransactionId>, reason: &str) -> Result<()> {
        let (stream, now, reason) = (self.inner.stream(name)?, self.inner.clock.now(), reason.to_owned());
        blocking(move || stream.abort_transactions(&ids, &reason, now)).await
    }

    /// Lets the store forget how transactions ended; until then, a commit may be repeated.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one has no outcome yet, or a partition is too damaged to have learnt it; I/O errors.
    pub async fn acknowledge_transactions(&self, name: &StreamName, ids: Vec<TransactionId>) -> Result<()> {
        let (stream, now) = (self.inner.stream(name)?, self.inner.clock.now());
        blocking(move || stream.acknowledge_transactions(&ids, now)).await
    }

    /// The stream's transactions that are not over or whose outcome is remembered, oldest first.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn transactions(&self, name: &StreamName) -> Result<Vec<TransactionInfo>> {
        Ok(self.inner.stream(name)?.list_transactions())
    }
}
