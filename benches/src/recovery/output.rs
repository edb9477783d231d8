//! What comes out of the job, read from its streams as any consumer would, with the time at which it came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weir_benches::measure::median;
use weir_integration_tests::oracle::millis;
use weir_stream_store::client::{ReadBlock, Reader, ReaderOptions, StoreClient};
use weir_types::stream::StreamName;

use crate::feed::now_ms;

/// How finely throughput is looked at.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// The rows that the job passes on as they are, by their number.
#[derive(Deserialize)]
struct Echo {
    seq: u64,
}

/// The results of the windows that end.
#[derive(Deserialize)]
struct Total {
    window_end: String,
}

/// How far the output has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// All rows before this number have come out.
    complete: u64,
    /// The newest window of which something has come out, by its end.
    window_end_ms: i64,
}

#[derive(Default)]
struct Log {
    /// Rows passed on, block by block.
    echoed: Vec<(Instant, u32)>,
    /// A bit for each number that has come out.
    seen: Vec<u64>,
    /// Rows that have come out before.
    doubled: u64,
    /// When a newer window was first seen, its end, and how long ago that was by then, in milliseconds.
    windows: Vec<(Instant, i64, f64)>,
    failure: Option<String>,
}

/// The output of a job, read until this is dropped.
pub(crate) struct Output {
    log: Arc<Mutex<Log>>,
    progress: watch::Receiver<Progress>,
    /// They end with this.
    _readers: JoinSet<()>,
}

/// Throughput around a moment.
#[derive(Debug)]
pub(crate) struct Dip {
    /// All of them.
    pub(crate) rows: f64,
    /// The slices' median.
    pub(crate) median_rows: f64,
    /// The slice with the fewest rows.
    pub(crate) least_rows: f64,
    /// The longest time without any row.
    pub(crate) pause: Duration,
}

impl Output {
    /// Reads the streams of rows passed on and of windows from their beginning.
    pub(crate) async fn watch(store: &StoreClient, echo: &StreamName, totals: &StreamName) -> Result<Self> {
        let log = Arc::new(Mutex::new(Log::default()));
        let (progress, watched) = watch::channel(Progress::default());
        let mut readers = JoinSet::new();
        for (stream, take) in
            [(echo, on_echo as fn(&mut Log, &mut Progress, &ReadBlock) -> Result<()>), (totals, on_totals)]
        {
            let heads = store.describe_stream(stream).await?.heads();
            let reader = Reader::open(store, stream, heads, ReaderOptions::default());
            let (log, progress) = (log.clone(), progress.clone());
            readers.spawn(async move {
                if let Err(error) = read(reader, &log, &progress, take).await {
                    log.lock().failure = Some(format!("{error:#}"));
                    // Whoever waits looks why.
                    progress.send_modify(|_| {});
                }
            });
        }
        Ok(Self { log, progress: watched, _readers: readers })
    }

    /// Waits until every row before number `until` has come out.
    pub(crate) async fn complete(&mut self, until: u64, patience: Duration) -> Result<()> {
        let what = format!("of {until} rows");
        self.wait(&what, patience, |progress| progress.complete >= until).await
    }

    /// Waits until something of a window has come out that ended after `after_ms`; when that was.
    pub(crate) async fn window_after(&mut self, after_ms: u64, patience: Duration) -> Result<Instant> {
        let after_ms = i64::try_from(after_ms)?;
        self.wait("of a newer window", patience, |progress| progress.window_end_ms > after_ms).await?;
        let log = self.log.lock();
        let first = log.windows.iter().find(|(_, end_ms, _)| *end_ms > after_ms);
        Ok(first.context("the window that was waited for is not there")?.0)
    }

    async fn wait(&mut self, what: &str, patience: Duration, done: impl Fn(&Progress) -> bool) -> Result<()> {
        let log = self.log.clone();
        let reached = self.progress.wait_for(|progress| log.lock().failure.is_some() || done(progress));
        let Ok(reached) = tokio::time::timeout(patience, reached).await else {
            let Progress { complete, window_end_ms } = *self.progress.borrow();
            bail!("no output {what} in {patience:?}: complete up to {complete}, windows up to {window_end_ms}");
        };
        let progress = *reached.context("the readers of the output have ended")?;
        if let Some(failure) = log.lock().failure.as_ref().filter(|_| !done(&progress)) {
            bail!("could not read the output: {failure}");
        }
        Ok(())
    }

    /// Rows that have come out more than once, so far.
    pub(crate) fn doubled(&self) -> u64 {
        self.log.lock().doubled
    }

    /// The median time from the end of a window to the first of its results, in ms, of windows seen since `since`.
    pub(crate) fn latency_ms(&self, since: Instant) -> f64 {
        let log = self.log.lock();
        median(log.windows.iter().filter(|(at, ..)| *at >= since).map(|(_, _, late_ms)| *late_ms).collect())
    }

    /// Throughput of rows passed on in this time.
    pub(crate) fn dip(&self, from: Instant, to: Instant) -> Dip {
        let log = self.log.lock();
        let slices = (to - from).as_micros() / SLICE.as_micros();
        let mut rows = vec![0.0; slices as usize];
        let (mut last, mut pause) = (from, Duration::ZERO);
        for (at, count) in log.echoed.iter().filter(|(at, _)| *at >= from && *at < to) {
            let slice = (*at - from).as_micros() / SLICE.as_micros();
            if let Some(rows) = rows.get_mut(slice as usize) {
                *rows += f64::from(*count);
            }
            pause = pause.max(*at - last);
            last = *at;
        }
        let least_rows = rows.iter().copied().fold(f64::INFINITY, f64::min);
        let all = rows.iter().sum();
        Dip { rows: all, median_rows: median(rows), least_rows, pause: pause.max(to - last) }
    }
}

async fn read(
    mut reader: Reader,
    log: &Mutex<Log>,
    progress: &watch::Sender<Progress>,
    take: fn(&mut Log, &mut Progress, &ReadBlock) -> Result<()>,
) -> Result<()> {
    while let Some(block) = reader.next().await? {
        let mut result = Ok(());
        // Not within the log's lock: whoever waits takes both in this order.
        progress.send_modify(|progress| result = take(&mut log.lock(), progress, &block));
        result?;
    }
    bail!("the stream has ended")
}

fn on_echo(log: &mut Log, progress: &mut Progress, block: &ReadBlock) -> Result<()> {
    log.echoed.push((Instant::now(), block.record_count()));
    for record in block.records()? {
        let Echo { seq } = serde_json::from_slice(record.value).context("a row passed on is no such row")?;
        let (word, bit) = (usize::try_from(seq / 64)?, 1 << (seq % 64));
        if log.seen.len() <= word {
            log.seen.resize(word + 1, 0);
        }
        log.doubled += u64::from(log.seen[word] & bit != 0);
        log.seen[word] |= bit;
    }
    let is_seen = |seq: u64| log.seen.get((seq / 64) as usize).is_some_and(|word| word & (1 << (seq % 64)) != 0);
    while is_seen(progress.complete) {
        progress.complete += 1;
    }
    Ok(())
}

fn on_totals(log: &mut Log, progress: &mut Progress, block: &ReadBlock) -> Result<()> {
    let (at, now) = (Instant::now(), i64::try_from(now_ms()?)?);
    for record in block.records()? {
        let Total { window_end } = serde_json::from_slice(record.value).context("a result is no such row")?;
        let end_ms = millis(&window_end);
        if end_ms > progress.window_end_ms {
            progress.window_end_ms = end_ms;
            log.windows.push((at, end_ms, (now - end_ms) as f64));
        }
    }
    Ok(())
}
