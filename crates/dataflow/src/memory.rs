//! The memory budget of a TaskManager: what channels and state hold is counted here.
//!
//! Invariant: what an account holds is counted until it is changed or the account is dropped. Exceeding the budget is an
//! error that names the operator; the operating system's killer never has to tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_types::{Code, Error, Result};

/// A limit that all subtasks and channels of one TaskManager share.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
}

impl MemoryBudget {
    /// A budget of so many bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// A budget without a limit, which still counts.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that are bounded elsewhere, as those in channels are.
    pub(crate) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
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
        self.budget.add(bytes);
        self.budget.sub(self.held);
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

impl Drop for MemoryAccount {
    fn drop(&mut self) {
        self.budget.sub(self.held);
    }
}

#[cfg(test)]
mod tests {
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
}
