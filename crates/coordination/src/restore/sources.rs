//! Sources: where each split goes on, and whether that can still be read.

use std::collections::BTreeMap;

use weir_types::error::Facts;
use weir_types::ids::OperatorUid;
use weir_types::restore::{SourcePlan, SplitFate, SplitPlan};
use weir_types::snapshot::{OperatorSnapshot, SplitPosition};
use weir_types::stream::Offset;
use weir_types::{Code, Error};

use super::Extent;
use crate::metadata::SourceRecord;

/// Lets a source go on where the snapshot left off. Splits that the snapshot does not know start at their beginnings;
/// without any position in the snapshot the source begins as that of a new job.
pub(super) fn take_positions(
    mut source: SourceRecord,
    held: &[OperatorSnapshot],
    extents: Option<&BTreeMap<String, Extent>>,
) -> (SourceRecord, SourcePlan) {
    let mut positions = positions(held, &source.uid);
    let mut splits = Vec::new();
    let mut note = |position: &SplitPosition, fate: SplitFate| {
        splits.push(SplitPlan { split: position.split.clone(), offset: position.offset, fate });
    };
    // A generator's splits are fixed when its job is created; the snapshot says which.
    let generated = !positions.is_empty() && positions.keys().all(|split| split.starts_with("split-"));
    if generated {
        source.splits = positions.into_values().collect();
        source.splits.iter().for_each(|position| note(position, fate(position, extents)));
    } else {
        let known = !positions.is_empty();
        for split in &mut source.splits {
            match positions.remove(&split.split) {
                Some(position) => {
                    *split = position;
                    note(split, fate(split, extents));
                }
                None => {
                    if let Some(extent) = extents.and_then(|extents| extents.get(&split.split)).filter(|_| known) {
                        // Whatever 'scan.startup.mode' says: it is a part of a stream that the job has begun to read.
                        split.offset = extent.head;
                    }
                    note(split, SplitFate::Added);
                }
            }
        }
        for position in positions.into_values() {
            note(&position, if position.finished { SplitFate::Finished } else { SplitFate::Missing });
            // What was read to its end need not be there any more; its position stays part of every snapshot.
            if position.finished {
                source.splits.push(position);
            }
        }
    }
    let stream = source.group.as_ref().map(|group| group.stream.to_string());
    let plan = SourcePlan { uid: source.uid.clone(), table: source.table.clone(), stream, splits };
    (source, plan)
}

fn positions(held: &[OperatorSnapshot], uid: &OperatorUid) -> BTreeMap<String, SplitPosition> {
    let parts = held.iter().filter(|part| part.uid == *uid);
    parts.flat_map(|part| &part.splits).map(|position| (position.split.clone(), position.clone())).collect()
}

fn fate(position: &SplitPosition, extents: Option<&BTreeMap<String, Extent>>) -> SplitFate {
    if position.finished {
        return SplitFate::Finished;
    }
    let Some(Extent { head, end }) = extents.and_then(|extents| extents.get(&position.split)).copied() else {
        return SplitFate::Continues { behind: None };
    };
    if position.offset < head {
        SplitFate::Truncated { head, lost: head - position.offset }
    } else if position.offset > end {
        SplitFate::TooShort { end }
    } else {
        SplitFate::Continues { behind: Some(end - position.offset) }
    }
}

/// Why a source cannot go on.
pub(super) fn refusal(source: &SourcePlan) -> Option<Error> {
    let table = &source.table;
    let place = source.stream.as_deref().unwrap_or(table);
    let of = |wanted: &dyn Fn(&SplitFate) -> bool| source.splits.iter().find(|split| wanted(&split.fate));
    if let Some(missing) = of(&|fate| *fate == SplitFate::Missing) {
        let message =
            format!("table {table} has no split {} any more, but the snapshot has read a part of it", missing.split);
        return Some(
            Error::new(Code::FailedPrecondition, message)
                .with_hint("Bring the file or stream back as it was, or restore another snapshot."),
        );
    }
    let truncated: Vec<(&SplitPlan, u64, u64)> = source
        .splits
        .iter()
        .filter_map(|split| match split.fate {
            SplitFate::Truncated { head, lost } => Some((split, head, lost)),
            _ => None,
        })
        .collect();
    if let Some((_, head, _)) = truncated.first() {
        let detail = truncated.iter().map(|(split, head, lost)| {
            let partition = partition(&split.split);
            format!(
                "partition {partition} begins at {head}, the snapshot is at {}: {lost} records are gone",
                split.offset
            )
        });
        return Some(
            Error::new(Code::OffsetTruncated, format!("stream {place} no longer holds what was not read yet"))
                .with_detail(detail.collect::<Vec<_>>().join("; "))
                .with_hint("Restore a newer snapshot, or start without one.")
                .with_facts(Facts::OffsetTruncated { head: Offset(*head) }),
        );
    }
    let short = of(&|fate| matches!(fate, SplitFate::TooShort { .. }))?;
    let SplitFate::TooShort { end } = short.fate else { return None };
    Some(
        Error::new(Code::FailedPrecondition, format!("stream {place} is shorter than what was read of it"))
            .with_detail(format!(
                "partition {} ends at {end}, the snapshot is at {}",
                partition(&short.split),
                short.offset
            ))
            .with_hint("It was probably deleted and created anew: the snapshot belongs to another stream."),
    )
}

fn partition(split: &str) -> &str {
    split.strip_prefix("p-").unwrap_or(split)
}
