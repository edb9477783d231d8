//! Tests of wiring: both ends of every channel agree, whoever plans.

use std::collections::{BTreeMap, BTreeSet};

use weir_types::deployment::SplitAssignment;

use super::*;
use crate::fixtures::{at_start, deployment, edge, graph, sink, source};

fn two_managers(parallelism: u32) -> Deployment {
    let operators = vec![source(0, "a", None), source(1, "b", None), sink(2, "out"), sink(3, "copy")];
    let edges = vec![
        edge(0, 2, Exchange::Hash { keys: vec![0] }),
        edge(1, 2, Exchange::Rebalance),
        edge(0, 3, Exchange::Forward),
    ];
    let splits = (0..5).map(|split| at_start(&format!("p-{split}"))).collect();
    let mut deployment = deployment(graph(operators, edges, parallelism), 1, &[("a", splits)]);
    for placement in &mut deployment.placements {
        let name = format!("tm-{}", placement.index.0 % 2);
        placement.data_address = format!("{name}:1");
        placement.task_manager = TaskManagerId::new(name).unwrap();
    }
    deployment
}

fn managers() -> [TaskManagerId; 2] {
    ["tm-0", "tm-1"].map(|name| TaskManagerId::new(name).unwrap())
}

#[test]
fn every_channel_has_one_sender_and_one_receiver_that_know_each_other() {
    let deployment = two_managers(3);
    let mut senders = BTreeMap::new();
    let mut receivers = BTreeMap::new();
    for this in managers() {
        for plan in plan_subtasks(&deployment, &this).unwrap() {
            for (ends, mine) in [(&plan.outputs, &mut senders), (&plan.inputs, &mut receivers)] {
                for end in ends {
                    let before = mine.insert(end.channel.clone(), (this.clone(), plan.id.clone(), end.clone()));
                    assert!(before.is_none(), "{} appears twice", end.channel);
                }
            }
        }
    }
    assert_eq!(senders.len(), 3 * 3 + 3 * 3 + 3);
    assert_eq!(senders.keys().collect::<Vec<_>>(), receivers.keys().collect::<Vec<_>>());
    for (channel, (from, sender, out)) in &senders {
        let (to, receiver, into) = &receivers[channel];
        assert_eq!((&out.subtask, &into.subtask), (receiver, sender));
        let peer =
            |other: &TaskManagerId| Peer::Remote { task_manager: other.clone(), data_address: format!("{other}:1") };
        let expected = if from == to { (Peer::Local, Peer::Local) } else { (peer(to), peer(from)) };
        assert_eq!((out.peer.clone(), into.peer.clone()), expected);
    }
}

#[test]
fn outputs_are_in_order_of_the_receiving_subtasks() {
    for plan in plan_subtasks(&two_managers(4), &managers()[0]).unwrap() {
        for edge in 0..3 {
            let targets: Vec<u32> =
                plan.outputs.iter().filter(|end| end.channel.edge == edge).map(|end| end.channel.to.0).collect();
            assert!(targets.is_sorted());
            assert!(edge != 2 || targets.is_empty() || targets == [plan.id.index.0], "forward leads straight on");
        }
    }
}

#[test]
fn every_split_is_read_by_one_subtask() {
    let deployment = two_managers(3);
    let mut splits = Vec::new();
    for this in managers() {
        for plan in plan_subtasks(&deployment, &this).unwrap() {
            splits.extend(plan.splits.into_iter().map(|split| split.split));
        }
    }
    splits.sort();
    assert_eq!(splits, ["p-0", "p-1", "p-2", "p-3", "p-4"]);
}

#[test]
fn key_ranges_of_a_chain_tile_the_hash_space() {
    let deployment = two_managers(3);
    let plans: Vec<_> = managers().iter().flat_map(|this| plan_subtasks(&deployment, this).unwrap()).collect();
    let ranges: BTreeSet<_> = plans
        .iter()
        .filter(|plan| plan.chain.id.0 == 2)
        .map(|plan| (plan.key_range.start(), plan.key_range.end()))
        .collect();
    let ranges: Vec<_> = ranges.into_iter().collect();
    assert_eq!((ranges[0].0, ranges[2].1), (0, u64::MAX));
    assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
}

#[test]
fn a_deployment_that_does_not_fit_together_is_refused() {
    let this = &managers()[0];
    let mut missing = two_managers(2);
    missing.placements.pop();
    assert!(plan_subtasks(&missing, this).unwrap_err().message.contains("placed nowhere"));
    let mut twice = two_managers(2);
    twice.placements.push(twice.placements[0].clone());
    assert!(plan_subtasks(&twice, this).unwrap_err().message.contains("placed twice"));
    let mut stray = two_managers(2);
    let uid = "source-a".to_owned();
    stray.splits.push(SplitAssignment { uid, index: SubtaskIndex(2), position: at_start("p-9") });
    assert!(plan_subtasks(&stray, this).unwrap_err().message.contains("p-9"));
    let mut uneven = two_managers(2);
    uneven.graph.operators[3].parallelism_max = Some(weir_types::ids::Parallelism::ONE);
    assert!(plan_subtasks(&uneven, this).unwrap_err().message.contains("forward"));
}
