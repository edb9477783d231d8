//! Which checkpoint a subtask's next one builds on, and what that consists of.
//!
//! Invariant: what has changed is told since a checkpoint that has completed, and that is the very one whose runs the next
//! checkpoint adds to. A barrier names it; if it is not known here, everything is written anew. So a new attempt, which
//! knows none, never builds on files of another.

use std::sync::Arc;

use weir_state::{Runs, Since};
use weir_types::ids::SnapshotId;
use weir_types::snapshot::Barrier;

/// What the operators of a chain consist of, in their order.
pub(super) type ChainRuns = Arc<Vec<Runs>>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    /// What changes are told since.
    base: Option<(SnapshotId, ChainRuns)>,
    /// The last snapshot that was frozen, with its runs as soon as they are written; savepoints have none.
    last: Option<(SnapshotId, Option<ChainRuns>)>,
}

impl Lineage {
    /// What the snapshot of this barrier is compared with. It is frozen next, or else all is [forgotten](Self::forget).
    pub(super) fn follow(&mut self, barrier: &Barrier) -> Since {
        let last = self.last.replace((barrier.snapshot.clone(), None));
        let completed = last.and_then(|(snapshot, runs)| Some((snapshot, runs?)));
        match (&barrier.base, completed) {
            (Some(base), Some(last)) if *base == last.0 => {
                self.base = Some(last);
                Since::LastFreeze
            }
            (Some(base), _) if self.base.as_ref().is_some_and(|(known, _)| known == base) => Since::SameAsLast,
            _ => {
                self.base = None;
                Since::Start
            }
        }
    }

    /// What the snapshot that was frozen last builds on; nothing, if it is compared with nothing.
    pub(super) fn base(&self) -> ChainRuns {
        self.base.as_ref().map(|(_, runs)| Arc::clone(runs)).unwrap_or_default()
    }

    /// A checkpoint is written: others may build on it, if it completes.
    pub(super) fn written(&mut self, snapshot: &SnapshotId, runs: ChainRuns) {
        if let Some((last, written)) = &mut self.last
            && last == snapshot
        {
            *written = Some(runs);
        }
    }

    /// A freeze has failed half way: operators no longer agree on what changes are told since.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::barrier;

    fn chk(number: u64) -> SnapshotId {
        SnapshotId::new(format!("chk-{number}")).unwrap()
    }

    fn follow(lineage: &mut Lineage, number: u64, base: Option<u64>) -> Since {
        lineage.follow(&Barrier { snapshot: chk(number), base: base.map(chk), ..barrier(number) })
    }

    #[test]
    fn changes_are_told_since_the_checkpoint_that_the_barrier_names() {
        let mut lineage = Lineage::default();
        assert_eq!(follow(&mut lineage, 1, Some(7)), Since::Start, "another attempt's");
        lineage.written(&chk(1), Arc::new(vec![Runs::default()]));
        assert_eq!(follow(&mut lineage, 2, Some(1)), Since::LastFreeze);
        assert_eq!(lineage.base().len(), 1);
        // It was aborted, or is a savepoint.
        assert_eq!(follow(&mut lineage, 3, Some(1)), Since::SameAsLast);
        lineage.written(&chk(2), Arc::default());
        lineage.written(&chk(3), Arc::new(vec![Runs::default(); 2]));
        // The barrier of 4 did not come here.
        assert_eq!(follow(&mut lineage, 5, Some(3)), Since::LastFreeze);
        assert_eq!(lineage.base().len(), 2);
        assert_eq!(follow(&mut lineage, 6, None), Since::Start);
        assert_eq!(lineage.base().len(), 0);
        assert_eq!(follow(&mut lineage, 7, Some(3)), Since::Start, "it was forgotten");
    }

    #[test]
    fn after_a_freeze_that_failed_everything_is_written() {
        let mut lineage = Lineage::default();
        follow(&mut lineage, 1, None);
        lineage.written(&chk(1), Arc::new(vec![Runs::default()]));
        follow(&mut lineage, 2, Some(1));
        lineage.forget();
        assert_eq!(follow(&mut lineage, 3, Some(1)), Since::Start);
        assert_eq!(lineage.base().len(), 0);
    }
}
