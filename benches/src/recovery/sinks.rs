//! The same job with a plain sink and with one that commits with the checkpoint, as fast as it goes, in turn.
//!
//! What counts is how fast rows arrive in the stream, commits included, from the first tenth of them to the last: neither the
//! start of the job nor its end, which waits for a last commit, is a matter of throughput.

use std::time::{Duration, Instant};

use anyhow::Result;
use weir_integration_tests::api::Api;
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_proto::pb::client::v1::JobState;
use weir_stream_store::client::StoreClient;
use weir_types::Code;
use weir_types::stream::StreamName;

use crate::job::{PATIENCE, submit};
use crate::report::Run;

const PARALLELISM: u32 = 2;
/// How often the stream is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Every run commits about once a second.
const CHECKPOINT_INTERVAL: &str = "1 s";
const GUARANTEES: [&str; 2] = ["at-least-once", "exactly-once"];

/// Runs the job with either guarantee, `runs` times after once to warm up.
pub(crate) async fn sinks(scenario: &str, format: &str, runs: u32, rows: u64) -> Result<Vec<Run>> {
    let cluster = Cluster::start(PARALLELISM, 1);
    let mut measured = Vec::new();
    for number in 0..=runs {
        let mut run = Run::new(scenario);
        let mut rates = Vec::new();
        for guarantee in GUARANTEES {
            let rate = rows_per_second(&cluster, format, guarantee, rows).await?;
            run.add(guarantee, "rows/s", rate);
            rates.push(rate);
        }
        run.add("exactly-once, of at-least-once", "%", 100.0 * rates[1] / rates[0]);
        if number > 0 {
            measured.push(run);
        }
    }
    Ok(measured)
}

async fn rows_per_second(cluster: &Cluster, format: &str, guarantee: &str, rows: u64) -> Result<f64> {
    let script = format!(
        "CREATE TABLE nexmark (bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, `dateTime` TIMESTAMP(3)>)
         WITH ('connector' = 'nexmark', 'events.num' = '{rows}', 'person.proportion' = '0', 'auction.proportion' = '0',
               'bid.proportion' = '1');
         CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, `dateTime` TIMESTAMP(3))
         WITH ('connector' = 'stream-store', 'stream' = 'bench/bids', 'format' = '{format}', 'sink.partitions' = '4',
               'sink.delivery-guarantee' = '{guarantee}');
         INSERT INTO bids SELECT bid.auction, bid.bidder, bid.price, bid.channel, bid.`dateTime` FROM nexmark;"
    );
    let mut api = Api::new(&cluster.jobmanagers());
    let options = [("execution.checkpointing.interval", CHECKPOINT_INTERVAL)];
    let job = submit(&mut api, &script, &options, PARALLELISM).await?;
    let stream = StreamName::new("bench", "bids")?;
    let store = StoreClient::connect(&cluster.address("store"))?;
    let first = appended(&store, &stream, rows / 10).await?;
    let last = appended(&store, &stream, rows).await?;
    job_in_state(cluster, &job, JobState::Finished).await;
    let (written, _) = appended(&store, &stream, rows).await?;
    anyhow::ensure!(written == rows, "{written} rows were written instead of {rows}");
    store.delete_stream(&stream, true).await?;
    Ok((last.0 - first.0) as f64 / (last.1 - first.1).as_secs_f64())
}

/// Waits until so many rows are in the stream, committed or not; how many there are then, and when that was seen.
async fn appended(store: &StoreClient, stream: &StreamName, rows: u64) -> Result<(u64, Instant)> {
    let (mut before, mut deadline) = (0, Instant::now() + PATIENCE);
    loop {
        let there: u64 = match store.describe_stream(stream).await {
            Ok(info) => info.ends().0.values().map(|end| end.0).sum(),
            // The sink makes it.
            Err(error) if error.code == Code::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        if there >= rows {
            return Ok((there, now));
        }
        if there > before {
            (before, deadline) = (there, now + PATIENCE);
        }
        anyhow::ensure!(now < deadline, "{there} rows of {rows} were written, and no more in {PATIENCE:?}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
