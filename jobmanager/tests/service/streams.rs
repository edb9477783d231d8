//! Jobs that read streams: their reader groups, and what they pin.

use tokio::net::TcpListener;
use weir_proto::pb::client::v1 as client;
use weir_service::Shutdown;
use weir_stream_store::client::{Producer, ProducerOptions, StoreClient};
use weir_stream_store::{StoreConfig, server};
use weir_types::deployment::SubtaskState;
use weir_types::ids::PartitionId;
use weir_types::store::StreamOptions;
use weir_types::stream::{Offset, StreamCut, StreamName};

use crate::harness::{Cluster, TaskManager, offsets, soon};
use crate::job_request;

/// A store with one stream of one partition that holds 20 records.
struct Streams {
    store: StoreClient,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<weir_types::Result<()>>,
}

fn name() -> StreamName {
    "shop/clicks".parse().unwrap()
}

fn at(offset: u64) -> StreamCut {
    StreamCut([(PartitionId(0), Offset(offset))].into())
}

impl Streams {
    async fn start(cluster: &mut Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let config = StoreConfig::at(cluster.path("store"));
        let running = tokio::spawn(server::run(listener, config, async move { stop.requested().await }));
        let store = StoreClient::connect(&address).unwrap();
        soon(store.create_stream(&name(), &StreamOptions::new(1), false)).await.unwrap();
        let mut producer = Producer::open(&store, &name(), ProducerOptions::default()).await.unwrap();
        for _ in 0..20 {
            producer.send(None, b"{\"a\": 1}", None).await.unwrap();
        }
        soon(producer.flush()).await.unwrap();
        cluster.store_address = Some(address);
        Self { store, shutdown, running }
    }

    async fn stop(self) {
        self.shutdown.request();
        soon(self.running).await.unwrap().unwrap();
    }

    async fn pins(&self) -> Vec<(String, StreamCut)> {
        let pins = soon(self.store.pins(&name())).await.unwrap();
        pins.into_iter().map(|pin| (pin.holder.to_string(), pin.cut)).collect()
    }

    /// Asks until the pins are as wanted: they follow what was decided.
    async fn until_pins(&self, wanted: &[(&str, u64)]) {
        let wanted: Vec<_> = wanted.iter().map(|(holder, offset)| ((*holder).to_owned(), at(*offset))).collect();
        soon(async { while self.pins().await != wanted {} }).await;
    }

    async fn until_no_groups(&self) {
        soon(async { while !self.store.list_groups(None).await.unwrap().is_empty() {} }).await;
    }
}

fn script(sources: &[&str]) -> String {
    let table = |name: &&str| {
        format!(
            "CREATE TABLE {name} (a BIGINT) WITH ('connector' = 'stream-store', 'stream' = 'shop/clicks', \
             'format' = 'json', 'group' = '{name}');\n"
        )
    };
    let reads: Vec<String> = sources.iter().map(|name| format!("SELECT a FROM {name}")).collect();
    format!(
        "SET 'execution.checkpointing.interval' = '1 h';\n{}\
         CREATE TABLE s (a BIGINT) WITH ('connector' = 'blackhole');\nINSERT INTO s {};",
        sources.iter().map(table).collect::<String>(),
        reads.join(" UNION ALL ")
    )
}

fn split(offset: u64) -> Vec<(String, u64)> {
    vec![("p-0".to_owned(), offset)]
}

#[tokio::test]
async fn the_group_of_a_stopped_job_is_free_for_the_next_one() {
    let mut cluster = Cluster::new();
    let streams = Streams::start(&mut cluster).await;
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(script(&["clicks"])).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let asked = jobmanager.stop_job(&job);
    let barrier = worker.trigger().await;
    worker.acknowledge(&deployment, &barrier).await;
    assert!(worker.outcome().await);
    worker.report(&deployment, SubtaskState::Finished).await;
    let savepoint = soon(asked).await.unwrap().unwrap();

    let again =
        client::SubmitRequest { sql: script(&["clicks"]), restore_from: Some(savepoint.id), ..Default::default() };
    let again = soon(jobmanager.client.submit(again)).await.unwrap().into_inner().job_id;
    let deployment = worker.deployment().await;
    assert_eq!(offsets(&deployment), split(10));
    let group = streams.store.describe_group(&"clicks".parse().unwrap()).await.unwrap();
    assert_eq!(group.mode.job().unwrap().as_str(), again);
    jobmanager.stop().await;
    streams.stop().await;
}

#[tokio::test]
async fn a_job_pins_its_start_until_its_first_snapshot() {
    let mut cluster = Cluster::new();
    let streams = Streams::start(&mut cluster).await;
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    // Two sources that read the same stream share its pins.
    let job = jobmanager.submit(script(&["clicks", "again"])).await;
    let deployment = worker.deployment().await;
    assert_eq!(streams.pins().await, [(job.clone(), at(0))]);
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    let mut savepoints = Vec::new();
    for request in ["one", "two"] {
        let asked = jobmanager.savepoint(&job, request, None);
        let barrier = worker.trigger().await;
        worker.acknowledge(&deployment, &barrier).await;
        savepoints.push(soon(asked).await.unwrap().unwrap().id);
        assert!(worker.outcome().await);
    }
    streams.until_pins(&[(&savepoints[0], 10), (&savepoints[1], 10)]).await;

    let first = client::DeleteSnapshotRequest { snapshot: savepoints[0].clone(), ..Default::default() };
    soon(jobmanager.client.delete_snapshot(first)).await.unwrap();
    streams.until_pins(&[(&savepoints[1], 10)]).await;
    jobmanager.client.cancel_job(job_request(&job)).await.unwrap();
    worker.cancel(&deployment).await;
    streams.until_no_groups().await;

    // A job that ends before any snapshot leaves nothing behind.
    let job = jobmanager.submit(script(&["clicks"])).await;
    let deployment = worker.deployment().await;
    streams.until_pins(&[(&job, 0), (&savepoints[1], 10)]).await;
    jobmanager.client.cancel_job(job_request(&job)).await.unwrap();
    worker.cancel(&deployment).await;
    streams.until_no_groups().await;
    streams.until_pins(&[(&savepoints[1], 10)]).await;
    jobmanager.stop().await;
    streams.stop().await;
}

#[tokio::test]
async fn a_split_that_was_read_to_its_end_may_be_truncated() {
    let mut cluster = Cluster::new();
    let streams = Streams::start(&mut cluster).await;
    let mut jobmanager = cluster.start().await;
    let mut worker = TaskManager::join(&jobmanager, "worker", 1, vec![]).await;
    let job = jobmanager.submit(script(&["clicks"])).await;
    let deployment = worker.deployment().await;
    worker.report(&deployment, SubtaskState::Running).await;
    jobmanager.until_state(&job, client::JobState::Running).await;
    worker.at_end = true;
    let asked = jobmanager.savepoint(&job, "one", None);
    let barrier = worker.trigger().await;
    worker.acknowledge(&deployment, &barrier).await;
    soon(asked).await.unwrap().unwrap();
    assert!(worker.outcome().await);
    streams.until_pins(&[]).await;
    streams.store.truncate(&name(), &at(15), false).await.unwrap();
    drop(worker);
    jobmanager.until_state(&job, client::JobState::Restarting).await;
    let mut worker = TaskManager::join(&jobmanager, "another", 1, vec![]).await;
    let again = worker.deployment().await;
    assert_eq!(offsets(&again), split(10));
    assert!(again.splits.iter().all(|split| split.position.finished));
    jobmanager.stop().await;
    streams.stop().await;
}
