//! Bytes that the snapshots in flight may write: reserved and granted through the log, given to subtasks as they ask.
//!
//! Invariant: what the subtasks of a snapshot have been given, together with its manifest, never exceeds what the log charges
//! to it. A snapshot that a limit leaves no room for is aborted, and its job goes on.

use std::collections::BTreeMap;

use weir_coordination::checkpoint::Event as Step;
use weir_coordination::metadata::{Command, Reply, SnapshotEntry};
use weir_types::control::{Grant, GrantRequest, ToTaskManager};
use weir_types::ids::{JobId, Nonce, SnapshotId, SubtaskId, TaskManagerId};
use weir_types::snapshot::SnapshotKind;

use super::{Leader, Then};

/// The least that is reserved: a manifest, or the marker that keeps one from appearing.
const RESERVATION_BYTES_MIN: u64 = 4 << 10;
/// What is charged ahead of need when a reservation is used up: a quarter of what is charged already, within these bounds.
const AHEAD_BYTES_MIN: u64 = 64 << 10;
const AHEAD_BYTES_MAX: u64 = 64 << 20;

/// The bytes of one snapshot in flight.
#[derive(Debug)]
pub(super) struct Account {
    job: JobId,
    nonce: Nonce,
    /// What the log charges.
    charged: u64,
    /// Part of it that the manifest takes.
    manifest: u64,
    /// What each subtask may write in total.
    given: BTreeMap<SubtaskId, u64>,
    /// What they asked for and have not been given.
    asked: BTreeMap<SubtaskId, Ask>,
    /// A grant is being committed.
    committing: bool,
}

/// A subtask's request; amounts are totals.
#[derive(Clone, Debug)]
struct Ask {
    from: TaskManagerId,
    needed: u64,
    wanted: u64,
}

/// How much a commit tries to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// What is wanted, and some ahead.
    Ahead,
    /// What cannot be done without.
    Needed,
}

impl Account {
    fn new(entry: &SnapshotEntry) -> Self {
        Self {
            job: entry.job.clone(),
            nonce: entry.nonce.clone(),
            charged: entry.charged_bytes,
            manifest: 0,
            given: BTreeMap::new(),
            asked: BTreeMap::new(),
            committing: false,
        }
    }

    fn given(&self) -> u64 {
        self.given.values().fold(self.manifest, |sum, given| sum.saturating_add(*given))
    }

    fn free(&self) -> u64 {
        self.charged.saturating_sub(self.given())
    }

    /// What has to be charged to give everybody so much.
    fn total(&self, amount: Amount) -> u64 {
        let ahead = match amount {
            Amount::Ahead => (self.charged / 4).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX),
            Amount::Needed => 0,
        };
        self.asked.iter().fold(self.given().saturating_add(ahead), |sum, (subtask, ask)| {
            let total = if amount == Amount::Ahead { ask.wanted } else { ask.needed };
            let given = self.given.get(subtask).copied().unwrap_or_default();
            sum.saturating_add(total.saturating_sub(given))
        })
    }

    /// Gives whoever asked what is wanted as far as it goes, but not less than is needed. What was given, to whom.
    fn give(&mut self) -> Vec<(TaskManagerId, SubtaskId, u64)> {
        let mut given = Vec::new();
        for (subtask, ask) in std::mem::take(&mut self.asked) {
            let before = self.given.get(&subtask).copied().unwrap_or_default();
            let total = ask.wanted.min(before.saturating_add(self.free())).max(before);
            if total < ask.needed {
                self.asked.insert(subtask, ask);
                continue;
            }
            self.given.insert(subtask.clone(), total);
            given.push((ask.from, subtask, total));
        }
        given
    }
}

impl Leader {
    /// What to reserve for a snapshot.
    pub(super) fn reservation_bytes(&self, job: &JobId, kind: SnapshotKind) -> u64 {
        self.state(|state| state.estimate(job, kind)).max(RESERVATION_BYTES_MIN)
    }

    /// Barriers are sent: whoever has to write may ask now.
    pub(super) fn open_account(&mut self, entry: &SnapshotEntry) {
        self.accounts.insert(entry.id.clone(), Account::new(entry));
    }

    pub(super) fn close_account(&mut self, snapshot: &SnapshotId) {
        self.accounts.remove(snapshot);
    }

    /// What the snapshot's manifest takes, which was granted before it was written; none, if it was not written here.
    pub(super) fn manifest_bytes(&self, snapshot: &SnapshotId) -> Option<u64> {
        self.accounts.get(snapshot).map(|account| account.manifest)
    }

    pub(super) fn on_grant_wanted(&mut self, from: &TaskManagerId, request: GrantRequest) {
        let GrantRequest { subtask, snapshot, bytes: wanted, needed } = request;
        tracing::debug!(%subtask, %snapshot, needed, wanted, "asks for bytes");
        let of_attempt = self.entry(&snapshot).is_some_and(|e| e.attempt == subtask.attempt && e.job == subtask.job);
        let Some(account) = self.accounts.get_mut(&snapshot).filter(|_| of_attempt) else {
            // It has ended: its writers are told so, perhaps again.
            return self.remind_writer(from);
        };
        account.asked.insert(subtask, Ask { from: from.clone(), needed, wanted });
        self.serve_account(&snapshot, Amount::Ahead);
    }

    /// Gives what there is, and has more charged where that does not suffice.
    fn serve_account(&mut self, snapshot: &SnapshotId, amount: Amount) {
        let term = self.term;
        let Some(account) = self.accounts.get_mut(snapshot) else { return };
        let given = account.give();
        if !account.asked.is_empty() && !account.committing {
            account.committing = true;
            let (bytes, nonce) = (account.total(amount), account.nonce.clone());
            let command = Command::Grant { snapshot: snapshot.clone(), nonce, bytes };
            self.commit(command, Then::Granted(snapshot.clone(), bytes, amount));
        }
        for (task_manager, subtask, bytes) in given {
            let grant = Grant { term, subtask, snapshot: snapshot.clone(), bytes };
            self.send(&task_manager, ToTaskManager::Grant(grant));
        }
    }

    pub(super) fn on_granted(&mut self, snapshot: &SnapshotId, bytes: u64, amount: Amount, reply: Reply) {
        let Some(account) = self.accounts.get_mut(snapshot) else { return };
        account.committing = false;
        match reply {
            Ok(_) => {
                tracing::debug!(%snapshot, bytes, "granted");
                account.charged = account.charged.max(bytes);
                self.serve_account(snapshot, Amount::Ahead);
            }
            // What is wanted does not fit: perhaps what is needed does.
            Err(_) if amount == Amount::Ahead => self.serve_account(snapshot, Amount::Needed),
            Err(error) => {
                let job = account.job.clone();
                tracing::warn!(%job, %snapshot, code = %error.code, %error, "grant refused");
                self.coordinate(&job, Step::OutOfRoom(snapshot.clone(), error));
            }
        }
    }

    /// Everybody has written, `written` bytes together: of what is charged, the manifest takes `manifest`. Says what has to be
    /// charged first, if that is more.
    pub(super) fn settle_manifest(
        &mut self,
        snapshot: &SnapshotId,
        written: u64,
        manifest: u64,
    ) -> Option<(Nonce, u64)> {
        let account = self.accounts.get_mut(snapshot)?;
        // What was given and not written is free again.
        account.given.clear();
        account.asked.clear();
        account.manifest = manifest;
        let total = written.saturating_add(manifest);
        (total > account.charged).then(|| (account.nonce.clone(), total))
    }
}

#[cfg(test)]
mod tests {
    use weir_types::ids::{Attempt, ChainId, SubtaskIndex};

    use super::*;

    fn account(charged: u64) -> Account {
        Account {
            job: JobId::new("job").unwrap(),
            nonce: Nonce("n".to_owned()),
            charged,
            manifest: 0,
            given: BTreeMap::new(),
            asked: BTreeMap::new(),
            committing: false,
        }
    }

    fn subtask(index: u32) -> SubtaskId {
        let job = JobId::new("job").unwrap();
        SubtaskId { job, chain: ChainId(0), index: SubtaskIndex(index), attempt: Attempt(1) }
    }

    fn ask(account: &mut Account, index: u32, needed: u64, wanted: u64) {
        let from = TaskManagerId::new("tm").unwrap();
        account.asked.insert(subtask(index), Ask { from, needed, wanted });
    }

    fn give(account: &mut Account) -> Vec<(u32, u64)> {
        account.give().into_iter().map(|(_, subtask, total)| (subtask.index.0, total)).collect()
    }

    #[test]
    fn what_is_reserved_is_given_first_and_only_the_rest_is_charged() {
        let mut account = account(100);
        ask(&mut account, 0, 10, 60);
        ask(&mut account, 1, 10, 60);
        assert_eq!(give(&mut account), [(0, 60), (1, 40)]);
        ask(&mut account, 0, 61, 120);
        assert_eq!(give(&mut account), []);
        assert_eq!((account.total(Amount::Needed), account.total(Amount::Ahead)), (101, 160 + AHEAD_BYTES_MIN));
        account.charged = 101;
        assert_eq!(give(&mut account), [(0, 61)]);
        assert_eq!((account.given(), account.free()), (101, 0));
    }

    #[test]
    fn a_repeated_request_takes_nothing_more() {
        let mut account = account(100);
        ask(&mut account, 0, 10, 60);
        give(&mut account);
        ask(&mut account, 0, 10, 60);
        assert_eq!(give(&mut account), [(0, 60)]);
        assert_eq!(account.given(), 60);
    }
}
