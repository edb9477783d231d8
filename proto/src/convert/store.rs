//! Streams on the wire. Whatever comes from a peer is checked on the way in: names, partition counts, formats.

use std::collections::BTreeMap;

use weir_types::ids::{Epoch, PartitionId, PinHolder, ProducerId, TransactionNumber};
use weir_types::store::{
    Appended, Durability, Isolation, PartitionInfo, Pin, PinHold, ProducerStamp, RecordFormat, Retention, StreamInfo,
    StreamOptions, TruncateReport,
};
use weir_types::stream::{Offset, StreamCut};
use weir_types::{Error, Result};

use crate::pb::store::v1 as pb;

/// The offsets of a cut as the wire has them.
pub fn cut_to_pb(cut: &StreamCut) -> BTreeMap<u32, u64> {
    cut.0.iter().map(|(partition, offset)| (partition.0, offset.0)).collect()
}

/// The cut that the wire's offsets make.
pub fn cut_from_pb(offsets: BTreeMap<u32, u64>) -> StreamCut {
    let offsets: BTreeMap<_, _> = offsets.into_iter().map(|(p, offset)| (PartitionId(p), Offset(offset))).collect();
    StreamCut(offsets)
}

/// What a message lacks although it may not.
pub(super) fn missing(field: &str) -> Error {
    Error::invalid(format!("the message lacks its field {field}"))
}

/// The wire's name of a record format.
pub fn format_to_pb(format: RecordFormat) -> pb::RecordFormat {
    match format {
        RecordFormat::Bytes => pb::RecordFormat::Bytes,
        RecordFormat::Arrow => pb::RecordFormat::Arrow,
    }
}

/// The record format behind a number of the wire.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number that this build does not know.
pub fn format_from_pb(format: i32) -> Result<RecordFormat> {
    match pb::RecordFormat::try_from(format) {
        Ok(pb::RecordFormat::Bytes) => Ok(RecordFormat::Bytes),
        Ok(pb::RecordFormat::Arrow) => Ok(RecordFormat::Arrow),
        Err(_) => Err(Error::invalid(format!("record format {format} is unknown to this build"))),
    }
}

/// The wire's name of an isolation.
pub fn isolation_to_pb(isolation: Isolation) -> pb::Isolation {
    match isolation {
        Isolation::Committed => pb::Isolation::Committed,
        Isolation::Uncommitted => pb::Isolation::Uncommitted,
    }
}

/// The isolation behind a number of the wire.
///
/// # Errors
/// `INVALID_ARGUMENT` for a number that this build does not know.
pub fn isolation_from_pb(isolation: i32) -> Result<Isolation> {
    match pb::Isolation::try_from(isolation) {
        Ok(pb::Isolation::Committed) => Ok(Isolation::Committed),
        Ok(pb::Isolation::Uncommitted) => Ok(Isolation::Uncommitted),
        Err(_) => Err(Error::invalid(format!("isolation {isolation} is unknown to this build"))),
    }
}

impl From<&StreamOptions> for pb::StreamOptions {
    fn from(options: &StreamOptions) -> Self {
        let StreamOptions { partitions, format, durability, retention, arrow_schema } = options;
        let Retention { max_bytes, max_age_ms } = *retention;
        Self {
            partitions: *partitions,
            format: format_to_pb(*format).into(),
            durability: match durability {
                Durability::Fsync => pb::Durability::Fsync,
                Durability::Os => pb::Durability::Os,
            }
            .into(),
            retention: Some(pb::Retention { max_bytes, max_age_ms }),
            arrow_schema: arrow_schema.clone().map(Into::into),
        }
    }
}

impl TryFrom<pb::StreamOptions> for StreamOptions {
    type Error = Error;

    fn try_from(options: pb::StreamOptions) -> Result<Self> {
        let pb::StreamOptions { partitions, format, durability, retention, arrow_schema } = options;
        let pb::Retention { max_bytes, max_age_ms } = retention.unwrap_or_default();
        Ok(Self {
            partitions,
            format: format_from_pb(format)?,
            durability: match pb::Durability::try_from(durability) {
                Ok(pb::Durability::Fsync) => Durability::Fsync,
                Ok(pb::Durability::Os) => Durability::Os,
                Err(_) => return Err(Error::invalid(format!("durability {durability} is unknown to this build"))),
            },
            retention: Retention { max_bytes, max_age_ms },
            arrow_schema: arrow_schema.map(Into::into),
        })
    }
}

impl From<&StreamInfo> for pb::StreamInfo {
    fn from(info: &StreamInfo) -> Self {
        let StreamInfo { name, options, created_at_ms, partitions } = info;
        Self {
            name: name.to_string(),
            options: Some(options.into()),
            created_at_ms: *created_at_ms,
            partitions: partitions.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::StreamInfo> for StreamInfo {
    type Error = Error;

    fn try_from(info: pb::StreamInfo) -> Result<Self> {
        let pb::StreamInfo { name, options, created_at_ms, partitions } = info;
        Ok(Self {
            name: name.parse()?,
            options: options.ok_or_else(|| missing("options"))?.try_into()?,
            created_at_ms,
            partitions: partitions.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<&PartitionInfo> for pb::PartitionInfo {
    fn from(info: &PartitionInfo) -> Self {
        let PartitionInfo { partition, head, end, stable_end, bytes, segments, max_event_time_ms, fault } = info;
        Self {
            partition: partition.0,
            head: head.0,
            end: end.0,
            stable_end: stable_end.0,
            bytes: *bytes,
            segments: *segments,
            max_event_time_ms: *max_event_time_ms,
            fault: fault.clone(),
        }
    }
}

impl From<pb::PartitionInfo> for PartitionInfo {
    fn from(info: pb::PartitionInfo) -> Self {
        let pb::PartitionInfo { partition, head, end, bytes, segments, max_event_time_ms, fault, stable_end } = info;
        Self {
            partition: PartitionId(partition),
            head: Offset(head),
            end: Offset(end),
            stable_end: Offset(stable_end),
            bytes,
            segments,
            max_event_time_ms,
            fault,
        }
    }
}

impl From<&Pin> for pb::Pin {
    fn from(pin: &Pin) -> Self {
        let Pin { holder, cut, created_at_ms, broken_at_ms } = pin;
        Self {
            holder: holder.to_string(),
            cut: cut_to_pb(cut),
            created_at_ms: *created_at_ms,
            broken_at_ms: *broken_at_ms,
        }
    }
}

impl From<PinHold> for pb::PinHold {
    fn from(hold: PinHold) -> Self {
        let PinHold { records, bytes } = hold;
        Self { records, bytes }
    }
}

impl From<pb::PinHold> for PinHold {
    fn from(hold: pb::PinHold) -> Self {
        let pb::PinHold { records, bytes } = hold;
        Self { records, bytes }
    }
}

impl TryFrom<pb::Pin> for Pin {
    type Error = Error;

    fn try_from(pin: pb::Pin) -> Result<Self> {
        let pb::Pin { holder, cut, created_at_ms, broken_at_ms } = pin;
        Ok(Self { holder: PinHolder::new(holder)?, cut: cut_from_pb(cut), created_at_ms, broken_at_ms })
    }
}

impl From<&TruncateReport> for pb::TruncateReport {
    fn from(report: &TruncateReport) -> Self {
        let TruncateReport { heads, overrun } = report;
        Self { heads: cut_to_pb(heads), overrun: overrun.iter().map(Into::into).collect() }
    }
}

impl TryFrom<pb::TruncateReport> for TruncateReport {
    type Error = Error;

    fn try_from(report: pb::TruncateReport) -> Result<Self> {
        let pb::TruncateReport { heads, overrun } = report;
        let overrun = overrun.into_iter().map(Pin::try_from).collect::<Result<_>>()?;
        Ok(Self { heads: cut_from_pb(heads), overrun })
    }
}

impl From<&ProducerStamp> for pb::ProducerStamp {
    fn from(stamp: &ProducerStamp) -> Self {
        let ProducerStamp { producer, epoch, sequence, transaction } = stamp;
        let transaction = transaction.map(|number| number.0);
        Self { producer: producer.to_string(), epoch: epoch.0, sequence: *sequence, transaction }
    }
}

impl TryFrom<pb::ProducerStamp> for ProducerStamp {
    type Error = Error;

    fn try_from(stamp: pb::ProducerStamp) -> Result<Self> {
        let pb::ProducerStamp { producer, epoch, sequence, transaction } = stamp;
        let transaction = transaction.map(TransactionNumber);
        Ok(Self { producer: ProducerId::new(producer)?, epoch: Epoch(epoch), sequence, transaction })
    }
}

impl From<Appended> for pb::AppendDone {
    fn from(appended: Appended) -> Self {
        let Appended { base_offset, duplicate } = appended;
        Self { base_offset: base_offset.0, duplicate }
    }
}

impl From<pb::AppendDone> for Appended {
    fn from(done: pb::AppendDone) -> Self {
        let pb::AppendDone { base_offset, duplicate } = done;
        Self { base_offset: Offset(base_offset), duplicate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_survive_the_wire() {
        let options = StreamOptions {
            durability: Durability::Os,
            format: RecordFormat::Arrow,
            retention: Retention { max_bytes: Some(7), max_age_ms: None },
            arrow_schema: Some(vec![1, 2]),
            ..StreamOptions::new(3)
        };
        let partition = PartitionInfo {
            partition: PartitionId(1),
            head: Offset(2),
            end: Offset(9),
            stable_end: Offset(8),
            bytes: 77,
            segments: 2,
            max_event_time_ms: Some(-5),
            fault: Some("damaged".to_owned()),
        };
        let info = StreamInfo { name: "a/b".parse().unwrap(), options, created_at_ms: 12, partitions: vec![partition] };
        assert_eq!(StreamInfo::try_from(pb::StreamInfo::from(&info)).unwrap(), info);

        let cut = StreamCut(BTreeMap::from([(PartitionId(0), Offset(4)), (PartitionId(1), Offset(6))]));
        let pin =
            Pin { holder: PinHolder::new("sp-1").unwrap(), cut: cut.clone(), created_at_ms: 3, broken_at_ms: Some(4) };
        let report = TruncateReport { heads: cut, overrun: vec![pin] };
        assert_eq!(TruncateReport::try_from(pb::TruncateReport::from(&report)).unwrap(), report);
    }

    #[test]
    fn what_a_peer_must_not_send_is_refused() {
        let stamp = pb::ProducerStamp { producer: "../x".to_owned(), epoch: 0, sequence: 0, transaction: None };
        assert_eq!(ProducerStamp::try_from(stamp).unwrap_err().code, weir_types::Code::InvalidArgument);
        assert!(format_from_pb(17).is_err());
        let options = pb::StreamOptions { durability: 9, ..Default::default() };
        assert!(StreamOptions::try_from(options).is_err());
    }
}
