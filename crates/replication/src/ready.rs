//! The durability order of a member, and the only place that knows it: **persist, then send, then apply**.
//!
//! A vote or an entry is on disk before any message that promises it leaves, and a command is applied only when it is
//! committed and on this disk. What a leader sends promises nothing about its own disk: its entries leave first, so that
//! all members sync them at the same time, and its own copy counts once it is synced.

use std::sync::Arc;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{ReadState, SnapshotStatus, StateRole};
use weir_types::ids::Term;
use weir_types::{Code, Error as UserError, Result as UserResult};

use crate::error::{Error, Result};
use crate::machine::{Command, StateMachine};
use crate::member::{Member, answer, broken, is_proposed};
use crate::node::NodeId;
use crate::wire::Frame;

impl<M: StateMachine> Member<M> {
    /// Does what raft has ready.
    pub(crate) fn on_ready(&mut self) -> UserResult<()> {
        let mut ready = self.raft.ready();
        let (entries, mut hard_state) = (ready.take_entries(), ready.hs().cloned());

        // Send what only a leader has: raft puts everybody else's messages among the others.
        self.send(ready.take_messages());

        // Persist. A snapshot replaces the log, so it comes first; a bare commit index needs no sync.
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            self.raft.mut_store().install(&snapshot, hard_state.take())?;
            self.restore(&snapshot)?;
        }
        if !entries.is_empty() || (ready.must_sync() && hard_state.is_some()) {
            self.raft.mut_store().persist(entries, hard_state)?;
        } else if let Some(hard_state) = hard_state {
            self.raft.mut_store().set_commit(hard_state.commit);
        }

        // Send.
        self.send(ready.take_persisted_messages());

        // What persisting has made possible: on a single member, the very entries are committed by it.
        let (read_states, committed) = (ready.take_read_states(), ready.take_committed_entries());
        let mut light = self.raft.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raft.mut_store().set_commit(commit);
        }
        self.send(light.take_messages());

        // Apply. Only now: raft does not expect that a leader that is removed learns of it before.
        self.confirm_barriers(read_states);
        self.apply(committed)?;
        self.apply(light.take_committed_entries())?;
        self.raft.advance_apply_to(self.applied);

        self.finish_barriers();
        self.abandon_pending_unless_leading();
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let Some(to) = NodeId::new(message.to) else { continue };
            let bytes: Bytes = match message.write_to_bytes() {
                Ok(bytes) => bytes.into(),
                Err(error) => {
                    tracing::error!(%error, "could not encode a raft message");
                    continue;
                }
            };
            if message.get_msg_type() != MessageType::MsgSnapshot {
                self.transport.send(to, Frame::Raft(bytes).encode());
            } else if self.transfers.splits(bytes.len()) {
                tracing::info!(%to, bytes = bytes.len(), "sending a snapshot in chunks");
                self.transfers.start(self.raft.raft.term, self.raft.raft.id, message.to, bytes);
            } else {
                self.transport.send(to, Frame::Raft(bytes).encode());
                // Nobody reports whether it arrived: raft probes the member again, and sends another if need be.
                self.raft.report_snapshot(message.to, SnapshotStatus::Finish);
            }
        }
        self.flush_transfers();
    }

    /// Sends the chunks, and the receipts for chunks, that are due.
    pub(crate) fn flush_transfers(&mut self) {
        for (to, frame) in self.transfers.outbox.drain(..) {
            if let Some(to) = NodeId::new(to) {
                self.transport.send(to, frame.encode());
            }
        }
    }

    fn restore(&mut self, snapshot: &Snapshot) -> UserResult<()> {
        let metadata = snapshot.get_metadata();
        tracing::info!(index = metadata.index, bytes = snapshot.data.len(), "restoring the leader's snapshot");
        self.machine.write().restore(&snapshot.data)?;
        (self.applied, self.applied_term) = (metadata.index, metadata.term);
        Ok(())
    }

    /// Applies committed entries, in order, once, and answers those who proposed them.
    fn apply(&mut self, entries: Vec<Entry>) -> UserResult<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let machine = Arc::clone(&self.machine);
        let mut machine = machine.write();
        let mut answers = Vec::with_capacity(self.pending.len().min(entries.len()));
        for entry in &entries {
            if entry.index != self.applied + 1 {
                return Err(UserError::internal(format!(
                    "raft committed entry {} after entry {}",
                    entry.index, self.applied
                )));
            }
            let result = match entry.get_entry_type() {
                EntryType::EntryNormal if is_proposed(entry) => {
                    machine.apply(Command { index: entry.index, term: Term(entry.term), data: &entry.data })
                }
                EntryType::EntryNormal => Bytes::new(),
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_members(entry)?;
                    Bytes::new()
                }
            };
            (self.applied, self.applied_term) = (entry.index, entry.term);
            self.settle(entry, result, &mut answers);
        }
        // Whoever is answered may read at once.
        drop(machine);
        for (reply, result) in answers {
            answer(reply, result);
        }
        Ok(())
    }

    /// Finds who proposed an applied entry. A proposal at the same index but of another term has been replaced.
    fn settle(&mut self, entry: &Entry, result: Bytes, answers: &mut Vec<(crate::member::Reply, Result<Bytes>)>) {
        while self.pending.front().is_some_and(|pending| pending.index <= entry.index) {
            let Some(pending) = self.pending.pop_front() else { return };
            let result = match pending.index == entry.index && pending.term == entry.term {
                true => Ok(result.clone()),
                false => Err(self.not_leader()),
            };
            answers.push((pending.reply, result));
        }
    }

    fn apply_members(&mut self, entry: &Entry) -> UserResult<()> {
        // After a restart the log is applied again, but the membership on disk is the newest: it holds this change.
        if entry.index <= self.raft.store().members_index() {
            return Ok(());
        }
        let damaged = |error: protobuf::ProtobufError| {
            UserError::new(Code::Corrupt, format!("raft entry {} is no membership change", entry.index))
                .with_detail(error.to_string())
        };
        let conf = if entry.get_entry_type() == EntryType::EntryConfChange {
            self.raft.apply_conf_change(&ConfChange::parse_from_bytes(&entry.data).map_err(damaged)?)
        } else {
            self.raft.apply_conf_change(&ConfChangeV2::parse_from_bytes(&entry.data).map_err(damaged)?)
        };
        let conf = conf.map_err(|error| broken("could not change the raft group's members", &error))?;
        tracing::info!(index = entry.index, voters = ?conf.voters, learners = ?conf.learners, "raft members changed");
        let raft = &mut self.raft.raft;
        if raft.state == StateRole::Leader && !conf.voters.contains(&raft.id) {
            // Elected while its removal was under way. Raft would let it go on, and trip over its missing vote.
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        self.raft.mut_store().persist_members(entry.index, conf)
    }

    fn confirm_barriers(&mut self, states: Vec<ReadState>) {
        for state in states {
            let Ok(number) = state.request_ctx.as_slice().try_into().map(u64::from_le_bytes) else { continue };
            // A confirmation is one for all barriers before it as well.
            while self.barriers.sent.front().is_some_and(|(sent, _)| *sent <= number) {
                let Some((_, replies)) = self.barriers.sent.pop_front() else { break };
                self.barriers.confirmed.push((state.index, replies));
            }
        }
    }

    fn finish_barriers(&mut self) {
        let applied = self.applied;
        for (_, replies) in self.barriers.confirmed.extract_if(.., |(index, _)| *index <= applied) {
            for reply in replies {
                answer(reply, Ok(()));
            }
        }
    }

    /// A deposed leader may never learn what became of its proposals.
    fn abandon_pending_unless_leading(&mut self) {
        if self.raft.raft.state != StateRole::Leader {
            for pending in self.pending.drain(..) {
                answer(pending.reply, Err(Error::OutcomeUnknown));
            }
        }
    }
}
