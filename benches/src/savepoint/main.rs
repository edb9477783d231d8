//! What a savepoint costs a running job: its own rate, the job's rows a second before, meanwhile and after, the part in
//! which nothing is processed, and how long a restore takes. One job at full load on a cluster of real processes, which keeps a
//! count for each of so many keys in one long window.
//!
//! The TaskManagers are asked for their counters every 25 ms, at `/subtasks`, which tells them as they are at that moment. A
//! savepoint lasts from when its reservation is committed until its completion is, by the JobManager's clock; rows in between
//! are interpolated between the two samples on either side.

mod rows;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_proto::pb::client::v1::JobState;

use rows::Samples;

/// How long the job is watched before and after each savepoint.
const WATCHED: Duration = Duration::from_secs(2);
/// Events a second of event time: so many that no window ends while this runs.
const RATE: &str = "10000000";
/// State is complete when it has grown by less than a thousandth in this time.
const SETTLED: Duration = Duration::from_secs(3);

/// Measure savepoints of a job at full load.
#[derive(Debug, Parser)]
struct Args {
    /// Keys of the job's state
    #[arg(long, default_value_t = 5_000_000)]
    keys: u64,
    /// In what order keys change
    #[arg(long, value_enum, default_value_t = Pattern::Recent)]
    pattern: Pattern,
    /// Savepoints
    #[arg(long, default_value_t = 6)]
    savepoints: u32,
    /// Parallelism, over as many TaskManagers of one slot
    #[arg(long, default_value_t = 2)]
    parallelism: u32,
    /// How long filling the state may take, in seconds
    #[arg(long, default_value_t = 600)]
    fill_seconds: u64,
}

/// In what order keys change.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pattern {
    /// Neighbours together, as auctions come up: few pages of the state change during a savepoint.
    Recent,
    /// All over the place: nearly every page does.
    Random,
}

/// What one savepoint took.
struct Taken {
    seconds: f64,
    bytes: f64,
    rows: f64,
    sync_ms: f64,
    before: f64,
    during: f64,
    after: f64,
}

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

fn script(args: &Args) -> String {
    let key = match args.pattern {
        Pattern::Recent => "auction",
        Pattern::Random => "price * 1000003 + bidder",
    };
    let tables = include_str!("../../nexmark/tables.sql")
        .replace("${EVENTS}", "1000000000000")
        .replace("${RATE}", RATE)
        .replace("${PARALLELISM}", &args.parallelism.to_string())
        .replace("${PUSH_DOWN}", "true")
        .replace("'10 s'", "'1 h'");
    format!(
        "{tables}
         CREATE VIEW keyed AS SELECT MOD({key}, CAST({keys} AS BIGINT)) AS number, `dateTime` FROM bid;
         CREATE TABLE counts (number BIGINT, bids BIGINT) WITH ('connector' = 'blackhole');
         INSERT INTO counts SELECT number, COUNT(*)
         FROM TABLE(TUMBLE(TABLE keyed, DESCRIPTOR(`dateTime`), INTERVAL '30' DAY))
         GROUP BY number, window_start, window_end;",
        keys = args.keys
    )
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let cluster = Cluster::start(args.parallelism, 1);
    let path = cluster.write("job.sql", &script(&args));
    let job = submit(&cluster, &["run", "-d", &path])?;
    job_in_state(&cluster, &job, JobState::Running).await;
    let addresses = (1..=args.parallelism).map(|number| cluster.http_address(&format!("tm-{number}"))).collect();
    let samples = Samples::watch(addresses);
    fill(&samples, Duration::from_secs(args.fill_seconds)).await?;
    println!(
        "| savepoint | s | rows | MB | MB/s | ns a row | sync ms, most | rows/s before | during | after | during of before and after |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut all = Vec::new();
    let mut last = String::new();
    for number in 1..=args.savepoints {
        let (taken, directory) = savepoint(&cluster, &job, &samples).await?;
        println!("{}", row(&number.to_string(), &[&taken]));
        all.push(taken);
        last = directory;
    }
    println!("{}", row("medians", &all.iter().collect::<Vec<_>>()));
    drop(samples);
    ensure!(cluster.weir(&["cancel", &job]).code == 0, "the job could not be cancelled");
    job_in_state(&cluster, &job, JobState::Cancelled).await;
    let asked = Instant::now();
    let restored = submit(&cluster, &["run", "-d", "-s", &last, &path])?;
    job_in_state(&cluster, &restored, JobState::Running).await;
    println!("\nrestored and running {:.0} ms after it was asked for", asked.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn submit(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    Ok(cluster.weir_json(arguments)["id"].as_str().context("a job id")?.to_owned())
}

/// Waits until the state does not grow any more.
async fn fill(samples: &Samples, deadline: Duration) -> Result<()> {
    let started = Instant::now();
    let mut before = 0;
    loop {
        tokio::time::sleep(SETTLED).await;
        let bytes = samples.state_bytes()?;
        if bytes > 0 && bytes - before <= bytes / 1000 {
            println!("{:.1} s to fill {} MB of state", started.elapsed().as_secs_f64(), bytes / 1_000_000);
            return Ok(());
        }
        ensure!(started.elapsed() < deadline, "the state still grows after {deadline:?}; it has {bytes} bytes");
        before = bytes;
    }
}

async fn savepoint(cluster: &Cluster, job: &str, samples: &Samples) -> Result<(Taken, String)> {
    tokio::time::sleep(WATCHED).await;
    // The command waits for the savepoint, and this thread with it; sampling has its own.
    let snapshot = tokio::task::block_in_place(|| cluster.weir_json(&["savepoint", job]));
    tokio::time::sleep(WATCHED + Duration::from_millis(100)).await;
    let number = |name: &str| snapshot[name].as_f64().with_context(|| format!("{name} of {snapshot}"));
    let shown = cluster.weir_json(&["snapshots", "show", snapshot["id"].as_str().context("an id")?]);
    let timings = shown["timings"].as_array().context("timings")?;
    let sync_ms = timings.iter().filter_map(|timing| Value::as_f64(&timing["sync_us"])).fold(0.0, f64::max) / 1e3;
    let (started, ended) = (number("started_at_ms")?, number("ended_at_ms")?);
    let watched = WATCHED.as_secs_f64() * 1e3;
    ensure!(ended > started && ended < now_ms(), "the savepoint's times are wrong: {snapshot}");
    let taken = Taken {
        seconds: (ended - started) / 1e3,
        bytes: number("bytes")?,
        rows: number("rows")?,
        sync_ms,
        before: samples.rate(started - watched, started)?,
        during: samples.rate(started, ended)?,
        after: samples.rate(ended, ended + watched)?,
    };
    Ok((taken, snapshot["directory"].as_str().context("a directory")?.to_owned()))
}

/// Medians of these.
fn row(name: &str, taken: &[&Taken]) -> String {
    let median = |of: &dyn Fn(&Taken) -> f64| {
        let mut values: Vec<f64> = taken.iter().map(|taken| of(taken)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    format!(
        "| {name} | {:.3} | {:.0} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} | {:.2} |",
        median(&|taken| taken.seconds),
        median(&|taken| taken.rows),
        median(&|taken| taken.bytes / 1e6),
        median(&|taken| taken.bytes / taken.seconds / 1e6),
        median(&|taken| taken.seconds * 1e9 / taken.rows),
        median(&|taken| taken.sync_ms),
        median(&|taken| taken.before),
        median(&|taken| taken.during),
        median(&|taken| taken.after),
        median(&|taken| 2.0 * taken.during / (taken.before + taken.after)),
    )
}
