//! The memory budget of a TaskManager: what channels, state and snapshots hold is counted here.
//!
//! Invariant: what an account holds is counted until it is changed or the account is dropped. Exceeding the budget is an
//! error that names the operator; the operating system's killer never has to tell.
//!
//! Snapshots give way: what they hold beside the state is counted apart. Where all of it together does not fit, the snapshots
//! under way are declined, and state and channels may have the whole budget; a snapshot never breaks the job.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use weir_state::memory::SnapshotMemory;
use weir_types::{Code, Error, Result};

/// A limit that all subtasks and channels of one TaskManager share.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    /// What snapshots hold beside that.
    snapshots: AtomicU64,
    /// Told when not all of it fits.
    crowded: Notify,
}

impl MemoryBudget {
    /// A budget of so many bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), snapshots: AtomicU64::new(0), crowded: Notify::new() })
    }

    /// A budget without a limit, which still counts.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use by channels and state.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that snapshots hold beside that.
    pub fn used_by_snapshots(&self) -> u64 {
        self.snapshots.load(Ordering::Relaxed)
    }

    fn is_crowded(&self) -> bool {
        self.used().saturating_add(self.used_by_snapshots()) > self.limit
    }

    /// Has snapshots give way if not all fits.
    fn make_room(&self) {
        if self.used_by_snapshots() > 0 && self.is_crowded() {
            self.crowded.notify_waiters();
        }
    }

    /// Counts bytes that are bounded elsewhere, as those in channels are.
    pub(crate) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.make_room();
    }

    /// Gives back what [`MemoryBudget::add`] counted.
    pub(crate) fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One operator's share of a budget.
#[derive(Debug)]
pub struct MemoryAccount {
    budget: Arc<MemoryBudget>,
    operator: String,
    held: u64,
}

impl MemoryAccount {
    /// An account that holds nothing yet.
    pub fn new(budget: Arc<MemoryBudget>, operator: impl Into<String>) -> Self {
        Self { budget, operator: operator.into(), held: 0 }
    }

    /// Sets what the operator holds.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if more is held than before and the budget is exceeded by it.
    pub fn set(&mut self, bytes: u64) -> Result<()> {
        let grown = bytes > self.held;
        if bytes == self.held {
            return Ok(());
        }
        // In one step: what is held already is not counted twice meanwhile.
        if grown {
            self.budget.add(bytes - self.held)
        } else {
            self.budget.sub(self.held - bytes)
        }
        self.held = bytes;
        let (used, limit) = (self.budget.used(), self.budget.limit);
        if grown && used > limit {
            return Err(Error::new(
                Code::ResourceExhausted,
                format!("operator {} exceeds the TaskManager's memory budget", self.operator),
            )
            .with_detail(format!("it holds {bytes} bytes; {used} of {limit} bytes are in use"))
            .with_hint("Raise the TaskManager's memory budget, or the job's parallelism over more TaskManagers."));
        }
        Ok(())
    }
}

/// What the snapshots of one operator hold beside its state.
#[derive(Debug)]
pub struct SnapshotAccount {
    budget: Arc<MemoryBudget>,
    operator: String,
    held: AtomicU64,
}

impl SnapshotAccount {
    /// An account that holds nothing yet.
    pub fn new(budget: Arc<MemoryBudget>, operator: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { budget, operator: operator.into(), held: AtomicU64::new(0) })
    }

    /// Returns when not everything fits into the budget, and this account has a part in it. Cancel safe.
    pub async fn crowded(&self) -> Error {
        loop {
            let mut told = std::pin::pin!(self.budget.crowded.notified());
            // From here on nothing that is told is missed.
            told.as_mut().enable();
            if self.held.load(Ordering::Relaxed) > 0
                && let Err(error) = self.check()
            {
                return error;
            }
            told.await;
        }
    }
}

impl SnapshotMemory for SnapshotAccount {
    fn add(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.budget.snapshots.fetch_add(bytes, Ordering::Relaxed);
        self.budget.make_room();
    }

    fn sub(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.snapshots.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        if !self.budget.is_crowded() {
            return Ok(());
        }
        let held = self.held.load(Ordering::Relaxed);
        let MemoryBudget { limit, .. } = *self.budget;
        let (used, snapshots) = (self.budget.used(), self.budget.used_by_snapshots());
        let message =
            format!("a snapshot of operator {} does not fit into the TaskManager's memory budget", self.operator);
        Err(Error::new(Code::ResourceExhausted, message)
            .with_detail(format!(
                "it holds {held} bytes beside the state; state and channels use {used}, snapshots {snapshots} of {limit} bytes"
            ))
            .with_hint("The job goes on. Raise the TaskManager's memory budget, or the job's parallelism over more of them."))
    }
}

impl Drop for MemoryAccount {
    fn drop(&mut self) {
        self.budget.sub(self.held);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn growth_beyond_the_budget_names_the_operator() {
        let budget = MemoryBudget::new(100);
        let mut first = MemoryAccount::new(Arc::clone(&budget), "first");
        let mut second = MemoryAccount::new(Arc::clone(&budget), "TumbleWindow(ts)");
        first.set(60).unwrap();
        second.set(40).unwrap();
        let error = second.set(41).unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
        assert!(error.message.contains("TumbleWindow(ts)"), "{error}");
        second.set(10).unwrap();
        drop(first);
        assert_eq!(budget.used(), 10);
    }

    #[tokio::test]
    async fn snapshots_give_way_to_state_and_are_told_by_name() {
        let budget = MemoryBudget::new(100);
        let mut state = MemoryAccount::new(Arc::clone(&budget), "TumbleWindow(ts)");
        let snapshots = SnapshotAccount::new(Arc::clone(&budget), "TumbleWindow(ts)");
        let others = SnapshotAccount::new(Arc::clone(&budget), "TopN");
        state.set(60).unwrap();
        snapshots.add(40);
        snapshots.check().unwrap();
        let mut crowded = std::pin::pin!(snapshots.crowded());
        let mut other = std::pin::pin!(others.crowded());
        assert!(crowded.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        // State may take the whole budget: it is the snapshot that has to go.
        state.set(90).unwrap();
        let error = crowded.await;
        assert_eq!(error.code, Code::ResourceExhausted);
        assert!(error.message.contains("TumbleWindow(ts)"), "{error}");
        assert!(other.as_mut().now_or_never().is_none(), "it holds nothing");
        snapshots.sub(30);
        snapshots.check().unwrap();
        assert_eq!(state.set(101).unwrap_err().code, Code::ResourceExhausted);
        snapshots.sub(10);
        drop(state);
        assert_eq!((budget.used(), budget.used_by_snapshots()), (0, 0));
    }
}
