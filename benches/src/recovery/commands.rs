//! Many commands through the client API: how fast the JobManagers take them, and what starting costs afterwards.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use tokio::task::JoinSet;
use weir_benches::measure::{bytes_below, median};
use weir_integration_tests::api::Api;
use weir_integration_tests::cluster::Cluster;

use crate::losses::command;
use crate::report::Run;

/// Clients that each wait for their answer before they ask again.
const CLIENTS: u64 = 64;

/// Has so many commands carried out, then kills all JobManagers and starts them again, once more for each run.
pub(crate) async fn commands(scenario: &str, jobmanagers: u32, runs: u32, count: u64) -> Result<Vec<Run>> {
    let mut cluster = if jobmanagers == 1 { Cluster::start(0, 1) } else { Cluster::start_group(jobmanagers, 0, 1) };
    let names: Vec<String> = match jobmanagers {
        1 => vec!["jobmanager".to_owned()],
        several => (1..=several).map(|number| format!("jobmanager-{number}")).collect(),
    };
    let mut fresh = Vec::new();
    for number in 0..runs {
        fresh.push(start_ms(&mut cluster, &names, u64::from(number)).await?);
    }
    let before = most_bytes(&cluster, &names)?;
    let begun = Instant::now();
    let mut latencies = fill(&cluster, count).await?;
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    let slowest = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    let filled = most_bytes(&cluster, &names)?;
    let mut measured = Vec::new();
    for number in 0..runs {
        let mut run = Run::new(scenario);
        let started = start_ms(&mut cluster, &names, u64::from(runs + number)).await?;
        run.add("start to an answered command, fresh", "ms", fresh[number as usize]);
        run.add("start to an answered command, afterwards", "ms", started);
        if number == 0 {
            run.add("commands", "1/s", count as f64 / seconds);
            run.add("command, median of 64 clients", "ms", median(latencies.clone()));
            run.add("command, 99th percentile", "ms", slowest);
            run.add("disk of a JobManager, fresh", "bytes", before as f64);
            run.add("disk of a JobManager, afterwards", "bytes", filled as f64);
        }
        measured.push(run);
    }
    Ok(measured)
}

/// Carries out `count` commands; the time of each, in ms.
async fn fill(cluster: &Cluster, count: u64) -> Result<Vec<f64>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS.min(count) {
        let (next, mut api) = (next.clone(), Api::new(&cluster.jobmanagers()));
        clients.spawn(async move {
            // Each changes a level of its own: the leader takes one change of a level at a time.
            let (level, mut latencies) = (format!("namespace:n{client}"), Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(latencies);
                }
                let asked = Instant::now();
                command(&mut api, &level, number + 1).await?;
                latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    Ok(latencies)
}

/// Kills all JobManagers and starts them again; from the first start to an answered command.
async fn start_ms(cluster: &mut Cluster, names: &[String], number: u64) -> Result<f64> {
    for name in names {
        cluster.kill(name);
    }
    let started = Instant::now();
    for name in names {
        cluster.restart(name);
    }
    command(&mut Api::new(&cluster.jobmanagers()), "cluster", 1_000 + number).await?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// Of the JobManager whose metadata takes most.
fn most_bytes(cluster: &Cluster, names: &[String]) -> Result<u64> {
    let bytes = names.iter().map(|name| bytes_below(&Path::new(&cluster.path(name)).join("metadata")));
    Ok(bytes.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0))
}
