//! The replicated state: what its commands do, that they do the same everywhere, and that all of it survives encoding.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use proptest::prelude::*;
use prost::Message;
use weir_coordination::checkpoint::{Contents, SubtaskShare, Trigger};
use weir_coordination::metadata::{
    Command, Completion, Deleter, Import, NewJob, Origin, Output, PassedOver, ReaderGroup, Reserve, RestoreRecord,
    SourceRecord, StartAttempt, State,
};
use weir_proto::convert::metadata::{decode_command, decode_reply, encode_command, encode_reply};
use weir_proto::convert::metadata_state::{decode_state, encode_state};
use weir_proto::pb::metadata::v1 as pb;
use weir_types::annotations::AnnotationChange;
use weir_types::deployment::{Placement, SplitAssignment};
use weir_types::error::Facts;
use weir_types::graph::{JobGraph, JobOptions};
use weir_types::ids::{
    Attempt, BarrierId, ChainId, ClusterId, GroupName, JobId, Nonce, Parallelism, RequestId, SnapshotId, SubtaskIndex,
    TaskManagerId,
};
use weir_types::job::{Followed, JobChange, JobFailure, JobState};
use weir_types::output::{CommitMark, END_OF_INPUT, Settlement};
use weir_types::quota::{QuotaDefaults, QuotaLevel, QuotaLimits};
use weir_types::restore::ClaimMode;
use weir_types::retention::{RetentionPolicy, Schedule};
use weir_types::snapshot::SnapshotKind::{Checkpoint, Savepoint};
use weir_types::snapshot::{
    Annotations, SharedFile, SnapshotKind, SnapshotState, SnapshotTimings, SourcePositions, SplitPosition, StopMode,
    Verifier,
};
use weir_types::time::Millis;
use weir_types::{Code, Error};

fn job(number: u32) -> JobId {
    JobId::new(format!("{number:08}aaaa")).unwrap()
}

fn snapshot(kind: SnapshotKind, number: u64) -> SnapshotId {
    SnapshotId::new(format!("{}-00000001-{number}", kind.prefix())).unwrap()
}

fn split() -> SplitPosition {
    SplitPosition { split: "p-0".into(), offset: 3, end: Some(9), watermark_ms: -1, finished: false }
}

fn new_job(number: u32, request: Option<&str>, restore: Option<RestoreRecord>) -> Command {
    let options = JobOptions { checkpoints_retained: 2, ..JobOptions::default() };
    Command::CreateJob(Box::new(NewJob {
        allow_duplicates: true,
        request: request.map(|id| RequestId::new(id).unwrap()),
        id: job(number),
        name: "clicks".into(),
        sql: "INSERT …".into(),
        owner: "ada".into(),
        namespace: "default".into(),
        graph: JobGraph {
            name: "clicks".into(),
            options,
            operators: vec![],
            edges: vec![],
            expression_version: "datafusion-proto 55".into(),
        },
        plan: "plan".into(),
        sources: vec![SourceRecord {
            uid: "src".into(),
            table: "t".into(),
            chain: ChainId(0),
            parallelism: Parallelism::ONE,
            group: Some(ReaderGroup { name: GroupName::new("g").unwrap(), stream: "a/b".parse().unwrap() }),
            splits: vec![split()],
        }],
        restore,
    }))
}

fn start(number: u32, attempt: u32) -> Command {
    let placement = Placement {
        chain: ChainId(0),
        index: SubtaskIndex(0),
        task_manager: TaskManagerId::new("tm").unwrap(),
        slot: 0,
        data_address: "h:1".into(),
    };
    let splits = vec![SplitAssignment { uid: "src".into(), index: SubtaskIndex(0), position: split() }];
    let (job, attempt) = (job(number), Attempt(attempt));
    Command::StartAttempt(StartAttempt {
        job,
        attempt,
        placements: vec![placement],
        splits,
        from: Some("sp-1".to_owned()),
        passed_over: vec![PassedOver { snapshot: "sp-2".to_owned(), reason: "it is damaged".to_owned() }],
        parallelism: attempt.0.is_multiple_of(2).then_some(Parallelism::ONE),
    })
}

fn change(number: u32, change: JobChange) -> Command {
    Command::ChangeJob { job: job(number), change, failure: None }
}

fn reserve(kind: SnapshotKind, number: u64, trigger: Trigger, request: Option<&str>) -> Command {
    Command::Reserve(Box::new(Reserve {
        request: request.map(|id| RequestId::new(id).unwrap()),
        snapshot: snapshot(kind, number),
        job: job(1),
        kind,
        trigger,
        barrier: BarrierId(number),
        attempt: Attempt(1),
        nonce: Nonce(format!("n{number}")),
        directory: format!("/d/{number}"),
        deadline: Millis(99),
        owner: String::new(),
        annotations: Annotations { name: Some("x".into()), ..Annotations::default() },
        plan_hash: "00ff".into(),
        subtasks: 1,
        evict: false,
        estimate_bytes: number,
    }))
}

fn complete(kind: SnapshotKind, number: u64, nonce: &str) -> Command {
    let timings = SnapshotTimings { start_delay_us: 1, alignment_us: 2, sync_us: 3, async_us: 4 };
    let contents = Contents {
        operators: vec![],
        sources: vec![SourcePositions { uid: "src".into(), splits: vec![split()] }],
        shares: vec![SubtaskShare { chain: ChainId(0), index: SubtaskIndex(0), timings, bytes: 10 }],
        bytes: 10,
        rows: 2,
        manifest_bytes: 1,
        has_output: true,
        shared: match kind {
            Checkpoint => vec![SharedFile { name: format!("{}+f", snapshot(kind, number)), bytes: 3 }],
            Savepoint => vec![],
        },
    };
    Command::Complete(Box::new(Completion {
        snapshot: snapshot(kind, number),
        nonce: Nonce(format!("{nonce}{number}")),
        contents,
    }))
}

/// A checkpoint that needs the file of an earlier one.
fn complete_on(number: u64, base: u64) -> Command {
    let Command::Complete(mut completion) = complete(Checkpoint, number, "n") else { unreachable!() };
    completion.contents.shared.push(SharedFile { name: format!("{}+f", snapshot(Checkpoint, base)), bytes: 3 });
    Command::Complete(completion)
}

fn abort(kind: SnapshotKind, number: u64) -> Command {
    let nonce = Nonce(format!("n{number}"));
    Command::Abort { snapshot: snapshot(kind, number), nonce, failure: Error::new(Code::Timeout, "late") }
}

fn delete(kind: SnapshotKind, number: u64) -> Command {
    let by = Deleter::User("ann".into());
    Command::MarkDeleted { snapshot: snapshot(kind, number), request: None, force: false, by }
}

/// A state with one running job.
fn running() -> State {
    let mut state = State::default();
    for command in [new_job(1, None, None), start(1, 1), change(1, JobChange::Run)] {
        state.apply(Millis(1), command).unwrap();
    }
    state
}

fn take(state: &mut State, kind: SnapshotKind, number: u64) -> Vec<SnapshotId> {
    state.apply(Millis(number), reserve(kind, number, Trigger::Periodic, None)).unwrap();
    state.apply(Millis(number), complete(kind, number, "n")).unwrap().retired
}

fn state_of(state: &State, kind: SnapshotKind, number: u64) -> Option<SnapshotState> {
    state.snapshots.get(&snapshot(kind, number)).map(|entry| entry.state)
}

#[test]
fn superseded_checkpoints_are_retired_and_savepoints_never() {
    let mut state = running();
    assert_eq!(take(&mut state, Checkpoint, 1), []);
    assert_eq!(take(&mut state, Savepoint, 2), []);
    assert_eq!(take(&mut state, Checkpoint, 3), []);
    assert_eq!(state.superseded_by_next(&job(1)), [snapshot(Checkpoint, 1)]);
    assert_eq!(take(&mut state, Checkpoint, 4), [snapshot(Checkpoint, 1)]);
    assert_eq!(state_of(&state, Checkpoint, 1), Some(SnapshotState::Deleting));
    assert_eq!(state_of(&state, Savepoint, 2), Some(SnapshotState::Completed));
    assert_eq!(state.recovery_point(&job(1)).unwrap().id, snapshot(Checkpoint, 4));
    state.apply(Millis(9), Command::Deleted { snapshot: snapshot(Checkpoint, 1) }).unwrap();
    assert_eq!(state_of(&state, Checkpoint, 1), None);
    // Only what is marked goes.
    state.apply(Millis(9), Command::Deleted { snapshot: snapshot(Savepoint, 2) }).unwrap();
    assert_eq!(state_of(&state, Savepoint, 2), Some(SnapshotState::Completed));
}

#[test]
fn what_a_job_would_restart_from_cannot_be_deleted() {
    let mut state = running();
    take(&mut state, Savepoint, 1);
    let error = state.apply(Millis(2), delete(Savepoint, 1)).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.detail.unwrap().contains(job(1).as_str()), "the holder is named");
    take(&mut state, Savepoint, 2);
    state.apply(Millis(3), delete(Savepoint, 1)).unwrap();
    assert_eq!(state_of(&state, Savepoint, 1), Some(SnapshotState::Deleting));
}

#[test]
fn what_a_job_was_restored_from_is_held_until_it_has_its_own() {
    let mut state = running();
    take(&mut state, Savepoint, 1);
    state.apply(Millis(2), change(1, JobChange::Finish)).unwrap();
    let snapshot = Some(snapshot(Savepoint, 1));
    let claim = ClaimMode::NoClaim;
    let restore = RestoreRecord { directory: "/d/1".into(), snapshot, allow_non_restored_state: false, claim };
    state.apply(Millis(3), new_job(2, None, Some(restore))).unwrap();
    assert_eq!(state.apply(Millis(4), delete(Savepoint, 1)).unwrap_err().code, Code::FailedPrecondition);
    state.apply(Millis(5), change(2, JobChange::Cancel)).unwrap();
    state.apply(Millis(5), change(2, JobChange::EndCancelled)).unwrap();
    let error = state.apply(Millis(6), delete(Savepoint, 1)).unwrap_err();
    assert!(error.message.contains("is the last completed one"), "nobody holds it any more: {error}");
}

#[test]
fn a_history_of_failures_survives_the_log_and_its_snapshots() {
    let mut state = running();
    let failure = |change, followed| Command::ChangeJob {
        job: job(1),
        change,
        failure: Some(Box::new(JobFailure {
            at: Millis(7),
            attempt: Attempt(1),
            subtask: Some((ChainId(2), SubtaskIndex(1))),
            task_manager: Some(TaskManagerId::new("tm").unwrap()),
            error: Error::new(Code::Io, "broken").with_detail("why"),
            followed,
        })),
    };
    for command in [
        failure(JobChange::Restart, Followed::Restart { delay_ms: 5 }),
        start(1, 2),
        failure(JobChange::Fail, Followed::Fail),
    ] {
        let (now, decoded) = decode_command(&encode_command(Millis(8), &command)).unwrap();
        assert_eq!(decoded, command);
        state.apply(now, decoded).unwrap();
    }
    let read = decode_state(&encode_state(&state)).unwrap();
    assert_eq!(read, state);
    let failures = &read.jobs[&job(1)].failures;
    assert_eq!((failures.total, failures.newest.len()), (2, 2));
    assert_eq!(failures.newest[1].followed, Followed::Fail);
}

#[test]
fn a_failure_of_a_build_without_a_history_is_read() {
    let failure = Some((&Error::new(Code::Io, "broken")).into());
    let change = pb::JobChange::Fail.into();
    let change = pb::ChangeJob { job: job(1).to_string(), change, failure, cause: None };
    let command = pb::Command { version: 1, now_ms: 9, command: Some(pb::command::Command::ChangeJob(change)) };
    let (now, command) = decode_command(&command.encode_to_vec()).unwrap();
    let mut state = running();
    state.apply(now, command).unwrap();
    let failure = state.jobs[&job(1)].failures.newest[0].clone();
    assert_eq!((failure.at, failure.followed, failure.error.code), (Millis(9), Followed::Fail, Code::Io));

    let mut older = pb::State::decode(encode_state(&state).as_slice()).unwrap();
    let record = older.jobs.iter_mut().find(|job| !job.failures.is_empty()).unwrap();
    record.failure = record.failures.pop().and_then(|failure| failure.error);
    record.failures_total = 0;
    let read = decode_state(&older.encode_to_vec()).unwrap();
    let failures = &read.jobs[&job(1)].failures;
    assert_eq!((failures.total, failures.last().map(|error| error.code)), (1, Some(Code::Io)));
}

#[test]
fn decisions_about_output_survive_the_log_and_its_snapshots() {
    let mut state = running();
    let mark = CommitMark { attempt: Attempt(1), barrier: END_OF_INPUT };
    let duty = Settlement { commit: Some(mark), below: Some(Attempt(2)) };
    let discharged = Command::Discharged { job: job(1), duty };
    assert_eq!(decode_command(&encode_command(Millis(3), &discharged)).unwrap(), (Millis(3), discharged));
    let record = state.jobs.get_mut(&job(1)).unwrap();
    record.output = Output { committed: Some(mark), duty: Some(duty), ending: Some(JobChange::EndStopped) };
    record.allow_duplicates = false;
    assert_eq!(decode_state(&encode_state(&state)).unwrap(), state);
}

#[test]
fn a_claim_survives_the_log_and_its_snapshots() {
    let mut state = running();
    take(&mut state, Savepoint, 1);
    state.apply(Millis(2), change(1, JobChange::Finish)).unwrap();
    let id = snapshot(Savepoint, 1);
    let restore = RestoreRecord {
        directory: "/d/1".into(),
        snapshot: Some(id.clone()),
        allow_non_restored_state: true,
        claim: ClaimMode::Claim,
    };
    let command = new_job(2, None, Some(restore.clone()));
    let (now, decoded) = decode_command(&encode_command(Millis(3), &command)).unwrap();
    assert_eq!(decoded, command);
    state.apply(now, decoded).unwrap();
    let read = decode_state(&encode_state(&state)).unwrap();
    assert_eq!(read, state);
    assert_eq!(read.jobs[&job(2)].restore, Some(restore));
    let claim = read.snapshots[&id].claim.clone().unwrap();
    assert_eq!((claim.job, claim.at), (job(2), Millis(3)));
}

#[test]
fn an_import_survives_the_log_and_its_snapshots() {
    let origin = Origin {
        cluster: ClusterId::new("far").unwrap(),
        snapshot: snapshot(Savepoint, 7),
        job: job(3),
        taken_at: Millis(5),
        directory: "/carried".to_owned(),
    };
    let command = Command::Import(Box::new(Import {
        request: Some(RequestId::new("r").unwrap()),
        snapshot: snapshot(Savepoint, 9),
        job: job(9),
        job_name: "clicks".to_owned(),
        owner: "ann".to_owned(),
        namespace: "web".to_owned(),
        annotations: Annotations { pinned: true, ..Annotations::default() },
        barrier: BarrierId(7),
        nonce: Nonce("far".to_owned()),
        directory: "/d/9".to_owned(),
        deadline: Millis(3_600_006),
        parallelism: Parallelism::ONE,
        plan_hash: "0123456789abcdef".to_owned(),
        bytes: 12,
        origin: origin.clone(),
    }));
    let (now, decoded) = decode_command(&encode_command(Millis(6), &command)).unwrap();
    assert_eq!(decoded, command);
    let mut state = running();
    state.apply(now, decoded).unwrap();
    let read = decode_state(&encode_state(&state)).unwrap();
    assert_eq!(read, state);
    let entry = &read.snapshots[&snapshot(Savepoint, 9)];
    assert_eq!((entry.origin.as_ref(), entry.trigger, entry.charged_bytes), (Some(&origin), Trigger::Import, 12));
    assert_eq!(entry.deadline, Millis(3_600_006));
}

#[test]
fn what_a_claimant_still_owes_survives_snapshots_of_the_log() {
    let mut state = running();
    take(&mut state, Checkpoint, 1);
    state.apply(Millis(2), change(1, JobChange::Fail)).unwrap();
    let id = snapshot(Checkpoint, 1);
    let restore = RestoreRecord {
        directory: "/d/1".into(),
        snapshot: Some(id.clone()),
        allow_non_restored_state: false,
        claim: ClaimMode::Claim,
    };
    state.apply(Millis(3), new_job(2, None, Some(restore))).unwrap();
    state.apply(Millis(4), change(2, JobChange::Cancel)).unwrap();
    assert_eq!(state.apply(Millis(5), change(2, JobChange::EndCancelled)).unwrap().retired, std::slice::from_ref(&id));
    let claim = state.snapshots[&id].claim.clone().unwrap();
    state.apply(Millis(6), Command::Deleted { snapshot: id }).unwrap();
    let read = decode_state(&encode_state(&state)).unwrap();
    assert_eq!(read, state);
    let owed: Vec<_> = read.shared.iter().map(|(_, _, file)| file.owed_by.clone().map(|by| by.job_name)).collect();
    assert_eq!(owed, [Some(claim.job_name)]);
    assert_eq!(read.usage(&QuotaLevel::Cluster), state.usage(&QuotaLevel::Cluster));
}

#[test]
fn a_reservation_ends_once_and_only_under_its_own_nonce() {
    let mut state = running();
    state.apply(Millis(1), reserve(Savepoint, 1, Trigger::User, None)).unwrap();
    assert_eq!(state.apply(Millis(2), complete(Savepoint, 1, "other")).unwrap_err().code, Code::Fenced);
    state.apply(Millis(2), abort(Savepoint, 1)).unwrap();
    state.apply(Millis(2), abort(Savepoint, 1)).unwrap();
    assert_eq!(state.apply(Millis(3), complete(Savepoint, 1, "n")).unwrap_err().code, Code::Fenced);

    state.apply(Millis(4), reserve(Savepoint, 2, Trigger::User, None)).unwrap();
    state.apply(Millis(5), complete(Savepoint, 2, "n")).unwrap();
    state.apply(Millis(5), complete(Savepoint, 2, "n")).unwrap();
    assert_eq!(state.apply(Millis(6), abort(Savepoint, 2)).unwrap_err().code, Code::FailedPrecondition);
    assert_eq!(state_of(&state, Savepoint, 2), Some(SnapshotState::Completed));
}

#[test]
fn a_quota_refuses_typed_and_the_catalogue_remembers() {
    let mut state = running();
    state.apply(Millis(1), found(Some(1), None)).unwrap();
    take(&mut state, Savepoint, 1);
    let error = state.apply(Millis(2), reserve(Savepoint, 2, Trigger::User, Some("r"))).unwrap_err();
    assert_eq!(error.code, Code::QuotaExceeded);
    let facts = *error.facts.clone().unwrap();
    assert!(matches!(facts, Facts::QuotaExceeded(facts) if (facts.limit, facts.used, facts.requested) == (1, 1, 1)));
    let entry = &state.snapshots[&snapshot(Savepoint, 2)];
    assert_eq!((entry.state, entry.failure.as_ref()), (SnapshotState::Failed, Some(&error)));
    // The retry of a request gets the same answer, and checkpoints are not counted.
    assert_eq!(state.apply(Millis(3), reserve(Savepoint, 2, Trigger::User, Some("r"))).unwrap_err(), error);
    take(&mut state, Checkpoint, 3);
}

#[test]
fn failures_alike_are_one_entry_and_others_are_bounded() {
    let mut state = running();
    for number in 1..=5 {
        state.apply(Millis(number), reserve(Checkpoint, number, Trigger::Periodic, None)).unwrap();
        state.apply(Millis(number), abort(Checkpoint, number)).unwrap();
        state.apply(Millis(number), Command::Swept { snapshot: snapshot(Checkpoint, number) }).unwrap();
    }
    let entries = state.snapshots_of(&job(1)).into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].failures, entries[0].first_failed_at), (5, Some(Millis(1))));
    for number in 6..=60 {
        state.apply(Millis(number), reserve(Checkpoint, number, Trigger::User, None)).unwrap();
        state.apply(Millis(number), abort(Checkpoint, number)).unwrap();
        state.apply(Millis(number), Command::Swept { snapshot: snapshot(Checkpoint, number) }).unwrap();
    }
    assert_eq!(state.snapshots_of(&job(1)).len(), 21, "twenty that were asked for, and the periodic ones");
    assert_eq!(state.jobs[&job(1)].last_barrier, BarrierId(60));
}

#[test]
fn a_repeated_request_is_applied_once() {
    let mut state = State::default();
    let first = state.apply(Millis(1), new_job(1, Some("r"), None)).unwrap();
    assert_eq!(state.apply(Millis(2), new_job(2, Some("r"), None)).unwrap(), first);
    assert_eq!(state.jobs.len(), 1);
    assert_eq!(state.apply(Millis(3), new_job(1, None, None)).unwrap_err().code, Code::AlreadyExists);
}

#[test]
fn attempts_only_grow_and_ended_jobs_stay_ended() {
    let mut state = running();
    assert_eq!(state.apply(Millis(2), start(1, 1)).unwrap_err().code, Code::Fenced);
    assert_eq!(state.apply(Millis(2), start(1, 2)).unwrap_err().code, Code::FailedPrecondition, "it is running");
    state.apply(Millis(3), change(1, JobChange::Restart)).unwrap();
    state.apply(Millis(3), start(1, 2)).unwrap();
    let late = reserve(Checkpoint, 9, Trigger::Periodic, None);
    assert_eq!(state.apply(Millis(4), late).unwrap_err().code, Code::Fenced, "attempt 1 is over");
    state.apply(Millis(5), change(1, JobChange::Finish)).unwrap();
    assert!(state.apply(Millis(6), start(1, 3)).is_err());
    assert_eq!(state.jobs[&job(1)].state, JobState::Finished);
}

#[test]
fn checkpoints_go_when_their_job_ends_unless_it_failed() {
    for (last, kept) in [(JobChange::Finish, false), (JobChange::Fail, true)] {
        let mut state = running();
        take(&mut state, Checkpoint, 1);
        take(&mut state, Savepoint, 2);
        let retired = state.apply(Millis(9), change(1, last)).unwrap().retired;
        assert_eq!(retired.is_empty(), kept, "{last:?}");
        assert_eq!(state_of(&state, Savepoint, 2), Some(SnapshotState::Completed));
    }
}

#[test]
fn a_stop_savepoint_marks_its_job() {
    let mut state = running();
    state.apply(Millis(2), change(1, JobChange::Stop)).unwrap();
    state.apply(Millis(2), reserve(Savepoint, 1, Trigger::Stop(StopMode::Drain), None)).unwrap();
    assert_eq!(state.jobs[&job(1)].stopped_by, None);
    state.apply(Millis(3), complete(Savepoint, 1, "n")).unwrap();
    assert_eq!(state.jobs[&job(1)].stopped_by, Some(snapshot(Savepoint, 1)));
}

#[test]
fn jobs_are_found_by_id_prefix_and_name() {
    let mut state = running();
    assert_eq!(state.find_job("00000001", None).unwrap().id, job(1));
    assert_eq!(state.find_job("clicks", None).unwrap().id, job(1));
    assert_eq!(state.find_job("", None).unwrap_err().code, Code::NotFound);
    state.apply(Millis(2), new_job(2, None, None)).unwrap();
    assert_eq!(state.find_job("clicks", None).unwrap_err().code, Code::InvalidArgument);
    state.apply(Millis(3), change(1, JobChange::Finish)).unwrap();
    assert_eq!(state.find_job("clicks", None).unwrap().id, job(2), "the one that has not ended");
}

#[test]
fn another_version_is_refused() {
    let mut bytes = encode_command(Millis(1), &delete(Savepoint, 1));
    assert_eq!(bytes[..2], [8, 1], "field 1 is the version");
    bytes[1] = 2;
    assert_eq!(decode_command(&bytes).unwrap_err().code, Code::Unsupported);
    assert_eq!(decode_command(&[0xff, 0xff]).unwrap_err().code, Code::Corrupt);
    let mut bytes = encode_state(&running());
    bytes[1] = 2;
    assert_eq!(decode_state(&bytes).unwrap_err().code, Code::Unsupported);
}

fn kind() -> impl Strategy<Value = SnapshotKind> {
    prop_oneof![Just(Checkpoint), Just(Savepoint)]
}

fn found(savepoints: Option<u64>, in_flight: Option<u64>) -> Command {
    let cluster = QuotaLimits { savepoints, in_flight, ..QuotaLimits::default() };
    let defaults = Box::new(QuotaDefaults { cluster, ..QuotaDefaults::default() });
    Command::Found { cluster: ClusterId::new("c").unwrap(), defaults }
}

fn level() -> impl Strategy<Value = QuotaLevel> {
    prop::sample::select(["cluster", "namespace:default", "owner:ada", "job:clicks", "job:web/top pages"].to_vec())
        .prop_map(|level| level.parse().unwrap())
}

fn limits() -> impl Strategy<Value = Option<QuotaLimits>> {
    let limit = || prop::option::weighted(0.3, 0u64..40);
    prop::option::of((limit(), limit(), limit(), limit(), limit(), limit()).prop_map(
        |(savepoints, retained_checkpoints, bytes, in_flight, minimum_interval_ms, age_ms)| QuotaLimits {
            savepoints,
            retained_checkpoints,
            bytes,
            in_flight,
            minimum_interval_ms,
            age_ms,
        },
    ))
}

fn change_of_annotations() -> impl Strategy<Value = AnnotationChange> {
    let labels = prop::collection::btree_map("[a-c]", "[x-z]", 0..2);
    let removed = prop::collection::btree_set("[d-f]", 0..2);
    let parts =
        (prop::option::of("[a-z]{0,3}"), prop::option::of("[a-z ]{0,9}"), labels, removed, any::<Option<bool>>());
    parts.prop_map(|(name, note, set_labels, remove_labels, pinned)| AnnotationChange {
        name,
        note,
        set_labels,
        remove_labels,
        pinned,
    })
}

fn policy() -> impl Strategy<Value = RetentionPolicy> {
    let labels = prop::collection::btree_map("[a-c]", "[x-z]", 0..2);
    let schedule =
        prop::sample::select(vec![None, Some(Schedule::EveryMs(5_000)), Some(Schedule::Cron("0 3 * * *".to_owned()))]);
    (prop::option::of(0u32..3), prop::option::of(0u64..9), labels, schedule).prop_map(
        |(keep_last, keep_for_ms, keep_labels, schedule)| RetentionPolicy {
            keep_last,
            keep_for_ms,
            keep_labels,
            schedule,
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let changes = prop::sample::select(vec![
        JobChange::Run,
        JobChange::Restart,
        JobChange::Stop,
        JobChange::Cancel,
        JobChange::Finish,
        JobChange::EndStopped,
        JobChange::EndCancelled,
        JobChange::Fail,
    ]);
    let trigger = prop::sample::select(vec![
        Trigger::Periodic,
        Trigger::Scheduled,
        Trigger::User,
        Trigger::Stop(StopMode::Suspend),
        Trigger::Stop(StopMode::Drain),
    ]);
    prop_oneof![
        (1u32..3, prop::option::of("r[0-3]")).prop_map(|(job, request)| new_job(job, request.as_deref(), None)),
        (1u32..3, 1u32..4).prop_map(|(job, attempt)| start(job, attempt)),
        (1u32..3, changes).prop_map(|(job, to)| change(job, to)),
        (kind(), 1u64..8, trigger, prop::option::of("r[0-3]")).prop_map(|(kind, number, trigger, request)| reserve(
            kind,
            number,
            trigger,
            request.as_deref()
        )),
        (kind(), 1u64..8).prop_map(|(kind, number)| complete(kind, number, "n")),
        (2u64..8, 1u64..7).prop_map(|(number, base)| complete_on(number, base.min(number - 1))),
        (kind(), 1u64..8).prop_map(|(kind, number)| abort(kind, number)),
        (kind(), 1u64..8).prop_map(|(kind, number)| delete(kind, number)),
        (kind(), 1u64..8).prop_map(|(kind, number)| Command::Deleted { snapshot: snapshot(kind, number) }),
        (prop::option::of(1u64..4), prop::option::of(1u64..3))
            .prop_map(|(savepoints, in_flight)| found(savepoints, in_flight)),
        (level(), limits()).prop_map(|(level, limits)| Command::SetQuota { request: None, level, limits }),
        (kind(), 1u64..8, 0u64..100).prop_map(|(kind, number, bytes)| Command::Grant {
            snapshot: snapshot(kind, number),
            nonce: Nonce(format!("n{number}")),
            bytes,
        }),
        (kind(), 1u64..8, change_of_annotations()).prop_map(|(kind, number, change)| {
            Command::Annotate { snapshot: snapshot(kind, number), request: None, change }
        }),
        (level(), prop::option::of(policy())).prop_map(|(level, policy)| Command::SetPolicy {
            level,
            request: None,
            policy,
            by: "ada".into()
        }),
        Just(Command::EnforcePolicies),
        (1u32..3, any::<bool>(), 1u32..9).prop_map(|(number, asked, parallelism)| Command::Rescale {
            request: asked.then(|| RequestId::new(format!("rescale-{parallelism}")).unwrap()),
            job: job(number),
            parallelism: Parallelism::new(parallelism).unwrap(),
        }),
        (kind(), 1u64..8, any::<bool>(), any::<bool>()).prop_map(|(kind, number, asked, whole)| Command::Verified {
            snapshot: snapshot(kind, number),
            by: if asked { Verifier::Request } else { Verifier::Restore },
            findings: u64::from(!whole),
            damage: (!whole).then(|| Error::new(Code::Corrupt, "a flipped bit").with_detail("at 7")),
        }),
        (kind(), 1u64..8).prop_map(|(kind, number)| Command::CutOff {
            snapshot: snapshot(kind, number),
            reason: "truncated".to_owned(),
        }),
        (kind(), 1u64..8).prop_map(|(kind, number)| Command::Swept { snapshot: snapshot(kind, number) }),
        (1u32..3, 0u64..8).prop_map(|(number, file)| Command::Released {
            job: job(number),
            names: vec![format!("{}+f", snapshot(Checkpoint, file))]
        }),
    ]
}

proptest! {
    #[test]
    fn commands_apply_alike_everywhere_and_all_of_it_survives_encoding(
        commands in prop::collection::vec(command(), 1..60),
        cut in 0usize..60,
    ) {
        let (mut here, mut there) = (State::default(), State::default());
        for (index, command) in commands.into_iter().enumerate() {
            let now = Millis(index as u64);
            let (then, decoded) = decode_command(&encode_command(now, &command)).unwrap();
            prop_assert_eq!((then, &decoded), (now, &command));
            if index == cut {
                there = decode_state(&encode_state(&there)).unwrap();
            }
            let before = here.clone();
            let reply = here.apply(now, command);
            prop_assert_eq!(&there.apply(now, decoded), &reply);
            prop_assert_eq!(&decode_reply(&encode_reply(&reply)), &reply);
            prop_assert_eq!(&here, &there);
            // What has ended stays ended, and what is complete goes only through its mark.
            for job in before.jobs.values().filter(|job| job.state.is_terminal()) {
                prop_assert_eq!(here.jobs[&job.id].state, job.state);
            }
            for entry in before.snapshots.values().filter(|entry| entry.state == SnapshotState::Completed) {
                let now = here.snapshots.get(&entry.id).map(|entry| entry.state);
                prop_assert!(matches!(now, Some(SnapshotState::Completed | SnapshotState::Deleting)));
            }
        }
    }
}
