//! Whole groups, run by a seed: the production member, state store and log, on a network that drops, delays, doubles and
//! reorders, and on disks that lose what was not synced, while clients write and read and members come and go.
//!
//! Checked throughout: one leader a term; every member applies the same commands in the same order, once, without a gap;
//! what was acknowledged stays; reads are linearizable; and when the troubles end, the group recovers.

mod clients;
mod ledger;
mod world;

use world::{Outcome, Planted, World};

use crate::seeds::{self, run_all};

/// Runs one seed and returns what happened, or what went wrong.
fn run(seed: u64, planted: Planted) -> Result<Outcome, String> {
    seeds::outcome(|| World::new(seed, planted).run())
}

/// The first seed of so many that breaks a promise.
fn first_failure(seeds: u64, planted: Planted) -> Option<(u64, String)> {
    seeds::first_failure(seeds, |seed| run(seed, planted))
}

#[test]
fn no_seed_breaks_a_promise() {
    run_all(1_000, |seed| run(seed, Planted::Nothing));
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..20 {
        assert_eq!(run(seed, Planted::Nothing), run(seed, Planted::Nothing), "seed {seed}");
    }
}

#[test]
fn seeds_see_elections_crashes_snapshots_and_changes_of_members() {
    let outcomes: Vec<Outcome> = (0..40).map(|seed| run(seed, Planted::Nothing).unwrap()).collect();
    let sum = |what: fn(&Outcome) -> usize| outcomes.iter().map(what).sum::<usize>();
    let (leaders, restored) = (sum(|outcome| outcome.leaders), sum(|outcome| outcome.restored));
    let (crashes, changes) = (sum(|outcome| outcome.crashes), sum(|outcome| outcome.changes));
    assert!(leaders > 60 && restored > 80 && crashes > 60 && changes > 8, "{outcomes:#?}");
    assert!(outcomes.iter().all(|outcome| outcome.acknowledged > 0), "{outcomes:#?}");
}

#[test]
fn a_skipped_sync_is_caught() {
    let (_, error) = first_failure(100, Planted::SkippedSync).unwrap();
    assert!(!error.is_empty());
}

#[test]
fn a_read_that_does_not_ask_who_leads_is_caught() {
    let (_, error) = first_failure(300, Planted::ReadWithoutBarrier).unwrap();
    assert!(error.contains("a read saw"), "{error}");
}
