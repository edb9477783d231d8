//! Bytes that snapshots may write on this TaskManager: what the JobManager has granted of each, what of it was drawn, and
//! whether anybody still writes.
//!
//! Promises: nothing is drawn that was not granted; who has to wait is woken by the grant, by the end of the snapshot, or
//! when it is given up. Once a snapshot has ended here, no writer of it begins, and it is reported as stopped when the last
//! one has let go: from then on no file of it appears, and those that were not acknowledged are deleted.
//!
//! What is to be said to the JobManager is a state, not a queue: a new session is told all of it again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weir_state::WriteBudget;
use weir_types::control::{FromTaskManager, GrantRequest, WritersStopped};
use weir_types::ids::{Attempt, BarrierId, JobId, SnapshotId, SubtaskId};
use weir_types::snapshot::Barrier;
use weir_types::{Code, Error, Result};

/// The least that is asked for at once; beyond it, as much again as was granted: a snapshot of any size needs few requests.
const CHUNK_BYTES_MIN: u64 = 16 << 10;
/// The most that is asked for ahead of need.
const CHUNK_BYTES_MAX: u64 = 16 << 20;

/// The accounts of all snapshots that are written here.
#[derive(Debug)]
pub struct SnapshotGrants {
    limited: bool,
    accounts: Mutex<Accounts>,
    /// Waited for by writers.
    settled: Condvar,
    /// Something is to be said.
    to_say: Notify,
}

#[derive(Debug, Default)]
struct Accounts {
    open: BTreeMap<SnapshotId, Account>,
    /// The newest snapshot of each job that has ended: an older one cannot begin any more.
    ended: BTreeMap<JobId, BarrierId>,
}

/// One snapshot here.
#[derive(Debug)]
struct Account {
    job: JobId,
    attempt: Attempt,
    shares: BTreeMap<SubtaskId, Share>,
    /// Writers that have not let go, of whatever subtask.
    writers: usize,
    /// Why nothing more may be written.
    ended: Option<Error>,
}

/// One subtask's part of it; amounts are totals since its beginning.
#[derive(Debug, Default)]
struct Share {
    granted: u64,
    drawn: u64,
    /// What the writers who wait want to draw, together.
    waiting: u64,
    /// What was said to be needed and has not been answered.
    asked: Option<u64>,
}

impl SnapshotGrants {
    /// Nothing may be written that was not granted.
    pub fn new() -> Arc<Self> {
        Self::with(true)
    }

    /// Anything may be written.
    pub fn unlimited() -> Arc<Self> {
        Self::with(false)
    }

    fn with(limited: bool) -> Arc<Self> {
        Arc::new(Self { limited, accounts: Mutex::default(), settled: Condvar::new(), to_say: Notify::new() })
    }

    /// A writer of a subtask's part of a snapshot begins; it has ended when what is returned is dropped.
    ///
    /// # Errors
    /// If the snapshot has ended already.
    pub fn begin(self: &Arc<Self>, subtask: &SubtaskId, barrier: &Barrier) -> Result<Arc<Writer>> {
        let mut accounts = self.lock();
        let ended = accounts.ended.get(&subtask.job).is_some_and(|ended| barrier.id <= *ended);
        if ended && !accounts.open.contains_key(&barrier.snapshot) {
            return Err(Error::new(Code::Cancelled, format!("snapshot {} has ended", barrier.snapshot)));
        }
        let account = accounts.open.entry(barrier.snapshot.clone());
        let account = account.or_insert_with(|| Account::new(subtask.job.clone(), subtask.attempt));
        if let Some(error) = &account.ended {
            return Err(error.clone());
        }
        account.writers += 1;
        account.shares.entry(subtask.clone()).or_default();
        let (subtask, snapshot) = (subtask.clone(), barrier.snapshot.clone());
        Ok(Arc::new(Writer { grants: Arc::clone(self), subtask, snapshot, given_up: AtomicBool::new(false) }))
    }

    /// So much may a subtask write of a snapshot, in total.
    pub fn grant(&self, subtask: &SubtaskId, snapshot: &SnapshotId, total: u64) {
        let mut accounts = self.lock();
        let account = accounts.open.get_mut(snapshot);
        // Nobody but a writer asks; the one who asked may have let go meanwhile.
        let Some(share) = account.and_then(|account| account.shares.get_mut(subtask)) else { return };
        share.granted = share.granted.max(total);
        share.asked = None;
        if share.waiting > 0 {
            self.to_say.notify_one();
        }
        drop(accounts);
        self.settled.notify_all();
    }

    /// A snapshot has ended. One that failed is reported as soon as nobody writes any more.
    pub fn end(
        &self,
        job: &JobId,
        attempt: Attempt,
        barrier: BarrierId,
        snapshot: &SnapshotId,
        failure: Option<Error>,
    ) {
        let mut accounts = self.lock();
        match failure {
            None => {
                accounts.open.remove(snapshot);
            }
            Some(failure) => {
                let account = accounts.open.entry(snapshot.clone());
                let account = account.or_insert_with(|| Account::new(job.clone(), attempt));
                account.ended.get_or_insert(failure);
                self.to_say.notify_one();
            }
        }
        let newest = accounts.ended.entry(job.clone()).or_insert(barrier);
        *newest = barrier.max(*newest);
        drop(accounts);
        self.settled.notify_all();
    }

    /// Forgets the jobs that nothing runs of any more, unless something of them is still written.
    pub fn retain_jobs(&self, runs: impl Fn(&JobId) -> bool) {
        let mut accounts = self.lock();
        accounts.open.retain(|_, account| account.writers > 0 || account.ended.is_some() || runs(&account.job));
        let Accounts { open, ended } = &mut *accounts;
        ended.retain(|job, _| runs(job) || open.values().any(|account| account.job == *job));
    }

    /// Returns when there may be something to say. Cancel safe.
    pub async fn changed(&self) {
        self.to_say.notified().await;
    }

    /// What has to be said to the JobManager and was not yet; in a new session (`anew`) all that still counts.
    pub fn messages(&self, anew: bool) -> Vec<FromTaskManager> {
        let mut messages = Vec::new();
        let mut accounts = self.lock();
        accounts.open.retain(|snapshot, account| {
            if account.ended.is_none() {
                for (subtask, share) in &mut account.shares {
                    if let Some((needed, bytes)) = share.ask(anew) {
                        let (subtask, snapshot) = (subtask.clone(), snapshot.clone());
                        messages.push(FromTaskManager::GrantWanted(GrantRequest { subtask, snapshot, bytes, needed }));
                    }
                }
                return true;
            }
            if account.writers == 0 {
                let (job, attempt, snapshot) = (account.job.clone(), account.attempt, snapshot.clone());
                messages.push(FromTaskManager::WritersStopped(WritersStopped { job, attempt, snapshot }));
            }
            account.writers > 0
        });
        messages
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn new(job: JobId, attempt: Attempt) -> Self {
        Self { job, attempt, shares: BTreeMap::new(), writers: 0, ended: None }
    }
}

impl Share {
    /// What is needed, if somebody waits and that has not been said, and what to ask for: a chunk ahead of it.
    fn ask(&mut self, anew: bool) -> Option<(u64, u64)> {
        let needed = self.drawn + self.waiting;
        if needed <= self.granted || !(anew || self.asked.is_none_or(|asked| needed > asked)) {
            return None;
        }
        self.asked = Some(needed);
        Some((needed, needed.max(self.granted + self.granted.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX))))
    }
}

/// One writer of a snapshot: as long as it is held, files of the snapshot may still be written, or deleted again.
#[derive(Debug)]
pub struct Writer {
    grants: Arc<SnapshotGrants>,
    subtask: SubtaskId,
    snapshot: SnapshotId,
    given_up: AtomicBool,
}

impl Writer {
    /// Lets it wait for nothing more.
    pub fn give_up(&self) {
        // Under the lock, so that nobody begins to wait between looking at the flag and being woken.
        let accounts = self.grants.lock();
        self.given_up.store(true, Ordering::Relaxed);
        drop(accounts);
        self.grants.settled.notify_all();
    }
}

impl WriteBudget for Writer {
    fn draw(&self, bytes: u64) -> Result<()> {
        if !self.grants.limited {
            return Ok(());
        }
        let mut accounts = self.grants.lock();
        let given_up = || Error::new(Code::Cancelled, format!("snapshot {} was given up", self.snapshot));
        let mut waiting = false;
        loop {
            let account = accounts.open.get_mut(&self.snapshot).ok_or_else(given_up)?;
            let share = account.shares.entry(self.subtask.clone()).or_default();
            if std::mem::take(&mut waiting) {
                share.waiting -= bytes;
            }
            if let Some(error) = &account.ended {
                return Err(error.clone());
            }
            if self.given_up.load(Ordering::Relaxed) {
                return Err(given_up());
            }
            if bytes <= share.granted.saturating_sub(share.drawn) {
                share.drawn += bytes;
                return Ok(());
            }
            waiting = true;
            share.waiting += bytes;
            self.grants.to_say.notify_one();
            accounts = self.grants.settled.wait(accounts).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut accounts = self.grants.lock();
        if let Some(account) = accounts.open.get_mut(&self.snapshot) {
            account.writers = account.writers.saturating_sub(1);
            if account.writers == 0 && account.ended.is_some() {
                self.grants.to_say.notify_one();
            }
        }
    }
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
