//! Running many seeds on all cores, or the one that the environment names.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs one seed and returns what happened, or what went wrong.
pub(crate) fn outcome<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("it panicked").to_owned()
    })
}

/// Runs `WEIR_SIMULATION_SEED`, or the first `WEIR_SIMULATION_SEEDS`, which are `seeds` by default; panics with the first that
/// breaks a promise. What the seeds returned, in no order.
pub(crate) fn run_all<T: Send>(seeds: u64, run: impl Fn(u64) -> Result<T, String> + Sync) -> Vec<T> {
    let run = |seed| {
        run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}\nWEIR_SIMULATION_SEED={seed} runs it again"))
    };
    if let Some(seed) = setting("WEIR_SIMULATION_SEED") {
        return vec![run(seed)];
    }
    let seeds = setting("WEIR_SIMULATION_SEEDS").unwrap_or(seeds);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return outcomes;
            }
            outcomes.push(run(seed));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// The first seed of so many that breaks a promise.
pub(crate) fn first_failure<T>(seeds: u64, run: impl Fn(u64) -> Result<T, String>) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| Some((seed, run(seed).err()?)))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}
