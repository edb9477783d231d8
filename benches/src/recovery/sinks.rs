//! The same job with a plain sink and with one that commits with the checkpoint, as fast as it goes, in turn.

use anyhow::{Context, Result};
use weir_integration_tests::api::Api;
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_proto::pb::client::v1::JobState;
use weir_stream_store::client::StoreClient;
use weir_types::stream::StreamName;

use crate::job::submit;
use crate::report::Run;

const PARALLELISM: u32 = 2;
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
    let detail = job_in_state(cluster, &job, JobState::Finished).await;
    let summary = detail.summary.context("a summary")?;
    let stream = StreamName::new("bench", "bids")?;
    let store = StoreClient::connect(&cluster.address("store"))?;
    let info = store.describe_stream(&stream).await?;
    let written: u64 = info.ends().0.values().map(|end| end.0).sum();
    anyhow::ensure!(written == rows, "{written} rows of {rows} were written");
    store.delete_stream(&stream, true).await?;
    let seconds = (summary.ended_at_ms - summary.started_at_ms) as f64 / 1000.0;
    Ok(rows as f64 / seconds)
}
