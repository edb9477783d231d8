//! What the replicated log costs on this machine: durable proposals per second on a group of one and of three, one after the
//! other and many at once. The difference is what group commit gains: proposals that wait for the disk share its next sync.
//! Members of three reach each other through memory, and sync to one disk, so that this is the log without the network;
//! `recovery --scenario commands-group` measures whole JobManagers over gRPC.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use weir_replication::{Command, Config, Node, NodeId, StateMachine, Transport};
use weir_testkit::network::Network;

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

/// One member's way to the others.
struct Link {
    network: Network<Bytes>,
    from: u64,
}

impl Transport for Link {
    fn send(&self, to: NodeId, message: Bytes) {
        self.network.send(self.from, to.get(), message);
    }
}

/// A group of so many members, its leader first, and their directories.
async fn found(members: u64) -> (Vec<Node<Counter>>, Vec<TempDir>) {
    let network = Network::new();
    let founders: Vec<NodeId> = (1..=members).map(|id| NodeId::new(id).unwrap()).collect();
    let (mut nodes, mut directories) = (Vec::new(), Vec::new());
    for founder in &founders {
        let directory = tempfile::tempdir_in(".").unwrap();
        let (config, from) = (Config::new(*founder, founders.clone()), founder.get());
        let link = Link { network: network.clone(), from };
        let node = Node::start(config, directory.path(), Counter::default(), link).unwrap();
        let receiver = node.clone();
        network.join(from, move |message| receiver.step(message));
        nodes.push(node);
        directories.push(directory);
    }
    let waits = nodes.iter().map(|node| Box::pin(node.serving()));
    let (served, leader, _) = futures::future::select_all(waits).await;
    served.unwrap();
    nodes.swap(0, leader);
    (nodes, directories)
}

fn raft(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    for members in [1, 3] {
        let (nodes, _directories) = runtime.block_on(found(members));
        let mut group = criterion.benchmark_group(format!("raft_propose/{members}_members"));
        group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
        for clients in [1, 16, 256] {
            group.bench_function(format!("{clients}_clients"), |bencher| {
                bencher.iter_custom(|count| runtime.block_on(propose(&nodes[0], clients, count)));
            });
        }
        group.finish();
        // The followers first: nobody has to be made to lead.
        for node in nodes.iter().rev() {
            runtime.block_on(node.stop());
        }
    }
}

criterion_group!(benches, raft);
criterion_main!(benches);
