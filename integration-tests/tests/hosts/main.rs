//! A cluster of hosts that is cut, frozen, killed, and still right: every process in a container of its own.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail them by panicking")]

mod judge;
mod nemesis;
mod work;

use std::time::Duration;

use weir_integration_tests::hosts::{Hosts, unavailable};

use nemesis::{Kind, Nemesis};
use work::Work;

/// Settings under which a lost host is noticed soon.
const SETTINGS: &[&str] =
    &["heartbeat.interval_ms=200", "heartbeat.timeout_ms=2000", "snapshots.writers_timeout_ms=2000"];
/// Rounds of faults within the test command.
const ROUNDS: u64 = 6;
/// The seed of the test command; `WEIR_CHAOS_SEED` names another.
const SEED: u64 = 1;

/// A number in the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// The kinds of faults that `WEIR_SOAK_FAULTS` names, or all.
fn kinds() -> Vec<Kind> {
    let Ok(names) = std::env::var("WEIR_SOAK_FAULTS") else { return Kind::ALL.to_vec() };
    let named = |name: &str| {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.unwrap_or_else(|| panic!("{name} is none of {:?}", Kind::ALL.map(Kind::name)))
    };
    names.split(',').map(named).collect()
}

/// Faults of all kinds by a seeded schedule, while a job runs and clients ask; then everything is judged. It runs for some
/// rounds, or for as long as `WEIR_SOAK_MINUTES` says.
#[tokio::test(flavor = "multi_thread")]
async fn torment_of_hosts_and_networks_loses_doubles_and_leaves_nothing() {
    if let Some(reason) = unavailable().await {
        eprintln!("skipped: {reason}");
        return;
    }
    let seed = asked("WEIR_CHAOS_SEED").unwrap_or(SEED);
    println!("seed {seed}");
    let hosts = Hosts::start(3, 3, 2, SETTINGS).await;
    let mut work = Work::start(&hosts).await;
    let mut nemesis = Nemesis::new(seed, kinds());
    let length = asked("WEIR_SOAK_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    nemesis.torment(&hosts, &mut work, ROUNDS, length).await;
    judge::judge(&hosts, &work).await;
    let report = nemesis.report(seed, &work);
    println!("{report}");
    if let Ok(path) = std::env::var("WEIR_SOAK_REPORT") {
        std::fs::write(path, report).expect("a writable file");
    }
}
