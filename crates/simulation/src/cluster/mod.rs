//! A whole cluster, run by a seed: JobManagers that lead and are deposed run the production metadata behind the production
//! log, and the production coordinator, scheduler and liveness, against TaskManagers, a store and a snapshot directory that
//! fail in every way they may. The reader groups, manifests and abort markers are production code as well.
//!
//! Judged throughout: nothing is notified before it is complete, a reservation ends once, nothing is stored that is not
//! charged, no manifest appears after an abort, a completed snapshot holds exactly what lies before its cut. And when the
//! troubles end: every job runs on and can be stopped, nothing is lost or doubled, nothing is left over.

mod connections;
mod jobs;
mod judge;
mod leader;
mod members;
mod storage;
mod store;
mod subtask;
mod task_manager;
mod troubles;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use world::{Planted, World};

use crate::seeds::{self, run_all};

/// Lines of a failed run that are shown.
const TRACE_LINES: usize = 250;

/// So many seeds, and more, meet everything that is to be tested.
const SEEDS_FOR_ALL: usize = 500;
/// Kinds of trouble, and points of the protocols at which a process was killed, that all seeds together must have met.
const MET: [&str; 45] = [
    "a JobManager crashes",
    "a TaskManager crashes",
    "a TaskManager gives up a file",
    "a TaskManager gives up a silent leader",
    "a TaskManager registers with what it runs",
    "a TaskManager stands still",
    "a call is repeated",
    "a command is repeated",
    "a leader finds a snapshot in flight",
    "a leader is deposed",
    "a message is repeated",
    "a reservation is refused",
    "a session breaks",
    "a session stalls",
    "a silent TaskManager is given up",
    "a snapshot is swept although a writer has not confirmed",
    "a snapshot waits for its turn",
    "a step fails after its effect",
    "a step fails before its effect",
    "a subtask fails",
    "a user cancels a job",
    "a user cancels a snapshot",
    "an attempt is adopted",
    "members are parted",
    "the store does not answer",
    "the store goes down",
    // Killed right before these.
    "abort",
    "acknowledge",
    "attempt ended",
    "attempt running",
    "cancel attempt",
    "change job",
    "complete",
    "delete entry",
    "mark aborted",
    "notify aborted",
    "notify complete",
    "publish",
    "release groups",
    "reserve",
    "send barriers",
    "start attempt",
    "start groups",
    "sweep",
    "sync file",
];

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// Of everything that was decided, in order.
    digest: u64,
    completed: usize,
    aborted: usize,
    /// How often each kind of trouble and each step of a protocol was met.
    reached: BTreeMap<&'static str, u64>,
}

/// Seeds that tests run.
const SEEDS: u64 = 300;

fn attempt(seed: u64, planted: Planted, trace: Option<Arc<Mutex<Vec<String>>>>) -> Result<Outcome, String> {
    seeds::outcome(|| {
        let mut world = World::new(seed, planted, trace);
        world.run();
        let history = world.history.lock();
        Outcome {
            digest: history.digest ^ world.random.next(),
            completed: history.completed.len(),
            aborted: history.aborted.len(),
            reached: world.reached,
        }
    })
}

/// Runs one seed; what went wrong comes with the last that happened before.
fn run(seed: u64, planted: Planted) -> Result<Outcome, String> {
    attempt(seed, planted, None).map_err(|error| {
        let trace = Arc::new(Mutex::new(Vec::new()));
        let _same = attempt(seed, planted, Some(trace.clone()));
        let lines = trace.lock();
        let last = lines.len().saturating_sub(TRACE_LINES);
        format!("{error}\n{}\n{error}", lines[last..].join("\n"))
    })
}

#[test]
fn no_seed_breaks_a_promise() {
    let outcomes = run_all(SEEDS, |seed| run(seed, Planted::Nothing));
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, times) in outcomes.iter().flat_map(|outcome| &outcome.reached) {
        *reached.entry(what).or_default() += times;
    }
    let (completed, aborted): (usize, usize) =
        outcomes.iter().fold((0, 0), |sums, outcome| (sums.0 + outcome.completed, sums.1 + outcome.aborted));
    if outcomes.len() >= SEEDS_FOR_ALL {
        let missed: Vec<_> = MET.iter().filter(|what| !reached.contains_key(**what)).collect();
        assert!(missed.is_empty(), "no seed met {missed:?}");
    }
    println!("{} seeds, {completed} snapshots completed, {aborted} aborted\n{reached:#?}", outcomes.len());
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..10 {
        assert_eq!(attempt(seed, Planted::Nothing, None), attempt(seed, Planted::Nothing, None), "seed {seed}");
    }
}

/// What is said about a bug that is planted: the first of so many seeds that meets it.
fn caught(planted: Planted, seeds: u64) -> String {
    let found = seeds::first_failure(seeds, |seed| attempt(seed, planted, None));
    let (seed, error) = found.unwrap_or_else(|| panic!("{planted:?} is not noticed"));
    println!("{planted:?} is noticed with seed {seed}: {}", error.lines().next().unwrap_or_default());
    error
}

#[test]
fn records_of_an_attempt_that_was_replaced_are_caught() {
    caught(Planted::SkippedFence, 100);
}

#[test]
fn an_early_notify_is_caught() {
    let error = caught(Planted::EarlyNotify, 20);
    assert!(error.contains("is told that"), "{error}");
}

#[test]
fn a_lost_compensation_is_caught() {
    let error = caught(Planted::LostCompensation, 100);
    assert!(error.contains("it does not come to rest"), "{error}");
}

#[test]
fn an_abort_without_its_marker_is_caught() {
    caught(Planted::AbortWithoutMarker, 1_000);
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    let error = caught(Planted::UnsyncedAck, 20);
    assert!(error.contains("is not durable"), "{error}");
}

#[test]
fn a_write_before_its_grant_is_caught() {
    caught(Planted::IgnoredGrant, 200);
}

#[test]
fn a_snapshot_that_pins_nothing_is_caught() {
    caught(Planted::SkippedPin, 200);
}
