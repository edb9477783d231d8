//! Group commit: a few threads that gather what waits, and write and fsync it together.
//!
//! A partition always has the same thread, so that its order is the order of arrival. Bytes under way are bounded by a
//! budget that every append takes from before it queues.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use weir_types::store::{Appended, ProducerStamp};
use weir_types::{Error, Result};

use crate::block::RecordBlock;
use crate::clock::Clock;
use crate::config::StoreConfig;
use crate::partition::{AppendJob, Partition};

const QUEUE_JOBS: usize = 1024;

pub(crate) struct Committers {
    senders: Mutex<Vec<mpsc::Sender<AppendJob>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    budget: Arc<Semaphore>,
}

impl Committers {
    pub(crate) fn start(config: &StoreConfig, clock: &Arc<dyn Clock>) -> Result<Self> {
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        for index in 0..config.committers {
            let (sender, receiver) = mpsc::channel(QUEUE_JOBS);
            let (clock, commit_bytes) = (Arc::clone(clock), config.commit_bytes);
            let thread = std::thread::Builder::new()
                .name(format!("commit-{index}"))
                .spawn(move || run(receiver, &*clock, commit_bytes))
                .map_err(|error| Error::io("a commit thread could not be started", &error))?;
            senders.push(sender);
            threads.push(thread);
        }
        let budget = Arc::new(Semaphore::new(config.append_queue_bytes));
        Ok(Self { senders: Mutex::new(senders), threads: Mutex::new(threads), budget })
    }

    /// Queues a block once there is room for it; the answer comes when it is durable.
    pub(crate) async fn submit(
        &self,
        partition: Arc<Partition>,
        lane: usize,
        block: RecordBlock,
        producer: Option<ProducerStamp>,
    ) -> Result<oneshot::Receiver<Result<Appended>>> {
        let closed = || Error::unavailable("the store is shutting down");
        let sender = {
            let senders = self.senders.lock();
            let lanes = senders.len().max(1);
            senders.get(lane % lanes).cloned().ok_or_else(closed)?
        };
        let bytes = u32::try_from(block.payload().len()).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget).acquire_many_owned(bytes).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let job = AppendJob { partition, block, producer, reply, budget };
        sender.send(job).await.map_err(|_| closed())?;
        Ok(answer)
    }

    /// Lets the threads finish what is queued, and waits for them.
    pub(crate) fn stop(&self) {
        self.senders.lock().clear();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a commit thread had panicked");
            }
        }
    }
}

fn run(mut jobs: mpsc::Receiver<AppendJob>, clock: &dyn Clock, commit_bytes: usize) {
    while let Some(first) = jobs.blocking_recv() {
        let mut bytes = first.block.payload().len();
        // By partition, in order of arrival within each.
        let mut order: Vec<Vec<AppendJob>> = Vec::new();
        let mut places: HashMap<*const Partition, usize> = HashMap::new();
        let mut next = Some(first);
        while let Some(job) = next {
            let place = *places.entry(Arc::as_ptr(&job.partition)).or_insert_with(|| {
                order.push(Vec::new());
                order.len() - 1
            });
            order[place].push(job);
            next = if bytes < commit_bytes { jobs.try_recv().ok() } else { None };
            bytes += next.as_ref().map_or(0, |job| job.block.payload().len());
        }
        let now = clock.now();
        for jobs in order {
            if let Some(partition) = jobs.first().map(|job| Arc::clone(&job.partition)) {
                partition.append(now, jobs);
            }
        }
    }
}
