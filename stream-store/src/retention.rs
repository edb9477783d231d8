//! What retention would delete: whole closed segments, oldest first, by size and by age. Pins are the caller's business.

use weir_types::Result;
use weir_types::store::Retention;
use weir_types::stream::Offset;
use weir_types::time::Millis;

use crate::partition::Partition;
use crate::sidecar::Summary;

/// The head that `retention` asks for. A quiet active segment that is too old is closed first, so that it can go too.
pub(crate) fn target(partition: &Partition, retention: Retention, now: Millis) -> Result<Offset> {
    let oldest_kept = retention.max_age_ms.map(|age| Millis(now.0.saturating_sub(age)));
    if let Some(before) = oldest_kept {
        partition.roll_if_older(before)?;
    }
    let sealed = partition.sealed();
    Ok(cut(&sealed, partition.active().len, retention.max_bytes, oldest_kept).max(partition.head()))
}

/// The first offset of the segment that holds `offset`: as far as whole segments can go before it.
pub(crate) fn segment_floor(partition: &Partition, offset: Offset) -> Offset {
    let sealed = partition.sealed();
    let bases = sealed.iter().map(|segment| segment.base).chain([partition.active().base]);
    bases.filter(|base| *base <= offset).max().unwrap_or(Offset(0))
}

fn cut(sealed: &[Summary], active_len: u64, max_bytes: Option<u64>, oldest_kept: Option<Millis>) -> Offset {
    let mut bytes = active_len + sealed.iter().map(|segment| segment.len).sum::<u64>();
    let mut head = Offset(0);
    for segment in sealed {
        let too_much = max_bytes.is_some_and(|max| bytes > max);
        let too_old = oldest_kept.is_some_and(|oldest| segment.last_append < oldest);
        if !too_much && !too_old {
            break;
        }
        bytes -= segment.len;
        head = segment.end;
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(base: u64, end: u64, len: u64, last_append: u64) -> Summary {
        Summary { base: Offset(base), end: Offset(end), len, max_event_time_ms: None, last_append: Millis(last_append) }
    }

    #[test]
    fn the_oldest_segments_go_until_size_and_age_fit() {
        let sealed = [segment(0, 10, 100, 1), segment(10, 20, 100, 5), segment(20, 30, 100, 9)];
        assert_eq!(cut(&sealed, 50, None, None), Offset(0));
        assert_eq!(cut(&sealed, 50, Some(350), None), Offset(0));
        assert_eq!(cut(&sealed, 50, Some(349), None), Offset(10));
        assert_eq!(cut(&sealed, 50, Some(0), None), Offset(30));
        assert_eq!(cut(&sealed, 50, None, Some(Millis(5))), Offset(10));
        assert_eq!(cut(&sealed, 50, Some(150), Some(Millis(2))), Offset(20));
    }
}
