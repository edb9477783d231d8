//! Transactions over the wire: the calls, and what keeps an open one alive.

use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::warn;
use weir_proto::convert::store::cut_to_pb;
use weir_proto::convert::transaction::{decision_to_pb, spec_to_pb};
use weir_proto::pb::store::v1 as pb;
use weir_types::Result;
use weir_types::ids::{TransactionId, TransactionNumber};
use weir_types::store::{FamilyDecided, FamilyDecision, TransactionInfo, TransactionSpec};
use weir_types::stream::{StreamCut, StreamName};

use super::{StoreClient, call, stream_ref};

impl StoreClient {
    /// Begins a transaction, or finds the open one of that name and incarnation of the producer and renews its lease.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for a name that is taken, `FENCED`, `RESOURCE_EXHAUSTED`, `INVALID_ARGUMENT`, `NOT_FOUND`.
    pub async fn begin_transaction(&self, stream: &StreamName, spec: &TransactionSpec) -> Result<TransactionInfo> {
        call(self.streams().begin_transaction(spec_to_pb(stream, spec))).await?.try_into()
    }

    /// Gives an open transaction a full lease.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it was aborted, saying why; `NOT_FOUND`.
    pub async fn renew_transaction(&self, stream: &StreamName, id: &TransactionId) -> Result<()> {
        let request = pb::TransactionRef { stream: stream.to_string(), id: id.to_string() };
        call(self.streams().renew_transaction(request)).await.map(drop)
    }

    /// Prepares a transaction: it takes no more appends, its records are durable, and nothing but a decision ends it any
    /// more. `ends` are the offsets behind its last records, as [`super::Producer::flush`] returns them; `mark` is what a
    /// decision about the producer's family selects it by.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it was aborted or has lost records; `FENCED`, `NOT_FOUND`. May be repeated.
    pub async fn prepare_transaction(
        &self,
        stream: &StreamName,
        id: &TransactionId,
        ends: &StreamCut,
        mark: Option<u64>,
    ) -> Result<()> {
        let (stream, id) = (stream.to_string(), id.to_string());
        let request = pb::PrepareTransactionRequest { stream, id, ends: cut_to_pb(ends), mark };
        call(self.streams().prepare_transaction(request)).await.map(drop)
    }

    /// Commits what a family of producers has prepared up to a mark, and gives up what older epochs have left. May be
    /// repeated.
    ///
    /// # Errors
    /// `FENCED` if a higher epoch was fenced for: then nothing is decided. `NOT_FOUND` for the stream.
    pub async fn decide_family(&self, stream: &StreamName, decision: &FamilyDecision) -> Result<FamilyDecided> {
        let reply = call(self.streams().decide_family(decision_to_pb(stream, decision))).await?;
        let pb::FamilyDecided { committed, aborted } = reply;
        Ok(FamilyDecided { committed, aborted })
    }

    /// Commits prepared transactions, all of them or none. May be repeated until they are acknowledged.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one is open or aborted; `NOT_FOUND` if one is not known.
    pub async fn commit_transactions(&self, stream: &StreamName, ids: &[TransactionId]) -> Result<()> {
        self.decide(stream, ids, true, "").await
    }

    /// Aborts open and prepared transactions; those that are not known or aborted already are fine.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one is committed; `NOT_FOUND` for the stream.
    pub async fn abort_transactions(&self, stream: &StreamName, ids: &[TransactionId], reason: &str) -> Result<()> {
        self.decide(stream, ids, false, reason).await
    }

    async fn decide(&self, stream: &StreamName, ids: &[TransactionId], commit: bool, reason: &str) -> Result<()> {
        let request = pb::DecideTransactionsRequest {
            stream: stream.to_string(),
            ids: ids.iter().map(ToString::to_string).collect(),
            commit,
            reason: reason.to_owned(),
        };
        call(self.streams().decide_transactions(request)).await.map(drop)
    }

    /// Lets the store forget how transactions ended.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if one has no outcome yet; `NOT_FOUND` for the stream.
    pub async fn acknowledge_transactions(&self, stream: &StreamName, ids: &[TransactionId]) -> Result<()> {
        let ids = ids.iter().map(ToString::to_string).collect();
        let request = pb::AcknowledgeTransactionsRequest { stream: stream.to_string(), ids };
        call(self.streams().acknowledge_transactions(request)).await.map(drop)
    }

    /// The stream's transactions that are not over or whose outcome is remembered, oldest first.
    ///
    /// # Errors
    /// `NOT_FOUND` for the stream.
    pub async fn transactions(&self, stream: &StreamName) -> Result<Vec<TransactionInfo>> {
        let reply = call(self.streams().list_transactions(stream_ref(stream))).await?;
        reply.transactions.into_iter().map(TryInto::try_into).collect()
    }
}

/// An open transaction that is kept alive for as long as this is.
#[derive(Debug)]
pub struct LiveTransaction {
    id: TransactionId,
    number: TransactionNumber,
    renewal: JoinHandle<()>,
}

impl LiveTransaction {
    /// Begins a transaction and renews its lease in the background, from within a tokio runtime, until this is dropped.
    ///
    /// # Errors
    /// As [`StoreClient::begin_transaction`].
    pub async fn begin(client: &StoreClient, stream: &StreamName, spec: &TransactionSpec) -> Result<Self> {
        let info = client.begin_transaction(stream, spec).await?;
        let (client, stream, id) = (client.clone(), stream.clone(), spec.id.clone());
        // Two renewals may get lost before the lease runs out.
        let pause = Duration::from_millis(spec.lease_ms / 4);
        let renewal = tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                match client.renew_transaction(&stream, &id).await {
                    Ok(()) => {}
                    // Leases stand still while the store is down.
                    Err(error) if error.code.is_retryable() => {}
                    Err(error) => {
                        warn!(%stream, transaction = %id, %error, "the transaction cannot be renewed");
                        return;
                    }
                }
            }
        });
        Ok(Self { id: spec.id.clone(), number: info.number, renewal })
    }

    /// Its name.
    pub fn id(&self) -> &TransactionId {
        &self.id
    }

    /// What appends to it are marked with.
    pub fn number(&self) -> TransactionNumber {
        self.number
    }
}

impl Drop for LiveTransaction {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}
