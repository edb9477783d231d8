//! What the replicated log costs on this machine: durable proposals per second on a group of one, one after the other and
//! many at once. The difference is what group commit gains: proposals that wait for the disk share its next sync.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use weir_replication::{Alone, Command, Config, Node, NodeId, StateMachine};

const PROPOSAL_BYTES: usize = 256;

/// Counts; applying costs nothing, so that only the log is measured.
#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, command: Command<'_>) -> Bytes {
        self.0 += black_box(command.data.len() as u64);
        Bytes::new()
    }

    fn snapshot(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_le_bytes())
    }

    fn restore(&mut self, snapshot: &[u8]) -> weir_types::Result<()> {
        let bytes = snapshot.try_into().map_err(|_| weir_types::Error::internal("not a counter"))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

/// Proposes `count` times from `clients` tasks, and returns how long it took.
async fn propose(node: &Node<Counter>, clients: u64, count: u64) -> Duration {
    let payload = Bytes::from(vec![7; PROPOSAL_BYTES]);
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (node, payload) = (node.clone(), payload.clone());
            let share = count / clients + u64::from(client < count % clients);
            tokio::spawn(async move {
                for _ in 0..share {
                    node.propose(payload.clone()).await?;
                }
                Ok::<_, weir_replication::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    started.elapsed()
}

fn raft(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let runtime = Runtime::new().unwrap();
    let id = NodeId::new(1).unwrap();
    let node = runtime.block_on(async {
        let node = Node::start(Config::new(id, vec![id]), dir.path(), Counter::default(), Alone).unwrap();
        node.serving().await.unwrap();
        node
    });
    let mut group = criterion.benchmark_group("raft_propose");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    for clients in [1, 16, 256] {
        group.bench_function(format!("{clients}_clients"), |bencher| {
            bencher.iter_custom(|count| runtime.block_on(propose(&node, clients, count)));
        });
    }
    group.finish();
    runtime.block_on(node.stop());
}

criterion_group!(benches, raft);
criterion_main!(benches);
