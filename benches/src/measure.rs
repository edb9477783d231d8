//! What the kernel says about processes and directories, and what is said about many figures.

use std::path::Path;

use anyhow::{Context, Result};

/// `/proc` counts in hundredths of a second on every Linux (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that a process has used, in user and kernel mode (fields 14 and 15 of `/proc/PID/stat`).
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("malformed stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("malformed stat")?.parse()?) };
    Ok((ticks()? + ticks()?) as f64 / TICKS_PER_SECOND)
}

/// A line of `/proc/PID/status` in MiB: `VmHWM` for the peak resident size, `VmRSS` for the present one.
pub fn memory_mib(pid: u32, line: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).context("no such line")?;
    let kib: f64 = found.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// The median; the lower one of an even number.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes of all files below a directory.
pub fn bytes_below(directory: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("could not read {}", directory.display()))?;
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
