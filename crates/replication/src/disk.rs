//! A member's directory: one log file, at most one snapshot that it starts from, and a lock.
//!
//! Files are replaced by writing a new one beside, syncing it, renaming it, and syncing the directory; only then is the
//! old one deleted. After a crash at any point, the log file with the highest number is whole, and names its snapshot.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use protobuf::Message as _;
use raft::eraftpb::Snapshot;
use weir_types::{Code, Error, Result};

use crate::files::{Files, OpenFile};
use crate::wal::{self, Record};

const LOG_PREFIX: &str = "log-";
const SNAPSHOT_PREFIX: &str = "snapshot-";
const TEMPORARY_SUFFIX: &str = ".tmp";
const SNAPSHOT_MAGIC: [u8; 12] = *b"WEIRSNAP\x01\0\0\0";

/// An opened directory.
pub(crate) struct Disk {
    files: Box<dyn Files>,
    log: Box<dyn OpenFile>,
    /// The log file's number in its name.
    number: u64,
    /// Frames in the log file.
    frames: u64,
    /// Length of the log file.
    bytes: u64,
    buffer: Vec<u8>,
}

impl Disk {
    /// Opens a directory and returns what its log says. A new log starts with what `found` returns: a first record, and
    /// the snapshot that its base names.
    ///
    /// # Errors
    /// `CORRUPT` for damage, `IO`.
    pub(crate) fn open(
        files: Box<dyn Files>,
        found: impl FnOnce() -> (Record, Option<Snapshot>),
    ) -> Result<(Self, Vec<Record>)> {
        let newest = names(&*files)?.iter().filter_map(|name| number(name, LOG_PREFIX)).max();
        let (number, records, bytes) = match newest {
            Some(number) => {
                let (records, bytes) = read_log(&*files, &log_name(number))?;
                (number, records, bytes)
            }
            None => {
                let (first, snapshot) = found();
                if let Some(snapshot) = &snapshot {
                    write_snapshot(&*files, snapshot)?;
                }
                let bytes = create_log(&*files, 1, &first)?;
                (1, vec![first], bytes)
            }
        };
        let log = open(&*files, &log_name(number))?;
        let frames = records.len() as u64;
        let disk = Self { files, log, number, frames, bytes, buffer: Vec::new() };
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
            .append(&self.buffer)
            .and_then(|()| self.log.sync())
            .map_err(|error| failed("append to", &self.path(&log_name(self.number)), &error))?;
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
        let bytes = create_log(&*self.files, number, first)?;
        self.log = open(&*self.files, &log_name(number))?;
        (self.number, self.frames, self.bytes) = (number, 1, bytes);
        self.remove_all_but(first.base.unwrap_or_default().snapshot_index)
    }

    /// Length of the log file.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.bytes
    }

    /// The directory, for messages.
    pub(crate) fn directory(&self) -> &Path {
        self.files.path()
    }

    /// Writes a snapshot durably; it takes effect with the log file that names it.
    pub(crate) fn write_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        write_snapshot(&*self.files, snapshot)
    }

    /// The snapshot at `index`.
    ///
    /// # Errors
    /// `CORRUPT` if it is missing or damaged.
    pub(crate) fn read_snapshot(&self, index: u64) -> Result<Snapshot> {
        let path = self.path(&snapshot_name(index));
        let damaged = |reason: &str| {
            Error::new(Code::Corrupt, format!("the raft snapshot {} is damaged", path.display()))
                .with_detail(reason.to_owned())
                .with_hint(
                    "Restore the directory from a backup, or, in a group of several members, replace this member.",
                )
        };
        let file = match self.files.read(&snapshot_name(index)) {
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
        for name in names(&*self.files)? {
            let stale = name.ends_with(TEMPORARY_SUFFIX)
                || number(&name, LOG_PREFIX).is_some_and(|number| number != self.number)
                || number(&name, SNAPSHOT_PREFIX).is_some_and(|index| index != snapshot_index);
            if stale {
                self.files.remove(&name).map_err(|error| failed("delete", &self.path(&name), &error))?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }
}

/// Reads a log file and cuts off a torn last frame.
fn read_log(files: &dyn Files, name: &str) -> Result<(Vec<Record>, u64)> {
    let path = files.path().join(name);
    let file = files.read(name).map_err(|error| failed("read", &path, &error))?;
    let (records, whole) = wal::decode(&path, &file)?;
    if whole < file.len() {
        tracing::warn!(path = %path.display(), offset = whole, bytes = file.len() - whole, "cut off a torn raft record");
        files
            .open(name)
            .and_then(|mut log| log.truncate(whole as u64).and_then(|()| log.sync()))
            .map_err(|error| failed("truncate", &path, &error))?;
    }
    if records.first().is_none_or(|record| record.base.is_none()) {
        return Err(Error::new(Code::Corrupt, format!("the raft log {} has no first record", path.display())));
    }
    Ok((records, whole as u64))
}

fn create_log(files: &dyn Files, number: u64, first: &Record) -> Result<u64> {
    let mut file = wal::MAGIC.to_vec();
    wal::encode(first, 0, &mut file)?;
    replace(files, &log_name(number), &file)?;
    Ok(file.len() as u64)
}

fn write_snapshot(files: &dyn Files, snapshot: &Snapshot) -> Result<()> {
    let body = snapshot
        .write_to_bytes()
        .map_err(|error| Error::internal("could not encode a raft snapshot").with_detail(error.to_string()))?;
    let mut file = Vec::with_capacity(body.len() + 16);
    file.extend_from_slice(&SNAPSHOT_MAGIC);
    file.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    file.extend_from_slice(&body);
    replace(files, &snapshot_name(snapshot.get_metadata().index), &file)
}

/// Creates or replaces a file in one durable step.
fn replace(files: &dyn Files, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = format!("{name}{TEMPORARY_SUFFIX}");
    let write = || {
        let mut file = files.create(&temporary)?;
        file.append(bytes)?;
        file.sync()?;
        files.rename(&temporary, name)?;
        files.sync()
    };
    write().map_err(|error| failed("write", &files.path().join(name), &error))
}

fn open(files: &dyn Files, name: &str) -> Result<Box<dyn OpenFile>> {
    files.open(name).map_err(|error| failed("open", &files.path().join(name), &error))
}

fn names(files: &dyn Files) -> Result<Vec<String>> {
    files.names().map_err(|error| failed("list", files.path(), &error))
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
