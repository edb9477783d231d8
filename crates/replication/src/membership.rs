//! Changes of a group's membership, one member at a time.
//!
//! A member to add first learns: it gets the log without having a vote, and gets its vote when it has all that was
//! committed when it began. So adding a member that never comes, or takes long to catch up, costs the group nothing.

use bytes::Bytes;
use raft::StateRole;
use raft::eraftpb::{ConfChange, ConfChangeType};

use crate::error::Error;
use crate::machine::StateMachine;
use crate::member::{Member, PROPOSED, Reply, answer};
use crate::node::{MemberChange, MemberStatus, NodeId};

/// A member to add catches up within so many election timeouts, or whoever adds it hears that it did not.
const JOIN_ELECTION_TIMEOUTS: usize = 50;

/// A member that is to be added.
pub(crate) struct Joining {
    member: NodeId,
    reply: Reply,
    /// What it has to have; known once it learns.
    target: Option<u64>,
    ticks_left: usize,
}

impl<M: StateMachine> Member<M> {
    pub(crate) fn change_members(&mut self, change: MemberChange, reply: Reply) {
        match self.begin_change(change) {
            Ok(Begun::AlreadySo) => answer(reply, Ok(Bytes::new())),
            Ok(Begun::Proposed) => self.remember(vec![reply]),
            Ok(Begun::Learns(member)) => {
                let ticks_left = JOIN_ELECTION_TIMEOUTS * self.election_ticks;
                self.joining = Some(Joining { member, reply, target: None, ticks_left });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn begin_change(&mut self, change: MemberChange) -> Result<Begun, Error> {
        if self.raft.raft.state != StateRole::Leader {
            return Err(self.not_leader());
        }
        // Raft would turn a change into an empty entry, and report success, while another one is not applied yet.
        if self.raft.raft.has_pending_conf() || self.joining.is_some() {
            return Err(Error::ChangeRefused("another one is under way".to_owned()));
        }
        let conf = self.raft.store().conf();
        match change {
            MemberChange::Add(member) if conf.voters.contains(&member.get()) => Ok(Begun::AlreadySo),
            MemberChange::Add(member) => {
                if !conf.learners.contains(&member.get()) {
                    self.propose_change(ConfChangeType::AddLearnerNode, member)?;
                }
                Ok(Begun::Learns(member))
            }
            MemberChange::Remove(member) => {
                let id = member.get();
                if !conf.voters.contains(&id) && !conf.learners.contains(&id) {
                    return Ok(Begun::AlreadySo);
                }
                if conf.voters == [id] {
                    return Err(Error::ChangeRefused("it would remove the only member that votes".to_owned()));
                }
                if id == self.raft.raft.id {
                    // The others remove it, so that nobody waits for a leader.
                    let leader = self.successor();
                    leader.iter().for_each(|successor| self.raft.transfer_leader(*successor));
                    return Err(Error::NotLeader { leader: leader.and_then(NodeId::new) });
                }
                self.propose_change(ConfChangeType::RemoveNode, member)?;
                Ok(Begun::Proposed)
            }
        }
    }

    fn propose_change(&mut self, kind: ConfChangeType, member: NodeId) -> Result<(), Error> {
        let mut conf_change = ConfChange { node_id: member.get(), ..ConfChange::default() };
        conf_change.set_change_type(kind);
        self.raft
            .propose_conf_change(PROPOSED.to_vec(), conf_change)
            .map_err(|error| Error::ChangeRefused(error.to_string()))
    }

    /// Gives a member that learns its vote when it has what it needs for that.
    pub(crate) fn promote_who_has_caught_up(&mut self) {
        let Some(joining) = &mut self.joining else { return };
        if self.raft.raft.state != StateRole::Leader {
            let joining = self.joining.take();
            joining.into_iter().for_each(|joining| answer(joining.reply, Err(Error::OutcomeUnknown)));
            return;
        }
        let (member, raft) = (joining.member, &self.raft.raft);
        if raft.has_pending_conf() || !self.raft.store().conf().learners.contains(&member.get()) {
            return;
        }
        let target = *joining.target.get_or_insert(raft.raft_log.committed);
        if raft.prs().get(member.get()).is_none_or(|progress| progress.matched < target) {
            return;
        }
        let Some(joining) = self.joining.take() else { return };
        match self.propose_change(ConfChangeType::AddNode, member) {
            Ok(()) => self.remember(vec![joining.reply]),
            Err(error) => answer(joining.reply, Err(error)),
        }
    }

    pub(crate) fn tick_joining(&mut self) {
        if let Some(joining) = &mut self.joining {
            joining.ticks_left = joining.ticks_left.saturating_sub(1);
        }
        if let Some(late) = self.joining.take_if(|joining| joining.ticks_left == 0) {
            let error = format!("member {} has not caught up in time and stays without a vote", late.member);
            answer(late.reply, Err(Error::ChangeRefused(error)));
        }
    }

    /// All members, as this one knows them.
    pub fn members(&self) -> Vec<MemberStatus> {
        let (raft, conf) = (&self.raft.raft, self.raft.store().conf());
        let leads = raft.state == StateRole::Leader;
        let members = conf.voters.iter().map(|id| (*id, true)).chain(conf.learners.iter().map(|id| (*id, false)));
        let mut members: Vec<MemberStatus> = members
            .filter_map(|(id, votes)| {
                let progress = raft.prs().get(id).filter(|_| leads);
                Some(MemberStatus {
                    id: NodeId::new(id)?,
                    votes,
                    leads: raft.leader_id == id,
                    active: progress.map(|progress| id == raft.id || progress.recent_active),
                    lag: progress.map(|progress| raft.raft_log.last_index().saturating_sub(progress.matched)),
                })
            })
            .collect();
        members.sort_by_key(|member| member.id);
        members
    }
}

enum Begun {
    AlreadySo,
    Proposed,
    Learns(NodeId),
}
