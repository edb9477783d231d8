//! Decisions about output, case by case: where a job may go on from, and when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::Schema;
use weir_types::connector::ConnectorKind;
use weir_types::graph::{ConnectorSpec, JobGraph, Operator, OperatorSpec, SinkSpec};
use weir_types::ids::{Attempt, Nonce, OperatorId};
use weir_types::job::JobState;
use weir_types::snapshot::Verifier;

use super::super::fixture::{change, job, reserve, run};
use super::super::{Command, Completion, Recovery, StartAttempt};
use super::*;
use crate::checkpoint::{Contents, Trigger};

fn graph_to(stream: &str) -> JobGraph {
    let options = [("stream", stream), ("sink.delivery-guarantee", "exactly-once")];
    let options = options.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let sink = SinkSpec {
        table: "t".to_owned(),
        connector: ConnectorSpec { kind: ConnectorKind::StreamStore, options },
        metadata: BTreeMap::new(),
        primary_key: Vec::new(),
    };
    JobGraph {
        name: "j".to_owned(),
        options: Default::default(),
        operators: vec![Operator {
            id: OperatorId(0),
            uid: Some("u".to_owned()),
            name: "sink".to_owned(),
            spec: OperatorSpec::Sink(sink),
            schema: Arc::new(Schema::empty()),
            parallelism_max: None,
        }],
        edges: Vec::new(),
        expression_version: String::new(),
    }
}

/// A running job that writes `test/out` exactly once.
fn writing(state: &mut State, number: u32) {
    run(state, number, "clicks", None);
    state.jobs.get_mut(&job(number)).unwrap().graph = graph_to("test/out");
}

/// A savepoint, with or without output.
fn take(state: &mut State, at: u64, of: u32, number: u64, has_output: bool) -> SnapshotId {
    let snapshot = reserve(state, at, of, number, Trigger::User);
    let contents = Contents { bytes: 10, has_output, ..Contents::default() };
    let completion = Completion { snapshot: snapshot.clone(), nonce: Nonce(number.to_string()), contents };
    state.apply(Millis(at), Command::Complete(Box::new(completion))).unwrap();
    snapshot
}

fn damage(state: &mut State, snapshot: &SnapshotId) {
    let damage = Some(Error::new(Code::Corrupt, "a flipped bit"));
    let (snapshot, by) = (snapshot.clone(), Verifier::Restore);
    state.apply(Millis(50), Command::Verified { snapshot, by, findings: 1, damage }).unwrap();
}

/// What restoring a snapshot into a job that writes `stream` is refused with.
fn restored(state: &State, number: u32, from: &SnapshotId, stream: &str, allow_duplicates: bool) -> Result<()> {
    let mut state = state.clone();
    let new = NewJob {
        request: None,
        id: job(number),
        name: "other".to_owned(),
        sql: String::new(),
        owner: String::new(),
        namespace: String::new(),
        graph: graph_to(stream),
        plan: String::new(),
        sources: Vec::new(),
        restore: Some(RestoreRecord {
            directory: state.snapshots[from].directory.clone(),
            snapshot: Some(from.clone()),
            allow_non_restored_state: false,
            claim: Default::default(),
        }),
        allow_duplicates,
    };
    state.apply(Millis(90), Command::CreateJob(Box::new(new))).map(drop)
}

#[test]
fn a_job_does_not_fall_back_behind_what_it_has_committed_unless_it_may() {
    let mut state = State::default();
    writing(&mut state, 1);
    let first = take(&mut state, 2, 1, 1, true);
    let quiet = take(&mut state, 3, 1, 2, false);
    let name = |recovery: Recovery| match recovery {
        Recovery::From(point) => point.name(),
        other => panic!("{other:?}"),
    };
    assert_eq!(name(state.recovery(&state.jobs[&job(1)])), quiet.to_string());
    damage(&mut state, &quiet);
    assert_eq!(name(state.recovery(&state.jobs[&job(1)])), first.to_string(), "nothing was committed in between");
    let last = take(&mut state, 4, 1, 3, true);
    damage(&mut state, &last);
    let Recovery::Lost(error) = state.recovery(&state.jobs[&job(1)]) else { panic!("it repeats its output") };
    assert_eq!(error.code, Code::DuplicateOutput);
    assert!(error.message.contains("stream test/out"), "{error}");
    state.jobs.get_mut(&job(1)).unwrap().allow_duplicates = true;
    assert_eq!(name(state.recovery(&state.jobs[&job(1)])), first.to_string());
}

#[test]
fn a_snapshot_is_restored_once_into_the_same_sink_and_not_from_behind_its_output() {
    let mut state = State::default();
    writing(&mut state, 1);
    let first = take(&mut state, 2, 1, 1, true);
    assert_eq!(restored(&state, 2, &first, "test/out", false), Ok(()), "the newest output is its own");
    let last = take(&mut state, 3, 1, 2, true);
    let refused = restored(&state, 2, &first, "test/out", false).unwrap_err();
    assert_eq!(refused.code, Code::DuplicateOutput);
    assert_eq!(restored(&state, 2, &first, "test/elsewhere", false), Ok(()), "another sink");
    assert_eq!(restored(&state, 2, &first, "test/out", true), Ok(()), "its user can bear it");
    assert_eq!(restored(&state, 2, &last, "test/out", false), Ok(()));
    // Somebody else has gone on from there, and has written.
    run(&mut state, 3, "other", Some(last.clone()));
    state.jobs.get_mut(&job(3)).unwrap().graph = graph_to("test/out");
    assert_eq!(restored(&state, 2, &last, "test/out", false), Ok(()), "nothing is committed yet");
    take(&mut state, 5, 3, 1, true);
    assert_eq!(restored(&state, 2, &last, "test/out", false).unwrap_err().code, Code::DuplicateOutput);
}

#[test]
fn a_bounded_job_ends_when_its_last_output_is_committed_and_never_restarts_meanwhile() {
    let mut state = State::default();
    writing(&mut state, 1);
    change(&mut state, 2, 1, JobChange::Finish);
    let end = CommitMark { attempt: Attempt(1), barrier: END_OF_INPUT };
    let duty = Settlement { commit: Some(end), below: Some(Attempt(2)) };
    let record = &state.jobs[&job(1)];
    assert_eq!((record.state, record.output.duty), (JobState::Running, Some(duty)));
    for refused in [JobChange::Restart, JobChange::Cancel, JobChange::Fail, JobChange::Finish] {
        let command = Command::ChangeJob { job: job(1), change: refused, failure: None };
        assert_eq!(state.apply(Millis(3), command).unwrap_err().code, Code::FailedPrecondition, "{refused:?}");
    }
    state.apply(Millis(4), Command::Discharged { job: job(1), duty }).unwrap();
    let record = &state.jobs[&job(1)];
    assert_eq!((record.state, record.ended_at, record.output.duty), (JobState::Finished, Some(Millis(4)), None));
    assert!(state.jobs_with_duties().next().is_none());
}

#[test]
fn a_stop_ends_when_its_output_is_committed_and_one_without_output_too() {
    let mut state = State::default();
    writing(&mut state, 1);
    change(&mut state, 2, 1, JobChange::Stop);
    change(&mut state, 3, 1, JobChange::EndStopped);
    let duty = Settlement { commit: None, below: Some(Attempt(2)) };
    assert_eq!((state.jobs[&job(1)].state, state.jobs[&job(1)].output.duty), (JobState::Stopping, Some(duty)));
    state.apply(Millis(4), Command::Discharged { job: job(1), duty }).unwrap();
    assert_eq!(state.jobs[&job(1)].state, JobState::Stopped);
    // A job without such sinks ends at once, as one that never ran does.
    run(&mut state, 2, "plain", None);
    change(&mut state, 5, 2, JobChange::Finish);
    assert_eq!(state.jobs[&job(2)].state, JobState::Finished);
}

#[test]
fn a_rollback_commits_what_was_decided_and_gives_up_what_older_attempts_have_left() {
    let mut state = State::default();
    writing(&mut state, 1);
    take(&mut state, 2, 1, 1, true);
    change(&mut state, 3, 1, JobChange::Restart);
    let (placements, splits, passed_over) = (Vec::new(), Vec::new(), Vec::new());
    let start = StartAttempt {
        job: job(1),
        attempt: Attempt(2),
        placements,
        splits,
        from: None,
        passed_over,
        parallelism: None,
    };
    state.apply(Millis(4), Command::StartAttempt(start)).unwrap();
    let committed = CommitMark { attempt: Attempt(1), barrier: BarrierId(1) };
    assert_eq!(state.jobs[&job(1)].rollback(), Settlement { commit: Some(committed), below: Some(Attempt(2)) });
}
