//! The log as raft-rs reads it, kept in memory as well as on disk. Memory changes only after the disk has.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use weir_types::{Code, Error, Result};

use crate::disk::Disk;
use crate::files::Files;
use crate::wal::{Base, Members, Position, Record};

/// Where a group's log begins.
const FOUNDED_AT: Position = Position { index: 1, term: 1 };

/// When to replace the log by a snapshot, and how much of it to keep for members that lag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compaction {
    pub(crate) entries_max: u64,
    pub(crate) bytes_max: u64,
    pub(crate) entries_kept: u64,
}

/// The durable log, hard state, membership and snapshot of one member.
pub(crate) struct Store {
    disk: Disk,
    base: Base,
    /// The entries after `base.before`, without gaps.
    entries: Vec<Entry>,
    hard_state: HardState,
    /// As last changed.
    members: Members,
    /// As of the snapshot.
    snapshot: Position,
    /// Length of the log file right after it was last rewritten: what compaction could not save.
    bytes_at_rewrite: u64,
}

impl Store {
    /// Opens a directory. If it is new, `voters` found the group with `state`; a member that is to join an existing
    /// group has none, and waits for the leader's snapshot.
    ///
    /// # Errors
    /// As [`Disk::open`]; `CORRUPT` if the log contradicts itself.
    pub(crate) fn open(
        files: Box<dyn Files>,
        voters: Vec<u64>,
        state: impl FnOnce() -> Bytes,
    ) -> Result<(Self, Option<Snapshot>)> {
        let (disk, records) = Disk::open(files, || found(voters, state))?;
        let mut store = Self {
            disk,
            base: Base::default(),
            entries: Vec::new(),
            hard_state: HardState::default(),
            members: Members::default(),
            snapshot: Position::default(),
            bytes_at_rewrite: 0,
        };
        for record in records {
            let fits = record.base.is_some() || record.entries.first().is_none_or(|first| store.takes(first.index));
            if !fits {
                return Err(store.damaged("has a gap"));
            }
            store.take(record);
        }
        let snapshot = match store.base.snapshot_index {
            0 => None,
            index => Some(store.disk.read_snapshot(index)?),
        };
        if let Some(snapshot) = &snapshot {
            store.snapshot = position(snapshot);
        }
        store.hard_state.commit = store.hard_state.commit.max(store.snapshot.index);
        if store.last() < store.hard_state.commit {
            return Err(store.damaged("lacks committed entries"));
        }
        store.bytes_at_rewrite = store.disk.log_bytes();
        Ok((store, snapshot))
    }

    /// Makes entries and hard state durable, in one record and one sync.
    pub(crate) fn persist(&mut self, entries: Vec<Entry>, hard_state: Option<HardState>) -> Result<()> {
        self.write(Record { hard_state, entries, ..Record::default() })
    }

    /// Remembers how far the log is committed. This needs no sync: a restarted member learns it anew.
    pub(crate) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// Makes a changed membership durable, with the commit index that it rests on: a restart must not fall back to the
    /// old members and elect itself among them.
    pub(crate) fn persist_members(&mut self, index: u64, conf: ConfState) -> Result<()> {
        let mut hard_state = self.hard_state.clone();
        hard_state.commit = hard_state.commit.max(index);
        let members = Some(Members { index, conf });
        self.write(Record { hard_state: Some(hard_state), members, ..Record::default() })
    }

    /// Replaces everything by a leader's snapshot.
    pub(crate) fn install(&mut self, snapshot: &Snapshot, hard_state: Option<HardState>) -> Result<()> {
        self.disk.write_snapshot(snapshot)?;
        let at = position(snapshot);
        let mut hard_state = hard_state.unwrap_or_else(|| self.hard_state.clone());
        hard_state.commit = hard_state.commit.max(at.index);
        let members = Members { index: at.index, conf: snapshot.get_metadata().get_conf_state().clone() };
        self.rewrite(
            Record {
                base: Some(Base { before: at, snapshot_index: at.index }),
                hard_state: Some(hard_state),
                members: Some(members),
                entries: Vec::new(),
            },
            at,
        )
    }

    /// Whether a snapshot at `applied` is due: the log has grown enough for it to pay, or the members have changed. A new
    /// member starts from a snapshot, which must know it.
    pub(crate) fn is_due(&self, compaction: &Compaction, applied: u64) -> bool {
        let grown = self.disk.log_bytes().saturating_sub(self.bytes_at_rewrite);
        // After a restart the log is applied again up to the newest membership; nothing before it goes with it.
        applied > self.snapshot.index.max(self.members.index.saturating_sub(1))
            && (applied - self.snapshot.index >= compaction.entries_max
                || grown >= compaction.bytes_max
                || self.members.index > self.snapshot.index)
    }

    /// Replaces the log up to `applied` by a snapshot of the state there.
    pub(crate) fn compact(&mut self, applied: u64, commit: u64, data: Bytes, compaction: &Compaction) -> Result<()> {
        let at = Position { index: applied, term: self.term_at(applied).unwrap_or(self.snapshot.term) };
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (at.index, at.term);
        metadata.set_conf_state(self.members.conf.clone());
        self.disk.write_snapshot(&snapshot)?;

        // Whoever lags further than this gets the snapshot; a single member has nobody to keep entries for.
        let kept = if self.members.conf.voters.len() + self.members.conf.learners.len() > 1 {
            compaction.entries_kept
        } else {
            0
        };
        let before = applied.saturating_sub(kept).max(self.base.before.index);
        let before = Position { index: before, term: self.term_at(before).unwrap_or(at.term) };
        let mut hard_state = self.hard_state.clone();
        hard_state.commit = commit;
        let first = (before.index - self.base.before.index) as usize;
        self.rewrite(
            Record {
                base: Some(Base { before, snapshot_index: applied }),
                hard_state: Some(hard_state),
                members: Some(self.members.clone()),
                entries: self.entries[first..].to_vec(),
            },
            at,
        )
    }

    /// The index of the snapshot that the state starts from; zero without one.
    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    /// The index at which the membership last changed.
    pub(crate) fn members_index(&self) -> u64 {
        self.members.index
    }

    /// The members as of now.
    pub(crate) fn conf(&self) -> &ConfState {
        &self.members.conf
    }

    /// Length of the log file.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.disk.log_bytes()
    }

    fn write(&mut self, record: Record) -> Result<()> {
        self.disk.append(&record)?;
        self.take(record);
        Ok(())
    }

    fn rewrite(&mut self, first: Record, snapshot: Position) -> Result<()> {
        self.disk.rewrite(&first)?;
        self.take(first);
        self.snapshot = snapshot;
        self.bytes_at_rewrite = self.disk.log_bytes();
        Ok(())
    }

    /// Takes a record that is durable into memory.
    fn take(&mut self, record: Record) {
        let Record { base, hard_state, members, entries } = record;
        if let Some(base) = base {
            self.base = base;
            self.entries.clear();
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state;
        }
        if let Some(members) = members {
            self.members = members;
        }
        if let Some(first) = entries.first() {
            self.entries.truncate((first.index - self.base.before.index - 1) as usize);
            self.entries.extend(entries);
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::new(Code::Corrupt, format!("the raft log in {} {what}", self.disk.directory().display()))
    }

    /// Whether an entry at `index` follows what is there, or replaces some of it.
    fn takes(&self, index: u64) -> bool {
        index > self.base.before.index && index <= self.last() + 1
    }

    fn last(&self) -> u64 {
        self.base.before.index + self.entries.len() as u64
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.before.index {
            return Some(self.base.before.term);
        }
        let offset = index.checked_sub(self.base.before.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?).map(|entry| entry.term)
    }
}

/// How a log begins. The founders' log starts behind a snapshot, which holds the founders, so that nobody can join by
/// replaying entries without ever learning of them.
fn found(voters: Vec<u64>, state: impl FnOnce() -> Bytes) -> (Record, Option<Snapshot>) {
    if voters.is_empty() {
        return (Record { base: Some(Base::default()), ..Record::default() }, None);
    }
    let conf = ConfState { voters, ..ConfState::default() };
    let mut snapshot = Snapshot { data: state(), ..Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (FOUNDED_AT.index, FOUNDED_AT.term);
    metadata.set_conf_state(conf.clone());
    let hard_state = HardState { term: FOUNDED_AT.term, commit: FOUNDED_AT.index, ..HardState::default() };
    let first = Record {
        base: Some(Base { before: FOUNDED_AT, snapshot_index: FOUNDED_AT.index }),
        hard_state: Some(hard_state),
        members: Some(Members { index: FOUNDED_AT.index, conf }),
        entries: Vec::new(),
    };
    (first, Some(snapshot))
}

fn position(snapshot: &Snapshot) -> Position {
    let metadata = snapshot.get_metadata();
    Position { index: metadata.index, term: metadata.term }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.before.index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let at = |index: u64| (index - self.base.before.index - 1) as usize;
        let mut entries = self.entries[at(low)..at(high)].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.base.before.index => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.before.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // A snapshot from before the last change of members would not know the member that needs it.
        let knows_members = self.members.index <= self.snapshot.index;
        if self.snapshot.index == 0 || self.snapshot.index < request_index || !knows_members {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        self.disk.read_snapshot(self.snapshot.index).map_err(|error| {
            tracing::error!(%error, "could not read the snapshot that another member needs");
            StorageError::SnapshotTemporarilyUnavailable.into()
        })
    }
}
