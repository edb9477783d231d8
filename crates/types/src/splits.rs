//! Splits of sources: how they are named and where bounded ones end. Fixed when a job is created and kept in its
//! snapshots, so that a rescaled job hands the same splits to other subtasks. Listing a directory and asking a stream for
//! its partitions is the caller's work; everything else about splits is here, and pure.

use crate::error::{Error, Result};
use crate::graph::ConnectorSpec;
use crate::ids::{Parallelism, PartitionId};
use crate::snapshot::SplitPosition;
use crate::stream::Offset;

/// More splits than anybody needs: every snapshot holds a position for each.
pub const SPLITS_MAX: u64 = 4096;

/// Nexmark events are dealt out to splits in blocks of this many, round robin.
pub const NEXMARK_BLOCK_EVENTS: u64 = 1000;

/// One nexmark generator share: split `index` of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NexmarkSplit {
    /// Which share, from 0.
    pub index: u64,
    /// Of how many.
    pub count: u64,
}

impl NexmarkSplit {
    /// The split's name, `split-<index>-of-<count>`.
    pub fn name(self) -> String {
        format!("split-{}-of-{}", self.index, self.count)
    }

    /// The split of this name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is not a name that [`NexmarkSplit::name`] gives.
    pub fn parse(name: &str) -> Result<Self> {
        name.strip_prefix("split-")
            .and_then(|rest| rest.split_once("-of-"))
            .and_then(|(index, count)| Some(Self { index: index.parse().ok()?, count: count.parse().ok()? }))
            .filter(|split| split.index < split.count && split.count <= SPLITS_MAX)
            .ok_or_else(|| Error::invalid(format!("{name:?} is not a nexmark split")))
    }

    /// The number, among all events, of the split's event `position`.
    pub fn event_number(self, position: u64) -> u64 {
        let (block, within) = (position / NEXMARK_BLOCK_EVENTS, position % NEXMARK_BLOCK_EVENTS);
        (block * self.count + self.index) * NEXMARK_BLOCK_EVENTS + within
    }

    /// How many of the first `events` events of the whole sequence belong to the split.
    pub fn events_before(self, events: u64) -> u64 {
        let round = NEXMARK_BLOCK_EVENTS * self.count;
        let rest = (events % round).saturating_sub(self.index * NEXMARK_BLOCK_EVENTS).min(NEXMARK_BLOCK_EVENTS);
        events / round * NEXMARK_BLOCK_EVENTS + rest
    }
}

/// All splits of a nexmark table at their beginnings: `splits` of them, or one per subtask.
///
/// # Errors
/// `INVALID_ARGUMENT` for options out of range.
pub fn nexmark(spec: &ConnectorSpec, parallelism: Parallelism) -> Result<Vec<SplitPosition>> {
    let count = spec.integer("splits", u64::from(parallelism.get()))?;
    if count == 0 || count > SPLITS_MAX {
        return Err(Error::invalid(format!("option 'splits' must lie between 1 and {SPLITS_MAX}, not {count}")));
    }
    let events = spec.integer("events.num", 0)?;
    let split = |index| {
        let split = NexmarkSplit { index, count };
        SplitPosition {
            split: split.name(),
            offset: 0,
            end: (events > 0).then(|| split.events_before(events)),
            watermark_ms: i64::MIN,
            finished: false,
        }
    };
    Ok((0..count).map(split).collect())
}

/// The name of the split that reads one partition of a stream.
pub fn partition_split(partition: PartitionId) -> String {
    format!("p-{partition}")
}

/// The partition that a split of this name reads.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is not a name that [`partition_split`] gives.
pub fn parse_partition(split: &str) -> Result<PartitionId> {
    split
        .strip_prefix("p-")
        .and_then(|number| number.parse().ok())
        .map(PartitionId)
        .ok_or_else(|| Error::invalid(format!("{split:?} is not a split of a stream")))
}

/// One partition as a split: where to start, and with `scan.bounded.mode` = `latest` where the partition ended when the
/// job was created.
pub fn stream_partition(partition: PartitionId, start: Offset, end: Option<Offset>) -> SplitPosition {
    SplitPosition {
        split: partition_split(partition),
        offset: start.0,
        end: end.map(|offset| offset.0),
        watermark_ms: i64::MIN,
        finished: false,
    }
}

/// Whether the filesystem source reads a file of this path, relative to the table's directory: as in Flink, names
/// that start with `.` or `_` are hidden, and so is everything below a directory of such a name.
pub fn is_visible_file(relative: &str) -> bool {
    relative.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '_']))
}

/// The name of the split that reads one file: `file-` and the path relative to the table's `path` (just the file's name
/// if `path` is a file), with what is unsafe in names percent-encoded.
pub fn file_split(relative: &str) -> String {
    let mut name = String::from("file-");
    for byte in relative.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

/// The relative path that a split of this name reads.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is not a name that [`file_split`] gives.
pub fn parse_file(split: &str) -> Result<String> {
    let decode = |encoded: &str| {
        let mut bytes = Vec::with_capacity(encoded.len());
        let mut rest = encoded.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            if first != b'%' {
                bytes.push(first);
                continue;
            }
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        }
        String::from_utf8(bytes).ok()
    };
    split
        .strip_prefix("file-")
        .and_then(decode)
        .filter(|path| !path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && part != ".."))
        .ok_or_else(|| Error::invalid(format!("{split:?} is not a split of a directory")))
}

/// Files as splits, in order of their paths. `relative` paths are those found below the table's `path`.
pub fn files(relative: impl IntoIterator<Item = String>) -> Vec<SplitPosition> {
    let mut paths: Vec<String> = relative.into_iter().collect();
    paths.sort_unstable();
    paths
        .iter()
        .map(|path| SplitPosition {
            split: file_split(path),
            offset: 0,
            end: None,
            watermark_ms: i64::MIN,
            finished: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::connector::ConnectorKind;

    fn nexmark_spec(options: &[(&str, &str)]) -> ConnectorSpec {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ConnectorSpec { kind: ConnectorKind::Nexmark, options: options.collect::<BTreeMap<_, _>>() }
    }

    #[test]
    fn nexmark_splits_own_every_event_once() {
        for (count, events) in [(1, 10_500), (3, 10_500), (4, 999), (7, 21_000), (5, 0)] {
            let mut owned = Vec::new();
            for index in 0..count {
                let split = NexmarkSplit { index, count };
                owned.extend((0..split.events_before(events)).map(|position| split.event_number(position)));
                assert!(split.event_number(split.events_before(events)) >= events, "{split:?} misses one of {events}");
            }
            owned.sort_unstable();
            assert_eq!(owned, (0..events).collect::<Vec<_>>(), "{count} splits of {events}");
        }
    }

    #[test]
    fn nexmark_splits_default_to_the_parallelism_and_end_with_their_share() {
        let two = Parallelism::new(2).unwrap();
        let splits = nexmark(&nexmark_spec(&[("events.num", "2500")]), two).unwrap();
        let shown: Vec<_> = splits.iter().map(|split| (split.split.as_str(), split.end)).collect();
        assert_eq!(shown, [("split-0-of-2", Some(1500)), ("split-1-of-2", Some(1000))]);
        assert_eq!(nexmark(&nexmark_spec(&[("splits", "5")]), two).unwrap().len(), 5);
        assert_eq!(nexmark(&nexmark_spec(&[]), two).unwrap()[0].end, None);
        assert!(nexmark(&nexmark_spec(&[("splits", "0")]), two).is_err());
    }

    #[test]
    fn names_parse_to_what_they_name() {
        for path in ["a.jsonl", "day=1/part 0 ä%.csv.gz", "x_y-z"] {
            assert_eq!(parse_file(&file_split(path)).unwrap(), path);
        }
        assert_eq!(file_split("a/b c"), "file-a%2Fb%20c");
        for hostile in ["file-", "file-..%2Fx", "file-%2Fetc", "file-%zz", "file-%2", "p-1", "file-a%2F%2Fb"] {
            assert!(parse_file(hostile).is_err(), "{hostile}");
        }
        assert_eq!(parse_partition(&partition_split(PartitionId(7))).unwrap(), PartitionId(7));
        assert!(parse_partition("p-x").is_err());
        let split = NexmarkSplit { index: 2, count: 3 };
        assert_eq!(NexmarkSplit::parse(&split.name()).unwrap(), split);
        assert!(NexmarkSplit::parse("split-3-of-3").is_err());
    }

    #[test]
    fn hidden_files_are_not_read() {
        assert!(is_visible_file("a/b.csv"));
        assert!(!is_visible_file("a/.part-0.inprogress") && !is_visible_file("_tmp/b.csv"));
    }
}
