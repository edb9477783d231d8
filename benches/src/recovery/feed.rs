//! The input: a row for each key before the job is measured, then a steady flow of rows from this process.
//!
//! Every other row of the flow belongs to a window of the present, whose result the job puts out at once; the others change
//! what it keeps for a window that never ends, so that its state has all keys and every checkpoint has something to write.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use weir_stream_store::client::{Producer, ProducerOptions, StoreClient};
use weir_types::ids::PartitionId;
use weir_types::stream::StreamName;

/// How often the flow is let go on; the resolution of what is measured at the other end is no better.
const STEP: Duration = Duration::from_millis(5);
/// 2100-01-01, in the window that never ends.
const FAR_MS: u64 = 4_102_444_800_000;

/// A flow of rows that goes on until it is dropped. Rows are numbered from 0.
#[derive(Debug)]
pub(crate) struct Feed {
    sent: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Lets `rate` rows a second flow, over `keys` keys in no order.
    pub(crate) async fn start(store: &StoreClient, stream: &StreamName, keys: u64, rate: u64) -> Result<Self> {
        let producer = Producer::open(store, stream, ProducerOptions::default()).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(flow(producer, keys, rate, sent.clone()));
        Ok(Self { sent, task })
    }

    /// So many rows have been sent.
    ///
    /// # Errors
    /// Why the flow has ended, if it has.
    pub(crate) async fn sent(&mut self) -> Result<u64> {
        if self.task.is_finished() {
            (&mut self.task).await?.context("the flow of rows into the job has ended")?;
        }
        Ok(self.sent.load(Ordering::Acquire))
    }
}

/// Now, in milliseconds since the epoch.
pub(crate) fn now_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(u64::try_from(now.as_millis())?)
}

/// Puts one row of each key into the window that never ends; their number is −1.
pub(crate) async fn preload(store: &StoreClient, stream: &StreamName, keys: u64) -> Result<()> {
    let mut producer = Producer::open(store, stream, ProducerOptions::default()).await?;
    let (now, mut row) = (now_ms()?, Row::default());
    for key in 0..keys {
        row.send(&mut producer, -1, key, key, FAR_MS, now).await?;
    }
    producer.flush().await?;
    Ok(())
}

async fn flow(mut producer: Producer, keys: u64, rate: u64, sent: Arc<AtomicU64>) -> Result<()> {
    let started = Instant::now();
    let mut steps = tokio::time::interval(STEP);
    let (mut number, mut row) = (0_u64, Row::default());
    loop {
        steps.tick().await;
        let due = (started.elapsed().as_secs_f64() * rate as f64) as u64;
        let now = now_ms()?;
        while number < due {
            let at = if number.is_multiple_of(2) { now } else { FAR_MS };
            row.send(&mut producer, i64::try_from(number)?, number, scattered(number) % keys, at, now).await?;
            number += 1;
        }
        sent.store(number, Ordering::Release);
    }
}

/// Numbers in no order (the finaliser of SplitMix64).
fn scattered(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The text of a row, written over for each.
#[derive(Default)]
struct Row(String);

impl Row {
    /// Sends row `number` to the partition whose turn it is.
    async fn send(
        &mut self,
        producer: &mut Producer,
        number: i64,
        turn: u64,
        key: u64,
        at: u64,
        clock: u64,
    ) -> Result<()> {
        self.0.clear();
        write!(self.0, "{{\"seq\":{number},\"k\":{key},\"at\":{at},\"clock\":{clock}}}")?;
        let partition = PartitionId(u32::try_from(turn % u64::from(producer.partitions().get()))?);
        producer.send_to(partition, None, self.0.as_bytes(), None).await?;
        Ok(())
    }
}
