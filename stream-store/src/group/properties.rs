//! What holds of reader groups under any sequence of commands.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weir_types::Result;
use weir_types::group::{GroupActor, GroupCheckpointState as State, MemberView};
use weir_types::ids::{Epoch, PartitionId, ReaderId};
use weir_types::stream::{Offset, StreamCut};
use weir_types::time::Millis;

use super::checkpoint::Start;
use super::state::{Command, Group, Reply};
use super::tests::{cut, free, id, reader, user};

/// What a random client does next; readers use the epoch that they got last, which may be over.
#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Leave(u8),
    Heartbeat(u8),
    ReleaseRevoked(u8),
    ReleaseAll(u8),
    Start(u8),
    AckAll(u8),
    Cancel(u8),
    Forget(u8),
    Reset,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0u8..4;
    prop_oneof![
        who.clone().prop_map(Step::Join),
        who.clone().prop_map(Step::Leave),
        who.clone().prop_map(Step::Heartbeat),
        who.clone().prop_map(Step::ReleaseRevoked),
        who.clone().prop_map(Step::ReleaseAll),
        (0u8..6).prop_map(Step::Start),
        who.prop_map(Step::AckAll),
        (0u8..6).prop_map(Step::Cancel),
        (0u8..6).prop_map(Step::Forget),
        Just(Step::Reset),
        (1u64..120).prop_map(Step::Pass),
    ]
}

struct World {
    group: Group,
    now: u64,
    epochs: BTreeMap<u8, Epoch>,
    read: u64,
}

impl World {
    fn positions(&mut self, who: u8, of: impl Fn(&MemberView) -> Vec<PartitionId>) -> StreamCut {
        self.read += 1;
        let Ok(view) = self.group.view(&reader(&format!("r{who}"))) else { return cut(&[]) };
        StreamCut(of(&view).into_iter().map(|partition| (partition, Offset(self.read))).collect())
    }

    fn apply(&mut self, step: Step) -> Result<Reply> {
        let name = |who: u8| reader(&format!("r{who}"));
        let epoch = |world: &Self, who: u8| world.epochs.get(&who).copied().unwrap_or(Epoch(0));
        let all = |view: &MemberView| view.owned.0.keys().copied().collect::<Vec<_>>();
        let command = match step {
            Step::Join(who) => Command::Join { reader: name(who) },
            Step::Leave(who) => {
                let positions = self.positions(who, all);
                Command::Leave { reader: name(who), epoch: epoch(self, who), positions }
            }
            Step::Heartbeat(who) => {
                let positions = self.positions(who, all);
                Command::Heartbeat { reader: name(who), epoch: epoch(self, who), positions }
            }
            Step::ReleaseRevoked(who) => {
                let positions = self.positions(who, |view| view.revoking.clone());
                Command::Release { reader: name(who), epoch: epoch(self, who), positions }
            }
            Step::ReleaseAll(who) => {
                let positions = self.positions(who, all);
                Command::Release { reader: name(who), epoch: epoch(self, who), positions }
            }
            Step::Start(n) => Command::StartCheckpoint(Start {
                id: id(&format!("c{n}")),
                owner: user(),
                deadline: Millis(self.now + 150),
                supersedes: Vec::new(),
            }),
            Step::AckAll(who) => {
                let offsets = self.positions(who, all);
                let waiting = self.group.view(&name(who)).ok().and_then(|view| view.checkpoints.first().cloned());
                let by = GroupActor::Reader { reader: name(who), epoch: epoch(self, who) };
                Command::Ack { id: waiting.unwrap_or_else(|| id("none")), by, offsets }
            }
            Step::Cancel(n) => Command::Cancel { id: id(&format!("c{n}")), job: None },
            Step::Forget(n) => Command::ReleaseCheckpoint { id: id(&format!("c{n}")), job: None },
            Step::Reset => Command::Reset { job: None, positions: cut(&[(0, self.read)]) },
            Step::Pass(ms) => {
                self.now += ms;
                Command::Tick
            }
        };
        let joiner = if let Command::Join { reader } = &command { Some(reader.clone()) } else { None };
        let reply = self.group.apply(Millis(self.now), command)?;
        if let (Reply::View(view), Some(joiner)) = (&reply, joiner) {
            let who = joiner.as_str()[1..].parse().unwrap();
            self.epochs.insert(who, view.epoch);
        }
        Ok(reply)
    }
}

fn owners(group: &Group) -> BTreeMap<PartitionId, ReaderId> {
    let info = group.info();
    let mut owners = BTreeMap::new();
    for member in info.members {
        for partition in member.partitions {
            assert!(owners.insert(partition, member.reader.clone()).is_none(), "{partition} has two owners");
        }
    }
    let unowned: BTreeSet<_> = info.unowned.into_iter().collect();
    assert!(unowned.iter().all(|partition| !owners.contains_key(partition)));
    assert_eq!(unowned.len() + owners.len(), info.positions.0.len(), "a partition is neither owned nor free");
    owners
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn ownership_and_checkpoints_keep_their_promises(
        partitions in 1u32..7,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = World { group: free(partitions), now: 0, epochs: BTreeMap::new(), read: 0 };
        for step in steps {
            let before = world.group.clone();
            let outcome = world.apply(step.clone());
            let after = &world.group;
            if outcome.is_err() {
                prop_assert_eq!(&before, after, "a refused command left a trace");
            }
            let (had, has) = (owners(&before), owners(after));
            let outstanding =
                |group: &Group| group.info().checkpoints.iter().any(|c| c.state == State::Outstanding);
            for (partition, owner) in &has {
                if had.get(partition) != Some(owner) {
                    prop_assert!(!outstanding(after), "{partition} got an owner during a checkpoint: {step:?}");
                    let handed_over = match (had.get(partition), &step) {
                        (None, _) => true,
                        // Only its own reader, or its death, takes a partition from somebody.
                        (Some(old), Step::Leave(n) | Step::ReleaseRevoked(n) | Step::ReleaseAll(n) | Step::Join(n)) => {
                            old.as_str() == format!("r{n}")
                        }
                        (Some(_), Step::Pass(_)) => true,
                        (Some(_), _) => false,
                    };
                    prop_assert!(handed_over, "{partition} was taken away: {step:?}");
                }
            }
            for checkpoint in after.info().checkpoints {
                let complete = checkpoint.missing.is_empty();
                match checkpoint.state {
                    State::Completed | State::Released => prop_assert!(complete),
                    State::Outstanding => prop_assert!(!complete),
                    State::Expired | State::Cancelled => {}
                }
            }
            let bytes = serde_json::to_vec(after).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Group>(&bytes).unwrap(), after, "not what would be durable");
        }
    }

    #[test]
    fn readers_that_follow_their_views_end_with_equal_shares(partitions in 1u32..20, readers in 1u8..6) {
        let mut world = World { group: free(partitions), now: 0, epochs: BTreeMap::new(), read: 0 };
        for who in 0..readers {
            world.apply(Step::Join(who)).unwrap();
        }
        for who in (0..readers).cycle().take(3 * readers as usize) {
            world.apply(Step::ReleaseRevoked(who)).unwrap();
        }
        let shares: Vec<usize> = world.group.info().members.iter().map(|member| member.partitions.len()).collect();
        prop_assert_eq!(shares.iter().sum::<usize>(), partitions as usize);
        prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{:?}", shares);
    }
}
