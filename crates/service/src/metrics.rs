//! Metrics in Prometheus' text format: whatever the process records through the `metrics` crate, and the process's own
//! memory and CPU time.
//!
//! Names start with `weir_` and end in their unit; `docs/metrics.md` lists them. The recorder is global to
//! the process: `metrics` is made that way.

use std::fmt::Write as _;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use weir_types::{Error, Result};

/// From 100 µs to 100 s: latencies of calls, fsyncs, checkpoints.
const SECONDS_BUCKETS: [f64; 13] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// The kernel's ABI counts CPU time in /proc in hundredths of a second on every architecture that Weir runs on.
const TICKS_PER_SECOND: f64 = 100.0;

static RECORDER: OnceLock<std::result::Result<PrometheusHandle, String>> = OnceLock::new();

/// Everything recorded in this process.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Starts recording, once per process; later calls return the same metrics.
    ///
    /// # Errors
    /// `INTERNAL` if something else records already.
    pub fn install() -> Result<Self> {
        let installed = RECORDER.get_or_init(|| {
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
                .and_then(PrometheusBuilder::install_recorder)
                .map_err(|error| error.to_string())
        });
        match installed {
            Ok(handle) => Ok(Self(handle.clone())),
            Err(detail) => Err(Error::internal("could not start recording metrics").with_detail(detail)),
        }
    }

    /// The text that a scrape gets.
    pub fn render(&self) -> String {
        let mut text = self.0.render();
        if let Some(usage) = ProcessUsage::read(std::process::id()) {
            let ProcessUsage { resident_bytes, peak_resident_bytes, cpu_seconds } = usage;
            for (name, kind, value) in [
                ("process_cpu_seconds_total", "counter", cpu_seconds),
                ("process_resident_memory_bytes", "gauge", resident_bytes as f64),
                ("process_resident_memory_peak_bytes", "gauge", peak_resident_bytes as f64),
            ] {
                let _infallible = write!(text, "# TYPE {name} {kind}\n{name} {value}\n\n");
            }
        }
        text
    }

    /// Folds recorded histogram samples into their buckets; call it every few seconds so that they do not pile up.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// What a process has used, by the kernel's account.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUsage {
    /// Memory resident now.
    pub resident_bytes: u64,
    /// The most that was resident at any time.
    pub peak_resident_bytes: u64,
    /// User and system time of all threads.
    pub cpu_seconds: f64,
}

impl ProcessUsage {
    /// The usage of process `pid`; `None` once it is gone.
    pub fn read(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        // The command's name, in parentheses, may hold anything; fields count from behind it. utime and stime are
        // fields 14 and 15 of proc_pid_stat(5), so 11 and 12 after the state.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Self {
            resident_bytes: kib("VmRSS:")? << 10,
            peak_resident_bytes: kib("VmHWM:")? << 10,
            cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_metrics_and_the_process_itself_are_rendered() {
        Metrics::install().unwrap();
        metrics::counter!("weir_test_rows_total", "job" => "a").increment(3);
        metrics::histogram!("weir_test_fsync_seconds").record(0.002);
        let text = Metrics::install().unwrap().render();
        assert!(text.contains("weir_test_rows_total{job=\"a\"} 3\n"), "{text}");
        assert!(text.contains("weir_test_fsync_seconds_bucket{le=\"0.003\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE process_resident_memory_bytes gauge\n"), "{text}");
    }

    #[test]
    fn usage_counts_this_process_and_knows_when_another_is_gone() {
        let usage = ProcessUsage::read(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.peak_resident_bytes >= usage.resident_bytes / 2);
        assert_eq!(ProcessUsage::read(u32::MAX), None);
    }
}
