//! What a job's subtasks have taken in, sampled finely.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::now_ms;

/// Between two samples.
const INTERVAL: Duration = Duration::from_millis(25);

/// A subtask, of what `/subtasks` shows.
#[derive(Debug, Deserialize)]
struct Subtask {
    rows_in: u64,
    state_bytes: u64,
}

/// All TaskManagers at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_ms: f64,
    /// Of the subtasks that have state.
    rows_in: u64,
    state_bytes: u64,
}

/// Samples taken on a thread of their own until this is dropped.
pub(crate) struct Samples {
    taken: Arc<Mutex<Result<Vec<Sample>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Samples {
    /// Asks these TaskManagers.
    pub(crate) fn watch(addresses: Vec<String>) -> Self {
        let (taken, stop) = (Arc::new(Mutex::new(Ok(Vec::new()))), Arc::new(AtomicBool::new(false)));
        let (into, stopped) = (Arc::clone(&taken), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let sample = sample(&addresses);
                let mut taken = into.lock().unwrap_or_else(PoisonError::into_inner);
                match (&mut *taken, sample) {
                    (Ok(samples), Ok(sample)) => samples.push(sample),
                    (taken, Err(error)) => *taken = Err(error),
                    (Err(_), _) => return,
                }
                drop(taken);
                std::thread::sleep(INTERVAL);
            }
        });
        Self { taken, stop, thread: Some(thread) }
    }

    fn read<T>(&self, read: impl FnOnce(&[Sample]) -> Result<T>) -> Result<T> {
        match &*self.taken.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(samples) => read(samples),
            Err(error) => Err(anyhow!("a TaskManager could not be asked: {error:#}")),
        }
    }

    /// Bytes of state now.
    pub(crate) fn state_bytes(&self) -> Result<u64> {
        self.read(|samples| Ok(samples.last().map_or(0, |sample| sample.state_bytes)))
    }

    /// Rows a second between two moments.
    pub(crate) fn rate(&self, from_ms: f64, to_ms: f64) -> Result<f64> {
        self.read(|samples| Ok((rows_at(samples, to_ms)? - rows_at(samples, from_ms)?) * 1e3 / (to_ms - from_ms)))
    }
}

impl Drop for Samples {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whatever became of it, there is nothing left to read.
            let _ended = thread.join();
        }
    }
}

/// Rows at a moment, between two samples in proportion.
fn rows_at(samples: &[Sample], at_ms: f64) -> Result<f64> {
    let next = samples.partition_point(|sample| sample.at_ms < at_ms);
    let (before, after) = (next.checked_sub(1).and_then(|before| samples.get(before)), samples.get(next));
    let (before, after) = before.zip(after).context("there are no samples around that moment")?;
    let share = (at_ms - before.at_ms) / (after.at_ms - before.at_ms);
    Ok(before.rows_in as f64 + share * (after.rows_in as f64 - before.rows_in as f64))
}

fn sample(addresses: &[String]) -> Result<Sample> {
    let asked = now_ms();
    let (mut rows_in, mut state_bytes) = (0, 0);
    for address in addresses {
        for subtask in subtasks(address)?.iter().filter(|subtask| subtask.state_bytes > 0) {
            rows_in += subtask.rows_in;
            state_bytes += subtask.state_bytes;
        }
    }
    Ok(Sample { at_ms: (asked + now_ms()) / 2.0, rows_in, state_bytes })
}

fn subtasks(address: &str) -> Result<Vec<Subtask>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /subtasks HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(serde_json::from_str(body)?)
}
