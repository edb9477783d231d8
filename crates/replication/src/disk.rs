//! A member's directory: one log file, at most one snapshot that it starts from, and a lock.
//!
//! Files are replaced by writing a new one beside, syncing it, renaming it, and syncing the directory; only then is the
//! old one deleted. After a crash at any point, the log file with the highest number is whole, and names its snapshot.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use protobuf::Message as _;
use raft::eraftpb::Snapshot;
use weir_types::{Code, Error, Result};

use crate::wal::{self, Record};

const LOCK: &str = "LOCK";
const LOG_PREFIX: &str = "log-";
const SNAPSHOT_PREFIX: &str = "snapshot-";
const TEMPORARY_SUFFIX: &str = ".tmp";
const SNAPSHOT_MAGIC: [u8; 12] = *b"WEIRSNAP\x01\0\0\0";

/// An opened directory.
pub(crate) struct Disk {
    dir: PathBuf,
    log: File,
    /// The log file's number in its name.
    number: u64,
    /// Frames in the log file.
    frames: u64,
    /// Length of the log file.
    bytes: u64,
    buffer: Vec<u8>,
    /// Held until this is dropped.
    _lock: File,
}

impl Disk {
    /// Opens a directory, creating it if need be, and returns what its log says. A new log starts with what `found`
    /// returns: a first record, and the snapshot that its base names.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if another process has it open, `CORRUPT` for damage, `IO`.
    pub(crate) fn open(dir: &Path, found: impl FnOnce() -> (Record, Option<Snapshot>)) -> Result<(Self, Vec<Record>)> {
        weir_durable::create_directories(dir)
            .map_err(|error| Error::io(format!("could not create the raft directory {}", dir.display()), &error))?;
        let lock = lock(dir)?;
        let newest = names(dir)?.iter().filter_map(|name| number(name, LOG_PREFIX)).max();
        let (number, records, bytes) = match newest {
            Some(number) => {
                let (records, bytes) = read_log(&dir.join(log_name(number)))?;
                (number, records, bytes)
            }
            None => {
                let (first, snapshot) = found();
                if let Some(snapshot) = &snapshot {
                    write_snapshot(dir, snapshot)?;
                }
                let bytes = create_log(dir, 1, &first)?;
                (1, vec![first], bytes)
            }
        };
        let path = dir.join(log_name(number));
        let log = OpenOptions::new().append(true).open(&path).map_err(|error| failed("open", &path, &error))?;
        let frames = records.len() as u64;
        let disk = Self { dir: dir.to_owned(), log, number, frames, bytes, buffer: Vec::new(), _lock: lock };
        let snapshot_index = records.first().and_then(|record| record.base).map_or(0, |base| base.snapshot_index);
        disk.remove_all_but(snapshot_index)?;
        Ok((disk, records))
    }

    /// Appends a record and syncs it. After an error the log's end is undefined: the caller stops.
    pub(crate) fn append(&mut self, record: &Record) -> Result<()> {
        let started = Instant::now();
        self.buffer.clear();
        wal::encode(record, self.frames, &mut self.buffer)?;
        self.log
            .write_all(&self.buffer)
            .and_then(|()| self.log.sync_data())
            .map_err(|error| failed("append to", &self.dir.join(log_name(self.number)), &error))?;
        self.frames += 1;
        self.bytes += self.buffer.len() as u64;
        // One large record must not hold its memory for ever.
        self.buffer.shrink_to(1 << 20);
        metrics::histogram!("weir_raft_append_seconds").record(started.elapsed());
        Ok(())
    }

    /// Starts a new log file with `first`, whose base names the snapshot to start from, and forgets the old one.
    pub(crate) fn rewrite(&mut self, first: &Record) -> Result<()> {
        let number = self.number + 1;
        let bytes = create_log(&self.dir, number, first)?;
        let path = self.dir.join(log_name(number));
        self.log = OpenOptions::new().append(true).open(&path).map_err(|error| failed("open", &path, &error))?;
        (self.number, self.frames, self.bytes) = (number, 1, bytes);
        self.remove_all_but(first.base.unwrap_or_default().snapshot_index)
    }

    /// Length of the log file.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes a snapshot durably; it takes effect with the log file that names it.
    pub(crate) fn write_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        write_snapshot(&self.dir, snapshot)
    }

    /// The snapshot at `index`.
    ///
    /// # Errors
    /// `CORRUPT` if it is missing or damaged.
    pub(crate) fn read_snapshot(&self, index: u64) -> Result<Snapshot> {
        let path = self.dir.join(snapshot_name(index));
        let damaged = |reason: &str| {
            Error::new(Code::Corrupt, format!("the raft snapshot {} is damaged", path.display()))
                .with_detail(reason.to_owned())
                .with_hint(
                    "Restore the directory from a backup, or, in a group of several members, replace this member.",
                )
        };
        let file = match std::fs::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("the file is missing")),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let rest = file.strip_prefix(&SNAPSHOT_MAGIC).ok_or_else(|| damaged("it is not a snapshot of this version"))?;
        let (checksum, body) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut short"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(damaged("its checksum does not match"));
        }
        Snapshot::parse_from_bytes(body).map_err(|error| damaged(&error.to_string()))
    }

    /// Deletes what crashes and replacements left: temporary files, other log files, other snapshots.
    fn remove_all_but(&self, snapshot_index: u64) -> Result<()> {
        for name in names(&self.dir)? {
            let stale = name.ends_with(TEMPORARY_SUFFIX)
                || number(&name, LOG_PREFIX).is_some_and(|number| number != self.number)
                || number(&name, SNAPSHOT_PREFIX).is_some_and(|index| index != snapshot_index);
            if stale {
                let path = self.dir.join(&name);
                std::fs::remove_file(&path).map_err(|error| failed("delete", &path, &error))?;
            }
        }
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| failed("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Code::FailedPrecondition,
            format!("the raft directory {} is in use by another process", dir.display()),
        )
        .with_hint("Stop that process, or give this one a directory of its own.")),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path, &error)),
    }
}

/// Reads a log file and cuts off a torn last frame.
fn read_log(path: &Path) -> Result<(Vec<Record>, u64)> {
    let file = std::fs::read(path).map_err(|error| failed("read", path, &error))?;
    let (records, whole) = wal::decode(path, &file)?;
    if whole < file.len() {
        tracing::warn!(path = %path.display(), offset = whole, bytes = file.len() - whole, "cut off a torn raft record");
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|log| log.set_len(whole as u64).and_then(|()| log.sync_all()))
            .map_err(|error| failed("truncate", path, &error))?;
    }
    if records.first().is_none_or(|record| record.base.is_none()) {
        return Err(Error::new(Code::Corrupt, format!("the raft log {} has no first record", path.display())));
    }
    Ok((records, whole as u64))
}

fn create_log(dir: &Path, number: u64, first: &Record) -> Result<u64> {
    let mut file = wal::MAGIC.to_vec();
    wal::encode(first, 0, &mut file)?;
    replace(dir, &log_name(number), &file)?;
    Ok(file.len() as u64)
}

fn write_snapshot(dir: &Path, snapshot: &Snapshot) -> Result<()> {
    let body = snapshot
        .write_to_bytes()
        .map_err(|error| Error::internal("could not encode a raft snapshot").with_detail(error.to_string()))?;
    let mut file = Vec::with_capacity(body.len() + 16);
    file.extend_from_slice(&SNAPSHOT_MAGIC);
    file.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    file.extend_from_slice(&body);
    replace(dir, &snapshot_name(snapshot.get_metadata().index), &file)
}

/// Creates or replaces a file in one durable step.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}{TEMPORARY_SUFFIX}")));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        weir_durable::sync_directory(dir)
    };
    write().map_err(|error| failed("write", &path, &error))
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let list = || {
        std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
    };
    list().map_err(|error| failed("list", dir, &error))
}

fn log_name(number: u64) -> String {
    format!("{LOG_PREFIX}{number:016x}")
}

fn snapshot_name(index: u64) -> String {
    format!("{SNAPSHOT_PREFIX}{index:016x}")
}

fn number(name: &str, prefix: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok()
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Error {
    Error::io(format!("could not {action} {}", path.display()), error)
}
