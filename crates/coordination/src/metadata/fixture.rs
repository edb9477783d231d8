//! A state for tests: running jobs, and snapshots of them.

use weir_types::graph::{JobGraph, JobOptions};
use weir_types::ids::{Attempt, BarrierId, JobId, Nonce, SnapshotId};
use weir_types::job::JobChange;
use weir_types::restore::ClaimMode;
use weir_types::snapshot::{Annotations, SnapshotKind};
use weir_types::time::Millis;
use weir_types::{Code, Error};

use super::{Command, Completion, Deleter, NewJob, Reply, Reserve, RestoreRecord, StartAttempt, State};
use crate::checkpoint::{Contents, Trigger, snapshot_id};

pub(super) fn job(number: u32) -> JobId {
    JobId::new(format!("{number:08}aaaa")).unwrap()
}

pub(super) fn savepoint(of: u32, number: u64) -> SnapshotId {
    snapshot_id(&job(of), SnapshotKind::Savepoint, BarrierId(number)).unwrap()
}

/// Submits a job and lets it run.
pub(super) fn run(state: &mut State, number: u32, name: &str, restore: Option<SnapshotId>) {
    submit(state, number, name, "default", restore);
}

/// The same in another namespace.
pub(super) fn run_in(state: &mut State, number: u32, name: &str, namespace: &str) {
    submit(state, number, name, namespace, None);
}

fn submit(state: &mut State, number: u32, name: &str, namespace: &str, restore: Option<SnapshotId>) {
    let graph = JobGraph {
        name: name.to_owned(),
        options: JobOptions::default(),
        operators: Vec::new(),
        edges: Vec::new(),
        expression_version: String::new(),
    };
    let restore = restore.map(|snapshot| RestoreRecord {
        directory: format!("/{snapshot}"),
        snapshot: Some(snapshot),
        allow_non_restored_state: false,
        claim: ClaimMode::NoClaim,
    });
    let new = NewJob {
        request: None,
        id: job(number),
        name: name.to_owned(),
        sql: String::new(),
        owner: "ada".to_owned(),
        namespace: namespace.to_owned(),
        graph,
        plan: String::new(),
        sources: Vec::new(),
        restore,
        allow_duplicates: false,
    };
    state.apply(Millis(1), Command::CreateJob(Box::new(new))).unwrap();
    let (placements, splits) = (Vec::new(), Vec::new());
    let start = StartAttempt {
        job: job(number),
        attempt: Attempt(1),
        placements,
        splits,
        from: None,
        passed_over: Vec::new(),
        parallelism: None,
    };
    state.apply(Millis(1), Command::StartAttempt(start)).unwrap();
    change(state, 1, number, JobChange::Run);
}

pub(super) fn change(state: &mut State, at: u64, number: u32, change: JobChange) {
    state.apply(Millis(at), Command::ChangeJob { job: job(number), change, failure: None }).unwrap();
}

pub(super) fn reserve(state: &mut State, at: u64, of: u32, number: u64, trigger: Trigger) -> SnapshotId {
    let reserve = reservation(of, number, trigger);
    let snapshot = reserve.snapshot.clone();
    state.apply(Millis(at), Command::Reserve(Box::new(reserve))).unwrap();
    snapshot
}

/// Asks for a savepoint, with or without eviction.
pub(super) fn ask(state: &mut State, at: u64, of: u32, number: u64, evict: bool) -> Reply {
    let reserve = Reserve { evict, ..reservation(of, number, Trigger::User) };
    state.apply(Millis(at), Command::Reserve(Box::new(reserve)))
}

fn reservation(of: u32, number: u64, trigger: Trigger) -> Reserve {
    let snapshot = savepoint(of, number);
    Reserve {
        request: None,
        directory: format!("/{snapshot}"),
        snapshot,
        job: job(of),
        kind: SnapshotKind::Savepoint,
        trigger,
        barrier: BarrierId(number),
        attempt: Attempt(1),
        nonce: Nonce(number.to_string()),
        deadline: Millis(u64::MAX),
        owner: String::new(),
        annotations: Annotations::default(),
        plan_hash: String::new(),
        subtasks: 1,
        evict: false,
        estimate_bytes: 10,
    }
}

/// Takes a savepoint.
pub(super) fn take(state: &mut State, at: u64, of: u32, number: u64) -> SnapshotId {
    let snapshot = reserve(state, at, of, number, Trigger::User);
    let contents = Contents { bytes: 10, rows: 1, ..Contents::default() };
    let completion = Completion { snapshot: snapshot.clone(), nonce: Nonce(number.to_string()), contents };
    state.apply(Millis(at), Command::Complete(Box::new(completion))).unwrap();
    snapshot
}

/// Tries to take a savepoint, which fails.
pub(super) fn fail(state: &mut State, at: u64, of: u32, number: u64, trigger: Trigger, code: Code) -> SnapshotId {
    let snapshot = reserve(state, at, of, number, trigger);
    let (nonce, failure) = (Nonce(number.to_string()), Error::new(code, "x"));
    state.apply(Millis(at), Command::Abort { snapshot: snapshot.clone(), nonce, failure }).unwrap();
    state.apply(Millis(at), Command::Swept { snapshot: snapshot.clone() }).unwrap();
    snapshot
}

/// What `ann` gets to hear when she deletes a snapshot.
pub(super) fn delete(state: &mut State, at: u64, snapshot: &SnapshotId, force: bool) -> Result<(), Error> {
    let by = Deleter::User("ann".to_owned());
    let command = Command::MarkDeleted { snapshot: snapshot.clone(), request: None, force, by };
    state.apply(Millis(at), command).map(drop)
}
