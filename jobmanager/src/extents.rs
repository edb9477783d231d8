//! What streams hold, and what they no longer hold of what a snapshot goes on from.

use std::collections::{BTreeMap, BTreeSet};

use weir_coordination::metadata::SourceRecord;
use weir_coordination::restore::Extent;
use weir_stream_store::client::StoreClient;
use weir_types::error::Facts;
use weir_types::ids::OperatorUid;
use weir_types::snapshot::SourcePositions;
use weir_types::splits;
use weir_types::store::PartitionInfo;
use weir_types::stream::{Offset, StreamName};
use weir_types::{Code, Error, Result};

use crate::sources::groups;

/// What the streams of these sources hold, by source and split.
pub(crate) async fn extents(
    store: &StoreClient,
    records: &[SourceRecord],
) -> Result<BTreeMap<OperatorUid, BTreeMap<String, Extent>>> {
    let mut extents = BTreeMap::new();
    for (source, group) in groups(records) {
        let partitions = store.describe_stream(&group.stream).await?.partitions;
        let extent = |found: &PartitionInfo| {
            (splits::partition_split(found.partition), Extent { head: found.head.0, end: found.end.0 })
        };
        extents.insert(source.uid.clone(), partitions.iter().map(extent).collect());
    }
    Ok(extents)
}

/// What these sources' streams hold; none for a stream that does not exist.
async fn held(
    store: &StoreClient,
    records: &[SourceRecord],
) -> Result<BTreeMap<StreamName, Option<Vec<PartitionInfo>>>> {
    let mut held = BTreeMap::new();
    for (_, group) in groups(records) {
        let partitions = match store.describe_stream(&group.stream).await {
            Ok(info) => Some(info.partitions),
            Err(error) if error.code == Code::NotFound => None,
            Err(error) => return Err(error),
        };
        held.insert(group.stream.clone(), partitions);
    }
    Ok(held)
}

/// What the streams no longer hold of what would have to be read from these positions on; none: it is all there. A stream
/// that is gone holds nothing; one that ends before a position is another one, made after that was deleted.
///
/// # Errors
/// If the store cannot say.
pub(crate) async fn lost(
    store: &StoreClient,
    records: &[SourceRecord],
    positions: &[SourcePositions],
) -> Result<Option<Error>> {
    let held = held(store, records).await?;
    let mut lost = BTreeSet::new();
    let mut highest = Offset(0);
    for (source, group) in groups(records) {
        let stream = &group.stream;
        let splits = positions.iter().filter(|of| of.uid == source.uid).flat_map(|of| &of.splits);
        for position in splits.filter(|position| !position.finished) {
            let (partition, at) = (splits::parse_partition(&position.split)?, position.offset);
            let Some(partitions) = held.get(stream).and_then(Option::as_ref) else {
                lost.insert(format!("stream {stream} does not exist any more"));
                continue;
            };
            let Some(extent) = partitions.iter().find(|info| info.partition == partition) else { continue };
            let (head, end) = (extent.head.0, extent.end.0);
            if at < head {
                let gone = head - at;
                lost.insert(format!(
                    "stream {stream} no longer holds what it goes on from: partition {partition} begins at {head}, the \
                     snapshot is at {at}: {gone} records are gone"
                ));
                highest = highest.max(extent.head);
            } else if at > end {
                lost.insert(format!(
                    "stream {stream} is not the one that was read: partition {partition} ends at {end}, the snapshot is \
                     at {at}"
                ));
            }
        }
    }
    if lost.is_empty() {
        return Ok(None);
    }
    let error = Error::new(Code::OffsetTruncated, "the streams no longer hold what the snapshot goes on from");
    let lost: Vec<String> = lost.into_iter().collect();
    Ok(Some(error.with_detail(lost.join("; ")).with_facts(Facts::OffsetTruncated { head: highest })))
}

/// Which streams, of those that are to be read on from these positions, were deleted, in words; none: they are all there.
///
/// # Errors
/// If the store cannot say.
pub(crate) async fn deleted(
    store: &StoreClient,
    records: &[SourceRecord],
    positions: &[SourcePositions],
) -> Result<Option<String>> {
    let held = held(store, records).await?;
    let is_read = |source: &SourceRecord| {
        let mut splits = positions.iter().filter(|of| of.uid == source.uid).flat_map(|of| &of.splits);
        splits.any(|split| !split.finished)
    };
    let read = groups(records).filter(|(source, _)| is_read(source)).map(|(_, group)| &group.stream);
    let gone: BTreeSet<&StreamName> = read.filter(|stream| held.get(*stream).is_some_and(Option::is_none)).collect();
    let gone: Vec<String> = gone.into_iter().map(|stream| format!("stream {stream} does not exist any more")).collect();
    Ok((!gone.is_empty()).then(|| gone.join("; ")))
}
