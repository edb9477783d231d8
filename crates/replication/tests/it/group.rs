//! Groups of several members on a network whose links are cut.

use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;
use weir_replication::{Config, Error, MemberChange, Node, NodeId, Role, Transport};
use weir_testkit::network::Network;

use crate::ledger::{Ledger, applied, commands, config, id, propose};

struct Link {
    network: Network<Bytes>,
    from: u64,
}

impl Transport for Link {
    fn send(&self, to: NodeId, message: Bytes) {
        self.network.send(self.from, to.get(), message);
    }
}

struct Group {
    network: Network<Bytes>,
    nodes: Vec<(u64, Node<Ledger>, TempDir)>,
}

impl Group {
    fn found(members: &[u64], adjust: impl Fn(&mut Config)) -> Self {
        let mut group = Self { network: Network::new(), nodes: Vec::new() };
        for member in members {
            let mut config = config(*member, members);
            adjust(&mut config);
            group.add(config);
        }
        group
    }

    fn add(&mut self, config: Config) {
        let (member, dir) = (config.id.get(), tempfile::tempdir().unwrap());
        let node = self.start(config, dir.path());
        self.nodes.push((member, node, dir));
    }

    fn start(&self, config: Config, dir: &Path) -> Node<Ledger> {
        let from = config.id.get();
        let node = Node::start(config, dir, Ledger::default(), Link { network: self.network.clone(), from }).unwrap();
        let receiver = node.clone();
        self.network.join(from, move |message| receiver.step(message));
        node
    }

    fn node(&self, member: u64) -> &Node<Ledger> {
        &self.nodes.iter().find(|(id, ..)| *id == member).unwrap().1
    }

    /// Waits until one of `members` leads and serves.
    async fn leader_among(&self, members: &[u64]) -> u64 {
        let waits = members.iter().map(|member| {
            let node = self.node(*member).clone();
            Box::pin(async move { node.serving().await.map(|_| *member) })
        });
        select_first(waits.collect()).await
    }

    /// Waits until `member` has applied as much as `count` commands.
    async fn applied(&self, member: u64, count: usize) -> Vec<String> {
        loop {
            let state = applied(self.node(member));
            if state.len() >= count {
                return state;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn select_first<F: Future<Output = Result<u64, Error>> + Unpin>(mut waits: Vec<F>) -> u64 {
    std::future::poll_fn(move |context| {
        for wait in &mut waits {
            if let std::task::Poll::Ready(Ok(member)) = std::pin::Pin::new(wait).poll(context) {
                return std::task::Poll::Ready(member);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[tokio::test]
async fn three_members_elect_a_leader_and_replicate() {
    let group = Group::found(&[1, 2, 3], |_| {});
    let leader = group.leader_among(&[1, 2, 3]).await;
    propose(group.node(leader), 0, 20).await;
    for member in [1, 2, 3] {
        assert_eq!(group.applied(member, 20).await, commands(0, 20));
    }
    let follower = [1, 2, 3].into_iter().find(|member| *member != leader).unwrap();
    let mut status = group.node(follower).status();
    status.wait_for(|status| status.leader == Some(id(leader))).await.unwrap();
    assert_eq!(status.borrow().role, Role::Follower);
    let refused = Error::NotLeader { leader: Some(id(leader)) };
    assert_eq!(group.node(follower).propose("misplaced").await, Err(refused.clone()));
    assert_eq!(group.node(follower).barrier().await, Err(refused));
}

#[tokio::test]
async fn a_cut_off_leader_is_replaced_and_its_unfinished_proposal_vanishes() {
    let group = Group::found(&[1, 2, 3], |_| {});
    let old = group.leader_among(&[1, 2, 3]).await;
    propose(group.node(old), 0, 5).await;

    group.network.isolate(old);
    let deposed = group.node(old).clone();
    let unfinished = tokio::spawn(async move { (deposed.propose("lost").await, deposed.barrier().await) });
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|member| *member != old).collect();
    let new = group.leader_among(&rest).await;
    let (old_term, new_term) = (group.node(old).status().borrow().term, group.node(new).status().borrow().term);
    assert!(new_term > old_term);
    propose(group.node(new), 5, 10).await;

    let (outcome, barrier) = unfinished.await.unwrap();
    assert_eq!(outcome, Err(Error::OutcomeUnknown));
    assert!(matches!(barrier, Err(Error::NotLeader { .. })), "{barrier:?}");

    group.network.heal(old);
    assert_eq!(group.applied(old, 10).await, commands(0, 10));
}

#[tokio::test]
async fn a_stopped_member_catches_up_from_the_leaders_snapshot() {
    let compact = |config: &mut Config| (config.compact_entries, config.trailing_entries) = (20, 5);
    let mut group = Group::found(&[1, 2, 3], compact);
    let leader = group.leader_among(&[1, 2, 3]).await;
    let late = [1, 2, 3].into_iter().find(|member| *member != leader).unwrap();
    group.node(late).stop().await;
    group.network.leave(late);
    propose(group.node(leader), 0, 200).await;

    let place = group.nodes.iter().position(|(member, ..)| *member == late).unwrap();
    let mut config = config(late, &[1, 2, 3]);
    compact(&mut config);
    group.nodes[place].1 = group.start(config, group.nodes[place].2.path());
    assert_eq!(group.applied(late, 200).await, commands(0, 200));
    propose(group.node(leader), 200, 201).await;
    assert_eq!(group.applied(late, 201).await, commands(0, 201));
}

#[tokio::test]
async fn one_member_grows_to_three_and_survives_losing_the_first() {
    let mut group = Group::found(&[1], |_| {});
    group.node(1).serving().await.unwrap();
    propose(group.node(1), 0, 10).await;
    for member in [2, 3] {
        group.add(config(member, &[]));
        group.node(1).change_members(MemberChange::Add(id(member))).await.unwrap();
        assert_eq!(group.applied(member, 10).await, commands(0, 10));
    }
    group.network.isolate(1);
    let leader = group.leader_among(&[2, 3]).await;
    propose(group.node(leader), 10, 20).await;
    group.network.heal(1);
    assert_eq!(group.applied(1, 20).await, commands(0, 20));
}

#[tokio::test]
async fn a_leader_that_stops_hands_over_before_it_goes() {
    let group = Group::found(&[1, 2, 3], |_| {});
    let first = group.leader_among(&[1, 2, 3]).await;
    propose(group.node(first), 0, 5).await;
    group.node(first).stop().await;
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|member| *member != first).collect();
    // It waited for its successor, so there is one already, or nearly: the same batch made it one and told the leader.
    let successor = group.leader_among(&rest).await;
    propose(group.node(successor), 5, 6).await;
}

#[tokio::test]
async fn a_large_state_reaches_a_new_member_in_parts() {
    let small = |config: &mut Config| config.chunk_bytes = 100;
    let mut group = Group::found(&[1], small);
    group.node(1).serving().await.unwrap();
    propose(group.node(1), 0, 500).await;
    for member in [2, 3] {
        let mut config = config(member, &[]);
        small(&mut config);
        group.add(config);
        group.node(1).change_members(MemberChange::Add(id(member))).await.unwrap();
        assert_eq!(group.applied(member, 500).await, commands(0, 500));
    }
    propose(group.node(1), 500, 510).await;
    assert_eq!(group.applied(3, 510).await, commands(0, 510));
}

#[tokio::test]
async fn a_leader_to_be_removed_makes_another_one_lead_which_removes_it() {
    let group = Group::found(&[1, 2, 3], |_| {});
    let first = group.leader_among(&[1, 2, 3]).await;
    propose(group.node(first), 0, 5).await;
    let removed = group.node(first).change_members(MemberChange::Remove(id(first))).await;
    let Err(Error::NotLeader { leader: Some(next) }) = removed else { panic!("{removed:?}") };
    let next = group.leader_among(&[next.get()]).await;
    group.node(next).change_members(MemberChange::Remove(id(first))).await.unwrap();
    let members = group.node(next).members().await.unwrap();
    assert_eq!(members.len(), 2);
    assert!(members.iter().all(|member| member.id != id(first) && member.votes));
    propose(group.node(next), 5, 10).await;
}
