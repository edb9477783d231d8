//! Transactions of streams on the wire.

use weir_types::ids::{Epoch, ProducerId, TransactionId, TransactionNumber};
use weir_types::store::{FamilyDecision, TransactionInfo, TransactionSpec, TransactionState};
use weir_types::stream::StreamName;
use weir_types::{Error, Result};

use super::store::{cut_from_pb, cut_to_pb, missing};
use crate::pb::store::v1 as pb;

/// A specification with the stream that it is for.
pub fn spec_to_pb(stream: &StreamName, spec: &TransactionSpec) -> pb::TransactionSpec {
    let TransactionSpec { id, producer, epoch, lease_ms } = spec;
    pb::TransactionSpec {
        stream: stream.to_string(),
        id: id.to_string(),
        producer: producer.to_string(),
        epoch: epoch.0,
        lease_ms: *lease_ms,
    }
}

/// The stream and the specification of a transaction.
///
/// # Errors
/// `INVALID_ARGUMENT` for names that cannot be.
pub fn spec_from_pb(spec: pb::TransactionSpec) -> Result<(StreamName, TransactionSpec)> {
    let pb::TransactionSpec { stream, id, producer, epoch, lease_ms } = spec;
    let (id, producer) = (TransactionId::new(id)?, ProducerId::new(producer)?);
    Ok((stream.parse()?, TransactionSpec { id, producer, epoch: Epoch(epoch), lease_ms }))
}

/// A decision with the stream that it is for.
pub fn decision_to_pb(stream: &StreamName, decision: &FamilyDecision) -> pb::FamilyDecision {
    let FamilyDecision { family, commit, below } = decision;
    pb::FamilyDecision {
        stream: stream.to_string(),
        family: family.to_string(),
        commit: commit.map(|(epoch, mark)| pb::UpTo { epoch: epoch.0, mark }),
        below: below.map(|below| below.0),
    }
}

/// The stream and the decision about a family.
///
/// # Errors
/// `INVALID_ARGUMENT` for names that cannot be.
pub fn decision_from_pb(decision: pb::FamilyDecision) -> Result<(StreamName, FamilyDecision)> {
    let pb::FamilyDecision { stream, family, commit, below } = decision;
    let commit = commit.map(|pb::UpTo { epoch, mark }| (Epoch(epoch), mark));
    Ok((stream.parse()?, FamilyDecision { family: ProducerId::new(family)?, commit, below: below.map(Epoch) }))
}

/// A transaction of `stream`.
pub fn info_to_pb(stream: &StreamName, info: &TransactionInfo) -> pb::TransactionInfo {
    use pb::transaction_info::State;
    let TransactionInfo { spec, number, state, mark, began_at_ms, begins } = info;
    pb::TransactionInfo {
        spec: Some(spec_to_pb(stream, spec)),
        number: number.0,
        state: Some(match state {
            TransactionState::Open => State::Open(pb::Empty {}),
            TransactionState::Prepared => State::Prepared(pb::Empty {}),
            TransactionState::Committed => State::Committed(pb::Empty {}),
            TransactionState::Aborted { reason } => State::Aborted(reason.clone()),
        }),
        mark: *mark,
        began_at_ms: *began_at_ms,
        begins: cut_to_pb(begins),
    }
}

impl TryFrom<pb::TransactionInfo> for TransactionInfo {
    type Error = Error;

    fn try_from(info: pb::TransactionInfo) -> Result<Self> {
        use pb::transaction_info::State;
        let pb::TransactionInfo { spec, number, state, mark, began_at_ms, begins } = info;
        let (_, spec) = spec_from_pb(spec.ok_or_else(|| missing("spec"))?)?;
        Ok(Self {
            spec,
            number: TransactionNumber(number),
            state: match state.ok_or_else(|| missing("state"))? {
                State::Open(pb::Empty {}) => TransactionState::Open,
                State::Prepared(pb::Empty {}) => TransactionState::Prepared,
                State::Committed(pb::Empty {}) => TransactionState::Committed,
                State::Aborted(reason) => TransactionState::Aborted { reason },
            },
            mark,
            began_at_ms,
            begins: cut_from_pb(begins),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weir_types::ids::PartitionId;
    use weir_types::stream::{Offset, StreamCut};

    use super::*;

    #[test]
    fn transactions_survive_the_wire_and_foreign_names_do_not() {
        let stream: StreamName = "a/b".parse().unwrap();
        let spec = TransactionSpec {
            id: TransactionId::new("t").unwrap(),
            producer: ProducerId::new("p").unwrap(),
            epoch: Epoch(4),
            lease_ms: 1000,
        };
        let reason = "the lease ran out".to_owned();
        for state in [
            TransactionState::Open,
            TransactionState::Prepared,
            TransactionState::Committed,
            TransactionState::Aborted { reason },
        ] {
            let info = TransactionInfo {
                spec: spec.clone(),
                number: TransactionNumber(9),
                state,
                mark: Some(3),
                began_at_ms: 5,
                begins: StreamCut(BTreeMap::from([(PartitionId(1), Offset(7))])),
            };
            assert_eq!(TransactionInfo::try_from(info_to_pb(&stream, &info)).unwrap(), info);
        }
        let decision =
            FamilyDecision { family: spec.producer.clone(), commit: Some((Epoch(2), 9)), below: Some(Epoch(3)) };
        assert_eq!(decision_from_pb(decision_to_pb(&stream, &decision)).unwrap(), (stream.clone(), decision));
        let foreign = pb::TransactionSpec { id: "../x".to_owned(), ..spec_to_pb(&stream, &spec) };
        assert_eq!(spec_from_pb(foreign).unwrap_err().code, weir_types::Code::InvalidArgument);
        assert!(TransactionInfo::try_from(pb::TransactionInfo::default()).is_err());
    }
}
