//! The stream store: input streams, the production reader groups, pins, and the transactions of sinks. What it has
//! answered is durable; when it is down, nobody gets an answer.

use std::collections::{BTreeMap, BTreeSet};

use weir_stream_store::group::{Command, Group, Start};
use weir_types::group::{CheckpointOwner, GroupActor, GroupInfo, GroupLimits, GroupMode};
use weir_types::ids::{Attempt, BarrierId, GroupName, JobId, PartitionId, PinHolder, ReaderId, SnapshotId};
use weir_types::output::{CommitMark, Settlement};
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::time::Millis;
use weir_types::{Code, Error, Result};

/// One input record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    /// Where it goes.
    pub(super) key: u32,
    /// Unique among all records.
    pub(super) value: u64,
}

/// A transaction of a sink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Txn {
    pub(super) job: JobId,
    pub(super) subtask: u32,
    pub(super) attempt: Attempt,
    pub(super) number: u64,
}

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxnState {
    Open,
    Prepared,
    Committed,
    Aborted,
}

/// What is in a transaction.
struct Written {
    state: TxnState,
    /// The barrier that it was prepared under.
    mark: Option<BarrierId>,
    records: Vec<u64>,
}

/// What the store is asked to do.
#[derive(Clone, Debug)]
pub(super) enum Call {
    CreateGroup(GroupName, StreamName, JobId, StreamCut),
    Assign(GroupName, JobId, Attempt, BTreeMap<ReaderId, Vec<PartitionId>>, StreamCut),
    StartCheckpoint(GroupName, SnapshotId, JobId, Millis, Vec<SnapshotId>),
    Ack(GroupName, SnapshotId, GroupActor, StreamCut),
    Cancel(GroupName, SnapshotId, JobId),
    Release(GroupName, SnapshotId, JobId),
    Commit(GroupName, GroupActor, StreamCut),
    DeleteGroup(GroupName, JobId),
    Pin(StreamName, PinHolder, StreamCut),
    Unpin(StreamName, PinHolder),
    /// Decides about what a job's sinks have prepared.
    Settle(JobId, Settlement),
}

/// The whole store.
#[derive(Default)]
pub(super) struct Store {
    pub(super) down: bool,
    /// By stream and partition; heads rise when retention truncates.
    pub(super) streams: BTreeMap<StreamName, Vec<Partition>>,
    groups: BTreeMap<GroupName, Group>,
    pub(super) pins: BTreeMap<(StreamName, PinHolder), StreamCut>,
    fences: BTreeMap<JobId, Attempt>,
    txns: BTreeMap<Txn, Written>,
    /// What plain sinks wrote.
    plain: BTreeMap<JobId, Vec<u64>>,
}

/// One partition of an input stream.
#[derive(Default)]
pub(super) struct Partition {
    /// What lies below was truncated; kept for the judge.
    pub(super) head: u64,
    pub(super) records: Vec<Record>,
}

impl Store {
    /// Carries out a call.
    pub(super) fn call(&mut self, now: Millis, call: Call) -> Result<()> {
        match call {
            Call::CreateGroup(name, stream, job, positions) => {
                let mode = GroupMode::Managed { job };
                let group = self.groups.entry(name.clone()).or_insert_with(|| {
                    let heads = self.streams[&stream].iter().enumerate();
                    let head = |(i, partition): (usize, &Partition)| (PartitionId(i as u32), Offset(partition.head));
                    let mut whole = StreamCut(heads.map(head).collect());
                    whole.0.extend(positions.0);
                    Group::new(name, stream, mode.clone(), GroupLimits::default(), whole)
                });
                let info = group.info();
                if info.mode == mode { Ok(()) } else { Err(Error::new(Code::GroupInUse, "the group is another job's")) }
            }
            Call::Assign(group, job, attempt, owners, rewinds) => {
                self.tell(now, &group, Command::Assign { job, attempt, owners, rewinds })
            }
            Call::StartCheckpoint(group, id, job, deadline, supersedes) => {
                let owner = CheckpointOwner::Job(job);
                self.tell(now, &group, Command::StartCheckpoint(Start { id, owner, deadline, supersedes }))
            }
            Call::Ack(group, id, by, offsets) => self.tell(now, &group, Command::Ack { id, by, offsets }),
            Call::Cancel(group, id, job) => self.tell(now, &group, Command::Cancel { id, job: Some(job) }),
            Call::Release(group, id, job) => self.tell(now, &group, Command::ReleaseCheckpoint { id, job: Some(job) }),
            Call::Commit(group, by, positions) => self.tell(now, &group, Command::Commit { by, positions }),
            Call::DeleteGroup(name, job) => match self.groups.get(&name).map(Group::info) {
                Some(info) if info.mode.job() == Some(&job) => {
                    self.groups.remove(&name);
                    Ok(())
                }
                Some(_) => Err(Error::new(Code::GroupInUse, "the group is another job's")),
                None => Err(Error::not_found("there is no such group")),
            },
            Call::Pin(stream, holder, cut) => {
                let partitions = &self.streams[&stream];
                let lost = cut.0.iter().any(|(partition, at)| at.0 < partitions[partition.0 as usize].head);
                if lost {
                    return Err(Error::new(Code::OffsetTruncated, "what is to be pinned is gone"));
                }
                self.pins.insert((stream, holder), cut);
                Ok(())
            }
            Call::Unpin(stream, holder) => {
                self.pins.remove(&(stream, holder));
                Ok(())
            }
            Call::Settle(job, settlement) => self.settle(&job, settlement),
        }
    }

    fn tell(&mut self, now: Millis, group: &GroupName, command: Command) -> Result<()> {
        let group = self.groups.get_mut(group).ok_or_else(|| Error::not_found("there is no such group"))?;
        group.apply(now, command).map(drop)
    }

    /// Commits what an attempt has prepared up to a mark, and gives up what attempts below have left. One that is older than
    /// the fence decides nothing.
    fn settle(&mut self, job: &JobId, settlement: Settlement) -> Result<()> {
        if let Some(below) = settlement.below {
            let fence = self.fences.entry(job.clone()).or_default();
            if below < *fence {
                return Err(Error::fenced("a newer attempt has been decided"));
            }
            *fence = below;
        }
        for (txn, written) in self.txns.iter_mut().filter(|(txn, _)| txn.job == *job) {
            let covers = |to: CommitMark| txn.attempt == to.attempt && written.mark.is_some_and(|at| at <= to.barrier);
            written.state = match written.state {
                TxnState::Prepared if settlement.commit.is_some_and(covers) => TxnState::Committed,
                TxnState::Open | TxnState::Prepared if settlement.below.is_some_and(|below| txn.attempt < below) => {
                    TxnState::Aborted
                }
                state => state,
            };
        }
        Ok(())
    }

    /// A record of a transactional sink; begins the transaction if need be.
    pub(super) fn append(&mut self, txn: &Txn, value: u64) -> Result<()> {
        self.check_fence(txn)?;
        let fresh = || Written { state: TxnState::Open, mark: None, records: Vec::new() };
        let written = self.txns.entry(txn.clone()).or_insert_with(fresh);
        if written.state != TxnState::Open {
            return Err(Error::fenced("the transaction is not open"));
        }
        written.records.push(value);
        Ok(())
    }

    /// Ends the appends of a transaction. One without records needs none.
    pub(super) fn prepare(&mut self, txn: &Txn, mark: BarrierId) -> Result<bool> {
        self.check_fence(txn)?;
        match self.txns.get_mut(txn) {
            None => Ok(false),
            Some(written) if written.state == TxnState::Open => {
                (written.state, written.mark) = (TxnState::Prepared, Some(mark));
                Ok(true)
            }
            Some(_) => Err(Error::fenced("the transaction has ended")),
        }
    }

    fn check_fence(&self, txn: &Txn) -> Result<()> {
        match self.fences.get(&txn.job) {
            Some(fence) if txn.attempt < *fence => Err(Error::fenced("a newer attempt writes")),
            _ => Ok(()),
        }
    }

    /// A record of a plain sink.
    pub(super) fn write(&mut self, job: &JobId, value: u64) {
        self.plain.entry(job.clone()).or_default().push(value);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Millis) {
        for group in self.groups.values_mut() {
            group.apply(now, Command::Tick).unwrap();
        }
    }

    /// It is back after an outage.
    pub(super) fn resume(&mut self, now: Millis) {
        self.down = false;
        self.groups.values_mut().for_each(|group| group.resume(now));
    }

    /// Every group.
    pub(super) fn groups(&self) -> Vec<GroupInfo> {
        self.groups.values().map(Group::info).collect()
    }

    /// One group.
    pub(super) fn group(&self, name: &GroupName) -> Option<GroupInfo> {
        self.groups.get(name).map(Group::info)
    }

    /// A job's transactions that are neither committed nor aborted.
    pub(super) fn pending(&self, job: &JobId) -> BTreeSet<Txn> {
        let pending = |written: &Written| matches!(written.state, TxnState::Open | TxnState::Prepared);
        self.txns
            .iter()
            .filter(|(txn, written)| txn.job == *job && pending(written))
            .map(|(txn, _)| txn.clone())
            .collect()
    }

    /// What committed readers of a job's output see.
    pub(super) fn output(&self, job: &JobId) -> Vec<u64> {
        let committed =
            self.txns.iter().filter(|(txn, written)| txn.job == *job && written.state == TxnState::Committed);
        let committed = committed.flat_map(|(_, written)| &written.records).copied();
        committed.chain(self.plain.get(job).into_iter().flatten().copied()).collect()
    }

    /// What was ever written for a job and not taken back.
    pub(super) fn everything(&self, job: &JobId) -> Vec<u64> {
        let kept = self.txns.iter().filter(|(txn, written)| txn.job == *job && written.state != TxnState::Aborted);
        let kept = kept.flat_map(|(_, written)| &written.records).copied();
        kept.chain(self.plain.get(job).into_iter().flatten().copied()).collect()
    }

    /// Lets retention drop what no pin holds.
    pub(super) fn truncate(&mut self, stream: &StreamName) {
        let pins: Vec<&StreamCut> = self.pins.iter().filter(|((of, _), _)| of == stream).map(|(_, cut)| cut).collect();
        let Some(partitions) = self.streams.get_mut(stream).filter(|_| !pins.is_empty()) else { return };
        for (index, partition) in partitions.iter_mut().enumerate() {
            let held = pins.iter().filter_map(|cut| cut.get(PartitionId(index as u32))).map(|at| at.0).min();
            partition.head = held.unwrap_or(partition.head).max(partition.head);
        }
    }
}
