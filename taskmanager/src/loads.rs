//! How busy the subtasks of an attempt were while a snapshot was taken: what slow barriers are mostly explained by.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use weir_dataflow::metrics::SubtaskMetrics;
use weir_types::ids::{BarrierId, SubtaskId};

/// Since the barrier was triggered, the share of its time that a subtask spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// On processing, in percent.
    pub(crate) busy_percent: u64,
    /// On waiting for room downstream, in percent.
    pub(crate) backpressured_percent: u64,
}

/// The counters of an attempt's subtasks when the barrier of the snapshot in flight was triggered. Whoever has
/// acknowledged is left out.
pub(crate) struct Loads {
    pub(crate) barrier: BarrierId,
    since: Instant,
    begun: BTreeMap<SubtaskId, Begun>,
}

struct Begun {
    metrics: Arc<SubtaskMetrics>,
    busy_us: u64,
    backpressured_us: u64,
}

impl Loads {
    pub(crate) fn begin(barrier: BarrierId, subtasks: impl Iterator<Item = (SubtaskId, Arc<SubtaskMetrics>)>) -> Self {
        let begun = |(id, metrics): (SubtaskId, Arc<SubtaskMetrics>)| {
            let busy_us = metrics.busy_us.load(Ordering::Relaxed);
            let backpressured_us = metrics.backpressured_us.load(Ordering::Relaxed);
            (id, Begun { metrics, busy_us, backpressured_us })
        };
        Self { barrier, since: Instant::now(), begun: subtasks.map(begun).collect() }
    }

    /// The load of a subtask that has acknowledged or declined.
    pub(crate) fn take(&mut self, subtask: &SubtaskId) -> Option<Load> {
        let begun = self.begun.remove(subtask)?;
        Some(self.load(&begun))
    }

    /// Who has not, and how busy each is.
    pub(crate) fn rest(&self) -> impl Iterator<Item = (&SubtaskId, Load)> {
        self.begun.iter().map(|(id, begun)| (id, self.load(begun)))
    }

    fn load(&self, begun: &Begun) -> Load {
        let elapsed_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let percent = |now_us: u64, begun_us: u64| (now_us.saturating_sub(begun_us) * 100 / elapsed_us).min(100);
        Load {
            busy_percent: percent(begun.metrics.busy_us.load(Ordering::Relaxed), begun.busy_us),
            backpressured_percent: percent(
                begun.metrics.backpressured_us.load(Ordering::Relaxed),
                begun.backpressured_us,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_types::ids::{Attempt, ChainId, JobId, SubtaskIndex};

    use super::*;

    #[test]
    fn only_what_was_spent_since_the_barrier_counts_and_who_has_answered_is_left_out() {
        let id = |index| SubtaskId {
            job: JobId::new("job").unwrap(),
            chain: ChainId(0),
            index: SubtaskIndex(index),
            attempt: Attempt(1),
        };
        let metrics = [0, 1].map(|_| Arc::new(SubtaskMetrics::default()));
        metrics[0].busy_us.store(u64::MAX / 200, Ordering::Relaxed);
        let subtasks = metrics.iter().enumerate().map(|(index, metrics)| (id(index as u32), metrics.clone()));
        let mut loads = Loads::begin(BarrierId(3), subtasks);
        metrics[1].backpressured_us.store(u64::MAX / 200, Ordering::Relaxed);
        assert_eq!(loads.take(&id(0)), Some(Load { busy_percent: 0, backpressured_percent: 0 }));
        assert_eq!(loads.take(&id(0)), None);
        let rest: Vec<_> = loads.rest().collect();
        assert_eq!(rest, [(&id(1), Load { busy_percent: 0, backpressured_percent: 100 })]);
    }
}
