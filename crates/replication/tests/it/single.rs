//! A group of one: it serves at once, restarts without losing or repeating anything, and keeps its directory small.

use std::time::{Duration, Instant};

use weir_replication::{Alone, Config, Error, MemberChange, MemberStatus, Node, Role};
use weir_types::Code;

use crate::ledger::{Ledger, applied, commands, config, id, propose, start_alone};

#[tokio::test]
async fn the_only_member_serves_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // An election by timeout would take more than an hour.
    let started = Instant::now();
    let config = Config { election_ticks: 100_000, ..Config::new(id(1), vec![id(1)]) };
    let node = Node::start(config, dir.path(), Ledger::default(), Alone).unwrap();
    node.serving().await.unwrap();
    assert!(started.elapsed().as_secs() < 60, "took {:?}", started.elapsed());
    let status = node.status().borrow().clone();
    assert_eq!((status.role, status.leader), (Role::Leader, Some(id(1))));

    propose(&node, 0, 3).await;
    assert_eq!(node.read_committed(|ledger| ledger.0.clone()).await.unwrap(), commands(0, 3));
}

#[tokio::test]
async fn restarts_apply_every_command_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut term = weir_types::ids::Term(0);
    for round in 0..5 {
        let node = start_alone(dir.path()).unwrap();
        let new_term = node.serving().await.unwrap();
        assert!(new_term > term, "term {new_term} after {term}");
        term = new_term;
        assert_eq!(applied(&node), commands(0, round * 10));
        propose(&node, round * 10, round * 10 + 10).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn concurrent_proposals_are_all_applied_and_answered_in_log_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path()).unwrap();
    let proposals: Vec<_> = commands(0, 500)
        .into_iter()
        .map(|command| {
            let node = node.clone();
            tokio::spawn(async move { (node.propose(command.clone()).await.unwrap(), command) })
        })
        .collect();
    let mut answers = Vec::new();
    for proposal in proposals {
        answers.push(proposal.await.unwrap());
    }
    let state = applied(&node);
    assert_eq!(state.len(), 500);
    for (place, command) in answers {
        let place: usize = std::str::from_utf8(&place).unwrap().parse().unwrap();
        assert_eq!(state[place - 1], command);
    }
}

#[tokio::test]
async fn compaction_bounds_the_directory_and_keeps_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let small = Config { compact_entries: 50, ..config(1, &[1]) };
    let node = Node::start(small.clone(), dir.path(), Ledger::default(), Alone).unwrap();
    node.serving().await.unwrap();
    propose(&node, 0, 1000).await;
    node.stop().await;

    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap()).collect();
    let mut names: Vec<_> = files.iter().map(|file| file.file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[0] == "LOCK" && names[1].starts_with("log-") && names[2].starts_with("snapshot-"), "{names:?}");
    let log = files.iter().find(|file| file.file_name().to_string_lossy().starts_with("log-")).unwrap();
    assert!(log.metadata().unwrap().len() < 50 * 100, "{} bytes", log.metadata().unwrap().len());

    let node = Node::start(small, dir.path(), Ledger::default(), Alone).unwrap();
    node.serving().await.unwrap();
    assert_eq!(applied(&node), commands(0, 1000));
    propose(&node, 1000, 1010).await;
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path()).unwrap();
    let refused = start_alone(dir.path()).err().unwrap();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("in use by another process"), "{refused}");
    node.stop().await;
    start_alone(dir.path()).unwrap().serving().await.unwrap();
}

#[tokio::test]
async fn a_stopped_node_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path()).unwrap();
    node.serving().await.unwrap();
    node.stop().await;
    node.stop().await;
    assert_eq!(node.propose("late").await, Err(Error::Stopped));
    assert_eq!(node.barrier().await, Err(Error::Stopped));
    assert_eq!(node.serving().await, Err(Error::Stopped));
    assert_eq!(node.status().borrow().stopped, Some(Ok(())));
}

#[tokio::test]
async fn oversized_proposals_and_strange_messages_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path()).unwrap();
    node.serving().await.unwrap();
    let refused = node.propose(vec![b'x'; (16 << 20) + 1]).await;
    assert_eq!(refused, Err(Error::TooLarge { bytes: (16 << 20) + 1, bytes_max: 16 << 20 }));
    node.step("not a raft message".into());
    propose(&node, 0, 1).await;
}

#[tokio::test]
async fn the_founders_must_include_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Node::start(config(1, &[2, 3]), dir.path(), Ledger::default(), Alone).err().unwrap();
    assert_eq!(refused.code, Code::InvalidArgument);
}

#[tokio::test]
async fn an_added_member_that_never_comes_gets_no_vote_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let quick = Config { tick: Duration::from_millis(2), ..config(1, &[1]) };
    let node = Node::start(quick, dir.path(), Ledger::default(), Alone).unwrap();
    node.serving().await.unwrap();
    propose(&node, 0, 1).await;
    let adding = tokio::spawn({
        let node = node.clone();
        async move { node.change_members(MemberChange::Add(id(2))).await }
    });
    while node.members().await.unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    propose(&node, 1, 20).await;
    let refused = node.change_members(MemberChange::Add(id(3))).await;
    assert_eq!(refused, Err(Error::ChangeRefused("another one is under way".to_owned())));
    let late = "member 2 has not caught up in time and stays without a vote";
    assert_eq!(adding.await.unwrap(), Err(Error::ChangeRefused(late.to_owned())));
    node.stop().await;

    // The membership is durable.
    let node = start_alone(dir.path()).unwrap();
    node.serving().await.unwrap();
    propose(&node, 20, 21).await;
    let votes = |members: Vec<MemberStatus>| members.iter().map(|m| (m.id.get(), m.votes)).collect::<Vec<_>>();
    assert_eq!(votes(node.members().await.unwrap()), [(1, true), (2, false)]);
    node.change_members(MemberChange::Remove(id(2))).await.unwrap();
    node.change_members(MemberChange::Remove(id(2))).await.unwrap();
    assert_eq!(votes(node.members().await.unwrap()), [(1, true)]);
}

#[tokio::test]
async fn the_only_member_cannot_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path()).unwrap();
    node.serving().await.unwrap();
    let refused = node.change_members(MemberChange::Remove(id(1))).await;
    let only = "it would remove the only member that votes";
    assert_eq!(refused, Err(Error::ChangeRefused(only.to_owned())));
    propose(&node, 0, 1).await;
}
