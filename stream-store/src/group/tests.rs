//! Scenarios of reader groups.

use weir_types::error::Facts;
use weir_types::group::{
    CheckpointOwner, GroupActor, GroupCheckpoint, GroupCheckpointState as State, GroupLimits, GroupMode, MemberView,
};
use weir_types::ids::{Attempt, Epoch, GroupName, JobId, PartitionId, ReaderId, SnapshotId};
use weir_types::stream::{Offset, StreamCut};
use weir_types::time::Millis;
use weir_types::{Code, Result};

use super::checkpoint::Start;
use super::state::{Command, Group, Reply};

const LEASE: u64 = 100;

pub(super) fn reader(name: &str) -> ReaderId {
    ReaderId::new(name).unwrap()
}

pub(super) fn id(name: &str) -> SnapshotId {
    SnapshotId::new(name).unwrap()
}

fn job(name: &str) -> JobId {
    JobId::new(name).unwrap()
}

pub(super) fn cut(offsets: &[(u32, u64)]) -> StreamCut {
    StreamCut(offsets.iter().map(|(p, offset)| (PartitionId(*p), Offset(*offset))).collect())
}

fn group(mode: GroupMode, partitions: u32) -> Group {
    let limits = GroupLimits { lease_ms: LEASE, max_retained_checkpoints: 4, ..GroupLimits::default() };
    let positions = StreamCut((0..partitions).map(|p| (PartitionId(p), Offset(0))).collect());
    Group::new(GroupName::new("g").unwrap(), "a/b".parse().unwrap(), mode, limits, positions)
}

pub(super) fn free(partitions: u32) -> Group {
    group(GroupMode::Free, partitions)
}

fn managed(partitions: u32) -> Group {
    group(GroupMode::Managed { job: job("j") }, partitions)
}

fn join(group: &mut Group, now: u64, name: &str) -> MemberView {
    match group.apply(Millis(now), Command::Join { reader: reader(name) }).unwrap() {
        Reply::View(view) => view,
        reply => panic!("{reply:?}"),
    }
}

fn view(group: &Group, name: &str) -> MemberView {
    group.view(&reader(name)).unwrap()
}

fn owned(group: &Group, name: &str) -> Vec<u32> {
    view(group, name).owned.0.keys().map(|partition| partition.0).collect()
}

fn start(group: &mut Group, now: u64, name: &str, owner: CheckpointOwner) -> Result<GroupCheckpoint> {
    start_superseding(group, now, name, owner, &[])
}

fn start_superseding(
    group: &mut Group,
    now: u64,
    name: &str,
    owner: CheckpointOwner,
    supersedes: &[&str],
) -> Result<GroupCheckpoint> {
    let supersedes = supersedes.iter().map(|name| id(name)).collect();
    let start = Start { id: id(name), owner, deadline: Millis(now + 1000), supersedes };
    checkpoint(group.apply(Millis(now), Command::StartCheckpoint(start)))
}

pub(super) fn user() -> CheckpointOwner {
    CheckpointOwner::User("ann".to_owned())
}

fn checkpoint(reply: Result<Reply>) -> Result<GroupCheckpoint> {
    match reply? {
        Reply::Checkpoint(checkpoint) => Ok(checkpoint),
        reply => panic!("{reply:?}"),
    }
}

fn ack(group: &mut Group, name: &str, by: GroupActor, offsets: &[(u32, u64)]) -> Result<GroupCheckpoint> {
    checkpoint(group.apply(Millis(0), Command::Ack { id: id(name), by, offsets: cut(offsets) }))
}

fn as_reader(name: &str, epoch: Epoch) -> GroupActor {
    GroupActor::Reader { reader: reader(name), epoch }
}

fn as_job(attempt: u32) -> GroupActor {
    GroupActor::Job { job: job("j"), attempt: Attempt(attempt) }
}

fn release(group: &mut Group, name: &str, epoch: Epoch, positions: &[(u32, u64)]) {
    let command = Command::Release { reader: reader(name), epoch, positions: cut(positions) };
    group.apply(Millis(0), command).unwrap();
}

fn assign(group: &mut Group, attempt: u32, owners: &[(&str, &[u32])], rewinds: &[(u32, u64)]) -> Result<Reply> {
    let owner = |(name, partitions): &(&str, &[u32])| {
        (reader(name), partitions.iter().map(|partition| PartitionId(*partition)).collect())
    };
    let owners = owners.iter().map(owner).collect();
    let command = Command::Assign { job: job("j"), attempt: Attempt(attempt), owners, rewinds: cut(rewinds) };
    group.apply(Millis(0), command)
}

fn state(group: &Group, name: &str) -> State {
    group.info().checkpoints.into_iter().find(|checkpoint| checkpoint.id == id(name)).unwrap().state
}

#[test]
fn the_first_reader_gets_everything_and_the_second_its_half_by_handover() {
    let mut group = free(4);
    let a = join(&mut group, 0, "a");
    assert_eq!(owned(&group, "a"), [0, 1, 2, 3]);
    let b = join(&mut group, 0, "b");
    assert_eq!(b.owned, cut(&[]));
    assert_eq!(view(&group, "a").revoking, [PartitionId(0), PartitionId(1)]);
    release(&mut group, "a", a.epoch, &[(0, 7), (1, 8)]);
    assert_eq!(owned(&group, "a"), [2, 3]);
    assert_eq!(view(&group, "b").owned, cut(&[(0, 7), (1, 8)]));
    assert_eq!(view(&group, "a").revoking, []);
}

#[test]
fn what_is_asked_back_is_left_alone_if_the_newcomer_goes() {
    let mut group = free(2);
    join(&mut group, 0, "a");
    let b = join(&mut group, 0, "b");
    assert_eq!(view(&group, "a").revoking, [PartitionId(0)]);
    let leave = Command::Leave { reader: reader("b"), epoch: b.epoch, positions: cut(&[]) };
    group.apply(Millis(0), leave).unwrap();
    assert_eq!(view(&group, "a").revoking, []);
    assert_eq!(owned(&group, "a"), [0, 1]);
}

#[test]
fn an_expired_lease_frees_partitions_at_their_last_positions() {
    let mut group = free(2);
    let a = join(&mut group, 0, "a");
    let heartbeat =
        |epoch, positions: &[(u32, u64)]| Command::Heartbeat { reader: reader("a"), epoch, positions: cut(positions) };
    group.apply(Millis(50), heartbeat(a.epoch, &[(0, 5)])).unwrap();
    join(&mut group, 50, "b");
    group.apply(Millis(150), Command::Tick).unwrap();
    assert!(group.view(&reader("a")).is_ok(), "a lease lasts up to its end");
    group.apply(Millis(151), Command::Tick).unwrap();
    assert_eq!(group.view(&reader("a")).unwrap_err().code, Code::Fenced);
    join(&mut group, 152, "c");
    assert_eq!(view(&group, "c").owned.0.len(), 2, "b's lease had expired too");
    assert_eq!(view(&group, "c").owned, cut(&[(0, 5), (1, 0)]));
    assert_eq!(group.apply(Millis(153), heartbeat(a.epoch, &[])).unwrap_err().code, Code::Fenced);
}

#[test]
fn joining_again_fences_the_older_registration() {
    let mut group = free(1);
    let old = join(&mut group, 0, "a");
    let new = join(&mut group, 1, "a");
    assert!(new.epoch > old.epoch);
    assert_eq!(new.owned, cut(&[(0, 0)]));
    let late = Command::Leave { reader: reader("a"), epoch: old.epoch, positions: cut(&[(0, 9)]) };
    assert_eq!(group.apply(Millis(2), late).unwrap_err().code, Code::Fenced);
    assert_eq!(view(&group, "a").owned, cut(&[(0, 0)]));
}

#[test]
fn nobody_joins_the_group_of_a_job() {
    let mut group = managed(1);
    let error = group.apply(Millis(0), Command::Join { reader: reader("a") }).unwrap_err();
    assert_eq!(error.code, Code::GroupInUse);
}

#[test]
fn a_checkpoint_completes_when_every_partition_has_an_offset() {
    let mut group = free(3);
    let a = join(&mut group, 0, "a");
    let b = join(&mut group, 0, "b");
    release(&mut group, "a", a.epoch, &[(0, 4)]);
    start(&mut group, 1, "chk-1", user()).unwrap();
    assert_eq!(view(&group, "a").checkpoints, [id("chk-1")]);
    let half = ack(&mut group, "chk-1", as_reader("a", a.epoch), &[(1, 10), (2, 20)]).unwrap();
    assert_eq!((half.state, half.missing), (State::Outstanding, vec![PartitionId(0)]));
    assert_eq!(view(&group, "a").checkpoints, []);
    let foreign = ack(&mut group, "chk-1", as_reader("a", a.epoch), &[(0, 1)]).unwrap_err();
    assert_eq!(foreign.code, Code::Fenced);
    let whole = ack(&mut group, "chk-1", as_reader("b", b.epoch), &[(0, 6)]).unwrap();
    assert_eq!((whole.state, whole.offsets), (State::Completed, cut(&[(0, 6), (1, 10), (2, 20)])));
    assert_eq!(group.checkpoint_cut(&id("chk-1")).unwrap(), cut(&[(0, 6), (1, 10), (2, 20)]));
}

#[test]
fn a_group_without_readers_completes_a_checkpoint_at_its_positions() {
    let mut group = free(2);
    let done = start(&mut group, 0, "chk-1", user()).unwrap();
    assert_eq!((done.state, done.offsets), (State::Completed, cut(&[(0, 0), (1, 0)])));
}

#[test]
fn nothing_moves_while_a_checkpoint_is_outstanding() {
    let mut group = free(2);
    let a = join(&mut group, 0, "a");
    start(&mut group, 0, "chk-1", user()).unwrap();
    join(&mut group, 0, "b");
    assert_eq!(view(&group, "a").revoking, []);
    ack(&mut group, "chk-1", as_reader("a", a.epoch), &[(0, 1), (1, 1)]).unwrap();
    assert_eq!(view(&group, "a").revoking, [PartitionId(0)]);
}

#[test]
fn a_dead_readers_positions_complete_the_checkpoint_and_its_partitions_wait() {
    let mut group = free(2);
    let a = join(&mut group, 0, "a");
    let b = join(&mut group, 90, "b");
    let heartbeat = Command::Heartbeat { reader: reader("a"), epoch: a.epoch, positions: cut(&[(0, 3)]) };
    group.apply(Millis(1), heartbeat).unwrap();
    release(&mut group, "a", a.epoch, &[(0, 4)]);
    assert_eq!(owned(&group, "b"), [0]);
    start(&mut group, 95, "chk-1", user()).unwrap();
    group.apply(Millis(110), Command::Tick).unwrap();
    assert_eq!(group.info().unowned, [PartitionId(1)]);
    let done = ack(&mut group, "chk-1", as_reader("b", b.epoch), &[(0, 9)]).unwrap();
    assert_eq!((done.state, done.offsets), (State::Completed, cut(&[(0, 9), (1, 0)])));
    assert_eq!(owned(&group, "b"), [0, 1]);
}

#[test]
fn starting_again_by_the_same_name_starts_nothing() {
    let mut group = free(1);
    join(&mut group, 0, "a");
    let first = start(&mut group, 5, "chk-1", user()).unwrap();
    let again = start(&mut group, 9, "chk-1", user()).unwrap();
    assert_eq!(first, again);
    assert_eq!(group.info().checkpoints.len(), 1);
    let other = start(&mut group, 9, "chk-1", CheckpointOwner::User("bob".to_owned())).unwrap_err();
    assert_eq!(other.code, Code::AlreadyExists);
}

#[test]
fn the_outstanding_limit_names_the_blockers_and_keeps_a_place_for_the_job() {
    let mut group = managed(1);
    assign(&mut group, 1, &[("r", &[0])], &[]).unwrap();
    start(&mut group, 0, "u-1", user()).unwrap();
    start(&mut group, 0, "u-2", user()).unwrap();
    let refused = start(&mut group, 0, "u-3", user()).unwrap_err();
    assert_eq!(refused.code, Code::GroupLimitExceeded);
    let blockers = vec!["u-1".to_owned(), "u-2".to_owned()];
    assert_eq!(refused.facts.as_deref(), Some(&Facts::GroupLimit { limit: 2, blockers }));
    start(&mut group, 0, "chk-1", CheckpointOwner::Job(job("j"))).unwrap();
    let refused = start(&mut group, 0, "chk-2", CheckpointOwner::Job(job("j"))).unwrap_err();
    let blockers = ["u-1", "u-2", "chk-1"].map(str::to_owned).to_vec();
    assert_eq!(refused.facts.as_deref(), Some(&Facts::GroupLimit { limit: 3, blockers }));
    group.apply(Millis(0), Command::Cancel { id: id("u-1"), job: None }).unwrap();
    start(&mut group, 0, "chk-2", CheckpointOwner::Job(job("j"))).unwrap();
}

#[test]
fn the_retained_limit_does_not_count_what_will_be_superseded() {
    let mut group = free(1);
    for name in ["c-1", "c-2", "c-3", "c-4"] {
        start(&mut group, 0, name, user()).unwrap();
    }
    let refused = start(&mut group, 0, "c-5", user()).unwrap_err();
    let blockers = ["c-1", "c-2", "c-3", "c-4"].map(str::to_owned).to_vec();
    assert_eq!(refused.facts.as_deref(), Some(&Facts::GroupLimit { limit: 4, blockers }));
    start_superseding(&mut group, 0, "c-5", user(), &["c-1"]).unwrap();
    group.apply(Millis(0), Command::ReleaseCheckpoint { id: id("c-1"), job: None }).unwrap();
    assert_eq!(state(&group, "c-1"), State::Released);
}

#[test]
fn an_outstanding_checkpoint_is_dropped_at_its_deadline() {
    let mut group = free(1);
    let a = join(&mut group, 0, "a");
    start(&mut group, 0, "chk-1", user()).unwrap();
    group.resume(Millis(990));
    group.apply(Millis(999), Command::Tick).unwrap();
    assert_eq!(state(&group, "chk-1"), State::Outstanding);
    group.apply(Millis(1000), Command::Tick).unwrap();
    assert_eq!(state(&group, "chk-1"), State::Expired);
    assert_eq!(ack(&mut group, "chk-1", as_reader("a", a.epoch), &[(0, 1)]).unwrap_err().code, Code::Fenced);
    assert_eq!(start(&mut group, 1001, "chk-1", user()).unwrap().state, State::Expired);
}

#[test]
fn an_assignment_counts_once_and_fences_older_attempts() {
    let mut group = managed(2);
    assign(&mut group, 2, &[("r0", &[0]), ("r1", &[1])], &[(0, 5), (1, 5)]).unwrap();
    assert_eq!(view(&group, "r0").owned, cut(&[(0, 5)]));
    let commit = Command::Commit { by: as_job(2), positions: cut(&[(0, 9)]) };
    group.apply(Millis(0), commit).unwrap();
    // The repetition of a lost answer must not rewind what was read since.
    assign(&mut group, 2, &[("r0", &[0]), ("r1", &[1])], &[(0, 5), (1, 5)]).unwrap();
    assert_eq!(view(&group, "r0").owned, cut(&[(0, 9)]));
    assert_eq!(assign(&mut group, 2, &[("r0", &[0, 1])], &[(0, 5)]).unwrap_err().code, Code::Fenced);
    assert_eq!(assign(&mut group, 1, &[("r0", &[0])], &[]).unwrap_err().code, Code::Fenced);
    assign(&mut group, 3, &[("r0", &[0, 1])], &[(0, 6)]).unwrap();
    let late = Command::Commit { by: as_job(2), positions: cut(&[(0, 99)]) };
    assert_eq!(group.apply(Millis(0), late).unwrap_err().code, Code::Fenced);
    assert_eq!(view(&group, "r0").owned, cut(&[(0, 6), (1, 5)]));
}

#[test]
fn a_new_attempt_cancels_the_jobs_checkpoints_and_keeps_the_users() {
    let mut group = managed(1);
    assign(&mut group, 1, &[("r", &[0])], &[]).unwrap();
    start(&mut group, 0, "chk-1", CheckpointOwner::Job(job("j"))).unwrap();
    start(&mut group, 0, "u-1", user()).unwrap();
    assign(&mut group, 2, &[("r", &[0])], &[]).unwrap();
    assert_eq!(state(&group, "chk-1"), State::Cancelled);
    assert_eq!(state(&group, "u-1"), State::Outstanding);
    ack(&mut group, "u-1", as_reader("r", Epoch(2)), &[(0, 4)]).unwrap();
    assert_eq!(state(&group, "u-1"), State::Completed);
}

#[test]
fn acknowledging_does_not_move_a_jobs_positions() {
    let mut group = managed(1);
    assign(&mut group, 1, &[("r", &[0])], &[]).unwrap();
    start(&mut group, 0, "chk-1", CheckpointOwner::Job(job("j"))).unwrap();
    ack(&mut group, "chk-1", as_job(1), &[(0, 50)]).unwrap();
    assert_eq!(group.info().positions, cut(&[(0, 0)]));
}

#[test]
fn strangers_may_not_end_or_start_a_jobs_checkpoints() {
    let mut group = managed(1);
    assign(&mut group, 1, &[("r", &[0])], &[]).unwrap();
    start(&mut group, 0, "chk-1", CheckpointOwner::Job(job("j"))).unwrap();
    let cancel = |owner| Command::Cancel { id: id("chk-1"), job: owner };
    assert_eq!(group.apply(Millis(0), cancel(None)).unwrap_err().code, Code::GroupInUse);
    assert_eq!(group.apply(Millis(0), cancel(Some(job("k")))).unwrap_err().code, Code::GroupInUse);
    let other = start(&mut group, 0, "chk-2", CheckpointOwner::Job(job("k"))).unwrap_err();
    assert_eq!(other.code, Code::GroupInUse);
    group.apply(Millis(0), cancel(Some(job("j")))).unwrap();
}

#[test]
fn a_reset_fences_readers_and_cancels_what_is_outstanding() {
    let mut group = free(2);
    let a = join(&mut group, 0, "a");
    start(&mut group, 0, "chk-1", user()).unwrap();
    group.apply(Millis(0), Command::Reset { job: None, positions: cut(&[(1, 7)]) }).unwrap();
    assert_eq!(state(&group, "chk-1"), State::Cancelled);
    let late = Command::Heartbeat { reader: reader("a"), epoch: a.epoch, positions: cut(&[]) };
    assert_eq!(group.apply(Millis(0), late).unwrap_err().code, Code::Fenced);
    assert_eq!(join(&mut group, 0, "a").owned, cut(&[(0, 0), (1, 7)]));
    let mut group = managed(1);
    let reset = Command::Reset { job: None, positions: cut(&[(0, 1)]) };
    assert_eq!(group.apply(Millis(0), reset).unwrap_err().code, Code::GroupInUse);
}

#[test]
fn renewing_a_lease_is_no_change_worth_telling() {
    let mut group = free(1);
    let a = join(&mut group, 0, "a");
    let heartbeat = Command::Heartbeat { reader: reader("a"), epoch: a.epoch, positions: cut(&[]) };
    let before = group.version();
    group.apply(Millis(50), heartbeat).unwrap();
    assert_eq!(group.version(), before);
    group.apply(Millis(140), Command::Tick).unwrap();
    assert_eq!(owned(&group, "a"), [0]);
}
