//! Appending many records: batching per partition, several blocks under way, retries without duplicates.
//!
//! Every block carries the producer's id, epoch and a sequence number of its partition, so that a block that is sent
//! again after a lost connection is recognised. Blocks of one partition are appended in the order of the calls. What is
//! buffered or under way is bounded; then calls wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info};
use weir_proto::from_status;
use weir_proto::pb::store::v1 as pb;
use weir_types::ids::{Epoch, Parallelism, PartitionId, ProducerId, TransactionNumber};
use weir_types::key_range::subtask_of;
use weir_types::store::ProducerStamp;
use weir_types::stream::{Offset, StreamCut, StreamName};
use weir_types::{Error, Result};

use super::{StoreClient, append_request, append_result};
use crate::block::{RecordBlock, RecordBlockBuilder};

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How a producer batches and who it is.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// The producer's name; `None` makes a new one. A name may be used again only with a higher epoch: sequence numbers
    /// begin anew with every [`Producer`], and a partition takes them only in a new epoch.
    pub id: Option<ProducerId>,
    /// The incarnation. Lower epochs of the same id are refused with `FENCED` in every partition once
    /// [`Producer::open`] has returned.
    pub epoch: Epoch,
    /// What to fence when the producer is opened, if its name is not new and its epoch not 0: lower epochs of this
    /// name and of all that begin with it and a dot, such as those of the producer's siblings. `None` is its own name.
    pub family: Option<ProducerId>,
    /// A block that is not full is sent after this time.
    pub linger: Duration,
    /// A block is sent when it has grown to so many bytes.
    pub block_bytes: usize,
    /// Bytes that may be buffered and under way; further calls wait.
    pub buffer_bytes: usize,
    /// Blocks that may be under way per partition, 1 to 15.
    pub max_in_flight: usize,
    /// How long to keep trying to reach a store before calls fail; `None` is for ever.
    pub give_up_after: Option<Duration>,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            id: None,
            epoch: Epoch(0),
            family: None,
            linger: Duration::from_millis(5),
            block_bytes: 512 << 10,
            buffer_bytes: 16 << 20,
            max_in_flight: 4,
            give_up_after: None,
        }
    }
}

/// The partition that records with `key` go to: XXH3-64 of the key's bytes, spread evenly over the partitions.
pub fn partition_of(key: &[u8], partitions: Parallelism) -> PartitionId {
    PartitionId(subtask_of(xxhash_rust::xxh3::xxh3_64(key), partitions).0)
}

/// Appends to one stream. Dropping it drops what was not flushed.
pub struct Producer {
    shared: Arc<Shared>,
    partitions: Parallelism,
    /// Records without a key go here until their block is finished, full or not; then to the next partition.
    sticky: u32,
    /// Whether a record has gone to `sticky` since it was chosen.
    sticky_begun: bool,
    driver: JoinHandle<()>,
}

struct Shared {
    options: ProducerOptions,
    lanes: Mutex<Lanes>,
    /// Something is ready to be sent, or the linger timer has to be set.
    wake: Notify,
    progress: watch::Sender<Progress>,
}

/// What the driver tells the callers.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Grows with every acknowledged block.
    acknowledged: u64,
    failure: Option<Error>,
}

struct Lanes {
    lanes: Vec<Lane>,
    buffered_bytes: usize,
    /// Blocks that have been finished, ever.
    finished: u64,
}

/// A block with its number, on its way.
struct Numbered {
    sequence: u64,
    transaction: Option<TransactionNumber>,
    block: RecordBlock,
}

/// One partition's blocks.
#[derive(Default)]
struct Lane {
    builder: RecordBlockBuilder,
    /// When the builder got its first record.
    since: Option<Instant>,
    /// Finished, not sent.
    ready: VecDeque<Numbered>,
    in_flight: VecDeque<Numbered>,
    next_sequence: u64,
    /// What new blocks belong to.
    transaction: Option<TransactionNumber>,
    /// Behind the last block that was acknowledged since the transaction was set.
    acknowledged: Option<Offset>,
}

impl Lane {
    /// Moves the builder's records into a block of their own; false if there are none.
    fn finish(&mut self) -> bool {
        if self.builder.is_empty() {
            return false;
        }
        self.since = None;
        let block = self.builder.finish();
        self.enqueue(block);
        true
    }

    fn enqueue(&mut self, block: RecordBlock) {
        self.ready.push_back(Numbered { sequence: self.next_sequence, transaction: self.transaction, block });
        self.next_sequence += 1;
    }
}

impl Lanes {
    fn finish(&mut self, partition: PartitionId) {
        let lane = &mut self.lanes[partition.0 as usize];
        let before = lane.builder.encoded_len();
        if lane.finish() {
            let after = lane.ready.back().map_or(0, |ready| ready.block.payload().len());
            self.buffered_bytes = self.buffered_bytes.saturating_sub(before) + after;
            self.finished += 1;
        }
    }
}

impl Producer {
    /// A producer for `stream`, which must exist. Earlier incarnations are fenced off when this returns.
    ///
    /// # Errors
    /// `FENCED` if there is a later incarnation already; `NOT_FOUND`, `UNAVAILABLE`, `INVALID_ARGUMENT` for impossible options.
    pub async fn open(client: &StoreClient, stream: &StreamName, options: ProducerOptions) -> Result<Self> {
        if !(1..crate::producers::REMEMBERED_BLOCKS).contains(&options.max_in_flight) {
            return Err(Error::invalid("max_in_flight of a producer must be 1 to 15"));
        }
        let info = client.describe_stream(stream).await?;
        let partitions = Parallelism::new(info.options.partitions)?;
        let id = match &options.id {
            Some(id) => {
                if options.epoch > Epoch(0) {
                    client.fence_producers(stream, options.family.as_ref().unwrap_or(id), options.epoch).await?;
                }
                id.clone()
            }
            None => ProducerId::new(format!("producer-{}", uuid::Uuid::new_v4().simple()))?,
        };
        let lanes = (0..partitions.get()).map(|_| Lane::default()).collect();
        let shared = Arc::new(Shared {
            options,
            lanes: Mutex::new(Lanes { lanes, buffered_bytes: 0, finished: 0 }),
            wake: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
        });
        let driver = Driver {
            client: client.separate(),
            stream: stream.clone(),
            id,
            shared: Arc::clone(&shared),
            sent: VecDeque::new(),
            number: 0,
        };
        let sticky = std::process::id() % partitions.get();
        Ok(Self { shared, partitions, sticky, sticky_begun: false, driver: tokio::spawn(driver.run()) })
    }

    /// Adds a record, to the partition of its key or, without one, to any. Waits only if the buffers are full.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a record that is too large; otherwise why an earlier block could not be appended, which
    /// ends this producer: records that were not flushed may be lost.
    pub async fn send(&mut self, key: Option<&[u8]>, value: &[u8], event_time_ms: Option<i64>) -> Result<()> {
        let partition = match key {
            Some(key) => partition_of(key, self.partitions),
            None => self.next_sticky(),
        };
        self.send_to(partition, key, value, event_time_ms).await
    }

    /// Where a record without a key goes. Stays with a partition while its block grows, so that blocks are large.
    fn next_sticky(&mut self) -> PartitionId {
        if self.sticky_begun && self.shared.lanes.lock().lanes[self.sticky as usize].builder.is_empty() {
            self.sticky = (self.sticky + 1) % self.partitions.get();
        }
        self.sticky_begun = true;
        PartitionId(self.sticky)
    }

    /// Adds a record to a partition of the caller's choice.
    ///
    /// # Errors
    /// As [`Producer::send`]; `NOT_FOUND` if there is no such partition.
    pub async fn send_to(
        &mut self,
        partition: PartitionId,
        key: Option<&[u8]>,
        value: &[u8],
        event_time_ms: Option<i64>,
    ) -> Result<()> {
        self.check(partition)?;
        self.wait_for_room().await?;
        let mut lanes = self.shared.lanes.lock();
        let lane = &mut lanes.lanes[partition.0 as usize];
        let mut before = lane.builder.encoded_len();
        let was_empty = lane.builder.is_empty();
        if let Err(error) = lane.builder.push(key, value, event_time_ms) {
            if was_empty {
                return Err(error);
            }
            lanes.finish(partition);
            let lane = &mut lanes.lanes[partition.0 as usize];
            before = lane.builder.encoded_len();
            lane.builder.push(key, value, event_time_ms)?;
            self.shared.wake.notify_one();
        }
        let lane = &mut lanes.lanes[partition.0 as usize];
        let after = lane.builder.encoded_len();
        let is_first = lane.builder.len() == 1;
        if is_first {
            lane.since = Some(Instant::now());
        }
        let full = after >= self.shared.options.block_bytes;
        // An empty builder counts for nothing.
        lanes.buffered_bytes += if is_first { after } else { after - before };
        if full {
            lanes.finish(partition);
        }
        if full || is_first {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Appends a block that the caller has built: the way for Arrow rows. Follows what was sent to the partition.
    ///
    /// # Errors
    /// As [`Producer::send_to`].
    pub async fn send_block(&mut self, partition: PartitionId, block: RecordBlock) -> Result<()> {
        self.check(partition)?;
        self.wait_for_room().await?;
        let mut lanes = self.shared.lanes.lock();
        lanes.finish(partition);
        lanes.buffered_bytes += block.payload().len();
        lanes.finished += 1;
        lanes.lanes[partition.0 as usize].enqueue(block);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Lets what is sent from now on belong to another transaction of this producer, or to none.
    ///
    /// # Errors
    /// As [`Producer::flush`], which this does first.
    pub async fn enter_transaction(&mut self, transaction: Option<TransactionNumber>) -> Result<()> {
        self.flush().await?;
        for lane in &mut self.shared.lanes.lock().lanes {
            lane.transaction = transaction;
            lane.acknowledged = None;
        }
        Ok(())
    }

    /// Waits until everything sent so far is durable, and returns the offset behind this producer's last record in
    /// every partition that it has appended to since it entered its transaction.
    ///
    /// # Errors
    /// Why a block could not be appended; ends the producer.
    pub async fn flush(&mut self) -> Result<StreamCut> {
        let target = {
            let mut lanes = self.shared.lanes.lock();
            for partition in 0..self.partitions.get() {
                lanes.finish(PartitionId(partition));
            }
            lanes.finished
        };
        self.shared.wake.notify_one();
        self.wait_until(|progress, _| progress.acknowledged >= target).await?;
        let lanes = self.shared.lanes.lock();
        let cut = lanes.lanes.iter().enumerate();
        Ok(StreamCut(cut.filter_map(|(index, lane)| Some((PartitionId(index as u32), lane.acknowledged?))).collect()))
    }

    /// How the stream is partitioned.
    pub fn partitions(&self) -> Parallelism {
        self.partitions
    }

    fn check(&self, partition: PartitionId) -> Result<()> {
        if partition.0 >= self.partitions.get() {
            return Err(Error::not_found(format!("the stream has no partition {partition}"))
                .with_detail(format!("it has {}, from 0", self.partitions)));
        }
        Ok(())
    }

    async fn wait_for_room(&self) -> Result<()> {
        let limit = self.shared.options.buffer_bytes;
        let is_full = |lanes: &Lanes| lanes.buffered_bytes >= limit;
        if !is_full(&self.shared.lanes.lock()) {
            // The usual case: look at the failure only.
            return self.shared.progress.borrow().failure.clone().map_or(Ok(()), Err);
        }
        {
            // Unfinished blocks take room as well; if they took all of it, nothing would ever be sent.
            let mut lanes = self.shared.lanes.lock();
            for partition in 0..self.partitions.get() {
                lanes.finish(PartitionId(partition));
            }
        }
        self.shared.wake.notify_one();
        self.wait_until(|_, lanes| !is_full(&lanes.lock())).await
    }

    async fn wait_until(&self, done: impl Fn(&Progress, &Mutex<Lanes>) -> bool) -> Result<()> {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress
            .wait_for(|progress| progress.failure.is_some() || done(progress, &self.shared.lanes))
            .await
            .map_err(|_| Error::internal("the producer's task has ended"))?;
        reached.failure.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The task that talks to the store.
struct Driver {
    client: StoreClient,
    stream: StreamName,
    id: ProducerId,
    shared: Arc<Shared>,
    /// Partitions of the blocks under way on this connection, in the order of the replies to come.
    sent: VecDeque<(u64, PartitionId)>,
    number: u64,
}

impl Driver {
    async fn run(mut self) {
        let mut wait = BACKOFF_MIN;
        let mut lost_at: Option<Instant> = None;
        loop {
            let before = self.shared.progress.borrow().acknowledged;
            let Err(error) = self.talk().await;
            let progressed = self.shared.progress.borrow().acknowledged > before;
            if progressed {
                (wait, lost_at) = (BACKOFF_MIN, None);
            }
            let now = Instant::now();
            let since = *lost_at.get_or_insert(now);
            let give_up = self.shared.options.give_up_after.is_some_and(|patience| now - since >= patience);
            if !error.code.is_retryable() || give_up {
                debug!(stream = %self.stream, producer = %self.id, %error, "producer failed");
                self.shared.progress.send_modify(|progress| progress.failure = Some(error));
                return;
            }
            if since == now {
                info!(stream = %self.stream, producer = %self.id, %error, "lost the store, trying again");
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    /// Sends and listens on one connection until it fails.
    async fn talk(&mut self) -> Result<std::convert::Infallible> {
        self.sent.clear();
        let room = {
            let mut lanes = self.shared.lanes.lock();
            // What was under way is sent again, first and in order.
            for lane in &mut lanes.lanes {
                while let Some(block) = lane.in_flight.pop_back() {
                    lane.ready.push_front(block);
                }
            }
            lanes.lanes.len() * self.shared.options.max_in_flight
        };
        // Without anything to send there is no need for a connection.
        let mut linger = self.stage();
        while self.shared.lanes.lock().lanes.iter().all(|lane| lane.ready.is_empty()) {
            self.wait(linger).await;
            linger = self.stage();
        }
        let (requests, outgoing) = mpsc::channel(room);
        self.send_ready(&requests)?;
        let response = self.client.streams().append(ReceiverStream::new(outgoing)).await;
        let mut replies: Streaming<pb::AppendReply> = response.map_err(|status| from_status(&status))?.into_inner();
        loop {
            let linger = self.stage();
            self.send_ready(&requests)?;
            tokio::select! {
                reply = replies.message() => {
                    let reply = reply.map_err(|status| from_status(&status))?;
                    self.accept(reply.ok_or_else(|| Error::unavailable("the store ended the call"))?)?;
                }
                () = self.wait(linger) => {}
            }
        }
    }

    async fn wait(&self, linger: Option<Instant>) {
        tokio::select! {
            () = self.shared.wake.notified() => {}
            () = async { sleep_until(linger.unwrap_or_else(Instant::now)).await }, if linger.is_some() => {}
        }
    }

    /// Finishes blocks that have lingered long enough; returns when the next one will have.
    fn stage(&self) -> Option<Instant> {
        let mut lanes = self.shared.lanes.lock();
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for index in 0..lanes.lanes.len() {
            if let Some(since) = lanes.lanes[index].since {
                let due = since + self.shared.options.linger;
                if due <= now {
                    lanes.finish(PartitionId(index as u32));
                } else {
                    next = Some(next.map_or(due, |next| next.min(due)));
                }
            }
        }
        next
    }

    /// Sends what is ready, as far as the limit of blocks under way allows.
    fn send_ready(&mut self, requests: &mpsc::Sender<pb::AppendRequest>) -> Result<()> {
        let mut lanes = self.shared.lanes.lock();
        for (index, lane) in lanes.lanes.iter_mut().enumerate() {
            let partition = PartitionId(index as u32);
            while lane.in_flight.len() < self.shared.options.max_in_flight
                && let Some(next) = lane.ready.pop_front()
            {
                let (producer, epoch) = (self.id.clone(), self.shared.options.epoch);
                let Numbered { sequence, transaction, .. } = next;
                let stamp = ProducerStamp { producer, epoch, sequence, transaction };
                let request = append_request(self.number, &self.stream, partition, &next.block, Some(&stamp));
                lane.in_flight.push_back(next);
                self.sent.push_back((self.number, partition));
                self.number += 1;
                // The channel has room for all that may be under way; if it is closed, so is the connection.
                requests.try_send(request).map_err(|_| Error::unavailable("the connection to the store was lost"))?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, reply: pb::AppendReply) -> Result<()> {
        let Some((number, partition)) = self.sent.pop_front() else {
            return Err(Error::internal("the store answered what was not asked"));
        };
        if number != reply.request {
            return Err(Error::internal("the store's answers are out of order"));
        }
        let appended = append_result(reply)?;
        let mut lanes = self.shared.lanes.lock();
        if let Some(Numbered { block, .. }) = lanes.lanes[partition.0 as usize].in_flight.pop_front() {
            let end = appended.base_offset.plus(u64::from(block.record_count()));
            lanes.lanes[partition.0 as usize].acknowledged = Some(end);
            lanes.buffered_bytes = lanes.buffered_bytes.saturating_sub(block.payload().len());
        }
        drop(lanes);
        self.shared.progress.send_modify(|progress| progress.acknowledged += 1);
        Ok(())
    }
}
